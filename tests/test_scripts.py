"""How the first line of a script is read, and where scripts are kept."""
import errno
import os
import stat
import subprocess
import tempfile
import unittest

import support
from rtot import parse_shebang
from support import Case, ServerCase, limited, need, patched, wait_until

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
            show = os.path.join(directory, "show")
            with open(show, "w") as file:
                file.write("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
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
            return subprocess.check_output([*parse_shebang(script), os.fsencode(path)])
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

    def test_the_name_ends_at_a_blank_and_the_rest_is_one_argument(self):
        self.assertEqual(parse_shebang(b"#! /bin/sh  -e  -u \t\necho"), (b"/bin/sh", b"-e  -u"))
        self.assertEqual(parse_shebang(b"#!/bin/sh"), (b"/bin/sh",))

    def test_a_line_that_the_kernel_refuses_is_an_exec_format_error(self):
        for script in (b"#!\n", b"#!  \t\n", b"#!" + b"a" * 300 + b"\n"):
            with self.assertRaises(OSError) as caught:
                parse_shebang(script)
            self.assertEqual(caught.exception.errno, errno.ENOEXEC)

    def test_a_missing_name_is_told_as_the_kernel_tells_it(self):
        for script in (b"#!", b"#!\0", b"#! ", b"#! \0x\n"):
            with self.assertRaises(OSError) as caught:
                parse_shebang(script)
            self.assertEqual(caught.exception.errno, errno.EACCES)


class HintTest(ServerCase):
    """A script that fails for a reason that is easy to overlook is told about it on its standard error."""

    def test_a_script_whose_newlines_were_stripped_names_data_binary(self):
        for script, code in (("#!/bin/bashecho hi", 127), ("#!/usr/bin/env bashecho hi", 127),
                             ("#!/usr/bin/env /etc/passwd", 126)):      # which exists and is not executable
            job = self.server.run(script)
            self.assertEqual(job["exit_code"], code)
            self.assertIn("--data-binary", job["err"])

    def test_a_script_with_dos_line_ends_names_the_carriage_return(self):
        job = self.server.run("#!/bin/sh\r\necho hi\r\n")
        self.assertEqual(job["exit"], "fork/exec /bin/sh\r: no such file or directory")
        self.assertIn("carriage return", job["err"])

    def test_carriage_returns_after_the_first_line_are_named_too(self):
        for script in ("cd /tmp\r\ntrue\r\n", "#!/bin/bash -e\r\ntrue\r\n", "#!/bin/bash -e\ncd /usr\r\necho hi\r\n",
                       "#!/bin/sh\nif true; then\r\n  exit 0\r\nfi\r\n", "exit 3\r\n", "#!/usr/bin/env bash\r\ntrue\r\n"):
            job = self.server.run(script)
            self.assertNotEqual(job["exit_code"], 0, script)
            self.assertRegex(job.get("err", ""), r"carriage return|\bCR\b", script)

    def test_a_script_that_succeeds_is_told_nothing(self):
        self.assertNotIn("err", self.server.run("#!/bin/cat\nline\r\n"))
        self.assertEqual(self.server.run("echo out; echo mine >&2; exit 3")["err"], "mine\n")


class ByteOrderMarkTest(ServerCase):
    BOM = b"\xef\xbb\xbf"

    def test_a_byte_order_mark_before_the_first_line_is_removed(self):
        number = self.server.run(self.BOM + b"#!/bin/sh -e\necho hi $-\n")["id"]
        self.assertRegex(self.server.out(number), b"^hi .*e")
        self.assertEqual(self.server.get("/jobs/%d/script" % number).body, b"#!/bin/sh -e\necho hi $-\n")

    def test_a_byte_order_mark_before_a_script_without_an_interpreter_is_removed(self):
        self.assertEqual(self.server.run(self.BOM + b"echo hi\n").get("out"), "hi\n")


class DirectoryTest(Case):
    """The server's directory of scripts."""

    def test_only_its_user_can_read_it_and_execute_the_scripts(self):
        server = self.own_server(wrapper=["bash", "-c", 'umask 0; exec "$@"', "bash"])
        server.start("sleep 99")
        (path,) = wait_until(server.scripts)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)

    def test_a_script_can_run_itself(self):
        server = self.own_server()
        script = 'test -x "$0" || exit 9; [ "$1" = again ] && echo "$1" && exit 0; exec nice "$0" again'
        self.assertEqual(server.run(script)["out"], "again\n")
        self.assertEqual(server.run('[ "$LOCKED" ] || LOCKED=1 exec flock -en "$0" "$0"; echo locked')["out"], "locked\n")

    def test_nothing_is_made_before_the_first_script_and_nothing_is_left(self):
        server = self.own_server(program=patched("rtot.SWEEP_AFTER = 0.01"))
        server.get("/")
        self.assertEqual(server.leftovers(), [])
        server.run("true")
        self.assertEqual(len(server.leftovers()), 1)
        server.start("sleep 99")
        self.assertEqual(server.stop(), 0)
        self.assertEqual(server.leftovers(), [])

    def make(self, tmp, name, *files, mode=0o700, file_mode=0o600):
        path = os.path.join(tmp, name)
        os.mkdir(path, mode)
        os.chmod(path, mode)
        for file in files:
            file = os.path.join(path, file)
            os.close(os.open(file, os.O_CREAT, file_mode))
            os.chmod(file, file_mode)
        return path

    def test_sweeps_the_directory_of_a_server_that_was_killed_and_no_other(self):
        living = self.own_server()
        living.start("sleep 99")
        (kept,) = wait_until(living.scripts)
        tmp = living.tmp
        stale = [self.make(tmp, "rtot-stale_01", "1", "22"), self.make(tmp, "rtot-stale_02", "1", file_mode=0o700),
                 self.make(tmp, "rtot-stale_03", "1", mode=0o2700)]     # as in a directory with that bit
        tree = self.make(tmp, "rtot-projects", "1")
        os.makedirs(os.path.join(tree, "2024", "deep"))
        others = [tree, self.make(tmp, "other", "1"), self.make(tmp, "rtot-notes", "1"),
                  self.make(tmp, "rtot-notes_01", "1", "important"), self.make(tmp, "rtot-shared01", "1", mode=0o755),
                  self.make(tmp, "rtot-readable", "1", file_mode=0o644)]
        if not os.geteuid():
            others.append(self.make(tmp, "rtot-strange1", "1"))
            os.chown(others[-1], 65534, -1)
        os.symlink(others[1], os.path.join(tmp, "rtot-link_001"))      # only its name is that of a stale one
        sweeper = self.own_server(env={"TMPDIR": tmp}, program=patched("rtot.SWEEP_AFTER = 0.01"))
        wait_until(lambda: not any(os.path.exists(path) for path in stale))
        self.assertEqual(sweeper.stop(), 0)
        self.assertTrue(os.path.exists(kept))
        for other in others:
            self.assertTrue(os.path.exists(os.path.join(other, "1")), other)

    def racing(self, action):
        """Run a script on a server to whose first two directories `action`, of Python, happens; return the job and the server."""
        before = ("import fcntl, os, sys\nmkdir, made, locks = os.mkdir, [], []\n"
                  "def racing(path, *args, **more):\n"
                  "    mkdir(path, *args, **more)\n"
                  "    made.append(path)\n"
                  "    if len(made) < 3: %s\n"
                  "os.mkdir = racing" % action)
        server = self.own_server(program=patched(before=before))
        return server.run("echo hi; echo $0"), server

    def test_makes_another_directory_when_a_sweeper_was_faster(self):
        job, server = self.racing("os.rmdir(path)")
        self.assertRegex(job["out"], "^hi\n" + server.tmp)
        self.assertEqual(len(server.leftovers()), 1)

    def test_makes_another_directory_when_a_sweeper_has_locked_it(self):
        job, server = self.racing("locks.append(os.open(path, os.O_RDONLY)); fcntl.flock(locks[-1], fcntl.LOCK_EX)")
        self.assertRegex(job["out"], "^hi\n" + server.tmp)
        self.assertEqual(len(server.leftovers()), 1)

    def test_makes_another_directory_when_a_sweeper_removes_it_just_before_the_lock(self):
        before = ("import fcntl, os\nflock, count = fcntl.flock, []\n"
                  "def racing(fd, how):\n"
                  "    count.append(fd)\n"
                  "    if len(count) < 3: os.rmdir(os.readlink('/proc/self/fd/%d' % fd))\n"
                  "    flock(fd, how)\n"
                  "fcntl.flock = racing")
        server = self.own_server(program=patched("rtot.SWEEP_AFTER = 600", before))
        self.assertEqual(server.run("echo hi")["out"], "hi\n")
        self.assertEqual(len(server.leftovers()), 1)

    def test_works_where_there_are_no_locks(self):
        before = ("import errno, fcntl\ndef flock(fd, how): raise OSError(errno.ENOLCK, 'No locks available')\nfcntl.flock = flock")
        server = self.own_server(program=patched("rtot.SWEEP_AFTER = 0.01", before))
        self.assertRegex(server.run("echo $0")["out"], "^" + server.tmp)

    def test_makes_its_directory_again_when_the_temporary_directory_was_cleaned(self):
        server = self.own_server()
        server.run("true")
        wait_until(lambda: not server.scripts(), "the removal of the script")       # which comes after the answer
        (directory,) = server.leftovers()
        os.rmdir(os.path.join(server.tmp, directory))
        self.assertEqual(server.run("echo hi")["out"], "hi\n")

    def test_a_directory_in_the_place_of_a_script_does_no_harm(self):
        server = self.own_server()
        self.assertEqual(server.run('rm "$0"; mkdir "$0"; echo odd')["out"], "odd\n")
        self.assertEqual(server.run("echo hi")["out"], "hi\n")


