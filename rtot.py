#!/usr/bin/env python3
"""rtot, "run this over there": POST a script over HTTP, it runs here as an asynchronous job.

    python3 rtot.pyz -a :8457 -s secret
    curl -H 'Rtot-Secret: secret' -d 'echo wat is happening' http://host:8457/jobs

The routes are the table ROUTES below, next to the App that answers them.  The sections stand in this
order, and each uses only those above it:

    constants, errors, output, job and store, script, runner, HTTP, page, router and app, command line

Who owns what:

    pids, pipe ends, terminals, timers  the Runner's loop, in the main thread; others hand it a request
    a job's state, times and output     written by the loop alone, under the job's lock; readers copy
    ids and the map of jobs             JobStore's lock, never held while waiting for anything
    a connection                        its own thread, so that a slow client harms no one
    settings and routes                 nobody, after the start: they never change
"""
import _thread
import gc
if __name__ == "__main__":
    gc.disable()        # until it serves: the start makes no garbage, and looking for it took 1.2 of 26 ms

import bisect
import collections
import errno
import functools
import itertools
import os
import re
import select
import selectors
import signal
import socket
import socketserver
import stat
import sys
import threading
import time

__version__ = "1.0.0"

MIB = 1 << 20

# Running.
GRACE = 5.0             # s from SIGTERM to SIGKILL
MANY_SILENT = 100       # processes without output, of which it does not pay to ask each
REAP_AFTER = 0.02       # s after which all children are asked whether they have ended
LOOK_AFTER = 0.1        # s after which it is looked who is left to be killed, or has a terminal open again
HELD_AFTER = 0.5        # s after the exit for which a job waits for output that something else still holds
READ_SIZE = 1 << 16     # bytes read at a time: what a pipe holds (pipe(7)); and
WIDE_READ_SIZE = 1 << 18    # from a pipe that was found full, which is made to hold
WIDE_PIPE = 1 << 20     # bytes, the most without privileges (pipe(7)): 2.6 GB/s rather than 0.9
F_SETPIPE_SZ = 1031     # fcntl(2); Python knows it from 3.10 on
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1     # malloc.h of GNU's C library
RESERVED = 24           # descriptors, of many, that jobs leave to connections, and
SPARE = 8               # that connections leave to scripts and modules
TRIM_SIZE = 16 * MIB    # bytes of output forgotten, from which on malloc is asked to give its pages back,
TRIM_AFTER = 1.0        # s later, so that many deletions are one
FOLD = 1 << 16          # bytes, up to which small reads are folded into one chunk
STEPS = 1000            # pieces of an output that are looked at before its lock is let go: some 2 ms
PACE = 16 * MIB         # bytes/s; a follower that takes less is slow, and the job does not wait for it
PATIENCE = 0.25         # s in which a follower has to show that pace
LONGEST_WAIT = 3600.0   # s at a time; epoll_wait(2) takes 24 days at most
DEFAULT_SHELL = b"/bin/bash"
OUR_OWN = (b"RTOT_SECRET", b"RTOT_ADDR", b"RTOT_LOG_FORMAT",        # variables that no job gets
           b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES")         # sd_listen_fds(3)
SHEBANG_SIZE = 256      # bytes that the kernel reads of a script (linux/binfmts.h, BINPRM_BUF_SIZE)

# HTTP.
BACKLOG = 1024
STACK_SIZE = MIB // 2   # bytes, of a connection's thread; a thousand with 8 MB each are too many for some hosts
MAX_LINE = 32768        # bytes of a request line or a header; RFC 9112, 3 asks for 8000 at least
MAX_HEAD = 65536        # bytes of all headers
MAX_HEADERS = 100
HEAD_TIMEOUT = 10       # s for a whole head from its first byte: a byte now and then does not prolong it
BODY_TIMEOUT = 30       # s without one byte of a body
IDLE_TIMEOUT = 75       # s between two requests of a connection
SEND_TIMEOUT = 300.0    # s for which a client may leave SLICE bytes of an answer unread
DRAIN = 1.0             # s for which answers may still be sent when all jobs have ended
LINGER = 2.0            # s, and
LINGER_BYTES = 16 * MIB  # bytes of an unread body that are thrown away so that its sender sees the answer
LONGEST_LINE = 4000     # characters of a line of the log: what a pipe takes at once, PIPE_BUF of pipe(7)
SLICE = 1 << 16         # bytes of an answer that are in hand at a time
SWEEP_AFTER = 0.5       # s after the start, which would wait 8 ms for what the sweep imports
CROWD = 100             # followers of a job, from which on they are told of output with a delay, of
CROWD_PACE = 40e-6      # s for each of them: told of each line at once, 500 get 100 a second late (p99 140 ms)
TICK = 1.0              # s after which one who waits looks whether its client is still there
PROMPT = 1.0            # s in which a new client sends its first head, if it means to
KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))   # s, s, probes; tcp(7) has 2 hours

# time.time_ns came with 3.7.
wall_ns = getattr(time, "time_ns", lambda: int(time.time() * 1e9))


# ---------------------------------------------------------------------------------------------- errors

REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 411: "Length Required", 413: "Content Too Large",
    414: "URI Too Long", 416: "Range Not Satisfiable", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
    505: "HTTP Version Not Supported", 507: "Insufficient Storage",
}


class Error(Exception):
    """Why a request can't be served: raised anywhere, answered in one place (Connection).

    `status` is the HTTP status, `error` a short phrase for programs, `message` what would be right.
    `headers` go out with the answer, `extra` stands before the two in its JSON.
    """

    status = 500
    error = ""          # the reason of the status, in lower case
    closes = False      # the connection cannot go on: where the next request begins is not known

    def __init__(self, message, error=None, headers=(), extra=None):
        super().__init__(message)
        self.message = message
        self.error = error or self.error or REASONS[self.status].lower()
        self.headers = list(headers)
        self.extra = extra or {}


class BadRequest(Error):
    status = 400


class Malformed(BadRequest):
    """Not HTTP as RFC 9112 has it: nothing after it on the connection can be trusted."""
    error, closes = "malformed request", True


class NotAuthorized(Error):
    status, error, closes = 401, "not authorized", True


class NotFound(Error):
    status = 404


class MethodNotAllowed(Error):
    status = 405


class RequestTimeout(Error):
    status, closes = 408, True


class Conflict(Error):
    status = 409


class LengthRequired(Error):
    status = 411


class TooLarge(Error):
    status, closes = 413, True


class URITooLong(Error):
    status, closes = 414, True


class RangeNotSatisfiable(Error):
    status = 416


class HeadTooLarge(Error):
    status, closes = 431, True


class NotImplementedHere(Error):
    status, closes = 501, True


class Unavailable(Error):
    status = 503


class VersionNotSupported(Error):
    status, closes = 505, True


class InsufficientStorage(Error):
    status = 507


class ClientGone(Exception):
    """The client has hung up: there is no one to answer."""


# ---------------------------------------------------------------------------------------------- output

OUT, ERR = 0, 1


class Stream:
    """The bytes of one stream, in chunks.

    `start` and `end` are the absolute offsets of the first byte kept and of the one after the last;
    `starts` are those of the chunks.  Small reads are folded, so a line at a time costs little more
    than its bytes: 200,000 lines read one by one made 200,000 objects before.
    """

    __slots__ = ("chunks", "starts", "start", "end")

    def __init__(self):
        self.chunks, self.starts = [], []
        self.start = self.end = 0

    def append(self, data):
        chunks = self.chunks
        if chunks and len(chunks[-1]) + len(data) <= FOLD:
            if type(chunks[-1]) is bytes:       # the one print of a small job stays as small as it is
                chunks[-1] = bytearray(chunks[-1])
            chunks[-1] += data
        else:
            chunks.append(data)
            self.starts.append(self.end)
        self.end += len(data)

    def drop(self, count):
        """Forget the oldest `count` bytes; a chunk is freed when its last byte is dropped."""
        self.start += count
        whole = bisect.bisect_right(self.starts, self.start) - 1
        if self.start == self.end:
            whole = len(self.chunks)
        if whole > 0:
            del self.chunks[:whole], self.starts[:whole]

    def read(self, offset, limit):
        """Return what stands at `offset`, from one chunk and at most `limit` bytes; b"" at the end."""
        if offset >= self.end:
            return b""
        index = bisect.bisect_right(self.starts, offset) - 1
        begin = offset - self.starts[index]
        return bytes(self.chunks[index][begin:begin + limit])

    def pieces_back(self, begin, end):
        """Yield the bytes from `end` back to `begin`, or to the start, a chunk at a time."""
        while end > max(begin, self.start):
            index = bisect.bisect_left(self.starts, end) - 1
            first = max(begin, self.start, self.starts[index])
            yield bytes(self.chunks[index][first - self.starts[index]:end - self.starts[index]])
            end = first


def new_turns():
    """Return an empty array of positions; a list where there is no descriptor left to import arrays with."""
    try:
        import array
    except (OSError, ImportError):
        return []
    return array.array("q")


