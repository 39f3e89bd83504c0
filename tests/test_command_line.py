"""The command line: options, environment, secret, address, log, daemon, signals, exit status."""
import argparse
import contextlib
import errno
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import support
import rtot
from support import (Case, Server, descriptors_of, in_parallel, is_alive, limited, need, patched, process_state, read_text,
                     wait_until)


def run(*options, env=None, cwd=None, program=(support.SOURCE,)):
    """Run the program to its end; return (exit status, standard output, standard error)."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RTOT_")}
    environ.update(env or {})
    process = subprocess.Popen([sys.executable] + list(program) + list(options), stdin=subprocess.DEVNULL, cwd=cwd,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, universal_newlines=True)
    try:
        out, err = process.communicate(timeout=support.LIMIT)
    finally:
        process.kill()
    return process.returncode, out, err


class UnixServer(Server):
    """A server on a Unix socket."""

    def ready(self):
        wait_until(lambda: "listens on unix:" in self.log())
        self.path = self.log().split("listens on unix:")[1].split("\n")[0]
        return self

    def client(self):
        client = http.client.HTTPConnection("localhost", timeout=support.LIMIT)
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(self.path)
        return client


class OptionTest(Case):

    def test_bad_values_are_a_usage_error(self):
        cases = ((["-a", "8457"], "--addr: '8457' is no address, like :8457"), (["-a", ":99999"], "is no address"),
                 (["-a", "::1:80"], "is no address"), (["-f", "xml"], "'xml' is no format: text or json"),
                 (["-j", "-1"], "--parallel"), (["-j", "x"], "'x' is no count, like 0 or 8"),
                 (["--max-output", "64X"], "'64X' is no size, like 4096, 64K"), (["--max-output", "0"], "is no size"),
                 (["--max-script", "-5"], "--max-script"), (["--keep", "1.5"], "is no count"),
                 (["--max-connections", "0"], "'0' is no whole number over 0"), (["--head-timeout", "0"], "over 0"), (["--nonsense"], "--nonsense"),
                 (["-s", ""], "secret is empty"), (["-s", " \t"], "secret is empty"), (["-s", "a\nb"], "control character"),
                 (["-s", "x", "--secret-file", support.SOURCE], "not allowed with argument -s/--secret"),
                 (["--secret-file", "/no/such"], "cannot read the secret from /no/such: No such file"),
                 (["--secret-file", "/dev/null"], "secret is empty"),
                 (["--idle-exit", "0"], "--idle-exit"), (["--idle-exit", "x"], "--idle-exit"))
        for (options, message), (status, out, err) in zip(cases, in_parallel(lambda case: run(*case[0]), cases)):
            with self.subTest(options=options):
                self.assertEqual((status, out), (2, ""))
                self.assertIn("usage: rtot", err)
                self.assertIn(message, err.rstrip("\n").split("\n")[-1])      # the line that matters comes last
                self.assertNotIn("Traceback", err)

    def test_bad_values_in_the_environment_are_a_usage_error(self):
        for name, value, message in (("RTOT_ADDR", "nowhere", "'nowhere' is no address, like :8457"),
                                     ("RTOT_LOG_FORMAT", "xml", "'xml' is no format: text or json"),
                                     ("RTOT_SECRET", "a\nb", "the secret has a control character")):
            status, _, err = run(env={name: value})
            self.assertEqual(status, 2, err)
            self.assertIn("rtot: error: %s: %s" % (name, message), err.rstrip("\n").split("\n")[-1])
            self.assertNotIn("Traceback", err)

    def test_an_empty_variable_is_as_if_it_were_not_set(self):
        for name in ("RTOT_ADDR", "RTOT_SECRET", "RTOT_LOG_FORMAT"):        # as in an EnvironmentFile or a compose file
            server = self.own_server(env={name: ""})
            self.assertEqual(server.get("/").status, 200)
        server = self.own_server(secret=None, env={"RTOT_SECRET": ""})
        self.assertIn("made: ", server.log())

    def test_help_names_every_option_and_shows_how_to_begin(self):
        status, out, err = run("--help")
        self.assertEqual((status, err), (0, ""))
        for word in ("--addr", "--secret", "--secret-file", "--log-format", "--version", "--parallel", "--max-output",
                     "--max-total", "--max-script", "--keep", "--max-connections", "--idle-exit", "RTOT_ADDR", "RTOT_SECRET",
                     "RTOT_LOG_FORMAT", "curl -H 'Rtot-Secret: secret'", "?wait", "?follow"):
            self.assertIn(word, out)

    @need("curl")
    def test_the_commands_of_help_work_as_pasted(self):
        out = run("--help")[1]
        options = re.search("with rtot started by: (.*)\n", out).group(1)
        server = self.own_server(*options.replace("8457", "0").split(), address=None, secret=None)

        def paste(command):
            process = subprocess.Popen(["sh", "-c", command.replace("8457", str(server.port))], cwd=server.tmp,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            said = process.communicate(timeout=support.LIMIT)[0]
            self.assertEqual(process.returncode, 0, command)
            return said
        follow, wait, last = re.findall("(?m)^  (curl .*)$", out)
        self.assertEqual(paste(follow), b"wat is happening\n")
        (job,) = json.loads(paste(wait).decode("utf-8"))["jobs"]
        self.assertEqual((job["state"], job["exit"]), ("complete", "exit status 3"))
        self.assertEqual(json.loads(paste(last).decode("utf-8"))["jobs"], [job])
        page = re.search(r"In a browser, http://127\.0\.0\.1:8457(/\S*)", out).group(1)
        self.assertIn(b"<title>", server.get(page, headers={"Accept": "text/html"}, secret=False).body)
        method, end = re.search(r"\b([A-Z]+) http://127\.0\.0\.1:8457(/\S*)\s", out).groups()
        server.secret = "secret"
        self.assertEqual(server.request(method, end).status, 204)
        self.assertEqual(server.process.wait(support.LIMIT), 0)

    def test_help_tells_the_defaults(self):
        out = " ".join(run("--help")[1].split())
        for option, default in (("--head-timeout", "10"), ("--body-timeout", "30"), ("--idle-timeout", "75"),
                                ("--max-connections", "1000"), ("--max-script", "16M"), ("--max-output", "64M"),
                                ("--max-total", "a quarter of the memory"), ("--parallel", "0"), ("--keep", "0"), ("--addr", ":8457")):
            self.assertRegex(out, re.escape(option) + r"\b(?:(?!\(default:).)*\(default: %s\b" % re.escape(default) if default[0] != ":"
                             else r"\(default: :8457\)", option)

    def test_version(self):
        for option in ("-v", "--version"):
            self.assertEqual(run(option), (0, "rtot %s\n" % rtot.__version__, ""))

    def test_takes_gos_way_to_write_a_flag(self):
        server = self.own_server("-a=127.0.0.1:0", "-s=swordfish", address=None, secret=None)
        self.assertEqual(server.get("/", headers={"Rtot-Secret": "swordfish"}, secret=False).status, 200)

    def test_the_environment_stands_for_options(self):
        server = self.own_server(address=None, secret=None, env={"RTOT_ADDR": "127.0.0.1:0", "RTOT_SECRET": "swordfish",
                                                            "RTOT_LOG_FORMAT": "json"})
        server.secret = "swordfish"
        self.assertEqual(server.get("/").status, 200)
        wait_until(lambda: '"path": "/"' in server.log())

    def test_an_option_beats_the_environment(self):
        for env in ({"RTOT_ADDR": "nowhere:1", "RTOT_SECRET": "other"}, {"RTOT_ADDR": "nowhere", "RTOT_SECRET": "a\nb"}):
            server = self.own_server(env=env)
            self.assertEqual(server.get("/").status, 200)

    def test_a_file_of_the_secret_beats_the_environment(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"swordfish\n")
            file.flush()
            for value in ("other", "a\nb", " "):
                server = self.own_server("--secret-file", file.name, secret=None, env={"RTOT_SECRET": value})
                server.secret = "swordfish"
                self.assertEqual(server.get("/").status, 200)
                with open("/proc/%d/environ" % server.pid, "rb") as environ:
                    self.assertNotIn(b"RTOT_SECRET=" + value.encode("ascii"), environ.read())

    def test_sizes(self):
        for text, size in (("1", 1), ("4K", 4096), ("64M", 64 << 20), ("2g", 2 << 30)):
            self.assertEqual(rtot.TYPES["SIZE"](text), size)

    def test_all_output_may_take_a_quarter_of_the_memory(self):
        server = self.own_server("--max-output", "1G", wrapper=limited("-v 600000"))
        self.assertEqual(server.run("head -c 200M /dev/zero", fields="dropped")["dropped"], (200 << 20) - 600000 * 1024 // 4)

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid() or not os.path.isdir("/sys/fs/cgroup"), "needs root, for a mount in the place of cgroups")
    def test_the_memory_is_that_of_the_smallest_cgroup(self):
        """A limit on a group above the own one was not seen, and the job ended the server for want of memory."""
        cgroups = ("""set -e; mount -t tmpfs none /sys/fs/cgroup; mkdir -p /sys/fs/cgroup/a/b/c; echo 0::/a/b/c >/sys/fs/cgroup/own
                      echo 83886080 >/sys/fs/cgroup/a/memory.max; echo max >/sys/fs/cgroup/a/b/memory.max
                      echo 104857600 >/sys/fs/cgroup/a/b/c/memory.max""",
                   """set -e; mount -t tmpfs none /sys/fs/cgroup; mkdir -p /sys/fs/cgroup/memory/a/b; echo 4:memory:/a/b >/sys/fs/cgroup/own
                      echo 9223372036854771712 >/sys/fs/cgroup/memory/memory.limit_in_bytes
                      echo 83886080 >/sys/fs/cgroup/memory/a/memory.limit_in_bytes
                      echo 104857600 >/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes""")
        for mounts in cgroups:
            mounts += '\nmount --bind /sys/fs/cgroup/own /proc/$$/cgroup; exec "$@"'
            server = self.own_server("--max-output", "1G", wrapper=["unshare", "-m", "sh", "-c", mounts, "sh"])
            self.assertEqual(server.run("head -c 60M /dev/zero", fields="dropped")["dropped"], 40 << 20)


class SecretTest(Case):

    def test_a_secret_is_made_and_logged_if_none_is_given(self):
        server = self.own_server(secret=None)
        made = re.search("made: ([0-9a-f]{32})\n", server.log()).group(1)
        self.assertEqual(server.get("/", secret=False).status, 401)
        self.assertEqual(server.get("/", headers={"Rtot-Secret": made}, secret=False).status, 200)

    def test_is_read_from_the_first_line_of_a_file(self):
        for content in (b"  from file \r\nsecond line\n", b"\xef\xbb\xbffrom file\n"):       # with a byte order mark
            with tempfile.NamedTemporaryFile() as file:
                file.write(content)
                file.flush()
                server = self.own_server("--secret-file", file.name, secret=None)
                server.secret = "from file"
                self.assertEqual(server.get("/").status, 200)

    def test_a_file_that_cannot_be_read_is_an_error_of_a_line(self):
        before = ("import builtins, io\nreal = builtins.open\n"
                  "class Broken(io.BytesIO):\n"
                  "    def readline(self, *args): raise OSError(5, 'Input/output error')\n"
                  "builtins.open = lambda path, *args, **more: Broken() if path == 'broken' else real(path, *args, **more)")
        for path, program, reason in (("/", [support.SOURCE], "Is a directory"),
                                      ("broken", patched(before=before), "Input/output error")):
            status, _, err = run("--secret-file", path, program=program)
            self.assertEqual(status, 2)
            self.assertIn("cannot read the secret from %s: %s" % (path, reason), err.rstrip("\n").split("\n")[-1])

    def test_is_read_from_the_first_line_of_standard_input(self):
        reading, writing = os.pipe()
        with open(reading, "rb") as stdin:
            server = Server("--secret-file", "-", secret=None, stdin=stdin)
        self.addCleanup(server.close)
        with open(writing, "wb") as file:
            file.write(b"from a pipe\nnot this\n")
        server.ready().secret = "from a pipe"
        self.assertEqual(server.run("read x; echo $?")["out"], "1\n")

    def test_is_hidden_from_ps_and_from_the_environment(self):
        ways = [dict(secret="swordfish"), dict(secret=None, env={"RTOT_SECRET": "swordfish"}), dict(secret=" swordfish\t"),
                dict(secret=None, program=[support.SOURCE, "-s=swordfish"]),
                dict(secret=None, program=[support.SOURCE, "--secret=swordfish"]),
                dict(secret="swordfish", env={"RTOT_SECRET": "swordfish"})]
        for way in ways:
            server = self.own_server(**way)
            server.secret = "swordfish"
            self.assertEqual(server.get("/").status, 200)
            for name in ("cmdline", "environ"):
                with open("/proc/%d/%s" % (server.pid, name), "rb") as file:
                    text = file.read()
                self.assertNotIn(b"swordfish", text)
                self.assertIn({"cmdline": b"rtot.py", "environ": b"PATH="}[name], text)
            self.assertNotIn("swordfish", server.run("cat /proc/$PPID/cmdline /proc/$PPID/environ; env")["out"])
            self.assertNotIn("swordfish", server.log())

    def test_is_hidden_where_it_is_given_twice(self):
        server = self.own_server(secret="aaaa", env={"RTOT_SECRET": "bbbb"})
        with open("/proc/%d/environ" % server.pid, "rb") as file:
            self.assertNotIn(b"bbbb", file.read())

    def test_hides_nothing_else(self):
        server = self.own_server(secret="a", env={"RTOT_SECRET": "b", "BANANA": "b"})
        with open("/proc/%d/cmdline" % server.pid, "rb") as file:
            self.assertIn(b"127.0.0.1", file.read())
        with open("/proc/%d/environ" % server.pid, "rb") as file:
            self.assertIn(b"BANANA=b", file.read())
        self.assertEqual(server.get("/").status, 200)

    def test_a_short_one_on_a_public_address_is_warned_about(self):
        for address, secret, warned in ((":0", "1234567", True), (":0", "12345678", False), ("127.0.0.1:0", "1", False)):
            server = self.own_server(address=address, secret=secret)
            self.assertEqual(bool(re.search("(?m)^rtot: .*guess", server.log())), warned, (address, secret))


class StartTest(Case):

    def test_a_start_that_lacks_something_is_an_error_of_a_line(self):
        before = "import os\ndef fork(): raise BlockingIOError(11, 'Resource temporarily unavailable')\nos.fork = fork"
        status, _, err = run("-d", "-s", "x", program=patched(before=before))
        self.assertEqual((status, err), (1, "rtot: cannot go on in the background: Resource temporarily unavailable\n"))
        for count in (4, 5, 6, 7, 12, 19):
            after = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))" % (count, count)
            status, _, err = run("-a", "127.0.0.1:0", "-s", "x", program=patched(after))
            self.assertEqual(status, 1)
            lack = "rtot needs 20 descriptors, and may have %d: see ulimit -n" % count
            self.assertRegex(err, r"(?m)^rtot: (cannot start: Too many open files|%s)\n\Z" % lack)
            self.assertNotIn("Traceback", err)


class AddressTest(Case):

    def test_every_port_can_be_given_and_no_other(self):
        for port in range(65536):
            self.assertEqual(rtot.TYPES["ADDR"]("host:%d" % port), ("host", port))
        for port in (65536, 65540, 65600, 66000, 70000, 99999, 100000):
            self.assertRaises(argparse.ArgumentTypeError, rtot.TYPES["ADDR"], "host:%d" % port)

    def test_a_port_that_is_taken_is_an_error_of_one_line(self):
        with contextlib.closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            status, out, err = run("-a", address, "-s", "x")
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(err, "rtot: cannot listen on %s: %s\n" % (address, os.strerror(errno.EADDRINUSE)))

    def test_an_unknown_host_is_an_error_of_one_line(self):
        status, _, err = run("-a", "no.such.host.invalid:0", "-s", "x")
        self.assertEqual((status, err.count("\n")), (1, 1))
        self.assertIn("cannot listen on no.such.host.invalid:0: ", err)
        for address in ("foo..bar:0", b"\xc3\xa9..x:0"):        # no valid names for getaddrinfo and for IDNA
            status, _, err = run("-a", address, "-s", "x")
            self.assertEqual((status, err.count("\n")), (1, 1), err)
            self.assertRegex(err, "^rtot: cannot listen on .*[.][.]")

    def test_a_star_is_all_addresses(self):
        self.assertEqual([rtot.TYPES["ADDR"](text) for text in ("*:1", ":1", "a:1")], [("", 1), ("", 1), ("a", 1)])

    def test_all_addresses_are_ipv6_and_ipv4(self):
        server = self.own_server(address=":0")
        self.assertEqual(server.get("/").status, 200)
        if "[::]" in server.log():
            with contextlib.closing(server.connect("::1")) as connection:
                connection.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
                self.assertIn(b" 200 ", connection.recv(100))

    def test_listens_on_one_address_alone(self):
        server = self.own_server(address="127.0.0.2:0")
        self.assertRaises(OSError, server.connect)
        server.connect("127.0.0.2").close()

    def test_a_unix_socket_is_for_its_user_alone_and_removed_at_the_end(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "socket")
            server = UnixServer("-s", "swordfish", address="unix:" + path, secret=None)
            self.addCleanup(server.close)
            server.ready()
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            server.secret = "swordfish"
            self.assertEqual(server.run("echo hi")["out"], "hi\n")
            self.assertEqual(server.get("/", secret=False).status, 401)
            wait_until(lambda: " unix POST /jobs 201 " in server.log())
            status, _, err = run("-a", "unix:" + path, "-s", "x")
            self.assertEqual((status, err), (1, "rtot: cannot listen on unix:%s: Address already in use\n" % path))
            server.process.kill()
            server.process.wait()
            self.assertTrue(os.path.exists(path))
            again = UnixServer(address="unix:" + path)
            self.addCleanup(again.close)
            again.ready()
            self.assertEqual(again.run("echo hi")["out"], "hi\n")
            self.assertEqual(again.stop(), 0)
            self.assertFalse(os.path.exists(path))

    def test_a_file_in_the_place_of_a_unix_socket_is_left_alone(self):
        with tempfile.NamedTemporaryFile() as file:
            status, _, err = run("-a", "unix:" + file.name, "-s", "x")
            self.assertEqual((status, err), (1, "rtot: cannot listen on unix:%s: Address already in use\n" % file.name))
            self.assertTrue(os.path.exists(file.name))

    def test_a_unix_socket_of_a_later_server_is_left_alone(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "socket")
            first = UnixServer(address="unix:" + path)
            self.addCleanup(first.close)
            first.ready()
            os.unlink(path)
            second = UnixServer(address="unix:" + path)
            self.addCleanup(second.close)
            second.ready()
            self.assertEqual(first.stop(), 0)
            self.assertEqual(second.get("/").status, 200)
            self.assertTrue(os.path.exists(path))

    def test_a_stale_unix_socket_is_replaced_under_a_lock(self):
        """Of two servers that found it stale, the second removed the socket of the first, or found that stale, too."""
        for step in ("os.unlink", "os.remove", "socket.socket.listen"):
            before = ("import os, socket, time\n"
                      "real, path, deadline = %s, os.environ['TMPDIR'] + '/', time.monotonic() + 60\n"
                      "def pause(*args, **more):\n"
                      "    open(path + 'paused', 'w').close()\n"
                      "    while not os.path.exists(path + 'go') and time.monotonic() < deadline: time.sleep(0.005)\n"
                      "    return real(*args, **more)\n"
                      "%s = pause" % (step, step))
            with self.subTest(step=step), tempfile.TemporaryDirectory() as directory:
                address = os.path.join(directory, "socket")
                with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
                    stale.bind(address)
                first = UnixServer(address="unix:" + address, program=patched(before=before))
                self.addCleanup(first.close)
                paused = os.path.join(first.tmp, "paused")
                wait_until(lambda: os.path.exists(paused) or "listens on" in first.log())
                if os.path.exists(paused):      # else it takes no such step
                    second = UnixServer(address="unix:" + address)
                    self.addCleanup(second.close)
                    waits = re.compile(r"(?m)-> FLOCK .* %d " % second.pid)
                    wait_until(lambda: waits.search(read_text("/proc/locks")) or "listens on" in second.log())
                    open(os.path.join(first.tmp, "go"), "w").close()
                    self.assertEqual(second.process.wait(support.LIMIT), 1)
                self.assertEqual(first.ready().get("/").status, 200)

    def test_of_two_servers_that_replace_a_stale_unix_socket_one_serves(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "socket")
            for _ in range(5):
                with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
                    stale.bind(path)
                servers = [UnixServer(address="unix:" + path) for _ in range(3)]
                for server in servers:
                    self.addCleanup(server.close)
                wait_until(lambda: all(server.process.poll() is not None or "listens on" in server.log() for server in servers))
                living = [server for server in servers if server.process.poll() is None]
                self.assertEqual(len(living), 1)
                self.assertEqual(living[0].ready().get("/").status, 200)
                self.assertEqual(living[0].stop(), 0)
                self.assertEqual(os.listdir(directory), [])

    def test_starts_again_at_once_on_the_same_port(self):
        server = self.own_server()
        number = server.start("sleep 99")
        follower = support.Follower(server, "/jobs/%d/out?follow" % number)
        server.stop()
        follower.finish()
        again = self.own_server(address="127.0.0.1:%d" % server.port)
        self.assertEqual(again.get("/ping").status, 200)


def hand_over(listener, count=1):
    """Return (wrapper, more arguments of Server) that start it as systemd would, with the socket as descriptor 3."""
    def as_third():
        os.dup2(listener.fileno(), 3)
    code = "export LISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=rtot.socket; exec \"$@\"" % count
    return {"wrapper": ["/bin/sh", "-c", code, "sh"], "preexec_fn": as_third, "pass_fds": (3,)}


@unittest.skipUnless(support.LINUX, "systemd runs on Linux")
class HandedSocketTest(Case):

    def test_serves_on_the_socket_that_systemd_has_opened(self):
        for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0))):
            with contextlib.closing(socket.socket(family)) as listener:
                listener.bind(address)
                listener.listen()
                server = self.own_server(address="127.0.0.1:1", **hand_over(listener))
                self.assertEqual(server.port, listener.getsockname()[1])
                client = http.client.HTTPConnection(address[0], server.port, timeout=support.LIMIT)
                with contextlib.closing(client):
                    answer = server.post("/jobs?wait&fields=out", "env | grep -c LISTEN_; ls /dev/fd/3 2>&1 | wc -l",
                                         client=client)
                self.assertEqual(answer.job["out"][:2], "0\n")
                self.assertEqual(server.stop(), 0)

    def test_a_unix_socket_of_systemd_is_left_where_it_is(self):
        with tempfile.TemporaryDirectory() as directory, contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            path = os.path.join(directory, "rtot.sock")
            listener.bind(path)
            listener.listen()
            server = UnixServer(address=None, **hand_over(listener))
            self.addCleanup(server.close)
            self.assertEqual(server.ready().path, path)
            self.assertEqual(server.get("/ping").status, 200)
            self.assertEqual(server.stop(), 0)
            self.assertTrue(os.path.exists(path))

    def test_a_socket_that_cannot_be_used_is_an_error_of_one_line(self):
        with contextlib.closing(socket.socket()) as listener:
            for count, message in ((2, "LISTEN_FDS is 2: rtot takes one socket"), (1, "has to listen")):
                server = Server(**hand_over(listener, count))
                self.addCleanup(server.close)
                self.assertEqual(server.process.wait(support.LIMIT), 1)
                self.assertRegex(server.log(), "^rtot: .*%s.*\n$" % message)

    def test_a_number_of_sockets_that_is_none_is_an_error_of_one_line(self):
        with contextlib.closing(socket.socket()) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            more = hand_over(listener)
            more["wrapper"] = [part.replace("LISTEN_FDS=1", "LISTEN_FDS=abc") for part in more["wrapper"]]
            server = Server(**more)
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 1)
            self.assertRegex(server.log(), "^rtot: LISTEN_FDS is abc: rtot takes one socket\n$")

    def test_serves_on_an_abstract_socket_of_systemd(self):
        name = b"\0rtot-test-%d" % os.getpid()
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(name)
            listener.listen()
            server = Server(address=None, **hand_over(listener))
            self.addCleanup(server.close)
            wait_until(lambda: "listens on unix:@rtot-test-%d\n" % os.getpid() in server.log())
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
                client.connect(name)
                client.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
                self.assertIn(b"200 OK", support.read_all(client))
            self.assertEqual(server.stop(), 0)

    def test_variables_that_are_meant_for_another_process_are_ignored(self):
        server = self.own_server(env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
        self.assertEqual(server.get("/ping").status, 200)


class SelfDestructTest(Case):

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = os.path.join(self.directory, "rtot.py")
        shutil.copy(support.SOURCE, self.path)

    def test_removes_the_file_that_was_copied_when_it_ends(self):
        for end in (lambda server: server.delete("/"), lambda server: server.stop()):
            shutil.copy(support.SOURCE, self.path)
            server = self.own_server("--self-destruct", program=["rtot.py"], cwd=self.directory)
            self.assertEqual(server.run("cat rtot.py | wc -l")["exit_code"], 0)
            end(server)
            self.assertEqual(server.process.wait(support.LIMIT), 0)
            self.assertEqual(os.listdir(self.directory), [])
            self.assertEqual(server.leftovers(), [])

    def test_removes_the_link_by_which_it_was_started_and_the_file(self):
        os.mkdir(os.path.join(self.directory, "bin"))
        os.symlink(os.path.join("..", "rtot.py"), os.path.join(self.directory, "bin", "rtot"))
        server = self.own_server("--self-destruct", program=["bin/rtot"], cwd=self.directory)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(os.listdir(self.directory), ["bin"])
        self.assertEqual(os.listdir(os.path.join(self.directory, "bin")), [])

    def test_leaves_a_newer_file_that_has_taken_its_place(self):
        server = self.own_server("--self-destruct", program=["rtot.py"], cwd=self.directory)
        os.unlink(self.path)            # the number of its inode would be used again, were it not open
        with open(self.path, "w") as file:
            file.write("# a newer one\n")
        self.assertEqual(server.stop(), 0)
        self.assertEqual(os.listdir(self.directory), ["rtot.py"])

    def test_leaves_the_file_if_it_could_not_start_or_was_not_asked(self):
        with contextlib.closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            server = Server("--self-destruct", program=[self.path], address="127.0.0.1:%d" % taken.getsockname()[1])
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 1)
        self.assertEqual(self.own_server(program=[self.path]).stop(), 0)
        self.assertEqual(os.listdir(self.directory), ["rtot.py"])

    def test_is_refused_when_there_is_no_file(self):
        with open(support.SOURCE, "rb") as source:
            server = Server("--self-destruct", program=["-"], stdin=source)
        self.addCleanup(server.close)
        self.assertEqual(server.process.wait(support.LIMIT), 2)
        self.assertIn("came from standard input", server.log())


class LogTest(Case):

    def exercise(self, server):
        requests = [
            lambda: server.get("/jobs?label=topsecretlabel"),
            lambda: server.get("/ping?nonsense=swordfish"),
            lambda: server.get("/jobs/99"),
            lambda: server.get("/none%0Asuch%1b[2J"),
            lambda: server.raw(b"rubbish\r\n\r\n"),
            lambda: server.get("/", headers={"Rtot-Secret": "wrongsecret"}, secret=False),
        ]
        for count, request in enumerate(requests, 2):
            request()
            wait_until(lambda: server.log().count("\n") == count)
        for secret in ("swordfish", "topsecretlabel", "wrongsecret", "nonsense"):
            self.assertNotIn(secret, server.log())

    STAMP = "20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z "

    def test_text_is_a_line_for_each_request(self):
        server = self.own_server()
        self.exercise(server)
        lines = server.log().split("\n")
        self.assertEqual(lines[0], "rtot: version %s listens on http://127.0.0.1:%d/" % (rtot.__version__, server.port))
        for line, rest in zip(lines[1:], (r"GET /jobs 200 [0-9]+ [0-9.]+.?s", r"GET /ping 200 ", r"GET /jobs/99 404 ",
                                          r"GET /none\\nsuch\\x1b\[2J 404 ", "- - 400 ", "GET / 401 ")):
            self.assertRegex(line, "^" + self.STAMP + "127[0-9.]+ " + rest)
        self.assertEqual(len(lines), 8)

    def test_json_is_an_object_for_each_event_and_request(self):
        server = self.own_server("-f", "json")
        self.exercise(server)
        values = [json.loads(line) for line in server.log().split("\n")[:-1]]
        self.assertIn("listens on", values[0]["event"])
        self.assertEqual([(value["method"], value["path"], value["status"]) for value in values[1:]], [
            ("GET", "/jobs", 200), ("GET", "/ping", 200), ("GET", "/jobs/99", 404),
            ("GET", "/none\nsuch\x1b[2J", 404), ("-", "-", 400), ("GET", "/", 401)])
        self.assertEqual(sorted(values[1]), sorted("time client method path status bytes seconds".split()))

    def test_has_a_line_for_each_job_that_becomes_complete(self):
        for form in ("text", "json"):
            server = self.own_server("-f", form)
            job = server.run("echo topsecretoutput; exit 3", "label=nightly")
            wait_until(lambda: re.search(r"(?m)^.*\bjob\b.*$", server.log()))
            lines = [line for line in server.log().split("\n") if re.search(r"\bjob\b", line)]
            self.assertTrue(any("exit status 3" in line and re.search(r"\b%d\b" % job["id"], line) for line in lines), lines)
            self.assertNotIn("topsecretoutput", server.log())

    def test_a_path_is_printable_ascii_without_blanks(self):
        """A reader of the log, in a terminal or by its columns, sees nothing that a path can forge."""
        cases = (("/a%20200", "/a\\x20200"), ("/a%5Cx", "/a\\\\x"), ("/%c2%9b31m", "/\\x9b31m"), ("/%7f", "/\\x7f"),
                 ("/%e2%80%ae", "/\\u202e"), ("/caf%c3%a9", "/caf\\xe9"), ("/%ff", "/\\ufffd"))
        for form in ("text", "json"):
            server = self.own_server("-f", form)
            for count, (target, text) in enumerate(cases, 2):
                server.get(target)
                wait_until(lambda: server.log().count("\n") == count)
                line = server.log().split("\n")[-2]
                if form == "text":
                    self.assertEqual(line.split(" ")[2:5], ["GET", text, "404"])
                else:
                    self.assertEqual(json.loads(line)["path"].encode("unicode_escape").decode("ascii").replace(" ", "\\x20"), text)

    def test_a_path_that_is_too_long_is_cut_and_the_line_is_whole(self):
        server = self.own_server("-f", "json")
        for count, path in enumerate(("/" + "a%0a%22%5c" * 600, "/" + "b" * 20000), 2):
            server.get(path, secret=False)
            wait_until(lambda: server.log().count("\n") == count)
        for line, begin in zip(server.log().split("\n")[1:], ('/a\n"\\a', "/bbb")):
            value = json.loads(line)
            self.assertEqual((value["path"][:len(begin)], value["status"], value["cut"]), (begin, 401, True))
            self.assertLess(len(line), 4100)

    def test_a_line_of_text_that_is_cut_says_so(self):
        server = self.own_server()
        server.get("/" + "b" * 20000, secret=False)
        wait_until(lambda: server.log().count("\n") == 2)
        self.assertRegex(server.log().split("\n")[1], r"^.{100,4000}bbb\.\.\.b+ 401 [0-9]+ [0-9.]+m?s$")

    def test_has_a_line_for_a_client_that_disconnects_before_the_answer(self):
        for form, expected in (("text", r" POST /jobs - - [0-9.]+.?s job 0\n"),
                               ("json", '"path": "/jobs", "status": null, "bytes": null, "seconds": [0-9.]+, "job": 0')):
            server = self.own_server("-f", form)
            with server.connect() as connection:
                connection.sendall(b"POST /jobs?wait HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nContent-Length: 8\r\n\r\nsleep 99")
                wait_until(lambda: "running" in server.get("/jobs").body.decode())
            wait_until(lambda: re.search(expected, server.log()))

    def test_what_a_script_names_is_escaped(self):
        server = self.own_server()
        server.run("#!/no/\x1b[31mx\rFAKE LINE\n")
        wait_until(lambda: "job 0 complete" in server.log())
        self.assertIn("job 0 complete: fork/exec /no/\\x1b[31mx\\rFAKE: no such file or directory after ", server.log())

    def test_a_fifo_that_nobody_reads_is_refused(self):
        directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, "fifo")
        os.mkfifo(path)
        for option, message in (("--log-file", "cannot write"), ("--pid-file", "is no pid file")):
            server = Server(option, path)
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 1)
            self.assertRegex(server.log(), "(?m)^rtot: .*%s" % message)
            self.assertTrue(os.path.exists(path))

    def test_goes_on_when_its_reader_is_gone(self):
        reading, writing = os.pipe()
        with tempfile.TemporaryDirectory() as directory, contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            process = subprocess.Popen([sys.executable, support.SOURCE, "-a", "127.0.0.1:%d" % port, "-s", "swordfish"],
                                       stderr=writing, env=dict(os.environ, TMPDIR=directory))
            os.close(writing)
            os.read(reading, 1000)
            os.close(reading)
            server = Server.__new__(Server)
            server.port, server.secret = port, "swordfish"
            with contextlib.closing(server.client()) as client:     # one connection, which its log line must not end
                for _ in range(3):
                    self.assertEqual(server.get("/ping", client=client).status, 200)
            self.assertEqual(server.run("echo hi")["out"], "hi\n")
            process.terminate()
            self.assertEqual(process.wait(support.LIMIT), 0)


class StuckLogTest(Case):

    def test_a_terminal_that_nobody_reads_holds_nobody_up(self):
        """It is writable when it takes less than a line."""
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        with tempfile.TemporaryDirectory() as directory, open(theirs, "wb") as stderr:
            process = subprocess.Popen([sys.executable, support.SOURCE, "-a", "127.0.0.1:0", "-s", "swordfish"],
                                       stderr=stderr, env=dict(os.environ, TMPDIR=directory))
            server = Server.__new__(Server)
            server.secret = "swordfish"
            server.port = int(re.search(":([0-9]+)/", os.read(ours, 1000).decode()).group(1))
            with contextlib.closing(server.client()) as client:
                for _ in range(50):
                    self.assertEqual(server.get("/" + "x" * 3000, client=client).status, 404)
            self.assertEqual(server.delete("/").status, 204)
            self.assertEqual(process.wait(support.LIMIT), 0)

    def test_a_log_that_nobody_reads_holds_nobody_up(self):
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        with tempfile.TemporaryDirectory() as directory:
            process = subprocess.Popen([sys.executable, support.SOURCE, "-a", "127.0.0.1:0", "-s", "swordfish"],
                                       stderr=writing, env=dict(os.environ, TMPDIR=directory))
            os.close(writing)
            server = Server.__new__(Server)
            server.secret = "swordfish"
            server.port = int(os.read(reading, 1000).decode().rpartition(":")[2].split("/")[0])
            client = server.client()
            for _ in range(2500):       # lines of 50 bytes and more: twice what a pipe holds
                self.assertEqual(server.get("/ping", client=client).status, 200)
            client.close()
            self.assertEqual(server.delete("/").status, 204)
            self.assertEqual(process.wait(support.LIMIT), 0)


class SignalTest(Case):

    def test_each_of_its_signals_ends_it_with_0(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            server = self.own_server()
            server.run("true")
            self.assertEqual(server.stop(number), 0)
            self.assertEqual(server.leftovers(), [])

    def test_a_second_signal_does_not_wait_for_the_grace(self):
        server = self.own_server()
        number = server.start("trap '' TERM; echo ready; while :; do sleep 99; done")
        server.wait_for_out(number, b"ready")
        pid = server.job(number)["pid"]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.post("/jobs", "true").status == 503)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(4), 0)
        self.assertFalse(support.is_alive(pid))

    def test_hangup_is_ignored_under_nohup(self):
        server = self.own_server(wrapper=["bash", "-c", "trap '' HUP; exec \"$@\"", "bash"])
        server.process.send_signal(signal.SIGHUP)
        self.assertEqual(server.run("echo hi")["out"], "hi\n")

    def test_a_signal_while_it_starts_ends_it_with_0_and_leaves_no_file(self):
        after = ("import os, signal\ndef early(*args, real=%s):\n"
                 "    if %s: os.kill(os.getpid(), %d)\n    return real(*args)\n%s = early")
        for name, condition in (("rtot.raise_nofile", "True"), ("rtot.Server.server_activate", "True"),
                                ("signal.set_wakeup_fd", "args[0] >= 0"), ("os.write", "b'listens' in bytes(args[1])")):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                with self.subTest(name, number=number), tempfile.TemporaryDirectory() as directory:
                    server = Server("--pid-file", os.path.join(directory, "pid"), address="unix:%s/socket" % directory,
                                    program=patched(after % (name, condition, number, name)))
                    self.addCleanup(server.close)
                    self.assertEqual(server.process.wait(support.LIMIT), 0, server.log())
                    self.assertEqual(os.listdir(directory), [])

    def test_a_file_that_may_not_be_removed_is_logged(self):
        before = ("import os\nunlink = os.unlink\n"
                  "def refuse(path, **more):\n"
                  "    if os.fsdecode(path).endswith(('.pid', '.sock')): raise PermissionError(1, 'Not permitted')\n"
                  "    unlink(path, **more)\n"
                  "os.unlink = os.remove = refuse")
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "file")
            server = UnixServer("--pid-file", path + ".pid", address="unix:%s.sock" % path, program=patched(before=before))
            self.addCleanup(server.close)
            server.ready()
            self.assertEqual(server.stop(), 0)
            for name in (".pid", ".sock"):
                self.assertIn("rtot: cannot remove %s%s: Not permitted\n" % (path, name), server.log())
            self.assertEqual(read_text(path + ".pid"), "")

    def test_a_pid_file_that_cannot_be_written_is_not_left(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "pid")
            command = limited("-f 0") + [sys.executable, support.SOURCE, "-a", "127.0.0.1:0", "-s", "x", "--pid-file", path]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            said = process.communicate(timeout=support.LIMIT)[0].decode("utf-8")
            self.assertEqual((process.returncode, said), (1, "rtot: cannot write %s: File too large\n" % path))
            self.assertEqual(os.listdir(directory), [])

    def test_a_start_that_fails_leaves_no_socket(self):
        with tempfile.TemporaryDirectory() as directory:
            status, _, err = run("-a", "unix:%s/socket" % directory, "-s", "x", "--log-file", "/no/such/file")
            self.assertEqual((status, err), (1, "rtot: cannot write /no/such/file: No such file or directory\n"))
            self.assertEqual(os.listdir(directory), [])

    def test_files_of_a_killed_server_are_removed_by_the_next(self):
        first = self.own_server()
        number = first.start("echo ready; sleep 99")
        first.wait_for_out(number, b"ready")
        pid = first.job(number)["pid"]
        self.assertEqual(len(first.leftovers()), 1)
        first.process.kill()
        first.process.wait()
        os.killpg(pid, signal.SIGKILL)
        second = self.own_server(env={"TMPDIR": first.tmp}, program=patched("rtot.SWEEP_AFTER = 0.01"))
        wait_until(lambda: first.leftovers() == [])
        self.assertEqual(second.run("echo hi")["out"], "hi\n")

    def test_works_with_closed_standard_streams(self):
        with tempfile.TemporaryDirectory() as directory, contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            process = subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, support.SOURCE,
                                        "-a", "127.0.0.1:%d" % port, "-s", "swordfish"],
                                       env=dict(os.environ, TMPDIR=directory))
            server = Server.__new__(Server)
            server.port, server.secret = port, "swordfish"

            def answers():
                try:
                    return server.get("/ping").status == 200
                except OSError:
                    return False
            wait_until(answers)
            self.assertEqual(server.run("echo out; echo err >&2; cat")["err"], "err\n")
            process.terminate()
            self.assertEqual(process.wait(support.LIMIT), 0)


def end_by_pid(pid, number=signal.SIGKILL):
    """End a process that is not our child, if it lives."""
    if is_alive(pid):
        os.kill(pid, number)
        wait_until(lambda: not is_alive(pid), "the end of %d" % pid)


class DaemonTest(Case):

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
        self.directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.directory)
        return self.directory

    def end(self, server, number=signal.SIGTERM):
        end_by_pid(server.pid, number)
        server.close()

    def test_returns_when_the_port_is_bound_and_lives_on_in_a_session_of_its_own(self):
        server = self.daemon("--log-file", "log")
        self.addCleanup(self.end, server)
        self.assertEqual(server.run("pwd")["out"], self.directory + "\n")
        self.assertEqual(os.getsid(server.pid) == os.getsid(0), False)
        self.assertEqual(process_state(server.process.pid), "X")
        self.assertEqual(descriptors_of(server.pid), ["/dev/null", "/dev/null", os.path.join(self.directory, "log")])

    def test_holds_neither_pipe_nor_terminal_it_was_started_from(self):
        """ssh waits until nobody has its pipes open."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        with open(reading, "rb") as stdin:
            server = self.daemon(stdin=stdin, stdout=writing)
        self.addCleanup(self.end, server)
        self.assertEqual(descriptors_of(server.pid), ["/dev/null"] * 3)
        self.assertNotEqual(os.getsid(server.pid), server.pid)      # no terminal that it opens can control it
        os.kill(server.pid, signal.SIGHUP)
        self.assertEqual(server.run("kill -HUP $PPID; echo hi")["out"], "hi\n")

    def test_closes_a_pipe_for_its_errors_too(self):
        """A pipeline ends when nobody has its pipe open."""
        server = self.daemon(wrapper=["bash", "-c", '"$@" 2>&1 >/dev/null | cat >&2; exit ${PIPESTATUS[0]}', "bash"])
        self.assertEqual(descriptors_of(server.pid), ["/dev/null"] * 3)
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
        """Whoever locked the removed file had none, and the next server started beside it."""
        before = ("import fcntl, os\nreal, path = fcntl.flock, os.path.join(os.getcwd(), 'pid')\n"
                  "def flock(fd, how):\n"
                  "    real(fd, how)\n"
                  "    if flock.removes and os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):\n"
                  "        flock.removes = False\n"
                  "        os.unlink(path)\n"
                  "flock.removes = True\nfcntl.flock = flock")
        server = self.own_server("--pid-file", "pid", cwd=self.tmp(), program=patched(before=before))
        self.assertEqual(read_text(os.path.join(self.directory, "pid")), "%d\n" % server.pid)
        status, _, err = run("-a", "127.0.0.1:0", "-s", "x", "--pid-file", "pid", cwd=self.directory)
        self.assertEqual((status, err), (1, "rtot: pid is the pid file of a server that lives\n"))

    def test_a_file_that_is_no_pid_file_is_left_alone(self):
        path = os.path.join(self.tmp(), "notes.txt")
        for text in ("my notes\n", "12 34\n", "123\nand notes\n", "0x12\n", " \n"):
            with open(path, "w") as file:
                file.write(text)
            status, _, err = run("-a", "127.0.0.1:0", "-s", "x", "--pid-file", path)
            self.assertEqual((status, err.count("\n")), (1, 1), (text, err))
            self.assertIn(path, err)
            self.assertEqual(read_text(path), text)

    def test_the_pid_file_of_a_later_server_is_left_alone(self):
        path = os.path.join(self.tmp(), "pid")
        first = self.own_server("--pid-file", path)
        os.unlink(path)
        second = self.own_server("--pid-file", path)
        self.assertEqual(first.stop(), 0)
        self.assertEqual(read_text(path), "%d\n" % second.pid)

    def test_holds_no_descriptor_of_the_shell_that_started_it(self):
        """A lock on descriptor 9 was held as long as the daemon lived, and a reader of descriptor 8 never saw its end."""
        reading, writing = os.pipe()
        path = os.path.join(self.tmp(), "lock")
        server = self.daemon(wrapper=["bash", "-c", 'exec 9>"$0"; flock 9; exec 8>&%d; "$@"' % writing, path],
                             directory=self.directory, pass_fds=(writing,))
        os.close(writing)
        self.addCleanup(os.close, reading)
        self.assertTrue(select.select([reading], [], [], support.LIMIT)[0], "a descriptor is still open")
        self.assertFalse([link for link in server.links() if link.startswith(path)])
        self.end(server)

    def test_the_log_file_is_opened_anew_on_hangup(self):
        server = self.daemon("--log-file", "log")
        path = os.path.join(self.directory, "log")
        server.get("/ping")
        wait_until(lambda: "GET /ping" in read_text(path))
        os.rename(path, path + ".1")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: os.path.exists(path))
        server.get("/jobs")
        wait_until(lambda: "GET /jobs" in read_text(path))
        self.end(server)

    def test_a_file_that_cannot_be_written_is_an_error(self):
        for option in ("--pid-file", "--log-file"):
            server = Server("-d", option, "/no/such/file", cwd=self.tmp())
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 1)
            self.assertEqual(server.log(), "rtot: cannot write /no/such/file: No such file or directory\n")

    def test_ends_if_the_foreground_was_killed_meanwhile(self):
        after = ("import os\ndef daemonize(real=rtot.daemonize):\n    real()\n    reading, writing = os.pipe()\n"
                 "    os.close(reading)\n    return writing\nrtot.daemonize = daemonize")
        server = Server("-d", "--log-file", "log", cwd=self.tmp(), program=patched(after))
        self.addCleanup(server.close)
        self.assertEqual(server.process.wait(support.LIMIT), 1)
        path = os.path.join(self.directory, "log")
        wait_until(lambda: os.path.exists(path) and len(read_text(path).splitlines()) > 1)
        self.assertRegex(read_text(path), "^rtot: version .*\nrtot: cannot tell the foreground: Broken pipe\n$")


