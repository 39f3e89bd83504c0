"""Jobs as processes: started, caught, ended, bounded."""
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
import unittest.mock

import support
import rtot
from support import Follower, ServerCase, is_alive, need, wait_until


class ScriptTest(ServerCase):

    def test_a_script_without_a_first_line_is_run_by_bash(self):
        job = self.server.run("echo $BASH_VERSION; echo $0")
        self.assertRegex(job["out"], r"^[0-9]+\.[^\n]*\n/[^\n]*\n$")
        self.assertEqual(job["script"], "#!/bin/bash\necho $BASH_VERSION; echo $0")

    def test_a_first_line_names_the_interpreter_and_one_argument(self):
        self.assertEqual(self.server.run("#!/bin/sh -eu\necho $-\n")["out"].strip().replace("h", ""), "ue")
        self.assertRegex(self.server.run("#!/bin/echo a  b \n")["out"], "^a  b /[^ ]*\n$")      # one, blanks and all

    def test_no_final_newline_is_fine(self):
        self.assertEqual(self.server.run("#!/bin/echo")["exit_code"], 0)

    def test_a_relative_interpreter_is_relative_to_the_working_directory(self):
        os.symlink("/bin/sh", os.path.join(self.server.tmp, "mysh"))
        self.addCleanup(os.unlink, os.path.join(self.server.tmp, "mysh"))
        for name in ("mysh", "./mysh"):
            job = self.server.run("#!%s\necho hi" % name, "cwd=" + self.server.tmp)
            self.assertEqual((job["out"], job.get("exit")), ("hi\n", None))
        self.assertEqual(self.server.run("#!sh\necho hi")["exit"], "fork/exec sh: no such file or directory")

    def test_an_interpreter_that_is_missing_is_told_as_go_tells_it(self):
        self.server.run("true")
        (directory,) = self.server.leftovers()
        before = os.listdir(os.path.join(self.server.tmp, directory))
        job = self.server.run("#!/no/such\n")
        self.assertEqual((job["exit"], job["exit_code"], job["state"]),
                         ("fork/exec /no/such: no such file or directory", 127, "complete"))
        self.assertEqual(job["start"], "0001-01-01 00:00:00 +0000 UTC")
        self.assertLessEqual(set(os.listdir(os.path.join(self.server.tmp, directory))), set(before))    # no script stays

    def test_an_interpreter_that_may_not_be_run_is_told_as_go_tells_it(self):
        job = self.server.run("#!/etc/passwd\n")
        self.assertEqual((job["exit"], job["exit_code"]), ("fork/exec /etc/passwd: permission denied", 126))

    def test_a_first_line_without_an_interpreter_is_an_exec_format_error(self):
        job = self.server.run("#!\necho hi")
        self.assertRegex(job["exit"], "^fork/exec /.*: exec format error$")
        self.assertEqual(job["exit_code"], 126)

    def test_a_first_line_of_nothing_ends_its_job_alone(self):
        """posix_spawn took that for a mistake of ours, and the server ended with all its jobs."""
        other = self.server.start("sleep 99")
        for script in (b"#!", b"#!\0", b"#! "):
            job = self.server.run(script)
            self.assertRegex(job["exit"], "^fork/exec .*: permission denied$")
            self.assertEqual((job["exit_code"], "--data-binary" in job["err"]), (126, True))
        self.assertEqual(self.server.job(other)["state"], "running")        # started before those, in their order
        self.server.delete("/jobs/%d" % other)

    def test_a_script_whose_newlines_were_stripped_is_told_about_data_binary(self):
        for script, code in (("#!/bin/bashecho hi", 127), ("#!/usr/bin/env bashecho hi", 127),
                             ("#!/usr/bin/env /etc/passwd", 126)):      # there, but not to be executed
            job = self.server.run(script)
            self.assertEqual(job["exit_code"], code)
            self.assertIn("--data-binary", job["err"])

    def test_a_script_with_dos_line_ends_is_told_about_the_carriage_return(self):
        job = self.server.run("#!/bin/sh\r\necho hi\r\n")
        self.assertEqual(job["exit"], "fork/exec /bin/sh\r: no such file or directory")
        self.assertIn("carriage return", job["err"])

    def test_a_script_of_any_bytes_is_run_as_it_is(self):
        script = b"#!/usr/bin/tail -n+2\n" + bytes(bytearray(range(256))) * 40
        number = self.server.post("/jobs?wait", script).job["id"]
        self.assertEqual(self.server.out(number), script.partition(b"\n")[2])
        self.assertEqual(self.server.get("/jobs/%d/script" % number).body, script)

    def test_a_script_that_somebody_has_open_for_writing_runs(self):
        """To execute it would be ETXTBSY, text file busy: so its interpreter is what is executed."""
        server = self.own_server("-j", "1")
        first, second = server.start("read line", "stdin"), server.start("echo $0")
        (directory,) = server.leftovers()
        paths = [os.path.join(server.tmp, directory, name) for name in os.listdir(os.path.join(server.tmp, directory))]
        self.assertEqual(len(paths), 2)
        files = [open(path, "ab") for path in paths]
        server.post("/jobs/%d/stdin" % first, "\n")
        self.assertIn(server.job(second, "wait")["out"].rstrip("\n"), paths)
        for file in files:
            file.close()

    def test_the_script_stays_until_it_has_exited_and_not_longer(self):
        number = self.server.start("read -t 60 line; cat $0 | wc -l; echo $line $0", "stdin")
        self.server.post("/jobs/%d/stdin?eof" % number, "go\n")
        job = self.server.get("/jobs/%d?wait" % number).job
        lines = job["out"].split("\n")
        self.assertEqual((lines[0].strip(), lines[1].split()[0]), ("1", "go"))
        self.assertFalse(os.path.exists(lines[1].split()[1]))


