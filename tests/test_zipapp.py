"""The forms in which rtot is copied: rtot.pyz, built by build_zipapp.sh; rtot.py alone; rtot.py from standard input."""
import glob
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
from support import Case, need

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

    def test_holds_the_source_and_its_bytecode_compressed(self):
        build(self.path)
        with zipfile.ZipFile(self.path) as archive, open(support.SOURCE, "rb") as source:
            self.assertEqual(sorted(archive.namelist()), ["__main__.py", "rtot.py", "rtot.pyc"])
            self.assertEqual(archive.read("rtot.py"), source.read())
            self.assertEqual(archive.read("rtot.pyc")[:4], importlib.util.MAGIC_NUMBER)
            self.assertLess(len(archive.read("__main__.py").splitlines()), 60)
            self.assertEqual({info.compress_type for info in archive.infolist()}, {zipfile.ZIP_DEFLATED})
        self.assertLessEqual(os.path.getsize(self.path), 150000)

    def with_bytecode_of_another(self):
        """Return the path of a build with the bytecode of another Python."""
        build(self.path)
        other = os.path.join(self.tmp, "other.pyz")
        with zipfile.ZipFile(self.path) as archive, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as copy:
            for name in archive.namelist():
                data = archive.read(name)
                copy.writestr(name, b"\0\0\r\n" + data[4:] if name.endswith(".pyc") else data)
        return other

    def test_runs_with_the_bytecode_of_another_version(self):
        said = subprocess.check_output([sys.executable, self.with_bytecode_of_another(), "--version"], universal_newlines=True)
        self.assertEqual(said, "rtot %s\n" % rtot.__version__)

    def test_the_source_is_compiled_once_at_most(self):
        code = ("import builtins, runpy, sys\nreal, sizes = builtins.compile, [0]\n"
                "def counting(source, *args, **more):\n"
                "    sizes.append(len(source.lstrip()))\n"
                "    return real(source, *args, **more)\n"
                "path = sys.argv[1]; sys.argv = [path, '--version']\n"
                "builtins.compile = counting\n"
                "try: runpy.run_path(path, run_name='__main__')\nexcept SystemExit: pass\n"
                "print(sum(sizes))")
        build(os.path.join(self.tmp, "own.pyz"))
        whole = os.path.getsize(support.SOURCE)
        for path, most in ((os.path.join(self.tmp, "own.pyz"), 10000), (self.with_bytecode_of_another(), whole + 10000)):
            said = subprocess.check_output([sys.executable, "-c", code, path], universal_newlines=True)
            self.assertLessEqual(int(said.split()[-1]), most, said)

    def test_a_fault_is_told_with_its_line_whichever_python_built_it(self):
        with open(support.SOURCE, encoding="utf-8") as file:
            line = next(number for number, text in enumerate(file, 1) if text == "def parser():\n")
        code = ("import runpy, sys\npath = sys.argv[1]; sys.argv = [path, '--version']\n"
                "try: runpy.run_path(path, run_name='__main__')\nexcept SystemExit: pass\n"
                "print(sys.modules['rtot'].parser.__code__.co_firstlineno)")
        build(os.path.join(self.tmp, "own.pyz"))
        for path in (os.path.join(self.tmp, "own.pyz"), self.with_bytecode_of_another()):
            said = subprocess.check_output([sys.executable, "-c", code, path], universal_newlines=True)
            self.assertEqual(int(said.split()[-1]), line)

    def test_an_old_python_is_told_in_a_line(self):
        build(self.path)
        for python in [shutil.which("python2")] + glob.glob(os.path.expanduser("~/.pyenv/versions/2.*/bin/python2")):
            if python and not subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL):
                process = subprocess.Popen([python, self.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                out, err = process.communicate(timeout=support.LIMIT)
                self.assertEqual((process.returncode, out, err.count(b"\n")), (1, b"", 1), err)
                self.assertIn(b"3.6", err)
        with zipfile.ZipFile(self.path) as archive:
            self.assertIn(b"version_info", archive.read("__main__.py"))

    def test_is_written_beside_the_script_by_default(self):
        for name in ("rtot.py", "build_zipapp.sh"):
            shutil.copy(os.path.join(support.ROOT, name), self.tmp)
        stage = os.path.join(self.tmp, "stage")
        os.mkdir(stage)
        subprocess.check_call([os.path.join(self.tmp, "build_zipapp.sh")], cwd="/",
                              env=dict(os.environ, PYTHON=sys.executable, TMPDIR=stage))
        self.assertEqual(sorted(os.listdir(self.tmp)), ["build_zipapp.sh", "rtot.py", "rtot.pyz", "stage"])
        self.assertEqual(os.listdir(stage), [])

    def test_a_failure_is_an_exit_status(self):
        with open(os.devnull, "w") as null:
            self.assertNotEqual(subprocess.call([BUILD, self.path], stderr=null,
                                                env=dict(os.environ, PYTHON="/no/such/python")), 0)
        self.assertFalse(os.path.exists(self.path))

    def test_passes_on_the_exit_status(self):
        build(self.path)
        for options, status in ((["--version"], 0), (["--nonsense"], 2), (["-a", "192.0.2.1:80", "-s", "x"], 1)):
            process = subprocess.Popen([sys.executable, self.path] + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            process.communicate(timeout=support.LIMIT)
            self.assertEqual(process.returncode, status, options)

    @need("shellcheck")
    def test_the_shell_script_is_clean(self):
        subprocess.check_call(["shellcheck", BUILD])


class RunTest(Case):
    """The same session with each form of the program."""

    def session(self, **how):
        server = self.own_server(**how)
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
