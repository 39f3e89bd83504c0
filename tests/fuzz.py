"""Sends malformed requests to a server on which nothing may run; run by hand, for as many cases as you like.

    python3 tests/fuzz.py --cases 1000000 --seed 1
"""
import argparse
import json
import os
import random
import re
import sys
import time

from support import AUTH, SECRET, Server, split_answer, wait_until

KEY = AUTH.partition(b"\r\n")[2].rstrip(b"\r\n")
VALID = [
    b"POST /jobs HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"POST /jobs?arg=a%20b&env=A=b HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\ntouch\r\n6\r\n wrong\r\n0\r\nX-Trailer: x\r\n\r\n",
    b"POST /jobs HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"POST /jobs HTTP/1.0\r\nAuthorization: Bearer " + SECRET.encode("ascii") + b"\r\nContent-Length: 11\r\n\r\ntouch wrong",
    b"GET /jobs/0?fields=all&wait=0 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nConnection: keep-alive\r\n\r\n",
    b"GET /jobs/0/out?tail=3 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nRange: bytes=0-\r\n\r\n",
    b"GET /jobs/0/log?json&from=0 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n",
    b"GET /jobs/last?text&fields=id,state HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\nGET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /jobs HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nAccept: */*\r\nUser-Agent: curl/8.0\r\n\r\n",
    b"POST /jobs/0/stdin?eof=1 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\nContent-Length: 3\r\n\r\nabc",
    b"PUT /jobs?state=complete HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n",
    b"GET http://x/jobs?label=%C3%A9 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n",
]
NASTY = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\r\n ", b"\r\n\r\n", b"%", b"%00", b"%2f", b"?", b"#", b"&", b"=", b"..",
         b"//", b"-1", b"+5", b"0x10", b"99999999999999999999", b"\xb2", b"\xff", b"\xc3\xa9", b"chunked", b"identity",
         b"Content-Length: 0\r\n", b"Content-Length: 11\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"HTTP/0.9",
         b"HTTP/9.9", b"Expect: 100-continue\r\n", b"Host: y\r\n", b"0\r\n\r\n", b"\x16\x03\x01", b"A" * 300, b"bytes=-", b"bytes=9-1"]


def case(chance):
    """Return the bytes of one case: noise, or one or two valid requests with some mutations."""
    if chance.random() < 0.1:
        return bytes(bytearray(chance.getrandbits(8) for _ in range(chance.randrange(1, 200))))
    data = bytearray(chance.choice(VALID))
    if chance.random() < 0.2:
        data += chance.choice(VALID)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(data) + 1)
        other = min(len(data), place + chance.randrange(1, 20))
        kind = chance.randrange(6)
        if kind == 0 and place < len(data):
            data[place] = chance.getrandbits(8)
        elif kind == 1:
            del data[place:other]
        elif kind == 2:
            data[place:place] = chance.choice(NASTY)
        elif kind == 3:
            data[place:other] = chance.choice(NASTY)
        elif kind == 4:
            data[place:place] = data[place:other] * chance.randrange(1, 4)
        else:
            del data[place:]
    return bytes(data)


class Fuzzer:
    """Sends cases to a server on which nothing can start: a job has its one place, so what it accepts stays new."""

    def __init__(self, seed):
        self.chance, self.seed = random.Random(seed), seed
        self.server = Server("-j", "1", "--max-script", "1M").ready()
        self.accepted = 0
        self.server.start("sleep 100000; exit")
        wait_until(lambda: self.server.job(0)["state"] == "running")
        self.server.settle()
        self.connection = self.server.connect()
        self.ask()
        self.server.settle(1)
        self.descriptors = self.server.descriptors()

    def run(self, cases):
        for number in range(cases):
            data = case(self.chance)
            try:
                self.one(data)
                self.look_around()
                if number % 1000 == 999:
                    self.tidy_up()
            except Exception as error:
                raise AssertionError("seed %d, case %d, %r: %r" % (self.seed, number, data, error)) from error

    def one(self, data):
        """Send a case; what comes back must be answers and nothing else."""
        answer = self.server.raw(data, end=True)
        while answer:
            if answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
                answer = answer[25:]
                continue
            status, headers, rest = split_answer(answer)
            assert re.match(b"HTTP/1.1 [2345][0-9][0-9] [A-Z]", answer) and status != 500, answer
            assert "rtot-version" in headers, answer
            self.accepted += status == 201
            if data.startswith(b"HEAD") or b"HEAD /" in data:       # its length is that of an absent body
                self.accepted += answer.count(b"HTTP/1.1 201 Created") - (status == 201)
                break
            answer = rest[int(headers.get("content-length", 0)):]
            if "transfer-encoding" in headers:          # its chunks are not parsed
                self.accepted += rest.count(b"HTTP/1.1 201 Created")
                break

    def look_around(self):
        """It answers, has a job for each 201 and no other, and holds no more processes and descriptors than before."""
        jobs = self.ask()
        assert jobs["new"] <= self.accepted and jobs["running"] == 1 and not jobs["complete"], (jobs, self.accepted)
        living, zombies = self.server.children()
        assert len(living) == 1 and not zombies, (living, zombies)
        wait_until(lambda: self.server.descriptors() == self.descriptors, "the descriptors as before", pause=0.0002)

    def ask(self):
        """Ask for /ping and /, both at once; return the numbers of jobs by state."""
        self.connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\n}\n") or answer.count(b"HTTP/1.1 ") < 2:
            data = self.connection.recv(65536)
            assert data, answer
            answer += data
        status, headers, rest = split_answer(answer)
        length = int(headers["content-length"])
        assert status == 200 and b"still here" in rest[:length], answer
        status, _, body = split_answer(rest[length:])
        assert status == 200, answer
        return json.loads(body.decode("utf-8"))["jobs"]

    def tidy_up(self):
        self.server.delete("/jobs?state=new")
        self.accepted = 0
        assert "Traceback" not in self.server.log(), self.server.log()[-3000:]
        os.truncate(self.server.log_path, 0)

    def close(self):
        self.connection.close()
        ran = os.path.exists("wrong")       # the file that the scripts of the cases would make
        self.server.close()
        assert not ran, "a script of a case was run"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    fuzzer, began = Fuzzer(args.seed), time.monotonic()
    try:
        fuzzer.run(args.cases)
    finally:
        fuzzer.close()
    print("%d cases of seed %d in %.0f s: nothing found" % (args.cases, args.seed, time.monotonic() - began))


if __name__ == "__main__":
    sys.exit(main())
