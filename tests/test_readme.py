"""Every command of the README works as pasted, and comes back as shown."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import support
import rtot
from support import need

TIME = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9:.]+ \+0000 UTC")
END = "-- end of a command --"


def read():
    with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def sessions(text):
    """Yield (command, output) of the console blocks, in order."""
    for block in re.findall(r"(?s)```console\n(.*?)```", text):
        for part in re.split(r"(?m)^\$ ", block)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def plain(text):
    """Make what differs from run to run the same."""
    return TIME.sub("TIME", text).rstrip("\n")


@need("bash", "curl", "setpriv")
class ReadmeTest(unittest.TestCase):

    def setUp(self):
        self.tmp = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.tmp)

    @unittest.skipIf(os.geteuid(), "needs root, for a job as another user")
    def test_its_commands_come_back_as_shown(self):
        text = read()
        start = re.search(r"(?m)^    (\./build_zipapp\.sh && python3 rtot\.pyz .*)$", text).group(1)
        for name in ("rtot.py", "build_zipapp.sh"):
            shutil.copy(os.path.join(support.ROOT, name), self.tmp)
        binaries = os.path.join(self.tmp, "bin")
        os.mkdir(binaries)
        os.symlink(sys.executable, os.path.join(binaries, "python3"))
        server = support.Server.__new__(support.Server)
        server.log_path = os.path.join(self.tmp, "log")
        env = dict(os.environ, PATH=binaries + ":" + os.environ["PATH"])
        with open(server.log_path, "wb") as log:        # a port that is free, instead of 8457
            server.process = subprocess.Popen(["bash", "-c", start.replace(":8457", ":0").replace("&& ", "&& exec ")],
                                              stderr=log, env=env, cwd=self.tmp)
        try:
            server.ready()
            results = self.paste([command for command, _ in sessions(text)], server.port, env)
            for (command, expected), got in zip(sessions(text), results):
                with self.subTest(command=command):
                    self.assertEqual(plain(got), plain(expected))
        finally:
            self.assertEqual(server.stop(), 0)

    def paste(self, commands, port, env):
        # Other Pythons paste the same at the same time: a port and a directory of our own.
        commands = [command.replace("8457", str(port)).replace("cwd=/tmp", "cwd=" + self.tmp) for command in commands]
        script = "".join("%s\necho '%s'\n" % (command, END) for command in commands)
        output = subprocess.check_output(["bash", "-c", script], stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                         env=env, cwd=self.tmp, timeout=support.LIMIT * 2)
        results = output.decode("utf-8").replace("\r\n", "\n").split(END + "\n")
        self.assertEqual(len(results), len(commands) + 1, output)
        return results

    def test_names_every_route_option_and_parameter(self):
        text = read()
        for route in rtot.ROUTES:
            path = route.path.replace("{id}", "N")
            self.assertTrue("%s %s`" % (route.method, path) in text or "`%s`" % path.replace("/jobs/N", "") in text, route)
            for name in route.parameters.split():
                self.assertRegex(text, r"`%s(=[A-Z=5]*)?`" % name if name not in ("signal", "grace") else "`%s=" % name)
        for action in rtot.parser()._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    self.assertIn("`%s`" % option, text)
        for name in rtot.VIEW:
            self.assertIn(name, text)
