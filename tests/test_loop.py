"""The loop: tasks that wait, conditions, timers, watched descriptors, and what goes wrong in them."""
import os
import signal
import time
import types
import unittest

import support  # noqa: F401  finds rtot
import rtot
from rtot import Condition, Loop


class LoopCase(unittest.TestCase):

    def setUp(self):
        self.loop, self.seen, self.faults = Loop(), [], []
        self.loop.report = lambda *fault: self.faults.append(fault[1])
        self.loop.call_later(support.LIMIT, self.loop.stop)        # rather than hang
        self.addCleanup(lambda: self.loop._stopped or self.loop.close())

    def run_until_done(self, *coroutines):
        """Run the coroutines as tasks, until all have ended."""
        tasks = [self.loop.spawn(coroutine) for coroutine in coroutines]

        async def stop():
            while any(task in self.loop.tasks for task in tasks):
                await self.loop.turn()
            self.loop.stop()
        self.loop.spawn(stop())
        self.loop.run()
        return tasks


class TaskTest(LoopCase):

    def test_runs_from_one_wait_to_the_next_in_turn(self):
        async def count(name):
            for number in range(3):
                self.seen.append((name, number))
                await self.loop.turn()
        self.run_until_done(count("a"), count("b"))
        self.assertEqual(self.seen, [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)])

    def test_a_late_wake_up_does_not_resume_another_wait(self):
        condition = Condition(self.loop)

        async def wait():
            self.seen.append(await condition.wait_for(lambda: False, 0.01))
            self.loop.call_later(0.01, task.wake)       # as if it still waited for that
            began = time.monotonic()
            await self.loop.sleep(0.1)
            self.seen.append(time.monotonic() - began >= 0.1)
        task = self.loop.spawn(wait())
        self.run_until_done()
        while task in self.loop.tasks:
            self.loop._turn()
        self.assertEqual(self.seen, [False, True])

    def test_the_end_of_the_loop_lets_tasks_clean_up(self):
        async def wait(name):
            try:
                await self.loop.sleep(support.LIMIT)
            finally:
                self.seen.append(name)
                self.loop.spawn(wait("late"))
                raise ValueError(name)
        for name in ("a", "b"):
            self.loop.spawn(wait(name))
        self.loop._turn()
        self.loop.close()
        self.loop.stop()
        self.assertEqual((sorted(self.seen), sorted(map(str, self.faults))), (["a", "b"], ["a", "b"]))

    def test_a_fault_ends_the_task_alone_and_is_reported(self):
        async def fail():
            raise ValueError("fault")

        async def other():
            await self.loop.sleep(0.02)
            self.seen.append("went on")
        self.run_until_done(fail(), other())
        self.assertEqual([str(fault) for fault in self.faults], ["fault"])
        self.assertEqual(self.seen, ["went on"])


class ConditionTest(LoopCase):

    def test_a_predicate_that_is_true_is_not_waited_for(self):
        async def wait():
            self.seen.append(await Condition(self.loop).wait_for(lambda: "result"))
        self.run_until_done(wait())
        self.assertEqual(self.seen, ["result"])

    def test_wakes_all_who_wait_when_it_is_notified(self):
        condition, ready = Condition(self.loop), []

        async def wait(name):
            await condition.wait_for(lambda: ready)
            self.seen.append(name)

        async def notify():
            condition.notify_all()          # nobody's predicate is true yet
            await self.loop.turn()
            self.assertEqual(self.seen, [])
            ready.append(True)
            condition.notify_all()
        self.run_until_done(wait("a"), wait("b"), notify())
        self.assertEqual(self.seen, ["a", "b"])

    def test_abandoned_waits_leave_nothing_behind(self):
        condition = Condition(self.loop)

        async def poll():
            for _ in range(1000):
                await condition.wait_for(lambda: False, 0.00001)
        self.run_until_done(poll())
        self.assertFalse(condition._waiters)
        self.assertLess(len(self.loop._timers), 10)


