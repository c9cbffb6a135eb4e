"""The channel and the output of a worker that runs many calls at a time: each frame and each line is of one of them.

Standard library only, Python 3.8 and later: this file is a part of the worker program, beside `guest.py`. The running
call is in a context variable: in the tasks of a call, and in threads that are started with its context.
"""

import _thread
import codecs
import contextvars
import io
import json
import os
import signal
import threading
import weakref

from protocol.parts import END, HEADER_BYTES, MAX_NAME, MAX_PIECE, Channel, Context, Refused, Stop, write_all
from protocol.values import clean, pieces_of

CALL = contextvars.ContextVar("operato_call", default=None)
"""The running call."""
LINE_BYTES = 8192
"""Most bytes of output that wait for the end of their line, and most in one message."""


class Told(Context):
    """A context whose progress comes after the output before it."""

    def progress(self, done=None, total=None, text=""):
        """Report progress to the watchers of the execution; do nothing after its answer."""
        self._channel.flush(self.execution_id)
        Context.progress(self, done, total, text)


class Calling:
    """The channel for the calls of one execution to other modules, whose answers come by its `calls`."""

    before_store = None

    def __init__(self, channel, execution):
        self.channel, self.execution = channel, execution
        self.turn = _thread.RLock()
        self.calls, self.cancelled = None, False
        self.owner, self.max_bytes, self.store = channel.owner, channel.max_bytes, channel.store

    @property
    def speaker(self):
        """The execution while it runs."""
        return self.execution if self.execution in self.channel.calls else None

    def send(self, payload):
        """Write one whole frame."""
        self.channel.send(payload, self.execution)


class Call:
    """One execution that runs."""

    def __init__(self, message, channel):
        self.id = message["id"]
        self.context = Told(channel, message)
        self.files = message.get("files") or {}
        self.task = None
        self.tasks = weakref.WeakSet()
        self.started = self.stopped = False
        self.items = self.stored = 0
        self.calling = Calling(channel, self.id)
        self.heard = None
        self.reply = None
        self.replied = threading.Event()
        self.printed, self.sizes = {"stdout": [], "stderr": []}, {"stdout": 0, "stderr": 0}
        self.decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self.printed}
        self.lock = _thread.RLock()

    def stop(self):
        """Cancel its task."""
        if not self.stopped:
            self.stopped = True
            self.replied.set()
            self.hear({"type": "cancel"})
            if self.started:  # a task that is cancelled before could not answer
                self.task.cancel()

    def hear(self, message):
        """Take an answer to a call of another module, or the end of this execution."""
        calls = self.calling.calls
        if calls is not None:
            with calls.changed:
                calls.hear(message)
            calls.send_later()
        if self.heard is not None and not self.heard.done():
            self.heard.set_result(None)

    def print(self, stream, data):
        """Add output; return whether it is to be sent: whole lines, as they come."""
        with self.lock:
            self.printed[stream].append(data)
            self.sizes[stream] += len(data)
            return b"\n" in data or self.sizes[stream] > LINE_BYTES

    def take(self, stream, final=False):
        """Return the output that is not sent yet, as texts for messages."""
        with self.lock:  # nothing waits inside, and a destructor may print
            self.sizes[stream] = 0
            parts, self.printed[stream] = self.printed[stream], []
            data, decoder = b"".join(parts), self.decoders[stream]
            pieces = [data[place : place + LINE_BYTES] for place in range(0, len(data), LINE_BYTES)]
            texts = [decoder.decode(piece) for piece in pieces]
            return [text for text in (*texts, decoder.decode(b"", True) if final else "") if text]


