"""The routes: what each answers, and what it refuses."""
import random
import os
import re
import tempfile
import threading
import time

import support
import rtot
from support import SECRET, Follower, ServerCase, split_answer, wait_until

GO_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]*[1-9])? \+0000 UTC$"
ZERO = "0001-01-01 00:00:00 +0000 UTC"


class SecretTest(ServerCase):

    def test_ping_needs_none(self):
        answer = self.server.get("/ping", secret=False)
        self.assertEqual((answer.status, answer.json["message"]), (200, "still here"))
        self.assertRegex(answer.json["uptime"], r"^([0-9]+m)?[0-9.]+m?s$")

    def test_everything_else_needs_it(self):
        for method, path in (("GET", "/"), ("DELETE", "/"), ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/0"),
                             ("GET", "/nothing"), ("POST", "/ping"), ("DELETE", "/jobs"), ("GET", "/ping/x")):
            for headers in ({}, {"Rtot-Secret": "wrong"}, {"Rtot-Secret": ""}, {"Authorization": "Basic " + SECRET},
                            {"Authorization": SECRET}, {"Authorization": "rtot wrong"}, {"Rtot-Secret": SECRET + "x"},
                            {"Rtot-Secret": SECRET[:-1]}, {"Rtot-Secret": b"\xe9\xff"}):
                answer = self.server.request(method, path, b"true" if method == "POST" else None, headers, secret=False)
                self.assertError(answer, 401, "^not authorized: ")
                self.assertIn("www-authenticate", answer.headers)
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_the_error_tells_a_wrong_one_from_none(self):
        for headers, message in (({}, "send the secret in a header"), ({"Authorization": "Basic x"}, "send the secret"),
                                 ({"Rtot-Secret": "wrong"}, "not the secret of this server")):
            self.assertError(self.server.get("/jobs", headers=headers, secret=False), 401, message)

    def test_comes_in_any_of_three_headers(self):
        for headers in ({"Rtot-Secret": SECRET}, {"Authorization": "rtot " + SECRET}, {"authorization": "Bearer " + SECRET},
                        {"Authorization": "bearer  " + SECRET}):
            self.assertEqual(self.server.get("/", headers=headers, secret=False).status, 200)

    def test_may_have_bytes_beyond_ascii(self):
        server = self.own_server(secret="caf\u00e9")
        for given, status in (("caf\u00e9".encode("utf-8"), 200), (b"caf\xe9", 401), (b"cafe", 401)):
            self.assertEqual(server.get("/", headers={"Rtot-Secret": given}, secret=False).status, status)


class RootTest(ServerCase):

    def test_tells_what_there_is(self):
        value = self.server.get("/").json
        self.assertEqual(value["links"]["jobs"], "/jobs{?state,label,last,fields}")
        self.assertEqual(value["links"]["ping"], "/ping")
        self.assertEqual(sorted(value), sorted("links version host user python uptime jobs".split()))
        self.assertEqual(value["jobs"], {"new": 0, "running": 0, "complete": 0})

    def test_counts_jobs_by_state(self):
        self.server.run("true")
        number = self.server.start("sleep 99")
        wait_until(lambda: self.server.get("/").json["jobs"] == {"new": 0, "running": 1, "complete": 1})
        self.server.delete("/jobs/%d" % number)
        self.server.delete("/jobs")


