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

import support
from support import SECRET, Server, ServerCase, need, wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"         # WebDriver, 11: what an element is in its JSON
ENTER, TAB, CONTROL, DOWN = "\ue007", "\ue004", "\ue009", "\ue015"      # WebDriver, 17.4.2: normalised keys


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
        self.browser.open(self.url)
        if not self.browser.js("return sessionStorage.getItem('rtot-secret')"):
            self.browser.type("secret", SECRET + ENTER)
        wait_until(lambda: self.browser.shows("editor"), "the jobs")
        self.browser.log()

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

    def wait_for_output(self, *lines):
        self.wait_for("output", "\n".join(lines))

    def wait_for_end(self, text):
        """Wait until the output ends so; what is before it may be too much to be fetched again and again."""
        wait_until(lambda: self.browser.js("return document.getElementById('output').textContent.endsWith(arguments[0])",
                                           text), "output that ends with %r" % text)

    def rows(self):
        """Return the list as it is shown: for each job its number, first line, state, and more."""
        return self.browser.js("return [...document.querySelectorAll('#list button')].map("
                               "button => [...button.children].map(node => node.textContent))")

    def wait_for_rows(self, *numbers):
        wait_until(lambda: [row[0] for row in self.rows()] == [str(number) for number in numbers], "jobs %r" % (numbers,))

    def choose(self, number):
        self.browser.js("document.dispatchEvent(new Event('visibilitychange'))")        # so that it looks at once
        self.wait_for_row(number)
        self.browser.js("[...document.querySelectorAll('#list button')].find("
                        "button => button.children[0].textContent === arguments[0]).click()", str(number))

    def wait_for_row(self, number):
        wait_until(lambda: any(row[0] == str(number) for row in self.rows()), "job %d in the list" % number)

    def gate(self):
        """Return the path of a file for which a job can wait, which is not there yet."""
        directory = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, directory)
        return os.path.join(directory, "gate")


def until(gate):
    """Return shell commands that wait for a file."""
    return "until test -e '%s'; do sleep 0.02; done" % gate


