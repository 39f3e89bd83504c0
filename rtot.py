#!/usr/bin/env python3
"""rtot, "run this over there": POST a script over HTTP, and it runs here as an asynchronous job.

    python3 rtot.pyz -a :8457 -s secret
    curl -H 'Rtot-Secret: secret' -d 'echo wat is happening' http://host:8457/jobs

One thread waits in one selector for descriptors, children that exit, and timers.  Every client and every job that
runs is a Task, a coroutine that runs until it has to wait; nothing else runs meanwhile, so there are no locks.

A request: Server.accept makes a Connection.  Its task, Connection.serve, reads a head (parse_head); App.answer checks
the secret and calls the handler that ROUTES names; Connection sends the Response, or the Error that was raised.
A job: App.create makes the Job; Runner.submit writes its script to a file (Workspace) and keeps it (JobStore).
Runner.run is the rest of its life: spawn (Spawner), wait for the exit and the end of the output, complete, reap.
Meanwhile Process._read takes what it prints into its Output, by way of TotalOutput, and wakes those who follow it
(OutputBody).

Each section uses only those above it.  Where a change belongs:
- a route: a line in ROUTES and a handler in App; an error with another status: a line in REASONS;
- a parameter: a line in PARAMETERS, and its name in ROUTES, or in Options and PLAIN if it is an option of a job;
- a field of a job: a line in VIEW, and a slot of Job if it is stored; a limit: a line in OPTIONS, used in Service;
- a way to end a job: what Runner.run waits for, then Runner.end for its processes; on request, Runner.cancel;
- a header of all answers: head_start; what the log says: Log.
"""
import sys
PYTHON: "rtot needs Python 3.6 or newer" = (3, 6)      # noqa: F722  an older one shows this line as its syntax error
import gc                       # built in
if __name__ == "__main__":
    gc.disable()                # until it serves: the start makes no garbage, and looking for it takes 1.2 of 26 ms
    LIBRARY = sys.modules["encodings"].__file__.rpartition("encodings")[0][:-1]
    sys.path[:] = [path for path in sys.path        # the standard library alone: no json.py beside this file
                   if path.startswith(LIBRARY) and not path.endswith("-packages") or path.endswith("lib-dynload")]

import argparse
import array
import bisect
import codecs
import collections
import errno
import functools
import heapq
import itertools
import os
import re
import select
import selectors
import signal
import socket
import socketserver
import stat
import time
import types

__version__ = "1.1.0"

LINUX = sys.platform.startswith("linux")


class Later:
    """A module that is imported when something of it is used first."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        module = globals()[self._name] = __import__(self._name)
        return getattr(module, name)


# 6.7 MB that GET /ping and the page do without: see import_rest.
LATER = "ctypes fcntl json pwd resource shutil subprocess tempfile termios traceback".split()
ctypes, fcntl, json, pwd, resource, shutil, subprocess, tempfile, termios, traceback = map(Later, LATER)

# Jobs.
GRACE = 5.0             # s from SIGTERM to SIGKILL
HELD_AFTER = 0.5        # s after the exit, for which a job waits for output that something else holds
LOOK_AFTER = 0.1        # s to the next look at what is left to be killed, or read, or at all children, of 1 us each
KILL_FOR = 5.0          # s of SIGKILLs, before rtot gives up
MANY_CLOSED = 100       # processes that have closed their output and are looked at after each SIGCHLD
READ_SIZE = 1 << 16     # bytes read at a time: what a pipe holds (pipe(7))
WIDE_PIPE = 1 << 20     # bytes that a pipe may hold that was found full: the most without privileges (pipe(7))
WIDE_READ_SIZE = 1 << 18        # bytes read at a time from such a pipe
WIDE_PIPES = 12         # at a time: a user's pipes may hold 64 MiB, and further ones a page each
F_SETPIPE_SZ = 1031     # fcntl(2); Python knows it from 3.10 on
RESERVED = 24           # descriptors that jobs leave to connections, if there are many
LEAST_DESCRIPTORS = 20  # for rtot, a client and a job
SPARE = 8               # descriptors that connections leave to scripts and modules
TERMINAL_LINE = 4095    # bytes of a line that a terminal takes: termios(3), canonical mode
STEP = 0.001            # s that a task may run before it lets others run

# Output.
SLICE = 1 << 16         # bytes of output or of an answer that are handled at a time
BATCH = 500             # pieces of an output, or jobs of a list, that are handled at a time: some 2 ms
TRIM_SIZE = 1 << 24     # bytes of output forgotten, after which malloc is asked to give its pages back
TRIM_AFTER = 1.0        # s until it is asked: many deletions are one
OWNER_PATIENCE = 30.0   # s without a byte read, for which a job waits for the client that started it by ?follow

# HTTP.
BACKLOG = 1024
ACCEPTS, TLS_ACCEPTS = 64, 4    # connections in a turn of the loop; a TLS handshake takes 1 ms
MAX_LINE, MAX_HEADERS = 32768, 100      # bytes of a request line, or of all headers: RFC 9112, 3 asks for 8000
MAX_BUFFER = 1 << 18    # bytes taken of a client before they are wanted, so that its end is noticed
MAX_STRANGER = 2 * MAX_LINE + 4096      # of one that has not shown the secret: there may be a thousand
SEND_TIMEOUT = 300.0    # s for which a client may take nothing of an answer
WRONG_SECRET = 1.0      # s before the answer to a wrong secret
DRAIN = 1.0             # s for the last answers, when all jobs have ended
LINGER = 2.0            # s for which what a client still sends is read before rtot closes: else it may miss the answer
KNOWN_LINGER = 60.0     # s for one that has the secret, as long as it sends
PROMPT = 1.0            # s in which a new client sends its first head, if ever
# What the sockets of clients inherit from the listening one.  TCP_KEEP*: s, s and probes; tcp(7) has 2 hours.
SOCKET_OPTIONS = ((socket.IPPROTO_TCP, "TCP_NODELAY", 1), (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
                  (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60), (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
                  (socket.IPPROTO_TCP, "TCP_KEEPCNT", 6))
LOG_LINE = 4000         # characters: a pipe takes PIPE_BUF bytes at once, or none (pipe(7))
SWEEP_AFTER = 0.5       # s after the start
LOOK_IDLE_AFTER = 1.0   # s between two looks whether anything goes on, for --idle-exit


# ---------------------------------------------------------------------------------------------- errors

REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 411: "Length Required", 413: "Content Too Large",
    414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 424: "Failed Dependency",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 505: "HTTP Version Not Supported", 507: "Insufficient Storage",
}

# The status of each kind of error.
KINDS = {reason.lower(): status for status, reason in REASONS.items()}
KINDS.update({"malformed request": 400, "invalid job number": 400, "not authorized": 401, "no such job": 404})


class Error(Exception):
    """Why a request can't be served: raised anywhere, answered in Connection._serve_one.

    `kind` is one of KINDS, `message` says what would be right.  `headers` are pairs; `extra` goes into the JSON too.
    """

    def __init__(self, kind, message, headers=(), **extra):
        super().__init__(message)
        self.kind, self.message, self.headers, self.extra, self.status = kind, message, headers, extra, KINDS[kind]


class ClientGone(BaseException):
    """The client has disconnected, which ends its task; no fault, so no `except Exception` gets it."""


# ------------------------------------------------------------------------------------------------ loop

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
LONGEST_WAIT = 3600.0   # s at a time; epoll_wait(2) takes 24 days at most
TURN = 0.005            # s for the tasks that were woken, and for those that yielded, in a turn of the loop
RETRY_AFTER = 0.02      # s after which a timer is called again that found no memory


class Task:
    """A coroutine that runs from one wait to the next.  It may be woken too often, since it looks again."""

    __slots__ = ("loop", "coroutine", "waits")

    def __init__(self, loop, coroutine):
        self.loop, self.coroutine, self.waits = loop, coroutine, False
        loop.tasks.add(self)
        loop.ready.append(self)

    def wake(self):
        if self.waits:
            self.waits = False
            self.loop.ready.append(self)

    def step(self):
        """Run the task until it waits or ends; what it raises is the caller's."""
        try:
            self.coroutine.send(None)
        except BaseException as error:
            self.loop.tasks.discard(self)
            if not isinstance(error, (StopIteration, ClientGone)):
                raise


class Condition:
    """Something that tasks wait for; like threading.Condition, but there is no lock."""

    __slots__ = ("loop", "_waiters")

    def __init__(self, loop):
        self.loop, self._waiters = loop, None       # tasks in their order, the keys of a dict; None if there are none

    def notify_all(self):
        for task in self._waiters or ():
            task.wake()

    @types.coroutine
    def wait_for(self, predicate, timeout=None):
        """Wait until predicate() is true, which is asked at each notify_all, or for `timeout` s; return its result."""
        result = predicate()
        if result:
            return result
        task = self.loop.current
        timer = None if timeout is None else self.loop.call_later(timeout, task.wake)
        self._waiters = self._waiters or {}
        self._waiters[task] = None
        try:
            while not result and (timer is None or timer[2]):
                task.waits = True
                yield               # to Task.step
                result = predicate()
            return result
        finally:
            del self._waiters[task]
            self._waiters = self._waiters or None
            if timer:
                timer[2] = None


class Loop:
    """Runs tasks, and calls functions when a descriptor is ready or a time has come.

    `report` is called with what nobody foresaw, like sys.excepthook; `relieve` when memory is short.
    """

    def __init__(self):
        self.ready, self._yielded, self.tasks, self.current = collections.deque(), collections.deque(), set(), None
        self.report, self.relieve = sys.excepthook, gc.collect
        self._selector, self._watched = selectors.DefaultSelector(), {}     # the SelectorKey of each descriptor
        self._timers, self._timer_count, self._most_timers = [], itertools.count(), 1000
        self._stepped, self._stopped = 0.0, False       # when the current task was resumed

    def spawn(self, coroutine):
        return Task(self, coroutine)

    @types.coroutine
    def turn(self):
        """Let all others run that are ready."""
        self._yielded.append(self.current)
        yield

    async def breathe(self):
        """Let others run, if the current task has run for STEP."""
        if time.monotonic() - self._stepped > STEP:
            await self.turn()

    def wait_for(self, predicate, timeout=None):
        """Wait as Condition.wait_for does, for something that wakes the current task itself."""
        return Condition(self).wait_for(predicate, timeout)

    def sleep(self, seconds):
        return self.wait_for(lambda: False, seconds)

    def watch(self, fd, events, callback):
        """Call callback(events) whenever the descriptor is ready for READ or WRITE, as `events` says."""
        if not events:
            self.unwatch(fd)
        else:
            change = self._selector.modify if fd in self._watched else self._selector.register
            self._watched[fd] = change(fd, events, callback)

    def unwatch(self, fd):
        """Watch it no more; before it is closed, since a duplicate would go on reporting (epoll(7))."""
        if self._watched.pop(fd, None):
            self._selector.unregister(fd)

    def call_later(self, seconds, function):
        """Call function() after that time.  Return the timer, whose [2] is None once it was called, or to cancel it."""
        if len(self._timers) > self._most_timers:       # most were canceled
            self._timers = [timer for timer in self._timers if timer[2]]
            heapq.heapify(self._timers)
            self._most_timers = 1000 + 2 * len(self._timers)
        timer = [time.monotonic() + seconds, next(self._timer_count), function]
        heapq.heappush(self._timers, timer)
        return timer

    def catch_signals(self, handlers):
        """Call handlers[number]() in the loop when that signal comes, or has come while all were blocked."""
        reading, writing = os.pipe()        # not a pair of sockets, which was full after 278 signals
        os.set_blocking(writing, False)
        self.watch(reading, READ, lambda events: [
            self._call(handlers[number]) for number in set(os.read(reading, READ_SIZE)) if number in handlers])
        for number in handlers:
            signal.signal(number, no_action)
        signal.set_wakeup_fd(writing)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def run(self):
        while not self._stopped:
            self._turn()

    def stop(self):
        self._stopped = True

    def close(self):
        """End all tasks: they may clean up, but not wait."""
        while self.tasks:
            self._call(self.tasks.pop().coroutine.close)
        signal.set_wakeup_fd(-1)
        self._selector.close()

    def _turn(self):
        timeout = 0 if self.ready or self._yielded else LONGEST_WAIT
        if self._timers:
            timeout = min(max(self._timers[0][0] - time.monotonic(), 0), timeout)
        for key, events in self._selector.select(timeout):
            # Not if one before it has ended this watch: the number may be another descriptor's by now.
            if self._watched.get(key.fd) is key and self._call(key.data, events) is False:
                self.unwatch(key.fd)            # or it would fail again at once
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            function, timer[2] = timer[2], None
            if function and self._call(function) is None:
                self.call_later(RETRY_AFTER, function)
        # Each queue has its time, since tasks that wake each other would starve the rest; one that yields runs once.
        for queue, most in (self.ready, float("inf")), (self._yielded, len(self._yielded)):
            self._stepped = time.monotonic()
            until = self._stepped + TURN
            while queue and most and self._stepped < until:
                self.current = queue.popleft()
                self._call(self.current.step)
                self._stepped = time.monotonic()
                most -= 1

    def _call(self, function, *args):
        """Call it; return True, None if there was no memory for it, or False after what nobody foresaw."""
        try:
            function(*args)
            return True
        except MemoryError:
            try:
                self.relieve()
            except MemoryError:     # it is tried again the next time
                pass
            return None
        except Exception:
            self.report(*sys.exc_info())
            return False


def no_action(number, frame):
    """Handle a signal: unlike SIG_IGN, a handler is not inherited (execve(2))."""


# ---------------------------------------------------------------------------------------------- output

OUT, ERR, LOG = 0, 1, 2     # the streams of a job, and the log of both in the order in which they came
MARK = 32               # bytes that a mark of an Output takes
TAIL_STEP = 1 << 11     # bytes that are searched for lines at a time: 3 ms, if each is a piece of its own


