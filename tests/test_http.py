"""HTTP as RFC 9112 has it: what is accepted, what is refused, and how a connection goes on or ends."""
import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import time
import unittest

import support
import rtot
from support import (AUTH, SECRET, ServerCase, in_parallel, patched, read_answer, read_text, split_answer, wait_until)

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


def post(script, *headers, path=b"/jobs?wait", version=b"HTTP/1.1"):
    return b"POST %b %b\r\n%b%b\r\n%b" % (path, version, AUTH, b"".join(line + b"\r\n" for line in headers), script)


class HttpCase(ServerCase):

    def count(self):
        return len(self.server.get("/jobs?fields=").jobs)

    def assertRefused(self, data, status=400):
        """Assert that the bytes get one JSON error, that the connection is closed and nothing is run."""
        before = self.count()
        with self.server.connect() as connection, connection.makefile("rb") as file:
            connection.sendall(data)
            got, headers, body = read_answer(file)
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
            return [read_answer(file) for _ in range(count)]


class RequestLineTest(HttpCase):

    def test_anything_but_http_is_refused(self):
        for data in (b"GET /ping\r\n\r\n", b"GET /ping\r\n", b"GET  /ping HTTP/1.1\r\n\r\n", b"GET /ping HTTP/1.1 \r\n\r\n",
                     b"GET /a b HTTP/1.1\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n", b" GET / HTTP/1.1\r\n\r\n",
                     b"G\xffT / HTTP/1.1\r\n\r\n", b"GET / http/1.1\r\n\r\n", b"GET / HTTP/1\r\n\r\n", b"GET\r\n\r\n",
                     b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                     b"\x00\x00\x00\x00", b"\xff" * 500, b"\r\n\r\n\r\nGET",
                     b"GET ping HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /ping#x HTTP/1.1\r\nHost: x\r\n\r\n",
                     b"GET http:///ping HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
                     b"DELETE http://x#/jobs HTTP/1.1\r\n" + AUTH + b"\r\n"):
            with self.subTest(data=data):
                self.assertRefused(data)

    def test_a_target_or_host_that_rfc_3986_does_not_have_is_refused(self):
        for host in (b"1.2.3.4:80:80", b"a:x", b"a:-1", b"[::1", b"::1", b"[::1]x", b"[zz]", b"a b", b"a%zz", b"a\\b",
                     b"a\"b", b"a<b", b"a{b"):
            with self.subTest(host=host):
                self.assertRefused(b"GET /ping HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        for target in (b"http://1.2.3.4:80:80/ping", b"http://a:x/ping", b"http://[::1/ping", b"http://a@b@c/ping", b"/%zz", b"/%"):
            with self.subTest(target=target):
                self.assertRefused(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, AUTH))

    def test_a_valid_request_for_something_else_is_not_called_malformed(self):
        for line, statuses in ((b"OPTIONS *", (405, 501)), (b"CONNECT h:80", (405, 501)), (b"GET HTTP://other/ping", (200,)),
                               (b"GET hTTp://other/ping", (200,)), (b"BREW /jobs", (405, 501)), (b"M-SEARCH /jobs", (405, 501))):
            raw = self.server.raw(b"%b HTTP/1.1\r\n%bConnection: close\r\n\r\n" % (line, AUTH))
            self.assertIn(split_answer(raw)[0], statuses, line)

    def test_a_head_that_is_known_to_be_bad_is_answered_before_its_end(self):
        for data in (b"GET /ping HTTP/1.1\r\nHost: x\r\nName : x\r\n", b"GET /ping HTTP/1.1\r\nNo colon\r\n", b"rubbish\r\n",
                     b"\r\nrubbish\r\n", b"GET /ping HTTP/1.1\r\nHost: x\r\nName: x\n", b"GET /ping HTTP/1.1\n"):
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

    def test_takes_each_form_of_the_target(self):
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

    def test_bytes_that_were_not_encoded_are_taken_as_they_are(self):
        status, _, body = self.exchange(b"POST /jobs?fields=label&label=caf\xc3\xa9 HTTP/1.1\r\n" + AUTH
                                        + b"Content-Length: 4\r\n\r\ntrue")[0]
        self.assertEqual(json.loads(body.decode("utf-8"))["jobs"][0]["label"], "caf\u00e9")


