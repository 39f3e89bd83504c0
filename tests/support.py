"""What the tests share: a real server in a process of its own, and clients that talk to it."""
import contextlib
import http.client
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
LIMIT = 60.0            # s, for what takes milliseconds on an idle machine: a test fails rather than hangs
LINUX = sys.platform.startswith("linux")
AUTH = b"Host: x\r\nRtot-Secret: %s\r\n" % SECRET.encode("ascii")      # of a request that is written by hand

# A shell's background and nohup ignore these, and a server would inherit that.
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


def in_parallel(function, items):
    """Call function(item) for each item, each in a thread of its own; return the results in order."""
    items = list(items)
    results, errors = [None] * len(items), []

    def call(index, item):
        try:
            results[index] = function(item)
        except Exception as error:      # raised again below
            errors.append(error)
    threads = [threading.Thread(target=call, args=pair, daemon=True) for pair in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT)
        assert not thread.is_alive(), "a call takes longer than %d s" % (2 * LIMIT)
    if errors:
        raise errors[0]
    return results


def in_background(function, *args):
    """Call the function in a thread; return a function that waits for its result."""
    results = []

    def call():
        try:
            results.append((function(*args), None))
        except Exception as error:      # raised again below
            results.append((None, error))
    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def result():
        thread.join(2 * LIMIT)
        assert results, "it takes longer than %d s" % (2 * LIMIT)
        value, error = results[0]
        if error:
            raise error
        return value
    return result


def patched(after="", before=""):
    """Return the arguments of Python that run rtot after a change: `before` it is imported, or `after` that."""
    return ["-c", "import sys; sys.path.insert(0, %r)\n%s\nimport rtot\n%s\nsys.exit(rtot.main())" % (ROOT, before, after)]


def limited(*limits):
    """Return the wrapper that starts a server under limits of bash's ulimit, as "-n 64"."""
    return ["bash", "-c", "; ".join("ulimit " + limit for limit in limits) + '; exec "$@"', "bash"]


def process_state(pid):
    """Return the letter of proc_pid_stat(5): R, S, T, Z and so on; X if there is no such process."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_alive(pid):
    """Tell whether the process lives; a zombie does not."""
    return process_state(pid) not in "ZX"


def need(*tools):
    """Skip a test where one of the tools is missing."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    return unittest.skipIf(missing, "needs " + ", ".join(missing))


def children_of(pid):
    """Return the pids of a process's children, of its first thread at least."""
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def read_text(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


class Answer:
    """An answer: status, headers by lower-case name, body; and the jobs in its JSON."""

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
    """A server on a port of its own on loopback.  Its log goes to a file."""

    def __init__(self, *options, program=(SOURCE,), env=None, stdin=subprocess.DEVNULL, wrapper=(), cwd=None,
                 secret=SECRET, address="127.0.0.1:0", python=sys.executable, **popen):
        self.tmp = tempfile.mkdtemp(prefix="test-rtot-")
        self.log_path = os.path.join(self.tmp, "log")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RTOT_")}
        environ["TMPDIR"] = self.tmp
        environ.update(env or {})
        self.secret = secret
        command = list(wrapper) + [python] + list(program)
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
        """Return the match of its port in the log, or None."""
        if self.process.poll() is not None:
            raise AssertionError("the server exited with %d: %s" % (self.process.returncode, self.log()))
        return re.search(scheme + r"://(?:\[[^]]*\]|[^:/]*):([0-9]+)/", self.log())

    def log(self):
        return read_text(self.log_path)

    def connect(self, host="127.0.0.1"):
        return socket.create_connection((host, self.port), timeout=LIMIT)

    def client(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)

    def request(self, method, path, body=None, headers=None, secret=True, client=None):
        """Return the Answer to one request, on a connection of its own or on that of the client."""
        headers = dict(headers or {})
        if secret:
            headers["Rtot-Secret"] = self.secret
        own = client or self.client()
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

    def start_running(self, script, query="", ready=b"ready"):
        """Start a script, and wait until it has printed `ready`; return the number of the job."""
        number = self.start(script, query)
        self.wait_for_out(number, ready)
        return number

    def job(self, number, query="fields=all"):
        return self.get("/jobs/%d?%s" % (number, query)).job

    def out(self, number):
        return self.get("/jobs/%d/out" % number).body

    def wait_for_out(self, number, text):
        """Wait until the job has printed `text`; return all that it has printed."""
        return wait_until(lambda: text in self.out(number) and self.out(number), "output %r" % text)

    def print_in_turn(self, lines):
        """Run a script that prints a line when the last has arrived, those with an e on stderr; return its number."""
        number = self.start("".join("echo %s%s\nread go\n" % (line, " >&2" if "e" in line else "") for line in lines), "stdin")
        for index in range(len(lines)):
            wait_until(lambda: len(self.get("/jobs/%d/log" % number).body.split()) > index)
            self.post("/jobs/%d/stdin" % number, "\n")
        self.get("/jobs/%d?wait" % number)
        return number

    def raw(self, data, end=False):
        """Send bytes as they are; return all that comes back until the server closes."""
        with contextlib.closing(self.connect()) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    def send(self, data):
        """Return a new connection on which the bytes have been sent."""
        connection = self.connect()
        connection.sendall(data)
        return connection

    def links(self):
        """Return what its descriptors are, as proc_pid_fd(5) shows them."""
        links = []
        for name in os.listdir("/proc/%d/fd" % self.pid):
            with contextlib.suppress(FileNotFoundError):        # closed meanwhile
                links.append(os.readlink("/proc/%d/fd/%s" % (self.pid, name)))
        return links

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.pid))

    def pipes(self):
        """Return the names of the pipes of which it has an end; twice if it has both."""
        return [link for link in self.links() if link.startswith("pipe:")]

    def connections(self):
        """Return how many clients are connected: its sockets without the one that listens."""
        return sum(link.startswith("socket:") for link in self.links()) - 1

    def is_asleep(self):
        """Tell whether it waits in the kernel, with nothing left to do."""
        return all(process_state(int(name)) == "S" for name in os.listdir("/proc/%d/task" % self.pid))

    def settle(self, connections=0):
        """Wait until that many clients are connected, and it has done all that it can for them."""
        wait_until(lambda: self.connections() == connections and self.is_asleep() and self.is_asleep(),
                   "%d connections and an idle server" % connections)

    def children(self):
        """Return the pids of its children that are not zombies, and of its zombies."""
        states = [(number, process_state(number)) for number in children_of(self.pid)]
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

    def scripts(self):
        """Return the paths of the scripts in its directory."""
        return sorted(os.path.join(self.tmp, directory, name) for directory in self.leftovers() if directory.startswith("rtot-")
                      for name in os.listdir(os.path.join(self.tmp, directory)))

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
        """End it, and remove its directory; return its exit status."""
        try:
            return self.stop()
        finally:
            shutil.rmtree(self.tmp, ignore_errors=True)