class Output:
    """What a job has printed: two streams, and the order in which they came.

    A position in the log is the number of bytes of both streams before it.  `turns` are the positions
    at which the log changes to the other stream, beginning with OUT: so the stream at a position is
    the parity of the turns up to it, and the order costs 8 bytes a change.  The oldest bytes are
    dropped in the order of the log when more than `limit` are kept.  Guarded by the job's lock.
    """

    __slots__ = ("streams", "turns", "limit", "readers")

    def __init__(self, limit):
        self.streams = (Stream(), Stream())
        self.turns = ()
        self.limit = limit
        self.readers = []       # those who follow

    @property
    def start(self):
        """The log position of the first byte kept: as many have been dropped."""
        return self.streams[OUT].start + self.streams[ERR].start

    @property
    def end(self):
        return self.streams[OUT].end + self.streams[ERR].end

    def append(self, stream, data):
        if len(self.turns) & 1 != stream:
            if not self.turns:              # most jobs print to one stream, and need none
                self.turns = new_turns()
            self.turns.append(self.end)
        self.streams[stream].append(data)
        if self.end - self.start > self.limit:
            self.drop(self.end - self.start - self.limit)
        if len(self.turns) > max(self.limit // 8, STEPS):       # they may take as much as the bytes, and no more
            self.drop(self.turns[len(self.turns) // 8] - self.start)

    def _run_at(self, position):
        """Return the stream at `position` and the position where the next turn is, or the end."""
        index = bisect.bisect_right(self.turns, position)
        return index & 1, self.turns[index] if index < len(self.turns) else self.end

    def drop(self, count):
        """Forget the `count` oldest bytes."""
        target = self.start + count
        while self.start < target:
            begin, end = self.start, target
            first, last = (bisect.bisect_right(self.turns, position) for position in (begin, end))
            if last - first > STEPS:        # no copy of all: it may be memory that is wanting
                last = first + STEPS
                end = self.turns[last - 1]
            edges = [begin] + list(self.turns[first:last]) + [end]
            size = sum(edges[1::2]) - sum(edges[:len(edges) & ~1:2])       # of every other run, from the first on
            self.streams[first & 1].drop(size)
            self.streams[~first & 1].drop(end - begin - size)
        stale = bisect.bisect_right(self.turns, self.start) & ~1
        if stale and stale >= len(self.turns) // 8:     # seldom, since what follows moves; in pairs, for the parity
            del self.turns[:stale]

    def read(self, at, which, limit):
        """Return the bytes at the place `at` and move it behind them; b"" at the end.

        `at` is a list of two offsets, one for each stream; `which` is OUT, ERR or None for the log.
        """
        if which is not None:
            at[which] = max(at[which], self.streams[which].start)
            data = self.streams[which].read(at[which], limit)
            at[which] += len(data)
            return data
        parts = []
        at[:] = (max(offset, stream.start) for offset, stream in zip(at, self.streams))
        while limit > 0 and len(parts) < STEPS:
            stream, run_end = self._run_at(at[OUT] + at[ERR])
            data = self.streams[stream].read(at[stream], min(limit, run_end - at[OUT] - at[ERR]))
            if not data:
                break
            at[stream] += len(data)
            limit -= len(data)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def tail(self, lines, which, at):
        """Move the place `at` to the end, and back to where the last `lines` lines begin: yield at each step of that.

        Between two steps the lock may be let go: what is dropped meanwhile is not looked at.
        """
        at[:] = (stream.end for stream in self.streams)
        wanted = None       # newlines to find from the end: the one that ends the last line is not a start
        for stream, data in self._pieces_back(which, list(at)) if lines else ():
            yield
            if wanted is None:
                wanted = lines + data.endswith(b"\n")
            count = data.count(b"\n")
            if count < wanted:
                wanted -= count
                at[stream] -= len(data)
                continue
            newline = len(data)
            for _ in range(wanted):
                newline = data.rfind(b"\n", 0, newline)
            at[stream] -= len(data) - newline - 1
            break

    def _pieces_back(self, which, at):
        """Yield (stream, bytes) from the place `at` back to the start."""
        if which is not None:
            for data in self.streams[which].pieces_back(0, at[which]):
                yield which, data
            return
        position = sum(at)
        while position > self.start:
            index = bisect.bisect_left(self.turns, position)
            size = position - max(self.turns[index - 1] if index else 0, self.start)
            stream = index & 1
            for data in self.streams[stream].pieces_back(at[stream] - size, at[stream]):
                yield stream, data
            at[stream] -= size
            position -= size


class Reader:
    """A follower's own place in an output: `which` stream, or None for the log; `at`, see Output.read.

    `length` bytes are to be read, or all that comes; `lost` counts those that were dropped before they
    were.  `awaited`: while it keeps up the job waits for it rather than drop what it has not read, see
    Runner._hold_back.
    """

    __slots__ = ("output", "which", "at", "length", "lost", "awaited")

    def __init__(self, output, which, at, length=None):
        self.output, self.which, self.at, self.length = output, which, at, length
        self.lost, self.awaited = 0, True

    @property
    def position(self):
        return sum(self.at) if self.which is None else self.at[self.which]

    @property
    def source(self):
        """What it reads from, with its `start` and `end`."""
        return self.output if self.which is None else self.output.streams[self.which]

    def read(self, limit):
        before, dropped = self.position, self.source.start
        data = self.output.read(self.at, self.which, limit)
        self.lost += max(0, dropped - before)
        if not self.awaited and self.source.end - self.position < self.output.limit // 2:
            self.awaited = True
        return data

    def endangered(self, count):
        """Would `count` more bytes push out what it has not read?"""
        output = self.output
        source = self.source
        return (output.end - output.start + count > output.limit
                and self.position < min(source.end, source.start + count))


# -------------------------------------------------------------------------------------- job and store

STATES = {              # a job's lifecycle: from a state, where it can go
    "new": ("running", "complete"),
    "running": ("complete",),
    "complete": (),
}

CANCELED = "canceled before it started"

# What Go calls the signals that end a process (its syscall package, linux/amd64).
SIGNAL_WORDS = {
    "HUP": "hangup", "INT": "interrupt", "QUIT": "quit", "ILL": "illegal instruction",
    "TRAP": "trace/breakpoint trap", "ABRT": "aborted", "BUS": "bus error",
    "FPE": "floating point exception", "KILL": "killed", "USR1": "user defined signal 1",
    "SEGV": "segmentation fault", "USR2": "user defined signal 2", "PIPE": "broken pipe",
    "ALRM": "alarm clock", "TERM": "terminated", "STKFLT": "stack fault",
    "XCPU": "CPU time limit exceeded", "XFSZ": "file size limit exceeded",
    "VTALRM": "virtual timer expired", "PROF": "profiling timer expired", "IO": "I/O possible",
    "PWR": "power failure", "SYS": "bad system call",
}


def signal_words(number):
    """Return what Go's os.Signal.String() says: "killed" for 9, "signal 34" for one without a name."""
    for name, words in SIGNAL_WORDS.items():
        if getattr(signal, "SIG" + name, None) == number:
            return words
    return "signal %d" % number


@functools.lru_cache(maxsize=64)
def utc(form, seconds):
    """Return the time, in whole seconds since 1970, as strftime(3) has it; asked again and again within a second."""
    return time.strftime(form, time.gmtime(seconds))


def go_time(ns):
    """Return a time in ns since 1970 as Go's time.Time.String() does; 0 is Go's zero time."""
    if not ns:
        return "0001-01-01 00:00:00 +0000 UTC"
    seconds, fraction = divmod(ns, 10 ** 9)
    digits = (".%09d" % fraction).rstrip("0").rstrip(".")
    return utc("%Y-%m-%d %H:%M:%S", seconds) + digits + " +0000 UTC"


def go_duration(seconds):
    """Return seconds as Go's time.Duration.String() does: 1h2m3.4s, 2m0s, 3.5ms."""
    def decimal(value, digits):
        return ("%.*f" % (digits, value)).rstrip("0").rstrip(".")
    ns = int(seconds * 1e9 + 0.5)
    if ns < 10 ** 9:
        for unit, size, digits in (("ns", 1, 0), ("\u00b5s", 10 ** 3, 3), ("ms", 10 ** 6, 6)):
            if ns < size * 1000:
                return (decimal(ns / size, digits) if digits else str(ns)) + unit if ns else "0s"
    minutes, ns = divmod(ns, 60 * 10 ** 9)
    hours, minutes = divmod(minutes, 60)
    text = "%dh%dm" % (hours, minutes) if hours else "%dm" % minutes if minutes else ""
    return text + decimal(ns / 1e9, 9) + "s"


def readable(data):
    """Return bytes as text; what is not UTF-8 shows as U+FFFD."""
    return bytes(data).decode("utf-8", "replace")


Terminal = collections.namedtuple("Terminal", "rows cols")

# How a job is to run.  args, cwd and the pairs of env are bytes, as the kernel has them; timeout in s.
Options = collections.namedtuple("Options", "args env cwd timeout label stdin tty")
PLAIN = Options(args=(), env=(), cwd=None, timeout=None, label="", stdin=False, tty=None)


class Job:
    """A record of one run.  Written by the Runner's loop alone, under `lock`; read under `lock`.

    `created`, `started` and `completed` are ns since 1970, 0 until then; `began` and `took` are seconds
    of the monotonic clock, so that a step of the clock falsifies no duration.  The Conditions, of any
    change and of the end alone, are made when someone waits first and let go at the end: most jobs
    never need one, and it is half of what a complete job would weigh.
    """

    __slots__ = ("id", "script", "options", "state", "created", "started", "completed", "began", "took",
                 "exit", "exit_code", "timed_out", "held", "pid", "output", "lock", "_changed", "_ended")

    def __init__(self, script, options, limit):
        self.id = None
        self.script, self.options = script, options
        self.state = "new"
        self.created, self.started, self.completed = wall_ns(), 0, 0
        self.began, self.took = 0.0, 0.0
        self.exit, self.exit_code, self.pid = "", None, None
        self.timed_out = self.held = False
        self.output = Output(limit)
        self.lock = threading.Lock()
        self._changed = self._ended = None

    @property
    def href(self):
        return "/jobs/%d" % self.id

    # The loop alone calls these.

    def _move(self, state):
        if state not in STATES[self.state]:
            raise RuntimeError("job %d cannot go from %s to %s" % (self.id, self.state, state))
        self.state = state

    def run(self, pid):
        with self.lock:
            self._move("running")
            self.pid, self.started, self.began = pid, wall_ns(), time.monotonic()
            self._notify()

    def capture(self, stream, data):
        """Take what was read of a stream; return by how much what is kept has grown, in bytes.

        Those who follow are told at once, unless they are a crowd.
        """
        with self.lock:
            output = self.output
            before = output.start
            output.append(stream, data)
            if not self.is_crowded():
                self._notify()
            return len(data) - (output.start - before)

    def is_crowded(self):
        return len(self.output.readers) >= CROWD

    def tell_crowd(self):
        """Wake those who follow."""
        with self.lock:
            self._notify()

    def complete(self, text, code, held=False):
        with self.lock:
            self._move("complete")
            self.exit, self.exit_code, self.held = text, code, held
            self.completed = wall_ns()
            self.took = time.monotonic() - self.began if self.started else 0.0

    def tell_end(self):
        """Wake those who wait for it to be complete."""
        with self.lock:
            self._notify()
            if self._ended:
                self._ended.notify_all()
            self._changed = self._ended = None      # who waits has a reference; nobody will from here on

    def time_out(self):
        with self.lock:
            self.timed_out = True

    def release(self):
        """What the script left in the background has let go of the output."""
        with self.lock:
            self.held = False

    def shed(self, count):
        """Forget the `count` oldest bytes of the output."""
        with self.lock:
            self.output.drop(count)

    def _notify(self):
        if self._changed:
            self._changed.notify_all()

    # Any thread calls these.

    def wait(self, condition, timeout):
        """Wait until `condition()`, called under the lock, is true: at most `timeout` seconds.

        Return what it returned last.  A complete job changes no more, so nobody waits for it.
        """
        deadline = time.monotonic() + timeout
        with self.lock:
            while True:
                result = condition()
                remaining = deadline - time.monotonic()
                if result or self.state == "complete" or remaining <= 0:
                    return result
                if self._changed is None:
                    self._changed = threading.Condition(self.lock)
                self._changed.wait(min(remaining, threading.TIMEOUT_MAX))

    def wait_for_end(self, timeout):
        """Wait until it is complete, at most `timeout` seconds; return whether it is.

        What it prints wakes nobody here: with `wait`, a third of the time of a short job went to that.
        """
        with self.lock:
            if self.state != "complete" and timeout > 0:
                if self._ended is None:
                    self._ended = threading.Condition(self.lock)
                self._ended.wait(min(timeout, threading.TIMEOUT_MAX))
            return self.state == "complete"

    def is_complete(self):
        return self.state == "complete"

    @property
    def duration(self):
        """Seconds for which it has run."""
        return time.monotonic() - self.began if self.state == "running" else self.took

    def slices(self, reader, length, limit):
        """Yield the `length` bytes from the reader's place on, at most `limit` at a time, so that nobody holds more.

        It ends before its time if some were dropped meanwhile, which `reader.lost` tells.
        """
        while length > 0:
            with self.lock:
                dropped = min(length, max(0, reader.source.start - reader.position))
                if dropped == length:
                    reader.lost += dropped
                    return
                data = reader.read(min(length - dropped, limit))    # which counts them as lost
                length -= dropped + len(data)
            yield data

    def tail(self, lines, which):
        """Return the place in the output from which on the last `lines` lines stand."""
        at = [0, 0]
        steps = self.output.tail(lines, which, at)
        while True:
            with self.lock:
                if sum(1 for _ in itertools.islice(steps, STEPS)) < STEPS:
                    return at
            time.sleep(0.001)       # a lock that is taken again at once is given to nobody else

    def view(self, fields):
        """Yield the job as JSON, in pieces of bytes: the `fields`, in their order, that are not empty."""
        with self.lock:
            pairs = [(name, VIEW[name](self)) for name in fields]
        shown = [pair for pair in pairs if pair[1] or pair[0] not in LEFT_OUT_WHEN_EMPTY]
        lead = "{"
        for plain, group in itertools.groupby(shown, lambda pair: not isinstance(pair[1], (Reader, bytes, list, dict))):
            if plain:           # all in one: half the time of one at a time
                yield (lead + "\n      " + members_encoder()(dict(group))[1:-1]).encode("utf-8", "replace")
                lead = ","
                continue
            for name, value in group:
                yield ('%s\n      "%s": ' % (lead, name)).encode("ascii")
                yield from value_json(self, value)
                lead = ","
        yield b"\n    }"


def working_directory():
    """Return ours, or b"" if it was removed."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b""


def kept_text(job, which):
    """Return what is kept of a stream, as text, or if that is large as a Reader of it; call it with the job's lock."""
    stream = job.output.streams[which]
    length = stream.end - stream.start
    data = stream.read(stream.start, FOLD)
    if len(data) == length:
        return readable(data)
    return Reader(job.output, which, [each.start for each in job.output.streams], length)


@functools.lru_cache(maxsize=1)
def members_encoder():
    """Return the function that encodes plain values by name as the members of a job, one a line."""
    import json
    return json.JSONEncoder(ensure_ascii=False, separators=(",\n      ", ": ")).encode


def value_json(job, value):
    """Yield a value that is not plain, as it stands in the JSON of the job; U+FFFD for what is not UTF-8."""
    import codecs
    import json
    if not isinstance(value, (Reader, bytes)):
        text = json.dumps(value, ensure_ascii=False, indent=2)
        yield text.replace("\n", "\n      ").encode("utf-8", "replace")
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    yield b'"'
    for piece in slices(value, FOLD) if isinstance(value, bytes) else job.slices(value, value.length, FOLD):
        yield json.dumps(decoder.decode(piece), ensure_ascii=False)[1:-1].encode("utf-8")
    yield decoder.decode(b"", True).encode("utf-8") + b'"'


def slices(data, size):
    """Yield the bytes in slices, without a copy."""
    view = memoryview(data)
    for begin in range(0, len(data), size):
        yield view[begin:begin + size]


def first_line(script):
    """Return the script's first line that is neither empty nor a comment, as text; of a long one the beginning."""
    lines = [line.strip() for line in script[:4096].split(b"\n")]
    return readable(next((line for line in lines if line and not line.startswith(b"#")), lines[0])[:200])


VIEW = collections.OrderedDict([      # a job's fields in JSON, in this order
    ("href", lambda job: job.href),
    ("id", lambda job: job.id),
    ("out", lambda job: kept_text(job, OUT)),
    ("err", lambda job: kept_text(job, ERR)),
    ("exit", lambda job: job.exit),
    ("state", lambda job: job.state),
    ("start", lambda job: go_time(job.started)),
    ("complete", lambda job: go_time(job.completed)),
    ("create", lambda job: go_time(job.created)),
    ("exit_code", lambda job: job.exit_code),
    ("timed_out", lambda job: job.timed_out),
    ("held", lambda job: job.held),
    ("dropped", lambda job: job.output.start),
    ("pid", lambda job: job.pid),
    ("label", lambda job: job.options.label),
    ("args", lambda job: [readable(arg) for arg in job.options.args]),
    ("cwd", lambda job: readable(job.options.cwd or working_directory())),
    ("timeout", lambda job: job.options.timeout),
    ("tty", lambda job: job.options.tty and collections.OrderedDict(zip(Terminal._fields, job.options.tty))),
    ("script", lambda job: readable(job.script) if len(job.script) <= FOLD else job.script),
    ("line", lambda job: first_line(job.script)),
    ("out_bytes", lambda job: job.output.streams[OUT].end),
    ("err_bytes", lambda job: job.output.streams[ERR].end),
    ("duration", lambda job: round(job.duration, 6)),
])
ALWAYS = ("href", "id", "state")
DEFAULT_FIELDS = ("href", "id", "out", "err", "exit", "state", "start", "complete", "create")
LEFT_OUT_WHEN_EMPTY = frozenset("out err exit".split())


def jobs_json(jobs, fields):
    """Yield the jobs as JSON, in pieces of bytes."""
    lead = b'{\n  "jobs": ['
    for job in jobs:
        yield lead + b"\n    "
        yield from job.view(fields)
        lead = b","
    yield b"\n  ]\n}\n" if lead == b"," else lead + b"]\n}\n"


class JobStore:
    """The jobs, by id.  Ids count from 0 and are never used again.

    `lock` guards the map, the next id and the order in which jobs became complete; it is never held
    while waiting for anything.
    """

    def __init__(self, keep, max_scripts):
        self.keep = keep                    # complete jobs, at most; 0: all
        self.max_scripts = max_scripts      # bytes, of all scripts together
        self.lock = threading.Lock()
        self._jobs = collections.OrderedDict()
        self._retired = collections.OrderedDict()
        self._next_id = 0
        self._script_bytes = 0

    def add(self, job):
        """Give the job its id and keep it."""
        with self.lock:
            if self._script_bytes + len(job.script) > self.max_scripts:
                raise InsufficientStorage(
                    "the scripts of the jobs held take %d bytes, and may take %d: delete complete jobs, as by DELETE "
                    "/jobs?state=complete" % (self._script_bytes, self.max_scripts))
            self._script_bytes += len(job.script)
            job.id = self._next_id
            self._next_id += 1
            self._jobs[job.id] = job

    def get(self, number):
        """Return the job, or None."""
        with self.lock:
            return self._jobs.get(number)

    def remove(self, number):
        """Return the job that is no longer in the map, or None."""
        with self.lock:
            return self._remove(number)

    def _remove(self, number):
        job = self._jobs.pop(number, None)
        if job:
            self._retired.pop(number, None)
            self._script_bytes -= len(job.script)
        return job

    def retire(self, job):
        """Note that the job is complete; forget and return those beyond `keep`, the oldest first."""
        with self.lock:
            if job.id in self._jobs:
                self._retired[job.id] = None
            surplus = len(self._retired) - self.keep if self.keep else 0
            return [self._remove(next(iter(self._retired))) for _ in range(surplus)]

    def select(self, state=None, label=None, last=None):
        """Return the jobs in that state and with that label, in order of id: the `last` of them; None is any or all."""
        with self.lock:
            jobs = list(self._jobs.values())
        jobs = [job for job in jobs
                if (state is None or job.state == state) and (label is None or job.options.label == label)]
        return jobs if last is None else jobs[max(0, len(jobs) - last):]


# ---------------------------------------------------------------------------------------------- script

def parse_shebang(script):
    """Return (interpreter, argument or None) as the kernel would read them from the first 256 bytes.

    The rules are those of Linux's fs/binfmt_script.c: one argument, blanks around it cut, no newline
    needed at the end of the file.  OSError ENOEXEC or EACCES for what the kernel would not take.
    """
    head = script[:SHEBANG_SIZE].ljust(SHEBANG_SIZE, b"\0")
    end = head.find(b"\n")
    if end < 0:
        end = SHEBANG_SIZE - 1
        if not re.search(b"[ \t\0]", head[2:].lstrip(b" \t")):     # the name may be cut: not to be run
            raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))
    line = head[2:end].strip(b" \t")
    if not line:
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))
    name, blanks, argument = re.match(b"([^ \t\0]*)([ \t]*)([^\0]*)", line).groups()
    if not name:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return name, argument if blanks else None


def explain_shebang(script):
    """Return what is probably wrong with a first line that could not be run, or b""."""
    line, newline, _ = script.partition(b"\n")
    if line.endswith(b"\r"):
        return (b"rtot: the first line ends in a carriage return (CR), which the kernel takes as part of it: "
                b"send the script with Unix line ends, as by sed 's/\\r$//'\n")
    if script.startswith(b"#!") and not newline:
        return (b"rtot: the script is a single #! line: curl -d @file takes the newlines out of a file, "
                b"--data-binary @file does not\n")
    return b""


class Script:
    """A script where its interpreter can open it: at `path`, which is open as `fd` if it has no name."""

    __slots__ = ("path", "fd")

    def __init__(self, path, fd=None):
        self.path, self.fd = path, fd

    def is_lost(self):
        """Has somebody cleaned the temporary directory?"""
        return self.fd is None and not os.path.exists(self.path)

    def close(self):
        """Take it away; nothing happens if somebody else has, or the directory can't be written any more."""
        try:
            os.unlink(self.path) if self.fd is None else os.close(self.fd)
        except OSError:
            pass


class Workspace:
    """The server's directory of scripts: 0700, locked by flock(2) while the server lives, gone after it.

    One whose server was killed is not locked any more, and the next server sweeps it.  Where no
    directory can be written, scripts are in memory (memfd_create(2), Python 3.8+).
    """

    PREFIX = "rtot-"

    def __init__(self):
        self._lock = threading.Lock()       # guards the making of the directory
        self._directory = self._fd = None
        self._names = 0

    def sweep(self):
        """Remove the directories of servers that were killed."""
        try:
            import fcntl
            import tempfile
            with os.scandir(tempfile.gettempdir()) as entries:
                found = [entry.path for entry in entries
                         if re.fullmatch(self.PREFIX + "[a-z0-9_]{8}", entry.name) and self._is_ours(entry)]
        except (OSError, ImportError):      # no temporary directory, or no descriptor: nothing to sweep
            return
        for path in found:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError:                 # gone meanwhile
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for name in os.listdir(path):
                    os.unlink(os.path.join(path, name))
                os.rmdir(path)
            except OSError:                 # its server lives, or there are no locks here
                pass
            finally:
                os.close(fd)

    @staticmethod
    def _is_ours(entry):
        """Can a server of our user have made it?  Then it is 0700, with files alone, 0600, with numbers for names."""
        try:
            status = entry.stat(follow_symlinks=False)
            mode = status.st_mode & ~stat.S_ISGID       # which a directory gives to those made in it (inode(7))
            if status.st_uid != os.geteuid() or mode != stat.S_IFDIR | 0o700:
                return False
            with os.scandir(entry.path) as files:
                return all(re.fullmatch("[0-9]+", file.name, re.ASCII)
                           and file.stat(follow_symlinks=False).st_mode == stat.S_IFREG | 0o600 for file in files)
        except OSError:                     # gone meanwhile
            return False

    def _make(self):
        """Make the directory and lock it; again, if a sweeper came between the two.

        One that had it before us, and is gone, has removed it: _create will see.
        """
        import fcntl
        import tempfile
        while True:
            path = tempfile.mkdtemp(prefix=self.PREFIX)
            try:
                fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            except OSError:
                os.rmdir(path)
                raise
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:             # a sweeper has it
                os.close(fd)
                continue
            except OSError:                     # there are no locks here: nobody can sweep it, either
                pass
            self._directory, self._fd = os.fsencode(path), fd
            return

    def _create(self):
        """Return (path, descriptor) of a new file in the directory, which is made if there is none (any more)."""
        with self._lock:
            while True:
                if self._directory is None:
                    self._make()
                self._names += 1
                path = b"%s/%d" % (self._directory, self._names)
                try:
                    return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                except FileNotFoundError:       # a sweeper was quicker, or somebody cleaned the temporary directory
                    os.close(self._fd)
                    self._directory = None

    def write(self, data):
        """Return a Script that holds all of `data`; InsufficientStorage if that can't be."""
        try:
            path, fd = self._create()
        except (OSError, ImportError) as error:
            return self._in_memory(data, error)
        script, rest = Script(path), data
        try:
            while rest:                         # write(2) may take a part
                rest = rest[os.write(fd, rest):]
        except OSError as error:
            script.close()
            raise InsufficientStorage("the script could not be written to %s: %s" % (
                readable(os.path.dirname(path)), error.strerror)) from error
        finally:
            os.close(fd)
        return script

    def _in_memory(self, data, reason):
        if not hasattr(os, "memfd_create"):
            raise InsufficientStorage("no temporary directory can be written: %s; name one by TMPDIR"
                                      % (getattr(reason, "strerror", None) or reason)) from reason
        try:
            fd = os.memfd_create("rtot")
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(data)
                os.lseek(fd, 0, os.SEEK_SET)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise InsufficientStorage("the script could not be kept in memory: %s" % error.strerror) from error
        return Script(b"/dev/fd/%d" % fd, fd)

    def remove(self):
        """Remove the directory and all in it."""
        import shutil
        with self._lock:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                os.close(self._fd)
                self._directory = None


# ---------------------------------------------------------------------------------------------- runner

class Reply:
    """The loop's answer to a thread that asked it for something: given once, that it is done or an Error."""

    __slots__ = ("_lock", "_error")

    def __init__(self):
        self._lock = threading.Lock()
        self._lock.acquire()
        self._error = None

    def give(self, error=None):
        self._error = error
        self._lock.release()

    def wait(self, timeout):
        """Is it there within `timeout` seconds?"""
        if self._lock.acquire(timeout=timeout):
            self._lock.release()
            return True
        return False

    def result(self):
        if self._error:
            raise self._error


Timer = collections.namedtuple("Timer", "when number function process")     # s of the monotonic clock


class Process:
    """What the loop knows of a job's processes, one session, until nobody will signal them any more.

    `pipes`: the stream that each descriptor carries; `input`: the descriptor of standard input, or None;
    `feeds`: what is to be written there, as [memoryview, Reply]; `last`: the last byte of all that;
    `ended`: how the script ended, as (text, code), from when on its leader is a zombie that pins the number
    of the group; `killing`: the timer of a SIGKILL to come; `printed`: the end of the output, at most, that
    the script itself may have left in its pipes; `paused`: why its output is not read for a moment, see
    _hold_back; `forgotten`: it is thrown away; `wide`: those of the pipes that hold more; `crowd`: the
    timer of telling those who follow.
    """

    __slots__ = ("job", "pid", "pipes", "input", "feeds", "last", "eof", "terminal", "script", "ended", "killing",
                 "timers", "printed", "paused", "forgotten", "wide", "crowd")

    def __init__(self, job, script):
        self.job, self.script = job, script
        self.pid = self.input = self.terminal = self.ended = self.killing = None
        self.pipes, self.feeds, self.timers, self.wide = {}, collections.deque(), [], set()
        self.eof = self.forgotten = False
        self.last = b"\n"
        self.crowd = self.paused = self.printed = None


def living_sessions():
    """Return by session the process groups that have a member that lives, from proc_pid_stat(5).

    None where that can't be told: no /proc, or that of other processes (pid_namespaces(7)), or no descriptor.
    A group's zombie leader still takes signals, so kill(2) can't tell.
    """
    sessions = {}
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        for number in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/stat" % number, "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError, PermissionError):     # gone meanwhile, or not for us to end
                continue
            if fields[0] not in b"ZX" or int(fields[17]) > 1:       # a zombie may have threads that live
                sessions.setdefault(int(fields[3]), set()).add(int(fields[2]))
    except OSError:
        return None
    return sessions


def give_memory_back():
    """Let malloc hand its free pages to the host: without it, 350 MiB of output stayed resident after their jobs.

    malloc_trim(3) is the C library's of GNU; others give back by themselves, or can't.
    """
    try:
        import ctypes
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, ImportError, OSError, MemoryError):     # another libc; no ctypes; nothing to import it with
        pass