class Output:
    """What a job has printed: the last `limit` bytes of the log, of which each stream is a part.

    `start[which]` and `end[which]`: the offsets, in OUT, ERR or LOG, of the first byte kept and behind the last.  Small
    reads are folded into chunks.  A mark is four numbers: where in OUT, ERR and LOG a piece begins, and its stamp: ms
    since 1970, times 2, plus the stream.  Another stream or millisecond makes one; if they take half of the limit,
    another second.
    """

    __slots__ = ("limit", "start", "end", "owner", "resume", "_chunks", "_starts", "_marks")

    def __init__(self, limit):
        self.limit, self.start, self.end = limit, [0, 0, 0], [0, 0, 0]
        self.owner = self.resume = None     # the OutputBody that the job waits for; while it does, what ends the wait
        self._chunks, self._starts, self._marks = [], [], ()    # _starts: where in the log each chunk begins

    size = property(lambda self: self.end[LOG] - self.start[LOG])       # bytes kept
    cost = property(lambda self: max(self.size, len(self._marks) * 8))      # bytes of them or of the marks

    @property
    def spare(self):
        """The number of the oldest bytes that the owner, who reads the log, has read; all, if it has lost some."""
        read = self.owner.offset - self.start[LOG] if self.owner else -1
        return self.size if read < 0 else read

    def append(self, stream, data):
        stamp = int(time.time() * 1000) << 1 | stream
        chunks, end, marks = self._chunks, self.end, self._marks or array.array("q")
        last = marks[-1] if marks else 0
        if last != stamp and ((last ^ stamp) & 1 or abs(stamp - last) >= 2000
                              or len(marks) * 8 <= max(self.limit // 2, BATCH * MARK)):
            marks.extend((*end, stamp))
            self._marks = marks
        if chunks and len(chunks[-1]) + len(data) <= SLICE:
            if type(chunks[-1]) is bytes:       # the one print of a small job stays as small as it is
                chunks[-1] = bytearray(chunks[-1])
            chunks[-1] += data
        else:
            chunks.append(data)
            self._starts.append(end[LOG])
        end[LOG] += len(data)
        end[stream] += len(data)
        excess = self.would_drop(0)
        if excess:
            self.drop(min(excess, self.size))

    def would_drop(self, count):
        """Return how many bytes an append of `count` pushes out, at most; some too if there are too many marks."""
        return max(self.size + count - self.limit, MARK * (len(self._marks) * 8 > max(self.limit, BATCH * MARK)))

    def drop(self, count):
        """Forget the `count` oldest bytes; a chunk is freed with its last byte."""
        start = self.start[LOG] + count
        whole = len(self._chunks) if start == self.end[LOG] else bisect.bisect_right(self._starts, start) - 1
        del self._chunks[:whole], self._starts[:whole]
        index = self._find(LOG, start)
        out, err, log, stamp = self._marks[index:index + 4]
        self.start[:] = out, err, start
        self.start[stamp & 1] += start - log
        if index > len(self._marks) // 8:       # seldom, since what follows moves
            del self._marks[:index]

    def read(self, which, offset, limit):
        """Return bytes from `offset` on, which is not before the start: some, at most `limit`; b"" at the end."""
        if which == LOG or self.end[which] == self.end[LOG]:    # all that was printed is in this stream
            return self._slice(offset, limit)
        parts = []
        while limit > 0 and offset < self.end[which] and len(parts) < BATCH:
            parts.append(self.read_piece(which, offset, limit)[2])
            offset += len(parts[-1])
            limit -= len(parts[-1])
        return b"".join(parts)

    def read_piece(self, which, offset, limit):
        """Return (stream, ms since 1970, bytes) of what came together at an offset before the end."""
        marks, index = self._marks, self._find(which, offset)
        position = marks[index + LOG] + offset - marks[index + which]
        end = marks[index + 4 + LOG] if index + 4 < len(marks) else self.end[LOG]
        stamp = marks[index + 3]
        return stamp & 1, stamp >> 1, self._slice(position, min(end - position, limit))

    def _find(self, which, offset):
        """Return the index of the mark of the piece that has an offset, or of the last."""
        with memoryview(self._marks) as marks, marks[which::4] as column:   # released, so that the marks can grow
            return (bisect.bisect_right(column, offset) - 1) * 4

    def _slice(self, position, limit):
        """Return bytes of the log, from one chunk."""
        if position >= self.end[LOG]:
            return b""
        index = bisect.bisect_right(self._starts, position) - 1
        begin = position - self._starts[index]
        return bytes(self._chunks[index][begin:begin + limit])

    def pieces(self, which, offset, end):
        """Yield the bytes from an offset to another; ClientGone, so that the answer is cut off, if some are dropped."""
        while offset < end:
            if offset < self.start[which]:
                raise ClientGone()
            data = self.read(which, offset, min(end - offset, SLICE))
            offset += len(data)
            yield data

    async def tail(self, which, lines, breathe):
        """Return the offset at which the last `lines` lines begin; breathe() is awaited now and then."""
        if not lines:
            return self.end[which]
        offset = self.end[which] - 1        # a newline at the very end begins no line
        while offset > self.start[which]:
            begin = max(offset - TAIL_STEP, self.start[which])
            ends = [match.end() for match in re.finditer(b"\n", b"".join(self.pieces(which, begin, offset)))]
            if len(ends) >= lines:
                return begin + ends[-lines]
            lines -= len(ends)
            offset = begin
            await breathe()
        return self.start[which]


class TotalOutput:
    """The output of all jobs: beyond `limit` bytes, that of the job that printed longest ago is dropped.

    What an owner has still to read goes only when nothing else is left.
    """

    def __init__(self, limit):
        self.limit, self.size = limit, 0
        self._kept = collections.OrderedDict()      # the cost of each Output, in the order of their last print

    def append(self, output, stream, data):
        output.append(stream, data)
        self._update(output)
        self._kept.move_to_end(output)
        if self.size > self.limit:
            self.shrink(self.limit)

    def _update(self, output):
        cost = output.cost
        self.size += cost - self._kept.get(output, 0)
        self._kept[output] = cost

    def shrink(self, size):
        """Drop the oldest until it costs no more than `size` bytes."""
        passed = 0
        while self.size > size:
            output = next(iter(self._kept))
            count = output.spare if passed < len(self._kept) else output.size
            if count:
                output.drop(min(count, self.size - size))
                self._update(output)
            else:
                self._kept.move_to_end(output)      # so it is not met again soon
                passed += 1
            if not output.size:
                self.forget(output)

    def must_wait(self, output, count):
        """Must `count` bytes more of an output that has an owner wait until that, or the one of another, has read?"""
        excess = self.size + count - self.limit
        for other in self._kept:
            if excess <= 0:
                break
            excess -= other.spare
        has_room = excess <= 0 and output.would_drop(count) <= output.spare
        return not has_room and (output.spare == output.size or output.owner.is_reading())

    def forget(self, output):
        """Keep nothing of it; return how many bytes that frees."""
        kept = self._kept.pop(output, 0)
        self.size -= kept
        return kept


def give_memory_back():
    """Let malloc return its free pages to the host: 350 MiB of output stayed resident without."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, ImportError, OSError):      # not GNU's
        pass


# ------------------------------------------------------------------------------------------------ jobs

STATES = {"new": ("running", "complete"), "running": ("complete",), "complete": ()}     # from a state, where it can go

# The first rtot was written in Go, so exits, times and durations look like Go's.  These are its words for signals
# (package syscall, linux/amd64).  Python knows STKFLT from 3.11 on; it stands first, since elsewhere 16 is another.
SIGNAL_WORDS = {getattr(signal, "SIG" + name, 16): words for name, words in (pair.split(": ") for pair in (
    "STKFLT: stack fault|HUP: hangup|INT: interrupt|QUIT: quit|ILL: illegal instruction|TRAP: trace/breakpoint trap|"
    "ABRT: aborted|BUS: bus error|FPE: floating point exception|KILL: killed|USR1: user defined signal 1|"
    "SEGV: segmentation fault|USR2: user defined signal 2|PIPE: broken pipe|ALRM: alarm clock|TERM: terminated|"
    "XCPU: CPU time limit exceeded|XFSZ: file size limit exceeded|VTALRM: virtual timer expired|"
    "PROF: profiling timer expired|IO: I/O possible|PWR: power failure|SYS: bad system call").split("|"))}

wall_ns = getattr(time, "time_ns", lambda: int(time.time() * 1e9))      # Python 3.7


@functools.lru_cache(maxsize=64)
def utc(form, seconds):
    """Return a time, in whole seconds since 1970, in a format of strftime(3)."""
    return time.strftime(form, time.gmtime(seconds))


@functools.lru_cache(maxsize=1024)
def go_time(ns):
    """Return a time in ns since 1970 as Go's time.Time.String() does; 0 is its zero time."""
    if not ns:
        return "0001-01-01 00:00:00 +0000 UTC"
    seconds, fraction = divmod(ns, 10 ** 9)
    return utc("%Y-%m-%d %H:%M:%S", seconds) + (".%09d" % fraction).rstrip(".0") + " +0000 UTC"


def iso_time(ms):
    """Return a time in ms since 1970 as 2014-01-12T03:42:32.315Z."""
    return "%s.%03dZ" % (utc("%Y-%m-%dT%H:%M:%S", ms // 1000), ms % 1000)


def go_duration(seconds):
    """Return seconds, in whole milliseconds, as Go's time.Duration.String() does: 1h2m3.4s, 2m0s, 35ms."""
    if 0 < seconds < 1:
        return "%gms" % (seconds * 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return ("%dh" % hours if hours else "") + ("%dm" % minutes if hours or minutes else "") + "%gs" % seconds


def readable(data):
    """Return bytes as text; what is not UTF-8 shows as U+FFFD."""
    return str(data, "utf-8", "replace")


# How a job is to run, by the names of parameters.  arg, cwd and the pairs of env are bytes; timeout in s, max_output in
# bytes; None is no timeout, the server's directory, the server's limit.
Options = collections.namedtuple("Options", "arg env cwd timeout label max_output stdin tty rows cols")
PLAIN = Options((), (), cwd=None, timeout=None, label="", max_output=None, stdin=False, tty=False, rows=24, cols=80)


class Job:
    """A record of one run.  Runner and Process write its state, times and output, JobStore its id; others read.

    `created`, `started` and `completed` are ns since 1970, 0 until then.  `changed` is notified of output, of each
    change of state, and of what happens to its Process; `ended` of the end alone, for those whom the rest would wake
    in vain.
    """

    __slots__ = ("id", "script", "options", "state", "created", "started", "completed", "exit", "exit_code",
                 "timed_out", "held", "pid", "output", "changed", "ended", "_began", "_stopped")

    def __init__(self, loop, script, options, limit):
        self.script, self.options, self.output = script, options, Output(limit)
        self.state, self.created, self.started, self.completed = "new", wall_ns(), 0, 0
        self.exit, self.timed_out, self.held = "", False, False
        self.id = self.exit_code = self.pid = self._began = self._stopped = None
        self.changed, self.ended = Condition(loop), Condition(loop)

    href = property(lambda self: "/jobs/%d" % self.id)
    is_complete = lambda self: self.state == "complete"

    @property
    def duration(self):
        """The seconds for which it has run."""
        return (self._stopped or time.monotonic()) - self._began if self._began else 0.0

    def _move(self, state):
        if state not in STATES[self.state]:
            raise RuntimeError("job %d cannot go from %s to %s" % (self.id, self.state, state))
        self.state = state
        self.changed.notify_all()

    def start(self, pid):
        self._move("running")
        self.pid, self.started, self._began = pid, wall_ns(), time.monotonic()

    def complete(self, text, code, held=False):
        """End with the text of `exit`, "" on success, and the exit code."""
        self._move("complete")
        self.exit, self.exit_code, self.held = text, code, held
        self.completed, self._stopped = wall_ns(), time.monotonic()
        self.ended.notify_all()


def working_directory():
    """Return ours, or b"" if it was removed."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b""


def first_line(script):
    """Return the beginning of the first line that is neither empty nor a comment."""
    lines = [line.strip() for line in script[:4096].split(b"\n")]
    return readable(next((line for line in lines if line and not line.startswith(b"#")), lines[0])[:200])


def as_text(pieces, size):
    """Return `size` bytes, in pieces, as text; if they are many, a generator of it."""
    return readable(b"".join(pieces)) if size <= SLICE else codecs.iterdecode(pieces, "utf-8", "replace")


def kept_text(output, which):
    start, end = output.start[which], output.end[which]
    return as_text(output.pieces(which, start, end), end - start) if start < end else ""


VIEW = {      # a job's fields in JSON, in this order
    "href": lambda job: job.href,
    "id": lambda job: job.id,
    "out": lambda job: kept_text(job.output, OUT),
    "err": lambda job: kept_text(job.output, ERR),
    "exit": lambda job: job.exit,
    "state": lambda job: job.state,
    "start": lambda job: go_time(job.started),
    "complete": lambda job: go_time(job.completed),
    "create": lambda job: go_time(job.created),
    "held": lambda job: job.held,
    "timed_out": lambda job: job.timed_out,
    "dropped": lambda job: job.output.start[LOG],
    "exit_code": lambda job: job.exit_code,
    "pid": lambda job: job.pid,
    "label": lambda job: job.options.label,
    "args": lambda job: [readable(arg) for arg in job.options.arg],
    "cwd": lambda job: readable(job.options.cwd or working_directory()),
    "timeout": lambda job: job.options.timeout,
    "tty": lambda job: {"rows": job.options.rows, "cols": job.options.cols} if job.options.tty else None,
    "script": lambda job: as_text(
        (job.script[begin:begin + SLICE] for begin in range(0, len(job.script), SLICE)), len(job.script)),
    "line": lambda job: first_line(job.script),
    "out_bytes": lambda job: job.output.end[OUT],
    "err_bytes": lambda job: job.output.end[ERR],
    "duration": lambda job: round(job.duration, 6),
}
ALWAYS = frozenset("href id exit state held timed_out dropped".split())
DEFAULT_FIELDS = tuple("href id out err exit state start complete create".split())
TEXT_FIELDS = tuple("id state exit duration label line".split())


@functools.lru_cache(maxsize=64)
def shown(fields):
    """Return of each field to show its beginning, its view, and whether to leave it out if it is empty, false or 0."""
    left_out = {"out", "err", "exit"} | {"held", "timed_out", "dropped"}.difference(fields)
    return [('\n      "%s": ' % name, view, name in left_out) for name, view in VIEW.items()
            if name in fields or name in ALWAYS]


def jobs_json(jobs, fields):
    """Yield the jobs as JSON, in pieces of text: the `fields`, and those that are always shown."""
    encode, lead = json.encoder.encode_basestring, '{\n  "jobs": [\n    {'
    encoders = {str: encode, int: str}      # of most values; JSONEncoder takes twice the time
    for job in jobs:
        text = lead
        for begin, view, may_be_left_out in shown(fields):
            value = view(job)
            if not value and may_be_left_out:
                continue
            text += begin
            if type(value) in encoders:
                text += encoders[type(value)](value) + ","
            elif isinstance(value, types.GeneratorType):
                yield text + '"'
                for part in value:
                    yield encode(part)[1:-1]
                text = '",'
            else:
                text += json.dumps(value, ensure_ascii=False, indent=2).replace("\n", "\n      ") + ","
        yield text[:-1]             # without the last comma
        lead = "\n    },\n    {"
    yield "\n    }\n  ]\n}\n" if jobs else '{\n  "jobs": []\n}\n'


SEPARATORS = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n"})


def jobs_text(jobs, fields):
    """Yield the jobs as lines of values separated by tabs, in pieces of text."""
    for job in jobs:
        line = ""
        for name in fields:
            value = VIEW[name](job)
            if isinstance(value, types.GeneratorType):
                for part in value:
                    yield line + part.translate(SEPARATORS)
                    line = ""
            elif value is not None:
                text = value if type(value) is str else json.dumps(value, ensure_ascii=False)
                line += text.translate(SEPARATORS)
            line += "\t"
        yield line[:-1] + "\n"


class JobStore:
    """The jobs, by id: at most `keep` complete ones, 0 is all, and `max_scripts` bytes of scripts."""

    def __init__(self, keep, max_scripts):
        self.keep, self.max_scripts, self._script_bytes, self._ids = keep, max_scripts, 0, itertools.count()
        self.jobs, self._complete = collections.OrderedDict(), collections.OrderedDict()    # the latter by their ends

    def add(self, job):
        """Keep the job, and give it its id, which is never used again."""
        if self._script_bytes + len(job.script) > self.max_scripts:
            raise Error("insufficient storage", (
                "the scripts of all jobs take %d bytes of %d: DELETE /jobs?state=complete, or raise --max-total"
                % (self._script_bytes, self.max_scripts)))
        self._script_bytes += len(job.script)
        job.id = next(self._ids)
        self.jobs[job.id] = job

    def remove(self, job):
        if self.jobs.pop(job.id, None):         # another request may have removed it
            self._complete.pop(job.id, None)
            self._script_bytes -= len(job.script)

    def retire(self, job):
        """Note that the job is complete; return the jobs to forget: it, if it was deleted, or the oldest."""
        if job.id not in self.jobs:
            return [job]
        self._complete[job.id] = job
        if not 0 < self.keep < len(self._complete):
            return []
        oldest = next(iter(self._complete.values()))
        self.remove(oldest)
        return [oldest]

    def select(self, state=None, label=None, last=None, **_):
        """Return the `last` jobs in that state and with that label, in order of id; None or "" is all."""
        newest_first = (job for job in reversed(self.jobs.values())
                        if state in (None, "", job.state) and label in (None, "", job.options.label))
        return list(itertools.islice(newest_first, last))[::-1]


# --------------------------------------------------------------------------------------------- scripts

SHEBANG_SIZE = 256      # bytes that the kernel reads of a script (linux/binfmts.h, BINPRM_BUF_SIZE)


def parse_shebang(script):
    """Return (interpreter,) or (interpreter, argument) by the rules of Linux's fs/binfmt_script.c, OSError included.

    It takes one argument, cuts blanks around it, and needs no newline at the end of the file.
    """
    line, newline, _ = script[2:SHEBANG_SIZE].ljust(SHEBANG_SIZE - 2, b"\0").partition(b"\n")
    may_be_cut = not newline and not re.search(b"[ \t\0]", line.lstrip(b" \t"))
    line = (line if newline else line[:-1]).strip(b" \t")
    if may_be_cut or not line:
        raise os_error(errno.ENOEXEC)
    name, blanks, argument = re.match(b"([^ \t\0]*)([ \t]*)([^\0]*)", line).groups()
    if not name:
        raise os_error(errno.EACCES)
    return (name, argument) if blanks else (name,)


def os_error(number):
    return OSError(number, os.strerror(number))


def explain_failure(script, code):
    """Return what is probably wrong with a script that ended with that exit code, for its standard error; or b""."""
    if code and (b"\r\n" in script or script.endswith(b"\r")):
        return b"rtot: lines of the script end in a carriage return (CR): send Unix line ends, as by sed 's/\\r$//'\n"
    if code in (126, 127) and b"\n" not in script:
        return b"rtot: the script is one #! line: curl -d @file takes newlines out, --data-binary @file does not\n"
    return b""


class Workspace:
    """The server's directory of scripts: 0700, and locked by flock(2), since another server sweeps what is not."""

    PREFIX = "rtot-"

    def __init__(self):
        self._directory, self._fd, self._names = None, None, itertools.count(1)
        # Where it may be; the last can be written where the host is mounted read-only.
        self._places = [os.path.abspath(os.environ.get("TMPDIR") or "/tmp"), "/tmp", "/dev/shm"]

    async def sweep(self, breathe):
        """Remove the directories of servers that were killed; breathe() is awaited now and then."""
        for place in set(self._places):
            try:
                with os.scandir(place) as entries:
                    for entry in entries:
                        if re.fullmatch(self.PREFIX + "[a-z0-9_]{8}", entry.name):
                            self._remove_stale(entry)
                        await breathe()
            except OSError:                 # there is none, or no descriptor
                pass

    @staticmethod
    def _remove_stale(entry):
        """Remove it if no server locks it, and it is as we make it: ours, 0700, as its files (0600 by rtot 1.0)."""

        def is_ours(entry, kind):
            status = entry.stat(follow_symlinks=False)
            return status.st_uid == os.geteuid() and status.st_mode & ~(stat.S_ISGID | 0o100) == kind | 0o600
        fd = None
        try:
            if is_ours(entry, stat.S_IFDIR):
                fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with os.scandir(entry.path) as entries:
                    files = list(entries)
                if all(re.fullmatch("[0-9]+", file.name, re.ASCII) and is_ours(file, stat.S_IFREG) for file in files):
                    for file in files:
                        os.unlink(file.path)
                    os.rmdir(entry.path)
        except OSError:                     # its server lives, or there are no locks here, or it is gone meanwhile
            pass
        finally:
            if fd is not None:
                os.close(fd)

    def _make(self):
        """Make the directory, if there is none, and lock it."""
        if self._directory is None:
            for place in self._places:
                try:
                    self._directory = os.fsencode(tempfile.mkdtemp(prefix=self.PREFIX, dir=place))
                    break
                except OSError as error:
                    lack = error
            else:
                raise lack
        self._fd = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError from None       # a sweeper removes it
        except OSError:                     # there are no locks here: nobody can sweep it, either
            pass

    def write(self, data):
        """Return the path of a file that holds all of `data`."""
        path = None
        try:
            if self._fd is None:
                self._make()
            path = b"%s/%d" % (self._directory, next(self._names))
            with open(path, "xb", opener=functools.partial(os.open, mode=0o700)) as file:   # for exec flock "$0" "$0"
                file.write(data)
            return path
        except OSError as error:
            if path:
                self.remove(path)
            if isinstance(error, FileNotFoundError) and self._directory:
                self.close()                # somebody has cleaned the temporary directory, or swept this one
                return self.write(data)
            where = readable(self._directory or b"a temporary directory")
            raise Error("insufficient storage", "the script can't be written to %s: %s; TMPDIR can name another place"
                        % (where, error.strerror)) from error

    @staticmethod
    def remove(path):
        """Remove a script, if it is there and that can be."""
        try:
            os.unlink(path)
        except OSError:
            pass

    def close(self):
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._fd is not None:
            os.close(self._fd)
        self._directory = self._fd = None


# ---------------------------------------------------------------------------------------------- runner

# Variables for the server, which no job gets: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
SERVER_VARIABLES = frozenset(b"RTOT_SECRET RTOT_ADDR RTOT_LOG_FORMAT LISTEN_PID LISTEN_FDS LISTEN_FDNAMES "
                             b"LISTEN_PIDFDID NOTIFY_SOCKET WATCHDOG_PID WATCHDOG_USEC".split())
HAS_WAITID = hasattr(os, "waitid")      # not on macOS before Python 3.13, nor on PyPy: an exit is seen by reaping


class Process:
    """The processes of a job, which are one session, and our ends of their input and output.

    `pid`: the leader's, and the number of the session; None before the start, and once it is reaped.  `outcome`: how
    the script ended, as (text, code).  Then the leader is a zombie, which pins that number as long as `enders` tasks
    have signals to send.  `pipes`: the stream of each descriptor that is read.  `input`, `terminal`: descriptors, or
    None.  `changed`, the job's, is notified of the outcome, and of the end of the output, the input or an ender.
    """

    def __init__(self, job, runner):
        self.job, self.runner, self.loop, self.changed = job, runner, runner.loop, job.changed
        self.pid, self.outcome, self.enders, self.pipes, self.input, self.terminal = None, None, 0, {}, None, None
        # Does a task write to the input; a terminal's line so far; the timer that lets the reading go on.
        self._is_fed, self._line, self._paused = False, b"", None

    def start(self, argv):
        """Start the interpreter with the script: so it may be mounted noexec, and never meets "text file busy"."""
        options, spawner, ends = self.job.options, self.runner.spawner, []
        try:
            if options.tty:
                self.terminal, slave = os.openpty()
                self.pipes[self.terminal] = OUT
                ends.extend((slave, slave, slave))
                self.input = os.dup(self.terminal)
                set_size(slave, options.rows, options.cols)
            else:
                stdin, self.input = os.pipe() if options.stdin else (0, None)      # 0: see prepare_process
                ends.append(stdin)
                for stream in (OUT, ERR):
                    fd, end = os.pipe()
                    self.pipes[fd] = stream
                    ends.append(end)
            if max(ends) >= spawner.descriptors - min(RESERVED, spawner.descriptors // 4):
                raise os_error(errno.EMFILE)        # else nobody could connect to delete a job
            if self.input is not None:
                os.set_blocking(self.input, False)
            for fd in self.pipes:
                os.set_blocking(fd, False)
                self._watch(fd)
            self.pid = spawner.start(argv, ends, options)
        finally:
            for fd in set(ends) - {0}:
                os.close(fd)

    def close(self):
        """Kill it, if it lives, reap it, and keep nothing of it, whether it has started or not."""
        for fd in list(self.pipes):
            self._close_pipe(fd)
        self._close_input()
        if self.pid is not None:
            if not self.outcome:                # the server ends without waiting any longer
                send(os.killpg, self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0 if self.outcome else os.WNOHANG)
        self.pid = None

    def has_exited(self):
        """Has the script exited?  If so, note how; its zombie stays, where there is a waitid."""
        if self.outcome or self.pid is None:
            return True
        if HAS_WAITID:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if not info:
                return False
            number, killed, dumped = info.si_status, info.si_code != os.CLD_EXITED, info.si_code == os.CLD_DUMPED
        else:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return False
            self.pid, killed, dumped = None, os.WIFSIGNALED(status), os.WCOREDUMP(status)
            number = os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
        if killed:
            words = SIGNAL_WORDS.get(number, "signal %d" % number)
            self.outcome = "signal: " + words + (" (core dumped)" if dumped else ""), 128 + number
        else:
            number &= 255       # BSD gives more bits
            self.outcome = "exit status %d" % number if number else "", number
        self.changed.notify_all()
        return True

    # What it prints.

    def _watch(self, fd):
        self.loop.watch(fd, READ, lambda events: self._read(fd))

    def _pause(self):
        """Read no more for LOOK_AFTER, or until the owner of the output has read some."""
        self._paused = self.loop.call_later(LOOK_AFTER, self._resume)
        self.job.output.resume = self._resume
        for fd in self.pipes:
            self.loop.unwatch(fd)

    def _resume(self):
        for fd in self.pipes:
            self._watch(fd)
        self.job.output.resume = self._paused[2] = None

    def _read(self, fd):
        job, output, runner = self.job, self.job.output, self.runner
        size = WIDE_READ_SIZE if fd in runner.wide else READ_SIZE
        if output.owner:        # who gets no more of it than is kept
            size = min(size, output.limit)
            if runner.total.must_wait(output, size):
                self._pause()
                return
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return
        except OSError:         # EIO: nobody has the terminal open, now or any more
            if not self.has_exited():
                self._pause()
                runner.closed.add(self)
                return
            data = b""
        if not data:
            self._close_pipe(fd)
        elif job.id in runner.store.jobs or not job.is_complete():      # else nobody can ask for it any more
            runner.total.append(output, self.pipes[fd], data)
            self.changed.notify_all()
        if len(data) == READ_SIZE and len(runner.wide) < WIDE_PIPES:        # it was found full
            runner.wide.add(fd)
            try:
                fcntl.fcntl(fd, F_SETPIPE_SZ, WIDE_PIPE)
            except OSError:     # a terminal, another system, more than its user may have
                pass

    def _close_pipe(self, fd):
        del self.pipes[fd]
        self.loop.unwatch(fd)
        self.runner.wide.discard(fd)
        os.close(fd)
        if self.terminal == fd:
            self.terminal = None
            self._close_input()
        if not self.pipes:
            self.job.held = False
            self.changed.notify_all()
            if not self.has_exited():
                self.runner.closed.add(self)

    async def wait_for_end_of_output(self):
        """Wait for it; if the background holds it, for HELD_AFTER, and for all that the script itself has printed."""
        printed = self.job.output.end[LOG] + sum(in_system(fd, termios.FIONREAD) for fd in self.pipes)
        while not await self.changed.wait_for(lambda: not self.pipes, HELD_AFTER):
            if self.job.output.end[LOG] >= printed:     # else its owner holds it up
                return

    # What it reads.

    async def feed(self, data, eof, wait_for):
        """Write all of `data` to the standard input, and close it if `eof`; Error "conflict" if it is closed.

        wait_for(condition, predicate) is awaited meanwhile: Connection.attend.
        """
        await wait_for(self.changed, lambda: not self._is_fed)
        if self.input is None:
            raise Error("conflict", "standard input of job %d is closed" % self.job.id)
        rest = memoryview(data if self.terminal is None else self._typed(data, eof))

        def write_more():
            """Write what the input takes now; return whether that was all."""
            nonlocal rest
            while rest:
                if self.input is None:
                    raise Error("conflict", "job %d closed its standard input before all was written" % self.job.id)
                try:
                    rest = rest[os.write(self.input, rest):]
                except BlockingIOError:
                    if self.terminal is not None and has_hung_up(self.terminal):
                        raise Error("conflict", "job %d closed its terminal before all was written" % self.job.id)
                    return False
                except OSError:             # EPIPE: nobody reads it any more
                    self._close_input()
            return True
        self._is_fed = True
        try:
            if not write_more():
                self.loop.watch(self.input, WRITE, lambda events: self.changed.notify_all())
                await wait_for(self.changed, write_more)
            if eof and self.terminal is None:       # a terminal stays open
                self._close_input()
        finally:
            self._is_fed = False
            self.loop.unwatch(self.input)
            self.changed.notify_all()

    def _typed(self, data, eof):
        """Return what to write to a terminal; an Error for a line so long that it would drop the rest."""
        lines = re.split(b"[\r\n\3\4]", self._line + data)
        if termios.tcgetattr(self.terminal)[3] & termios.ICANON and max(map(len, lines)) > TERMINAL_LINE:
            raise Error("conflict", "a terminal takes %d bytes a line: use stty -icanon in the script, or POST "
                        "/jobs?stdin without tty" % TERMINAL_LINE)
        self._line = lines[-1]
        if eof:     # the first VEOF (termios(3)) ends a line without a newline, and only an empty one is the end
            data, self._line = bytes(data) + (b"\4\4" if self._line else b"\4"), b""
        return data

    def _close_input(self):
        fd, self.input = self.input, None
        if fd is not None:
            self.loop.unwatch(fd)
            os.close(fd)
            self.changed.notify_all()


def read_stat(pid):
    """Return (session, process group) of a process that lives, from proc_pid_stat(5), or (None, None)."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):        # gone, or not for us to see
        return None, None
    lives = fields[0] not in b"ZX" or int(fields[17]) > 1       # a zombie may have threads that live
    return (int(fields[3]), int(fields[2])) if lives else (None, None)


def send(kill, target, *numbers):
    """Signal by os.kill or os.killpg; return False for what runs as another user, as by sudo."""
    try:
        for number in numbers:
            kill(target, number)
    except ProcessLookupError:      # it has just ended
        pass
    except PermissionError:
        return False
    return True


def in_system(fd, request):
    """Return how many bytes the system holds to be read (FIONREAD) or sent (TIOCOUTQ); 0 if it does not tell."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def has_hung_up(terminal):
    """Has nobody the other side of a terminal open?"""
    poll = select.poll()
    poll.register(terminal, 0)              # POLLHUP comes unasked: poll(2)
    return bool(poll.poll(0))


def set_size(terminal, rows, cols):
    """Tell a terminal its size, and its foreground by SIGWINCH: TIOCSWINSZ of ioctl_tty(2)."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, array.array("H", (rows, cols, 0, 0)))


def open_null():
    """Return a descriptor from which nothing can be read: of /dev/null, or where that is missing, of a pipe."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        reading, writing = os.pipe()
        os.close(writing)
        return reading


class Spawner:
    """Starts processes, each as the leader of a session of its own, with the environment and the limit that jobs get.

    `descriptors` is how many we may have, `nofile` the (soft, hard) limit of jobs, None for ours.
    """

    def __init__(self, descriptors, nofile):
        self.descriptors, self.nofile = descriptors, nofile
        self._environ = {name: value for name, value in os.environb.items()
                         if name and b"=" not in name       # posix_spawn takes no such name
                         and name not in SERVER_VARIABLES}
        self._environ[b"PWD"] = working_directory() or b"/"

    def start(self, argv, ends, options):
        """Start it with `ends` as its descriptors 0 to 2; return its pid.  OSError, of options.cwd if that is why."""
        environ = dict(self._environ)
        if options.cwd is not None:
            environ[b"PWD"] = os.path.join(environ[b"PWD"], options.cwd)
        if options.tty:
            environ.setdefault(b"TERM", b"xterm")
            for name in (b"LINES", b"COLUMNS"):         # of the terminal that we were started from
                environ.pop(name, None)
        environ.update(options.env)
        if not self.nofile:
            return self._start(argv, environ, ends, options)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.nofile)     # set after the start, it often comes too late
        try:
            return self._start(argv, environ, ends, options)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EMFILE):
                raise
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, self.nofile[1]))
        pid = self._start(argv, environ, ends, options)     # with descriptors over that limit, there is no other way
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, self.nofile)
        except PermissionError:                 # it is another user's by now
            pass
        return pid

    def _start(self, argv, environ, ends, options):
        executable = argv[0] if b"/" in argv[0] else b"./" + argv[0]        # no search of PATH
        # From another directory we could not come back to one that we may not enter: sudo -u nobody from /root.
        can_move = options.cwd is None or hasattr(os, "O_PATH") and os.access(".", os.X_OK)
        if hasattr(os, "posix_spawn") and can_move and (LINUX or not options.tty):
            try:
                return self._spawn(executable, argv, environ, ends, options)
            except NotImplementedError:         # a C library without POSIX_SPAWN_SETSID: glibc before 2.26
                pass
        child = subprocess.Popen(       # every other descriptor is close-on-exec (PEP 446); see prepare_process
            argv, executable=executable, stdin=ends[0], stdout=ends[1], stderr=ends[2], cwd=options.cwd, env=environ,
            close_fds=False, start_new_session=True,        # a preexec_fn makes a job take 15% longer
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if options.tty else None)
        child.returncode = 0            # Runner waits for it, not Popen
        return child.pid

    @staticmethod
    def _spawn(executable, argv, environ, ends, options):
        """Start it in 0.06 ms, for which Popen takes 0.13, and before Python 3.10 from 0.6 on, as our memory grows.

        posix_spawn(3) takes no directory, so it is ours for a moment.
        """
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(ends)]
        if options.tty:     # a session leader that opens a terminal gets it as its controlling one: credentials(7)
            actions[0] = (os.POSIX_SPAWN_OPEN, 0, os.ttyname(ends[0]), os.O_RDWR, 0)
        home = None if options.cwd is None else os.open(".", os.O_PATH)
        try:
            if home is not None:
                os.chdir(options.cwd)
            # Python ignores these two signals; others have their defaults, or no_action.
            return os.posix_spawn(executable, argv, environ, setsid=True, file_actions=actions,
                                  setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
        finally:
            if home is not None:
                os.fchdir(home)
                os.close(home)


class Runner:
    """Owns every Process, which nobody else starts, signals or closes.  `run` is the life of a job.

    `parallel` jobs run at a time, 0 is all; the others wait as `new`.
    """

    def __init__(self, loop, store, workspace, spawner, total, parallel, log):
        self.loop, self.store, self.workspace, self.spawner = loop, store, workspace, spawner
        self.total, self.parallel, self.log = total, parallel, log
        # The file of the script of each job that is not complete; those of them that wait for their turn, as keys.
        self._scripts, self._queue = {}, collections.OrderedDict()
        # Processes by job; those that have closed their output and live; the pipes that hold more.
        self.processes, self.closed, self.wide = {}, set(), set()
        self._look, self._freed, self._is_stopping = None, 0, False     # a timer; bytes since malloc gave some back
        # Of /proc: is it being read; when did the last reading begin; the pids by session and process group, or None.
        self._is_reading, self._read_at, self._sessions = False, 0.0, None
        self._changed = Condition(loop)             # a process was reaped, or /proc read

    is_busy = property(lambda self: bool(self._scripts))        # does a job run, or wait to?

    # The life of a job.

    def submit(self, job):
        """Keep a job, and run it when its turn comes; an Error if its script can't be stored."""
        path = self.workspace.write(job.script)
        try:
            self.store.add(job)
        except Error:
            self.workspace.remove(path)
            raise
        self._scripts[job], self._queue[job] = path, None
        self._start_next()

    def _start_next(self):
        while self._queue and (not self.parallel or len(self._scripts) - len(self._queue) < self.parallel):
            job = next(iter(self._queue))
            self.loop.spawn(self.run(job))
            del self._queue[job]

    async def run(self, job):
        """The task of a job whose turn has come, until nothing is left to signal."""
        if job.is_complete():                   # canceled meanwhile
            return
        process, words = Process(job, self), [self._scripts[job]]
        try:
            try:
                if self.parallel and not os.path.exists(words[0]):      # somebody has cleaned the temporary directory
                    self._scripts[job] = self.workspace.write(job.script)
                words = [*parse_shebang(job.script), self._scripts[job], *job.options.arg]
                process.start(words)
            except (OSError, ValueError, MemoryError, Error) as error:
                self._not_started(job, words[0], error)
                return
            self.processes[job] = process
            job.start(process.pid)
            await process.changed.wait_for(lambda: process.outcome, job.options.timeout)
            if not (process.outcome or process.has_exited()):
                job.timed_out = True
                self.end(process, signal.SIGTERM, GRACE)
                await process.changed.wait_for(lambda: process.outcome)
            if process.pipes:
                await process.wait_for_end_of_output()
            self._complete(job, *process.outcome, held=bool(process.pipes))
            await self.loop.turn()              # those who wait for the job go first: the rest takes 0.1 ms
            await process.changed.wait_for(lambda: not process.enders and (self._is_stopping or not process.pipes))
        finally:
            process.close()
            self.closed.discard(process)
            self.processes.pop(job, None)
            self._changed.notify_all()
            if not job.is_complete():           # the server ends, or has a fault that the log tells
                self._complete(job, "rtot gave it up", 126)

    def _complete(self, job, text, code, held=False):
        """Complete the job, let the next start, remove the script, and release the jobs that are not kept."""
        hint = job.started and explain_failure(job.script, code)
        if hint:
            self.total.append(job.output, ERR, hint)
        job.complete(text, code, held)
        self.loop.call_later(0, functools.partial(self.workspace.remove, self._scripts.pop(job)))
        self._start_next()
        self.log.job_ended(job)
        for each in self.store.retire(job):
            self._release(each)

    def _not_started(self, job, name, error):
        """Complete a job whose script could not be started, with what Go's os/exec would say."""
        numbers, what = {MemoryError: errno.ENOMEM, Error: errno.ENOSPC}, "fork/exec"
        number = numbers.get(type(error), getattr(error, "errno", errno.EINVAL))       # ValueError: of posix_spawn
        if job.options.cwd is not None and getattr(error, "filename", None) == job.options.cwd:
            what, name = "chdir", job.options.cwd
        job.started = wall_ns()                 # when it was tried
        self._complete(job, "%s %s: %s" % (what, readable(name), os.strerror(number).lower()),
                       127 if number == errno.ENOENT else 126)

    def _release(self, job):
        """Keep nothing of a job that was forgotten, nor its memory."""
        self._freed += len(job.script) + self.total.forget(job.output)
        if self._freed >= TRIM_SIZE:
            self._freed = 0
            self.loop.call_later(TRIM_AFTER, give_memory_back)

    # Exits.

    def child_exited(self):
        """At SIGCHLD, ask those whose output has ended, as of nearly all who exit; later all, at 1 us each."""
        self.loop.call_later(0, self._ask_closed)       # when this turn has read what they have printed
        self._look = self._look or self.loop.call_later(LOOK_AFTER, self._ask_all)

    def _ask_closed(self):
        self.closed -= {process for process in itertools.islice(self.closed, MANY_CLOSED) if process.has_exited()}

    def _ask_all(self):
        """Ask all, and reap what came to us as PID 1, or as a subreaper."""
        self._look = None
        for process in self.processes.values():
            process.has_exited()
        try:
            with open("/proc/self/task/%d/children" % os.getpid()) as file:     # proc_pid_task(5)
                children = set(map(int, file.read().split()))
        except OSError:         # a kernel without it; then a pinned zombie hides those behind it
            info = HAS_WAITID and self.processes and os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            children = {info.si_pid} if info else set()
        for pid in children - {process.pid for process in self.processes.values()}:
            os.waitpid(pid, os.WNOHANG)

    # Signals.

    async def kill(self, job, number, grace):
        """Do as end() does; an Error if nothing is left, or some may not be signalled."""
        process = self.processes.get(job)
        if process is None or process.pid is None or process.outcome and not process.pipes:
            raise Error("conflict", ("job %d has not started: DELETE cancels it" if job.state == "new" else
                                     "job %d is complete: there is nothing to signal") % job.id)
        signaled = self.end(process, number, grace)
        await process.changed.wait_for(lambda: signaled or not process.enders)
        foreign = signaled.pop()
        if foreign:
            raise Error("conflict", "process %s of job %d runs as another user: rtot may not signal it" % (
                " ".join(map(str, foreign)), job.id))

    def end(self, process, number, grace):
        """Signal the whole session, and after `grace` seconds (None is never) SIGKILL what is left of it.

        A later call does not put that SIGKILL off.  Return a list, to which a list is added when the signal was sent:
        the pids that may not be signalled.
        """
        signaled = []
        process.enders += 1                     # now: run() waits for it
        self.loop.spawn(self._end(process, number, grace, signaled))
        return signaled

    async def _end(self, process, number, grace, signaled):
        until = time.monotonic() + (grace or 0)
        try:        # SIGCONT lets those go on that are stopped
            living, foreign = await self._signal(process, number, *(() if grace is None else (signal.SIGCONT,)))
            signaled.append(foreign)
            process.changed.notify_all()
            if grace is None:
                return
            await process.changed.wait_for(lambda: process.outcome, until - time.monotonic())
            while True:
                late = time.monotonic() - until
                living, foreign = await self._signal(process, signal.SIGKILL if late >= 0 else 0)       # 0 is none
                if late >= 0 and living in (None, foreign) or late > KILL_FOR:
                    break
                if living == []:        # or it forks so fast that no list shows it: one SIGKILL is due
                    until = time.monotonic()
                else:
                    await self.loop.sleep(LOOK_AFTER)
            if living:
                self.log.event("job %d can't be ended: process %s runs as another user, or has survived SIGKILL"
                               % (process.job.id, " ".join(map(str, living))))
        finally:
            process.enders -= 1
            process.changed.notify_all()

    async def _signal(self, process, *numbers):
        """Signal all groups of the session: timeout(1) and `set -m` make some.  Return two lists of pids.

        They are those that live (None if /proc can't be read: then not all groups are), and that we may not signal.
        """
        session = process.pid
        if session is None:
            return [], []
        send(os.killpg, session, *numbers)
        sessions = await self._living()
        if sessions is None:
            return None, []
        groups = sessions.get(session, {})
        for group, pids in groups.items():          # whose number may be a stranger's by now; the leader's is pinned
            try:
                if group != session and any(read_stat(pid) == (session, group) for pid in pids):
                    send(os.killpg, group, *numbers)
            except OSError:             # no descriptor to read it with
                return None, []
            await self.loop.breathe()
        living = [pid for pids in groups.values() for pid in pids]
        return living, [pid for pid in living if not send(os.kill, pid, 0)]

    async def _living(self):
        """Return the pids that live by session and process group, from one reading of /proc for all who ask meanwhile.

        None if there is no /proc of our pid_namespaces(7).
        """
        asked = time.monotonic()        # a reading that began before may have missed some
        await self._changed.wait_for(lambda: self._read_at >= asked or not self._is_reading)
        if self._read_at >= asked:
            return self._sessions
        self._is_reading, began, sessions, found = True, asked, {}, None
        try:
            await self.loop.turn()      # others ask in this one, too
            began = time.monotonic()
            if os.readlink("/proc/self") == str(os.getpid()):
                for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
                    session, group = read_stat(pid)
                    sessions.setdefault(session, {}).setdefault(group, []).append(pid)
                    await self.loop.breathe()
                found = sessions
        except OSError:
            pass
        finally:
            self._is_reading, self._read_at, self._sessions = False, began, found
            self._changed.notify_all()
        return found

    def cancel(self, job):
        """End a job that is not complete; one that is new is complete at once."""
        if job.state == "new":
            self._queue.pop(job, None)
            self._complete(job, "canceled before it started", 126)
        elif not job.is_complete():
            self.end(self.processes[job], signal.SIGTERM, GRACE)

    async def forget(self, jobs):
        """End the jobs that are not complete, and keep nothing of any."""
        for job in jobs:
            self.store.remove(job)
        for job in jobs:
            if job.is_complete():
                self._release(job)
            else:
                self.cancel(job)                # it is released when it is complete
            await self.loop.breathe()

    def end_all(self, number, grace):
        """End all processes, those in the background too."""
        for process in self.processes.values():
            self.end(process, number, grace)

    async def stop(self):
        """End all jobs; return when nothing is left of them, or twice the grace has passed."""
        for job in list(self._scripts):
            if job.state == "new":
                self.cancel(job)
        self.end_all(signal.SIGTERM, GRACE)
        self._is_stopping = True                # what setsid(2) took out of its session may still hold output
        await self._changed.wait_for(lambda: not self.processes and not self.is_busy, 2 * GRACE)


# ------------------------------------------------------------------------------------------------ HTTP

# Bytes over 0x7f, which RFC 3986 does not have, are let through: curl sends a label as it was typed.
TOKEN = b"[!#$%&'*+.^_`|~0-9A-Za-z-]+"                  # RFC 9110, 5.6.2
CHARACTER = b"(?:[!$&-;=@-Z_a-z~\\[\\]\x80-\xff]|%[0-9A-Fa-f]{2})"        # of a path, and [] of a query: RFC 3986, 3.3
AUTHORITY = b"(?:\\[[0-9A-Fa-f:.]+\\]|(?:[!$&-.0-9;=A-Z_a-z~]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"        # 3.2.2 and 3.2.3
TARGET = (b"(?:(?=/)|(?i:https?)://(?=[^ :/?])" + AUTHORITY + b")(/" + CHARACTER + b"*)?(?:[?]((?:" + CHARACTER
          + b"|[?])*))?|(?<=^OPTIONS )[*]|(?<=^CONNECT )(?! )" + AUTHORITY)             # RFC 9112, 3.2
REQUEST_LINE = re.compile(b"(" + TOKEN + b") (?:" + TARGET + b") HTTP/([0-9])[.]([0-9])\r")
HEADERS = re.compile(b"(?m)^(" + TOKEN + b"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")     # RFC 9112, 5; no obs-fold
QUOTED = br'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'        # RFC 9110, 5.6.4
CHUNK = (b"0*([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*" + TOKEN + b"(?:[ \t]*=[ \t]*(?:" + TOKEN + b"|" + QUOTED
         + b"))?)*")                                                            # RFC 9112, 7.1 and 7.1.1
ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"rtot-secret", b"authorization"))
TLS_HANDSHAKE = b"\x16"     # how TLS begins: the type of the first record (RFC 8446, 5.1)
WANT_READ, WANT_WRITE = 2, 3        # errno of what ssl raises if it would block; the same in all versions of OpenSSL
JSON, TEXT, HTML, JSON_LINES = (kind + "; charset=utf-8" for kind in (
    "application/json", "text/plain", "text/html", "application/x-ndjson"))
