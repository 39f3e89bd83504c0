"""Jobs as processes: started, captured, fed, signalled, ended."""
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import unittest
import urllib.parse

import support
from support import (AUTH, Case, Follower, ServerCase, children_of, descriptors_of, in_background, in_parallel,
                     is_alive, need, patched, process_state, wait_until)


class ScriptTest(ServerCase):

    def test_a_script_without_a_first_line_is_run_by_bash(self):
        job = self.server.run("echo $BASH_VERSION; echo $0")
        self.assertRegex(job["out"], r"^[0-9]+\.[^\n]*\n/[^\n]*\n$")
        self.assertEqual(job["script"], "#!/bin/bash\necho $BASH_VERSION; echo $0")

    def test_a_first_line_names_the_interpreter_and_one_argument(self):
        self.assertEqual(self.server.run("#!/bin/sh -eu\necho $-\n")["out"].strip().replace("h", ""), "ue")
        self.assertRegex(self.server.run("#!/bin/echo a  b \n")["out"], "^a  b /[^ ]*\n$")      # one, with its blanks

    def test_no_final_newline_is_fine(self):
        self.assertEqual(self.server.run("#!/bin/echo")["exit_code"], 0)

    def test_a_relative_interpreter_is_relative_to_the_working_directory(self):
        os.symlink("/bin/sh", os.path.join(self.server.tmp, "mysh"))
        self.addCleanup(os.unlink, os.path.join(self.server.tmp, "mysh"))
        for name in ("mysh", "./mysh"):
            job = self.server.run("#!%s\necho hi" % name, "cwd=" + self.server.tmp)
            self.assertEqual((job["out"], job.get("exit")), ("hi\n", None))
        self.assertEqual(self.server.run("#!sh\necho hi")["exit"], "fork/exec sh: no such file or directory")

    def test_a_missing_interpreter_completes_the_job_with_an_error(self):
        self.server.run("true")
        (directory,) = self.server.leftovers()
        before = os.listdir(os.path.join(self.server.tmp, directory))
        job = self.server.run("#!/no/such\n")
        self.assertEqual((job["exit"], job["exit_code"], job["state"]),
                         ("fork/exec /no/such: no such file or directory", 127, "complete"))
        self.assertRegex(job["start"], "^20")       # when it was tried
        self.assertLessEqual(job["create"], job["start"])
        wait_until(lambda: set(os.listdir(os.path.join(self.server.tmp, directory))) <= set(before), "the removal of the script")

    def test_an_interpreter_that_may_not_be_executed_completes_the_job_with_an_error(self):
        job = self.server.run("#!/etc/passwd\n")
        self.assertEqual((job["exit"], job["exit_code"]), ("fork/exec /etc/passwd: permission denied", 126))

    def test_a_first_line_without_an_interpreter_is_an_exec_format_error(self):
        job = self.server.run("#!\necho hi")
        self.assertRegex(job["exit"], "^fork/exec /.*: exec format error$")
        self.assertEqual(job["exit_code"], 126)

    def test_an_empty_first_line_does_no_harm_to_other_jobs(self):
        """posix_spawn raised ValueError, which ended the server with all its jobs."""
        other = self.server.start("sleep 99")
        for script in (b"#!", b"#!\0", b"#! "):
            job = self.server.run(script)
            self.assertRegex(job["exit"], "^fork/exec .*: permission denied$")
            self.assertEqual((job["exit_code"], "--data-binary" in job["err"]), (126, True))
        self.assertEqual(self.server.job(other)["state"], "running")        # which was started before them
        self.server.delete("/jobs/%d" % other)

    def test_a_script_of_any_bytes_is_run_as_it_is(self):
        script = b"#!/usr/bin/tail -n+2\n" + bytes(bytearray(range(256))) * 40
        number = self.server.post("/jobs?wait", script).job["id"]
        self.assertEqual(self.server.out(number), script.partition(b"\n")[2])
        self.assertEqual(self.server.get("/jobs/%d/script" % number).body, script)

    def test_a_script_that_is_open_for_writing_runs(self):
        """To execute the file would fail with ETXTBSY; rtot executes the interpreter."""
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

    def test_the_file_of_a_script_stays_until_the_script_has_exited(self):
        number = self.server.start("read -t 60 line; cat $0 | wc -l; echo $line $0", "stdin")
        self.server.post("/jobs/%d/stdin?eof" % number, "go\n")
        job = self.server.get("/jobs/%d?wait" % number).job
        lines = job["out"].split("\n")
        self.assertEqual((lines[0].strip(), lines[1].split()[0]), ("1", "go"))
        wait_until(lambda: not os.path.exists(lines[1].split()[1]), "the removal of the script")


