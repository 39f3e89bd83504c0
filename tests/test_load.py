"""Many clients and jobs at once, and hosts that are short of descriptors, processes or memory.

    python3 tests/test_load.py --starts 50

starts as many servers without descriptors as you like, and says what it found.
"""
import argparse
import contextlib
import ctypes
import http.client
import os
import signal
import sys
import threading
import time
import unittest

import support
from support import AUTH, Case, Follower, Server, ServerCase, in_parallel, limited, need, patched, wait_until


class LoadTest(ServerCase):

    def test_two_thousand_jobs_of_32_clients_all_complete_with_the_right_output(self):
        def client(base):
            failures, numbers = [], {}
            connection = self.server.client()
            for index in range(base, 2000, 32):
                answer = self.server.post("/jobs?fields=", "echo out %d; echo err %d >&2; exit %d"
                                          % (index, index, index % 7), client=connection)
                numbers[answer.job["id"]] = index
            for number, index in numbers.items():
                job = self.server.get("/jobs/%d?wait&fields=all" % number, client=connection).job
                if (job["out"], job["err"], job["exit_code"]) != ("out %d\n" % index, "err %d\n" % index, index % 7):
                    failures.append(job)
            connection.close()
            return failures
        self.assertEqual(in_parallel(client, range(32)), [[]] * 32)
        self.assertEqual(len(self.server.get("/jobs?state=complete&fields=").jobs), 2000)
        self.server.delete("/jobs")


class ExitTest(Case):
    """Every exit is noticed, whatever else goes on."""

    def test_an_exit_whose_output_is_held_is_noticed_while_clients_post_without_a_pause(self):
        """Each look found a job whose output had ended, and the others were never looked at."""
        server, going = self.own_server(), [True]
        held = server.start("sleep 60 & exit 7")
        self.addCleanup(lambda: server.delete("/jobs"))

        def flood():
            with contextlib.closing(server.client()) as client:
                while going:
                    server.post("/jobs?fields=", "#!/bin/true", client=client)
        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: server.job(held, "fields=")["state"] == "complete", "the exit", limit=support.LIMIT / 2)
        finally:
            going.clear()
            for thread in threads:
                thread.join()
        self.assertEqual(server.job(held)["exit_code"], 7)

    def test_a_fault_while_exits_are_looked_for_does_not_end_the_search(self):
        for error in ("MemoryError", "OSError(5, 'fault')"):
            name = "waitid" if hasattr(os, "waitid") else "waitpid"
            fault = ("real, calls = rtot.os.%s, []\ndef fail(*args):\n    calls.append(args)\n"
                     "    if len(calls) == 3: raise %s\n    return real(*args)\nrtot.os.%s = fail" % (name, error, name))
            server = self.own_server(program=patched(fault))
            self.assertEqual([server.run("exit %d" % code)["exit_code"] for code in range(6)], list(range(6)), error)