class CreateTest(ServerCase):

    def test_answers_as_the_seed_did(self):
        answer = self.server.post("/jobs", "echo wat is happening", headers={"Content-Type": "application/x-nonsense"})
        self.assertEqual(answer.status, 201)
        self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
        job = answer.job
        self.assertEqual(answer.headers["location"], job["href"])
        self.assertRegex(answer.body.decode("utf-8"), (
            r'(?s)^{\n  "jobs": \[\n    {\n      "href": "/jobs/%d",\n      "id": %d,\n      "state": "new",\n'
            r'      "start": "%s",\n      "complete": "%s",\n      "create": "[^"]*"\n    }\n  \]\n}\n$') % (
                job["id"], job["id"], re.escape(ZERO), re.escape(ZERO)))
        self.assertRegex(job["create"], GO_TIME)

    def test_ids_count_up(self):
        numbers = [self.server.start("true") for _ in range(3)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 3)))
        self.server.delete("/jobs/%d" % numbers[-1])
        self.assertEqual(self.server.start("true"), numbers[-1] + 1)

    def test_waits_for_the_end(self):
        answer = self.server.post("/jobs?wait", "sleep 0.1; echo hi; exit 3")
        self.assertEqual((answer.status, answer.job["out"], answer.job["exit"]), (201, "hi\n", "exit status 3"))

    def test_answers_202_when_the_seconds_have_run_out_and_the_job_goes_on(self):
        answer = self.server.post("/jobs?wait=0.1&stdin", "echo begun; read go; echo done")
        self.assertEqual(answer.status, 202)
        self.assertNotEqual(answer.job["state"], "complete")
        self.assertEqual(answer.headers["location"], answer.job["href"])
        self.server.post(answer.job["href"] + "/stdin", "go\n")
        self.assertEqual(self.server.get(answer.job["href"] + "?wait").job["out"], "begun\ndone\n")

    def test_follows_from_the_first_byte_to_the_exit(self):
        script, raw = b"echo o; read go; echo e >&2; exit 5", b""
        with self.server.connect() as connection:
            connection.sendall(b"POST /jobs?follow&stdin HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n"
                               b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(script), script))
            while b"o\n\r\n" not in raw:
                raw += connection.recv(1000)
            self.server.post(re.search("/jobs/[0-9]+", raw.decode("ascii")).group(0) + "/stdin", "go\n")
            raw += support.read_all(connection)
        status, headers, body = split_answer(raw)
        self.assertEqual((status, headers["transfer-encoding"], headers["x-accel-buffering"]), (201, "chunked", "no"))
        self.assertRegex(headers["location"], "^/jobs/[0-9]+$")
        self.assertRegex(body, b"^2\r\no\n\r\n2\r\ne\n\r\n0\r\nRtot-Exit: 5\r\nRtot-Dropped: 0\r\n\r\n$")

    def test_bad_input_runs_nothing(self):
        for path, message in (
                ("?timeot=3", "timeot.*there are: arg env cwd timeout"), ("?timeout=x", "timeout is a number of seconds"),
                ("?timeout=-1", "number of seconds"), ("?timeout=0", "over 0"), ("?timeout=", "number of seconds"),
                ("?timeout=nan", "number of seconds"), ("?timeout=1e3", "number of seconds"), ("?timeout=1_0", "number"),
                ("?wait=-1", "wait is a number of seconds"), ("?wait=soon", "number of seconds"), ("?env=FOO", "NAME=VALUE"),
                ("?env==x", "NAME=VALUE"), ("?cwd=/no/such", "no directory"), ("?cwd=/etc/passwd", "no directory"),
                ("?rows=10", "give tty"), ("?cols=10", "give tty"), ("?tty&rows=0", "from 1 to 65535"),
                ("?tty&rows=x", "whole number"), ("?tty&cols=70000", "whole number"), ("?tty=maybe", "flag"),
                ("?stdin=2", "flag"), ("?wait&follow", "one of them"), ("?label=a&label=b", "once"),
                ("?arg=a%00b", "NUL"), ("?fields=nope", "no field 'nope'.*href id out"), ("?tail=3", "no parameter 'tail'")):
            self.assertError(self.server.post("/jobs" + path, "touch %s/marker" % self.server.tmp), 400, message)
        self.assertError(self.server.post("/jobs", b""), 400, "script is empty")
        form = (b'--b\r\nContent-Disposition: form-data; name="s"; filename="$(touch %b/marker)"\r\n\r\ntrue\r\n--b--\r\n'
                % self.server.tmp.encode())
        self.assertError(self.server.post("/jobs?wait", form, headers={"Content-Type": "multipart/form-data; boundary=b"}),
                         400, "--data-binary @file")
        self.assertEqual(self.server.get("/jobs?label=nothing").jobs, [])
        self.assertNotIn("marker", self.server.leftovers())

    def test_parameters_are_parted_before_they_are_decoded(self):
        job = self.server.run("echo $A", "arg=a%26b%3Dc&arg=d=e%2Bf+g&env=A%3Db%26c")
        self.assertEqual((job["args"], job["out"]), (["a&b=c", "d=e+f g"], "b&c\n"))

    def test_flags_are_alone_or_1_or_true(self):
        for value in ("tty", "tty=1", "tty=true"):
            self.assertEqual(self.server.run("test -t 0", value)["exit_code"], 0)
        for value in ("tty=0", "tty=false"):
            self.assertEqual(self.server.run("test -t 0", value)["exit_code"], 1)
        number = self.server.start("read go", "stdin&wait=false")
        self.assertEqual(self.server.post("/jobs/%d/stdin?eof=true" % number).status, 204)
        self.assertEqual(self.server.get("/jobs/%d?wait=true" % number).status, 200)


