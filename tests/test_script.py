"""How a script is read as the kernel would, and where it is kept."""
import errno
import os
import stat
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import support
import rtot
from rtot import Workspace, parse_shebang

HEADS = [
    b"#!%s\n", b"#!%s", b"#! %s\n", b"#!\t %s \t\n", b"#!%s a\n", b"#!%s a b  c \n", b"#!%s  a", b"#!%s a ",
    b"#!%s ", b"#!%s a\0b\n", b"#!%s\0\n", b"#!%s\0a\n", b"#!%s \0\n", b"#!%s -x\r\n", b"#!%s\r\n", b"#!\n%s",
    b"#!", b"#! ", b"#!  \n", b"#!\0", b"#!%s\n\n\n", b"#!%s a\techo\n",
] + [b"#!%s " + b"a" * count + end for count in (150, 200, 220, 230, 240, 250, 300) for end in (b"\n", b"")] + [
    b"#!" + b" " * count + b"%s" + end for count in (100, 200, 210, 220, 230, 240, 253, 254, 260)
    for end in (b"\n", b"", b" a\n")] + [b"#!%s" + b" " * 300 + b"a\n", b"#!" + b"a" * 300, b"#!" + b"/" * 300 + b"\n"]


class ShebangTest(unittest.TestCase):

    @unittest.skipUnless(support.LINUX, "needs Linux's kernel, whose rules these are")
    def test_reads_the_first_line_as_the_kernel_does(self):
        with tempfile.TemporaryDirectory() as directory:
            interpreter = os.fsencode(os.path.join(directory, "interpreter"))
            os.symlink(sys.executable, interpreter)
            show = os.path.join(directory, "show")
            with open(show, "w") as file:
                file.write("#!%s\nimport sys, os\nos.write(1, repr([os.fsencode(a) for a in sys.argv[1:]]).encode())\n"
                           % sys.executable)
            os.chmod(show, 0o700)
            for number, head in enumerate(HEADS):
                script = head.replace(b"%s", os.fsencode(show))
                path = os.path.join(directory, "script%d" % number)
                with open(path, "wb") as file:
                    file.write(script)
                os.chmod(path, 0o700)
                with self.subTest(script=script):
                    self.assertEqual(self.ours(script, path), self.kernels(path))

    def ours(self, script, path):
        try:
            interpreter, argument = parse_shebang(script)
            arguments = ([argument] if argument is not None else []) + [os.fsencode(path)]
            return subprocess.check_output([interpreter] + arguments)
        except OSError as error:
            return error.errno
        except subprocess.CalledProcessError as error:
            return error.returncode

    def kernels(self, path):
        try:
            return subprocess.check_output([path])
        except OSError as error:
            return error.errno
        except subprocess.CalledProcessError as error:
            return error.returncode

    def test_the_name_ends_at_a_blank_and_there_is_one_argument(self):
        self.assertEqual(parse_shebang(b"#! /bin/sh  -e  -u \t\necho"), (b"/bin/sh", b"-e  -u"))
        self.assertEqual(parse_shebang(b"#!/bin/sh"), (b"/bin/sh", None))

    def test_what_the_kernel_would_not_take_is_an_exec_format_error(self):
        for script in (b"#!\n", b"#!  \t\n", b"#!" + b"a" * 300 + b"\n"):
            with self.assertRaises(OSError) as caught:
                parse_shebang(script)
            self.assertEqual(caught.exception.errno, errno.ENOEXEC)

    def test_no_name_at_all_is_told_as_the_kernel_tells_it(self):
        for script in (b"#!", b"#!\0", b"#! ", b"#! \0x\n"):
            with self.assertRaises(OSError) as caught:
                parse_shebang(script)
            self.assertEqual(caught.exception.errno, errno.EACCES)


