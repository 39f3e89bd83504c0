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
import unittest

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