class LimitTest(ServerCase):
    options = ("--max-script", "1K")

    def test_a_script_over_the_limit_is_refused_whichever_way_it_comes(self):
        self.assertEqual(self.server.post("/jobs", b"#" * 1024).status, 201)
        self.assertError(self.server.post("/jobs", b"#" * 1025), 413, "1024 bytes")
        chunks = b"401\r\n" + b"#" * 1025 + b"\r\n0\r\n\r\n"
        raw = self.server.raw(b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nTransfer-Encoding: chunked\r\n\r\n"
                              + chunks)
        self.assertEqual(split_answer(raw)[0], 413)
        self.assertEqual(len(self.server.get("/jobs").jobs), 1)


class RoutingTest(ServerCase):

    def test_what_there_is_not_is_404(self):
        for path in ("/nothing", "/jobs/0/nothing", "/jobs/0/out/x", "/job", "/jobs/0/"[:-1] + "/Out"):
            self.assertError(self.server.get(path), 404, "not found: there is nothing at " + path)

    def test_another_method_is_405_and_names_those_that_are_allowed(self):
        for method, path, allow in (("PUT", "/jobs", "DELETE, GET, POST, HEAD"), ("POST", "/ping", "GET, HEAD"),
                                    ("GET", "/jobs/0/kill", "POST"), ("OPTIONS", "/", "DELETE, GET, HEAD")):
            answer = self.server.request(method, path)
            if "0" in path:
                self.server.run("true")
                answer = self.server.request(method, path)
            self.assertError(answer, 405, "takes")
            self.assertEqual(answer.headers["allow"], allow)

    def test_no_such_job_is_404_with_an_empty_list(self):
        for method, path in (("GET", "/jobs/99"), ("DELETE", "/jobs/99"), ("GET", "/jobs/99/out"), ("GET", "/jobs/-1")):
            answer = self.server.request(method, path)
            self.assertError(answer, 404, "^no such job: ")
            self.assertEqual(answer.jobs, [])
            self.assertEqual(list(answer.json), ["jobs", "error", "message"])

    def test_what_is_no_number_is_400(self):
        for text in ("abc", "1x", "1.0", "%C2%B2", "9" * 30, "0x1"):
            self.assertError(self.server.get("/jobs/" + text), 400, '^invalid job number: ".*" is no number of a job: GET /jobs lists')

    def test_an_unknown_parameter_is_named(self):
        self.server.run("true")
        for method, path in (("GET", "/jobs?sate=new"), ("GET", "/jobs/0?x"), ("DELETE", "/jobs?x=1"), ("GET", "/ping?x="),
                             ("GET", "/?x=1"), ("GET", "/jobs/0/out?lines=3"), ("POST", "/jobs/0/kill?sig=9")):
            name = re.search(r"\?(\w+)", path).group(1)
            self.assertError(self.server.request(method, path), 400, "no parameter %r" % name)


class GetTest(ServerCase):

    def test_is_200_when_complete_and_202_until_then(self):
        number = self.server.start("read line", "stdin")
        answer = self.server.get("/jobs/%d" % number)
        self.assertEqual((answer.status, answer.headers["location"]), (202, "/jobs/%d" % number))
        self.server.post("/jobs/%d/stdin" % number, "x\n")
        answer = self.server.get("/jobs/%d?wait" % number)
        self.assertEqual((answer.status, answer.headers["location"]), (200, "/jobs/%d" % number))
        self.assertEqual(list(answer.job), "href id state start complete create".split())
        for name in ("start", "complete", "create"):
            self.assertRegex(answer.job[name], GO_TIME)
        self.assertLessEqual(answer.job["create"], answer.job["start"])

    def test_shows_the_fields_that_are_asked_for(self):
        number = self.server.run("echo o; echo e >&2; exit 1")["id"]
        self.assertEqual(list(self.server.job(number, "fields=")), ["href", "id", "state"])
        self.assertEqual(list(self.server.job(number, "fields=exit,out")), ["href", "id", "out", "exit", "state"])
        self.assertEqual(list(self.server.job(number, "")), "href id out err exit state start complete create".split())
        self.assertEqual(len(self.server.job(number, "fields=all")), 24)
        self.assertEqual(len(self.server.job(number, "fields=out,all")), 24)

    def test_json_is_utf8_as_it_is(self):
        number = self.server.run(b"printf 'caf\xc3\xa9 <b> \xff'")["id"]
        body = self.server.get("/jobs/%d" % number).body
        self.assertIn("\"caf\u00e9 <b> \ufffd\"".encode("utf-8"), body)
        self.assertEqual(self.server.out(number), b"caf\xc3\xa9 <b> \xff")


