"""The page that a browser gets, in a real one: Chromium without a window, driven over WebDriver (W3C)."""
import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading

import support
from support import SECRET, Server, ServerCase, need, wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"         # WebDriver, 11: what an element is in its JSON
ENTER, TAB, CONTROL, UP, DOWN = "\ue007", "\ue004", "\ue009", "\ue013", "\ue015"     # WebDriver, 17.4.2


class Browser:
    """A Chromium of its own, and what the tests ask of it.  `start` is apart, so that `close` can end one half made."""

    def __init__(self):
        self.tmp = tempfile.mkdtemp(prefix="test-rtot-")
        self.driver, self.session = None, None

    def start(self):
        log = os.path.join(self.tmp, "log")
        environ = dict(os.environ, TMPDIR=self.tmp, HOME=self.tmp)
        with open(log, "wb") as file:       # a group of its own: the browser is in it too
            self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdin=subprocess.DEVNULL, stdout=file,
                                           stderr=file, env=environ, start_new_session=True)
        self.port = int(wait_until(lambda: self._port(log), "the start of chromedriver").group(1))
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--disable-extensions", "--user-data-dir=" + os.path.join(self.tmp, "profile")]
        always = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"},
                  "unhandledPromptBehavior": "accept"}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": always}})
        self.session = "/session/" + answer["sessionId"]
        return self

    @staticmethod
    def _port(log):
        with open(log, encoding="utf-8", errors="replace") as file:
            return re.search(r"started successfully on port ([0-9]+)", file.read())

    def _call(self, method, path, value=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=support.LIMIT)
        with contextlib.closing(connection):
            body = None if method == "GET" else json.dumps(value or {})
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            result = json.loads(response.read().decode("utf-8"))["value"]
        if response.status != 200:
            raise AssertionError("%s %s: %s" % (method, path, result.get("message", result)))
        return result

    def close(self):
        """End all that was started, and leave nothing."""
        if self.driver:
            with contextlib.suppress(OSError, AssertionError):      # it is killed all the same
                if self.session:
                    self._call("DELETE", self.session)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
            wait_until(lambda: not group_lives(self.driver.pid), "the end of the browser")
        shutil.rmtree(self.tmp, ignore_errors=True)
        wait_until(lambda: not os.path.exists(self.tmp) or shutil.rmtree(self.tmp, ignore_errors=True))

    def post(self, path, **value):
        return self._call("POST", self.session + path, value)

    def get(self, path):
        return self._call("GET", self.session + path)

    def delete(self, path):
        return self._call("DELETE", self.session + path)

    def open(self, url):
        self.post("/url", url=url)

    def js(self, script, *args):
        """Return what the body of a function returns."""
        return self.post("/execute/sync", script=script, args=list(args))

    def text(self, name):
        """Return the text of the element with that id, "" for one that is hidden."""
        return self.js("const node = document.getElementById(arguments[0]);"
                       "return node.offsetParent ? node.textContent.trim() : ''", name)

    def shows(self, name):
        return self.js("return !!document.getElementById(arguments[0]).offsetParent", name)

    def element(self, selector):
        return self.post("/element", using="css selector", value=selector)[ELEMENT]

    def click(self, name):
        self.post("/element/%s/click" % self.element("#" + name))

    def click_on(self, selector):
        self.post("/element/%s/click" % self.element(selector))

    def type(self, name, text):
        """Replace what is in a field."""
        element = self.element("#" + name)
        self.post("/element/%s/clear" % element)
        self.post("/element/%s/value" % element, text=text)

    def press(self, *keys, hold=None):
        """Press keys one after the other, where the focus is, while one is held."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        if hold:
            actions = [{"type": "keyDown", "value": hold}] + actions + [{"type": "keyUp", "value": hold}]
        self.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def cdp(self, command, **params):
        return self.post("/goog/cdp/execute", cmd=command, params=params)

    def log(self):
        """Return the entries of its console since it was asked last."""
        return self.post("/se/log", type="browser")

    def width(self, pixels, height=900):
        self.cdp("Emulation.setDeviceMetricsOverride", width=pixels, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.get("/screenshot")))


def group_lives(number):
    try:
        os.killpg(number, 0)
    except OSError:
        return False
    return True


BROWSERS = []       # the one that the module has, while it has it


def tearDownModule():
    while BROWSERS:
        BROWSERS.pop().close()


@need("chromium", "chromedriver")
class PageCase(ServerCase):
    """A class of tests with a server between them, and one browser for all; each begins signed in, without jobs."""

    @classmethod
    def setUpClass(cls):
        if not BROWSERS:
            BROWSERS.append(Browser())
            BROWSERS[0].start()
        cls.browser = BROWSERS[0]
        super().setUpClass()
        cls.url = "http://127.0.0.1:%d/" % cls.server.port

    def setUp(self):
        self.server.delete("/jobs")
        self.browser.width(1200)
        self.open()
        self.browser.log()

    def open(self):
        """Load the page anew, signed in."""
        self.browser.open("about:blank")
        self.browser.open(self.url + "#secret=" + SECRET)
        wait_until(lambda: self.browser.text("host"), "the jobs")

    def tearDown(self):
        severe = [entry["message"] for entry in self.browser.log()
                  if entry["level"] == "SEVERE" and not self.expected(entry["message"])]
        self.assertEqual(severe, [])

    def expected(self, message):
        """Is it in order that the browser complains so?"""
        return " 401 (" in message

    def run_script(self, script):
        """Run a script as a user does."""
        self.browser.type("editor", script)
        self.browser.press(ENTER, hold=CONTROL)

    def wait_for(self, name, text):
        """Wait until the element shows just that text."""
        wait_until(lambda: self.browser.text(name) == text, "%s %r" % (name, text))

    def lines(self):
        """Return the lines of the output that are shown."""
        return self.browser.js("return [...document.querySelectorAll('#output > div')].map(node => node.textContent)")

    def wait_for_output(self, *lines):
        wait_until(lambda: self.lines() == list(lines), "output %r" % (lines,))

    def wait_for_line(self, line):
        wait_until(lambda: self.browser.js("const last = document.getElementById('output').lastChild;"
                                           "return last && last.textContent") == line, "last line %r" % line)

    def rows(self):
        """Return the list as it is shown: for each job its number, first line, state, and more."""
        return self.browser.js("return [...document.querySelectorAll('#list a')].filter(link => link.offsetParent).map("
                               "link => [...link.children].map(node => node.textContent))")

    def wait_for_rows(self, *numbers):
        expected = [str(number) for number in numbers]
        wait_until(lambda: [row[0] for row in self.rows()] == expected, "jobs %r" % (numbers,))

    def choose(self, number):
        """Go to a job by its address, which asks for it at once."""
        self.browser.js("location.hash = 'job/' + arguments[0]", number)
        wait_until(lambda: re.match(r"Job %d\b" % number, self.browser.text("title")), "job %d" % number)

    def wait_for_row(self, number):
        wait_until(lambda: any(row[0] == str(number) for row in self.rows()), "job %d in the list" % number)

    def show_end(self, script, query=""):
        """Run a script to its end, choose it, and wait until its output is there; return its number."""
        number = self.server.run(script, query)["id"]
        self.choose(number)
        drawn = "return log.ended && log.lines.every(line => line.node)"        # log is a variable of the page
        wait_until(lambda: self.browser.js(drawn), "the whole output")
        return number

    def hide(self, hidden=True):
        """Make the page believe that its tab is hidden, or shown."""
        self.browser.js("Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
                        "document.dispatchEvent(new Event('visibilitychange'))", hidden)

    def asked(self, pattern):
        """Return the paths that the page has asked for which match; of a stream when it has ended."""
        return self.browser.js("return performance.getEntriesByType('resource').map(each => each.name)"
                               ".filter(name => new RegExp(arguments[0]).test(name))", pattern)

    def answer(self, yes):
        """Answer the next questions of the page; they are kept in `window.questions`."""
        self.browser.js("window.questions = []; window.confirm = text => { questions.push(text); return %s; }"
                        % ("true" if yes else "false"))

    def value(self, name):
        return self.browser.js("return document.getElementById(arguments[0]).value", name)

    def gate(self):
        """Return the path of a file for which a job can wait, which is not there yet."""
        directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, directory)
        return os.path.join(directory, "gate")


def until(gate):
    """Return shell commands that wait for a file."""
    return "until test -e '%s'; do sleep 0.02; done" % gate


class Relay(threading.Thread):
    """A server that passes everything on to a port, until its connections are cut."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.target, self.sockets = port, []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        with contextlib.suppress(OSError):      # it is closed
            while True:
                pair = [self.listener.accept()[0], socket.create_connection(("127.0.0.1", self.target))]
                self.sockets += pair
                for one, other in (pair, pair[::-1]):
                    threading.Thread(target=self.copy, args=(one, other), daemon=True).start()

    @staticmethod
    def copy(source, target):
        with contextlib.suppress(OSError):
            for data in iter(lambda: source.recv(65536), b""):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Break all connections; new ones are accepted."""
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        for each in self.sockets:
            each.close()


class IdleTest(PageCase):
    options = ("--idle-exit", "2")

    def test_a_forgotten_page_does_not_keep_the_server(self):
        self.assertEqual(self.server.process.wait(support.LIMIT), 0)
        self.assertIn("idle for 2s", self.server.log())

    def tearDown(self):
        self.browser.log()              # it complains that the server is gone, which it is

    @classmethod
    def tearDownClass(cls):
        cls.server.close()


class SignInTest(PageCase):

    def test_says_that_a_secret_is_wrong_and_asks_again(self):
        self.browser.click("forget")
        wait_until(lambda: self.browser.shows("sign-in"), "the question for the secret")
        self.assertFalse(self.browser.shows("work"))
        self.browser.type("secret", "wrong" + ENTER)
        self.wait_for("wrong", "That secret is wrong.")
        self.assertFalse(self.browser.shows("work"))
        self.assertEqual(self.browser.js("return document.activeElement.id"), "secret")
        self.browser.type("secret", SECRET + ENTER)
        wait_until(lambda: self.browser.shows("work"), "the jobs")
        self.assertFalse(self.browser.shows("sign-in"))
        self.assertEqual(self.value("secret"), "")

    def test_takes_the_secret_from_the_address_and_keeps_it_in_the_tab_alone(self):
        number = self.server.run("echo hi", "label=kept")["id"]
        self.wait_for_rows(number)
        self.browser.post("/refresh")
        self.wait_for_rows(number)
        where = self.browser.js("return [document.cookie, location.href, JSON.stringify(localStorage),"
                                "document.documentElement.outerHTML, JSON.stringify(sessionStorage)]")
        self.assertEqual([SECRET in text for text in where], [False, False, False, False, True])
        self.assertEqual(self.browser.get("/cookie"), [])
        self.browser.post("/back")
        self.assertNotIn(SECRET, self.browser.get("/url"))

    def test_forgets_the_secret(self):
        self.browser.click("forget")
        wait_until(lambda: self.browser.shows("sign-in"), "the question for the secret")
        self.browser.post("/refresh")
        wait_until(lambda: self.browser.shows("sign-in"), "the question for the secret")
        self.assertEqual(self.browser.js("return Object.values(sessionStorage).join('')"), "")

    def test_says_since_when_the_server_is_gone_and_keeps_what_is_typed(self):
        first = Server().ready()
        self.addCleanup(first.close)
        self.browser.open("http://127.0.0.1:%d/" % first.port)
        self.browser.type("secret", SECRET + ENTER)
        wait_until(lambda: self.browser.shows("editor"), "the jobs")
        self.browser.type("editor", "echo typed")
        first.stop()
        said = wait_until(lambda: self.browser.text("status"), "word of the loss")
        self.assertRegex(said, r"^The server cannot be reached since [0-9]{2}:[0-9]{2}:[0-9]{2}, trying again$")
        second = Server(secret="other", address="127.0.0.1:%d" % first.port).ready()
        self.addCleanup(second.close)
        self.wait_for("wrong", "That secret is wrong.")
        self.browser.type("secret", "other" + ENTER)
        wait_until(lambda: self.browser.shows("editor"), "the jobs")
        self.assertEqual((self.value("editor"), self.browser.text("status")), ("echo typed", ""))

    def test_says_on_which_host_and_as_whom_it_runs(self):
        root = self.server.get("/", headers={"Accept": "application/json"}).json
        name = "%s@%s" % (root["user"], root["host"])
        self.assertEqual(self.browser.text("host"), name)
        self.assertIn(name, self.browser.get("/title"))
        number = self.show_end("exit 3")
        self.assertEqual(self.browser.get("/title"), "Job %d exit status 3 on %s" % (number, name))

    def expected(self, message):
        return super().expected(message) or "ERR_" in message


class RunTest(PageCase):

    def test_runs_by_the_button_and_by_its_key(self):
        self.run_script("echo by key; exit 3")
        self.wait_for_output("by key")
        self.wait_for("state", "exit status 3")
        self.browser.type("editor", "echo by button")
        self.browser.click("go")
        self.wait_for_output("by button")
        self.wait_for("state", "done")
        wait_until(lambda: [row[1:3] for row in self.rows()] == [["echo by button", "done"],
                                                                 ["echo by key; exit 3", "exit status 3"]])

    def test_gives_the_options(self):
        self.browser.click_on("#options summary")
        self.browser.type("label", "nightly & <b>")
        self.browser.type("args", "one\ntwo words\n")
        self.browser.type("timeout", "77")
        self.browser.click("tty")
        self.browser.type("cols", "99")
        self.run_script('echo "$1,$2,$#"; stty size')
        self.wait_for_output("one,two words,2", "24 99")
        job = self.server.get("/jobs?fields=label,args,timeout,tty").job
        self.assertEqual((job["label"], job["args"], job["timeout"], job["tty"]),
                         ("nightly & <b>", ["one", "two words"], 77, {"rows": 24, "cols": 99}))

    def test_shows_what_the_server_has_against_it(self):
        self.browser.click_on("#options summary")
        self.browser.type("timeout", "soon")
        self.run_script("echo not run")
        wait_until(lambda: "timeout: 'soon' is no number of seconds" in self.browser.text("trouble"))
        self.assertEqual(self.server.get("/jobs").jobs, [])
        self.browser.type("timeout", "5")
        self.run_script("echo run")
        self.wait_for_output("run")
        self.assertEqual(self.browser.text("trouble"), "")

    def test_does_not_send_an_empty_script(self):
        self.browser.click("go")
        self.assertTrue(self.browser.js("return document.getElementById('editor').matches(':invalid')"))
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_takes_the_script_from_a_file(self):
        path = self.gate()
        with open(path, "w") as file:
            file.write("echo picked\n")
        self.browser.post("/element/%s/value" % self.browser.element("#file"), text=path)
        wait_until(lambda: self.value("editor") == "echo picked\n", "the script")

    def test_runs_again_with_the_same_environment_and_input(self):
        number = self.server.start("#!/bin/sh\nread line\nprintf '%s|' \"$TARGET\" \"$line\" \"$@\" caf\u00e9\n",
                                   "env=TARGET=staging&arg=a&arg=b+c&label=twice&timeout=50&stdin")
        self.server.post("/jobs/%d/stdin?eof" % number, "first\n")
        self.choose(number)
        self.wait_for_output("staging|first|a|b c|caf\u00e9|")
        self.browser.click("again")
        self.wait_for("title", "Job %d: twice" % (number + 1))
        wait_until(lambda: self.browser.shows("input"), "a line for its input")
        self.browser.type("line", "second" + ENTER)
        self.wait_for_output("staging|second|a|b c|caf\u00e9|")
        first, second = self.server.get("/jobs?fields=script,args,label,timeout,cwd").jobs
        self.assertEqual(dict(first, id=0, href="", state=""), dict(second, id=0, href="", state=""))

    def test_runs_again_with_one_argument_changed_and_the_same_environment(self):
        number = self.server.run(b"#!/bin/sh\n# \xff\nprintf '%s|' \"$TARGET\" \"$@\"\n",
                                 "env=TARGET=staging&arg=one&arg=two&label=deploy&timeout=50")["id"]
        self.choose(number)
        self.browser.click("edit")
        wait_until(lambda: self.value("args") == "one\ntwo", "the arguments")
        self.assertEqual(self.browser.text("editing"), "Job %d, with its environment" % number)
        self.assertEqual((self.value("label"), self.value("timeout")), ("deploy", "50"))
        self.browser.type("args", "one\nthree")
        self.browser.click("go")
        self.wait_for("title", "Job %d: deploy" % (number + 1))
        self.wait_for_output("staging|one|three|")
        bodies = [self.server.get("/jobs/%d/script" % each).body for each in (number, number + 1)]
        self.assertEqual(bodies[0], bodies[1])          # although the page can't show its bytes
        self.browser.type("editor", "echo \"$TARGET\"")
        self.browser.click("go")
        self.wait_for_output("staging")
        self.assertEqual(self.server.job(number + 2)["args"], ["one", "three"])
        self.browser.click("fresh")
        self.assertEqual((self.value("editor"), self.value("args"), self.browser.text("editing")), ("", "", ""))

    def expected(self, message):
        return super().expected(message) or " 400 (" in message


class LogTest(PageCase):

    def test_is_followed_while_the_job_runs(self):
        gate = self.gate()
        self.run_script("echo first; %s; echo last" % until(gate))
        self.wait_for_output("first")
        self.wait_for("state", "running")
        open(gate, "w").close()
        self.wait_for_output("first", "last")
        self.wait_for("state", "done")

    def test_has_both_streams_in_the_order_in_which_they_came_from_one_request(self):
        self.choose(self.server.print_in_turn(["a", "error", "b"]))
        self.wait_for_output("a", "error", "b")
        asked = wait_until(lambda: self.asked("/(log|out|err)\\b"), "the end of the stream")
        self.assertEqual([path.partition("?")[0].rpartition("/")[2] for path in asked], ["log"])

    def test_marks_errors_not_by_colour_alone(self):
        self.choose(self.server.print_in_turn(["a", "error", "b"]))
        self.wait_for_output("a", "error", "b")
        self.assertEqual(self.browser.js("""return [...document.querySelectorAll('#output div')].map(node =>
            getComputedStyle(node, '::after').content.includes('err'))"""), [False, True, False])
        colours = self.browser.js("""return [...document.querySelectorAll('#output div')].map(node =>
            getComputedStyle(node).color)""")
        self.assertTrue(colours[0] == colours[2] != colours[1], colours)

    def test_another_job_takes_its_place_and_the_first_is_followed_no_more(self):
        gate = self.gate()
        self.run_script("echo slow; %s; echo too late" % until(gate))
        self.wait_for_output("slow")
        self.run_script("echo quick")
        self.wait_for_output("quick")
        open(gate, "w").close()
        wait_until(lambda: [row[2] for row in self.rows()] == ["done", "done"], "the end of both")
        self.assertEqual(self.lines(), ["quick"])
        self.choose(int(self.rows()[1][0]))
        self.wait_for_output("slow", "too late")

    def test_holds_no_stream_while_hidden_and_goes_on_where_it_was(self):
        number = self.server.start("while IFS= read -r line; do printf \"$line\"; done", "stdin")
        self.choose(number)
        self.server.post("/jobs/%d/stdin" % number, b"one\\n\ncaf\\303\\251 \\377 half\n")
        self.wait_for_output("one", "caf\u00e9 \ufffd half")      # its bytes can't be counted on the page
        self.hide()
        wait_until(lambda: "GET /jobs/%d/log" % number in self.server.log(), "the end of the stream")
        self.server.post("/jobs/%d/stdin" % number, b" whole\\n\ntwo\\n\n")
        self.server.wait_for_out(number, b"two")
        self.assertEqual(self.lines(), ["one", "caf\u00e9 \ufffd half"])
        self.hide(False)
        self.wait_for_output("one", "caf\u00e9 \ufffd half whole", "two")
        self.server.post("/jobs/%d/stdin?eof" % number)
        self.wait_for("state", "done")
        self.assertEqual(self.lines(), ["one", "caf\u00e9 \ufffd half whole", "two"])
        first, second = wait_until(lambda: len(self.asked("/log")) == 2 and self.asked("/log"), "both streams")
        self.assertIn("from=0", first)
        self.assertIn("from=", second)

    def test_goes_on_where_the_connection_broke(self):
        relay = Relay(self.server.port)
        self.addCleanup(relay.close)
        number = self.server.start("while read line; do echo \"$line\"; done", "stdin")
        self.server.post("/jobs/%d/stdin" % number, "one\n")
        self.browser.open("http://127.0.0.1:%d/#secret=%s" % (relay.port, SECRET))
        self.choose(number)
        self.wait_for_output("one")
        relay.cut()
        self.server.post("/jobs/%d/stdin?eof" % number, "two\n")
        self.wait_for_output("one", "two")
        self.wait_for("state", "done")

    def test_shows_what_comes_after_a_first_piece_that_shows_nothing(self):
        for first in (r"\033[2J\033[31m", r"\303", r"\033[3", r"\a\b"):
            gate = self.gate()
            number = self.server.start("printf '%s'; %s; printf '\\2511mseen\\n'" % (first, until(gate)))
            self.choose(number)
            wait_until(lambda: self.server.job(number, "fields=out_bytes")["out_bytes"], "the first piece")
            open(gate, "w").close()
            wait_until(lambda: self.lines() and self.lines()[0].endswith("seen"), "the second piece after " + first)
            self.wait_for("state", "done")

    def test_tells_a_fault_of_its_own_and_does_not_take_it_for_the_networks(self):
        self.browser.js("JSON.parse = () => { throw new TypeError('broken on purpose'); }")
        number = self.server.run("echo hi")["id"]
        self.choose(number)
        wait_until(lambda: "broken on purpose" in self.browser.text("trouble"), "word of the fault")
        asked = self.asked("last=")
        wait_until(lambda: len(self.asked("last=")) > len(asked) + 1, "some periods")
        self.assertEqual(len(self.asked("/jobs/%d/log" % number)), 1)

    def test_three_tabs_on_running_jobs_let_a_fourth_sign_in(self):
        gate = self.gate()
        first = self.browser.get("/window")
        tabs = [first]
        try:
            for index in range(3):
                number = self.server.start("echo start; %s; echo end" % until(gate))
                if index:
                    tabs.append(self.browser.post("/window/new", type="tab")["handle"])
                    self.browser.post("/window", handle=tabs[-1])
                    self.browser.open(self.url + "#secret=" + SECRET)
                self.hide(False)        # as in windows side by side
                self.choose(number)
                self.wait_for_output("start")
            tabs.append(self.browser.post("/window/new", type="tab")["handle"])
            self.browser.post("/window", handle=tabs[-1])
            self.browser.open(self.url)
            self.hide(False)
            self.browser.type("secret", SECRET + ENTER)
            wait_until(lambda: len(self.rows()) == 3, "the jobs in the fourth tab")
            open(gate, "w").close()
            for tab in tabs[:3]:
                self.browser.post("/window", handle=tab)
                self.wait_for_output("start", "end")
        finally:
            for tab in tabs[1:]:
                self.browser.post("/window", handle=tab)
                self.browser.delete("/window")
            self.browser.post("/window", handle=first)

    def test_is_bounded_and_shows_its_end(self):
        self.choose(self.server.run("seq 1000000; echo end")["id"])
        self.wait_for_line("end")
        wait_until(lambda: self.below() < 8, "its end")
        count = self.browser.js("return document.querySelectorAll('#output > div').length")
        self.assertTrue(20000 <= count <= 40000, count)
        self.assertRegex(self.browser.text("cut"), "^Older output is not shown here")

    def test_is_bounded_without_line_ends(self):
        self.choose(self.server.run("head -c 9000000 /dev/zero | tr '\\0' x; echo; echo end")["id"])
        self.wait_for_line("end")
        self.assertLess(self.browser.js("return document.getElementById('output').textContent.length"), 5 << 20)

    def test_stays_where_one_has_scrolled_to_and_jumps_to_the_end(self):
        gate = self.gate()
        self.run_script("seq 300; %s; seq 300; echo end" % until(gate))
        self.wait_for_line("300")
        self.browser.js("document.getElementById('output').scrollTop = 40")
        open(gate, "w").close()
        self.wait_for_line("end")
        self.assertEqual(self.browser.js("return document.getElementById('output').scrollTop"), 40)
        self.browser.click("end")
        self.assertLess(self.below(), 8)

    def below(self):
        """Return how much of the output is below what is shown of it, in pixels."""
        return self.browser.js("const node = document.getElementById('output');"
                               "return node.scrollHeight - node.scrollTop - node.clientHeight")

    def test_saves_all_in_the_same_order(self):
        directory = os.path.dirname(self.gate())
        self.browser.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=directory)
        number = self.server.print_in_turn(["a", "error", "b"])
        self.choose(number)
        self.wait_for_output("a", "error", "b")
        self.browser.click("save")
        name = os.path.join(directory, "job-%d.log" % number)
        wait_until(lambda: os.path.exists(name) and os.path.getsize(name), "the download")
        with open(name, "rb") as file:
            self.assertEqual(file.read(), b"a\nerror\nb\n")

    def test_says_that_there_is_nothing_to_see(self):
        self.wait_for("none", "No job chosen.")
        gate = self.gate()
        self.choose(self.server.start(until(gate)))
        self.wait_for("nothing", "This job has printed nothing yet.")
        open(gate, "w").close()
        self.wait_for("nothing", "This job printed nothing.")
        self.assertFalse(self.browser.shows("output"))

    def expected(self, message):        # the relay is cut
        return super().expected(message) or "ERR_" in message or "broken on purpose" in message


class TerminalTest(PageCase):
    """What a terminal makes of the bytes."""

    def looks(self):
        """Return text, weight, and whether it has a colour and a ground of its own, for each run of the output."""
        return self.browser.js("""
            const plain = getComputedStyle(document.getElementById('output'));
            return [...document.querySelectorAll('#output span')].map(node => {
                const style = getComputedStyle(node);
                return [node.textContent, style.fontWeight, style.color !== plain.color,
                        style.backgroundColor !== 'rgba(0, 0, 0, 0)'];
            })""")

    def test_shows_colours_and_bold(self):
        self.show_end(r"printf 'a\033[31mred\033[0m \033[1mbold\033[22m '; "
                      r"printf '\033[38;5;208mmany\033[39m \033[48;5;17mon\033[49mz\n'")
        self.assertEqual(self.lines(), ["ared bold many onz"])
        self.assertEqual(self.looks(), [["red", "400", True, False], ["bold", "700", False, False],
                                        ["many", "400", True, False], ["on", "400", False, True]])

    def test_every_colour_can_be_read_on_both_themes(self):
        self.show_end(r"for n in $(seq 0 255); do printf '\033[38;5;%dmfore\033[0m \033[48;5;%dmback\033[0m ' $n $n; "
                      r"printf '\033[97;48;5;%dmwhite\033[30mblack\033[0m\n' $n; done")
        for scheme in ("light", "dark"):
            self.browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            self.assertEqual(self.browser.js(POOR_CONTRAST), [], scheme)
        self.browser.cdp("Emulation.setEmulatedMedia", features=[])

    def test_a_carriage_return_writes_over_its_line(self):
        self.show_end(r"printf '10%%\r20%%\r100%%\nabc\rX\ntwo\r\nlong line\r\033[Kshort\n'")
        self.assertEqual(self.lines(), ["100%", "Xbc", "two", "short"])

    def test_a_carriage_return_that_comes_later_keeps_the_colours(self):
        gate = self.gate()
        self.run_script(r"printf '\033[31mred\033[0m plain'; %s; printf '\rR\n'" % until(gate))
        self.wait_for_output("red plain")
        open(gate, "w").close()
        self.wait_for_output("Red plain")
        self.assertEqual([look[:3] for look in self.looks()], [["ed", "400", True]])

    def test_backspace_and_bell_show_nothing(self):
        self.show_end(r"printf 'ab\bc\a d\n'")
        self.assertEqual(self.lines(), ["ac d"])

    def test_other_escapes_are_dropped(self):
        self.show_end(r"printf '\033]0;title\007a\033[2J\033[?25lb\033(Bc\033]8;;http://x\033\\d'; "
                      r"printf '\033[10;5He\000f\033P1q\033\\g\n'")
        self.assertEqual(self.lines(), ["abcdefg"])

    def test_characters_and_escapes_that_come_in_parts(self):
        gate = self.gate()
        self.run_script(r"printf 'caf\303'; %s; printf '\251 \033[3'; sleep 0.1; printf '1mred\033[0m\r\n'"
                        % until(gate))
        self.wait_for_output("caf")
        open(gate, "w").close()
        self.wait_for_output("caf\u00e9 red")
        self.assertEqual(self.looks(), [["red", "400", True, False]])


class ToolsTest(PageCase):

    def test_finds_counts_and_marks(self):
        self.show_end(r"printf 'one Error\nno\n\033[31mer\033[0mror and ERROR\n'; seq 200")
        self.browser.type("find", "error")
        self.wait_for("found", "1 of 3")
        self.assertEqual(self.marked("found"), ["Error", "error", "ERROR"])
        self.assertEqual(self.marked("current"), ["Error"])
        self.assertTrue(self.in_sight())
        self.browser.press(ENTER)
        self.wait_for("found", "2 of 3")
        self.assertEqual(self.marked("current"), ["error"])
        for place in ("1 of 3", "3 of 3"):
            self.browser.click("previous")
            self.wait_for("found", place)
        self.browser.type("find", "none of (that")
        self.wait_for("found", "No match")
        self.assertEqual(self.marked("found"), [])

    def test_finds_in_what_comes_later(self):
        gate = self.gate()
        self.run_script("echo error; %s; echo error again" % until(gate))
        self.wait_for_output("error")
        self.browser.type("find", "error")
        self.wait_for("found", "1 of 1")
        open(gate, "w").close()
        self.wait_for("found", "1 of 2")

    def test_a_first_user_finds_the_error_among_20000_lines(self):
        self.show_end("seq 12345; echo some Error here; seq 7655; exit 1")
        self.assertFalse(self.browser.shows("cut"))
        self.browser.type("find", "error")
        self.wait_for("found", "1 of 1")
        self.assertEqual(self.marked("current"), ["Error"])
        wait_until(self.in_sight, "the line in sight")

    def marked(self, name):
        return self.browser.js("""return [...CSS.highlights.get(arguments[0])].map(static => {
            const range = new Range();
            range.setStart(static.startContainer, static.startOffset);
            range.setEnd(static.endContainer, static.endOffset);
            return range.toString();
        })""", name)

    def in_sight(self):
        """Is the match that is current in the part of the output that is shown?"""
        return self.browser.js("""const [{startContainer: text}] = CSS.highlights.get('current');
            const line = text.parentNode.closest('div').getBoundingClientRect();
            const output = document.getElementById('output').getBoundingClientRect();
            return line.top >= output.top && line.bottom <= output.bottom""")

    def test_shows_times_or_not(self):
        number = self.show_end("echo one; sleep 0.05; echo two >&2")
        before = """return [...document.querySelectorAll('#output div')].map(node =>
            getComputedStyle(node, '::before').content)"""
        self.assertEqual(self.browser.js(before), ["none", "none"])
        self.browser.click("times")
        log = self.server.get("/jobs/%d/log?json" % number).body.decode("utf-8").splitlines()
        local = self.browser.js("""return arguments[0].map(time => {
            const date = new Date(time), two = part => String(part).padStart(2, "0");
            return two(date.getHours()) + ":" + two(date.getMinutes()) + ":" + two(date.getSeconds()) + "." +
                String(date.getMilliseconds()).padStart(3, "0");
        })""", [json.loads(line)["time"] for line in log])
        self.assertEqual([time in shown for time, shown in zip(local, self.browser.js(before))], [True, True])
        self.browser.click("times")
        self.assertEqual(self.browser.js(before), ["none", "none"])

    def test_wraps_or_not(self):
        self.show_end("head -c 3000 /dev/zero | tr '\\0' x; echo")
        wider = "const node = document.getElementById('output'); return node.scrollWidth > node.clientWidth"
        self.assertFalse(self.browser.js(wider))
        self.browser.click("wrap")
        self.assertTrue(self.browser.js(wider))
        self.browser.click("wrap")
        self.assertFalse(self.browser.js(wider))

    def test_copies_all(self):
        self.show_end(r"printf 'one\n\033[31mtwo\033[0m <b>\n'")
        self.browser.click("copy")
        self.wait_for("copy", "Copied")
        self.browser.js("document.getElementById('editor').focus()")
        self.browser.press("v", hold=CONTROL)
        self.assertEqual(self.value("editor"), "one\ntwo <b>\n")


class JobTest(PageCase):

    def test_shows_its_state_label_start_and_how_long_it_runs(self):
        number = self.server.start("echo started; sleep 99", "label=nightly")
        self.choose(number)
        self.assertEqual(self.browser.text("title"), "Job %d: nightly" % number)
        self.wait_for("state", "running")
        pattern = r"^Started [0-9-]{10} [0-9:]{8}, running for ([0-9.]+) s$"
        first = float(re.match(pattern, wait_until(lambda: self.browser.text("when"))).group(1))
        wait_until(lambda: float(re.match(pattern, self.browser.text("when")).group(1)) > first, "the tick")
        self.server.post("/jobs/%d/kill" % number)
        self.wait_for("state", "signal: terminated")
        self.assertRegex(self.browser.text("when"), r"^Started [0-9-]{10} [0-9:]{8}, ran for [0-9.]+ s$")

    def test_says_why_a_job_failed(self):
        number = self.server.run("exit 3")["id"]
        late = self.server.run("sleep 9", "timeout=0.1")["id"]
        missing = self.server.run("#!/no/such\n")["id"]
        for each, why in ((number, "exit status 3"), (late, "timed out"), (missing, "no such file")):
            self.choose(each)
            wait_until(lambda: why in self.browser.text("state"), why)
            self.assertEqual(self.browser.js("return document.getElementById('state').className"), "failed")

    def test_shows_the_script_and_the_options_on_demand(self):
        number = self.show_end("# a comment\necho '<b>bold</b>'", "arg=a+b&timeout=50")
        self.assertEqual(self.asked("script"), [])
        self.browser.click_on("#details summary")
        self.wait_for("script", self.server.get("/jobs/%d/script" % number).body.decode("utf-8").strip())
        facts = self.browser.text("facts")
        for fact in ("a b", "50", os.getcwd()):
            self.assertIn(fact, facts)

    def test_says_at_once_that_it_is_stopping_and_offers_to_kill_after_the_grace(self):
        number = self.server.start("trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done")
        self.choose(number)
        self.wait_for_output("ready")
        self.browser.click("stop")
        self.assertEqual((self.browser.text("state"), self.browser.text("stop")), ("stopping", "Stopping"))
        wait_until(lambda: "no" in self.lines(), "the refusal")
        self.browser.js("const now = Date.now; Date.now = () => now() + 5500")      # the grace is over
        self.wait_for("stop", "Kill")
        self.browser.click("stop")
        self.wait_for("state", "signal: killed")
        self.assertTrue(self.browser.js("return document.getElementById('stop').disabled"))

    def test_delete_asks_if_the_job_runs(self):
        number = self.server.start("sleep 99")
        self.choose(number)
        self.answer(False)
        self.browser.click("delete")
        self.assertEqual(self.browser.js("return questions"), ["Job %d is running. End and forget it?" % number])
        self.assertEqual(self.server.job(number)["state"], "running")
        self.answer(True)
        self.browser.click("delete")
        wait_until(lambda: self.rows() == [], "an empty list")
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_delete_stands_apart_from_save_and_leaves_the_list_with_the_focus(self):
        self.show_end("echo gone")
        gap = self.browser.js("return document.getElementById('delete').getBoundingClientRect().left - "
                              "document.getElementById('save').getBoundingClientRect().right")
        self.assertGreater(gap, 48)
        self.answer(False)
        self.browser.click("delete")
        wait_until(lambda: self.rows() == [], "an empty list")
        self.assertEqual(self.browser.js("return questions"), [])
        self.assertFalse(self.browser.shows("job"))
        self.assertEqual(self.server.get("/jobs").jobs, [])
        self.assertEqual(self.browser.js("return document.activeElement.id"), "jobs")

    def test_says_that_it_was_deleted_elsewhere(self):
        number = self.show_end("echo here")
        self.server.delete("/jobs/%d" % number)
        self.wait_for("none", "There is no job %d, or no longer." % number)
        self.assertFalse(self.browser.shows("job"))
        self.assertEqual(self.rows(), [])

    def expected(self, message):        # it was asked for just when it was deleted
        return super().expected(message) or " 404 (" in message


class InputTest(PageCase):

    def test_a_job_on_a_terminal_takes_lines_and_keys(self):
        number = self.server.start("trap 'echo interrupted' INT; read line; echo \"got $line\"; cat; echo end", "tty")
        self.choose(number)
        wait_until(lambda: self.browser.shows("input"), "a line for its input")
        self.browser.type("line", "hello" + ENTER)
        self.wait_for_output("hello", "got hello")
        self.assertEqual(self.value("line"), "")
        self.browser.click("eof")
        wait_until(lambda: self.lines()[-1].endswith("end"), "the end of the input")
        self.wait_for("state", "done")
        self.assertFalse(self.browser.shows("input"))

    def test_interrupts_a_job_on_a_terminal(self):
        self.choose(self.server.start("trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.05; done",
                                      "tty"))
        self.wait_for_output("ready")
        self.browser.click("interrupt")
        self.wait_for("state", "exit status 7")
        wait_until(lambda: "interrupted" in "".join(self.lines()), "what it printed last")

    def test_a_job_with_standard_input_takes_lines_and_its_end(self):
        self.choose(self.server.start("cat; echo end", "stdin"))
        wait_until(lambda: self.browser.shows("input"), "a line for its input")
        self.browser.type("line", "hello" + ENTER)
        self.wait_for_output("hello")
        self.browser.click("eof")
        self.wait_for_output("hello", "end")

    def test_the_arrow_keys_recall_what_was_sent(self):
        self.choose(self.server.start("cat", "stdin"))
        wait_until(lambda: self.browser.shows("input"), "a line for its input")
        for line in ("one", "two"):
            self.browser.type("line", line + ENTER)
            wait_until(lambda: line in self.lines(), line)
        recalled = []
        for key in (UP, UP, UP, DOWN, DOWN):
            self.browser.press(key)
            recalled.append(self.value("line"))
        self.assertEqual(recalled, ["two", "one", "one", "two", ""])

    def tearDown(self):
        super().tearDown()
        self.server.delete("/jobs")


class ListTest(PageCase):

    def test_tells_of_each_how_it_is_newest_first(self):
        done = self.server.run("true", "label=fine")["id"]
        failed = self.server.run("exit 3")["id"]
        late = self.server.run("sleep 9", "timeout=0.1")["id"]
        held = self.server.run("sleep 99 & echo held")["id"]
        running = self.server.start("# not this line\nsleep 99 # but this")
        self.wait_for_rows(running, held, late, failed, done)
        wait_until(lambda: [row[1:3] for row in self.rows()] == [
            ["sleep 99 # but this", "running"], ["sleep 99 & echo held", "done, held"], ["sleep 9", "timed out"],
            ["exit 3", "exit status 3"], ["true", "done"]])
        self.assertRegex(self.rows()[4][3],
                         r"^fine \u00b7 [0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2} \u00b7 ran for [0-9.]+ s$")
        self.server.post("/jobs/%d/kill" % held)

    def test_is_updated_in_place(self):
        gate = self.gate()
        self.server.start(until(gate))
        wait_until(lambda: self.rows(), "the job in the list")
        self.browser.js("document.querySelector('#list a').focus(); document.querySelector('#list a').mark = 1")
        self.server.run("true")
        open(gate, "w").close()
        wait_until(lambda: [row[2] for row in self.rows()] == ["done", "done"], "the end of both")
        self.assertEqual(self.browser.js("return document.activeElement.mark"), 1)

    def test_filters_by_label_script_and_state(self):
        label = self.server.run("true", "label=Nightly+build")["id"]
        script = self.server.run("# make it\nmake_nothing() { :; }")["id"]
        state = self.server.run("exit 3")["id"]
        self.wait_for_rows(state, script, label)
        for text, number in (("night", label), ("build nightly", label), ("MAKE_NOTHING", script), ("status 3", state)):
            self.browser.type("filter", text)
            self.wait_for_rows(number)
        self.browser.type("filter", "no such thing")
        self.wait_for("empty", "No job matches.")
        self.assertEqual(self.rows(), [])

    def test_says_that_there_are_no_jobs(self):
        self.wait_for("empty", "No jobs yet.")
        self.server.run("true")
        self.wait_for("empty", "")

    def test_clears_the_complete_ones_after_a_question(self):
        self.server.run("true")
        running = self.server.start("sleep 99")
        wait_until(lambda: len(self.rows()) == 2, "both jobs")
        self.answer(False)
        self.browser.click("clear")
        self.assertEqual(len(self.browser.js("return questions")), 1)
        self.assertEqual(len(self.server.get("/jobs").jobs), 2)
        self.answer(True)
        self.browser.click("clear")
        self.wait_for_rows(running)
        self.assertEqual([job["id"] for job in self.server.get("/jobs").jobs], [running])

    def test_shows_the_newest_hundred_and_more_on_demand(self):
        numbers = [self.server.start("true") for _ in range(101)]
        wait_until(lambda: self.rows() and self.rows()[0][0] == str(numbers[-1]), "the newest")
        self.assertEqual(len(self.rows()), 100)
        self.browser.click("more")
        wait_until(lambda: len(self.rows()) == 101, "all jobs")
        self.assertEqual([row[0] for row in self.rows()], [str(number) for number in reversed(numbers)])
        self.assertFalse(self.browser.shows("more"))
        self.browser.post("/refresh")
        wait_until(lambda: len(self.rows()) == 100, "the newest")
        self.browser.js("location.hash = 'job/%d'" % numbers[0])        # that is not among them
        wait_until(lambda: self.browser.text("title") == "Job %d" % numbers[0], "the oldest")

    def test_the_address_keeps_the_job_over_reload_and_back(self):
        first, second = (self.show_end("echo " + name) for name in ("first", "second"))
        self.assertEqual(self.browser.get("/url"), self.url + "#job/%d" % second)
        self.browser.post("/refresh")
        self.wait_for_output("second")
        self.browser.post("/back")
        self.wait_for_output("first")
        self.assertEqual(self.browser.text("title"), "Job %d" % first)
        self.browser.post("/forward")
        self.wait_for_output("second")

    def test_is_not_asked_for_while_the_tab_is_hidden(self):
        self.hide()
        before = wait_until(lambda: self.settled(), "the end of the questions")
        second = self.server.run("true")["id"]
        self.assertEqual(len(self.asked("last=")), before)
        self.hide(False)
        self.wait_for_rows(second)

    def settled(self):
        """Return how often the list was asked for, if it is the same for longer than a period."""
        return self.browser.post("/execute/async", args=[], script="""
            const done = arguments[0], count = () => performance.getEntriesByType('resource')
                .filter(each => /last=/.test(each.name)).length, before = count();
            setTimeout(() => done(before === count() ? before : 0), 1200)""")


class HarmlessTest(PageCase):

    def test_what_a_job_prints_and_is_called_stays_text_and_runs_nothing(self):
        evil = "<img src=x onerror='window.bad=1'><script>window.bad=1</script>"
        script = "e=\"%s\"; echo \"$e\"; echo \"$e\" >&2; printf '\\033[31m%%s\\033[0m\\n' \"$e\"" % evil
        number = self.server.start(script, "arg=%3Cscript%3Ewindow.bad=1%3C/script%3E&"
                                           "label=%3Cimg%20src=x%20onerror=window.bad=1%3E")
        self.choose(number)
        self.browser.click_on("#details summary")
        wait_until(lambda: self.lines().count(evil) == 3, "both streams")
        wait_until(lambda: evil in self.browser.text("script"), "the script")
        self.assertEqual(self.browser.text("title"), "Job %d: <img src=x onerror=window.bad=1>" % number)
        self.assertIn(evil, self.rows()[0][1])
        found = self.browser.js("return [document.images.length, document.scripts.length, window.bad]")
        self.assertEqual(found, [0, 1, None])

    def test_markup_by_a_mistake_of_the_script_is_refused_by_the_browser(self):
        for mistake in ("document.body.innerHTML = '<b>x</b>'", "document.write('x')",
                        "document.createElement('script').text = '1'"):
            refused = self.browser.js("try { %s; return false } catch (error) { return true }" % mistake)
            self.assertTrue(refused, mistake)
        self.assertEqual(len([entry for entry in self.browser.log() if "'Trusted" in entry["message"]]), 3)

    def test_a_browser_gets_it_without_a_secret_and_everyone_else_needs_one(self):
        with open("/etc/hostname" if os.path.exists("/etc/hostname") else os.devnull) as file:
            names = {socket.gethostname(), file.read().strip(), str(os.getpid())} - {""}
        page = self.server.get("/", headers={"Accept": "text/html,*/*;q=0.8"}, secret=False)
        self.assertEqual((page.status, page.headers["content-type"]), (200, "text/html; charset=utf-8"))
        text = page.body.decode("utf-8")
        for name in names | {SECRET, self.server.tmp, str(self.server.pid)}:
            self.assertNotRegex(text, r"\b%s\b" % re.escape(name))
        self.assertNotRegex(text, r"https?://|//[a-z]|@import|url\(|src=")
        self.assertError(self.server.get("/", headers={"Accept": "*/*"}, secret=False), 401, "secret")
        self.assertEqual(re.sub("'sha256-[A-Za-z0-9+/]{43}='", "HASH", page.headers["content-security-policy"]), (
            "default-src 'none'; script-src HASH; style-src HASH; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"))

    def test_it_is_read_in_one_sitting(self):
        page = self.server.get("/", headers={"Accept": "text/html"}, secret=False)
        self.assertLess(len(page.body.splitlines()), 300)


class AccessTest(PageCase):

    def test_is_used_by_keyboard_alone(self):
        self.server.run("echo old")
        new = self.server.run("echo new")["id"]
        wait_until(lambda: len(self.rows()) == 2, "both jobs")
        self.browser.js("document.getElementById('editor').focus()")
        self.assertEqual(self.reach(7), ["Options", "go", "file", "clear", "filter",
                                         "Job %d" % new, "Job %d" % (new - 1)])
        self.browser.press(ENTER)
        self.wait_for_output("old")
        self.assertEqual(self.focused(), "title")       # from there on it is read
        self.wait_for("state", "done")
        self.assertEqual(self.reach(13), ["again", "edit", "save", "delete", "Script and options", "find", "previous",
                                          "Next match", "times", "wrap", "copy", "end", "output"])

    def reach(self, count):
        """Press Tab so often; return what had the focus after each."""
        result = []
        for _ in range(count):
            self.browser.press(TAB)
            result.append(self.focused())
        return result

    def focused(self):
        return self.browser.js("""const node = document.activeElement;
            const job = node.parentNode.localName === "li" && "Job " + node.firstChild.textContent;
            return node.id || node.ariaLabel || job || node.textContent""")

    def test_the_focus_can_be_seen(self):
        self.browser.press(TAB)
        self.assertNotEqual(self.browser.js("return getComputedStyle(document.activeElement).outlineStyle"), "none")

    def test_fits_a_telephone_and_a_wide_screen(self):
        self.show_end("head -c 3000 /dev/zero | tr '\\0' x; echo; seq 100 >&2",
                      "label=%s&arg=%s" % ("l" * 300, "a" * 300))
        self.browser.js("document.querySelectorAll('details').forEach(node => { node.open = true; })")
        for pixels in (360, 1600):
            self.browser.width(pixels)
            for address in ("", self.browser.get("/url").partition("#")[2]):
                self.browser.js("location.hash = arguments[0]", address)
                width, inner = self.browser.js("return [document.documentElement.scrollWidth, innerWidth]")
                self.assertEqual(inner, pixels)
                self.assertLessEqual(width, inner)

    def test_list_and_job_are_two_views_on_a_telephone(self):
        self.browser.width(360, 640)
        number = self.server.run("echo here")["id"]
        self.wait_for_row(number)
        self.assertFalse(self.browser.shows("right"))
        self.choose(number)
        self.wait_for_output("here")
        self.assertFalse(self.browser.shows("left"))
        self.browser.click("back")
        wait_until(lambda: self.browser.shows("left") and not self.browser.shows("right"), "the list")
        self.choose(number)
        self.browser.click("edit")
        wait_until(lambda: self.browser.shows("editor"), "the form")
        self.assertIn("echo here", self.value("editor"))

    def test_a_finger_hits_what_it_means_on_a_telephone(self):
        self.browser.width(360, 740)
        gate = self.gate()
        self.addCleanup(lambda: open(gate, "w").close())
        self.choose(self.server.start(until(gate), "tty"))
        for address in ("", self.browser.get("/url").partition("#")[2]):
            self.browser.js("location.hash = arguments[0];"
                            "document.querySelectorAll('details').forEach(node => { node.open = true; })", address)
            wait_until(lambda: self.browser.shows("job" if address else "editor"), "the view")
            small = self.browser.js("""
                const shown = [...document.querySelectorAll('button, input, textarea, summary, a')].filter(
                    node => node.offsetParent);
                const boxes = shown.map(node => [node.id || node.textContent,
                    (node.type === 'checkbox' ? node.closest('label') : node).getBoundingClientRect()]);
                return boxes.filter(([, box]) => box.width < 44 || box.height < 44)
                    .map(([name, box]) => [name, box.width, box.height])""")
            self.assertEqual(small, [])
            sizes = self.browser.js("""return [...document.querySelectorAll('input, textarea')].filter(node =>
                node.offsetParent).map(node => getComputedStyle(node).fontSize)""")
            self.assertEqual(set(sizes), {"16px"})

    def test_every_control_has_a_name_and_every_text_enough_contrast(self):
        self.server.run("echo out; echo err >&2; exit 3", "label=x")
        self.server.run("true")
        self.choose(self.server.start("echo more; sleep 99", "tty"))
        self.wait_for_output("more")
        self.browser.js("document.querySelectorAll('details').forEach(node => { node.open = true; })")
        nodes = self.browser.cdp("Accessibility.getFullAXTree")["nodes"]
        nameless = [node["role"]["value"] for node in nodes if not node["ignored"] and not node["name"]["value"]
                    and node["role"]["value"] in ("button", "textbox", "searchbox", "checkbox", "link", "heading")]
        self.assertEqual(nameless, [])
        for scheme in ("light", "dark"):
            self.browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            self.assertEqual(self.browser.js(POOR_CONTRAST), [], scheme)
        self.browser.cdp("Emulation.setEmulatedMedia", features=[])
        self.server.delete("/jobs")


# WCAG 2.1, 1.4.3: the texts that are shown with a contrast of less than 4.5 to what is behind them.
# Colours are painted on a canvas, since a style may name them in any space.
POOR_CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true}), seen = new Map();
const rgb = colour => {
    if (!seen.has(colour)) {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        seen.set(colour, [...canvas.getImageData(0, 0, 1, 1).data]);
    }
    return seen.get(colour);
};
const light = colour => rgb(colour).slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const behind = node => {
    const colour = node ? getComputedStyle(node).backgroundColor : "rgb(255, 255, 255)";
    return rgb(colour)[3] === 0 ? behind(node.parentElement) : colour;
};
const poor = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!node.offsetParent || !texts.currentNode.data.trim()) continue;
    const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < 4.5) poor.push([texts.currentNode.data, getComputedStyle(node).color, behind(node), contrast]);
}
return poor;
"""
