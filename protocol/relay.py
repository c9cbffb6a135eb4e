"""The first process of a container: forks the worker, reads its output, kills what it leaves. See SPEC.md.

Standard library only, Python 3.8 and later. The host sends this file and `guest.py` on the container's standard input,
followed by its frames; frames to the host go to standard output.
"""

import codecs
import json
import os
import re
import select
import signal
import sys
import time

import guest
import parts

READ_BYTES = 65536
DRAINED_READS = 1 + (1 << 20) // READ_BYTES
KILL_SECONDS = 10.0
HELPER_SECONDS = 2.0
OPEN_FILES = 4096
HEAD = re.compile(rb'\{"type":"(\w+)"(?:,"id":"([^"]*)")?')
"""The host writes the type first and the execution second, so that a large input need not be parsed."""
ANSWER = re.compile(rb'\{"children":(?:false|true,"stays":\[([-\d, ]*)\]),(?:"id":"([^"]*)")?')
HELPER = re.compile(rb"\.(resource_tracker|forkserver) import main")
"""In the command of a helper of multiprocessing."""
_PR_SET_DUMPABLE = 4


class Relay:
    """The worker, and the streams between it and the host. One thread; only `poll` waits."""

    def __init__(self, base):
        self.base, self.limit = base, 1 << 30
        self.home = os.path.join(base, "home")
        self.from_host, self.from_worker = parts.Buffer(), parts.Buffer()
        self.execution, self.loading, self.many, self.running = "", True, False, set()
        self.inbox = parts.Inbox(base)
        self.keep, self.kills = frozenset(), parts.out_of_memory_kills()
        self.worker, self.poller, self.actions = None, select.poll(), {}
        self.seq, self.decoders, self.later = 0, {}, bytearray()

    def start(self):
        """Fork the worker. Return True in the worker, which must call `guest.main` then."""
        import socket

        os.mkdir(self.home, 0o700)
        os.environ["HOME"] = os.environ["TMPDIR"] = self.home
        mine, theirs = socket.socketpair()
        (out, out_end), (err, err_end), (life, life_end), (wake, wake_end) = (os.pipe() for _ in range(4))
        self.worker = os.fork()
        if self.worker == 0:
            close = (out, err, wake, wake_end, life_end, mine.detach())
            become_worker(theirs.detach(), life, (out_end, err_end), self.home, close)
            return True
        for fd in (out_end, err_end, life, theirs.detach()):
            os.close(fd)
        if guest._LIBC is not None:  # user code, which has the same user, cannot read its memory and descriptors
            guest._LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        self.mine, self.channel = mine, mine.fileno()
        self.outputs = {out: "stdout", err: "stderr"}
        for fd in (wake, wake_end, out, err):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        self.watch(0, self.on_host)
        self.watch(wake, self.on_signal)
        self.watch(self.channel, self.on_worker)
        for fd in self.outputs:
            self.watch(fd, self.on_output)
        return False

    def watch(self, fd, action):
        """Call `action(fd)` when `fd` is readable."""
        self.actions[fd] = action
        self.poller.register(fd, select.POLLIN)

    def unwatch(self, fd):
        """Stop watching a descriptor."""
        if self.actions.pop(fd, None) is not None:
            self.poller.unregister(fd)

    def serve(self):
        """Pass messages on until the end; never returns."""
        while True:
            for fd, event in self.poller.poll():
                if event & select.POLLOUT:
                    self.send_later()
                if fd in self.actions and event != select.POLLOUT:
                    self.actions[fd](fd)

    def on_host(self, fd):
        """Pass the host's messages on, except those for the relay."""
        data = os.read(fd, 1 << 18)
        if not data:
            self.finish()
        for payload in self.from_host.feed(data, 1 << 31):
            head = HEAD.match(payload)
            kind = head[1] if head else b""
            if payload[:1] == b"\0":
                self.inbox.take(payload)
            elif kind == b"file":
                self.inbox.begin(json.loads(payload)["path"])
            elif kind == b"kill":
                self.finish()
            elif kind == b"hello" and self.inbox.problem():
                text = "the code cannot be written in the container: %s" % self.inbox.problem()
                say({"type": "load_failed", "error_type": "OSError", "message": text})
                self.finish()
            elif kind == b"execute" and self.inbox.problem(place := head[2].decode() if self.many else None):
                text = "a file of the input cannot be written in the container: %s" % self.inbox.problem(place)
                say({"type": "error", "id": head[2].decode(), "kind": "out_of_storage", "message": text})
                self.inbox.clear(place)
            else:
                if kind == b"hello":
                    hello = json.loads(payload)
                    self.limit, self.many = hello["max_frame_bytes"] + 65536, hello.get("calls", 1) > 1
                elif kind == b"execute":
                    self.begin(head[2].decode())
                self.send(frame(payload), waits=kind == b"hello" or (kind == b"execute" and not self.many))
                if kind == b"cancel" and not self.many:
                    signal_worker(self.worker, signal.SIGTERM)

    def send(self, data, waits):
        """Send a frame to the worker. If it runs a handler, do not wait: it may be sending, and read afterwards."""
        self.later += data
        self.mine.setblocking(waits)
        self.send_later()

    def send_later(self):
        """Send what is left, as far as the worker reads."""
        events = select.POLLIN
        try:
            while self.later:
                del self.later[: self.mine.send(self.later)]
        except BlockingIOError:
            events |= select.POLLOUT
        except OSError:  # the worker has ended, which SIGCHLD reports
            self.later.clear()
        if self.channel in self.actions:
            self.poller.modify(self.channel, events)

    def begin(self, execution):
        """Attribute output from now on to this execution, or to all that run."""
        self.drain()
        self.running.add(execution)
        self.execution = "*" if self.many else execution
        if not self.many:
            self.seq, self.decoders, self.kills = 0, {}, parts.out_of_memory_kills()

    def on_worker(self, fd):
        """Pass the worker's messages on; end everything if it lives and has closed its channel."""
        try:
            data = os.read(fd, 1 << 18)
        except OSError:
            data = b""
        if not data:
            if self.worker is None or os.waitid(os.P_PID, self.worker, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                self.finish()
            self.unwatch(fd)
            return
        try:
            payloads = self.from_worker.feed(data, self.limit)
        except ValueError:
            parts.write_all(1, bytes(self.from_worker.data[: parts.HEADER_BYTES]))  # the host rejects it
            self.unwatch(fd)
            return
        for payload in payloads:
            self.on_message(payload)

    def on_message(self, payload):
        """Pass a message on after all output. Before an answer, kill the processes that the execution left."""
        if payload[:1] == b"\0":
            parts.write_all(1, frame(payload))
            return
        answer = ANSWER.match(payload)
        if answer:
            self.running.discard(answer[2].decode() if self.many else self.execution)
        if answer and answer[1] is not None and self.running:  # they may be of another one
            payload = b'{"children":false,' + payload[answer.end(1) + 2 :]
        elif answer and answer[1] is not None:
            stays = {int(pid) for pid in answer[1].split(b",") if pid}
            killed = kill(left(self.keep, self.worker, stays), HELPER_SECONDS)
            payload = b'{"children":false,"killed":%s,' % json.dumps(killed).encode() + payload[answer.end(1) + 2 :]
        self.drain()
        if (answer and not self.running) or self.loading:
            self.settle()
        parts.write_all(1, frame(payload))
        if answer:
            self.execution = "*" if self.running else ""
            self.inbox.clear(answer[2].decode() if self.many else None)
        elif self.loading:
            self.loading = False
            self.keep = frozenset(others()) - {self.worker}

    def on_output(self, fd):
        """Read once from a pipe and send the output. Return False at its end."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            self.unwatch(fd)
            return False
        self.print(self.outputs[fd], data)
        return True

    def print(self, stream, data, final=False):
        """Send output; a character split between two reads is joined."""
        decoder = self.decoders.get(stream)
        if decoder is None:
            decoder = self.decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data, final)
        if text:
            message = {"type": "output", "id": self.execution, "stream": stream, "text": text, "seq": self.seq}
            self.seq += 1
            say(message)

    def drain(self):
        """Read and send all output that is in the pipes now."""
        for fd in self.outputs:
            for _ in range(DRAINED_READS):
                if fd not in self.actions or not select.select([fd], [], [], 0)[0] or not self.on_output(fd):
                    break

    def settle(self):
        """Send the incomplete characters that are left; report that the kernel killed something for memory."""
        for stream in list(self.decoders):
            self.print(stream, b"", True)
        self.decoders = {}
        if parts.out_of_memory_kills() > self.kills:
            say({"type": "limit", "what": "memory"})

    def on_signal(self, fd):
        """Reap children. End everything on SIGTERM, which stops containers, and when the worker has ended."""
        if signal.SIGTERM in os.read(fd, 4096):
            self.finish()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.worker:
                self.worker = None
                self.finish(exit_code(status))

    def finish(self, code=None):
        """Kill everything, report how the worker ended and what was killed, and end the container."""
        os.set_blocking(self.channel, False)
        while code is not None and self.channel in self.actions:  # its last messages
            try:
                data = os.read(self.channel, 1 << 18)
                payloads = self.from_worker.feed(data, self.limit)
            except (OSError, ValueError):
                break
            for payload in payloads:
                self.on_message(payload)
            if not data:
                break
        if self.worker is not None:  # stopped first, so that it cannot fork between the search and the kill
            signal_worker(self.worker, signal.SIGSTOP)
        killed = kill(lambda: [pid for pid in others() if pid != self.worker])
        if self.worker is not None:
            signal_worker(self.worker, signal.SIGKILL)
            _, status = os.waitpid(self.worker, 0)
            code = exit_code(status)  # its own if it was already ending
            killed += kill(others)
        try:
            self.drain()
            self.settle()
            say({"type": "ended", "exit_code": code, "killed": killed})
        except OSError:  # the host is gone
            pass
        os._exit(0)


def left(keep, worker, stays):
    """Return a function that finds the processes of an execution: not the worker, its import's, and `stays`."""

    def find():
        parents = {pid: look(pid)[2] for pid in others()}

        def kept(pid):
            known = keep | stays
            while pid in parents and pid != worker:
                if pid in known:
                    return True
                pid, known = parents[pid], keep - stays
            return False

        return [pid for pid in parents if pid != worker and not kept(pid)]

    return find


def signal_worker(worker, number):
    """Signal the worker's group, or the worker alone before it leads one."""
    for send in (os.killpg, os.kill):
        try:
            send(worker, number)
            break
        except OSError:
            continue


def become_worker(frames, lifeline, outputs, home, close):
    """Turn the forked process into the worker: descriptors, session, limits and arguments of `guest.main`."""
    import resource

    os.setsid()
    os.chdir(home)
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (outputs[0], 1), (outputs[1], 2)):
        os.dup2(source, target)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for fd in (null, *outputs, *close):
        os.close(fd)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # out of memory, the kernel kills the worker before the relay
    except OSError:
        pass
    sys.argv[:] = ["handler", str(frames), str(lifeline)]