class FairnessTest(Case):
    """No client, job, follower or timer keeps the others waiting.

    Each bound is what is asked for on an idle machine and, since a busy one is slow for everybody, a
    multiple of what a plain process takes to wake up meanwhile.  A server that starves the others misses
    them by far: rtot 1.0 completed none of 5,500 jobs in 10 s.
    """

    SECONDS = 4.0
    CLIENTS = 4

    def flood(self, server, until):
        """POST without a pause on one connection; return how many jobs were accepted."""
        request = b"POST /jobs?fields= HTTP/1.1\r\n%bContent-Length: 4\r\n\r\ntrue" % AUTH
        accepted = 0
        with contextlib.suppress(OSError), server.connect() as connection:
            file = connection.makefile("rb")
            while time.monotonic() < until[0]:
                connection.sendall(request)
                status, _, _ = support.read_answer(file)
                accepted += status == 201
        return accepted

    def late_wakes(self, until):
        """Return by how many seconds a thread of the test that sleeps woke up too late, at most."""
        worst = 0.0
        while time.monotonic() < until[0]:
            began = time.monotonic()
            time.sleep(0.05)            # the subject: how late the machine wakes it
            worst = max(worst, time.monotonic() - began - 0.05)
        return worst

    def test_nothing_waits_for_clients_that_post_without_a_pause(self):
        server = self.own_server("--keep", "200")
        server.run("true")
        number = server.start_running("echo ready; while :; do sleep 0.1; date +%s.%N; done", ready=b"ready")
        follower = Follower(server, "/jobs/%d/out?follow" % number)
        follower.wait_for(b"ready\n")
        wall = time.time() - time.monotonic()
        until = [time.monotonic() + self.SECONDS]
        late = support.in_background(self.late_wakes, until)
        floods = [support.in_background(self.flood, server, until) for _ in range(self.CLIENTS)]
        timed = support.in_background(server.post, "/jobs?wait&fields=all&timeout=1", "trap '' TERM; exec sleep 99")
        killed = support.in_background(self.kill, server)
        job = timed().job
        self.assertTrue(job["timed_out"])
        kill_seconds = killed()
        complete = len(server.get("/jobs?state=complete&fields=").jobs)
        time.sleep(max(0.0, until[0] - 0.3 - time.monotonic()))     # the end comes while they still post
        ending = time.monotonic()
        until[0] = ending + support.LIMIT
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(support.LIMIT), 0)
        end_seconds = time.monotonic() - ending
        until[0] = 0
        slack = 0.5 + 10 * late()
        accepted = sum(flood() for flood in floods)
        lags = [when + wall - float(line) for when, data in follower.parts for line in data.split() if line != b"ready"]
        self.assertGreater(accepted, 20)
        self.assertGreater(complete, 20)
        self.assertLess(job["duration"] - 1, 5 + slack)         # the SIGKILL comes after the grace
        self.assertLess(kill_seconds, slack)
        self.assertGreater(len(lags), 5)
        self.assertLess(max(lags), slack)
        self.assertLess(end_seconds, 5 + slack)

    def kill(self, server):
        """Start a job and kill it; return how long that takes."""
        number = server.start("exec sleep 99")
        began = time.monotonic()
        server.post("/jobs/%d/kill" % number)
        server.get("/jobs/%d?wait&fields=" % number)
        return time.monotonic() - began


class Storm:
    """A server with 64 descriptors that is used in all ways at once from its first moment on, by far more clients."""

    CLIENTS, HELD, SECONDS = 30, 128, 1.0
    QUERIES = ("wait", "follow", "tty&wait", "cwd=/&wait", "stdin&fields=")

    def __init__(self):
        self.server = Server(wrapper=limited("-n 64")).ready()
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
                with contextlib.suppress(OSError):      # closed already, to make room
                    held[-1].sendall(b"GET /jo")        # a head that never ends
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


class DescriptorTest(Case):
    """Servers that are short of descriptors."""

    def test_a_storm_from_the_first_moment_on_ends_nothing_and_loses_nothing(self):
        """The first jobs and answers import modules: one start in seven ended for want of a descriptor."""
        storm = Storm()
        self.addCleanup(storm.server.close)
        self.assertEqual(storm.run(), [])
        self.assertTrue(storm.accepted)
        self.assertEqual(storm.server.stop(), 0)
        self.assertEqual(storm.server.leftovers(), [])

    def test_jobs_complete_with_that_error_and_the_server_recovers(self):
        server = self.own_server(wrapper=limited("-n 64"))
        numbers = [server.start("sleep 99") for _ in range(40)]
        failed = wait_until(lambda: server.get("/jobs?state=complete&fields=all").jobs)
        for job in failed:
            self.assertEqual((job["exit"], job["exit_code"]), ("fork/exec /bin/bash: too many open files", 126))
        self.assertLess(len(failed), 40)
        self.assertEqual(len(server.get("/jobs").jobs), len(numbers))
        self.assertEqual(server.delete("/jobs").status, 204)
        wait_until(lambda: server.children() == ([], []))
        self.assertEqual(server.run("echo again")["out"], "again\n")

    def test_accepting_takes_no_cpu_and_recovers(self):
        server = self.own_server(wrapper=limited("-n 40"))
        connections = [server.connect() for _ in range(80)]
        before = server.cpu()
        time.sleep(0.6)         # a span in which next to nothing may be done, not a wait for something
        self.assertLess(server.cpu() - before, 0.3)
        for connection in connections:
            connection.close()
        self.assertEqual(server.run("echo hi")["out"], "hi\n")

    def test_a_terminal_is_an_error_of_its_job(self):
        server = self.own_server(wrapper=limited("-n 32"))
        numbers = [server.start("sleep 99", "tty") for _ in range(12)]
        failed = wait_until(lambda: server.get("/jobs?state=complete&fields=exit").jobs)
        self.assertIn("too many open files", failed[0]["exit"])
        self.assertEqual(len(server.get("/jobs?fields=").jobs), len(numbers))
        self.assertEqual(server.delete("/jobs").status, 204)

    def test_a_connection_gets_an_answer(self):
        server = self.own_server(wrapper=limited("-n 32"))
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