class ListTest(ServerCase):

    def setUp(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))

    def test_lists_all_in_order_by_state_and_by_label(self):
        first = self.server.run("true", "label=a")["id"]
        second = self.server.start("sleep 99", "label=b")
        third = self.server.run("true", "label=b")["id"]
        wait_until(lambda: self.server.job(second)["state"] == "running")

        def ids(query):
            return [job["id"] for job in self.server.get("/jobs" + query).jobs]
        self.assertEqual(ids(""), [first, second, third])
        self.assertEqual(ids("?state=complete"), [first, third])
        self.assertEqual(ids("?state=running"), [second])
        self.assertEqual(ids("?label=b&state=complete"), [third])
        self.assertEqual(ids("?label=c"), [])
        self.assertEqual(ids("?last=2"), [second, third])
        self.assertEqual(ids("?last=1&state=complete&fields=line"), [third])
        self.assertError(self.server.get("/jobs?last=-1"), 400, "whole number")
        self.assertError(self.server.get("/jobs?state=done"), 400, "new running complete")
        self.assertError(self.server.get("/jobs?label="), 400, "label is empty")
        self.assertEqual(list(self.server.get("/jobs?fields=&label=a").job), ["href", "id", "state"])

    def test_deletes_by_state_and_by_label(self):
        first = self.server.run("true", "label=a")["id"]
        second = self.server.start("sleep 99", "label=b")
        third = self.server.run("true", "label=b")["id"]
        self.server.run("true")
        self.assertError(self.server.delete("/jobs?state=done"), 400, "new running complete")
        self.assertError(self.server.delete("/jobs?label="), 400, "label is empty")     # of a variable that is not set
        self.assertEqual(self.server.delete("/jobs/%d" % (third + 1)).status, 204)
        self.assertEqual(self.server.delete("/jobs?state=complete&label=b").status, 204)
        self.assertEqual([job["id"] for job in self.server.get("/jobs").jobs], [first, second])
        pid = self.server.job(second)["pid"]
        self.assertEqual(self.server.delete("/jobs?state=running").status, 204)
        wait_until(lambda: not support.is_alive(pid))
        answer = self.server.delete("/jobs")
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertNotIn("content-length", answer.headers)      # RFC 9110, 8.6
        self.assertEqual(self.server.get("/jobs").jobs, [])
        self.assertEqual(self.server.get("/jobs/%d" % third).status, 404)


class WaitTest(ServerCase):

    def test_answers_soon_after_the_end_of_the_job(self):
        number = self.server.start("read line", "stdin")
        ends = []

        def wait():
            answer = self.server.get("/jobs/%d?wait=%d" % (number, support.LIMIT))
            ends.append((answer.status, time.monotonic()))
        threads = [threading.Thread(target=wait) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_until(lambda: self.server.threads() >= 22)
        self.server.post("/jobs/%d/stdin" % number, "\n")
        for thread in threads:
            thread.join()
        self.assertEqual({status for status, _ in ends}, {200})

    def test_answers_202_when_the_seconds_have_run_out(self):
        number = self.server.start("sleep 99")
        began = time.monotonic()
        self.assertEqual(self.server.get("/jobs/%d?wait=0.2" % number).status, 202)
        self.assertGreaterEqual(time.monotonic() - began, 0.2)
        self.assertEqual(self.server.get("/jobs/%d?wait=0" % number).status, 202)
        answer = self.server.get("/jobs/%d/exit?wait=0.05" % number)
        self.assertEqual((answer.status, answer.body), (202, b""))
        self.server.delete("/jobs/%d" % number)

    def test_exit_is_the_code_as_text(self):
        for script, text in (("exit 0", b"0\n"), ("exit 7", b"7\n"), ("kill -9 $$", b"137\n")):
            answer = self.server.get("/jobs/%d/exit?wait" % self.server.start(script))
            self.assertEqual((answer.status, answer.body), (200, text))

    def test_a_waiter_whose_job_is_deleted_gets_its_end(self):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(self.server.post("/jobs?wait&label=x", "sleep 99")))
        thread.start()
        wait_until(lambda: self.server.get("/jobs?state=running&label=x").jobs)
        self.server.delete("/jobs?label=x")
        thread.join(support.LIMIT)
        self.assertEqual(answers[0].job["exit"], "signal: terminated")

    def test_hundreds_of_waiters_cost_no_cpu_and_free_their_threads_when_they_hang_up(self):
        number = self.server.start("sleep 99")
        wait_until(lambda: self.server.threads() == 2)
        connections = []
        for index in range(300):
            connection = self.server.connect()
            self.addCleanup(connection.close)
            path = ("/jobs/%d?wait", "/jobs/%d/exit?wait", "/jobs/%d/out?follow")[index % 3] % number
            connection.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n\r\n" % path.encode())
            connections.append(connection)
        wait_until(lambda: self.server.threads() == 302)
        before, began = self.server.cpu(), time.monotonic()
        time.sleep(2)           # a span in which next to nothing may be done, not a wait for something
        self.assertLess((self.server.cpu() - before) / (time.monotonic() - began), 0.2)
        for connection in connections:
            connection.close()
        wait_until(lambda: self.server.threads() == 2)
        self.server.delete("/jobs/%d" % number)