class Frames(Channel):
    """The channel of many executions: any thread may send, and a destructor that runs while its thread sends."""

    def __init__(self, channel):
        Channel.__init__(self, channel.fd, channel.library)
        self.max_bytes = channel.max_bytes
        self.calls = {}
        self._waiting = []
        self._writing = False
        self._buffer = channel._buffer
        self.loop_thread = _thread.get_ident()
        self.read = None

    def adopt(self):
        """Let this process send."""
        Channel.adopt(self)
        self._lock = _thread.RLock()

    def send(self, payload, execution=None):
        """Write one whole frame; a frame of an execution only until its answer."""
        self._write(execution, (payload,), None)

    def answer(self, call, payload):
        """Write the answer to an execution, after which nothing of it is sent."""
        self._write(call.id, (payload,), call.id)

    def send_piece(self, call, piece):
        """Write bytes of a file, directly behind the message that says whose they are."""
        head = json.dumps({"type": "part", "id": call.id}).encode()
        self._write(call.id, (head, b"".join((END, piece))), None)

    def _write(self, execution, payloads, ended):
        """Write frames one behind the other. What a destructor sends meanwhile is written by the send around it."""
        if os.getpid() != self.owner:
            return
        self._waiting.append((execution, payloads, ended))
        with self._lock:
            if self._writing:
                return
            while self._waiting:
                self._writing = True
                try:
                    self._write_next()
                finally:
                    self._writing = False

    def _write_next(self):
        execution, payloads, ended = self._waiting.pop(0)
        if execution is not None and execution not in self.calls:
            return
        try:
            for payload in payloads:
                write_all(self.fd, len(payload).to_bytes(HEADER_BYTES, "big") + payload)
        except BaseException:  # a frame may be cut off: the process ends
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls.pop(ended, None)

    def send_output(self, call, stream, final=False):
        """Send what a call printed, also without the end of the line."""
        for text in call.take(stream, final):
            message = {"type": "printed", "id": call.id, "stream": stream, "text": text}
            self.send(json.dumps(message).encode(), call.id)

    def flush(self, execution, final=False):
        """Send all that an execution printed."""
        call = self.calls.get(execution)
        for stream in () if call is None else call.printed:
            self.send_output(call, stream, final)

    def store(self, source, name, media_type):
        """Send bytes to the host's store and wait for its answer, in a thread. Raises as `Channel.store`."""
        call = CALL.get()
        if call is None or call.stopped or os.getpid() != self.owner:
            raise Stop
        name, media_type = clean(name)[-MAX_NAME:], clean(media_type)[:MAX_NAME]
        call.reply = None
        call.replied.clear()
        head = {"type": "store", "id": call.id, "name": name, "media_type": media_type}
        self.send(json.dumps(head).encode(), call.id)
        for piece in pieces_of(source, min(MAX_PIECE, self.max_bytes)):
            if call.replied.is_set() or call.stopped:
                break
            self.send_piece(call, piece)
        else:
            self.send_piece(call, b"")
        while call.reply is None and not call.stopped:
            if _thread.get_ident() == self.loop_thread:  # an input of another module: the reader itself waits
                self.read()
            else:
                call.replied.wait(1)
        if call.stopped:
            raise Stop
        if call.reply["type"] == "refused":
            raise Refused(call.reply["kind"], call.reply["message"])
        call.stored += 1
        return call.reply["file"]


class Output(io.BufferedIOBase):
    """Standard output or error: of the call of the context; without one of all calls, by the descriptor."""

    mode = "wb"

    def __init__(self, fd, stream, channel):
        self._fd, self._stream, self._channel = fd, stream, channel
        self.name = "<%s>" % stream

    def write(self, data):
        """Write bytes."""
        data = bytes(data)
        call = CALL.get()
        if call is None or call.id not in self._channel.calls or os.getpid() != self._channel.owner:
            write_all(self._fd, data)
        elif call.print(self._stream, data):
            self._channel.send_output(call, self._stream)
        return len(data)

    def flush(self):
        """Send the output of the call that has no end of its line yet."""
        call = CALL.get()
        if call is not None and call.id in self._channel.calls:
            self._channel.send_output(call, self._stream)

    def fileno(self):
        """Return the descriptor, whose output is of all calls."""
        return self._fd

    def writable(self):
        """Return True."""
        return True