class EnvironmentTest(ServerCase):

    def setUp(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))

    def test_a_job_has_descriptors_0_1_and_2_only(self):
        self.server.start("sleep 60")       # another job, with descriptors of its own
        for query in ("", "cwd=/"):         # which are started in two ways
            out = self.server.run("exec ls -l /proc/self/fd", query)["out"]
            self.assertRegex(out, r"^total 0\n.* 0 -> /dev/null\n.* 1 -> (pipe:.*)\n.* 2 -> (?!\1\n)pipe:.*\n"
                                  r".* 3 -> /proc/.*\n$")

    def test_a_job_inherits_no_descriptor_that_the_server_was_started_with(self):
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

    def test_a_signal_that_is_blocked_in_the_server_is_not_blocked_in_a_job(self):
        block = [sys.executable, "-c", "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, "
                 "signal.SIGTERM, signal.SIGCHLD]); os.execv(sys.argv[1], sys.argv[1:])"]
        server = self.own_server(wrapper=block)
        for query in ("", "cwd=/"):
            self.assertEqual(int(server.run("grep ^SigBlk /proc/self/status", query)["out"].split()[1], 16), 0)

    def test_a_broken_pipe_ends_a_writer(self):
        self.assertEqual(self.server.run("yes | head -n 1; echo ${PIPESTATUS[0]}")["out"], "y\n141\n")

    def test_variables_for_the_server_are_not_passed_on(self):
        server = self.own_server(secret=None, env={"RTOT_SECRET": "swordfish", "RTOT_ADDR": "nowhere:1",
                                                   "RTOT_LOG_FORMAT": "text", "OTHER": "x", "LISTEN_PIDFDID": "7",
                                                   "LISTEN_PID": "1", "NOTIFY_SOCKET": "/no/such", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"})
        server.secret = "swordfish"
        out = server.run("env")["out"]
        self.assertIn("OTHER=x", out)
        self.assertNotIn("swordfish", out)
        self.assertFalse(re.findall("(?m)^(?:RTOT_|LISTEN_|NOTIFY_SOCKET|WATCHDOG_).*", out))

    def test_standard_input_is_empty_unless_asked_for(self):
        self.assertEqual(self.server.run("read x; echo $?; cat")["out"], "1\n")

    def test_standard_input_is_never_that_of_the_server(self):
        with tempfile.TemporaryFile() as file:
            file.write(b"of the server\n")
            file.seek(0)
            server = self.own_server(stdin=file)
            for query in ("", "cwd=/"):
                self.assertEqual(server.run("readlink /proc/self/fd/0; cat", query)["out"], "/dev/null\n")

    def test_runs_where_posix_spawn_makes_no_session(self):
        """It raises NotImplementedError where the C library has no POSIX_SPAWN_SETSID."""
        before = ("import os\ndef spawn(*args, **more): raise NotImplementedError\n"
                  "os.posix_spawn, os.POSIX_SPAWN_DUP2 = spawn, 1     # also where this Python has none")
        server = self.own_server(program=patched(before=before))
        for _ in range(2):
            job = server.run("echo hi; cut -d' ' -f6 /proc/$$/stat")
            self.assertEqual(job["out"], "hi\n%d\n" % job["pid"])

    def test_a_job_has_the_limit_of_descriptors_that_the_server_was_given(self):
        server = self.own_server(wrapper=["bash", "-c", 'ulimit -Sn 300; exec "$@"', "bash"])
        numbers = [server.start("ulimit -Sn", query) for query in ("", "cwd=/") for _ in range(40)]
        self.assertEqual({server.job(number, "wait")["out"] for number in numbers}, {"300\n"})
        connections = [server.connect() for _ in range(320)]       # more than that, which the server may have
        wait_until(lambda: server.connections() > 300)
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

    def test_the_directory_is_told_in_pwd(self):
        script = "#!%s\nimport os; print(os.environ.get('PWD'), os.getcwd())\n" % sys.executable
        for query in ("cwd=/usr", "cwd=/usr&tty"):
            self.assertEqual(self.server.run(script, query)["out"].split(), ["/usr", "/usr"])
        server = self.own_server(env={"PWD": "/no/such/directory"}, cwd="/usr")      # whoever started it has left it so
        for query in ("", "tty"):
            self.assertEqual(server.run(script, query)["out"].split(), ["/usr", "/usr"])

    def test_the_size_of_the_terminal_is_not_hidden_by_variables(self):
        server = self.own_server(env={"LINES": "7", "COLUMNS": "9"})
        self.assertEqual(server.run("echo ${LINES-none} ${COLUMNS-none}", "tty&rows=40&cols=132")["out"], "none none\r\n")
        self.assertEqual(server.run("env | grep -c LINES", "tty&env=LINES=3")["out"], "1\r\n")

    def test_variables_of_any_name_are_passed_on(self):
        server = self.own_server(env={"my.var": "1", "BASH_FUNC_f%%": "() { echo from f; }"})
        for query in ("", "cwd=/", "tty"):
            out = server.run("env | grep ^my.var; f", query)["out"].replace("\r", "")
            self.assertEqual(out, "my.var=1\nfrom f\n", query)

    def test_a_variable_that_no_program_can_be_given_is_left_out(self):
        before = "import os; environ = dict(os.environb); environ.update({b'=foo': b'bar', b'': b'x'}); os.environb = environ"
        server = self.own_server(program=patched(before=before))
        for query in ("", "cwd=/", "tty", "env=A=1"):
            self.assertEqual(server.run("exit 3", query)["exit_code"], 3)

    def test_cwd_may_lie_below_a_directory_that_cannot_be_read(self):
        directory = os.path.join(self.server.tmp, "outer")
        os.makedirs(os.path.join(directory, "inner"))
        os.chmod(directory, 0o711)
        self.addCleanup(os.rmdir, directory)
        self.addCleanup(os.rmdir, os.path.join(directory, "inner"))
        server = self.own_server(cwd=directory)
        self.assertEqual(server.run("pwd", "cwd=" + os.path.join(directory, "inner"))["out"], os.path.join(directory, "inner") + "\n")
        self.assertEqual(server.run("pwd")["out"], directory + "\n")


class CaptureTest(ServerCase):

    def test_output_and_errors_are_apart_and_in_order_in_the_log(self):
        job = self.server.job(self.server.print_in_turn("o1 e1 o2 e2 o3 e3".split()))
        self.assertEqual((job["out"], job["err"]), ("o1\no2\no3\n", "e1\ne2\ne3\n"))
        self.assertEqual(self.server.get("/jobs/%d/log" % job["id"]).body, b"o1\ne1\no2\ne2\no3\ne3\n")

    def test_shows_the_output_so_far_of_a_running_job(self):
        number = self.server.start("echo ready; echo e >&2; read line; echo $line", "stdin")
        self.server.wait_for_out(number, b"ready\n")
        wait_until(lambda: self.server.get("/jobs/%d/err" % number).body == b"e\n")
        answer = self.server.get("/jobs/%d" % number)
        self.assertEqual((answer.status, answer.job["state"], answer.job["out"]), (202, "running", "ready\n"))
        self.server.post("/jobs/%d/stdin" % number, "steady\n")
        answer = self.server.get("/jobs/%d?wait" % number)
        self.assertEqual((answer.status, answer.job["out"]), (200, "ready\nsteady\n"))

    def test_waits_for_output_that_comes_after_the_exit(self):
        server = self.own_server(program=patched("rtot.HELD_AFTER = 60"))
        job = server.run("(sleep 0.2; echo late) & echo early")
        self.assertEqual((job["out"], job["held"]), ("early\nlate\n", False))

    def test_many_jobs_that_close_their_output_are_complete_when_they_exit(self):
        numbers = [self.server.start("exec >&- 2>&-; sleep 0.7; exit 7") for _ in range(110)]
        self.assertEqual(self.server.run("exit 3")["exit_code"], 3)
        for number in numbers:
            self.assertEqual(self.server.get("/jobs/%d/exit?wait" % number).body, b"7\n")

    def test_waits_for_an_exit_that_comes_after_the_output(self):
        job = self.server.run("exec >&- 2>&-; sleep 0.3; exit 7")
        self.assertEqual(job["exit_code"], 7)
        self.assertGreater(job["duration"], 0.25)

    def test_a_background_process_does_not_hold_the_job(self):
        job = self.server.run("sleep 99 & echo $!")
        self.assertTrue(job["held"])
        self.assertLess(job["duration"], 20)
        pid = int(job["out"])
        self.assertTrue(is_alive(pid))
        self.assertEqual(self.server.post("/jobs/%d/kill" % job["id"]).status, 204)
        wait_until(lambda: not is_alive(pid))
        wait_until(lambda: not self.server.job(job["id"])["held"])

    def test_output_that_is_held_is_still_captured(self):
        gate = os.path.join(self.server.tmp, "gate")
        job = self.server.run("(until [ -e %s ]; do sleep 0.02; done; echo later) & echo now" % gate)
        self.assertEqual((job["out"], job["held"]), ("now\n", True))
        open(gate, "w").close()
        self.server.wait_for_out(job["id"], b"now\nlater\n")
        os.unlink(gate)

    def test_a_flood_from_the_background_holds_neither_the_job_nor_its_client(self):
        """With a client that read just as fast as the flood came, the job was never complete."""
        for pause in (0.02, 0.004):         # s for 256 KiB at most
            with self.subTest(pause=pause):
                script = b"yes &\nexit 3"
                with self.server.send(b"POST /jobs?follow&max_output=1M HTTP/1.1\r\n%bTE: trailers\r\nConnection: TE\r\nContent-Length: %d\r\n\r\n%b"
                                      % (AUTH, len(script), script)) as connection:
                    data = connection.recv(1 << 18)
                    number = int(re.search(b"/jobs/([0-9]+)", data).group(1))
                    self.addCleanup(self.server.post, "/jobs/%d/kill?signal=KILL" % number)
                    deadline = time.monotonic() + support.LIMIT
                    while b"Rtot-Exit: " not in data:
                        self.assertLess(time.monotonic(), deadline)
                        time.sleep(pause)       # how fast this client is
                        more = connection.recv(1 << 18)
                        self.assertTrue(more)
                        data = data[-100:] + more
                    self.assertIn(b"Rtot-Exit: 3\r\n", data)
                job = self.server.job(number, "fields=exit_code,held")
                self.assertEqual((job["exit_code"], job["held"]), (3, True))

    def test_deleting_a_complete_job_leaves_its_background_alone(self):
        job = self.server.run("(for i in $(seq 20000); do echo a line of some length; done; sleep 99) & echo $!")
        self.assertTrue(job["held"])
        pid = int(job["out"].split("\n")[0])
        self.assertEqual(self.server.delete("/jobs/%d" % job["id"]).status, 204)

        def has_printed_all():      # the last command of a subshell replaces it
            with open("/proc/%d/cmdline" % pid) as file:
                return file.read().startswith("sleep")
        wait_until(has_printed_all)
        self.assertTrue(is_alive(pid))

    def test_exit_codes_and_signals_are_told_in_the_words_of_go(self):
        for script, text, code in (("exit 0", None, 0), ("exit 3", "exit status 3", 3), ("kill -9 $$", "signal: killed", 137),
                                   ("kill -TERM $$", "signal: terminated", 143), ("exit 256", None, 0),
                                   ("kill -USR1 $$", "signal: user defined signal 1", 138),
                                   ("kill -16 $$", "signal: stack fault", 144), ("kill -40 $$", "signal: signal 40", 168)):
            job = self.server.run(script)
            self.assertEqual((job.get("exit"), job["exit_code"]), (text, code))

    def test_a_core_dump_is_told(self):
        job = self.server.run("ulimit -c unlimited; cd %s; kill -SEGV $$" % self.server.tmp)
        for name in os.listdir(self.server.tmp):
            if name.startswith("core"):
                os.unlink(os.path.join(self.server.tmp, name))
        self.assertRegex(job["exit"], r"^signal: segmentation fault( \(core dumped\))?$")
        self.assertEqual(job["exit_code"], 139)

    def test_no_exit_status_is_lost_among_many(self):
        def jobs(base):
            return [self.server.run("exit %d" % code)["exit_code"] for code in range(base, base + 30)]
        bases = range(0, 240, 30)
        self.assertEqual(in_parallel(jobs, bases), [list(range(base, base + 30)) for base in bases])


FAMILY = """
bash -c 'trap "" TERM; bash -c "sleep 98 & wait" >/dev/null 2>&1 & echo $!; echo $$; sleep 99' &
echo $!; sleep 99 & echo $!
wait
"""


class StopTest(ServerCase):
    """Jobs that are killed, deleted or out of time, on a server with a short default grace."""
    more = {"program": patched("rtot.GRACE = 0.5")}

    def family(self, query=""):
        """Start a script with children and grandchildren, one of which ignores TERM; return (number, pids)."""
        number = self.server.start(FAMILY, query)
        lines = wait_until(lambda: self.server.out(number).count(b"\n") == 4 and self.server.out(number).split())
        return number, [self.server.job(number)["pid"]] + [int(line) for line in lines]

    def test_deleting_a_running_job_ends_all_its_processes(self):
        number, pids = self.family()
        self.assertEqual(self.server.delete("/jobs/%d" % number).status, 204)
        self.assertEqual(self.server.get("/jobs/%d" % number).status, 404)
        self.assertGone(*pids)

    def test_kill_sends_term_and_after_the_grace_kill_to_all_processes(self):
        number, pids = self.family()
        self.assertEqual(self.server.post("/jobs/%d/kill?grace=0.3" % number).status, 204)
        job = self.server.get("/jobs/%d?wait&fields=all" % number).job
        self.assertEqual((job["exit"], job["exit_code"], job["timed_out"]), ("signal: terminated", 143, False))
        self.assertGone(*pids)

    def test_the_times_are_those_of_the_readme(self):
        import rtot
        self.assertEqual((rtot.GRACE, rtot.HELD_AFTER), (5.0, 0.5))

    def test_a_timeout_ends_all_processes(self):
        number, pids = self.family("timeout=0.5")
        job = self.server.get("/jobs/%d?wait&fields=all" % number).job
        self.assertEqual((job["timed_out"], job["exit_code"], job["timeout"]), (True, 143, 0.5))
        self.assertGone(*pids)

    def test_a_timeout_of_years_is_taken(self):
        """epoll_wait(2) takes 24 days at most."""
        number = self.server.start("read line; sleep 99", "stdin&timeout=999999999")
        self.server.post("/jobs/%d/stdin" % number, "\n")
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        self.assertEqual(self.server.post("/jobs/%d/kill?signal=CONT&grace=999999999" % number).status, 204)
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        pid = self.server.job(number)["pid"]
        self.server.post("/jobs/%d/kill?signal=KILL" % number)
        self.server.get("/jobs/%d?wait" % number)
        wait_until(lambda: process_state(pid) == "X", "the reaping of a job that needs no SIGKILL any more")

    def test_a_job_that_ends_in_time_did_not_time_out(self):
        job = self.server.run("exit 4", "timeout=60")
        self.assertEqual((job["timed_out"], job["exit_code"]), (False, 4))

    def test_a_job_that_has_exited_before_its_timeout_is_looked_at_did_not_time_out(self):
        server = self.own_server()
        gate = os.path.join(server.tmp, "gate")
        for _ in range(5):
            began = time.monotonic()
            number = server.start_running("echo ready; until [ -e %s ]; do sleep 0.02; done; exit 4" % gate, "timeout=1")
            pid = server.job(number)["pid"]
            os.kill(server.pid, signal.SIGSTOP)
            try:
                late = time.monotonic() - began > 0.7
                with open(gate, "w"):
                    pass
                wait_until(lambda: not is_alive(pid))
                time.sleep(max(0, began + 1.2 - time.monotonic()))      # the server is stopped when the time is up
            finally:
                os.unlink(gate)
                os.kill(server.pid, signal.SIGCONT)
            job = server.job(number, "wait&fields=all")
            if not late:
                self.assertEqual((job["timed_out"], job["exit_code"]), (False, 4))
                return

    def test_processes_in_groups_of_their_own_end_too(self):
        """timeout(1) and set -m make groups; only what leaves the session stays."""
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
            with self.subTest(stop=stop):
                self.assertGone(*pids)

    def test_a_group_that_forks_without_a_pause_is_killed(self):
        """No list of processes shows it, so it seemed to be gone."""
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

    @unittest.skipUnless(os.uname().machine in ("x86_64", "aarch64"), "needs to know the number of exit(2)")
    def test_a_process_of_which_only_a_thread_lives_is_killed(self):
        code = ("import ctypes, os, signal, threading, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                "threading.Thread(target=time.sleep, args=(99,)).start(); print(os.getpid(), flush=True)\n"
                "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)")
        number = self.server.start('%s -c "$1" & wait' % sys.executable, urllib.parse.urlencode([("arg", code)]))
        pid = int(self.server.wait_for_out(number, b"\n"))
        wait_until(lambda: process_state(pid) == "Z")
        threads = "/proc/%d/task" % pid
        self.assertEqual(self.server.post("/jobs/%d/kill?grace=0.3" % number).status, 204)
        wait_until(lambda: not os.path.exists(threads) or len(os.listdir(threads)) < 2)

    def test_a_script_can_clean_up_at_term(self):
        number = self.server.start_running("trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.05; done")
        self.server.post("/jobs/%d/kill" % number)
        job = self.server.get("/jobs/%d?wait&fields=all" % number).job
        self.assertEqual((job["out"], job["exit_code"]), ("ready\nbye\n", 9))

    def test_kill_sends_just_the_signal_that_is_named(self):
        number = self.server.start_running("trap 'echo int' INT; trap 'echo usr; exit 0' USR1; echo ready; "
                                           "while :; do sleep 0.05; done")
        for name in ("INT", "SIGINT", "2", "int", "02"):
            count = self.server.out(number).count(b"int\n")
            self.assertEqual(self.server.post("/jobs/%d/kill?signal=%s" % (number, name)).status, 204)
            wait_until(lambda: self.server.out(number).count(b"int\n") > count)
        self.server.post("/jobs/%d/kill?signal=USR1" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait&fields=all" % number).job["exit_code"], 0)

    def test_a_named_signal_with_a_grace_is_followed_by_kill(self):
        number = self.server.start_running("trap '' INT; echo ready; while :; do sleep 0.05; done")
        self.server.post("/jobs/%d/kill?signal=INT&grace=0.2" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait&fields=all" % number).job["exit"], "signal: killed")

    def server_with_many_processes(self):
        """Return a server for which /proc has no end until a file exists, and the names of three: begun, go and blocked."""
        before = ("import os\nlistdir, path = os.listdir, os.environ['TMPDIR']\n"
                  "def processes():        # so many that they end when the file go exists\n"
                  "    yield from listdir('/proc')\n"
                  "    open(path + '/begun', 'w').close()\n"
                  "    for _ in range(100000):\n"
                  "        if os.path.exists(path + '/go'): return\n"
                  "        yield '999999999'\n"
                  "    open(path + '/blocked', 'w').close()\n"
                  "os.listdir = lambda path='.': processes() if path in ('/proc', b'/proc') else listdir(path)")
        server = self.own_server(program=patched(before=before))
        return (server, *(os.path.join(server.tmp, name) for name in ("begun", "go", "blocked")))

    def test_requests_are_answered_while_kill_looks_for_the_processes(self):
        """It read all of /proc at once: with 3,000 processes, nothing was served for 75 to 180 ms."""
        server, begun, go, blocked = self.server_with_many_processes()
        number = server.start_running("echo ready; exec sleep 99")
        killed = in_background(server.post, "/jobs/%d/kill?signal=KILL" % number)
        wait_until(lambda: os.path.exists(begun), "the reading of /proc")
        self.assertEqual(server.get("/").status, 200)
        self.assertFalse(os.path.exists(blocked))
        open(go, "w").close()
        self.assertEqual(killed().status, 204)
        self.assertEqual(server.job(number, "wait")["exit"], "signal: killed")

    def test_a_client_that_disconnects_while_kill_looks_takes_no_answer_from_others(self):
        """/proc is read once for all who ask at a time; without an answer, only the leader's group is signalled."""
        server, begun, go, blocked = self.server_with_many_processes()
        numbers = [server.start("set -m; sleep 98 >/dev/null 2>&1 & echo $!; sleep 99") for _ in range(2)]
        children = [server.wait_for_out(number, b"\n").strip() for number in numbers]
        connection = server.send(b"POST /jobs/%d/kill?signal=KILL HTTP/1.1\r\n%b\r\n" % (numbers[0], AUTH))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")      # closing resets it
        wait_until(lambda: os.path.exists(begun), "the reading of /proc")
        killed = in_background(server.post, "/jobs/%d/kill?signal=KILL" % numbers[1])
        wait_until(lambda: not is_alive(server.job(numbers[1])["pid"]))
        connection.close()
        self.assertEqual(server.get("/").status, 200)
        open(go, "w").close()
        self.assertEqual(killed().status, 204)
        self.assertGone(*children)

    def test_a_kill_that_finds_no_descriptor_to_look_with_still_ends_the_leader(self):
        """It was answered by 500, and no SIGKILL came after the grace."""
        after = ("real, seen = rtot.read_stat, set()\n"
                 "def read_stat(pid):        # finds none to look a second time\n"
                 "    if pid in seen: raise OSError(23, 'Too many open files in system')\n"
                 "    seen.add(pid)\n"
                 "    return real(pid)\n"
                 "rtot.read_stat = read_stat")
        server = self.own_server(program=patched(after))
        number = server.start("trap '' TERM; set -m; sleep 98 >/dev/null 2>&1 & echo $!; while :; do sleep 99; done")
        child = int(server.wait_for_out(number, b"\n"))
        self.assertEqual(server.post("/jobs/%d/kill?grace=0.2" % number).status, 204)
        self.assertEqual(server.job(number, "wait")["exit"], "signal: killed")
        os.kill(child, signal.SIGKILL)

    def test_a_second_kill_may_shorten_the_grace_and_never_prolongs_it(self):
        for graces in ((600, 0.2), (0.2, 600)):
            number = self.server.start_running("trap '' TERM; echo ready; while :; do sleep 99; done")
            for grace in graces:
                self.assertEqual(self.server.post("/jobs/%d/kill?grace=%s" % (number, grace)).status, 204)
            self.assertEqual(self.server.job(number, "wait=%d" % support.LIMIT)["exit"], "signal: killed")

    def test_a_stopped_job_ends_too(self):
        number = self.server.start_running("echo ready; kill -STOP $$; sleep 99")
        pid = self.server.job(number)["pid"]
        wait_until(lambda: process_state(pid) == "T")
        self.server.post("/jobs/%d/kill" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait&fields=all" % number).job["exit"], "signal: terminated")

    def test_there_is_nothing_to_kill_in_a_complete_job(self):
        job = self.server.run("true")
        self.assertError(self.server.post("/jobs/%d/kill" % job["id"]), 409, "complete")

    def test_no_zombie_and_no_descriptor_stays(self):
        wait_until(lambda: self.server.children() == ([], []), "no children")
        self.server.settle()
        before = self.server.descriptors()
        for query in ("", "stdin", "tty"):
            self.server.run("true", query)
        self.server.run("#!/no/such")
        number = self.server.start("sleep 99")
        self.server.post("/jobs/%d/kill?signal=KILL" % number)
        wait_until(lambda: self.server.children() == ([], []), "no children")
        wait_until(lambda: self.server.descriptors() <= before, "%d descriptors" % before)

    def test_two_jobs_that_end_at_the_same_moment_are_both_seen(self):
        """Their two SIGCHLDs are one."""
        server = self.own_server()
        before = len(server.pipes())
        silent = server.start("exec >&- 2>&-; sleep 99")
        held = server.start("setsid sleep 99 & echo $!; sleep 99")
        pid = int(server.wait_for_out(held, b"\n"))
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        leaders = [server.job(number)["pid"] for number in (silent, held)]
        wait_until(lambda: descriptors_of(leaders[0]) == ["/dev/null"])
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

    def test_a_leader_that_stays_a_zombie_hides_no_other_end(self):
        held = self.server.run("sleep 99 & true")
        self.assertEqual([self.server.run("exit 5")["exit_code"] for _ in range(5)], [5] * 5)
        self.server.post("/jobs/%d/kill?signal=KILL" % held["id"])

    def test_the_leader_stays_a_zombie_as_long_as_its_group_may_be_signalled(self):
        job = self.server.run("sleep 99 & echo $!")
        self.assertEqual(process_state(job["pid"]), "Z")
        self.server.post("/jobs/%d/kill?grace=0.3" % job["id"])
        self.assertGone(job["out"])
        wait_until(lambda: process_state(job["pid"]) == "X", "the reaping of the leader")
        self.assertError(self.server.post("/jobs/%d/kill" % job["id"]), 409, "nothing to signal")

    def test_the_leader_stays_a_zombie_until_kill_was_sent(self):
        number = self.server.start_running("(trap '' TERM; echo ready; exec sleep 99 >/dev/null 2>&1) & wait")
        pid = self.server.job(number)["pid"]
        self.server.post("/jobs/%d/kill?grace=0.4" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["exit"], "signal: terminated")
        self.assertEqual(process_state(pid), "Z")
        wait_until(lambda: process_state(pid) == "X")

    @need("setpriv")
    @unittest.skipIf(os.geteuid(), "needs root, for a job that runs as another user")
    def test_a_process_that_may_not_be_signalled_is_named(self):
        """kill said 204 although nothing was signalled, and DELETE said nothing either."""
        server = self.own_server(wrapper=["setpriv", "--bounding-set=-kill", "--inh-caps=-kill"],
                                 program=patched("rtot.GRACE = 0.5"))
        number = server.start("exec setpriv --reuid=65534 sh -c 'echo $$; exec sleep 99'")
        pid = int(server.wait_for_out(number, b"\n"))
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        for query in ("", "?signal=USR1"):
            self.assertError(server.post("/jobs/%d/kill%s" % (number, query)), 409, r"\b%d\b" % pid)
        self.assertTrue(is_alive(pid))
        self.assertEqual(server.delete("/jobs/%d" % number).status, 204)
        wait_until(lambda: re.search(r"(?m)^rtot: .*\b%d\b" % pid, server.log()))

    @need("setpriv")
    @unittest.skipIf(os.geteuid(), "needs root, for a job that runs as another user")
    def test_the_log_names_a_process_that_outlives_the_timeout(self):
        server = self.own_server(wrapper=["setpriv", "--bounding-set=-kill", "--inh-caps=-kill"],
                                 program=patched("rtot.GRACE = 0.5"))
        number = server.start("exec setpriv --reuid=65534 sh -c 'echo $$; exec sleep 99'", "timeout=0.3")
        pid = int(server.wait_for_out(number, b"\n"))
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        wait_until(lambda: re.search(r"(?m)^rtot: .*\b%d\b" % pid, server.log()))
        self.assertTrue(is_alive(pid))


class ParallelTest(ServerCase):
    options = ("-j", "2")

    def setUp(self):
        wait_until(lambda: self.server.children() == ([], []))

    def test_runs_that_many_at_a_time_and_the_others_in_order(self):
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

    def test_a_waiting_job_runs_although_the_temporary_directory_was_cleaned(self):
        server = self.own_server("-j", "1")
        first = server.start("echo ready; read go", "stdin")
        server.wait_for_out(first, b"ready")
        numbers = [server.start("echo %d" % number) for number in range(3)]
        for name in server.leftovers():
            shutil.rmtree(os.path.join(server.tmp, name))
        server.post("/jobs/%d/stdin?eof" % first)
        self.assertEqual([server.job(number, "wait&fields=out")["out"] for number in numbers], ["0\n", "1\n", "2\n"])
        directory, = server.leftovers()
        wait_until(lambda: os.listdir(os.path.join(server.tmp, directory)) == [], "the removal of the scripts")

    def test_a_waiting_job_can_be_deleted_before_it_starts(self):
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

    def test_input_for_a_waiting_job_is_held_until_it_starts(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))
        busy = [self.server.start("sleep 99") for _ in range(2)]
        waiting = self.server.start("cat", "stdin")
        sent = in_background(self.server.post, "/jobs/%d/stdin?eof" % waiting, "late")
        for number in busy:
            self.server.delete("/jobs/%d" % number)
        self.assertEqual(self.server.get("/jobs/%d?wait" % waiting).job["out"], "late")
        self.assertEqual(sent().status, 204)

    def test_a_client_that_disconnects_before_the_start_is_dropped(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))
        for _ in range(2):
            self.server.start("sleep 99")
        waiting = self.server.start("cat", "stdin")
        with self.server.send(b"POST /jobs/%d/stdin HTTP/1.1\r\n%bContent-Length: 1\r\n\r\nx" % (waiting, AUTH)):
            self.server.settle(1)
        self.server.settle()

    def test_jobs_that_cannot_be_started_leave_their_place(self):
        for script in ("#!/no/such\n", "#!", "#!/etc/passwd\n") * 2:
            self.server.run(script)
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")

    def test_a_job_that_is_deleted_before_its_first_moment_never_runs(self):
        """Both requests come in one packet, so nothing happens between them, but on a machine that is very busy."""
        marker = os.path.join(self.server.tmp, "marker")
        script = b"touch %b" % marker.encode()
        for _ in range(100):
            number = self.server.run("true")["id"] + 1
            with self.server.connect() as connection, connection.makefile("rb") as file:
                connection.sendall(b"POST /jobs HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%bDELETE /jobs/%d HTTP/1.1\r\n%b"
                                   b"\r\n" % (AUTH, len(script), script, number, AUTH))
                self.assertEqual([support.read_answer(file)[0] for _ in range(2)], [201, 204])
            line = wait_until(lambda: re.search("job %d complete: (.*)" % number, self.server.log()), "its end")
            if line.group(1).startswith("canceled"):
                self.server.run("true")     # had it run, it would have begun before
                self.assertFalse(os.path.exists(marker))
                return
            if os.path.exists(marker):      # then it was no longer new when it was deleted
                os.unlink(marker)
        self.fail("no job was deleted before its first moment")


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
        self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["out"].split()[0], hashlib.md5(data).hexdigest())

    def test_passes_on_a_chunked_body_as_it_comes(self):
        number = self.server.start("cat", "stdin")
        with self.server.connect() as connection:
            connection.sendall(b"POST /jobs/%d/stdin?eof HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n" % (number, AUTH))
            self.server.wait_for_out(number, b"one")
            connection.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
            self.assertIn(b" 204 ", connection.recv(1000))
        self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["out"], "onetwo")

    def test_a_job_that_does_not_read_holds_the_request_and_not_the_server(self):
        number = self.server.start("sleep 99", "stdin")
        answer = in_background(self.server.post, "/jobs/%d/stdin" % number, b"x" * (1 << 20))
        wait_until(lambda: self.server.connections() == 1)
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        self.server.settle(1)
        self.server.post("/jobs/%d/kill?signal=KILL" % number)
        self.assertError(answer(), 409, "closed")

    def test_a_client_that_disconnects_meanwhile_is_dropped(self):
        number = self.server.start("sleep 99", "stdin")
        self.addCleanup(lambda: self.server.delete("/jobs/%d" % number))
        for size in (100000, 200000):
            with self.server.connect() as connection:
                connection.sendall(b"POST /jobs/%d/stdin HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (number, AUTH, size) + b"x" * size)
                self.server.settle(1)
            self.server.settle()

    def test_unwritten_input_of_a_disconnected_client_is_dropped(self):
        marker = os.path.join(self.server.tmp, "marker")
        number = self.server.start("while ! [ -e %s ]; do sleep 0.02; done; wc -c" % marker, "stdin")
        with self.server.send(b"POST /jobs/%d/stdin?eof HTTP/1.1\r\n%bContent-Length: 131072\r\n\r\n" % (number, AUTH)
                              + b"x" * 131072):
            self.server.settle(1)
        self.server.settle()
        sent = in_background(self.server.post, "/jobs/%d/stdin?eof" % number, "end\n")
        with open(marker, "w"):
            pass
        self.addCleanup(os.unlink, marker)
        count = int(self.server.get("/jobs/%d?wait" % number).job["out"])
        self.assertEqual(sent().status, 204)
        self.assertTrue(4 < count <= 65536 + 4, count)      # what a pipe holds, and the end

    def test_refuses_input_that_is_not_open(self):
        number = self.server.start("sleep 99")
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, r"\?stdin")
        self.server.delete("/jobs/%d" % number)
        number = self.server.start("cat >/dev/null; sleep 99", "stdin")
        self.assertEqual(self.server.post("/jobs/%d/stdin?eof" % number).status, 204)
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, "closed")
        self.server.delete("/jobs/%d" % number)
        number = self.server.run("true", "stdin")["id"]
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, "closed")

    def test_refuses_input_that_the_job_has_closed(self):
        number = self.server.start("exec <&-; echo ready; sleep 99", "stdin")
        self.addCleanup(lambda: self.server.delete("/jobs/%d" % number))
        self.server.wait_for_out(number, b"ready")
        self.assertError(self.server.post("/jobs/%d/stdin" % number, "x"), 409, "closed its standard input")
        self.assertEqual(self.server.job(number)["state"], "running")