@functools.lru_cache(maxsize=1)
def map_large_blocks():
    """Let malloc map what is large, so that it goes back when it is freed: mallopt(3).

    From the first that is freed it learns to keep them: 16 MiB at the top of each thread's arena, where malloc_trim(3)
    does not look; 20 scripts of 8 MiB left 170 MiB so.
    """
    try:
        import ctypes
        for option, size in ((M_MMAP_THRESHOLD, MIB), (M_TRIM_THRESHOLD, 2 * MIB)):
            ctypes.CDLL(None).mallopt(option, size)
    except (AttributeError, ImportError, OSError, MemoryError):     # as above
        pass


def no_action(number, frame):
    """Handle a signal by doing nothing: unlike SIG_IGN, a child does not inherit that (execve(2))."""


def hung_up(descriptor, seconds=0):
    """Is the other side of a terminal or a connection closed, or will it be within `seconds`?"""
    poll = select.poll()
    poll.register(descriptor, 0)        # POLLHUP comes unasked: poll(2)
    return bool(poll.poll(int(seconds * 1000)))


def set_size(terminal, rows, cols):
    """Tell a terminal its size, and who runs in its foreground by SIGWINCH: TIOCSWINSZ of ioctl_tty(2)."""
    import fcntl
    import struct
    import termios
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


