"""The guest's end of the channel: frames of JSON and of bytes, files that come and bytes that go. See SPEC.md.

Standard library only, Python 3.8 and later: this file is a part of the worker program, beside `guest.py`.
"""

import _thread
import json
import os
import signal
import time

from values import MAX_TEXT, clean, pieces_of, read_json

HEADER_BYTES = 4
MAX_PIECE = 1 << 20
MAX_NAME = 200
OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
CALLING = ("call", "map", "submit", "call_async", "map_async", "submit_async")
"""The ways to call other modules."""
END = b"\0"
"""The payload of the byte frame that ends a file."""


class Stop(BaseException):
    """Raised inside the handler by a soft stop of the host."""


class Refused(Exception):
    """The host does not store the bytes of a result or an item, which is the failure of the execution."""

    def __init__(self, kind, message):
        Exception.__init__(self, message)
        self.kind = kind


class Channel:
    """Frames over one blocking descriptor. Any thread may send; processes forked by user code may not.

    `library` imports a module of the standard library, also where user code hides it. `execution` is the id of the last
    one, `stored` counts the stored values, `storing` tells whether one is being stored. `calls` are those of the
    execution to other modules, if it made some; they read the channel then. `calling` makes them. Who sends frames that
    must follow each other has the `turn`.
    """

    def __init__(self, fd, library=__import__):
        self.fd = fd
        self.max_bytes = 1 << 30
        self.library = library
        self.execution = None
        self.stored = 0
        self.storing = False
        self.cancelled = False
        self.before_store = None
        self.calls = None
        self.calling = None
        self._buffer = bytearray()
        self.speaker = None
        self.adopt()

    def adopt(self):
        """Let this process send; called in a fork, where another thread may have owned the lock."""
        self.owner = os.getpid()
        self.turn = _thread.RLock()
        self._lock = _thread.allocate_lock()

    def speak_for(self, execution):
        """Let only this execution, or None, report progress: threads may outlive the answer of their execution."""
        if os.getpid() == self.owner:
            with self._lock:
                self.speaker = execution
                self.execution = execution or self.execution

    def receive(self):
        """Return the next message as a dict, or None if the host is gone."""
        while len(self._buffer) < HEADER_BYTES:
            if not self.more(1 << 16):
                return None
        size = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        while len(self._buffer) < HEADER_BYTES + size:
            if not self.more(max(1 << 16, HEADER_BYTES + size - len(self._buffer))):
                return None
        payload = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + size])
        del self._buffer[: HEADER_BYTES + size]
        if payload[:1] == END:  # bytes of a `file`, which is a message for relays
            return {"type": "bytes"}
        try:
            return read_json(payload)
        except (ValueError, RecursionError, OverflowError) as problem:
            # Valid JSON that this Python cannot read: a number of 5,000 digits. `input` is the last field.
            name = "value" if payload.startswith(b'{"type":"called"') else "input"
            message = json.loads(payload.partition(b',"%s":' % name.encode())[0] + b"}")
            message["unreadable"] = "$" + getattr(problem, "path", "")[len("$.") + len(name) :], problem
            return message

    def whole(self):
        """Return whether a whole frame has been read."""
        size = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        return HEADER_BYTES <= len(self._buffer) >= HEADER_BYTES + size

    def more(self, size):
        """Read once, at most so many bytes; return whether the host is there."""
        try:
            data = os.read(self.fd, size)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def waiting(self):
        """Return whether the host has sent something that is not read yet, or has announced the end of the call."""
        select = self.library("select")
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return self.cancelled or bool(self._buffer) or any(events & select.POLLIN for _, events in poller.poll(0))

    def send(self, payload, execution=None):
        """Write one whole frame; a frame of an `execution` only while `speak_for` allows it.

        If the host is gone, or user code closed the channel, the process ends.
        """
        if os.getpid() != self.owner:
            return
        with self._lock:
            if execution not in (None, self.speaker):
                return
            try:
                write_all(self.fd, len(payload).to_bytes(HEADER_BYTES, "big") + payload)
            except OSError:
                os.kill(os.getpid(), signal.SIGKILL)

    def say(self, message):
        """Send a dict as a message."""
        self.send(json.dumps(message).encode())

    def store(self, source, name, media_type):
        """Send bytes, or a binary file from its beginning, to the host's store; return the object inside of `$file`.

        Raises Refused, Stop, and what reading a file raises; the answer to the execution then abandons the file.
        """
        if os.getpid() != self.owner:  # a fork by the handler that returned: the host's answer is not for it
            os._exit(0)
        if self.before_store is not None:
            self.before_store()
        name, media_type = clean(name)[-MAX_NAME:], clean(media_type)[:MAX_NAME]
        answer, execution = None, self.execution
        with self.turn:
            self.storing = True
            try:
                self.say({"type": "store", "id": execution, "name": name, "media_type": media_type})
                for piece in pieces_of(source, min(MAX_PIECE, self.max_bytes)):
                    if answer is None and self.waiting():
                        answer = self._answer(execution, self.calls is None)
                    self._send_piece(piece)
                self._send_piece(b"")
                answer = answer or self._answer(execution)
                self.stored += 1
                return answer["file"]
            finally:
                self.storing = False

    def _send_piece(self, piece):
        """Write a byte frame without a copy of its bytes. If it is cut off, nothing can follow: the process ends."""
        head = (len(piece) + 1).to_bytes(HEADER_BYTES, "big") + b"\0"
        with self._lock:
            try:
                done = os.writev(self.fd, (head, piece))
                if done < len(head):
                    write_all(self.fd, head[done:])
                write_all(self.fd, memoryview(piece)[max(0, done - len(head)) :])
            except BaseException:  # also of a signal handler of user code
                os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, execution, waits=True):
        """Return the `stored` of the host. Raises Refused for its other answer, and Stop if it ends the execution."""
        while not self.cancelled:
            message = self.receive() if self.calls is None else self.calls.stored(waits)
            if message is None and not waits:
                return None
            if message is None:
                os.killpg(0, signal.SIGKILL)
            if message["type"] == "refused" and message["id"] == execution:
                raise Refused(message["kind"], message["message"])
            if message["type"] == "stored" and message["id"] == execution:
                return message
            self.cancelled = message["type"] == "cancel"  # the signal that follows it looks here
        raise Stop