class EnvironmentTest(ServerCase):

    def setUp(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))

    def test_a_job_has_descriptors_0_1_and_2_only(self):
        self.server.start("sleep 60")       # another job, with descriptors of its own
        for query in ("", "cwd=/"):         # which are started in two ways
            out = self.server.run("exec ls -l /proc/self/fd", query)["out"]
            self.assertRegex(out, r"^total 0\n.* 0 -> /dev/null\n.* 1 -> (pipe:.*)\n.* 2 -> (?!\1\n)pipe:.*\n"
                                  r".* 3 -> /proc/.*\n$")

    def test_a_job_does_not_inherit_what_the_server_was_started_with(self):
        server = self.own_server(wrapper=["bash", "-c", 'exec 7</etc/passwd; exec "$@"', "bash"])
        self.assertNotIn("passwd", server.run("ls -l /proc/self/fd /proc/$$/fd")["out"])

    def test_a_job_has_default_signals_and_an_empty_mask_even_under_nohup(self):
        ignore = ["bash", "-c", "trap '' HUP INT QUIT PIPE TSTP USR1; exec \"$@\"", "bash"]
        script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; trap"
        internal = 3 << 31      # 32 and 33 are glibc's own: nobody can set them (signal(7))
        for server in (self.server, self.own_server(wrapper=ignore)):
            for query in ("", "cwd=/"):
                out = server.run(script, query)["out"].split()
                self.assertEqual((out[0], out[2], len(out)), ("SigBlk:", "SigIgn:", 4), out)
                self.assertEqual((int(out[1], 16), int(out[3], 16) & ~internal), (0, 0), out)

    def test_what_the_server_was_started_with_blocked_is_not_blocked_in_a_job(self):
        block = [sys.executable, "-c", "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, "
                 "signal.SIGTERM, signal.SIGCHLD]); os.execv(sys.argv[1], sys.argv[1:])"]
        server = self.own_server(wrapper=block)
        for query in ("", "cwd=/"):
            self.assertEqual(int(server.run("grep ^SigBlk /proc/self/status", query)["out"].split()[1], 16), 0)

    def test_a_broken_pipe_ends_a_writer(self):
        self.assertEqual(self.server.run("yes | head -n 1; echo ${PIPESTATUS[0]}")["out"], "y\n141\n")

    def test_what_is_meant_for_the_server_is_not_in_the_environment_of_a_job(self):
        server = self.own_server(secret=None, env={"RTOT_SECRET": "swordfish", "RTOT_ADDR": "nowhere:1",
                                                   "RTOT_LOG_FORMAT": "text", "OTHER": "x"})
        server.secret = "swordfish"
        out = server.run("env")["out"]
        self.assertIn("OTHER=x", out)
        self.assertNotIn("swordfish", out)
        self.assertNotIn("RTOT_", out)

    def test_standard_input_is_empty_unless_asked_for(self):
        self.assertEqual(self.server.run("read x; echo $?; cat")["out"], "1\n")

    def test_standard_input_is_never_that_of_the_server(self):
        with tempfile.TemporaryFile() as file:
            file.write(b"of the server\n")
            file.seek(0)
            server = self.own_server(stdin=file)
            for query in ("", "cwd=/"):
                self.assertEqual(server.run("readlink /proc/self/fd/0; cat", query)["out"], "/dev/null\n")

    def test_where_posix_spawn_makes_no_session_jobs_are_forked(self):
        """It says so by NotImplementedError, where the C library has no POSIX_SPAWN_SETSID."""
        code = ("import os, rtot, sys\ndef spawn(*args, **more): raise NotImplementedError\n"
                "os.posix_spawn, os.POSIX_SPAWN_DUP2 = spawn, 1     # also where this Python has none\n"
                "sys.exit(rtot.main())")
        server = self.own_server(program=["-c", code], cwd=support.ROOT)
        for _ in range(2):
            job = server.run("echo hi; cut -d' ' -f6 /proc/$$/stat")
            self.assertEqual(job["out"], "hi\n%d\n" % job["pid"])

    def test_the_limit_of_descriptors_is_the_one_that_the_server_was_given(self):
        server = self.own_server(wrapper=["bash", "-c", 'ulimit -Sn 300; exec "$@"', "bash"])
        numbers = [server.start("ulimit -Sn", query) for query in ("", "cwd=/") for _ in range(60)]
        self.assertEqual({server.job(number, "wait")["out"] for number in numbers}, {"300\n"})
        connections = [server.connect() for _ in range(320)]       # more than that, which the server may have
        wait_until(lambda: server.threads() > 300)
        self.assertEqual(server.run("sleep 0.1; ulimit -Sn")["out"], "300\n")
        for connection in connections:
            connection.close()

    def test_a_job_leads_a_session_of_its_own(self):
        for query in ("", "cwd=/"):
            job = self.server.run("ps -o pid=,pgid=,sid= -p $$ || cut -d' ' -f1,5,6 /proc/$$/stat", query)
            self.assertEqual(job["out"].split(), [str(job["pid"])] * 3)

    def test_shapes_a_job_by_arg_env_cwd_and_label(self):
        job = self.server.run('printf "<%s>" "$@"; echo "$A|$B"; pwd',
                              "arg=1&arg=two+words&arg=%C3%A9%FF&env=A=x%3Dy&env=B=&cwd=/usr&label=night;ly")
        self.assertEqual(job["out"], "<1><two words><\u00e9\ufffd>x=y|\n/usr\n")
        self.assertEqual((job["args"], job["cwd"], job["label"]),
                         (["1", "two words", "\u00e9\ufffd"], "/usr", "night;ly"))


