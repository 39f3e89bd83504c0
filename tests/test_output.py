"""What a job has printed: its order, its bounds, the memory that it takes."""
import itertools
import os
import random
import signal
import tracemalloc
import types
import unittest

import support  # noqa: F401  finds rtot
import rtot
from rtot import ERR, LOG, OUT, Output
from support import Follower, ServerCase, wait_until


def read_all(output, which, offset=0, limit=1 << 16):
    """Return all that is kept of a stream, or of the log, from an offset on."""
    parts = [b""]
    while parts[-1] or len(parts) == 1:
        offset = max(offset, output.start[which])
        parts.append(output.read(which, offset, limit))
        offset += len(parts[-1])
    return b"".join(parts)


def tail(output, lines, which, between=lambda: None):
    """Return the offset at which the last `lines` lines begin; `between` is called at each step to it."""
    async def turn():
        between()
    search = output.tail(which, lines, turn)
    try:
        while True:
            search.send(None)
    except StopIteration as end:
        return end.value


class OrderTest(unittest.TestCase):

    def test_keeps_the_streams_apart_and_the_log_in_order_of_arrival(self):
        output = Output(1 << 20)
        for stream, data in ((ERR, b"e1 "), (OUT, b"o1 "), (OUT, b"o2 "), (ERR, b"e2 "), (OUT, b"o3 ")):
            output.append(stream, data)
        self.assertEqual(read_all(output, OUT), b"o1 o2 o3 ")
        self.assertEqual(read_all(output, ERR), b"e1 e2 ")
        self.assertEqual(read_all(output, LOG), b"e1 o1 o2 e2 o3 ")

    def test_agrees_with_a_plain_model(self):
        for seed in range(50):
            chance = random.Random(seed)
            limit = chance.choice((1, 7, 100, 5000, 1 << 18))
            output, log = Output(limit), []         # the model: a list of (stream, byte)
            for _ in range(chance.randrange(1, 120)):
                stream = chance.choice((OUT, OUT, ERR))
                data = bytes(bytearray(chance.choice(b"ab\n") for _ in range(chance.choice((1, 3, 50, 3000)))))
                output.append(stream, data)
                log.extend((stream, byte) for byte in bytearray(data))
            kept = log[-limit:]
            self.assertEqual((output.start[LOG], output.end[LOG]), (len(log) - len(kept), len(log)), seed)
            for which in (OUT, ERR, LOG):
                expected = bytes(bytearray(byte for stream, byte in kept if which in (LOG, stream)))
                for size in (1 << 16, 7):
                    self.assertEqual(read_all(output, which, limit=size), expected, seed)
                for lines in (0, 1, 2, 5, 10 ** 6):
                    self.assertEqual(read_all(output, which, tail(output, lines, which)),
                                     b"".join(expected.splitlines(True)[-lines:] if lines else []), (seed, lines))