class ProcessTest(Case):
    """Servers that are short of processes."""

    FAULTS = (("OSError(errno.EAGAIN, 'x')", "resource temporarily unavailable"), ("OSError(errno.ENOMEM, 'x')", "cannot allocate memory"),
              ("MemoryError()", "cannot allocate memory"), ("ValueError()", "invalid argument"))

    def test_a_job_that_cannot_be_started_completes_with_that_error(self):
        before = ("import errno, os, subprocess\nreal, popen = getattr(os, 'posix_spawn', None), subprocess.Popen\n"
                  "def fault():\n"
                  "    path = os.environ['TMPDIR'] + '/fault'\n"
                  "    if os.path.exists(path):\n"
                  "        with open(path) as file: raise eval(file.read())\n"
                  "def spawn(*args, **more):\n    fault(); return real(*args, **more)\n"
                  "def fork(*args, **more):\n    fault(); return popen(*args, **more)\n"
                  "subprocess.Popen = fork\n"
                  "if real: os.posix_spawn = spawn")
        server = self.own_server("-j", "1", program=patched(before=before))
        path = os.path.join(server.tmp, "fault")
        server.run("true")
        self.addCleanup(lambda: os.path.exists(path) and os.unlink(path))
        for query in ("", "tty", "cwd=/", "stdin"):
            for fault, text in self.FAULTS:
                server.run("true", query)
                server.settle()
                before = server.descriptors()
                with open(path, "w") as file:
                    file.write(fault)
                job = server.run("#!/bin/sh\n", query)
                os.unlink(path)
                self.assertEqual((job["exit"], job["exit_code"]), ("fork/exec /bin/sh: " + text, 126), (query, fault))
                wait_until(lambda: server.descriptors() <= before)
        self.assertEqual(server.run("echo hi")["out"], "hi\n")

    @need("setpriv")
    @unittest.skipIf(os.geteuid(), "needs root, to run as another user whose processes are counted")
    def test_a_job_that_takes_all_processes_of_its_user_can_be_killed(self):
        user = 54321        # which nothing else runs as
        server = self.own_server(wrapper=["setpriv", "--reuid=%d" % user, "--clear-groups", "--inh-caps=+dac_override",
                                          "--ambient-caps=+dac_override"] + limited("-u 30"))     # it may read all files
        number = server.start("for i in $(seq 100); do sleep 99 & done 2>/dev/null; echo full; wait")
        self.assertEqual(server.run("true", fields="exit")["state"], "complete")
        self.assertEqual(server.post("/jobs/%d/kill?signal=KILL" % number).status, 204)
        self.assertEqual(server.get("/jobs/%d?wait" % number).status, 200)
        wait_until(lambda: server.run("echo hi", fields="out").get("out") == "hi\n")

    def test_a_job_whose_output_cannot_be_watched_is_not_started(self):
        """When epoll(7) has no watch left, the job ran, unknown, and the server ended."""
        before = ("import errno, os, selectors\nbase = selectors.DefaultSelector\n"
                  "class Selector(base):\n"
                  "    def register(self, fileobj, events, data=None):\n"
                  "        path = os.environ['TMPDIR'] + '/fault'\n"
                  "        if os.path.exists(path) and os.readlink('/proc/self/fd/%d' % (fileobj if isinstance(fileobj, int) else fileobj.fileno())).startswith('pipe:'):\n"
                  "            raise OSError(errno.ENOSPC, 'x')\n"
                  "        return super().register(fileobj, events, data)\n"
                  "selectors.DefaultSelector = Selector")
        server = self.own_server(program=patched(before=before))
        server.run("true")
        server.settle()
        descriptors, path = server.descriptors(), os.path.join(server.tmp, "fault")
        with open(path, "w"):
            pass
        job = server.run("#!/bin/sh\ntouch %s/marker" % server.tmp)
        os.unlink(path)
        self.assertEqual((job["state"], job["exit"]), ("complete", "fork/exec /bin/sh: no space left on device"))
        wait_until(lambda: server.descriptors() <= descriptors and server.children() == ([], []))
        self.assertNotIn("marker", server.leftovers())
        self.assertEqual(server.run("echo hi")["out"], "hi\n")