class StorageTest(Case):
    """A script that cannot be stored whole is refused, and nothing is run."""

    def test_a_script_over_the_limit_of_file_sizes_is_refused_and_does_not_run(self):
        server = self.own_server(wrapper=limited("-f 8"))       # blocks of 1024 bytes
        answer = server.post("/jobs", "touch %s/marker\n" % server.tmp + "# filler\n" * 27000)
        self.assertError(answer, 507, "File too large")
        self.assertEqual(server.get("/jobs").jobs, [])
        self.assertEqual(server.scripts(), [])
        self.assertEqual(server.run("echo small")["out"], "small\n")
        self.assertNotIn("marker", server.leftovers())

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid(), "needs root, for namespaces")
    def test_a_full_temporary_directory_is_507(self):
        server = self.own_server(wrapper=["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k none "$TMPDIR" && exec "$@"', "sh"])
        marker = os.path.join(server.tmp, "..", "marker-%d" % os.getpid())
        answer = server.post("/jobs", "touch %s\n" % marker + "# filler\n" * 27000)
        self.assertError(answer, 507, "No space left")
        self.assertEqual(server.get("/jobs").jobs, [])
        self.assertFalse(os.path.exists(marker))
        self.assertEqual(server.run("echo small")["out"], "small\n")

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid(), "needs root, for namespaces")
    def test_goes_elsewhere_where_no_directory_can_be_made(self):
        server = self.own_server(wrapper=["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o nr_inodes=1 none "$TMPDIR" && exec "$@"', "sh"])
        self.assertRegex(server.run('echo "$0"')["out"], "^(/tmp|/dev/shm)/rtot-[a-z0-9_]{8}/1\n$")

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid(), "needs root, for namespaces")
    def test_without_a_writable_temporary_directory_a_script_is_507(self):
        with open(support.SOURCE, "rb") as source:      # which may lie where the mounts will be
            mounts = 'for d in /tmp /var/tmp /usr/tmp /dev/shm; do test -d $d && mount -t tmpfs -o ro none $d; done; exec "$@"'
            server = self.own_server(wrapper=["unshare", "-m", "sh", "-c", mounts, "sh"], cwd="/proc", program=["-"], stdin=source)
        for _ in range(2):
            self.assertError(server.post("/jobs?wait", "echo hi"), 507, "TMPDIR")
        self.assertEqual(server.get("/jobs").jobs, [])

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid() or not os.path.isdir("/dev/shm"), "needs root, for namespaces, and /dev/shm")
    def test_scripts_run_in_shared_memory_where_nothing_else_can_be_written(self):
        with open(support.SOURCE, "rb") as source:
            mounts = ('for d in /tmp /var/tmp /usr/tmp; do test -d $d && mount -t tmpfs -o ro none $d; done\n'
                      'mount -t tmpfs none /dev/shm; exec "$@"')
            server = self.own_server(wrapper=["unshare", "-m", "sh", "-c", mounts, "sh"], cwd="/proc", program=["-"],
                                     stdin=source)
        self.assertRegex(server.run('echo "$0"')["out"], "^/dev/shm/")

    @need("unshare", "mount")
    @unittest.skipIf(os.geteuid(), "needs root, for namespaces")
    def test_scripts_run_where_the_temporary_directory_is_mounted_noexec(self):
        server = self.own_server(wrapper=["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o noexec none "$TMPDIR" && exec "$@"', "sh"])
        self.assertIn("ran " + server.tmp, server.run("#!/bin/sh\necho ran $0")["out"])

    def test_a_held_job_needs_its_script_no_more(self):
        server = self.own_server()
        number = server.run("sleep 99 & echo x")["id"]
        wait_until(lambda: server.scripts() == [])
        self.assertTrue(server.job(number)["held"])

    def test_a_temporary_directory_that_does_not_exist_is_told_at_the_start(self):
        server = self.own_server(env={"TMPDIR": "/no/such/directory"})
        self.assertRegex(server.log(), "(?m)^rtot: .*/no/such/directory")

    def test_directories_that_cannot_be_opened_do_not_pile_up(self):
        before = ("import errno, os\nreal = os.open\n"
                  "def scarce(path, *more, **named):\n"
                  "    if os.path.isdir(path) and 'rtot-' in os.path.basename(os.fsdecode(path)) and os.path.exists(os.environ['TMPDIR'] + '/lack'):\n"
                  "        raise OSError(errno.EMFILE, 'Too many open files')\n"
                  "    return real(path, *more, **named)\n"
                  "os.open = scarce")
        server = self.own_server(program=patched(before=before))
        lack = os.path.join(server.tmp, "lack")
        with open(lack, "w"):
            pass
        for _ in range(3):
            self.assertError(server.post("/jobs", "true"), 507, "[Tt]oo many open files")
        os.unlink(lack)
        self.assertEqual(server.run("echo hi")["out"], "hi\n")
        self.assertEqual(len(server.leftovers()), 1)