class CaptureTest(ServerCase):

    def test_standard_output_and_error_are_apart_and_in_order_in_the_log(self):
        job = self.server.job(self.server.print_in_turn("o1 e1 o2 e2 o3 e3".split()))
        self.assertEqual((job["out"], job["err"]), ("o1\no2\no3\n", "e1\ne2\ne3\n"))
        self.assertEqual(self.server.get("/jobs/%d/log" % job["id"]).body, b"o1\ne1\no2\ne2\no3\ne3\n")

    def test_shows_what_was_printed_so_far_while_it_runs(self):
        number = self.server.start("echo ready; echo e >&2; read line; echo $line", "stdin")
        self.server.wait_for_out(number, b"ready\n")
        wait_until(lambda: self.server.get("/jobs/%d/err" % number).body == b"e\n")
        answer = self.server.get("/jobs/%d" % number)
        self.assertEqual((answer.status, answer.job["state"], answer.job["out"]), (202, "running", "ready\n"))
        self.server.post("/jobs/%d/stdin" % number, "steady\n")
        answer = self.server.get("/jobs/%d?wait" % number)
        self.assertEqual((answer.status, answer.job["out"]), (200, "ready\nsteady\n"))

    def test_output_that_comes_after_the_exit_is_waited_for(self):
        code = "import rtot, sys; rtot.HELD_AFTER = 60; sys.exit(rtot.main())"
        job = self.own_server(program=["-c", code], cwd=support.ROOT).run("(sleep 0.2; echo late) & echo early")
        self.assertEqual((job["out"], job["held"]), ("early\nlate\n", False))

    def test_many_that_close_their_output_and_live_on_are_complete_when_they_end(self):
        numbers = [self.server.start("exec >&- 2>&-; sleep 1; exit 7") for _ in range(rtot.MANY_SILENT + 10)]
        self.assertEqual(self.server.run("exit 3")["exit_code"], 3)
        for number in numbers:
            self.assertEqual(self.server.get("/jobs/%d/exit?wait" % number).body, b"7\n")

    def test_an_exit_that_comes_after_the_output_is_waited_for(self):
        job = self.server.run("exec >&- 2>&-; sleep 0.3; exit 7")
        self.assertEqual(job["exit_code"], 7)
        self.assertGreater(job["duration"], 0.25)

    def test_what_is_left_in_the_background_does_not_hold_the_job(self):
        job = self.server.run("sleep 99 & echo $!")
        self.assertTrue(job["held"])
        self.assertLess(job["duration"], 20)
        pid = int(job["out"])
        self.assertTrue(is_alive(pid))
        self.assertEqual(self.server.post("/jobs/%d/kill" % job["id"]).status, 204)
        wait_until(lambda: not is_alive(pid))
        wait_until(lambda: not self.server.job(job["id"])["held"])

    def test_what_is_held_is_still_captured(self):
        gate = os.path.join(self.server.tmp, "gate")
        job = self.server.run("(until [ -e %s ]; do sleep 0.02; done; echo later) & echo now" % gate)
        self.assertEqual((job["out"], job["held"]), ("now\n", True))
        open(gate, "w").close()
        self.server.wait_for_out(job["id"], b"now\nlater\n")
        os.unlink(gate)

    def test_a_flood_from_the_background_keeps_neither_the_job_nor_its_follower(self):
        """At the pace of a follower that keeps up it went on for ever: the job was not complete while it was waited for."""
        for pause in (0.05, 0.004):         # s for 256 KiB at most: too slow to be waited for, and just quick enough
            with self.subTest(pause=pause), self.server.connect() as connection:
                script = b"yes &\nexit 3"
                connection.sendall(b"POST /jobs?follow HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n"
                                   b"Content-Length: %d\r\n\r\n%b" % (len(script), script))
                data = connection.recv(1 << 18)
                number = int(re.search(b"/jobs/([0-9]+)", data).group(1))
                self.addCleanup(self.server.post, "/jobs/%d/kill?signal=KILL" % number)
                deadline = time.monotonic() + support.LIMIT
                while b"Rtot-Exit: " not in data:
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(pause)
                    data = data[-100:] + connection.recv(1 << 18)
                self.assertIn(b"Rtot-Exit: 3\r\n", data)
                job = self.server.job(number, "fields=exit_code,held")
                self.assertEqual((job["exit_code"], job["held"]), (3, True))

    def test_deleting_a_complete_job_leaves_its_background_alone_and_its_output_flows(self):
        job = self.server.run("(for i in $(seq 20000); do echo a line of some length; done; sleep 99) & echo $!")
        self.assertTrue(job["held"])
        pid = int(job["out"].split("\n")[0])
        self.assertEqual(self.server.delete("/jobs/%d" % job["id"]).status, 204)
        def has_printed_all():      # the last command of a subshell takes its place
            with open("/proc/%d/cmdline" % pid) as file:
                return file.read().startswith("sleep")
        wait_until(has_printed_all)
        self.assertTrue(is_alive(pid))

    def test_exit_codes_and_signals_are_told_as_go_tells_them(self):
        for script, text, code in (("exit 0", None, 0), ("exit 3", "exit status 3", 3), ("kill -9 $$", "signal: killed", 137),
                                   ("kill -TERM $$", "signal: terminated", 143), ("exit 256", None, 0),
                                   ("kill -USR1 $$", "signal: user defined signal 1", 138)):
            job = self.server.run(script)
            self.assertEqual((job.get("exit"), job["exit_code"]), (text, code))

    def test_a_core_dump_is_told(self):
        job = self.server.run("ulimit -c unlimited; cd %s; kill -SEGV $$" % self.server.tmp)
        for name in os.listdir(self.server.tmp):
            if name.startswith("core"):
                os.unlink(os.path.join(self.server.tmp, name))
        self.assertRegex(job["exit"], r"^signal: segmentation fault( \(core dumped\))?$")
        self.assertEqual(job["exit_code"], 139)

    def test_no_status_is_lost_or_stolen_among_many(self):
        def jobs(base):
            for code in range(base, base + 30):
                results.append(self.server.run("exit %d" % code)["exit_code"] == code)
        results = []
        threads = [threading.Thread(target=jobs, args=(base,)) for base in range(0, 240, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, [True] * 240)


def children_of(pid):
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


FAMILY = """
bash -c 'trap "" TERM; bash -c "sleep 98 & wait" >/dev/null 2>&1 & echo $!; echo $$; sleep 99' &
echo $!; sleep 99 & echo $!
wait
"""


class StopTest(ServerCase):

    def family(self, query=""):
        """Start a script with children and grandchildren of which one ignores TERM; return (number, pids)."""
        number = self.server.start(FAMILY, query)
        lines = wait_until(lambda: self.server.out(number).count(b"\n") == 4 and self.server.out(number).split())
        return number, [self.server.job(number)["pid"]] + [int(line) for line in lines]

    def assertGone(self, pids):
        wait_until(lambda: not any(is_alive(pid) for pid in pids), "the end of %s" % pids)

    def test_deleting_a_running_job_ends_its_whole_group(self):
        number, pids = self.family()
        self.assertEqual(self.server.delete("/jobs/%d" % number).status, 204)
        self.assertEqual(self.server.get("/jobs/%d" % number).status, 404)
        self.assertGone(pids)

    def test_kill_sends_term_and_after_the_grace_kill_to_the_whole_group(self):
        number, pids = self.family()
        self.assertEqual(self.server.post("/jobs/%d/kill?grace=0.3" % number).status, 204)
        job = self.server.get("/jobs/%d?wait&fields=all" % number).job
        self.assertEqual((job["exit"], job["exit_code"], job["timed_out"]), ("signal: terminated", 143, False))
        self.assertGone(pids)

    def test_a_timeout_ends_children_and_grandchildren_of_which_one_ignores_term(self):
        number, pids = self.family("timeout=1")
        job = self.server.get("/jobs/%d?wait&fields=all" % number).job
        self.assertEqual((job["timed_out"], job["exit_code"], job["timeout"]), (True, 143, 1.0))
        self.assertGone(pids)

    def test_a_time_of_years_is_taken(self):
        """epoll_wait(2) takes no more than 24 days."""
        number = self.server.start("read line; sleep 99", "stdin&timeout=999999999")
        self.server.post("/jobs/%d/stdin" % number, "\n")
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        self.assertEqual(self.server.post("/jobs/%d/kill?signal=CONT&grace=999999999" % number).status, 204)
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        pid = self.server.job(number)["pid"]
        self.server.post("/jobs/%d/kill?signal=KILL" % number)
        self.server.get("/jobs/%d?wait" % number)
        wait_until(lambda: support.process_state(pid) == "X", "the reaping of one that needs no SIGKILL any more")

    def test_a_job_that_ends_in_time_did_not_time_out(self):
        job = self.server.run("exit 4", "timeout=60")
        self.assertEqual((job["timed_out"], job["exit_code"]), (False, 4))

    def test_what_is_in_a_group_of_its_own_dies_too(self):
        """timeout(1) and set -m make one; only what leaves the session stays."""
        for stop in ("kill", "delete", "timeout", "held"):
            number = self.server.start("timeout 98 bash -c 'echo $$; exec sleep 97' & set -m; (echo $BASHPID; exec sleep 96) & "
                                       + ("exit" if stop == "held" else "wait"), "timeout=0.3" if stop == "timeout" else "")
            pids = wait_until(lambda: self.server.out(number).count(b"\n") == 2 and self.server.out(number).split())
            if stop == "held":
                self.assertTrue(self.server.job(number, "wait&fields=held")["held"])
            if stop == "delete":
                self.server.delete("/jobs/%d" % number)
            elif stop != "timeout":
                self.assertEqual(self.server.post("/jobs/%d/kill" % number).status, 204)
            wait_until(lambda: not any(is_alive(int(pid)) for pid in pids), stop)

    def test_a_group_that_forks_without_a_pause_is_killed(self):
        """It is in no list of processes, so it seemed to be gone, and the SIGKILL to come was given up."""
        path = os.path.join(self.server.tmp, "comet")
        code = ("import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); end = time.time() + 100\n"
                "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
                "while time.time() < end:\n    if os.fork(): os._exit(0)\n    os.write(fd, b'.')")
        self.addCleanup(os.unlink, path)
        number = self.server.start('%s -c "$1" "$2" >/dev/null 2>&1 & echo begun; sleep 99' % sys.executable,
                                   urllib.parse.urlencode([("arg", code), ("arg", path)]))
        wait_until(lambda: os.path.exists(path) and os.path.getsize(path) > 100)
        self.server.post("/jobs/%d/kill?grace=600" % number)
        self.assertEqual(self.server.job(number, "wait&fields=exit_code")["exit_code"], 143)

        def quiet():
            size = os.path.getsize(path)
            time.sleep(0.3)         # a span in which it would fork a hundred times, not a wait for something
            return os.path.getsize(path) == size
        wait_until(quiet)

    def test_term_lets_a_script_clean_up(self):
        number = self.server.start("trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.05; done")
        self.server.wait_for_out(number, b"ready\n")
        self.server.post("/jobs/%d/kill" % number)
        job = self.server.get("/jobs/%d?wait&fields=all" % number).job
        self.assertEqual((job["out"], job["exit_code"]), ("ready\nbye\n", 9))

    def test_kill_sends_just_the_signal_that_is_named(self):
        number = self.server.start("trap 'echo int' INT; trap 'echo usr; exit 0' USR1; echo ready; "
                                   "while :; do sleep 0.05; done")
        self.server.wait_for_out(number, b"ready\n")
        for name in ("INT", "SIGINT", "2", "int"):
            count = self.server.out(number).count(b"int\n")
            self.assertEqual(self.server.post("/jobs/%d/kill?signal=%s" % (number, name)).status, 204)
            wait_until(lambda: self.server.out(number).count(b"int\n") > count)
        self.server.post("/jobs/%d/kill?signal=USR1" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait&fields=all" % number).job["exit_code"], 0)

    def test_a_named_signal_with_a_grace_is_followed_by_kill(self):
        number = self.server.start("trap '' INT; echo ready; while :; do sleep 0.05; done")
        self.server.wait_for_out(number, b"ready\n")
        self.server.post("/jobs/%d/kill?signal=INT&grace=0.2" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait&fields=all" % number).job["exit"], "signal: killed")

    def test_a_stopped_job_dies_too(self):
        number = self.server.start("echo ready; kill -STOP $$; sleep 99")
        self.server.wait_for_out(number, b"ready\n")
        pid = self.server.job(number)["pid"]
        wait_until(lambda: support.process_state(pid) == "T")
        self.server.post("/jobs/%d/kill" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait&fields=all" % number).job["exit"], "signal: terminated")

    def test_there_is_nothing_to_kill_in_a_complete_job(self):
        job = self.server.run("true")
        self.assertError(self.server.post("/jobs/%d/kill" % job["id"]), 409, "complete")

    def test_no_zombie_and_no_descriptor_stays(self):
        wait_until(lambda: self.server.children() == ([], []), "no children")
        before = self.server.descriptors()
        for query in ("", "stdin", "tty"):
            self.server.run("true", query)
        self.server.run("#!/no/such")
        number = self.server.start("sleep 99")
        self.server.post("/jobs/%d/kill?signal=KILL" % number)
        wait_until(lambda: self.server.children() == ([], []), "no children")
        wait_until(lambda: self.server.descriptors() <= before, "%d descriptors" % before)

    def test_two_that_end_at_the_same_moment_are_both_seen(self):
        """Their signals are one: who is asked first, since his output had ended, may not be all."""
        server = self.own_server()
        before = len(server.pipes())
        silent = server.start("exec >&- 2>&-; sleep 99")
        held = server.start("setsid sleep 99 & echo $!; sleep 99")
        pid = int(server.wait_for_out(held, b"\n"))
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        leaders = [server.job(number)["pid"] for number in (silent, held)]
        wait_until(lambda: server.descriptors_of(leaders[0]) == ["/dev/null"])
        wait_until(lambda: len(server.pipes()) == before + 2)      # those of the other
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for leader in leaders:
                os.kill(leader, signal.SIGKILL)
                wait_until(lambda: not is_alive(leader))
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for number in (silent, held):
            self.assertEqual(server.get("/jobs/%d?wait=10" % number).job["exit"], "signal: killed")

    def test_a_zombie_that_pins_its_group_hides_no_other_end(self):
        held = self.server.run("sleep 99 & true")
        self.assertEqual([self.server.run("exit 5")["exit_code"] for _ in range(5)], [5] * 5)
        self.server.post("/jobs/%d/kill?signal=KILL" % held["id"])


class MomentTest(unittest.TestCase):
    """What happens at the same moment as something else."""

    def setUp(self):
        self.runner = rtot.Runner(rtot.JobStore(0, 1000), 0, 1000)
        self.process = rtot.Process(rtot.Job(b"", rtot.PLAIN, 1000), None)
        self.process.pid = os.getpid()

    def test_one_that_has_ended_but_is_not_reaped_was_in_time(self):
        self.runner._peek = lambda kind, number: True
        self.runner._time_out(self.process)
        self.process.ended, self.runner._peek = ("", 0), lambda kind, number: None
        self.runner._time_out(self.process)
        self.assertFalse(self.process.job.timed_out)

    def test_one_whose_output_ends_while_it_is_looked_at_is_not_looked_at_again(self):
        self.process.paused, self.process.printed = ([], 0, 0), 1 << 20
        self.process.ended = ("", 0)
        self.runner._held(self.process)         # its pipes are closed, and it is reaped
        self.assertEqual(self.runner._timers, [])

    def test_a_follower_that_catches_up_while_it_is_looked_at_ends_no_reading(self):
        """The job was complete with output in its pipe that nobody had read."""
        class Quick(rtot.Reader):
            def endangered(self, count):
                endangered = super().endangered(count)
                self.read(1000)
                return endangered
        job = rtot.Job(b"", rtot.PLAIN, 20)
        self.process.job = job
        fd, end = os.pipe()
        for each in (fd, end):
            self.addCleanup(os.close, each)
        os.set_blocking(fd, False)
        self.process.pipes[fd] = rtot.OUT
        self.runner._selector.register(fd, 1, (self.runner._read, self.process))
        job.output.readers.append(Quick(job.output, rtot.OUT, [0, 0]))
        os.write(end, b"x" * 80)
        self.runner._drain(self.process)
        self.assertEqual((job.output.end, job.output.readers[0].lost), (80, 0))


class Done(Exception):
    """What was waited for has come true: leave the loop."""


class LoopTest(unittest.TestCase):
    """What the loop does with a process; its signals are noted here and not sent."""

    def test_a_want_of_memory_while_a_follower_is_waited_for_stops_no_reading(self):
        for name in ("after", "_watch", "_unwatch", "_relieve"):
            with self.subTest(name=name):
                self.setUp()
                reading, writing = self.pipe()
                self.process.pipes[reading] = rtot.OUT
                self.runner._watch(self.process, reading)
                self.job.output.readers.append(rtot.Reader(self.job.output, None, [0, 0]))      # which reads nothing
                os.write(writing, b"x" * 5000)
                after, real, failed = self.runner.after, getattr(self.runner, name), []

                def once(*args, real=real, failed=failed):
                    if not failed:
                        failed.append(name)
                        raise MemoryError
                    return real(*args)

                def look(after=after):
                    if self.job.output.end == 5000:
                        raise Done
                    after(0.01, look)

                def give_up():
                    raise AssertionError("%d bytes were read" % self.job.output.end)

                def want():
                    raise MemoryError
                after(0, look)
                after(support.LIMIT, give_up)
                if name == "_relieve":
                    after(0, want)
                setattr(self.runner, name, once)
                self.assertRaises(Done, self.runner.run)
                self.assertTrue(failed)

    def setUp(self):
        self.store = rtot.JobStore(1, 1000)
        self.runner = rtot.Runner(self.store, 0, 1000)
        self.process = rtot.Process(self.new_job(), None)
        self.job = self.process.job
        self.job.run(1)
        self.process.pid = 1 << 30          # that no process has
        self.runner._processes[self.job.id] = self.runner._by_pid[self.process.pid] = self.process
        self.runner._active = 1
        self.sent = []
        self.runner._signal = lambda process, number: self.sent.append(number) or True

    def new_job(self):
        job = rtot.Job(b"#!/bin/sh\n", rtot.PLAIN, 1000)
        self.store.add(job)
        return job

    def pipe(self):
        """Return both ends of a pipe, of which neither waits."""
        ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
            self.addCleanup(os.close, end)
        return ends

    def held_pipe(self):
        """Give the process, which has ended, an output that something still holds; return its other end."""
        fd, end = self.pipe()
        self.process.pipes[fd] = rtot.OUT
        self.process.ended, self.process.printed = ("", 0), 0
        return end

    def test_input_that_did_not_fit_at_once_is_watched_only_until_it_has_been_written(self):
        """To be told for ever that there is room would take all of a processor."""
        fd, self.process.input = self.pipe()
        reply, size = rtot.Reply(), 300000
        self.runner._feed(self.job, memoryview(b"x" * size), False, reply)
        self.assertIn(self.process.input, self.runner._selector.get_map())
        while size:
            size -= len(os.read(fd, size))
            self.runner._write(self.process, self.process.input)
        self.assertTrue(reply.wait(0))
        self.assertNotIn(self.process.input, self.runner._selector.get_map())

    def test_a_terminal_that_has_no_other_side_is_not_watched(self):
        terminal, other = os.openpty()
        os.set_blocking(terminal, False)
        self.process.pipes[terminal], self.process.terminal = rtot.OUT, terminal
        self.runner._selector.register(terminal, 1, (self.runner._read, self.process))
        os.close(other)
        self.assertEqual(self.runner._read(self.process, terminal), 0)
        self.assertNotIn(terminal, self.runner._selector.get_map())

    def test_what_is_in_the_pipe_of_a_held_job_is_read_before_it_is_complete(self):
        os.write(self.held_pipe(), b"x" * 100)
        self.runner._held(self.process)
        self.assertEqual((self.job.state, self.job.output.end), ("complete", 100))

    def test_a_job_that_is_held_back_for_a_follower_is_complete_when_its_own_output_was_read(self):
        self.held_pipe()
        self.process.paused, self.runner._drain = ([], 0, 0), lambda process: None
        self.process.printed = 1
        self.runner._held(self.process)
        self.assertEqual((self.job.state, len(self.runner._timers)), ("running", 1))
        self.process.printed = 0
        self.runner._held(self.process)
        self.assertEqual((self.job.state, self.job.held, len(self.runner._timers)), ("complete", True, 1))

    def test_the_seconds_are_those_that_the_readme_promises(self):
        self.assertEqual((rtot.GRACE, rtot.HELD_AFTER), (5.0, 0.5))

    def test_a_second_signal_never_prolongs_the_grace_and_may_shorten_it(self):
        now = time.monotonic()
        with unittest.mock.patch.object(time, "monotonic", lambda: now):
            for grace, until in ((5, 5), (9, 5), (1, 1)):
                self.runner._terminate(self.process, grace)
                self.assertEqual([timer.when for timer in self.runner._timers], [now + until])

    def test_a_stop_sends_term_to_all_and_kill_after_the_grace(self):
        now = time.monotonic()
        with unittest.mock.patch.object(time, "monotonic", lambda: now):
            self.runner._stop()
        self.assertEqual(self.sent, [signal.SIGTERM, signal.SIGCONT])       # the latter for one that is stopped
        timer = self.process.killing
        self.assertEqual((timer.when, timer.function), (now + 5, self.runner._kill_group))

    def test_a_stop_does_not_wait_for_ever_for_what_does_not_end(self):
        self.runner.stopping, self.runner._stop_by = True, time.monotonic() + 600
        self.assertFalse(self.runner._finished())
        self.runner._stop_by = 0
        self.assertTrue(self.runner._finished())
        self.runner.run()
        self.assertEqual(self.sent, [signal.SIGKILL])

    def test_a_fault_of_the_loop_leaves_no_job_behind(self):
        self.runner.after(0, lambda: 1 // 0)
        self.assertRaises(ZeroDivisionError, self.runner.run)
        self.assertEqual(self.sent, [signal.SIGKILL])

    def test_a_job_that_comes_during_the_stop_is_never_started(self):
        job, self.runner.stopping = self.new_job(), True
        self.runner._submit(job, rtot.Script(b"/no/such/script"))
        self.assertEqual((job.state, job.exit_code, job.exit), ("complete", 126, rtot.CANCELED))

    def test_a_job_that_makes_room_for_another_gives_its_share_of_the_output_back(self):
        self.runner._captured(self.process, rtot.OUT, b"x" * 400)
        self.runner._complete(self.job, "", 0)
        self.assertEqual(self.runner._total, 400)
        other = self.new_job()
        other.run(2)
        self.runner._complete(other, "", 0)         # more than one is not kept
        self.assertEqual((self.runner._total, len(self.runner._kept)), (0, 0))

    def test_no_timer_holds_a_job_that_has_ended(self):
        """The output of one with a timeout of a day would stay in memory for that day, deleted or not."""
        self.runner.after(86400, self.runner._time_out, self.process)
        self.process.ended = ("", 0)
        with unittest.mock.patch.object(os, "waitpid"):
            self.runner._settle(self.process)
        self.assertEqual((self.job.state, self.runner._timers, self.runner._processes), ("complete", [], {}))


class ParallelTest(ServerCase):
    options = ("-j", "2")

    def setUp(self):
        wait_until(lambda: self.server.children() == ([], []))

    def test_runs_so_many_at_a_time_and_the_rest_first_come_first_served(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))
        numbers = [self.server.start("read line; date +%s%N", "stdin") for _ in range(5)]
        wait_until(lambda: self.server.job(numbers[1])["state"] == "running")
        states = [self.server.job(number)["state"] for number in numbers]
        self.assertEqual(states, ["running", "running", "new", "new", "new"])
        self.server.delete("/jobs/%d" % numbers[2])
        for number in (numbers[1], numbers[0], numbers[3], numbers[4]):
            wait_until(lambda: self.server.job(number)["state"] == "running")
            self.server.post("/jobs/%d/stdin" % number, "\n")
            self.server.get("/jobs/%d?wait" % number)
        starts = [self.server.job(number)["start"] for number in (numbers[3], numbers[4])]
        self.assertEqual(starts, sorted(starts))
        self.assertEqual(self.server.get("/jobs/%d" % numbers[2]).status, 404)

    def test_one_that_waits_runs_though_the_temporary_directory_was_cleaned(self):
        server = self.own_server("-j", "1")
        first = server.start("echo ready; read go", "stdin")
        server.wait_for_out(first, b"ready")
        numbers = [server.start("echo %d" % number) for number in range(3)]
        for name in server.leftovers():
            shutil.rmtree(os.path.join(server.tmp, name))
        server.post("/jobs/%d/stdin?eof" % first)
        self.assertEqual([server.job(number, "wait&fields=out")["out"] for number in numbers], ["0\n", "1\n", "2\n"])

    def test_one_that_waits_can_be_deleted_unstarted(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))
        busy = [self.server.start("sleep 99") for _ in range(2)]
        marker = os.path.join(self.server.tmp, "marker")
        waiting = self.server.start("touch " + marker)
        directory = os.path.join(self.server.tmp, self.server.leftovers()[0])
        self.assertEqual(len(os.listdir(directory)), 3)
        self.assertError(self.server.post("/jobs/%d/kill" % waiting), 409, "not started")
        self.assertEqual(self.server.delete("/jobs/%d" % waiting).status, 204)
        wait_until(lambda: len(os.listdir(directory)) == 2, "the removal of its script")
        for number in busy:
            self.server.delete("/jobs/%d" % number)
        self.server.run("true")
        self.assertFalse(os.path.exists(marker))

    def test_standard_input_of_one_that_waits_is_held_until_it_starts(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))
        busy = [self.server.start("sleep 99") for _ in range(2)]
        waiting = self.server.start("cat", "stdin")
        thread = threading.Thread(target=self.server.post, args=("/jobs/%d/stdin?eof" % waiting, "late"))
        thread.start()
        for number in busy:
            self.server.delete("/jobs/%d" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait" % waiting).job["out"], "late")
        thread.join()


    def test_a_client_that_goes_away_before_it_has_started_frees_its_thread(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))
        for _ in range(2):
            self.server.start("sleep 99")
        waiting = self.server.start("cat", "stdin")
        wait_until(lambda: self.server.threads() == 2)
        with self.server.connect() as connection:
            connection.sendall(b"POST /jobs/%d/stdin HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n"
                               b"Content-Length: 1\r\n\r\nx" % waiting)
            wait_until(lambda: self.server.threads() == 3)
        wait_until(lambda: self.server.threads() == 2)


class ShareTest(ServerCase):
    options = ("--max-output", "100K", "--max-total", "250K")

    def setUp(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))

    def dropped(self, *numbers):
        return [self.server.job(number)["dropped"] for number in numbers]

    def test_a_deleted_job_gives_its_share_back(self):
        first, second = [self.server.run("head -c 100000 /dev/zero")["id"] for _ in range(2)]
        self.server.delete("/jobs/%d" % second)     # not the oldest, which would be the first to pay
        third = self.server.run("head -c 100000 /dev/zero")["id"]
        self.assertEqual(self.dropped(first, third), [0, 0])

    def test_who_printed_longest_ago_pays_and_not_who_began_first(self):
        first = self.server.start("head -c 50000 /dev/zero; read line; head -c 50000 /dev/zero", "stdin")
        self.server.wait_for_out(first, b"\0" * 50000)
        second = self.server.run("head -c 100000 /dev/zero")["id"]
        self.server.post("/jobs/%d/stdin" % first, "\n")
        self.server.get("/jobs/%d?wait" % first)
        third = self.server.run("head -c 100000 /dev/zero")["id"]
        self.assertEqual(self.dropped(first, second, third), [0, 300000 - 250 * 1024, 0])

    def test_what_a_forgotten_job_still_prints_costs_nobody_anything(self):
        kept = self.server.run("head -c 100000 /dev/zero")["id"]
        fifo = os.path.join(self.server.tmp, "fifo")
        os.mkfifo(fifo)
        self.addCleanup(os.unlink, fifo)
        for _ in range(2):
            job = self.server.run("(read line < %s; head -c 100000 /dev/zero; exec sleep 99) & echo $!" % fifo)
            pid = int(job["out"])
            self.addCleanup(os.kill, pid, signal.SIGKILL)
            self.server.delete("/jobs/%d" % job["id"])
            with open(fifo, "w") as file:
                file.write("\n")

            def printed():
                with open("/proc/%d/cmdline" % pid, "rb") as file:
                    return file.read().startswith(b"sleep")
            wait_until(printed)
        self.assertEqual(self.dropped(kept), [0])


class BoundTest(ServerCase):
    options = ("--max-output", "100K", "--max-total", "250K", "--keep", "3")

    def test_drops_the_oldest_output_of_a_job_and_counts_it(self):
        job = self.server.run("seq 100000", fields="dropped,out_bytes,exit_code,out")
        whole = "".join("%d\n" % number for number in range(1, 100001))
        self.assertEqual((job["out_bytes"], job["dropped"]), (len(whole), len(whole) - 102400))
        self.assertEqual(job["out"], whole[-102400:])
        answer = self.server.get("/jobs/%d/out" % job["id"])
        self.assertEqual(answer.headers["rtot-dropped"], str(job["dropped"]))
        self.assertEqual(len(answer.body), 102400)

    def test_drops_the_output_printed_longest_ago_of_all_jobs(self):
        first, second, third = [self.server.run("head -c 100000 /dev/zero")["id"] for _ in range(3)]
        dropped = [self.server.job(number)["dropped"] for number in (first, second, third)]
        self.assertEqual(dropped, [300000 - 250 * 1024, 0, 0])

    def test_forgets_the_oldest_complete_jobs_beyond_those_to_keep(self):
        numbers = [self.server.run("true")["id"] for _ in range(5)]
        self.assertEqual([job["id"] for job in self.server.get("/jobs").jobs], numbers[-3:])

    def test_a_script_beyond_what_all_may_take_is_refused_and_leaves_nothing(self):
        server = self.own_server("--max-total", "100K")
        server.run("#" * 60000)
        self.assertError(server.post("/jobs", "#" * 60000), 507, "DELETE")
        (directory,) = server.leftovers()
        self.assertEqual(os.listdir(os.path.join(server.tmp, directory)), [])
        self.assertEqual(len(server.get("/jobs").jobs), 1)
        server.delete("/jobs?state=complete")
        server.run("#" * 60000)


class LittleTest(ServerCase):
    options = ("--max-output", "20")

    def test_no_job_is_held_because_little_is_kept(self):
        """As little was read at a time: what many had left in their pipes took longer than is waited for."""
        numbers = [self.server.start("sleep 1; seq 20000") for _ in range(100)]
        whole = sum(len("%d\n" % number) for number in range(1, 20001))
        for number in numbers:
            job = self.server.job(number, "wait&fields=out,out_bytes,held")
            self.assertEqual((job["out_bytes"], job["held"], len(job["out"])), (whole, False, 20))

    def test_a_follower_gets_all_of_what_is_not_kept(self):
        number = self.server.start("read go; seq 3000", "stdin")
        follower = Follower(self.server, "/jobs/%d/out?follow" % number)
        self.server.post("/jobs/%d/stdin" % number, "go\n")
        self.assertEqual(follower.finish(), b"".join(b"%d\n" % number for number in range(1, 3001)))


class StdinTest(ServerCase):

    def test_takes_any_bytes_in_several_requests_and_closes_at_eof(self):
        data = bytes(bytearray(range(256))) * 64
        number = self.server.start("cat", "stdin")
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, data).status, 204)
        self.server.wait_for_out(number, data)
        self.assertEqual(self.server.post("/jobs/%d/stdin?eof" % number, data).status, 204)
        self.assertEqual(self.server.get("/jobs/%d?wait" % number).status, 200)
        self.assertEqual(self.server.out(number), data * 2)

    def test_takes_more_than_a_pipe_holds(self):
        data = os.urandom(1 << 20) * 8
        number = self.server.start("sleep 0.2; md5sum", "stdin")
        self.assertEqual(self.server.post("/jobs/%d/stdin?eof" % number, data).status, 204)
        import hashlib
        self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["out"].split()[0], hashlib.md5(data).hexdigest())

    def test_takes_a_chunked_body_as_it_comes(self):
        number = self.server.start("cat", "stdin")
        with self.server.connect() as connection:
            connection.sendall(b"POST /jobs/%d/stdin?eof HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n"
                               b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n" % number)
            self.server.wait_for_out(number, b"one")
            connection.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
            self.assertIn(b" 204 ", connection.recv(1000))
        self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["out"], "onetwo")

    def test_a_job_that_does_not_read_holds_the_request_and_not_the_server(self):
        number = self.server.start("sleep 99", "stdin")
        answers = []
        thread = threading.Thread(target=lambda: answers.append(
            self.server.post("/jobs/%d/stdin" % number, b"x" * (1 << 20))))
        thread.start()
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        self.assertEqual(answers, [])
        self.server.post("/jobs/%d/kill?signal=KILL" % number)
        thread.join(support.LIMIT)
        self.assertError(answers[0], 409, "closed")

    def test_a_client_that_goes_away_meanwhile_frees_its_thread(self):
        number = self.server.start("sleep 99", "stdin")
        self.addCleanup(lambda: self.server.delete("/jobs/%d" % number))
        before = wait_until(lambda: self.server.threads() == 2 and 2)
        connection = self.server.connect()
        connection.sendall(b"POST /jobs/%d/stdin HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n"
                           b"Content-Length: 100000\r\n\r\n" % number + b"x" * 100000)
        wait_until(lambda: self.server.threads() > before)
        connection.close()
        wait_until(lambda: self.server.threads() <= before)

    def test_what_a_client_that_went_away_has_not_got_through_is_not_written(self):
        marker = os.path.join(self.server.tmp, "marker")
        number = self.server.start("while ! [ -e %s ]; do sleep 0.02; done; wc -c" % marker, "stdin")
        wait_until(lambda: self.server.threads() == 2)
        with self.server.connect() as connection:
            connection.sendall(b"POST /jobs/%d/stdin?eof HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n"
                               b"Content-Length: 131072\r\n\r\n" % number + b"x" * 131072)
            wait_until(lambda: self.server.threads() == 3)
        wait_until(lambda: self.server.threads() == 2)
        thread = threading.Thread(target=self.server.post, args=("/jobs/%d/stdin?eof" % number, "end\n"))
        thread.start()
        open(marker, "w").close()
        self.addCleanup(os.unlink, marker)
        count = int(self.server.get("/jobs/%d?wait" % number).job["out"])
        thread.join()
        self.assertTrue(4 < count <= 65536 + 4, count)      # what a pipe holds, and the end

    def test_refuses_input_that_was_never_open_or_is_closed(self):
        number = self.server.start("sleep 99")
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, r"\?stdin")
        self.server.delete("/jobs/%d" % number)
        number = self.server.start("cat >/dev/null; sleep 99", "stdin")
        self.assertEqual(self.server.post("/jobs/%d/stdin?eof" % number).status, 204)
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, "closed")
        self.server.delete("/jobs/%d" % number)
        number = self.server.run("true", "stdin")["id"]
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, "closed")

    def test_input_that_the_job_has_closed_itself_is_refused_and_ends_nothing(self):
        number = self.server.start("exec <&-; echo ready; sleep 99", "stdin")
        self.addCleanup(lambda: self.server.delete("/jobs/%d" % number))
        self.server.wait_for_out(number, b"ready")
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, "closed its standard input")
        self.assertEqual(self.server.job(number)["state"], "running")