class SignInTest(PageCase):

    def test_a_wrong_secret_is_told_and_asked_for_again(self):
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
        self.assertEqual(self.browser.js("return document.getElementById('secret').value"), "")

    def test_the_secret_survives_a_reload_in_the_tab_and_is_nowhere_else(self):
        number = self.server.run("echo hi", "label=kept")["id"]
        self.wait_for_rows(number)
        self.browser.open(self.url)
        self.wait_for_rows(number)
        where = self.browser.js("return [document.cookie, location.href, JSON.stringify(localStorage),"
                                "document.documentElement.outerHTML, JSON.stringify(sessionStorage)]")
        self.assertEqual([SECRET in text for text in where], [False, False, False, False, True])
        self.assertEqual(self.browser.get("/cookie"), [])

    def test_forget_asks_again_also_after_a_reload(self):
        self.browser.click("forget")
        wait_until(lambda: self.browser.shows("sign-in"), "the question for the secret")
        self.browser.open(self.url)
        wait_until(lambda: self.browser.shows("sign-in"), "the question for the secret")
        self.assertEqual(self.browser.js("return Object.values(sessionStorage).join('')"), "")

    def test_another_server_asks_again_and_keeps_what_is_typed(self):
        first = Server().ready()
        self.addCleanup(first.close)
        self.browser.open("http://127.0.0.1:%d/" % first.port)
        self.browser.type("secret", SECRET + ENTER)
        wait_until(lambda: self.browser.shows("editor"), "the jobs")
        self.browser.type("editor", "echo typed")
        first.stop()
        wait_until(lambda: "cannot be reached, trying again" in self.browser.text("status"), "word of the loss")
        second = Server(secret="other", address="127.0.0.1:%d" % first.port).ready()
        self.addCleanup(second.close)
        self.wait_for("wrong", "That secret is wrong.")
        self.browser.type("secret", "other" + ENTER)
        wait_until(lambda: self.browser.shows("editor"), "the jobs")
        self.assertEqual(self.browser.js("return document.getElementById('editor').value"), "echo typed")

    def expected(self, message):
        return super().expected(message) or "ERR_CONNECTION_REFUSED" in message or "ERR_EMPTY_RESPONSE" in message


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
        self.browser.js("document.querySelector('#run details').open = true")
        self.browser.type("label", "nightly & <b>")
        self.browser.type("args", "one\ntwo words\n")
        self.browser.type("timeout", "77")
        self.browser.click("tty")
        self.browser.type("cols", "99")
        self.run_script('echo "$1,$2,$#"; stty size; read line; echo "got $line"')
        self.wait_for_output("one,two words,2", "24 99")
        self.browser.type("line", "typed" + ENTER)
        self.wait_for_output("one,two words,2", "24 99", "typed", "got typed")
        self.wait_for("state", "done")
        self.assertFalse(self.browser.shows("input"))
        job = self.server.get("/jobs?fields=label,args,timeout,tty").job
        self.assertEqual((job["label"], job["args"], job["timeout"], job["tty"]),
                         ("nightly & <b>", ["one", "two words"], 77, {"rows": 24, "cols": 99}))
        self.browser.click("again")
        wait_until(lambda: len(self.server.get("/jobs").jobs) == 2, "the second run")
        again = self.server.get("/jobs?fields=label,args,timeout,tty,script,cwd").jobs
        self.assertEqual([dict(job, id=0, href="", state="") for job in again[1:]],
                         [dict(job, id=0, href="", state="") for job in again[:1]])

    def test_shows_what_the_server_has_against_it(self):
        self.browser.js("document.querySelector('#run details').open = true")
        self.browser.type("timeout", "soon")
        self.run_script("echo not run")
        self.wait_for("trouble", "timeout is a number of seconds, like 5 or 0.5, not 'soon'")
        self.assertEqual(self.server.get("/jobs").jobs, [])
        self.browser.type("timeout", "5")
        self.run_script("echo run")
        self.wait_for_output("run")
        self.assertEqual(self.browser.text("trouble"), "")

    def test_an_empty_script_is_not_sent(self):
        self.browser.click("go")
        self.assertTrue(self.browser.js("return document.getElementById('editor').matches(':invalid')"))
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_a_dropped_file_goes_into_the_editor(self):
        self.browser.js("const data = new DataTransfer();"
                        "data.items.add(new File(['echo dropped\\n'], 'job.sh'));"
                        "document.body.dispatchEvent(new DragEvent('drop',"
                        "  {dataTransfer: data, bubbles: true, cancelable: true}))")
        wait_until(lambda: self.browser.js("return document.getElementById('editor').value") == "echo dropped\n")

    def expected(self, message):
        return super().expected(message) or " 400 (" in message


