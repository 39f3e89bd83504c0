"""What nobody should send, and what a host may run out of.

    python3 tests/test_hostile.py --cases 1000000 --seed 1 --starts 50

runs as many cases of the fuzzer and starts without descriptors as you like, and prints how long they took.
"""
import argparse
import contextlib
import ctypes
import gc
import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
import unittest
import unittest.mock

import support
import rtot
from support import SECRET, Server, ServerCase, is_alive, need, process_state, split_answer, wait_until

KEY = b"Rtot-Secret: " + SECRET.encode("ascii")
VALID = [
    b"POST /jobs HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"POST /jobs?arg=a%20b&env=A=b HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\ntouch\r\n6\r\n wrong\r\n0\r\nTrailer: x\r\n\r\n",
    b"POST /jobs HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: wrong\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"POST /jobs HTTP/1.0\r\nAuthorization: Bearer " + SECRET.encode("ascii") + b"\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"GET /jobs/0?fields=all&wait=0 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nConnection: keep-alive\r\n\r\n",
    b"GET /jobs/0/out?tail=3 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nRange: bytes=0-\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\nGET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /jobs HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nAccept: */*\r\nUser-Agent: curl/8.0\r\n\r\n",
    b"POST /jobs/0/stdin?eof=1 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nContent-Length: 3\r\n\r\nabc",
    b"PUT /jobs?state=complete HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n",
    b"GET http://x/jobs?label=%C3%A9 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n",
]
NASTY = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\r\n ", b"\r\n\r\n", b"%", b"%00", b"%2f", b"?", b"#", b"&", b"=", b"..",
         b"//", b"-1", b"+5", b"0x10", b"99999999999999999999", b"\xb2", b"\xff", b"\xc3\xa9", b"chunked", b"identity",
         b"Content-Length: 0\r\n", b"Content-Length: 11\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"HTTP/0.9",
         b"HTTP/9.9", b"Expect: 100-continue\r\n", b"Host: y\r\n", b"0\r\n\r\n", b"\x16\x03\x01", b"A" * 300, b"bytes=-", b"bytes=9-1"]


def case(chance):
    """Return the bytes of one case: noise, or one or two valid requests with some mutations."""
    if chance.random() < 0.1:
        return bytes(bytearray(chance.getrandbits(8) for _ in range(chance.randrange(1, 200))))
    data = bytearray(chance.choice(VALID))
    if chance.random() < 0.2:
        data += chance.choice(VALID)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(data) + 1)
        other = min(len(data), place + chance.randrange(1, 20))
        kind = chance.randrange(6)
        if kind == 0 and place < len(data):
            data[place] = chance.getrandbits(8)
        elif kind == 1:
            del data[place:other]
        elif kind == 2:
            data[place:place] = chance.choice(NASTY)
        elif kind == 3:
            data[place:other] = chance.choice(NASTY)
        elif kind == 4:
            data[place:place] = data[place:other] * chance.randrange(1, 4)
        else:
            del data[place:]
    return bytes(data)


class Fuzzer:
    """Sends cases to a server on which nothing can start: its one place is taken, so what it accepts stays new."""

    def __init__(self, seed):
        self.chance, self.seed = random.Random(seed), seed
        self.server = Server("-j", "1", "--max-script", "1M").ready()
        self.accepted = 0
        self.server.start("sleep 100000; exit")
        wait_until(lambda: self.server.job(0)["state"] == "running")
        wait_until(lambda: self.server.threads() == 2)
        self.connection = self.server.connect()
        self.ask()
        self.descriptors = self.server.descriptors()

    def run(self, cases):
        for number in range(cases):
            data = case(self.chance)
            try:
                self.one(data)
                self.look_around()
                if number % 1000 == 999:
                    self.tidy_up()
            except Exception as error:
                raise AssertionError("seed %d, case %d, %r: %r" % (self.seed, number, data, error)) from error

    def one(self, data):
        """Send a case; what comes back is answers and nothing else."""
        answer = self.server.raw(data, end=True)
        while answer:
            if answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
                answer = answer[25:]
                continue
            status, headers, rest = split_answer(answer)
            assert status in rtot.REASONS and status != 500, answer
            assert "rtot-version" in headers, answer
            self.accepted += status == 201
            if data.startswith(b"HEAD") or b"HEAD /" in data:       # its length is of what is not there
                self.accepted += answer.count(b"HTTP/1.1 201 Created") - (status == 201)
                break
            answer = rest[int(headers.get("content-length", 0)):]
            if "transfer-encoding" in headers:
                break

    def look_around(self):
        """It answers, has a job for each 201 and no other, runs what it ran before, and holds no more than before."""
        jobs = self.ask()
        assert jobs["new"] <= self.accepted and jobs["running"] == 1 and not jobs["complete"], (jobs, self.accepted)
        living, zombies = self.server.children()
        assert len(living) == 1 and not zombies, (living, zombies)
        wait_until(lambda: self.server.threads() == 3, "the end of the threads", pause=0.0002)
        wait_until(lambda: self.server.descriptors() == self.descriptors, "the descriptors as before", pause=0.0002)

    def ask(self):
        """Ask for /ping and for /; return the numbers of jobs by state.  Both at once, for a million cases."""
        self.connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\n}\n") or answer.count(b"HTTP/1.1 ") < 2:
            data = self.connection.recv(65536)
            assert data, answer
            answer += data
        status, headers, rest = split_answer(answer)
        length = int(headers["content-length"])
        assert status == 200 and b"still here" in rest[:length], answer
        status, _, body = split_answer(rest[length:])
        assert status == 200, answer
        return json.loads(body.decode("utf-8"))["jobs"]

    def tidy_up(self):
        self.server.delete("/jobs?state=new")
        self.accepted = 0
        assert "Traceback" not in self.server.log(), self.server.log()[-3000:]
        os.truncate(self.server.log_path, 0)

    def close(self):
        self.connection.close()
        ran = os.path.exists("wrong")       # what the scripts of the cases would make
        self.server.close()
        assert not ran, "a script of a case was run"


