"""The routes: what each answers, and what it refuses."""
import contextlib
import json
import os
import random
import re
import socket
import tempfile
import threading
import time

import support
import rtot
from support import (AUTH, SECRET, Follower, ServerCase, in_background, in_parallel, is_alive, patched, split_answer,
                     wait_until)

GO_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]*[1-9])? \+0000 UTC$"
ZERO = "0001-01-01 00:00:00 +0000 UTC"
DEFAULT = "href id out err exit state start complete create".split()


class SecretTest(ServerCase):

    def test_ping_needs_none(self):
        answer = self.server.get("/ping", secret=False)
        self.assertEqual((answer.status, answer.json["message"]), (200, "still here"))
        self.assertRegex(answer.json["uptime"], r"^([0-9]+m)?[0-9.]+m?s$")

    def test_everything_else_needs_it(self):
        def refused(request):
            method, path, headers = request
            return self.server.request(method, path, b"true" if method == "POST" else None, headers, secret=False)
        requests = [(method, path, headers) for method, path in (
            ("GET", "/"), ("DELETE", "/"), ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/0"), ("GET", "/nothing"),
            ("POST", "/ping"), ("DELETE", "/jobs"), ("GET", "/ping/x")) for headers in (
                {}, {"Rtot-Secret": "wrong"}, {"Rtot-Secret": ""}, {"Authorization": "Basic " + SECRET},
                {"Authorization": SECRET}, {"Authorization": "rtot wrong"}, {"Rtot-Secret": SECRET + "x"},
                {"Rtot-Secret": SECRET[:-1]}, {"Rtot-Secret": b"\xe9\xff"})]
        for request, answer in zip(requests, in_parallel(refused, requests)):
            with self.subTest(request=request):
                self.assertError(answer, 401, "^not authorized: ")
                self.assertIn("www-authenticate", answer.headers)
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_tells_a_wrong_secret_from_a_missing_one(self):
        for headers, message in (({}, "send the secret in a header"), ({"Authorization": "Basic x"}, "send the secret"),
                                 ({"Rtot-Secret": "wrong"}, "not the secret of this server")):
            answer = self.server.get("/jobs", headers=headers, secret=False)
            self.assertError(answer, 401, message)
            self.assertNotIn(SECRET, answer.body.decode("utf-8") + repr(answer.headers))

    def test_comes_in_any_of_three_headers(self):
        for headers in ({"Rtot-Secret": SECRET}, {"Authorization": "rtot " + SECRET}, {"authorization": "Bearer " + SECRET},
                        {"Authorization": "bearer  " + SECRET}):
            self.assertEqual(self.server.get("/", headers=headers, secret=False).status, 200)

    def test_may_have_bytes_beyond_ascii(self):
        server = self.own_server(secret="caf\u00e9")
        cases = (("caf\u00e9".encode("utf-8"), 200), (b"caf\xe9", 401), (b"cafe", 401))
        self.assertEqual(in_parallel(lambda case: server.get("/", headers={"Rtot-Secret": case[0]}, secret=False).status, cases),
                         [status for _, status in cases])


class GuessTest(ServerCase):
    """What a client gets that guesses the secret."""
    options = ("--max-connections", "20")
    GUESS = b"GET / HTTP/1.1\r\nHost: x\r\nRtot-Secret: guess\r\n\r\n"

    def time_of(self, headers, client):
        began = time.monotonic()
        answer = self.server.get("/", headers=headers, secret=False, client=client)
        return answer.status, time.monotonic() - began

    def test_each_wrong_secret_is_answered_after_a_second(self):
        def guess(_):
            return self.time_of({"Rtot-Secret": "guess"}, None)
        for _ in range(2):      # the second time is like the first: nothing is counted
            for status, seconds in in_parallel(guess, range(4)):
                self.assertEqual(status, 401)
                self.assertGreater(seconds, 0.95)

    def test_the_right_secret_is_answered_meanwhile(self):
        guesses = [self.server.send(self.GUESS) for _ in range(5)]
        self.assertEqual(self.server.get("/").status, 200)
        for connection in guesses:
            connection.setblocking(False)
            self.assertRaises(BlockingIOError, connection.recv, 1)      # not answered yet
            connection.settimeout(support.LIMIT)
        for connection in guesses:
            self.assertRegex(connection.recv(1000), b"^HTTP/1.1 401 ")
            connection.close()

    def test_a_missing_secret_is_answered_at_once(self):
        seconds = []
        for _ in range(5):
            status, each = self.time_of({}, None)
            self.assertEqual(status, 401)
            seconds.append(each)
        self.assertLess(min(seconds), 0.9)

    def test_a_guess_that_waits_takes_no_place_from_a_client_with_the_secret(self):
        guesses = [self.server.send(self.GUESS) for _ in range(60)]
        for _ in range(5):
            self.assertEqual(self.server.get("/").status, 200)
        for connection in guesses:
            connection.close()

    def test_a_guesser_that_disconnects_frees_its_place_at_once(self):
        for _ in range(3):          # the server is stopped while they come, so that all are there before it looks
            began = time.monotonic()
            for _ in range(15):
                self.server.send(self.GUESS).close()
            self.server.settle()
            seconds = time.monotonic() - began
            if seconds < 0.9:
                return
        self.fail("it took %.2f s" % seconds)


class PingTest(ServerCase):

    def test_ignores_the_query(self):
        for query in ("?x=1", "?", "?nonce=17&y", "?fields=nope"):
            self.assertEqual(self.server.get("/ping" + query, secret=False).status, 200, query)


class RootTest(ServerCase):

    def test_lists_links_and_facts_of_the_server(self):
        value = self.server.get("/").json
        self.assertRegex(value["links"]["jobs"], r"^/jobs\{\?[a-z_,]*\bstate,label,last\b[a-z_,]*\}$")
        self.assertEqual(value["links"]["ping"], "/ping")
        self.assertEqual(sorted(value), sorted("links version host user python uptime jobs".split()))
        self.assertEqual(value["version"], rtot.__version__)

    def test_counts_jobs_by_state(self):
        self.server.run("true")
        number = self.server.start("sleep 99")
        wait_until(lambda: self.server.get("/").json["jobs"] == {"new": 0, "running": 1, "complete": 1})
        self.server.delete("/jobs/%d" % number)
        self.server.delete("/jobs")
        self.assertEqual(self.server.get("/").json["jobs"], {"new": 0, "running": 0, "complete": 0})

    def test_a_client_with_the_secret_gets_json_whatever_it_accepts(self):
        for accept in ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "text/html"):       # the first is Java's
            answer = self.server.get("/", headers={"Accept": accept})
            self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
            self.assertIn("links", answer.json)