malformed = functools.partial(Error, "malformed request")       # for what is not HTTP as RFC 9112 has it


def unquote(data):
    """Return bytes without their percent-encoding."""
    return re.sub(b"%([0-9A-Fa-f]{2})", lambda match: bytes((int(match.group(1), 16),)), data)


def parse_headers(fields):
    """Return the values of header lines by lower-case name, without a last one that is not complete."""
    found, lines, headers = HEADERS.findall(fields), fields.count(b"\n"), {}
    if lines > MAX_HEADERS:
        raise Error("request header fields too large", "there may be %d headers" % MAX_HEADERS)
    if len(found) != lines:
        raise malformed("a header has to be like: Name: value, without a fold or a control character")
    for name, value in found:
        name, value = name.lower(), value.strip(b" \t")
        if name in headers:
            if name in ONCE:
                raise malformed("there may be one %s header" % name.decode("ascii"))
            value = headers[name] + b", " + value
        headers[name] = value
    return headers


@functools.lru_cache(maxsize=128)           # clients send the same again and again
def parse_head(head):
    """Return what a Request is made of; an Error if it can't be served.

    `head` ends with the empty line, or is what has come so far: None if nothing is wrong before its first line ends.
    """
    line, newline, fields = head.partition(b"\n")
    if len(line) > MAX_LINE:
        raise Error("uri too long", "the request line may have %d bytes: put data into the body" % MAX_LINE)
    if len(fields) > MAX_LINE:
        raise Error("request header fields too large", "all headers together may have %d bytes" % MAX_LINE)
    if not newline and re.match(b"\r?$|" + TOKEN, line):
        return None
    match, is_whole = REQUEST_LINE.fullmatch(line), head.endswith(b"\n\r\n")
    if not match:
        raise malformed("the first line has to be like: GET /jobs?wait HTTP/1.1, with a quote as %22 and so on")
    method, path, query, major, minor = match.groups()
    if major != b"1":
        raise Error("http version not supported", "rtot speaks HTTP/1.1 and HTTP/1.0")
    version, headers = 10 if minor == b"0" else 11, parse_headers(fields[:-2] if is_whole else fields)
    if not re.fullmatch(AUTHORITY, headers.get(b"host", b" " if is_whole and version == 11 else b"")):
        raise malformed("Host has to be a name or an address, with or without a port; HTTP/1.1 requires it")
    length, coding = headers.get(b"content-length", b"0"), headers.get(b"transfer-encoding")        # RFC 9112, 6.3
    if coding is not None and (b"content-length" in headers or version == 10):
        raise malformed("Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0")
    if coding is not None and coding.lower() != b"chunked":
        raise Error("not implemented", "the one transfer coding that rtot reads is chunked")
    if not re.fullmatch(b"0*[0-9]{1,18}", length):
        raise malformed("Content-Length has to be a decimal number of bytes")
    path = readable(unquote(re.sub(b"%2[Ff]", b"%252F", path or b"/")))     # which separates nothing: RFC 3986, 2.2
    keeps = version == 11 and b"close" not in re.findall(TOKEN, headers.get(b"connection", b"").lower())
    expects = version == 11 and headers.get(b"expect", b"").lower() == b"100-continue"
    return method.decode("ascii"), path, query or b"", version, headers, None if coding else int(length), keeps, expects