class TimerTest(LoopCase):

    def test_are_called_in_the_order_of_their_times(self):
        for seconds in (0.03, 0.01, 0.02):
            self.loop.call_later(seconds, lambda seconds=seconds: self.seen.append(seconds))
        self.loop.call_later(0.04, self.loop.stop)
        self.loop.run()
        self.assertEqual(self.seen, [0.01, 0.02, 0.03])

    def test_canceled_ones_do_not_pile_up(self):
        for _ in range(100000):
            self.loop.call_later(1000, self.seen.append)[2] = None
        self.assertLess(len(self.loop._timers), 3000)

    def test_one_that_found_no_memory_is_called_again(self):
        relieved = []
        self.loop.relieve = lambda: relieved.append(True)

        def fail_once():
            self.seen.append(True)
            if len(self.seen) == 1:
                raise MemoryError
            self.loop.stop()
        self.loop.call_later(0, fail_once)
        self.loop.run()
        self.assertEqual((len(self.seen), relieved), (2, [True]))


class FairnessTest(LoopCase):

    def test_tasks_that_never_wait_starve_neither_timers_nor_descriptors(self):
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        self.addCleanup(os.close, reading)

        async def spin():
            while len(self.seen) < 2:
                await self.loop.turn()

        def on_readable(events):
            self.seen.append("descriptor")
            self.loop.unwatch(reading)
        self.loop.watch(reading, rtot.READ, on_readable)
        self.loop.call_later(0.02, lambda: (self.seen.append("timer"), os.write(writing, b"x")))
        self.run_until_done(spin(), spin())
        self.assertEqual(self.seen, ["timer", "descriptor"])

    def test_a_crowd_of_busy_tasks_delays_neither_timers_nor_those_that_wait(self):
        """Each may run for a ms, so a turn of all of them took seconds."""
        async def be_busy():
            while not self.loop._stopped:
                began = time.monotonic()
                while time.monotonic() - began < 2 * rtot.STEP:
                    pass
                self.seen.append("busy")
                await self.loop.breathe()

        async def wait():
            for _ in range(3):
                await self.loop.sleep(0)
                self.seen.append("woken")
            self.loop.stop()
        tasks = 300
        for _ in range(tasks):
            self.loop.spawn(be_busy())
        self.loop.spawn(wait())
        self.loop.run()
        self.assertLess(self.seen.count("busy") - self.seen.index("woken"), tasks)
        self.assertEqual(self.seen.count("woken"), 3)

    def test_tasks_that_wake_each_other_leave_time_to_those_that_have_yielded(self):
        """One of those in a turn was too few: jobs that had ended were not reaped any more."""
        async def wake_each_other():
            while True:
                self.loop.ready.append(self.loop.current)
                await pause()

        @types.coroutine
        def pause():
            yield

        async def go_on():
            for _ in range(3):
                await self.loop.turn()
            self.seen.append("done")
        for _ in range(50):
            self.loop.spawn(go_on())
        self.loop.spawn(wake_each_other())
        for _ in range(20):
            self.loop._turn()
        self.assertEqual(len(self.seen), 50)
        self.loop.close()

    def test_a_descriptor_that_was_unwatched_in_the_same_turn_is_not_delivered(self):
        ends = [os.pipe() for _ in range(2)]
        for reading, writing in ends:
            self.addCleanup(os.close, reading)
            self.addCleanup(os.close, writing)
            os.write(writing, b"x")

        def on_event(events):
            self.seen.append(True)
            for reading, _ in ends:
                self.loop.unwatch(reading)
        for reading, _ in ends:
            self.loop.watch(reading, rtot.READ, on_event)
        self.loop._turn()
        self.assertEqual(len(self.seen), 1)

    def test_signals_are_handled_in_the_loop(self):
        previous = signal.getsignal(signal.SIGUSR1)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        self.addCleanup(signal.set_wakeup_fd, -1)
        self.loop.catch_signals({signal.SIGUSR1: self.loop.stop})
        self.loop.call_later(0.01, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        began = time.monotonic()
        self.loop.run()
        self.assertLess(time.monotonic() - began, support.LIMIT / 2)


if __name__ == "__main__":
    unittest.main()