class CreateTest(ServerCase):

    def test_answers_with_the_new_job(self):
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

    def test_ids_count_up_and_are_never_used_again(self):
        numbers = [self.server.start("true") for _ in range(3)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 3)))
        self.server.delete("/jobs/%d" % numbers[-1])
        self.assertEqual(self.server.start("true"), numbers[-1] + 1)

    def test_waits_for_the_end(self):
        answer = self.server.post("/jobs?wait", "sleep 0.1; echo hi; exit 3")
        self.assertEqual((answer.status, answer.job["out"], answer.job["exit"]), (201, "hi\n", "exit status 3"))

    def test_answers_202_after_the_seconds_to_wait_and_the_job_goes_on(self):
        answer = self.server.post("/jobs?wait=0.1&stdin", "echo begun; read go; echo done")
        self.assertEqual(answer.status, 202)
        self.assertNotEqual(answer.job["state"], "complete")
        self.assertEqual(answer.headers["location"], answer.job["href"])
        self.server.post(answer.job["href"] + "/stdin", "go\n")
        self.assertEqual(self.server.get(answer.job["href"] + "?wait").job["out"], "begun\ndone\n")

    def test_follows_from_the_first_byte_to_the_exit(self):
        script, raw = b"echo o; read go; echo e >&2; exit 5", b""
        with self.server.send(b"POST /jobs?follow&stdin HTTP/1.1\r\n%bTE: trailers\r\nConnection: close, TE\r\n"
                              b"Content-Length: %d\r\n\r\n%b" % (AUTH, len(script), script)) as connection:
            while b"o\n\r\n" not in raw:
                raw += connection.recv(1000)
            self.server.post(re.search("/jobs/[0-9]+", raw.decode("ascii")).group(0) + "/stdin", "go\n")
            raw += support.read_all(connection)
        status, headers, body = split_answer(raw)
        self.assertEqual((status, headers["transfer-encoding"], headers["x-accel-buffering"]), (201, "chunked", "no"))
        self.assertRegex(headers["location"], "^/jobs/[0-9]+$")
        self.assertRegex(body, b"^2\r\no\n\r\n2\r\ne\n\r\n0\r\nRtot-Exit: 5\r\n\r\n$")

    def test_bad_input_runs_nothing(self):
        for path, message in (
                ("?timeot=3", "timeot.*there are: .*arg env cwd timeout"), ("?timeout=x", "timeout: 'x' is no number of seconds"),
                ("?timeout=-1", "number of seconds"), ("?timeout=0", "over 0"), ("?timeout=", "number of seconds"),
                ("?timeout=nan", "number of seconds"), ("?timeout=1e3", "number of seconds"), ("?timeout=1_0", "number"),
                ("?wait=-1", "wait: '-1' is no number of seconds"), ("?wait=soon", "number of seconds"), ("?env=FOO", "NAME=VALUE"),
                ("?env==x", "NAME=VALUE"), ("?cwd=/no/such", "no directory"), ("?cwd=/etc/passwd", "no directory"),
                ("?rows=10", "give tty"), ("?cols=10", "give tty"), ("?tty&rows=0", "from 1 to 9999"),
                ("?tty&rows=x", "whole number"), ("?tty&cols=70000", "whole number"), ("?tty=maybe", "flag"),
                ("?stdin=2", "flag"), ("?wait&follow", "not both: wait follow"), ("?label=a&label=b", "once"),
                ("?arg=a%00b", "NUL"), ("?fields=nope", "'nope' is no list of fields; there are: href id out"), ("?tail=3", "no parameter 'tail'"),
                ("?max_output=x", "size"), ("?max_output=0", "size"), ("?max_output=-1", "size"), ("?attach", "wait or follow"), ("?fail", "needs wait"),
                ("?attach=2&wait", "flag"), ("?fail=2&wait", "flag"), ("?text=2", "flag"),
                ("?follow&text", "not both: follow text"), ("?follow&fields=id", "not both: follow fields")):
            with self.subTest(path=path):
                self.assertError(self.server.post("/jobs" + path, "touch %s/marker" % self.server.tmp), 400, message)
        self.assertError(self.server.post("/jobs", b""), 400, "script is empty")
        self.assertEqual(self.server.get("/jobs?label=nothing").jobs, [])
        self.assertNotIn("marker", self.server.leftovers())

    def test_a_form_is_refused(self):
        form = (b'--b\r\nContent-Disposition: form-data; name="s"; filename="$(touch %b/marker)"\r\n\r\ntrue\r\n--b--\r\n'
                % self.server.tmp.encode())
        for content_type in ("multipart/form-data; boundary=b", 'Multipart/Form-Data; charset=x; Boundary="b"'):
            self.assertError(self.server.post("/jobs?wait", form, headers={"Content-Type": content_type}), 400, "--data-binary @file")
        self.assertNotIn("marker", self.server.leftovers())

    def test_a_script_of_any_content_type_runs(self):
        for content_type in ("multipart/mixed", "multipart/form-data; boundary=b", "multipart/mixed; boundary=", "text/html"):
            answer = self.server.post("/jobs?wait", "echo hi", headers={"Content-Type": content_type})
            self.assertEqual((answer.status, answer.job.get("out")), (201, "hi\n"), content_type)

    def test_a_compressed_body_is_refused(self):
        import gzip
        for coding in ("gzip", "deflate", "br"):
            answer = self.server.post("/jobs?label=gzip", gzip.compress(b"true"), headers={"Content-Encoding": coding})
            self.assertError(answer, 415, coding)
        self.assertEqual(self.server.get("/jobs?label=gzip").jobs, [])

    def test_parameters_are_split_before_they_are_decoded(self):
        job = self.server.run("echo $A", "arg=a%26b%3Dc&arg=d=e%2Bf+g&env=A%3Db%26c")
        self.assertEqual((job["args"], job["out"]), (["a&b=c", "d=e+f g"], "b&c\n"))

    def test_flags_are_given_alone_or_as_1_or_true(self):
        for value in ("tty", "tty=1", "tty=true"):
            self.assertEqual(self.server.run("test -t 0", value)["exit_code"], 0)
        for value in ("tty=0", "tty=false"):
            self.assertEqual(self.server.run("test -t 0", value)["exit_code"], 1)
        number = self.server.start("read go", "stdin&wait=false")
        self.assertEqual(self.server.post("/jobs/%d/stdin?eof=true" % number).status, 204)
        self.assertEqual(self.server.get("/jobs/%d?wait=true" % number).status, 200)

    def test_max_output_bounds_the_output_of_one_job(self):
        job = self.server.run("seq 1000", "max_output=1K")
        whole = "".join("%d\n" % number for number in range(1, 1001))
        self.assertEqual((job["out"], job["dropped"]), (whole[-1024:], len(whole) - 1024))


class FailTest(ServerCase):

    def test_a_failed_job_is_a_424_that_carries_the_job(self):
        for script, text in (("echo out; exit 3", "exit status 3"), ("kill -9 $$", "signal: killed"),
                             ("kill -40 $$", "signal: signal 40"), ("#!/no/such\n", "fork/exec /no/such: no such file or directory")):
            answer = self.server.post("/jobs?wait&fail", script)
            self.assertEqual((answer.status, answer.job["exit"]), (424, text))
            self.assertEqual(answer.headers["location"], answer.job["href"])
            answer = self.server.get(answer.job["href"] + "?wait&fail")
            self.assertEqual((answer.status, answer.job["exit"]), (424, text))

    def test_a_job_that_succeeds_is_answered_as_without_it(self):
        answer = self.server.post("/jobs?wait&fail", "true")
        self.assertEqual(answer.status, 201)
        self.assertEqual(self.server.get(answer.job["href"] + "?wait&fail").status, 200)

    def test_a_job_that_still_runs_is_a_202(self):
        answer = self.server.post("/jobs?wait=0.05&fail", "sleep 99")
        self.assertEqual(answer.status, 202)
        self.assertEqual(self.server.get(answer.job["href"] + "?wait=0.05&fail").status, 202)
        self.server.delete(answer.job["href"])


class AttachTest(ServerCase):

    def post(self, query, script=b"echo ready; exec sleep 99"):
        return b"POST /jobs?%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (query, AUTH, len(script), script)

    def test_the_job_ends_when_its_client_disconnects(self):
        for query in (b"wait&attach", b"wait=99&attach", b"follow&attach"):
            with self.subTest(query=query):
                with self.server.send(self.post(query)):
                    job = wait_until(lambda: self.server.get("/jobs?state=running&fields=pid").jobs)[0]
                    self.server.wait_for_out(job["id"], b"ready")
                self.assertGone(job["pid"])
                self.assertEqual(self.server.job(job["id"], "wait")["exit"], "signal: terminated")

    def test_the_job_ends_when_the_answer_breaks_off(self):
        after = ("take = rtot.OutputBody.take\n"
                 "def fail(self, end):\n    if self.offset: raise RuntimeError\n    return take(self, end)\n"
                 "rtot.OutputBody.take = fail")
        server = self.own_server(program=patched(after))
        with server.send(self.post(b"follow&attach", b"echo ready; sleep 0.1; echo; exec sleep 99")) as connection:
            self.assertIn(b"ready", support.read_all(connection))
        self.assertEqual(server.job(0, "wait")["exit"], "signal: terminated")

    def test_the_job_goes_on_when_the_seconds_to_wait_have_passed(self):
        answer = self.server.post("/jobs?wait=0.1&attach&fields=pid", "sleep 99")
        self.assertEqual(answer.status, 202)
        self.server.settle()
        self.assertEqual(self.server.job(answer.job["id"])["state"], "running")
        self.server.delete(answer.job["href"])

    def test_a_job_that_is_not_attached_goes_on(self):
        for query in (b"wait", b"follow"):
            with self.server.send(self.post(query)):
                job = wait_until(lambda: self.server.get("/jobs?state=running&fields=pid").jobs)[0]
                self.server.wait_for_out(job["id"], b"ready")
            self.server.settle()
            self.assertTrue(is_alive(job["pid"]))
            self.server.delete("/jobs")
            self.assertGone(job["pid"])