class FuzzTest(unittest.TestCase):

    def test_thousands_of_bad_requests_run_nothing_and_leak_nothing(self):
        fuzzer = Fuzzer(seed=2014)
        try:
            fuzzer.run(3000)
        finally:
            fuzzer.close()


class SecretTest(unittest.TestCase):

    def test_it_is_gone_from_ps_and_from_the_environment(self):
        ways = [dict(secret="swordfish"), dict(secret=None, env={"RTOT_SECRET": "swordfish"}), dict(secret=" swordfish\t"),
                dict(secret=None, program=[support.SOURCE, "-s=swordfish"]),
                dict(secret=None, program=[support.SOURCE, "--secret=swordfish"]),
                dict(secret="swordfish", env={"RTOT_SECRET": "swordfish"})]
        for way in ways:
            server = Server(**way).ready()
            self.addCleanup(server.close)
            server.secret = "swordfish"
            self.assertEqual(server.get("/").status, 200)
            for name in ("cmdline", "environ"):
                with open("/proc/%d/%s" % (server.pid, name), "rb") as file:
                    text = file.read()
                self.assertNotIn(b"swordfish", text)
                self.assertIn({"cmdline": b"rtot.py", "environ": b"PATH="}[name], text)
            self.assertNotIn("swordfish", server.run("cat /proc/$PPID/cmdline /proc/$PPID/environ; env")["out"])
            self.assertNotIn("swordfish", server.log())

    def test_two_ways_at_once_are_both_hidden(self):
        server = Server(secret="aaaa", env={"RTOT_SECRET": "bbbb"}).ready()
        self.addCleanup(server.close)
        with open("/proc/%d/environ" % server.pid, "rb") as file:
            self.assertNotIn(b"bbbb", file.read())

    def test_no_error_tells_it(self):
        server = Server().ready()
        self.addCleanup(server.close)
        for headers in ({}, {"Rtot-Secret": "wrong"}, {"Authorization": "Bearer wrong"}):
            answer = server.get("/", headers=headers, secret=False)
            self.assertEqual(answer.status, 401)
            self.assertNotIn(SECRET, answer.body.decode("utf-8") + repr(answer.headers))

    def test_nothing_else_is_hidden_with_it(self):
        server = Server(secret="a", env={"RTOT_SECRET": "b", "BANANA": "b"}).ready()
        self.addCleanup(server.close)
        with open("/proc/%d/cmdline" % server.pid, "rb") as file:
            self.assertIn(b"127.0.0.1", file.read())
        with open("/proc/%d/environ" % server.pid, "rb") as file:
            self.assertIn(b"BANANA=b", file.read())
        self.assertEqual(server.get("/").status, 200)

    def test_it_is_compared_as_bytes_in_constant_time(self):
        """The comparison is the standard library's; a plain == would stop at the first byte that differs."""
        import hmac
        seen, real = [], hmac.compare_digest

        def compare(left, right):
            seen.append((left, right))
            return real(left, right)
        hmac.compare_digest = compare
        self.addCleanup(setattr, hmac, "compare_digest", real)
        app = rtot.App(b"caf\xc3\xa9", None, None, None, 1, 1)
        request = rtot.Request("GET", b"/", 11, {b"rtot-secret": b"caf\xe9"})
        self.assertRaises(rtot.NotAuthorized, app.answer, request)
        self.assertEqual(seen, [(b"caf\xe9", b"caf\xc3\xa9")])


