"""The command line: options, environment, secret, log, signals, exit codes."""
import contextlib
import errno
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import support
import rtot
from support import Server, wait_until


def run(*options, env=None):
    """Run the program to its end; return (exit status, standard output, standard error)."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RTOT_")}
    environ.update(env or {})
    process = subprocess.Popen([sys.executable, support.SOURCE] + list(options), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, universal_newlines=True)
    try:
        out, err = process.communicate(timeout=support.LIMIT)
    finally:
        process.kill()
    return process.returncode, out, err


class UnixServer(Server):
    """One that is reached by its socket."""

    def ready(self):
        wait_until(lambda: "listens on unix:" in self.log())
        self.path = self.log().split("listens on unix:")[1].split("\n")[0]
        return self

    def client(self, source=None):
        client = http.client.HTTPConnection("localhost", timeout=support.LIMIT)
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(self.path)
        return client


class CliCase(unittest.TestCase):

    def start(self, *options, **more):
        server = Server(*options, **more)
        self.addCleanup(server.close)
        return server.ready()


class OptionTest(CliCase):

    def test_bad_values_are_a_usage_error(self):
        for options, message in ((["-a", "8457"], "--addr: '8457' is no address, like :8457"), (["-a", ":99999"], "is no address"),
                                 (["-a", "::1:80"], "is no address"), (["-f", "xml"], "'xml' is no format: text or json"),
                                 (["-j", "-1"], "--parallel"), (["-j", "x"], "'x' is no count, like 0 or 8"),
                                 (["--max-output", "64X"], "'64X' is no size, like 4096, 64K"), (["--max-output", "0"], "is no size"),
                                 (["--max-script", "-5"], "--max-script"), (["--keep", "1.5"], "is no count"),
                                 (["--max-connections", "0"], "'0' is no whole number over 0"), (["--head-timeout", "0"], "over 0"), (["--nonsense"], "--nonsense"),
                                 (["-s", ""], "secret is empty"), (["-s", " \t"], "secret is empty"), (["-s", "a\nb"], "control character"),
                                 (["-s", "x", "--secret-file", "/dev/null"], "not both"),
                                 (["--secret-file", "/no/such"], "cannot read the secret from /no/such: No such file"),
                                 (["--secret-file", "/dev/null"], "secret is empty")):
            status, out, err = run(*options)
            self.assertEqual((status, out), (2, ""), options)
            self.assertIn("usage: rtot", err)
            self.assertIn(message, err)
            self.assertNotIn("Traceback", err)

    def test_bad_values_in_the_environment_are_a_usage_error(self):
        for env in ({"RTOT_ADDR": "nowhere"}, {"RTOT_LOG_FORMAT": "xml"}, {"RTOT_SECRET": ""}):
            status, _, err = run(env=env)
            self.assertEqual(status, 2, err)
            self.assertNotIn("Traceback", err)

    def test_help_names_every_option_and_shows_how_to_begin(self):
        status, out, err = run("--help")
        self.assertEqual((status, err), (0, ""))
        for word in ("--addr", "--secret", "--secret-file", "--log-format", "--version", "--parallel", "--max-output",
                     "--max-total", "--max-script", "--keep", "--max-connections", "RTOT_ADDR", "RTOT_SECRET",
                     "RTOT_LOG_FORMAT", "curl -H 'Rtot-Secret: secret'"):
            self.assertIn(word, out)

    def test_version(self):
        for option in ("-v", "--version"):
            self.assertEqual(run(option), (0, "rtot %s\n" % rtot.__version__, ""))

    def test_takes_gos_way_to_write_a_flag(self):
        server = self.start("-a=127.0.0.1:0", "-s=swordfish", address=None, secret=None)
        self.assertEqual(server.get("/", headers={"Rtot-Secret": "swordfish"}, secret=False).status, 200)

    def test_the_environment_stands_for_options(self):
        server = self.start(address=None, secret=None, env={"RTOT_ADDR": "127.0.0.1:0", "RTOT_SECRET": "swordfish",
                                                            "RTOT_LOG_FORMAT": "json"})
        server.secret = "swordfish"
        self.assertEqual(server.get("/").status, 200)
        wait_until(lambda: '"path": "/"' in server.log())

    def test_an_option_beats_the_environment(self):
        server = self.start(env={"RTOT_ADDR": "nowhere:1", "RTOT_SECRET": "other"})
        self.assertEqual(server.get("/").status, 200)

    def test_sizes(self):
        for text, size in (("1", 1), ("4K", 4096), ("64M", 64 << 20), ("2g", 2 << 30)):
            self.assertEqual(rtot.parse_size(text), size)

    def test_the_default_for_all_output_is_a_quarter_of_the_memory(self):
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.assertLessEqual(rtot.quarter_of_memory(), physical // 4)
        self.assertGreater(rtot.quarter_of_memory(), 0)
        code = "import rtot; print(rtot.quarter_of_memory())"
        limited = subprocess.check_output(["bash", "-c", 'ulimit -v 400000; exec "$@"', "bash", sys.executable, "-c", code],
                                          cwd=support.ROOT)
        self.assertEqual(int(limited), 400000 * 1024 // 4)
        server = self.start("--max-output", "1G", wrapper=["bash", "-c", 'ulimit -v 600000; exec "$@"', "bash"])
        self.assertEqual(server.run("head -c 200M /dev/zero", fields="dropped")["dropped"], (200 << 20) - 600000 * 1024 // 4)

    def listen(self, *options):
        """Return the Server, Runner and Workspace of these options."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        return rtot.listen(rtot.parser().parse_args(options), None, b"x", unittest.mock.Mock())

    def test_each_limit_arrives_where_it_holds(self):
        server, runner, _ = self.listen(*(
            "-a 127.0.0.1:0 -j 1 --max-output 2 --max-total 3 --max-script 4 --keep 5 --max-connections 6 "
            "--head-timeout 7 --body-timeout 8 --idle-timeout 9").split())
        self.addCleanup(server.server_close)
        app, store, limits = server.app, runner.store, server.limits
        self.assertEqual((runner.parallel, app.max_output, runner.max_total, app.max_script, store.keep,
                          server.connections.limit, limits.head, limits.body, limits.idle), tuple(range(1, 10)))
        self.assertEqual(store.max_scripts, 3)
        self.assertEqual((app.runner, app.store), (runner, store))

    def test_the_defaults_protect_a_small_host(self):
        args = vars(rtot.parser().parse_args([]))
        for name, value in (("head_timeout", 10), ("body_timeout", 30), ("idle_timeout", 75), ("max_connections", 1000),
                            ("max_script", 16 << 20), ("max_output", 64 << 20), ("max_total", None)):
            self.assertEqual(args[name], value, name)


