"""The calls of a handler to other modules, in a worker: numbers, answers, and the reader of the channel. See SPEC.md.

Standard library only, Python 3.8 and later: a part of the worker program, imported at the first call.
"""

import _thread
import collections
import json
import os
import signal
import sys

from protocol.values import BadOutput, encode_value

standard = __import__
"""Imports a module of the standard library; `guest.py` puts its own function here."""
MAX_OPEN = 64
"""Calls of an execution that the host has at a time; further ones wait here."""
STORED = 0
"""The number of the answer to `store`: calls count from 1."""


class Calls:
    """What a context offers for calls of other modules: any thread may call, and coroutines on any loop."""

    def __init__(self, channel, answers, encode):
        self.channel = channel
        self.answers = answers
        self.encode = encode

    def call(self, module, input=None, *, version=None, key=None):
        """Execute a module and return its result; raise CallError if it fails."""
        self.check_thread("call")
        number = self.begin(module, input, version=version, key=key)
        return self.result(module, self.answers.wait((number,)))

    def submit(self, module, input=None, *, version=None, key=None, priority=None):
        """Have a module executed later, also after the end of this execution; return the id of its execution."""
        self.check_thread("submit")
        number = self.begin(module, input, version=version, key=key, priority=priority, waits=False)
        return self.result(module, self.answers.wait((number,)), "child")

    def map(self, module, inputs, *, parallel=8, version=None):
        """Execute a module for each input, so many at a time; return the results in order.

        The first failure is raised, and ends the others.
        """
        self.check_thread("map")
        results, running, source = [], {}, enumerate(inputs)
        check_parallel(parallel)
        try:
            while True:
                while source is not None and len(running) < parallel:
                    position, value = next(source, (None, None))
                    if position is None:
                        source = None
                    else:
                        running[self.begin(module, value, version=version)] = position
                        results.append(None)
                if not running:
                    return results
                answer = self.answers.wait(running)
                results[running.pop(answer["number"])] = self.result(module, answer)
        except BaseException:
            self.answers.withdraw(running)
            raise

    async def call_async(self, module, input=None, *, version=None, key=None):
        """Do the same as `call`, in an async handler."""
        return self.result(module, await self.answer(module, input, version=version, key=key))

    async def submit_async(self, module, input=None, *, version=None, key=None, priority=None):
        """Do the same as `submit`, in an async handler."""
        options = {"version": version, "key": key, "priority": priority}
        return self.result(module, await self.answer(module, input, waits=False, **options), "child")

    async def map_async(self, module, inputs, *, parallel=8, version=None):
        """Do the same as `map`, in an async handler."""
        asyncio = standard("asyncio")
        check_parallel(parallel)
        results, running, source = [], {}, enumerate(inputs)
        try:
            while True:
                while source is not None and len(running) < parallel:
                    position, value = next(source, (None, None))
                    if position is None:
                        source = None
                    else:
                        running[asyncio.ensure_future(self.call_async(module, value, version=version))] = position
                        results.append(None)
                if not running:
                    return results
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    results[running.pop(task)] = task.result()
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)

    def check_thread(self, name):
        """Raise RuntimeError where waiting would hold up an asyncio loop, which may be the reader."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and asyncio._get_running_loop() is not None:
            text = "`%s` would hold up the asyncio loop; write `await context.%s_async(...)`"
            raise RuntimeError(text % (name, name))

    def begin(self, module, value, waits=True, future=None, **options):
        """Send a call, or let it wait until another one has ended; return its number."""
        if os.getpid() != self.channel.owner:
            raise RuntimeError("a process that the handler started cannot call modules; let the handler do it")
        data = self.encode(value)
        head = '"module": %s, "waits": %s' % (json.dumps(str(module)), "true" if waits else "false")
        for name, option in options.items():
            if option is not None:
                head += ', "%s": %s' % (name, json.dumps(option))
        number = self.answers.ask(head, data, future)
        if number is None:
            raise problem(module, {"kind": "cancelled", "message": "the execution that calls has ended"})
        return number

    def result(self, module, answer, part="value"):
        """Return a part of an answer. Raises CallError for a failure."""
        if "unreadable" in answer:
            field, why = answer["unreadable"]
            answer = dict(answer, type="", kind="bad_output", message="%s: %s" % (field, why), field=field)
        if answer["type"] == "called":
            return answer[part]
        raise problem(module, answer)

    async def answer(self, module, value, **options):
        """Return the answer to a call; the running loop waits for it."""
        loop = standard("asyncio").get_running_loop()
        future = loop.create_future()
        number = self.begin(module, value, future=future, **options)
        try:
            self.answers.watch(loop)
            return await future
        except BaseException:
            self.answers.withdraw((number,))
            raise
        finally:
            self.answers.unwatch(loop)


class Answers:
    """The open calls of one execution, and the reader of their answers.

    Of the threads and loops that wait, one reads the channel for all: a thread as long as it waits, or a loop
    (`reader`). With `reads=False` others do, and give each message to `hear`.
    """

    def __init__(self, channel, execution, reads=True):
        self.channel = channel
        self.execution = execution
        self.changed = standard("threading").Condition(_thread.RLock())
        self.main = standard("threading").main_thread().ident
        self.reader = None if reads else self
        self.open = set()
        self.later = collections.deque()
        self.futures = {}
        self.forgotten = set()
        self.answers = {}
        self.number = 0
        self.ended = False
        self.calls = None
        self.head = b'{"type": "call", "id": %b, "number": ' % json.dumps(execution).encode()

    def ask(self, head, data, future=None):
        """Send a call of these fields and input, or let it wait; return its number, or None when the execution ends."""
        with self.channel.turn, self.changed:
            if self.ended or self.channel.cancelled or self.channel.speaker != self.execution:
                return None
            self.number += 1
            payload = b'%b%d, %b, "input": %b}' % (self.head, self.number, head.encode(), data)
            self.open.add(self.number)
            if future is not None:
                self.futures[self.number] = future
            if self.later or len(self.open) > MAX_OPEN:  # the host gets the numbers in order
                self.later.append((self.number, payload))
                self.send_later()
            else:
                self.channel.send(payload)
            return self.number

    def send_later(self):
        """Send the calls that wait, as far as the host has room for them."""
        if self.later:
            with self.channel.turn, self.changed:
                while self.later and len(self.open) - len(self.later) < MAX_OPEN:
                    self.channel.send(self.later.popleft()[1])

    def withdraw(self, numbers):
        """Tell the host that these calls are not waited for any more; their answers are dropped."""
        with self.channel.turn, self.changed:
            unsent = {number for number, _ in self.later}.intersection(numbers)
            self.later = collections.deque(each for each in self.later if each[0] not in unsent)
            for number in numbers:
                self.answers.pop(number, None)
                self.futures.pop(number, None)
                if number in unsent:
                    self.open.discard(number)
                elif number in self.open and number not in self.forgotten:
                    self.forgotten.add(number)
                    head = '{"type": "withdraw", "id": %s, "number": %d}'
                    self.channel.send((head % (json.dumps(self.execution), number)).encode())

    def finish(self):
        """End the calls that are left, before the answer of the execution; called in the main thread."""
        self.channel.calls = None
        with self.channel.turn, self.changed:
            self.ended = True
            self.withdraw_all()
            while self.open and not self.channel.cancelled:
                if self.reader is None or self.reader_stands_still():
                    self.read()
                else:
                    self.changed.wait()

    def withdraw_all(self):
        """Withdraw all calls; who still waits for one, in another thread, gets a failure."""
        left = set(self.open)
        waiting = dict(self.futures)
        self.withdraw(left)
        for number in left:
            gone = {"type": "call_failed", "number": number, "kind": "cancelled", "message": "the execution has ended"}
            self.deliver(gone, waiting.get(number))
        self.changed.notify_all()

    def wait(self, numbers):
        """Return the first answer to one of these calls. If that is interrupted, they are withdrawn."""
        try:
            while True:
                with self.changed:
                    for number in numbers:
                        if number in self.answers:
                            return self.answers.pop(number)
                    if self.channel.cancelled and STORED in numbers:
                        return {"type": "cancel"}
                    if self.channel.cancelled and _thread.get_ident() != self.main:  # which the signal interrupts
                        raise problem("", {"kind": "cancelled", "message": "the execution that calls was cancelled"})
                    if self.reader is None:
                        self.read()
                    else:
                        self.changed.wait()
                self.send_later()
        except BaseException:
            self.withdraw(numbers)
            raise
        finally:
            self.pass_on()

    def read(self):
        """Read one message; the lock is given up meanwhile."""
        self.reader = _thread.get_ident()
        self.changed.release()
        try:
            message = self.channel.receive()
        finally:
            self.changed.acquire()
            self.reader = None
            self.changed.notify_all()
        self.hear(message)

    def stored(self, waits):
        """Return the answer to `store`, or None if it has not come and need not be waited for."""
        if waits:
            return self.wait((STORED,))
        with self.changed:
            if self.reader is None and STORED not in self.answers:
                self.read()  # something is there
            return self.answers.pop(STORED, None)

    def hear(self, message):
        """Take a message of the host."""
        if message is None:
            os.killpg(0, signal.SIGKILL)
        kind = message["type"]
        if kind in ("called", "call_failed") and message["id"] == self.execution:
            number = message["number"]
            self.open.discard(number)
            future = self.futures.pop(number, None)
            if number in self.forgotten:
                self.forgotten.discard(number)
            else:
                self.deliver(message, future)
        elif kind in ("stored", "refused"):
            self.answers[STORED] = message
        elif kind == "cancel":
            self.channel.cancelled = True  # the signal that follows it looks there
        self.changed.notify_all()

    def deliver(self, message, future):
        """Hand an answer to who waits for it."""
        if future is None:
            self.answers[message["number"]] = message
            return
        loop = future.get_loop()
        try:
            loop.call_soon_threadsafe(settle, future, message)
        except RuntimeError:  # it was closed
            pass

    def watch(self, loop):
        """Let a loop read if it has calls and no other reads."""
        with self.changed:
            if self.reader is None and any(each.get_loop() is loop for each in self.futures.values()):
                self.reader = loop
                loop.add_reader(self.channel.fd, self.readable)
                self.drain()

    def readable(self):
        """Read what is there."""
        with self.changed:
            if not self.channel.more(1 << 16):
                os.killpg(0, signal.SIGKILL)
            self.drain()
        self.send_later()

    def drain(self):
        """Take the messages that are here as a whole."""
        while self.channel.whole():
            self.hear(self.channel.receive())

    def unwatch(self, loop):
        """Let others read if this loop has no calls any more."""
        with self.changed:
            if self.reader is loop and not any(each.get_loop() is loop for each in self.futures.values()):
                loop.remove_reader(self.channel.fd)
                self.reader = None
                self.changed.notify_all()
        self.pass_on()

    def pass_on(self):
        """Let a loop that waits for an answer read if no other reads; a thread that waits finds it by itself."""
        if self.futures:
            with self.changed:
                if self.reader is None and self.futures:
                    loop = next(iter(self.futures.values())).get_loop()
                    try:
                        loop.call_soon_threadsafe(self.watch, loop)
                    except RuntimeError:  # it was closed
                        pass

    def reader_stands_still(self):
        """Take the part of the reader from a loop that does not run any more; return whether there was one."""
        loop = self.reader
        if not hasattr(loop, "is_running") or loop.is_running():
            return False
        try:
            loop.remove_reader(self.channel.fd)
        except (RuntimeError, ValueError):  # it was closed
            pass
        self.reader = None
        return True


def of(channel, execution):
    """Return the calls of the running execution. Raises RuntimeError when it has ended."""
    with channel.turn:
        if channel.speaker != execution:
            raise RuntimeError("the execution has ended, and so have its calls")
        if channel.calls is None:
            if channel.before_store is not None:
                channel.before_store()

            def encode(value):
                try:
                    return encode_value(value, channel.max_bytes - 4096, "$", channel.store)
                except BadOutput as wrong:
                    raise ValueError("the input for the other module, at %s: %s" % (wrong.path, wrong)) from None

            channel.calls = Answers(channel, execution)
            channel.calls.calls = Calls(channel, channel.calls, encode)
        return channel.calls.calls


def settle(future, message):
    """Give a future its result, unless it has one or was cancelled."""
    if not future.done():
        future.set_result(message)


def check_parallel(number):
    """Raise ValueError for a number of calls at a time that is not possible."""
    if not isinstance(number, int) or not 1 <= number <= MAX_OPEN:
        raise ValueError("`parallel` is a number from 1 to %d, not %r" % (MAX_OPEN, number))


def problem(module, answer):
    """Return the exception for a failed call: the CallError that user code can catch, if its `operato` has one."""
    fields = {name: answer.get(name) for name in ("kind", "message", "error_type", "traceback", "field")}
    fields.update(module=str(module), execution_id=answer.get("child") or None)
    try:
        return (sys.modules.get("operato") or standard("operato")).CallError(**fields)
    except (ImportError, AttributeError, TypeError):  # an `operato` of the author
        failed = RuntimeError("%(module)s: %(kind)s: %(message)s" % fields)
        failed.__dict__.update(fields)
        return failed