class TerminalTest(ServerCase):

    def test_a_job_has_a_terminal_of_the_size_that_was_asked_for(self):
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
        for body in ((b"3\r\nabc\r\n0\r\n\r\n"), (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")):       # whose end comes apart
            number = self.server.start("stty -echo; echo ready; cat; echo end", "tty")
            self.server.wait_for_out(number, b"ready")
            self.server.raw(b"POST /jobs/%d/stdin?eof HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nConnection: close\r\n"
                            b"Transfer-Encoding: chunked\r\n\r\n%b" % (number, body))
            self.assertEqual(self.server.get("/jobs/%d?wait" % number).job["out"], "ready\r\nabcend\r\n")
        number = self.server.start("cat; echo end", "tty")
        self.server.post("/jobs/%d/stdin?eof" % number, "no newline")
        self.assertRegex(self.server.get("/jobs/%d?wait" % number).job["out"], "no newlineend\r\n$")

    def test_a_line_that_a_terminal_would_cut_is_refused(self):
        """A terminal drops all from the 4096th byte of a line on: termios(3), canonical mode."""
        number = self.server.start("stty -echo; echo ready; while read -r line; do echo ${#line}; done", "tty")
        self.server.wait_for_out(number, b"ready")
        path = "/jobs/%d/stdin" % number
        self.assertError(self.server.post(path, b"x" * 4096 + b"\n"), 409, "4095 bytes")
        self.assertEqual(self.server.post(path, b"x" * 4000).status, 204)
        self.assertError(self.server.post(path, b"y" * 96 + b"\n"), 409, "4095 bytes")       # the rest of the same line
        self.assertEqual(self.server.post(path, b"y" * 95 + b"\n" + b"z" * 4095 + b"\n").status, 204)
        self.server.wait_for_out(number, b"4095\r\n4095\r\n")
        self.server.delete("/jobs/%d" % number)
        number = self.server.start("stty -icanon -echo; echo ready; head -c 5000 | wc -c", "tty")
        self.server.wait_for_out(number, b"ready")
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, b"x" * 5000).status, 204)
        self.assertEqual(self.server.job(number, "wait")["out"].split(), ["ready", "5000"])

    def test_resize_without_a_terminal_is_refused(self):
        number = self.server.run("true")["id"]
        self.assertError(self.server.post("/jobs/%d/resize?rows=1&cols=1" % number), 409, "tty")
        number = self.server.run("true", "tty")["id"]
        self.assertError(self.server.post("/jobs/%d/resize?rows=1&cols=1" % number), 409, "closed")

    def letting_go(self):
        """Start a script that closes its terminal, and opens it again when a file exists; return its number and the file."""
        closed, go = (os.path.join(self.server.tmp, name) for name in ("closed", "go"))
        number = self.server.start('exec </dev/null >/dev/null 2>&1; touch "$1"; until test -e "$2"; do sleep 0.01; done\n'
                                   'exec </dev/tty >/dev/tty; echo back; read line; echo "got $line"; exit 3',
                                   "tty&arg=%s&arg=%s" % (closed, go))
        wait_until(lambda: os.path.exists(closed))
        os.unlink(closed)
        return number, go

    def test_a_script_may_close_its_terminal_for_a_while(self):
        """When the server closed its side, the script got SIGHUP."""
        number, go = self.letting_go()
        self.server.settle()        # it has seen that the terminal is closed
        with open(go, "w"):
            pass
        self.addCleanup(os.unlink, go)
        wait_until(lambda: b"back" in self.server.out(number) or self.server.job(number)["state"] == "complete")
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, "late\n").status, 204)
        job = self.server.job(number, "wait&fields=exit_code,out")
        self.assertEqual(job["exit_code"], 3)
        self.assertRegex(job["out"], "got late\r\n$")

    def test_input_that_nobody_can_read_is_refused(self):
        number, _ = self.letting_go()
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, b"x" * 500000).status, 409)
        self.server.delete("/jobs/%d" % number)