class SecretTest(CliCase):

    def test_one_is_made_and_told_if_none_is_given(self):
        server = self.start(secret=None)
        made = re.search("made: ([0-9a-f]{32})\n", server.log()).group(1)
        self.assertEqual(server.get("/", secret=False).status, 401)
        self.assertEqual(server.get("/", headers={"Rtot-Secret": made}, secret=False).status, 200)

    def test_is_read_from_the_first_line_of_a_file(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"  from file \r\nsecond line\n")
            file.flush()
            server = self.start("--secret-file", file.name, secret=None)
            server.secret = "from file"
            self.assertEqual(server.get("/").status, 200)


    def test_is_read_from_the_first_line_of_standard_input(self):
        reading, writing = os.pipe()
        with open(reading, "rb") as stdin:
            server = Server("--secret-file", "-", secret=None, stdin=stdin)
        self.addCleanup(server.close)
        with open(writing, "wb") as file:
            file.write(b"from a pipe\nnot this\n")
        server.ready().secret = "from a pipe"
        self.assertEqual(server.run("read x; echo $?")["out"], "1\n")


class AddressTest(CliCase):

    def test_a_port_that_is_taken_is_told_in_a_line(self):
        with contextlib.closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            status, out, err = run("-a", address, "-s", "x")
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(err, "rtot: cannot listen on %s: %s\n" % (address, os.strerror(errno.EADDRINUSE)))

    def test_a_host_that_is_not_known_is_told_in_a_line(self):
        status, _, err = run("-a", "no.such.host.invalid:0", "-s", "x")
        self.assertEqual((status, err.count("\n")), (1, 1))
        self.assertIn("cannot listen on no.such.host.invalid:0: ", err)
        for address in ("foo..bar:0", b"\xc3\xa9..x:0"):        # no names at all, as getaddrinfo and as IDNA say it
            status, _, err = run("-a", address, "-s", "x")
            self.assertEqual((status, err.count("\n")), (1, 1), err)
            self.assertRegex(err, "^rtot: cannot listen on .*[.][.]")

    def test_a_star_is_all_addresses(self):
        self.assertEqual([rtot.parse_address(text) for text in ("*:1", ":1", "a:1")], [("", 1), ("", 1), ("a", 1)])

    def test_all_addresses_are_ipv6_and_ipv4(self):
        server = self.start(address=":0")
        self.assertEqual(server.get("/").status, 200)
        if "[::]" in server.log():
            with contextlib.closing(server.connect("::1")) as connection:
                connection.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
                self.assertIn(b" 200 ", connection.recv(100))

    def test_one_address_is_that_alone(self):
        server = self.start(address="127.0.0.2:0")
        self.assertRaises(OSError, server.connect)
        server.connect("127.0.0.2").close()

    def test_a_unix_socket_is_for_its_user_alone_and_gone_at_the_end(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "socket")
            server = UnixServer("-s", "swordfish", address="unix:" + path, secret=None)
            self.addCleanup(server.close)
            server.ready()
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            server.secret = "swordfish"
            self.assertEqual(server.run("echo hi")["out"], "hi\n")
            self.assertEqual(server.get("/", headers={"Rtot-Secret": "x"}, secret=False).status, 401)
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

    def test_starts_again_at_once_on_the_same_port(self):
        server = self.start()
        number = server.start("sleep 99")
        follower = support.Follower(server, "/jobs/%d/out?follow" % number)
        server.stop()
        follower.finish()
        again = self.start(address="127.0.0.1:%d" % server.port)
        self.assertEqual(again.get("/ping").status, 200)


