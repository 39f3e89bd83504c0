"""What a job has printed: order, bounds, places."""
import random
import tracemalloc
import unittest

import support  # noqa: F401  finds rtot
import rtot
from rtot import ERR, FOLD, OUT, Output, Reader


def read_all(reader, limit=FOLD):
    parts = []
    while True:
        data = reader.read(limit)
        if not data:
            return b"".join(parts)
        parts.append(data)


def reader_of(output, which=None):
    return Reader(output, which, [stream.start for stream in output.streams])


def tail(output, lines, which, between=lambda: None):
    """Return the place where the last `lines` lines begin; `between` is called at each step to it."""
    at = [0, 0]
    for _ in output.tail(lines, which, at):
        between()
    return at


class OrderTest(unittest.TestCase):

    def test_keeps_the_streams_apart_and_the_log_in_order_of_arrival(self):
        output = Output(1 << 20)
        for stream, data in ((ERR, b"e1 "), (OUT, b"o1 "), (OUT, b"o2 "), (ERR, b"e2 "), (OUT, b"o3 ")):
            output.append(stream, data)
        self.assertEqual(read_all(reader_of(output, OUT)), b"o1 o2 o3 ")
        self.assertEqual(read_all(reader_of(output, ERR)), b"e1 e2 ")
        self.assertEqual(read_all(reader_of(output)), b"e1 o1 o2 e2 o3 ")

    def test_readers_have_places_of_their_own(self):
        output = Output(1 << 20)
        first, second = reader_of(output), reader_of(output)
        output.append(OUT, b"abc")
        self.assertEqual(first.read(2), b"ab")
        self.assertEqual(second.read(9), b"abc")
        output.append(ERR, b"def")
        self.assertEqual(first.read(9), b"cdef")
        self.assertEqual(second.read(9), b"def")
        self.assertEqual(second.read(9), b"")

    def test_agrees_with_a_plain_model_whatever_is_printed_dropped_and_read(self):
        for seed in range(50):
            chance = random.Random(seed)
            limit = chance.choice((1, 7, 100, 5000, 1 << 18))
            output, log = Output(limit), []         # the model: a list of (stream, byte)
            readers = []
            for _ in range(chance.randrange(1, 120)):
                stream = chance.choice((OUT, OUT, ERR))
                data = bytes(bytearray(chance.choice(b"ab\n") for _ in range(chance.choice((1, 3, 50, 3000)))))
                output.append(stream, data)
                log.extend((stream, byte) for byte in bytearray(data))
                if chance.random() < 0.2:
                    readers.append((reader_of(output, chance.choice((OUT, ERR, None))), []))
                for reader, seen in readers:
                    seen.append(reader.read(chance.choice((0, 1, 10, 4000))))
            kept = log[-limit:]
            self.assertEqual(output.end, len(log), seed)
            self.assertEqual(output.start, len(log) - len(kept), seed)
            for which in (OUT, ERR, None):
                expected = bytes(bytearray(byte for stream, byte in kept if which in (None, stream)))
                self.assertEqual(read_all(reader_of(output, which)), expected, seed)
                for lines in (0, 1, 2, 5, 10 ** 6):
                    reader = Reader(output, which, tail(output, lines, which))
                    self.assertEqual(read_all(reader), b"".join(expected.splitlines(True)[-lines:] if lines else []),
                                     (seed, lines))
            for reader, seen in readers:            # who reads on ends where the log ends, with what is left
                seen.append(read_all(reader))
                whole = bytes(bytearray(byte for stream, byte in log if reader.which in (None, stream)))
                self.assertTrue(whole.endswith(seen[-1]), seed)
                if not reader.lost:
                    self.assertTrue(whole.endswith(b"".join(seen)), seed)