class QuietTest(ServerCase):
    """The server takes no CPU while nothing happens, whatever its jobs and clients have left it with."""

    def setUp(self):
        self.addCleanup(self.clean_up)
        self.connections = []

    def clean_up(self):
        for connection in self.connections:
            connection.close()
        for job in self.server.get("/jobs?fields=held,state").jobs:
            if job["state"] != "complete" or job.get("held"):
                self.server.post("/jobs/%d/kill?signal=KILL" % job["id"])
        self.server.delete("/jobs")

    def terminal_that_is_left(self):
        self.server.run("trap '' HUP; sleep 99 & echo $!", "tty")

    def terminal_that_is_closed(self):
        number = self.server.start("trap '' HUP; exec <&- >&- 2>&-; sleep 99", "tty")
        wait_until(lambda: self.server.job(number)["pid"] and not descriptors_of(self.server.job(number)["pid"]))

    def input_that_has_been_written(self):
        number = self.server.start("head -c 300000 | wc -c; exec sleep 99", "stdin")
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, b"x" * 300000).status, 204)

    def input_that_nobody_reads(self):
        number = self.server.start("exec sleep 99", "stdin")
        self.connections.append(self.server.send(b"POST /jobs/%d/stdin HTTP/1.1\r\n%bContent-Length: 300000\r\n\r\n" % (number, AUTH)
                                                 + b"x" * 300000))

    def output_that_has_ended(self):
        self.server.start("exec >&- 2>&-; exec sleep 99")

    def background_process(self):
        self.server.run("sleep 99 & true")

    def clients_that_wait(self):
        number = self.server.start("exec sleep 99")
        for path in (b"/jobs/%d?wait", b"/jobs/%d/exit?wait", b"/jobs/%d/out?follow") * 100:
            self.connections.append(self.server.send(b"GET %b HTTP/1.1\r\n%b\r\n" % (path % number, AUTH)))

    def clients_that_do_not_read(self):
        number = self.server.run("head -c 30000000 /dev/zero", fields="")["id"]
        for path in (b"/out", b"?fields=out", b"/log?follow"):
            self.connections.append(self.server.send(b"GET /jobs/%d%b HTTP/1.1\r\n%b\r\n" % (number, path, AUTH)))

    def clients_that_send_and_do_not_read(self):
        connection = self.server.connect()
        connection.settimeout(0.2)
        with contextlib.suppress(socket.timeout):
            while True:
                connection.sendall((b"GET /jobs?fields=all HTTP/1.1\r\n%b\r\n" % AUTH) * 1000)
        self.connections.append(connection)

    def client_that_has_half_closed(self):
        number = self.server.start("exec sleep 99")
        connection = self.server.send(b"GET /jobs/%d?wait HTTP/1.1\r\n%b\r\n" % (number, AUTH))
        connection.shutdown(socket.SHUT_WR)
        self.connections.append(connection)

    SITUATIONS = (terminal_that_is_left, terminal_that_is_closed, input_that_has_been_written, input_that_nobody_reads,
                  output_that_has_ended, background_process, clients_that_wait, clients_that_do_not_read,
                  clients_that_send_and_do_not_read, client_that_has_half_closed)

    def spins(self):
        wait_until(lambda: self.server.is_asleep() and self.server.is_asleep(), "an idle server", 10)
        before, began = self.server.cpu(), time.monotonic()
        time.sleep(1)           # a span in which next to nothing may be done, not a wait for something
        return (self.server.cpu() - before) / (time.monotonic() - began) > 0.2

    def test_takes_no_cpu_while_nothing_happens(self):
        for situation in self.SITUATIONS:
            situation(self)
        if self.spins():            # find out which it is
            self.clean_up()
            for situation in self.SITUATIONS:
                with self.subTest(situation=situation.__name__):
                    situation(self)
                    self.assertFalse(self.spins())
                    self.clean_up()


