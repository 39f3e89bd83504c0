"""What a job is called, how it is shown, and the store of jobs."""
import collections
import json
import unittest

import support
import rtot
from rtot import STATES, VIEW, go_duration, go_time
from support import ServerCase, in_parallel, wait_until


class GoTest(unittest.TestCase):

    def test_times_look_like_those_of_go(self):
        for ns, text in ((0, "0001-01-01 00:00:00 +0000 UTC"),
                         (1389498152314152969, "2014-01-12 03:42:32.314152969 +0000 UTC"),
                         (1389498152314000000, "2014-01-12 03:42:32.314 +0000 UTC"),
                         (1389498152000000001, "2014-01-12 03:42:32.000000001 +0000 UTC"),
                         (1389498150000000000, "2014-01-12 03:42:30 +0000 UTC")):
            self.assertEqual(go_time(ns), text)

    def test_durations_look_like_those_of_go(self):
        for seconds, text in ((0, "0s"), (0.001, "1ms"), (0.034, "34ms"), (0.999, "999ms"), (1, "1s"), (2.5, "2.5s"),
                              (59.999, "59.999s"), (60, "1m0s"), (60.5, "1m0.5s"), (3723.4, "1h2m3.4s"),
                              (3600, "1h0m0s"), (360000, "100h0m0s"), (10 ** 8 + 0.123, "27777h46m40.123s")):
            self.assertEqual(go_duration(seconds), text)

    def test_signals_have_the_words_of_go(self):
        for number, words in ((9, "killed"), (15, "terminated"), (11, "segmentation fault"), (2, "interrupt"),
                              (6, "aborted"), (13, "broken pipe")):
            self.assertEqual(rtot.SIGNAL_WORDS[number], words)


class StatesTest(unittest.TestCase):

    def test_a_job_goes_from_new_to_running_to_complete(self):
        self.assertEqual(list(STATES), ["new", "running", "complete"])
        self.assertEqual({state: set(following) for state, following in STATES.items()},
                         {"new": {"running", "complete"}, "running": {"complete"}, "complete": set()})


class ViewTest(ServerCase):

    def test_has_these_fields(self):
        self.assertEqual(list(VIEW)[:9], "href id out err exit state start complete create".split())
        self.assertEqual(sorted(VIEW), sorted((
            "href id out err exit state start complete create held timed_out dropped exit_code pid label args cwd "
            "timeout tty script line out_bytes err_bytes duration").split()))

    def test_shows_the_first_line_that_is_no_comment(self):
        def line(script):
            return self.server.run(script, fields="line")["line"]
        self.assertEqual(line(b"#!/bin/sh\n# why\n\n  set -e\r\nls\n"), "set -e")
        self.assertEqual(line(b"#!/bin/true\n"), "#!/bin/true")
        self.assertEqual(line(b"#!/bin/true\n" + b"\xff" * 500), "\ufffd" * 200)

    def test_json_is_utf8_and_bytes_that_are_not_show_a_replacement_character(self):
        number = self.server.run(b"printf 'caf\xc3\xa9 <b> \xff'")["id"]
        body = self.server.get("/jobs/%d" % number).body
        self.assertIn("\"caf\u00e9 <b> \ufffd\"".encode("utf-8"), body)
        self.assertEqual(self.server.out(number), b"caf\xc3\xa9 <b> \xff")

    def test_a_character_that_comes_in_two_pieces_is_whole(self):
        text = "\u20ac\U0001f600e" * 60000
        data = text.encode("utf-8")
        number = self.server.start("cat", "stdin")
        for begin in range(0, len(data), 79190):
            self.server.post("/jobs/%d/stdin" % number, data[begin:begin + 79190])
        wait_until(lambda: self.server.job(number, "fields=out_bytes")["out_bytes"] == len(data))
        self.assertEqual(self.server.job(number, "fields=out")["out"], text)
        self.server.post("/jobs/%d/stdin?eof" % number, data[:2])
        self.assertEqual(self.server.job(number, "wait&fields=out")["out"], text + "\ufffd")

    def test_is_indented_by_two_spaces(self):
        self.addCleanup(self.server.delete, "/jobs")
        self.assertEqual(self.server.get("/jobs?label=none").body, b'{\n  "jobs": []\n}\n')
        self.server.run("printf 'tab\\t \"quoted\" \\\\ \\001\\n'; sleep 99 & exit 3", "arg=a%0Ab&arg=c&tty&rows=1&cols=2&label=%C3%A9%22%5C&timeout=99")
        for _ in range(2):
            text = self.server.get("/jobs?fields=all").body.decode("utf-8")
            value = json.loads(text, object_pairs_hook=collections.OrderedDict)
            self.assertEqual(text, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            self.server.run("true", "env=A=1")

    def test_large_outputs_are_shown_without_being_held_twice(self):
        for _ in range(3):
            self.server.run("head -c 30000000 /dev/zero | tr '\\0' x", fields="")
        before, peak = self.server.rss(), 0
        with self.server.send(b"GET /jobs HTTP/1.0\r\n%b\r\n" % support.AUTH) as connection:
            size, data = 0, True
            while data:
                data = connection.recv(1 << 20)
                size += len(data)
                peak = max(peak, self.server.rss())
        self.assertGreater(size, 90000000)
        self.assertLess(peak - before, 16 << 20)
        self.server.delete("/jobs")


class StoreTest(ServerCase):
    options = ("--keep", "3")

    def test_forgets_the_oldest_complete_jobs_beyond_those_to_keep(self):
        running = self.server.start("sleep 99")
        numbers = [self.server.run("true")["id"] for _ in range(5)]
        self.assertEqual([job["id"] for job in self.server.get("/jobs").jobs], [running] + numbers[-3:])
        self.server.delete("/jobs/%d" % running)

    def test_the_order_is_that_in_which_they_became_complete(self):
        first = self.server.start("read line", "stdin")
        numbers = [self.server.run("true")["id"] for _ in range(3)]
        self.server.post("/jobs/%d/stdin" % first, "\n")
        self.server.get("/jobs/%d?wait" % first)
        wait_until(lambda: [job["id"] for job in self.server.get("/jobs").jobs] == [first] + numbers[1:])

    def test_ids_are_given_once_to_many_clients(self):
        ids = in_parallel(lambda _: [self.server.start("true") for _ in range(20)], range(8))
        first = min(min(each) for each in ids)
        self.assertEqual(sorted(number for each in ids for number in each), list(range(first, first + 160)))
        self.server.delete("/jobs")         # or those that end later would push out what other tests expect

    def test_a_script_beyond_what_all_may_take_is_refused_and_leaves_nothing(self):
        server = self.own_server("--max-total", "100K")
        server.run("#" * 60000)
        self.assertError(server.post("/jobs", "#" * 60000), 507, "DELETE")
        self.assertEqual(server.scripts(), [])
        self.assertEqual(len(server.get("/jobs").jobs), 1)
        server.delete("/jobs?state=complete")
        server.run("#" * 60000)