class OutputTest(ServerCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.number = cls.server.print_in_turn("o1 e1 o2 e2 o3 e3 o4 e4 o5 e5".split())
        cls.whole = b"o1\no2\no3\no4\no5\n"

    def get(self, what, **headers):
        return self.server.get("/jobs/%d/%s" % (self.number, what), headers=headers)

    def test_gives_the_bytes_exactly(self):
        answer = self.get("out")
        self.assertEqual((answer.status, answer.body, answer.headers["content-type"]),
                         (200, self.whole, "text/plain; charset=utf-8"))
        self.assertEqual((answer.headers["content-length"], answer.headers["rtot-dropped"]), ("15", "0"))
        self.assertEqual(self.get("err").body, self.whole.replace(b"o", b"e"))
        self.assertEqual(self.get("log").body, b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1, 6)))

    def test_gives_the_last_lines(self):
        self.assertEqual(self.get("out?tail=2").body, b"o4\no5\n")
        self.assertEqual(self.get("log?tail=3").body, b"e4\no5\ne5\n")
        self.assertEqual(self.get("out?tail=0").body, b"")
        self.assertEqual(self.get("out?tail=99").body, self.whole)
        for value in ("x", "-1", ""):
            self.assertError(self.get("out?tail=" + value), 400, "tail is a whole number")

    def test_gives_a_range(self):
        for header, body, content_range in (("bytes=3-", self.whole[3:], "bytes 3-14/15"),
                                            ("bytes=3-5", self.whole[3:6], "bytes 3-5/15"),
                                            ("bytes=14-99", self.whole[14:], "bytes 14-14/15"),
                                            ("bytes=-4", self.whole[-4:], "bytes 11-14/15"),
                                            ("bytes=0-", self.whole, "bytes 0-14/15")):
            answer = self.get("out", Range=header)
            self.assertEqual((answer.status, answer.body, answer.headers["content-range"]), (206, body, content_range))

    def test_head_heeds_no_range(self):
        """It is for GET alone: RFC 9110, 14.2."""
        for span in ("bytes=1-", "bytes=99999-"):
            answer = self.server.request("HEAD", "/jobs/%d/out" % self.number, headers={"Range": span})
            self.assertEqual((answer.status, "content-range" in answer.headers), (200, False))

    def test_a_range_past_the_end_is_416(self):
        for header in ("bytes=15-", "bytes=99-"):
            answer = self.get("out", Range=header)
            self.assertError(answer, 416, "there are 15 bytes")
            self.assertEqual(answer.headers["content-range"], "bytes */15")

    def test_a_range_that_is_not_understood_is_as_if_it_were_not_there(self):
        for header in ("bytes=", "bytes=-", "lines=1-", "bytes=1-2,4-5", "bytes=5-3", "bytes=x-"):
            self.assertEqual(self.get("out", Range=header).status, 200, header)
        self.assertEqual(self.get("out", **{"Range": "bytes=3-", "If-Range": '"x"'}).status, 200)
        self.assertError(self.get("out?tail=1", Range="bytes=3-"), 400, "one of them")

    def test_a_running_job_gives_what_there_is(self):
        number = self.server.start("echo so far; sleep 99")
        self.assertEqual(self.server.wait_for_out(number, b"so far\n"), b"so far\n")
        answer = self.server.get("/jobs/%d/out" % number, headers={"Range": "bytes=3-"})
        self.assertEqual((answer.body, answer.headers["content-range"]), (b"far\n", "bytes 3-6/*"))
        self.server.delete("/jobs/%d" % number)

    def test_a_large_output_is_whole(self):
        number = self.server.run("seq 500000")["id"]
        self.assertEqual(self.server.out(number), b"".join(b"%d\n" % i for i in range(1, 500001)))