class Request:
    """What a client asked for: `path` as text, decoded; `query` as bytes, as it came; `headers` by lower-case name.

    `version` is 10 or 11; `length` that of the body in bytes, None for a chunked one; `keeps`: another may follow.
    `timeout`: s without a byte of the body, None is no limit; `_remaining` bytes of it, or of this chunk, are to come
    until it has `ended`, None before the first chunk; `_is_held_back`: the client waits for a 100 before it sends it.
    `on_cut_off` is called if the client does not get the whole answer.  `job`: the id of its new job.
    """

    job, on_cut_off = None, staticmethod(int)        # which does nothing

    def __init__(self, client, head):
        (self.method, self.path, self.query, self.version, self.headers, self.length, self.keeps,
         self._is_held_back) = head
        self.client, self.timeout, self.ended = client, client.server.limits.body_timeout, self.length == 0
        self._remaining = self.length

    async def read(self):
        """Return what comes next of the body, at most SLICE bytes; b"" at the end."""
        if not await self._has_more():
            return b""
        if not self.client.buffer:
            await self._receive()
        data = self.client.take(min(self._remaining, SLICE))
        self._remaining -= len(data)
        self.ended = self.length is not None and not self._remaining
        return data

    async def read_all(self, limit, kind, message):
        """Return the body; an Error if it has more than `limit` bytes, as soon as that is known."""
        data = bytearray()
        while await self._has_more():
            if len(data) + self._remaining > limit:
                raise Error(kind, message)
            data += await self.read()
        return bytes(data)

    async def _has_more(self):
        """Return whether more of the body is to come, when it is known how many bytes at least."""
        if not self._remaining and not self.ended:
            if self._remaining == 0 and await self._line(limit=1):
                raise malformed("a chunk was not followed by CR LF")
            match = re.fullmatch(CHUNK, await self._line())
            if not match:
                raise malformed("a chunk has to begin with its size in hexadecimal digits")
            self._remaining, trailers = int(match.group(1), 16), b""
            while not self._remaining and not self.ended:
                line = await self._line()
                self.ended = not line
                trailers += line + b"\r\n" if line else b""
                if ONCE.intersection(parse_headers(trailers)):
                    raise malformed("a trailer can't frame the message, nor name its sender")
            await self.client.loop.breathe()            # chunks may be tiny
        return not self.ended

    async def _line(self, limit=MAX_LINE):
        """Return the next line, of so many bytes at most, without its CR LF."""
        buffer = self.client.buffer
        while b"\n" not in buffer and len(buffer) <= limit:
            await self._receive()
        line = self.client.take(buffer.find(b"\n") + 1)
        if len(line) > MAX_LINE or not line.endswith(b"\r\n"):
            raise malformed("a line of a chunked body has to end with CR LF, within %d bytes" % MAX_LINE)
        return line[:-2]

    async def _receive(self):
        if self._is_held_back:
            self._is_held_back = False
            await self.client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await self.client.receive(self.timeout, "body")


class Pieces:
    """A body that is made as it is sent, from an iterator of bytes.

    Others too have read(), the next bytes or b"" at the end, ClientGone if it can't be reached; trailers(), the pairs
    behind it; and close().
    """

    trailers = close = lambda self: ()

    def __init__(self, iterator):
        self._iterator = iterator

    async def read(self):
        return next(self._iterator, b"")


def gather(pieces):
    """Return the next pieces of text as bytes: SLICE characters or more, or BATCH pieces; b"" at the end."""
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= SLICE or len(parts) >= BATCH:
            break
    return "".join(parts).encode("utf-8", "replace")


class Response:
    """An answer.  `body` is bytes, or like Pieces, with its `length` in bytes, None if that is not known.

    `policy`: what a browser may do with it.
    """

    policy = "default-src 'none'; frame-ancestors 'none'"

    def __init__(self, status, body=b"", content_type=None, headers=(), length=None):
        self.status, self.body, self.content_type, self.headers = status, body, content_type, headers
        self.length = len(body) if isinstance(body, bytes) else length

    @classmethod
    def json(cls, status, value, headers=()):
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        return cls(status, text.encode("utf-8", "replace"), JSON, headers)

    @classmethod
    def of_pieces(cls, status, pieces, content_type, headers=()):
        """Answer with text from an iterator; what is large is made as it is sent, so it is never held whole."""
        first, second = gather(pieces), gather(pieces)
        body = Pieces(itertools.chain((first, second), iter(lambda: gather(pieces), b""))) if second else first
        return cls(status, body, content_type, headers)

    @classmethod
    def of_error(cls, error):
        return cls.json(error.status, dict(error.extra, error=error.kind, message=error.message), error.headers)


@functools.lru_cache(maxsize=256)
def head_start(status, content_type, policy, seconds):
    """Return what many answers begin with; `seconds` since 1970."""
    return "".join(line + "\r\n" for line in (
        "HTTP/1.1 %d %s" % (status, REASONS[status]), "Rtot-Version: " + __version__,
        "Date: " + utc("%a, %d %b %Y %H:%M:%S GMT", seconds), "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff", "Content-Security-Policy: " + policy,
        content_type and "Content-Type: " + content_type) if line)


def response_head(request, response, keep):
    """Return the head of an answer as bytes; `keep`: another request may follow."""
    head = head_start(response.status, response.content_type, response.policy, int(time.time()))
    for name, value in response.headers:
        if "\r" in value or "\n" in value:
            raise ValueError("a header that goes out has a line end: %s" % name)
        head += "%s: %s\r\n" % (name, value)
    if response.length is None:
        if request.version == 11:
            head += "Transfer-Encoding: chunked\r\n" + "".join("Trailer: %s\r\n" % name
                                                               for name, _ in response.body.trailers())
    elif response.status != 204:
        head += "Content-Length: %d\r\n" % response.length
    return (head + ("\r\n" if keep else "Connection: close\r\n\r\n")).encode("latin-1")


