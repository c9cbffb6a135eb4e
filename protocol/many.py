"""The guest of a module with `calls` above 1: one asyncio loop runs many executions at a time. See SPEC.md.

Standard library only, Python 3.8 and later: this file is a part of the worker program, beside `guest.py`, which imports
it before user code. The running call is in a context variable: in the tasks of a call, and in threads that are started
with its context. All frames are read by the loop; any thread may send.
"""

import _thread
import codecs
import contextvars
import inspect
import io
import json
import os
import signal
import sys
import threading
import time
import weakref

from protocol.guest import Context, LoadError, Module, Running, failed, fields_of, flush, helpers, standard
from protocol.parts import END, HEADER_BYTES, MAX_NAME, MAX_PIECE, Channel, Refused, Stop, write_all
from protocol.values import clean, encode_value, pieces_of

asyncio = standard("asyncio")
CALL = contextvars.ContextVar("operato_call", default=None)
"""The running call."""
READ_BYTES = 1 << 18
LINE_BYTES = 8192
"""Most bytes of output that wait for the end of their line, and most in one message."""


class FilesError(Refused):
    """A value has files, so that a thread must encode it: the loop cannot wait for the host."""

    def __init__(self):
        Refused.__init__(self, "internal", "a file needs a thread")


class Found(Running):
    """The call of the context, where `operato` finds it; and the last finder of imports."""

    @property
    def context(self):
        """What handlers get as `context`; None outside of a call."""
        return getattr(CALL.get(), "context", None)

    @property
    def files(self):
        """The files of the input."""
        return getattr(CALL.get(), "files", None)


class Told(Context):
    """A context whose progress comes after the output before it."""

    def progress(self, done=None, total=None, text=""):
        """Report progress to the watchers of the execution; do nothing after its answer."""
        self._channel.flush(self.execution_id)
        Context.progress(self, done, total, text)


class AsyncModule(Module):
    """A module whose handler does not hold up other calls while it waits."""

    def _find(self, hello):
        found = Module._find(self, hello)
        if not is_async(found):
            text = "%r is not async, so that `calls` must be 1; write `async def`" % hello["handler"]
            raise LoadError(text)
        return found


def is_async(handler):
    """Return whether a handler is a coroutine function or an async generator, also below decorators."""
    handler = inspect.unwrap(handler)
    while hasattr(handler, "func"):  # functools.partial
        handler = handler.func
    if not inspect.isroutine(handler):
        handler = type(handler).__call__
    return inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)


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
            if self.started:  # a task that is cancelled before could not answer
                self.task.cancel()

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
        if os.getpid() != self._owner:
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
        if call is None or call.stopped or os.getpid() != self._owner:
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
        if call is None or call.id not in self._channel.calls or os.getpid() != self._channel._owner:
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