class Runner:
    """The one loop that owns every process.  It runs in the main thread.

    Other threads hand it a request: `submit` `kill` `feed` `resize` `forget` `stop`.  Everything else is
    the loop's own.  A job waits as `new` while `parallel` others are not complete.
    """

    def __init__(self, store, parallel, max_total, descriptors=256, nofile=None, workspace=None):
        """`descriptors` are those that we may have; `nofile` is the limit that jobs get, if not ours.

        `workspace` is where scripts are written again that were lost while they waited.
        """
        self._descriptors, self._nofile, self._workspace = descriptors, nofile, workspace
        self.store, self.parallel, self.max_total = store, parallel, max_total
        self.stopping, self._stop_by = False, 0.0
        self._calls = collections.deque()           # (function, arguments): append and popleft are atomic
        # A pipe holds 65,536 wakes; a socket pair held 278 (each byte an skb) and lost SIGCHLDs when full.
        self._wake_in, self._wake_out = os.pipe()
        for end in (self._wake_in, self._wake_out):
            os.set_blocking(end, False)
        self._awake = False                         # a wake is under way for the calls
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_in, selectors.EVENT_READ, (self._woken, None))
        self._timers, self._timer_count = [], 0     # in order; by number, where they are for the same time
        self._waiting = collections.deque()         # (job, Script), first come first served
        self._active = 0                            # processes of jobs that are not complete
        self._processes = {}                        # by job id
        self._by_pid = {}
        self._silent, self._reaping = set(), None   # whose output has ended; the timer that asks for all who ended
        self._looked, self._sessions = False, None  # living_sessions() of this turn of the loop, once it was asked
        self._pinned, self._looking = set(), None   # who only waits for a SIGKILL; the timer that looks at them
        self._untold = collections.deque()   # of which those who wait are to be told, when nothing else is to be
                                                    # done: one who wakes before contends for the interpreter
        self._kept = collections.OrderedDict()      # bytes kept of each job, in order of their last output
        self._total = 0
        self._freed, self._trimming = 0, None   # bytes forgotten since malloc gave back; the timer of that
        # Python 3.8: 0.06 ms.  Popen takes 0.13 ms, and before 3.10 it forks: 0.6 ms, and 6 ms with 500 MB held.
        self._can_spawn = hasattr(os, "posix_spawn")
        self._null = os.open(os.devnull, os.O_RDWR)
        self._environ = {name: value for name, value in os.environb.items()
                         if name and b"=" not in name and name not in OUR_OWN}      # posix_spawn takes no such name

    # Any thread calls these.

    def submit(self, job, script):
        """Run the job, when its turn comes, from the Script, which is the loop's from here on."""
        self._call(self._submit, job, script)

    def kill(self, job, signum, grace):
        """Send `signum` to all processes of the job, and SIGKILL `grace` seconds later if that is not None."""
        self._ask(self._kill, job, signum, grace)

    def feed(self, job, data, eof):
        """Have `data` written to the job's standard input, which is closed after it if `eof`; a Reply."""
        reply = Reply()
        self._call(self._feed, job, memoryview(data), eof, reply)
        return reply

    def withdraw(self, job, reply):
        """Write nothing more of what was to be answered by `reply`: who sent it is gone."""
        self._call(self._withdraw, job, reply)

    def resize(self, job, terminal):
        """Give the job's terminal another size."""
        self._ask(self._resize, job, terminal)

    def forget(self, jobs):
        """Stop those of the jobs that are not complete, and keep the output of none."""
        self._call(self._forget, jobs)

    def relieve(self):
        """Hold less output: memory is wanting."""
        try:
            self._call(self._relieve)
        except MemoryError:         # even for that: who meets it next asks again
            pass

    def stop(self):
        """End all jobs, then the loop; at once, if asked a second time."""
        self._call(self._stop)

    def _ask(self, function, *args):
        reply = Reply()

        def answer():
            try:
                function(*args)
            except Exception as error:      # whoever asked has it raised
                reply.give(error)
            else:
                reply.give()
        self._call(answer)
        reply.wait(-1)
        reply.result()

    def _call(self, function, *args):
        self._calls.append((function, args))
        if not self._awake:
            self._awake = True
            os.write(self._wake_out, b"\0")

    # From here on the loop alone.

    def catch_signals(self, ends_us):
        """Stop at one of the signals `ends_us`, and see SIGCHLD; before there can be a job.

        The selector sees a signal as a byte on the wakeup descriptor, which Python's handler writes.
        """
        signal.set_wakeup_fd(self._wake_out)
        signal.signal(signal.SIGCHLD, no_action)
        for number in ends_us:
            signal.signal(number, lambda number, frame: self.stop())

    def run(self):
        """Run jobs until stopped."""
        try:
            while not self._finished():
                timeout = self._timers[0].when - time.monotonic() if self._timers else LONGEST_WAIT
                events = self._selector.select(min(max(timeout, 0), LONGEST_WAIT))
                self._looked = False
                for key, _ in events:
                    function, process = key.data
                    self._try(function, *((process, key.fd) if process else ()))
                self._try(self._run_timers)
                self._try(self._tell_ends)
        finally:
            for process in self._processes.values():
                self._signal(process, signal.SIGKILL)
            signal.set_wakeup_fd(-1)

    def _try(self, function, *args):
        try:
            function(*args)
        except MemoryError:
            try:
                self._relieve()
                self.after(REAP_AFTER, self._reap_any)      # what it may have been about to look at
                self.after(REAP_AFTER, self._run_calls)
            except MemoryError:     # even for that: the next event tries again
                pass

    def _relieve(self):
        """What is held now is too much for this host."""
        self._shed(self._total * 3 // 4)
        give_memory_back()

    def _finished(self):
        # It does not wait for ever: what sleeps uninterruptibly, or runs as another user, may not end.
        return self.stopping and not self._calls and (not self._processes or time.monotonic() > self._stop_by)

    def _woken(self):
        numbers = os.read(self._wake_in, READ_SIZE)
        self._awake = False         # before the calls are looked at: one that comes now wakes again
        if signal.SIGCHLD in numbers:
            self._reap()
        self._run_calls()

    def _run_calls(self):
        while self._calls:
            function, args = self._calls.popleft()
            function(*args)

    def after(self, delay, function, process=None):
        """Call function(process), or function(), in `delay` seconds; return the Timer."""
        self._timer_count += 1
        timer = Timer(time.monotonic() + delay, self._timer_count, function, process)
        bisect.insort(self._timers, timer)      # a list: 10,000 of them move in 2 us
        if process:
            process.timers.append(timer)
        return timer

    def _cancel_timer(self, timer):
        del self._timers[bisect.bisect_left(self._timers, timer)]
        if timer.process:
            timer.process.timers.remove(timer)

    def _run_timers(self):
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            timer = self._timers[0]
            self._cancel_timer(timer)
            try:
                timer.function(timer.process) if timer.process else timer.function()
            except MemoryError:         # again, then: a SIGKILL to come may hang on it
                self.after(REAP_AFTER, timer.function, timer.process)
                raise

    def _tell_ends(self):
        while self._untold:
            self._untold[0].tell_end()      # for want of memory again
            self._untold.popleft()

    # Starting.

    def _submit(self, job, script):
        if self.stopping or job.is_complete():      # deleted already
            self._cancel(job, script)
            return
        self._waiting.append((job, script))
        self._launch()

    def _cancel(self, job, script):
        script.close()
        if not job.is_complete():
            self._complete(job, CANCELED, 126)

    def _launch(self):
        """Start those whose turn it is."""
        while self._waiting and (not self.parallel or self._active < self.parallel):
            job, script = self._waiting.popleft()
            process = Process(job, script)
            try:
                if self._workspace and script.is_lost():
                    process.script = self._workspace.write(job.script)
                self._spawn(process)
            except OSError as error:
                self._not_started(process, error)
            except InsufficientStorage:
                self._not_started(process, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            except MemoryError:
                self._not_started(process, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
            except ImportError:             # no descriptor to open a module with
                self._not_started(process, OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            except ValueError:              # what posix_spawn refuses by itself: no script may end the loop
                self._not_started(process, OSError(errno.EINVAL, os.strerror(errno.EINVAL)))

    def _spawn(self, process):
        """Start the job's script as the leader of a session of its own."""
        job, opened = process.job, []
        executable, argv = self._command(process)
        try:
            ends, mine = self._open_ends(job.options, opened)
            for name, stream in (("out", OUT), ("err", ERR)):
                if name in mine:
                    self._watch(process, mine[name])
                    process.pipes[mine[name]] = stream
            process.pid = self._start(argv, executable, ends, process)
        except BaseException:           # nothing stays of what does not run; _launch says why
            for fd in process.pipes:
                self._unwatch(fd)
            process.pipes.clear()
            for fd in opened:
                os.close(fd)
            raise
        for fd in set(opened) - set(mine.values()):
            os.close(fd)
        process.terminal = mine.get("terminal")
        self._processes[job.id] = self._by_pid[process.pid] = process
        self._active += 1
        process.input = mine.get("input")
        job.run(process.pid)
        if job.options.timeout is not None:
            self.after(job.options.timeout, self._time_out, process)

    def _command(self, process):
        """Return (executable, argv): [interpreter, argument, script, ...], so that the script itself is not executed.

        It works where the directory is mounted noexec, and it can't meet ETXTBSY: 28 to 81 of 1600 scripts
        that were written and executed while other threads forked did.
        """
        interpreter, argument = parse_shebang(process.job.script)
        executable = interpreter if b"/" in interpreter else b"./" + interpreter    # no search of PATH
        argv = [interpreter] + ([argument] if argument is not None else []) + [process.script.path]
        return executable, argv + list(process.job.options.args)

    def _open_ends(self, options, opened):
        """Return (the child's descriptors 0 to 2, ours by name); all that are opened are added to `opened`."""
        def pipe():
            pair = os.pipe()
            opened.extend(pair)
            return pair
        if options.tty:
            master, slave = os.openpty()
            opened.extend((master, slave))
            set_size(slave, *options.tty)
            mine = {"out": master, "terminal": master, "input": os.dup(master)}
            opened.append(mine["input"])
            ends = (slave, slave, slave)
        else:
            (out, out_end), (err, err_end) = pipe(), pipe()
            mine, ends = {"out": out, "err": err}, (self._null, out_end, err_end)
            if options.stdin:
                end, mine["input"] = pipe()
                ends = (end,) + ends[1:]
        for fd in mine.values():
            os.set_blocking(fd, False)
        reserved = min(RESERVED, self._descriptors // 4)    # connections need some, or nobody could delete a job
        if max(opened) >= self._descriptors - reserved:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return ends, mine

    def _start(self, argv, executable, ends, process):
        """Start it with its environment and directory, in a session of its own; return its pid."""
        options, environ = process.job.options, self._environ
        if options.env or options.tty:
            environ = dict(environ)
            if options.tty:
                environ.setdefault(b"TERM", b"xterm")
            environ.update(options.env)
        if options.tty:
            # A session leader that opens a terminal gets it as its controlling one (credentials(7)),
            # so no preexec_fn is needed, which would make Popen fork: 77 to 91 ms with 2 GB held.
            argv = [b"/bin/sh", b"-c", b'exec "$@" <>"$0" >&0 2>&1', os.fsencode(os.ttyname(ends[0])),
                    executable] + argv[1:]
            executable = argv[0]
        memory = process.script.fd
        if memory is not None:
            os.set_inheritable(memory, True)
        try:
            return self._with_limit(ends, self._spawn_or_fork, argv, executable, ends, options.cwd, environ)
        finally:
            if memory is not None:
                os.set_inheritable(memory, False)

    def _with_limit(self, ends, spawn, *args):
        """Spawn with the limit of descriptors that jobs get; return the pid.

        It is ours meanwhile, too: so where we have nearly as many in use, the job gets it a moment after its start.
        """
        if not self._nofile:
            return spawn(*args)
        import resource
        soft, hard = self._nofile
        if max(ends) + RESERVED >= soft:
            pid = spawn(*args)
            self._restore_nofile(pid)
            return pid
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            return spawn(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors, hard))

    def _spawn_or_fork(self, argv, executable, ends, cwd, environ):
        # Every other descriptor is close-on-exec (PEP 446; inherited ones from the start of main).
        if self._can_spawn and cwd is None:     # it knows no directory
            try:
                return os.posix_spawn(executable, argv, environ, setsid=True,
                                      file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(ends)],
                                      setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))       # which Python ignores
            except NotImplementedError:         # a libc without POSIX_SPAWN_SETSID
                self._can_spawn = False
        import subprocess
        child = subprocess.Popen(argv, executable=executable, stdin=ends[0], stdout=ends[1], stderr=ends[2],
                                 cwd=cwd, env=environ, close_fds=False, start_new_session=True)
        child.returncode = 0        # the loop waits for it, not Popen
        return child.pid

    def _restore_nofile(self, pid):
        import resource
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, self._nofile)
        except OSError:         # it has ended, or is another user's by now
            pass

    def _not_started(self, process, error):
        """Complete a job whose script could not be started, with what Go's os/exec would say."""
        job = process.job
        self._explain(process)
        process.script.close()
        cwd = job.options.cwd
        if cwd is not None and error.filename == cwd:
            what = "chdir " + readable(cwd)
        else:
            try:
                what = "fork/exec " + readable(parse_shebang(job.script)[0])
            except OSError:
                what = "fork/exec " + readable(process.script.path)
        reason = os.strerror(error.errno).lower()
        self._complete(job, "%s: %s" % (what, reason), 127 if error.errno == errno.ENOENT else 126)

    def _explain(self, process):
        hint = explain_shebang(process.job.script)
        if hint:
            self._captured(process, ERR, hint)

    # Output.

    def _watch(self, process, fd):
        """Have what comes by the descriptor read, if it is not yet."""
        if fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_READ, (self._read, process))

    def _unwatch(self, fd):
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _read(self, process, fd):
        """Read once; return how many bytes there were."""
        if fd not in process.pipes:     # closed by another event of the same wake
            return 0
        output = process.job.output
        size = WIDE_READ_SIZE if fd in process.wide else READ_SIZE
        if output.readers:          # of what is read at once, followers can get no more than is kept
            size = min(size, output.limit)
        if any(reader.awaited and reader.endangered(size) for reader in tuple(output.readers)):   # others add to it
            self._hold_back(process, size)
            if process.paused:      # and not caught up while we looked: 0 would say that the pipe is empty
                return 0
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:        # nobody has the terminal open
                raise
            if not process.ended:               # but the script may open it again
                self.after(LOOK_AFTER, self._look_at_terminal, process)
                self._unwatch(fd)               # last: what comes to nothing for want of memory is seen again
                return 0
            data = b""
        if data:
            self._captured(process, process.pipes[fd], data)
            if len(data) == READ_SIZE and fd not in process.wide:
                self._widen(process, fd)
        else:
            self._close_pipe(process, fd)
            if not process.pipes and not process.ended:
                self._silent.add(process)
            self._settle(process)
        return len(data)

    def _look_at_terminal(self, process):
        """Read it again, if it was not closed meanwhile.

        To close it as soon as nobody has it open would send SIGHUP to a script whose output goes to a file for a while.
        """
        if process.terminal is not None and not process.paused:
            self._watch(process, process.terminal)

    @staticmethod
    def _widen(process, fd):
        """Let the pipe of one that prints a lot hold more, so that it waits less for us."""
        process.wide.add(fd)
        try:
            import fcntl
            fcntl.fcntl(fd, F_SETPIPE_SZ, WIDE_PIPE)
        except (OSError, ImportError):      # a terminal, another system, more than its user may have; no descriptor
            pass

    def _captured(self, process, stream, data):
        """Keep what was read, and drop the output that was printed longest ago if that is too much in all."""
        job = process.job
        if process.forgotten:
            return
        grown = job.capture(stream, data)
        self._kept[job] = self._kept.get(job, 0) + grown
        self._kept.move_to_end(job)
        self._total += grown
        self._shed(self.max_total)
        if job.is_crowded() and not process.crowd:
            process.crowd = self.after(CROWD_PACE * len(job.output.readers), self._tell_crowd, process)

    @staticmethod
    def _tell_crowd(process):
        process.crowd = None
        process.job.tell_crowd()

    def _shed(self, most):
        """Drop what was printed longest ago, until `most` bytes are kept in all."""
        while self._total > most:
            oldest, kept = next(iter(self._kept.items()))
            count = min(kept, self._total - most)
            oldest.shed(count)
            self._release_output(oldest, count)

    def _release_output(self, job, count):
        self._total -= count
        self._kept[job] -= count
        if not self._kept[job]:
            del self._kept[job]

    def _close_pipe(self, process, fd):
        del process.pipes[fd]
        process.wide.discard(fd)
        self._unwatch(fd)
        os.close(fd)
        if process.terminal == fd:
            process.terminal = None
            self._close_input(process)

    def _hold_back(self, process, size):
        """Read no more of a job for a moment: a follower that keeps up would lose what it has not read yet.

        It has to show its PACE, or the job goes on without it; so a slow one costs the job PATIENCE once.
        """
        if process.paused:
            return
        places = [(reader, reader.position) for reader in tuple(process.job.output.readers)
                  if reader.awaited and reader.endangered(size)]
        process.paused = places, size, time.monotonic() + PATIENCE
        try:
            self._look_at_followers(process)
        except MemoryError:         # what was begun of it ends when the timer comes, if there is one
            process.paused = None
            raise

    def _look_at_followers(self, process):
        places, size, until = process.paused or ((), 0, 0.0)
        late = [(reader, place) for reader, place in places if reader.endangered(size)
                and reader in process.job.output.readers]
        if late and time.monotonic() < until:
            self.after(0.002, self._look_at_followers, process)
            for fd in process.pipes:
                self._unwatch(fd)
            return
        for reader, place in late:
            if reader.position - place < PACE * PATIENCE:
                reader.awaited = False
        for fd in process.pipes:
            self._watch(process, fd)
        process.paused = None

    # Input.

    def _feed(self, job, data, eof, reply):
        process = self._processes.get(job.id)
        if process is None or process.input is None or process.eof:
            reply.give(error=Conflict("standard input of job %d is closed" % job.id))
            return
        process.last = bytes(data[-1:]) or process.last
        if eof and process.terminal is not None:
            # VEOF (termios(3)) ends a line without a newline first, and only an empty one is the end.
            ends = b"\x04" if process.last in b"\n\x04" else b"\x04\x04"
            data, eof, process.last = memoryview(bytes(data) + ends), False, b"\x04"    # a terminal stays open
        process.eof = eof
        process.feeds.append([data, reply])
        if len(process.feeds) == 1:
            self._write(process, process.input)

    def _write(self, process, fd):
        """Write until the pipe is full; then again when it is not."""
        if process.input != fd:
            return
        while process.feeds:
            data, reply = process.feeds[0]
            try:
                process.feeds[0][0] = data = data[os.write(fd, data):] if data else data
            except BlockingIOError:
                if process.terminal is not None and hung_up(fd):    # nobody has it open: which may change
                    self._unwatch(fd)
                    self._refuse_feeds(process, "nobody has the terminal of job %d open: not all was written")
                elif fd not in self._selector.get_map():
                    self._selector.register(fd, selectors.EVENT_WRITE, (self._write, process))
                return
            except OSError:             # EPIPE: nobody reads it any more
                self._close_input(process)
                return
            if not data:
                process.feeds.popleft()
                reply.give()
        self._unwatch(fd)
        if process.eof:
            self._close_input(process)

    def _withdraw(self, job, reply):
        process = self._processes.get(job.id)
        if not process:
            return
        if process.feeds and process.feeds[-1][1] is reply:
            process.eof = False         # if it was to close it
        process.feeds = collections.deque(feed for feed in process.feeds if feed[1] is not reply)

    def _close_input(self, process):
        if process.input is None:
            return
        self._unwatch(process.input)
        os.close(process.input)
        process.input = None
        self._refuse_feeds(process, "job %d closed its standard input before all was written")

    @staticmethod
    def _refuse_feeds(process, why):
        while process.feeds:
            process.feeds.popleft()[1].give(error=Conflict(why % process.job.id))

    def _resize(self, job, terminal):
        process = self._processes.get(job.id)
        if process is None or process.terminal is None:
            raise Conflict("the terminal of job %d is closed" % job.id)
        set_size(process.terminal, *terminal)

    # Ending.

    def _reap(self):
        """Find out who ended: SIGCHLD tells that somebody did.  First those are asked whose output has ended.

        To ask for any, the kernel goes through all: 10 us with 1,000 that sleep, and a tenth of the jobs per second.
        Signals that come together are one, so all are asked nevertheless, but once for many.
        """
        asked = self._silent if len(self._silent) < MANY_SILENT else ()     # not those who live on without output
        found = [(process, info) for process in asked for info in (self._peek(os.P_PID, process.pid),) if info]
        for process, info in found:
            self._exited(process, info)
        if not found:
            self._reap_any()
        elif not self._reaping:
            self._reaping = self.after(REAP_AFTER, self._reap_any)

    def _reap_any(self):
        """Ask for all who ended.  WNOWAIT leaves the zombie where it is."""
        self._reaping = None
        while True:
            info = self._peek(os.P_ALL, 0)
            process = info and self._by_pid.get(info.si_pid)
            if not info or process and process.ended:
                break
            if process:
                self._exited(process, info)
            else:
                os.waitpid(info.si_pid, 0)      # an orphan that came to us as PID 1, or as a subreaper
        if info:        # a zombie that is kept stands before the others: each has to be asked
            for pid, process in list(self._by_pid.items()):
                info = None if process.ended else self._peek(os.P_PID, pid)
                if info:
                    self._exited(process, info)
            self._reap_orphans()

    def _reap_orphans(self):
        """Reap those who came to us behind a zombie that is kept; their list is in proc_pid_task(5)."""
        try:
            with open("/proc/self/task/%d/children" % os.getpid()) as file:
                children = file.read().split()
        except OSError:         # a kernel without it: they are reaped when that zombie is
            return
        for pid in children:
            if int(pid) not in self._by_pid:
                os.waitpid(int(pid), os.WNOHANG)

    @staticmethod
    def _peek(kind, number):
        try:
            return os.waitid(kind, number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None

    def _exited(self, process, info):
        """The script has exited: take what it has printed, and wait for what its children may still print."""
        self._silent.discard(process)
        number = info.si_status
        if info.si_code == os.CLD_EXITED:
            process.ended = ("exit status %d" % number if number else "", number)
            if number in (126, 127):
                self._explain(process)
        else:
            dumped = " (core dumped)" if info.si_code == os.CLD_DUMPED else ""
            process.ended = ("signal: " + signal_words(number) + dumped, 128 + number)
        process.script.close()
        process.printed = process.job.output.end + WIDE_PIPE * len(process.pipes)
        self._drain(process)
        if process.pipes:
            self.after(HELD_AFTER, self._held, process)
        self._settle(process)

    def _drain(self, process):
        """Read what its pipes hold, and not much of what comes meanwhile."""
        for fd in list(process.pipes):
            count, most = 1, WIDE_PIPE
            while count and most > 0:
                count = self._read(process, fd)
                most -= count

    def _held(self, process):
        """Something that the script left in the background holds the output: the job is complete without it."""
        self._drain(process)
        if not process.pipes or process.job.is_complete():
            return
        if process.paused and process.job.output.end < process.printed:
            self.after(HELD_AFTER, self._held, process)
        else:
            self._finish(process, held=True)

    def _finish(self, process, held):
        self._complete(process.job, *process.ended, held=held)
        self._active -= 1
        self._launch()

    def _settle(self, process):
        """A script that has exited and whose output has ended is complete; whom no signal awaits is reaped."""
        if not process.ended or process.pipes or self._by_pid.get(process.pid) is not process:
            return
        job = process.job
        if not job.is_complete():
            self._finish(process, held=False)
        elif job.held:
            job.release()
        if process.killing:
            self._pinned.add(process)
            if not self._looking:
                self._looking = self.after(LOOK_AFTER, self._look_at_groups)
            return
        self._close_input(process)
        for timer in list(process.timers):
            self._cancel_timer(timer)
        os.waitpid(process.pid, 0)
        del self._processes[job.id], self._by_pid[process.pid]

    def _look_at_groups(self):
        """Keep no zombie for a SIGKILL that nobody is left to get."""
        living = self._living()
        pinned, self._pinned, self._looking = self._pinned, set(), None
        for process in pinned:
            if process.killing and living is not None and process.pid not in living:
                self._kill_group(process)       # now: who forks without a pause is in no list of processes
            else:
                self._settle(process)

    def _complete(self, job, text, code, held=False):
        job.complete(text, code, held)
        self._untold.append(job)
        self._forget(self.store.retire(job))
        if self.store.get(job.id) is None:
            self._forget([job])

    # Stopping.

    def _living(self):
        """Return living_sessions() as of this turn of the loop: a thousand that are killed at once ask once."""
        if not self._looked:
            self._looked, self._sessions = True, living_sessions()
        return self._sessions

    def _signal(self, process, number):
        """Signal the groups of the job's session; return whether that is permitted.

        timeout(1), and a shell under set -m, put what they start into groups of their own.  No stranger can have the
        number of the leader's: it lives, or is a zombie that we have not reaped.  Those of the others come again
        after all other numbers only (proc_sys_kernel(5), pid_max): not while we look.
        """
        if self._by_pid.get(process.pid) is not process:
            return True
        others = (self._living() or {}).get(process.pid, set()) - {process.pid}
        permitted = [self._signal_group(group, number) for group in [process.pid] + sorted(others)]
        return any(permitted)

    @staticmethod
    def _signal_group(group, number):
        try:
            os.killpg(group, number)
        except PermissionError:         # all of it runs as another user
            return False
        except ProcessLookupError:      # it has just ended
            pass
        return True

    def _kill(self, job, signum, grace):
        process = self._processes.get(job.id)
        if process is None or process.ended and not process.pipes:
            raise Conflict("job %d %s" % (job.id, "is complete: there is nothing to signal" if job.state != "new" else
                                          "has not started: there is nothing to signal, but DELETE cancels it"))
        if not (self._signal(process, signum) if grace is None else self._terminate(process, grace, signum)):
            raise Conflict("job %d runs as another user, and we may not signal it" % job.id)

    def _terminate(self, process, grace=GRACE, signum=signal.SIGTERM):
        """Signal all of it, then SIGCONT so that what is stopped gets it, then SIGKILL after the grace."""
        permitted = self._signal(process, signum)
        self._signal(process, signal.SIGCONT)
        until = time.monotonic() + grace
        if process.killing and process.killing.when > until:
            self._cancel_timer(process.killing)
            process.killing = None
        if not process.killing:
            process.killing = self.after(grace, self._kill_group, process)
        return permitted

    def _kill_group(self, process):
        self._signal(process, signal.SIGKILL)
        if process.killing in process.timers:       # asked for before its time
            self._cancel_timer(process.killing)
        process.killing = None
        self._settle(process)

    def _time_out(self, process):
        if not process.ended and not self._peek(os.P_PID, process.pid):     # else it was in time
            process.job.time_out()
            self._terminate(process)

    def _forget(self, jobs):
        unstarted = {job for job in jobs if job.state == "new"}
        if unstarted:
            for job, script in self._waiting:
                if job in unstarted:
                    script.close()
            self._waiting = collections.deque(pair for pair in self._waiting if pair[0] not in unstarted)
        for job in jobs:
            process = self._processes.get(job.id)
            if process:
                process.forgotten = job.is_complete()
                if not job.is_complete():
                    self._terminate(process)
            elif job.state == "new":
                self._complete(job, CANCELED, 126)
            self._freed += len(job.script)
            if job in self._kept:
                self._freed += self._kept[job]
                self._release_output(job, self._kept[job])
        if self._freed >= TRIM_SIZE and not self._trimming:
            self._trimming = self.after(TRIM_AFTER, self._trim)

    def _trim(self):
        self._freed, self._trimming = 0, None
        give_memory_back()

    def _stop(self):
        if self.stopping:
            for process in list(self._processes.values()):
                self._kill_group(process)
            return
        self.stopping = True
        self._stop_by = time.monotonic() + 2 * GRACE
        while self._waiting:
            self._cancel(*self._waiting.popleft())
        for process in list(self._processes.values()):
            self._terminate(process)
        self._sweep_groups()

    def _sweep_groups(self):
        """While stopping: have done with those of whom nobody is left, and soon with all."""
        living = self._living()
        for process in list(self._processes.values()):
            if process.ended and (process.pid not in living if living is not None else not process.killing):
                self._drain(process)
                for fd in list(process.pipes):      # held by what has left the session, by setsid(2)
                    self._close_pipe(process, fd)
                self._kill_group(process)
        if self._processes:
            self.after(0.02, self._sweep_groups)


# ------------------------------------------------------------------------------------------------ HTTP

TOKEN = b"[!#$%&'*+.^_`|~0-9A-Za-z-]+"                  # RFC 9110, 5.6.2
# Bytes over 0x7f are let through: curl sends a label as it was typed.
REQUEST_LINE = re.compile(b"(" + TOKEN + b") ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])[.]([0-9])")
# RFC 9112, 3.2.1 and 3.2.2; the host ends where RFC 3986, 3.2 has it end, not at the next slash.
TARGET = re.compile(b"(?:https?://[^/?#]+(?=[/?]|$)|(?=/))(/[^?#]*)?(?:[?]([^#]*))?")
HOST = re.compile(b"[!$&-.0-;=A-Z_a-z~%\\[\\]]*")           # RFC 3986, 3.2.2: no blank, no slash
HEADER = re.compile(b"(" + TOKEN + b"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")     # RFC 9112, 5; no obs-fold
LENGTH = b"[0-9]{1,18}"
LONG = 8 if sys.maxsize > 1 << 32 else 4            # bytes of a long in C
TLS_HANDSHAKE = b"\x16"     # how TLS begins: the type of the first record (RFC 8446, 5.1)
CHUNK_SIZE = b"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?"


class Request:
    """A request as a value: what the client asked for.

    `target` is as it came, `path` decoded, `query` not; `headers` are a dict of bytes by lower-case name.
    `body` is read by whoever wants it; `check` raises ClientGone when the client has hung up; `admit` is
    called when it is known to have the secret.
    """

    __slots__ = ("method", "path", "query", "version", "headers", "body", "check", "admit")

    def __init__(self, method, target, version, headers):
        self.method, self.version, self.headers = method, version, headers
        match = TARGET.fullmatch(target)
        if not match:
            raise Malformed("the target has to be a path, like /jobs?wait")
        path, self.query = match.group(1) or b"/", match.group(2) or b""
        if b"%" in path:
            from urllib.parse import unquote_to_bytes
            path = unquote_to_bytes(re.sub(b"%2[Ff]", b"%252F", path))      # which parts nothing: RFC 3986, 2.2
        self.path = readable(path)
        self.body = self.check = self.admit = None

    def parameters(self):
        """Return the (name, value) pairs of the query: names as text, values as bytes."""
        pairs = (pair.partition(b"=") for pair in self.query.split(b"&") if pair)
        return [(readable(unquoted(name)), unquoted(value)) for name, _, value in pairs]


def unquoted(data):
    """Return a part of a query as the bytes that it stands for."""
    if b"%" not in data and b"+" not in data:
        return data
    from urllib.parse import unquote_to_bytes       # parse_qsl parts at ";" too, before 3.6.14 and 3.9.2
    return unquote_to_bytes(data.replace(b"+", b" "))


def gather(pieces):
    """Yield the same bytes in blocks of SLICE or more."""
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= SLICE:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


JSON, TEXT, HTML = ("%s; charset=utf-8" % kind for kind in ("application/json", "text/plain", "text/html"))


class Response:
    """An answer as a value.

    `body` is bytes, or an iterator of bytes that are sent as they come, where b"" means that the client
    may be looked after.  `length` is the iterator's length in bytes, if it is known.  `trailers` is
    called when it has ended, and returns pairs; `after` is called when all has been sent, or could not be.
    `closes`: the connection is closed after it.  `policy` is what a browser may do with it: nothing.
    """

    __slots__ = ("status", "headers", "body", "length", "trailers", "after", "closes", "policy")

    def __init__(self, status, body=b"", content_type=None, headers=(), length=None, trailers=None, after=None):
        self.status, self.body, self.headers = status, body, list(headers)
        self.closes, self.policy = False, "default-src 'none'; frame-ancestors 'none'"
        if content_type:
            self.headers.append(("Content-Type", content_type))
        self.length = len(body) if isinstance(body, bytes) else length
        self.trailers, self.after = trailers, after

    @classmethod
    def json(cls, status, value, headers=()):
        """Indented by two spaces and ended by a newline, UTF-8 as it is."""
        import json
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        return cls(status, text.encode("utf-8", "replace"), JSON, headers)

    @classmethod
    def of_pieces(cls, status, pieces, headers=()):
        """Answer with JSON in pieces; what is large is made as it is sent, so that nobody holds it whole."""
        blocks = gather(pieces)
        first, second = next(blocks), next(blocks, None)
        if second is None:
            return cls(status, first, JSON, headers)
        return cls(status, itertools.chain((first, second), blocks), JSON, headers)

    @classmethod
    def of_error(cls, error):
        value = collections.OrderedDict(error.extra)
        value["error"], value["message"] = error.error, error.message
        response = cls.json(error.status, value, error.headers)
        response.closes = error.closes
        return response


class Limits:
    """Connections and descriptors at a time; seconds for a head, without a byte of a body, and between two requests."""

    def __init__(self, connections, head, body, idle, descriptors):
        self.connections, self.head, self.body, self.idle = connections, head, body, idle
        self.descriptors = descriptors


class Wire:
    """The bytes of a connection: those that have come, by head, by line or as they are; and those that are sent.

    The kernel keeps the time (SO_RCVTIMEO and SO_SNDTIMEO of socket(7)): settimeout would cost two more system
    calls for each that waits, and a quarter of the requests per second.  TLS knows settimeout alone.
    """

    def __init__(self, connection, limits, tls):
        self.connection, self.limits, self._tls = connection, limits, tls
        self.buffer = bytearray()
        self._times = {}
        if not tls:
            connection.settimeout(None)

    def _wait_for(self, option, seconds):
        seconds = max(seconds, 0.001)       # 0 is for ever
        if self._tls:
            self.connection.settimeout(seconds)
        elif self._times.get(option) != seconds:
            self._times[option] = seconds
            whole, part = divmod(seconds, 1)
            timeval = (int(whole), int(part * 1e6))             # two longs; struct takes 0.2 ms to import
            self.connection.setsockopt(socket.SOL_SOCKET, option,
                                       b"".join(number.to_bytes(LONG, sys.byteorder) for number in timeval))

    def receive(self, seconds):
        """Wait for more; return whether the client has sent some, and not closed its side.

        socket.timeout when the seconds have passed, ClientGone when the connection is broken.
        """
        try:
            self._wait_for(socket.SO_RCVTIMEO, seconds)
            data = self.connection.recv(READ_SIZE)
        except (socket.timeout, BlockingIOError):
            raise socket.timeout() from None
        except OSError as error:
            raise ClientGone() from error
        self.buffer += data
        return bool(data)

    def send(self, *parts):
        """Send all of them, or raise ClientGone: also when the client takes nothing for SEND_TIMEOUT."""
        try:
            self._wait_for(socket.SO_SNDTIMEO, SEND_TIMEOUT)
            sent = 0
            if len(parts) > 1 and not self._tls:        # without a copy
                sent = self.connection.sendmsg(parts)
            if sent < sum(map(len, parts)):
                self.connection.sendall(b"".join(parts)[sent:])
        except OSError as error:
            raise ClientGone() from error

    def head(self, deadline):
        """Return the lines of a request's head, which has to be there at the deadline, on the monotonic clock."""
        buffer, seen = self.buffer, 0
        while True:
            end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
            size = end if end >= 0 else len(buffer)
            if buffer.count(b"\n", seen, size) != buffer.count(b"\r\n", max(0, seen - 1), size):
                raise Malformed("a line has to end with CR LF, and one ended with LF alone")
            first = buffer.find(b"\r\n", 2, size)        # of the request line; an empty one may come before
            if first < 0 and size > MAX_LINE or first > MAX_LINE:
                raise URITooLong("the request line may have %d bytes at most: put data into the body" % MAX_LINE)
            if first >= 0 and size - first > MAX_HEAD:
                raise HeadTooLarge("the headers may have %d bytes at most" % MAX_HEAD)
            if end < 0 <= first and not REQUEST_LINE.fullmatch(bytes(buffer[:first]).lstrip(b"\r\n")):
                end = first                             # no reason to wait for the rest
            if end >= 0:
                lines = bytes(buffer[:end]).split(b"\r\n")
                del buffer[:end + 4]
                return lines
            seen, remaining = size, deadline - time.monotonic()
            if remaining <= 0:
                raise socket.timeout()
            if not self.receive(remaining):
                raise ClientGone()

    def line(self, limit, seconds):
        """Return the next line without its CR LF; Malformed over `limit` bytes."""
        while True:
            end = self.buffer.find(b"\n")
            if max(end, len(self.buffer) if end < 0 else 0) > limit:
                raise Malformed("a chunk's line is too long")
            if end > 0 and self.buffer[end - 1] == 13:
                line = bytes(self.buffer[:end - 1])
                del self.buffer[:end + 1]
                return line
            if end >= 0:
                raise Malformed("a line has to end with CR LF, and one ended with LF alone")
            if not self.receive(seconds):
                raise ClientGone()

    def take(self, limit):
        """Return at most `limit` bytes of what has come."""
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return data


class Body:
    """The body of a request, decoded; RFC 9112, 6 and 7.

    `length` is in bytes, or None for a chunked one; `stated`: the request said that it has one.
    The client is told to go on (100) when somebody reads, if it waits for that.
    """

    def __init__(self, wire, length, stated, go_on):
        self.wire, self.length, self.stated = wire, length, stated
        self._go_on = go_on         # called once before the first read, or None
        self.remaining = length     # bytes of this chunk, or of all
        self.ended = length == 0

    @property
    def waits(self):
        """Does the client hold the body back until it is told to go on?"""
        return self._go_on is not None

    def read(self):
        """Return the next bytes, at most SLICE, as soon as there are some; b"" at the end."""
        if self.ended:
            return b""
        if self._go_on:
            self._go_on()
            self._go_on = None
        if self.length is None and not self.remaining:
            self.remaining = self._chunk_size()
            if self.remaining == 0:
                self._skip_trailers()
                self.ended = True
                return b""
        data = self._some()
        self.remaining -= len(data)
        if self.remaining == 0:
            if self.length is not None:
                self.ended = True
            elif self._line() != b"":
                raise Malformed("a chunk was not followed by CR LF")
        return data

    def _some(self):
        if not self.wire.buffer and not self.wire.receive(self.wire.limits.body):
            raise ClientGone()
        return self.wire.take(min(self.remaining, SLICE))

    def _line(self):
        return self.wire.line(MAX_LINE, self.wire.limits.body)

    def _chunk_size(self):
        match = re.fullmatch(CHUNK_SIZE, self._line())
        if not match:
            raise Malformed("a chunk began with no hexadecimal size")
        return int(match.group(1), 16)

    def _skip_trailers(self):
        for _ in range(MAX_HEADERS):
            line = self._line()
            if not line:
                return
            if not HEADER.fullmatch(line):
                raise Malformed("a trailer is no header")
        raise HeadTooLarge("over %d trailers" % MAX_HEADERS)

    def read_all(self, limit, what):
        """Return all of it; TooLarge, before it is read where its length is known, if over `limit` bytes."""
        too_large = TooLarge("%s may have %d bytes at most" % (what, limit))
        if (self.length or 0) > limit:
            raise too_large
        data = bytearray()
        while not self.ended:
            data += self.read()
            if len(data) > limit:
                raise too_large
        return bytes(data)


@functools.lru_cache(maxsize=2)
def common_headers(seconds):
    """Return the headers that every answer of that second has, since 1970."""
    return "\r\n".join(("Rtot-Version: " + __version__, "Date: " + utc("%a, %d %b %Y %H:%M:%S GMT", seconds),
                        "Cache-Control: no-store", "X-Content-Type-Options: nosniff"))


IN_USE = "all connections are in use: try again, or start rtot with more --max-connections"


class Connection(socketserver.BaseRequestHandler):
    """A client's connection, in its own thread: reads requests, has the app answer them, writes the answers.

    `waiting_since` is when it began to wait for a request, on the monotonic clock, or None while one with the
    secret is served.  One that waits may be closed to make room; so is one without the secret whatever it does,
    or bodies that never come and answers that nobody reads would keep everybody out.  `fresh`: it has got no
    answer yet; `known`: it has shown the secret once.
    """

    fresh, known, evicted = True, False, False

    def setup(self):
        self.connection = self.request      # socketserver's name for the socket
        self.app = self.server.app
        self.waiting_since = time.monotonic()
        self.server.connections.add(self)

    def handle(self):
        try:
            if self.server.tls:
                self._shake_hands()
            self.wire = Wire(self.connection, self.server.limits, self.connection is not self.request)
            while self._serve():
                pass
        except ClientGone:
            pass
        if self.evicted and self.fresh:
            self.server.refuse(self.connection, IN_USE)

    def finish(self):
        self.server.connections.remove(self)
        self.connection.close()             # socketserver closes `request`, of which TLS has taken the descriptor

    def hang_up(self):
        """End it from another thread: what it waits for comes to an end; one that has no answer yet gets a 503."""
        self.evicted = True
        how = socket.SHUT_RD if self.fresh else socket.SHUT_RDWR
        try:
            socket.socket.shutdown(self.connection, how)        # not ssl's: TLS is its own thread's
        except OSError:             # it has just closed
            pass

    def _shake_hands(self):
        """Let TLS begin, in the time that a head may take; one who speaks plain HTTP gets an answer that says so."""
        self.connection.settimeout(self.server.limits.head)
        try:
            if self.connection.recv(1, socket.MSG_PEEK) != TLS_HANDSHAKE:
                return
            self.connection = self.server.tls.wrap_socket(self.connection, server_side=True,
                                                          do_handshake_on_connect=False)
            if self.evicted:            # while the socket changed hands, and hang_up had none
                raise ClientGone()
            self.connection.do_handshake()
        except OSError as error:            # ssl.SSLError is one
            self.server.log.event("no TLS with %s: %s" % (self.client_address[0], error))
            raise ClientGone() from error

    def _serve(self):
        """Serve one request; return whether another may follow."""
        request, self.waiting_since = None, time.monotonic()
        if self.server.connections.draining:
            self.server.connections.now_waits()
        try:
            if not self.wire.buffer and not self.wire.receive(self.server.limits.idle):
                return False
        except socket.timeout:              # idle for too long
            return False
        began, response, sent = time.monotonic(), None, None
        try:
            try:
                request = self._read_head(began + self.server.limits.head)
                response = self.app.answer(request)
            except Exception as error:
                response = self._response_to(error)
            keep = request is not None and self._may_keep(request, response)
            self.fresh = False
            sent = self._send(request, response, keep)
        finally:
            if response and response.after:
                response.after()
            if request or response:
                self.server.log.access(self.client_address, request, response and response.status, sent,
                                       time.monotonic() - began)
        self.waiting_since = time.monotonic()
        return self._skip_body(request.body) if keep else self._linger()

    def _response_to(self, error):
        """The one place where what was raised becomes an answer."""
        if isinstance(error, ClientGone):
            raise error
        if isinstance(error, NotAuthorized):
            self._slow_down()
        if isinstance(error, socket.timeout):
            error = RequestTimeout("the request did not come in time")
        elif not isinstance(error, Error):
            self.server.handle_error(self.connection, self.client_address)
            error = Error("a fault of rtot, which its log describes")
        return Response.of_error(error)

    def _read_head(self, deadline):
        """Read and parse a request line and headers; leave the body where it is."""
        if self.server.tls and self.connection is self.request:
            raise Malformed("rtot speaks TLS here: use https://")
        if not re.match(b"[\r" + TOKEN[1:-1], self.wire.buffer):    # a TLS hello, say, that has no line end
            raise Malformed("this is no HTTP request; rtot speaks HTTP/1.1 here, and http://, not https://")
        lines = self.wire.head(deadline)
        if not lines[0]:                    # RFC 9112, 2.2: an empty line before a request is ignored
            del lines[0]
        match = lines and REQUEST_LINE.fullmatch(lines[0])
        if not match or match.group(1) == b"PRI":
            raise Malformed("the first line has to be like: GET /jobs HTTP/1.1")
        method, target, major, minor = match.groups()
        if major != b"1":
            raise VersionNotSupported("rtot speaks HTTP/1.1 and HTTP/1.0")
        headers = self._headers(lines[1:])
        version = 10 if minor == b"0" else 11
        if version == 11 and b"host" not in headers:
            raise Malformed("HTTP/1.1 asks for a Host header")
        if not HOST.fullmatch(headers.get(b"host", b"")):
            raise Malformed("Host has to be a name or an address, and a port")
        request = Request(method.decode("ascii"), target, version, headers)
        request.body = self._body_of(request)
        request.check, request.admit = self._check, self._admit
        return request

    @staticmethod
    def _headers(lines):
        if len(lines) > MAX_HEADERS or any(len(line) > MAX_LINE for line in lines):
            raise HeadTooLarge("the headers may be %d, and have %d bytes each" % (MAX_HEADERS, MAX_LINE))
        headers = {}
        for line in lines:
            match = HEADER.fullmatch(line)
            if not match:
                raise Malformed("a header has to be like: Name: value, without a fold or a control character")
            name, value = match.group(1).lower(), match.group(2).rstrip(b" \t")
            if name not in headers:
                headers[name] = value
            elif name in (b"host", b"content-length", b"transfer-encoding", b"rtot-secret", b"authorization"):
                raise Malformed("there may be one %s header" % name.decode("ascii"))
            else:
                headers[name] += b", " + value
        return headers

    def _body_of(self, request):
        """Find out how long the body is: RFC 9112, 6.3, and nothing that another might read differently."""
        headers = request.headers
        length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
        if coding is not None:
            if length is not None:
                raise Malformed("Content-Length and Transfer-Encoding exclude each other")
            if request.version == 10:
                raise Malformed("HTTP/1.0 has no Transfer-Encoding")
            if coding.lower() != b"chunked":
                raise NotImplementedHere("the one transfer coding that rtot reads is chunked")
        elif length is not None and not re.fullmatch(LENGTH, length):
            raise Malformed("Content-Length has to be a decimal number of bytes")
        size = int(length or 0) if coding is None else None
        expects = headers.get(b"expect", b"").lower() == b"100-continue" and request.version == 11
        return Body(self.wire, size, length is not None or coding is not None,
                    self._go_on if expects else None)

    def _go_on(self):
        self.wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _may_keep(self, request, response):
        """May another request follow?  Not where the end of this answer is told by closing."""
        options = [option.strip() for option in request.headers.get(b"connection", b"").lower().split(b",")]
        if request.version == 10 and (b"keep-alive" not in options or response.length is None):
            return False
        body = request.body         # a large one that nobody read is not worth the connection
        unread = not body.ended and (body.waits or body.length is None or body.remaining > SLICE)
        return not (unread or response.closes or b"close" in options or self.app.is_stopping())

    def _skip_body(self, body):
        """Throw away what nobody read; return True: another request may follow."""
        try:
            while not body.ended:
                body.read()
        except (Error, socket.timeout):
            raise ClientGone() from None
        return True

    def _admit(self):
        self.server.connections.admit(self)

    def _slow_down(self):
        """Let one who guesses wait, unless it is closed for another: this is its answer."""
        self.fresh = False
        delay = self.server.failures.note(self.client_address[0])
        if delay and hung_up(self.connection, delay):
            raise ClientGone()

    def _check(self):
        """Raise ClientGone if the client has closed its side, also behind what it has sent and nobody read."""
        poll = select.poll()
        poll.register(self.connection, getattr(select, "POLLRDHUP", select.POLLHUP))
        if poll.poll(0):
            raise ClientGone()

    @staticmethod
    def _head(request, response, keep, chunked):
        lines = ["HTTP/1.1 %d %s" % (response.status, REASONS[response.status]), common_headers(int(time.time()))]
        headers = response.headers + [("Content-Security-Policy", response.policy)]
        if chunked:
            headers.append(("Transfer-Encoding", "chunked"))
        elif response.length is not None and response.status != 204:
            headers.append(("Content-Length", str(response.length)))
        if not keep:
            headers.append(("Connection", "close"))
        elif request.version == 10:
            headers.append(("Connection", "keep-alive"))
        for name, value in headers:
            if "\r" in value or "\n" in value:
                raise ValueError("a header that goes out has a line end: %s" % name)
            lines.append("%s: %s" % (name, value))
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _send(self, request, response, keep):
        """Write the answer; return how many bytes of body were sent."""
        chunked = response.length is None and request.version == 11
        head = self._head(request, response, keep, chunked)
        if request is not None and request.method == "HEAD":
            self.wire.send(head)
            return 0
        if isinstance(response.body, bytes):
            self.wire.send(head + response.body)       # in one send: with two, Nagle cost 44 ms an answer
            return len(response.body)
        self.wire.send(head)
        sent = 0
        for data in response.body:
            if not data:
                self._check()
                continue
            self.wire.send(*((b"%x\r\n" % len(data), data, b"\r\n") if chunked else (data,)))
            sent += len(data)
        if chunked:
            trailers = response.trailers() if response.trailers else ()
            lines = ["%s: %s\r\n" % pair for pair in trailers]
            self.wire.send(("0\r\n" + "".join(lines) + "\r\n").encode("latin-1"))
        return sent

    def _linger(self):
        """Close so that the client gets the answer: a reset on unread data could overtake it (RFC 9112, 9.6).

        Return False: no request follows.
        """
        deadline, remaining = self.waiting_since + LINGER, LINGER_BYTES
        try:
            if self.connection is not self.request:
                self._say_goodbye()
            self.connection.shutdown(socket.SHUT_WR)
            while remaining > 0 and self.wire.receive(deadline - time.monotonic()):
                remaining -= len(self.wire.buffer)
                self.wire.buffer.clear()
        except OSError:             # it did not wait for us, or does not close
            pass
        return False

    def _say_goodbye(self):
        """End TLS; without its close_notify a body that is ended by closing would seem cut off (RFC 8446, 6.1)."""
        self.connection.settimeout(LINGER)
        try:
            self.connection.unwrap()
        except (OSError, ValueError):       # it still sends, or is gone
            pass


class Failures:
    """Counts wrong secrets by address, and says how long the answer to one has to wait.

    Only wrong ones wait: whoever has the secret is not held up, not even from the same address, which
    behind a proxy is everybody's.  `lock` guards the counts.
    """

    FREE, STEP, MOST = 5, 0.1, 2.0      # failures without a delay; s, doubled with each more; s
    FORGET, ADDRESSES = 60.0, 1000      # s after which an address is forgotten; how many are remembered

    def __init__(self):
        self.lock = threading.Lock()
        self._counts = collections.OrderedDict()        # (count, time of the last), the latest last

    def note(self, address):
        """Count a failure from the address; return the delay in seconds."""
        now = time.monotonic()
        with self.lock:
            count, last = self._counts.pop(address, (0, now))
            count = count + 1 if now - last < self.FORGET else 1
            self._counts[address] = count, now
            if len(self._counts) > self.ADDRESSES:
                self._counts.popitem(last=False)
        return min(self.MOST, self.STEP * 2 ** min(count - self.FREE - 1, 10)) if count > self.FREE else 0.0


class Connections:
    """The open connections.  `lock` guards the set."""

    def __init__(self, limit):
        self.limit = limit
        self.lock = threading.Lock()
        self.quiet = threading.Condition(self.lock)     # notified when one closes, or has been answered
        self._open = set()
        self.came = threading.Semaphore(0)      # released by each that is added
        self.draining = False

    def add(self, connection):
        with self.lock:
            self._open.add(connection)
        self.came.release()

    def remove(self, connection):
        with self.lock:
            self._open.discard(connection)
            self.quiet.notify_all()

    def admit(self, connection):
        """Serve its request to the end, whoever comes; ClientGone, so that nothing is run, if it was closed before."""
        with self.lock:
            if connection not in self._open:
                raise ClientGone()
            connection.waiting_since, connection.known = None, True

    def now_waits(self):
        with self.lock:
            self.quiet.notify_all()

    def make_room(self, scarce):
        """Return whether one more may come in: if all places are taken, or descriptors scarce, for one that waits."""
        with self.lock:
            full = scarce or len(self._open) >= self.limit
        return not full or self.close_one()

    def close_one(self):
        """Close the one that has waited longest; return whether there was one.

        Those without the secret go first, but last of all for PROMPT seconds, in which they may show it.
        """
        prompt = time.monotonic() - PROMPT
        with self.lock:
            waiting = [(1 if one.known else 2 * (one.fresh and since > prompt), since, id(one), one)
                       for one in self._open for since in (one.waiting_since,) if since is not None]
            if not waiting:
                return False
            victim = min(waiting)[3]
            self._open.discard(victim)
        victim.hang_up()
        return True

    def drain(self, seconds):
        """Wait until no request is being served, at most so long."""
        with self.lock:
            self.draining = True
            self.quiet.wait_for(lambda: all(one.waiting_since is not None for one in self._open), seconds)


def show_address(address):
    host, port = address[:2]
    if port is None:
        return "unix:" + host
    return "%s:%d" % ("[%s]" % host if ":" in host else host, port)


def remove_file(path, log):
    """Remove a file that is ours; say so if that can't be."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.event("cannot remove %s: %s" % (path, error.strerror))


def lacks_memory():
    """Can't even as much be had as the stack of a thread takes?"""
    try:
        import mmap         # malloc might find as much in what it has kept
        mmap.mmap(-1, 2 * STACK_SIZE).close()
    except (OSError, ImportError, MemoryError):
        return True
    return False


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Accepts connections in its own thread and gives each a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = BACKLOG
    _path = None            # of the Unix socket that we made

    def __init__(self, address, app, log, limits, tls=None):
        """Listen on (host, port), where "" is all addresses, on (path of a Unix socket, None), or take over a socket.

        `tls` is an ssl.SSLContext, or None.  OSError if it can't be.
        """
        self.app, self.log, self.limits, self.tls = app, log, limits, tls
        self.connections, self.failures = Connections(limits.connections), Failures()
        if isinstance(address, socket.socket):
            super().__init__(None, Connection, bind_and_activate=False)
            self.socket.close()
            self.socket, self.address_family = address, address.family
            self.server_address = address.getsockname()
            return
        host, port = address
        if port is None:
            self.address_family = socket.AF_UNIX
            super().__init__(host, Connection)
            return
        try:
            self._bind(host or "::", port)
        except OSError as error:
            if host or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            self._bind("0.0.0.0", port)     # a host without IPv6

    def _bind(self, host, port):
        name = host.encode("ascii" if re.fullmatch("[!-~]*", host) else "idna")     # that codec takes 2 ms to import
        self.address_family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        super().__init__(address, Connection)

    def server_bind(self):
        if self.address_family == socket.AF_UNIX:
            self._remove_stale()
            previous = os.umask(0o177)      # for its user alone; no thread runs yet
            try:
                super().server_bind()
                self._path = self.server_address
            finally:
                os.umask(previous)
            return
        if self.address_family == socket.AF_INET6:      # "::" means IPv4 too
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def _remove_stale(self):
        """Remove a socket on which nobody listens any more; one that lives makes bind fail."""
        try:
            if not stat.S_ISSOCK(os.stat(self.server_address).st_mode):
                return
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.server_address)
        except ConnectionRefusedError:
            os.unlink(self.server_address)
        except FileNotFoundError:
            pass

    def server_close(self):
        super().server_close()
        if self._path is not None:      # ours: TCPServer closes what it could not bind, too
            remove_file(self._path, self.log)
            self._path = None

    @property
    def url(self):
        if self.address_family == socket.AF_UNIX:
            return show_address((self.server_address, None))
        return "%s://%s/" % ("https" if self.tls else "http", show_address(self.server_address))

    def get_request(self):
        try:
            connection, address = super().get_request()
        except (OSError, MemoryError) as error:
            if getattr(error, "errno", errno.ENOMEM) in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.connections.close_one()
                time.sleep(0.1)             # what waits stays readable, so the loop would spin
            raise OSError() from error      # for which socketserver goes on
        if self.address_family == socket.AF_UNIX:
            return connection, ("unix", None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)    # for who is cut off without a word
        for name, value in KEEPALIVE:
            if hasattr(socket, name):           # other systems have other names, or none
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if address[0].startswith("::ffff:"):    # IPv4 by way of an IPv6 socket
            address = (address[0][7:],) + address[1:]
        return connection, address

    def verify_request(self, request, client_address):
        most = self.limits.descriptors          # the lowest that is free is taken: a high one is one of the last
        scarce = request.fileno() >= most - min(SPARE, most // 8)
        if self.connections.make_room(scarce):
            return True
        self.refuse(request, "no descriptor is left" if scarce else IN_USE)
        return False

    def process_request(self, request, client_address):
        """Serve it in a thread of its own, and wait until that is counted among the connections.

        threading.Thread would wait for its thread for ever, and without memory that may never run: nobody was
        served any more.
        """
        try:
            _thread.start_new_thread(self.process_request_thread, (request, client_address))
            if not self.connections.came.acquire(timeout=TICK) and lacks_memory():
                self.app.runner.relieve()       # it had none to begin with: Python 3.13 was deaf from there on
        except (RuntimeError, MemoryError):     # no more threads (EAGAIN), or no memory for one, which is told alike
            # The C library keeps the stack of one that ends for the next; and malloc, with what is freed in its
            # midst, may keep all that RLIMIT_AS allows: 445 MB of it kept everybody out, until an idle one went.
            if not self.connections.close_one() and lacks_memory():
                self.app.runner.relieve()
            self.refuse(request, "no more threads can be started")
            self.shutdown_request(request)

    def refuse(self, request, why):
        """Answer 503 if that takes no time: the one thread that accepts can't wait, as TLS would have to."""
        if self.tls:
            return
        response = Response.of_error(Unavailable(why, headers=[("Retry-After", "1")]))
        request.settimeout(0)
        try:
            request.send(Connection._head(None, response, keep=False, chunked=False) + response.body)
        except OSError:
            pass

    def handle_error(self, request, client_address):
        """Called by socketserver for what nobody foresaw: say it, and go on."""
        if isinstance(sys.exc_info()[1], MemoryError):
            self.app.runner.relieve()
        try:
            import traceback
            self.log.event("error: " + traceback.format_exc())
        except (OSError, ImportError):      # no descriptor to open a module with
            self.log.event("error: %r" % (sys.exc_info()[1],))
        except MemoryError:                 # nothing to say it with
            pass


# ------------------------------------------------------------------------------------------------ page

# One file without resources, so that the hashes in its policy are all that may run.  It asks by relative URLs, since a
# proxy may serve it under a prefix, and holds two streams at most: a browser has six connections to a host.
PAGE_STYLE = """\
:root { color-scheme: light dark; --bg: #f4f6f4; --panel: #fff; --ink: #1b2320; --soft: #57635e;
  --line: #dde3df; --edge: #7c8a84; --accent: #0a6a56; --on: #fff; --run: #865500; --bad: #b0271c; --mark: #e4f1ed; }
@media (prefers-color-scheme: dark) { :root { --bg: #111514; --panel: #191f1d; --ink: #e3e9e6; --soft: #9daaa4;
  --line: #2c3532; --edge: #72817a; --accent: #62cbb0; --on: #08251e; --run: #e6b450; --bad: #ff9186; --mark: #1d322c }}
* { box-sizing: border-box; margin: 0; accent-color: var(--accent); } [hidden], p:empty { display: none !important; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--bg); overflow-wrap: anywhere; }
h1, h2 { font-size: 1.1rem; } .soft, details label, summary, :empty::before { color: var(--soft); font-size: .875rem; }
.failed, .err { color: var(--bad); } .running { color: var(--run); } h1, .done { color: var(--accent); }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; } #status, #line { flex: 1; }
.stack { display: grid; gap: .75rem; grid-template-columns: minmax(0, 1fr); align-content: start; }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-width: 0; }
header { padding: .625rem 1rem; } #work { padding: 0 1rem 1rem; gap: 1rem; }
#sign-in { width: calc(100% - 2rem); max-width: 24rem; margin: 12vh auto 2rem; } #trouble { position: sticky; top: 0; }
button, input, textarea { font: inherit; color: var(--ink); border: 1px solid var(--edge); border-radius: 5px; }
button { background: var(--panel); padding: .25rem .75rem; } button:hover:enabled { background: var(--mark); }
button.main { background: var(--accent) !important; color: var(--on); font-weight: 600; border-color: var(--accent); }
:disabled { color: var(--soft); border-color: var(--line); } #list { list-style: none; padding: 0; }
input, textarea { background: var(--bg); padding: .25rem .5rem; min-width: 0; width: 100%; resize: vertical; }
[type=checkbox], [size] { width: auto; } :focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
textarea, code, pre, #output, #line { font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
#list button { display: grid; grid-template-columns: auto 1fr fit-content(10rem); gap: 0 .625rem; align-items: baseline;
  width: 100%; padding: .375rem .5rem; text-align: left; border: 0; border-left: 3px solid transparent; }
#list button > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; } #list .wide { grid-column: 2 / 4; }
#list [aria-current=true] { background: var(--mark); border-color: var(--accent); } textarea { vertical-align: top; }
pre, #output { white-space: pre-wrap; overflow: auto; max-height: 12rem; padding: .5rem 0; }
#output { height: 70vh; max-height: none; background: var(--bg); border-radius: 5px; }
#output div, :is(#output, #list):empty::before { content: "Nothing yet"; padding: 0 1em; border-left: solid #0000; }
#output .err { border-color: var(--bad); } #output .err::before { content: "stderr"; float: right; font-size: .9em; }
@media (min-width: 60rem) { #work { grid-template-columns: minmax(22rem, 2fr) minmax(0, 5fr); }
  #trouble { grid-column: 1 / 3; } #right { position: sticky; top: 1rem; align-self: start; }}
"""

PAGE_SCRIPT = r""""use strict";
const LIMIT = 1 << 20, BLOCK = 1 << 14, SHOWN = 100, PERIOD = 1000;     // characters, and of a block; jobs; ms
const FIELDS = "exit,timed_out,held,create,duration,label,line,tty";
const ESCAPE = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])/g;     // for terminals
const $ = id => document.getElementById(id), rows = new Map();      // the list's buttons by the job's id
let secret = sessionStorage.getItem("rtot-secret") || "", following = new AbortController();
let polling = false, changes = 0, timer, now, chosen = null, settings = {}, size = 0;
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };    // keeps a selection
const words = error => error.status ? error.message : "The server cannot be reached";
const span = s => s < 99 ? +s.toFixed(1) + " s" : s < 6e3 ? (s / 60 | 0) + " min" : (s / 3600 | 0) + " h";
async function api(path, options = {}) {    // throws the server's message with its status, or what fetch throws
  const used = secret, text = String.fromCharCode(...new TextEncoder().encode(used));
  const response = await fetch(path, {...options, headers: {"Rtot-Secret": text, ...options.headers}});
  if (response.ok) return response;
  const {message} = await response.json().catch(() => ({})), {status} = response;
  if (status === 401 && used === secret) enter(false, "That secret is wrong.");
  throw Object.assign(new Error(message || "HTTP status " + status), {status});
}
function enter(known, why = "") {           // to the jobs, or to the question for the secret
  if (!known) { following.abort(); secret = ""; }
  sessionStorage.setItem("rtot-secret", secret); put($("wrong"), why); put($("status"), "");
  $("sign-in").hidden = known; $("work").hidden = $("forget").hidden = !known;
  if (known) $("secret").value = ""; else $("secret").select();
}
async function poll() {
  if (polling || !secret || document.hidden) return;
  const before = changes, abort = new AbortController(), limit = setTimeout(() => abort.abort(), 10 * PERIOD);
  polling = true; clearTimeout(timer);
  try {
    const response = await api(`jobs?last=${SHOWN + 1}&fields=${FIELDS}`, {signal: abort.signal});
    const {jobs} = await response.json(); now = Date.parse(response.headers.get("Date"));
    if (secret && before === changes) show(jobs);       // else it is stale
  } catch (error) { if (secret) put($("status"), words(error) + ", trying again"); }
  polling = false; clearTimeout(limit); timer = setTimeout(poll, PERIOD);
}
function show(jobs) {
  const newest = jobs.slice(-SHOWN), ids = new Set(newest.map(job => job.id)), first = $("work").hidden;
  enter(true); $("more").hidden = jobs.length <= SHOWN;
  for (const [id, button] of rows) if (!ids.has(id) && rows.delete(id)) {
    button.parentNode.remove();
    if (id === chosen && jobs.length <= SHOWN) choose(null);    // else it may be there, but older
  }
  newest.forEach(update);
  if (newest.some(job => job.id === chosen && job.create !== settings.create)) choose(chosen);    // of a new server
  if (rows.size && !$("list").querySelector("[tabindex='0']")) $("list").querySelector("button").tabIndex = 0;
  if (first) chosen === null ? $("editor").focus() : choose(chosen);
}
function update(job) {
  if (!rows.has(job.id)) $("list").prepend($("row").content.cloneNode(true));
  const button = rows.get(job.id) || $("list").querySelector("button"), over = job.state === "complete";
  const age = span(Math.max(0, now - Date.parse(job.create.slice(0, 19).replace(" ", "T") + "Z")) / 1000) + " ago";
  rows.set(job.id, Object.assign(button, {job, onclick: () => choose(job.id)}));
  const word = (job.timed_out ? "timed out" : job.exit || (over ? "done" : job.state)) + (job.held ? ", held" : "");
  const more = [job.label, age, over && "took " + span(job.duration)].filter(Boolean).join(" \u00b7 ");
  [String(job.id), job.line, word, more].forEach((text, index) => put(button.children[index], text));
  const kind = button.children[2].className = !over ? "running" : job.exit ? "failed" : "done";
  if (job.id !== chosen) return;
  put($("title"), "Job " + job.id + (job.label && ": " + job.label)); put($("state"), word);
  $("state").className = kind; $("stop").disabled = over && !job.held; $("input").hidden = over || !job.tty;
}
async function choose(id) {                 // null for none
  following.abort(); const {signal} = following = new AbortController(); chosen = id; size = 0;
  for (const name of ["output", "script", "trouble"]) put($(name), "");
  for (const [each, button] of rows) button.setAttribute("aria-current", each === id);
  if (id === null && $("job").contains(document.activeElement)) $("editor").focus();
  $("job").hidden = id === null; $("none").hidden = id !== null; $("cut").hidden = true;
  if (id === null) return;
  settings = rows.get(id).job; update(settings); if (innerWidth < 960) $("right").scrollIntoView();
  try {
    const response = await api(`jobs/${id}?fields=args,cwd,timeout,out_bytes,err_bytes,dropped`, {signal});
    Object.assign(settings, (await response.json()).jobs[0]);
    const {out_bytes: out, err_bytes: err, dropped} = settings, large = out + err > LIMIT;
    $("cut").hidden = !large && !dropped;
    const both = [["out", out], ["err", err]].map(([name, bytes]) =>
      follow(id, name, large ? Math.max(0, bytes - LIMIT / 2) : 0, signal));
    put($("script"), (await (await api(`jobs/${id}/script`, {signal})).text()).slice(0, LIMIT));
    await Promise.all(both);
  } catch (error) { if (!signal.aborted) put($("trouble"), words(error)); }
}
async function follow(id, name, offset, signal) {       // goes on at the byte where the connection broke
  for (const decoder = new TextDecoder(); ; await new Promise(done => setTimeout(done, PERIOD))) try {
    const response = await api(`jobs/${id}/${name}?follow`, {signal, headers: {Range: `bytes=${offset}-`}});
    const reader = response.body.getReader();
    offset = parseInt(response.headers.get("Content-Range").slice(6));      // more, if the server dropped some
    for (let part; !(part = await reader.read()).done && !signal.aborted; offset += part.value.length)
      print(name, decoder.decode(part.value, {stream: true}).replace(ESCAPE, "").replace(/\r+\n?/g, "\n"));
    return;
  } catch (error) { if (signal.aborted || error.status) throw error; }
}
function print(name, text) {
  const output = $("output"), atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 8;
  let last = output.lastChild; const data = last && last.className === name ? last.firstChild.data : null;
  if (data === null || data.length > BLOCK && (data.endsWith("\n") || data.length > 4 * BLOCK))
    output.append(last = Object.assign(document.createElement("div"), {className: name, textContent: text}));
  else last.firstChild.appendData(text);
  for (size += text.length; size > LIMIT && output.firstChild !== last; output.firstChild.remove()) {
    size -= output.firstChild.textContent.length; $("cut").hidden = false;
  }
  if (atEnd) output.scrollTop = output.scrollHeight;
}
async function run(body, {args = [], cwd, label, timeout, tty}) {
  const query = new URLSearchParams(args.map(arg => ["arg", arg]));
  const options = {fields: FIELDS, cwd, label, timeout, tty: tty && 1, ...tty};
  for (const name in options) if (options[name]) query.append(name, options[name]);
  const [job] = (await (await api("jobs?" + query, {method: "POST", body})).json()).jobs;
  update(job); choose(job.id);
}
const on = (id, event, work, busy) => $(id).addEventListener(event, async event => {    // two quick presses are one
  event.preventDefault();
  if (busy) return;
  busy = true; put($("trouble"), "");
  await work().catch(error => put($("trouble"), words(error)));
  busy = false; changes += 1; poll();
});
on("run", "submit", async () => run($("editor").value, {label: $("label").value, timeout: $("timeout").value,
  args: $("args").value ? $("args").value.replace(/\n$/, "").split("\n") : [],
  tty: $("tty").checked && {rows: $("rows").value, cols: $("cols").value}}));
on("again", "click", async () => run(await (await api(`jobs/${chosen}/script`)).blob(), settings));
on("stop", "click", () => api(`jobs/${chosen}/kill`, {method: "POST"}));
on("delete", "click", async () => ($("stop").disabled || confirm(`Stop job ${chosen} and forget it?`)) &&
  api("jobs/" + chosen, {method: "DELETE"}));
on("save", "click", async () => Object.assign(document.createElement("a"), {download: `job-${chosen}.log`,
  href: URL.createObjectURL(await (await api(`jobs/${chosen}/log`)).blob())}).click());
on("input", "submit", () => api(`jobs/${chosen}/stdin`, {method: "POST", body: $("line").value + "\n"})
  .then(() => $("input").reset()));
on("sign-in", "submit", async () => { secret = $("secret").value; });
on("forget", "click", async () => { enter(false); location.reload(); });
$("editor").addEventListener("keydown", ({key, ctrlKey, metaKey, repeat}) =>
  key === "Enter" && (ctrlKey || metaKey) && !repeat && $("go").click());
$("list").onkeydown = event => {
  const item = event.target.parentNode[{ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling"}[event.key]];
  if (item) { event.preventDefault(); item.firstElementChild.focus(); }
};
$("list").addEventListener("focusin", event => rows.forEach(row => { row.tabIndex = row === event.target ? 0 : -1; }));
ondragover = event => event.preventDefault();
ondrop = async event => {
  const [file] = event.dataTransfer.files;
  if (file) { event.preventDefault(); $("editor").value = await file.text(); }
};
put($("host"), location.host); document.title += " on " + location.host; document.onvisibilitychange = poll;
if (secret) poll(); else enter(false);
"""

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>rtot</title>
<style>%s</style><header class="row"><h1>rtot</h1><span id="host" class="soft"></span>
<span id="status" class="running" role="status"></span><button id="forget" hidden>Forget secret</button></header>
<main><form id="sign-in" class="panel stack" hidden><label for="secret">The secret of this server</label>
  <input id="secret" type="password" required autocomplete="current-password"><p id="wrong" class="failed" role="alert">
  <div class="row"><button class="main">Sign in</button><span class="soft">Kept in this tab alone</span></div></form>
<div id="work" class="stack" hidden><p id="trouble" class="panel failed" role="alert"></p><div class="stack">
  <form id="run" class="panel stack" autocomplete="off"><h2><label for="editor">Script</label></h2>
    <textarea id="editor" rows="7" required spellcheck="false" autocapitalize="off"></textarea>
    <details><summary>Options</summary><div class="stack"><label>Label<input id="label"></label>
      <label>Arguments, one a line<textarea id="args" rows="2"></textarea></label>
      <label>Time limit in seconds<input id="timeout" inputmode="decimal"></label>
      <div class="row"><label><input id="tty" type="checkbox"> Terminal of</label><label><input id="rows" size="3"
        value="24"> rows</label><label><input id="cols" size="3" value="80"> columns</label></div></div></details>
    <div class="row"><button id="go" class="main">Run</button><span class="soft">Ctrl+Enter, or drop a file</span></div>
  </form><section class="panel stack" aria-labelledby="jobs"><h2 id="jobs">Jobs</h2>
    <ul id="list"></ul><p id="more" class="soft" hidden>Only the newest 100 are listed.</p><template id="row"><li>
    <button tabindex="-1"><span></span><code></code><span></span><span class="soft wide"></span></button></template>
</section></div><section id="right" class="panel" aria-label="Chosen job"><p id="none" class="soft">No job chosen</p>
  <div id="job" class="stack" hidden><div class="row"><h2 id="title"></h2><span id="state" role="status"></span></div>
    <div class="row"><button id="stop">Stop</button><button id="again">Run again</button>
      <button id="save">Save output</button><button id="delete">Delete</button></div>
    <details><summary>Script</summary><pre id="script" tabindex="0"></pre></details>
    <p id="cut" class="soft" hidden>Only the end of the output is here.</p>
    <div id="output" role="log" aria-live="off" aria-label="Output" tabindex="0"></div>
    <form id="input" class="row"><input id="line" aria-label="Standard input"><button>Send</button></form></div>
</section></div></main><script>%s</script>
"""


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


# -------------------------------------------------------------------------------------- router and app

class Parameters:
    """The query of a request, checked: a parameter that the route does not know, or twice, is a BadRequest."""

    REPEATABLE = ("arg", "env")

    def __init__(self, pairs, known):
        self._values = {}
        for name, value in pairs:
            if name not in known.split():
                raise BadRequest("there is no parameter %r here; %s" % (
                    name, "there are: " + known if known else "none is taken"))
            if name in self._values and name not in self.REPEATABLE:
                raise BadRequest("%s may be given once" % name)
            if b"\0" in value:
                raise BadRequest("%s has a NUL byte, which no argument can have" % name)
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name):
        return name in self._values

    def all(self, name):
        """Return the values of one that may be repeated, as bytes."""
        return self._values.get(name, [])

    def bytes(self, name):
        """Return the value, or None."""
        return self._values[name][0] if name in self._values else None

    def text(self, name):
        value = self.bytes(name)
        return None if value is None else readable(value)

    def flag(self, name):
        """A flag alone, =1 and =true mean the same."""
        value = self.text(name)
        if value not in (None, "", "1", "true", "0", "false"):
            raise BadRequest("%s is a flag: alone, =1 or =true, not %r" % (name, value))
        return value in ("", "1", "true")

    def seconds(self, name, alone=None):
        """Return the seconds, or None where there is no such parameter; `alone` is what it means without a value."""
        value = self.text(name)
        if value is None or alone is not None and value == "false":
            return None
        if alone is not None and value in ("", "true"):
            return alone
        if not re.fullmatch(r"[0-9]{1,9}([.][0-9]{0,9})?|[.][0-9]{1,9}", value, re.ASCII):
            raise BadRequest("%s is a number of seconds, like 5 or 0.5, not %r" % (name, value))
        return float(value)

    def number(self, name, least, most):
        """Return the whole number, or None."""
        value = self.text(name)
        if value is None:
            return None
        if not re.fullmatch("[0-9]{1,9}", value, re.ASCII) or not least <= int(value) <= most:
            raise BadRequest("%s is a whole number from %d to %d, not %r" % (name, least, most, value))
        return int(value)

    def fields(self):
        """Return the names of the fields of a job to show."""
        value = self.text("fields")
        if value is None:
            return DEFAULT_FIELDS
        names = [name for name in value.split(",") if name]
        for name in names:
            if name not in VIEW and name != "all":
                raise BadRequest("there is no field %r; there are: %s, and all" % (name, " ".join(VIEW)))
        return tuple(name for name in VIEW if name in names or name in ALWAYS or "all" in names)

    def state(self):
        value = self.text("state")
        if value is not None and value not in STATES:
            raise BadRequest("there is no state %r; there are: %s" % (value, " ".join(STATES)))
        return value

    def label(self):
        """Return the label to select by, or None."""
        value = self.text("label")
        if value == "":         # as from a variable of the shell that is not set
            raise BadRequest("label is empty: name one, or leave it out for all")
        return value

    def signal(self):
        """Return the number of the signal INT, SIGINT or 2, or None."""
        value = self.text("signal")
        if value is None:
            return None
        if re.fullmatch("[0-9]{1,2}", value, re.ASCII) and 0 < int(value) < signal.NSIG:
            return int(value)
        name = value.upper()
        name = name if name.startswith("SIG") else "SIG" + name
        if name not in signal.Signals.__members__:
            raise BadRequest("there is no signal %r; there are TERM INT HUP KILL USR1 and so on, or numbers "
                             "from 1 to %d" % (value, signal.NSIG - 1))
        return int(signal.Signals[name])

    def terminal(self):
        """Return the Terminal of rows and cols, 24 and 80 by default."""
        return Terminal(self.number("rows", 1, 65535) or 24, self.number("cols", 1, 65535) or 80)

    def options(self):
        """Return the Options of a new job."""
        if self._values.keys() <= {"wait", "follow", "fields"}:
            return PLAIN
        env = [value.partition(b"=") for value in self.all("env")]
        for name, equals, _ in env:
            if not name or not equals:
                raise BadRequest("env is like NAME=VALUE, not %r" % readable(name + equals))
        timeout = self.seconds("timeout")
        if timeout == 0:
            raise BadRequest("timeout is a number of seconds over 0")
        cwd = self.bytes("cwd")
        if cwd is not None and not (os.path.isdir(cwd) and os.access(cwd, os.X_OK)):
            raise BadRequest("cwd %r is no directory that can be entered; give an absolute path" % readable(cwd))
        tty = self.flag("tty")
        for name in ("rows", "cols"):
            if name in self and not tty:
                raise BadRequest("%s is for a job with a terminal: give tty too" % name)
        return Options(args=tuple(self.all("arg")), env=tuple((name, value) for name, _, value in env), cwd=cwd,
                       timeout=timeout, label=self.text("label") or "", stdin=self.flag("stdin"),
                       tty=self.terminal() if tty else None)


Route = collections.namedtuple("Route", "method path handler parameters")


class Router:
    """Finds a route by path and method.  {id} in a path stands for the number of a job."""

    def __init__(self, routes):
        self._by_path = {}
        for route in routes:
            self._by_path.setdefault(tuple(route.path.split("/")), {})[route.method] = route

    def find(self, method, path):
        """Return (route, number as text or None); NotFound or MethodNotAllowed."""
        parts = path.split("/")
        if len(parts) > 2 and not parts[-1]:
            parts.pop()             # /jobs/ is /jobs
        number = parts[2] if len(parts) > 2 and parts[1] == "jobs" else None
        if number is not None:
            parts[2] = "{id}"
        methods = self._by_path.get(tuple(parts))
        if methods is None:
            raise NotFound("there is nothing at %s; GET / lists what there is" % path)
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted(methods) + (["HEAD"] if "GET" in methods else [])
            raise MethodNotAllowed("%s takes %s" % (path, ", ".join(allowed)), headers=[("Allow", ", ".join(allowed))])
        return route, number


FOREVER = float("inf")
LIVE_END = 2 ** 53 - 1          # the last byte of a body that still grows: RFC 8673, 2.2


class App:
    """What rtot answers.  Handlers take a Request and its Parameters, give a Response, and touch no socket."""

    def __init__(self, secret, store, runner, workspace, max_script, max_output, shell=DEFAULT_SHELL):
        self.secret = secret                # bytes
        self.store, self.runner, self.workspace = store, runner, workspace
        self.max_script, self.max_output = max_script, max_output       # bytes
        self.shell = shell
        self.router = Router(ROUTES)
        self.began = time.monotonic()

    def answer(self, request):
        """Return the Response to a request; an Error if it can't be served."""
        reads = request.method in ("GET", "HEAD")
        if reads and request.path == "/" and b"text/html" in request.headers.get(b"accept", b""):
            return page()
        if not reads or request.path not in ("/ping", "/ping/"):
            self._authorize(request)
            request.admit()
        route, number = self.router.find(request.method, request.path)
        arguments = [] if number is None else [self._job(number)]
        parameters = Parameters(request.parameters() if request.query else (), route.parameters)
        return route.handler(self, request, parameters, *arguments)

    def is_stopping(self):
        return self.runner.stopping

    def _authorize(self, request):
        try:
            import hmac
        except (OSError, ImportError):      # no descriptor to open the module with
            raise Unavailable("no descriptor is left") from None
        given, why = request.headers.get(b"rtot-secret"), "this is not the secret of this server"
        if given is None:
            scheme, _, value = request.headers.get(b"authorization", b"").partition(b" ")
            given = value.strip() if scheme.lower() in (b"rtot", b"bearer") else b""
        if not hmac.compare_digest(given, self.secret):
            raise NotAuthorized(why if given else "send the secret in a header, as by curl -H 'Rtot-Secret: ...'",
                                headers=[("WWW-Authenticate", 'Bearer realm="rtot"')])

    def _job(self, text):
        """Return the job of that number."""
        if not re.fullmatch("[+-]?[0-9]{1,18}", text, re.ASCII):
            raise BadRequest('"%s" is no number of a job: GET /jobs lists them' % text, error="invalid job number")
        job = self.store.get(int(text))
        if job is None:
            raise NotFound("there is no job %s, or no longer" % text, error="no such job", extra={"jobs": []})
        return job

    # The server.

    def ping(self, request, parameters):
        text = '{\n  "message": "still here",\n  "uptime": "%s"\n}\n' % self._uptime()     # json takes 2 ms to import
        return Response(200, text.encode("utf-8"), JSON)

    def _uptime(self):
        return go_duration(round(time.monotonic() - self.began, 3))

    def root(self, request, parameters):
        import pwd
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            user = str(os.geteuid())
        links = collections.OrderedDict()
        for route in ROUTES:
            name = route.path.strip("/").replace("/{id}", ".byID").replace("/", ".")
            query = "{?%s}" % route.parameters.replace(" ", ",") if route.parameters else ""
            if name:
                links.setdefault(name, route.path.replace("{id}", "{jobs.id}") + query)
        counts = collections.Counter(job.state for job in self.store.select())
        return Response.json(200, collections.OrderedDict([
            ("links", links),
            ("version", __version__),
            ("host", socket.gethostname()),
            ("user", user),
            ("python", "%d.%d.%d" % sys.version_info[:3]),
            ("uptime", self._uptime()),
            ("jobs", collections.OrderedDict((state, counts[state]) for state in STATES)),
        ]))

    def die(self, request, parameters):
        return Response(204, after=self.runner.stop)

    # Jobs.

    def create(self, request, parameters):
        options, fields = parameters.options(), parameters.fields()
        wait, follow = parameters.seconds("wait", alone=FOREVER), parameters.flag("follow")
        if follow and wait is not None:
            raise BadRequest("wait answers when the job is complete, follow as it goes: give one of them")
        if not request.body.stated:
            raise LengthRequired("POST the script as the body, as by curl --data-binary @file")
        if request.headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
            raise BadRequest("a form, as curl -F makes it, is no script, and its headers are not to be run: "
                             "POST the script alone, as by curl --data-binary @file")
        if request.body.length is None or request.body.length >= MIB:
            map_large_blocks()
        script = request.body.read_all(self.max_script, "a script")
        if not script:
            raise BadRequest("the script is empty: POST it as the body, as by curl --data-binary @file")
        if not script.startswith(b"#!"):
            script = b"#!" + self.shell + b"\n" + script
        if self.is_stopping():
            raise Unavailable("the server is about to exit")
        file = self.workspace.write(script)
        job = Job(script, options, self.max_output)
        try:
            self.store.add(job)
            headers = [("Location", job.href)]
            if follow:
                answer = self._followed(201, job, Reader(job.output, None, [0, 0]), headers)
            else:
                answer = None if wait is not None else Response.of_pieces(201, jobs_json([job], fields), headers)
        except BaseException:           # nothing stays of what will not run
            self.store.remove(job.id)
            file.close()
            raise
        self.runner.submit(job, file)
        if answer:
            return answer
        return Response.of_pieces(201 if self._wait(job, wait, request) else 202, jobs_json([job], fields), headers)

    def list(self, request, parameters):
        last = parameters.number("last", 0, 10 ** 9 - 1)
        jobs = self.store.select(parameters.state(), parameters.label(), last)
        return Response.of_pieces(200, jobs_json(jobs, parameters.fields()))

    def delete_all(self, request, parameters):
        jobs = self.store.select(parameters.state(), parameters.label())
        self.runner.forget([job for job in jobs if self.store.remove(job.id)])
        return Response(204)

    def get(self, request, parameters, job):
        fields, seconds = parameters.fields(), parameters.seconds("wait", alone=FOREVER)
        status = 200 if self._wait(job, seconds or 0, request) else 202
        return Response.of_pieces(status, jobs_json([job], fields), [("Location", job.href)])

    def delete(self, request, parameters, job):
        self.store.remove(job.id)
        self.runner.forget([job])
        return Response(204)

    def script(self, request, parameters, job):
        size = len(job.script)
        return Response(200, job.script if size <= SLICE else slices(job.script, SLICE), TEXT, length=size)

    def exit(self, request, parameters, job):
        if not self._wait(job, parameters.seconds("wait", alone=FOREVER) or 0, request):
            return Response(202)
        return Response(200, b"%d\n" % job.exit_code, TEXT)

    def _wait(self, job, seconds, request):
        """Wait until the job is complete or the seconds have passed; return whether it is."""
        until = time.monotonic() + seconds
        while not job.wait_for_end(min(TICK, until - time.monotonic())):
            if time.monotonic() >= until:
                return False
            request.check()
        return True

    # Output.

    def out(self, request, parameters, job):
        return self._output(request, parameters, job, OUT)

    def err(self, request, parameters, job):
        return self._output(request, parameters, job, ERR)

    def log(self, request, parameters, job):
        return self._output(request, parameters, job, None)

    def _output(self, request, parameters, job, which):
        """Answer with what the job has printed: all, from the place that Range names, or the last lines."""
        follow, tail = parameters.flag("follow"), parameters.number("tail", 0, 10 ** 9 - 1)
        span = self._span(request, follow) if which is not None else None
        if span and tail is not None:
            raise BadRequest("Range and tail both say where to begin: give one of them")
        output, small = job.output, None
        at = [0, 0] if tail is None else job.tail(tail, which)
        with job.lock:
            reader = Reader(output, which, [max(place, stream.start) for place, stream in zip(at, output.streams)])
            headers = [("Rtot-Dropped", str(reader.source.start))]
            end = reader.source.end
            if span:
                end = self._place(reader, span, follow, headers, job.is_complete())
            length = end - reader.position
            if not follow and length <= SLICE:
                small = self._read(reader, length)
        status = 206 if span else 200
        if follow:
            return self._followed(status, job, reader, headers)
        if small is not None:
            return Response(status, small, TEXT, headers)
        return Response(status, self._whole(job, reader, length), TEXT, headers, length=length)

    @staticmethod
    def _span(request, follow):
        """Return (first, last or None) of a Range: bytes=N-, N-M or -N; None if there is none to heed.

        RFC 9110, 14.2: what is not understood, as several ranges, is as if it were not there; and If-Range
        asks for a validator, which these bodies have not.
        """
        match = re.fullmatch(b"bytes=([0-9]{0,18})-([0-9]{0,18})", request.headers.get(b"range", b""))
        if (not match or b"if-range" in request.headers or match.group(0) == b"bytes=-"
                or request.method == "HEAD"):       # RFC 9110, 14.2: it is for GET alone
            return None
        first, last = (int(part) if part else None for part in match.groups())
        if follow and (first is None or last is not None):
            raise BadRequest("with follow, Range is like bytes=N-")
        if first is not None and last is not None and last < first:
            return None
        return first, last

    @staticmethod
    def _place(reader, span, follow, headers, complete):
        """Set the reader to where the span begins, note that in the headers, return where it ends."""
        source, (first, last) = reader.source, span
        end = source.end if last is None or first is None else min(last + 1, source.end)
        if first is None:
            first = max(0, source.end - last)
        if first > source.end or not follow and first == source.end:
            raise RangeNotSatisfiable("there are %d bytes" % source.end,
                                      headers=[("Content-Range", "bytes */%d" % source.end)])
        if end <= source.start and not follow:
            raise RangeNotSatisfiable("the first %d bytes were dropped" % source.start,
                                      headers=[("Content-Range", "bytes */%d" % source.end)])
        first = max(first, source.start)        # what was dropped can't be had: Content-Range tells
        reader.at[reader.which] = first
        headers.append(("Content-Range", "bytes %d-%d/%s" % (
            first, LIVE_END if follow else end - 1, source.end if complete and not follow else "*")))
        return end

    @staticmethod
    def _read(reader, length):
        """Return exactly `length` bytes; call it with the job's lock."""
        parts = []
        while length:
            parts.append(reader.read(length))
            length -= len(parts[-1])
        return b"".join(parts)

    @staticmethod
    def _whole(job, reader, length):
        """Yield `length` bytes; if some are dropped meanwhile, what was announced can't be sent any more."""
        for data in job.slices(reader, length, SLICE):
            if reader.lost:
                break
            yield data
        if reader.lost:
            raise ClientGone()

    def _followed(self, status, job, reader, headers):
        def trailers():
            return [("Rtot-Exit", str(job.exit_code)), ("Rtot-Dropped", str(reader.lost))]
        headers = headers + [("X-Accel-Buffering", "no"), ("Trailer", "Rtot-Exit, Rtot-Dropped")]
        stream = self._follow(job, reader)
        next(stream)        # it counts as a follower from now on: the client may act on the head at once
        return Response(status, stream, TEXT, headers, trailers=trailers)

    @staticmethod
    def _follow(job, reader):
        """Yield what the job prints as it comes, until it is complete; b"" now and then when it is quiet.

        What something in the background prints after that does not belong to it: there might be no end.
        """
        def more():
            return reader.read(WIDE_READ_SIZE)
        readers = job.output.readers
        with job.lock:
            readers.append(reader)
        try:
            yield b""
            while not job.is_complete():
                yield job.wait(more, TICK)
            with job.lock:
                length = reader.source.end - reader.position
            yield from job.slices(reader, length, WIDE_READ_SIZE)
        finally:
            with job.lock:
                readers.remove(reader)

    # Talking to a job.

    def stdin(self, request, parameters, job):
        if not (job.options.stdin or job.options.tty):
            raise Conflict("job %d has no standard input: POST /jobs?stdin opens one" % job.id)
        eof = parameters.flag("eof")
        while not job.wait(lambda: job.state != "new", TICK):
            request.check()
        while True:
            data = request.body.read()
            ended = request.body.ended
            if data or eof and ended:
                reply = self.runner.feed(job, data, eof and ended)
                try:
                    while not reply.wait(TICK):
                        request.check()
                except ClientGone:
                    self.runner.withdraw(job, reply)
                    raise
                reply.result()
            if ended:
                return Response(204)

    def kill(self, request, parameters, job):
        signum, grace = parameters.signal(), parameters.seconds("grace")
        if signum is None:
            signum, grace = signal.SIGTERM, GRACE if grace is None else grace
        self.runner.kill(job, signum, grace)
        return Response(204)

    def resize(self, request, parameters, job):
        if "rows" not in parameters or "cols" not in parameters:
            raise BadRequest("give both, as ?rows=24&cols=80")
        terminal = parameters.terminal()
        if not job.options.tty:
            raise Conflict("job %d has no terminal: POST /jobs?tty gives one" % job.id)
        self.runner.resize(job, terminal)
        return Response(204)


ROUTES = (
    Route("GET", "/", App.root, ""),
    Route("DELETE", "/", App.die, ""),
    Route("GET", "/ping", App.ping, ""),
    Route("GET", "/jobs", App.list, "state label last fields"),
    Route("POST", "/jobs", App.create, "arg env cwd timeout label stdin tty rows cols wait follow fields"),
    Route("DELETE", "/jobs", App.delete_all, "state label"),
    Route("GET", "/jobs/{id}", App.get, "fields wait"),
    Route("DELETE", "/jobs/{id}", App.delete, ""),
    Route("GET", "/jobs/{id}/out", App.out, "follow tail"),
    Route("GET", "/jobs/{id}/err", App.err, "follow tail"),
    Route("GET", "/jobs/{id}/log", App.log, "follow tail"),
    Route("GET", "/jobs/{id}/script", App.script, ""),
    Route("GET", "/jobs/{id}/exit", App.exit, "wait"),
    Route("POST", "/jobs/{id}/stdin", App.stdin, "eof"),
    Route("POST", "/jobs/{id}/kill", App.kill, "signal grace"),
    Route("POST", "/jobs/{id}/resize", App.resize, "rows cols"),
)


# ---------------------------------------------------------------------------------------- command line

DESCRIPTION = """\
Run this over there: POST a script over HTTP, and it runs here as an
asynchronous job; ask, and rtot tells what it has printed and how it ended."""

EPILOG = """\
try it:
  curl -H 'Rtot-Secret: secret' -d 'echo wat is happening' http://localhost:8457/jobs
  curl -H 'Rtot-Secret: secret' http://localhost:8457/jobs/0

environment: RTOT_ADDR, RTOT_SECRET and RTOT_LOG_FORMAT stand for -a, -s and -f.
sizes take K, M or G. stop it by ^C, SIGTERM, or curl -X DELETE http://localhost:8457/"""


class Log:
    """Lines on standard error: events, and a line for each request; as text or as JSON.

    Neither the secret nor a query string is ever in it, and control bytes are escaped.  Lines are
    written by write(2), since a daemon thread that holds the lock of sys.stderr breaks the exit.
    """

    def __init__(self, form, path=None):
        self.form, self.path, self._fd = form, path, 2
        self.look_at_stderr()

    def look_at_stderr(self):
        """See what it is now: a pipe, a terminal or a socket that nobody reads would hold us up."""
        if self._fd != 2:
            os.close(self._fd)
        self._fd, mode = 2, os.fstat(2)
        self._may_block = not stat.S_ISREG(mode.st_mode) and mode.st_rdev != os.stat(os.devnull).st_rdev
        if self._may_block:
            try:                # O_NONBLOCK belongs to what open(2) has opened: set on ours, it would be everyone's
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:     # a socket, or no /proc; a terminal may say that it takes more, and not take a line
                pass

    def open(self):
        """Return a descriptor of the file; OSError if it can't be written."""
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def go_to(self, fd):
        """Let standard error go to the file, from here on."""
        os.dup2(fd, 2)
        os.close(fd)
        self.look_at_stderr()

    def rotated(self):
        try:
            self.go_to(self.open())
        except OSError as error:        # the old one goes on
            self.event("cannot write %s: %s" % (self.path, error.strerror))

    def event(self, text):
        if self.form == "json":
            self._write_json([("event", text)])
        else:
            self._write("rtot: " + text)

    def access(self, address, request, status, size, seconds):
        """Note a request; `size` is the bytes of body sent, None if the client was gone before the end.

        So is `status`, if it was gone before the answer.
        """
        method, path = (request.method, request.path) if request else ("-", "-")
        if self.form == "json":
            self._write_json([("client", address[0]), ("method", method), ("path", path), ("status", status),
                              ("bytes", size), ("seconds", round(seconds, 6))])
            return
        if not re.fullmatch("[!-[\\]-~]*", path):
            path = path.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")
        status, size = ("-" if value is None else value for value in (status, size))
        self._write("%s %s %s %s %s %s %s" % (self._now(), address[0], method, path, status, size,
                                              go_duration(round(seconds, 6))))

    @staticmethod
    def _now():
        return utc("%Y-%m-%dT%H:%M:%SZ", int(time.time()))

    def _write_json(self, pairs):
        import json
        value = collections.OrderedDict([("time", self._now())] + pairs)
        line = json.dumps(value)
        while len(line) > LONGEST_LINE:         # rather a part of a path or an event than of a line, which is no JSON
            longest = max(value, key=lambda name: len(str(value[name])))
            value[longest] = value[longest][:len(value[longest]) // 2]
            line = json.dumps(value)
        self._write(line)

    def _write(self, line):
        try:
            if not self._may_block or self._takes_more():       # rather no line than to be held for ever
                os.write(self._fd, (line[:LONGEST_LINE] + "\n").encode("utf-8", "replace"))
        except OSError:         # whoever read it is gone: no reason to stop
            pass

    def _takes_more(self):
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return poll.poll(0)


class CannotStart(Exception):
    """Why there is no server, in a line."""


class PidFile:
    """A file with our number in it, locked by flock(2) while we live; so a stale one is just written over."""

    def __init__(self, path):
        import fcntl
        self.path = path
        try:
            while True:
                self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self.fd).st_nlink:
                    break
                os.close(self.fd)       # who had it has removed it since we opened it
            try:
                os.ftruncate(self.fd, 0)
                os.write(self.fd, b"%d\n" % os.getpid())
            except OSError:         # a full disk
                os.unlink(path)
                raise
        except BlockingIOError:
            raise CannotStart("%s is the pid file of a server that lives" % path) from None
        except OSError as error:
            raise CannotStart("cannot write %s: %s" % (path, error.strerror)) from None

    def remove(self, log):
        os.ftruncate(self.fd, 0)        # in a directory that is not ours it stays
        remove_file(self.path, log)


def wrong(text, right):
    """Return the error of an option's value: what was given, and what would be right."""
    import argparse
    return argparse.ArgumentTypeError("%r is no %s" % (text, right))


def parse_size(text):
    """Return the bytes of 4096, 64K, 16M or 1G."""
    match = re.fullmatch("([0-9]{1,15})([KMGkmg]?)", text, re.ASCII)
    if not match or not int(match.group(1)):
        raise wrong(text, "size, like 4096, 64K, 16M or 1G")
    return int(match.group(1)) << {"": 0, "K": 10, "M": 20, "G": 30}[match.group(2).upper()]


def parse_count(text):
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        raise wrong(text, "count, like 0 or 8")
    return int(text)


def parse_positive(text):
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text, re.ASCII):
        raise wrong(text, "whole number over 0")
    return int(text)


