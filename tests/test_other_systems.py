"""Other systems: what a system or a Python may lack is removed, and rtot still runs, captures, feeds, signals and ends jobs."""
import os
import socket
import sys
import unittest

import support
from support import AUTH, Case, Follower, Server, in_background, in_parallel, need, patched, wait_until

NAMES = {           # attributes that are removed before rtot is imported, as regular expressions by module
    "waitid": {"os": "waitid|P_ALL|P_PID|P_PGID|P_PIDFD|WNOWAIT|WEXITED|WSTOPPED|WCONTINUED|CLD_.*"},
    "epoll": {"select": "epoll|EPOLL.*"},
    "poll and epoll": {"select": "epoll|EPOLL.*|poll|POLL.*"},
    "POLLRDHUP": {"select": "POLLRDHUP|EPOLLRDHUP"},
    "posix_spawn": {"os": "posix_spawnp?|POSIX_SPAWN_.*"},
    "memfd_create and pipe2": {"os": "memfd_create|MFD_.*|pipe2"},
    "prlimit": {"resource": "prlimit"},
    "SO_DOMAIN and TCP_KEEP*": {"socket": "SO_DOMAIN|SO_PROTOCOL|TCP_KEEP.*"},
    "O_PATH and O_TMPFILE": {"os": "O_PATH|O_TMPFILE"},
    "the C library": {"ctypes": "CDLL"},
}
ALL = {module: "|".join(names[module] for names in NAMES.values() if module in names)
       for module in {module for names in NAMES.values() for module in names}}

# A /dev of our own, in which a command may remove what it likes, takes the place of the system's.
DEV = """set -e; new=$(mktemp -d); mount -t tmpfs none $new
for name in null zero full tty random urandom; do cp -a /dev/$name $new; done
mkdir $new/pts $new/shm; mount --bind /dev/pts $new/pts; ln -s pts/ptmx $new/ptmx; ln -s /proc/self/fd $new/fd
cd $new; %s; cd /; mount --rbind $new /dev; umount -l $new; rmdir $new"""
MOUNTS = {
    "/proc": "mount -t tmpfs none /proc",
    "/dev/fd": DEV % "rm fd",
    "a /dev/fd that is alive": DEV % "rm fd; mkdir fd; touch fd/0 fd/1 fd/2",
    "/dev/null": DEV % "rm null",
    "/dev/shm": DEV % "rmdir shm",
    "/proc and most of /dev": DEV % "rm fd null zero full random urandom; rmdir shm" + "; mount -t tmpfs none /proc",
}


# What another system does otherwise, before rtot is imported.
TERMINAL = """import os, sys
sys.platform = "freebsd14"      # whose terminals control nobody until TIOCSCTTY
if hasattr(os, "posix_spawn"):
    spawn = os.posix_spawn
    def spawn_as_bsd(*args, file_actions=(), **more):
        actions = [action[:3] + (action[3] | os.O_NOCTTY, action[4]) if action[0] == os.POSIX_SPAWN_OPEN else action
                   for action in file_actions]
        return spawn(*args, file_actions=actions, **more)
    os.posix_spawn = spawn_as_bsd
"""
EXIT_CODES = """import os, types
waitid = os.waitid
def waitid_of_bsd(*args):       # where it gives all 32 bits of what exit(3) was called with
    info = waitid(*args)
    if info is None or info.si_code != os.CLD_EXITED: return info
    return types.SimpleNamespace(si_pid=info.si_pid, si_uid=info.si_uid, si_signo=info.si_signo, si_code=info.si_code,
                                 si_status=info.si_status + %d)
os.waitid = waitid_of_bsd
"""
V6ONLY = """import errno, socket
setsockopt = socket.socket.setsockopt
def setsockopt_of_openbsd(self, level, name, value):
    if (level, name, value) == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0):
        raise OSError(errno.EINVAL, "Invalid argument")
    return setsockopt(self, level, name, value)
socket.socket.setsockopt = setsockopt_of_openbsd
"""
TIMEVAL = """import errno, socket
setsockopt = socket.socket.setsockopt
def setsockopt_of_another_size(self, level, name, value):
    if level == socket.SOL_SOCKET and name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        raise OSError(errno.EDOM, "Numerical argument out of domain")
    return setsockopt(self, level, name, value)
socket.socket.setsockopt = setsockopt_of_another_size
"""