def kill(find, patience=0.0):
    """Kill what `find` returns, again until nothing that it finds is alive. Return `pid name` of each.

    Helpers have `patience` seconds to clean up and end when the others are gone.
    """
    killed = {}
    deadline = time.monotonic() + KILL_SECONDS
    while True:
        living = {pid: seen for pid, seen in ((pid, look(pid)) for pid in find()) if seen[1] not in (b"Z", b"X")}
        if not living or time.monotonic() > deadline:
            return ["%d %s" % item for item in killed.items()]
        waits = time.monotonic() < deadline - KILL_SECONDS + patience
        for pid, seen in living.items():
            if waits and helps(pid):
                continue
            killed.setdefault(pid, seen[0])
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.001)


def say(message):
    """Send a message of the relay itself; its type comes first."""
    parts.write_all(1, frame(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()))


def frame(payload):
    """Return the frame that carries a payload."""
    return len(payload).to_bytes(parts.HEADER_BYTES, "big") + payload


def others():
    """Return every other process of the container."""
    me = os.getpid()
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != me]


def look(pid):
    """Return name, state and parent of a process; `?`, X and 0 if it is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            head, _, tail = file.read().rpartition(b")")
        state, parent = tail.split()[:2]
        return head.partition(b"(")[2].decode(errors="replace"), state, int(parent)
    except OSError:
        return "?", b"X", 0


def helps(pid):
    """Return whether a process is a helper of multiprocessing, which ends when those are gone that it serves."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            command = file.read()
        return not command or HELPER.search(command) is not None  # without one it is in its exec or its exit
    except OSError:
        return False


def exit_code(status):
    """Return the exit code from the status of `wait`, negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(base):
    """Run the relay, or in the forked process the worker."""
    if os.getpid() != 1:  # it kills all processes that it sees
        sys.exit("the relay has to be the first process of a container")
    relay = Relay(base)
    if relay.start():
        guest.main(alone=True)
        sys.exit(0)
    relay.serve()
