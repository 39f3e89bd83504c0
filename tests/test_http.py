"""HTTP as RFC 9112 has it: what is taken, what is refused, and how a connection goes on or ends."""
import contextlib
import errno
import json
import os
import select
import signal
import socket
import threading
import time
import unittest
import unittest.mock

import support
from support import SECRET, ServerCase, split_answer, wait_until
import rtot

AUTH = b"Host: x\r\nRtot-Secret: %s\r\n" % SECRET.encode("ascii")


def post(script, *headers, path=b"/jobs?wait", version=b"HTTP/1.1"):
    return b"POST %b %b\r\n%b%b\r\n%b" % (path, version, AUTH, b"".join(line + b"\r\n" for line in headers), script)


def open_text(path):
    with open(path) as file:
        return file.read()


class HttpCase(ServerCase):

    def count(self):
        return len(self.server.get("/jobs?fields=").jobs)

    def assertRefused(self, data, status=400):
        """The bytes get one JSON error, the connection is closed, nothing is run."""
        before = self.count()
        with self.server.connect(source=support.stranger()) as connection, connection.makefile("rb") as file:
            connection.sendall(data)
            got, headers, body = self.read_answer(file)
            self.assertEqual(got, status, (data[:200], body))
            self.assertEqual(headers.get("connection"), "close", data[:200])    # before its end is waited for
            self.assertEqual(file.read(), b"", data[:200])      # no second answer behind it
        value = json.loads(body.decode("utf-8"))
        self.assertEqual(sorted(value), ["error", "message"])
        self.assertEqual(self.count(), before, data[:200])

    def exchange(self, data, count=1):
        """Send bytes on a connection; return `count` answers as (status, headers, body)."""
        with self.server.connect() as connection, connection.makefile("rb") as file:
            connection.sendall(data)
            return [self.read_answer(file) for _ in range(count)]

    def read_answer(self, file):
        status = int(file.readline().split()[1])
        headers = {}
        for line in iter(file.readline, b"\r\n"):
            name, _, value = line.decode("latin-1").rstrip("\r\n").partition(": ")
            headers[name.lower()] = value
        return status, headers, file.read(int(headers.get("content-length", 0)))


class RequestLineTest(HttpCase):

    def test_what_is_no_http_is_refused(self):
        for data in (b"GET /ping\r\n\r\n", b"GET /ping\r\n", b"GET  /ping HTTP/1.1\r\n\r\n", b"GET /ping HTTP/1.1 \r\n\r\n",
                     b"GET /a b HTTP/1.1\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n", b" GET / HTTP/1.1\r\n\r\n",
                     b"G\xffT / HTTP/1.1\r\n\r\n", b"GET / http/1.1\r\n\r\n", b"GET / HTTP/1\r\n\r\n", b"GET\r\n\r\n",
                     b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                     b"\x00\x00\x00\x00", b"\xff" * 500, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\n\r\nGET",
                     b"GET ping HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /ping#x HTTP/1.1\r\nHost: x\r\n\r\n",
                     b"GET http:///ping HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
                     b"DELETE http://x#/jobs HTTP/1.1\r\n" + AUTH + b"\r\n"):
            with self.subTest(data=data):
                self.assertRefused(data)

    def test_another_version_is_refused(self):
        self.assertRefused(b"GET /ping HTTP/2.0\r\nHost: x\r\n\r\n", 505)
        self.assertRefused(b"GET /ping HTTP/0.9\r\nHost: x\r\n\r\n", 505)

    def test_a_line_too_long_is_refused(self):
        self.assertRefused(b"GET /ping?" + b"x" * 40000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414)
        self.assertRefused(b"GET /ping?" + b"x" * 40000, 414)

    def test_an_empty_line_before_a_request_is_ignored(self):
        self.assertEqual(self.exchange(b"\r\nGET /ping HTTP/1.1\r\nHost: x\r\n\r\n")[0][0], 200)

    def test_forms_of_the_target(self):
        for target, status in ((b"/ping", 200), (b"/ping/", 200), (b"http://other/ping", 200), (b"/p%69ng", 200),
                               (b"/ping?", 200), (b"//ping", 401), (b"/", 401), (b"http://other", 401),
                               (b"https://other/ping", 200), (b"/ping%3Fx=1", 401)):
            answer = self.exchange(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)[0]
            self.assertEqual(answer[0], status, target)
        self.assertEqual(self.exchange(b"GET //jobs HTTP/1.1\r\n" + AUTH + b"\r\n")[0][0], 404)
        for target, status in ((b"http://other", 200), (b"https://other/jobs", 200), (b"http://other?x=/jobs", 400),
                               (b"http://other/jobs?x=/ping", 400), (b"/jobs%2F0", 404), (b"/jobs%3Fx=1", 404)):
            self.assertEqual(self.exchange(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, AUTH))[0][0], status, target)
        before = self.server.start("true")
        self.assertEqual(self.exchange(b"DELETE http://other?x=/jobs HTTP/1.1\r\n" + AUTH + b"\r\n")[0][0], 400)
        self.assertEqual(self.server.get("/jobs/%d?wait" % before).status, 200)

    def test_bytes_that_were_not_encoded_are_taken_as_typed(self):
        status, _, body = self.exchange(b"POST /jobs?fields=label&label=caf\xc3\xa9 HTTP/1.1\r\n" + AUTH
                                        + b"Content-Length: 4\r\n\r\ntrue")[0]
        self.assertEqual(json.loads(body.decode("utf-8"))["jobs"][0]["label"], "caf\u00e9")