class HeaderTest(HttpCase):

    def test_a_malformed_header_is_refused(self):
        for line in (b"Name : x", b" Name: x", b"Name", b": x", b"Na me: x", b"Name: x\r\n folded", b"Name: a\x00b",
                     b"Name: a\rb", b"Name\x00: x", b"N\xc3\xa4me: x", b"Name: \x1b[2J", b"Name: a\x7fb", b"Name: x\n"):
            with self.subTest(line=line):
                self.assertRefused(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")

    def test_bare_line_feeds_are_refused(self):
        self.assertRefused(b"GET /ping HTTP/1.1\nHost: x\n\n")
        self.assertRefused(b"GET /ping HTTP/1.1\r\nHost: x\n\r\n")

    def test_http_1_1_needs_exactly_one_valid_host(self):
        self.assertRefused(b"GET /ping HTTP/1.1\r\n\r\n")
        for host in (b"a\r\nHost: b", b"a b", b"a/b", b"http://a", b"a?b", b"a@b", b"a\xff"):
            self.assertRefused(b"GET /ping HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        for host in (b"", b"[::1]:8457", b"my_host-1.example:80"):
            self.assertEqual(self.exchange(b"GET /ping HTTP/1.1\r\nHost: %b\r\n\r\n" % host)[0][0], 200)
        self.assertEqual(split_answer(self.server.raw(b"GET /ping HTTP/1.0\r\n\r\n"))[0], 200)

    def test_a_head_that_is_too_large_is_refused(self):
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

    def test_a_line_end_in_a_header_of_an_answer_is_refused(self):
        for value in ("a\r\nSet-Cookie: x", "a\nb", "a\r"):
            response = rtot.Response(200, b"", headers=[("Location", value)])
            self.assertRaises(ValueError, rtot.response_head, None, response, False)

    def test_every_answer_names_the_version_and_forbids_sniffing_and_storing(self):
        for path in ("/ping", "/nothing", "/jobs/abc"):
            headers = self.server.get(path).headers
            self.assertRegex(headers["rtot-version"], r"^[0-9]+\.[0-9]+\.[0-9]+$")
            self.assertEqual((headers["x-content-type-options"], headers["cache-control"]), ("nosniff", "no-store"))
            self.assertEqual(headers["content-security-policy"], "default-src 'none'; frame-ancestors 'none'")
            self.assertRegex(headers["date"], r"^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} .* GMT$")


    def test_what_is_known_to_be_bad_is_told_before_the_head_ends(self):
        """Else a client would wait for the time of a head to end, and get a 408."""
        server = self.own_server("--head-timeout", "60")
        for head in (b"GET /a|b HTTP/1.1\r\nHost: x\r\n", b"POST /jobs HTTP/1.1\r\nContent-Length: x\r\nHost",
                     b"POST /jobs HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                     b"GET / HTTP/1.1\r\nHost: a b\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n"):
            with self.subTest(head=head), contextlib.closing(server.send(head)) as connection:
                self.assertEqual(read_answer(connection.makefile("rb"))[0], 400)


class BodyTest(HttpCase):

    def test_an_ambiguous_length_is_refused(self):
        for line in (b"Content-Length: +5", b"Content-Length: -1", b"Content-Length: 0x5", b"Content-Length: 0_5",
                     b"Content-Length: 5, 5", b"Content-Length: \xb2", b"Content-Length: " + b"9" * 20000,
                     b"Content-Length: ", b"Content-Length: 5 5", b"Content-Length: 5.0",
                     b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5\r\nContent-Length: 6",
                     b"Content-Length: 5\r\nTransfer-Encoding: chunked",
                     b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Content-Length : 5"):
            with self.subTest(line=line[:60]):
                self.assertRefused(post(b"true\n", line))

    def test_a_length_beside_a_transfer_coding_is_refused(self):
        body = b"5\r\ntrue\n\r\n0\r\n\r\n"
        coding, length = b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body)
        for line in (length + b"\r\n" + coding, coding + b"\r\n" + length, b"Content-Length: 0\r\n" + coding,
                     coding + b"\r\n" + coding, coding + b"\r\nTransfer-Encoding: identity"):
            with self.subTest(line=line):
                self.assertRefused(post(body, line))

    def test_an_unknown_transfer_coding_is_refused(self):
        for coding in (b"gzip", b"gzip, chunked", b"chunked, gzip", b"xchunked", b""):
            self.assertRefused(post(b"true\n", b"Transfer-Encoding: " + coding), 501)
        self.assertRefused(post(b"5\r\ntrue\n\r\n0\r\n\r\n", b"Transfer-Encoding: chunked", version=b"HTTP/1.0"))

    def test_a_script_without_a_length_is_refused(self):
        before = self.count()
        self.assertEqual(self.exchange(post(b""))[0][0], 411)
        data = self.server.raw(post(b"") + post(b"Content-Length: 4\r\n") + b"true")     # which is not read as a request
        self.assertEqual(data.count(b"HTTP/1.1 "), 1)
        self.assertEqual(self.count(), before)

    def test_a_body_that_is_cut_short_runs_nothing(self):
        marker = self.server.tmp + "/marker"
        before = self.count()
        for data in (post(b"touch " + marker.encode(), b"Content-Length: 5000"),
                     post(b"400\r\ntouch " + marker.encode(), b"Transfer-Encoding: chunked"),
                     post(b"6\r\ntouch \r\n%x\r\n%b\r\n" % (len(marker), marker.encode()), b"Transfer-Encoding: chunked"),
                     post(b"5\r\ntrue\n\r\n0\r\n", b"Transfer-Encoding: chunked"),        # the trailers might go on
                     post(b"5\r\ntrue\n\r\n0\r\nX-Trailer: x\r\n", b"Transfer-Encoding: chunked")):
            self.assertEqual(split_answer(self.server.raw(data, end=True))[0], 400)
        self.assertEqual(self.count(), before)
        self.assertEqual([name for name in self.server.leftovers() if name == "marker"], [])

    def test_a_chunked_body_is_decoded_with_extensions_and_trailers(self):
        body = (b"5;name=value\r\necho \r\n0003\r\nhi;\r\n9;x=\"y\";z\r\necho done\r\n" + b"0" * 30 + b"\r\nX-Trailer: x\r\n\r\n")
        status, _, answer = self.exchange(post(body, b"Transfer-Encoding: Chunked"))[0]
        self.assertEqual((status, json.loads(answer.decode("utf-8"))["jobs"][0]["out"]), (201, "hi\ndone\n"))

    def test_the_next_request_begins_after_the_trailers(self):
        body = b"5\r\ntrue\n\r\n0\r\n%b\r\n"
        data = post(body % b"X-Trailer: x\r\n", b"Transfer-Encoding: chunked") + b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
        self.assertEqual([status for status, _, _ in self.exchange(data, 2)], [201, 200])
        self.assertRefused(post(body % (b"A: b\r\n" * 101), b"Transfer-Encoding: chunked"), 431)

    def test_malformed_chunks_are_refused(self):
        for body in (b"x\r\n", b"-1\r\n", b"+5\r\n", b"0x5\r\ntrue\n\r\n0\r\n\r\n", b"\r\n", b"5\r\ntrue\nXX0\r\n\r\n",
                     b"5\r\ntrue\nXX\r\n0\r\n\r\n", b"5\r\ntrue\n0\r\n\r\n0\r\n\r\n",
                     b"5\ntrue\n\r\n0\r\n\r\n", b"f" * 16 + b"\r\n", b"5_\r\n", b"5 5\r\n", b"5\r\ntrue\n\r\n0\r\nbad trailer\r\n\r\n",
                     b"5;a\rb\r\ntrue\n\r\n0\r\n\r\n", b"5;a\x00b\r\ntrue\n\r\n0\r\n\r\n", b"5;a\x7f\r\ntrue\n\r\n0\r\n\r\n",
                     b"5;" + b"x" * 40000 + b"\r\n", b"5;" + b"x" * 40000,
                     b"5 \r\ntrue\n\r\n0\r\n\r\n", b"5;a=\"b\r\ntrue\n\r\n0\r\n\r\n", b"5;a=\"b\"c\r\ntrue\n\r\n0\r\n\r\n",
                     b"5;=b\r\ntrue\n\r\n0\r\n\r\n", b"5;\r\ntrue\n\r\n0\r\n\r\n"):
            with self.subTest(body=body[:60]):
                self.assertRefused(post(body, b"Transfer-Encoding: chunked"))

    def test_a_trailer_that_frames_the_message_is_refused(self):
        for name in (b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Host: y"):
            self.assertRefused(post(b"5\r\ntrue\n\r\n0\r\n%b\r\n\r\n" % name, b"Transfer-Encoding: chunked"))

    def test_a_length_with_many_leading_zeros_is_taken(self):
        self.assertEqual(self.exchange(post(b"true\n", b"Content-Length: " + b"0" * 50 + b"5"))[0][0], 201)
        self.assertEqual(self.exchange(post(b"0" * 50 + b"5\r\ntrue\n\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"))[0][0], 201)

    def test_a_client_that_expects_100_gets_it_before_its_body_is_read(self):
        with self.server.connect() as connection:
            connection.sendall(post(b"", b"Content-Length: 7", b"Expect: 100-continue"))
            file = connection.makefile("rb")
            self.assertEqual(file.readline(), b"HTTP/1.1 100 Continue\r\n")
            self.assertEqual(file.readline(), b"\r\n")
            connection.sendall(b"echo hi")
            status, _, body = read_answer(file)
        self.assertEqual((status, json.loads(body.decode("utf-8"))["jobs"][0]["out"]), (201, "hi\n"))

    def test_a_client_that_expects_100_with_a_wrong_secret_gets_401(self):
        answer = self.server.raw(b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: bad\r\nContent-Length: 7\r\n"
                                 b"Expect: 100-continue\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)

    def test_a_client_of_http_1_0_gets_no_100(self):
        """It would take it for the answer: RFC 9110, 15.2."""
        raw = self.server.raw(post(b"echo hi", b"Content-Length: 7", b"Expect: 100-continue", version=b"HTTP/1.0"))
        self.assertEqual(split_answer(raw)[0], 201)

    def test_an_unwanted_body_is_never_taken_for_a_request(self):
        body = b"DELETE /jobs HTTP/1.1\r\n" + AUTH + b"\r\n"
        number = self.server.start("true")
        for path in (b"/ping", b"/jobs", b"/nothing"):
            head = b"GET %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (path, AUTH, len(body))
            raw = self.server.raw(head + body + b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            self.assertNotIn(b"HTTP/1.1 204", raw)
            self.assertLessEqual(raw.count(b"HTTP/1.1 "), 2)
        self.assertNotEqual(self.server.get("/jobs/%d" % number).status, 404)

    def test_a_large_unwanted_body_is_not_read(self):
        for framing in (b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3b9aca00\r\n"):
            for path in (b"/ping", b"/jobs"):
                _, headers, _ = self.exchange(b"GET %b HTTP/1.1\r\n%b%b" % (path, AUTH, framing))[0]
                self.assertEqual(headers["connection"], "close")

    def test_a_client_that_expects_100_and_gets_an_error_is_disconnected(self):
        for path in (b"/nothing", b"/jobs?nonsense"):
            answer = self.server.raw(post(b"", b"Content-Length: 7", b"Expect: 100-continue", path=path))
            self.assertEqual(split_answer(answer)[1]["connection"], "close")
            self.assertNotIn(b"100 Continue", answer)

    def test_a_413_comes_before_the_body_is_read(self):
        for more in ((), (b"Expect: 100-continue",)):
            self.assertRefused(post(b"", b"Content-Length: 17000000", *more), 413)

    def test_a_401_comes_before_the_body_is_read_and_the_body_is_never_a_request(self):
        body = b"POST /jobs HTTP/1.1\r\n" + AUTH + b"Content-Length: 4\r\n\r\ntrue"
        self.assertRefused(b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), 401)
        with self.server.connect() as connection:       # the body does not come at all
            connection.sendall(b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            self.assertEqual(read_answer(connection.makefile("rb"))[0], 401)

    def test_a_client_that_sends_a_large_body_sees_why_it_is_refused(self):
        before = self.count()
        for path, headers, size, status in (("/jobs", {}, 12 << 20, 401), ("/jobs", {"Rtot-Secret": SECRET}, (16 << 20) + 1, 413),
                                            ("/jobs", {"Rtot-Secret": "wrong"}, 12 << 20, 401),
                                            ("/jobs?nonsense", {"Rtot-Secret": SECRET}, 60 << 20, 400)):
            answer = self.server.post(path, b"x" * size, headers=headers, secret=False)
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
            self.assertEqual(read_answer(connection.makefile("rb"))[0], 201)

    def test_closes_when_the_client_asks_for_it(self):
        for data in (b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET /ping HTTP/1.0\r\n\r\n",
                     b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n"):
            self.assertEqual(split_answer(self.server.raw(data))[0], 200)

    def test_a_client_that_has_half_closed_gets_its_answer(self):
        for headers, status in ((b"Host: x\r\n", 401), (AUTH, 200)):
            data = b"GET / HTTP/1.1\r\n" + headers + b"\r\n"
            self.assertEqual(split_answer(self.server.raw(data, end=True))[0], status)

    def test_the_connection_of_a_client_of_http_1_0_is_closed_whatever_it_asks_for(self):
        """RFC 9112, 9.3: to keep it is up to the server; the end of a stream is that of its connection."""
        number = self.server.run("echo hello")["id"]
        for query in (b"", b"?follow"):
            data = b"GET /jobs/%d/out%b HTTP/1.0\r\nConnection: keep-alive\r\n%b\r\n" % (number, query, AUTH)
            status, headers, body = split_answer(self.server.raw(data))
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

    def test_an_answer_is_sent_in_one_piece_and_without_delay(self):
        """With Nagle's algorithm and two sends, an answer on a kept connection took 44 ms."""
        with self.server.connect() as connection:
            for _ in range(20):
                connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertRegex(connection.recv(65536), b"(?s)^HTTP/1.1 200 .*\r\n\r\n{.*}\n$")
        number, seconds = self.server.run("head -c 200000 /dev/zero", fields="")["id"], []
        with contextlib.closing(self.server.client()) as client:        # a large answer takes more than one send
            for _ in range(15):
                began = time.monotonic()
                self.server.get("/jobs/%d/out" % number, client=client)
                seconds.append(time.monotonic() - began)
        self.assertLess(sorted(seconds)[7], 0.04)

    def test_takes_hundreds_of_connections_at_once(self):
        """A backlog of 5 made 200 of them take a second, or fail; while the server is stopped, all of them have to wait there."""
        if int(read_text("/proc/sys/net/core/somaxconn")) < 500:
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

    def test_a_client_that_resets_its_connection_does_no_harm(self):
        for _ in range(20):
            connection = self.server.connect()
            connection.sendall(post(b"echo hi", b"Content-Length: 7")[:-3])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        self.server.settle()
        self.assertEqual(self.server.get("/ping").status, 200)


class SilentTest(ServerCase):
    """Clients that do not read, do not stop or are cut off."""
    more = {"program": patched("rtot.SEND_TIMEOUT, rtot.LINGER = 0.3, 0.5")}

    def test_a_client_that_reads_nothing_for_too_long_is_disconnected(self):
        number = self.server.run("head -c 30000000 /dev/zero", fields="")["id"]
        with self.server.send(b"GET /jobs/%d/out HTTP/1.1\r\n%b\r\n" % (number, AUTH)) as connection:
            self.assertRegex(connection.recv(100), b"^HTTP/1.1 200 ")
            wait_until(lambda: self.server.connections() == 0)
        with self.server.send(b"GET /jobs/%d/out HTTP/1.1\r\n%b\r\n" % (number, AUTH)) as connection:
            with self.assertRaises(OSError):        # what it sends meanwhile makes no difference
                deadline = time.monotonic() + support.LIMIT
                while time.monotonic() < deadline:
                    connection.sendall(b"x")
                    time.sleep(0.05)        # between two bytes
        self.server.delete("/jobs/%d" % number)

    def test_a_client_that_goes_on_sending_is_not_read_for_ever(self):
        """Its answer is followed by a wait for its end, so that a reset does not overtake the answer (RFC 9112, 9.6)."""
        head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        with self.server.send(head) as connection:      # it neither sends nor closes
            self.assertEqual(read_answer(connection.makefile("rb"))[0], 401)
            wait_until(lambda: self.server.connections() == 0)
        with self.server.send(head) as connection, self.assertRaises(OSError):      # it sends as fast as it can
            deadline = time.monotonic() + support.LIMIT
            while time.monotonic() < deadline:
                connection.sendall(b"x" * (1 << 20))
        with self.server.send(head) as connection, self.assertRaises(OSError):      # a byte now and then
            deadline = time.monotonic() + support.LIMIT
            while time.monotonic() < deadline:
                connection.sendall(b"x")
                time.sleep(0.05)        # between two bytes

    @unittest.skipUnless(support.LINUX, "needs Linux's /proc/net/tcp")
    def test_a_client_that_is_cut_off_is_noticed_within_two_minutes(self):
        """A follower of a quiet job behind a broken link stayed for two hours."""
        with self.server.send(PING) as connection:
            read_answer(connection.makefile("rb"))
            ends = ["0100007F:%04X" % port for port in (self.server.port, connection.getsockname()[1])]
            (timer,) = [line.split()[5] for line in read_text("/proc/net/tcp").split("\n")[1:] if line.split()[1:3] == ends]
        active, _, left = timer.partition(":")
        self.assertEqual(active, "02")      # the keepalive timer: proc(5), /proc/net/tcp
        self.assertLessEqual(int(left, 16) / os.sysconf("SC_CLK_TCK"), 120)


class AcceptTest(ServerCase):

    def test_accepting_goes_on_after_a_lack_and_takes_no_cpu_meanwhile(self):
        """A connection that waits to be accepted stays readable: without a pause the loop would spin."""
        before = ("import errno, os, socket\naccept = socket.socket.accept\n"
                  "def fail(self):\n"
                  "    path = os.path.join(os.environ['TMPDIR'], 'lack')\n"
                  "    if os.path.exists(path):\n"
                  "        with open(path) as file: name = file.read()\n"
                  "        raise MemoryError if name == 'memory' else OSError(getattr(errno, name), name)\n"
                  "    return accept(self)\n"
                  "socket.socket.accept = fail")
        server = self.own_server(program=patched(before=before))
        path = os.path.join(server.tmp, "lack")
        for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "memory", "ECONNABORTED"):
            with open(path, "w") as file:
                file.write(name)
            with contextlib.closing(server.send(PING)) as connection:
                cpu = server.cpu()
                time.sleep(0.2)         # a span in which next to nothing may be done, not a wait for something
                if name != "ECONNABORTED":
                    self.assertLess(server.cpu() - cpu, 0.12, name)
                os.unlink(path)
                self.assertEqual(read_answer(connection.makefile("rb"))[0], 200, name)

    def test_little_is_taken_of_clients_without_the_secret(self):
        server = self.own_server()
        server.get("/jobs")
        before = server.rss()
        request = b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: wrong\r\nContent-Length: 600000\r\n\r\n" + bytes(600000)
        for _ in range(100):
            connection = server.connect()
            self.addCleanup(connection.close)
            connection.setblocking(False)
            connection.send(request)
        wait_until(lambda: server.connections() >= 100)
        highest, until = before, time.monotonic() + rtot.WRONG_SECRET
        while time.monotonic() < until:
            highest = max(highest, server.rss())
            time.sleep(0.02)
        self.assertLess(highest - before, 15 << 20)

    def test_a_client_for_which_there_is_no_room_gets_a_503_without_an_import(self):
        """There may be no descriptor to import a module with."""
        server = self.own_server("--max-connections", "1", program=patched(after="sys.modules['json'] = None"))
        with contextlib.closing(server.connect()) as first:
            wait_until(lambda: server.connections() == 1)
            with contextlib.closing(server.connect()):
                status, headers, body = read_answer(first.makefile("rb"))
        self.assertEqual((status, headers["retry-after"]), (503, "1"))
        self.assertEqual(json.loads(body.decode())["error"], "service unavailable")
        wait_until(lambda: re.search("(?m) 127.0.0.1 - - 503 [0-9]+ ", server.log()))
        self.assertNotIn("Traceback", server.log())

    def test_strangers_leave_descriptors_to_jobs_and_scripts(self):
        server = self.own_server(wrapper=support.limited("-n 64"))
        for _ in range(400):
            connection = server.connect()
            self.addCleanup(connection.close)
        self.assertEqual([server.run("echo hi", "tty")["out"] for _ in range(3)], ["hi\r\n"] * 3)
        wait_until(lambda: len(re.findall(" 503 ", server.log())) >= 360)
        self.assertLessEqual(server.connections(), 32)

    def test_a_thousand_idle_connections_keep_nobody_out(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2000:
            self.skipTest("needs 2000 descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        idle = []
        for _ in range(1100):
            idle.append(self.server.connect())
            self.addCleanup(idle[-1].close)
        wait_until(lambda: self.server.connections() > 900)
        self.assertEqual(self.server.run("echo hi")["out"], "hi\n")
        self.assertLessEqual(self.server.connections(), 1000)


class CapTest(HttpCase):
    options = ("--max-connections", "5")

    def test_an_idle_connection_is_closed_for_a_new_one(self):
        idle = []
        for _ in range(5):
            connection = self.server.connect()
            self.addCleanup(connection.close)
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
            read_answer(connection.makefile("rb"))
            idle.append(connection)
        with contextlib.closing(self.server.connect()) as new:
            new.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual(read_answer(new.makefile("rb"))[0], 200)
            closed, _, _ = select.select(idle, [], [], support.LIMIT)
            self.assertEqual([connection.recv(1) for connection in closed], [b""])
            for connection in set(idle) - set(closed):
                connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertEqual(read_answer(connection.makefile("rb"))[0], 200)

    def connected(self, data=PING):
        """Return a connection on which a request has been answered."""
        connection = self.server.send(data)
        self.addCleanup(connection.close)
        read_answer(connection.makefile("rb"))
        return connection

    def assertClosed(self, closed, others):
        """Assert that the one is closed and the others are served."""
        select.select([closed], [], [], support.LIMIT)
        self.assertEqual(closed.recv(1), b"")
        for connection in others:
            connection.sendall(PING)
            self.assertEqual(read_answer(connection.makefile("rb"))[0], 200)

    def test_the_connection_that_has_been_idle_for_longest_is_closed(self):
        idle = [self.connected() for _ in range(5)]
        idle[0].sendall(PING)       # it is not the one that has been idle for longest any more
        read_answer(idle[0].makefile("rb"))
        self.server.settle(5)
        self.connected()
        self.assertClosed(idle[1], idle[2:] + idle[:1])

    def test_a_client_with_the_secret_is_closed_after_those_without(self):
        known = [self.connected(b"GET /jobs HTTP/1.1\r\n" + AUTH + b"\r\n") for _ in range(3)]
        strangers = [self.connected() for _ in range(2)]
        self.server.settle(5)
        for stranger in strangers:
            self.connected(b"GET /jobs HTTP/1.1\r\n" + AUTH + b"\r\n")
            self.assertClosed(stranger, known)

    def test_a_crowd_of_new_connections_closes_none_of_a_client_with_the_secret(self):
        known = [self.connected(b"GET /jobs HTTP/1.1\r\n" + AUTH + b"\r\n") for _ in range(2)]
        self.server.settle(2)
        crowd = [self.server.connect() for _ in range(30)]
        self.assertEqual(read_answer(crowd[0].makefile("rb"))[0], 503)
        for connection in known:
            connection.sendall(PING)
            self.assertEqual(read_answer(connection.makefile("rb"))[0], 200)
        for connection in crowd:
            connection.close()

    def test_a_connection_that_is_closed_before_its_answer_gets_503_and_runs_nothing(self):
        before = self.count()
        number = self.server.start("sleep 99")
        self.server.settle()
        followers = [support.Follower(self.server, "/jobs/%d/out?follow" % number) for _ in range(4)]
        head = b"POST /jobs HTTP/1.1\r\n" + AUTH + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        for sent in (b"", head[:50]):
            self.server.settle(4)
            with self.server.connect() as first, self.server.connect() as second:
                first.sendall(sent)
                second.sendall(head)
                status, headers, _ = split_answer(support.read_all(first))
                self.assertEqual((status, headers["retry-after"]), (503, "1"))
                self.assertRegex(second.recv(100), b"^HTTP/1.1 100 ")       # it has sent the secret, so it stays
                self.assertRegex(self.server.raw(b""), b"^HTTP/1.1 503 ")
                second.sendall(b"true")
                self.assertRegex(support.read_all(second), b"^HTTP/1.1 201 ")
        self.server.delete("/jobs/%d" % number)
        for follower in followers:
            follower.finish()
        self.server.settle()
        self.assertEqual(self.count(), before + 2)
        self.server.delete("/jobs")

    def test_a_client_without_the_secret_keeps_out_no_client_with_it(self):
        """Neither by a head or a body that never ends, nor by answers that it does not read."""
        page = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n"
        for data in (b"GET /pi", b"GET /ping HTTP/1.1\r\nHost: x\r\n", b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
                     page * 1000):
            self.fill(data, b"\r\n\r\n" in data)
            for _ in range(5):
                self.assertEqual(self.server.get("/").status, 200, data[:100])

    def test_a_client_that_has_been_answered_keeps_out_nobody(self):
        """Neither by not closing, nor by a body that never comes."""
        for headers in (AUTH + b"Connection: close\r\n", b"Host: x\r\nContent-Length: 60000\r\n"):
            self.fill(b"GET /jobs HTTP/1.1\r\n%b\r\n" % headers, True)
            for _ in range(5):
                self.assertEqual(self.server.get("/").status, 200, headers)

    def fill(self, data, answered):
        """Take all places with connections that send this and read at most a byte of an answer."""
        for _ in range(5):
            connection = socket.socket()
            self.addCleanup(connection.close)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)    # or the kernel would take megabytes
            connection.connect(("127.0.0.1", self.server.port))
            connection.sendall(data)
            if answered:
                connection.recv(1)
        wait_until(lambda: self.server.is_asleep() and self.server.is_asleep())

    def test_a_new_connection_gets_503_when_all_are_busy(self):
        self.server.settle()
        number = self.server.start("sleep 99")
        pid = wait_until(lambda: self.server.job(number)["pid"])
        self.server.settle()
        followers = [support.Follower(self.server, "/jobs/%d/out?follow" % number) for _ in range(5)]
        status, headers, body = split_answer(self.server.raw(b""))
        self.assertEqual((status, headers["retry-after"]), (503, "1"))
        self.assertIn(b"all connections are in use", body)
        os.killpg(pid, signal.SIGKILL)      # no request can: all connections are in use
        for follower in followers:
            follower.finish()
        self.server.settle()
        self.server.delete("/jobs/%d" % number)


class SlowTest(ServerCase):
    """Clients that are too slow, against servers whose times are one second."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.idle = support.Server("--idle-timeout", "1").ready()

    @classmethod
    def tearDownClass(cls):
        cls.idle.close()
        super().tearDownClass()

    options = ("--head-timeout", "1", "--body-timeout", "1")

    def drip(self, first, drop, seconds):
        """Send `first`, then a drop every 0.2 s; return the answer, or None after `seconds`, and how long it took."""
        with self.server.connect() as connection:
            began = time.monotonic()
            connection.sendall(first)
            connection.settimeout(0.2)
            while time.monotonic() - began < seconds:
                try:
                    return connection.recv(1000), time.monotonic() - began
                except socket.timeout:
                    if drop:
                        connection.sendall(drop)
            return None, seconds

    def test_a_body_that_is_refused_has_a_deadline(self):
        number = self.server.run("true", "stdin")["id"]
        request = b"POST /jobs/%d/stdin HTTP/1.1\r\n%bContent-Length: 100\r\n\r\nabc" % (number, AUTH)
        self.assertIn(b" 409 ", self.server.raw(request))       # which returns when the server closes
        self.server.delete("/jobs")

    def test_a_head_of_blanks_takes_no_longer_than_another(self):
        """A value was searched for from each of its blanks: 32,000 took 3 s, in which nobody else was served."""
        began = time.process_time()
        for value in (b" " * 32000 + b"\x01", b"\t " * 16000 + b"\x01"):
            with self.assertRaises(rtot.Error):
                rtot.parse_headers(b"A:" + value + b"\r\n")
        self.assertLess(time.process_time() - began, 1)

    def test_a_head_is_looked_at_by_the_line_however_slowly_it_comes(self):
        """It was parsed at each byte: 10 clients without the secret kept a processor busy with 32 KB each."""
        after = ("import os\nreal, path = rtot.parse_head.__wrapped__, os.path.join(os.environ['TMPDIR'], 'parsed')\n"
                 "def count(head):\n"
                 "    with open(path, 'ab') as file: file.write(b'.')\n"
                 "    return real(head)\n"
                 "rtot.parse_head.__wrapped__ = count")
        server = self.own_server(program=patched(after))
        with server.connect() as connection:
            for piece in (b"GET /ping HTTP/1.1\r\nHost: x\r\nA: ", *[b"b"] * 20, b"\r\n", *[b"B"] * 20, b": b\r\n\r\n"):
                connection.sendall(piece)
                wait_until(lambda: server.is_asleep() and server.is_asleep())
            self.assertRegex(connection.recv(1000), b"^HTTP/1.1 200 ")
        self.assertLessEqual(os.path.getsize(os.path.join(server.tmp, "parsed")), 3)

    def test_a_head_has_one_deadline_however_slowly_it_comes(self):
        def drip(parts):
            return self.drip(parts[0], parts[1], support.LIMIT)
        for answer, seconds in in_parallel(drip, ((b"G", b"E"), (b"GET /ping HTTP/1.1\r\n", b"A: b\r\n"),
                                                  (b"GET /ping HTTP/1.1\r\nA: ", b"x"))):
            self.assertTrue(answer.startswith(b"HTTP/1.1 408 "), answer)
            self.assertGreater(seconds, 0.9)

    def test_a_body_must_make_progress(self):
        head = b"POST /jobs HTTP/1.1\r\n" + AUTH + b"Content-Length: 100\r\n\r\ntouch "
        slow, stuck = in_parallel(lambda parts: self.drip(head, *parts), ((b"x", 2), (b"", support.LIMIT)))
        self.assertIsNone(slow[0])       # a byte now and then is progress
        status, headers, _ = split_answer(stuck[0])
        self.assertEqual((status, headers["connection"]), (408, "close"))       # what came later would be a request
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_a_chunked_body_must_make_progress_in_each_of_its_parts(self):
        head = b"POST /jobs HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\n"
        connections = [self.server.send(head + body) for body in (b"", b"5", b"5\r\ntr", b"5\r\ntrue\n", b"5\r\ntrue\n\r\n0\r\n")]
        for connection in connections:
            self.assertRegex(connection.recv(1000), b"^HTTP/1.1 408 ")
            connection.close()
        self.assertEqual(self.server.get("/jobs").jobs, [])

    def test_a_chunk_without_its_end_is_refused_at_once(self):
        """On /stdin, which has no timeout, there was no answer until the next newline."""
        number = self.server.start("cat", "stdin")
        with self.server.send(b"POST /jobs/%d/stdin HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n2\r\na\nXX" % (
                number, AUTH)) as connection:
            self.assertRegex(connection.recv(1000), b"^HTTP/1.1 400 ")
        self.server.delete("/jobs")

    def test_input_of_a_job_may_come_as_slowly_as_it_likes(self):
        """A producer that paused for longer than the timeout of a body was cut off."""
        number = self.server.start("cat", "stdin")
        with self.server.send(b"POST /jobs/%d/stdin?eof HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n" % (
                number, AUTH)) as connection:
            connection.settimeout(2)        # twice the timeout of a body
            self.assertRaises(socket.timeout, connection.recv, 1)
            connection.sendall(b"2\r\nb\n\r\n0\r\n\r\n")
            connection.settimeout(support.LIMIT)
            self.assertRegex(connection.recv(1000), b"^HTTP/1.1 204 ")
        self.assertEqual(self.server.job(number, "wait")["out"], "a\nb\n")

    def test_an_idle_connection_is_closed_after_its_time(self):
        connections = [self.idle.connect(), self.idle.send(PING)]
        self.assertRegex(connections[1].recv(1000), b"^HTTP/1.1 200 ")
        for connection in connections:
            self.assertEqual(connection.recv(1), b"")
            connection.close()