class Connection(socketserver.BaseRequestHandler):
    """A client's connection.  `serve` is its life, a task; but for a 503 of Server._make_room, that alone writes to it.

    What comes is taken into `buffer` whatever the task does, which is woken; so its end, `at_end`, is noticed at once.
    `is_gone`: nothing can be sent any more.  `waiting_since`, on the monotonic clock: since when it may be closed to
    make room; None while a request with the secret is served.  `is_fresh`: no answer was sent yet; `is_known`: it has
    shown the secret.
    """

    def setup(self):
        self.loop, self.socket = self.server.loop, self.request     # as socketserver calls a socket
        self.address = "unix" if self.server.address_family == socket.AF_UNIX else re.sub(
            "^::ffff:", "", self.client_address[0])     # IPv4 by way of an IPv6 socket
        self.buffer, self.at_end, self.is_gone = bytearray(), False, False
        self.is_fresh, self.is_known, self.waiting_since = True, False, time.monotonic()
        self._fd, self._tls, self._watched, self._limit = self.socket.fileno(), False, 0, MAX_STRANGER
        self.socket.setblocking(False)
        self._recv = self._first_recv if self.server.tls else self.socket.recv
        self._watch()
        self.server.connections.add(self)
        self.task = self.loop.spawn(self.serve())

    async def serve(self):
        limits, keep = self.server.limits, True
        try:
            while keep:
                if self.buffer:             # the next has come already
                    await self.loop.breathe()
                else:                       # a handshake of TLS has the time of a head
                    is_shaking = self.server.tls and self.is_fresh
                    await self.receive(limits.head_timeout if is_shaking else limits.idle_timeout)
                keep = await self._serve_one()
            await self._linger()
        finally:
            self.loop.unwatch(self._fd)
            self.server.connections.discard(self)
            self.socket.close()

    async def _serve_one(self):
        """Serve a request; return whether another may follow."""
        began, request, response, sent = time.monotonic(), None, None, None
        try:
            try:
                request = await self._read_head()
                response = await self.server.app.answer(request)
            except Error as error:                      # here alone is it answered
                response = Response.of_error(error)
            except MemoryError:
                self.loop.relieve()
                response = Response.of_error(Error("service unavailable", "memory is short: try again, see GET /jobs"))
            except Exception:
                self.loop.report(*sys.exc_info())
                response = Response.of_error(Error("internal server error", "a fault of rtot, which its log describes"))
            # Not after a body that was not read, or that may come behind a 411.
            keep = bool(request and request.ended and request.keeps and response.status not in (401, 411)
                        and not self.server.app.is_stopping)
            self.is_fresh = False
            sent = await self._send_response(request, response, keep)
            return keep
        finally:
            self.waiting_since = time.monotonic()
            if request and sent is None:
                request.on_cut_off()
            if request or response:
                self.server.log.access(self.address, request, response, sent, self.waiting_since - began)

    def _watch(self, writes=0):
        """Watch for more to read, if there is room in the buffer; for room to write, once, if `writes` is WRITE."""
        wanted = writes | READ * (not self.at_end and len(self.buffer) < self._limit)
        if wanted != self._watched:
            self.loop.watch(self._fd, wanted, self._on_event)
            self._watched = wanted

    def _on_event(self, events):
        """Take what has come into the buffer, and wake the task."""
        self.task.wake()
        if events & WRITE:
            self._watch()
        if self.at_end or len(self.buffer) >= self._limit or not (events & READ or self._tls):
            return
        try:
            data = self._recv(self._limit >> 2)         # of TLS a record, of 16 KiB at most: nothing is left in it
        except OSError as error:
            if error.errno == WANT_WRITE:
                self._watch(WRITE)
            if error.errno in (errno.EAGAIN, WANT_READ, WANT_WRITE):
                return
            data = b""
            self.give_up()
            if self._tls and self.is_fresh:
                self.server.log.event("no TLS with %s: %s" % (self.address, error))
        self.buffer += data
        self.at_end = not data
        if self.at_end or len(self.buffer) >= self._limit:
            self._watch(self._watched & WRITE)

    def _first_recv(self, size):
        """Begin TLS, unless the client speaks plain HTTP, and receive."""
        if self.socket.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
            self.socket = self.server.tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self._tls = True
        self._recv = self.socket.recv       # which shakes hands
        return self._recv(size)

    def admit(self):
        """Note that it has shown the secret: more is taken of it, and while its request is served it is not closed."""
        self.waiting_since, self.is_known, self._limit = None, True, MAX_BUFFER
        self._watch()

    def give_up(self):
        """Let the task end as soon as it would wait, receive or send."""
        self.at_end = self.is_gone = True
        self.buffer.clear()
        self.task.wake()

    async def receive(self, seconds, part=None):
        """Wait until more has come into the buffer, for some seconds at most, None is no limit.

        Else raise ClientGone, or an Error, if `part` says what of a request is missing.
        """
        size = len(self.buffer)
        self._watch()
        await self.loop.wait_for(lambda: len(self.buffer) > size or self.at_end, seconds)
        if len(self.buffer) <= size:
            if not part or self.is_gone:
                raise ClientGone()
            if self.at_end:
                raise malformed("the connection ended within the %s of a request" % part)
            raise Error("request timeout", "the %s did not come in time" % part)
        await self.loop.breathe()

    def take(self, size):
        """Take `size` bytes, or all that there are, from the buffer."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def send(self, *parts):
        """Send all of the parts; ClientGone if the client disconnects, or takes nothing for SEND_TIMEOUT."""
        for part in parts if sum(map(len, parts)) > SLICE else (b"".join(parts),):       # no large one is copied
            rest = memoryview(part)
            while rest:
                if self.is_gone:
                    raise ClientGone()
                try:
                    rest = rest[self.socket.send(rest):]
                except OSError as error:
                    self._watch(WRITE)
                    if error.errno not in (errno.EAGAIN, WANT_WRITE) or not await self.loop.wait_for(
                            lambda: self.is_gone or not self._watched & WRITE, SEND_TIMEOUT):
                        raise ClientGone() from None            # nor is a new handshake waited for

    def unsent(self):
        """Return how many bytes the system still holds for the client: tcp(7)."""
        return in_system(self._fd, termios.TIOCOUTQ)

    def attend(self, condition, predicate, timeout=None):
        """Wait as by condition.wait_for; ClientGone if the client has closed its side, or does so meanwhile."""
        def is_over():
            result = predicate()
            if self.at_end and not result:
                raise ClientGone()
            return result
        return condition.wait_for(is_over, timeout)

    async def _read_head(self):
        if self.server.tls and not self._tls:
            raise malformed("rtot speaks TLS here: use https://")
        buffer, until, parsed = self.buffer, time.monotonic() + self.server.limits.head_timeout, -1
        while True:
            if buffer.startswith(b"\r\n"):      # RFC 9112, 2.2: an empty line before a request is ignored
                del buffer[:2]
            last = buffer.find(b"\n\r\n")
            if last >= 0:
                parse = parse_head if last < 1000 else parse_head.__wrapped__       # no large ones in its cache
                return Request(self, parse(self.take(last + 3)))
            end = buffer.rfind(b"\n")           # what is wrong is told at once, but not looked for at each byte
            if end != parsed or end < 0 or len(buffer) - buffer.find(b"\n") - 1 > MAX_LINE:
                parse_head.__wrapped__(bytes(buffer))
                parsed = end
            await self.receive(until - time.monotonic(), "head" if buffer else None)

    async def _send_response(self, request, response, keep):
        """Send the answer; return the bytes of its body."""
        head, body, sent = response_head(request, response, keep), response.body, 0
        if request and request.method == "HEAD":
            if not isinstance(body, bytes):
                body.close()
            body = b""
        if isinstance(body, bytes):
            await self.send(head, body)
            return len(body)
        chunked, is_cut_off, data = response.length is None and request.version == 11, True, None
        try:
            await self.send(head)
            while data != b"":
                data = await body.read()
                sent += len(data)
                if chunked:
                    rest = data or "".join("%s: %s\r\n" % pair for pair in body.trailers()).encode("latin-1")
                    await self.send(b"%x\r\n" % len(data), rest, b"\r\n")
                else:
                    await self.send(data)
                await self.loop.breathe()
            is_cut_off = False
        finally:
            body.close()
            if is_cut_off and response.length is None and not chunked:      # closing alone would hide it
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return sent

    async def _linger(self):
        """Close so that the client gets the answer: a reset on unread data could overtake it (RFC 9112, 9.6)."""
        try:
            if self._tls:
                self.socket.unwrap()        # sends close_notify, without which the last body may seem cut off
        except (OSError, ValueError):       # the client still sends, or is gone
            pass
        try:
            self.socket.shutdown(socket.SHUT_WR)        # after which ssl gives what comes as it is
        except OSError:
            return
        until = time.monotonic() + (KNOWN_LINGER if self.is_known else LINGER)
        while time.monotonic() < until:
            self.buffer.clear()
            await self.receive(min(LINGER, until - time.monotonic()))


def remove_ours(path, ours, log):
    """Remove a file of which os.stat() was `ours`, unless the name is another's by now.

    Call it while the file is open: the number of an inode is used again.
    """
    try:
        if os.path.samestat(os.stat(path), ours):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.event("cannot remove %s: %s" % (path, error.strerror))


def show_address(address):
    """Return where to listen, or the address of a socket, as text."""
    if not isinstance(address, tuple):      # a Unix socket; bytes are of the abstract namespace of unix(7)
        return "unix:" + os.fsdecode(address).replace("\0", "@", 1)
    host, port = address[:2]
    return "%s:%d" % ("[%s]" % host if ":" in host else host, port)


class Server(socketserver.TCPServer):
    """Listens, and makes a Connection of each client."""

    allow_reuse_address = True
    request_queue_size = BACKLOG

    def __init__(self, address, loop, app, log, limits, descriptors, tls=None):
        """Listen on (host, port), where "" is all addresses, or on the path of a Unix socket, or take over a socket.

        `limits` has `max_connections`, and in seconds `head_timeout`, `body_timeout`, without a byte of it, and
        `idle_timeout`; `descriptors` is how many we may have.
        """
        self.loop, self.app, self.log, self.limits, self.tls = loop, app, log, limits, tls
        self.descriptors, self.connections = descriptors, set()
        self._made = None       # the path and os.stat() of the Unix socket that we made
        if isinstance(address, socket.socket):
            super().__init__(None, Connection, bind_and_activate=False)
            self.socket.close()
            self.socket, self.address_family, self.server_address = address, address.family, address.getsockname()
        elif isinstance(address, str):
            self._bind_path(address)
        else:
            try:
                self._bind(address[0] or "::", address[1])
            except OSError as error:        # a host without IPv6; OpenBSD, whose IPv6 sockets take no IPv4
                if address[0] or error.errno == errno.EADDRINUSE:
                    raise
                self._bind("0.0.0.0", address[1])
        self.socket.setblocking(False)
        for level, name, value in SOCKET_OPTIONS if self.address_family != socket.AF_UNIX else ():
            if hasattr(socket, name):       # other systems have other names, or none
                self.socket.setsockopt(level, getattr(socket, name), value)

    def _bind(self, host, port):
        name = host.encode("ascii" if re.fullmatch("[!-~]*", host) else "idna")     # that codec takes 2 ms to import
        self.address_family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        super().__init__(address, Connection)

    def _bind_path(self, path):
        """Listen on a Unix socket, in the place of a stale one.

        The directory is locked: of two servers that both find a stale one, the second must not remove the first one's.
        """
        self.address_family = socket.AF_UNIX
        lock = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(path) == errno.ECONNREFUSED and stat.S_ISSOCK(os.stat(path).st_mode):
                    os.unlink(path)
            super().__init__(path, Connection)
        finally:
            os.close(lock)

    def server_bind(self):
        if self.server_address[0] == "::":              # means IPv4 too
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
        if self.address_family == socket.AF_UNIX:
            self._made = self.server_address, os.stat(self.server_address)
            os.chmod(self.server_address, 0o600)        # for our user alone

    def server_close(self):
        if self._made:
            remove_ours(*self._made, log=self.log)
        super().server_close()

    @property
    def url(self):
        shown = show_address(self.server_address)
        return shown if self.address_family == socket.AF_UNIX else "http%s://%s/" % ("s" if self.tls else "", shown)

    def start(self):
        self.loop.watch(self.fileno(), READ, self.accept)

    def accept(self, events):
        """Accept some of the clients that wait; for one too many another is closed, or that one."""
        for _ in range(TLS_ACCEPTS if self.tls else ACCEPTS):
            client = None
            try:
                client, address = self.get_request()
                self.finish_request(client, address)            # makes the Connection, whose task closes it
            except BlockingIOError:
                return
            except (OSError, MemoryError) as error:
                if client:
                    client.close()
                number = getattr(error, "errno", errno.ENOMEM)
                if number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    if not self._make_room() and number == errno.ENOMEM:
                        self.loop.relieve()
                    self.loop.unwatch(self.fileno())        # what waits stays readable: the loop would spin
                    self.loop.call_later(0.1, self.start)
                return                      # or the client is gone already
            if self._is_full():
                self._make_room()
                return                      # the next one takes the descriptor that this frees

    def _is_full(self):
        """Are there too many connections, or too few descriptors left for scripts and modules?"""
        try:
            free = os.dup(self.fileno())        # the lowest that is free
        except OSError:
            return True
        os.close(free)
        most = (self.descriptors - LEAST_DESCRIPTORS) // 2 + 1          # of connections; the others are for jobs
        return (free >= self.descriptors - min(SPARE, self.descriptors // 8)
                or len(self.connections) > min(self.limits.max_connections, most))

    def _make_room(self):
        """Close the connection that has waited longest for a request; return whether there was one.

        Those without the secret go first, but last in their first PROMPT seconds, in which they may show it, unless
        they are a crowd.
        """
        waiting = [one for one in self.connections if one.waiting_since is not None]
        if not waiting:
            return False
        is_crowd, prompt = 2 * sum(one.is_known for one in waiting) < len(waiting), time.monotonic() - PROMPT
        oldest = min(waiting, key=lambda one: (1 if one.is_known else 2 * (
            one.is_fresh and one.waiting_since > prompt and not is_crowd), one.waiting_since))
        if oldest.is_fresh and not self.tls:        # by TLS it would take time
            # By hand, since there may be no descriptor to import json with.
            response = Response(503, b'{\n  "error": "service unavailable",\n  "message": "all connections are in use: '
                                b'try again, or allow more by --max-connections and ulimit -n"\n}\n', JSON,
                                [("Retry-After", "1")])
            try:
                oldest.socket.send(response_head(None, response, keep=False) + response.body)
            except OSError:
                pass
            self.log.access(oldest.address, None, response, response.length, time.monotonic() - oldest.waiting_since)
        self.connections.discard(oldest)
        oldest.give_up()
        return True

    @property
    def is_serving(self):
        """Is a request with the secret being served?"""
        return any(one.waiting_since is None for one in self.connections)


# ------------------------------------------------------------------------------------------------ page

# One file without resources, so that the hashes in its policy are all that may run.  It asks by relative URLs, since a
# proxy may serve it under a prefix, and holds one stream at most: a browser has six connections to a host.
PAGE_STYLE = """:root { color-scheme: light dark; --bg: light-dark(#f4f6f4, #111); --panel: light-dark(#fff, #191f1d);
  --ink: light-dark(#1b2320, #e3e9e6); --soft: light-dark(#57635e, #9daaa4); --edge: light-dark(#7c8a84, #72817a);
  --main: light-dark(#0a6a56, #62cbb0); --run: light-dark(#865500, #e6b450); --bad: light-dark(#b0271c, #ff9186); }
* { box-sizing: border-box; margin: 0; accent-color: var(--main); } [hidden], p:empty { display: none !important; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--bg); overflow-wrap: anywhere; }
h1, h2 { font-size: 1.1rem; } .soft, small, label, summary { color: var(--soft); font-size: .875rem; }
.failed { color: var(--bad); } .running, #status { color: var(--run); } h1, #back, .done { color: var(--main); }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; } .wide { flex: 1; } .bold { font-weight: 700; }
.stack { display: grid; gap: .75rem; grid-template-columns: minmax(0, 1fr); align-content: start; }
.panel { background: var(--panel); border-radius: 8px; padding: 1rem; } header { padding: .625rem 1rem; }
#work { padding: 0 1rem 1rem; gap: 1rem; } button, input, textarea { font: inherit; color: var(--ink); background: none;
  border: 1px solid var(--edge); border-radius: 5px; padding: .25rem .75rem; } #forget, #delete { margin-left: auto; }
.main { background: var(--main); color: var(--panel); } :disabled, ::placeholder { color: var(--soft); opacity: 1; }
input, textarea { background: var(--bg); min-width: 0; width: 100%; } [type=checkbox], [size] { width: auto; }
textarea, code, pre, #output, #line { font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
#list { list-style: none; padding: 0; } #list a { display: grid; grid-template-columns: auto 1fr fit-content(10rem);
  gap: 0 .625rem; padding: .375rem .5rem; color: inherit; text-decoration: none; border-left: 3px solid transparent; }
#list a > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; } #list small { grid-column: 2 / 4; }
#list a:hover, [aria-current=true] { background: var(--bg); } #list [aria-current=true] { border-color: var(--main); }
pre, #output { white-space: pre-wrap; overflow: auto; background: var(--bg); border-radius: 5px; padding: .5rem; }
pre { max-height: 12rem; margin-top: .5rem; } #output { position: relative; min-height: 14rem; height: 65vh; }
#output div { padding-left: 1.75rem; border-left: 3px solid transparent; position: relative; min-height: 1.5em; }
#output .err { color: var(--bad); border-color: var(--bad); } #output .err::after { content: "err" / "standard error";
  position: absolute; left: .125rem; top: .125em; font-size: .6875rem; } #output .err + .err::after { content: none; }
#tools:has(#times:checked) ~ #output div::before { content: attr(data-time) "  "; color: var(--soft); }
#tools:not(:has(#wrap:checked)) ~ #output { white-space: pre; overflow-wrap: normal; } #search { flex: 1 1 20rem; }
.fore { color: light-dark(oklch(from var(--fore) clamp(0, l, .48) calc(c * .8) h),
  oklch(from var(--fore) clamp(.72, l, 1) calc(c * .8) h)); } .back { color: var(--ink); background: light-dark(
  oklch(from var(--back) clamp(.82, l, 1) calc(c * .6) h), oklch(from var(--back) clamp(0, l, .42) calc(c * .6) h)); }