class DroppedTest(ServerCase):
    options = ("--max-output", "1000")

    def test_offsets_stay_absolute_and_what_was_dropped_is_told(self):
        number = self.server.run("seq 1000")["id"]
        whole = b"".join(b"%d\n" % i for i in range(1, 1001))
        answer = self.server.get("/jobs/%d/out" % number)
        self.assertEqual((answer.body, answer.headers["rtot-dropped"]), (whole[-1000:], str(len(whole) - 1000)))
        answer = self.server.get("/jobs/%d/out" % number, headers={"Range": "bytes=3000-"})
        self.assertEqual((answer.body, answer.headers["content-range"]), (whole[3000:], "bytes 3000-3892/3893"))
        answer = self.server.get("/jobs/%d/out" % number, headers={"Range": "bytes=5-"})
        self.assertEqual((answer.body, answer.headers["content-range"]), (whole[-1000:], "bytes 2893-3892/3893"))
        answer = self.server.get("/jobs/%d/out" % number, headers={"Range": "bytes=5-2892"})
        self.assertError(answer, 416, "the first 2893 bytes were dropped")


class FollowTest(ServerCase):

    def test_a_follower_is_counted_before_its_client_has_the_head(self):
        """What was printed between the two was lost when little is kept."""
        store = rtot.JobStore(0, 1000)
        app, job = rtot.App(b"x", store, None, None, 0, 0), rtot.Job(b"", rtot.PLAIN, 1000)
        store.add(job)
        for method, path in (("GET", b"/jobs/0/out?follow"), ("HEAD", b"/jobs/0/log?follow")):
            request = rtot.Request(method, path, 11, {b"rtot-secret": b"x"})
            request.admit = lambda: None
            response = app.answer(request)
            self.assertEqual(len(job.output.readers), 1)
            response = None         # as when the client is gone
            self.assertEqual((job.output.readers, response), ([], None))

    def test_each_line_comes_as_it_is_printed_and_the_end_with_the_exit_code(self):
        number = self.server.start("while read line; do echo $line; done; exit 3", "stdin")
        follower = Follower(self.server, "/jobs/%d/out?follow" % number)
        for index in range(5):
            self.server.post("/jobs/%d/stdin" % number, "line %d\n" % index)
            wait_until(lambda: follower.data.endswith(b"line %d\n" % index))
        self.server.post("/jobs/%d/stdin?eof" % number)
        self.assertEqual(follower.finish(), b"".join(b"line %d\n" % index for index in range(5)))
        raw = self.server.raw(b"GET /jobs/%d/log?follow&tail=1 HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n"
                              b"Connection: close\r\n\r\n" % number)
        status, headers, body = split_answer(raw)
        self.assertEqual((status, headers["trailer"], headers["x-accel-buffering"]),
                         (200, "Rtot-Exit, Rtot-Dropped", "no"))
        self.assertEqual(body, b"7\r\nline 4\n\r\n0\r\nRtot-Exit: 3\r\nRtot-Dropped: 0\r\n\r\n")

    def test_each_line_comes_to_a_crowd_as_it_is_printed(self):
        number = self.server.start("while read line; do echo $line; done", "stdin")
        followers = [Follower(self.server, "/jobs/%d/out?follow" % number) for _ in range(rtot.CROWD + 5)]
        for index in range(3):
            self.server.post("/jobs/%d/stdin" % number, "line %d\n" % index)
            wait_until(lambda: all(follower.data.endswith(b"line %d\n" % index) for follower in followers))
        self.server.post("/jobs/%d/stdin?eof" % number)
        for follower in followers:
            self.assertEqual(follower.finish(), b"line 0\nline 1\nline 2\n")

    def test_http_1_0_gets_a_stream_to_the_end_of_the_connection(self):
        number = self.server.start("echo a; sleep 0.1; echo b")
        raw = self.server.raw(b"GET /jobs/%d/out?follow HTTP/1.0\r\nRtot-Secret: swordfish\r\n\r\n" % number)
        status, headers, body = split_answer(raw)
        self.assertEqual((status, body, headers["connection"]), (200, b"a\nb\n", "close"))
        self.assertNotIn("transfer-encoding", headers)

    def test_the_log_is_replayed_as_it_was_live(self):
        script = "for i in $(seq 200); do echo o$i; echo e$i >&2; done; sleep 0.1; echo end"
        number = self.server.start(script)
        live = Follower(self.server, "/jobs/%d/log?follow" % number).finish()
        self.assertEqual(self.server.get("/jobs/%d/log" % number).body, live)
        self.assertEqual(Follower(self.server, "/jobs/%d/log?follow" % number).finish(), live)
        self.assertEqual(sorted(live.split()), sorted(b"".join(b"o%d e%d " % (i, i) for i in range(1, 201)).split() + [b"end"]))

    def test_the_last_lines_then_what_comes(self):
        number = self.server.start("seq 10; read line; echo $line", "stdin")
        self.server.wait_for_out(number, b"10\n")
        follower = Follower(self.server, "/jobs/%d/out?follow&tail=2" % number)
        wait_until(lambda: follower.data == b"9\n10\n")
        self.server.post("/jobs/%d/stdin" % number, "more\n")
        self.assertEqual(follower.finish(), b"9\n10\nmore\n")

    def test_a_broken_stream_goes_on_where_it_broke(self):
        number = self.server.start("echo 0123456789; read line; echo $line", "stdin")
        self.server.wait_for_out(number, b"9\n")
        follower = Follower(self.server, "/jobs/%d/out?follow" % number, headers={"Range": "bytes=4-"})
        self.assertEqual((follower.response.status, follower.response.getheader("Content-Range")),
                         (206, "bytes 4-9007199254740991/*"))
        self.server.post("/jobs/%d/stdin" % number, "more\n")
        self.assertEqual(follower.finish(), b"456789\nmore\n")
        at_end = Follower(self.server, "/jobs/%d/out?follow" % number, headers={"Range": "bytes=16-"})
        self.assertEqual((at_end.response.status, at_end.finish()), (206, b""))
        past = self.server.get("/jobs/%d/out?follow" % number, headers={"Range": "bytes=17-"})
        self.assertEqual(past.status, 416)
        bad = self.server.get("/jobs/%d/out?follow" % number, headers={"Range": "bytes=1-2"})
        self.assertError(bad, 400, "bytes=N-")

    def test_a_stream_cut_at_a_random_byte_a_hundred_times_and_resumed_is_the_same(self):
        chance = random.Random(7)
        number = self.server.start("for i in $(seq 1500); do echo line number $i; test $((i % 50)) = 0 && sleep 0.01; done")
        uncut = Follower(self.server, "/jobs/%d/out?follow" % number)
        data, cuts = b"", 0
        while cuts < 100:
            raw = b"GET /jobs/%d/out?follow HTTP/1.0\r\nRtot-Secret: swordfish\r\nRange: bytes=%d-\r\n\r\n" % (number, len(data))
            with self.server.connect() as connection:
                connection.sendall(raw)
                file = connection.makefile("rb")
                while file.readline() != b"\r\n":
                    pass
                data += file.read(chance.randrange(0, 250))
            cuts += 1
        rest = Follower(self.server, "/jobs/%d/out?follow" % number, headers={"Range": "bytes=%d-" % len(data)}).finish()
        self.assertGreater(len(data), 8000)
        self.assertEqual(data + rest, uncut.finish())

    def test_200_followers_get_every_line_once_and_in_order(self):
        lines = 200
        number = self.server.start("read go; for i in $(seq %d); do echo line $i; sleep 0.01; done" % lines, "stdin")
        followers = [Follower(self.server, "/jobs/%d/%s?follow" % (number, "out" if index % 2 else "log"))
                     for index in range(200)]
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        expected = b"".join(b"line %d\n" % index for index in range(1, lines + 1))
        for follower in followers:
            self.assertEqual(follower.finish(), expected)

    def test_a_vanished_follower_of_a_quiet_job_frees_its_thread(self):
        number = self.server.start("sleep 99")
        wait_until(lambda: self.server.threads() == 2)
        follower = Follower(self.server, "/jobs/%d/out?follow" % number)
        self.assertEqual(self.server.threads(), 3)
        follower.hang_up()
        wait_until(lambda: self.server.threads() == 2)
        self.assertLessEqual(rtot.TICK, 1)      # s until it looks
        self.server.delete("/jobs/%d" % number)

    def test_answers_that_nobody_reads_hold_no_copies(self):
        number = self.server.run("exec head -c 60000000 /dev/zero\n" + "#" * 8000000, fields="")["id"]
        before = self.server.rss()
        for path in ("/out", "/log", "/log?follow", "?fields=out", "/script", "?fields=script"):
            for _ in range(2):
                connection = self.server.connect()
                self.addCleanup(connection.close)
                connection.sendall(b"GET /jobs/%d%b HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n\r\n"
                                   % (number, path.encode("ascii")))
                connection.recv(1)
        wait_until(lambda: self.server.threads() == 14 and self.server.at_rest() and self.server.at_rest())     # all wait to send
        self.assertLess(self.server.rss() - before, 30 << 20)
        self.server.delete("/jobs/%d" % number)

    def test_a_gigabyte_arrives_whole_at_fast_readers_beside_a_slow_one_in_bounded_memory(self):
        size = 1 << 30
        number = self.server.start("read go; head -c %d /dev/zero | tr '\\0' x" % size, "stdin")
        slow = self.server.connect()
        self.addCleanup(slow.close)
        slow.sendall(b"GET /jobs/%d/out?follow HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n\r\n" % number)
        fast = [Counter(self.server, number) for _ in range(2)]
        for reader in fast:
            wait_until(lambda: reader.begun)
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        peak = 0
        while any(reader.is_alive() for reader in fast):
            peak = max(peak, self.server.rss())
            time.sleep(0.02)
        job = self.server.get("/jobs/%d?wait&fields=out_bytes,dropped,exit_code" % number).job
        self.assertEqual((job["out_bytes"], job["exit_code"]), (size, 0))
        self.assertEqual([reader.count for reader in fast], [size, size])
        self.assertEqual(job["dropped"], size - (64 << 20))
        self.assertLess(peak, (64 + 64) << 20)


