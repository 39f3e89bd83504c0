"""Uses one server in all ways at once, for as long as you like; run by hand, prints figures.

    python3 tests/soak.py --seconds 1800
    python3 tests/soak.py --jobs 5000 --clients 4

It exits with 0 when every job had the right output and exit, none was lost and nothing leaked.
"""
import argparse
import collections
import hashlib
import http.client
import json
import os
import random
import sys
import threading
import time

from support import Server, is_alive, read_all, wait_until

KEEP = 500
SLACK = 4               # MiB by which the memory may differ: imports and fragments
SETTLE = 2.0            # s in which the memory goes back to the host


class Wrong(Exception):
    """An answer is wrong."""


def check(condition, *what):
    if not condition:
        raise Wrong(repr(what)[:2000])


class Client(threading.Thread):
    """One client, which does one thing after another by its own random numbers."""

    def __init__(self, server, seed, done):
        super().__init__(daemon=True)
        self.server, self.chance, self.done = server, random.Random(seed), done
        self.figures, self.faults = collections.Counter(), []
        self.connection = server.client()

    def run(self):
        actions = [(getattr(self, name), weight) for name, weight in WEIGHTS.items()]
        population = [action for action, weight in actions for _ in range(weight)]
        while not self.done(self.figures["jobs"]):
            action = self.chance.choice(population)
            try:
                action()
                self.figures[action.__name__] += 1
            except Wrong as error:
                self.faults.append("%s: %s" % (action.__name__, error))
            except (OSError, http.client.HTTPException) as error:
                self.faults.append("%s: %r" % (action.__name__, error))
                self.connection.close()
        self.connection.close()

    def request(self, method, path, body=None, headers=None):
        return self.server.request(method, path, body, headers, client=self.connection)

    def submit(self, script, query=""):
        answer = self.request("POST", "/jobs?fields=all&" + query, script)
        check(answer.status in (201, 202), answer.status, answer.body)
        self.figures["jobs"] += 1
        return answer.job

    def job(self, number, query="wait&fields=all"):
        answer = self.request("GET", "/jobs/%d?%s" % (number, query))
        if answer.status == 404:
            self.figures["lost"] += 1
        check(answer.status in (200, 202), number, answer.status, answer.body)
        return answer.job

    def right(self, job, **expected):
        for name, value in expected.items():
            check(job.get(name) == value, name, value, job)
        self.figures["right"] += 1

    # The actions.

    def short(self):
        word, code = "%x" % self.chance.getrandbits(64), self.chance.choice((0, 0, 1, 7, 255))
        job = self.submit("echo %s; echo e%s >&2; exit %d" % (word, word, code), "wait")
        self.right(job, out=word + "\n", err="e%s\n" % word, exit_code=code, state="complete")

    def polled(self):
        word = "%x" % self.chance.getrandbits(64)
        number = self.submit("sleep 0.0%d; echo %s" % (self.chance.randrange(9), word))["id"]
        while self.job(number, "fields=")["state"] != "complete":
            time.sleep(0.01)
        self.right(self.job(number), out=word + "\n", exit_code=0)

    def flood(self):
        size = self.chance.randrange(1 << 20, 12 << 20)
        job = self.submit("head -c %d /dev/zero | tr '\\0' z" % size, "wait")
        self.right(job, out_bytes=size, dropped=max(0, size - (4 << 20)), exit_code=0)

    def follow(self):
        count = self.chance.randrange(1, 20000)
        job = self.submit("for i in 1 2 3; do seq %d; sleep 0.0%d; done" % (count, self.chance.randrange(9)))
        answer = self.request("GET", "/jobs/%d/out?follow" % job["id"])
        lines = b"".join(b"%d\n" % number for number in range(1, count + 1)) * 3
        check(answer.body == lines, len(answer.body), len(lines))
        self.right(self.job(job["id"], "wait&fields=exit_code"), exit_code=0)

    def vanish(self):
        """Disconnect while following and waiting, and after half a script."""
        number = self.submit("for i in $(seq 20); do echo line $i; sleep 0.01; done")["id"]
        for path in ("/jobs/%d/log?follow", "/jobs/%d?wait", "/jobs/%d/exit?wait"):
            with self.server.connect() as connection:
                connection.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\n\r\n" % (path % number).encode())
                connection.settimeout(0.01 * self.chance.randrange(1, 10))
                try:
                    connection.recv(self.chance.randrange(1, 2000))
                except OSError:
                    pass
            self.figures["cut off"] += 1
        with self.server.connect() as connection:
            connection.sendall(b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nContent-Length: 99\r\n\r\necho never")
        self.figures["cut off"] += 1
        self.right(self.job(number), out="".join("line %d\n" % i for i in range(1, 21)), exit_code=0)

    def kill(self):
        number = self.submit("sleep 98 & echo $!; sleep 99 & echo $!; wait")["id"]
        pids = wait_until(lambda: self.server.out(number).count(b"\n") == 2 and self.server.out(number).split())
        check(self.request("POST", "/jobs/%d/kill" % number).status == 204, number)
        self.right(self.job(number), exit="signal: terminated", exit_code=143)
        wait_until(lambda: not any(is_alive(int(pid)) for pid in pids))

    def time_out(self):
        self.right(self.submit("sleep 99 & sleep 99", "wait&timeout=0.3"), timed_out=True, exit_code=143)

    def delete(self):
        number = self.submit("sleep 99 & sleep 99")["id"]
        pid = wait_until(lambda: self.job(number, "fields=pid")["pid"])
        check(self.request("DELETE", "/jobs/%d" % number).status == 204, number)
        check(self.request("GET", "/jobs/%d" % number).status == 404, number)
        wait_until(lambda: not is_alive(pid))
        self.figures["right"] += 1

    def held(self):
        job = self.submit("sleep 99 & echo left", "wait")
        self.right(job, out="left\n", held=True, exit_code=0)
        check(self.request("POST", "/jobs/%d/kill?signal=KILL" % job["id"]).status == 204, job)

    def terminal(self):
        number = self.submit("read -p 'name? ' name; stty size; echo \"<$name>\"", "tty&rows=30&cols=90")["id"]
        wait_until(lambda: self.server.out(number).endswith(b"name? "))
        check(self.request("POST", "/jobs/%d/stdin" % number, "me\n").status == 204, number)
        self.right(self.job(number), out="name? me\r\n30 90\r\n<me>\r\n", exit_code=0)

    def stdin(self):
        data = os.urandom(self.chance.randrange(1, 300000))
        number = self.submit("sha256sum", "stdin")["id"]
        check(self.request("POST", "/jobs/%d/stdin?eof" % number, data).status == 204, number)
        self.right(self.job(number), out=hashlib.sha256(data).hexdigest() + "  -\n", exit_code=0)

    def refused(self):
        """Send requests that must be refused and run nothing."""
        for data, status in ((b"rubbish\r\n\r\n", 400), (b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ntrue", 401),
                             (b"POST /jobs?x=1 HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nContent-Length: 4\r\n"
                              b"Connection: close\r\n\r\ntrue", 400),
                             (b"POST /jobs HTTP/1.1\r\nHost: x\r\nRtot-Secret: swordfish\r\nContent-Length: 4\r\n"
                              b"Content-Length: 4\r\n\r\ntrue", 400), (b"\x16\x03\x01\x02\x00", 400)):
            with self.server.connect() as connection:
                connection.sendall(data)
                answer = read_all(connection)
            check(answer.startswith(b"HTTP/1.1 %d " % status), data, answer)
            self.figures["refusals"] += 1


WEIGHTS = {"short": 12, "polled": 4, "flood": 1, "follow": 2, "vanish": 2, "kill": 1, "time_out": 1, "delete": 2, "held": 1,
           "terminal": 2, "stdin": 2, "refused": 1}


def state(server):
    """Return what the server holds when everything has ended."""
    for _ in range(8):          # enough that malloc is asked to give back what it keeps
        server.run("head -c 3M /dev/zero", fields="")
    server.delete("/jobs")
    server.settle()
    wait_until(lambda: server.children() == ([], []), "the end of the processes")
    time.sleep(SETTLE)
    directory = [name for name in server.leftovers() if name.startswith("rtot-")]
    return collections.OrderedDict([
        ("descriptors", server.descriptors()), ("connections", server.connections()), ("zombies", len(server.children()[1])),
        ("temporary files", sum(len(os.listdir(os.path.join(server.tmp, name))) for name in directory)),
        ("memory, MiB", round(server.rss() / 2 ** 20, 1))])


def load(server, clients, done, seed):
    threads = [Client(server, seed + number, done) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures, faults = collections.Counter(), []
    for thread in threads:
        figures.update(thread.figures)
        faults.extend(thread.faults)
    return figures, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=0, help="stop after so many, if that is sooner")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    server = Server("--max-output", "4M", "--max-total", "48M", "--keep", str(KEEP)).ready()
    try:
        # What is made once is made now, and the heap is as large as floods make it.
        warm = time.monotonic() + max(5.0, args.seconds / 10)
        load(server, args.clients, lambda jobs: time.monotonic() > warm, args.seed)
        before, began = state(server), time.monotonic()
        end = began + args.seconds
        figures, faults = load(server, args.clients, lambda jobs: time.monotonic() > end or (
            args.jobs and jobs >= args.jobs / args.clients), args.seed + 1000)
        elapsed = time.monotonic() - began
        after = state(server)
    finally:
        server.stop()
        log = server.log()
        server.close()
    print("python %s, %d s, %d clients, %.0f jobs/s, CPU times are the machine's" % (
        sys.version.split()[0], elapsed, args.clients, figures["jobs"] / elapsed))
    for name in ("jobs", "right", "lost", "refusals", "cut off"):
        print("%-16s %d" % (name, figures[name]))
    print("%-16s %s" % ("of each kind", json.dumps({name: figures[name] for name in WEIGHTS})))
    for name in before:
        print("%-16s %s before, %s after" % (name, before[name], after[name]))
    leaked = [name for name in before if after[name] > before[name] + (SLACK if name.startswith("memory") else 0)]
    for fault in faults[:20]:
        print("FAULT " + fault)
    if "Traceback" in log:
        print("FAULT in the server: " + log[log.index("Traceback"):][:3000])
    print("leaked: " + (", ".join(leaked) or "nothing"))
    return 1 if faults or leaked or figures["lost"] or "Traceback" in log else 0


if __name__ == "__main__":
    sys.exit(main())