class HeaderTest(HttpCase):

    def test_what_is_no_header_is_refused(self):
        for line in (b"Name : x", b" Name: x", b"Name", b": x", b"Na me: x", b"Name: x\r\n folded", b"Name: a\x00b",
                     b"Name: a\rb", b"Name\x00: x", b"N\xc3\xa4me: x", b"Name: \x1b[2J", b"Name: a\x7fb", b"Name: x\n"):
            with self.subTest(line=line):
                self.assertRefused(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")

    def test_bare_line_feeds_are_refused(self):
        self.assertRefused(b"GET /ping HTTP/1.1\nHost: x\n\n")
        self.assertRefused(b"GET /ping HTTP/1.1\r\nHost: x\n\r\n")

    def test_a_host_is_asked_for_in_http_1_1_and_there_is_one(self):
        self.assertRefused(b"GET /ping HTTP/1.1\r\n\r\n")
        for host in (b"a\r\nHost: b", b"a b", b"a/b", b"http://a", b"a?b", b"a@b", b"a\xff"):
            self.assertRefused(b"GET /ping HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        for host in (b"", b"[::1]:8457", b"my_host-1.example:80"):
            self.assertEqual(self.exchange(b"GET /ping HTTP/1.1\r\nHost: %b\r\n\r\n" % host)[0][0], 200)
        self.assertEqual(split_answer(self.server.raw(b"GET /ping HTTP/1.0\r\n\r\n"))[0], 200)

    def test_too_much_of_a_head_is_refused(self):
        self.assertRefused(b"GET /ping HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431)
        self.assertRefused(b"GET /ping HTTP/1.1\r\nA: " + b"x" * 40000 + b"\r\n\r\n", 431)
        self.assertRefused(b"GET /ping HTTP/1.1\r\n" + (b"A: " + b"x" * 9000 + b"\r\n") * 10 + b"\r\n", 431)
        self.assertRefused(b"GET /ping HTTP/1.1\r\n" + (b"A: " + b"x" * 9000 + b"\r\n") * 10, 431)      # and no end
        self.assertEqual(self.exchange(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 99 + b"\r\n")[0][0], 200)

    def test_blanks_around_a_value_are_not_part_of_it(self):
        self.assertEqual(self.exchange(b"GET / HTTP/1.1\r\nHost: x\r\nRtot-Secret: \t swordfish \t\r\n\r\n")[0][0], 200)

    def test_a_secret_that_is_given_twice_is_refused(self):
        self.assertRefused(b"GET / HTTP/1.1\r\nHost: x\r\nRtot-Secret: a\r\nRtot-Secret: swordfish\r\n\r\n")
        self.assertRefused(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\nAuthorization: Bearer swordfish\r\n\r\n")

    def test_every_answer_names_the_version_and_forbids_to_sniff_or_store(self):
        for path in ("/ping", "/nothing", "/jobs/abc"):
            headers = self.server.get(path).headers
            self.assertRegex(headers["rtot-version"], r"^[0-9]+\.[0-9]+\.[0-9]+$")
            self.assertEqual((headers["x-content-type-options"], headers["cache-control"]), ("nosniff", "no-store"))
            self.assertEqual(headers["content-security-policy"], "default-src 'none'; frame-ancestors 'none'")
            self.assertRegex(headers["date"], r"^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} .* GMT$")


class BodyTest(HttpCase):

    def test_lengths_that_another_might_read_differently_are_refused(self):
        for line in (b"Content-Length: +5", b"Content-Length: -1", b"Content-Length: 0x5", b"Content-Length: 0_5",
                     b"Content-Length: 5, 5", b"Content-Length: \xb2", b"Content-Length: " + b"9" * 20000,
                     b"Content-Length: ", b"Content-Length: 5 5", b"Content-Length: 5.0",
                     b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5\r\nContent-Length: 6",
                     b"Content-Length: 5\r\nTransfer-Encoding: chunked",
                     b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Content-Length : 5"):
            with self.subTest(line=line[:60]):
                self.assertRefused(post(b"true\n", line))

    def test_a_length_beside_a_coding_is_refused_where_each_alone_would_do(self):
        body = b"5\r\ntrue\n\r\n0\r\n\r\n"
        coding, length = b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body)
        for line in (length + b"\r\n" + coding, coding + b"\r\n" + length, b"Content-Length: 0\r\n" + coding,
                     coding + b"\r\n" + coding, coding + b"\r\nTransfer-Encoding: identity"):
            with self.subTest(line=line):
                self.assertRefused(post(body, line))

    def test_an_unknown_coding_is_refused(self):
        for coding in (b"gzip", b"gzip, chunked", b"chunked, gzip", b"xchunked", b""):
            self.assertRefused(post(b"true\n", b"Transfer-Encoding: " + coding), 501)
        self.assertRefused(post(b"5\r\ntrue\n\r\n0\r\n\r\n", b"Transfer-Encoding: chunked", version=b"HTTP/1.0"))

    def test_no_length_on_a_script_is_refused(self):
        before = self.count()
        self.assertEqual(self.exchange(post(b""))[0][0], 411)
        self.assertEqual(self.count(), before)

    def test_a_body_that_is_cut_short_runs_nothing(self):
        marker = self.server.tmp + "/marker"
        before = self.count()
        for data in (post(b"touch " + marker.encode(), b"Content-Length: 5000"),
                     post(b"400\r\ntouch " + marker.encode(), b"Transfer-Encoding: chunked"),
                     post(b"6\r\ntouch \r\n%x\r\n%b\r\n" % (len(marker), marker.encode()), b"Transfer-Encoding: chunked"),
                     post(b"5\r\ntrue\n\r\n0\r\n", b"Transfer-Encoding: chunked"),        # the trailers might go on
                     post(b"5\r\ntrue\n\r\n0\r\nTrailer: x\r\n", b"Transfer-Encoding: chunked")):
            self.assertEqual(self.server.raw(data, end=True), b"")
        self.assertEqual(self.count(), before)
        self.assertEqual([name for name in self.server.leftovers() if name == "marker"], [])

    def test_a_chunked_body_is_decoded_with_extensions_and_trailers(self):
        body = b"5;name=value\r\necho \r\n0003 \r\nhi;\r\n9;x=\"y\"\r\necho done\r\n0\r\nTrailer: x\r\n\r\n"
        status, _, answer = self.exchange(post(body, b"Transfer-Encoding: Chunked"))[0]
        self.assertEqual((status, json.loads(answer.decode("utf-8"))["jobs"][0]["out"]), (201, "hi\ndone\n"))

    def test_the_next_request_begins_behind_the_trailers_of_which_there_may_be_a_hundred(self):
        body = b"5\r\ntrue\n\r\n0\r\n%b\r\n"
        data = post(body % b"Trailer: x\r\n", b"Transfer-Encoding: chunked") + b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
        self.assertEqual([status for status, _, _ in self.exchange(data, 2)], [201, 200])
        self.assertRefused(post(body % (b"A: b\r\n" * 101), b"Transfer-Encoding: chunked"), 431)

    def test_bad_chunks_are_refused(self):
        for body in (b"x\r\n", b"-1\r\n", b"+5\r\n", b"0x5\r\ntrue\n\r\n0\r\n\r\n", b"\r\n", b"5\r\ntrue\nXX0\r\n\r\n",
                     b"5\r\ntrue\nXX\r\n0\r\n\r\n", b"5\r\ntrue\n0\r\n\r\n0\r\n\r\n",
                     b"5\ntrue\n\r\n0\r\n\r\n", b"f" * 16 + b"\r\n", b"5_\r\n", b"5 5\r\n", b"5\r\ntrue\n\r\n0\r\nbad trailer\r\n\r\n",
                     b"5;a\rb\r\ntrue\n\r\n0\r\n\r\n", b"5;a\x00b\r\ntrue\n\r\n0\r\n\r\n", b"5;a\x7f\r\ntrue\n\r\n0\r\n\r\n",
                     b"5;" + b"x" * 40000 + b"\r\n", b"5;" + b"x" * 40000):
            with self.subTest(body=body[:60]):
                self.assertRefused(post(body, b"Transfer-Encoding: chunked"))

    def test_a_client_that_waits_for_100_gets_it_when_its_body_is_wanted(self):
        with self.server.connect() as connection:
            connection.sendall(post(b"", b"Content-Length: 7", b"Expect: 100-continue"))
            file = connection.makefile("rb")
            self.assertEqual(file.readline(), b"HTTP/1.1 100 Continue\r\n")
            self.assertEqual(file.readline(), b"\r\n")
            connection.sendall(b"echo hi")
            status, _, body = self.read_answer(file)
        self.assertEqual((status, json.loads(body.decode("utf-8"))["jobs"][0]["out"]), (201, "hi\n"))

    def test_a_client_that_waits_for_100_with_a_bad_secret_gets_the_401_instead(self):
        answer = self.server.raw(b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: bad\r\nContent-Length: 7\r\n"
                                 b"Expect: 100-continue\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)

    def test_a_client_of_http_1_0_gets_no_100(self):
        """It would take it for the answer: RFC 9110, 15.2."""
        raw = self.server.raw(post(b"echo hi", b"Content-Length: 7", b"Expect: 100-continue", version=b"HTTP/1.0"))
        self.assertEqual(split_answer(raw)[0], 201)

    def test_a_small_body_that_nobody_wants_is_skipped_and_the_connection_goes_on(self):
        data = b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nDELETE / HTTP/1.1\r\nHost: x\r\n\r\n"
        answers = self.exchange(data + b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n", 2)
        self.assertEqual([status for status, _, _ in answers], [200, 200])

    def test_a_large_body_that_nobody_wants_is_not_read(self):
        for line in (b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"):
            _, headers, _ = self.exchange(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")[0]
            self.assertEqual(headers["connection"], "close")

    def test_a_client_that_waits_for_100_and_gets_an_error_is_not_waited_for(self):
        for path in (b"/nothing", b"/jobs?nonsense"):
            answer = self.server.raw(post(b"", b"Content-Length: 7", b"Expect: 100-continue", path=path))
            self.assertEqual(split_answer(answer)[1]["connection"], "close")
            self.assertNotIn(b"100 Continue", answer)

    def test_a_413_comes_before_the_body_is_read(self):
        for more in ((), (b"Expect: 100-continue",)):
            self.assertRefused(post(b"", b"Content-Length: 17000000", *more), 413)

    def test_one_that_goes_on_after_its_answer_is_not_read_for_ever(self):
        head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        with self.server.connect(source=support.stranger()) as connection:      # that does not close
            connection.sendall(head)
            self.assertEqual(self.read_answer(connection.makefile("rb"))[0], 401)
            wait_until(lambda: self.server.threads() == 2)
        with self.server.connect(source=support.stranger()) as connection:      # that does not stop
            connection.sendall(head)
            with self.assertRaises(OSError):
                for _ in range(8):
                    connection.sendall(b"x" * rtot.LINGER_BYTES)

    def test_a_401_comes_before_the_body_is_read_and_the_body_is_never_a_request(self):
        body = b"POST /jobs HTTP/1.1\r\n" + AUTH + b"Content-Length: 4\r\n\r\ntrue"
        self.assertRefused(b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), 401)
        with self.server.connect() as connection:       # the body does not come at all
            connection.sendall(b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            self.assertEqual(self.read_answer(connection.makefile("rb"))[0], 401)

    def test_a_client_in_the_middle_of_a_large_body_sees_why_it_is_refused(self):
        before = self.count()
        for secret, size, status in (("bad", 12 << 20, 401), (SECRET, (16 << 20) + 1, 413)):
            answer = self.server.post("/jobs", b"x" * size, headers={"Rtot-Secret": secret}, secret=False)
            self.assertEqual(answer.status, status)
        self.assertEqual(self.count(), before)


class ConnectionTest(HttpCase):

    def test_serves_many_requests_on_one_connection(self):
        answers = self.exchange(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 50, 50)
        self.assertEqual([status for status, _, _ in answers], [200] * 50)

    def test_serves_pipelined_posts_in_order(self):
        data = b"".join(post(b"echo %d" % number, b"Content-Length: 6") for number in range(5))
        answers = self.exchange(data, 5)
        self.assertEqual([json.loads(body.decode("utf-8"))["jobs"][0]["out"] for _, _, body in answers],
                         ["%d\n" % number for number in range(5)])

    def test_takes_a_request_a_byte_at_a_time(self):
        with self.server.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in post(b"echo hi", b"Content-Length: 7"):
                connection.send(bytes(bytearray([byte])))
            self.assertEqual(self.read_answer(connection.makefile("rb"))[0], 201)

    def test_closes_where_the_client_wants_it(self):
        for data in (b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET /ping HTTP/1.0\r\n\r\n",
                     b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n"):
            self.assertEqual(split_answer(self.server.raw(data))[0], 200)

    def test_a_client_that_has_closed_its_side_gets_its_answer(self):
        for secret, status in ((b"bad", 401), (SECRET.encode("ascii"), 200)):
            data = b"GET / HTTP/1.1\r\nHost: x\r\nRtot-Secret: " + secret + b"\r\n\r\n"
            self.assertEqual(split_answer(self.server.raw(data, end=True))[0], status)

    def test_http_1_0_may_keep_its_connection(self):
        answers = self.exchange(b"GET /ping HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" * 3, 3)
        self.assertEqual([headers["connection"] for _, headers, _ in answers], ["keep-alive"] * 3)
        number = self.server.run("echo hello")["id"]        # but a stream has no other end than that of its connection
        data = b"GET /jobs/%d/out?follow HTTP/1.0\r\nConnection: keep-alive\r\n%b\r\n" % (number, AUTH)
        status, headers, body = split_answer(self.server.raw(data, end=True))
        self.assertEqual((status, headers["connection"], body), (200, "close", b"hello\n"))

    def test_head_gives_the_head_of_get(self):
        number = self.server.run("echo hello")["id"]
        for query, framing in ((b"", b"Content-Length: 6"), (b"?follow", b"Transfer-Encoding: chunked")):
            data = b"HEAD /jobs/%d/out%b HTTP/1.1\r\n%b\r\nGET /jobs/%d/out HTTP/1.1\r\nConnection: close\r\n%b\r\n" % (
                number, query, AUTH, number, AUTH)
            head, _, rest = self.server.raw(data).partition(b"\r\n\r\n")
            self.assertIn(framing, head)
            self.assertTrue(rest.startswith(b"HTTP/1.1 200 OK\r\n"), rest)
            self.assertEqual(split_answer(rest)[2], b"hello\n")

    def test_an_answer_is_sent_at_once_and_without_delay(self):
        """With Nagle's algorithm and two sends, an answer on a kept connection took 44 ms."""
        with self.server.connect() as connection:
            for _ in range(20):
                connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertRegex(connection.recv(65536), b"(?s)^HTTP/1.1 200 .*\r\n\r\n{.*}\n$")
        server = rtot.Server(("127.0.0.1", 0), None, None, rtot.Limits(1, 1, 1, 1, 256))
        self.addCleanup(server.server_close)
        with socket.create_connection(server.server_address):
            accepted, _ = server.get_request()
            self.addCleanup(accepted.close)
            self.assertTrue(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        sent = []
        connection = rtot.Connection.__new__(rtot.Connection)
        connection.wire = unittest.mock.Mock(send=lambda *parts: sent.append(b"".join(parts)))
        connection._send(rtot.Request("GET", b"/", 11, {}), rtot.Response(200, b"body"), True)
        self.assertEqual([data[-8:] for data in sent], [b"\r\n\r\nbody"])

    def test_takes_hundreds_of_connections_at_once(self):
        """A backlog of 5 made 200 of them take a second, or fail; while the server is stopped, all of them have to wait there."""
        if int(open_text("/proc/sys/net/core/somaxconn")) < 500:
            self.skipTest("needs net.core.somaxconn of 500")
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            connections = [self.server.connect() for _ in range(400)]
        finally:
            os.kill(self.server.pid, signal.SIGCONT)
        for connection in connections:
            connection.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
        for connection in connections:
            self.assertEqual(split_answer(support.read_all(connection))[0], 200)
            connection.close()

    def test_a_client_that_resets_its_connection_harms_nobody(self):
        for _ in range(20):
            connection = self.server.connect()
            connection.sendall(post(b"echo hi", b"Content-Length: 7")[:-3])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        wait_until(lambda: self.server.threads() == 2, "the end of the connections' threads")
        self.assertEqual(self.server.get("/ping").status, 200)


class WireTest(unittest.TestCase):

    def test_one_that_takes_nothing_for_too_long_is_gone(self):
        with unittest.mock.patch.object(rtot, "SEND_TIMEOUT", 0.1):
            for tls in (False, True):
                ours, theirs = socket.socketpair()
                with contextlib.closing(ours), contextlib.closing(theirs):
                    wire, ended = rtot.Wire(ours, rtot.Limits(1, 1, 1, 1, 256), tls), []

                    def send():
                        try:
                            wire.send(b"x" * (1 << 24))
                        except rtot.ClientGone:
                            ended.append(True)
                    thread = threading.Thread(target=send, daemon=True)
                    thread.start()
                    thread.join(support.LIMIT / 4)
                    self.assertEqual(ended, [True])

    def test_time_that_is_up_is_a_timeout(self):
        """For the kernel and for settimeout a time of 0 may be no limit at all."""
        for tls in (False, True):
            for seconds in (-0.5, 0):
                ours, theirs = socket.socketpair()
                with contextlib.closing(ours), contextlib.closing(theirs):
                    wire, ended = rtot.Wire(ours, rtot.Limits(1, 1, 1, 1, 256), tls), []

                    def receive():
                        try:
                            wire.receive(seconds)
                        except socket.timeout:
                            ended.append(True)
                    thread = threading.Thread(target=receive, daemon=True)
                    thread.start()
                    thread.join(support.LIMIT / 4)
                    self.assertEqual(ended, [True], (tls, seconds))


class LingerTest(unittest.TestCase):

    def test_shuts_its_side_first_and_has_one_deadline_whatever_still_comes(self):
        now, calls = [100.0], []

        def receive(seconds):
            calls.append(round(seconds, 3))
            if seconds <= 0 or len(calls) > 20:
                raise socket.timeout()
            now[0] += 0.5
            return True
        connection = rtot.Connection.__new__(rtot.Connection)
        connection.waiting_since = now[0]
        connection.connection = connection.request = unittest.mock.Mock(shutdown=calls.append)
        connection.wire = unittest.mock.Mock(receive=receive, buffer=bytearray())
        with unittest.mock.patch.object(time, "monotonic", lambda: now[0]), unittest.mock.patch.object(rtot, "LINGER", 2.0):
            self.assertFalse(connection._linger())
        self.assertEqual(calls, [socket.SHUT_WR, 2.0, 1.5, 1.0, 0.5, 0.0])


class AcceptTest(unittest.TestCase):

    def server(self, connections=100):
        server = rtot.Server(("127.0.0.1", 0), unittest.mock.Mock(), rtot.Log("text"), rtot.Limits(connections, 1, 1, 1, 256))
        self.addCleanup(server.server_close)
        return server

    def test_backs_off_and_lets_an_idle_one_go_while_something_is_lacking(self):
        """What waits to be accepted stays readable: without a pause the loop would spin."""
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            server, idle = self.server(), unittest.mock.Mock(waiting_since=1.0, fresh=False, known=False)
            server.connections.add(idle)
            with contextlib.closing(server.socket), unittest.mock.patch.object(time, "sleep") as sleep:
                server.socket = unittest.mock.Mock(accept=unittest.mock.Mock(side_effect=OSError(number, "x")))
                self.assertRaises(OSError, server.get_request)
            self.assertEqual((sleep.call_args_list, idle.hang_up.call_count), ([unittest.mock.call(0.1)], 1), number)

    @unittest.skipUnless(support.LINUX, "tcp(7) of Linux")
    def test_a_client_that_is_cut_off_is_noticed_within_two_minutes(self):
        """One that says nothing any more, as behind a link that is down: a follower of a quiet job stayed for 2 hours."""
        server = self.server()
        with socket.create_connection(server.server_address), contextlib.closing(server.get_request()[0]) as connection:
            self.assertTrue(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            idle, interval, count = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in (
                socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT))
        self.assertLessEqual(idle + interval * count, 120)

    def test_the_last_descriptors_are_left_to_scripts_and_modules(self):
        server = self.server()
        server.refuse = unittest.mock.Mock()

        def accepted(number):
            connection = unittest.mock.Mock(**{"fileno.return_value": number})
            return server.verify_request(connection, None)
        self.assertEqual([accepted(number) for number in (10, 247, 248, 255)], [True, True, False, False])
        self.assertIn("descriptor", server.refuse.call_args[0][1])

    def test_without_a_thread_it_is_a_503(self):
        server = self.server()
        for number, lacking in enumerate((False, True)):        # output is dropped for want of memory alone
            with socket.create_connection(server.server_address) as client, unittest.mock.patch.object(
                    rtot._thread, "start_new_thread", side_effect=RuntimeError("can't start new thread")), \
                    unittest.mock.patch.object(rtot, "lacks_memory", lambda lacking=lacking: lacking):
                server.handle_request()
                status, headers, body = split_answer(support.read_all(client))
            self.assertEqual((status, headers["retry-after"]), (503, "1"))
            self.assertIn(b"threads", body)
            self.assertEqual(server.app.runner.relieve.call_count, number)

    def test_without_memory_for_a_thread_one_that_is_idle_goes_before_any_output(self):
        """Its stack serves the next: address space may be had in no other way, since malloc keeps what is freed."""
        server, idle = self.server(), unittest.mock.Mock(waiting_since=1.0, fresh=False, known=False)
        server.connections.add(idle)
        with unittest.mock.patch.object(rtot._thread, "start_new_thread", side_effect=RuntimeError("no")), \
                unittest.mock.patch.object(rtot, "lacks_memory", lambda: True):
            for relieved in (0, 1):
                with socket.create_connection(server.server_address) as client:
                    server.handle_request()
                    self.assertEqual(split_answer(support.read_all(client))[0], 503)
                idle.hang_up.assert_called_once_with()
                self.assertEqual(server.app.runner.relieve.call_count, relieved)

    def test_each_is_counted_before_the_next_is_accepted(self):
        server, counted = self.server(), []
        real = rtot._thread.start_new_thread

        def late(function, args):
            return real(lambda: (time.sleep(0.1), function(*args)), ())
        clients = [socket.create_connection(server.server_address) for _ in range(3)]
        with unittest.mock.patch.object(rtot._thread, "start_new_thread", late):
            for client in clients:
                server.handle_request()
                counted.append(len(server.connections._open))
        for client in clients:
            client.close()
        self.assertEqual(counted, [1, 2, 3])
        wait_until(lambda: not server.connections._open)

    def test_a_thread_that_never_runs_is_not_waited_for_for_ever(self):
        """One that had no memory for its first line of Python ends without a word: then there has to be more."""
        server = self.server()
        for number, lacking in enumerate((False, True)):
            with socket.create_connection(server.server_address), unittest.mock.patch.object(rtot, "TICK", 0.1), \
                    unittest.mock.patch.object(rtot, "lacks_memory", lambda lacking=lacking: lacking), \
                    unittest.mock.patch.object(rtot._thread, "start_new_thread") as start:
                server.handle_request()
            (connection, _), = [call[0][1] for call in start.call_args_list]
            connection.close()
            self.assertEqual(server.app.runner.relieve.call_count, number)

    def test_accepting_without_memory_goes_on(self):
        server = self.server()
        with contextlib.closing(server.socket), unittest.mock.patch.object(time, "sleep"):
            server.socket = unittest.mock.Mock(accept=unittest.mock.Mock(side_effect=MemoryError))
            self.assertRaises(OSError, server.get_request)      # for which socketserver goes on

    def test_a_want_of_memory_in_a_connection_relieves_the_runner(self):
        server = self.server()
        server.log = unittest.mock.Mock(event=unittest.mock.Mock(side_effect=MemoryError))
        try:
            raise MemoryError
        except MemoryError:
            server.handle_error(None, None)
        server.app.runner.relieve.assert_called_once_with()


class CapTest(HttpCase):
    options = ("--max-connections", "5")

    def test_one_that_is_idle_is_closed_for_a_new_one(self):
        idle = []
        for _ in range(5):
            connection = self.server.connect()
            self.addCleanup(connection.close)
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
            self.read_answer(connection.makefile("rb"))
            idle.append(connection)
        with contextlib.closing(self.server.connect()) as new:
            new.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual(self.read_answer(new.makefile("rb"))[0], 200)
            closed, _, _ = select.select(idle, [], [], support.LIMIT)
            self.assertEqual([connection.recv(1) for connection in closed], [b""])
            for connection in set(idle) - set(closed):
                connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertEqual(self.read_answer(connection.makefile("rb"))[0], 200)

    class Stub:
        def __init__(self, since, fresh=False, known=False):
            self.waiting_since, self.fresh, self.known, self.closed = since, fresh, known, False

        def hang_up(self):
            self.closed = True

    def test_the_one_that_has_waited_longest_is_closed(self):
        connections = rtot.Connections(4)
        stubs = [self.Stub(since) for since in (None, 7.0, 3.0, 5.0)]
        for stub in stubs:
            self.assertTrue(connections.make_room(False))
            connections.add(stub)
        self.assertTrue(connections.make_room(False))
        self.assertEqual([stub.closed for stub in stubs], [False, False, True, False])
        connections.add(self.Stub(None))
        self.assertTrue(connections.make_room(False))
        self.assertEqual([stub.closed for stub in stubs], [False, False, True, True])

    def test_who_has_shown_the_secret_is_closed_after_the_others_but_before_who_has_just_come(self):
        now = time.monotonic()
        connections = rtot.Connections(4)
        answered, slow, known, new = stubs = [self.Stub(now - 1), self.Stub(now - 9, fresh=True),
                                              self.Stub(now - 99, known=True), self.Stub(now + 99, fresh=True)]
        for stub in stubs:
            connections.add(stub)
        closed = []
        while connections.close_one():
            closed += [stub for stub in stubs if stub.closed and stub not in closed]
        self.assertEqual(closed, [slow, answered, known, new])

    def test_one_that_is_closed_before_its_answer_gets_a_503_and_nothing_is_run(self):
        number = self.server.start("sleep 99")
        wait_until(lambda: self.server.threads() == 2)
        followers = [support.Follower(self.server, "/jobs/%d/out?follow" % number) for _ in range(4)]
        head = b"POST /jobs HTTP/1.1\r\n" + AUTH + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        for sent in (b"", head[:50]):
            wait_until(lambda: self.server.threads() == 6)
            with self.server.connect() as first, self.server.connect() as second:
                first.sendall(sent)
                second.sendall(head)
                status, headers, _ = split_answer(support.read_all(first))
                self.assertEqual((status, headers["retry-after"]), (503, "1"))
                self.assertRegex(second.recv(100), b"^HTTP/1.1 100 ")       # it has shown the secret, so it stays
                self.assertRegex(self.server.raw(b""), b"^HTTP/1.1 503 ")
                second.sendall(b"true")
                self.assertRegex(support.read_all(second), b"^HTTP/1.1 201 ")
        self.server.delete("/jobs/%d" % number)
        for follower in followers:
            follower.finish()
        wait_until(lambda: self.server.threads() == 2)
        self.assertEqual(self.count(), 2)
        self.server.delete("/jobs")

    def test_a_request_is_served_if_it_was_not_closed_before(self):
        connections, stub = rtot.Connections(1), unittest.mock.Mock(waiting_since=1.0, fresh=True, known=False)
        connections.add(stub)
        connections.admit(stub)
        self.assertIsNone(stub.waiting_since)
        self.assertFalse(connections.make_room(False))
        stub.waiting_since = 1.0
        self.assertTrue(connections.make_room(False))
        self.assertRaises(rtot.ClientGone, connections.admit, stub)

    def test_who_has_no_secret_keeps_no_place_from_who_has_it(self):
        """Not by a head or a body that never comes whole, nor by answers that nobody reads."""
        page = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n"
        for data in (b"GET /pi", b"GET /ping HTTP/1.1\r\nHost: x\r\n", b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
                     page * 1000):
            self.fill(data, b"\r\n\r\n" in data)
            for _ in range(5):
                self.assertEqual(self.server.get("/").status, 200, data[:100])

    def test_one_that_has_had_its_answer_keeps_no_place_whatever_it_owes(self):
        """Neither by not closing, nor by a body that nobody waits for."""
        for line in (b"Connection: close", b"Content-Length: 60000"):
            self.fill(b"GET /jobs HTTP/1.1\r\n%b%b\r\n\r\n" % (AUTH, line), True)
            for _ in range(5):
                self.assertEqual(self.server.get("/").status, 200, line)

    def fill(self, data, answered):
        """Take all places with connections that send this and then rest, and read a byte of an answer at most."""
        for _ in range(5):
            connection = socket.socket()
            self.addCleanup(connection.close)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)    # or the kernel would take megabytes
            connection.connect(("127.0.0.1", self.server.port))
            connection.sendall(data)
            if answered:
                connection.recv(1)
        wait_until(lambda: self.server.at_rest() and self.server.at_rest())

    def test_a_503_when_all_are_busy(self):
        wait_until(lambda: self.server.threads() == 2)
        number = self.server.start("sleep 99")
        pid = wait_until(lambda: self.server.job(number)["pid"])
        wait_until(lambda: self.server.threads() == 2)
        followers = [support.Follower(self.server, "/jobs/%d/out?follow" % number) for _ in range(5)]
        status, headers, body = split_answer(self.server.raw(b""))
        self.assertEqual((status, headers["retry-after"]), (503, "1"))
        self.assertIn(b"all connections are in use", body)
        os.killpg(pid, signal.SIGKILL)      # no request can: all connections are in use
        for follower in followers:
            follower.finish()
        wait_until(lambda: self.server.threads() == 2)
        self.server.delete("/jobs/%d" % number)
