"""A job's record, its lifecycle and how it is shown; the store of jobs."""
import collections
import json
import threading
import time
import tracemalloc
import unittest

import support  # noqa: F401  finds rtot
import rtot
from rtot import DEFAULT_FIELDS, OUT, PLAIN, STATES, VIEW, Job, JobStore, go_duration, go_time


def new_job(script=b"#!/bin/sh\n", number=0):
    job = Job(script, PLAIN, 1 << 20)
    job.id = number
    return job


class GoTest(unittest.TestCase):

    def test_times_are_shown_as_go_shows_them(self):
        for ns, text in ((0, "0001-01-01 00:00:00 +0000 UTC"),
                         (1389498152314152969, "2014-01-12 03:42:32.314152969 +0000 UTC"),
                         (1389498152314000000, "2014-01-12 03:42:32.314 +0000 UTC"),
                         (1389498152000000001, "2014-01-12 03:42:32.000000001 +0000 UTC"),
                         (1389498150000000000, "2014-01-12 03:42:30 +0000 UTC")):
            self.assertEqual(go_time(ns), text)

    def test_durations_are_shown_as_go_shows_them(self):
        for seconds, text in ((0, "0s"), (1e-9, "1ns"), (1.5e-6, "1.5\u00b5s"), (0.0034, "3.4ms"), (1, "1s"),
                              (2.5, "2.5s"), (60, "1m0s"), (3723.4, "1h2m3.4s"), (3600, "1h0m0s"),
                              (360000, "100h0m0s")):
            self.assertEqual(go_duration(seconds), text)

    def test_signals_are_called_what_go_calls_them(self):
        for number, words in ((9, "killed"), (15, "terminated"), (11, "segmentation fault"), (2, "interrupt"),
                              (6, "aborted"), (13, "broken pipe"), (40, "signal 40")):
            self.assertEqual(rtot.signal_words(number), words)


class LifecycleTest(unittest.TestCase):

    def test_a_job_goes_from_new_to_running_to_complete(self):
        job = new_job()
        self.assertEqual(job.state, "new")
        job.run(42)
        self.assertEqual(job.state, "running")
        job.complete("", 0)
        self.assertEqual(job.state, "complete")

    def test_every_other_transition_is_a_fault(self):
        moves = {"running": lambda job: job.run(1), "complete": lambda job: job.complete("", 0)}
        for state in STATES:
            for target, move in moves.items():
                job = new_job()
                job.state = state
                if target in STATES[state]:
                    move(job)
                else:
                    self.assertRaises(RuntimeError, move, job)
                    self.assertEqual(job.state, state)


class WaitTest(unittest.TestCase):

    def test_wakes_those_who_wait_when_it_is_complete(self):
        job, results = new_job(), []
        threads = [threading.Thread(target=lambda: results.append(job.wait(job.is_complete, support.LIMIT)))
                   for _ in range(5)]
        for thread in threads:
            thread.start()
        job.run(1)
        job.complete("", 0)
        for thread in threads:
            thread.join(support.LIMIT)
        self.assertEqual(results, [True] * 5)

    def test_gives_up_after_the_seconds(self):
        began = time.monotonic()
        self.assertFalse(new_job().wait(lambda: False, 0.02))
        self.assertGreaterEqual(time.monotonic() - began, 0.02)