class SmallTest(ServerCase):
    options = ("--max-output", "32K")

    def test_followers_that_have_read_all_hold_no_job_back(self):
        """One of a quiet stream was taken for one that lags: 60 MB took 44 s then."""
        number = self.server.start("read go; head -c 30000000 /dev/zero | tr '\\0' x; echo >&2", "stdin")
        quiet = Follower(self.server, "/jobs/%d/err?follow" % number)
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        self.assertEqual(quiet.finish(), b"\n")
        job = self.server.job(number, "fields=duration,out_bytes")
        self.assertEqual(job["out_bytes"], 30000000)
        self.assertLess(job["duration"], 30)        # 900 times PATIENCE would be 225 s


    def test_a_follower_that_keeps_up_loses_nothing(self):
        number = self.server.start("read go; head -c 30000000 /dev/zero", "stdin")
        reader = Counter(self.server, number)
        wait_until(lambda: reader.begun)
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        reader.join(support.LIMIT)
        self.assertEqual(reader.count, 30000000)


class Counter(threading.Thread):
    """Counts the bytes of an HTTP/1.0 stream as fast as they come."""

    def __init__(self, server, number):
        super().__init__(daemon=True)
        self.count, self.begun = 0, False
        self.connection = server.connect()
        self.connection.sendall(b"GET /jobs/%d/out?follow HTTP/1.0\r\nRtot-Secret: swordfish\r\n\r\n" % number)
        self.start()

    def run(self):
        buffer = bytearray(1 << 18)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.connection.recv(1)
        self.begun = True
        while True:
            size = self.connection.recv_into(buffer)
            if not size:
                break
            self.count += size
        self.connection.close()