def descriptors_of(pid):
    """Return what descriptors 0, 1 and 2 of a process are."""
    directory = "/proc/%d/fd" % pid
    found = []
    for name in sorted(os.listdir(directory)):
        if int(name) <= 2:
            with contextlib.suppress(FileNotFoundError):        # closed meanwhile
                found.append(os.readlink(os.path.join(directory, name)))
    return found


def read_all(connection):
    """Return what comes until the other side closes or resets."""
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


def read_answer(file):
    """Return (status, headers, body) of the next answer, which has a Content-Length or no body."""
    status = int(file.readline().split()[1])
    headers = {}
    for line in iter(file.readline, b"\r\n"):
        name, _, value = line.decode("latin-1").rstrip("\r\n").partition(": ")
        headers[name.lower()] = value
    return status, headers, file.read(int(headers.get("content-length", 0)))


class Follower(threading.Thread):
    """Reads a stream in a thread of its own, at most `rate` bytes/s; `parts` are (time, bytes).

    `error` is what ended it early, or None.
    """

    def __init__(self, server, path, method="GET", body=None, headers=None, rate=None):
        super().__init__(daemon=True)
        self.server, self.rate, self.parts, self.error = server, rate, [], None
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
                if self.rate:
                    time.sleep(len(data) / self.rate)
        except Exception as error:      # looked at by the test
            self.error = error

    @property
    def data(self):
        return b"".join(data for _, data in self.parts)

    def wait_for(self, text):
        """Wait until all that has come ends with `text`."""
        wait_until(lambda: self.data.endswith(text) or self.error, "the end %r" % text)

    def hang_up(self):
        """Disconnect in the middle."""
        self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(LIMIT)
        self.connection.close()
        self.response.close()

    def end(self):
        """Wait for the end; return the error that ended it early, or None."""
        self.join(LIMIT)
        assert not self.is_alive(), "the stream does not end"
        self.connection.close()
        return self.error

    def finish(self):
        """Wait for the end, which must not be early; return all bytes."""
        error = self.end()
        if error:
            raise AssertionError("the stream was cut off: %r" % (error,))
        return self.data


class Case(unittest.TestCase):

    def own_server(self, *options, **more):
        """Start a server for this test alone."""
        server = Server(*options, **more)
        self.addCleanup(server.close)
        return server.ready()

    def assertError(self, answer, status, message):
        """Assert that the answer is an error in JSON whose text matches `message`."""
        self.assertEqual(answer.status, status, answer.body)
        value = answer.json
        self.assertEqual(sorted(set(value) - {"jobs"}), ["error", "message"])
        self.assertRegex(value["error"] + ": " + value["message"], message)

    def assertGone(self, *pids):
        wait_until(lambda: not any(is_alive(int(pid)) for pid in pids), "the end of %s" % (pids,))


class ServerCase(Case):
    """Tests that share one server, which must leave nothing behind and log no traceback.

    `options` are those of the server, `more` the other arguments of Server.
    """

    options, more = (), {}

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.options, **cls.more).ready()

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        leftovers, log = cls.server.leftovers(), cls.server.log()
        cls.server.close()
        faults = log[log.find("Traceback"):][:4000] if "Traceback" in log else ""
        assert status == 0 and not leftovers and not faults, "status %d, left: %s, faults: %s" % (
            status, leftovers, faults)