class Many:
    """Runs the executions of one worker, which the guest has begun to load."""

    def __init__(self, guest):
        self.guest = guest
        self.channel = guest.channel = Frames(guest.channel)
        self.calls = self.channel.calls
        self.ended = False

    def serve(self, hello):
        """Load the module, then answer frames until `shutdown`, or until the host is gone."""
        guest = self.guest
        for fd, stream in ((1, "stdout"), (2, "stderr")):
            output = Output(fd, stream, self.channel)
            setattr(sys, stream, io.TextIOWrapper(output, "utf-8", "backslashreplace", write_through=True))
        guest.found, guest.make = Found(), AsyncModule
        if not guest.load(hello):
            return
        for number in guest.signals:
            ours, default = (self.on_signal, guest.signals[number][1])
            guest.signals[number] = ours, default
            signal.signal(number, ours)
        self.loop = loop = guest.module.loop or asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.set_task_factory(self.make_task)
        loop.add_reader(self.channel.fd, self.read)
        loop.call_soon(self.take_all)
        while not self.ended:
            try:
                loop.run_forever()
            except (KeyboardInterrupt, SystemExit):  # of a task of user code, whose call has it as its failure
                continue

    def on_signal(self, number, _frame):
        """End as any program does by SIGTERM while user code runs: the host stops single calls without signals."""
        if self.calls and number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    @staticmethod
    def make_task(loop, coroutine, **options):
        """Make a task, and note its call."""
        task = asyncio.Task(coroutine, loop=loop, **options)
        call = CALL.get()
        if call is not None:
            call.tasks.add(task)
        return task

    def read(self):
        """Take the messages of the host that are here."""
        if os.getpid() != self.guest.pid:  # a fork by a handler, which must not read
            os._exit(0)
        if not self.channel._more(READ_BYTES):
            os.killpg(0, signal.SIGKILL)
        self.take_all()

    def take_all(self):
        """Take the messages that are here whole."""
        while self.channel.whole():
            self.take(self.channel.receive())

    def take(self, message):
        """Take a message."""
        kind = message["type"]
        if kind == "execute":
            self.begin(message)
        elif kind == "ping":
            self.channel.say({"type": "pong"})
        elif kind == "shutdown":
            self.ended = True
            self.loop.stop()
        elif message.get("id") in self.calls:
            call = self.calls[message["id"]]
            if kind == "cancel":
                call.stop()
            elif kind in ("stored", "refused"):
                call.reply = message
                call.replied.set()

    def begin(self, message):
        """Begin an execution."""
        if self.guest.left and not self.calls:  # processes that the runner killed must not count for this one
            self.guest.children()
        call = self.calls[message["id"]] = Call(message, self.channel)
        context = contextvars.copy_context()
        context.run(CALL.set, call)
        call.task = context.run(self.loop.create_task, self.run(call, message))

    async def run(self, call, message):
        """Run the handler, and answer."""
        began = time.perf_counter()
        call.started = True
        try:
            try:
                if call.stopped:
                    raise Stop
                if "unreadable" in message:
                    field, problem = message["unreadable"]
                    answer = {"kind": "bad_input", "message": "%s: %s" % (field, problem), "field": field}
                    return
                value = await self.handle(call, message["input"])
            finally:
                await self.tidy(call)
            data = await self.encode(value, "$")
            seconds = time.perf_counter() - began
            answer = b'"type":"result","seconds":%.9f,"value":%s}' % (seconds, data)
        except BaseException as problem:  # also sys.exit, KeyboardInterrupt and the end of the task
            stopped = call.stopped and isinstance(problem, asyncio.CancelledError)
            answer = fields_of(Stop() if stopped else problem)
        finally:
            if isinstance(answer, dict):
                answer.update(seconds=time.perf_counter() - began)
            self.answer(call, answer)

    def answer(self, call, answer):
        """Send the answer. The last call that ends tells whether processes are left: before, they may be of others."""
        flush()
        self.channel.flush(call.id, True)
        if os.getpid() != self.guest.pid:
            os._exit(0)
        left = b"false"
        if len(self.calls) == 1:
            self.guest.left = self.guest.children()
            if self.guest.left:
                left = b'true,"stays":%s' % json.dumps(helpers()).encode()
        head = b'{"children":%s,"id":%s,' % (left, json.dumps(call.id).encode())
        if isinstance(answer, dict):
            answer = failed(self.channel.max_bytes - len(head), type="error", **answer)[1:]
        self.channel.answer(call, head + answer)

    async def handle(self, call, value):
        """Return the value of the handler, or of a generator what `item` returns for its items, as they come."""
        module = self.guest.module
        if module.plan is not None:
            args, named = module.plan.arguments(value, call)
            result = module.handler(*args, **named)
        else:
            result = module.handler(value, call.context) if module.with_context else module.handler(value)
        if hasattr(result, "__await__"):
            result = await result
        result = result.operato_stream() if hasattr(type(result), "operato_stream") else result
        if inspect.isgenerator(result):
            return [await self.item(call, part) for part in result]
        if not inspect.isasyncgen(result):
            return result
        try:
            return [await self.item(call, part) async for part in result]
        finally:
            await result.aclose()

    async def item(self, call, value):
        """Send an item; return it, without its bytes, which are stored once."""
        before, place = call.stored, call.items
        call.items += 1
        data = await self.encode(value, "$[%d]" % place)
        self.channel.flush(call.id)
        head = b'{"type":"item","id":%s,"value":' % json.dumps(call.id).encode()
        self.channel.send(head + data + b"}", call.id)
        return value if call.stored == before else json.loads(data)

    async def encode(self, value, root):
        """Return a value as JSON. Its files are stored by a thread, which waits for the host."""
        room = self.channel.max_bytes - 256
        try:
            return encode_value(value, room, root, needs_thread)
        except FilesError:
            pass
        done, loop = self.loop.create_future(), self.loop

        def tell(outcome, problem):
            if not done.done():
                done.set_result((outcome, problem))

        def work():
            try:
                found = encode_value(value, room, root, self.channel.store), None
            except BaseException as problem:
                found = None, problem
            try:
                loop.call_soon_threadsafe(tell, *found)
            except RuntimeError:  # user code closed the loop
                pass

        threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
        data, problem = await done
        if problem is not None:
            raise problem
        return data

    async def tidy(self, call):
        """End the tasks that a call has left."""
        me = asyncio.current_task()
        left = [task for task in call.tasks if task is not me and not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)


def needs_thread(*_):
    """Refuse to store in the loop."""
    raise FilesError