class WorkspaceTest(unittest.TestCase):

    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.addCleanup(self.tmp.cleanup)
        self.previous, tempfile.tempdir = tempfile.tempdir, self.tmp.name
        self.addCleanup(setattr, tempfile, "tempdir", self.previous)

    def workspace(self):
        workspace = Workspace()
        self.addCleanup(workspace.remove)
        return workspace

    def test_only_its_user_can_read_it(self):
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        script = self.workspace().write(b"echo hi")
        self.assertEqual(stat.S_IMODE(os.stat(script.path).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(script.path)).st_mode), 0o700)

    def test_nothing_is_made_before_the_first_script_and_nothing_left_after(self):
        workspace = self.workspace()
        workspace.sweep()
        self.assertEqual(os.listdir(self.tmp.name), [])
        workspace.write(b"1").close()
        workspace.write(b"2")
        workspace.remove()
        self.assertEqual(os.listdir(self.tmp.name), [])

    def test_sweeps_the_directory_of_a_server_that_was_killed_and_no_other(self):
        living = self.workspace()
        kept = living.write(b"kept")
        stale = self.directory("rtot-stale_01", "1", "22")
        inherited = self.directory("rtot-stale_02", "1")
        os.chmod(inherited, 0o2700)     # as all are that are made in a directory with this bit
        tree = self.directory("rtot-projects", "1")
        os.makedirs(os.path.join(tree, "2024", "deep"))
        others = [tree, self.directory("other", "1"), self.directory("rtot-notes", "1"),
                  self.directory("rtot-notes_01", "1", "important"), self.directory("rtot-shared01", "1", mode=0o755)]
        others.append(self.directory("rtot-readable", "1"))
        os.chmod(os.path.join(others[-1], "1"), 0o644)
        if not os.geteuid():
            others.append(self.directory("rtot-strange1", "1"))
            os.chown(others[-1], 65534, -1)
        os.symlink(others[1], os.path.join(self.tmp.name, "rtot-link_001"))      # but for its name it would be swept
        self.workspace().sweep()
        self.assertFalse(os.path.exists(stale))
        self.assertFalse(os.path.exists(inherited))
        self.assertTrue(os.path.exists(kept.path))
        for other in others:
            self.assertTrue(os.path.exists(os.path.join(other, "1")), other)

    def directory(self, name, *files, mode=0o700):
        path = os.path.join(self.tmp.name, name)
        os.mkdir(path, mode)
        for file in files:
            os.close(os.open(os.path.join(path, file), os.O_CREAT, 0o600))
        return path

    def test_makes_another_directory_when_a_sweeper_was_quicker_than_its_lock(self):
        made, real = [], tempfile.mkdtemp

        def swept(**more):
            made.append(real(**more))
            if len(made) < 3:
                os.rmdir(made[-1])
            return made[-1]
        with unittest.mock.patch.object(tempfile, "mkdtemp", swept):
            script = self.workspace().write(b"x")
        self.assertEqual(os.path.dirname(script.path), os.fsencode(made[2]))

    def test_makes_another_directory_when_a_sweeper_has_the_lock(self):
        import fcntl
        made, real = [], tempfile.mkdtemp

        def locked(**more):
            made.append(real(**more))
            if len(made) < 3:
                fd = os.open(made[-1], os.O_RDONLY)
                self.addCleanup(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
            return made[-1]
        with unittest.mock.patch.object(tempfile, "mkdtemp", locked):
            script = self.workspace().write(b"x")
        self.assertEqual(os.path.dirname(script.path), os.fsencode(made[2]))

    def test_a_directory_that_cannot_be_opened_is_not_left(self):
        real = os.open

        def scarce(path, *more, **named):
            if os.path.isdir(path):
                raise OSError(errno.EMFILE, "Too many open files")
            return real(path, *more, **named)
        with unittest.mock.patch.object(os, "open", scarce):
            self.assertRaisesRegex(OSError, "Too many", self.workspace()._make)
        self.assertEqual(os.listdir(self.tmp.name), [])

    def test_makes_another_directory_when_a_sweeper_removed_what_it_is_about_to_lock(self):
        import fcntl
        directories, real = [], fcntl.flock

        def swept(fd, operation):
            directories.append(os.path.join(self.tmp.name, *os.listdir(self.tmp.name)))
            if len(directories) < 3:
                os.rmdir(directories[-1])
            real(fd, operation)
        with unittest.mock.patch.object(fcntl, "flock", swept):
            script = self.workspace().write(b"x")
        self.assertEqual(os.path.dirname(script.path), os.fsencode(directories[2]))

    def test_does_without_a_lock_where_there_are_none(self):
        import fcntl
        with unittest.mock.patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
            script = self.workspace().write(b"x")
            self.workspace().sweep()
        self.assertTrue(os.path.exists(script.path))
        self.assertEqual(os.path.dirname(os.path.dirname(script.path)), os.fsencode(self.tmp.name))

    def test_makes_its_directory_again_when_somebody_cleaned_it_away(self):
        workspace = self.workspace()
        first = workspace.write(b"1")
        first.close()
        os.rmdir(os.path.dirname(first.path))
        second = workspace.write(b"2")
        with open(second.path, "rb") as file:
            self.assertEqual(file.read(), b"2")

    def test_closing_twice_harms_nothing(self):
        script = self.workspace().write(b"x")
        script.close()
        script.close()

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_what_could_not_be_written_whole_is_refused(self):
        workspace = self.workspace()
        workspace.write(b"first").close()
        workspace._create = lambda: (b"/dev/full", os.open("/dev/full", os.O_WRONLY))
        removed = []
        unlink, rtot.os.unlink = os.unlink, removed.append
        try:
            with self.assertRaisesRegex(rtot.InsufficientStorage, "No space left"):
                workspace.write(b"x" * 100000)
        finally:
            rtot.os.unlink = unlink
        self.assertEqual(removed, [b"/dev/full"])

    def in_memory(self, data):
        """Return the Script; what stands for memory is a file, also where this Python knows no memfd_create(2)."""
        with tempfile.TemporaryFile() as file, unittest.mock.patch.object(
                os, "memfd_create", lambda name: os.dup(file.fileno()), create=True):
            return Workspace()._in_memory(data, OSError(errno.EROFS, "Read-only file system"))

    def test_one_in_memory_is_read_from_its_start_by_who_takes_the_descriptor_itself(self):
        """As perl does with /dev/fd/N, which others open anew."""
        script = self.in_memory(b"0123")
        self.addCleanup(script.close)
        self.assertEqual(os.read(script.fd, 9), b"0123")

    def test_one_for_which_there_is_no_memory_is_refused_and_leaves_no_descriptor(self):
        before = len(os.listdir("/proc/self/fd"))
        with unittest.mock.patch.object(os, "lseek", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.assertRaisesRegex(rtot.InsufficientStorage, "in memory: No space left", self.in_memory, b"0123")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_what_the_system_takes_in_parts_is_written_whole(self):
        workspace = self.workspace()
        real, rtot.os.write = os.write, lambda fd, data: real(fd, data[:3])
        try:
            script = workspace.write(b"0123456789")
        finally:
            rtot.os.write = real
        with open(script.path, "rb") as file:
            self.assertEqual(file.read(), b"0123456789")
        script.close()


class ExplainTest(unittest.TestCase):

    def test_names_the_carriage_return(self):
        self.assertIn(b"carriage return", rtot.explain_shebang(b"#!/bin/sh\r\necho hi\r\n"))

    def test_names_data_binary_for_a_script_without_newlines(self):
        self.assertIn(b"--data-binary", rtot.explain_shebang(b"#!/bin/bashecho hi"))

    def test_says_nothing_of_others(self):
        self.assertEqual(rtot.explain_shebang(b"#!/bin/sh\necho hi\r\n"), b"")