def hand_over(listener, count=1):
    """Return (wrapper, more arguments of Server) that start it as systemd would, with the socket as descriptor 3."""
    def as_third():
        os.dup2(listener.fileno(), 3)
    code = "export LISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=rtot.socket; exec \"$@\"" % count
    return {"wrapper": ["/bin/sh", "-c", code, "sh"], "preexec_fn": as_third, "pass_fds": (3,)}


@unittest.skipUnless(support.LINUX, "systemd hands sockets over on Linux")
class HandedSocketTest(CliCase):

    def test_serves_on_the_socket_that_systemd_has_opened(self):
        for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0))):
            with contextlib.closing(socket.socket(family)) as listener:
                listener.bind(address)
                listener.listen()
                server = self.start(address="127.0.0.1:1", **hand_over(listener))
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

    def test_what_it_cannot_serve_on_is_told_in_a_line(self):
        with contextlib.closing(socket.socket()) as listener:
            for count, message in ((2, "LISTEN_FDS is 2: rtot takes one socket"), (1, "does not listen")):
                server = Server(**hand_over(listener, count))
                self.addCleanup(server.close)
                self.assertEqual(server.process.wait(support.LIMIT), 1)
                self.assertRegex(server.log(), "^rtot: .*%s.*\n$" % message)

    def test_variables_that_are_meant_for_another_process_are_ignored(self):
        server = self.start(env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
        self.assertEqual(server.get("/ping").status, 200)


class SelfDestructTest(CliCase):

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = os.path.join(self.directory, "rtot.py")
        shutil.copy(support.SOURCE, self.path)

    def test_removes_the_file_that_was_copied_when_it_ends(self):
        for end in (lambda server: server.delete("/"), lambda server: server.stop()):
            shutil.copy(support.SOURCE, self.path)
            server = self.start("--self-destruct", program=["rtot.py"], cwd=self.directory)
            self.assertEqual(server.run("cat rtot.py | wc -l")["exit_code"], 0)
            end(server)
            self.assertEqual(server.process.wait(support.LIMIT), 0)
            self.assertEqual(os.listdir(self.directory), [])
            self.assertEqual(server.leftovers(), [])

    def test_removes_the_link_by_which_it_was_started_and_the_file(self):
        os.mkdir(os.path.join(self.directory, "bin"))
        os.symlink(os.path.join("..", "rtot.py"), os.path.join(self.directory, "bin", "rtot"))
        server = self.start("--self-destruct", program=["bin/rtot"], cwd=self.directory)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(os.listdir(self.directory), ["bin"])
        self.assertEqual(os.listdir(os.path.join(self.directory, "bin")), [])

    def test_leaves_it_where_it_could_not_start_or_was_not_asked(self):
        with contextlib.closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            server = Server("--self-destruct", program=[self.path], address="127.0.0.1:%d" % taken.getsockname()[1])
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 1)
        self.assertEqual(self.start(program=[self.path]).stop(), 0)
        self.assertEqual(os.listdir(self.directory), ["rtot.py"])

    def test_is_refused_where_there_is_no_file(self):
        with open(support.SOURCE, "rb") as source:
            server = Server("--self-destruct", program=["-"], stdin=source)
        self.addCleanup(server.close)
        self.assertEqual(server.process.wait(support.LIMIT), 2)
        self.assertIn("came from standard input", server.log())


