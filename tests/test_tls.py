"""TLS, with certificates that openssl makes: which clients are served, which refused, and which hold up others."""
import contextlib
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import support
from support import Follower, Server, ServerCase, wait_until


def openssl(*arguments):
    subprocess.run(["openssl"] + list(arguments), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


class Certificates:
    """A directory with the server's certificate, an authority, and a client that it has signed."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="test-rtot-tls-")
        self.self_signed("server", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self.self_signed("authority", "/CN=authority")
        self.self_signed("stranger", "/CN=stranger")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self["client.key"], "-out", self["client.csr"],
                "-subj", "/CN=client")
        openssl("x509", "-req", "-in", self["client.csr"], "-CA", self["authority.pem"], "-CAkey",
                self["authority.key"], "-CAcreateserial", "-days", "2", "-out", self["client.pem"])

    def __getitem__(self, name):
        return os.path.join(self.directory, name)

    def self_signed(self, name, subject, *more):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self[name + ".key"], "-out",
                self[name + ".pem"], "-days", "2", "-subj", subject, *more)

    def client(self, name=None, tls=None):
        """Return the context of a client, with the certificate `name`, that speaks up to `tls`."""
        context = ssl.create_default_context(cafile=self["server.pem"])
        if name:
            context.load_cert_chain(self[name + ".pem"], self[name + ".key"])
        if tls:
            context.options |= tls
        return context

    def remove(self):
        shutil.rmtree(self.directory)


class TlsServer(Server):

    context = None

    def listening(self, scheme="https"):
        return super().listening(scheme)

    def client(self):
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=support.LIMIT, context=self.context)


@support.need("openssl", "curl")
class TlsCase(ServerCase):

    @classmethod
    def setUpClass(cls):
        cls.certificates = Certificates()
        cls.server = TlsServer(*cls.tls_options()).ready()
        cls.server.context = cls.certificates.client()

    @classmethod
    def tearDownClass(cls):
        try:
            super().tearDownClass()
        finally:
            cls.certificates.remove()

    @classmethod
    def tls_options(cls):
        return "--tls-cert", cls.certificates["server.pem"], "--tls-key", cls.certificates["server.key"]

    def curl(self, *arguments):
        """Return (exit status, output) of a curl that trusts the server's certificate."""
        done = subprocess.run(["curl", "-sS", "--cacert", self.certificates["server.pem"], "-H",
                               "Rtot-Secret: " + self.server.secret] + list(arguments), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=support.LIMIT)
        return done.returncode, done.stdout


class TlsTest(TlsCase):

    def test_runs_and_follows_a_job(self):
        job = self.server.run("echo over there; exit 3")
        self.assertEqual((job["out"], job["exit_code"]), ("over there\n", 3))
        follower = Follower(self.server, "/jobs?follow&stdin", "POST", b"echo one; read line; echo two")
        wait_until(lambda: follower.data == b"one\n")
        number = self.server.get("/jobs?last=1").job["id"]
        self.assertEqual(self.server.post("/jobs/%d/stdin" % number, b"go\n").status, 204)
        self.assertEqual(follower.finish(), b"one\ntwo\n")

    def test_curl_gets_all_of_a_body_that_ends_by_closing(self):
        url = "https://localhost:%d/jobs?follow" % self.server.port
        self.assertEqual(self.curl("--http1.0", "-d", "seq 3", url), (0, b"1\n2\n3\n"))

    def test_large_bodies_arrive_whole_both_ways(self):
        number = self.server.start("cat", "stdin")
        data = os.urandom(1 << 22)
        self.assertEqual(self.server.post("/jobs/%d/stdin?eof" % number, data).status, 204)
        self.assertTrue(self.server.get("/jobs/%d?wait" % number).status == 200 and self.server.out(number) == data)

    def test_versions_below_tls_1_2_are_refused(self):
        for version in ("--tlsv1.0 --tls-max 1.0", "--tlsv1.1 --tls-max 1.1"):
            status, _ = self.curl("--ciphers", "DEFAULT@SECLEVEL=0", *(version.split() + [
                "https://localhost:%d/ping" % self.server.port]))
            self.assertEqual(status, 35, version)
        status, out = self.curl("--tlsv1.2", "--tls-max", "1.2", "https://localhost:%d/ping" % self.server.port)
        self.assertEqual((status, b"still here" in out), (0, True))

    def test_a_client_that_speaks_plain_http_is_told(self):
        answer = self.server.raw(b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertIn(b"rtot speaks TLS here: use https://", answer)

    def test_a_client_that_sends_a_large_body_sees_why_it_is_refused(self):
        for path, secret, size, status in (("/jobs", False, 12 << 20, 401), ("/jobs?nonsense", True, 30 << 20, 400)):
            self.assertEqual(self.server.post(path, b"x" * size, secret=secret).status, status)

    def test_failed_and_silent_handshakes_hold_up_nobody(self):
        silent = [self.server.connect() for _ in range(20)]
        noisy = [self.server.connect() for _ in range(20)]
        for connection in noisy:
            connection.sendall(b"\x16\x03\x01\x02\x00" + b"\xff" * 100)
        self.assertEqual(self.server.get("/ping").status, 200)
        for connection in silent + noisy:
            connection.close()
        wait_until(lambda: self.server.connections() == 0)

    def test_a_probe_that_only_connects_leaves_no_line_in_the_log(self):
        self.server.settle()
        before = self.server.log()
        self.server.connect().close()
        self.assertEqual(self.server.raw(b"", end=True), b"")       # which is accepted after the other
        self.server.settle()
        self.assertEqual(self.server.log(), before)


class SilentTest(TlsCase):

    @classmethod
    def setUpClass(cls):
        cls.certificates = Certificates()
        cls.server = TlsServer(*cls.tls_options(), program=support.patched("rtot.SEND_TIMEOUT = 0.3")).ready()
        cls.server.context = cls.certificates.client()

    def test_a_client_that_reads_nothing_for_too_long_is_disconnected(self):
        number = self.server.run("head -c 30000000 /dev/zero", fields="")["id"]
        with contextlib.closing(self.server.client()) as client:
            client.request("GET", "/jobs/%d/out" % number, headers={"Rtot-Secret": self.server.secret})
            client.sock.recv(100)
            wait_until(lambda: self.server.connections() == 0)


class HandshakeTimeTest(TlsCase):

    @classmethod
    def tls_options(cls):
        return super().tls_options() + ("--head-timeout", "1")

    def test_a_handshake_has_the_time_of_a_head(self):
        for raw in support.in_parallel(self.server.raw, (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01")):
            self.assertNotIn(b"200", raw)      # the server has closed it
        wait_until(lambda: self.server.connections() == 0)

    def test_a_byte_now_and_then_does_not_prolong_it(self):
        with contextlib.closing(self.server.connect()) as connection:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")
            ended = threading.Event()

            def drip():
                with contextlib.suppress(OSError):
                    while not ended.wait(0.2):
                        connection.sendall(b"\0")
            thread = threading.Thread(target=drip)
            thread.start()
            began = time.monotonic()
            support.read_all(connection)
            ended.set()
            thread.join()
            self.assertLess(time.monotonic() - began, 30)


class ClientCertificateTest(TlsCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.context = cls.certificates.client("client")

    @classmethod
    def tls_options(cls):
        return super().tls_options() + ("--tls-client-ca", cls.certificates["authority.pem"])

    def test_a_client_that_the_authority_has_signed_is_served(self):
        self.assertEqual(self.server.run("echo yes")["out"], "yes\n")

    def test_other_clients_are_refused_even_with_the_secret(self):
        for name in (None, "stranger"):
            context = self.certificates.client(name)
            client = http.client.HTTPSConnection("127.0.0.1", self.server.port, timeout=support.LIMIT, context=context)
            with contextlib.closing(client), self.assertRaises((OSError, http.client.HTTPException)):
                self.server.get("/ping", client=client)     # TLS 1.3 tells at the first read


@support.need("openssl")
class TlsOptionTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.certificates = Certificates()

    @classmethod
    def tearDownClass(cls):
        cls.certificates.remove()

    def refuse(self, *options):
        """Return what a server logs that does not start with the options."""
        done = subprocess.run([sys.executable, support.SOURCE, "-a", "127.0.0.1:0", "-s", "s"] + list(options),
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=support.LIMIT)
        self.assertEqual(done.returncode, 1)
        return done.stderr.decode("utf-8")

    def test_a_file_that_cannot_be_used_is_named_in_a_line(self):
        pem, key = self.certificates["server.pem"], self.certificates["server.key"]
        locked = self.certificates["locked.key"]
        openssl("ec", "-aes128", "-passout", "pass:x", "-in", key, "-out", locked)
        for options, message in ((["--tls-cert", "/no/such.pem"], "cannot read /no/such.pem: No such file"),
                                 (["--tls-cert", pem, "--tls-key", "/no/such.key"], "cannot read /no/such.key: No such"),
                                 (["--tls-cert", pem], "cannot use " + pem),
                                 (["--tls-cert", pem, "--tls-key", self.certificates["client.key"]], "cannot use"),
                                 (["--tls-cert", pem, "--tls-key", locked], "encrypted|passphrase"),
                                 (["--tls-cert", pem, "--tls-key", key, "--tls-client-ca", key], "cannot use " + key),
                                 (["--tls-key", key], "--tls-key and --tls-client-ca need --tls-cert")):
            said = self.refuse(*options)
            self.assertRegex(said, message)
            self.assertEqual(said.count("\n"), 1, said)

    def test_hangup_reads_the_certificate_again(self):
        """With wrong files the old certificate stays, and the log says why."""
        pem, key = (os.path.join(self.certificates.directory, name) for name in ("live.pem", "live.key"))
        log = os.path.join(self.certificates.directory, "log")

        def install(name):
            shutil.copy(self.certificates[name + ".key"], key)
            shutil.copy(self.certificates[name + ".pem"], pem)

        def served():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with contextlib.closing(server.connect()) as connection, context.wrap_socket(connection) as wrapped:
                return wrapped.getpeercert(True)

        def expected(name):
            with open(self.certificates[name + ".pem"]) as file:
                return ssl.PEM_cert_to_DER_cert(file.read())
        install("server")
        server = TlsServer("--tls-cert", pem, "--tls-key", key, "--log-file", log)
        self.addCleanup(server.close)
        server.ready()
        self.assertEqual(served(), expected("server"))
        install("stranger")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served() == expected("stranger"))
        shutil.copy(self.certificates["server.pem"], pem)       # whose key this is not
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "cannot use " + pem in support.read_text(log))
        self.assertEqual(served(), expected("stranger"))

    def test_a_file_may_hold_both_certificate_and_key(self):
        both = self.certificates["both.pem"]
        with open(both, "w") as file:
            for name in ("server.pem", "server.key"):
                with open(self.certificates[name]) as part:
                    file.write(part.read())
        server = TlsServer("--tls-cert", both)
        self.addCleanup(server.close)
        server.ready().context = self.certificates.client()
        self.assertEqual(server.get("/ping").status, 200)

    def test_without_it_ssl_is_not_loaded(self):
        server = Server()
        self.addCleanup(server.close)
        server.ready().run("true")
        with open("/proc/%d/maps" % server.pid) as file:
            self.assertNotIn("_ssl", file.read())
