"""The README's recipes with the real thing: sshd, nginx, systemd, xargs, Ansible, urllib, wget.

The commands and configurations are taken from the README; only addresses, ports and absolute paths are made ours.
"""
import contextlib
import glob
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

import support
from support import Server, need, wait_until

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")

# With this SHLVL bash does not take sshd for its parent, and leaves the ~/.bashrc of whoever runs the tests alone.
SSHD_CONFIG = """\
SetEnv SHLVL=2
Port %(ssh_port)d
ListenAddress 127.0.0.1
ListenAddress 127.0.0.2
ListenAddress 127.0.0.3
HostKey %(tmp)s/host_key
AuthorizedKeysFile %(tmp)s/key.pub
PidFile %(tmp)s/sshd.pid
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
Subsystem sftp %(sftp)s
ForceCommand %(tmp)s/session
"""

# Each address is a host with a home of its own, in which a session begins.
SESSION = """\
#!/bin/sh
set -- $SSH_CONNECTION
cd %(tmp)s/hosts/$3 || exit 1
export HOME=$PWD TMPDIR=%(tmp)s PATH=%(tmp)s/bin:$PATH RTOT_ADDR=$3:%(port)d
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""

SSH_CONFIG = """\
Host host
    HostName 127.0.0.2
Host *
    Port %(ssh_port)d
    IdentityFile %(tmp)s/key
    IdentitiesOnly yes
    BatchMode yes
    LogLevel ERROR
    StrictHostKeyChecking no
    UserKnownHostsFile %(tmp)s/known_hosts
    GlobalKnownHostsFile /dev/null
