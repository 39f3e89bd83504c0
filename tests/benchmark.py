"""What rtot costs, as ratios: each figure is measured in turn with its reference; run by hand, some minutes.

    python3 tests/benchmark.py
    python3 tests/benchmark.py --quick                      # about a minute, less exact
    python3 tests/benchmark.py --only jobs-16 start --rounds 9
    python3 tests/benchmark.py --python /usr/bin/python3.9  # the server, and the interpreters it is compared with
    python3 tests/benchmark.py --against cd611bd            # and beside the rtot of a commit, a rtot.py or a rtot.pyz

A round measures rtot and its reference one right after the other, in alternating order, so that a machine with
other work to do is slow for both.  The ratio is that of a round; the table shows the median and the extremes.
The load comes from a process of its own, which is the C below if there is a compiler: on a small machine a client
takes the CPU from the server.  So is the bare loop, which spawns the same script, reads its pipes and does
nothing else.  Without a compiler (or with CC=none) both are Python.  `webhook`, a server written in Go that runs a
script for a request, is measured on the same script if it is installed.

It exits with 0 when every target was met, with 1 when one was missed or could not be measured.
"""
import argparse
import collections
import contextlib
import glob
import http.client
import json
import os
import platform
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECRET = "swordfish"
LIMIT = 120.0           # s, for what takes a few
SCRIPT = "echo hi"

C_SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static char buffer[1 << 18];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double now(void)
{
    return now_ns() / 1e9;
}

static void watch(int poller, int fd, unsigned number)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

/* The bare loop: so many bash processes at a time, their output read to its end and thrown away. */

struct child { pid_t pid; int fds[2]; int open; };

static void spawn(struct child *child, unsigned number, int poller, char *script)
{
    char *argv[] = {"/bin/bash", script, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int ends[2][2], error;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
#ifdef POSIX_SPAWN_SETSID
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
#endif
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    for (int i = 0; i < 2; i++) {
        if (pipe2(ends[i], O_CLOEXEC))
            die("pipe");
        posix_spawn_file_actions_adddup2(&actions, ends[i][1], i + 1);
    }
    if ((error = posix_spawn(&child->pid, argv[0], &actions, &attributes, argv, environ))) {
        errno = error;
        die("posix_spawn");
    }
    for (int i = 0; i < 2; i++) {
        close(ends[i][1]);
        child->fds[i] = ends[i][0];
        watch(poller, child->fds[i], number * 2 + i);
    }
    child->open = 2;
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
}

static void bare_loop(int in_flight, double seconds, char *script)
{
    struct child *children = calloc(in_flight, sizeof *children);
    struct epoll_event events[256];
    int poller = epoll_create1(EPOLL_CLOEXEC), flying = in_flight, status;
    long done = 0, failed = 0;
    double began = now();
    for (int i = 0; i < in_flight; i++)
        spawn(&children[i], i, poller, script);
    while (flying) {
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            unsigned which = events[i].data.u32;
            struct child *child = &children[which / 2];
            if (read(child->fds[which % 2], buffer, sizeof buffer) > 0)
                continue;
            /* Explicitly, not by close(): a child that is just now in exec(2) may still hold a copy. */
            epoll_ctl(poller, EPOLL_CTL_DEL, child->fds[which % 2], NULL);
            close(child->fds[which % 2]);
            if (--child->open)
                continue;
            if (waitpid(child->pid, &status, 0) != child->pid || status)
                failed++;
            done++;
            if (now() - began < seconds)
                spawn(child, which / 2, poller, script);
            else
                flying--;
        }
    }
    printf("%ld %ld %.6f\n", done, failed, now() - began);
}

/* An HTTP client that understands just enough to know where an answer ends. */

enum state { STATUS, HEADER, SIZE, DATA, GAP, TRAILER };

struct connection {
    int fd, used, status, chunked;
    enum state state;
    long left, dropped;                 /* bytes of the body or chunk to come, and Rtot-Dropped */
    char line[1024];
    unsigned long long number;          /* of the line of the body that is coming: follow() */
};

static void (*take)(struct connection *, const char *, long);   /* what gets the bodies, if anything */

static int value_of(struct connection *c, const char *name)
{
    return strncasecmp(c->line, name, strlen(name)) ? 0 : (int)strlen(name);
}

/* Heed a line of a head, a chunk's size or a trailer; return 1 at the end of the answer. */
static int heed(struct connection *c)
{
    int at, empty = !c->line[0];
    switch (c->state) {
    case STATUS:
        c->status = atoi(c->line + 9);
        c->chunked = 0;
        c->left = 0;
        c->state = HEADER;
        return 0;
    case HEADER:
        if ((at = value_of(c, "content-length:")))
            c->left = atol(c->line + at);
        else if (value_of(c, "transfer-encoding: chunked"))
            c->chunked = 1;
        if (empty)
            c->state = c->chunked ? SIZE : c->left ? DATA : STATUS;
        return empty && c->state == STATUS;
    case SIZE:
        c->left = strtol(c->line, NULL, 16);
        c->state = c->left ? DATA : TRAILER;
        return 0;
    case TRAILER:
        if ((at = value_of(c, "rtot-dropped:")))
            c->dropped = atol(c->line + at);
        if (empty)
            c->state = STATUS;
        return empty;
    default:
        c->state = SIZE;
        return 0;
    }
}