class BoundTest(unittest.TestCase):

    def test_drops_the_oldest_in_order_of_the_log(self):
        output = Output(10)
        for stream, data in ((OUT, b"aaaa"), (ERR, b"bbbb"), (OUT, b"cccc")):
            output.append(stream, data)
        self.assertEqual((output.start[LOG], read_all(output, LOG)), (2, b"aabbbbcccc"))
        output.append(OUT, b"dddd")
        self.assertEqual(read_all(output, LOG), b"bbccccdddd")
        self.assertEqual(output.start[:2], [4, 2])

    def test_a_line_at_a_time_costs_less_than_twice_its_bytes(self):
        line = b"x" * 49 + b"\n"
        for alternate in (False, True):
            tracemalloc.start()
            output = Output(1 << 30)
            for number in range(50000):
                output.append(number & 1 if alternate else OUT, bytes(bytearray(line)))     # a copy
            used = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            self.assertLess(used, 2 * output.end[LOG], "alternate: %s" % alternate)

    def test_dropped_bytes_free_their_memory(self):
        tracemalloc.start()
        output = Output(1 << 18)
        for number in range(10000):
            output.append(number & 1, b"y" * 400)
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        self.assertLess(used, 1 << 19)

    def test_the_order_of_dropped_bytes_is_dropped_too(self):
        tracemalloc.start()
        output = Output(1000)
        for number in range(40000):
            output.append(number & 1, b"%03d\n" % (number % 1000))
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        self.assertLess(used, 150000)
        self.assertEqual(read_all(output, LOG), b"".join(b"%03d\n" % number for number in range(750, 1000)))

    def test_keeps_the_order_of_more_than_4_gigabytes(self):
        output = Output(1000)
        output.start[:], output.end[:] = ([1 << 40, 0, 1 << 40] for _ in range(2))
        for stream, data in ((OUT, b"o1 "), (ERR, b"e1 "), (OUT, b"o2 ")):
            output.append(stream, data)
        self.assertEqual(read_all(output, LOG), b"o1 e1 o2 ")

    def test_bytes_that_are_dropped_while_the_last_lines_are_searched_are_not_among_them(self):
        for which in (LOG, OUT, ERR):
            for dropped in (1, 5, 50, 199, 399):
                output, log = Output(1000), b""
                for number in range(100):
                    output.append(number & 1, b"%02d\n\n" % number)
                    log += b"%02d\n\n" % number * (which in (LOG, number & 1))
                steps = iter(range(1000))
                at = tail(output, 1000, which, lambda: next(steps) == 0 and output.drop(dropped))
                kept = read_all(output, which, at, limit=7)
                self.assertTrue(log.endswith(kept), (which, dropped, kept))
                self.assertEqual(len(kept), output.end[which] - output.start[which])

    def test_a_log_that_changes_at_each_byte_takes_at_most_some_times_its_limit(self):
        """The order of 64 MiB of such a log took 512 MiB."""
        tracemalloc.start()
        output = Output(80000)
        for number in range(50000):
            output.append(number & 1, b"%d" % (number % 10))
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        log = b"".join(b"%d" % (number % 10) for number in range(50000))
        self.assertLess(used, 4 * 80000)
        self.assertGreater(output.end[LOG] - output.start[LOG], 1000)
        self.assertEqual(read_all(output, LOG), log[output.start[LOG]:])

    def test_small_pieces_do_not_push_out_a_large_one(self):
        """When too many pieces were noted, an eighth of them was dropped: the first was most of the output."""
        for alternate in (False, True):
            output = Output(1 << 20)
            output.append(OUT, b"x" * 500000)
            ms = itertools.count(10 ** 9)
            clock, rtot.time = rtot.time, types.SimpleNamespace(time=lambda ms=ms: next(ms) / 1000)
            try:
                for number in range(40000):
                    output.append(number & 1 if alternate else OUT, b"y\n")
            finally:
                rtot.time = clock
            self.assertLess(output.start[LOG], 300000 if alternate else 1, "alternate: %s" % alternate)
            self.assertEqual(len(read_all(output, LOG)), output.end[LOG] - output.start[LOG])
            self.assertLess(output.cost, 2 << 20)

    def test_dropping_takes_no_memory(self):
        """Output is dropped when memory is short; a copy of all changes ended the server."""
        tracemalloc.start()
        try:
            output = Output(10 ** 7)
            for number in range(30000):
                output.append(number & 1, b"x")
            before = tracemalloc.get_traced_memory()[0]
            output.drop(18001)
            self.assertLess(tracemalloc.get_traced_memory()[1] - before, 200000)
        finally:
            tracemalloc.stop()
        self.assertEqual(output.start, [9001, 9000, 18001])