class GuessTest(ServerCase):
    options = ("--max-connections", "20")

    def setUp(self):
        self.server = self.own_server(*self.options)        # that has counted no failure yet

    def test_wrong_secrets_wait_longer_and_longer_and_the_right_one_never_does(self):
        def wrong():
            began = time.monotonic()
            client = self.server.client()
            answer = self.server.get("/", headers={"Rtot-Secret": "guess"}, secret=False, client=client)
            client.close()
            self.assertEqual(answer.status, 401)
            return time.monotonic() - began
        for _ in range(8):
            wrong()
        self.assertGreater(wrong(), 0.7)
        threads = [threading.Thread(target=wrong) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_until(lambda: self.server.threads() >= 7)
        self.assertEqual(self.server.get("/").status, 200)
        self.assertTrue(all(thread.is_alive() for thread in threads), "the right secret waited for the wrong ones")
        for thread in threads:
            thread.join()

    @unittest.skipUnless(support.LINUX, "needs all of 127.0.0.0/8 on loopback")
    def test_each_address_is_counted_for_itself(self):
        def wrong(address):
            began, client = time.monotonic(), self.server.client((address, 0))
            self.server.get("/", headers={"Rtot-Secret": "guess"}, secret=False, client=client)
            client.close()
            return time.monotonic() - began
        self.assertGreater([wrong("127.0.0.2") for _ in range(9)][-1], 0.7)
        self.assertLess(wrong("127.0.0.3"), 1.3)        # the next of the first would wait for 1.6 s

    def test_guesses_that_wait_take_no_place_from_who_has_the_secret(self):
        connections = []
        for _ in range(60):
            connection = self.server.connect()
            self.addCleanup(connection.close)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nRtot-Secret: guess\r\n\r\n")
            connections.append(connection)
        wait_until(lambda: self.server.at_rest() and self.server.at_rest())     # what is being read takes a place
        for _ in range(5):
            self.assertEqual(self.server.get("/").status, 200)

    def test_a_guess_that_waits_ends_when_it_is_closed_for_another(self):
        ours, theirs = socket.socketpair()
        with contextlib.closing(ours), contextlib.closing(theirs):
            connection, ended = rtot.Connection.__new__(rtot.Connection), []
            connection.connection, connection.client_address = ours, ("x", 0)
            connection.server = unittest.mock.Mock(failures=unittest.mock.Mock(note=lambda address: 600.0))

            def wait():
                try:
                    connection._slow_down()
                except rtot.ClientGone:
                    ended.append(True)
            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            connection.hang_up()
            thread.join(support.LIMIT / 4)
            self.assertEqual(ended, [True])

    def test_a_wrong_secret_is_counted_and_a_right_one_never(self):
        app = rtot.App(b"x", rtot.JobStore(0, 1000), None, None, 1, 1)
        server = rtot.Server(("127.0.0.1", 0), app, unittest.mock.Mock(), rtot.Limits(9, support.LIMIT, support.LIMIT, support.LIMIT, 9999))
        self.addCleanup(server.server_close)
        server.failures = unittest.mock.Mock(note=unittest.mock.Mock(return_value=0.0))
        for secret, status, count in ((b"x", 200, 0), (b"y", 401, 1), (b"x", 200, 1)):
            with socket.create_connection(server.server_address) as client:
                server.handle_request()
                client.sendall(b"GET /jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRtot-Secret: %b\r\n\r\n" % secret)
                self.assertEqual(split_answer(support.read_all(client))[0], status)
            self.assertEqual(server.failures.note.call_args_list, [unittest.mock.call("127.0.0.1")] * count)

    def test_the_delays_grow_to_a_bound_and_are_forgotten(self):
        failures = rtot.Failures()
        delays = [failures.note("a") for _ in range(30)]
        self.assertEqual(delays[:7], [0.0] * 5 + [0.1, 0.2])
        self.assertEqual(delays[-1], 2.0)
        self.assertEqual(failures.note("b"), 0.0)
        count, last = failures._counts["a"]
        failures._counts["a"] = count, last - 61
        self.assertEqual(failures.note("a"), 0.0)

    def test_addresses_beyond_a_number_are_forgotten_the_oldest_first(self):
        failures = rtot.Failures()
        for number in range(5000):
            failures.note(str(number))
        kept = list(failures._counts)
        self.assertEqual((len(kept), kept[0], kept[-1]), (failures.ADDRESSES, str(5000 - failures.ADDRESSES), "4999"))


class SlowTest(ServerCase):
    options = ("--head-timeout", "1", "--body-timeout", "1", "--idle-timeout", "2")

    def drip(self, first, drop, seconds):
        """Send `first`, then a drop every 0.2 s; return what comes back, and after how long."""
        with self.server.connect() as connection:
            began = time.monotonic()
            connection.sendall(first)
            connection.settimeout(0.2)
            while time.monotonic() - began < seconds:
                try:
                    return connection.recv(1000), time.monotonic() - began
                except socket.timeout:
                    if drop:
                        connection.sendall(drop)
            return None, seconds

    def test_a_head_has_one_deadline_however_it_drips(self):
        for first, drop in ((b"G", b"E"), (b"GET /ping HTTP/1.1\r\n", b"A: b\r\n"), (b"GET /ping HTTP/1.1\r\nA: ", b"x")):
            answer, seconds = self.drip(first, drop, support.LIMIT)
            self.assertTrue(answer.startswith(b"HTTP/1.1 408 "), answer)
            self.assertGreater(seconds, 0.9)

    def test_a_body_has_to_make_progress(self):
        head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nContent-Length: 100\r\n\r\ntouch "
        answer, _ = self.drip(head, b"", support.LIMIT)
        status, headers, _ = split_answer(answer)
        self.assertEqual((status, headers["connection"]), (408, "close"))       # what came later would be a request
        answer, _ = self.drip(head, b"x", 2)
        self.assertIsNone(answer)       # a drop now and then is progress
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_a_chunked_body_has_to_make_progress_in_each_of_its_parts(self):
        head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nTransfer-Encoding: chunked\r\n\r\n"
        connections = []
        for body in (b"", b"5", b"5\r\ntr", b"5\r\ntrue\n", b"5\r\ntrue\n\r\n0\r\n"):
            connections.append(self.server.connect())
            self.addCleanup(connections[-1].close)
            connections[-1].sendall(head + body)
        for connection in connections:
            self.assertRegex(connection.recv(1000), b"^HTTP/1.1 408 ")
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_an_idle_connection_is_closed_after_its_time(self):
        answer, seconds = self.drip(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n", b"", support.LIMIT)
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))
        with self.server.connect() as connection:
            self.assertEqual(connection.recv(1), b"")