def parse_form(text):
    if text not in ("text", "json"):
        raise wrong(text, "format: text or json")
    return text


def parse_address(text):
    """Return (host, port) of :8457, host:8457 or [::1]:8457, (path, None) of unix:path; see Server."""
    if text.startswith("unix:") and len(text) > 5:
        return text[5:], None
    match = re.fullmatch(r"(\[[^][]+\]|[^:]*):([0-9]{1,5})", text, re.ASCII)
    if not match or int(match.group(2)) > 65535:
        raise wrong(text, "address, like :8457, host:8457, [::1]:8457 or unix:/path")
    host = match.group(1).strip("[]")
    return "" if host == "*" else host, int(match.group(2))     # * for all is common, and no name


def quarter_of_memory():
    """Return a quarter, in bytes, of what this host or container may use."""
    import resource
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        sizes.append(limit)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                sizes.append(int(file.read()))
        except (OSError, ValueError):       # another version of cgroups(7), or "max"
            pass
    return min(sizes) // 4


def parser():
    import argparse
    environ = os.environ.get
    # With a width it needs no shutil: 2.6 ms of the start.
    result = argparse.ArgumentParser("rtot", description=DESCRIPTION, epilog=EPILOG,
                                     formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=79))
    add = result.add_argument
    add("-a", "--addr", type=parse_address, metavar="ADDR", default=environ("RTOT_ADDR", ":8457"),
        help="where to listen: :8457 (all addresses), host:8457, [::1]:8457, unix:/path; port 0 picks one "
             "(default: :8457)")
    add("-s", "--secret", metavar="SECRET", help="what every request has to bring; one is made if none is given")
    add("--secret-file", metavar="FILE", help="read the secret from the first line of FILE, or of standard input: -")
    add("-d", "--daemon", action="store_true",
        help="serve in the background: return when the port is bound, or exit with 1 and say why not")
    add("-j", "--parallel", type=parse_count, metavar="N", default=0,
        help="run so many jobs at a time, the rest wait as new (default: 0, all)")
    add("--pid-file", metavar="FILE", help="write the number of the process to FILE, and remove it at the end")
    add("--log-file", metavar="FILE", help="write the log to FILE; SIGHUP opens it anew")
    add("-f", "--log-format", type=parse_form, metavar="text|json", default=environ("RTOT_LOG_FORMAT", "text"),
        help="write the log as text or as JSON (default: text)")
    add("--self-destruct", action="store_true", help="remove the file of rtot, too, when the server has ended")
    add("-v", "--version", action="version", version="rtot " + __version__)
    add_tls(result.add_argument_group("TLS").add_argument)
    add_limits(result.add_argument_group("limits").add_argument)
    return result