class BoundTest(unittest.TestCase):

    def test_drops_the_oldest_in_order_of_the_log_and_counts_it(self):
        output = Output(10)
        output.append(OUT, b"aaaa")
        output.append(ERR, b"bbbb")
        output.append(OUT, b"cccc")
        self.assertEqual(output.start, 2)
        self.assertEqual(read_all(reader_of(output)), b"aabbbbcccc")
        output.append(OUT, b"dddd")
        self.assertEqual(read_all(reader_of(output)), b"bbccccdddd")
        self.assertEqual([stream.start for stream in output.streams], [4, 2])

    def test_a_reader_that_was_left_behind_goes_on_with_what_is_kept_and_knows_how_much_it_lost(self):
        output = Output(10)
        reader = reader_of(output, OUT)
        output.append(OUT, b"0123456789")
        self.assertEqual(reader.read(2), b"01")
        output.append(OUT, b"abcde")
        self.assertEqual(reader.read(99), b"56789abcde")
        self.assertEqual(reader.lost, 3)

    def test_a_line_at_a_time_costs_less_than_twice_its_bytes(self):
        line = b"x" * 49 + b"\n"
        for alternate in (False, True):
            tracemalloc.start()
            output = Output(1 << 30)
            for number in range(200000):
                output.append(number & 1 if alternate else OUT, bytes(line))
            used = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            self.assertLess(used, 2 * output.end, "alternate: %s" % alternate)
            for stream in output.streams:       # folded: each object is also work for who reads
                self.assertLess(len(stream.chunks), 2 * output.end // FOLD)

    def test_what_is_dropped_frees_its_memory(self):
        tracemalloc.start()
        output = Output(1 << 20)
        for number in range(100000):
            output.append(number & 1, b"y" * 400)
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        self.assertLess(used, 2 << 20)

    def test_the_order_of_what_is_dropped_is_dropped_too(self):
        output = Output(1000)
        for number in range(10000):
            output.append(number & 1, b"%03d\n" % (number % 1000))
        self.assertLess(len(output.turns), 1000)        # of 10,000, and 250 are kept
        self.assertEqual(read_all(reader_of(output)), b"".join(b"%03d\n" % number for number in range(750, 1000)))

    def test_keeps_the_order_of_more_than_4_gigabytes_in_8_bytes_a_change(self):
        output = Output(1000)
        output.streams[OUT].start = output.streams[OUT].end = 1 << 40
        for stream, data in ((OUT, b"o1 "), (ERR, b"e1 "), (OUT, b"o2 ")):
            output.append(stream, data)
        self.assertEqual(read_all(reader_of(output)), b"o1 e1 o2 ")
        self.assertEqual(output.turns.itemsize, 8)

    def test_what_is_dropped_while_the_last_lines_are_looked_for_is_not_among_them(self):
        for which in (None, OUT, ERR):
            for dropped in (1, 5, 50, 199, 399):
                output, log = Output(1000), b""
                for number in range(100):
                    output.append(number & 1, b"%02d\n\n" % number)
                    log += b"%02d\n\n" % number * (which in (None, number & 1))
                steps = iter(range(1000))
                at = tail(output, 1000, which, lambda: next(steps) == 20 and output.drop(dropped))
                reader = Reader(output, which, at)
                kept = b"".join(iter(lambda: reader.read(7), b""))
                self.assertTrue(log.endswith(kept), (which, dropped, kept))
                self.assertEqual(len(kept), reader.source.end - reader.source.start)

    def test_a_log_of_many_turns_is_read_and_searched_in_steps(self):
        output = Output(10 ** 6)
        for number in range(5000):
            output.append(number & 1, b"x\n")
        self.assertEqual(len(Reader(output, None, [0, 0]).read(10 ** 6)), 2 * rtot.STEPS)
        self.assertGreater(sum(1 for _ in output.tail(10 ** 6, None, [0, 0])), 4 * rtot.STEPS)

    def test_a_stream_that_changes_at_each_byte_takes_no_more_than_twice_the_limit(self):
        """The turns of 64 MiB of such a log took 512 MiB."""
        output, log = Output(80000), b""
        for number in range(50000):
            log += b"%d" % (number % 10)
            output.append(number & 1, log[-1:])
        self.assertLessEqual(len(output.turns), 10000)
        self.assertGreater(output.end - output.start, 8000)
        reader = Reader(output, None, [0, 0])
        self.assertEqual(b"".join(iter(lambda: reader.read(10 ** 6), b"")), log[output.start:])

    def test_to_drop_many_turns_takes_no_memory(self):
        """It is memory that is wanting when they are dropped: a copy of all ended the server."""
        output = Output(10 ** 7)
        for number in range(100000):
            output.append(number & 1, b"x")
        tracemalloc.start()
        try:
            output.drop(60001)
            self.assertLess(tracemalloc.get_traced_memory()[1], 1000000)
        finally:
            tracemalloc.stop()
        self.assertEqual((output.start, [stream.start for stream in output.streams]), (60001, [30001, 30000]))

    def test_a_reader_is_in_danger_only_when_it_would_lose_something(self):
        output = Output(100)
        behind, ahead = reader_of(output, OUT), reader_of(output, OUT)
        output.append(OUT, b"x" * 80)
        ahead.read(99)
        self.assertFalse(behind.endangered(20))
        self.assertTrue(behind.endangered(21))
        self.assertFalse(ahead.endangered(21))