/* Go on with an answer; return 1 at its end. */
static int feed(struct connection *c, const char *at, long size)
{
    const char *end = at + size;
    while (at < end) {
        if (c->state == DATA) {
            long part = end - at < c->left ? end - at : c->left;
            if (take)
                take(c, at, part);
            at += part;
            c->left -= part;
            if (c->left)
                return 0;
            c->state = c->chunked ? GAP : STATUS;
            if (!c->chunked)
                return 1;
            continue;
        }
        const char *stop = memchr(at, '\n', end - at);
        for (const char *p = at; p < (stop ? stop : end); p++)
            if (*p != '\r' && c->used < (int)sizeof c->line - 1)
                c->line[c->used++] = *p;
        if (!stop)
            return 0;
        c->line[c->used] = 0;
        c->used = 0;
        at = stop + 1;
        if (heed(c))
            return 1;
    }
    return 0;
}

static char request[4096];
static int request_size;

static void ask(struct connection *c)
{
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != request_size)
        die("send");
}

/* Connect; the request, which is the same for all, comes from standard input. */
static struct connection *dial(int port, int count, int poller)
{
    struct connection *all = calloc(count, sizeof *all);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    request_size = fread(request, 1, sizeof request, stdin);
    for (int i = 0; i < count; i++) {
        all[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (all[i].fd < 0 || connect(all[i].fd, (struct sockaddr *)&address, sizeof address))
            die("connect");
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(poller, all[i].fd, i);
    }
    return all;
}

static long hear(struct connection *c)
{
    long size = recv(c->fd, buffer, sizeof buffer, 0);
    if (size <= 0)
        die("the server hung up");
    return size;
}

/* The same request over and over on each connection, for so long, or so many times if that is sooner. */
static void load(int port, int count, double seconds, long most)
{
    struct epoll_event events[256];
    int poller = epoll_create1(EPOLL_CLOEXEC), flying = 0;
    struct connection *all = dial(port, count, poller);
    long sent = 0, answers = 0, bad = 0;
    double began = now();
    for (; flying < count && (!most || sent < most); sent++)
        ask(&all[flying++]);
    while (flying) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = &all[events[i].data.u32];
            if (!feed(c, buffer, hear(c)))
                continue;
            answers++;
            bad += c->status / 100 != 2;
            if (now() - began < seconds && (!most || sent < most)) {
                ask(c);
                sent++;
            } else
                flying--;
        }
    }
    printf("%ld %ld %.6f\n", answers, bad, now() - began);
}

static long long total;

static void count_bytes(struct connection *c, const char *data, long size)
{
    (void)c;
    (void)data;
    total += size;
}

/* One answer, of any length. */
static void gulp(int port)
{
    struct connection *c = dial(port, 1, epoll_create1(EPOLL_CLOEXEC));
    double began = now();
    take = count_bytes;
    ask(c);
    while (!feed(c, buffer, hear(c)))
        ;
    printf("%lld %ld %.6f\n", total, c->dropped + (c->status / 100 != 2), now() - began);
}

/* Many readers of one stream, each line of which is the time at which it was printed. */

static double *delays;
static long delays_size, delays_room;
static long long arrived;

static void note_lines(struct connection *c, const char *data, long size)
{
    for (; size--; data++) {
        if (*data != '\n') {
            c->number = c->number * 10 + (*data - '0');
            continue;
        }
        if (delays_size == delays_room) {
            delays_room = delays_room * 2 + 1024;
            if (!(delays = realloc(delays, delays_room * sizeof *delays)))
                die("realloc");
        }
        delays[delays_size++] = (arrived - (long long)c->number) / 1e6;
        c->number = 0;
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void follow(int port, int count)
{
    struct epoll_event events[256];
    int poller = epoll_create1(EPOLL_CLOEXEC), living = count, waiting = count;
    struct connection *all = dial(port, count, poller);
    take = note_lines;
    for (int i = 0; i < count; i++)
        ask(&all[i]);
    while (living) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = &all[events[i].data.u32];
            int fresh = c->state <= HEADER;
            long size = hear(c);
            arrived = now_ns();
            int ended = feed(c, buffer, size);
            if (fresh && c->state > HEADER && !--waiting) {
                puts("ready");
                fflush(stdout);
            }
            if (ended) {
                epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
                living--;
            }
        }
    }
    qsort(delays, delays_size, sizeof *delays, by_size);
    if (delays_size)
        printf("%ld %.3f %.3f %.3f\n", delays_size, delays[delays_size / 2], delays[delays_size * 99 / 100],
               delays[delays_size - 1]);
}

