"""The guest of a module with `calls` above 1: one asyncio loop runs many executions at a time. See SPEC.md.

Standard library only, Python 3.8 and later: this file is a part of the worker program, beside `guest.py`, which imports
it before user code. All frames are read by the loop; any thread may send.
"""

import contextvars
import inspect
import io
import json
import os
import signal
import sys
import threading
import time

from protocol.guest import LoadError, Module, Running, failed, fields_of, flush, helpers, more, standard
from protocol.parts import Refused, Stop
from protocol.sharing import CALL, Call, Frames, Output
from protocol.values import encode_value

asyncio = standard("asyncio")
READ_BYTES = 1 << 18


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


class Many:
    """Runs the executions of one worker, which the guest has begun to load."""

    def __init__(self, guest):
        self.guest = guest
        self.channel = guest.channel = Frames(guest.channel)
        self.calls = self.channel.calls
        self.channel.read, self.channel.calling = self.read, self.calling_of
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
        if not self.channel.more(READ_BYTES):
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
            elif kind in ("called", "call_failed"):
                call.hear(message)

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

    def calling_of(self, execution):
        """Return what an execution calls other modules by. Raises RuntimeError when it has ended."""
        call = self.calls.get(execution)
        if call is None:
            raise RuntimeError("the execution has ended, and so have its calls")
        made = more("calling").of(call.calling, execution)
        call.calling.calls.reader = call.calling.calls  # the loop reads for it
        return made

    async def tidy(self, call):
        """End the tasks and the calls of other modules that a call has left."""
        me = asyncio.current_task()
        left = [task for task in call.tasks if task is not me and not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)
        calls = call.calling.calls
        if calls is not None:
            with call.calling.turn, calls.changed:
                calls.ended = True
                calls.withdraw_all()
            while calls.open and not call.stopped:
                call.heard = self.loop.create_future()
                await call.heard


def needs_thread(*_):
    """Refuse to store in the loop."""
    raise FilesError