"""

NGINX_CONFIG = """\
%(user)s
pid %(tmp)s/nginx.pid;
error_log %(tmp)s/nginx.log;
daemon off;
worker_processes 1;
events {}
http {
    access_log off;
    client_body_temp_path %(tmp)s/body;
    proxy_temp_path %(tmp)s/proxy;
    fastcgi_temp_path %(tmp)s/fastcgi;
    uwsgi_temp_path %(tmp)s/uwsgi;
    scgi_temp_path %(tmp)s/scgi;
    include %(tmp)s/rtot.conf;
}
"""


def readme():
    with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def blocks(title, tag):
    """Return the fenced blocks with this tag in a section of the README."""
    section = re.search(r"(?ms)^## %s\n(.*?)(?=^## |\Z)" % re.escape(title), readme()).group(1)
    return re.findall(r"(?ms)^```%s\n(.*?)^```" % tag, section)


def write(path, text, mode=0o644):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def is_free(port):
    for host in HOSTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def environ_of(pid):
    try:
        with open("/proc/%s/environ" % pid, "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


class RecipeCase(unittest.TestCase):
    """Commands run in a directory of their own with the environment `env`; what they leave running is ended."""

    def setUp(self):
        self.tmp = tempfile.mkdtemp(prefix="test-rtot-")
        self.addCleanup(shutil.rmtree, self.tmp)
        self.addCleanup(self.end_strays)
        self.port = self.reserve_port()
        self.env = {name: value for name, value in os.environ.items()
                    if not name.startswith(("RTOT_", "SSH_", "ANSIBLE_")) and not name.lower().endswith("_proxy")}
        self.env.update(HOME=self.tmp, TMPDIR=self.tmp, PATH="%s/bin:%s:%s" % (self.tmp, self.env["PATH"], SYSTEM_PATH))
        os.mkdir(os.path.join(self.tmp, "bin"))
        os.symlink(sys.executable, os.path.join(self.tmp, "bin", "python3"))
        shutil.copy(support.SOURCE, self.tmp)

    def reserve_port(self):
        """Return a port that is free on each of HOSTS.

        It is below those that the kernel gives to clients, and an abstract socket, unix(7), keeps
        other tests from choosing it until this one has ended.
        """
        while True:
            port = random.randrange(10000, 30000)
            lock = socket.socket(socket.AF_UNIX)
            try:
                lock.bind("\0test-rtot-port-%d" % port)
            except OSError:
                lock.close()
                continue
            self.addCleanup(lock.close)
            if is_free(port):
                return port

    def build(self):
        subprocess.check_call(["sh", os.path.join(support.ROOT, "build_zipapp.sh"), os.path.join(self.tmp, "rtot.pyz")],
                              env=self.env)

    def strays(self):
        """Return the pids of what the commands have left running: each has our TMPDIR in its environment."""
        mark = os.fsencode("TMPDIR=" + self.tmp)
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and mark in environ_of(name)]
        return [pid for pid in pids if support.is_alive(pid)]

    def end_strays(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.strays():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not self.strays(), "the end of all", 10)

    def serve(self, *command):
        """Start a server, such as sshd, which is ended after the test; return its process."""
        with open(os.path.join(self.tmp, "server.log"), "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env)
        self.addCleanup(process.wait, support.LIMIT)
        self.addCleanup(process.terminate)
        return process

    def wait_for_port(self, port, process):
        def listens():
            self.assertIsNone(process.poll(), read(os.path.join(self.tmp, "server.log")))
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0
        wait_until(listens, "a server on port %d" % port)

    def paste(self, script, status=0, address="127.0.0.1", limit=support.LIMIT):
        """Run commands of the README with our address and port; return what they print.

        To a file: a pipe would not end before what they leave in the background.
        """
        script = re.sub(r"(127\.0\.0\.1|(?<= )):8457", "%s:%d" % (address, self.port), script)
        script = script.replace("8457", str(self.port)).replace("/tmp/rtot.sock", self.tmp + "/rtot.sock")
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(["bash", "-ec", script], stdin=subprocess.DEVNULL, stdout=output,
                                       stderr=subprocess.STDOUT, env=self.env, cwd=self.tmp)
            try:
                got = process.wait(limit)
            finally:
                process.kill()
            output.seek(0)
            text = output.read().decode("utf-8")
        self.assertEqual(got, status, script + text)
        return text

    def assertNothingLeft(self):
        wait_until(lambda: not self.strays(), "the end of all")
        self.assertEqual(glob.glob(self.tmp + "/rtot-*"), [])
        self.assertEqual(glob.glob(self.tmp + "/hosts/*/*"), [])


class ReadmeTest(unittest.TestCase):

    def test_each_block_is_run_by_a_test(self):
        """Those before the first of these titles are run by test_readme."""
        titles = re.findall("(?m)^## (.*)$", readme())
        titles = titles[titles.index("From Python, and with wget"):]
        tags = set(re.findall("(?m)^```([a-z]+)$", readme()))
        found = {(title, tag): len(blocks(title, tag)) for title in titles for tag in tags if blocks(title, tag)}
        self.assertEqual(found, {("From Python, and with wget", "python"): 1, ("From Python, and with wget", "sh"): 1,
                                 ("Over ssh", "sh"): 3, ("With TLS", "sh"): 1, ("Behind nginx", "nginx"): 1, ("Behind nginx", "sh"): 1,
                                 ("Under systemd", "ini"): 2, ("Under systemd", "sh"): 1,
                                 ("A fleet", "sh"): 4, ("A fleet", "yaml"): 1})


class ClientTest(RecipeCase):

    def setUp(self):
        super().setUp()
        self.server = Server(secret="secret").ready()
        self.addCleanup(self.server.close)
        self.port = self.server.port

    def test_urllib_runs_a_script_and_gets_its_result(self):
        (code,) = blocks("From Python, and with wget", "python")
        output = subprocess.check_output([sys.executable, "-c", code.replace("8457", str(self.port))], env=self.env)
        self.assertEqual(output, b"3 here\n there\n\n")

    @need("wget")
    def test_wget_runs_a_script_once(self):
        (script,) = blocks("From Python, and with wget", "sh")
        self.assertEqual(self.paste(script), "here\n3\n")
        self.assertEqual(len(self.server.get("/jobs").jobs), 1)


class SshCase(RecipeCase):
    """Three hosts that ssh reaches, 127.0.0.1 to 3, the second also as `host`; each has a home in `hosts`."""

    def setUp(self):
        super().setUp()
        sftp = [path for path in SFTP_SERVERS if os.path.exists(path)]
        if not sftp or not os.path.exists("/usr/sbin/sshd"):
            self.skipTest("needs sshd with its sftp-server")
        if not os.geteuid():
            os.makedirs("/run/sshd", exist_ok=True)     # as sshd's own service does; there it changes root to
        values = {"tmp": self.tmp, "port": self.port, "ssh_port": self.reserve_port(), "sftp": sftp[0]}
        for name in ("key", "host_key"):
            subprocess.check_call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", os.path.join(self.tmp, name)])
        for host in HOSTS:
            os.makedirs(os.path.join(self.tmp, "hosts", host))
        write(self.tmp + "/sshd_config", SSHD_CONFIG % values)
        write(self.tmp + "/ssh_config", SSH_CONFIG % values)
        write(self.tmp + "/session", SESSION % values, 0o755)
        for tool in ("ssh", "scp", "sftp"):
            write("%s/bin/%s" % (self.tmp, tool), '#!/bin/sh\nexec %s -F %s/ssh_config "$@"\n' % (
                shutil.which(tool), self.tmp), 0o755)
        self.build()
        self.wait_for_port(values["ssh_port"], self.serve("/usr/sbin/sshd", "-D", "-e", "-f", self.tmp + "/sshd_config"))
        if subprocess.call([self.tmp + "/bin/ssh", "host", "true"], env=self.env, stderr=subprocess.DEVNULL):
            log = read(self.tmp + "/server.log")
            if "not allowed because" in log:        # as a user who can't log in, such as nobody
                self.skipTest("needs a user whom sshd lets in: " + log)
            self.fail(log)

    def ask(self, *options, secret=None, host="127.0.0.2"):
        """Ask the server on a host by curl; return the body."""
        secret = secret or read(self.tmp + "/s").strip()
        return subprocess.check_output(["curl", "-sSf", "-H", "Rtot-Secret: " + secret] + list(options[:-1]) + [
            "http://%s:%d%s" % (host, self.port, options[-1])], env=self.env).decode("utf-8")


@need("bash", "curl", "ssh", "scp", "ssh-keygen", "openssl")
class SshTest(SshCase):

    def test_a_tunnel_reaches_a_server_that_outlives_the_session(self):
        begin, end = blocks("Over ssh", "sh")[:2]
        self.assertIn("wat is happening\n", self.paste(begin, address="127.0.0.2"))
        self.assertEqual(sorted(os.listdir(self.tmp + "/hosts/127.0.0.2")), ["rtot.log", "rtot.pyz"])
        self.paste(end)
        self.assertNothingLeft()

    def test_nothing_is_copied_and_the_secret_is_in_no_command_line(self):
        begin, _, without_file = blocks("Over ssh", "sh")
        self.paste(begin.split("\n")[0] + "\n" + without_file, address="127.0.0.2")
        self.assertIn('"python"', self.ask("/"))
        secret = read(self.tmp + "/s").strip().encode("ascii")
        for pid in self.strays():
            with open("/proc/%d/cmdline" % pid, "rb") as file:
                self.assertNotIn(secret, file.read())
            self.assertNotIn(secret, b"".join(environ_of(pid)))
        self.ask("-X", "DELETE", "/")
        self.assertNothingLeft()

    def test_a_tunnel_reaches_a_unix_socket(self):
        begin, end, without_file = blocks("Over ssh", "sh")
        self.assertIn("use `-a unix:/tmp/rtot.sock` and `-L 8457:/tmp/rtot.sock`", readme())
        secret, _, _, tunnel, job = begin.rstrip("\n").split("\n")
        script = "\n".join((secret, without_file.rstrip("\n"), tunnel, job))
        script = script.replace("-a 127.0.0.1:8457", "-a unix:/tmp/rtot.sock").replace(
            "-L 8457:127.0.0.1:8457", "-L 8457:/tmp/rtot.sock")
        self.assertIn("wat is happening\n", self.paste(script))
        self.paste("\n".join(end.split("\n")[:2]))
        self.assertNothingLeft()


@need("bash", "curl", "openssl")
class TlsTest(RecipeCase):

    def test_a_certificate_of_our_own_is_enough_for_curl(self):
        self.build()
        write(self.tmp + "/.curlrc", 'connect-to = "host:%d:127.0.0.1:%d"\n' % (self.port, self.port))
        (script,) = blocks("With TLS", "sh")
        self.assertRegex(self.paste(script), "(?m)^wat is happening$")
        secret = read(self.tmp + "/s").strip()
        subprocess.check_call(["curl", "-sSf", "--cacert", self.tmp + "/cert.pem", "-H", "Rtot-Secret: " + secret,
                               "-X", "DELETE", "https://host:%d/" % self.port], env=self.env)
        self.assertNothingLeft()


@need("bash", "curl", "nginx", "openssl")
class NginxTest(RecipeCase):

    def setUp(self):
        super().setUp()
        self.build()
        (config,) = blocks("Behind nginx", "nginx")
        location = re.search(r"(?ms)^    location .*?^    \}\n", config).group()
        buffered = location.replace("/rtot/", "/buffered/").replace("proxy_buffering off;", "")
        config = config.replace(location, location + buffered)
        commands, self.try_it = blocks("Behind nginx", "sh")[0].rstrip("\n").rsplit("\n", 1)
        self.paste(commands)
        self.server = Server.__new__(Server)
        self.server.port, self.server.secret = self.port, read(self.tmp + "/s").strip()
        (self.server.pid,) = self.strays()
        https = self.reserve_port()
        values = {"tmp": self.tmp, "user": "" if os.geteuid() else "user root;"}
        write(self.tmp + "/nginx.conf", NGINX_CONFIG % values)
        write(self.tmp + "/rtot.conf", config.replace("listen 443", "listen 127.0.0.1:%d" % https)
              .replace("8457", str(self.port)).replace("/etc/nginx/", self.tmp + "/"))
        write(self.tmp + "/.curlrc", 'connect-to = "host:443:127.0.0.1:%d"\n' % https)
        self.nginx = self.serve("nginx", "-e", self.tmp + "/nginx.log", "-c", self.tmp + "/nginx.conf", "-p", self.tmp)
        self.wait_for_port(https, self.nginx)

    def curl(self, *options, secret=True):
        head = ["-H", "Rtot-Secret: " + self.server.secret] if secret else []
        return ["curl", "-sS", "--cacert", self.tmp + "/rtot.crt"] + head + list(options[:-1]) + ["https://host" + options[-1]]

    def ask(self, *options, **more):
        return subprocess.check_output(self.curl(*options, **more), env=self.env).decode("utf-8")

    def follow(self, *options):
        process = subprocess.Popen(self.curl("-N", *options), stdout=subprocess.PIPE, env=self.env)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_the_command_shows_a_job(self):
        self.assertEqual(self.paste(self.try_it), "wat is happening\n")

    def test_a_new_job_lies_under_the_prefix(self):
        head = self.ask("-i", "-d", "exit 7", "/rtot/jobs?wait")
        location = re.search("(?m)^Location: (.*)\r$", head).group(1)
        self.assertEqual(location, "/rtot/jobs/0")
        self.assertEqual(self.ask(location + "/exit"), "7\n")

    def test_the_secret_is_still_needed(self):
        self.assertIn('"error"', self.ask("-d", "true", "/rtot/jobs", secret=False))
        self.assertEqual(self.server.get("/jobs").jobs, [])
        self.assertIn("still here", self.ask("/rtot/ping", secret=False))

    def test_a_browser_gets_the_page(self):
        self.assertIn("<!DOCTYPE html>", self.ask("-H", "Accept: text/html", "/rtot/", secret=False))

    def test_output_comes_before_the_job_ends(self):
        for number, prefix in enumerate(("/rtot", "/buffered")):
            gate = self.tmp + "/gate%d" % number
            script = "echo one; until [ -e %s ]; do sleep 0.05; done; echo two" % gate
            process = self.follow("-d", script, prefix + "/jobs?follow")
            self.assertEqual(process.stdout.readline(), b"one\n")
            self.assertEqual(self.server.job(number)["state"], "running")
            write(gate, "")
            self.assertEqual(process.stdout.read(), b"two\n")
            self.assertEqual(process.wait(support.LIMIT), 0)

    def test_an_upload_of_some_megabytes_arrives_whole(self):
        data = os.urandom(1 << 20) * 6
        with open(self.tmp + "/upload", "wb") as file:
            file.write(data)
        for number, options in enumerate((["--data-binary", "@" + self.tmp + "/upload"],
                                          ["-X", "POST", "-T", self.tmp + "/upload", "-H", "Transfer-Encoding: chunked"])):
            self.ask("-d", "sha256sum", "/rtot/jobs?stdin")
            self.ask(*(options + ["/rtot/jobs/%d/stdin?eof" % number]))
            self.assertEqual(self.ask("/rtot/jobs/%d/out?follow" % number).split()[0], hashlib.sha256(data).hexdigest())

    def test_a_client_that_disconnects_ends_the_request_behind(self):
        process = self.follow("-d", "echo one; exec sleep 600", "/rtot/jobs?follow")
        process.stdout.readline()
        connections = self.server.connections()
        process.kill()
        wait_until(lambda: self.server.connections() < connections, "the end of the request")
        self.assertEqual(self.server.job(0)["state"], "running")


@need("bash", "openssl", "systemd-analyze")
class SystemdTest(RecipeCase):

    def setUp(self):
        super().setUp()
        self.build()
        write(self.tmp + "/bin/systemctl", "#!/bin/sh\necho systemctl \"$@\"\n", 0o755)
        for unit in blocks("Under systemd", "ini"):
            name = re.match(r"# /etc/systemd/system/(rtot\.[a-z]+)\n", unit).group(1)
            write(os.path.join(self.tmp, name), self.ours(unit))

    def ours(self, text):
        """Return commands or a unit with our paths and port."""
        text = text.replace("/usr/bin/python3", sys.executable).replace("8457", str(self.port))
        return text.replace("/opt/", self.tmp + "/opt/").replace("/etc/rtot", self.tmp + "/rtot")

    def install(self):
        (script,) = blocks("Under systemd", "sh")
        return self.paste(self.ours(script))

    def setting(self, name):
        return re.search("(?m)^%s=(.*)$" % name, read(self.tmp + "/rtot.service")).group(1)

    def test_systemd_finds_no_fault_in_the_units(self):
        self.install()
        for name in ("rtot.service", "rtot.socket"):
            process = subprocess.Popen(["systemd-analyze", "verify", os.path.join(self.tmp, name)], env=self.env,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
            output = process.communicate(timeout=support.LIMIT)[0]
            self.assertEqual((process.returncode, [line for line in output.split("\n") if "rtot" in line]), (0, []), output)

    def test_the_installed_unit_serves_with_the_secret_of_its_file(self):
        self.assertEqual(self.install(), "systemctl daemon-reload\nsystemctl enable --now rtot.service\n")
        path = self.setting("EnvironmentFile")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.assertServes(self.setting("ExecStart").split())

    def test_systemd_is_told_when_it_listens_and_when_it_stops(self):
        self.install()
        self.assertEqual([self.setting(name) for name in ("Type", "Restart", "OOMPolicy", "StartLimitIntervalSec")],
                         ["notify", "always", "continue", "0"])
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            self.env["NOTIFY_SOCKET"] = self.tmp + "/notify"
            manager.bind(self.env["NOTIFY_SOCKET"])
            manager.settimeout(support.LIMIT)
            process = self.serve(*self.setting("ExecStart").split())
            self.assertEqual(manager.recv(100), b"READY=1")
            with socket.socket() as client:
                client.connect(("127.0.0.1", self.port))
            process.terminate()
            self.assertEqual(manager.recv(100), b"STOPPING=1")

    @need("systemd-socket-activate")
    def test_the_first_connection_to_the_socket_starts_it(self):
        self.install()
        listen = re.search("(?m)^ListenStream=(.*)$", read(self.tmp + "/rtot.socket")).group(1)
        # Its own address would be taken by then, if -a was not ignored.
        self.assertServes(["systemd-socket-activate", "-l", listen, "-E", "RTOT_SECRET", "-E", "TMPDIR"] +
                          self.setting("ExecStart").split())

    def assertServes(self, command):
        """The command serves on our port, with the secret of the installed file, until SIGTERM."""
        name, _, secret = read(self.setting("EnvironmentFile")).strip().partition("=")
        self.env[name] = secret
        process = self.serve(*command)
        self.wait_for_port(self.port, process)
        server = Server.__new__(Server)
        server.port, server.secret = self.port, secret
        self.assertEqual(server.run("echo hi")["out"], "hi\n")
        process.terminate()
        self.assertEqual(process.wait(support.LIMIT), 0)


@need("bash", "curl", "ssh", "scp", "ssh-keygen", "openssl", "xargs")
class FleetTest(SshCase):

    def setUp(self):
        super().setUp()
        write(self.tmp + "/hosts.txt", "\n".join(HOSTS) + "\n")
        write(self.tmp + "/job.sh", 'echo here is ${PWD##*/}\necho and there >&2\n')
        # In our directory, "hosts" are the homes of the hosts.
        self.drop, self.run_it, self.remove, self.play = (
            re.sub("(< |-i )hosts", r"\1hosts.txt", block) for block in blocks("A fleet", "sh"))

    def test_drops_runs_collects_and_removes(self):
        text = self.paste(self.drop)
        self.assertEqual((text.count("listens on"), "everywhere" in text), (3, False), text)
        self.assertEqual(self.paste(self.run_it), "")
        for host in HOSTS:
            self.assertEqual(sorted(read("%s/out/%s" % (self.tmp, host)).split("\n")), ["", "and there", "here is " + host])
        self.assertEqual(self.paste(self.remove), "")
        self.assertNothingLeft()

    def test_a_host_that_fails_is_named_and_holds_nobody_up(self):
        with open(self.tmp + "/hosts.txt", "a") as file:
            file.write("127.0.0.4\n")       # where nobody listens
        os.mkdir(self.tmp + "/out")
        write(self.tmp + "/out/127.0.0.4", "from an earlier run\n")
        write(self.tmp + "/job.sh", "echo here; case $PWD in *.2) exit 3; esac\n")
        text = self.paste(self.drop)
        self.assertRegex(text, r"(?m)^127\.0\.0\.4: not started$")
        self.assertEqual((text.count("listens on"), text.count("not everywhere")), (3, 1), text)
        lines = self.paste(self.run_it).rstrip("\n").split("\n")
        self.assertEqual(lines.pop(), "not everywhere")
        self.assertEqual(sorted(line for line in lines if not line.startswith("curl:")),
                         ["127.0.0.2: exit status 3", "127.0.0.4: not run"])
        for host in HOSTS:
            self.assertEqual(read("%s/out/%s" % (self.tmp, host)), "here\n")
        self.assertEqual(read(self.tmp + "/out/127.0.0.4"), "")
        self.paste(self.remove.split("\n")[0], status=123)
        self.paste(self.remove.split("\n")[1], status=123)
        self.assertNothingLeft()

    @need("ansible-playbook")
    def test_ansible_drops_runs_shows_and_removes(self):
        (playbook,) = blocks("A fleet", "yaml")
        (name,) = re.match(r"# (\S+\.yml)\n", playbook).groups()
        write(os.path.join(self.tmp, name), playbook.replace("8457", str(self.port)))
        write(self.tmp + "/hosts.txt", "".join("%s rtot_addr=%s\n" % (host, host) for host in HOSTS))
        write(self.tmp + "/s", "swordfish\n", 0o600)
        write(self.tmp + "/job.sh", "echo here is ${PWD##*/}; case $PWD in *.2) exit 3; esac\n")
        python = shutil.which("python3", path=SYSTEM_PATH) or sys.executable     # the modules need not be ours
        write(self.tmp + "/ansible.cfg", "[defaults]\n")
        self.env.update(ANSIBLE_CONFIG=self.tmp + "/ansible.cfg", ANSIBLE_NOCOLOR="1", ANSIBLE_PIPELINING="1",
                        ANSIBLE_PYTHON_INTERPRETER=python, ANSIBLE_SSH_ARGS="-o ControlMaster=auto -o ControlPersist=2s")
        text = self.paste(self.play, status=2, limit=5 * support.LIMIT)
        for host in HOSTS:
            self.assertIn('"out": "here is %s\\n"' % host, text)
            failed = host == "127.0.0.2"
            self.assertRegex(text, r"(?m)^%s +: ok=[0-9]+ .* failed=%d " % (re.escape(host), failed))
        self.assertNothingLeft()


if __name__ == "__main__":
    unittest.main()