::highlight(found) { background: #ffe08a; color: #1b2320; } ::highlight(current) { background: #f08030; color: #000; }
@media (min-width: 60rem) { #work { grid-template-columns: minmax(22rem, 2fr) minmax(0, 5fr); } #back { display: none; }
  #trouble { grid-column: 1 / 3; } #job { display: flex; flex-direction: column; height: 100%; } #output { flex: 1; }
  #right { position: sticky; top: 1rem; height: calc(100vh - 4.5rem); overflow: auto; } #sign-in { margin: 12vh 35%; }}
@media (max-width: 59.99rem) { .chosen #left, :not(.chosen) > #right { display: none; } button { padding: 0 .5rem; }
  button, input:not([type=checkbox]), summary, label, a { min-height: 44px; min-width: 44px; } summary { padding: 1ch; }
  label, #back { display: flex; flex-wrap: wrap; align-items: center; gap: 0 .5rem; } input, textarea, #line {
  font-size: 16px; } #status:not(:empty) { min-width: 100%; order: 1; }}"""

PAGE_SCRIPT = r""""use strict";
const KEPT = 30000, LIMIT = 1 << 22, WIDEST = 1 << 16, TURN = 1000;     // log: lines, characters; line; lines per draw
const PERIOD = 1000, GRACE = 5000, NEAR = 2000, rows = new Map(), stopping = new Map();   // ms, ms, matches; by job id
const fields = "fields=create,start,duration,label,line,tty,out_bytes,err_bytes";
let secret = sessionStorage.getItem("rtot-secret") || "", server = "", gone, polling, timer, changes = 0, shown = 100;
let stream = new AbortController(), log, drawing, match, edited, recalled = 0, chosen = null;
const $ = id => document.getElementById(id), texts = ["editor", "label", "timeout", "args", "rows", "cols"], sent = [];
const fail = (message, status = 0) => Promise.reject(Object.assign(new Error(message), {status}));
const put = (id, text) => { const node = $(id) || id; if (node.textContent !== text) node.textContent = text; };
const make = (tag, text, className) => Object.assign(document.createElement(tag), {textContent: text, className});
const lost = () => fail("The server cannot be reached");
const local = time => new Date(time - time.getTimezoneOffset() * 60000).toISOString().replace("T", " ").slice(0, 23);
const span = s => (s < 60 ? "" : s < 3600 ? `${s / 60 | 0} min ` : `${s / 3600 | 0} h ${s % 3600 / 60 | 0} min `) +
  +(s % 60).toFixed(s < 10) + " s";
async function api(path, method = "GET", body, signal) {        // throws an error with a status, 0 if nothing answers
  const used = secret, headers = {"Rtot-Secret": String.fromCharCode(...new TextEncoder().encode(used))};
  if (method === "GET" && /^jobs(\/\d+)?\?/.test(path)) headers["Rtot-Poll"] = 1;    // not counted by --idle-exit
  const response = await fetch(path, {headers, method, body, signal}).catch(lost), {ok, status} = response;
  const {message = "HTTP status " + status} = ok ? {} : await response.json().catch(() => ({}));
  if (status === 401 && used === secret) enter(false, "That secret is wrong.");
  return ok ? response : fail(message, status); }
const json = async (...request) => (await api(...request)).json().catch(lost);
const report = error => put("trouble", error.status === undefined ? "This page has a fault: " + error : error.message);
function enter(known, why = "") {           // to the jobs, or to the question for the secret
  if (!known) { none(""); secret = ""; }
  sessionStorage.setItem("rtot-secret", secret); put("wrong", why); put("status", ""); $("sign-in").hidden = known;
  $("work").hidden = $("forget").hidden = !known; if (known) $("secret").value = ""; else $("secret").select(); }
async function poll() {                     // asks for the list of jobs again and again
  if (polling || !secret || document.hidden) return; const before = changes; polling = true; clearTimeout(timer);
  try {
    const path = `jobs?last=${shown + 1}&${fields}`, signal = AbortSignal.timeout(10 * PERIOD);
    const {jobs} = await json(path, "GET", null, signal); $("more").hidden = !(jobs.length > shown && jobs.shift());
    if (chosen !== null && jobs.every(job => job.id !== chosen))
      jobs.unshift(...(await json(`jobs/${chosen}?${fields}`).catch(() => ({jobs: []}))).jobs);
    if (!server || gone) { const {user, host} = await json("./"); put("host", server = user + "@" + host); }
    gone = null; enter(true); if (before === changes) show(jobs);       // else it is stale
  } catch (error) {
    gone = gone || local(new Date()).slice(11, 19); if (error.status === undefined) report(error);
    if (secret) put("status", `${error.message} since ${gone}, trying again`); }
  polling = false; timer = setTimeout(poll, before === changes ? PERIOD : 0); }
function show(jobs) {
  const ids = new Set(jobs.map(job => job.id)); $("clear").disabled = jobs.every(job => job.state !== "complete");
  for (const [id, row] of rows) if (!ids.has(id) && rows.delete(id)) row.parentNode.remove();
  document.title = "rtot on " + server; jobs.forEach(update); filter();
  if (!ids.has(chosen)) none(chosen === null ? "No job chosen." : `There is no job ${chosen}, or no longer.`); }
function none(text) { stream.abort(); log = {lines: [], ended: true}; $("job").hidden = true; put("none", text); }
function update(job) {                      // in the list, and at the head of its output if it is the chosen one
  const {id, label} = job, over = job.state === "complete", told = !over && stopping.get(id);
  if (!rows.has(id)) {
    const item = make("li"), link = make("a"), before = [...$("list").children].find(other => other.value < id);
    link.append(...["span", "code", "span", "small"].map(tag => make(tag))); link.href = "#job/" + id; item.value = id;
    link.ariaCurrent = id === chosen; item.append(link); rows.set(id, link); $("list").insertBefore(item, before); }
  const word = told ? "stopping" : job.timed_out ? "timed out" : job.exit || (over ? "done" : job.state);
  const kind = !over ? "running" : word === "done" ? word : "failed", link = rows.get(id), {children} = link;
  const begun = (job.state === "new" ? job.create : job.start).slice(0, 19).replace(" ", "T") + "Z";
  const since = local(new Date(begun)), took = (over ? "ran for " : "running for ") + span(job.duration);
  const more = [label, since.slice(5, 16), took].filter(Boolean).join(" \u00b7 ");
  job.word = word + (job.held ? ", held" : ""); children[2].className = kind; link.job = job;
  [String(id), job.line, job.word, more].forEach((text, index) => put(children[index], text));
  if (id !== chosen) return; const late = told && Date.now() - told > GRACE;
  $("state").className = kind; put("state", job.word); document.title = `Job ${id} ${job.word} on ${server}`;
  put("title", `Job ${id}${label && ": " + label}`); $("job").hidden = false; put("none", "");
  put("stop", late ? "Kill" : told ? "Stopping" : "Stop"); $("stop").disabled = over ? !job.held : told && !late;
  put("when", `Started ${since.slice(0, 19)}, ${took}`); $("input").hidden = over;
  if (log.create !== job.create) begin(job); log.job = job; draw(); }       // begin: another job, or another server's
function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/), links = [...rows.values()];
  for (const {job, parentNode} of links) parentNode.hidden = words.some(word =>
    ![job.id, job.label, job.line, job.word].join("\n").toLowerCase().includes(word));
  put("empty", links.some(link => !link.parentNode.hidden) ? "" : links.length ? "No job matches." : "No jobs yet."); }
function choose() {                         // shows what the address names; takes a secret out of it at once
  const {hash} = location, given = new URLSearchParams(hash.slice(1)).get("secret"), job = /^#job\/(\d+)$/.exec(hash);
  if (given !== null) { secret = given; history.replaceState(null, "", "#"); }
  const listed = $("list").contains(document.activeElement); chosen = job && +job[1]; put("trouble", "");
  none(chosen === null ? "No job chosen." : ""); $("work").classList.toggle("chosen", chosen !== null); scrollTo(0, 0);
  for (const [id, link] of rows) link.ariaCurrent = id === chosen;
  if (rows.has(chosen)) { update(rows.get(chosen).job); if (listed) $("title").focus(); }
  changes += 1; poll(); }
// The output of the chosen job: followed, printed as by a terminal, drawn as one element a line.
function begin({id, create, out_bytes, err_bytes}) {
  const at = Math.max(0, out_bytes + err_bytes - LIMIT), pens = {out: {rest: "", look: {}}, err: {rest: "", look: {}}};
  log = {id, create, at, seen: 0, cut: at > 0, ended: false, lines: [], open: null, size: 0, column: 0, pens};
  $("output").replaceChildren(); match = null; describe(); follow().catch(report); }
async function follow() {                   // goes on where it was when the connection breaks or the tab is shown again
  stream.abort(); const {signal} = stream = new AbortController(), mine = log, broken = () => ({done: true});
  for (; !mine.ended && !document.hidden && !signal.aborted; await new Promise(done => setTimeout(done, PERIOD))) {
    const path = `jobs/${mine.id}/log?json&follow&from=${mine.at}`;
    const answer = await api(path, "GET", null, signal).catch(error => { if (error.status) throw error; });
    const reader = answer && answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let skip = null, rest = "", part; answer && !(part = await reader.read().catch(broken)).done; ) {
      const lines = (rest + part.value).split("\n"); rest = lines.pop();
      for (const piece of lines.map(line => JSON.parse(line))) {
        const {at, text} = piece; if (text === undefined) { mine.ended = true; draw(); return poll(); }
        // The last piece comes again.  Its bytes can't be counted to go on behind it: U+FFFD stands for one to three.
        if (skip === null) { skip = at > mine.at ? 0 : mine.seen; mine.cut = mine.cut || at > mine.at; }
        print(mine, piece, text.slice(skip)); skip = Math.max(0, skip - text.length);
        if (!skip) Object.assign(mine, {at, seen: text.length}); } } } }
const UNFINISHED = /\x1b(?:\[[0-?]*[ -/]*|[\]P^_X][^\x07\x1b]{0,4096}\x1b?|[ -/]*)$/, TOKEN =
  /([^\0-\x08\n-\x1f\x7f-\x9f]+)|\x1b\[([0-?]*)[ -/]*([@-~])|\x1b[\]P^_X][^\x07\x1b]*|\x1b[ -/]*[0-~]|[\n\r\b]/g;
function print(log, {stream, time}, text) {
  const pen = log.pens[stream], all = pen.rest + text, end = all.search(UNFINISHED), whole = end < 0 ? all.length : end;
  pen.rest = all.slice(whole); drawing = drawing || setTimeout(draw, 60);
  for (const [token, plain = "", codes, final] of all.slice(0, whole).matchAll(TOKEN)) {
    if ((plain || token === "\n") && (!log.open || log.open.stream !== stream || log.open.chars.length > WIDEST)) {
      log.lines.push(log.open = {stream, time, chars: [], text: ""}); log.column = 0; }
    for (const char of plain) log.open.chars[log.column++] = [char, pen.look]; if (log.open) log.open.stale = true;
    if (token === "\n") log.open = null;
    else if (token === "\r" || token === "\b") log.column = token === "\r" ? 0 : Math.max(0, log.column - 1);
    else if (final === "m") pen.look = paint({...pen.look}, codes.split(/[;:]/).map(Number));
    else if (final === "K" && log.open) log.open.chars.length = Math.min(log.open.chars.length, log.column); } }
function paint(look, codes) {               // as SGR codes change a look; colours are numbers of the 256
  for (let code; (code = codes.shift()) !== undefined; ) {
    const side = code < 40 || code > 89 && code < 98 ? "fore" : "back", digit = code % 10, bright = code > 89 ? 8 : 0;
    if (code === 0) look = {}; else if (code === 1 || code === 22) look.bold = code === 1;
    else if (code === 38 || code === 48) look[side] = codes.shift() === 5 ? codes.shift() : codes.splice(0, 3)[3];
    else if (code > 29 && code < 50 || code > 89 && code < 108) look[side] = digit < 9 ? digit + bright : undefined; }
  return look; }
const rgb = n => n < 16 ? [1, 2, 4].map(bit => (n & bit ? 170 : 0) + (n > 7 ? 85 : 0)) :      // those of VGA
  n > 231 ? Array(3).fill(8 + 10 * (n - 232)) :
  [36, 6, 1].map(unit => ((n - 16) / unit | 0) % 6).map(step => step && 55 + 40 * step);
function dress({text, look}) {              // the style keeps the colours readable on both themes
  const node = make("span", text, look.bold ? "bold" : "");
  for (const side of ["fore", "back"]) if (look[side] >= 0 && look[side] < 256) {
    node.classList.add(side); node.style.setProperty("--" + side, `rgb(${rgb(look[side])})`); }
  return node.className ? node : text; }
function draw() {
  const output = $("output"), {lines} = log, end = output.scrollHeight - output.clientHeight - output.scrollTop < 8;
  let left = lines.length; clearTimeout(drawing); drawing = 0;
  while (left > KEPT || log.size > LIMIT && left > 1) log.size -= lines[lines.length - left--].text.length;
  for (const {node} of lines.splice(0, lines.length - left)) { log.cut = true; if (node) node.remove(); }
  const stale = lines.filter(line => line.stale).slice(0, TURN); if (stale.length === TURN) drawing = setTimeout(draw);
  for (const line of stale) {
    const runs = [], node = line.node = line.node || output.appendChild(make("div", "", line.stream));
    for (const [text, look] of line.chars)
      if (runs.length && runs[0].look === look) runs[0].text += text; else runs.unshift({text, look});
    const text = runs.reverse().map(run => run.text).join(""); log.size += text.length - line.text.length;
    node.dataset.time = local(new Date(line.time)).slice(11); node.replaceChildren(...runs.map(dress));
    Object.assign(line, {text, stale: false, chars: line === log.open && line.chars}); }
  $("cut").hidden = !log.cut; output.hidden = !lines.length; if (end) output.scrollTop = output.scrollHeight;
  put("nothing", lines.length ? "" : log.ended ? "This job printed nothing." : "This job has printed nothing yet.");
  if (stale.length) find(); }
function find(step) {                       // without a step nothing moves: only the output has changed
  const query = $("find").value, pattern = RegExp(query.replace(/\W/g, "\\$&"), "gi"), found = [];
  for (const line of query && log.lines) for (const {index} of line.text.matchAll(pattern)) found.push({line, index});
  const before = found.findIndex(({line, index}) => match && line === match.line && index === match.index);
  const place = before >= 0 ? (before + (step || 0) + found.length) % found.length : step < 0 ? found.length - 1 : 0;
  match = found[place]; put("found", !query ? "" : match ? `${place + 1} of ${found.length}` : "No match");
  const range = ({line, index}) => {        // from the text that has the first character to that which has the last
    const [[start, startOffset], [end, endOffset]] = [index, index + query.length].map(at => [[...line.node.childNodes]
      .map(child => child.firstChild || child).find(text => text.length >= at || (at -= text.length) < 0), at]);
    return new StaticRange({startContainer: start, startOffset, endContainer: end, endOffset}); };
  for (const [name, from, to] of [["found", place - NEAR, place + NEAR], ["current", place, place + 1]])
    if (CSS.highlights) CSS.highlights.set(name, new Highlight(...found.slice(Math.max(0, from), to).map(range)));
  if (match && step !== undefined) $("output").scrollTop = match.line.node.offsetTop - $("output").clientHeight / 2; }
async function describe() {                 // the script and the options, if they are to be seen
  const mine = log, names = ["args", "cwd", "timeout", "tty", "pid"]; if (!$("details").open || !mine.create) return;
  const {jobs: [job]} = await json(`jobs/${mine.id}?fields=script,${names}`); if (mine !== log) return;
  put("facts", names.map(name => `${name}: ${JSON.stringify(job[name])}`).join("\n")); put("script", job.script); }
function on(id, work) {                     // of a button or a form; two quick presses are one
  let busy = false; $(id)[$(id).localName === "form" ? "onsubmit" : "onclick"] = async event => {
    event.preventDefault(); if (busy) return; busy = true; put("trouble", "");
    try { await work(); } catch (error) { report(error); } busy = false; changes += 1; poll(); }; }
function edit(job) {                        // fills the form with a job, whose options one can replace, or empties it
  const values = job ? {...job, ...job.tty, editor: job.script, args: job.args.join("\n")} : {}, {id, tty} = values;
  $("run").reset(); $("options").open = !!job; $("tty").checked = tty; $("fresh").hidden = !job; edited = {id};
  put("editing", job ? `Job ${id}, with its environment` : ""); if (job && innerWidth < 960) location.hash = "";
  for (const name of texts) { $(name).value = values[name] ?? $(name).value; edited[name] = $(name).value; }
  for (const name of ["timeout", "args"]) $(name).required = edited[name]; if (job) $("args").focus(); }
const start = async (path, body) => { location.hash = "job/" + (await json(path, "POST", body)).jobs[0].id; };
on("run", () => {                           // an edited job keeps what is not sent
  const query = new URLSearchParams({fields: "id", tty: +$("tty").checked}), script = $("editor").value, {id} = edited;
  for (const name of texts.slice(1, $("tty").checked ? 6 : 4))        // the size is for a terminal alone
    for (const value of $(name).value === edited[name] ? [] : $(name).value.replace(/\n$/, "").split("\n"))
      query.append(name === "args" ? "arg" : name, value);
  if ($("stdin").checked) query.append("stdin", 1);
  return start((id >= 0 ? `jobs/${id}/again?` : "jobs?") + query, script === edited.editor ? null : script); });
on("again", () => start(`jobs/${chosen}/again?fields=id`)); on("fresh", () => edit());
on("edit", async () => edit((await json(`jobs/${chosen}?fields=script,args,label,timeout,tty`)).jobs[0]));
on("stop", () => {                          // if nobody kills it, the server does so in the end
  const id = chosen, how = stopping.has(id) ? "signal=KILL" : "grace=60"; stopping.set(id, Date.now()); update(log.job);
  return api(`jobs/${id}/kill?${how}`, "POST").catch(error => { stopping.delete(id); throw error; }); });
on("delete", async () => {
  const {id, state} = log.job, sure = state === "complete" || confirm(`Job ${id} is ${state}. End and forget it?`);
  if (sure) { await api("jobs/" + id, "DELETE"); location.hash = ""; $("jobs").focus(); } });
on("clear", () => confirm("Forget all complete jobs?") && api("jobs?state=complete", "DELETE"));
on("more", () => { shown += 100; }); on("sign-in", () => { secret = $("secret").value; });
on("save", async () => Object.assign(make("a"), {download: `job-${chosen}.log`,
  href: URL.createObjectURL(await (await api(`jobs/${chosen}/log`)).blob())}).click());
on("copy", () => {                          // navigator.clipboard is missing where the page comes by plain HTTP
  addEventListener("copy", event => {
    event.clipboardData.setData("text/plain", log.lines.map(line => line.text + "\n").join(""));
    event.preventDefault(); }, {once: true});
  put("copy", document.execCommand("copy") ? "Copied" : "Not allowed"); setTimeout(put, 2000, "copy", "Copy all"); });
const send = (body, query = "") => api(`jobs/${chosen}/stdin${query}`, "POST", body);
on("input", () => {
  const end = log.job.tty ? "\r" : "\n"; recalled = sent.push($("line").value); $("input").reset();
  return send(sent[recalled - 1] + end); });
on("interrupt", () => log.job.tty ? send("\x03") : api(`jobs/${chosen}/kill?signal=INT`, "POST"));
on("eof", () => log.job.tty ? send("\x04") : send("", "?eof"));
on("forget", () => { enter(false); location.reload(); }); on("search", () => find(1));
$("details").ontoggle = describe; $("filter").oninput = filter; $("find").oninput = () => find(0);
on("previous", () => find(-1)); on("end", () => $("output").scrollTo(0, $("output").scrollHeight));
$("file").onchange = async () => { const [file] = $("file").files; if (file) $("editor").value = await file.text(); };
$("editor").onkeydown = event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("go").click(); };
$("line").onkeydown = event => {
  const step = {ArrowUp: -1, ArrowDown: 1}[event.key]; if (!step) return; event.preventDefault();
  recalled = Math.min(sent.length, Math.max(0, recalled + step)); $("line").value = sent[recalled] || ""; };
document.onvisibilitychange = () => { if (document.hidden) stream.abort(); else { poll(); follow().catch(report); } };
onhashchange = choose; onerror = (...all) => report(all[4] || all[0]); edit(); choose(); if (!secret) enter(false);"""

PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>rtot</title><style>%s</style><header class="row"><h1>rtot</h1><b id="host"></b><span id="status" class="wide"
role="status"></span><button id="forget" hidden>Forget secret</button></header><main>
<form id="sign-in" class="panel stack" hidden><label for="secret">The secret of this server, kept in this tab alone
  </label><input id="secret" type="password" required autocomplete="current-password"><p id="wrong" class="failed"
  role="alert"></p><button class="main">Sign in</button></form><div id="work" class="stack" hidden>
<p id="trouble" class="panel failed" role="alert"></p><div id="left" class="stack"><form id="run" class="panel stack"
  autocomplete="off"><div class="row"><h2 class="wide"><label for="editor">Script</label></h2><span id="editing"
    class="soft"></span><button id="fresh" type="button">New script</button></div>
  <textarea id="editor" rows="7" required spellcheck="false" autocapitalize="off"></textarea>
  <details id="options"><summary>Options</summary><div class="stack"><label>Label <input id="label"></label>
    <label>Arguments, one a line <textarea id="args" rows="2"></textarea></label><label>Time limit in seconds <input
    id="timeout" inputmode="decimal"></label><label><input id="stdin" type="checkbox"> Standard input</label><div
    class="row"><label><input id="tty" type="checkbox"> Terminal of</label><label><input id="rows" size="3" value="24">
    rows</label><label><input id="cols" size="3" value="80"> columns</label></div></div></details><div class="row">
    <button id="go" class="main">Run</button><input id="file" type="file" class="wide" aria-label="Script from a file">
  </div></form><section class="panel stack"><div class="row"><h2 id="jobs" class="wide" tabindex="-1">Jobs</h2>
    <button id="clear">Clear complete</button></div><input id="filter" type="search" aria-label="Filter" placeholder=
    "Filter by label, script or state"><p id="empty" class="soft" role="status"></p><ul id="list"></ul>
    <button id="more" hidden>Show older jobs</button></section></div>
<section id="right" class="panel" aria-label="Job"><a id="back" href="#">&lsaquo; All jobs</a><p id="none" class="soft"
  role="status"></p><div id="job" class="stack" hidden><div class="row"><h2 id="title" tabindex="-1"></h2><b id="state"
    role="status"></b><span id="when" class="soft"></span></div><div class="row"><button id="stop">Stop</button>
    <button id="again">Run again</button><button id="edit">Edit and run</button><button id="save">Save output</button>
    <button id="delete">Delete</button></div><details id="details"><summary>Script and options</summary><pre
    id="facts"></pre><pre id="script" tabindex="0"></pre></details><div id="tools" class="row"><form id="search"
    class="row"><input id="find" type="search" class="wide" placeholder="Find" aria-label="Find in the output"><span
    id="found" class="soft" role="status"></span><button id="previous" type="button" aria-label="Previous match">&uarr;
    </button><button aria-label="Next match">&darr;</button></form><label><input id="times" type="checkbox"> Times
    </label><label><input id="wrap" type="checkbox" checked> Wrap</label><button id="copy">Copy all</button><button
    id="end">Jump to end</button></div><p id="cut" class="soft">Older output is not shown here. Save output has all that
    is kept.</p><p id="nothing" class="soft"></p><div id="output" role="log" aria-live="off" aria-label="Output"
    tabindex="0"></div><form id="input" class="row" autocomplete="off"><input id="line" class="wide" aria-label="Input">
    <button>Send</button><button id="interrupt" type="button" aria-label="Interrupt, ^C">^C</button><button id="eof"
    type="button" aria-label="End of input, ^D">^D</button></form></div></section></div></main><script>%s</script>"""


def page():
    """Return the page that a browser gets, a Response: it may run this script and ask this server, and nothing else."""
    import base64
    import hashlib
    hashes = tuple(base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
                   for text in (PAGE_SCRIPT, PAGE_STYLE))
    response = Response(200, (PAGE % (PAGE_STYLE, PAGE_SCRIPT)).encode("utf-8"), HTML)
    # Trusted types: what a job prints can't become markup, not even by a mistake of the script.
    response.policy = ("default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; connect-src 'self'; "
                       "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                       "require-trusted-types-for 'script'; trusted-types 'none'" % hashes)
    return response


# ---------------------------------------------------------------------------------------------- routes

REPEATABLE = ("arg", "env")
EXCLUSIVE = ("wait follow", "follow text", "follow fields", "from tail")        # one of these at most
NEEDED = {"attach": "wait follow", "fail": "wait", "from": "json"}              # to a parameter, one of these


def bad(message, *values):
    return Error("bad request", message % values)


def checked(pattern, right, convert=int):
    """Return a type of option or parameter: it converts text, or says what would be right.

    That is if the text does not match, or `convert` returns None.
    """
    def parse(text):
        value = convert(text) if re.fullmatch(pattern, text, re.ASCII) else None
        if value is None:
            raise argparse.ArgumentTypeError("%r is no %s" % (text, right))
        return value
    return parse


def field_names(text):
    """Return the fields to show, in the order asked for; None if there is no such field."""
    names = tuple(filter(None, text.split(",")))
    return None if set(names) - {"all", *VIEW} else tuple(VIEW) if "all" in names else names


FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}
SECONDS = r"([0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9})"
SHIFTS = {"K": 10, "M": 20, "G": 30}
SIGNALS = {str(number): number for number in range(1, signal.NSIG)}     # and as INT and SIGINT
SIGNALS.update((name[cut:], number) for name, number in signal.Signals.__members__.items() for cut in (0, 3))

parse_size = checked("0*[1-9][0-9]{0,14}[KMGkmg]?", "size, like 4096, 64K, 16M or 1G",
                     lambda text: int(text.rstrip("KMGkmg")) << SHIFTS.get(text[-1].upper(), 0))
parse_number = checked("[0-9]{1,9}", "count, like 0 or 8")

PARAMETERS = {
    "arg": bytes, "cwd": bytes, "env": bytes,           # as they are
    "label": str, "state": checked("|".join(STATES) + "|", "state; there are: " + " ".join(STATES), str),
    **dict.fromkeys("attach eof fail follow json stdin text tty".split(), checked(
        ".*", "flag: give it alone, =1 or =true, or =0 or =false for no", FLAGS.get)),
    **dict.fromkeys(("rows", "cols"), checked("0*[1-9][0-9]{0,3}", "whole number from 1 to 9999")),
    "grace": checked(SECONDS, "number of seconds, like 5 or 0.5", float),
    "timeout": checked("(?=.*[1-9])" + SECONDS, "number of seconds over 0, like 5 or 0.5", float),
    "wait": checked(SECONDS + "|true|false|", "number of seconds, like 5 or 0.5",       # True is as long as it takes
                    lambda text: FLAGS[text] if text in ("", "true", "false") else float(text)),
    "max_output": parse_size, "last": parse_number, "tail": parse_number,
    "from": checked("[0-9]{1,18}", "position in the log, like 0 or 4096"),
    "fields": checked(".*", "list of fields; there are: %s, and all" % " ".join(VIEW), field_names),
    "signal": checked("[0-9A-Za-z]{1,20}", "signal; there are TERM INT HUP KILL USR1 and so on, and 1 to %d"
                      % (signal.NSIG - 1), lambda text: SIGNALS.get(text.upper().lstrip("0"))),
}


@functools.lru_cache(maxsize=128)           # clients send the same again and again
def parse_parameters(query, known):
    """Return the values of a query by name, lists of those that are REPEATABLE; an Error for what is not `known`."""
    given = {}              # nobody may change it: it is the same for the same query
    for pair in filter(None, query.replace(b"+", b" ").split(b"&")):       # parse_qsl splits at ";" too, before 3.6.14
        name, _, value = pair.partition(b"=")
        name, value = readable(unquote(name)), unquote(value)
        if name not in known.split():
            raise bad("there is no parameter %r here; there are: %s", name, known or "none")
        if name in given and name not in REPEATABLE:
            raise bad("%s may be given once", name)
        if b"\0" in value:
            raise bad("%s has a NUL byte", name)
        try:
            value = value if PARAMETERS[name] is bytes else PARAMETERS[name](readable(value))
        except argparse.ArgumentTypeError as error:
            raise bad("%s: %s", name, error)
        if name in REPEATABLE:
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    effective = {name for name, value in given.items() if value is not False}
    for names in EXCLUSIVE:
        if effective.issuperset(names.split()):
            raise bad("give one of these, not both: %s", names)
    for name, others in NEEDED.items():
        if name in effective and effective.isdisjoint(others.split()):
            raise bad("%s needs %s", name, others.replace(" ", " or "))
    return given


def new_options(given, old, most_output):
    """Return the Options of a new job: what is given, and the rest as in the `old` ones."""
    if given.get("max_output", 0) > most_output:
        raise bad("max_output may be up to %d here", most_output)
    cwd = given.get("cwd", old.cwd)
    if cwd is not None and not (os.path.isdir(cwd) and os.access(cwd, os.X_OK)):
        raise bad("cwd %r is no directory that can be entered: give an absolute path", readable(cwd))
    if not given.get("tty", old.tty) and ("rows" in given or "cols" in given):
        raise bad("rows and cols are for a job with a terminal: give tty too")
    options = {name: given[name] for name in Options._fields if name in given}
    if "env" in given:
        options["env"] = [pair.split(b"=", 1) for pair in given["env"]]
        if any(len(pair) < 2 or not pair[0] for pair in options["env"]):
            raise bad("env is like NAME=VALUE")
    return old._replace(**options)


class OutputBody:
    """A body: what a job prints until it is complete; if it does not follow, what it has printed so far.

    What the background prints after that does not belong to it: there might be no end.  The connection breaks if bytes
    are dropped that it has not read.
    """

    _passed_on, _since = None, 0.0      # the last progress as owner, in bytes, and when it was seen

    def __init__(self, client, job, which, offset, follows=True):
        self.client, self.job, self.which, self.offset, self.follows = client, job, which, offset, follows
        self.end = None if follows else job.output.end[which]       # where to stop; None until that is known

    async def read(self):
        """Return what comes next, as soon as there is something; b"" at the end."""
        job, output, which = self.job, self.job.output, self.which
        while True:
            await self.client.attend(job.changed, lambda: (
                self.end is not None or self.offset < output.end[which] or job.is_complete()))
            if self.end is None and job.is_complete():
                self.end = output.end[which]
            if self.offset < output.start[which]:
                raise ClientGone()
            is_end = self.offset == self.end
            data = self.take(output.end[which] if self.end is None else self.end)
            if output.resume:
                output.resume()
            if data or is_end:
                return data

    def take(self, end):
        """Return some bytes of the output, up to an offset; or none that can be sent yet."""
        data = self.job.output.read(self.which, self.offset, min(WIDE_READ_SIZE, end - self.offset))
        self.offset += len(data)
        return data

    def is_reading(self):
        """Has the client taken something in the last OWNER_PATIENCE seconds?  If not, it is the owner no longer."""
        passed_on = self.offset - self.client.unsent()      # the system may hold megabytes for a slow client
        if passed_on != self._passed_on:
            self._passed_on, self._since = passed_on, time.monotonic()
        if time.monotonic() - self._since >= OWNER_PATIENCE:
            self.close()
        return self.job.output.owner is self

    def trailers(self):
        return [("Rtot-Exit", str(self.job.exit_code))] if self.follows else ()

    def close(self):
        if self.job.output.owner is self:
            self.job.output.owner = None


class JsonLog(OutputBody):
    """The log as lines of JSON, one for each piece, of which none begins or ends within a character."""

    def __init__(self, client, job, offset, follows):
        super().__init__(client, job, LOG, offset, follows)
        self._cut = [(b"", 0), (b"", 0)]    # of each stream the beginning of a character, and its end; () at the end

    def take(self, end):
        job, lines, last = self.job, [], min(end, self.offset + SLICE)
        if self.offset == end:
            if job.is_complete() and self._cut:
                ms = job.completed // 10 ** 6
                lines = self._decode(OUT, ms, b"", self._cut[OUT][1]) + self._decode(ERR, ms, b"", self._cut[ERR][1])
                if self.follows:
                    lines.append({"time": iso_time(ms), "exit": job.exit, "exit_code": job.exit_code})
            self._cut = ()
        while len(lines) < BATCH and self.offset < last:
            stream, ms, data = job.output.read_piece(LOG, self.offset, min(SLICE, end - self.offset))
            lines += self._decode(stream, ms, data, self.offset)
            self.offset += len(data)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")

    def _decode(self, stream, ms, data, offset):
        """Return the line, in a list, of a piece at an offset of the log; of what is left if there is no data."""
        begun, end = self._cut[stream]
        text, used = codecs.utf_8_decode(begun + data, "replace", not data)
        self._cut[stream] = (begun + data)[used:], offset + len(data)
        at = offset - len(begun) if end == offset else offset
        return [{"at": at, "time": iso_time(ms), "stream": ("out", "err")[stream], "text": text}] if text else []


try:        # what hmac has, which brings 3.8 MB of libcrypto
    from _operator import _compare_digest as compare_digest
except ImportError:
    from hmac import compare_digest

CONDITIONS = frozenset((b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range",
                        b"range", b"content-range", b"x-http-method-override"))     # of requests that change something
UNBUFFERED = ("X-Accel-Buffering", "no")        # for nginx


class App:
    """What rtot answers.  A handler takes a Request, its parameters and a Job, gives a Response, touches no socket.

    `secret` and `shell` are bytes, the two limits in bytes.
    """

    def __init__(self, secret, runner, max_script, max_output, shell):
        self.secret, self.runner, self.loop, self.store = secret, runner, runner.loop, runner.store
        self.max_script, self.max_output, self.shell = max_script, max_output, shell
        self.began = self.last_used = time.monotonic()
        self.is_stopping, self.stop_asked = False, Condition(self.loop)

    async def answer(self, request):
        """Return the Response to a request; an Error if it can't be served."""
        reads, headers = request.method in ("GET", "HEAD"), request.headers
        is_ping = reads and request.path in ("/ping", "/ping/")     # without the secret, whatever the query
        if (reads and request.path == "/" and b"text/html" in headers.get(b"accept", b"")
                and b"rtot-secret" not in headers and b"authorization" not in headers):
            return page()
        if not is_ping:
            await self._authorize(request)
        (_, _, handler, known, takes_body), number = find_route(request.method, request.path)
        job = () if number is None else (self._find_job(number),)
        given = {} if is_ping else parse_parameters(request.query, known)
        for name in CONDITIONS.intersection(headers) if not reads else ():
            raise bad("rtot would ignore the header %s: leave it out", name.decode("ascii"))
        if takes_body and headers.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
            raise Error("unsupported media type", "rtot does not decode Content-Encoding: %s: send the body as it is"
                        % readable(headers[b"content-encoding"]))
        if not takes_body and not request.ended:
            await request.read_all(0, "bad request", "%s %s takes no body: parameters go into the URL, as ?name=value"
                                   % (request.method, request.path))
        return await handler(self, request, given, *job)

    async def _authorize(self, request):
        given = request.headers.get(b"rtot-secret")
        if given is None:
            scheme, _, value = request.headers.get(b"authorization", b"").partition(b" ")
            given = value.strip() if scheme.lower() in (b"rtot", b"bearer") else b""
        if not compare_digest(given, self.secret):
            if given:
                await self.loop.wait_for(lambda: request.client.at_end, WRONG_SECRET)
            message = ("this is not the secret of this server" if given else
                       "send the secret in a header, as by curl -H 'Rtot-Secret: ...'")
            raise Error("not authorized", message, [("WWW-Authenticate", 'Bearer realm="rtot"')])
        request.client.admit()
        if b"rtot-poll" not in request.headers:         # of the page, which may have been forgotten
            self.last_used = time.monotonic()
        import_rest()

    def _find_job(self, text):
        if text != "last" and not re.fullmatch("-?[0-9]{1,18}", text, re.ASCII):
            raise Error("invalid job number", '"%s" is neither the number of a job nor last' % text)
        jobs = self.store.jobs
        job = next(reversed(jobs.values()), None) if text == "last" else jobs.get(int(text))
        if job is None:
            raise Error("no such job", "there is no job %s, or no longer" % text, jobs=[])
        return job

    uptime = property(lambda self: go_duration(round(time.monotonic() - self.began, 3)))

    async def ping(self, request, given):
        text = '{\n  "message": "still here",\n  "uptime": "%s"\n}\n' % self.uptime        # json takes 2 ms to import
        return Response(200, text.encode("utf-8"), JSON)

    async def root(self, request, given):
        links = {}
        for _, path, _, names, _ in ROUTES:
            query = "{?%s}" % names.replace(" ", ",") if names else ""
            links.setdefault(path[1:].replace("/{id}", ".byID").replace("/", "."),
                             path.replace("{id}", "{jobs.id}") + query)
        del links[""]                                   # its own
        return Response.json(200, {
            "links": links, "version": __version__, "host": socket.gethostname(), "user": user_name(),
            "python": "%d.%d.%d" % sys.version_info[:3], "uptime": self.uptime,
            "jobs": {state: len(self.store.select(state)) for state in STATES}})

    async def die(self, request, given):
        self.stop()
        return Response(204)

    def stop(self):
        self.is_stopping = True
        self.stop_asked.notify_all()

    async def create(self, request, given, old=None):
        """Make a job of the body and the parameters, and of an old job, if any, for what is not given."""
        if not old and request.length == 0 and b"content-length" not in request.headers:
            raise Error("length required", "POST the script as the body, as by curl --data-binary @file")
        options = new_options(given, old.options if old else PLAIN, self.max_output)
        script = await self._script(request, old)
        if self.is_stopping:
            raise Error("service unavailable", "the server is about to exit")
        job = Job(self.loop, script, options, options.max_output or self.max_output)
        self.runner.submit(job)
        request.job = job.id
        if given.get("attach"):
            request.on_cut_off = functools.partial(self.runner.cancel, job)
        if given.get("follow"):
            job.output.owner = OutputBody(request.client, job, LOG, 0)
            return Response(201, job.output.owner, TEXT, [("Location", job.href), UNBUFFERED])
        return await self.get(request, given, job, 201, 201 if given.get("wait", False) is False else 202)

    async def _script(self, request, old):
        """Return the script in the body, with a #! line; of none, that of the old job."""
        script = await request.read_all(self.max_script, "content too large", (
            "a script may have %d bytes here: start rtot with more --max-script" % self.max_script))
        if not script and old:
            return old.script
        if script.startswith(b"\xef\xbb\xbf"):          # the byte order mark of UTF-8, as editors on Windows write it
            script = script[3:]
        if not script:
            raise bad("the script is empty: POST it as the body, as by curl --data-binary @file")
        boundary = re.match(b'multipart/.*boundary="?([^";,]+)', request.headers.get(b"content-type", b""), re.I)
        if boundary and script.startswith(b"--" + boundary.group(1)):
            raise bad("a form, as curl -F makes it, is no script: POST the script, as by curl --data-binary @file")
        return script if script.startswith(b"#!") else b"#!" + self.shell + b"\n" + script

    async def _wait(self, request, given, job):
        """Wait for the end of the job, if asked to; return whether it is complete."""
        seconds = given.get("wait")
        if seconds:
            await request.client.attend(job.ended, job.is_complete, None if seconds is True else seconds)
        return job.is_complete()

    async def get(self, request, given, job, complete=200, running=202):
        """Answer with the job, and the status for one that is complete or not; with `fail`, 424 if it failed."""
        status = complete if await self._wait(request, given, job) else running
        if given.get("fail") and job.is_complete() and (job.exit_code or job.timed_out):
            status = 424
        return self._answer_jobs(status, given, [job], [("Location", job.href)])

    @staticmethod
    def _answer_jobs(status, given, jobs, headers=()):
        write, fields, content_type = ((jobs_text, TEXT_FIELDS, TEXT) if given.get("text") else
                                       (jobs_json, DEFAULT_FIELDS, JSON))
        return Response.of_pieces(status, write(jobs, given.get("fields", fields)), content_type, headers)

    async def list(self, request, given):
        return self._answer_jobs(200, given, self.store.select(**given))

    async def delete(self, request, given, *job):
        """End and forget the job, or all with that state and label."""
        for name, value in given.items():
            if not value:               # as from a variable of the shell that is not set
                raise bad("%s is empty: give a value, or leave it out for all", name)
        await self.runner.forget(job or self.store.select(**given))
        return Response(204)

    async def script(self, request, given, job):
        return Response(200, job.script, TEXT)

    async def exit(self, request, given, job):
        is_complete = await self._wait(request, given, job)
        return Response(200, b"%d\n" % job.exit_code, TEXT) if is_complete else Response(202)

    async def output(self, request, given, job, which):
        """Answer with what the job has printed: all, from the byte that Range or `from` names, or the last lines.

        206: bytes before the first may be missing, since they were dropped, or Range did not ask for them.  Other
        ranges are ignored, and all with If-Range, as they may be (RFC 9110, 14.2).
        """
        output, follow, first = job.output, given.get("follow", False), given.get("from")
        match = re.fullmatch(b"bytes=([0-9]{1,18})-", request.headers.get(b"range", b""))
        if match and b"if-range" not in request.headers and request.method == "GET" and which != LOG:
            first = int(match.group(1))
        if "tail" in given and first is not None:
            raise bad("give one of these, not both: Range tail")
        offset = await output.tail(which, given["tail"], self.loop.breathe) if "tail" in given else first or 0
        start, end = output.start[which], output.end[which]
        if offset > end or first == end and which != LOG and not follow:
            raise Error("range not satisfiable", "there are %d bytes" % end, [("Content-Range", "bytes */%d" % end)])
        offset, headers, status = max(offset, start), [("Rtot-Dropped", str(start))] + [UNBUFFERED] * follow, 200
        if given.get("json"):
            return Response(200, JsonLog(request.client, job, offset, follow), JSON_LINES, headers)
        if first is not None or offset == start > 0:
            last = 2 ** 53 - 1 if follow else max(end - 1, offset)          # RFC 8673, 2.2
            whole = end if job.is_complete() and not follow else "*"
            headers.append(("Content-Range", "bytes %d-%d/%s" % (offset, last, whole)))
            status = 206
        if not follow and end - offset <= SLICE:
            return Response(status, b"".join(output.pieces(which, offset, end)), TEXT, headers)
        body = OutputBody(request.client, job, which, offset, follow)
        return Response(status, body, TEXT, headers, None if follow else end - offset)

    async def stdin(self, request, given, job):
        if not (job.options.stdin or job.options.tty):
            raise Error("conflict", "job %d has no standard input: POST /jobs?stdin opens one" % job.id)
        request.timeout = None             # what makes the input may take its time
        await request.client.attend(job.changed, lambda: job.state != "new")
        process = self.runner.processes.get(job)
        if process is None:
            raise Error("conflict", "standard input of job %d is closed" % job.id)
        while True:
            data = await request.read()
            eof = request.ended and given.get("eof", False)
            if data or eof:
                await process.feed(data, eof, request.client.attend)
            if request.ended:
                return Response(204)

    async def kill(self, request, given, job):
        grace = given.get("grace", None if "signal" in given else GRACE)
        await self.runner.kill(job, given.get("signal", signal.SIGTERM), grace)
        return Response(204)

    async def resize(self, request, given, job):
        if len(given) < 2:
            raise bad("give both, as ?rows=24&cols=80")
        process = self.runner.processes.get(job)
        if process is None or process.terminal is None:
            raise Error("conflict", "job %d has no terminal, or it is closed: POST /jobs?tty gives one" % job.id)
        set_size(process.terminal, given["rows"], given["cols"])
        return Response(204)


@functools.lru_cache(maxsize=1)
def user_name():
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@functools.lru_cache(maxsize=128)
def find_route(method, path):
    """Return (a row of ROUTES, the number of the job as text or None)."""
    place = path[:-1] if path[1:].endswith("/") else path       # /jobs/ is /jobs
    if place != path and method == "DELETE":
        raise bad("DELETE %s: leave the last slash out, or name a job behind it if a variable was empty", path)
    match = re.match("/jobs/([^/]*)", place)
    number, key = (match.group(1), "/jobs/{id}" + place[match.end():]) if match else (None, place)
    methods = {route[0]: route for route in ROUTES if route[1] == key}
    if not methods:
        raise Error("not found", "there is nothing at %s; GET / lists what there is" % path)
    route = methods.get("GET" if method == "HEAD" else method)
    if route is None:
        allowed = ", ".join(sorted(methods) + (["HEAD"] if "GET" in methods else []))
        raise Error("method not allowed", "%s takes %s, not %s" % (path, allowed, method), [("Allow", allowed)])
    return route, number


@functools.lru_cache(maxsize=1)
def import_rest():
    """Import what the first answer does not need, all at once: later there may be no descriptor to import with."""
    for name in LATER:
        __import__(name)


NEW = " ".join(Options._fields) + " wait follow attach fail fields text"

ROUTES = (          # method, path, handler, parameters, whether there is a body
    ("GET", "/", App.root, "", False),
    ("DELETE", "/", App.die, "", False),
    ("GET", "/ping", App.ping, "", False),
    ("GET", "/jobs", App.list, "state label last fields text", False),
    ("POST", "/jobs", App.create, NEW, True),
    ("DELETE", "/jobs", App.delete, "state label", False),
    ("GET", "/jobs/{id}", App.get, "fields text wait fail", False),
    ("DELETE", "/jobs/{id}", App.delete, "", False),
    ("GET", "/jobs/{id}/out", functools.partial(App.output, which=OUT), "follow tail", False),
    ("GET", "/jobs/{id}/err", functools.partial(App.output, which=ERR), "follow tail", False),
    ("GET", "/jobs/{id}/log", functools.partial(App.output, which=LOG), "follow tail json from", False),
    ("GET", "/jobs/{id}/script", App.script, "", False),
    ("GET", "/jobs/{id}/exit", App.exit, "wait", False),
    ("POST", "/jobs/{id}/again", App.create, NEW, True),
    ("POST", "/jobs/{id}/stdin", App.stdin, "eof", True),
    ("POST", "/jobs/{id}/kill", App.kill, "signal grace", False),
    ("POST", "/jobs/{id}/resize", App.resize, "rows cols", False),
)


# ---------------------------------------------------------------------------------------- command line

DESCRIPTION = """\
Run this over there: POST a script over HTTP, and it runs here as an
asynchronous job; ask, and rtot tells what it has printed and how it ended."""

EPILOG = """\
try it, with rtot started by: -a 127.0.0.1:8457 -s secret
  curl -H 'Rtot-Secret: secret' -d 'echo wat is happening' 'http://127.0.0.1:8457/jobs?follow'
  curl -H 'Rtot-Secret: secret' -d 'sleep 1; exit 3' 'http://127.0.0.1:8457/jobs?wait'
  curl -H 'Rtot-Secret: secret' http://127.0.0.1:8457/jobs/last
?follow shows what a job prints as it comes, ?wait answers when it is complete.
In a browser, http://127.0.0.1:8457/ is a page that does the same.

environment: RTOT_ADDR, RTOT_SECRET and RTOT_LOG_FORMAT stand for -a, -s and -f.
Sizes take K, M or G. Stop rtot by ^C, SIGTERM, or DELETE http://127.0.0.1:8457/"""

CannotStart = argparse.ArgumentTypeError        # why there is no server, in a line


def attempt(what, function, *args, **more):
    """Return function(*args, **more); what it lacks becomes a CannotStart: "cannot write FILE", and why."""
    try:
        return function(*args, **more)
    except (OSError, ImportError, UnicodeError) as error:       # the last from a host's name
        raise CannotStart("cannot %s: %s" % (what, getattr(error, "strerror", None) or error)) from None


class Log:
    """Events, requests, and the ends of jobs, a line each, on standard error or in a file, as text or as JSON.

    No secret that was given, query string or script is in it.  A line that would have to wait is dropped.
    """

    def __init__(self, form, path):
        self.form, self.path, self._fd = form, path, 2
        self.go_to(2)

    def open(self):
        """Return a descriptor of the file; CannotStart if it can't be written."""
        if self.path == os.devnull:
            return open_null()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        return attempt("write " + self.path, os.open, self.path, flags, 0o600)

    def go_to(self, fd):
        """Make `fd` standard error, and open that again so that writing to it never waits."""
        os.dup2(fd, 2)
        for old in {fd, self._fd} - {2}:
            os.close(old)
        self._fd, self._may_block = 2, False
        if not stat.S_ISREG(os.fstat(2).st_mode):
            try:                # O_NONBLOCK belongs to what open(2) has opened: set on ours, it would be everyone's
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:     # a socket, or no /proc
                self._may_block = True

    def fault(self, kind, error, trace):
        self.event("error: " + "".join(traceback.format_exception(kind, error, trace)))

    def access(self, address, request, response, size, seconds):
        """Note a request, None for what was none; `response` and `size` (of its body) are None if the client left."""
        method, path, job = (request.method, request.path, request.job) if request else ("-", "-", None)
        status = response.status if response else None
        pairs = {"client": address, "method": method, "path": path, "status": status, "bytes": size, "seconds": seconds}
        text = "%s %s %s %s %s %s" % (address, method, escape(path), status or "-", "-" if size is None else size,
                                      span(seconds))
        if job is not None:
            pairs["job"] = job
            text += " job %d" % job
        self.event(text, pairs)

    def job_ended(self, job):
        label = job.options.label
        text = "job %d complete: %s%s after %s%s" % (
            job.id, "timed out, " if job.timed_out else "", escape(job.exit or "ok", blank=" "), span(job.duration),
            ", label " + escape(label) if label else "")
        self.event(text, {"job": job.id, "exit": job.exit, "exit_code": job.exit_code, "timed_out": job.timed_out,
                          "seconds": job.duration, "label": label})

    def event(self, text, pairs=None):
        """Write a line: the text, or the pairs as JSON; without pairs, the text is that of an event."""
        now = utc("%Y-%m-%dT%H:%M:%SZ", int(time.time()))
        if self.form == "json":
            pairs = {"time": now, **(pairs or {"event": text})}
            if "seconds" in pairs:
                pairs["seconds"] = round(pairs["seconds"], 6)
            line = json.dumps(pairs)
            while len(line) > LOG_LINE:         # a part of it would be no JSON
                longest = max(pairs, key=lambda name: len(str(pairs[name])))
                pairs.update({longest: pairs[longest][:len(pairs[longest]) // 2], "cut": True})
                line = json.dumps(pairs)
        else:
            line = (now + " " if pairs else "rtot: ") + text
            if len(line) > LOG_LINE:
                line = line[:LOG_LINE // 2 - 3] + "..." + line[-LOG_LINE // 2:]
        try:
            if not self._may_block or select.select((), (self._fd,), (), 0)[1]:
                os.write(self._fd, (line + "\n").encode("utf-8", "replace"))
        except OSError:         # nobody reads it: no reason to stop
            pass


def span(seconds):
    """Return a duration for the log, as 3.5ms or 1.25s."""
    return "%.4gms" % (seconds * 1000) if seconds < 1 else "%.6gs" % round(seconds, 3)


def escape(text, blank="\\x20"):
    """Return text for a column of the log: without control characters, what is not ASCII, and blanks."""
    text = codecs.unicode_escape_encode(text)[0].decode("ascii")        # str.encode would open a file for its codec
    return text.replace(" ", blank)


def split_address(text):
    """Return (host, port) of :8457, host:8457 or [::1]:8457, the path of unix:path, else None; see Server."""
    if text.startswith("unix:") and text[5:]:
        return text[5:]
    host, colon, port = text.rpartition(":")
    if not (colon and port.isdecimal() and int(port) < 65536) or ":" in host and host[0] + host[-1] != "[]":
        return None
    return "" if host == "*" else host.strip("[]"), int(port)       # * for all is common, and no name


def parse_secret(text):
    """Return the secret as bytes, without blanks around it, as it comes in a header."""
    secret = os.fsencode(text).strip(b" \t\r\n")
    if not secret:
        raise CannotStart("the secret is empty: leave it out, and one is made")
    if min(secret) < 32 or 127 in secret:
        raise CannotStart("the secret has a control character, which no header can have")
    return secret


def read_secret(path):
    what = "read the secret from " + path
    with attempt(what, open, 0 if path == "-" else path, "rb") as file:
        line = attempt(what, file.readline)
    return parse_secret(line[3:] if line.startswith(b"\xef\xbb\xbf") else line)     # a byte order mark


TYPES = {           # of the values of options, by what --help calls them; a FILE is text
    "ADDR": checked(".*", "address, like :8457, host:8457, [::1]:8457 or unix:/path", split_address),
    "COUNT": checked("0*[1-9][0-9]{0,8}", "whole number over 0"),
    "FILE|-": read_secret,
    "N": parse_number,
    "SECRET": parse_secret,
    "SIZE": parse_size,
    "TIME": checked("0*[1-9][0-9]{0,8}[smhd]?", "time over 0, like 90 (seconds), 30m or 4h",
                    lambda text: int(text.rstrip("smhd")) * {"m": 60, "h": 3600, "d": 86400}.get(text[-1], 1)),
    "text|json": checked("text|json", "format: text or json", str),
}

OPTIONS = {         # by their headings in --help: names, value=default (or it is a flag), and help
    "": {
        "-a --addr ADDR=:8457": "listen on :8457 (all addresses), host:8457, [::1]:8457, unix:/path; port 0 picks one",
        "-s --secret SECRET": "what every request has to present; one is made if none is given",
        "--secret-file FILE|-": "read the secret from the first line of FILE, or of standard input: -",
        "-d --daemon": "serve in the background: return when the port is bound, or exit with 1 and say why not",
        "-j --parallel N=0": "run N jobs at a time, the rest wait as new; 0 is all",
        "--idle-exit TIME": "end after so long without a job or a request with the secret: 90 (seconds), 30m, 4h",
        "--pid-file FILE": "write the process id to FILE, and remove it at the end",
        "--log-file FILE": "write the log to FILE; SIGHUP opens it again",
        "-f --log-format text|json=text": "write the log as text or as JSON",
        "--self-destruct": "remove the file of rtot, too, when the server has ended",
    },
    "TLS": {
        "--tls-cert FILE": "serve HTTPS with this certificate and its chain, in PEM",
        "--tls-key FILE": "its key (default: in the file of the certificate)",
        "--tls-client-ca FILE": "serve only clients with a certificate signed by one of these",
    },
    "limits": {
        "--max-output SIZE=64M": "keep that much output of a job, the oldest is dropped",
        "--max-total SIZE": "keep that much output of all jobs together (default: a quarter of the memory)",
        "--max-script SIZE=16M": "take scripts up to this size",
        "--keep N=0": "keep N complete jobs, the oldest are forgotten; 0 is all",
        "--max-connections COUNT=1000": "serve that many connections at a time",
        "--head-timeout TIME=10": "take so long for the whole head of a request",
        "--body-timeout TIME=30": "wait so long for a byte of a body",
        "--idle-timeout TIME=75": "wait so long for the next request of a connection",
    },
}


def parser():
    # With a width it needs no shutil: 2.6 ms of the start.
    result = argparse.ArgumentParser("rtot", description=DESCRIPTION, epilog=EPILOG,
                                     formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=79))
    one_of = result.add_mutually_exclusive_group()
    for title, options in OPTIONS.items():
        group = result.add_argument_group(title) if title else result
        for words, text in options.items():
            *names, value = words.split()
            if value.startswith("-"):
                group.add_argument(*names, value, action="store_true", help=text)
                continue
            value, _, default = value.partition("=")
            place, dest = (one_of, "secret") if "--secret" in words else (group, None)
            place.add_argument(*names, metavar=value, dest=dest, type=TYPES.get(value), default=default or None,
                               help=text + (" (default: %(default)s)" if default else ""))
    result.add_argument("-v", "--version", action="version", version="rtot " + __version__)
    return result


def parse_arguments():
    """Return the options as they were given, or else by a variable, or else their defaults."""
    options, kinds = parser(), {"addr": "ADDR", "secret": "SECRET", "log_format": "text|json"}
    args = options.parse_args(namespace=argparse.Namespace(**dict.fromkeys(kinds)))
    for name, kind in kinds.items():
        variable = "RTOT_" + name.upper()
        text = os.environ.get(variable) or options.get_default(name)
        if text and getattr(args, name) is None:
            try:
                setattr(args, name, TYPES[kind](text))
            except argparse.ArgumentTypeError as error:
                options.error("%s: %s" % (variable, error))
    if args.self_destruct and not os.path.isfile(sys.argv[0]):
        options.error("--self-destruct: rtot came from standard input, there is no file to remove")
    return args


def hide(secret):
    """Overwrite the secret where ps(1) and /proc/PID/environ show it; OSError or ValueError if that can't be.

    The kernel reads both from our memory: proc_pid_stat(5), 48 to 51.
    """
    def hidden(part):
        if part.startswith(b"RTOT_SECRET="):        # which may be another
            return b"RTOT_SECRET=".ljust(len(part), b"*")
        return part.replace(secret, b"*" * len(secret)) if part[:1] == b"-" or part.strip() == secret else part
    with open("/proc/self/stat", "rb") as file:
        first, _, _, last = map(int, file.read().rpartition(b")")[2].split()[45:49])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        parts = os.pread(memory.fileno(), last - first, first).split(b"\0")
        os.pwrite(memory.fileno(), b"\0".join(map(hidden, parts)), first)


def prepare_process(daemon):
    """Let jobs inherit an empty input, no descriptors from 3 up, and no signals that are blocked or ignored.

    A daemon closes those descriptors, but for the one that systemd handed over.
    """
    fd = 0
    while fd <= 2:                                  # 0, 1 and 2 are open, so that no pipe becomes one of them
        fd = open_null()
    for number in range(1 + daemon):
        os.dup2(fd, number)
    try:
        numbers = {int(name) for name in os.listdir("/dev/fd")}
    except (OSError, ValueError):
        numbers = set()
    if fd not in numbers:                           # it is missing, or a plain directory, in a chroot
        numbers = set(range(min(os.sysconf("SC_OPEN_MAX"), 65536)))
    os.close(fd)
    first = 4 if os.environ.get("LISTEN_PID") == str(os.getpid()) else 3        # see handed_socket
    for number in numbers - {0, 1, 2}:
        try:
            os.close(number) if daemon and number >= first else os.set_inheritable(number, False)
        except OSError:                             # there is none
            pass
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # What nohup, or a shell's &, ignores would stay so in jobs; a handler does not (execve(2)).  What Python ignores
    # is restored at each spawn.
    for number in set(range(1, signal.NSIG)) - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, no_action)


def daemonize():
    """Go on in the background; return a descriptor: for a byte written to it the foreground exits with 0, else 1."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os._exit(0 if os.read(reading, 1) else 1)
    os.close(reading)
    os.setsid()
    if os.fork():           # so that it leads no session, and no terminal that it opens controls it
        os._exit(0)
    return writing


def write_pid_file(path):
    """Write our number to a file, locked by flock(2) while we live, so a stale one is written over; return its fd."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CannotStart("%s is the pid file of a server that lives" % path) from None
    if not os.fstat(fd).st_nlink:           # that server has removed it since we opened it
        os.close(fd)
        return write_pid_file(path)
    if not (stat.S_ISREG(os.fstat(fd).st_mode) and re.fullmatch(b"[0-9]*\n?", os.read(fd, 100))):
        raise CannotStart("%s is no pid file: rtot would write over it, and remove it at the end" % path)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError:             # a full disk
        os.unlink(path)
        raise
    return fd


def quarter_of_memory():
    """Return a quarter, in bytes, of what this host or container may use: getrlimit(2), cgroups(7)."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    try:
        with open("/proc/self/cgroup") as file:
            groups = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    except OSError:
        groups = {}
    for controller, name in ("", "memory.max"), ("memory", "memory.limit_in_bytes"):
        place = "/sys/fs/cgroup/" + controller
        for part in groups.get(controller, "/").split("/"):         # the groups around our own, and that
            place = os.path.join(place, part)
            try:
                with open(os.path.join(place, name)) as file:
                    sizes.append(int(file.read()))
            except (OSError, ValueError):       # not there, or "max"
                pass
    return min(size for size in sizes if size > 0) // 4         # no limit is -1


def raise_nofile():
    """Allow ourselves more descriptors; return (how many we may have, the limits that jobs get, or None for ours)."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (65536 if limit == resource.RLIM_INFINITY else limit for limit in limits)
    wanted = min(hard, 65536)
    if wanted < LEAST_DESCRIPTORS:
        raise CannotStart("rtot needs %d descriptors, and may have %d: see ulimit -n" % (LEAST_DESCRIPTORS, wanted))
    if soft >= wanted or not hasattr(resource, "prlimit"):
        return soft, None
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted, (soft, hard)


def tls_context(args):
    """Return an ssl.SSLContext as the options say, or None."""
    cert, key, authority = args.tls_cert, args.tls_key, args.tls_client_ca
    if not cert and (key or authority):
        raise CannotStart("--tls-key and --tls-client-ca need --tls-cert")
    if not cert:
        return None
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if hasattr(ssl, "TLSVersion"):          # 3.7
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    for path in filter(None, (cert, key, authority)):
        attempt("read " + path, open, path).close()         # ssl's errors do not name it
    attempt("use %s with %s: rtot needs a certificate and its key, in PEM, not encrypted" % (cert, key or cert),
            context.load_cert_chain, cert, key, password="")        # without one, OpenSSL asks for it
    if authority:
        attempt("use %s: rtot needs the certificate of an authority, in PEM" % authority,
                context.load_verify_locations, authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def handed_socket():
    """Return the listening socket that systemd has opened for us (sd_listen_fds(3)), or None."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if os.environ.get("LISTEN_FDS") != "1":
        raise CannotStart("LISTEN_FDS is %s: rtot takes one socket" % os.environ.get("LISTEN_FDS"))
    probe = socket.socket(fileno=3)         # before 3.7 it does not see the family itself
    family = probe.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_DOMAIN", 39)) if LINUX else probe.family
    if not (probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)):
        raise CannotStart("the socket that was handed over has to listen (Accept=no), on TCP or a Unix socket")
    return socket.socket(family, socket.SOCK_STREAM, fileno=probe.detach())


def notify_systemd(text):
    """Tell systemd that we are ready, or stop, if it waits for that: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(text, re.sub("^@", "\0", path))
        except OSError:         # it does not wait any more
            pass


def announce(url, secret, made, log):
    """Say where it listens, on standard error; then in the log file too, if there is one."""
    fd = log.open() if log.path else None
    if made:
        log.event("no secret was given, so this one was made: " + secret)
    elif len(secret) < 8 and not re.match(r"unix:|https:|http://(127\.|\[::1\])", url):
        log.event("the secret is short: whoever guesses it can run anything as %s; listen on 127.0.0.1, or use a "
                  "longer one" % user_name())
    directory = os.environ.get("TMPDIR")
    if directory and not os.access(directory + "/", os.W_OK | os.X_OK):
        log.event("TMPDIR is %s, which is no directory that can be written: scripts go to another one" % directory)
    where = "version %s listens on %s" % (__version__, url)
    log.event(where)
    if made and url.startswith("http"):
        public = re.sub(r"//(\[::\]|0\.0\.0\.0):", "//%s:" % socket.gethostname(), url)
        log.event("in a browser: %s#secret=%s" % (public, secret))
    if fd:
        log.go_to(fd)
        log.event(where)


class Service:
    """All that serves, as the options say; `handed` is the socket to listen on, or None."""

    def __init__(self, args, handed, secret, log):
        self.args, self.log, self.loop = args, log, Loop()
        total = args.max_total or quarter_of_memory()
        descriptors, nofile = raise_nofile()
        self.total, self.workspace = TotalOutput(total), Workspace()
        store = JobStore(args.keep, total)
        self.runner = Runner(self.loop, store, self.workspace, Spawner(descriptors, nofile), self.total, args.parallel,
                             log)
        shell = b"/bin/bash" if os.access("/bin/bash", os.X_OK) else b"/bin/sh"
        if shell == b"/bin/sh":
            log.event("there is no /bin/bash here: scripts without a #! line are run by /bin/sh")
        self.app = App(secret, self.runner, args.max_script, min(args.max_output, total), shell)
        self.loop.report, self.loop.relieve = log.fault, self._relieve
        self.server = attempt("listen on " + show_address(args.addr), Server,
                              handed or args.addr, self.loop, self.app, log, args, descriptors, tls_context(args))
        handlers = {signal.SIGCHLD: self.runner.child_exited, signal.SIGHUP: self._hang_up, signal.SIGTERM: self._end}
        handlers.update((number, self._end) for number in (signal.SIGHUP, signal.SIGINT)
                        if signal.getsignal(number) != no_action)       # as where it was ignored, and by main()
        self.loop.catch_signals(handlers)

    def _relieve(self):
        self.total.shrink(self.total.size // 2)
        give_memory_back()

    def _end(self):
        """End; a second time, without any grace for the jobs."""
        if self.app.is_stopping:
            self.runner.end_all(signal.SIGKILL, 0)
        self.app.stop()

    def _hang_up(self):
        """Open the log again, which may have been renamed, and read the certificate again; or the old ones stay."""
        try:
            if self.log.path:
                self.log.go_to(self.log.open())
        except CannotStart as error:
            self.log.event(str(error))
        try:
            if self.server.tls:
                self.server.tls = tls_context(self.args)
                self.log.event("read %s again" % self.args.tls_cert)
        except CannotStart as error:
            self.log.event("%s; the certificate stays as it was" % error)

    def serve(self):
        """Serve until stopped; leave nothing behind."""
        getattr(gc, "freeze", int)()        # Python 3.7: what is there now is looked at no more
        gc.enable()
        try:
            self.server.start()
            self.loop.spawn(self._wait_for_the_end())
            self.loop.call_later(SWEEP_AFTER, lambda: self.loop.spawn(self.workspace.sweep(self.loop.breathe)))
            self.loop.run()
        finally:
            self.loop.close()
            self.workspace.close()

    async def _wait_for_the_end(self):
        """Shut down when asked to, or when for `idle_exit` s no job has run and no request with the secret has come."""
        app, seconds = self.app, self.args.idle_exit
        while not await app.stop_asked.wait_for(lambda: app.is_stopping, seconds and LOOK_IDLE_AFTER):
            if self.runner.is_busy or self.server.is_serving:
                app.last_used = time.monotonic()
            if app.last_used + LOOK_IDLE_AFTER + seconds <= time.monotonic():      # an end is seen one look late
                self.log.event("idle for %s: ending, as --idle-exit says" % go_duration(seconds))
                app.stop()
        notify_systemd(b"STOPPING=1")
        await self.runner.stop()
        until = time.monotonic() + DRAIN
        while time.monotonic() < until and self.server.is_serving:
            await self.loop.sleep(0.01)
        self.loop.stop()


ENDINGS = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


def run(args, log):
    """Serve as the options say; CannotStart if that can't be."""
    handed = attempt("use the socket that was handed over", handed_socket)
    # A link by which it was started goes, too.  They are open, so that no other file gets the numbers of their inodes.
    paths = [sys.argv[0], os.path.realpath(sys.argv[0])] if args.self_destruct else []
    own = [(path, attempt("read " + path, os.open, path, os.O_RDONLY)) for path in paths]
    foreground = attempt("go on in the background", daemonize) if args.daemon else None
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)       # until Loop.catch_signals: no file stays
    pid_file = attempt("write " + args.pid_file, write_pid_file, args.pid_file) if args.pid_file else None
    try:
        secret = args.secret or os.urandom(16).hex().encode("ascii")
        service = attempt("start", Service, args, handed, secret, log)
        with service.server as server:
            announce(server.url, readable(secret), not args.secret, log)
            if foreground:
                attempt("tell the foreground", os.write, foreground, b"\0")
                os.close(foreground)
            notify_systemd(b"READY=1")
            service.serve()
        for number in ENDINGS:                  # one more would end the end of the interpreter
            signal.signal(number, signal.SIG_IGN)
        for path, fd in own:
            remove_ours(path, os.fstat(fd), log)
    finally:
        if pid_file:
            os.ftruncate(pid_file, 0)       # in a directory that is not ours it stays
            remove_ours(args.pid_file, os.fstat(pid_file), log)


def main():
    """Serve until stopped; return the exit status."""
    args = parse_arguments()
    prepare_process(args.daemon)
    log = Log(args.log_format, args.log_file or args.daemon and os.devnull)
    if log.path:
        signal.signal(signal.SIGHUP, no_action)
    try:
        if args.secret:
            hide(args.secret)
    except (OSError, ValueError):           # no such /proc, or it may not be written
        if any(args.secret in os.fsencode(word) for word in sys.argv):
            log.event("the secret can be seen in ps here: give it by --secret-file or RTOT_SECRET")
    try:
        run(args, log)
    except CannotStart as error:
        log.event(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