class ShareTest(ServerCase):
    options = ("--max-output", "100K", "--max-total", "250K")

    def setUp(self):
        self.addCleanup(lambda: self.server.delete("/jobs"))

    def dropped(self, *numbers):
        return [self.server.job(number)["dropped"] for number in numbers]

    def test_a_deleted_job_gives_its_share_back(self):
        first, second = [self.server.run("head -c 100000 /dev/zero")["id"] for _ in range(2)]
        self.server.delete("/jobs/%d" % second)      # the oldest would be the first to pay
        third = self.server.run("head -c 100000 /dev/zero")["id"]
        self.assertEqual(self.dropped(first, third), [0, 0])

    def test_the_job_that_printed_longest_ago_pays(self):
        first = self.server.start("head -c 50000 /dev/zero; read line; head -c 50000 /dev/zero", "stdin")
        self.server.wait_for_out(first, b"\0" * 50000)
        second = self.server.run("head -c 100000 /dev/zero")["id"]
        self.server.post("/jobs/%d/stdin" % first, "\n")
        self.server.get("/jobs/%d?wait" % first)
        third = self.server.run("head -c 100000 /dev/zero")["id"]
        self.assertEqual(self.dropped(first, second, third), [0, 300000 - 250 * 1024, 0])

    def test_output_of_a_deleted_job_takes_no_share(self):
        kept = self.server.run("head -c 100000 /dev/zero")["id"]
        fifo = os.path.join(self.server.tmp, "fifo")
        os.mkfifo(fifo)
        self.addCleanup(os.unlink, fifo)
        for _ in range(2):
            job = self.server.run("(read line < %s; head -c 100000 /dev/zero; exec sleep 99) & echo $!" % fifo)
            pid = int(job["out"])
            self.addCleanup(os.kill, pid, signal.SIGKILL)
            self.server.delete("/jobs/%d" % job["id"])
            with open(fifo, "w") as file:
                file.write("\n")

            def printed():
                with open("/proc/%d/cmdline" % pid, "rb") as file:
                    return file.read().startswith(b"sleep")
            wait_until(printed)
        self.assertEqual(self.dropped(kept), [0])

    def test_a_job_that_is_forgotten_for_another_gives_its_share_back(self):
        server = self.own_server("--keep", "1", *self.options)
        for _ in range(5):
            job = server.run("head -c 100000 /dev/zero")
        self.assertEqual((len(server.get("/jobs").jobs), job["dropped"]), (1, 0))


class LimitTest(ServerCase):
    options = ("--max-output", "100K", "--max-total", "250K")

    def test_drops_the_oldest_output_of_a_job_and_counts_it(self):
        job = self.server.run("seq 100000", fields="dropped,out_bytes,exit_code,out")
        whole = "".join("%d\n" % number for number in range(1, 100001))
        self.assertEqual((job["out_bytes"], job["dropped"]), (len(whole), len(whole) - 102400))
        self.assertEqual(job["out"], whole[-102400:])
        answer = self.server.get("/jobs/%d/out" % job["id"])
        self.assertEqual(answer.headers["rtot-dropped"], str(job["dropped"]))
        self.assertEqual(len(answer.body), 102400)

    def test_drops_the_output_printed_longest_ago_of_all_jobs(self):
        first, second, third = [self.server.run("head -c 100000 /dev/zero")["id"] for _ in range(3)]
        dropped = [self.server.job(number)["dropped"] for number in (first, second, third)]
        self.assertEqual(dropped, [300000 - 250 * 1024, 0, 0])


class LittleTest(ServerCase):
    options = ("--max-output", "20")

    def test_no_job_is_held_because_little_is_kept(self):
        """When as little was read at a time, the pipes of many took longer to empty than a job waits for its output."""
        numbers = [self.server.start("sleep 0.5; seq 20000") for _ in range(100)]
        whole = sum(len("%d\n" % number) for number in range(1, 20001))
        for number in numbers:
            job = self.server.job(number, "wait&fields=out,out_bytes,held")
            self.assertEqual((job["out_bytes"], job["held"], len(job["out"])), (whole, False, 20))

    def test_the_client_that_follows_gets_all_that_is_not_kept(self):
        follower = Follower(self.server, "/jobs?follow", "POST", "seq 3000")
        self.assertEqual(follower.finish(), b"".join(b"%d\n" % number for number in range(1, 3001)))

    def test_a_flood_is_bounded_and_the_job_goes_on(self):
        number = self.server.start("yes", "")
        wait_until(lambda: self.server.job(number, "fields=out_bytes")["out_bytes"] > 100 << 20)
        self.assertLess(self.server.rss(), 64 << 20)
        job = self.server.job(number, "fields=dropped,out_bytes,state")
        self.assertEqual(job["state"], "running")
        self.assertLessEqual(job["out_bytes"] - job["dropped"], 20)
        self.server.delete("/jobs/%d" % number)