class LogTest(CliCase):

    def exercise(self, server):
        requests = [
            lambda: server.run("true"),
            lambda: server.post("/jobs?label=topsecretlabel", "echo hi"),
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

    def test_text_is_a_line_for_each_request(self):
        server = self.start()
        self.exercise(server)
        lines = server.log().split("\n")
        self.assertEqual(lines[0], "rtot: version %s listens on http://127.0.0.1:%d/" % (rtot.__version__, server.port))
        stamp = "20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z 127[0-9.]+ "
        for line, rest in zip(lines[1:], (r"POST /jobs 201 [0-9]+ [0-9.]+.?s", r"POST /jobs 201 ", r"GET /ping 400 ", r"GET /jobs/99 404 ",
                                          r"GET /none\\nsuch\\x1b\[2J 404 ", "- - 400 ", "GET / 401 ")):
            self.assertRegex(line, "^" + stamp + rest)
        self.assertEqual(len(lines), 9)

    def test_json_is_an_object_for_each_event_and_request(self):
        server = self.start("-f", "json")
        self.exercise(server)
        values = [json.loads(line) for line in server.log().split("\n")[:-1]]
        self.assertIn("listens on", values[0]["event"])
        self.assertEqual([(value["method"], value["path"], value["status"]) for value in values[1:]], [
            ("POST", "/jobs", 201), ("POST", "/jobs", 201), ("GET", "/ping", 400), ("GET", "/jobs/99", 404),
            ("GET", "/none\nsuch\x1b[2J", 404), ("-", "-", 400), ("GET", "/", 401)])
        self.assertEqual(sorted(values[1]), sorted("time client method path status bytes seconds".split()))

    def test_a_path_is_printable_ascii_and_without_blanks(self):
        """Whoever reads the log in a terminal, or by its columns, sees what no path can forge."""
        for form in ("text", "json"):
            log, lines = rtot.Log(form), []
            log._write = lines.append
            for target, text in ((b"/a%20200", "/a\\x20200"), (b"/a%5Cx", "/a\\\\x"), (b"/%c2%9b31m", "/\\x9b31m"), (b"/%7f", "/\\x7f"),
                                 (b"/%e2%80%ae", "/\\u202e"), (b"/caf%c3%a9", "/caf\\xe9"), (b"/%ff", "/\\ufffd")):
                request = rtot.Request("GET", target, 11, {})
                log.access(("1.2.3.4", 5), request, 404, 0, 0.5)
                self.assertRegex(lines[-1], "^[ -~]+\\Z")
                if form == "text":
                    self.assertEqual(lines[-1].split(" ", 1)[1], "1.2.3.4 GET %s 404 0 500ms" % text)
                else:
                    self.assertEqual(json.loads(lines[-1])["path"], request.path)

    def test_a_path_that_is_too_long_for_a_line_is_cut_and_the_line_whole(self):
        server = self.start("-f", "json")
        for count, path in enumerate(("/" + "a%0a%22%5c" * 600, "/" + "b" * 20000), 2):
            server.get(path, secret=False)
            wait_until(lambda: server.log().count("\n") == count)      # each connection writes its line by itself
        for line, begin in zip(server.log().split("\n")[1:], ('/a\n"\\a', "/bbb")):
            value = json.loads(line)
            self.assertEqual((value["path"][:len(begin)], value["status"]), (begin, 401))
            self.assertLess(len(line), 4100)

    def test_a_job_is_in_it_whose_client_does_not_wait_for_the_answer(self):
        for form, expected in (("text", r" POST /jobs - - [0-9.]+.?s\n"), ("json", '"path": "/jobs", "status": null, "bytes": null')):
            server = self.start("-f", form)
            with server.connect() as connection:
                connection.sendall(b"POST /jobs?wait HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nContent-Length: 8\r\n\r\nsleep 99")
                wait_until(lambda: "running" in server.get("/jobs").body.decode())
            wait_until(lambda: re.search(expected, server.log()))

    def test_nobody_reading_it_stops_nothing(self):
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


class StuckLogTest(unittest.TestCase):

    def test_a_terminal_that_nobody_reads_holds_nobody_up(self):
        """It says that it takes more when it takes less than a line."""
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        code = "import rtot; log = rtot.Log('text'); [log.event('x' * 3000) for _ in range(50)]"
        with open(theirs, "wb") as stderr:
            self.assertEqual(subprocess.call([sys.executable, "-c", code], stderr=stderr, cwd=support.ROOT,
                                             timeout=support.LIMIT), 0)

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


class SignalTest(CliCase):

    def test_each_of_its_signals_ends_it_with_0_and_nothing_left(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            server = self.start()
            server.run("true")
            self.assertEqual(server.stop(number), 0)
            self.assertEqual(server.leftovers(), [])

    def test_a_second_one_does_not_wait_for_the_grace(self):
        server = self.start()
        number = server.start("trap '' TERM; echo ready; while :; do sleep 99; done")
        server.wait_for_out(number, b"ready")
        pid = server.job(number)["pid"]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.post("/jobs", "true").status == 503)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(4), 0)
        self.assertFalse(support.is_alive(pid))

    def test_hangup_is_ignored_under_nohup(self):
        server = self.start(wrapper=["bash", "-c", "trap '' HUP; exec \"$@\"", "bash"])
        server.process.send_signal(signal.SIGHUP)
        self.assertEqual(server.run("echo hi")["out"], "hi\n")

    def test_one_that_comes_as_soon_as_it_listens_ends_it_with_0_too(self):
        code = ("import os, rtot, signal, sys; announce = rtot.announce; "
                "rtot.announce = lambda *args: (announce(*args), os.kill(os.getpid(), signal.SIGTERM)); sys.exit(rtot.main())")
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "socket")
            server = Server("--pid-file", os.path.join(directory, "pid"), address="unix:" + path,
                            program=["-c", code], cwd=support.ROOT)
            self.addCleanup(server.close)
            self.assertEqual(server.process.wait(support.LIMIT), 0)
            self.assertEqual(os.listdir(directory), [])

    def test_a_file_that_may_not_be_removed_is_told_and_nothing_more(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "file")
            log = unittest.mock.Mock()
            pid_file = rtot.PidFile(path)
            self.addCleanup(os.close, pid_file.fd)
            with unittest.mock.patch.object(os, "unlink", side_effect=PermissionError(errno.EPERM, "Not permitted")):
                pid_file.remove(log)
            log.event.assert_called_once_with("cannot remove %s: Not permitted" % path)
            self.assertEqual(os.stat(path).st_size, 0)
            server = rtot.Server((path + ".socket", None), None, log, rtot.Limits(1, 1, 1, 1, 256))
            with unittest.mock.patch.object(os, "unlink", side_effect=PermissionError(errno.EPERM, "Not permitted")):
                server.server_close()
            log.event.assert_called_with("cannot remove %s.socket: Not permitted" % path)

    def test_a_pid_file_on_a_full_disk_is_not_left(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "pid")
            with unittest.mock.patch.object(os, "write", side_effect=OSError(errno.ENOSPC, "No space left on device")):
                self.assertRaisesRegex(rtot.CannotStart, "No space left", rtot.PidFile, path)
            self.assertEqual(os.listdir(directory), [])

    def test_a_start_that_fails_leaves_no_socket(self):
        with tempfile.TemporaryDirectory() as directory:
            status, _, err = run("-a", "unix:%s/socket" % directory, "-s", "x", "--log-file", "/no/such/file")
            self.assertEqual((status, err), (1, "rtot: cannot write /no/such/file: No such file or directory\n"))
            self.assertEqual(os.listdir(directory), [])

    def test_what_a_killed_server_left_is_swept_by_the_next(self):
        first = self.start()
        number = first.start("echo ready; sleep 99")
        first.wait_for_out(number, b"ready")
        pid = first.job(number)["pid"]
        self.assertEqual(len(first.leftovers()), 1)
        first.process.kill()
        first.process.wait()
        os.killpg(pid, signal.SIGKILL)
        second = self.start(env={"TMPDIR": first.tmp})
        wait_until(lambda: first.leftovers() == [])
        self.assertEqual(second.run("echo hi")["out"], "hi\n")

    def test_is_fine_with_closed_standard_streams(self):
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