class FollowTest(PageCase):

    def test_output_is_seen_before_the_job_has_ended(self):
        gate = self.gate()
        self.run_script("echo first; %s; echo last" % until(gate))
        self.wait_for_output("first")
        self.wait_for("state", "running")
        open(gate, "w").close()
        self.wait_for_output("first", "last")
        self.wait_for("state", "done")

    def test_the_streams_are_told_apart_not_by_colour_alone(self):
        gate = self.gate()
        self.run_script("echo one; %s; echo two >&2" % until(gate))
        self.wait_for_output("one")
        open(gate, "w").close()
        self.wait_for_output("one", "two")
        blocks = self.browser.js("""return [...document.querySelectorAll('#output div')].map(node =>
            [node.textContent, getComputedStyle(node, '::before').content,
             getComputedStyle(node).color, getComputedStyle(node).borderLeftColor])""")
        (out, no_mark, out_colour, out_border), (err, mark, err_colour, err_border) = blocks
        self.assertEqual((out, no_mark, err, mark), ("one\n", "none", "two\n", '"stderr"'))
        self.assertNotEqual(out_colour, err_colour)
        self.assertEqual((out_border, err_border), ("rgba(0, 0, 0, 0)", err_colour))

    def test_another_job_takes_the_place_and_the_first_is_followed_no_more(self):
        gate = self.gate()
        self.run_script("echo slow; %s; echo too late" % until(gate))
        self.wait_for_output("slow")
        self.run_script("echo quick")
        self.wait_for_output("quick")
        open(gate, "w").close()
        wait_until(lambda: [row[2] for row in self.rows()] == ["done", "done"], "the end of both")
        self.assertEqual(self.browser.text("output"), "quick")
        self.browser.js("document.querySelectorAll('#list button')[1].click()")
        self.wait_for_output("slow", "too late")

    def test_a_large_output_is_shown_from_its_end_in_bounded_space(self):
        number = self.server.run("seq 1000000")["id"]
        self.choose(number)
        self.wait_for_end("\n1000000\n")
        size, top = self.browser.js("const node = document.getElementById('output');"
                                    "return [node.textContent.length, node.scrollHeight - node.scrollTop - node.clientHeight]")
        self.assertTrue(400000 < size < 1200000, size)
        self.assertLess(top, 8)
        self.assertEqual(self.browser.text("cut"), "Only the end of the output is here.")

    def test_more_than_is_kept_on_the_page_goes_by_also_without_a_line_end(self):
        self.run_script("seq 300000; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
        self.wait_for_end("x\nend\n")
        size = self.browser.js("return document.getElementById('output').textContent.length")
        self.assertLess(size, 2 << 20)      # a megabyte, and what the browser gave last in one piece
        self.assertTrue(self.browser.shows("cut"))

    def test_who_scrolls_up_stays_there(self):
        gate = self.gate()
        self.run_script("seq 300; %s; seq 300" % until(gate))
        wait_until(lambda: self.browser.text("output").endswith("300"), "the first lines")
        self.browser.js("document.getElementById('output').scrollTop = 40")
        open(gate, "w").close()
        wait_until(lambda: self.browser.text("output").count("300") == 2, "the last lines")
        self.assertEqual(self.browser.js("return document.getElementById('output').scrollTop"), 40)

    def test_characters_and_terminal_commands_that_come_in_parts(self):
        gate = self.gate()
        self.run_script(r"printf 'caf\303'; %s; printf '\251 \033[31mred\033[0m\r\n'" % until(gate))
        self.wait_for("output", "caf")
        open(gate, "w").close()
        self.wait_for("output", "caf\u00e9 red")

    def test_saves_the_whole_log(self):
        directory = os.path.dirname(self.gate())
        self.browser.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=directory)
        number = self.server.run("echo '\033[1mone\033[0m'; sleep 0.1; echo two >&2; sleep 0.1; seq 3")["id"]
        self.choose(number)
        self.wait_for("state", "done")
        self.browser.click("save")
        name = os.path.join(directory, "job-%d.log" % number)
        wait_until(lambda: os.path.exists(name) and os.path.getsize(name), "the download")
        with open(name, "rb") as file:
            self.assertEqual(file.read(), self.server.get("/jobs/%d/log" % number).body)