class AgainTest(ServerCase):

    def test_runs_the_same_script_with_the_same_options(self):
        query = ("arg=one&arg=two+words&env=A=1&env=SECRET=x&cwd=/usr&label=nightly&timeout=50&max_output=1K&"
                 "tty&rows=40&cols=132")
        script = "echo $A $SECRET $PWD \"$*\"; stty size; seq 1000; exit 3"
        first = self.server.run(script, query)
        answer = self.server.post("/jobs/%d/again" % first["id"])
        self.assertEqual((answer.status, answer.headers["location"]), (201, answer.job["href"]))
        self.assertNotEqual(answer.job["id"], first["id"])
        again = self.server.job(answer.job["id"], "wait&fields=all")
        for name in "out exit exit_code args cwd label timeout tty script line dropped".split():
            self.assertEqual(again[name], first[name], name)

    def test_passes_on_the_environment(self):
        first = self.server.run("echo $A-$B", "env=A=1&env=B=2")
        self.assertEqual(self.server.post("/jobs/%d/again?wait" % first["id"]).job["out"], "1-2\n")

    def test_parameters_and_a_body_replace_the_old_ones(self):
        first = self.server.run("echo \"$*\" $A", "arg=a&arg=b&env=A=1&label=x")["id"]
        job = self.server.post("/jobs/%d/again?wait&fields=all&arg=c&label=y" % first).job
        self.assertEqual((job["out"], job["args"], job["label"]), ("c 1\n", ["c"], "y"))
        job = self.server.post("/jobs/%d/again?wait&env=A=2" % first).job
        self.assertEqual(job["out"], "a b 2\n")
        job = self.server.post("/jobs/%d/again?wait" % first, "echo other $1").job
        self.assertEqual(job["out"], "other a\n")

    def test_its_directory_must_still_be_there(self):
        directory = tempfile.mkdtemp(dir=self.server.tmp)
        first = self.server.run("true", "cwd=" + directory)["id"]
        os.rmdir(directory)
        answer = self.server.post("/jobs/%d/again" % first)
        self.assertEqual((answer.status, answer.json["error"]), (400, "bad request"))
        self.assertEqual(self.server.post("/jobs/%d/again?cwd=/" % first).status, 201)

    def test_stdin_is_open_again(self):
        first = self.server.start("cat", "stdin")
        self.server.post("/jobs/%d/stdin?eof" % first, "once\n")
        second = self.server.post("/jobs/%d/again" % first).job["id"]
        self.server.post("/jobs/%d/stdin?eof" % second, "twice\n")
        self.assertEqual(self.server.job(second, "wait")["out"], "twice\n")

    def test_follows_and_waits(self):
        first = self.server.run("echo hi; exit 4")["id"]
        follower = Follower(self.server, "/jobs/%d/again?follow" % first, "POST")
        self.assertEqual((follower.response.status, follower.finish()), (201, b"hi\n"))
        self.assertEqual(self.server.post("/jobs/last/again?wait&fail").status, 424)

    def test_a_job_that_runs_can_be_run_again(self):
        first = self.server.start_running("echo ready; read go; echo $go", "stdin")
        second = self.server.post("/jobs/%d/again" % first).job["id"]
        self.server.post("/jobs/%d/stdin" % second, "2\n")
        self.assertEqual(self.server.job(second, "wait")["out"], "ready\n2\n")
        self.assertEqual(self.server.job(first)["state"], "running")
        self.server.delete("/jobs/%d" % first)

    def test_bad_input_runs_nothing(self):
        first = self.server.run("true")["id"]
        before = len(self.server.get("/jobs?fields=").jobs)
        for query, message in (("nonsense", "no parameter 'nonsense'"), ("timeout=x", "number of seconds"), ("rows=3", "give tty")):
            self.assertError(self.server.post("/jobs/%d/again?%s" % (first, query)), 400, message)
        self.assertError(self.server.post("/jobs/99/again"), 404, "^no such job: ")
        self.assertEqual(len(self.server.get("/jobs?fields=").jobs), before)


class LastTest(ServerCase):

    def test_is_the_newest_job_that_there_is(self):
        self.server.delete("/jobs")
        self.assertError(self.server.get("/jobs/last"), 404, "^no such job: ")
        first = self.server.run("echo one")["id"]
        second = self.server.run("echo two; echo e >&2; exit 2")["id"]
        self.assertEqual(self.server.get("/jobs/last").job["id"], second)
        for what, body in (("out", b"two\n"), ("err", b"e\n"), ("exit", b"2\n"), ("script", b"#!/bin/bash\necho two; echo e >&2; exit 2")):
            self.assertEqual(self.server.get("/jobs/last/" + what).body, body)
        self.assertEqual(self.server.delete("/jobs/last").status, 204)
        self.assertEqual(self.server.get("/jobs/%d" % second).status, 404)
        answer = self.server.get("/jobs/last")
        self.assertEqual((answer.job["id"], answer.headers["location"]), (first, "/jobs/%d" % first))

    def test_can_be_killed_and_fed(self):
        self.server.start_running("echo ready; read line; echo $line; exec sleep 99", "stdin")
        self.assertEqual(self.server.post("/jobs/last/stdin", "fed\n").status, 204)
        number = self.server.get("/jobs/last").job["id"]
        self.server.wait_for_out(number, b"fed\n")
        self.assertEqual(self.server.post("/jobs/last/kill").status, 204)
        self.assertEqual(self.server.get("/jobs/last?wait").job["exit"], "signal: terminated")


class StdinTest(ServerCase):

    def test_input_whose_end_comes_after_that_of_the_job_was_taken(self):
        number = self.server.start("read line; echo $line", "stdin")
        with self.server.send(b"POST /jobs/%d/stdin HTTP/1.1\r\nTransfer-Encoding: chunked\r\n%b\r\n2\r\na\n\r\n"
                              % (number, AUTH)) as connection:
            self.assertEqual(self.server.job(number, "wait")["out"], "a\n")
            connection.sendall(b"0\r\n\r\n")
            self.assertEqual(split_answer(connection.recv(10000))[0], 204)


class LimitTest(ServerCase):
    options = ("--max-script", "1K")

    def test_a_script_over_the_limit_is_refused_with_or_without_a_length(self):
        self.assertEqual(self.server.post("/jobs", b"#" * 1024).status, 201)
        self.assertError(self.server.post("/jobs", b"#" * 1025), 413, "1024 bytes.*--max-script")
        chunks = b"401\r\n" + b"#" * 1025 + b"\r\n0\r\n\r\n"
        raw = self.server.raw(b"POST /jobs HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b" % (AUTH, chunks))
        self.assertEqual(split_answer(raw)[0], 413)
        self.assertEqual(len(self.server.get("/jobs").jobs), 1)


class RoutingTest(ServerCase):

    def test_an_unknown_path_is_404(self):
        for path in ("/nothing", "/jobs/0/nothing", "/jobs/0/out/x", "/job", "/jobs/0/Out"):
            self.assertError(self.server.get(path), 404, "not found: there is nothing at " + path)

    def test_another_method_is_405_and_names_those_that_are_allowed(self):
        self.server.run("true")
        for method, path, allow in (("PUT", "/jobs", "DELETE, GET, POST, HEAD"), ("POST", "/ping", "GET, HEAD"),
                                    ("GET", "/jobs/0/kill", "POST"), ("OPTIONS", "/", "DELETE, GET, HEAD")):
            answer = self.server.request(method, path)
            self.assertError(answer, 405, "takes")
            self.assertEqual(answer.headers["allow"], allow)

    def test_an_unknown_job_is_404_with_an_empty_list(self):
        for method, path in (("GET", "/jobs/99"), ("DELETE", "/jobs/99"), ("GET", "/jobs/99/out"), ("GET", "/jobs/-1")):
            answer = self.server.request(method, path)
            self.assertError(answer, 404, "^no such job: ")
            self.assertEqual(answer.jobs, [])
            self.assertEqual(list(answer.json), ["jobs", "error", "message"])

    def test_a_job_that_is_no_number_is_400(self):
        for text in ("abc", "1x", "1.0", "%C2%B2", "9" * 30, "0x1", "Last", "lastx"):
            self.assertError(self.server.get("/jobs/" + text), 400, '^invalid job number: ".*"')

    def test_an_unknown_parameter_is_named(self):
        number = self.server.run("true")["id"]
        for method, path in (("GET", "/jobs?sate=new"), ("GET", "/jobs/%d?x"), ("DELETE", "/jobs?x=1"), ("DELETE", "/jobs/%d?force"),
                             ("GET", "/?x=1"), ("DELETE", "/?x"), ("GET", "/jobs/%d/out?lines=3"), ("POST", "/jobs/%d/kill?sig=9")):
            name = re.search(r"\?(\w+)", path).group(1)
            self.assertError(self.server.request(method, path % number if "%" in path else path), 400, "no parameter %r" % name)
        self.assertEqual(self.server.job(number)["state"], "complete")


