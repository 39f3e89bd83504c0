"""The README: its commands print what it shows, and it names everything that rtot has."""
import datetime
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import support
import rtot
from support import Server, need, wait_until

BUILD = "./build_zipapp.sh && python3 rtot.pyz -a 127.0.0.1:8457 -s secret\n"
TESTS = "python3 tests\n"
END = "-- end of a block --"

# What differs from run to run, and what takes its place before the README and the real output are compared.
PLACEHOLDERS = (
    (r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC", "TIME"),       # of a job
    (r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),                  # of the log
    (r"\b\d+(\.\d+)?m?s\b", "DURATION"),                                    # of the log
    (r" \d+\.\d+ +(?=\S)", " SECONDS "),                                   # of the list of jobs
    (r"(POST /jobs \d+) \d+", r"\1 BYTES"),                                # of the log
    ("\t", "  "),           # a tab that is pasted completes a name
)


def read():
    with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def sessions(text):
    """Return [commands, output] of the blocks that run on the README's own server, in order.

    The output is in lines that begin with "# ", and in a block that follows at once.
    """
    blocks = []
    for tag, block in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", text.partition("\n## From Python")[0]):
        if tag == "sh" and block not in (BUILD, TESTS):
            blocks.append([block, "".join(re.findall("(?m)^# (.*\n)", block))])
        elif tag == "json":
            blocks[-1][1] += block
    return blocks


def comparable(text):
    """Replace what differs from run to run."""
    for pattern, placeholder in PLACEHOLDERS:
        text = re.sub(pattern, placeholder, text)
    return text


@need("bash", "curl", "column", "setpriv")
@unittest.skipIf(os.geteuid(), "needs root, for a job as another user")
class CommandsTest(unittest.TestCase):

    def setUp(self):
        self.tmp = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.tmp)
        for name in ("rtot.py", "build_zipapp.sh"):
            shutil.copy(os.path.join(support.ROOT, name), self.tmp)
        os.mkdir(os.path.join(self.tmp, "bin"))
        os.symlink(sys.executable, os.path.join(self.tmp, "bin", "python3"))
        self.env = dict(os.environ, PATH=os.path.join(self.tmp, "bin") + ":" + os.environ["PATH"])
        self.server = Server.__new__(Server)
        self.server.log_path = os.path.join(self.tmp, "log")
        self.assertIn("```sh\n%s```" % BUILD, read())
        with open(self.server.log_path, "wb") as log:
            self.server.process = subprocess.Popen(["bash", "-c", self.ours(BUILD, 0).replace("&& ", "&& exec ")],
                                                   stderr=log, env=self.env, cwd=self.tmp)
        self.addCleanup(self.server.stop)
        self.server.ready()

    def ours(self, commands, port):
        """Return commands with a port and a directory of our own: other Pythons run the same at the same time."""
        return commands.replace("8457", str(port)).replace("cwd=/tmp", "cwd=" + self.tmp)

    def start(self, script, **more):
        return subprocess.Popen(["bash", "-c", self.ours(script, self.server.port)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env, cwd=self.tmp, **more)

    def test_print_what_is_shown(self):
        blocks = sessions(read())
        self.assertGreater(len(blocks), 10)
        process = self.start("".join("%secho '%s'\n" % (commands, END) for commands, _ in blocks))
        output = process.communicate(timeout=support.LIMIT)[0].decode("utf-8").replace("\r\n", "\n")
        results = output.split(END + "\n")
        self.assertEqual(len(results), len(blocks) + 1, output)
        for (commands, expected), got in zip(blocks, results):
            with self.subTest(commands=commands):
                self.assertEqual(comparable(got), comparable(expected))
        self.assertEqual(self.server.process.wait(support.LIMIT), 0)        # the last command ends the server
        log = comparable(self.server.log())
        for line in re.search(r"(?ms)^```text\n(.*?)^```$", read()).group(1).splitlines():
            self.assertIn(comparable(line) + "\n", log)

    def test_the_function_for_local_scripts_stops_them_on_an_interrupt(self):
        names, (function,) = ([commands for commands, _ in sessions(read()) if re.match(name + r"\(\) {", commands)]
                              for name in ("rtot", "there"))
        with open(os.path.join(self.tmp, "forever.sh"), "w") as file:
            file.write("echo begun; sleep 600 & sleep 600\n")
        process = self.start(names[0] + function.partition("\n}\n")[0] + "\n}\nthere forever.sh", start_new_session=True)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), b"begun\n")
        self.server.secret = "secret"
        self.assertEqual(self.server.job(0)["state"], "running")
        os.killpg(process.pid, signal.SIGINT)               # as a terminal does
        self.assertNotEqual(process.wait(support.LIMIT), 0)
        wait_until(lambda: self.server.job(0)["state"] == "complete", "the end of the job")
        self.assertEqual(self.server.job(0)["exit"], "signal: terminated")


class ContentsTest(unittest.TestCase):

    def test_has_at_most_500_lines(self):
        self.assertLessEqual(read().count("\n"), 500)

    def test_the_command_for_the_tests_works(self):
        self.assertIn("```sh\n%s```" % TESTS, read())
        usage = subprocess.check_output([sys.executable] + TESTS.split()[1:] + ["--help"], cwd=support.ROOT)
        self.assertIn(b"usage: python3 tests", usage)

    def test_its_two_ways_to_parse_a_time_work(self):
        command, expression = re.search(r'`(date -d [^`]*)`, or in Python: `([^`]*)`', read()).groups()
        time = "2026-11-23 18:55:58.514026369 +0000 UTC"
        seconds = subprocess.check_output(["bash", "-c", "time='%s'; %s +%%s" % (time, command)])
        parsed = eval(expression, {"datetime": datetime.datetime, "time": time})
        self.assertEqual(int(seconds), parsed.replace(tzinfo=datetime.timezone.utc).timestamp())

    def test_names_every_route_parameter_option_field_and_status(self):
        text = read()
        for method, path, _, parameters, _ in rtot.ROUTES:
            path = path.replace("{id}", "N")
            self.assertTrue("%s %s`" % (method, path) in text or "`%s`" % path.replace("/jobs/N", "") in text, path)
            for name in parameters.split():
                self.assertRegex(text, r"`%s(=[A-Z=5]*)?`" % name if name not in ("signal", "grace") else "`%s=" % name)
        for action in rtot.parser()._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    self.assertIn("`%s`" % option, text)
        fields = text.partition("### Fields of a job")[2].partition("\n### ")[0]
        for name in rtot.VIEW:
            self.assertIn("`%s`" % name, fields)
        statuses = text.partition("### Statuses")[2].partition("\n### ")[0]
        for status in rtot.REASONS:
            self.assertIn(str(status), statuses)

    def test_its_links_within_lead_to_a_heading(self):
        text = read()
        headings = {re.sub("[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall("(?m)^#+ (.*)$", text)}
        for anchor in re.findall(r"\]\(#(.*?)\)", text):
            self.assertIn(anchor, headings)


if __name__ == "__main__":
    unittest.main()
