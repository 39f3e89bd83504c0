"""What the tests share: a real server in a process of its own, and clients that speak to it."""
import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
SOURCE = os.path.join(ROOT, "rtot.py")
SECRET = "swordfish"
LIMIT = 60.0            # s, for what takes milliseconds on an idle machine: a test fails, it does not hang
LINUX = sys.platform.startswith("linux")
STRANGERS = itertools.count()

# Ignored in the background of a shell or under nohup, and a server that inherits that keeps it so.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_until(condition, what="the condition", limit=LIMIT, pause=0.005):
    """Return the first true result of condition(), asked every `pause` seconds; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError("%s did not come true within %d s" % (what, limit))
        time.sleep(pause)


def stranger():
    """Return an address to come from that was not seen lately: wrong secrets from one address have to wait."""
    return ("127.1.%d.%d" % divmod(next(STRANGERS) % 60000 + 1, 250), 0) if LINUX else None


def process_state(pid):
    """Return the letter of proc_pid_stat(5), R S T Z and so on; X for one that is no more."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_alive(pid):
    """Does the process live?  A zombie does not."""
    return process_state(pid) not in "ZX"


def need(*tools):
    """Skip a test where one of the tools is missing."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    return unittest.skipIf(missing, "needs " + ", ".join(missing))


class Answer:
    """What came back: status, headers by lower-case name, body; `jobs` and `job` of its JSON."""

    def __init__(self, status, headers, body):
        self.status, self.body = status, body
        self.headers = {name.lower(): value for name, value in headers}

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))

    @property
    def jobs(self):
        return self.json["jobs"]

    @property
    def job(self):
        (job,) = self.jobs
        return job


class Server:
    """A server on a port of its own on loopback.  `stderr` is a file that takes its log."""

    def __init__(self, *options, program=(SOURCE,), env=None, stdin=subprocess.DEVNULL, wrapper=(), cwd=None,
                 secret=SECRET, address="127.0.0.1:0", **popen):
        self.tmp = tempfile.mkdtemp(prefix="test-rtot-")
        self.log_path = os.path.join(self.tmp, "log")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RTOT_")}
        environ["TMPDIR"] = self.tmp
        environ.update(env or {})
        self.secret = secret
        command = list(wrapper) + [sys.executable] + list(program)
        command += ["-a", address] if address else []
        command += ["-s", secret] if secret else []
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command + list(options), stdin=stdin, stderr=log, env=environ, cwd=cwd,
                                            **popen)
        self.pid = self.process.pid

    def ready(self):
        """Wait until it listens; return itself."""
        self.port = int(wait_until(self.listening, "the server's start").group(1))
        return self

    def listening(self, scheme="http"):
        """Return the match of its port in what it has said, or None."""
        if self.process.poll() is not None:
            raise AssertionError("the server exited with %d: %s" % (self.process.returncode, self.log()))
        return re.search(scheme + r"://(?:\[[^]]*\]|[^:/]*):([0-9]+)/", self.log())

    def log(self):
        with open(self.log_path, encoding="utf-8") as file:
            return file.read()

    def connect(self, host="127.0.0.1", source=None):
        return socket.create_connection((host, self.port), timeout=LIMIT, source_address=source)

    def client(self, source=None):
        """Return a client; `source` is the address that it comes from."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT, source_address=source)

    def request(self, method, path, body=None, headers=None, secret=True, client=None):
        """Return the Answer to one request, which comes without a secret from an address that was not seen before."""
        headers = dict(headers or {})
        if secret is True:
            headers["Rtot-Secret"] = self.secret
        own = client or self.client(None if secret else stranger())
        try:
            if isinstance(body, str):
                body = body.encode("utf-8")
            own.request(method, path, body, headers)
            response = own.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            if not client:
                own.close()

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body=b"", **more):
        return self.request("POST", path, body, **more)

    def delete(self, path, **more):
        return self.request("DELETE", path, **more)

    def run(self, script, query="", fields="all"):
        """Run a script to its end; return the job."""
        answer = self.post("/jobs?wait&fields=%s&%s" % (fields, query), script)
        if answer.status != 201:
            raise AssertionError("%d: %s" % (answer.status, answer.body))
        return answer.job

    def start(self, script, query="", **more):
        """Start a script; return the number of the job."""
        answer = self.post("/jobs?" + query, script, **more)
        if answer.status != 201:
            raise AssertionError("%d: %s" % (answer.status, answer.body))
        return answer.job["id"]

    def job(self, number, query="fields=all"):
        return self.get("/jobs/%d?%s" % (number, query)).job

    def out(self, number):
        return self.get("/jobs/%d/out" % number).body

    def wait_for_out(self, number, text):
        """Wait until the job has printed `text`; return all that it has."""
        return wait_until(lambda: text in self.out(number) and self.out(number), "output %r" % text)

    def print_in_turn(self, lines):
        """Run a script that prints each line when the last has been caught, those with an e as error; return its number."""
        number = self.start("".join("echo %s%s\nread go\n" % (line, " >&2" if "e" in line else "") for line in lines), "stdin")
        for index in range(len(lines)):
            wait_until(lambda: len(self.get("/jobs/%d/log" % number).body.split()) > index)
            self.post("/jobs/%d/stdin" % number, "\n")
        self.get("/jobs/%d?wait" % number)
        return number

    def raw(self, data, end=False):
        """Send bytes as they are, as a stranger; return all that comes back until the server closes."""
        with contextlib.closing(self.connect(source=stranger())) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.pid))

    @staticmethod
    def descriptors_of(pid):
        """Return what the descriptors of a process are, without what it was started with beyond 2."""
        directory = "/proc/%d/fd" % pid
        return [os.readlink(os.path.join(directory, name)) for name in sorted(os.listdir(directory)) if int(name) <= 2]

    def pipes(self):
        """Return the names of the pipes of which it has an end; twice where it has both."""
        links = []
        for name in os.listdir("/proc/%d/fd" % self.pid):
            try:
                links.append(os.readlink("/proc/%d/fd/%s" % (self.pid, name)))
            except FileNotFoundError:       # closed meanwhile
                pass
        return [link for link in links if link.startswith("pipe:")]

    def threads(self):
        return len(os.listdir("/proc/%d/task" % self.pid))

    def at_rest(self):
        """Do all its threads sleep?"""
        return all(process_state(int(name)) == "S" for name in os.listdir("/proc/%d/task" % self.pid))

    def children(self):
        """Return the pids of its children that are not zombies, and of its zombies."""
        with open("/proc/%d/task/%d/children" % (self.pid, self.pid)) as file:      # its first thread starts them
            states = [(int(number), process_state(int(number))) for number in file.read().split()]
        return ([number for number, state in states if state not in "ZX"],
                [number for number, state in states if state == "Z"])

    def rss(self):
        """Return the resident memory, in bytes."""
        with open("/proc/%d/statm" % self.pid) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self):
        """Return the CPU time that it has used, in seconds."""
        with open("/proc/%d/stat" % self.pid) as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def leftovers(self):
        """Return what is in its temporary directory beside the log."""
        return sorted(set(os.listdir(self.tmp)) - {"log"})

    def stop(self, number=signal.SIGTERM):
        """End it, if it lives; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server did not stop: " + self.log())

    def close(self):
        try:
            return self.stop()
        finally:
            shutil.rmtree(self.tmp, ignore_errors=True)


def read_all(connection):
    """Return what comes until the other side closes."""
    parts = []
    while True:
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            return b"".join(parts)
        parts.append(data)


def split_answer(data):
    """Return (status, headers, rest) of the first answer in raw bytes."""
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, rest


class Follower(threading.Thread):
    """Reads a stream in a thread of its own, as (time, bytes) in `parts`; `answer` when it has ended."""

    def __init__(self, server, path, method="GET", body=None, headers=None):
        super().__init__(daemon=True)
        self.server, self.parts, self.error = server, [], None
        self.connection = server.client()
        self.connection.request(method, path, body, dict(headers or {}, **{"Rtot-Secret": server.secret}))
        self.response = self.connection.getresponse()
        self.start()

    def run(self):
        try:
            while True:
                data = self.response.read1(65536)
                if not data:
                    return
                self.parts.append((time.monotonic(), data))
        except Exception as error:      # looked at by the test
            self.error = error

    @property
    def data(self):
        return b"".join(data for _, data in self.parts)

    def hang_up(self):
        """Go away in the middle."""
        self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(LIMIT)
        self.connection.close()
        self.response.close()

    def finish(self):
        """Wait for the end; return all bytes."""
        self.join(LIMIT)
        if self.is_alive() or self.error:
            raise AssertionError("the stream did not end well: %r" % (self.error,))
        self.connection.close()
        return self.data


class ServerCase(unittest.TestCase):
    """A class of tests with one server between them, which must leave nothing behind."""

    options = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.options).ready()

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        leftovers, log = cls.server.leftovers(), cls.server.log()
        cls.server.close()
        faults = log[log.find("Traceback"):][:4000] if "Traceback" in log else ""
        assert status == 0 and not leftovers and not faults, "status %d, left: %s, faults: %s" % (
            status, leftovers, faults)

    def own_server(self, *options, **more):
        """Start a server for this test alone."""
        server = Server(*options, **more).ready()
        self.addCleanup(server.close)
        return server

    def assertError(self, answer, status, message):
        """The answer is an error in JSON whose text matches `message`."""
        self.assertEqual(answer.status, status, answer.body)
        value = answer.json
        self.assertEqual(sorted(set(value) - {"jobs"}), ["error", "message"])
        self.assertRegex(value["error"] + ": " + value["message"], message)
