#!/usr/bin/env python3
"""rtot, "run this over there": POST a script over HTTP, and it runs here as an asynchronous job.

    python3 rtot.pyz -a :8457 -s secret
    curl -H 'Rtot-Secret: secret' -d 'echo wat is happening' http://host:8457/jobs

One thread waits in one selector for descriptors, children that exit, and timers.  Every client and every job is a
Task, a coroutine that runs until it has to wait; nothing else runs meanwhile, so there are no locks.

A request: Server.accept makes a Connection.  Its task, Connection.serve, reads a head (parse_head); App.answer checks
the secret, finds the route in ROUTES and calls its handler, which returns a Response; Connection sends it.  An Error
that is raised on the way is answered in Connection._serve_one.
A job: App._new_job reads the script, writes it to a file (Workspace) and adds the Job (JobStore).  Runner.run is the
rest of its life: spawn (Spawner), wait for the exit and for the end of the output, complete, reap.  Meanwhile
Capture.read takes what it prints into its Output, by way of TotalOutput, and wakes those who follow it (OutputBody).

Sections, each of which uses only those above it: errors, loop, output, jobs, scripts, runner, HTTP, page, routes,
command line.  Where a change belongs:
- a route: a line in ROUTES and a handler in App; an error with another status: a line in REASONS;
- a parameter: a line in PARAMETERS, and its name in ROUTES; if it is an option of a job, also in Options and PLAIN;
- a field of a job: a line in VIEW, and a slot of Job if it is stored;
- a limit: a line in OPTIONS, which Service hands to whom it concerns;
- a way to end a job: Runner.cancel for a job that is not complete, Runner.end for the processes of one that runs.
"""
import sys
PYTHON: "rtot needs Python 3.6 or newer" = (3, 6)      # noqa: F722  an older one shows this line as its syntax error
if __name__ == "__main__":      # import the standard library alone, not a json.py beside this file
    LIBRARY = sys.modules["encodings"].__file__.rpartition("encodings")[0][:-1]
    sys.path[:] = [path for path in sys.path
                   if path.startswith(LIBRARY) and not path.endswith("-packages") or path.endswith("lib-dynload")]
import gc
if __name__ == "__main__":
    gc.disable()                # until it serves: the start makes no garbage, and looking for it takes 1.2 of 26 ms

import argparse
import array
import bisect
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

MIB = 1 << 20
LINUX = sys.platform.startswith("linux")

# What GET /ping and the page do not need is imported at the first authenticated request: it is 6.7 MB.  All at once,
# since later there may be no descriptor to import it with.
LATER = ("codecs", "ctypes", "fcntl", "json", "pwd", "resource", "shutil", "struct", "subprocess", "tempfile",
         "termios", "traceback", "urllib.parse")

# Jobs.
GRACE = 5.0             # s from SIGTERM to SIGKILL
HELD_AFTER = 0.5        # s after the exit for which a job waits for output that something else still holds
LOOK_AFTER = 0.1        # s between two looks at who is left to be killed, or has a terminal open again
KILL_ROUNDS = 50        # of SIGKILL, before rtot gives up on a process that can't be killed
LOOK_AT_ALL_AFTER = 0.05        # s from a SIGCHLD to a look at all children, which costs 1 us a child
MANY_SILENT = 100       # processes whose output has ended: no more are asked at each SIGCHLD whether they have exited
READ_SIZE = 1 << 16     # bytes read at a time: what a pipe holds (pipe(7))
WIDE_PIPE = 1 << 20     # bytes that a pipe is made to hold that was found full, the most without privileges (pipe(7))
WIDE_READ_SIZE = 1 << 18        # bytes read at a time from such a pipe
WIDE_PIPES = 12         # at a time: the pipes of a user may hold 64 MiB together, and further ones hold a page each
F_SETPIPE_SZ = 1031     # fcntl(2); Python knows it from 3.10 on
RESERVED = 24           # descriptors that jobs leave to connections, if there are many
SPARE = 8               # descriptors that connections leave to scripts and modules
TERMINAL_LINE = 4095    # bytes that a terminal takes of a line: termios(3), canonical mode
STEP = 0.003            # s that a task may run before it lets others run

# Output.
FOLD = 1 << 16          # bytes, up to which small reads are folded into one chunk
BATCH = 500             # pieces of an output, or jobs of a list, that are looked at in one go: some 2 ms
TRIM_SIZE = 16 * MIB    # bytes of output that were forgotten, after which malloc is asked to give its pages back
TRIM_AFTER = 1.0        # s until it is asked, so that many deletions are one
OWNER_PATIENCE = 30.0   # s without a byte read, for which a job waits for the client that started it by follow
PACE, PATIENCE = 4 * MIB, 0.25  # bytes in s that another follower has to read to be waited for

# HTTP.
BACKLOG = 1024
ACCEPTS, TLS_ACCEPTS = 64, 4    # connections accepted in a turn of the loop; a TLS handshake takes 1 ms
MAX_LINE = 32768        # bytes of a request line or a header; RFC 9112, 3 asks for 8000 at least
MAX_HEAD = 65536        # bytes of all headers
MAX_HEADERS = 100
MAX_BUFFER = 1 << 18    # bytes taken of a client before they are wanted, so that its end is noticed
SEND_TIMEOUT = 300.0    # s for which a client may take nothing of an answer
WRONG_SECRET = 1.0      # s before the answer to a wrong secret
DRAIN = 1.0             # s for which answers may still be sent when all jobs have ended
# Before it closes, rtot throws away what a client still sends, so many s and bytes of it: it would miss the answer.
LINGER, LINGER_BYTES = 2.0, 16 * MIB
KNOWN_LINGER, KNOWN_LINGER_BYTES = 60.0, 1 << 30        # of one that has the secret, as long as it sends
PROMPT = 1.0            # s in which a new client sends its first head, if it means to
SLICE = 1 << 16         # bytes of an answer that are made at a time
KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))   # s, s, probes; tcp(7) has 2 hours
LOG_LINE = 4000         # characters: a pipe takes PIPE_BUF bytes at once, or none (pipe(7))
SWEEP_AFTER = 0.5       # s after the start


# ---------------------------------------------------------------------------------------------- errors

REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 411: "Length Required", 413: "Content Too Large",
    414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 424: "Failed Dependency",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 505: "HTTP Version Not Supported", 507: "Insufficient Storage",
}

# The kinds of errors, with the status of each; most are called like the status.
KINDS = {reason.lower(): status for status, reason in REASONS.items()}
KINDS.update({"malformed request": 400, "invalid job number": 400, "not authorized": 401, "no such job": 404})
# Those after which the connection closes, since it can't be told where the next request begins.
CLOSING = frozenset(("malformed request", "not authorized", "request timeout", "length required", "content too large",
                     "uri too long", "request header fields too large", "not implemented",
                     "http version not supported"))


class Error(Exception):
    """Why a request can't be served: raised anywhere, answered in one place, Connection._serve_one.

    `kind` is one of KINDS, `error` in the JSON; `message` says what would be right.  `headers` are pairs for the
    answer, `extra` stands before the two in its JSON.
    """

    def __init__(self, kind, message, headers=(), **extra):
        super().__init__(message)
        self.kind, self.message, self.headers, self.extra = kind, message, list(headers), extra
        self.status, self.closes = KINDS[kind], kind in CLOSING


class Canceled(Exception):
    """Ends a task where it waits: nobody needs what it does any more."""


class ClientGone(Canceled):
    """The client has disconnected: there is no one to answer."""


# ------------------------------------------------------------------------------------------------ loop

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
LONGEST_WAIT = 3600.0   # s at a time; epoll_wait(2) takes 24 days at most
GENERATIONS = 3         # of tasks that are made ready by those before them, in a turn of the loop
RETRY_AFTER = 0.02      # s after which a timer is called again that found no memory


class Task:
    """A coroutine that the loop runs from one wait to the next.

    Whoever waits looks again when it is woken whether there is reason to go on, so a wake-up too many does no harm.
    """

    __slots__ = ("loop", "coroutine", "waits", "_started", "_error")

    def __init__(self, loop, coroutine):
        self.loop, self.coroutine, self.waits, self._started, self._error = loop, coroutine, False, False, None
        loop.tasks.add(self)
        loop.ready.append(self)

    def wake(self):
        """Make the task ready, if it waits."""
        if self.waits:
            self.waits = False
            self.loop.ready.append(self)

    def throw(self, error):
        """Raise `error` where the task waits, or else where it waits next; never before its first step."""
        self._error = error
        self.wake()

    def withdraw(self):
        """Forget an error that was not raised yet."""
        self._error = None

    def step(self):
        """Run the task until it waits or ends; what it raises is the caller's."""
        error = self._error if self._started else None
        try:
            if error is not None:
                self._error = None
                self.coroutine.throw(error)
            else:
                self._started = True
                self.coroutine.send(None)
        except (StopIteration, Canceled):
            self.loop.tasks.discard(self)
        except BaseException:
            self.loop.tasks.discard(self)
            raise
        finally:
            error = None            # its traceback has this frame: they would wait for the garbage collector
        if self._error is not None:
            self.wake()


class Condition:
    """Something that tasks wait for; like threading.Condition, but there is no lock."""

    __slots__ = ("loop", "_waiters")

    def __init__(self, loop):
        self.loop, self._waiters = loop, None       # tasks, as the keys of a dict, in their order

    def notify_all(self):
        if self._waiters:
            waiters, self._waiters = self._waiters, None
            for task in waiters:
                task.wake()

    async def wait_for(self, predicate, timeout=None):
        """Wait until predicate() is true, which is asked at each notify_all; return its last result.

        Waits `timeout` seconds at most; None is no limit.
        """
        result = predicate()
        if result or timeout is not None and timeout <= 0:
            return result
        task = self.loop.current
        timer = None if timeout is None else self.loop.call_later(timeout, task.wake)
        try:
            while not result and (timer is None or timer[2]):
                if self._waiters is None:
                    self._waiters = {}
                self._waiters[task] = None
                await self.loop.suspend()
                result = predicate()
            return result
        finally:
            if self._waiters:
                self._waiters.pop(task, None)
            if timer:
                self.loop.cancel(timer)


class Deadline:
    """`with Deadline(loop, seconds, error):` raises the error in the current task if the block takes longer.

    None is no limit.
    """

    def __init__(self, loop, seconds, error):
        self._loop, self._seconds, self._error, self._timer = loop, seconds, error, None

    def __enter__(self):
        if self._seconds is not None:
            task, error = self._loop.current, self._error
            self._timer = self._loop.call_later(self._seconds, lambda: task.throw(error))

    def __exit__(self, *_):
        if self._timer:
            self._loop.cancel(self._timer)


class Loop:
    """Runs tasks, and calls functions when a descriptor is ready or a time has come; in one thread.

    `report` is called with what a function or a task raised that nobody foresaw, `relieve` when memory is short.
    """

    def __init__(self):
        self.ready, self.tasks, self.current = collections.deque(), set(), None
        self.report, self.relieve = sys.excepthook, gc.collect
        self._selector, self._watched = selectors.DefaultSelector(), {}     # the callback of each descriptor, in a list
        self._timers, self._timer_count, self._canceled = [], itertools.count(), 0
        self._stepped, self._stopped = 0.0, False       # when the current task was resumed

    def spawn(self, coroutine):
        """Run the coroutine as a Task, from the next turn on; return the Task."""
        return Task(self, coroutine)

    @types.coroutine
    def suspend(self):
        """Let others run until the current task is woken."""
        self.current.waits = True
        yield

    @types.coroutine
    def turn(self):
        """Let all others run that are ready."""
        self.ready.append(self.current)
        yield

    async def breathe(self):
        """Let others run, if the current task has run for STEP: called by those who may have much to do."""
        if time.monotonic() - self._stepped > STEP:
            await self.turn()

    async def sleep(self, seconds):
        await Condition(self).wait_for(lambda: False, seconds)

    def watch(self, fd, events, callback):
        """Call callback(events) in each turn in which the descriptor is ready for READ or WRITE, as `events` says."""
        if not events:
            self.unwatch(fd)
        elif fd in self._watched:
            self._selector.modify(fd, events, self._watched[fd])
            self._watched[fd][:] = [callback]
        else:
            callbacks = [callback]
            self._selector.register(fd, events, callbacks)
            self._watched[fd] = callbacks

    def unwatch(self, fd):
        """Watch it no more, if it was; before it is closed, since a duplicate would go on reporting (epoll(7))."""
        callbacks = self._watched.pop(fd, None)
        if callbacks:
            callbacks.clear()       # so also what was selected in this turn already
            self._selector.unregister(fd)

    def call_later(self, seconds, function):
        """Call function() after that time; return the timer, for cancel().  timer[2] is None once it was called."""
        timer = [time.monotonic() + seconds, next(self._timer_count), function]
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer):
        if timer[2]:
            timer[2] = None
            self._canceled += 1
        if self._canceled > 1000 and self._canceled > len(self._timers) // 2:
            self._timers = [each for each in self._timers if each[2]]
            heapq.heapify(self._timers)
            self._canceled = 0

    def catch_signals(self, handlers):
        """Call handlers[number]() in the loop when that signal comes.

        Python writes its number to a pipe; not to a pair of sockets, which was full after 278.
        """
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self.watch(reading, READ, lambda events: [
            self._call(handlers[number]) for number in set(os.read(reading, READ_SIZE)) if number in handlers])
        for number in handlers:
            signal.signal(number, no_action)
        signal.set_wakeup_fd(writing)

    def run(self):
        """Run until stop()."""
        while not self._stopped:
            self._turn()

    def stop(self):
        self._stopped = True

    def close(self, seconds=1.0):
        """Cancel all tasks, and run them to their ends, for that many seconds at most."""
        until = time.monotonic() + seconds
        for task in list(self.tasks):
            task.throw(Canceled())
        while self.tasks and time.monotonic() < until:
            self._turn()
        signal.set_wakeup_fd(-1)
        self._selector.close()

    def _turn(self):
        timeout = 0 if self.ready else LONGEST_WAIT
        if self._timers:
            timeout = min(max(self._timers[0][0] - time.monotonic(), 0), timeout)
        for key, events in self._selector.select(timeout):
            for callback in key.data:           # none, if it is watched no more
                if not self._call(callback, events):
                    self.unwatch(key.fd)        # or it would fail again at once
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            function, timer[2] = timer[2], None
            if function:
                self._call(function, retry=True)
            else:
                self._canceled -= 1
        for _ in range(GENERATIONS):            # a few, since those who make each other ready would starve the rest
            for _ in range(len(self.ready)):
                self.current, self._stepped = self.ready.popleft(), time.monotonic()
                self._call(self.current.step)

    def _call(self, function, *args, retry=False):
        """Call it, and deal with what nobody foresaw, and with a lack of memory; return False for the first."""
        try:
            function(*args)
        except MemoryError:
            try:
                self.relieve()
            except MemoryError:     # whoever finds too little next tries again
                pass
            if retry:
                self.call_later(RETRY_AFTER, function)
        except Exception:
            self.report(*sys.exc_info())
            return False
        return True


def no_action(number, frame):
    """Handle a signal by doing nothing, which a child does not inherit, unlike SIG_IGN: execve(2)."""


# ---------------------------------------------------------------------------------------------- output

OUT, ERR, LOG = 0, 1, 2     # the streams of a job, and the log of both in the order in which they came
MARK = 32               # bytes that a mark of an Output takes