class BodyTest(ServerCase):
    """A body on a request that takes none is refused: it may say what was meant."""

    def test_a_body_on_a_request_that_takes_none_is_refused(self):
        number = self.server.start_running("echo ready; exec sleep 99", "tty")
        for method, path in (("DELETE", "/jobs"), ("DELETE", "/jobs/%d" % number), ("DELETE", "/"), ("GET", "/jobs"),
                             ("GET", "/"), ("GET", "/jobs/%d" % number), ("GET", "/jobs/%d/out" % number),
                             ("POST", "/jobs/%d/kill" % number), ("POST", "/jobs/%d/resize?rows=1&cols=1" % number)):
            for body in ("state=complete", "x"):
                answer = self.server.request(method, path, body)
                self.assertError(answer, 400, "body")
        self.assertEqual(self.server.job(number)["state"], "running")
        self.server.delete("/jobs")

    def test_a_chunked_body_is_refused_too(self):
        number = self.server.run("true")["id"]
        raw = self.server.raw(b"DELETE /jobs HTTP/1.1\r\n%bConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                              b"e\r\nstate=complete\r\n0\r\n\r\n" % AUTH)
        self.assertEqual(split_answer(raw)[0], 400)
        self.assertEqual(self.server.get("/jobs/%d" % number).status, 200)

    def test_a_body_that_is_malformed_or_cut_short_destroys_nothing(self):
        number = self.server.run("true")["id"]
        for headers, body in ((b"Transfer-Encoding: chunked", b"nonsense\r\n"), (b"Transfer-Encoding: chunked", b"5\r\nab"),
                              (b"Transfer-Encoding: chunked", b""), (b"Content-Length: 10", b"abc"), (b"Content-Length: 10", b"")):
            raw = self.server.raw(b"DELETE /jobs HTTP/1.1\r\n%b%b\r\n\r\n%b" % (AUTH, headers, body), end=True)
            self.assertEqual(split_answer(raw)[0], 400, (headers, body))
        self.assertEqual(self.server.get("/jobs/%d" % number).status, 200)

    def test_a_header_that_would_spare_something_is_refused(self):
        number = self.server.start_running("echo ready; exec sleep 99", "stdin")
        for method, path in (("DELETE", "/jobs"), ("DELETE", "/jobs/%d" % number), ("DELETE", "/"),
                             ("POST", "/jobs/%d/kill" % number), ("POST", "/jobs/%d/stdin?eof" % number)):
            for name, value in (("If-Match", '"x"'), ("If-None-Match", "*"), ("Range", "bytes=1-2"),
                                ("X-HTTP-Method-Override", "GET"),
                                ("If-Unmodified-Since", "Sat, 29 Oct 1994 19:43:31 GMT")):
                answer = self.server.request(method, path, headers={name: value})
                self.assertError(answer, 400, "(?i)" + name)
        self.assertEqual(self.server.job(number)["state"], "running")
        self.server.delete("/jobs/%d" % number)

    def test_an_empty_number_destroys_nothing(self):
        """curl -X DELETE $jobs/$id deleted all jobs if the variable was empty."""
        number = self.server.start("sleep 99")
        for path in ("/jobs/", "//", "/jobs/%d/" % number):
            self.assertError(self.server.delete(path), 400, "slash")
        self.assertEqual(self.server.job(number)["state"], "running")
        self.server.delete("/jobs/%d" % number)

    def test_an_empty_body_is_none(self):
        number = self.server.start("sleep 99")
        for headers in (b"Content-Length: 0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"\r\n"):
            raw = self.server.raw(b"POST /jobs/%d/kill?signal=CONT HTTP/1.1\r\n%bConnection: close\r\n%b" % (number, AUTH, headers))
            self.assertEqual(split_answer(raw)[0], 204, headers)
        self.server.delete("/jobs/%d" % number)


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
        number = self.server.run("echo o; echo e >&2")["id"]
        self.assertEqual(list(self.server.job(number, "fields=")), ["href", "id", "state"])
        self.assertEqual(list(self.server.job(number, "fields=start,out")), ["href", "id", "out", "state", "start"])
        self.assertEqual(list(self.server.job(number, "")), [name for name in DEFAULT if name != "exit"])
        for query in ("fields=all", "fields=out,all"):
            job = self.server.job(number, query)
            self.assertEqual(set(job), set(rtot.VIEW) - {"exit"})
            self.assertEqual(list(job)[:8], [name for name in DEFAULT if name != "exit"])

    def test_always_shows_how_a_failed_job_ended(self):
        number = self.server.run("echo o; exit 3")["id"]
        for fields, shown in (("", "href id exit state"), ("out", "href id out exit state"), ("label", "href id exit state label")):
            job = self.server.job(number, "fields=" + fields)
            self.assertEqual((list(job), job["exit"]), (shown.split(), "exit status 3"))

    def test_always_shows_what_is_held_timed_out_or_dropped(self):
        held = self.server.run("sleep 99 & true")["id"]
        late = self.server.run("exec sleep 99", "timeout=0.05")["id"]
        cut = self.server.run("seq 1000", "max_output=100")["id"]
        for number, name, value in ((held, "held", True), (late, "timed_out", True), (cut, "dropped", 3793)):
            for query in ("", "fields=", "fields=out", "fields=all", "fields=" + name):
                job = self.server.job(number, query)
                self.assertEqual(job.get(name), value, query)
            others = {"held", "timed_out", "dropped"} - {name}
            self.assertFalse(others & set(self.server.job(number, "")))
            self.assertEqual(list(self.server.job(number, ""))[-1], name)
        self.server.post("/jobs/%d/kill?signal=KILL" % held)
        wait_until(lambda: not self.server.job(held)["held"])


class TextTest(ServerCase):

    def test_is_a_line_for_each_job(self):
        self.server.delete("/jobs")
        self.addCleanup(self.server.delete, "/jobs")
        first = self.server.run("exit 3", "label=a")["id"]
        second = self.server.start("# comment\nsleep 99", "label=b")
        wait_until(lambda: self.server.job(second)["state"] == "running")
        answer = self.server.get("/jobs?text")
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, "text/plain; charset=utf-8"))
        lines = [line.split("\t") for line in answer.body.decode("utf-8").split("\n")]
        self.assertEqual(lines.pop(), [""])
        self.assertEqual([[line[0], line[1], line[2], line[4], line[5]] for line in lines],
                         [[str(first), "complete", "exit status 3", "a", "exit 3"], [str(second), "running", "", "b", "sleep 99"]])
        self.assertEqual(self.server.get("/jobs?text&fields=state,id&label=a").body, b"complete\t%d\n" % first)
        self.assertEqual(self.server.get("/jobs?text&fields=id&label=none").body, b"")

    def test_has_the_columns_that_are_asked_for_and_no_other(self):
        number = self.server.run("echo o; sleep 99 & exit 3", "arg=a%09b&arg=c")["id"]
        answer = self.server.get("/jobs/%d?text&fields=held,exit,args,timeout,tty,out,id" % number)
        self.assertEqual(answer.status, 200)
        columns = answer.body.decode("utf-8").rstrip("\n").split("\t")
        self.assertEqual([columns[0], columns[1], columns[3], columns[4], columns[5], columns[6]],
                         ["true", "exit status 3", "", "", "o\\n", str(number)])
        self.assertEqual(json.loads(columns[2].replace("\\\\", "\\")), ["a\tb", "c"])
        self.server.post("/jobs/%d/kill?signal=KILL" % number)

    def test_tabs_newlines_and_backslashes_are_escaped(self):
        number = self.server.run(r"printf 'a\tb\nc\\d'")["id"]
        self.assertEqual(self.server.get("/jobs/%d?text&fields=out" % number).body, b"a\\tb\\nc\\\\d\n")

    def test_a_new_job_can_be_answered_as_text(self):
        answer = self.server.post("/jobs?text&fields=id", "true")
        self.assertEqual(answer.status, 201)
        self.assertRegex(answer.body, b"^[0-9]+\n$")
        answer = self.server.post("/jobs?text&wait&fields=exit,out", "echo hi; exit 3")
        self.assertEqual(answer.body, b"exit status 3\thi\\n\n")

    def test_errors_are_json(self):
        self.assertError(self.server.get("/jobs?text&state=x"), 400, "no state")
        self.assertError(self.server.get("/jobs/99?text"), 404, "no job 99")