class JobTest(PageCase):

    def test_stops_a_job(self):
        self.run_script("echo started; sleep 99")
        self.wait_for_output("started")
        self.browser.click("stop")
        self.wait_for("state", "signal: terminated")
        self.assertTrue(self.browser.js("return document.getElementById('stop').disabled"))

    def test_deletes_a_job_and_the_focus_goes_to_the_editor(self):
        self.run_script("echo gone")
        self.wait_for("state", "done")
        self.browser.click("delete")
        wait_until(lambda: self.rows() == [], "an empty list")
        self.assertFalse(self.browser.shows("job"))
        self.assertEqual(self.server.get("/jobs").jobs, [])
        self.assertEqual(self.browser.js("return document.activeElement.id"), "editor")

    def test_runs_again_what_is_exactly_the_same(self):
        number = self.server.start("#!/bin/sh\nprintf '%s|' \"$@\" caf\u00e9", "arg=a&arg=b+c&label=twice&timeout=50")
        self.choose(number)
        self.wait_for_output("a|b c|caf\u00e9|")
        self.browser.click("again")
        wait_until(lambda: self.browser.text("title") == "Job %d: twice" % (number + 1), "the second job")
        self.wait_for_output("a|b c|caf\u00e9|")
        first, second = self.server.get("/jobs?fields=script,args,label,timeout,cwd").jobs
        self.assertEqual(dict(first, id=0, href=""), dict(second, id=0, href=""))

    def test_shows_the_script(self):
        number = self.server.run("# a comment\necho '<b>bold</b>'")["id"]
        self.choose(number)
        self.browser.js("document.querySelector('#job details').open = true")
        self.wait_for("script", "#!/bin/bash\n# a comment\necho '<b>bold</b>'")

    def test_what_was_deleted_elsewhere_goes_away(self):
        number = self.server.run("echo here")["id"]
        self.choose(number)
        self.wait_for_output("here")
        self.server.delete("/jobs/%d" % number)
        wait_until(lambda: not self.browser.shows("job") and not self.rows(), "the end of the job on the page")

    def expected(self, message):        # it was asked for just when it was deleted
        return super().expected(message) or " 404 (" in message


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
        self.assertRegex(self.rows()[4][3], r"^fine \u00b7 [0-9]+ s ago \u00b7 took [0-9.]+ s$")
        self.server.post("/jobs/%d/kill" % held)

    def test_is_updated_in_place(self):
        gate = self.gate()
        self.server.start(until(gate))
        wait_until(lambda: self.rows(), "the job in the list")
        self.browser.js("document.querySelector('#list button').focus(); document.querySelector('#list button').mark = 1")
        self.server.run("true")
        open(gate, "w").close()
        wait_until(lambda: [row[2] for row in self.rows()] == ["done", "done"], "the end of both")
        self.assertEqual(self.browser.js("return document.activeElement.mark"), 1)

    def test_says_that_there_are_more_than_a_hundred(self):
        for _ in range(100):
            self.server.start("true")
        wait_until(lambda: len(self.rows()) == 100, "100 jobs")
        self.assertFalse(self.browser.shows("more"))
        last = self.server.start("true")
        wait_until(lambda: self.rows()[0][0] == str(last), "the newest")
        self.assertEqual(len(self.rows()), 100)
        self.assertTrue(self.browser.shows("more"))

    def test_is_not_asked_for_while_the_tab_is_hidden(self):
        self.browser.js("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        first = self.server.run("true")["id"]
        asked = "return performance.getEntriesByType('resource').filter(each => /last=/.test(each.name)).length"
        before = wait_until(lambda: self.settled(asked), "the end of the questions")
        second = self.server.run("true")["id"]
        self.assertEqual(self.browser.js(asked), before)
        self.browser.js("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        self.wait_for_rows(second, first)

    def settled(self, script):
        """Return what the script gives if it is the same for longer than a period."""
        return self.browser.post("/execute/async", args=[], script="""
            const done = arguments[0], count = () => { %s };
            const before = count();
            setTimeout(() => done(before === count() ? before : 0), 1500)""" % script)


class HarmlessTest(PageCase):

    def test_what_a_job_prints_and_is_called_stays_text_and_runs_nothing(self):
        evil = "<img src=x onerror='window.bad=1'><script>window.bad=1</script>"
        number = self.server.start("echo \"%s\"; echo \"%s\" >&2" % (evil, evil),
                                   "arg=%3Cscript%3Ewindow.bad=1%3C/script%3E&label=%3Cimg%20src=x%20onerror=window.bad=1%3E")
        self.choose(number)
        wait_until(lambda: self.browser.text("output").count(evil) == 2, "both streams")
        wait_until(lambda: evil in self.browser.js("return document.getElementById('script').textContent"), "the script")
        self.assertEqual(self.browser.text("title"), "Job %d: <img src=x onerror=window.bad=1>" % number)
        self.assertIn(evil, self.rows()[0][1])
        self.assertEqual(self.browser.js("return [document.images.length, document.scripts.length, window.bad]"), [0, 1, None])

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
        self.assertError(self.server.get("/", headers={"Accept": "*/*"}, secret=False), 401, "secret")
        self.assertEqual(self.server.get("/", headers={"Accept": "*/*"}).json["links"]["ping"], "/ping")
        self.assertEqual(re.sub("'sha256-[A-Za-z0-9+/]{43}='", "HASH", page.headers["content-security-policy"]), (
            "default-src 'none'; script-src HASH; style-src HASH; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"))

    def test_it_is_read_in_one_sitting(self):
        lines = self.server.get("/", headers={"Accept": "text/html"}).body.decode("utf-8").splitlines()
        self.assertLess(len(lines), 200)
        self.assertLessEqual(max(map(len, lines)), 120)


class AccessTest(PageCase):

    def test_is_used_by_keyboard_alone(self):
        old, new = (self.server.run("echo " + name)["id"] for name in ("old", "new"))
        wait_until(lambda: len(self.rows()) == 2, "both jobs")
        self.browser.js("document.getElementById('editor').focus()")
        self.assertEqual(self.reach(3), ["SUMMARY", "go", "BUTTON %d echo new" % new])
        self.browser.press(DOWN)
        self.assertEqual(self.focused(), "BUTTON %d echo old" % old)
        self.browser.press(ENTER)
        self.wait_for_output("old")
        self.wait_for("state", "done")
        self.assertEqual(self.reach(5), ["again", "save", "delete", "SUMMARY", "output"])

    def reach(self, count):
        """Press Tab so often; return what had the focus after each."""
        result = []
        for _ in range(count):
            self.browser.press(TAB)
            result.append(self.focused())
        return result

    def focused(self):
        return self.browser.js("""const node = document.activeElement;
            return node.id || node.tagName + (node.children.length > 1 && node.tagName === "BUTTON" ?
                " " + node.children[0].textContent + " " + node.children[1].textContent : "")""")

    def test_the_focus_can_be_seen(self):
        self.browser.press(TAB)
        self.assertEqual(self.browser.js("return getComputedStyle(document.activeElement).outlineStyle"), "solid")

    def test_fits_a_telephone_and_a_wide_screen(self):
        number = self.server.run("head -c 3000 /dev/zero | tr '\\0' x; echo; seq 100 >&2",
                                 "label=%s&arg=%s" % ("l" * 300, "a" * 300))["id"]
        self.choose(number)
        wait_until(lambda: "100" in self.browser.text("output"), "the output")
        self.browser.js("document.querySelectorAll('details').forEach(node => { node.open = true; })")
        for pixels in (360, 1600):
            self.browser.width(pixels)
            width, inner = self.browser.js("return [document.documentElement.scrollWidth, innerWidth]")
            self.assertEqual(inner, pixels)
            self.assertLessEqual(width, inner)

    def test_on_a_telephone_a_chosen_job_comes_into_view(self):
        self.browser.width(360, 640)
        self.choose(self.server.run("echo here")["id"])
        self.wait_for_output("here")
        self.assertEqual(round(self.browser.js("return document.getElementById('right').getBoundingClientRect().top")), 0)

    def test_every_control_has_a_name_and_every_text_enough_contrast(self):
        self.server.run("echo out; echo err >&2; exit 3", "label=x")
        self.server.run("true")
        self.choose(self.server.start("echo more; sleep 99", "tty"))
        self.wait_for_output("more")
        self.browser.js("document.querySelectorAll('details').forEach(node => { node.open = true; })")
        nodes = self.browser.cdp("Accessibility.getFullAXTree")["nodes"]
        nameless = [node["role"]["value"] for node in nodes if not node["ignored"] and not node["name"]["value"]
                    and node["role"]["value"] in ("button", "textbox", "checkbox", "link", "heading")]
        self.assertEqual(nameless, [])
        for scheme in ("light", "dark"):
            self.browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            self.assertEqual(self.browser.js(POOR_CONTRAST), [], scheme)
        self.browser.cdp("Emulation.setEmulatedMedia", features=[])
        self.server.delete("/jobs")


# WCAG 2.1, 1.4.3: the texts that are shown with a contrast of less than 4.5 to what is behind them.
POOR_CONTRAST = """
const rgb = text => text.match(/[0-9.]+/g).map(Number);
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
    if (contrast < 4.5) poor.push([texts.currentNode.data, contrast]);
}
return poor;
"""