class Output:
    """What a job has printed: the log, of which each stream is a part, and the time of each piece.

    `start[which]` and `end[which]` are the offsets, in OUT, ERR or LOG, of the first byte kept and of the one behind
    the last.  When more than `limit` bytes are kept, the oldest are dropped.

    The bytes are in chunks, into which small reads are folded.  A mark is four numbers: where in OUT, ERR and LOG a
    piece begins, and its stamp: when it came, in ms since 1970, times 2, plus the stream.  Another stream or another
    millisecond makes a new one; when the marks take half of the limit, another second.
    """

    __slots__ = ("limit", "start", "end", "readers", "consumed", "_chunks", "_starts", "_marks")

    def __init__(self, limit):
        self.limit, self.start, self.end = limit, [0, 0, 0], [0, 0, 0]
        self.readers, self.consumed = (), None      # the followers; a Condition, see Capture._wait_for_readers
        self._chunks, self._starts, self._marks = [], [], ()    # and where each chunk begins in the log; an array

    @property
    def size(self):
        """The number of bytes kept."""
        return self.end[LOG] - self.start[LOG]

    @property
    def spare(self):
        """How many of the oldest bytes may be dropped without a loss for an owner, which reads the log."""
        owned = [reader.offset for reader in self.readers if reader.owner and reader.waited_for]
        return max(min(owned + [self.end[LOG]]) - self.start[LOG], 0)

    @property
    def cost(self):
        """The bytes of memory that count against a limit: of what is kept, or of its marks if these take more."""
        return max(self.size, len(self._marks) * 8)

    def append(self, stream, data):
        marked = self._mark(int(time.time() * 1000) << 1 | stream)
        chunks, end = self._chunks, self.end
        if chunks and len(chunks[-1]) + len(data) <= FOLD:
            if type(chunks[-1]) is bytes:       # the one print of a small job stays as small as it is
                chunks[-1] = bytearray(chunks[-1])
            chunks[-1] += data
        else:
            chunks.append(data)
            self._starts.append(end[LOG])
        end[LOG] += len(data)
        end[stream] += len(data)
        # For a mark too many, as many bytes go as it takes: in the end they free older marks.
        dropped = max(self.size - self.limit, MARK if marked and self._is_crowded(1) else 0)
        if dropped:
            self.drop(min(dropped, self.size))

    def _mark(self, stamp):
        """Note that a piece begins; return whether that took a mark."""
        marks = self._marks = self._marks or array.array("q")
        last = marks[-1] if marks else None
        if last == stamp or last and (last ^ stamp) & 1 == 0 and self._is_crowded(2) and abs(stamp - last) < 2000:
            return False
        marks.extend((*self.end, stamp))
        return True

    def _is_crowded(self, part):
        """Do the marks take more memory than the limit divided by `part`?"""
        return len(self._marks) * 8 > max(self.limit // part, BATCH * MARK)

    def would_drop(self, count):
        """Return how many bytes an append of `count` would push out, at most."""
        return max(self.size + count - self.limit, MARK if self._is_crowded(1) else 0)

    def drop(self, count):
        """Forget the `count` oldest bytes; a chunk is freed with its last byte."""
        start, marks = self.start[LOG] + count, self._marks
        whole = len(self._chunks) if start == self.end[LOG] else bisect.bisect_right(self._starts, start) - 1
        del self._chunks[:whole], self._starts[:whole]
        index = self._find(LOG, start)
        for which in (OUT, ERR, LOG):
            inside = start - marks[index + LOG] if which in (marks[index + 3] & 1, LOG) else 0
            self.start[which] = marks[index + which] + inside
        if index >= max(len(marks) // 8, 1):        # seldom, since what follows moves
            del marks[:index]

    def read(self, which, offset, limit):
        """Return bytes from `offset` on, some but at most `limit`; b"" at the end.  It may not be before the start."""
        if which == LOG or self.end[which] == self.end[LOG]:    # all that was printed is in this stream
            return self._slice(offset, limit)
        parts = []
        while limit > 0 and offset < self.end[which] and len(parts) < BATCH:
            position, size, _ = self._piece(which, offset)
            parts.append(self._slice(position, min(size, limit)))
            offset += len(parts[-1])
            limit -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_piece(self, position, limit):
        """Return (stream, ms since 1970, bytes) of what came together at a position of the log, before its end."""
        _, size, stamp = self._piece(LOG, position)
        return stamp & 1, stamp >> 1, self._slice(position, min(size, limit))

    def _find(self, which, offset):
        """Return the index of the mark of the piece that has an offset, or of the last."""
        marks, low, high = self._marks, 0, len(self._marks) // 4
        while high - low > 1:
            middle = (low + high) // 2
            if marks[middle * 4 + which] <= offset:
                low = middle
            else:
                high = middle
        return low * 4

    def _piece(self, which, offset):
        """Return (position in the log, size of the piece from there on, stamp) of an offset before the end."""
        marks, index = self._marks, self._find(which, offset)
        position = marks[index + LOG] + offset - marks[index + which]
        end = marks[index + 4 + LOG] if index + 4 < len(marks) else self.end[LOG]
        return position, end - position, marks[index + 3]

    def _slice(self, position, limit):
        """Return bytes of the log, from one chunk."""
        if position >= self.end[LOG]:
            return b""
        index = bisect.bisect_right(self._starts, position) - 1
        begin = position - self._starts[index]
        data = self._chunks[index][begin:begin + limit]
        return data if type(data) is bytes else bytes(data)

    async def tail(self, which, lines, breathe):
        """Return the offset at which the last `lines` lines begin; breathe() is awaited now and then."""
        offset, wanted = self.end[which], None      # newlines to find from the end
        while lines and offset > self.start[which]:
            begin, data = max(offset - FOLD, self.start[which]), b""
            while begin + len(data) < offset:
                data += self.read(which, begin + len(data), offset - begin - len(data))
                await breathe()
                lost = max(self.start[which] - begin, 0)        # meanwhile
                begin, data = begin + lost, data[lost:]
            if wanted is None:
                wanted = lines + data.endswith(b"\n")       # the one that ends the last line begins none
            count = data.count(b"\n")
            if count >= wanted:
                return begin + [match.end() for match in re.finditer(b"\n", data)][-wanted]
            wanted -= count
            offset = begin
        return max(offset, self.start[which])


class Reader:
    """The place of a follower in an output: the next byte that it reads is at `offset` of OUT, ERR or LOG.

    Before bytes that it has not read would be dropped, the job waits for it while it reads PACE bytes in PATIENCE
    seconds.  `owner`, the Connection of the client that started the job or None, is waited for while it reads at all.
    """

    __slots__ = ("output", "which", "offset", "owner", "waited_for", "since")

    def __init__(self, output, which, offset, owner=None):
        self.output, self.which, self.offset, self.owner = output, which, offset, owner
        self.waited_for, self.since = True, None    # (progress, time) when the job began to wait for it
        output.readers += (self,)

    def close(self):
        self.output.readers = tuple(reader for reader in self.output.readers if reader is not self)
        self.advance(0)

    @property
    def has_lost(self):
        """Were bytes dropped that it has not read?"""
        return self.offset < self.output.start[self.which]

    def advance(self, count):
        """Note that the next `count` bytes were read."""
        self.offset += count
        if self.output.consumed:
            self.output.consumed.notify_all()

    def would_lose(self, dropped):
        """Would a drop of so many bytes take what this reader has still to read, and is waited for?"""
        output, which = self.output, self.which
        return (dropped > 0 and self.waited_for and not self.has_lost
                and self.offset < min(output.end[which], output.start[which] + dropped))

    def check_pace(self, now):
        """Return how many more seconds it is waited for; these begin again when it has read enough.

        The system may hold megabytes for an owner that reads slowly, so what it has passed on counts too.
        """
        progress = self.offset - self.owner.unsent() if self.owner else self.offset // PACE
        if self.since is None or progress != self.since[0]:
            self.since = progress, now
        remaining = self.since[1] + (OWNER_PATIENCE if self.owner else PATIENCE) - now
        self.waited_for = remaining > 0
        return remaining


class TotalOutput:
    """The output of all jobs together.  When it costs more than `limit` bytes, what was printed longest ago is dropped.

    What an owner has still to read is dropped only when nothing else is left.
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

    def delay(self, output, count):
        """Return for how many seconds `count` bytes more wait for followers, at most; 0 is not at all."""
        now, excess = time.monotonic(), self.size + count - self.limit
        for other in self._kept if excess > 0 else ():
            excess -= other.spare
            if excess <= 0:
                break
        dropped = max(output.would_drop(count), count if excess > 0 else 0)
        delays = [reader.check_pace(now) for reader in output.readers if reader.would_lose(dropped)]
        if excess > 0 and any(reader.owner and reader.waited_for for reader in output.readers):
            delays.append(LOOK_AFTER)       # until another owner has read
        return min((delay for delay in delays if delay > 0), default=0)

    def forget(self, output):
        """Keep nothing of it; return how many bytes that frees."""
        kept = self._kept.pop(output, 0)
        self.size -= kept
        return kept


def give_memory_back():
    """Let malloc return its free pages to the host: 350 MiB of output stayed resident without.

    malloc_trim(3) is GNU's; other C libraries do so by themselves, or can't.
    """
    try:
        import ctypes
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, ImportError, OSError):
        pass


# ------------------------------------------------------------------------------------------------ jobs

STATES = {"new": ("running", "complete"), "running": ("complete",), "complete": ()}     # from a state, where it can go
CANCELED = "canceled before it started"

# The first server of this name was written in Go, and clients read its answers: exits, times and durations look like
# Go's.  This is what Go calls the signals that end a process (its syscall package, linux/amd64).
SIGNAL_WORDS = dict(pair.split(": ") for pair in (
    "HUP: hangup|INT: interrupt|QUIT: quit|ILL: illegal instruction|TRAP: trace/breakpoint trap|ABRT: aborted|"
    "BUS: bus error|FPE: floating point exception|KILL: killed|USR1: user defined signal 1|SEGV: segmentation fault|"
    "USR2: user defined signal 2|PIPE: broken pipe|ALRM: alarm clock|TERM: terminated|STKFLT: stack fault|"
    "XCPU: CPU time limit exceeded|XFSZ: file size limit exceeded|VTALRM: virtual timer expired|"
    "PROF: profiling timer expired|IO: I/O possible|PWR: power failure|SYS: bad system call").split("|"))
UNNAMED = {"STKFLT": 16} if LINUX else {}       # signal(7); Python knows it from 3.11 on


def signal_number(name):
    """Return the number of the signal INT or SIGINT, or None if there is none of that name."""
    name = re.sub("^SIG", "", name.upper())
    return int(getattr(signal, "SIG" + name, UNNAMED.get(name)) or 0) if re.fullmatch("[A-Z0-9]+", name) else None


def signal_words(number):
    """Return what Go's os.Signal.String() says: "killed" for 9, "signal 34" for one without a name."""
    return next((words for name, words in SIGNAL_WORDS.items() if signal_number(name) == number), "signal %d" % number)


# time.time_ns came with 3.7.
wall_ns = getattr(time, "time_ns", lambda: int(time.time() * 1e9))


@functools.lru_cache(maxsize=64)
def utc(form, seconds):
    """Return a time, in whole seconds since 1970, in a format of strftime(3)."""
    return time.strftime(form, time.gmtime(seconds))


@functools.lru_cache(maxsize=1024)
def go_time(ns):
    """Return a time in ns since 1970 as Go's time.Time.String() does; 0 is Go's zero time."""
    if not ns:
        return "0001-01-01 00:00:00 +0000 UTC"
    seconds, fraction = divmod(ns, 10 ** 9)
    digits = (".%09d" % fraction).rstrip("0").rstrip(".")
    return utc("%Y-%m-%d %H:%M:%S", seconds) + digits + " +0000 UTC"


def iso_time(ms):
    """Return a time in ms since 1970 as 2014-01-12T03:42:32.315Z."""
    return "%s.%03dZ" % (utc("%Y-%m-%dT%H:%M:%S", ms // 1000), ms % 1000)


@functools.lru_cache(maxsize=1024)
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
    return str(data, "utf-8", "replace")


DEFAULT_TERMINAL = (24, 80)         # rows, columns

# How a job is to run.  args, cwd and the pairs of env are bytes, as the kernel has them; timeout in s, max_output in
# bytes; None is no timeout, the server's directory, no terminal, the server's limit.
Options = collections.namedtuple("Options", "args env cwd timeout label stdin tty max_output")
PLAIN = Options(args=(), env=(), cwd=None, timeout=None, label="", stdin=False, tty=None, max_output=None)


class Job:
    """A record of one run.  Runner writes its state and times, Capture its output, JobStore its id; others read.

    `created`, `started` and `completed` are ns since 1970, 0 until then; `began` and `took` seconds of the monotonic
    clock, which has no steps.  `changed` is notified of output and of each change of state, `ended` of the end alone.
    """

    __slots__ = ("id", "script", "options", "state", "created", "started", "completed", "began", "took",
                 "exit", "exit_code", "timed_out", "held", "pid", "output", "changed", "ended")

    def __init__(self, loop, script, options, limit):
        self.script, self.options, self.output = script, options, Output(limit)
        self.state, self.created, self.started, self.completed = "new", wall_ns(), 0, 0
        self.began = self.took = 0.0
        self.exit, self.timed_out, self.held = "", False, False
        self.id = self.exit_code = self.pid = None
        self.changed, self.ended = Condition(loop), Condition(loop)

    @property
    def href(self):
        return "/jobs/%d" % self.id

    @property
    def duration(self):
        """Seconds for which it has run."""
        return time.monotonic() - self.began if self.state == "running" else self.took

    def is_complete(self):
        return self.state == "complete"

    def has_failed(self):
        return self.is_complete() and (self.exit_code != 0 or self.timed_out)

    def _move(self, state):
        if state not in STATES[self.state]:
            raise RuntimeError("job %d cannot go from %s to %s" % (self.id, self.state, state))
        self.state = state

    def start(self, pid):
        self._move("running")
        self.pid, self.started, self.began = pid, wall_ns(), time.monotonic()
        self.changed.notify_all()

    def complete(self, text, code, held=False):
        """End with what `exit` is to say, "" on success, and the exit code."""
        self._move("complete")
        self.exit, self.exit_code, self.held, self.completed = text, code, held, wall_ns()
        self.took = time.monotonic() - self.began if self.began else 0.0
        self.changed.notify_all()
        self.ended.notify_all()


def working_directory():
    """Return ours, or b"" if it was removed."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b""


def first_line(script):
    """Return the script's first line that is neither empty nor a comment, as text; of a long one the beginning."""
    lines = [line.strip() for line in script[:4096].split(b"\n")]
    return readable(next((line for line in lines if line and not line.startswith(b"#")), lines[0])[:200])


class Text:
    """A large value of a field, which is made as it is sent: `pieces` yields its bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self):
        """Yield it as text, a piece at a time; U+FFFD for what is not UTF-8."""
        import codecs
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in self.pieces:
            yield decoder.decode(piece)
        yield decoder.decode(b"", True)


def slices(data):
    """Yield the bytes in slices, without a copy."""
    view = memoryview(data)
    for begin in range(0, len(data), SLICE):
        yield view[begin:begin + SLICE]


def kept_pieces(output, which, offset, end):
    """Yield the bytes of an output from an offset to another; ClientGone if some are dropped meanwhile."""
    while offset < end:
        if offset < output.start[which]:
            raise ClientGone()      # so that the connection breaks before the end that was announced
        data = output.read(which, offset, min(end - offset, SLICE))
        offset += len(data)
        yield data


def kept_text(output, which):
    """Return what is kept of a stream as text, or if that is large as a Text."""
    start, end = output.start[which], output.end[which]
    if start == end:
        return ""
    pieces = kept_pieces(output, which, start, end)
    return readable(b"".join(pieces)) if end - start <= SLICE else Text(pieces)


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
    "args": lambda job: [readable(arg) for arg in job.options.args],
    "cwd": lambda job: readable(job.options.cwd or working_directory()),
    "timeout": lambda job: job.options.timeout,
    "tty": lambda job: job.options.tty and dict(zip(("rows", "cols"), job.options.tty)),
    "script": lambda job: readable(job.script) if len(job.script) <= SLICE else Text(slices(job.script)),
    "line": lambda job: first_line(job.script),
    "out_bytes": lambda job: job.output.end[OUT],
    "err_bytes": lambda job: job.output.end[ERR],
    "duration": lambda job: round(job.duration, 6),
}
ALWAYS = frozenset("href id exit state held timed_out dropped".split())
LEFT_OUT_WHEN_EMPTY = frozenset("out err exit".split())
LEFT_OUT_UNLESS_ASKED = frozenset("held timed_out dropped".split())      # or when they are not false or 0
DEFAULT_FIELDS = tuple("href id out err exit state start complete create".split())
TEXT_FIELDS = tuple("id state exit duration label line".split())


@functools.lru_cache(maxsize=64)
def shown(fields):
    """Return (name, view, whether to leave it out when it is empty) of what is to be shown of a job."""
    return [(name, view, name in LEFT_OUT_WHEN_EMPTY or name in LEFT_OUT_UNLESS_ASKED and name not in fields)
            for name, view in VIEW.items() if name in fields or name in ALWAYS]


def value_json(value):
    """Yield a value as it stands in the JSON of a job."""
    import json
    if isinstance(value, Text):
        yield b'"'
        for text in value.decode():
            yield json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "replace")
        yield b'"'
    else:
        yield json.dumps(value, ensure_ascii=False, indent=2).replace("\n", "\n      ").encode("utf-8", "replace")


def jobs_json(jobs, fields):
    """Yield the jobs as JSON, in pieces of bytes: the `fields`, and those that are always shown."""
    import json
    encode, lead = json.encoder.encode_basestring, '{\n  "jobs": [\n    {'
    for job in jobs:
        text = lead
        for name, view, may_be_left_out in shown(fields):
            value = view(job)
            if not value and may_be_left_out:
                continue
            text += '\n      "%s": ' % name
            if type(value) is str:      # most are; JSONEncoder takes twice the time
                text += encode(value) + ","
            elif type(value) is int:
                text += "%d," % value
            else:
                yield text.encode("utf-8", "replace")
                yield from value_json(value)
                text = ","
        yield text[:-1].encode("utf-8", "replace")      # without the last comma
        lead = "\n    },\n    {"
    yield b"\n    }\n  ]\n}\n" if jobs else b'{\n  "jobs": []\n}\n'


def escape_separators(text):
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def jobs_text(jobs, fields):
    """Yield the jobs as lines of values separated by tabs, in pieces of bytes."""
    import json
    for job in jobs:
        line, separator = "", ""
        for value in (VIEW[name](job) for name in fields):
            line += separator
            if isinstance(value, Text):
                for text in value.decode():
                    yield (line + escape_separators(text)).encode("utf-8", "replace")
                    line = ""
            elif value is not None:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                line += escape_separators(text)
            separator = "\t"
        yield (line + "\n").encode("utf-8", "replace")


class JobStore:
    """The jobs, by id.  Ids count from 0 and are never used again.

    `keep` complete jobs are kept at most, 0 is all; all scripts together may have `max_scripts` bytes.
    """

    def __init__(self, keep, max_scripts):
        self.keep, self.max_scripts, self._script_bytes, self._next_id = keep, max_scripts, 0, 0
        self._jobs = collections.OrderedDict()
        self._complete = collections.OrderedDict()      # those, in the order of their ends

    def add(self, job):
        """Give the job its id and keep it."""
        if self._script_bytes + len(job.script) > self.max_scripts:
            raise Error("insufficient storage", (
                "the scripts of all jobs take %d bytes, and may take %d: delete complete jobs, as by DELETE "
                "/jobs?state=complete, or start rtot with more --max-total" % (self._script_bytes, self.max_scripts)))
        self._script_bytes += len(job.script)
        job.id = self._next_id
        self._next_id += 1
        self._jobs[job.id] = job

    def __contains__(self, job):
        return job.id in self._jobs

    def get(self, number):
        """Return the job, or None."""
        return self._jobs.get(number)

    def remove(self, job):
        """Forget the job, if it is there."""
        if self._jobs.pop(job.id, None):
            self._complete.pop(job.id, None)
            self._script_bytes -= len(job.script)

    def retire(self, job):
        """Note that the job is complete; forget and return those beyond `keep`, the oldest first."""
        if job in self:
            self._complete[job.id] = job
        forgotten = []
        while self.keep and len(self._complete) > self.keep:
            forgotten.append(next(iter(self._complete.values())))
            self.remove(forgotten[-1])
        return forgotten

    def select(self, state=None, label=None, last=None):
        """Return the jobs in that state and with that label, in order of id: the `last` of them; None is any or all."""
        newest_first = (job for job in reversed(self._jobs.values())
                        if (state is None or job.state == state) and (label is None or job.options.label == label))
        return list(itertools.islice(newest_first, last))[::-1]


# --------------------------------------------------------------------------------------------- scripts

SHEBANG_SIZE = 256      # bytes that the kernel reads of a script (linux/binfmts.h, BINPRM_BUF_SIZE)


def parse_shebang(script):
    """Return (interpreter, argument or None) as the kernel would read them from the first 256 bytes.

    The rules are those of Linux's fs/binfmt_script.c: one argument, blanks around it cut, no newline needed at the
    end of the file.  OSError ENOEXEC or EACCES for what the kernel would not take.
    """
    head = script[:SHEBANG_SIZE].ljust(SHEBANG_SIZE, b"\0")
    end = head.find(b"\n")
    if end < 0:
        end = SHEBANG_SIZE - 1
        if not re.search(b"[ \t\0]", head[2:].lstrip(b" \t")):     # the name may be cut: not to be run
            raise os_error(errno.ENOEXEC)
    line = head[2:end].strip(b" \t")
    if not line:
        raise os_error(errno.ENOEXEC)
    name, blanks, argument = re.match(b"([^ \t\0]*)([ \t]*)([^\0]*)", line).groups()
    if not name:
        raise os_error(errno.EACCES)
    return name, argument if blanks else None


def os_error(number):
    return OSError(number, os.strerror(number))


def explain_failure(script, code):
    """Return what is probably wrong with a script that ended with that exit code, to be told in its errors; or b""."""
    first, newline, _ = script.partition(b"\n")
    if code and (first.endswith(b"\r") or b"\r\n" in script):
        return (b"rtot: lines of the script end in a carriage return (CR), which is a part of them on Unix: "
                b"send it with Unix line ends, as by sed 's/\\r$//'\n")
    if code in (126, 127) and script.startswith(b"#!") and not newline:
        return (b"rtot: the script is a single #! line: curl -d @file takes the newlines out of a file, "
                b"--data-binary @file does not\n")
    return b""


class Workspace:
    """The server's directory of scripts: 0700, locked by flock(2) while the server lives, gone after it.

    One whose server was killed is not locked any more, and the next server sweeps it.
    """

    PREFIX, FALLBACK = "rtot-", "/dev/shm"      # where a host that is mounted read-only may still be written

    def __init__(self):
        self._directory, self._fd, self._names = None, None, itertools.count(1)

    async def sweep(self, breathe):
        """Remove the directories of servers that were killed; breathe() is awaited now and then."""
        directory = os.environ.get("TMPDIR") or "/tmp"          # tempfile knows more, but takes 0.6 MB
        for place in {directory if os.path.isdir(directory) else "/tmp", self.FALLBACK}:
            try:
                with os.scandir(place) as entries:
                    for entry in entries:
                        if re.fullmatch(self.PREFIX + "[a-z0-9_]{8}", entry.name) and self._is_ours(entry):
                            self._remove_unlocked(entry.path)
                        await breathe()
            except OSError:                 # there is none, or no descriptor
                pass

    @staticmethod
    def _remove_unlocked(path):
        import fcntl
        fd = None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(path):
                os.unlink(os.path.join(path, name))
            os.rmdir(path)
        except OSError:                     # its server lives, or there are no locks here, or it is gone meanwhile
            pass
        finally:
            if fd is not None:
                os.close(fd)

    @staticmethod
    def _is_ours(entry):
        """Can a server of our user have made it?  Then it is 0700, with files alone, which have numbers for names."""
        def owner_and_mode(entry):
            status = entry.stat(follow_symlinks=False)
            return status.st_uid, status.st_mode & ~(stat.S_ISGID | 0o100)      # rtot 1.0 made files of 0600
        try:
            with os.scandir(entry.path) as files:
                return owner_and_mode(entry) == (os.geteuid(), stat.S_IFDIR | 0o600) and all(
                    re.fullmatch("[0-9]+", file.name, re.ASCII) and owner_and_mode(file)[1] == stat.S_IFREG | 0o600
                    for file in files)
        except OSError:                     # gone meanwhile, or another's
            return False

    def _make(self):
        """Make the directory and lock it; again, if a sweeper came between the two."""
        import fcntl
        import tempfile
        while self._directory is None:
            try:
                path = tempfile.mkdtemp(prefix=self.PREFIX)
            except OSError:
                path = tempfile.mkdtemp(prefix=self.PREFIX, dir=self.FALLBACK)
            try:
                self._fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            except OSError:
                os.rmdir(path)
                raise
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._fd)
                continue
            except OSError:                 # there are no locks here: nobody can sweep it, either
                pass
            self._directory = os.fsencode(os.path.abspath(path))

    def _create(self):
        """Return (path, descriptor) of a new file, in a directory that is made if there is none (any more)."""
        if self._directory is None:
            self._make()
        path = b"%s/%d" % (self._directory, next(self._names))
        try:        # executable, for a script that runs itself: exec flock "$0" "$0"
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
        except FileNotFoundError:           # somebody has cleaned the temporary directory
            os.close(self._fd)
            self._directory = None
            return self._create()

    def write(self, data):
        """Return the path of a file that holds all of `data`."""
        try:
            path, fd = self._create()
        except OSError as error:
            raise Error("insufficient storage", "no temporary directory can be written: %s; name one by TMPDIR"
                        % error.strerror) from error
        try:
            rest = data
            while rest:                     # write(2) may take a part
                rest = rest[os.write(fd, rest):]
        except OSError as error:
            self.remove(path)
            raise Error("insufficient storage", "the script could not be written to %s: %s" % (
                readable(os.path.dirname(path)), error.strerror)) from error
        finally:
            os.close(fd)
        return path

    @staticmethod
    def remove(path):
        """Remove a script; nothing happens if somebody else has, or the directory can't be written any more."""
        try:
            os.unlink(path)
        except OSError:
            pass

    def close(self):
        """Remove the directory and all in it."""
        import shutil
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.close(self._fd)
            self._directory = None


# ---------------------------------------------------------------------------------------------- runner

# Variables for the server, which no job gets: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
SERVER_VARIABLES = (b"RTOT_SECRET", b"RTOT_ADDR", b"RTOT_LOG_FORMAT", b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES",
        b"LISTEN_PIDFDID", b"NOTIFY_SOCKET", b"WATCHDOG_PID", b"WATCHDOG_USEC")

# Can it be seen that a child has exited, without reaping it?  Not on macOS before Python 3.13, nor with PyPy.
HAS_WAITID = all(hasattr(os, name) for name in ("waitid", "P_PID", "WEXITED", "WNOHANG", "WNOWAIT", "CLD_EXITED",
                                                "CLD_DUMPED"))


class Process:
    """The processes of a job, which are one session, from the spawn until nobody signals them any more.

    `pipes`: the stream of each descriptor that is read.  `input`: the descriptor of standard input, None when closed;
    `terminal`: our side of a terminal, or None.
    `outcome`: how the script ended, as (text, code).  From then on its leader is a zombie, which pins the number of the
    session until it is `reaped`; `signalers` tasks still have a signal to send.
    `paused`: its output is not read for a moment; `feeding`: somebody writes to its input; `line`: the bytes so far of
    a line of a terminal.  `changed` is notified of all this.
    """

    __slots__ = ("job", "pid", "pipes", "input", "terminal", "outcome", "reaped", "signalers", "paused", "changed",
                 "feeding", "line")

    def __init__(self, job, loop):
        self.job, self.pid, self.outcome, self.pipes, self.input, self.terminal = job, None, None, {}, None, None
        self.reaped = self.paused = self.feeding = False
        self.signalers, self.line, self.changed = 0, b"", Condition(loop)


def read_stat(pid):
    """Return (session, process group) of a process that lives, from proc_pid_stat(5), or (None, None)."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):        # gone, or not for us to see
        return None, None
    lives = fields[0] not in b"ZX" or int(fields[17]) > 1       # a zombie may have threads that live
    return (int(fields[3]), int(fields[2])) if lives else (None, None)


class Sessions:
    """Who lives in each session: /proc is read in steps, and once for all who ask meanwhile."""

    def __init__(self, loop):
        self.loop, self._read = loop, Condition(loop)
        self._begun, self._finished, self._found = 0, 0, None

    async def members(self, session):
        """Return the process group of each living member by pid, as of now or later; None where that can't be told.

        That is without /proc, or with that of other processes (pid_namespaces(7)), or without a descriptor.
        """
        wanted = self._begun + 1
        while self._finished < wanted:
            if self._begun == self._finished:
                self._begun += 1
                self.loop.spawn(self._read_all())
            await self._read.wait_for(lambda current=self._begun: self._finished >= current)
        return None if self._found is None else self._found.get(session, {})

    async def _read_all(self):
        sessions, found = {}, None
        try:
            if os.readlink("/proc/self") != str(os.getpid()):
                raise FileNotFoundError
            for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
                session, group = read_stat(pid)
                sessions.setdefault(session, {})[pid] = group
                await self.loop.breathe()
            found = sessions
        except OSError:
            pass
        finally:
            self._found, self._finished = found, self._begun
            self._read.notify_all()


def may_signal(pid):
    """May we signal it?  Not what runs as another user, as by sudo."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def signal_group(group, *numbers):
    for number in numbers:
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):      # it has just ended; all of it is another user's
            pass


def set_size(terminal, rows, cols):
    """Tell a terminal its size, and its foreground by SIGWINCH: TIOCSWINSZ of ioctl_tty(2)."""
    import fcntl
    import struct
    import termios
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def open_null():
    """Return a descriptor from which nothing can be read: of /dev/null, or where that is missing, of a pipe."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        reading, writing = os.pipe()
        os.close(writing)
        return reading


class Spawner:
    """Starts a process as the leader of a session of its own, with the environment and limits that jobs get.

    `descriptors` are those that we may have; `nofile` is the (soft, hard) limit that jobs get, None for ours.
    """

    def __init__(self, descriptors, nofile):
        self.descriptors, self.nofile = descriptors, nofile
        self._environ = {name: value for name, value in os.environb.items()
                         if name and b"=" not in name       # posix_spawn takes no such name
                         and name not in SERVER_VARIABLES}
        self._environ[b"PWD"] = working_directory() or b"/"
        # 0.06 ms; Popen takes 0.13 ms, and before Python 3.10 it forks: 0.6 ms, and 6 ms with 500 MB held.
        self._can_spawn = hasattr(os, "posix_spawn")
        try:                # to come back from another; not where we may not enter it, as by sudo -u from /root
            self._home = os.open(".", os.O_PATH) if hasattr(os, "O_PATH") else None
        except OSError:
            self._home = None

    def start(self, executable, argv, ends, options):
        """Start it with `ends` as its descriptors 0 to 2; return its pid.

        OSError if that can't be, whose filename is options.cwd if that is why.
        """
        environ = self._environ
        if options.env or options.tty or options.cwd is not None:
            environ = dict(environ)
            if options.cwd is not None:
                environ[b"PWD"] = os.path.join(environ[b"PWD"], options.cwd)
            if options.tty:
                environ.setdefault(b"TERM", b"xterm")
                for name in (b"LINES", b"COLUMNS"):         # of the terminal that we were started from
                    environ.pop(name, None)
            environ.update(options.env)
        if self._can_spawn and (options.cwd is None or self._can_come_back()) and (LINUX or not options.tty):
            try:
                return self._spawn(executable, argv, ends, options, environ)
            except NotImplementedError:         # a C library without POSIX_SPAWN_SETSID: glibc before 2.26
                self._can_spawn = False
        return self._fork(executable, argv, ends, options, environ)

    def _can_come_back(self):
        """May we enter our working directory again?"""
        try:
            os.fchdir(self._home)
        except (OSError, TypeError):        # its permissions have changed; we have none
            return False
        return True

    def _spawn(self, executable, argv, ends, options, environ):
        """Start it by posix_spawn(3), which knows no directory and no limit: for a moment they are ours, too."""
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(ends)]
        if options.tty:     # a session leader that opens a terminal gets it as its controlling one: credentials(7)
            actions = [(os.POSIX_SPAWN_OPEN, 0, os.ttyname(ends[0]), os.O_RDWR, 0),
                       (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        late = self.nofile and max(ends) + RESERVED >= self.nofile[0]       # glibc takes no descriptor over the limit
        if options.cwd is not None:
            os.chdir(options.cwd)
        try:
            if self.nofile and not late:
                self._limit(0, self.nofile)
            # Python ignores these two signals; others have their defaults, or no_action.
            pid = os.posix_spawn(executable, argv, environ, setsid=True, file_actions=actions,
                                 setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
        finally:
            if self.nofile and not late:
                self._limit(0, (self.descriptors, self.nofile[1]))
            if options.cwd is not None:
                os.fchdir(self._home)
        if late:
            self._limit(pid, self.nofile)
        return pid

    @staticmethod
    def _limit(pid, limits):
        import resource
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        except (ProcessLookupError, PermissionError):       # it has just ended; it is another user's by now
            pass

    def _fork(self, executable, argv, ends, options, environ):
        import fcntl
        import resource
        import subprocess
        import termios

        def prepare():                          # in the child
            signal.set_wakeup_fd(-1)            # or a signal that it gets would be taken for ours
            if self.nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, self.nofile)
            if options.tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # Every other descriptor is close-on-exec (PEP 446); see prepare_process for inherited ones.
        try:
            child = subprocess.Popen(argv, executable=executable, stdin=ends[0], stdout=ends[1], stderr=ends[2],
                                     cwd=options.cwd, env=environ, close_fds=False, start_new_session=True,
                                     preexec_fn=prepare)
        except subprocess.SubprocessError:      # prepare() failed, and Popen does not say why
            raise os_error(errno.EPERM) from None
        child.returncode = 0                    # Runner waits for it, not Popen
        return child.pid


class Runner:
    """Owns every process: nobody else spawns, signals or reaps.  `run` is the life of a job.

    `parallel` jobs run at a time, 0 is all; the others wait as `new`.  `on_complete` is called with each complete job,
    `say` with a line for the log.

    What ends jobs: kill, for a client, signals at once and tells it whom it may not signal; cancel, for DELETE and a
    client that was attached, leaves that to a task; so does a timeout; stop ends all, and waits; kill_all leaves no
    grace.  All but a job that is new come to end(), which signals and sees to it that SIGKILL follows.
    """

    def __init__(self, loop, store, workspace, spawner, total, parallel, on_complete, say):
        self.loop, self.store, self.workspace, self.spawner = loop, store, workspace, spawner
        self.total, self.parallel, self.on_complete, self.say = total, parallel, on_complete, say
        self.sessions, self.capture = Sessions(loop), Capture(loop, store, total, self._has_exited)
        self._queue = collections.OrderedDict()     # the scripts of the jobs without a place, first come first served
        self._placed = set()                        # the jobs with a place
        self._processes, self._by_pid = {}, {}      # by the id of the job; by pid
        self._gone = Condition(loop)                # nothing is left of a process
        self._look = None                           # the timer of the next look at all children
        self._freed, self._trimming = 0, None       # bytes forgotten since malloc gave back; the timer of that
        self._null = open_null()

    @property
    def is_busy(self):
        """Does a job run, or wait to?"""
        return bool(self._placed or self._queue)

    # The life of a job.

    def submit(self, job, script):
        """Run a job from the file `script`, when its turn comes."""
        self._queue[job] = script
        self._start_next()

    def _start_next(self):
        """Start the jobs for which there is a place."""
        while self._queue and (not self.parallel or len(self._placed) < self.parallel):
            job, script = next(iter(self._queue.items()))
            self.loop.spawn(self.run(job, script))
            del self._queue[job]
            self._placed.add(job)

    async def run(self, job, script):
        """A task: the life of a job that has a place, until nothing is left to signal."""
        process = None
        try:
            if job.is_complete():               # canceled since it got its place
                return
            try:
                if self.parallel and not os.path.exists(script):        # somebody has cleaned the temporary directory
                    script = self.workspace.write(job.script)
                process = self._spawn(job, script)
            except (OSError, ValueError, MemoryError, Error) as error:
                self._not_started(job, script, error)
                return
            job.start(process.pid)
            timer = job.options.timeout and self.loop.call_later(job.options.timeout, lambda: self._time_out(process))
            await process.changed.wait_for(lambda: process.outcome)
            if timer:
                self.loop.cancel(timer)
            await self.capture.wait_for_end(process)
            self._explain(job, process.outcome[1])
            self._complete(job, *process.outcome, held=bool(process.pipes))
            await self.loop.turn()              # those who wait for the job go first: the rest takes 0.1 ms
            self.workspace.remove(script)
            script = None
            if process.pipes:
                await process.changed.wait_for(lambda: not process.pipes)
                job.held = False
            if process.signalers:
                await process.changed.wait_for(lambda: not process.signalers)
        finally:
            if process:
                self._clean_up(process)
            if script:
                self.workspace.remove(script)
            if not job.is_complete():           # the server ends, or has a fault that the log tells
                self._complete(job, "rtot gave it up", 126)

    def _complete(self, job, text, code, held=False):
        """Complete the job, let the next start, and forget those that are too many, or this one if it was deleted."""
        job.complete(text, code, held)
        self._placed.discard(job)
        self._start_next()
        self.on_complete(job)
        for each in self.store.retire(job) + ([] if job in self.store else [job]):
            self._release(each)

    def _not_started(self, job, script, error):
        """Complete a job whose script could not be started, with what Go's os/exec would say."""
        number = getattr(error, "errno", None) or (
            errno.ENOMEM if isinstance(error, MemoryError) else
            errno.ENOSPC if isinstance(error, Error) else errno.EINVAL)     # ValueError: what posix_spawn refuses
        if job.options.cwd is not None and getattr(error, "filename", None) == job.options.cwd:
            what = "chdir " + readable(job.options.cwd)
        else:
            try:
                what = "fork/exec " + readable(parse_shebang(job.script)[0])
            except OSError:
                what = "fork/exec " + readable(script)
        code = 127 if number == errno.ENOENT else 126
        self._explain(job, code)
        job.started = wall_ns()                 # when it was tried
        self._complete(job, "%s: %s" % (what, os.strerror(number).lower()), code)

    def _explain(self, job, code):
        hint = explain_failure(job.script, code)
        if hint:
            self.total.append(job.output, ERR, hint)

    def _spawn(self, job, script):
        """Start the job's script; return its Process.

        What runs is [interpreter, argument, script, ...], not the script: so it works where the directory is mounted
        noexec, and can't meet "text file busy", as 28 to 81 of 1600 did that were written beside forks.
        """
        interpreter, argument = parse_shebang(job.script)
        executable = interpreter if b"/" in interpreter else b"./" + interpreter    # no search of PATH
        argv = [interpreter] + ([argument] if argument is not None else []) + [script] + list(job.options.args)
        process, opened = Process(job, self.loop), []
        try:
            ends = self._open_ends(process, job.options, opened)
            for fd in process.pipes:
                self.capture.watch(process, fd)
            process.pid = self.spawner.start(executable, argv, ends, job.options)
        except BaseException:                   # nothing stays of what does not run
            for fd in process.pipes:
                self.loop.unwatch(fd)
            for fd in opened:
                os.close(fd)
            raise
        for fd in set(opened) - set(process.pipes) - {process.input}:
            os.close(fd)
        self._processes[job.id] = self._by_pid[process.pid] = process
        return process

    def _open_ends(self, process, options, opened):
        """Open pipes or a terminal; return the child's descriptors 0 to 2.  All are added to `opened`."""
        def pipe():
            opened.extend(os.pipe())
            return opened[-2:]
        if options.tty:
            process.terminal, slave = os.openpty()
            opened.extend((process.terminal, slave))
            opened.append(os.dup(process.terminal))
            process.pipes[process.terminal], process.input = OUT, opened[-1]
            set_size(slave, *options.tty)
            ends = (slave, slave, slave)
        else:
            (out, out_end), (err, err_end) = pipe(), pipe()
            process.pipes.update({out: OUT, err: ERR})
            stdin, process.input = pipe() if options.stdin else (self._null, None)
            ends = (stdin, out_end, err_end)
        for fd in list(process.pipes) + ([] if process.input is None else [process.input]):
            os.set_blocking(fd, False)
        if max(opened) >= self.spawner.descriptors - min(RESERVED, self.spawner.descriptors // 4):
            raise os_error(errno.EMFILE)        # or nobody could come in to delete a job
        return ends

    def _clean_up(self, process):
        """Have done with a process: nobody signals it any more."""
        self.capture.close(process)
        close_input(self.loop, process)
        if not process.outcome:                 # the server ends without waiting any longer
            signal_group(process.pid, signal.SIGKILL)
        if not process.reaped:
            os.waitpid(process.pid, 0 if process.outcome else os.WNOHANG)
        process.reaped = True
        del self._processes[process.job.id], self._by_pid[process.pid]
        self.capture.silent.discard(process)
        self._gone.notify_all()

    def _release(self, job):
        """Keep nothing of a job that was forgotten, and let malloc give that back in a moment."""
        self._freed += len(job.script) + self.total.forget(job.output)
        if self._freed >= TRIM_SIZE and not self._trimming:
            self._trimming = self.loop.call_later(TRIM_AFTER, self._trim)

    def _trim(self):
        self._freed, self._trimming = 0, None
        give_memory_back()

    def process(self, job):
        """Return the job's Process, or None before it starts, and when nothing is left of it."""
        return self._processes.get(job.id)

    # Exits.

    def child_exited(self):
        """SIGCHLD has come: find out who has exited, when this turn of the loop has read what they have printed.

        At once those are asked whose output has ended: nearly all who exit.  Signals that come together are one, and
        the output of some is held by others, so a moment later all are asked: 1 ms with 1,000 of them.
        """
        self._look = self._look or self.loop.call_later(LOOK_AT_ALL_AFTER, self._ask_all)
        self.loop.call_later(0, self._ask_silent)

    def _ask_silent(self):
        for process in list(self.capture.silent)[:MANY_SILENT]:
            self._has_exited(process)

    def _ask_all(self):
        self._look = self.loop.call_later(LOOK_AT_ALL_AFTER, self._ask_all)     # again, if something fails here
        for process in list(self._by_pid.values()):
            self._has_exited(process)
        self._reap_orphans()
        self.loop.cancel(self._look)
        self._look = None

    def _reap_orphans(self):
        """Reap the children of others that came to us as PID 1, or as a subreaper: they are no zombies for long."""
        try:
            with open("/proc/self/task/%d/children" % os.getpid()) as file:     # proc_pid_task(5)
                children = set(map(int, file.read().split()))
        except OSError:         # a kernel without it; then a zombie that is kept hides those behind it
            info = HAS_WAITID and self._by_pid and os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            children = {info.si_pid} if info else set()
        for pid in children - set(self._by_pid):
            os.waitpid(pid, os.WNOHANG)

    def _has_exited(self, process):
        """Has its leader exited?  Note how.  Its zombie stays, if the system allows for that."""
        if process.outcome:
            return True
        if HAS_WAITID:
            info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if not info:
                return False
            number, killed, dumped = info.si_status, info.si_code != os.CLD_EXITED, info.si_code == os.CLD_DUMPED
        else:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if not pid:
                return False
            process.reaped, killed = True, os.WIFSIGNALED(status)
            number, dumped = (os.WTERMSIG(status), os.WCOREDUMP(status)) if killed else (os.WEXITSTATUS(status), False)
        if killed:
            process.outcome = "signal: " + signal_words(number) + (" (core dumped)" if dumped else ""), 128 + number
        else:
            number &= 255       # BSD gives more bits
            process.outcome = "exit status %d" % number if number else "", number
        self.capture.silent.discard(process)
        process.changed.notify_all()
        return True

    # Signals.

    async def kill(self, job, number, grace):
        """Signal all processes of the job, as end() does; an Error if none is left, or some may not be signalled."""
        process = self.process(job)
        if process is None or process.reaped or process.outcome and not process.pipes:
            raise Error("conflict", "job %d %s" % (
                job.id, "is complete: there is nothing to signal" if job.state != "new" else
                "has not started: there is nothing to signal, but DELETE cancels it"))
        foreign = await self.end(process, number, grace)
        if foreign:
            raise Error("conflict", "process %s of job %d runs as another user, and rtot may not signal it"
                        % (" ".join(map(str, foreign)), job.id))

    async def end(self, process, number, grace):
        """Signal the whole session; `grace` seconds later SIGKILL what is left of it, None is never.

        Return the pids of those that may not be signalled.  That SIGKILL has a task of its own, so a later call does
        not put it off; before it, SIGCONT lets those go on that are stopped.
        """
        until = time.monotonic() + (grace or 0)
        process.signalers += 1          # so that the leader pins the number of the session
        try:
            foreign = await self._signal(process, number, *(() if grace is None else (signal.SIGCONT,)))
            if grace is not None:
                self.loop.spawn(self._kill_rest(process, until))
                process.signalers += 1
            return foreign
        finally:
            process.signalers -= 1
            process.changed.notify_all()

    async def _kill_rest(self, process, until):
        try:
            await process.changed.wait_for(lambda: process.outcome, until - time.monotonic())
            while time.monotonic() < until and not process.reaped and await self.sessions.members(process.pid) != {}:
                await self.loop.sleep(min(LOOK_AFTER, until - time.monotonic()))
            for _ in range(KILL_ROUNDS):        # who forks without a pause is not caught by one
                foreign = await self._signal(process, signal.SIGKILL)
                if process.reaped or set(await self.sessions.members(process.pid) or ()) <= set(foreign):
                    return
                await self.loop.sleep(LOOK_AFTER)
            self.say("job %d can't be ended: some of its processes have survived SIGKILL" % process.job.id)
        finally:
            process.signalers -= 1
            process.changed.notify_all()

    async def _signal(self, process, *numbers):
        """Signal all groups of the session; return the pids of those that may not be signalled.

        timeout(1), and a shell under set -m, put what they start into groups of their own.  The number of the leader's
        can't be a stranger's: it lives, or is a zombie that is not reaped.  Those of others are looked up again just
        before, since numbers come again.  Without /proc, only the leader's group is signalled.
        """
        if process.reaped:
            return []
        signal_group(process.pid, *numbers)
        members, groups = await self.sessions.members(process.pid) or {}, {}
        for pid, group in members.items():
            groups.setdefault(group, []).append(pid)
        groups.pop(process.pid, None)
        for group, pids in groups.items():
            if any(read_stat(pid) == (process.pid, group) for pid in pids):
                signal_group(group, *numbers)
            await self.loop.breathe()
        return [pid for pid in members if not may_signal(pid)]

    def _time_out(self, process):
        if not self._has_exited(process):       # else it was in time
            process.job.timed_out = True
            self.loop.spawn(self._end_and_report(process))

    async def _end_and_report(self, process):
        foreign = await self.end(process, signal.SIGTERM, GRACE)
        if foreign:
            self.say("job %d can't be ended: process %s runs as another user" % (
                process.job.id, " ".join(map(str, foreign))))

    def cancel(self, job):
        """End a job that is not complete, as by kill, in a task of its own; one that is new is complete at once."""
        if job.state == "new":
            script = self._queue.pop(job, None)
            if script:                          # else it has a place, and run() removes it
                self.workspace.remove(script)
            self._complete(job, CANCELED, 126)
        elif not job.is_complete():
            self.loop.spawn(self._end_and_report(self.process(job)))

    async def end_or_release(self, jobs):
        """End those of the jobs that are not complete, and keep the output of none."""
        for job in jobs:
            if job.is_complete():
                self._release(job)
            else:
                self.cancel(job)                # it is released when it is complete
            await self.loop.breathe()

    def kill_all(self):
        """Leave nobody any grace."""
        for process in self._processes.values():
            self.loop.spawn(self.end(process, signal.SIGKILL, 0))

    async def stop(self):
        """End all jobs; return when nothing is left of them, or twice the grace has passed."""
        for job in list(self._queue) + [job for job in self._placed if job.state == "new"]:
            self.cancel(job)
        for process in self._processes.values():
            self.loop.spawn(self._stop(process))
        await self._gone.wait_for(lambda: not self._processes and not self.is_busy, 2 * GRACE)

    async def _stop(self, process):
        await self._end_and_report(process)
        await process.changed.wait_for(lambda: process.outcome and not process.signalers)
        self.capture.drain(process)
        self.capture.close(process)             # what is held by those who have left the session, by setsid(2)


class Capture:
    """Reads what processes print into the outputs of their jobs.

    `on_silent` is called with each process whose output has ended; those that have not exited yet are `silent`.
    """

    def __init__(self, loop, store, total, on_silent):
        self.loop, self.store, self.total, self.on_silent = loop, store, total, on_silent
        self.silent, self._wide = set(), set()      # processes; descriptors that hold more

    def watch(self, process, fd):
        self.loop.watch(fd, READ, lambda events: self.read(process, fd))

    def read(self, process, fd):
        """Read once; return how many bytes there were."""
        job, output = process.job, process.job.output
        size = WIDE_READ_SIZE if fd in self._wide else READ_SIZE
        if output.readers:      # of what is read at once, they can get no more than is kept
            size = min(size, output.limit)
            if process.paused or self._pause(process, size):
                return 0
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EIO and not process.outcome:        # nobody has the terminal open now
                self.loop.unwatch(fd)
                self.loop.call_later(LOOK_AFTER, lambda: process.terminal == fd and self.watch(process, fd))
                self._add_silent(process)
                return 0
            if error.errno != errno.EIO:
                self.loop.report(*sys.exc_info())
            data = b""
        if not data:
            self._close_pipe(process, fd)
        elif job in self.store or not job.is_complete():        # else nobody can ask for it any more
            self.total.append(output, process.pipes[fd], data)
            job.changed.notify_all()
        if len(data) == READ_SIZE and len(self._wide) < WIDE_PIPES:
            self._widen(fd)
        return len(data)

    def _widen(self, fd):
        """Let the pipe of one that prints a lot hold more, so that it waits less for us."""
        import fcntl
        self._wide.add(fd)
        try:
            fcntl.fcntl(fd, F_SETPIPE_SZ, WIDE_PIPE)
        except OSError:         # a terminal, another system, more than its user may have
            pass

    def _close_pipe(self, process, fd):
        del process.pipes[fd]
        self.loop.unwatch(fd)
        self._wide.discard(fd)
        os.close(fd)
        if process.terminal == fd:
            process.terminal = None
            close_input(self.loop, process)
        if process.outcome:
            process.changed.notify_all()
        elif not process.pipes:
            self._add_silent(process)

    def _add_silent(self, process):
        self.silent.add(process)
        self.on_silent(process)

    def close(self, process):
        for fd in list(process.pipes):
            self._close_pipe(process, fd)

    def drain(self, process):
        """Read what its pipes hold, and not much of what comes meanwhile."""
        for fd in list(process.pipes):
            count, most = 1, WIDE_PIPE
            while count and most > 0 and fd in process.pipes:
                count = self.read(process, fd)
                most -= count

    async def wait_for_end(self, process):
        """Wait for the end of the output, HELD_AFTER at most if something in the background still holds it.

        That time does not count while a follower holds back what the script itself has left in its pipes.
        """
        output = process.job.output
        printed = output.end[LOG] + WIDE_PIPE * len(process.pipes)
        self.drain(process)
        while process.pipes and not await process.changed.wait_for(lambda: not process.pipes, HELD_AFTER):
            self.drain(process)
            if not process.paused or output.end[LOG] >= printed:
                return

    def _pause(self, process, size):
        """Read no more for a moment, if a follower would lose what it has not read; return whether it is so."""
        output = process.job.output
        for reader in output.readers:
            reader.since = None
        if self.total.delay(output, size):
            process.paused = True
            for fd in process.pipes:
                self.loop.unwatch(fd)
            self.loop.spawn(self._wait_for_readers(process, size))
        return process.paused

    async def _wait_for_readers(self, process, size):
        output = process.job.output
        output.consumed = Condition(self.loop)

        def delay():
            return process.pipes and self.total.delay(output, size)
        try:
            while delay():
                await output.consumed.wait_for(lambda: not delay(), delay())
        finally:
            output.consumed, process.paused = None, False
            for fd in process.pipes:
                self.watch(process, fd)


async def feed(loop, process, data, eof):
    """Write all of `data` to the standard input of a process, then close it if `eof`.

    Error "conflict" if it is closed, or is closed before all is written.
    """
    await process.changed.wait_for(lambda: not process.feeding)
    if process.input is None:
        raise Error("conflict", "standard input of job %d is closed" % process.job.id)
    process.feeding = True
    try:
        rest = memoryview(data if process.terminal is None else for_terminal(process, data, eof))
        while rest:
            if process.input is None:
                raise Error("conflict", "job %d closed its standard input before all was written" % process.job.id)
            try:
                rest = rest[os.write(process.input, rest):]
            except BlockingIOError:
                await until_writable(loop, process)
            except OSError:             # EPIPE: nobody reads it any more
                close_input(loop, process)
        if eof and process.terminal is None:        # a terminal stays open
            close_input(loop, process)
    finally:
        process.feeding = False
        process.changed.notify_all()


def for_terminal(process, data, eof):
    """Return what is to be written to a terminal.  It would drop what is too long for a line, so that is refused."""
    import termios
    lines = re.split(b"[\r\n\3\4]", process.line + data)
    if termios.tcgetattr(process.terminal)[3] & termios.ICANON and max(map(len, lines)) > TERMINAL_LINE:
        raise Error("conflict", "a terminal takes %d bytes a line, and the rest would be lost: use stty -icanon in the "
                    "script, or POST /jobs?stdin without tty" % TERMINAL_LINE)
    process.line = lines[-1]
    if eof:     # VEOF (termios(3)) ends a line without a newline first, and only an empty one is the end
        data, process.line = bytes(data) + (b"\4\4" if process.line else b"\4"), b""
    return data


async def until_writable(loop, process):
    """Wait until its input takes more, or is closed."""
    fd, ready = process.input, []
    poll = select.poll()
    poll.register(fd, 0)                # POLLHUP comes unasked: poll(2)
    if process.terminal is not None and poll.poll(0):
        raise Error("conflict", "nobody has the terminal of job %d open: not all was written" % process.job.id)

    def on_event(events):
        ready.append(events)
        loop.unwatch(fd)
        process.changed.notify_all()
    loop.watch(fd, WRITE, on_event)
    try:
        await process.changed.wait_for(lambda: ready or process.input is None)
    finally:
        if process.input is not None:
            loop.unwatch(fd)


def close_input(loop, process):
    if process.input is not None:
        loop.unwatch(process.input)
        os.close(process.input)
        process.input = None
        process.changed.notify_all()


# ------------------------------------------------------------------------------------------------ HTTP

# Bytes over 0x7f, which RFC 3986 does not have, are let through: curl sends a label as it was typed.
TOKEN = b"[!#$%&'*+.^_`|~0-9A-Za-z-]+"                  # RFC 9110, 5.6.2
REQUEST_LINE = re.compile(b"(" + TOKEN + b") ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])[.]([0-9])")
CHARACTER = b"(?:[!$&-;=@-Z_a-z~\\[\\]\x80-\xff]|%[0-9A-Fa-f]{2})"        # of a path, and [] of a query: RFC 3986, 3.3
AUTHORITY = b"(?:\\[[0-9A-Fa-f:.]+\\]|(?:[!$&-.0-9;=A-Z_a-z~]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"        # 3.2.2 and 3.2.3
HOST = re.compile(AUTHORITY)
ABSOLUTE = b"(?i)https?://(?=[^:/?])" + AUTHORITY + b"(?=[/?]|$)"                      # RFC 9112, 3.2.2
TARGET = re.compile(b"(/" + CHARACTER + b"*)(?:[?]((?:" + CHARACTER + b"|[?])*))?")     # RFC 9112, 3.2.1
HEADERS = re.compile(b"(?m)^(" + TOKEN + b"):([^\x00-\x08\x0a-\x1f\x7f]*)\r$")      # RFC 9112, 5; no obs-fold
QUOTED = br'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'        # RFC 9110, 5.6.4
CHUNK = (b"0*([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*" + TOKEN + b"(?:[ \t]*=[ \t]*(?:" + TOKEN + b"|" + QUOTED
                   + b"))?)*")                                                  # RFC 9112, 7.1 and 7.1.1
ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"rtot-secret", b"authorization"))
NO_TRAILER = ONCE | {b"content-encoding", b"content-type", b"content-range", b"trailer", b"expect", b"range"}
TLS_HANDSHAKE = b"\x16"     # how TLS begins: the type of the first record (RFC 8446, 5.1)
JSON, TEXT, HTML, JSON_LINES = ("%s; charset=utf-8" % kind for kind in (
    "application/json", "text/plain", "text/html", "application/x-ndjson"))


class Request:
    """What a client asked for: `path` as text, decoded; `query` as bytes, as it came.

    `headers` are bytes by lower-case name; `version` is 10 or 11; `length` that of the body in bytes, None for a
    chunked one.  `client` is the Connection, for those who wait.
    """

    __slots__ = ("method", "path", "query", "version", "headers", "length", "body", "client")

    def __init__(self, client, head):
        self.method, self.path, self.query, self.version, self.headers, self.length = head
        self.client, self.body = client, Body(client, self)


def unquote(data):
    """Return bytes without their percent-encoding."""
    if b"%" not in data:
        return data
    from urllib.parse import unquote_to_bytes
    return unquote_to_bytes(data)


def malformed(message):
    """Return the error for what is not HTTP as RFC 9112 has it: nothing after it on the connection can be trusted."""
    return Error("malformed request", message)


def parse_head(head, complete=True):
    """Return what a Request is made of, from a request line and headers, with line ends; Error if it can't be served.

    An incomplete head is parsed too, so that what is wrong with it is told at once.
    """
    line, _, fields = head.partition(b"\r\n")
    match = REQUEST_LINE.fullmatch(line)
    if not match or match.group(1) == b"PRI":
        raise malformed("the first line has to be like: GET /jobs HTTP/1.1")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Error("http version not supported", "rtot speaks HTTP/1.1 and HTTP/1.0")
    absolute = None if target.startswith(b"/") else re.match(ABSOLUTE, target)
    rest = target[absolute.end():] if absolute else target
    match = TARGET.fullmatch(rest if not absolute or rest.startswith(b"/") else b"/" + rest)
    if match:
        path, query = match.groups(b"")
        if b"%" in path:
            path = unquote(re.sub(b"%2[Ff]", b"%252F", path))       # which separates nothing: RFC 3986, 2.2
        path = path.decode("utf-8", "replace")
    elif method == b"OPTIONS" and target == b"*" or method == b"CONNECT" and HOST.fullmatch(target):
        path, query = readable(target), b""
    else:
        raise malformed("the target has to be a path, like /jobs?wait, with other characters as %22 and so on")
    headers = parse_headers(fields)
    if not HOST.fullmatch(headers.get(b"host", b"" if minor == b"0" or not complete else b" ")):
        raise malformed("Host has to be a name or an address, with or without a port; HTTP/1.1 requires it")
    version = 10 if minor == b"0" else 11
    return method.decode("ascii"), path, query, version, headers, body_length(headers, version)


parse_small_head = functools.lru_cache(maxsize=128)(parse_head)      # clients send the same again and again


def body_length(headers, version):
    """Return the length of the body in bytes, None for a chunked one: RFC 9112, 6.3."""
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if coding is not None and (length is not None or version == 10):
        raise malformed("Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0")
    if coding is not None and coding.lower() != b"chunked":
        raise Error("not implemented", "the one transfer coding that rtot reads is chunked")
    if length is not None and not re.fullmatch(b"0*[0-9]{1,18}", length):
        raise malformed("Content-Length has to be a decimal number of bytes")
    return int(length or 0) if coding is None else None


def parse_headers(fields):
    """Return the values of header lines, by lower-case name."""
    found, lines = HEADERS.findall(fields), fields.count(b"\n")
    if lines > MAX_HEADERS or len(fields) > MAX_LINE and max(map(len, fields.split(b"\n"))) > MAX_LINE:
        raise Error("request header fields too large", "there may be %d headers, of %d bytes" % (MAX_HEADERS, MAX_LINE))
    if len(found) != lines:
        raise malformed("a header has to be like: Name: value, without a fold or a control character")
    headers = {}
    for name, value in found:
        name, value = name.lower(), value.strip(b" \t")
        if name in headers:
            if name in ONCE:
                raise malformed("there may be one %s header" % name.decode("ascii"))
            value = headers[name] + b", " + value
        headers[name] = value
    return headers


def check_size(buffer, size):
    """Raise an Error if a head of that many bytes, or more, is too large."""
    first = buffer.find(b"\r\n", 0, size)
    if (first if first >= 0 else size) > MAX_LINE:
        raise Error("uri too long", "the request line may have %d bytes: put data into the body" % MAX_LINE)
    if first >= 0 and size - first > MAX_HEAD:
        raise Error("request header fields too large", "all headers together may have %d bytes" % MAX_HEAD)


class Body:
    """The body of a request, decoded: RFC 9112, 6 and 7.

    `remaining` bytes of it, or of this chunk, are still to be read; `timeout`: s without a byte, None is no limit.
    `is_held_back`: the client waits to be told to go on (100), which it is when somebody reads.
    """

    def __init__(self, client, request):
        self.client, self.length, self.remaining = client, request.length, request.length or 0
        self.ended, self.timeout = request.length == 0, client.server.limits.body
        self.is_held_back = request.headers.get(b"expect", b"").lower() == b"100-continue" and request.version == 11

    async def read(self):
        """Return the next bytes, at most SLICE, as soon as there are some; b"" at the end."""
        if not self.remaining and not self.ended:
            await self._begin_chunk()
        if self.ended:
            return b""
        if not self.client.buffer:
            await self._receive()
        data = self.client.take(min(self.remaining, SLICE))
        self.remaining -= len(data)
        if not self.remaining and self.length is not None:
            self.ended = True
        elif not self.remaining and await self._line() != b"":
            raise malformed("a chunk was not followed by CR LF")
        return data

    async def read_all(self, limit, kind, message):
        """Return all of it; raise an Error over `limit` bytes, before they are read if that is known."""
        data = bytearray()
        while not self.ended:
            if len(data) + self.remaining > limit:
                raise Error(kind, message)
            if self.remaining:
                data += await self.read()
            else:
                await self._begin_chunk()
        return bytes(data)

    async def _begin_chunk(self):
        match = re.fullmatch(CHUNK, await self._line())
        if not match:
            raise malformed("a chunk has to begin with its size in hexadecimal digits")
        self.remaining = int(match.group(1), 16)
        if not self.remaining:
            await self._skip_trailers()
        await self.client.loop.breathe()            # they may be tiny

    async def _skip_trailers(self):
        for _ in range(MAX_HEADERS + 1):
            line = await self._line()
            self.ended = line == b""
            if self.ended:
                return
            if NO_TRAILER.intersection(parse_headers(line + b"\r\n")):
                raise malformed("a trailer can't frame the message, nor name its sender")
        raise Error("request header fields too large", "there may be %d trailers" % MAX_HEADERS)

    async def _line(self):
        """Return the next line without its CR LF."""
        buffer, end = self.client.buffer, -1
        while end < 0:
            end = buffer.find(b"\n")
            if (len(buffer) if end < 0 else end) > MAX_LINE:
                raise malformed("a chunk's line is too long")
            if end < 0:
                await self._receive()
        line = self.client.take(end + 1)
        if line[-2:] != b"\r\n":
            raise malformed("a line has to end with CR LF, and one ended with LF alone")
        return line[:-2]

    async def _receive(self):
        if self.is_held_back:
            self.is_held_back = False
            await self.client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        with Deadline(self.client.loop, self.timeout, Error("request timeout", "the body did not come in time")):
            if not await self.client.receive():
                raise malformed("the connection ended within the body of a request")
        await self.client.loop.breathe()


class Pieces:
    """A body that is made as it is sent, from an iterator of bytes; other bodies have the same three methods."""

    def __init__(self, iterator):
        self._iterator = iterator

    async def read(self):
        """Return the next bytes, b"" at the end; ClientGone if it can't be reached."""
        return next(self._iterator, b"")

    def trailers(self):
        """Return pairs that go out behind the end."""
        return ()

    def close(self):
        pass


def gather(pieces):
    """Yield the same bytes in blocks of SLICE or more, or of BATCH pieces."""
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= SLICE or len(parts) >= BATCH:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


class Response:
    """An answer.  `body` is bytes, or like Pieces, with its `length` in bytes, None if that is not known.

    `closes`: the connection is closed after it.  `policy`: what a browser may do with it, nothing by default.  `job`:
    the id of the job that was made, for the log.
    """

    closes, job, policy = False, None, "default-src 'none'; frame-ancestors 'none'"

    def __init__(self, status, body=b"", content_type=None, headers=(), length=None):
        self.status, self.body, self.content_type, self.headers = status, body, content_type, headers
        self.length = len(body) if isinstance(body, bytes) else length

    @classmethod
    def json(cls, status, value, headers=()):
        """Indented by two spaces and ended by a newline, in UTF-8."""
        import json
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        return cls(status, text.encode("utf-8", "replace"), JSON, headers)

    @classmethod
    def of_pieces(cls, status, pieces, content_type, headers=()):
        """Answer with an iterator of bytes; what is large is made as it is sent, so that it is never held whole."""
        blocks = gather(pieces)
        first, second = next(blocks, b""), next(blocks, None)
        body = first if second is None else Pieces(itertools.chain((first, second), blocks))
        return cls(status, body, content_type, headers)

    @classmethod
    def of_error(cls, error):
        response = cls.json(error.status, dict(error.extra, error=error.kind, message=error.message), error.headers)
        response.closes = error.closes
        return response


@functools.lru_cache(maxsize=256)
def head_start(status, content_type, policy, seconds):
    """Return the head of an answer up to what differs from one to the next; `seconds` since 1970."""
    lines = ["HTTP/1.1 %d %s" % (status, REASONS[status]), "Rtot-Version: " + __version__,
             "Date: " + utc("%a, %d %b %Y %H:%M:%S GMT", seconds), "Cache-Control: no-store",
             "X-Content-Type-Options: nosniff", "Content-Security-Policy: " + policy]
    return "\r\n".join(lines + (["Content-Type: " + content_type] if content_type else [])) + "\r\n"


def response_head(request, response, keep):
    """Return the head of an answer as bytes; `keep`: another request may follow."""
    head = head_start(response.status, response.content_type, response.policy, int(time.time()))
    headers = list(response.headers)
    if response.length is not None and response.status != 204:
        head += "Content-Length: %d\r\n" % response.length
    elif response.length is None and request.version == 11:
        headers.append(("Transfer-Encoding", "chunked"))
        if response.body.trailers():
            headers.append(("Trailer", ", ".join(name for name, _ in response.body.trailers())))
    if not keep or request.version == 10:
        headers.append(("Connection", "keep-alive" if keep else "close"))
    for name, value in headers:
        if "\r" in value or "\n" in value:
            raise ValueError("a header that goes out has a line end: %s" % name)
        head += "%s: %s\r\n" % (name, value)
    return (head + "\r\n").encode("latin-1")


IN_USE = "all connections are in use: try again, or start rtot with more --max-connections"


class Connection(socketserver.BaseRequestHandler):
    """A client's connection.  `serve` is its life, a task, which alone reads and writes the socket.

    The socket stays watched while the task does something else, and what comes is taken into `buffer`: so the end of
    the input, `at_end`, is noticed at once.
    `waiting_since`: when it began to wait for a request, on the monotonic clock; None while one is served that came
    with the secret.  While it waits it may be `evicted` to make room.  `is_fresh`: it has got no answer yet;
    `is_known`: it has shown the secret once.
    """

    def setup(self):
        self.loop, self.socket = self.server.loop, self.request      # socketserver calls the socket a request
        self.buffer, self.at_end = bytearray(), False
        self.is_fresh, self.is_known, self.evicted, self.waiting_since = True, False, False, time.monotonic()
        self._watched, self._writes, self._waits, self._attended = 0, False, False, False
        self._tls = None        # False while hands are shaken: then the socket is ssl's to read
        self.socket.setblocking(False)
        self._fd = self.socket.fileno()
        self._set_watch()
        self.server.connections.add(self)

    def handle(self):
        self.task = self.loop.spawn(self.serve())

    async def serve(self):
        """Serve one request after the other, then close."""
        try:
            if self.server.tls:
                await self._shake_hands()
            while await self._serve_one():
                await self.loop.breathe()               # the next may have come already
        finally:
            self.loop.unwatch(self._fd)
            self.server.connections.discard(self)
            self.socket.close()

    async def _serve_one(self):
        """Serve a request; return whether another may follow."""
        request = response = sent = None
        self.waiting_since = began = time.monotonic()
        try:
            try:
                if not self.buffer:
                    with Deadline(self.loop, self.server.limits.idle, ClientGone()):
                        if not await self.receive():
                            return False
                    began = time.monotonic()
                request = await self._read_head()
                response = await self.server.app.answer(request)
            except Canceled:
                raise
            except Error as error:                      # here, and nowhere else
                response = Response.of_error(error)
            except MemoryError:
                self.loop.relieve()
                response = Response.of_error(Error("service unavailable", (
                    "memory is short: look at GET /jobs before you try again")))
            except Exception:
                self.loop.report(*sys.exc_info())
                response = Response.of_error(Error("internal server error", "a fault of rtot, which its log describes"))
            keep = request is not None and self._may_keep(request, response)
            self.is_fresh = False
            sent = await self._send_response(request, response, keep)
        finally:
            if request or response:
                self.server.log.access(self.client_address[0], request, response, sent, time.monotonic() - began)
        self.waiting_since = time.monotonic()
        if not keep:
            await self._linger()
            return False
        request.body.timeout = self.server.limits.body
        try:
            while not request.body.ended:       # of a request that was refused
                await request.body.read()
        except Error:
            return False
        return True

    # Bytes.

    def _set_watch(self):
        """Watch the socket for what is wanted now."""
        reads = self._tls is False or not self.at_end and len(self.buffer) < MAX_BUFFER
        wanted = READ * reads | WRITE * self._writes
        if wanted != self._watched:
            self.loop.watch(self._fd, wanted, self._on_event)
            self._watched = wanted

    def _on_event(self, events):
        if events & READ and self._tls is not False:
            self._fill_buffer()
        if self._waits:
            self.task.wake()

    def _fill_buffer(self):
        """Take what has come into the buffer."""
        try:
            data = self.socket.recv(READ_SIZE)
            while data and self._tls and self.socket.pending() and len(self.buffer) < MAX_BUFFER:
                self.buffer += data         # the selector can't see what is decrypted already
                data = self.socket.recv(READ_SIZE)
        except self.server.blocked:
            return
        except OSError:
            data = None
        if data:
            self.buffer += data
        else:
            self.at_end = True
            if data is None or self._attended:
                self.task.throw(ClientGone())
        if self.at_end or len(self.buffer) >= MAX_BUFFER:
            self._set_watch()

    async def _ready(self, error=None):
        """Wait until the socket is ready: to be read, or if `error` says so, to be written."""
        self._waits, self._writes = True, error is not None and not isinstance(error, self.server.wants_read)
        self._set_watch()
        try:
            await self.loop.suspend()
        finally:
            self._waits = self._writes = False
        self._set_watch()

    async def receive(self):
        """Wait until more has come into the buffer; return whether it has, and not the end."""
        size = len(self.buffer)
        if self._tls and not self.at_end:
            self._fill_buffer()
        while len(self.buffer) == size and not self.at_end:
            await self._ready()
        return len(self.buffer) > size

    def take(self, size):
        """Return at most `size` bytes of what has come."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def send(self, *parts):
        """Send all of the parts; ClientGone if the client disconnects, or takes nothing for SEND_TIMEOUT."""
        while parts:
            try:
                sent = self.socket.send(parts[0]) if self._tls or len(parts) == 1 else self.socket.sendmsg(parts)
            except self.server.blocked as error:
                with Deadline(self.loop, SEND_TIMEOUT, ClientGone()):
                    await self._ready(error)
                continue
            except OSError:
                raise ClientGone() from None
            while parts and sent >= len(parts[0]):
                sent -= len(parts[0])
                parts = parts[1:]
            if sent:
                parts = (memoryview(parts[0])[sent:],) + parts[1:]

    # For those who answer.

    def unsent(self):
        """Return how many bytes the system still holds for the client: TIOCOUTQ of tcp(7); 0 if it does not tell."""
        import fcntl
        import struct
        import termios
        try:
            return struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        except OSError:
            return 0

    def admit(self):
        """Serve this request to its end, whoever comes: it has the secret."""
        self.waiting_since, self.is_known = None, True

    async def attend(self, coroutine):
        """Await it; while that has to wait, ClientGone if the client has closed its side, or does so."""
        self._attended = True
        if self.at_end:
            self.task.throw(ClientGone())
        try:
            return await coroutine
        finally:
            self._attended = False
            self.task.withdraw()

    async def pause(self, seconds):
        """Wait for some time, or until the client has closed its side."""
        until = time.monotonic() + seconds
        timer = self.loop.call_later(seconds, self.task.wake)
        while not self.at_end and time.monotonic() < until:
            await self._ready()
        self.loop.cancel(timer)

    # Heads and bodies.

    async def _read_head(self):
        """Read and parse a request line and headers; leave the body where it is."""
        if self.server.tls and not self._tls:
            raise malformed("rtot speaks TLS here: use https://")
        if self.buffer.startswith(b"\r\n"):             # RFC 9112, 2.2: an empty line before a request is ignored
            self.take(2)
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            late = Error("request timeout", "the request did not come in time")
            with Deadline(self.loop, self.server.limits.head, late):
                end = await self._end_of_head()
        check_size(self.buffer, end)
        parse = parse_head if end > 1000 else parse_small_head
        return Request(self, parse(self.take(end + 4)[:-2]))

    async def _end_of_head(self):
        """Return where the head ends; an Error for one that is known to be wrong before that."""
        buffer, lines = self.buffer, 0
        while True:
            check_size(buffer, len(buffer))
            if not re.match(b"\r?$|" + TOKEN, buffer):
                raise malformed("this is no HTTP request; rtot speaks HTTP/1.1 here, and http://, not https://")
            if buffer.count(b"\n") != buffer.count(b"\r\n"):
                raise malformed("a line has to end with CR LF, and one ended with LF alone")
            if buffer.count(b"\r\n") > lines:
                lines = buffer.count(b"\r\n")
                parse_head(bytes(buffer[:buffer.rfind(b"\n") + 1]), complete=False)
            if not await self.receive():
                raise malformed("the connection ended within the head of a request") if buffer else ClientGone()
            if lines == 0 and buffer.startswith(b"\r\n"):
                self.take(2)
            end = buffer.find(b"\r\n\r\n")
            if end >= 0:
                return end

    def _may_keep(self, request, response):
        """May another request follow?  Not where the end of this answer is told by closing."""
        options = request.headers.get(b"connection", b"").lower().replace(b" ", b"").replace(b"\t", b"").split(b",")
        if request.version == 10 and (b"keep-alive" not in options or response.length is None):
            return False
        body = request.body         # a large one that nobody read is not worth the connection
        unread = not body.ended and (body.is_held_back or body.length is None or body.remaining > SLICE)
        return not (unread or response.closes or b"close" in options or self.server.app.is_stopping)

    async def _send_response(self, request, response, keep):
        """Send the answer; return the bytes of its body."""
        head, body = response_head(request, response, keep), response.body
        if request is not None and request.method == "HEAD":
            if not isinstance(body, bytes):
                body.close()
            body = b""
        if isinstance(body, bytes):
            await self.send(head + body)        # in one: with two, Nagle's algorithm cost 44 ms an answer
            return len(body)
        chunked, whole, sent = response.length is None and request.version == 11, False, 0
        try:
            await self.send(head)
            while True:
                data = await body.read()
                if not data:
                    break
                await self.send(*((b"%x\r\n" % len(data), data, b"\r\n") if chunked else (data,)))
                sent += len(data)
                await self.loop.breathe()
            if chunked:
                trailers = "".join("%s: %s\r\n" % pair for pair in body.trailers())
                await self.send(("0\r\n%s\r\n" % trailers).encode("latin-1"))
            whole = True
        finally:
            body.close()
            if not whole and not chunked and response.length is None:       # or closing would seem its proper end
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return sent

    async def _linger(self):
        """Close so that the client gets the answer: a reset on unread data could overtake it (RFC 9112, 9.6)."""
        seconds, remaining = (KNOWN_LINGER, KNOWN_LINGER_BYTES) if self.is_known else (LINGER, LINGER_BYTES)
        try:
            if self._tls:       # without its close_notify, a body that is ended by closing would seem cut off
                self.socket.unwrap()
        except (OSError, ValueError):       # the client still sends, or is gone
            pass
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        self._tls, until = None, time.monotonic() + seconds
        while remaining > 0 and not self.evicted:
            remaining -= len(self.buffer)
            self.buffer.clear()
            with Deadline(self.loop, min(LINGER, until - time.monotonic()), ClientGone()):
                if not await self.receive():
                    return

    async def _shake_hands(self):
        """Begin TLS, in the time that a head may take; one who speaks plain HTTP gets an answer that says so."""
        self._tls = False
        with Deadline(self.loop, self.server.limits.head, ClientGone()):
            while not self._tls:
                try:
                    if self.socket is self.request:
                        if self.socket.recv(1, socket.MSG_PEEK) != TLS_HANDSHAKE:
                            self._tls = None
                            return
                        self.socket = self.server.tls.wrap_socket(self.socket, server_side=True,
                                                                  do_handshake_on_connect=False)
                    self.socket.do_handshake()
                    self._tls = True
                except self.server.blocked as error:
                    await self._ready(None if isinstance(error, BlockingIOError) else error)
                except OSError as error:            # ssl.SSLError is one
                    self.server.log.event("no TLS with %s: %s" % (self.client_address[0], error))
                    raise ClientGone() from error

    def evict(self):
        """Close it to make room for another; one that has no answer yet gets a 503."""
        self.evicted = True
        error = Error("service unavailable", IN_USE, [("Retry-After", "1")])
        error.closes = True
        self.task.throw(error if self.is_fresh and not self.server.tls else ClientGone())


def identity(path):
    """Return what tells a file from a successor of the same name, while one has it open; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove_ours(path, ours, log):
    """Remove a file, unless the name is another's by now; say so if that can't be."""
    try:
        if identity(path) == ours:
            os.unlink(path)
    except OSError as error:
        log.event("cannot remove %s: %s" % (path, error.strerror))


def show_address(address):
    host, port = address[:2]
    return "unix:" + host if port is None else "%s:%d" % ("[%s]" % host if ":" in host else host, port)


class Server(socketserver.TCPServer):
    """Listens, and makes a Connection of each client that it lets in."""

    allow_reuse_address = True
    request_queue_size = BACKLOG
    _made = None            # the path and identity of the Unix socket that we made

    def __init__(self, address, loop, app, log, limits, tls=None):
        """Listen on (host, port), where "" is all addresses, on (path of a Unix socket, None), or take over a socket.

        `limits` are the connections and descriptors, and the seconds for a head, without a byte of a body, and idle.
        `tls` is an ssl.SSLContext, or None.  OSError if it can't be.
        """
        self.loop, self.app, self.log, self.limits, self.tls = loop, app, log, limits, tls
        self.connections, self.blocked, self.wants_read = set(), BlockingIOError, ()
        if tls:
            import ssl
            self.blocked = BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError
            self.wants_read = ssl.SSLWantReadError
        if isinstance(address, socket.socket):
            super().__init__(None, Connection, bind_and_activate=False)
            self.socket.close()
            self.socket, self.address_family = address, address.family
            name = self.server_address = address.getsockname()
            if isinstance(name, bytes):     # in the abstract namespace of unix(7)
                self.server_address = "@" + os.fsdecode(name[1:])
        elif address[1] is None:
            self.address_family = socket.AF_UNIX
            super().__init__(address[0], Connection)
        else:
            try:
                self._bind(address[0] or "::", address[1])
            except OSError as error:        # a host without IPv6; OpenBSD, whose IPv6 sockets take no IPv4
                if address[0] or error.errno in (errno.EADDRINUSE, errno.EACCES):
                    raise
                self._bind("0.0.0.0", address[1])
        self.socket.setblocking(False)

    def _bind(self, host, port):
        name = host.encode("ascii" if re.fullmatch("[!-~]*", host) else "idna")     # that codec takes 2 ms to import
        self.address_family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        super().__init__(address, Connection)

    def server_bind(self):
        if self.server_address[0] == "::":              # means IPv4 too
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if self.address_family != socket.AF_UNIX:
            super().server_bind()
            return
        # For our user alone, in the place of one on which nobody listens any more.  The directory is locked: of two
        # servers that both find such a one, the second must not remove the first one's.
        import fcntl
        path = self.server_address
        lock = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        previous = os.umask(0o177)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(path) == errno.ECONNREFUSED:
                        os.unlink(path)
            super().server_bind()
            self._made = path, identity(path)
            self.server_activate()          # before the lock goes: one that does not listen yet would seem stale
        finally:
            os.umask(previous)
            os.close(lock)

    def server_close(self):
        if self._made:                      # while it is open: the number of an inode is used again
            remove_ours(*self._made, log=self.log)
            self._made = None
        super().server_close()

    @property
    def url(self):
        if self.address_family == socket.AF_UNIX:
            return show_address((self.server_address, None))
        return "%s://%s/" % ("https" if self.tls else "http", show_address(self.server_address))

    def start(self):
        """Accept connections from now on."""
        self.loop.watch(self.fileno(), READ, self.accept)

    def accept(self, events):
        """Accept some of the clients that wait."""
        for _ in range(TLS_ACCEPTS if self.tls else ACCEPTS):
            client = None
            try:
                client, address = self.get_request()
                if self.verify_request(client, address):
                    self.finish_request(client, address)        # makes the Connection, whose task closes it
                else:
                    self.shutdown_request(client)
            except BlockingIOError:
                return
            except (OSError, MemoryError) as error:
                if client:
                    client.close()
                number = getattr(error, "errno", errno.ENOMEM)
                if number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._make_room() or number == errno.ENOMEM and self.loop.relieve()
                    self.loop.unwatch(self.fileno())        # what waits stays readable: the loop would spin
                    self.loop.call_later(0.1, self.start)
                return                      # or the client is gone already

    def get_request(self):
        client, address = super().get_request()
        if self.address_family == socket.AF_UNIX:
            return client, ("unix", None)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)    # for one that is cut off without a word
            for name, value in KEEPALIVE:
                if hasattr(socket, name):           # other systems have other names, or none
                    client.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        except OSError:                             # it is gone, which we will see (macOS)
            pass
        return client, (re.sub("^::ffff:", "", address[0]),) + address[1:]      # IPv4 by way of an IPv6 socket

    def verify_request(self, client, address):
        """Is there room for one more?  Else answer 503, if that takes no time, as TLS would."""
        most = self.limits.descriptors          # the lowest that is free is taken: a high one is one of the last
        scarce = client.fileno() >= most - min(SPARE, most // 8)
        if not scarce and len(self.connections) < self.limits.connections or self._make_room():
            return True
        if not self.tls:
            response = Response.of_error(Error("service unavailable", "no descriptor is left" if scarce else IN_USE,
                                               [("Retry-After", "1")]))
            client.setblocking(False)
            try:
                client.send(response_head(None, response, keep=False) + response.body)
            except OSError:
                pass
        return False

    def _make_room(self):
        """Evict the connection that has waited longest for a request; return whether there was one.

        Those without the secret go first, but last of all for PROMPT seconds, in which they may show it.
        """
        prompt = time.monotonic() - PROMPT
        waiting = [one for one in self.connections if one.waiting_since is not None and not one.evicted]
        if waiting:
            min(waiting, key=lambda one: (1 if one.is_known else 2 * (one.is_fresh and one.waiting_since > prompt),
                                          one.waiting_since)).evict()
        return bool(waiting)

    async def drain(self, seconds):
        """Wait until no request is being served, for some seconds at most."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(one.waiting_since is None for one in self.connections):
            await self.loop.sleep(0.01)


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
.panel { background: var(--panel); border-radius: 8px; padding: 1rem; min-width: 0; } header { padding: .625rem 1rem; }
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
const fields = "fields=exit,timed_out,held,create,start,duration,label,line,tty,out_bytes,err_bytes";
let secret = sessionStorage.getItem("rtot-secret") || "", server = "", gone, polling, timer, changes = 0, shown = 100;
let stream = new AbortController(), log, drawing, match, edited, recalled = 0, chosen = null;
const $ = id => document.getElementById(id), texts = ["editor", "label", "timeout", "args"], sent = [];
const fail = (message, status = 0) => Promise.reject(Object.assign(new Error(message), {status}));
const put = (id, text) => { const node = $(id) || id; if (node.textContent !== text) node.textContent = text; };
const make = (tag, text, className) => Object.assign(document.createElement(tag), {textContent: text, className});
const lost = () => fail("The server cannot be reached"), date = s => new Date(s.slice(0, 19).replace(" ", "T") + "Z");
const local = time => new Date(time - time.getTimezoneOffset() * 60000).toISOString().replace("T", " ").slice(0, 23);
const span = s => (s < 60 ? "" : s < 3600 ? `${s / 60 | 0} min ` : `${s / 3600 | 0} h ${s % 3600 / 60 | 0} min `) +
  +(s % 60).toFixed(s < 10) + " s";
async function api(path, method = "GET", body, signal) {        // throws an error with a status, 0 if nothing answers
  const used = secret, text = String.fromCharCode(...new TextEncoder().encode(used));
  const headers = {"Rtot-Secret": text, "Accept": "application/json"};      // as text/html, GET / is this page
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
  const since = local(date(job.state === "new" ? job.create : job.start)), took = over ? "ran for " : "running for ";
  const when = [label, since.slice(5, 16), took + span(job.duration)], more = when.filter(Boolean).join(" \u00b7 ");
  job.word = word + (job.held ? ", held" : ""); children[2].className = kind; link.job = job;
  [String(id), job.line, job.word, more].forEach((text, index) => put(children[index], text));
  if (id !== chosen) return; const late = told && Date.now() - told > GRACE;
  $("state").className = kind; put("state", job.word); document.title = `Job ${id} ${job.word} on ${server}`;
  put("title", `Job ${id}${label && ": " + label}`); $("job").hidden = false; put("none", "");
  put("stop", late ? "Kill" : told ? "Stopping" : "Stop"); $("stop").disabled = over ? !job.held : told && !late;
  put("when", `Started ${since.slice(0, 19)}, ${when[2]}`); $("input").hidden = over;
  if (log.create !== job.create) begin(job); log.job = job; draw(); }       // begin: another job, or another server's
function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/), links = [...rows.values()];
  for (const {job, parentNode} of links) parentNode.hidden = words.some(word =>
    ![job.id, job.label, job.line, job.word].join("\n").toLowerCase().includes(word));
  put("empty", links.some(link => !link.parentNode.hidden) ? "" : links.length ? "No job matches." : "No jobs yet."); }
function choose() {                         // shows what the address names; takes a secret out of it at once
  const {hash} = location, given = new URLSearchParams(hash.slice(1)).get("secret"), job = /^#job\/(\d+)$/.exec(hash);
  if (given !== null) { secret = given; history.replaceState(null, "", location.pathname + location.search); }
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
const BASIC = [16, 160, 34, 136, 26, 127, 37, 250, 243, 203, 41, 184, 68, 170, 80, 231];      // as others of the 256
const rgb = n => n < 16 ? rgb(BASIC[n]) : n > 231 ? Array(3).fill(8 + 10 * (n - 232)) :
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
const on = (id, event, work, busy) => $(id).addEventListener(event, async event => {    // two quick presses are one
  event.preventDefault(); if (busy) return; busy = true; put("trouble", "");
  try { await work(); } catch (error) { report(error); } busy = false; changes += 1; poll(); });
function edit(job) {                        // fills the form with a job, whose options one can replace, or empties it
  const values = job ? {...job, ...job.tty, editor: job.script, args: job.args.join("\n")} : {}, {id, tty} = values;
  $("run").reset(); $("options").open = !!job; $("tty").checked = tty; $("fresh").hidden = !job; edited = {id};
  put("editing", job ? `Job ${id}, with its environment` : ""); if (job && innerWidth < 960) location.hash = "";
  for (const name of tty ? ["rows", "cols"] : []) $(name).value = values[name];
  for (const name of texts) { $(name).value = values[name] || ""; edited[name] = $(name).value; }
  for (const name of ["timeout", "args"]) $(name).required = edited[name]; if (job) $("args").focus(); }
const start = async (path, body) => { location.hash = "job/" + (await json(path, "POST", body)).jobs[0].id; };
on("run", "submit", () => {                 // an edited job keeps what is not sent
  const query = new URLSearchParams({fields: "id", tty: +$("tty").checked}), script = $("editor").value, {id} = edited;
  for (const name of [...texts.slice(1), ...$("tty").checked ? ["rows", "cols"] : []])
    for (const value of $(name).value === edited[name] ? [] : $(name).value.replace(/\n$/, "").split("\n"))
      query.append(name === "args" ? "arg" : name, value);
  if ($("stdin").checked) query.append("stdin", 1);
  return start((id >= 0 ? `jobs/${id}/again?` : "jobs?") + query, script === edited.editor ? null : script); });
on("again", "click", () => start(`jobs/${chosen}/again?fields=id`)); on("fresh", "click", () => edit());
on("edit", "click", async () => edit((await json(`jobs/${chosen}?fields=script,args,label,timeout,tty`)).jobs[0]));
on("stop", "click", () => {                 // if nobody kills it, the server does so in the end
  const id = chosen, how = stopping.has(id) ? "signal=KILL" : "grace=60"; stopping.set(id, Date.now()); update(log.job);
  return api(`jobs/${id}/kill?${how}`, "POST").catch(error => { stopping.delete(id); throw error; }); });
on("delete", "click", async () => {
  const {id, state} = log.job, sure = state === "complete" || confirm(`Job ${id} is ${state}. End and forget it?`);
  if (sure) { await api("jobs/" + id, "DELETE"); location.hash = ""; $("jobs").focus(); } });
on("clear", "click", () => confirm("Forget all complete jobs?") && api("jobs?state=complete", "DELETE"));
on("more", "click", () => { shown += 100; }); on("sign-in", "submit", () => { secret = $("secret").value; });
on("save", "click", async () => Object.assign(make("a"), {download: `job-${chosen}.log`,
  href: URL.createObjectURL(await (await api(`jobs/${chosen}/log`)).blob())}).click());
on("copy", "click", () => {                 // navigator.clipboard is missing where the page comes by plain HTTP
  const fill = event => event.clipboardData.setData("text/plain", log.lines.map(line => line.text + "\n").join(""));
  addEventListener("copy", event => { fill(event); event.preventDefault(); }, {once: true});
  put("copy", document.execCommand("copy") ? "Copied" : "Not allowed"); setTimeout(put, 2000, "copy", "Copy all"); });
const send = (body, query = "") => api(`jobs/${chosen}/stdin${query}`, "POST", body);
on("input", "submit", () => {
  const end = log.job.tty ? "\r" : "\n"; recalled = sent.push($("line").value); $("input").reset();
  return send(sent[recalled - 1] + end); });
on("interrupt", "click", () => log.job.tty ? send("\x03") : api(`jobs/${chosen}/kill?signal=INT`, "POST"));
on("eof", "click", () => log.job.tty ? send("\x04") : send("", "?eof"));
on("forget", "click", () => { enter(false); location.reload(); }); on("search", "submit", () => find(1));
$("details").ontoggle = describe; $("filter").oninput = filter; $("find").oninput = () => find(0);
on("previous", "click", () => find(-1)); on("end", "click", () => $("output").scrollTo(0, $("output").scrollHeight));
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
FOREVER = float("inf")
MOST_LINES, MOST_BYTES = 10 ** 9 - 1, 2 ** 53 - 1       # the second is also the end of a body that grows: RFC 8673, 2.2


def bad(message, *values):
    return Error("bad request", message % values)


# What a parameter of a query stands for: functions of its name and its value, in bytes.

def parse_bytes(name, value):
    return value


def parse_text(name, value):
    return readable(value)


def parse_flag(name, value):
    if value not in (b"", b"1", b"true", b"0", b"false"):
        raise bad("%s is a flag: alone, =1 or =true, and =0 or =false for no; not %r", name, readable(value))
    return value not in (b"0", b"false")


def parse_seconds(name, value):
    if not re.fullmatch(b"[0-9]{1,9}([.][0-9]{0,9})?|[.][0-9]{1,9}", value):
        raise bad("%s is a number of seconds, like 5 or 0.5, not %r", name, readable(value))
    return float(value)


def parse_wait(name, value):
    """Return the seconds, FOREVER for the parameter alone, None for =false."""
    if value in (b"", b"true"):
        return FOREVER
    return None if value == b"false" else parse_seconds(name, value)


def whole_number(least, most):
    def parse(name, value):
        if not re.fullmatch(b"[0-9]{1,18}", value) or not least <= int(value) <= most:
            raise bad("%s is a whole number from %d to %d, not %r", name, least, most, readable(value))
        return int(value)
    return parse


def parse_size_of(name, value):
    size = size_in_bytes(readable(value))
    if not size:
        raise bad("%s is a size like 4096, 64K, 16M or 1G, not %r", name, readable(value))
    return size


def parse_env(name, value):
    """Return the pair of NAME=VALUE."""
    variable, equals, content = value.partition(b"=")
    if not variable or not equals:
        raise bad("env is like NAME=VALUE, not %r", readable(value))
    return variable, content


def parse_fields(name, value):
    """Return the names of the fields of a job to show, in the order asked for."""
    names = tuple(field for field in readable(value).split(",") if field)
    for field in names:
        if field not in VIEW and field != "all":
            raise bad("there is no field %r; there are: %s, and all", field, " ".join(VIEW))
    return tuple(VIEW) if "all" in names else names


def parse_state(name, value):
    state = readable(value)
    if state and state not in STATES:
        raise bad("there is no state %r; there are: %s", state, " ".join(STATES))
    return state


def parse_signal(name, value):
    """Return the number of the signal INT, SIGINT or 2."""
    number = int(value) if re.fullmatch(b"[0-9]{1,2}", value) else signal_number(readable(value))
    if not number or number >= signal.NSIG:
        raise bad("there is no signal %r; there are TERM INT HUP KILL USR1 and so on, or numbers from 1 to %d",
                  readable(value), signal.NSIG - 1)
    return number


PARAMETERS = {
    "arg": parse_bytes, "cwd": parse_bytes, "env": parse_env, "label": parse_text, "state": parse_state,
    "attach": parse_flag, "eof": parse_flag, "fail": parse_flag, "follow": parse_flag, "json": parse_flag,
    "stdin": parse_flag, "text": parse_flag, "tty": parse_flag,
    "grace": parse_seconds, "timeout": parse_seconds, "wait": parse_wait,
    "rows": whole_number(1, 65535), "cols": whole_number(1, 65535), "max_output": parse_size_of,
    "last": whole_number(0, MOST_LINES), "tail": whole_number(0, MOST_LINES), "from": whole_number(0, MOST_BYTES),
    "fields": parse_fields, "signal": parse_signal,
}


@functools.lru_cache(maxsize=128)           # clients send the same again and again
def parse_parameters(query, known):
    """Return the values of a query by name, a list for those that are REPEATABLE; an Error for what is not `known`.

    It is the same dict for the same query, so nobody may change it.
    """
    given = {}
    for pair in filter(None, query.replace(b"+", b" ").split(b"&")):       # parse_qsl splits at ";" too, before 3.6.14
        name, _, value = pair.partition(b"=")
        name, value = readable(unquote(name)), unquote(value)
        if name not in known.split():
            raise bad("there is no parameter %r here; there are: %s", name, known or "none")
        if name in given and name not in REPEATABLE:
            raise bad("%s may be given once", name)
        if b"\0" in value:
            raise bad("%s has a NUL byte, which no argument can have", name)
        value = PARAMETERS[name](name, value)
        if name in REPEATABLE:
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    return given


def size_in_bytes(text):
    """Return the bytes of 4096, 64K, 16M or 1G; None if it is no such size."""
    match = re.fullmatch("([0-9]{1,15})([KMGkmg]?)", text, re.ASCII)
    return int(match.group(1)) << {"": 0, "K": 10, "M": 20, "G": 30}[match.group(2).upper()] if match else None


def shown_fields(given):
    """Return the names of the fields of a job to show."""
    return given.get("fields", TEXT_FIELDS if given.get("text") else DEFAULT_FIELDS)


def new_options(given, old, most_output):
    """Return the Options of a new job: what is given, and the rest as in the `old` ones."""
    if given.get("timeout") == 0:
        raise bad("timeout is a number of seconds over 0")
    if given.get("max_output", 0) > most_output:
        raise bad("max_output may be up to %d here", most_output)
    cwd = given.get("cwd")
    if cwd is not None and not (os.path.isdir(cwd) and os.access(cwd, os.X_OK)):
        raise bad("cwd %r is no directory that can be entered; give an absolute path", readable(cwd))
    tty, size = given.get("tty", bool(old.tty)), old.tty or DEFAULT_TERMINAL
    for name in ("rows", "cols"):
        if name in given and not tty:
            raise bad("%s is for a job with a terminal: give tty too", name)
    changes = {field: given[name] for field, name in [("args", "arg")] + [(name, name) for name in Options._fields]
               if name in given}
    changes.update({name: tuple(changes[name]) for name in ("args", "env") if name in changes})
    changes["tty"] = (given.get("rows", size[0]), given.get("cols", size[1])) if tty else None
    return old._replace(**changes)


def check_wait_and_follow(given):
    """Raise an Error for wait, follow, attach and fail that do not go together."""
    wait, follow = given.get("wait"), given.get("follow")
    if follow and wait is not None:
        raise bad("wait answers when the job is complete, follow as it goes: give one of them")
    if follow and ("text" in given or "fields" in given):
        raise bad("follow answers with what the job prints: leave text and fields out")
    if given.get("attach") and not follow and wait is None:
        raise bad("attach ends the job when this client disconnects: give wait or follow too")
    if given.get("fail") and wait is None:
        raise bad("fail tells by the status how the job ended: give wait too")


class OutputBody:
    """A body: what a job prints, as it comes, until it is complete; if it does not follow, what it has printed so far.

    What something in the background prints after that does not belong to it: there might be no end.  When bytes were
    dropped that it has not read, the connection breaks.  When it is closed before the job is complete, on_gone(job)
    is called, if it is not None.
    """

    def __init__(self, client, job, which, offset, follows=True, owner=None, on_gone=None):
        self.client, self.job, self.reader = client, job, Reader(job.output, which, offset, owner)
        self.follows, self.on_gone = follows, on_gone
        self.end = None if follows else job.output.end[which]       # where to stop; None until that is known

    async def read(self):
        """Return what comes next, as soon as there is something; b"" at the end."""
        job, reader, output = self.job, self.reader, self.job.output
        while True:
            if self.end is None and job.is_complete():
                self.end = output.end[reader.which]
            if reader.has_lost:
                raise ClientGone()
            end = output.end[reader.which] if self.end is None else self.end
            if reader.offset < end:
                count, data = self.take(end)
                reader.advance(count)
                if data:
                    return data
            elif self.end is not None:
                return self.finish()
            else:
                await self.client.attend(job.changed.wait_for(
                    lambda: reader.offset < output.end[reader.which] or job.is_complete()))

    def take(self, end):
        """Return how many bytes are taken of the output, up to `end`, and what they become in the answer."""
        which, offset = self.reader.which, self.reader.offset
        data = self.job.output.read(which, offset, min(WIDE_READ_SIZE, end - offset))
        return len(data), data

    def finish(self):
        """Return what comes at the end."""
        return b""

    def trailers(self):
        """Return how the job has ended, and that nothing was dropped since the answer began."""
        return [("Rtot-Exit", str(self.job.exit_code)), ("Rtot-Dropped", "0")] if self.follows else ()

    def close(self):
        self.reader.close()
        if self.on_gone and not self.job.is_complete():
            self.on_gone(self.job)


class JsonLog(OutputBody):
    """The log as lines of JSON, one for each piece, of which none begins or ends within a character."""

    def __init__(self, client, job, offset, follows):
        import codecs
        super().__init__(client, job, LOG, offset, follows)
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in (OUT, ERR)]
        self._ends, self._is_finished = [0, 0], False       # where the last piece of each stream ended

    def take(self, end):
        lines, size = [], 0
        while len(lines) < BATCH and size < min(SLICE, end - self.reader.offset):
            offset = self.reader.offset + size
            stream, ms, data = self.job.output.read_piece(offset, min(SLICE, end - offset))
            decoder = self._decoders[stream]
            begun = len(decoder.getstate()[0]) if self._ends[stream] == offset else 0   # of a character that ends here
            self._add(lines, offset - begun, ms, stream, decoder.decode(data))
            size += len(data)
            self._ends[stream] = offset + len(data)
        return size, "".join(lines).encode("utf-8", "replace")

    def finish(self):
        """Return what is left of a character, if no more can come, and how the job ended."""
        job, lines, ms = self.job, [], self.job.completed // 10 ** 6
        if job.is_complete() and not self._is_finished:
            for stream, decoder in enumerate(self._decoders):
                self._add(lines, self._ends[stream] - len(decoder.getstate()[0]), ms, stream, decoder.decode(b"", True))
            if self.follows:
                lines.append(json_line({"time": iso_time(ms), "exit": job.exit, "exit_code": job.exit_code}))
        self._is_finished = True
        return "".join(lines).encode("utf-8", "replace")

    @staticmethod
    def _add(lines, at, ms, stream, text):
        if text:
            lines.append(json_line({"at": at, "time": iso_time(ms), "stream": ("out", "err")[stream], "text": text}))


def json_line(value):
    import json
    return json.dumps(value, ensure_ascii=False) + "\n"


try:        # what hmac has; but hmac itself brings 3.8 MB of libcrypto
    from _operator import _compare_digest as compare_digest
except ImportError:
    from hmac import compare_digest

CONDITIONS = frozenset((b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range",
                        b"range", b"content-range", b"x-http-method-override"))     # of requests that change something
UNBUFFERED = ("X-Accel-Buffering", "no")        # for nginx


class App:
    """What rtot answers.  A handler takes a Request, its parameters and a Job, gives a Response, touches no socket."""

    def __init__(self, loop, secret, store, runner, workspace, max_script, max_output, shell):
        """`secret` and `shell` are bytes, the two limits in bytes."""
        self.loop, self.secret, self.store, self.runner, self.workspace = loop, secret, store, runner, workspace
        self.max_script, self.max_output, self.shell = max_script, max_output, shell
        self.began = self.last_used = time.monotonic()
        self.is_stopping, self.stop_asked = False, Condition(loop)

    async def answer(self, request):
        """Return the Response to a request; an Error if it can't be served."""
        reads, headers = request.method in ("GET", "HEAD"), request.headers
        if reads and request.path in ("/ping", "/ping/"):
            await self._refuse_body(request)
            return await self.ping()
        if (reads and request.path == "/" and b"text/html" in headers.get(b"accept", b"")
                and b"rtot-secret" not in headers and b"authorization" not in headers):
            return page()
        await self._authorize(request)
        (_, _, handler, known, takes_body), number = find_route(request.method, request.path)
        job = () if number is None else (self._find_job(number),)
        given = parse_parameters(request.query, known)
        for name in CONDITIONS.intersection(headers) if not reads else ():
            raise bad("rtot knows no conditions, and would ignore the header %s: leave it out", name.decode("ascii"))
        if not takes_body:
            await self._refuse_body(request)
        elif headers.get(b"content-encoding", b"identity").lower() not in (b"", b"identity"):
            raise Error("unsupported media type", "rtot does not decode Content-Encoding: %s: send the body as it is"
                        % readable(headers[b"content-encoding"]))
        return await handler(self, request, given, *job)

    @staticmethod
    async def _refuse_body(request):
        if not request.body.ended:
            await request.body.read_all(0, "bad request", (
                "%s %s takes no body: parameters go into the URL, like ?name=value" % (request.method, request.path)))

    async def _authorize(self, request):
        given = request.headers.get(b"rtot-secret")
        if given is None:
            scheme, _, value = request.headers.get(b"authorization", b"").partition(b" ")
            given = value.strip() if scheme.lower() in (b"rtot", b"bearer") else b""
        if not compare_digest(given, self.secret):
            if given:
                await request.client.pause(WRONG_SECRET)
            raise Error("not authorized", "this is not the secret of this server" if given else
                        "send the secret in a header, as by curl -H 'Rtot-Secret: ...'",
                        [("WWW-Authenticate", 'Bearer realm="rtot"')])
        request.client.admit()
        if b"rtot-poll" not in request.headers:         # of the page, which may have been forgotten
            self.last_used = time.monotonic()
        import_rest()

    def _find_job(self, text):
        """Return the job of that number, or the last."""
        if text == "last":
            job = next(iter(self.store.select(last=1)), None)
        elif re.fullmatch("[+-]?[0-9]{1,18}", text, re.ASCII):
            job = self.store.get(int(text))
        else:
            raise Error("invalid job number", '"%s" is no number of a job, nor last: GET /jobs lists them' % text)
        if job is None:
            raise Error("no such job", "there is no job %s, or no longer" % text, jobs=[])
        return job

    # The server.

    async def ping(self, *_):
        text = '{\n  "message": "still here",\n  "uptime": "%s"\n}\n' % self._uptime()     # json takes 2 ms to import
        return Response(200, text.encode("utf-8"), JSON)

    def _uptime(self):
        return go_duration(round(time.monotonic() - self.began, 3))

    async def root(self, request, given):
        links = {}
        for _, path, _, parameters, _ in ROUTES:
            name = path.strip("/").replace("/{id}", ".byID").replace("/", ".")
            query = "{?%s}" % parameters.replace(" ", ",") if parameters else ""
            if name:
                links.setdefault(name, path.replace("{id}", "{jobs.id}") + query)
        return Response.json(200, {
            "links": links, "version": __version__, "host": socket.gethostname(), "user": user_name(),
            "python": "%d.%d.%d" % sys.version_info[:3], "uptime": self._uptime(),
            "jobs": {state: len(self.store.select(state)) for state in STATES}})

    async def die(self, request, given):
        self.stop()
        return Response(204)

    def stop(self):
        """Let the server end."""
        self.is_stopping = True
        self.stop_asked.notify_all()

    # Jobs.

    async def create(self, request, given):
        if request.length == 0 and b"content-length" not in request.headers:
            raise Error("length required", "POST the script as the body, as by curl --data-binary @file")
        return await self._new_job(request, given, None)

    async def again(self, request, given, job):
        return await self._new_job(request, given, job)

    async def _new_job(self, request, given, old):
        """Make a job of the body and the parameters, or else of the script and the options of the old job, if any."""
        check_wait_and_follow(given)
        options = new_options(given, old.options if old else PLAIN, self.max_output)
        script = await self._script(request, old)
        if self.is_stopping:
            raise Error("service unavailable", "the server is about to exit")
        path = self.workspace.write(script)
        job = Job(self.loop, script, options, options.max_output or self.max_output)
        try:
            self.store.add(job)
        except Error:
            self.workspace.remove(path)
            raise
        self.runner.submit(job, path)
        headers, on_gone = [("Location", job.href)], self.runner.cancel if given.get("attach") else None
        if given.get("follow"):
            body = OutputBody(request.client, job, LOG, 0, owner=request.client, on_gone=on_gone)
            response = Response(201, body, TEXT, headers + [UNBUFFERED])
        else:
            await self._wait(request, given, job, on_gone)
            response = self._answer_job(given, job, 201, 201 if given.get("wait") is None else 202, headers)
        response.job = job.id
        return response

    async def _script(self, request, old):
        """Return the script in the body, with a #! line, or that of the old job if there is none."""
        script = await request.body.read_all(self.max_script, "content too large", (
            "a script may have %d bytes here: start rtot with more --max-script" % self.max_script))
        if not script and old:
            return old.script
        if script.startswith(b"\xef\xbb\xbf"):          # the byte order mark of UTF-8, as editors on Windows write it
            script = script[3:]
        if not script:
            raise bad("the script is empty: POST it as the body, as by curl --data-binary @file")
        boundary = script.startswith(b"--") and re.search(b'^multipart/.*boundary="?([^";,]+)',
                                                          request.headers.get(b"content-type", b""), re.I)
        if boundary and script.startswith(b"--" + boundary.group(1)):
            raise bad("a form, as curl -F makes it, is no script: POST the script, as by curl --data-binary @file")
        return script if script.startswith(b"#!") else b"#!" + self.shell + b"\n" + script

    @staticmethod
    async def _wait(request, given, job, on_gone=None):
        """Wait for the end of the job, if that is asked for; call on_gone(job) if the client disconnects."""
        seconds = given.get("wait")
        if not seconds or job.is_complete():
            return
        try:
            await request.client.attend(job.ended.wait_for(job.is_complete, None if seconds == FOREVER else seconds))
        except ClientGone:
            if on_gone:
                on_gone(job)
            raise

    def _answer_job(self, given, job, complete, running, headers):
        """Answer with the job, and the status for one that is complete or not, or has failed if that is asked for."""
        status = complete if job.is_complete() else running
        return self._answer_jobs(424 if given.get("fail") and job.has_failed() else status, given, [job], headers)

    @staticmethod
    def _answer_jobs(status, given, jobs, headers=()):
        """Answer with the jobs as JSON, or as text if that is asked for."""
        write, content_type = (jobs_text, TEXT) if given.get("text") else (jobs_json, JSON)
        return Response.of_pieces(status, write(jobs, shown_fields(given)), content_type, headers)

    async def list(self, request, given):
        jobs = self.store.select(given.get("state") or None, given.get("label") or None, given.get("last"))
        return self._answer_jobs(200, given, jobs)

    async def delete_all(self, request, given):
        for name, value in given.items():
            if not value:               # as from a variable of the shell that is not set
                raise bad("%s is empty: give a value, or leave it out for all", name)
        jobs = self.store.select(given.get("state"), given.get("label"))
        for job in jobs:
            self.store.remove(job)
        await self.runner.end_or_release(jobs)
        return Response(204)

    async def get(self, request, given, job):
        check_wait_and_follow(given)
        await self._wait(request, given, job)
        return self._answer_job(given, job, 200, 202, [("Location", job.href)])

    async def delete(self, request, given, job):
        self.store.remove(job)
        await self.runner.end_or_release([job])
        return Response(204)

    async def script(self, request, given, job):
        size = len(job.script)
        return Response(200, job.script if size <= SLICE else Pieces(slices(job.script)), TEXT, length=size)

    async def exit(self, request, given, job):
        await self._wait(request, given, job)
        return Response(200, b"%d\n" % job.exit_code, TEXT) if job.is_complete() else Response(202)

    # Output.

    async def out(self, request, given, job):
        return await self._output(request, given, job, OUT)

    async def err(self, request, given, job):
        return await self._output(request, given, job, ERR)

    async def log(self, request, given, job):
        output, offset = job.output, given.get("from")
        if not given.get("json"):
            if offset is not None:
                raise bad("from is a position in the log as log?json tells it: give json too")
            return await self._output(request, given, job, LOG)
        if offset is None:
            offset = await self._beginning(given, output, LOG)
        elif "tail" in given:
            raise bad("from and tail both say where to begin: give one of them")
        elif offset > output.end[LOG]:
            raise Error("range not satisfiable", "the log has %d bytes" % output.end[LOG])
        body = JsonLog(request.client, job, max(offset, output.start[LOG]), given.get("follow"))
        return Response(200, body, JSON_LINES, [("Rtot-Dropped", str(output.start[LOG])), UNBUFFERED])

    async def _beginning(self, given, output, which):
        """Return the offset at which to begin: that of the last lines, or of what is kept."""
        lines = given.get("tail")
        return output.start[which] if lines is None else await output.tail(which, lines, self.loop.breathe)

    async def _output(self, request, given, job, which):
        """Answer with what the job has printed: all, from the byte that Range names, or the last lines.

        206 tells that bytes before the first may be missing: they were dropped, or Range did not ask for them.
        """
        follow, output = given.get("follow", False), job.output
        first = self._range(request) if which != LOG else None
        if first is not None and "tail" in given:
            raise bad("Range and tail both say where to begin: give one of them")
        offset = await self._beginning(given, output, which) if first is None else first
        start, end = output.start[which], output.end[which]
        if offset > end or first is not None and not follow and offset == end:
            raise Error("range not satisfiable", "there are %d bytes" % end, [("Content-Range", "bytes */%d" % end)])
        offset, headers, status = max(offset, start), [("Rtot-Dropped", str(start))], 200
        if first is not None or offset == start > 0:
            status, last = 206, MOST_BYTES if follow else max(end - 1, offset)
            whole = str(end) if job.is_complete() and not follow else "*"
            headers.append(("Content-Range", "bytes %d-%d/%s" % (offset, last, whole)))
        if not follow and end - offset <= SLICE:
            return Response(status, b"".join(kept_pieces(output, which, offset, end)), TEXT, headers)
        return Response(status, OutputBody(request.client, job, which, offset, follow), TEXT,
                        headers + [UNBUFFERED] if follow else headers, None if follow else end - offset)

    @staticmethod
    def _range(request):
        """Return the N of Range: bytes=N-, or None; others are as if there were none, which RFC 9110, 14.2 allows.

        If-Range asks for a validator, which these bodies have not.
        """
        match = re.fullmatch(b"bytes=([0-9]{1,18})-", request.headers.get(b"range", b""))
        return int(match.group(1)) if match and b"if-range" not in request.headers and request.method == "GET" else None

    # Talking to a job.

    async def stdin(self, request, given, job):
        if not (job.options.stdin or job.options.tty):
            raise Error("conflict", "job %d has no standard input: POST /jobs?stdin opens one" % job.id)
        eof, body = given.get("eof", False), request.body
        body.timeout = None             # what makes the input may take its time
        await request.client.attend(job.changed.wait_for(lambda: job.state != "new"))
        while True:
            data = await body.read()
            if data or eof and body.ended:
                process = self.runner.process(job)
                if process is None:
                    raise Error("conflict", "standard input of job %d is closed" % job.id)
                await request.client.attend(feed(self.loop, process, data, eof and body.ended))
            if body.ended:
                return Response(204)

    async def kill(self, request, given, job):
        number, grace = given.get("signal"), given.get("grace")
        if number is None:
            number, grace = signal.SIGTERM, GRACE if grace is None else grace
        await self.runner.kill(job, number, grace)
        return Response(204)

    async def resize(self, request, given, job):
        if "rows" not in given or "cols" not in given:
            raise bad("give both, as ?rows=24&cols=80")
        if not job.options.tty:
            raise Error("conflict", "job %d has no terminal: POST /jobs?tty gives one" % job.id)
        process = self.runner.process(job)
        if process is None or process.terminal is None:
            raise Error("conflict", "the terminal of job %d is closed" % job.id)
        set_size(process.terminal, given["rows"], given["cols"])
        return Response(204)


@functools.lru_cache(maxsize=1)
def user_name():
    import pwd
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@functools.lru_cache(maxsize=128)
def find_route(method, path):
    """Return (a row of ROUTES, the number of a job as text or None)."""
    parts = path.split("/")
    if len(parts) > 2 and not parts[-1]:
        if method == "DELETE":
            raise bad("DELETE %s: leave the last slash out, or name a job behind it if a variable was empty", path)
        parts.pop()             # /jobs/ is /jobs
    number = parts[2] if len(parts) > 2 and parts[1] == "jobs" else None
    key = "/".join(parts if number is None else parts[:2] + ["{id}"] + parts[3:])
    methods = {route[0]: route for route in ROUTES if route[1] == key}
    if not methods and path.startswith("/"):        # but * and host:80, of OPTIONS and CONNECT
        raise Error("not found", "there is nothing at %s; GET / lists what there is" % path)
    route = methods.get("GET" if method == "HEAD" else method)
    if route is None:
        allowed = ", ".join(sorted(methods) + (["HEAD"] if "GET" in methods else []))
        message = "%s takes %s, not %s" % (path, allowed, method) if allowed else "rtot has no use for %s" % method
        raise Error("method not allowed", message, [("Allow", allowed)])
    return route, number


@functools.lru_cache(maxsize=1)
def import_rest():
    """Import what the first answer does not need."""
    for name in LATER:
        __import__(name)


NEW = "arg env cwd timeout label max_output stdin tty rows cols wait follow attach fail fields text"

ROUTES = (          # method, path, handler, parameters, whether there is a body
    ("GET", "/", App.root, "", False),
    ("DELETE", "/", App.die, "", False),
    ("GET", "/ping", App.ping, "", False),
    ("GET", "/jobs", App.list, "state label last fields text", False),
    ("POST", "/jobs", App.create, NEW, True),
    ("DELETE", "/jobs", App.delete_all, "state label", False),
    ("GET", "/jobs/{id}", App.get, "fields text wait fail", False),
    ("DELETE", "/jobs/{id}", App.delete, "", False),
    ("GET", "/jobs/{id}/out", App.out, "follow tail", False),
    ("GET", "/jobs/{id}/err", App.err, "follow tail", False),
    ("GET", "/jobs/{id}/log", App.log, "follow tail json from", False),
    ("GET", "/jobs/{id}/script", App.script, "", False),
    ("GET", "/jobs/{id}/exit", App.exit, "wait", False),
    ("POST", "/jobs/{id}/again", App.again, NEW, True),
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


class CannotStart(argparse.ArgumentTypeError):
    """Why there is no server, in a line; argparse makes a usage error of it."""


class Attempt:
    """`with Attempt("write FILE"):` makes a CannotStart of an OSError: "cannot write FILE", and why."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        if isinstance(error, (OSError, UnicodeError)):      # the latter from a host's name
            raise CannotStart("cannot %s: %s" % (self.what, getattr(error, "strerror", None) or error)) from None


class Log:
    """Lines on standard error, or in a file: events, requests, and the ends of jobs; as text or as JSON.

    Neither the secret nor a query string nor a script is ever in it, and control bytes are escaped.  A line that would
    have to wait, as for a terminal that nobody reads, is dropped.
    """

    def __init__(self, form, path=None):
        self.form, self.path, self._fd = form, path, 2
        self.go_to(os.dup(2))

    def open(self):
        """Return a descriptor of the file; CannotStart if it can't be written."""
        with Attempt("write " + self.path):
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)

    def go_to(self, fd):
        """Make `fd` standard error, and open that again so that writing to it never waits."""
        os.dup2(fd, 2)
        os.close(fd)
        if self._fd != 2:
            os.close(self._fd)
        self._fd, self._may_block = 2, False
        if not stat.S_ISREG(os.fstat(2).st_mode):
            try:                # O_NONBLOCK belongs to what open(2) has opened: set on ours, it would be everyone's
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:     # a socket, or no /proc
                self._may_block = True

    def event(self, text):
        self._write(text, {"event": text})

    def fault(self, kind, error, trace):
        """Tell of an exception that nobody foresaw."""
        import traceback
        self.event("error: " + "".join(traceback.format_exception(kind, error, trace)))

    def access(self, address, request, response, size, seconds):
        """Note a request, None for what was none; `response` and `size` (of its body) are None if the client left."""
        method, path = (request.method, request.path) if request else ("-", "-")
        status, job = (response.status, response.job) if response else (None, None)
        pairs = {"client": address, "method": method, "path": path, "status": status, "bytes": size, "seconds": seconds}
        text = "%s %s %s %s %s %s" % (
            address, method, escape(path).replace(" ", "\\x20"), "-" if status is None else status,
            "-" if size is None else size, span(seconds))
        if job is not None:
            pairs["job"] = job
            text += " job %d" % job
        self._write(text, pairs)

    def job_ended(self, job):
        label = job.options.label
        text = "job %d complete: %s%s after %s" % (
            job.id, "timed out, " if job.timed_out else "", escape(job.exit or "ok"), span(job.duration))
        if label:
            text += ", label " + escape(label).replace(" ", "\\x20")
        self._write(text, {"job": job.id, "exit": job.exit, "exit_code": job.exit_code, "timed_out": job.timed_out,
                           "seconds": job.duration, "label": label})

    def _write(self, text, pairs):
        """Write a line: the text, or the pairs as JSON."""
        now = utc("%Y-%m-%dT%H:%M:%SZ", int(time.time()))
        if self.form == "json":
            import json
            pairs = {"time": now, **pairs}
            if "seconds" in pairs:
                pairs["seconds"] = round(pairs["seconds"], 6)
            line = json.dumps(pairs)
            while len(line) > LOG_LINE:     # rather a part of a path or an event than of a line, which is no JSON
                longest = max(pairs, key=lambda name: len(str(pairs[name])))
                pairs[longest] = pairs[longest][:len(pairs[longest]) // 2]
                line = json.dumps(dict(pairs, cut=True))
        else:
            line = ("rtot: " if "event" in pairs else now + " ") + text
            if len(line) > LOG_LINE:
                line = line[:LOG_LINE // 2 - 3] + "..." + line[-LOG_LINE // 2:]
        try:
            if not self._may_block or select.select((), (self._fd,), (), 0)[1]:
                os.write(self._fd, (line + "\n").encode("utf-8", "replace"))
        except (OSError, ValueError):       # nobody reads it: no reason to stop; its number is too high for select
            pass


def span(seconds):
    """Return a duration for the log, as 3.5ms or 1.25s."""
    return "%.4gms" % (seconds * 1000) if seconds < 1 else "%.6gs" % round(seconds, 3)


def escape(text):
    """Return text for a line of the log: without control characters, or what is not ASCII."""
    return text.encode("unicode_escape").decode("ascii")


def option(right, convert):
    """Return a type of option: a function that converts text, or says what would be right if that gives None."""
    def parse(text):
        value = convert(text)
        if value is None:
            raise CannotStart("%r is no %s" % (text, right))
        return value
    return parse


def split_address(text):
    """Return (host, port) of :8457, host:8457 or [::1]:8457, (path, None) of unix:path; see Server."""
    host, colon, port = text.rpartition(":")
    if text.startswith("unix:") and text[5:]:
        return text[5:], None
    if not (colon and port.isdecimal() and int(port) < 65536) or ":" in host and host[0] + host[-1] != "[]":
        return None
    return "" if host == "*" else host.strip("[]"), int(port)       # * for all is common, and no name


def whole(text):
    return int(text) if text.isdecimal() and len(text) < 10 else None


def split_time(text):
    """Return the seconds of 90, 30m or 4h; None if it is no such time, or 0."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    number = whole(text[:-1] if unit else text)
    return number * (unit or 1) if number else None


def parse_secret(text):
    """Return the secret as bytes, without the blanks around it, which the value of a header has not."""
    secret = os.fsencode(text).strip(b" \t\r\n")
    if not secret:
        raise CannotStart("the secret is empty: leave it out, and one is made")
    if min(secret) < 32 or 127 in secret:
        raise CannotStart("the secret has a control character, which no header can have")
    return secret


def read_secret(path):
    with Attempt("read the secret from " + path), open(0 if path == "-" else path, "rb") as file:
        line = file.readline()
    return parse_secret(line[3:] if line.startswith(b"\xef\xbb\xbf") else line)     # a byte order mark


TYPES = {           # of the values of options, by what --help calls them; a FILE is text
    "ADDR": option("address, like :8457, host:8457, [::1]:8457 or unix:/path", split_address),
    "COUNT": option("whole number over 0", lambda text: whole(text) or None),
    "FILE|-": read_secret,
    "N": option("count, like 0 or 8", whole),
    "SECRET": parse_secret,
    "SIZE": option("size, like 4096, 64K, 16M or 1G", lambda text: size_in_bytes(text) or None),
    "TIME": option("time over 0, like 90 (seconds), 30m or 4h", split_time),
    "text|json": option("format: text or json", {"text": "text", "json": "json"}.get),
}

OPTIONS = {         # names, value=default (or it is a flag), and help
    "-a --addr ADDR=:8457":
        "where to listen: :8457 (all addresses), host:8457, [::1]:8457, unix:/path; port 0 picks one",
    "-s --secret SECRET": "what every request has to present; one is made if none is given",
    "--secret-file FILE|-": "read the secret from the first line of FILE, or of standard input: -",
    "-d --daemon": "serve in the background: return when the port is bound, or exit with 1 and say why not",
    "-j --parallel N=0": "run N jobs at a time, the rest wait as new; 0 is all",
    "--idle-exit TIME": "end after so long without a running job or a request with the secret: 90 (seconds), 30m, 4h",
    "--pid-file FILE": "write the process id to FILE, and remove it at the end",
    "--log-file FILE": "write the log to FILE; SIGHUP opens it again",
    "-f --log-format text|json=text": "write the log as text or as JSON",
    "--self-destruct": "remove the file of rtot, too, when the server has ended",
    "--tls-cert FILE": "serve HTTPS with this certificate and its chain, in PEM",
    "--tls-key FILE": "its key (default: in the file of the certificate)",
    "--tls-client-ca FILE": "serve only clients with a certificate signed by one of these",
    "--max-output SIZE=64M": "keep that much output of a job, the oldest is dropped",
    "--max-total SIZE": "keep that much output of all jobs together (default: a quarter of the memory)",
    "--max-script SIZE=16M": "take scripts up to this size",
    "--keep N=0": "keep N complete jobs, the oldest are forgotten; 0 is all",
    "--max-connections COUNT=1000": "serve that many connections at a time",
    "--head-timeout TIME=10": "take so long for the head of a request: a byte now and then does not prolong it",
    "--body-timeout TIME=30": "wait so long for a byte of a body",
    "--idle-timeout TIME=75": "wait so long for the next request of a connection",
}


def parser():
    # With a width it needs no shutil: 2.6 ms of the start.
    result = argparse.ArgumentParser("rtot", description=DESCRIPTION, epilog=EPILOG,
                                     formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=79))
    result.add_argument("-v", "--version", action="version", version="rtot " + __version__)
    one_of = result.add_mutually_exclusive_group()
    for words, text in OPTIONS.items():
        *names, value = words.split()
        if value.startswith("-"):
            result.add_argument(*names, value, action="store_true", help=text)
            continue
        value, _, default = value.partition("=")
        (one_of if "--secret" in words else result).add_argument(
            *names, metavar=value, type=TYPES.get(value), default=default or None,
            help=text + (" (default: %(default)s)" if default else ""))
    given = {name: os.environ.get("RTOT_" + name.upper()) for name in ("addr", "secret", "log_format")}
    result.set_defaults(**{name: value for name, value in given.items() if value})
    return result


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
        memory.seek(first)
        text = b"\0".join(map(hidden, memory.read(last - first).split(b"\0")))
        memory.seek(first)
        memory.write(text)


def prepare_process(daemon):
    """Make what jobs will inherit from us what it is for a fresh shell.

    Jobs get no descriptors from 3 up; a daemon does not even keep them, but for the one that systemd handed over.
    """
    fd = 0
    while fd <= 2:                                  # 0, 1 and 2 are open, so that no pipe becomes one of them
        fd = open_null()
    if daemon:
        os.dup2(fd, 0)
        os.dup2(fd, 1)
    try:
        numbers = [number for number in map(int, os.listdir("/dev/fd")) if number > 2]
    except (OSError, ValueError):
        numbers = ()
    if fd not in numbers:                           # it is missing, or a plain directory, in a chroot
        numbers = range(3, min(os.sysconf("SC_OPEN_MAX"), 65536))
    os.close(fd)
    first = 4 if os.environ.get("LISTEN_PID") == str(os.getpid()) else 3        # see handed_socket
    for number in numbers:
        try:
            os.close(number) if daemon and number >= first else os.set_inheritable(number, False)
        except OSError:                             # there is none
            pass
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # What is ignored stays so in a child, what has a handler does not (execve(2)): so that nohup, or a shell's &,
    # does not make jobs deaf.  What Python ignores (SIGPIPE, SIGXFSZ) is restored at each spawn.
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGPIPE, signal.SIGXFSZ) and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, no_action)


def daemonize():
    """Go on in the background, where working directory and umask stay as they were; return a descriptor.

    The one in the foreground exits with 0 when a byte is written to it, with 1 if we exit before that.
    """
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
    import fcntl
    with Attempt("write " + path):
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CannotStart("%s is the pid file of a server that lives" % path) from None
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)            # who had it has removed it since we opened it
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
    import resource
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.split(":", 2)[1:] for line in file.read().splitlines()]
    except OSError:
        groups = [("", "/"), ("memory", "/")]
    for controllers, path in groups:
        name = {"": "memory.max", "memory": "memory.limit_in_bytes"}.get(controllers)
        places = ["/sys/fs/cgroup/" + controllers] + path.split("/")[1:]
        for place in itertools.accumulate(places, os.path.join) if name else ():    # the group, and those around it
            try:
                with open(os.path.join(place, name)) as file:
                    sizes.append(int(file.read()))
            except (OSError, ValueError):       # not there, or "max"
                pass
    return min(size for size in sizes if size > 0) // 4         # no limit is -1


def raise_nofile():
    """Allow ourselves more descriptors; return (how many we may have, the limits that jobs get, or None for ours)."""
    import resource
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (65536 if limit == resource.RLIM_INFINITY else limit for limit in limits)
    wanted = min(hard, 65536)
    if soft >= wanted or not hasattr(resource, "prlimit"):
        return soft, None
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted, (soft, hard)


def tls_context(args):
    """Return an ssl.SSLContext as the options say, or None."""
    cert, key, authority = args.tls_cert, args.tls_key, args.tls_client_ca
    if not cert:
        if key or authority:
            raise CannotStart("--tls-key and --tls-client-ca need --tls-cert")
        return None
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if hasattr(ssl, "TLSVersion"):          # 3.7
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    for path in filter(None, (cert, key, authority)):
        with Attempt("read " + path):       # ssl's errors do not name it
            open(path, "rb").close()
    with Attempt("use %s with %s: rtot needs a certificate and its key, in PEM, not encrypted" % (cert, key or cert)):
        context.load_cert_chain(cert, key, password="")         # else OpenSSL asks for one
    if authority:
        with Attempt("use %s: rtot needs the certificate of an authority, in PEM" % authority):
            context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def handed_socket():
    """Return the listening socket that systemd has opened for us (sd_listen_fds(3)), or None."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if os.environ.get("LISTEN_FDS") != "1":
        raise CannotStart("LISTEN_FDS is %s: rtot takes one socket" % os.environ.get("LISTEN_FDS"))
    with Attempt("use the socket that was handed over"):
        probe = socket.socket(fileno=3)         # before 3.7 it does not see the family itself
        family = probe.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_DOMAIN", 39)) if LINUX else probe.family
        if not probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise CannotStart("the socket that was handed over does not listen: Accept=no is right for rtot")
        return socket.socket(family, socket.SOCK_STREAM, fileno=probe.detach())


def notify_systemd(text):
    """Tell systemd that we are ready, or stop, if it waits for that: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(text, "\0" + path[1:] if path.startswith("@") else path)
        except OSError:         # it does not wait any more
            pass


def announce(url, secret, made, log):
    """Say where it listens, on standard error; then in the log file too, if there is one."""
    fd = log.open() if log.path else None
    where = "version %s listens on %s" % (__version__, url)
    if made:
        log.event("no secret was given, so this one was made: " + secret)
    elif len(secret) < 8 and not re.match(r"unix:|https:|http://(127\.|\[::1\])", url):
        log.event("the secret is short: whoever guesses it can run anything as %s; listen on 127.0.0.1, or use a "
                  "longer one" % user_name())
    log.event(where)
    if made and url.startswith("http"):
        host = socket.gethostname()
        log.event("in a browser: %s#secret=%s" % (re.sub(r"//(\[::\]|0\.0\.0\.0):", "//%s:" % host, url), secret))
    if log.path:
        log.go_to(fd)
        log.event(where)


class Service:
    """All that serves, as the options say, until one of the signals `ends_us` comes; `handed` is a socket, or None."""

    def __init__(self, args, handed, secret, ends_us, log):
        self.args, self.log, self.loop = args, log, Loop()
        total = args.max_total or quarter_of_memory()
        descriptors, nofile = raise_nofile()
        self.total, self.workspace = TotalOutput(total), Workspace()
        store = JobStore(args.keep, total)
        self.runner = Runner(self.loop, store, self.workspace, Spawner(descriptors, nofile), self.total, args.parallel,
                             on_complete=log.job_ended, say=log.event)
        shell = b"/bin/bash" if os.access("/bin/bash", os.X_OK) else b"/bin/sh"
        self.app = App(self.loop, secret, store, self.runner, self.workspace, args.max_script,
                       min(args.max_output, total), shell)
        limits = types.SimpleNamespace(connections=args.max_connections, descriptors=descriptors,
                                       head=args.head_timeout, body=args.body_timeout, idle=args.idle_timeout)
        self.loop.report, self.loop.relieve = log.fault, self._relieve
        with Attempt("listen on " + show_address(args.addr)):
            self.server = Server(handed or args.addr, self.loop, self.app, log, limits, tls_context(args))
        self.loop.catch_signals({signal.SIGHUP: self._hang_up, **dict.fromkeys(ends_us, self._end),
                                 signal.SIGCHLD: self.runner.child_exited})

    def _relieve(self):
        """Keep less: it is too much for this host."""
        self.total.shrink(self.total.size // 2)
        give_memory_back()

    def _end(self):
        """End; a second time, without any grace for the jobs."""
        if self.app.is_stopping:
            self.runner.kill_all()
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
            self.loop.spawn(self._shut_down())
            self.loop.call_later(SWEEP_AFTER, lambda: self.loop.spawn(self.workspace.sweep(self.loop.breathe)))
            if self.args.idle_exit:
                self.loop.spawn(self._watch_idleness(self.args.idle_exit))
            self.loop.run()
        finally:
            self.loop.close()
            self.workspace.close()

    async def _shut_down(self):
        await self.app.stop_asked.wait_for(lambda: self.app.is_stopping)
        notify_systemd(b"STOPPING=1")
        await self.runner.stop()
        await self.server.drain(DRAIN)
        self.loop.stop()

    async def _watch_idleness(self, seconds):
        """Stop when for that long no job has run and no request with the secret has come."""
        busy = self.app.began
        while max(busy, self.app.last_used) + seconds > time.monotonic():
            await self.loop.sleep(1.0)
            if self.runner.is_busy or any(one.waiting_since is None for one in self.server.connections):
                busy = time.monotonic()
        self.log.event("idle for %s: ending, as --idle-exit says" % go_duration(seconds))
        self.app.stop()


def run(args, ends_us, log):
    """Serve as the options say; CannotStart if that can't be."""
    handed = handed_socket()
    paths = (sys.argv[0], os.path.realpath(sys.argv[0])) if args.self_destruct else ()      # of a link, and its file
    files = [(path, identity(path)) for path in paths]
    foreground = daemonize() if args.daemon else None
    pid_file = write_pid_file(args.pid_file) if args.pid_file else None
    try:
        given = args.secret_file or args.secret
        secret = given or os.urandom(16).hex().encode("ascii")
        service = Service(args, handed, secret, ends_us, log)
        with service.server as server:
            announce(server.url, readable(secret), not given, log)
            if args.daemon:
                if not log.path:
                    log.go_to(open_null())
                os.write(foreground, b"\0")
                os.close(foreground)
            notify_systemd(b"READY=1")
            service.serve()
        for number in ends_us:          # a second one would end the end of the interpreter
            signal.signal(number, signal.SIG_IGN)
        for path, ours in files:
            remove_ours(path, ours, log)
    finally:
        if pid_file:
            os.ftruncate(pid_file, 0)       # in a directory that is not ours it stays
            remove_ours(args.pid_file, identity(pid_file), log)


def main():
    """Serve until stopped; return the exit status."""
    options = parser()
    args = options.parse_args()
    if args.self_destruct and not os.path.isfile(sys.argv[0]):
        options.error("--self-destruct: rtot came from standard input, there is no file to remove")
    ends_us = {number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
               if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN}
    if args.daemon or args.log_file:
        ends_us.discard(signal.SIGHUP)
        signal.signal(signal.SIGHUP, no_action)
    prepare_process(args.daemon)
    log = Log(args.log_format, args.log_file)
    try:
        if args.secret:
            hide(args.secret)
    except (OSError, ValueError):           # no such /proc, or it may not be written
        if any(args.secret in os.fsencode(word) for word in sys.argv):
            log.event("the secret can be seen in ps here: give it by --secret-file or RTOT_SECRET")
    try:
        run(args, ends_us, log)
    except CannotStart as error:
        log.event(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
