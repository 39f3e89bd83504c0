"""What users copy: rtot.pyz, built by build_zipapp.sh; rtot.py alone; rtot.py from standard input."""
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

import support
import rtot
from support import Server, need

BUILD = os.path.join(support.ROOT, "build_zipapp.sh")


def build(target, **env):
    subprocess.check_call([BUILD, target], env=dict(os.environ, PYTHON=sys.executable, **env))


class BuildTest(unittest.TestCase):

    def setUp(self):
        self.tmp = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.tmp)
        self.path = os.path.join(self.tmp, "rtot.pyz")

    def test_is_executable_by_env_python3(self):
        build(self.path)
        with open(self.path, "rb") as file:
            self.assertEqual(file.readline(), b"#!/usr/bin/env python3\n")
        self.assertTrue(os.access(self.path, os.X_OK))
        self.assertEqual(zipfile.ZipFile(self.path).testzip(), None)

    def test_has_the_same_bytes_each_time(self):
        contents = []
        for zone, umask in (("UTC", 0o022), ("Asia/Tokyo", 0o077), ("America/Lima", 0)):
            previous = os.umask(umask)
            try:
                build(self.path, TZ=zone)
            finally:
                os.umask(previous)
            with open(self.path, "rb") as file:
                contents.append(file.read())
        self.assertEqual(contents[1:], contents[:-1])

    def test_holds_the_source_and_the_bytecode_of_it(self):
        build(self.path)
        with zipfile.ZipFile(self.path) as archive, open(support.SOURCE, "rb") as source:
            self.assertEqual(archive.namelist(), ["__main__.py", "__main__.pyc"])
            self.assertEqual(archive.read("__main__.py"), source.read())
            self.assertEqual(archive.read("__main__.pyc")[:4], importlib.util.MAGIC_NUMBER)

    def test_runs_also_where_the_bytecode_is_that_of_another_version(self):
        build(self.path)
        other = os.path.join(self.tmp, "other.pyz")
        with zipfile.ZipFile(self.path) as archive, zipfile.ZipFile(other, "w") as copy:
            copy.writestr("__main__.py", archive.read("__main__.py"))
            copy.writestr("__main__.pyc", b"\0\0\r\n" + archive.read("__main__.pyc")[4:])
        said = subprocess.check_output([sys.executable, other, "--version"], universal_newlines=True)
        self.assertEqual(said, "rtot %s\n" % rtot.__version__)

    def test_stands_beside_the_script_by_default_and_leaves_nothing_else(self):
        for name in ("rtot.py", "build_zipapp.sh"):
            shutil.copy(os.path.join(support.ROOT, name), self.tmp)
        stage = os.path.join(self.tmp, "stage")
        os.mkdir(stage)
        subprocess.check_call([os.path.join(self.tmp, "build_zipapp.sh")], cwd="/",
                              env=dict(os.environ, PYTHON=sys.executable, TMPDIR=stage))
        self.assertEqual(sorted(os.listdir(self.tmp)), ["build_zipapp.sh", "rtot.py", "rtot.pyz", "stage"])
        self.assertEqual(os.listdir(stage), [])

    def test_a_failure_is_an_exit_code(self):
        with open(os.devnull, "w") as null:
            self.assertNotEqual(subprocess.call([BUILD, self.path], stderr=null,
                                                env=dict(os.environ, PYTHON="/no/such/python")), 0)
        self.assertFalse(os.path.exists(self.path))

    def test_exit_codes_come_through(self):
        build(self.path)
        for options, status in ((["--version"], 0), (["--nonsense"], 2), (["-a", "192.0.2.1:80", "-s", "x"], 1)):
            process = subprocess.Popen([sys.executable, self.path] + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            process.communicate(timeout=support.LIMIT)
            self.assertEqual(process.returncode, status, options)

    @need("shellcheck")
    def test_the_shell_script_is_clean(self):
        subprocess.check_call(["shellcheck", BUILD])


class RunTest(unittest.TestCase):
    """The same session with each form of the program."""

    def session(self, **how):
        server = Server(**how).ready()
        self.addCleanup(server.close)
        self.assertEqual(server.run("echo wat is happening")["out"], "wat is happening\n")
        self.assertEqual(server.get("/ping", secret=False).status, 200)
        self.assertEqual(server.run("read x; echo $?")["out"], "1\n")
        self.assertEqual(server.delete("/").status, 204)
        self.assertEqual(server.process.wait(support.LIMIT), 0)
        self.assertEqual(server.leftovers(), [])
        self.assertNotIn("Traceback", server.log())

    def test_the_zipapp(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "rtot.pyz")
            build(path)
            self.session(program=[path])

    def test_the_source(self):
        self.session(program=[support.SOURCE])

    def test_from_standard_input_with_no_file_at_all(self):
        with open(support.SOURCE, "rb") as source:
            self.session(program=["-"], stdin=source)