class TerminalTest(ServerCase):

    def test_a_job_has_a_real_terminal_of_the_size_that_was_asked_for(self):
        job = self.server.run("test -t 0 -a -t 1 -a -t 2 && stty size; echo e >&2; echo hi >/dev/tty; tty",
                              "tty&rows=40&cols=132")
        self.assertRegex(job["out"], "^40 132\r\ne\r\nhi\r\n/dev/")
        self.assertNotIn("err", job)
        self.assertEqual(job["tty"], {"rows": 40, "cols": 132})
        self.assertEqual(self.server.run("stty size", "tty")["out"], "24 80\r\n")

    def test_control_c_interrupts_the_foreground(self):
        number = self.server.start("trap 'echo got it' INT; echo ready; sleep 99; echo $?", "tty")
        self.server.wait_for_out(number, b"ready")
        wait_until(lambda: children_of(self.server.job(number)["pid"]))
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, b"\x03").status, 204)
        self.assertRegex(self.server.get("/jobs/%d?wait" % number).job["out"], r"got it\r\n130\r\n$")

    def test_has_job_control(self):
        job = self.server.run("set -m; sleep 99 & jobs; kill %1; wait; sleep 0.05 & fg; echo end", "tty")
        self.assertRegex(job["out"], r"\[1\].*sleep 99")
        self.assertNotIn("no job control", job["out"])
        self.assertRegex(job["out"], "end\r\n$")

    def test_resize_is_seen_by_the_job(self):
        number = self.server.start("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done", "tty")
        self.server.wait_for_out(number, b"ready")
        self.assertEqual(self.server.post("/jobs/%d/resize?rows=50&cols=120" % number).status, 204)
        self.assertIn("50 120", self.server.get("/jobs/%d?wait" % number).job["out"])

    def test_a_prompt_is_answered_by_stdin(self):
        number = self.server.start("read -p 'sure? ' answer; echo \"<$answer>\"", "tty")
        self.server.wait_for_out(number, b"sure? ")
        self.server.post("/jobs/%d/stdin" % number, "yes\n")
        self.assertIn("<yes>", self.server.get("/jobs/%d?wait" % number).job["out"])

    def test_eof_is_control_d(self):
        number = self.server.start("cat; echo end", "tty")
        self.server.post("/jobs/%d/stdin?eof" % number, "line\n")
        self.assertRegex(self.server.get("/jobs/%d?wait" % number).job["out"], "line\r\nend\r\n$")
        for body in ((b"3\r\nabc\r\n0\r\n\r\n"), (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")):       # whose end comes by itself
            number = self.server.start("stty -echo; echo ready; cat; echo end", "tty")
            self.server.wait_for_out(number, b"ready")
            self.server.raw(b"POST /jobs/%d/stdin?eof HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nConnection: close\r\n"
                            b"Transfer-Encoding: chunked\r\n\r\n%b" % (number, body))
            self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["out"], "ready\r\nabcend\r\n")
        number = self.server.start("cat; echo end", "tty")
        self.server.post("/jobs/%d/stdin?eof" % number, "no newline")
        self.assertRegex(self.server.get("/jobs/%d?wait" % number).job["out"], "no newlineend\r\n$")

    def test_resize_without_a_terminal_is_refused(self):
        number = self.server.run("true")["id"]
        self.assertError(self.server.post("/jobs/%d/resize?rows=1&cols=1" % number), 409, "tty")
        number = self.server.run("true", "tty")["id"]
        self.assertError(self.server.post("/jobs/%d/resize?rows=1&cols=1" % number), 409, "closed")

    def letting_go(self):
        """Start a script that closes its terminal, and opens it again when the file that is returned exists."""
        closed, go = (os.path.join(self.server.tmp, name) for name in ("closed", "go"))
        number = self.server.start('exec </dev/null >/dev/null 2>&1; touch "$1"; until test -e "$2"; do sleep 0.01; done\n'
                                   'exec </dev/tty >/dev/tty; echo back; read line; echo "got $line"; exit 3',
                                   "tty&arg=%s&arg=%s" % (closed, go))
        wait_until(lambda: os.path.exists(closed))
        os.unlink(closed)
        return number, go

    def test_a_script_may_let_go_of_its_terminal_for_a_while(self):
        """To close it on our side then would hang up: the script got SIGHUP."""
        number, go = self.letting_go()
        wait_until(lambda: self.server.at_rest() and self.server.at_rest())     # it has seen that it is closed
        open(go, "w").close()
        self.addCleanup(os.unlink, go)
        wait_until(lambda: b"back" in self.server.out(number) or self.server.job(number)["state"] == "complete")
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, "late\n").status, 204)
        job = self.server.job(number, "wait&fields=exit_code,out")
        self.assertEqual(job["exit_code"], 3)
        self.assertRegex(job["out"], "got late\r\n$")

    def test_what_does_not_fit_a_terminal_that_nobody_has_open_is_refused(self):
        number, _ = self.letting_go()
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, b"x" * 500000).status, 409)
        self.server.delete("/jobs/%d" % number)

    def test_what_is_left_on_a_terminal_does_not_spin_the_server(self):
        job = self.server.run("trap '' HUP; sleep 99 & echo $!", "tty")
        before = self.server.cpu()
        time.sleep(0.5)         # a span in which nothing may be done, not a wait for something
        self.assertLess(self.server.cpu() - before, 0.2)
        if is_alive(int(job["out"])):
            os.kill(int(job["out"]), signal.SIGKILL)


    def test_a_terminal_that_all_have_closed_does_not_spin_the_server(self):
        number = self.server.start("trap '' HUP; exec <&- >&- 2>&-; sleep 2; exit 3", "tty")
        wait_until(lambda: self.server.job(number)["pid"] and not self.server.descriptors_of(self.server.job(number)["pid"]))
        before = self.server.cpu()
        time.sleep(0.5)         # a span in which nothing may be done, not a wait for something
        self.assertLess(self.server.cpu() - before, 0.2)
        self.assertEqual(self.server.get("/jobs/%d/exit?wait" % number).body, b"3\n")