class IdleExitTest(Case):
    """A forgotten rtot is an open shell: --idle-exit ends it."""

    def test_ends_when_nothing_has_happened_for_the_time(self):
        server = self.own_server("--idle-exit", "1")
        server.run("true")
        self.assertEqual(server.process.wait(support.LIMIT), 0)
        self.assertEqual(server.leftovers(), [])

    def test_a_running_job_keeps_it(self):
        server = self.own_server("--idle-exit", "1")
        server.run("sleep 1.4; touch %s/marker" % server.tmp)
        ended = time.monotonic()
        self.assertEqual(server.process.wait(support.LIMIT), 0)
        self.assertGreaterEqual(time.monotonic() - ended, 0.99)
        self.assertEqual(server.leftovers(), ["marker"])

    def test_a_request_that_is_being_served_keeps_it(self):
        server = self.own_server("--idle-exit", "1", "--max-output", "64M")
        server.run("head -c 30000000 /dev/zero", fields="")
        with server.send(b"GET /jobs/0/out HTTP/1.0\r\nRtot-Secret: swordfish\r\n\r\n") as client:
            time.sleep(2.5)             # the subject: longer than the time after which it ends
            self.assertEqual(len(support.read_all(client).partition(b"\r\n\r\n")[2]), 30000000)
        self.assertEqual(server.process.wait(support.LIMIT), 0)

    def test_neither_ping_nor_a_background_process_keeps_it(self):
        server = self.own_server("--idle-exit", "1")
        job = server.run("sleep 99 & echo $!")
        with contextlib.suppress(OSError, http.client.HTTPException):
            while server.process.poll() is None:
                server.get("/ping", secret=False)
        self.assertEqual(server.process.wait(support.LIMIT), 0)
        self.assertGone(job["out"])


class TrustTest(Case):
    """What lies in the directory of the start is not run."""

    def test_modules_of_the_working_directory_and_beside_the_file_are_not_imported(self):
        directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, directory)
        shutil.copy(support.SOURCE, directory)
        names = ("json", "tempfile", "argparse", "selectors", "socketserver", "subprocess", "hmac", "fcntl", "array",
                 "traceback", "shutil", "ctypes", "ssl", "struct", "random", "bisect", "collections", "re")
        for name in names:
            with open(os.path.join(directory, name + ".py"), "w") as file:
                file.write("open(%r, 'a').write('%s\\n')\nraise SystemExit('imported %s')\n" % (directory + "/imported", name, name))
        with open(support.SOURCE, "rb") as source:
            servers = [Server(program=["-"], stdin=source, cwd=directory), Server(program=["rtot.py"], cwd=directory)]
        for server in servers:
            self.addCleanup(server.close)
            server.ready()
            self.assertEqual(server.run("echo hi; exit 3", "tty")["exit_code"], 3)
            self.assertEqual(server.get("/").status, 200)
            self.assertEqual(server.get("/jobs?fields=all").status, 200)
            self.assertEqual(server.stop(), 0)
        self.assertFalse(os.path.exists(directory + "/imported"))