def add_tls(add):
    add("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate (PEM, with its chain)")
    add("--tls-key", metavar="FILE", help="its key (default: in the file of the certificate)")
    add("--tls-client-ca", metavar="FILE", help="serve only clients with a certificate that one of these has signed")


def add_limits(add):
    add("--max-output", type=parse_size, metavar="SIZE", default=64 * MIB,
        help="keep so much output of a job, the oldest is dropped (default: 64M)")
    add("--max-total", type=parse_size, metavar="SIZE", default=None,
        help="keep so much output of all jobs together (default: a quarter of the memory)")
    add("--max-script", type=parse_size, metavar="SIZE", default=16 * MIB,
        help="take scripts up to this size (default: 16M)")
    add("--keep", type=parse_count, metavar="N", default=0,
        help="keep so many complete jobs, the oldest are forgotten (default: 0, all)")
    add("--max-connections", type=parse_positive, metavar="N", default=1000,
        help="serve so many connections at a time (default: 1000)")
    for name, default, what in (("--head-timeout", HEAD_TIMEOUT, "for the head of a request"),
                                ("--body-timeout", BODY_TIMEOUT, "without a byte of a body"),
                                ("--idle-timeout", IDLE_TIMEOUT, "between two requests of a connection")):
        add(name, type=parse_positive, metavar="S", default=default, help="seconds %s (default: %d)" % (what, default))