class ListTest(ServerCase):

    def setUp(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))

    def test_lists_all_in_order_or_by_state_and_label(self):
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
        self.assertEqual(ids("?last=0"), [])
        self.assertEqual(ids("?last=1&state=complete&fields=line"), [third])
        self.assertError(self.server.get("/jobs?last=-1"), 400, "last: '-1' is no count")
        self.assertError(self.server.get("/jobs?state=done"), 400, "new running complete")
        self.assertEqual(list(self.server.get("/jobs?fields=&label=a").job), ["href", "id", "state"])

    def test_an_empty_state_or_label_lists_all(self):
        numbers = [self.server.run("true", "label=a")["id"], self.server.run("true")["id"]]
        for query in ("?state=", "?label=", "?state=&label=", "?state=complete&label="):
            self.assertEqual([job["id"] for job in self.server.get("/jobs" + query).jobs], numbers, query)

    def test_deletes_by_state_and_label(self):
        first = self.server.run("true", "label=a")["id"]
        second = self.server.start("sleep 99", "label=b")
        third = self.server.run("true", "label=b")["id"]
        self.server.run("true")
        self.assertError(self.server.delete("/jobs?state=done"), 400, "new running complete")
        for query in ("?label=", "?state="):        # as from a variable of the shell that is not set
            self.assertEqual(self.server.delete("/jobs" + query).status, 400)
        self.assertEqual(self.server.delete("/jobs/%d" % (third + 1)).status, 204)
        self.assertEqual(self.server.delete("/jobs?state=complete&label=b").status, 204)
        self.assertEqual([job["id"] for job in self.server.get("/jobs").jobs], [first, second])
        pid = self.server.job(second)["pid"]
        self.assertEqual(self.server.delete("/jobs?state=running").status, 204)
        self.assertGone(pid)
        answer = self.server.delete("/jobs")
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertNotIn("content-length", answer.headers)      # RFC 9110, 8.6
        self.assertEqual(self.server.get("/jobs").jobs, [])
        self.assertEqual(self.server.get("/jobs/%d" % third).status, 404)

    def test_a_job_that_is_deleted_while_its_deletion_comes_in_is_gone_once(self):
        number = self.server.run("true")["id"]
        with self.server.send(b"DELETE /jobs/%d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n%b\r\n" % (number, AUTH)) as connection:
            self.server.settle(1)
            self.assertEqual(self.server.delete("/jobs/%d" % number).status, 204)
            connection.sendall(b"0\r\n\r\n")
            self.assertEqual(split_answer(connection.recv(10000))[0], 204)


class WaitTest(ServerCase):

    def test_many_clients_that_wait_are_answered_at_the_end_of_the_job(self):
        number = self.server.start("read line", "stdin")
        answers = in_background(in_parallel, lambda _: self.server.get("/jobs/%d?wait=%d" % (number, support.LIMIT)).status, range(20))
        wait_until(lambda: self.server.connections() == 20)
        self.server.post("/jobs/%d/stdin" % number, "\n")
        self.assertEqual(answers(), [200] * 20)

    def test_answers_202_after_the_seconds(self):
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

    def test_deletes_all_jobs_although_the_client_resets_its_connection(self):
        server = self.own_server("-j", "1", program=patched("rtot.STEP = 0"))       # it yields after each job
        for _ in range(500):
            server.start("sleep 99", "fields=")
        before = len(server.scripts())
        with server.send(b"DELETE /jobs HTTP/1.1\r\n" + AUTH + b"\r\n") as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")      # closing resets it
            wait_until(lambda: len(server.scripts()) < before, "the first removal", 10, pause=0)
        wait_until(lambda: server.scripts() == [], "the removal of all scripts", limit=10)

    def test_a_client_whose_job_is_deleted_gets_its_end(self):
        answer = in_background(self.server.post, "/jobs?wait&label=x", "sleep 99")
        wait_until(lambda: self.server.get("/jobs?state=running&label=x").jobs)
        self.server.delete("/jobs?label=x")
        self.assertEqual(answer().job["exit"], "signal: terminated")

    def test_a_client_that_disconnects_is_dropped_at_once(self):
        number = self.server.start("sleep 99")
        paths = (b"/jobs/%d?wait", b"/jobs/%d/exit?wait", b"/jobs/%d/out?follow", b"/jobs/%d/log?follow")
        connections = [self.server.send(b"GET %b HTTP/1.1\r\n%b\r\n" % (path % number, AUTH)) for path in paths * 20]
        self.server.settle(80)
        for connection in connections:
            connection.close()
        self.server.settle()
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
            self.assertError(self.get("out?tail=" + value), 400, "is no count")

    def test_gives_the_bytes_from_a_position(self):
        for first in (0, 3, 14):
            answer = self.get("out", Range="bytes=%d-" % first)
            self.assertEqual((answer.status, answer.body, answer.headers["content-range"]),
                             (206, self.whole[first:], "bytes %d-14/15" % first))

    def test_head_ignores_a_range(self):
        for span in ("bytes=1-", "bytes=99999-"):       # RFC 9110, 14.2: a range is for GET alone
            answer = self.server.request("HEAD", "/jobs/%d/out" % self.number, headers={"Range": span})
            self.assertEqual((answer.status, "content-range" in answer.headers), (200, False))

    def test_a_range_past_the_end_is_416(self):
        for header in ("bytes=15-", "bytes=99-"):
            answer = self.get("out", Range=header)
            self.assertError(answer, 416, "there are 15 bytes")
            self.assertEqual(answer.headers["content-range"], "bytes */15")

    def test_any_other_range_is_ignored(self):
        for header in ("bytes=", "bytes=-", "lines=1-", "bytes=1-2,4-5", "bytes=5-3", "bytes=x-", "bytes=3-5", "bytes=-4"):
            answer = self.get("out", Range=header)
            self.assertEqual((answer.status, answer.body), (200, self.whole), header)
        self.assertEqual(self.get("out", **{"Range": "bytes=3-", "If-Range": '"x"'}).status, 200)
        self.assertError(self.get("out?tail=1", Range="bytes=3-"), 400, "not both: Range tail")

    def test_a_running_job_gives_what_there_is(self):
        number = self.server.start_running("echo so far; sleep 99", ready=b"so far\n")
        answer = self.server.get("/jobs/%d/out" % number, headers={"Range": "bytes=3-"})
        self.assertEqual((answer.body, answer.headers["content-range"]), (b"far\n", "bytes 3-6/*"))
        self.server.delete("/jobs/%d" % number)

    def test_a_large_output_is_whole(self):
        number = self.server.run("seq 500000")["id"]
        self.assertEqual(self.server.out(number), b"".join(b"%d\n" % i for i in range(1, 500001)))