class IdleTest(ServerCase):

    def test_a_thousand_idle_connections_keep_nobody_out(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2000:
            self.skipTest("needs 2000 descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        idle = []
        for _ in range(1100):
            idle.append(self.server.connect())
            self.addCleanup(idle[-1].close)
        wait_until(lambda: self.server.threads() > 900)
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        self.assertLess(self.server.threads(), 1010)


class Storm:
    """A server with 64 descriptors that is used in all ways at once from its first moment on, by far more clients."""

    CLIENTS, HELD, SECONDS = 30, 128, 1.2
    QUERIES = ("wait", "follow", "tty&wait", "cwd=/&wait", "stdin&fields=")

    def __init__(self):
        self.server = Server(wrapper=["bash", "-c", "ulimit -n 64; exec \"$@\"", "bash"]).ready()
        self.until = time.monotonic() + self.SECONDS
        self.accepted, self.faults = [], []

    def _client(self, number):
        while time.monotonic() < self.until:
            client = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=2)
            try:
                answer = self.server.post("/jobs?" + self.QUERIES[number % len(self.QUERIES)],
                                          "echo o; echo e >&2; sleep 0.05", client=client)
                if answer.status not in (201, 202, 503, 507):
                    self.faults.append((answer.status, answer.body))
                if "location" in answer.headers:
                    self.accepted.append(answer.headers["location"])
            except (OSError, http.client.HTTPException):        # there was no place for it
                pass
            finally:
                client.close()

    def run(self):
        """Return what went wrong, as a list."""
        held = []
        clients = [threading.Thread(target=self._client, args=(number,)) for number in range(self.CLIENTS)]
        try:
            for client in clients:
                client.start()
            while time.monotonic() < self.until:
                for connection in held[:-self.HELD]:
                    connection.close()
                del held[:-self.HELD]
                held.append(self.server.connect())
                try:
                    held[-1].sendall(b"GET /jo")        # a head that never ends
                except OSError:                         # closed already, to make room
                    pass
            for client in clients:
                client.join()
        finally:
            for connection in held:
                connection.close()
        wait_until(self._recovered)
        known = {job["href"]: job for job in self.server.get("/jobs").jobs}
        self.faults += [("lost", href) for href in self.accepted if href not in known]
        wait_until(lambda: all(job["state"] == "complete" for job in self.server.get("/jobs").jobs))
        if "Traceback" in self.server.log():
            self.faults.append(self.server.log())
        return self.faults

    def _recovered(self):
        try:
            return self.server.run("echo again").get("out") == "again\n"
        except (OSError, http.client.HTTPException, AssertionError):
            if self.server.process.poll() is not None:
                raise AssertionError("the server ended: " + self.server.log()) from None
            return False


def end_by_pid(pid, number=signal.SIGKILL):
    """End what is not our child, if it lives."""
    if is_alive(pid):
        os.kill(pid, number)
        wait_until(lambda: not is_alive(pid), "the end of %d" % pid)


GIVES_BACK = unittest.skipUnless(hasattr(ctypes.CDLL(None), "malloc_trim"),
                                 "needs malloc_trim(3), which this C library has not")


class ScarceTest(unittest.TestCase):

    def test_a_storm_without_descriptors_from_the_start_on_ends_and_loses_nothing(self):
        """What the first jobs and answers need is imported then: one start in seven ended for want of a descriptor."""
        storm = Storm()
        self.addCleanup(storm.server.close)
        self.assertEqual(storm.run(), [])
        self.assertTrue(storm.accepted)
        self.assertEqual(storm.server.stop(), 0)
        self.assertEqual(storm.server.leftovers(), [])

    def server(self, limits, *options):
        server = Server(*options, wrapper=["bash", "-c", "%s; exec \"$@\"" % limits, "bash"]).ready()
        self.addCleanup(server.close)
        return server

    def test_without_descriptors_jobs_complete_with_that_error_and_the_server_recovers(self):
        server = self.server("ulimit -n 64")
        numbers = [server.start("sleep 99") for _ in range(40)]
        failed = wait_until(lambda: server.get("/jobs?state=complete&fields=all").jobs)
        for job in failed:
            self.assertEqual((job["exit"], job["exit_code"]), ("fork/exec /bin/bash: too many open files", 126))
        self.assertLess(len(failed), 40)
        self.assertEqual(len(server.get("/jobs").jobs), len(numbers))
        self.assertEqual(server.delete("/jobs").status, 204)
        wait_until(lambda: server.children() == ([], []))
        self.assertEqual(server.run("echo again")["out"], "again\n")

    def test_accepting_without_descriptors_takes_no_cpu_and_recovers(self):
        server = self.server("ulimit -n 40")
        connections = [server.connect() for _ in range(80)]
        for connection in connections:      # busy: a head that is not whole may be closed for a new one
            self.addCleanup(connection.close)
        before = server.cpu()
        time.sleep(1)           # a span in which next to nothing may be done, not a wait for something
        self.assertLess(server.cpu() - before, 0.5)
        for connection in connections:
            connection.close()
        self.assertEqual(server.run("echo hi")["out"], "hi\n")

    def test_without_memory_the_oldest_output_goes_and_the_server_goes_on(self):
        server = self.server("ulimit -v 600000", "--max-output", "4G", "--max-total", "4G")
        client = server.client()
        self.addCleanup(client.close)
        job = server.post("/jobs?wait&fields=out_bytes,dropped,exit_code", "head -c 900M /dev/zero", client=client).job
        self.assertEqual((job["out_bytes"], job["exit_code"]), (900 << 20, 0))
        self.assertGreater(job["dropped"], 300 << 20)
        self.assertEqual(server.delete("/jobs", client=client).status, 204)

        def recovered():        # malloc gives back after a moment; until then a connection may lack a thread
            try:
                answer = server.post("/jobs?wait&fields=out", "echo hi")
            except OSError:
                return None
            return answer if answer.status == 201 else None
        self.assertEqual(wait_until(recovered).job["out"], "hi\n")

    def test_the_first_thread_that_ends_needs_nothing_that_may_be_lacking(self):
        """It loaded libgcc_s (Python 3.8 and older), and the process was aborted where there was no memory for that."""
        server = Server().ready()
        self.addCleanup(server.close)
        client = server.client()
        self.assertEqual(server.get("/ping", client=client).status, 200)
        number = server.start("echo ready; sleep 99", client=client)
        wait_until(lambda: server.get("/jobs/%d/out" % number, client=client).body)
        limits = resource.prlimit(server.pid, resource.RLIMIT_AS)
        resource.prlimit(server.pid, resource.RLIMIT_AS, (1, limits[1]))
        client.close()
        wait_until(lambda: server.threads() == 2)
        resource.prlimit(server.pid, resource.RLIMIT_AS, limits)
        self.assertEqual(server.job(number, "fields=")["state"], "running")

    def test_a_terminal_without_descriptors_is_an_error_of_its_job(self):
        server = self.server("ulimit -n 32")
        numbers = [server.start("sleep 99", "tty") for _ in range(8)]
        failed = wait_until(lambda: server.get("/jobs?state=complete&fields=exit").jobs)
        self.assertIn("too many open files", failed[0]["exit"])
        self.assertEqual(len(server.get("/jobs?fields=").jobs), len(numbers))
        self.assertEqual(server.delete("/jobs").status, 204)

    def test_a_connection_without_descriptors_gets_an_answer(self):
        server = self.server("ulimit -n 32")
        numbers = [server.start("sleep 99") for _ in range(8)]
        wait_until(lambda: not server.get("/jobs?state=new&fields=").jobs)
        connections = [server.connect() for _ in range(12)]
        for connection in connections:
            self.addCleanup(connection.close)
        self.assertEqual(server.get("/", secret=False).status, 401)
        self.assertEqual(server.job(numbers[0], "fields=")["state"], "running")
        answer = server.post("/jobs", "true")
        self.assertIn(answer.status, (201, 507), answer.body)
        server.delete("/jobs")

    def test_a_variable_that_no_program_can_be_given_is_left_out(self):
        real = os.environb
        os.environb = dict(real)
        os.environb.update({b"=foo": b"bar", b"": b"x"})
        try:
            runner = rtot.Runner(rtot.JobStore(0, 1000), 0, 1000)
        finally:
            os.environb = real
        self.assertEqual([name for name in runner._environ if not name or b"=" in name], [])

    def test_without_a_descriptor_for_a_module_output_keeps_its_order(self):
        hidden, sys.modules["array"] = sys.modules.get("array"), None       # which makes its import fail
        try:
            output = rtot.Output(100)
            output.append(rtot.ERR, b"e")
            output.append(rtot.OUT, b"o")
        finally:
            if hidden:
                sys.modules["array"] = hidden
            else:
                del sys.modules["array"]
        self.assertEqual(output.read([0, 0], None, 9), b"eo")

    def test_without_a_descriptor_for_a_module_nobody_is_let_in_and_told_to_come_again(self):
        app = rtot.App(b"x", None, None, None, 1, 1)
        with unittest.mock.patch.dict(sys.modules, {"hmac": None}):         # which makes its import fail
            request = rtot.Request("GET", b"/", 11, {b"rtot-secret": b"x"})
            self.assertRaisesRegex(rtot.Unavailable, "no descriptor", app.answer, request)

    def test_a_job_that_cannot_be_forked_completes_with_that_error(self):
        store, started = rtot.JobStore(0, 1000), []
        runner = rtot.Runner(store, 0, 1000)
        import errno
        for error, text in ((OSError(errno.EAGAIN, "x"), "resource temporarily unavailable"),
                            (OSError(errno.ENOMEM, "x"), "cannot allocate memory"), (MemoryError(), "cannot allocate memory"),
                            (ImportError(), "too many open files"),       # no descriptor to open a module with
                            (ValueError(), "invalid argument")):
            def fail(*_, error=error):
                started.append(error)
                raise error
            runner._start = fail
            before = len(os.listdir("/proc/self/fd"))
            job = rtot.Job(b"#!/bin/sh\n", rtot.PLAIN, 1000)
            store.add(job)
            runner._submit(job, rtot.Script(b"/no/such/script"))
            self.assertEqual((job.state, job.exit, job.exit_code), ("complete", "fork/exec /bin/sh: " + text, 126))
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(len(started), 5)

    def test_a_job_whose_output_cannot_be_watched_is_not_started(self):
        """As where epoll(7) has no watch left, max_user_watches: it ran, unknown, and the server ended."""
        import errno
        gc.collect()                # what other tests have left would close its descriptors in the middle
        store = rtot.JobStore(0, 1000)
        runner, job = rtot.Runner(store, 0, 1000), rtot.Job(b"#!/bin/sh\n", rtot.PLAIN, 1000)
        store.add(job)
        runner._start = unittest.mock.Mock()
        real, before = runner._selector.register, len(os.listdir("/proc/self/fd"))
        for watched in (0, 1):
            outcomes = [real] * watched + [OSError(errno.ENOSPC, "x")]
            with unittest.mock.patch.object(runner._selector, "register", side_effect=lambda *args, outcomes=outcomes: raise_or_call(
                    outcomes.pop(0), *args)):
                job = rtot.Job(b"#!/bin/sh\n", rtot.PLAIN, 1000)
                store.add(job)
                runner._submit(job, rtot.Script(b"/no/such/script"))
            self.assertEqual((job.state, job.exit), ("complete", "fork/exec /bin/sh: no space left on device"))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(len(runner._selector.get_map()), 1)
        runner._start.assert_not_called()

    def test_a_want_of_memory_costs_the_oldest_output_and_nothing_for_good(self):
        store = rtot.JobStore(0, 1000)
        runner = rtot.Runner(store, 0, 1000)
        job = rtot.Job(b"", rtot.PLAIN, 1000)
        process = rtot.Process(job, None)
        runner._captured(process, rtot.OUT, b"x" * 400)

        faults = [MemoryError(), MemoryError()]

        def fail():
            if faults:          # else it was put off, and there is enough again
                raise faults.pop()
        runner._try(fail)
        self.assertEqual((runner._total, job.output.start), (300, 100))
        runner.after(0, fail)
        runner.after(0.01, runner._stop)
        runner.run()
        self.assertEqual((runner._total, job.output.start), (225, 175))
        runner._captured(process, rtot.OUT, b"x" * 700)
        self.assertEqual(runner._total, 925)
        runner.relieve()                # as another thread asks
        runner._run_calls()
        self.assertEqual(runner._total, 693)

    def test_a_want_of_memory_forgets_no_timer(self):
        """A SIGKILL to come may hang on it."""
        runner, calls = rtot.Runner(rtot.JobStore(0, 1000), 0, 1000), []

        def fail_once():
            calls.append(None)
            if len(calls) == 1:
                raise MemoryError
            runner._stop()
        runner.after(0, fail_once)
        runner.after(20, runner._stop)      # rather than wait for ever
        runner.run()
        self.assertEqual(len(calls), 2)

    def test_a_want_of_memory_forgets_no_call_and_no_end(self):
        runner, done = rtot.Runner(rtot.JobStore(0, 1000), 0, 1000), []

        def fail():
            raise MemoryError
        ended = unittest.mock.Mock()
        ended.tell_end.side_effect = [MemoryError, None]

        def end():
            runner._untold.append(ended)
            done.append("called")
        runner._reap_any = lambda: done.append("reaped")
        for function in (fail, end, lambda: runner.after(0.1, runner._stop)):
            runner._call(function)
        runner.after(5, lambda: (runner._calls.clear(), runner._stop()))       # rather than wait for ever
        runner.run()
        self.assertEqual(done[:2], ["reaped", "called"])
        self.assertEqual(ended.tell_end.call_count, 2)      # until who waits for it was told

    def test_a_flood_is_bounded_and_the_job_goes_on(self):
        server = Server("--max-output", "2M").ready()
        self.addCleanup(server.close)
        number = server.start("yes")
        wait_until(lambda: server.job(number, "fields=out_bytes")["out_bytes"] > 300 << 20)
        self.assertLess(server.rss(), 64 << 20)
        job = server.job(number, "fields=dropped,out_bytes,state")
        self.assertEqual(job["state"], "running")
        self.assertLessEqual(job["out_bytes"] - job["dropped"], 2 << 20)


    @GIVES_BACK
    def test_the_memory_of_deleted_jobs_goes_back_to_the_host(self):
        server = Server("--max-total", "1G").ready()
        self.addCleanup(server.close)
        server.run("echo small")
        before = server.rss()
        numbers = [server.start("for i in 1 2 3; do head -c 10M /dev/zero; echo >&2; done") for _ in range(8)]
        for number in numbers:
            server.get("/jobs/%d?wait&fields=" % number)
        self.assertGreater(server.rss(), before + (200 << 20))
        server.run("echo small, too")           # whose output lies behind theirs
        server.delete("/jobs")
        wait_until(lambda: server.rss() < before + (16 << 20))

    @GIVES_BACK
    def test_the_memory_of_large_scripts_goes_back_to_the_host(self):
        server = Server().ready()
        self.addCleanup(server.close)
        server.run("echo small")
        server.delete("/jobs")
        before, script = server.rss(), "exit\n" + "#" * (8 << 20)
        for _ in range(2):
            threads = [threading.Thread(target=server.run, args=(script, "", "")) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(len(server.get("/jobs?fields=").jobs), 12)
            server.delete("/jobs")
            wait_until(lambda: server.rss() < before + (32 << 20))

    @GIVES_BACK
    def test_no_output_waits_for_the_garbage_collector(self):
        """What a job was held back for kept its output in a cycle."""
        code = "import gc, rtot, sys; gc.enable = lambda: None; gc.disable(); sys.exit(rtot.main())"
        server = Server("--max-output", "16M", program=["-c", code], cwd=support.ROOT).ready()
        self.addCleanup(server.close)
        server.run("echo small")
        before = server.rss()
        for _ in range(4):
            number = server.start("read go; head -c 64M /dev/zero", "stdin")
            with server.connect() as slow:
                slow.sendall(b"GET /jobs/%d/out?follow HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (number, KEY))
                slow.recv(1)
                server.post("/jobs/%d/stdin" % number, "go\n")
                self.assertGreater(server.job(number, "wait&fields=dropped")["dropped"], 0)
        server.run("echo small, too")
        server.delete("/jobs")
        wait_until(lambda: server.rss() < before + (16 << 20))


@need("unshare", "mount")
@unittest.skipIf(os.geteuid(), "needs root, for namespaces")
class NamespaceTest(unittest.TestCase):

    def test_a_directory_in_the_place_of_a_script_ends_nothing(self):
        server = Server().ready()
        self.addCleanup(server.close)
        self.assertEqual(server.run('rm "$0"; mkdir "$0"; echo odd')["out"], "odd\n")
        self.assertEqual(server.run("echo hi")["out"], "hi\n")

    def server(self, mounts, **more):
        server = Server(wrapper=["unshare", "-m", "sh", "-c", mounts + ' && exec "$@"', "sh"], **more).ready()
        self.addCleanup(server.close)
        return server

    def test_a_full_temporary_directory_is_507_and_the_cut_script_does_not_run(self):
        server = self.server('mount -t tmpfs -o size=64k none "$TMPDIR"')
        marker = os.path.join(server.tmp, "..", "marker-%d" % os.getpid())
        script = "touch %s\n" % marker + "# filler\n" * 27000
        answer = server.post("/jobs", script)
        self.assertEqual(answer.status, 507, answer.body)
        self.assertIn("No space left", answer.json["message"])
        self.assertEqual(server.get("/jobs").jobs, [])
        self.assertFalse(os.path.exists(marker))
        self.assertEqual(server.run("echo small")["out"], "small\n")

    def test_without_a_temporary_directory_scripts_run_from_memory(self):
        with open(support.SOURCE, "rb") as source:      # which may lie where the mounts will be
            server = self.server("for d in /tmp /var/tmp /usr/tmp; do test -d $d && mount -t tmpfs -o ro none $d; done; true",
                                 cwd="/proc", program=["-"], stdin=source)
        answer = server.post("/jobs?wait&fields=all", "echo hi; cat $0 | head -n 1")
        if not hasattr(os, "memfd_create"):
            self.assertEqual(answer.status, 507, answer.body)
            self.assertIn("TMPDIR", answer.json["message"])
            return
        self.assertEqual((answer.status, answer.job["out"]), (201, "hi\n#!/bin/bash\n"))
        self.assertEqual(server.run("#!/usr/bin/env python3\nprint(1 + 1)")["out"], "2\n")
        for query in ("cwd=/", "tty"):          # which are started in other ways
            self.assertEqual(server.run("printf hi", query)["out"], "hi")
        other = server.start("sleep 99")            # whose script is for itself alone
        self.assertEqual(server.run("ls -l /proc/self/fd | grep -c memfd")["out"], "1\n")
        server.delete("/jobs/%d" % other)
        before = server.descriptors()
        for _ in range(5):
            server.run("true")
        wait_until(lambda: server.descriptors() <= before)

    def test_without_proc_it_runs_and_says_what_it_cannot(self):
        """As in a chroot of a host that is being rescued."""
        server = self.server("exec 7</etc/passwd && mount -t tmpfs none /proc")
        self.assertIn("rtot: the secret can be seen in ps here: give it by --secret-file or RTOT_SECRET\n", server.log())
        job = server.run("trap '' TERM; sleep 98 & echo $!; exit 3")
        self.assertEqual((job["exit_code"], job["held"]), (3, True))
        with open("/proc/%d/stat" % int(job["out"])):       # of the namespace outside, which has a /proc
            self.assertEqual(server.descriptors_of(int(job["out"]))[0], "/dev/null")
        self.assertFalse(os.path.exists("/proc/%s/fd/7" % job["out"].strip()))
        self.assertEqual(server.post("/jobs/%d/kill?grace=0.2" % job["id"]).status, 204)
        wait_until(lambda: not is_alive(int(job["out"])))
        self.assertEqual(server.delete("/").status, 204)
        self.assertEqual(server.process.wait(support.LIMIT), 0)
        self.assertEqual(server.leftovers(), [])

    def test_as_pid_1_it_ends_on_term_and_reaps_orphans(self):
        server = Server(wrapper=["unshare", "-p", "-f", "--mount-proc"]).ready()
        self.addCleanup(server.close)
        (inner,), _ = server.children()
        self.addCleanup(end_by_pid, inner)
        server.pid = inner

        def leave_orphans():
            for _ in range(5):
                server.run("setsid sh -c 'sleep 0.1' >/dev/null 2>&1 </dev/null & true")
        leave_orphans()
        wait_until(lambda: server.children() == ([], []), "the reaping of orphans")
        self.assertEqual(server.run("exit 3")["exit_code"], 3)
        held = server.run("sleep 99 & true")        # whose zombie stands before the orphans
        self.assertTrue(held["held"])
        leave_orphans()
        wait_until(lambda: len(server.children()[0]) <= 1 and len(server.children()[1]) == 1, "the reaping of orphans")
        os.kill(inner, signal.SIGTERM)
        self.assertEqual(server.process.wait(support.LIMIT), 0)


class LivingTest(unittest.TestCase):
    """What is known of the living, by which a SIGKILL to come is given up."""

    def test_nothing_is_known_where_it_could_not_be_looked(self):
        import errno
        self.assertIn(os.getpgrp(), rtot.living_sessions()[os.getsid(0)])
        with unittest.mock.patch("builtins.open", side_effect=OSError(errno.EMFILE, "x")):
            self.assertIsNone(rtot.living_sessions())
        with unittest.mock.patch.object(os, "readlink", return_value="1"):      # the /proc of other processes
            self.assertIsNone(rtot.living_sessions())

    @unittest.skipUnless(os.uname().machine in ("x86_64", "aarch64"), "needs to know the number of exit(2)")
    def test_a_process_of_which_only_a_thread_lives_is_alive(self):
        import subprocess
        code = ("import ctypes, os, threading, time; threading.Thread(target=time.sleep, args=(99,)).start(); "
                "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)")
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_until(lambda: process_state(process.pid) == "Z")
        self.assertIn(process.pid, rtot.living_sessions())

    @need("unshare")
    @unittest.skipIf(os.geteuid(), "needs root, for namespaces")
    def test_kill_comes_also_with_the_proc_of_another_namespace(self):
        server = Server(wrapper=["unshare", "-p", "-f"]).ready()
        self.addCleanup(server.close)
        (inner,), _ = server.children()
        self.addCleanup(os.kill, inner, signal.SIGTERM)
        number = server.start("(trap '' TERM; echo ready; exec sleep 62.125 >/dev/null 2>&1) & wait")
        server.wait_for_out(number, b"ready")
        self.assertEqual(server.post("/jobs/%d/kill?grace=0.5" % number).status, 204)

        def living():
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open("/proc/%s/cmdline" % name, "rb") as file:
                        if file.read() == b"sleep\x0062.125\0":
                            return True
                except OSError:
                    pass
            return False
        wait_until(lambda: not living())


class PinTest(ServerCase):

    def test_the_leader_stays_a_zombie_as_long_as_its_group_may_be_signalled(self):
        job = self.server.run("sleep 99 & echo $!")
        self.assertEqual(process_state(job["pid"]), "Z")
        self.server.post("/jobs/%d/kill?grace=0.3" % job["id"])
        wait_until(lambda: not is_alive(int(job["out"])))
        wait_until(lambda: process_state(job["pid"]) == "X", "the reaping of the leader")
        self.assertError(self.server.post("/jobs/%d/kill" % job["id"]), 409, "nothing to signal")

    def test_after_term_the_group_is_pinned_until_kill_was_sent(self):
        number = self.server.start("(trap '' TERM; echo ready; exec sleep 99 >/dev/null 2>&1) & wait")
        self.server.wait_for_out(number, b"ready")
        pid = self.server.job(number)["pid"]
        self.server.post("/jobs/%d/kill?grace=0.5" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["exit"], "signal: terminated")
        self.assertEqual(process_state(pid), "Z")
        wait_until(lambda: process_state(pid) == "X")


class BrowserTest(ServerCase):

    def test_no_site_can_make_a_browser_run_something_or_read_a_job(self):
        origin = {"Origin": "http://evil.example", "Host": "evil.example"}
        answer = self.server.request("OPTIONS", "/jobs", headers=dict(origin, **{
            "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "rtot-secret"}), secret=False)
        self.assertEqual(answer.status, 401)
        self.assertFalse([name for name in answer.headers if name.startswith("access-control")])
        for headers in (dict(origin), dict(origin, Cookie="Rtot-Secret=swordfish")):
            self.assertEqual(self.server.post("/jobs", "true", headers=headers, secret=False).status, 401)
        self.assertEqual(self.server.post("/jobs?secret=swordfish&Rtot-Secret=swordfish", "true", secret=False).status, 401)
        for more in ("", "; head -c 200000 /dev/zero"):        # what is large is sent in another way
            number = self.server.run("echo '<script>alert(1)</script>'" + more, fields="")["id"]
            for what in ("out", "err", "log", "script", "exit", "out?follow", "err?follow", "log?follow", "log?tail=1"):
                answer = self.server.get("/jobs/%d/%s" % (number, what), headers=origin)
                self.assertFalse([name for name in answer.headers if name.startswith("access-control")])
                self.assertEqual((answer.headers["content-type"], answer.headers["x-content-type-options"]),
                                 ("text/plain; charset=utf-8", "nosniff"))
                self.assertEqual(answer.headers["content-security-policy"], "default-src 'none'; frame-ancestors 'none'")

    def test_a_line_end_in_a_header_that_goes_out_is_refused(self):
        connection = rtot.Connection.__new__(rtot.Connection)
        for value in ("a\r\nSet-Cookie: x", "a\nb", "a\rb"):
            self.assertRaises(ValueError, connection._head, None, rtot.Response(200, headers=[("Location", value)]), False, False)


class DaemonTest(unittest.TestCase):

    def daemon(self, *options, directory=None, **more):
        """Start a daemon, which does not outlive the test; return the server once the foreground has exited with 0."""
        server = Server("-d", "--pid-file", "pid", *options, cwd=directory or self.tmp(), **more)
        self.addCleanup(server.close)
        self.assertEqual(server.process.wait(support.LIMIT), 0, server.log())
        with open(os.path.join(self.directory, "pid")) as file:
            server.pid = int(file.read())
        self.addCleanup(end_by_pid, server.pid)
        server.port = int(server.log().split("127.0.0.1:")[1].split("/")[0])
        return server

    def tmp(self):
        import tempfile
        self.directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.directory)
        return self.directory

    def end(self, server, number=signal.SIGTERM):
        end_by_pid(server.pid, number)
        server.close()

    def test_returns_when_the_port_is_bound_and_lives_on_without_its_session(self):
        server = self.daemon("--log-file", "log")
        self.addCleanup(self.end, server)
        self.assertEqual(server.run("pwd")["out"], self.directory + "\n")
        self.assertEqual(os.getsid(server.pid) == os.getsid(0), False)
        self.assertEqual(process_state(server.process.pid), "X")
        self.assertEqual(server.descriptors_of(server.pid), ["/dev/null", "/dev/null", os.path.join(self.directory, "log")])

    def test_holds_nothing_of_what_it_was_started_from(self):
        """An ssh waits until nobody has its pipes any more."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        with open(reading, "rb") as stdin:
            server = self.daemon(stdin=stdin, stdout=writing)
        self.addCleanup(self.end, server)
        self.assertEqual(server.descriptors_of(server.pid), ["/dev/null"] * 3)
        self.assertNotEqual(os.getsid(server.pid), server.pid)      # no terminal that it opens can control it
        os.kill(server.pid, signal.SIGHUP)
        self.assertEqual(server.run("kill -HUP $PPID; echo hi")["out"], "hi\n")

    def test_lets_go_of_a_pipe_for_its_errors_too(self):
        """A pipeline that it was started in ends when nobody has that pipe any more."""
        server = self.daemon(wrapper=["bash", "-c", '"$@" 2>&1 >/dev/null | cat >&2; exit ${PIPESTATUS[0]}', "bash"])
        self.assertEqual(server.descriptors_of(server.pid), ["/dev/null"] * 3)
        self.end(server)

    def test_outlives_the_session_that_started_it(self):
        server = self.daemon(wrapper=["setsid", "-w", "bash", "-c", 'trap "" HUP; "$@"; status=$?; kill -HUP 0; exit $status', "bash"])
        os.kill(server.pid, signal.SIGHUP)
        self.assertEqual(server.run("echo hi")["out"], "hi\n")
        self.end(server)
        self.assertFalse(os.path.exists(os.path.join(self.directory, "pid")))
        self.assertFalse(os.path.exists(server.tmp))

    def test_says_why_it_could_not_start_and_exits_with_1(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            server = Server("-d", address="127.0.0.1:%d" % taken.getsockname()[1], cwd=self.tmp())
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 1)
        self.assertRegex(server.log(), "^rtot: cannot listen on .*: Address already in use\n$")

    def test_a_pid_file_of_a_living_server_is_refused_and_a_stale_one_written_over(self):
        server = self.daemon()
        again = Server("-d", "--pid-file", "pid", cwd=self.directory)
        self.addCleanup(again.close)
        self.assertEqual(again.process.wait(support.LIMIT), 1)
        self.assertIn("pid is the pid file of a server that lives", again.log())
        self.end(server, signal.SIGKILL)
        self.end(self.daemon(directory=self.directory))

    def test_a_pid_file_that_its_owner_has_just_removed_is_made_anew(self):
        """Who locked the removed one had none, and the next server started beside it."""
        import fcntl
        path, real = os.path.join(self.tmp(), "pid"), fcntl.flock

        def flock(fd, how):
            real(fd, how)
            if flock.removes:
                os.unlink(path)
                flock.removes = False
        flock.removes = True
        with unittest.mock.patch.object(fcntl, "flock", flock):
            pid_file = rtot.PidFile(path)
        self.assertEqual(open_text(path), "%d\n" % os.getpid())
        self.assertRaises(rtot.CannotStart, rtot.PidFile, path)
        pid_file.remove(None)
        os.close(pid_file.fd)

    def test_the_log_file_is_opened_anew_on_hangup(self):
        server = self.daemon("--log-file", "log")
        path = os.path.join(self.directory, "log")
        server.get("/ping")
        wait_until(lambda: "GET /ping" in open_text(path))
        os.rename(path, path + ".1")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: os.path.exists(path))
        server.get("/jobs")
        wait_until(lambda: "GET /jobs" in open_text(path))
        self.end(server)

    def test_a_file_that_cannot_be_written_is_told(self):
        for option in ("--pid-file", "--log-file"):
            server = Server("-d", option, "/no/such/file", cwd=self.tmp())
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 1)
            self.assertEqual(server.log(), "rtot: cannot write /no/such/file: No such file or directory\n")


def raise_or_call(outcome, *args):
    if isinstance(outcome, Exception):
        raise outcome
    return outcome(*args)


def open_text(path):
    with open(path) as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--starts", type=int, default=0)
    args = parser.parse_args()
    for number in range(args.starts):
        storm = Storm()
        try:
            faults = storm.run()
        finally:
            storm.server.close()
        print("start %d: %d jobs, %s" % (number, len(storm.accepted), faults or "nothing found"), flush=True)
    fuzzer, began = Fuzzer(args.seed), time.monotonic()
    try:
        fuzzer.run(args.cases)
    finally:
        fuzzer.close()
    print("%d cases of seed %d in %.0f s: nothing found" % (args.cases, args.seed, time.monotonic() - began))


if __name__ == "__main__":
    sys.exit(main())