def read_secret(args):
    """Return the secret as bytes, or None if none was given; ValueError says what is wrong with it."""
    if args.secret is not None and args.secret_file is not None:
        raise ValueError("give --secret or --secret-file, not both")
    secret = args.secret if args.secret is not None else os.environ.get("RTOT_SECRET")
    secret = None if secret is None else os.fsencode(secret)
    if args.secret_file is not None:
        try:
            with open(0 if args.secret_file == "-" else args.secret_file, "rb") as file:
                secret = file.readline()
        except OSError as error:
            raise ValueError("cannot read the secret from %s: %s" % (args.secret_file, error.strerror)) from None
    if secret is None:
        return None
    secret = secret.strip(b" \t\r\n")       # the blanks around a header's value are not part of it
    if not secret:
        raise ValueError("the secret is empty: leave it out, and one is made")
    if re.search(b"[\\x00-\\x1f\\x7f]", secret):
        raise ValueError("the secret has a control character, which no header can have")
    return secret


def hide(secret):
    """Overwrite the secret where ps(1) and /proc/PID/environ show it: the kernel reads both from our memory.

    Return whether it is out of sight.  Where the areas lie is in proc_pid_stat(5), 48 to 51.
    """
    def hidden(part):
        shows = part.startswith((b"-", b"RTOT_SECRET=")) or part.strip() == secret
        return part.replace(secret, b"*" * len(secret)) if shows else part
    try:
        with open("/proc/self/stat", "rb") as file:
            arguments, end, environment, last = map(int, file.read().rpartition(b")")[2].split()[45:49])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            for first, size in ((arguments, end - arguments), (environment, last - environment)):
                memory.seek(first)
                text = b"\0".join(map(hidden, memory.read(size).split(b"\0")))
                memory.seek(first)
                memory.write(text)
    except (OSError, ValueError):       # no such /proc, or it may not be written
        return False
    return True