class LogJsonTest(ServerCase):
    TIME = r"^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"

    def lines(self, body):
        return [json.loads(line) for line in body.decode("utf-8").splitlines()]

    def test_is_an_object_for_each_piece_of_output(self):
        number = self.server.print_in_turn("o1 e1 o2 e2".split())
        answer = self.server.get("/jobs/%d/log?json" % number)
        self.assertEqual(answer.status, 200)
        lines = self.lines(answer.body)
        self.assertEqual([(line["at"], line["stream"], line["text"]) for line in lines],
                         [(0, "out", "o1\n"), (3, "err", "e1\n"), (6, "out", "o2\n"), (9, "err", "e2\n")])
        self.assertEqual(list(lines[0]), ["at", "time", "stream", "text"])
        for line in lines:
            self.assertRegex(line["time"], self.TIME)
        times = [line["time"] for line in lines]
        self.assertEqual(times, sorted(times))

    def test_goes_on_from_a_position(self):
        number = self.server.print_in_turn("o1 e1 o2 e2".split())
        lines = self.lines(self.server.get("/jobs/%d/log?json" % number).body)
        for index, line in enumerate(lines):
            self.assertEqual(self.lines(self.server.get("/jobs/%d/log?json&from=%d" % (number, line["at"])).body), lines[index:])
        self.assertEqual(self.server.get("/jobs/%d/log?json&from=12" % number).body, b"")
        for query, status, message in (("json&from=13", 416, "there are 12 bytes"), ("from=0", 400, "from needs json"),
                                       ("json&from=x", 400, "position"), ("json&from=0&tail=1", 400, "not both: from tail")):
            self.assertError(self.server.get("/jobs/%d/log?%s" % (number, query)), status, message)

    def test_follows_to_a_last_line_with_the_exit(self):
        number = self.server.start("read line; echo $line; exit 3", "stdin")
        follower = Follower(self.server, "/jobs/%d/log?json&follow" % number)
        self.server.post("/jobs/%d/stdin" % number, "hi\n")
        lines = self.lines(follower.finish())
        self.assertEqual([(line["at"], line["stream"], line["text"]) for line in lines[:-1]], [(0, "out", "hi\n")])
        self.assertEqual((list(lines[-1]), lines[-1]["exit"], lines[-1]["exit_code"]), (["time", "exit", "exit_code"], "exit status 3", 3))

    def test_never_cuts_a_character_in_two(self):
        number = self.server.start(r"printf 'caf\303'; read go; printf '\251\n'; printf 'bad \377 end \303'", "stdin")
        self.server.wait_for_out(number, b"caf")
        self.server.post("/jobs/%d/stdin" % number, "\n")
        self.server.job(number, "wait")
        text = "".join(line["text"] for line in self.lines(self.server.get("/jobs/%d/log?json" % number).body))
        self.assertEqual(text, "caf\u00e9\nbad \ufffd end \ufffd")

    def test_has_all_of_a_large_output(self):
        number = self.server.run("for i in $(seq 200); do echo o$i; echo e$i >&2; done; seq 30000", fields="")["id"]
        lines = self.lines(self.server.get("/jobs/%d/log?json" % number).body)
        for stream in ("out", "err"):
            text = "".join(line["text"] for line in lines if line["stream"] == stream)
            self.assertEqual(text.encode("utf-8"), self.server.get("/jobs/%d/%s" % (number, stream)).body)
        position = 0
        for line in lines:
            self.assertEqual(line["at"], position)
            position += len(line["text"].encode("utf-8"))


class DroppedTest(ServerCase):
    options = ("--max-output", "1000")

    def test_positions_stay_absolute_and_what_was_dropped_is_told(self):
        number = self.server.run("seq 1000")["id"]
        whole = b"".join(b"%d\n" % i for i in range(1, 1001))
        answer = self.server.get("/jobs/%d/out" % number)
        self.assertEqual((answer.body, answer.headers["rtot-dropped"]), (whole[-1000:], str(len(whole) - 1000)))
        answer = self.server.get("/jobs/%d/out" % number, headers={"Range": "bytes=3000-"})
        self.assertEqual((answer.body, answer.headers["content-range"]), (whole[3000:], "bytes 3000-3892/3893"))
        answer = self.server.get("/jobs/%d/out" % number, headers={"Range": "bytes=5-"})
        self.assertEqual((answer.body, answer.headers["content-range"]), (whole[-1000:], "bytes 2893-3892/3893"))


class FollowTest(ServerCase):

    def test_each_line_comes_as_it_is_printed_and_the_end_with_the_exit_code(self):
        number = self.server.start("while read line; do echo $line; done; exit 3", "stdin")
        follower = Follower(self.server, "/jobs/%d/out?follow" % number)
        for index in range(5):
            self.server.post("/jobs/%d/stdin" % number, "line %d\n" % index)
            follower.wait_for(b"line %d\n" % index)
        self.server.post("/jobs/%d/stdin?eof" % number)
        self.assertEqual(follower.finish(), b"".join(b"line %d\n" % index for index in range(5)))
        raw = self.server.raw(b"GET /jobs/%d/log?follow&tail=1 HTTP/1.1\r\n%bTE: trailers\r\nConnection: close, TE\r\n\r\n"
                              % (number, AUTH))
        status, headers, body = split_answer(raw)
        self.assertEqual((status, headers["x-accel-buffering"]), (200, "no"))
        self.assertIn("Rtot-Exit", headers["trailer"])
        self.assertRegex(body, b"^7\r\nline 4\n\r\n0\r\nRtot-Exit: 3\r\n\r\n$")

    def test_each_line_comes_to_a_crowd_as_it_is_printed(self):
        number = self.server.start("while read line; do echo $line; done", "stdin")
        followers = [Follower(self.server, "/jobs/%d/out?follow" % number) for _ in range(105)]
        for index in range(3):
            self.server.post("/jobs/%d/stdin" % number, "line %d\n" % index)
            wait_until(lambda: all(follower.data.endswith(b"line %d\n" % index) for follower in followers))
        self.server.post("/jobs/%d/stdin?eof" % number)
        for follower in followers:
            self.assertEqual(follower.finish(), b"line 0\nline 1\nline 2\n")

    def test_http_1_0_gets_a_stream_without_trailers_to_the_end_of_the_connection(self):
        number = self.server.start("echo a; sleep 0.1; echo b")
        raw = self.server.raw(b"GET /jobs/%d/out?follow HTTP/1.0\r\n%b\r\n" % (number, AUTH))
        status, headers, body = split_answer(raw)
        self.assertEqual((status, body, headers["connection"]), (200, b"a\nb\n", "close"))
        for name in ("transfer-encoding", "trailer"):
            self.assertNotIn(name, headers)

    def test_the_log_is_replayed_as_it_was_live(self):
        script = "for i in $(seq 200); do echo o$i; echo e$i >&2; done; sleep 0.1; echo end"
        number = self.server.start(script)
        live = Follower(self.server, "/jobs/%d/log?follow" % number).finish()
        self.assertEqual(self.server.get("/jobs/%d/log" % number).body, live)
        self.assertEqual(Follower(self.server, "/jobs/%d/log?follow" % number).finish(), live)
        self.assertEqual(sorted(live.split()), sorted(b"".join(b"o%d e%d " % (i, i) for i in range(1, 201)).split() + [b"end"]))

    def test_the_last_lines_then_what_comes(self):
        number = self.server.start_running("seq 10; read line; echo $line", "stdin", b"10\n")
        follower = Follower(self.server, "/jobs/%d/out?follow&tail=2" % number)
        follower.wait_for(b"9\n10\n")
        self.server.post("/jobs/%d/stdin" % number, "more\n")
        self.assertEqual(follower.finish(), b"9\n10\nmore\n")

    def test_a_broken_stream_can_be_resumed(self):
        number = self.server.start_running("echo 0123456789; read line; echo $line", "stdin", b"9\n")
        follower = Follower(self.server, "/jobs/%d/out?follow" % number, headers={"Range": "bytes=4-"})
        self.assertEqual((follower.response.status, follower.response.getheader("Content-Range")),
                         (206, "bytes 4-9007199254740991/*"))       # RFC 8673, 2.2
        self.server.post("/jobs/%d/stdin" % number, "more\n")
        self.assertEqual(follower.finish(), b"456789\nmore\n")
        at_end = Follower(self.server, "/jobs/%d/out?follow" % number, headers={"Range": "bytes=16-"})
        self.assertEqual((at_end.response.status, at_end.finish()), (206, b""))
        past = self.server.get("/jobs/%d/out?follow" % number, headers={"Range": "bytes=17-"})
        self.assertEqual(past.status, 416)
        ignored = Follower(self.server, "/jobs/%d/out?follow" % number, headers={"Range": "bytes=1-2"})
        self.assertEqual((ignored.response.status, ignored.finish()), (200, b"0123456789\nmore\n"))

    def test_a_stream_that_is_cut_a_hundred_times_and_resumed_is_the_same(self):
        chance = random.Random(7)
        number = self.server.start("for i in $(seq 1500); do echo line number $i; test $((i % 50)) = 0 && sleep 0.01; done")
        uncut = Follower(self.server, "/jobs/%d/out?follow" % number)
        data, cuts = b"", 0
        while cuts < 100:
            with self.server.send(b"GET /jobs/%d/out?follow HTTP/1.0\r\n%bRange: bytes=%d-\r\n\r\n" % (number, AUTH, len(data))) as connection:
                file = connection.makefile("rb")
                while file.readline() != b"\r\n":
                    pass
                data += file.read(chance.randrange(0, 250))
            cuts += 1
        rest = Follower(self.server, "/jobs/%d/out?follow" % number, headers={"Range": "bytes=%d-" % len(data)}).finish()
        self.assertGreater(len(data), 8000)
        self.assertEqual(data + rest, uncut.finish())

    def test_200_followers_get_every_line_once_and_in_order(self):
        lines = 50
        number = self.server.start("read go; for i in $(seq %d); do echo line $i; sleep 0.01; done" % lines, "stdin")
        followers = [Follower(self.server, "/jobs/%d/%s?follow" % (number, "out" if index % 2 else "log"))
                     for index in range(200)]
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        expected = b"".join(b"line %d\n" % index for index in range(1, lines + 1))
        for follower in followers:
            self.assertEqual(follower.finish(), expected)

    def test_answers_that_nobody_reads_hold_no_copies(self):
        number = self.server.run("exec head -c 60000000 /dev/zero\n" + "#" * 8000000, fields="")["id"]
        before = self.server.rss()
        for path in (b"/out", b"/log", b"/log?follow", b"?fields=out", b"/script", b"?fields=script"):
            for _ in range(2):
                connection = self.server.send(b"GET /jobs/%d%b HTTP/1.1\r\n%b\r\n" % (number, path, AUTH))
                self.addCleanup(connection.close)
                connection.recv(1)
        self.server.settle(12)      # each waits until its client reads
        self.assertLess(self.server.rss() - before, 30 << 20)
        self.server.delete("/jobs/%d" % number)