def without(names):
    """Return the code that removes the names."""
    return ("import importlib, re\n"
            "for module, pattern in sorted(%r.items()):\n"
            "    module = importlib.import_module(module)\n"
            "    for name in [name for name in dir(module) if re.fullmatch(pattern, name)]: delattr(module, name)\n" % names)


class OtherSystemsTest(Case):

    def script(self, server):
        """Use a server in all ways."""
        job = server.run("echo out; echo err >&2; exit 3", "cwd=/usr")
        self.assertEqual((job["out"], job["err"], job["exit"], job["exit_code"]), ("out\n", "err\n", "exit status 3", 3))
        self.assertEqual(server.run("read x; echo $?; cat")["out"], "1\n")                       # its input is empty
        self.assertEqual(server.run("kill -9 $$")["exit"], "signal: killed")
        self.assertEqual(server.run("#!/no/such\n")["exit"], "fork/exec /no/such: no such file or directory")
        codes = in_parallel(lambda code: server.run("exit %d" % code)["exit_code"], range(10))
        self.assertEqual(codes, list(range(10)))
        number = server.start_running("sleep 99 & echo $! ready; wait")
        child = int(server.out(number).split()[0])
        pid = server.job(number)["pid"]
        waiter = in_background(server.get, "/jobs/%d?wait" % number)
        self.assertEqual(server.post("/jobs/%d/kill" % number).status, 204)
        self.assertEqual(waiter().job["exit"], "signal: terminated")
        self.assertGone(pid, child)
        self.assertTrue(server.run("exec sleep 99", "timeout=0.1")["timed_out"])
        number = server.start("while read line; do echo $line; done", "stdin")
        follower = Follower(server, "/jobs/%d/log?follow" % number)
        for line in (b"one\n", b"two\n"):
            self.assertEqual(server.post("/jobs/%d/stdin" % number, line).status, 204)
            follower.wait_for(line)
        self.assertEqual(server.post("/jobs/%d/stdin?eof" % number).status, 204)
        self.assertEqual(follower.finish(), b"one\ntwo\n")
        self.assertRegex(server.run("test -t 0 && stty size; echo hi >/dev/tty", "tty&rows=40&cols=132")["out"], "^40 132\r\nhi\r\n$")
        request = b"POST /jobs?wait&attach&label=attached HTTP/1.1\r\n%bContent-Length: 8\r\n\r\nsleep 99" % AUTH
        with server.send(request):
            pid = wait_until(lambda: server.get("/jobs?state=running&label=attached&fields=pid").jobs)[0]["pid"]
        self.assertGone(pid)            # its client has hung up
        # Not bash: if it finds no /dev/tty, it opens the terminal itself, and so gets it on Linux.
        script = "#!%s -IS\nwith open('/dev/tty', 'w') as tty:\n    tty.write('hi\\n')\n" % sys.executable
        self.assertEqual(server.run(script, "tty")["out"], "hi\r\n")
        number = server.start_running("echo ready; sleep 99")
        pid = server.job(number)["pid"]
        self.assertEqual(server.delete("/jobs/%d" % number).status, 204)
        self.assertGone(pid)
        last = server.start_running("echo ready; sleep 99")
        pid = server.job(last)["pid"]
        self.assertEqual(server.delete("/").status, 204)
        self.assertEqual(server.process.wait(support.LIMIT), 0)
        self.assertGone(pid)
        self.assertEqual(server.leftovers(), [])
        self.assertNotIn("Traceback", server.log())

    def check(self, cases):
        """Run the script for each (name, arguments of a server), some at a time."""
        def one(case):
            name, more = case
            server = Server(**more)
            try:
                self.script(server.ready())
            except Exception as error:
                return "without %s: %r %s" % (name, error, server.log())
            finally:
                server.process.kill()
                server.close()
            return None
        for begin in range(0, len(cases), 3):
            faults = [fault for fault in in_parallel(one, cases[begin:begin + 3]) if fault]
            for fault in faults:
                with self.subTest(fault=fault.split(":")[0]):
                    self.fail(fault)

    def test_runs_without_names_that_a_python_may_lack(self):
        cases = sorted(NAMES.items()) + [("all of them", ALL)]
        self.check([(name, {"program": patched(before=without(names))}) for name, names in cases])

    def test_without_waitid_it_does_not_wait_for_those_that_it_may_not_signal_any_more(self):
        server = self.own_server(program=patched("rtot.GRACE = 600", without(NAMES["waitid"])))
        server.start_running("echo ready; exec sleep 600")
        self.assertEqual(server.delete("/").status, 204)
        self.assertEqual(server.process.wait(support.LIMIT), 0)

    def test_runs_where_calls_do_otherwise(self):
        cases = (("a terminal that controls by being opened", TERMINAL), ("exit codes of 8 bits", EXIT_CODES % 256),
                 ("exit codes over 0", EXIT_CODES % -256), ("IPv4 by way of IPv6", V6ONLY),
                 ("the size of a timeval", TIMEVAL))
        self.check([(name, {"program": patched(before=before)}) for name, before in cases])

    def test_listens_on_ipv4_alone_where_ipv6_sockets_take_no_ipv4(self):
        server = self.own_server(address=":0", program=patched(before=V6ONLY))
        self.assertIn("listens on http://0.0.0.0:%d/" % server.port, server.log())
        self.assertEqual(server.get("/ping").status, 200)

    def test_listens_on_an_ipv6_address_where_ipv6_sockets_take_no_ipv4(self):
        server = self.own_server(address="[::1]:0", program=patched(before=V6ONLY))
        self.assertIn("listens on http://[::1]:%d/" % server.port, server.log())

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid(), "needs root, for mounts")
    def test_runs_without_files_that_a_system_may_lack(self):
        def wrapper(mounts):
            return ["unshare", "-m", "sh", "-c", mounts + '\nexec "$@"', "sh"]
        grace = "rtot.GRACE = 0.5"      # which passes where it cannot be seen that all have ended
        cases = [(name, {"wrapper": wrapper(mounts), "program": patched(grace)}) for name, mounts in sorted(MOUNTS.items())]
        cases.append(("anything", {"wrapper": wrapper(MOUNTS["/proc and most of /dev"]), "program": patched(grace, without(ALL))}))
        self.check(cases)

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid(), "needs root, for mounts")
    def test_without_proc_it_says_that_the_secret_can_be_seen(self):
        server = self.own_server(wrapper=["unshare", "-m", "sh", "-c", 'exec 7</etc/passwd; mount -t tmpfs none /proc; exec "$@"', "sh"])
        self.assertIn("rtot: the secret can be seen in ps here: give it by --secret-file or RTOT_SECRET\n", server.log())
        job = server.run("trap '' TERM; sleep 98 & echo $!; exit 3")
        self.assertEqual((job["exit_code"], job["held"]), (3, True))
        pid = int(job["out"])       # of the namespace outside, which has a /proc
        self.assertEqual(support.descriptors_of(pid)[0], "/dev/null")
        self.assertFalse(os.path.exists("/proc/%d/fd/7" % pid))
        self.assertEqual(server.post("/jobs/%d/kill?grace=0.2" % job["id"]).status, 204)
        self.assertGone(pid)

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid(), "needs root, for mounts")
    def test_jobs_inherit_no_descriptor_where_dev_fd_does_not_list_them(self):
        for name in ("/dev/fd", "a /dev/fd that is alive"):
            wrapper = ["unshare", "-m", "sh", "-c", 'exec 7</etc/passwd\n%s\nexec "$@"' % MOUNTS[name], "sh"]
            out = self.own_server(wrapper=wrapper).run("ls -l /proc/self/fd /proc/$$/fd")["out"]
            self.assertIn(" 0 -> ", out)
            self.assertNotIn("passwd", out, name)

    @need("pypy3")
    def test_runs_on_pypy(self):
        self.check([("CPython", {"python": "pypy3"})])

    def test_takes_a_handed_over_socket_without_so_domain(self):
        from test_command_line import hand_over
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = self.own_server(address=None, program=patched(before=without(NAMES["SO_DOMAIN and TCP_KEEP*"])), **hand_over(listener))
            self.assertEqual(server.port, listener.getsockname()[1])
            self.assertEqual(server.run("echo hi")["out"], "hi\n")