def daemonize():
    """Go on in the background; return a function that tells the one in the foreground to exit with 0.

    It exits with 1 if we exit before that.  Working directory and umask stay as they were.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os._exit(0 if os.read(reading, 1) else 1)
    os.close(reading)
    os.setsid()
    if os.fork():           # so that it leads no session, and no terminal that it opens controls it
        os._exit(0)

    def detach(keep_stderr):
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1) if keep_stderr else (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.write(writing, b"\0")
        os.close(writing)
    return detach


def prepare_process():
    """Make what jobs will inherit from us what it is for a fresh shell."""
    fd = 0
    while fd <= 2:                                  # 0, 1 and 2 are open, so that no pipe becomes one of them
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)
    try:
        numbers = map(int, os.listdir("/dev/fd"))
    except OSError:                                 # no /proc is mounted
        numbers = range(min(os.sysconf("SC_OPEN_MAX"), 65536))
    for number in numbers:
        try:
            if number > 2:
                os.set_inheritable(number, False)
        except OSError:                             # the one that listed them, or none
            pass
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # What is ignored stays so in a child, what has a handler does not (execve(2)): so that nohup, or a
    # shell's &, does not make jobs deaf.  Popen itself restores what Python ignores (SIGPIPE, SIGXFSZ).
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGPIPE, signal.SIGXFSZ) and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, no_action)


def raise_nofile():
    """Allow ourselves more descriptors; return (how many we may have, the limits that jobs get, or None for ours)."""
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft == resource.RLIM_INFINITY or soft >= wanted or not hasattr(resource, "prlimit"):
        return soft if soft != resource.RLIM_INFINITY else wanted, None
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted, (soft, hard)


def serve(server, runner, workspace, ends_us):
    """Accept connections in one thread, run jobs in this one, until stopped; then leave nothing behind."""
    threading.stack_size(STACK_SIZE)
    gc.enable()
    # Threads inherit the mask: signals are for this one, and interrupt no other at each child that ends.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends_us | {signal.SIGCHLD, signal.SIGHUP})
    if sys.version_info < (3, 10):
        # The first thread that ends makes glibc load libgcc_s for pthread_exit(3), and abort us where that finds no
        # memory or descriptor: now it does.  3.9.6 and newer ones just return (bpo-44434).
        _thread.start_new_thread(int, ())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": None}, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        runner.after(SWEEP_AFTER, workspace.sweep)
        runner.run()
        server.connections.drain(DRAIN)
    finally:
        workspace.remove()


def tls_context(args):
    """Return an ssl.SSLContext as the options say, or None."""
    if not args.tls_cert:
        if args.tls_key or args.tls_client_ca:
            raise CannotStart("--tls-key and --tls-client-ca need --tls-cert")
        return None
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if hasattr(ssl, "TLSVersion"):          # 3.7
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    try:
        for path in (args.tls_cert, args.tls_key, args.tls_client_ca):
            if path:
                open(path, "rb").close()    # for an error that names the file
        # A key with a passphrase would be asked for on a terminal: it is wrong instead.
        context.load_cert_chain(args.tls_cert, args.tls_key, password=lambda: b"")
        if args.tls_client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(args.tls_client_ca)
    except ssl.SSLError as error:
        raise CannotStart("cannot use %s: %s; a certificate and its key are needed, both in PEM" % (" with ".join(
            filter(None, (args.tls_cert, args.tls_key, args.tls_client_ca))), error)) from None
    except OSError as error:
        raise CannotStart("cannot read %s: %s" % (error.filename, error.strerror)) from None
    return context


def handed_socket():
    """Return the listening socket that systemd has opened for us (sd_listen_fds(3)), or None."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if os.environ.get("LISTEN_FDS") != "1":
        raise CannotStart("LISTEN_FDS is %s: rtot takes one socket" % os.environ.get("LISTEN_FDS"))
    try:
        with socket.socket(fileno=os.dup(3)) as probe:      # before 3.7 it does not see the family itself
            family = probe.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
            if not probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise CannotStart("the socket that was handed over does not listen: Accept=no is right for rtot")
        return socket.socket(family, socket.SOCK_STREAM, fileno=3)
    except OSError as error:
        raise CannotStart("cannot use the socket that was handed over: %s" % error.strerror) from None


def listen(args, handed, secret, log):
    """Return (Server, Runner, Workspace) as the options say; `handed` is a socket that listens already, or None."""
    total = args.max_total or quarter_of_memory()
    store, workspace = JobStore(args.keep, total), Workspace()
    descriptors, nofile = raise_nofile()
    runner = Runner(store, args.parallel, total, descriptors, nofile, workspace)
    shell = DEFAULT_SHELL if os.access(DEFAULT_SHELL, os.X_OK) else b"/bin/sh"
    app = App(secret, store, runner, workspace, args.max_script, args.max_output, shell)
    limits = Limits(args.max_connections, args.head_timeout, args.body_timeout, args.idle_timeout, descriptors)
    try:
        server = Server(handed or args.addr, app, log, limits, tls_context(args))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CannotStart("cannot listen on %s: %s" % (show_address(args.addr), reason)) from None
    if shell != DEFAULT_SHELL:
        log.event("there is no /bin/bash here: scripts without a #! line are run by /bin/sh")
    return server, runner, workspace


def self_destruct(path, log):
    """Remove the file that we were started from, and the link to it, if it was one."""
    for each in {path, os.path.realpath(path)} if os.path.islink(path) else {path}:
        remove_file(each, log)


def announce(server, log, made):
    """Say where it listens, on standard error; then in the log file too, if there is one."""
    where = "version %s listens on %s" % (__version__, server.url)
    try:
        fd = log.open() if log.path else None
    except OSError as error:
        raise CannotStart("cannot write %s: %s" % (log.path, error.strerror)) from None
    if made:
        log.event("no secret was given, so this one was made: " + made)
    log.event(where)
    if log.path:
        log.go_to(fd)
        signal.signal(signal.SIGHUP, lambda number, frame: log.rotated())
        log.event(where)


def run(args, secret, ends_us, log):
    """Serve as the options say; CannotStart if that can't be."""
    handed = handed_socket()
    detach = daemonize() if args.daemon else None
    pid_file = PidFile(args.pid_file) if args.pid_file else None
    try:
        made = None if secret else os.urandom(16).hex()
        server, runner, workspace = listen(args, handed, secret or made.encode("ascii"), log)
        with server:
            runner.catch_signals(ends_us)       # before anybody knows that we are there
            announce(server, log, made)
            if detach:
                detach(keep_stderr=bool(log.path))
                log.look_at_stderr()
            serve(server, runner, workspace, ends_us)
        if args.self_destruct:
            self_destruct(sys.argv[0], log)
    finally:
        if pid_file:
            pid_file.remove(log)


def main(argv=None):
    """Serve until stopped; return the exit status."""
    options = parser()
    args = options.parse_args(argv)
    try:
        secret = read_secret(args)
    except ValueError as error:
        options.error(str(error))
    ends_us = {number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
               if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN}
    if args.daemon or args.log_file:
        ends_us.discard(signal.SIGHUP)
        signal.signal(signal.SIGHUP, no_action)
    if args.self_destruct and not os.path.isfile(sys.argv[0]):
        options.error("--self-destruct: rtot came from standard input, there is no file to remove")
    prepare_process()
    log = Log(args.log_format, args.log_file)
    shown = [os.fsencode(text).strip() for text in (args.secret, os.environ.get("RTOT_SECRET")) if text]
    hidden = [hide(text) for text in shown]
    if not all(hidden) and args.secret is not None:
        log.event("the secret can be seen in ps here: give it by --secret-file or RTOT_SECRET")
    try:
        run(args, secret, ends_us, log)
    except CannotStart as error:
        log.event(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