class Counter(threading.Thread):
    """Counts the bytes of a body as fast as they come, or in bursts at most `rate` bytes/s; `last` are the last 100."""

    PAUSE = 0.5     # s

    def __init__(self, server, request, rate=None):
        super().__init__(daemon=True)
        self.count, self.begun, self.error, self.rate, self.last = 0, False, None, rate, b""
        self.connection = socket.socket()
        self.connection.settimeout(support.LIMIT)
        if rate:        # else the kernel takes megabytes
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.connection.connect(("127.0.0.1", server.port))
        self.connection.sendall(request)
        self.start()

    def run(self):
        buffer, burst = bytearray(1 << 18), 0
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.connection.recv(1)
        self.begun = True
        try:
            while True:
                size = self.connection.recv_into(buffer)
                if not size:
                    break
                self.count += size
                self.last = (self.last + bytes(buffer[:size])[-100:])[-100:]
                burst += size
                if self.rate and burst > self.rate * self.PAUSE:
                    time.sleep(self.PAUSE)      # how slow this client is
                    burst = 0
        except OSError as error:
            self.error = error
        self.connection.close()

    def end(self):
        self.join(2 * support.LIMIT)
        assert not self.is_alive(), "the stream does not end"
        return self.count, self.error


# Before rtot is imported: the kernel keeps little of what the server sends.
SMALL_BUFFERS = """import socket
accept = socket.socket.accept
def accept_with_a_small_buffer(self):
    connection, address = accept(self)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return connection, address
socket.socket.accept = accept_with_a_small_buffer"""


class CutOffTest(ServerCase):
    """A stream has no silent hole: the job waits for the client that started it, or the connection is broken."""
    options = ("--max-output", "256K")

    def test_the_job_waits_for_the_client_that_started_it(self):
        """Output that was dropped before it was read was missing, and the answer ended as if it were whole."""
        size = 12000000
        script = b"head -c %d /dev/zero" % size
        owners = [Counter(self.server, b"POST /jobs?follow HTTP/1.%d\r\n%bConnection: close\r\nContent-Length: %d\r\n\r\n%b"
                          % (version, AUTH, len(script), script), rate=6e6) for version in (0, 1)]
        self.assertEqual(owners[0].end(), (size, None))
        count, error = owners[1].end()
        self.assertIsNone(error)
        self.assertGreater(count, size)         # with the sizes of the chunks
        self.assertRegex(owners[1].last, b"(?s)\r\n0\r\n.*\r\n\r\n$")

    def test_every_line_comes_to_the_client_that_started_the_job(self):
        for limit in ("20", "4K"):
            follower = Follower(self.server, "/jobs?follow&max_output=" + limit, "POST", "seq 30000")
            self.assertEqual(follower.finish(), b"".join(b"%d\n" % number for number in range(1, 30001)))

    def test_output_of_other_jobs_does_not_push_out_what_that_client_has_to_read(self):
        """The limit of all jobs together took it from the job that printed longest ago, which was paused for it."""
        server = self.own_server("--max-output", "2M", "--max-total", "3M")
        script = b"head -c 12000000 /dev/zero"
        request = b"POST /jobs?follow%b HTTP/1.0\r\n%bContent-Length: %d\r\n\r\n%b"
        for attach in (b"", b"&attach"):
            with server.send(request % (attach, AUTH, len(script), script)) as owner:
                server.settle(1)            # the job is paused
                for _ in range(4):
                    self.assertEqual(server.run("head -c 5000000 /dev/zero", fields="out_bytes")["out_bytes"], 5000000)
                self.assertEqual(len(support.read_all(owner).partition(b"\r\n\r\n")[2]), 12000000)

    def test_two_such_clients_share_the_limit_of_all_jobs(self):
        server = self.own_server("--max-output", "2M", "--max-total", "2M")
        script = b"head -c 9000000 /dev/zero"
        owners = [Counter(server, b"POST /jobs?follow HTTP/1.0\r\n%bContent-Length: %d\r\n\r\n%b"
                          % (AUTH, len(script), script), rate=6e6) for _ in range(3)]
        self.assertEqual([owner.end() for owner in owners], [(9000000, None)] * 3)

    def owner(self, server, script):
        """Start a job by POST /jobs?follow from a client with a small buffer; return the connection and the number."""
        connection = socket.socket()
        self.addCleanup(connection.close)
        connection.settimeout(support.LIMIT)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"POST /jobs?follow HTTP/1.1\r\n%bConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
            AUTH, len(script), script))
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        return connection, int(re.search(b"Location: /jobs/([0-9]+)", head).group(1))

    def test_a_client_that_started_a_job_and_reads_nothing_is_cut_off_and_the_job_goes_on(self):
        server = self.own_server(*self.options, program=patched("rtot.OWNER_PATIENCE = 0.3", SMALL_BUFFERS))
        connection, number = self.owner(server, b"head -c 2000000 /dev/zero | tr '\\0' x; exit 3")
        job = server.job(number, "wait&fields=exit_code,out_bytes,duration")
        self.assertEqual((job["exit_code"], job["out_bytes"]), (3, 2000000))
        self.assertGreater(job["duration"], 0.25)       # for so long it was waited for
        self.assertCutOff(connection, True)

    def test_a_client_that_started_a_job_and_reads_a_little_all_the_time_gets_every_byte(self):
        """It may take as long as it likes."""
        patience = 0.4      # s
        after = "rtot.OWNER_PATIENCE = %s" % patience
        server = self.own_server("--max-output", "16K", program=patched(after, SMALL_BUFFERS))
        for _ in range(10):
            connection, number = self.owner(server, b"head -c 1000000 /dev/zero | tr '\\0' x; exit 3")
            began = last = time.monotonic()
            data, parts, longest = b"-", [], 0
            with contextlib.suppress(ConnectionResetError):
                while data:
                    data = connection.recv(1500 if last - began < 3 * patience else 65536)
                    parts.append(data)
                    if last - began < 3 * patience:
                        time.sleep(0.005)       # how slow this client is
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()
            if longest < patience / 2:          # else this client was held up itself
                body, _, trailers = b"".join(parts).partition(b"\r\n0\r\n")
                self.assertEqual((body.count(b"x"), trailers[:14]), (1000000, b"Rtot-Exit: 3\r\n"))
                self.assertGreater(last - began, 2 * patience)
                return

    def test_a_client_that_started_a_job_gets_every_byte_though_the_kernel_takes_long_to_pass_on_what_it_holds(self):
        """With 2.5 MB in the buffers of the sockets, rtot sees no progress of a slow reader for a long time."""
        server = self.own_server(*self.options, program=patched("rtot.OWNER_PATIENCE = 0.4"))
        size, parts, error = 12000000, [], None
        script = b"head -c %d /dev/zero | tr '\\0' x" % size
        request = b"POST /jobs?follow HTTP/1.0\r\n%bContent-Length: %d\r\n\r\n%b" % (AUTH, len(script), script)
        with server.send(request) as owner:
            began, data = time.monotonic(), b"-"
            try:
                while data:
                    slow = time.monotonic() - began < 2
                    data = owner.recv(8192 if slow else 1 << 18)        # 0.8 MB/s
                    parts.append(data)
                    time.sleep(0.01 if slow else 0)     # how slow this client is
            except ConnectionResetError as reset:
                error = reset
        self.assertEqual((len(b"".join(parts).partition(b"\r\n\r\n")[2]), error), (size, None))

    def test_a_stream_that_has_lost_output_is_cut_off(self):
        number = self.server.start("read go; head -c 30000000 /dev/zero; read end", "stdin")
        requests = [b"GET /jobs/%d/%b?follow HTTP/1.%d\r\n%bConnection: close\r\n\r\n" % (number, what, version, AUTH)
                    for what in (b"out", b"log") for version in (0, 1)]
        connections = [self.server.send(request) for request in requests]
        for connection in connections:
            connection.recv(1)
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        wait_until(lambda: self.server.job(number, "fields=out_bytes")["out_bytes"] == 30000000)
        self.server.post("/jobs/%d/stdin?eof" % number)
        self.server.get("/jobs/%d?wait&fields=" % number)
        for connection, request in zip(connections, requests):
            with self.subTest(request=request):
                self.assertCutOff(connection, b"HTTP/1.1" in request)
            connection.close()

    def assertCutOff(self, connection, chunked):
        """The stream does not end as one that is whole: by its last chunk, or in HTTP/1.0 by closing without a reset."""
        data, tail = True, b""
        try:
            while data:
                data = connection.recv(1 << 18)
                tail = (tail + data)[-200:]
        except ConnectionResetError:
            return
        self.assertTrue(chunked and b"\r\n0\r\n" not in tail, tail[-100:])

    def test_an_answer_whose_bytes_are_dropped_meanwhile_is_cut_off(self):
        server = self.own_server("--max-output", "24M")
        number = server.start("head -c 20000000 /dev/zero; read go; head -c 30000000 /dev/zero", "stdin")
        wait_until(lambda: server.job(number, "fields=out_bytes")["out_bytes"] == 20000000)
        with server.send(b"GET /jobs/%d/out HTTP/1.1\r\n%bConnection: close\r\n\r\n" % (number, AUTH)) as connection:
            data = connection.recv(1000)
            length = int(re.search(b"Content-Length: ([0-9]+)", data).group(1))
            server.settle(1)            # all is sent that fits the buffers
            server.post("/jobs/%d/stdin" % number, "go\n")
            server.get("/jobs/%d?wait&fields=" % number)
            self.assertEqual(length, 20000000)
            self.assertLess(len(data + support.read_all(connection)), length)

    def test_a_follower_of_a_quiet_stream_does_not_hold_the_job(self):
        """A follower that had read all was taken for one that lags: 60 MB took 44 s."""
        number = self.server.start("read go; head -c 30000000 /dev/zero | tr '\\0' x; echo >&2", "stdin&max_output=32K")
        quiet = Follower(self.server, "/jobs/%d/err?follow" % number)
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        self.assertEqual(quiet.finish(), b"\n")
        job = self.server.job(number, "fields=duration,out_bytes")
        self.assertEqual(job["out_bytes"], 30000000)
        self.assertLess(job["duration"], 30)