static void tick(double rate, double seconds)
{
    long count = rate * seconds;
    double began = now();
    for (long i = 0; i < count; i++) {
        double rest = began + i / rate - now();
        if (rest > 0)
            usleep(rest * 1e6);
        printf("%lld\n", now_ns());
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "spawn") && argc == 5)
        bare_loop(atoi(argv[2]), atof(argv[3]), argv[4]);
    else if (!strcmp(what, "load") && argc == 6)
        load(atoi(argv[2]), atoi(argv[3]), atof(argv[4]), atol(argv[5]));
    else if (!strcmp(what, "gulp") && argc == 3)
        gulp(atoi(argv[2]));
    else if (!strcmp(what, "follow") && argc == 4)
        follow(atoi(argv[2]), atoi(argv[3]));
    else if (!strcmp(what, "tick") && argc == 4)
        tick(atof(argv[2]), atof(argv[3]));
    else
        return 2;
    return 0;
}
"""

# The bare http.server: as it comes, and with its file buffered, so that an answer is one send; with two, Nagle's
# algorithm and the delayed acknowledgement cost it 40 ms each.
HTTP_SERVER = """
import http.server, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = int(sys.argv[2])

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "200")
        self.end_headers()
        self.wfile.write(b"x" * 200)

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Wrong(Exception):
    """A measurement is void."""


def check(condition, *what):
    if not condition:
        raise Wrong(" ".join(map(str, what))[:1000])


# ------------------------------------------------------ the same as the C does, for where there is no compiler


class Conversation:
    """A connection and the answer that comes on it, understood just enough to know where that ends."""

    def __init__(self, port, request):
        self.request, self.take = request, None
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state, self.line, self.left, self.dropped, self.number = "status", b"", 0, 0, b""

    def ask(self):
        self.socket.sendall(self.request)

    def hear(self):
        data = self.socket.recv(1 << 18)
        check(data, "the server hung up")
        return data

    def feed(self, data):
        """Go on with the answer; return True at its end."""
        at, end = 0, len(data)
        while at < end:
            if self.state == "data":
                part = min(end - at, self.left)
                if self.take:
                    self.take(self, memoryview(data)[at:at + part])
                at, self.left = at + part, self.left - part
                if self.left:
                    return False
                self.state = "gap" if self.chunked else "status"
                if not self.chunked:
                    return True
                continue
            stop = data.find(b"\n", at) + 1 or end
            self.line, at = self.line + data[at:stop], stop
            if not self.line.endswith(b"\n"):
                return False
            line, self.line = self.line.strip().lower(), b""
            if self.heed(line):
                return True
        return False

    def heed(self, line):
        """Heed a line of a head, a chunk's size or a trailer; return True at the end of the answer."""
        name, _, value = line.partition(b":")
        if self.state == "status":
            self.status, self.chunked, self.left, self.state = int(line.split()[1]), False, 0, "header"
        elif self.state == "header":
            if name == b"content-length":
                self.left = int(value)
            elif name == b"transfer-encoding":
                self.chunked = True
            elif not line:
                self.state = "size" if self.chunked else "data" if self.left else "status"
                return self.state == "status"
        elif self.state == "size":
            self.left = int(line, 16)
            self.state = "data" if self.left else "trailer"
        elif self.state == "trailer":
            if name == b"rtot-dropped":
                self.dropped = int(value)
            if not line:
                self.state = "status"
                return True
        else:
            self.state = "size"
        return False


def dial(port, count, selector):
    request = sys.stdin.buffer.read()
    conversations = [Conversation(port, request) for _ in range(count)]
    for conversation in conversations:
        selector.register(conversation.socket, selectors.EVENT_READ, conversation)
    return conversations


def py_load(port, count, seconds, most):
    count, seconds, most = int(count), float(seconds), int(most)
    selector = selectors.DefaultSelector()
    conversations = dial(port, count, selector)
    answers, bad, began = 0, 0, time.monotonic()
    sent = flying = min(count, most or count)
    for conversation in conversations[:sent]:
        conversation.ask()
    while flying:
        for key, _ in selector.select():
            conversation = key.data
            if not conversation.feed(conversation.hear()):
                continue
            answers += 1
            bad += conversation.status // 100 != 2
            if time.monotonic() - began < seconds and (not most or sent < most):
                conversation.ask()
                sent += 1
            else:
                flying -= 1
    print(answers, bad, time.monotonic() - began)