class EndTest(Case):
    """The end of the server, which ends its jobs and leaves nothing behind."""

    def end(self, stop, script="echo $$; sleep 96 & echo $!; wait", lines=2):
        server = self.own_server(program=patched("rtot.GRACE = 0.5"))
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

    def test_a_waiting_job_never_starts(self):
        server = self.own_server("-j", "1")
        server.start("sleep 99")
        server.start("touch %s/marker" % server.tmp)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(server.leftovers(), [])

    def test_an_answer_that_is_being_sent_is_sent_to_its_end(self):
        server = self.own_server(program=patched("rtot.DRAIN = 60"))
        number = server.run("head -c 30M /dev/zero", fields="")["id"]
        with contextlib.closing(server.client()) as client:
            client.request("GET", "/jobs/%d/out" % number, headers={"Rtot-Secret": server.secret})
            response = client.getresponse()
            self.assertEqual(server.delete("/").status, 204)
            self.assertEqual(len(response.read()), 30 << 20)
        self.assertEqual(server.process.wait(support.LIMIT), 0)

    def test_a_client_that_does_not_read_holds_nothing_up(self):
        server = self.own_server()
        number = server.run("head -c 30M /dev/zero", fields="")["id"]
        with server.send(b"GET /jobs/%d/out HTTP/1.1\r\n%b\r\n" % (number, AUTH)):
            server.settle(1)
            self.assertEqual(server.stop(), 0)

    def test_clients_that_wait_get_their_answer(self):
        server = self.own_server()
        number = server.start("sleep 99")
        statuses = in_background(in_parallel, lambda _: server.get("/jobs/%d?wait" % number).status, range(40))
        wait_until(lambda: server.connections() == 40)
        server.settle(40)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(statuses(), [200] * 40)

    def test_clients_are_served_while_jobs_end(self):
        server = self.own_server()
        number = server.start_running("trap 'echo ending; read go' TERM; echo ready; sleep 99 & wait", "stdin")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_out(number, b"ending")
        self.assertEqual(server.job(number)["state"], "running")
        self.assertError(server.post("/jobs", "true"), 503, "exit")
        self.assertEqual(server.post("/jobs/%d/kill?signal=KILL" % number).status, 204)
        self.assertEqual(server.process.wait(support.LIMIT), 0)

    def test_a_process_that_has_left_its_session_does_not_hold_the_server(self):
        server = self.own_server(program=patched("rtot.GRACE = 600"))
        job = server.run("setsid sleep 99 & echo $!")
        self.addCleanup(os.kill, int(job["out"]), signal.SIGKILL)
        self.assertTrue(job["held"])
        self.assertEqual(server.stop(), 0)
        self.assertTrue(is_alive(int(job["out"])))

    def test_a_follower_sees_the_end_of_its_job(self):
        server = self.own_server()
        number = server.start("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
        follower = Follower(server, "/jobs/%d/out?follow" % number)
        follower.wait_for(b"ready\n")
        self.assertEqual(server.delete("/").status, 204)
        self.assertEqual(follower.finish(), b"ready\nbye\n")


@need("unshare", "mount")
@unittest.skipIf(os.geteuid(), "needs root, for namespaces")
class WorkingDirectoryTest(Case):

    def test_runs_where_it_may_not_enter_its_own_directory(self):
        """As by sudo -u nobody from /root; only the question is made to fail, since the tests run as root."""
        server = self.own_server(program=patched(before=(
            "import os\naccess = os.access\nos.access = lambda path, *args: path != '.' and access(path, *args)")))
        self.assertEqual(server.run("echo hi")["out"], "hi\n")
        self.assertEqual(server.run("pwd", "cwd=/usr")["out"], "/usr\n")
        self.assertNotEqual(server.run("pwd")["out"], "/usr\n")


class NamespaceTest(Case):

    def test_as_pid_1_it_ends_on_term_and_reaps_orphans(self):
        server = self.own_server(wrapper=["unshare", "-p", "-f", "--mount-proc"])
        (inner,), _ = server.children()
        server.pid = inner

        def end_inner():
            if is_alive(inner):
                os.kill(inner, signal.SIGKILL)
        self.addCleanup(end_inner)

        def leave_orphans():
            for _ in range(3):
                server.run("setsid sh -c 'sleep 0.1' >/dev/null 2>&1 </dev/null & true")
        leave_orphans()
        wait_until(lambda: server.children() == ([], []), "the reaping of orphans")
        self.assertEqual(server.run("exit 3")["exit_code"], 3)
        held = server.run("sleep 99 & true")        # its zombie comes before the orphans
        self.assertTrue(held["held"])
        leave_orphans()
        wait_until(lambda: len(server.children()[0]) <= 1 and len(server.children()[1]) == 1, "the reaping of orphans")
        os.kill(inner, signal.SIGTERM)
        self.assertEqual(server.process.wait(support.LIMIT), 0)

    def test_kill_reaches_all_with_the_proc_of_another_namespace(self):
        server = self.own_server(wrapper=["unshare", "-p", "-f"])
        (inner,), _ = server.children()
        self.addCleanup(os.kill, inner, signal.SIGTERM)
        number = server.start_running("(trap '' TERM; echo ready; exec sleep 62.125 >/dev/null 2>&1) & wait")
        self.assertEqual(server.post("/jobs/%d/kill?grace=0.5" % number).status, 204)

        def living():
            for name in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError), open("/proc/%s/cmdline" % name, "rb") as file:
                    if file.read() == b"sleep\x0062.125\0":
                        return True
            return False
        wait_until(lambda: not living())