GIVES_BACK = unittest.skipUnless(hasattr(ctypes.CDLL(None), "malloc_trim"),
                                 "needs malloc_trim(3), which this C library does not have")


class MemoryTest(Case):
    """Servers that are short of memory, and how memory is given back."""

    def test_the_oldest_output_is_dropped_and_the_server_goes_on(self):
        server = self.own_server("--max-output", "4G", "--max-total", "4G", wrapper=limited("-v 400000"))
        with contextlib.closing(server.client()) as client:
            job = server.post("/jobs?wait&fields=out_bytes,dropped,exit_code", "head -c 600M /dev/zero", client=client).job
            self.assertEqual((job["out_bytes"], job["exit_code"]), (600 << 20, 0))
            self.assertGreater(job["dropped"], 200 << 20)
            self.assertEqual(server.delete("/jobs", client=client).status, 204)

        def recovered():        # malloc gives back after a moment
            try:
                answer = server.post("/jobs?wait&fields=out", "echo hi")
            except OSError:
                return None
            return answer if answer.status == 201 else None
        self.assertEqual(wait_until(recovered).job["out"], "hi\n")

    def test_a_job_goes_on_when_the_address_space_is_full_for_a_while(self):
        import resource
        server = self.own_server()
        with contextlib.closing(server.client()) as client:
            number = server.start("echo ready; read go; echo $go", "stdin", client=client)
            wait_until(lambda: server.get("/jobs/%d/out" % number, client=client).body)
            limits = resource.prlimit(server.pid, resource.RLIMIT_AS)
            resource.prlimit(server.pid, resource.RLIMIT_AS, (1, limits[1]))
            with contextlib.suppress(OSError), server.connect() as connection:
                connection.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
                support.read_all(connection)
            client.close()
            resource.prlimit(server.pid, resource.RLIMIT_AS, limits)
        self.assertEqual(server.job(number, "fields=")["state"], "running")
        server.post("/jobs/%d/stdin" % number, "on\n")
        self.assertEqual(server.job(number, "wait")["out"], "ready\non\n")

    @GIVES_BACK
    def test_the_memory_of_deleted_jobs_goes_back_to_the_host(self):
        server = self.own_server("--max-total", "1G")
        server.run("echo small")
        before = server.rss()
        numbers = [server.start("for i in 1 2 3; do head -c 10M /dev/zero; echo >&2; done", "timeout=86400") for _ in range(8)]
        for number in numbers:
            server.get("/jobs/%d?wait&fields=" % number)
        self.assertGreater(server.rss(), before + (200 << 20))
        server.run("echo small, too")           # its output lies behind theirs
        server.delete("/jobs")
        wait_until(lambda: server.rss() < before + (16 << 20))

    @GIVES_BACK
    def test_the_memory_of_large_scripts_goes_back_to_the_host(self):
        server = self.own_server()
        server.run("echo small")
        server.delete("/jobs")
        before, script = server.rss(), "exit\n" + "#" * (8 << 20)
        for _ in range(2):
            in_parallel(lambda _: server.run(script, "", ""), range(12))
            self.assertEqual(len(server.get("/jobs?fields=").jobs), 12)
            server.delete("/jobs")
            wait_until(lambda: server.rss() < before + (32 << 20))

    @GIVES_BACK
    def test_no_output_waits_for_the_garbage_collector(self):
        """A job that had been held back for a follower kept its output in a cycle."""
        server = self.own_server("--max-output", "16M", program=patched("import gc; gc.enable = lambda: None; gc.disable()"))
        server.run("echo small")
        before = server.rss()
        for _ in range(3):
            number = server.start("read go; head -c 64M /dev/zero", "stdin")
            with server.send(b"GET /jobs/%d/out?follow HTTP/1.1\r\n%b\r\n" % (number, AUTH)) as slow:
                slow.recv(1)
                server.post("/jobs/%d/stdin" % number, "go\n")
                self.assertGreater(server.job(number, "wait&fields=dropped")["dropped"], 0)
        server.run("echo small, too")
        server.delete("/jobs")
        wait_until(lambda: server.rss() < before + (16 << 20))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10)
    for number in range(parser.parse_args().starts):
        storm = Storm()
        try:
            faults = storm.run()
        finally:
            storm.server.close()
        print("start %d: %d jobs, %s" % (number, len(storm.accepted), faults or "nothing found"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