def py_gulp(port):
    (conversation,) = dial(port, 1, selectors.DefaultSelector())
    total, began = [0], time.monotonic()

    def take(_, data):
        total[0] += len(data)

    conversation.take = take
    conversation.ask()
    while not conversation.feed(conversation.hear()):
        pass
    print(total[0], conversation.dropped + (conversation.status // 100 != 2), time.monotonic() - began)


def py_follow(port, count):
    selector = selectors.DefaultSelector()
    conversations = dial(port, int(count), selector)
    waiting, delays = len(conversations), []

    def take(conversation, data):
        *lines, conversation.number = (conversation.number + bytes(data)).split(b"\n")
        delays.extend(arrived - int(line) for line in lines)

    for conversation in conversations:
        conversation.take = take
        conversation.ask()
    while selector.get_map():
        for key, _ in selector.select():
            conversation = key.data
            fresh, data = conversation.state in ("status", "header"), conversation.hear()
            arrived = int(time.monotonic() * 1e9)
            if conversation.feed(data):
                selector.unregister(conversation.socket)
            if fresh and conversation.state not in ("status", "header"):
                waiting -= 1
                if not waiting:
                    print("ready", flush=True)
    delays.sort()
    if delays:
        print(len(delays), *(delays[int(len(delays) * part)] / 1e6 for part in (0.5, 0.99, 0.999999)))


def py_tick(rate, seconds):
    rate, began = float(rate), time.monotonic()
    for number in range(int(rate * float(seconds))):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        print(int(time.monotonic() * 1e9), flush=True)


class Child:
    """One process of the bare loop, with the pipes of its output."""

    def __init__(self, script, selector):
        outs = [os.pipe() for _ in range(2)]
        argv = ["/bin/bash", script]
        if hasattr(os, "posix_spawn"):          # since 3.8
            actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, end, number) for number, (_, end) in enumerate(outs, 1)]
            self.pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setpgroup=0)
        else:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=outs[0][1], stderr=outs[1][1])
            self.pid = self.process.pid
        for fd, end in outs:
            os.close(end)
            selector.register(fd, selectors.EVENT_READ, self)
        self.open = 2

    def status(self):
        return self.process.wait() if hasattr(self, "process") else os.waitpid(self.pid, 0)[1]


def py_spawn(in_flight, seconds, script):
    selector, seconds = selectors.DefaultSelector(), float(seconds)
    done, failed, began = 0, 0, time.monotonic()
    for _ in range(int(in_flight)):
        Child(script, selector)
    while selector.get_map():
        for key, _ in selector.select():
            if os.read(key.fd, 65536):
                continue
            selector.unregister(key.fd)
            os.close(key.fd)
            key.data.open -= 1
            if key.data.open:
                continue
            failed += key.data.status() != 0
            done += 1
            if time.monotonic() - began < seconds:
                Child(script, selector)
    print(done, failed, time.monotonic() - began)


PYTHON_HELPERS = {"load": py_load, "gulp": py_gulp, "follow": py_follow, "tick": py_tick, "spawn": py_spawn}