class GigabyteTest(ServerCase):

    def test_a_gigabyte_arrives_whole_beside_a_slow_follower_in_bounded_memory(self):
        size = 1 << 30
        script = b"read go; head -c %d /dev/zero | tr '\\0' x" % size
        owner = Counter(self.server, b"POST /jobs?follow&stdin HTTP/1.0\r\n%bContent-Length: %d\r\n\r\n%b" % (AUTH, len(script), script))
        number = wait_until(lambda: self.server.get("/jobs?fields=").jobs)[0]["id"]
        slow = self.server.send(b"GET /jobs/%d/out?follow HTTP/1.1\r\n%b\r\n" % (number, AUTH))
        self.addCleanup(slow.close)
        wait_until(lambda: owner.begun)
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        peak = 0
        while owner.is_alive():
            peak = max(peak, self.server.rss())
            time.sleep(0.02)        # between two looks
        self.assertEqual(owner.end(), (size, None))
        job = self.server.get("/jobs/%d?wait&fields=out_bytes,dropped,exit_code" % number).job
        self.assertEqual((job["out_bytes"], job["exit_code"], job["dropped"]), (size, 0, size - (64 << 20)))
        self.assertLess(peak, (64 + 64) << 20)


class KillTest(ServerCase):

    def test_bad_input_is_refused(self):
        number = self.server.start("sleep 99", "tty")
        for path, message in (("kill?signal=FOO", "'FOO' is no signal"), ("kill?signal=0", "no signal"), ("kill?signal=99", "no signal"),
                              ("kill?signal=", "no signal"), ("kill?grace=x", "number of seconds"),
                              ("kill?grace=-1", "number of seconds"), ("resize", "both"), ("resize?rows=10", "both"),
                              ("resize?rows=0&cols=1", "whole number"), ("resize?rows=x&cols=1", "whole number")):
            self.assertError(self.server.post("/jobs/%d/%s" % (number, path)), 400, message)
        self.assertNotEqual(self.server.job(number)["state"], "complete")
        self.server.delete("/jobs/%d" % number)

    def test_needs_no_body(self):
        number = self.server.start("sleep 99")
        raw = self.server.raw(b"POST /jobs/%d/kill HTTP/1.1\r\n%bConnection: close\r\n\r\n" % (number, AUTH))
        self.assertEqual(split_answer(raw)[0], 204)


class BrowserTest(ServerCase):
    """No site can make a browser run something or read a job."""

    def test_another_site_gets_nothing(self):
        origin = {"Origin": "http://evil.example", "Host": "evil.example"}
        answer = self.server.request("OPTIONS", "/jobs", headers=dict(origin, **{
            "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "rtot-secret"}), secret=False)
        self.assertEqual(answer.status, 401)
        self.assertFalse([name for name in answer.headers if name.startswith("access-control")])
        for headers in (dict(origin), dict(origin, Cookie="Rtot-Secret=swordfish")):
            self.assertEqual(self.server.post("/jobs", "true", headers=headers, secret=False).status, 401)
        self.assertEqual(self.server.post("/jobs?secret=swordfish&Rtot-Secret=swordfish", "true", secret=False).status, 401)

    def test_output_is_never_taken_for_a_page(self):
        for more in ("", "; head -c 200000 /dev/zero"):        # a large output is sent in another way
            number = self.server.run("echo '<script>alert(1)</script>'" + more, fields="")["id"]
            for what in ("out", "err", "log", "script", "exit", "out?follow", "err?follow", "log?follow", "log?tail=1"):
                answer = self.server.get("/jobs/%d/%s" % (number, what), headers={"Origin": "http://evil.example"})
                self.assertFalse([name for name in answer.headers if name.startswith("access-control")])
                self.assertEqual((answer.headers["content-type"], answer.headers["x-content-type-options"]),
                                 ("text/plain; charset=utf-8", "nosniff"))
                self.assertEqual(answer.headers["content-security-policy"], "default-src 'none'; frame-ancestors 'none'")


class FaultTest(ServerCase):

    def test_a_working_directory_that_was_removed_ends_nothing(self):
        directory = tempfile.mkdtemp(prefix="test-rtot-")
        server = self.own_server(cwd=directory)
        os.rmdir(directory)
        self.assertEqual(server.run("echo hi")["cwd"], "")

    def test_errors_leave_no_descriptor_and_no_connection(self):
        self.server.settle()
        before = self.server.descriptors()
        for _ in range(30):
            for path in ("/jobs/abc", "/nothing", "/jobs/99", "/jobs?x"):
                self.server.get(path)
            self.server.post("/jobs", b"")
            self.server.get("/", secret=False)
        self.server.settle()
        self.assertLessEqual(self.server.descriptors(), before)