class KillTest(ServerCase):

    def test_bad_input_is_refused(self):
        number = self.server.start("sleep 99", "tty")
        for path, message in (("kill?signal=FOO", "no signal 'FOO'"), ("kill?signal=0", "no signal"), ("kill?signal=99", "no signal"),
                              ("kill?signal=", "no signal"), ("kill?grace=x", "number of seconds"),
                              ("kill?grace=-1", "number of seconds"), ("resize", "both"), ("resize?rows=10", "both"),
                              ("resize?rows=0&cols=1", "whole number"), ("resize?rows=x&cols=1", "whole number")):
            self.assertError(self.server.post("/jobs/%d/%s" % (number, path)), 400, message)
        self.assertNotEqual(self.server.job(number)["state"], "complete")
        self.server.delete("/jobs/%d" % number)

    def test_needs_no_body(self):
        number = self.server.start("sleep 99")
        raw = self.server.raw(b"POST /jobs/%d/kill HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nConnection: close\r\n\r\n" % number)
        self.assertEqual(split_answer(raw)[0], 204)


class FaultTest(ServerCase):

    def test_a_working_directory_that_was_removed_ends_nothing(self):
        directory = tempfile.mkdtemp(prefix="test-rtot-")
        server = self.own_server(cwd=directory)
        os.rmdir(directory)
        self.assertEqual(server.run("echo hi")["cwd"], "")

    def test_many_errors_leave_no_descriptor_and_no_thread(self):
        wait_until(lambda: self.server.threads() == 2)
        before = self.server.descriptors()
        for _ in range(30):
            for path in ("/jobs/abc", "/nothing", "/jobs/99", "/jobs?x"):
                self.server.get(path)
            self.server.post("/jobs", b"")
            self.server.get("/", secret=False)
        wait_until(lambda: self.server.threads() == 2)
        wait_until(lambda: self.server.descriptors() <= before)