class Buffer:
    """Cuts received bytes into payloads."""

    def __init__(self):
        self.data = bytearray()

    def feed(self, data, limit):
        """Return the complete payloads. Raises ValueError for a length over the limit."""
        self.data += data
        found = []
        while len(self.data) >= HEADER_BYTES:
            size = int.from_bytes(self.data[:HEADER_BYTES], "big")
            if size > limit:
                raise ValueError("a frame of %d bytes" % size)
            end = HEADER_BYTES + size
            if len(self.data) < end:
                break
            found.append(bytes(self.data[HEADER_BYTES:end]))
            del self.data[:end]
        return found


class Context:
    """The second parameter of a handler: information about its execution."""

    def __init__(self, channel, message):
        self._channel = channel
        self.execution_id = message["id"]
        self.attempt = message["attempt"]
        self.deadline = time.time() + message["deadline"]

    @property
    def remaining(self):
        """Seconds until the runner ends the execution."""
        return max(0.0, self.deadline - time.time())

    def __getattr__(self, name):
        """Return one of the ways to call other modules."""
        if name not in CALLING:
            raise AttributeError("a context has no attribute %r" % name)
        return getattr(self._channel.calling(self.execution_id), name)

    def progress(self, done=None, total=None, text=""):
        """Report progress to the watchers of the execution; do nothing after its answer."""
        done = None if done is None else float(done)
        total = None if total is None else float(total)
        message = {
            "type": "progress",
            "id": self.execution_id,
            "done": done,
            "total": total,
            "text": clean(str(text)[: MAX_TEXT // 4]),
        }
        self._channel.send(json.dumps(message, allow_nan=False).encode(), self.execution_id)


class Inbox:
    """Files from the host, in a container: of the module before its import, below `files` those of executions.

    There, the first folder is the place of one execution, where many run at a time.
    """

    def __init__(self, base):
        self.base = base
        self._problems = {}
        self._fd = None
        self._place = ""
        self._filled = False

    def begin(self, path):
        """Begin a file below the base."""
        folder, place = path.split("/")[:2] if path.startswith("files/") else ("", "")
        self._place, self._filled = place, self._filled or bool(folder)
        try:
            path = os.path.join(self.base, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as problem:
            self._problems.setdefault(place, str(problem))

    def take(self, payload):
        """Take the payload of a byte frame; one without bytes ends the file. What follows a problem is dropped."""
        if self._fd is None:
            return
        try:
            if payload != END:
                write_all(self._fd, memoryview(payload)[1:])
                return
        except OSError as problem:
            self._problems.setdefault(self._place, str(problem))
        os.close(self._fd)
        self._fd = None

    def problem(self, place=None):
        """Return why a file was not written in a place, or in any; empty if all were."""
        return self._problems.get(place, "") if place else next(iter(self._problems.values()), "")

    def clear(self, place=None):
        """Remove the files of one execution, or of all."""
        if place is None:
            self._problems.clear()
        self._problems.pop(place, None)
        if self._filled:
            import shutil

            shutil.rmtree(os.path.join(self.base, "files", place or ""), ignore_errors=True)
            self._filled = place is not None


def write_all(fd, data):
    """Write everything, in as many calls as needed."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def peak_memory():
    """Return the kernel's record of this process's peak of resident memory in bytes, or None."""
    try:
        fd = os.open("/proc/self/status", os.O_RDONLY)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
        return int(text.partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def out_of_memory_kills():
    """Return how many processes of this container the kernel killed for memory; 0 if unknown."""
    for path in OOM_FILES:
        try:
            with open(path) as file:
                for line in file:
                    key, _, count = line.partition(" ")
                    if key == "oom_kill":
                        return int(count)
        except (OSError, ValueError):
            continue
    return 0