class ViewTest(unittest.TestCase):

    def show(self, job, fields=DEFAULT_FIELDS):
        return json.loads(b"".join(job.view(fields)).decode("utf-8"), object_pairs_hook=collections.OrderedDict)

    def test_shows_what_the_seed_showed_in_its_order(self):
        job = new_job()
        self.assertEqual(list(self.show(job)), "href id state start complete create".split())
        job.run(1)
        job.capture(OUT, b"o")
        job.capture(rtot.ERR, b"e")
        job.complete("exit status 1", 1)
        self.assertEqual(list(self.show(job)),
                         "href id out err exit state start complete create".split())

    def test_shows_all_that_there_is_on_request(self):
        self.assertEqual(list(VIEW), ("href id out err exit state start complete create exit_code timed_out held "
                                      "dropped pid label args cwd timeout tty script line out_bytes err_bytes "
                                      "duration").split())

    def test_shows_the_first_line_that_is_no_comment(self):
        def line(script):
            return rtot.first_line(script)
        self.assertEqual(line(b"#!/bin/sh\n# why\n\n  set -e\r\nls\n"), "set -e")
        self.assertEqual(line(b"#!/bin/true\n"), "#!/bin/true")
        self.assertEqual(line(b"#!/bin/sh\n" + b"\xff" * 500), "\ufffd" * 200)

    def test_shows_what_is_not_utf8_as_a_replacement_character(self):
        job = new_job()
        job.capture(OUT, b"caf\xc3\xa9 \xff")
        self.assertEqual(self.show(job)["out"], "caf\u00e9 \ufffd")

    def test_a_character_that_is_split_between_chunks_is_whole(self):
        job, text = new_job(), "\u20ac\U0001f600e" * 60000
        data = text.encode("utf-8")
        for begin in range(0, len(data), 7919):
            job.capture(OUT, data[begin:begin + 7919])
        job.capture(rtot.ERR, data[:-2])
        self.assertEqual(self.show(job)["out"], text)
        self.assertEqual(self.show(job)["err"], data[:-2].decode("utf-8", "replace"))

    def test_is_indented_by_two_spaces_as_the_standard_library_does(self):
        job = new_job()
        job.options = PLAIN._replace(args=(b"a\nb", b"c"), tty=rtot.Terminal(1, 2), label="\u00e9\"\\")
        job.capture(OUT, b"tab\t \"quoted\" \\ \x01\n")
        for jobs in ([], [job], [job, new_job()]):
            text = b"".join(rtot.jobs_json(jobs, tuple(VIEW))).decode("utf-8")
            value = json.loads(text, object_pairs_hook=collections.OrderedDict)
            self.assertEqual(text, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def test_large_output_is_shown_without_being_held_whole(self):
        job = Job(b"x", PLAIN, 64 << 20)
        job.id = 0
        for _ in range(512):
            job.capture(OUT, b"x" * 65536)
        tracemalloc.start()
        size = sum(len(piece) for piece in rtot.gather(rtot.jobs_json([job] * 3, DEFAULT_FIELDS)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.assertGreater(size, 96 << 20)
        self.assertLess(peak, 4 << 20)


class SlicesTest(unittest.TestCase):
    """What is read of an output while it is dropped: what came and what was lost make up what was asked for."""

    def read(self, which, dropped, more):
        job = rtot.Job(b"", rtot.PLAIN, 100)
        job.capture(rtot.OUT, bytes(bytearray(range(100))))
        reader = rtot.Reader(job.output, which, [0, 0])
        pieces = job.slices(reader, 80, 50)
        parts = [next(pieces)]
        job.capture(rtot.OUT, b"x" * more)
        self.assertEqual(job.output.start, dropped)
        parts.extend(pieces)
        return b"".join(parts), reader.lost

    def test_a_part_of_the_rest_is_dropped(self):
        for which in (rtot.OUT, None):
            self.assertEqual(self.read(which, 60, 60), (bytes(bytearray(list(range(50)) + list(range(60, 80)))), 10))

    def test_all_of_the_rest_is_dropped(self):
        for which in (rtot.OUT, None):
            self.assertEqual(self.read(which, 95, 95), (bytes(bytearray(range(50))), 30))


class StoreTest(unittest.TestCase):

    def add(self, store, count=1):
        jobs = [Job(b"x", PLAIN, 1) for _ in range(count)]
        for job in jobs:
            store.add(job)
        return jobs

    def complete(self, store, job):
        job.run(1)
        job.complete("", 0)
        return store.retire(job)

    def test_ids_count_from_0_and_are_never_used_again(self):
        store = JobStore(0, 1000)
        self.assertEqual([job.id for job in self.add(store, 3)], [0, 1, 2])
        for number in range(3):
            store.remove(number)
        self.assertEqual(self.add(store)[0].id, 3)
        self.assertIsNone(store.get(0))

    def test_ids_are_given_once_to_many_threads(self):
        store, ids = JobStore(0, 10 ** 6), []
        threads = [threading.Thread(target=lambda: ids.extend(job.id for job in self.add(store, 200)))
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(ids), list(range(1600)))

    def test_selects_by_state_and_label_in_order_of_id(self):
        store = JobStore(0, 1000)
        jobs = self.add(store, 4)
        jobs[2].options = PLAIN._replace(label="x")
        self.complete(store, jobs[2])
        self.complete(store, jobs[1])
        self.assertEqual(store.select(), jobs)
        self.assertEqual(store.select(last=1), jobs[3:])
        self.assertEqual(store.select(last=0), [])
        self.assertEqual(store.select(last=9, state="new"), [jobs[0], jobs[3]])
        self.assertEqual(store.select(state="complete"), [jobs[1], jobs[2]])
        self.assertEqual(store.select(state="complete", label="x"), [jobs[2]])

    def test_keeps_so_many_complete_jobs_and_forgets_the_oldest(self):
        store = JobStore(2, 1000)
        jobs = self.add(store, 5)
        self.assertEqual(self.complete(store, jobs[3]), [])
        self.assertEqual(self.complete(store, jobs[1]), [])
        self.assertEqual(self.complete(store, jobs[0]), [jobs[3]])
        self.assertEqual(store.select(), [jobs[0], jobs[1], jobs[2], jobs[4]])

    def test_refuses_scripts_beyond_its_bytes_and_takes_them_again_when_some_are_deleted(self):
        store = JobStore(0, 3)
        self.add(store, 3)
        self.assertRaises(rtot.InsufficientStorage, self.add, store)
        store.remove(1)
        self.add(store)