# ------------------------------------------------------------------------------------------------- servers


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server in a process of its own; as a context, it ends with it."""

    def __init__(self, command, port, log, environ):
        self.port, self.log = port, log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environ)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ready(self, path="/ping"):
        """Wait for the first answer."""
        deadline = time.monotonic() + LIMIT
        request = b"GET %b HTTP/1.0\r\n\r\n" % path.encode()
        while True:
            with contextlib.closing(socket.socket()) as connection:
                if not connection.connect_ex(("127.0.0.1", self.port)):
                    connection.sendall(request)
                    if connection.recv(100):
                        return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                with open(self.log) as file:
                    raise Wrong("a server did not start: " + file.read()[-500:])
            time.sleep(0.0002)          # shorter would take the CPU from what is timed

    def request(self, method, path, body=None):
        """Return the JSON of an answer, None if it has none."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)) as client:
            client.request(method, path, body, {"Rtot-Secret": SECRET})
            response = client.getresponse()
            data = response.read()
            check(response.status // 100 == 2, method, path, response.status, data[:200])
            return json.loads(data.decode()) if data else None

    def start(self, script, query="fields="):
        return self.request("POST", "/jobs?" + query, script)["jobs"][0]

    def memory(self, name="VmRSS", file="status"):
        """Return a figure of proc(5), in bytes; 0 if the kernel does not have it."""
        with contextlib.suppress(OSError), open("/proc/%d/%s" % (self.process.pid, file)) as lines:
            for line in lines:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
        return 0


# ------------------------------------------------------------------------------------------------ measuring

Result = collections.namedtuple("Result", "ours theirs value low high")


def median_of(ours, theirs, ratios, form):
    """Return the Result of several rounds; `form` makes text of the absolute figures."""
    return Result(form(statistics.median(ours)), form(statistics.median(theirs)), statistics.median(ratios), min(ratios),
                  max(ratios))


def per_second(value):
    return "%.0f /s" % value


def milliseconds(value):
    return "%.1f ms" % (value * 1000)


def mebibytes(value):
    return "%.1f MiB" % (value / 2 ** 20)


def post(path, body, secret=SECRET):
    return "POST %s HTTP/1.1\r\nHost: localhost\r\nRtot-Secret: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        path, secret, len(body), body)


def get(path):
    return "GET %s HTTP/1.1\r\nHost: localhost\r\nRtot-Secret: %s\r\n\r\n" % (path, SECRET)


RUN = post("/jobs?wait", SCRIPT)


class Bench:
    """What the rows share: the settings, the built server, the helpers, a directory."""

    def __init__(self, args, directory):
        self.python, self.quick, self.directory = args.python, args.quick, directory
        self.rounds = args.rounds or (3 if args.quick else 5)
        self.seconds = 0.5 if args.quick else 2.0
        self.size = (200 if args.quick else 1000) * 1000 * 1000
        self.held = 2000 if args.quick else 10000
        self.pyz = self.build("own", ROOT, self.python)
        self.other = self.other_python(args.other_python)
        self.other_pyz = self.other and self.build("other", ROOT, self.other)
        self.against = args.against and self.build_against(args.against)
        self.script = self.write("script", "#!/bin/bash\n%s\n" % SCRIPT)
        self.helper = self.compile() or [sys.executable, os.path.abspath(__file__), "--helper"]
        self.compiled = len(self.helper) == 1
        self.bare = "bare %s loop" % ("C" if self.compiled else "Python")
        self.logs = 0
        # Of its own, for what rtot writes there: nobody else's directories are swept then.
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("RTOT_")}
        self.environ["TMPDIR"] = directory

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def build(self, name, source, python):
        """Return the path of a rtot.pyz, built by a Python from the files in a directory."""
        path = os.path.join(self.directory, name + ".pyz")
        subprocess.check_call(["sh", os.path.join(source, "build_zipapp.sh"), path], env=dict(os.environ, PYTHON=python))
        return path

    def build_against(self, what):
        """Return the path of the rtot.pyz of a commit, or of a file, which is built if it is source."""
        if what.endswith(".pyz"):
            return os.path.abspath(what)
        source = os.path.join(self.directory, "against")
        os.mkdir(source)
        if os.path.exists(what):
            shutil.copy(what, os.path.join(source, "rtot.py"))
            shutil.copy(os.path.join(ROOT, "build_zipapp.sh"), source)
        else:
            for name in ("rtot.py", "build_zipapp.sh"):
                with open(os.path.join(source, name), "wb") as file:
                    subprocess.check_call(["git", "show", "%s:%s" % (what, name)], cwd=ROOT, stdout=file)
        return self.build("against", source, self.python)

    def other_python(self, python):
        """Return a Python whose bytecode is not that of ours: the one given, or one that is found, or None."""
        def magic(python):
            code = "import importlib.util; print(importlib.util.MAGIC_NUMBER)"
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                return subprocess.check_output([python, "-c", code], stderr=subprocess.DEVNULL)
            return None
        ours = magic(self.python)
        found = [shutil.which("python3.%d" % minor) for minor in range(6, 20)]
        found += glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3"))
        for each in [python] if python else filter(None, found):
            if magic(each) not in (None, ours):
                return each
        return None

    def compile(self):
        """Return the command that is the C above, None without a compiler."""
        compiler, target = shutil.which(os.environ.get("CC", "cc")), os.path.join(self.directory, "helper")
        if not compiler or subprocess.call([compiler, "-O2", "-w", "-o", target, self.write("helper.c", C_SOURCE)]):
            return None
        return [target]

    def help(self, *args, request=""):
        """Run a helper; return the numbers that it prints."""
        done = subprocess.run(self.helper + [str(arg) for arg in args], input=request.encode(), timeout=LIMIT + self.seconds,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check(done.returncode == 0 and done.stdout, args[0], "failed:", done.stderr.decode()[-500:])
        return [float(word) for word in done.stdout.split()]

    def load(self, server, connections, request, seconds=None, most=0):
        """Return the answers per second."""
        answers, bad, elapsed = self.help("load", server.port, connections, seconds or self.seconds, most, request=request)
        check(answers and not bad, "%d of %d answers were errors" % (bad, answers))
        return answers / elapsed

    def run_jobs(self, server, count):
        self.load(server, 16, RUN, LIMIT, count)

    def spawn(self, in_flight):
        """Return the processes per second of the bare loop."""
        done, failed, elapsed = self.help("spawn", in_flight, self.seconds, self.script)
        check(done and not failed, "%d of %d scripts failed" % (failed, done))
        return done / elapsed

    def in_turn(self, ours, theirs, rounds=None):
        """Measure both so many times, right after each other; return the figures of each."""
        figures = ([], [])
        for number in range(rounds or self.rounds):
            pair = ((ours, figures[0]), (theirs, figures[1]))
            for measure, into in pair if number % 2 == 0 else pair[::-1]:
                into.append(measure())
        return figures

    def rates(self, ours, theirs, form=per_second):
        """Return the Result of two functions that return more when they are faster."""
        left, right = self.in_turn(ours, theirs)
        return median_of(left, right, [one / other for one, other in zip(left, right)], form)

    # Servers.

    def serve(self, *command, port):
        self.logs += 1
        return Server(list(command), port, os.path.join(self.directory, "log-%d" % self.logs), self.environ)

    def rtot(self, pyz=None):
        port = free_port()
        return self.serve(self.python, pyz or self.pyz, "-a", "127.0.0.1:%d" % port, "-s", SECRET, port=port).ready()

    def webhook(self):
        port, hooks = free_port(), [{"id": "run", "execute-command": "/bin/bash", "include-command-output-in-response": True,
                                     "pass-arguments-to-command": [{"source": "string", "name": self.script}]}]
        return self.serve("webhook", "-ip", "127.0.0.1", "-port", str(port), "-hooks",
                          self.write("hooks.json", json.dumps(hooks)), port=port).ready("/")

    def http_server(self, one_send):
        port = free_port()
        return self.serve(self.python, "-c", HTTP_SERVER, str(port), "-1" if one_send else "0", port=port).ready("/")


def jobs(in_flight):
    def measure(bench):
        with bench.rtot() as server:
            bench.load(server, in_flight, RUN, 0.3)
            return bench.rates(lambda: bench.load(server, in_flight, RUN), lambda: bench.spawn(in_flight))
    return measure


def beside_rtot(in_flight, request=RUN, query=None):
    """Compare with the rtot of --against; with a query, the requests are GETs of a complete job."""
    def measure(bench):
        with bench.rtot() as server, bench.rtot(bench.against) as other:
            wanted = request
            if query is not None:
                wanted = [get(each.start(SCRIPT, "wait&fields=")["href"] + query) for each in (server, other)][0]
            bench.load(server, in_flight, wanted, 0.3)
            bench.load(other, in_flight, wanted, 0.3)
            return bench.rates(lambda: bench.load(server, in_flight, wanted), lambda: bench.load(other, in_flight, wanted))
    return measure


def beside_webhook(in_flight):
    def measure(bench):
        if not shutil.which("webhook"):
            return None
        run = post("/hooks/run", "", "-")
        with bench.rtot() as server, bench.webhook() as other:
            bench.load(server, in_flight, RUN, 0.3)
            bench.load(other, in_flight, run, 0.3)
            return bench.rates(lambda: bench.load(server, in_flight, RUN), lambda: bench.load(other, in_flight, run))
    return measure


def requests(one_send):
    def measure(bench):
        with bench.rtot() as server, bench.http_server(one_send) as other:
            request = get(server.start(SCRIPT, "wait&fields=")["href"])
            bench.load(server, 16, request, 0.3)
            bench.load(other, 16, request, 0.3)
            return bench.rates(lambda: bench.load(server, 16, request), lambda: bench.load(other, 16, request))
    return measure


def capture(followed, against=False):
    def measure(bench):
        # Its blocks are smaller than a pipe: with those of dd bs=64k the reference ran in lockstep at 1 GB/s or
        # at 6 GB/s, by chance.
        producer = "head -c %d /dev/zero" % bench.size

        def captured_by(server):
            began = time.monotonic()
            if followed:
                size, wrong, _ = bench.help("gulp", server.port, request=post("/jobs?follow", producer))
                check(not wrong, "%d bytes were lost, or the answer was an error" % wrong)
            else:
                size = server.start(producer, "wait&fields=out_bytes")["out_bytes"]
            check(size == bench.size, "%d bytes came, not %d" % (size, bench.size))
            elapsed = time.monotonic() - began
            server.request("DELETE", "/jobs")
            return bench.size / elapsed

        def by_cat():
            began = time.monotonic()
            subprocess.check_call(["sh", "-c", producer + " | cat >/dev/null"])
            return bench.size / (time.monotonic() - began)

        def form(value):
            return "%.0f MB/s" % (value / 1e6)

        with bench.rtot() as server:
            captured_by(server)
            if not against:
                return bench.rates(lambda: captured_by(server), by_cat, form)
            with bench.rtot(bench.against) as other:
                captured_by(other)
                return bench.rates(lambda: captured_by(server), lambda: captured_by(other), form)
    return measure


def beside_others(fill):
    """Compare a server on which fill(bench, server) was called with one that holds nothing."""
    def measure(bench):
        with bench.rtot() as full, bench.rtot() as empty:
            fill(bench, full)
            bench.load(empty, 16, RUN, 0.3)

            def without():
                empty.request("DELETE", "/jobs?state=complete")     # those of the round before
                return bench.load(empty, 16, RUN)
            return bench.rates(lambda: bench.load(full, 16, RUN), without)
    return measure


def fill_complete(bench, server):
    bench.run_jobs(server, bench.held)


def fill_sleeping(bench, server):
    bench.load(server, 16, post("/jobs?fields=", "exec sleep 1000"), LIMIT, 1000)
    bench.load(server, 16, RUN, 0.3)


def time_start(bench, pyz):
    """Return the seconds from exec to the first answer.

    The log says when to ask: to try again and again would take 6 ms of CPU from what is timed.
    """
    port = free_port()
    began = time.monotonic()
    with subprocess.Popen([bench.python, pyz, "-a", "127.0.0.1:%d" % port, "-s", SECRET], stdin=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, env=bench.environ) as process:
        try:
            check(b"listens on" in process.stderr.readline(), "the server did not start")
            with contextlib.closing(socket.create_connection(("127.0.0.1", port), LIMIT)) as connection:
                connection.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
                check(b"still here" in connection.recv(1000), "no answer to /ping")
            return time.monotonic() - began
        finally:
            process.terminate()


def start(which):
    """Return the measurement of the start of a build: "own", "other" or "against"."""
    def measure(bench):
        pyz = {"own": bench.pyz, "other": bench.other_pyz, "against": bench.pyz}[which]
        if not pyz:
            return None

        def bare():
            began = time.monotonic()
            subprocess.check_call([bench.python, "-c", "pass"])
            return time.monotonic() - began

        def theirs():
            return time_start(bench, bench.against) if which == "against" else bare()
        left, right = bench.in_turn(lambda: time_start(bench, pyz), theirs, max(bench.rounds, 10 if bench.quick else 24))
        return median_of(left, right, [one / other for one, other in zip(left, right)], milliseconds)
    return measure


def idle_memory(which):
    """Return the measurement of the memory of an idle build: "own", "other" or "against".

    The ratio is that of the resident memory; the share of it that is the process's own (PSS) is shown too.
    """
    def measure(bench):
        pyz = {"own": bench.pyz, "other": bench.other_pyz, "against": bench.pyz}[which]
        if not pyz:
            return None
        shares = {}

        def memory(server, name, seconds):
            time.sleep(seconds)
            shares[name] = server.memory("Pss", "smaps_rollup")
            size = server.memory()
            check(size, "/proc does not tell the memory of a process")
            return size

        def ours():
            with bench.rtot(pyz) as server:
                return memory(server, "ours", 1.0)

        def theirs():
            if which == "against":
                with bench.rtot(bench.against) as server:
                    return memory(server, "theirs", 1.0)
            with bench.serve(bench.python, "-c", "import time; time.sleep(9)", port=0) as other:
                return memory(other, "theirs", 0.3)

        left, right = bench.in_turn(ours, theirs, 3)
        result = median_of(left, right, [one / other for one, other in zip(left, right)], lambda value: "%.1f" % (value / 2 ** 20))
        return result._replace(ours="%s (%.1f) MiB" % (result.ours, shares["ours"] / 2 ** 20),
                               theirs="%s (%.1f) MiB" % (result.theirs, shares["theirs"] / 2 ** 20))
    return measure


def job_memory(bench):
    """The whole growth counts; the spread is that of fifths of the jobs."""
    with bench.rtot() as server:
        bench.run_jobs(server, 1000)
        marks = [server.memory()]
        for _ in range(5):
            bench.run_jobs(server, bench.held // 5)
            marks.append(server.memory())
    check(all(marks), "/proc does not tell the memory of a process")
    growth = [(after - before) / (bench.held // 5) / 1024 for before, after in zip(marks, marks[1:])]
    return Result(mebibytes(marks[-1]), mebibytes(marks[0]) + " before them", statistics.mean(growth), min(growth),
                  max(growth))


def followers(bench, count=500, rate=100):
    seconds = 2 if bench.quick else 5
    middles, tails = [], []
    with bench.rtot() as server:
        for _ in range(1 if bench.quick else 3):
            job = server.start("read; exec %s tick %d %d" % (" ".join(bench.helper), rate, seconds), "stdin&fields=")
            command = bench.helper + ["follow", str(server.port), str(count)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True) as client:
                client.stdin.write(get(job["href"] + "/out?follow"))
                client.stdin.close()
                check(client.stdout.readline() == "ready\n", "the followers could not connect")
                server.request("POST", job["href"] + "/stdin?eof", "go\n")
                lines, middle, tail, _ = map(float, client.stdout.read().split())
            check(lines == count * rate * seconds, "%d lines came, not %d" % (lines, count * rate * seconds))
            middles.append(middle)
            tails.append(tail)
    return Result("p50 %.1f ms" % statistics.median(middles), "", statistics.median(tails), min(tails), max(tails))


# ---------------------------------------------------------------------------------------------------- table

Row = collections.namedtuple("Row", "name what reference measure least target unit")
BARE = None         # stands for the name of the bare loop

ROWS = (
    Row("jobs-1", "jobs/s, 1 in flight", BARE, jobs(1), True, 0.78, ""),
    Row("jobs-16", "jobs/s, 16 in flight", BARE, jobs(16), True, 0.75, ""),
    Row("jobs-64", "jobs/s, 64 in flight", BARE, jobs(64), True, 0.75, ""),
    Row("webhook-16", "jobs/s, 16 in flight", "webhook", beside_webhook(16), True, 0.85, ""),
    Row("webhook-64", "jobs/s, 64 in flight", "webhook", beside_webhook(64), True, None, ""),
    Row("requests", "GET /jobs/N, 16 connections", "http.server", requests(False), True, 2.5, ""),
    Row("one-send", "the same", "the same, buffered, one send", requests(True), True, 1.3, ""),
    Row("capture", "capture of 1 GB", "| cat >/dev/null", capture(False), True, 0.45, ""),
    Row("followed", "capture of 1 GB, one follower", "| cat >/dev/null", capture(True), True, 0.22, ""),
    Row("held", "jobs/s, 10,000 complete held", "none held", beside_others(fill_complete), True, 0.95, ""),
    Row("sleeping", "jobs/s, 1,000 sleeping", "none sleeping", beside_others(fill_sleeping), True, 0.95, ""),
    Row("start", "exec to the first /ping", "python3 -c pass", start("own"), False, 2.7, ""),
    Row("start-other", "the same, another Python's build", "python3 -c pass", start("other"), False, 5.0, ""),
    Row("idle", "memory when idle, RSS (PSS)", "interpreter", idle_memory("own"), False, 1.5, ""),
    Row("idle-other", "the same, another Python's build", "interpreter", idle_memory("other"), False, 1.8, ""),
    Row("job-memory", "memory per complete job", "", job_memory, False, 2.0, " KiB"),
    Row("followers", "500 followers, 100 lines/s: p99", "", followers, False, 50.0, " ms"),
)

# Beside the rtot of --against; the target of the first is that of this version beside 1.0.
AGAINST = (
    Row("than-jobs-16", "jobs/s, 16 in flight", "the other rtot", beside_rtot(16), True, 1.25, ""),
    Row("than-jobs-64", "jobs/s, 64 in flight", "the other rtot", beside_rtot(64), True, None, ""),
    Row("than-jobs-1", "jobs/s, 1 in flight", "the other rtot", beside_rtot(1), True, None, ""),
    Row("than-get", "GET /jobs/N, 16 connections", "the other rtot", beside_rtot(16, query=""), True, None, ""),
    Row("than-capture", "capture of 1 GB", "the other rtot", capture(False, True), True, None, ""),
    Row("than-follow", "capture of 1 GB, one follower", "the other rtot", capture(True, True), True, None, ""),
    Row("than-start", "exec to the first /ping", "the other rtot", start("against"), False, None, ""),
    Row("than-idle", "memory when idle, RSS (PSS)", "the other rtot", idle_memory("against"), False, None, ""),
)

LINE = "%-12s %-32s %16s  %-36s %9s  %-15s %-11s %s"


def show(row, bench):
    """Measure a row and print it; return whether its target was met."""
    try:
        result = row.measure(bench)
    except (Wrong, OSError, subprocess.SubprocessError, http.client.HTTPException) as error:
        print("%-12s %-32s could not be measured: %s" % (row.name, row.what, error), flush=True)
        return False
    target, verdict, met = "", "", True         # for one that is only shown
    if result is None:
        print("%-12s %-32s has nothing to be compared with here" % (row.name, row.what), flush=True)
        return True
    if row.target is not None:
        target = "%s %.4g%s" % (">=" if row.least else "<=", row.target, row.unit)
        met = result.value >= row.target if row.least else result.value <= row.target
        verdict = "met" if met else "NOT met"
    reference = bench.bare if row.reference is BARE else row.reference
    print(LINE % (row.name, row.what, result.ours, (result.theirs + " " + reference).strip(), "%.3g%s" % (result.value, row.unit),
                  "%.3g .. %.3g" % (result.low, result.high), target, verdict), flush=True)
    return met


def describe(bench):
    version = subprocess.check_output([bench.python, "-V"], stderr=subprocess.STDOUT).decode().strip()
    print("%s, %s, %d CPUs, load average %.1f" % (version, platform.platform(), os.cpu_count(), os.getloadavg()[0]))
    print("load and bare loop: %s; the other build is that of %s; %d rounds%s" % (
        "C" if bench.compiled else "Python, for want of cc", bench.other or "no Python", bench.rounds,
                                                   "; quick: 200 MB, 2,000 jobs" if bench.quick else ""))
    print(LINE % ("", "", "rtot", "reference", "ratio", "spread", "target", ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS + AGAINST]
    parser.add_argument("--quick", action="store_true", help="less of everything: under a minute")
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help="of " + ", ".join(names))
    parser.add_argument("--python", default=sys.executable, help="the interpreter to measure with (default: this one)")
    parser.add_argument("--other-python", metavar="PYTHON", help="builds the zipapp of another Python (default: one that is found)")
    parser.add_argument("--against", metavar="FILE", help="a rtot.py, a rtot.pyz or a commit to compare with in the same run")
    parser.add_argument("--rounds", type=int, default=0, help="of each comparison (default: 5, quick 3)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))      # so that the servers end too
    directory = tempfile.mkdtemp(prefix="benchmark-rtot-")
    try:
        bench = Bench(args, directory)
        describe(bench)
        rows = ROWS + (AGAINST if args.against else ())
        met = [show(row, bench) for row in rows if not args.only or row.name in args.only]
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0 if all(met) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--helper"]:
        PYTHON_HELPERS[sys.argv[2]](*sys.argv[3:])
    else:
        sys.exit(main())