class LoadTest(ServerCase):

    def test_two_thousand_jobs_of_32_clients_at_once_all_complete_with_the_right_output(self):
        failures = []

        def client(base):
            connection = self.server.client()
            numbers = {}
            for index in range(base, 2000, 32):
                answer = self.server.post("/jobs?fields=", "echo out %d; echo err %d >&2; exit %d"
                                          % (index, index, index % 7), client=connection)
                numbers[answer.job["id"]] = index
            for number, index in numbers.items():
                job = self.server.get("/jobs/%d?wait&fields=all" % number, client=connection).job
                if (job["out"], job["err"], job["exit_code"]) != ("out %d\n" % index, "err %d\n" % index, index % 7):
                    failures.append(job)
            connection.close()
        threads = [threading.Thread(target=client, args=(base,)) for base in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(len(self.server.get("/jobs?state=complete&fields=").jobs), 2000)
        self.server.delete("/jobs")


class NothingLeftTest(unittest.TestCase):

    def end(self, stop, script="echo $$; sleep 96 & echo $!; wait", lines=2):
        server = support.Server().ready()
        self.addCleanup(server.close)
        number = server.start(script)
        lines = wait_until(lambda: server.out(number).count(b"\n") == lines and server.out(number).split())
        pids = [server.job(number)["pid"]] + [int(line) for line in lines]
        held = server.run("sleep 97 & echo $!")
        pids.append(int(held["out"]))
        stop(server)
        self.assertEqual(server.process.wait(support.LIMIT), 0, server.log())
        self.assertFalse([pid for pid in pids if is_alive(pid)])
        self.assertEqual(server.leftovers(), [])

    def test_delete_root_ends_everything(self):
        self.end(lambda server: self.assertEqual(server.delete("/").status, 204))

    def test_sigterm_ends_everything(self):
        self.end(lambda server: server.process.send_signal(signal.SIGTERM), FAMILY, 4)

    def test_sigint_ends_everything(self):
        self.end(lambda server: server.process.send_signal(signal.SIGINT))

    def test_what_waits_for_its_turn_never_starts(self):
        server = support.Server("-j", "1").ready()
        self.addCleanup(server.close)
        server.start("sleep 99")
        server.start("touch %s/marker" % server.tmp)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(server.leftovers(), [])

    def test_an_answer_that_is_under_way_is_sent_to_its_end(self):
        code = "import rtot, sys; rtot.DRAIN = 60; sys.exit(rtot.main())"
        server = support.Server(program=["-c", code], cwd=support.ROOT).ready()
        self.addCleanup(server.close)
        number = server.run("head -c 30M /dev/zero", fields="")["id"]
        with contextlib.closing(server.client()) as client:
            client.request("GET", "/jobs/%d/out" % number, headers={"Rtot-Secret": server.secret})
            response = client.getresponse()
            self.assertEqual(server.delete("/").status, 204)
            self.assertEqual(len(response.read()), 30 << 20)
        self.assertEqual(server.process.wait(support.LIMIT), 0)

    def test_who_waits_for_a_job_gets_his_answer_before_the_server_ends(self):
        server = support.Server().ready()
        self.addCleanup(server.close)
        number, statuses = server.start("sleep 99"), []
        threads = [threading.Thread(target=lambda: statuses.append(server.get("/jobs/%d?wait" % number).status))
                   for _ in range(40)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.threads() == 42)
        self.assertEqual(server.stop(), 0)
        for thread in threads:
            thread.join()
        self.assertEqual(statuses, [200] * 40)

    def test_what_has_left_its_group_does_not_keep_the_server(self):
        code = "import rtot, sys; rtot.GRACE = 600; sys.exit(rtot.main())"     # to whose end it would be waited for
        server = support.Server(program=["-c", code], cwd=support.ROOT).ready()
        self.addCleanup(server.close)
        job = server.run("setsid sleep 99 & echo $!")
        self.addCleanup(os.kill, int(job["out"]), signal.SIGKILL)
        self.assertTrue(job["held"])
        self.assertEqual(server.stop(), 0)
        self.assertTrue(is_alive(int(job["out"])))

    def test_a_follower_sees_the_end_of_a_job_that_the_server_takes_with_it(self):
        server = support.Server().ready()
        self.addCleanup(server.close)
        number = server.start("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
        follower = support.Follower(server, "/jobs/%d/out?follow" % number)
        wait_until(lambda: follower.data == b"ready\n")
        self.assertEqual(server.delete("/").status, 204)
        self.assertEqual(follower.finish(), b"ready\nbye\n")


@need("unshare")
class MountTest(unittest.TestCase):

    def test_runs_where_the_temporary_directory_is_mounted_noexec(self):
        if os.geteuid():
            self.skipTest("needs root")
        script = 'mount -t tmpfs -o noexec none "$TMPDIR" && exec "$@"'
        server = support.Server(wrapper=["unshare", "-m", "sh", "-c", script, "sh"]).ready()
        self.addCleanup(server.close)
        job = server.run("#!/bin/sh\necho ran $0")
        self.assertIn("ran " + server.tmp, job["out"])
