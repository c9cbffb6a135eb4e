"""The worker program: loads one module and runs its handler for each `execute` frame. SPEC.md is its contract.

One file, standard library only, Python 3.8 and later. The host starts it as
`python -I ... -c "import guest; guest.main()" FRAMES_FD LIFELINE_FD`; descriptors 1 and 2 belong to user code.
Modules that cost time to import (traceback, inspect, asyncio) are imported where they are needed.
"""

import _thread
import json
import os
import signal
import sys
import time
import types

try:
    import ctypes

    _LIBC = ctypes.CDLL(None, use_errno=True)
except (ImportError, OSError):  # a Python without ctypes works too, without subreaper and flush of C streams
    _LIBC = None

PROTOCOL_VERSION = 1
HEADER_BYTES = 4
MAX_TEXT = 16 * 1024
MAX_TRACEBACK = 64 * 1024
MAX_PATH = 200
MAX_DEPTH = 500
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_F_SETSIG = 10
_HERE = __file__


class Stop(BaseException):
    """Raised inside the handler by a soft stop of the host."""


class LoadError(Exception):
    """The module has no callable handler; the message has the remedy."""


class Channel:
    """Frames over one blocking descriptor. Any thread may send; processes forked by user code may not."""

    def __init__(self, fd):
        self.fd = fd
        self.max_bytes = 1 << 30
        self._buffer = bytearray()
        self._execution = None
        self.adopt()

    def adopt(self):
        """Let this process send; called in a fork, where another thread may have owned the lock."""
        self._owner = os.getpid()
        self._lock = _thread.allocate_lock()

    def speak_for(self, execution):
        """Let only this execution, or None, report progress: threads may outlive the answer of their execution."""
        if os.getpid() == self._owner:
            with self._lock:
                self._execution = execution

    def receive(self):
        """Return the next message as a dict, or None if the host is gone."""
        while len(self._buffer) < HEADER_BYTES:
            if not self._more(1 << 16):
                return None
        size = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        while len(self._buffer) < HEADER_BYTES + size:
            if not self._more(max(1 << 16, HEADER_BYTES + size - len(self._buffer))):
                return None
        payload = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + size])
        del self._buffer[: HEADER_BYTES + size]
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as problem:
            # Valid JSON that this Python cannot read: a number of 5,000 digits. `input` is the last field.
            message = json.loads(payload.partition(b',"input":')[0] + b"}")
            message["unreadable"] = str(problem)
            return message

    def _more(self, size):
        try:
            data = os.read(self.fd, size)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def send(self, payload, execution=None):
        """Write one whole frame; a frame of an `execution` only while `speak_for` allows it.

        If the host is gone, or user code closed the channel, the process ends.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            if execution not in (None, self._execution):
                return
            try:
                write_all(self.fd, len(payload).to_bytes(HEADER_BYTES, "big") + payload)
            except OSError:
                os.kill(os.getpid(), signal.SIGKILL)

    def say(self, message):
        """Send a dict as a message."""
        self.send(json.dumps(message).encode())


def write_all(fd, data):
    """Write everything, in as many calls as needed."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


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


class BadOutput(Exception):
    """JSON cannot represent the handler's value; `path` is the place."""

    def __init__(self, path, reason):
        Exception.__init__(self, reason)
        self.path = path


def encode_value(value, limit=1 << 30, root="$"):
    """Return strict JSON as at most `limit` bytes. Raises BadOutput with the path, from `root`, of the wrong value."""
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if len(data) > limit:
            raise BadOutput(root, "%d bytes of JSON; the limit is %d" % (len(data), limit))
        if data.count(b"[") + data.count(b"{") <= MAX_DEPTH or nesting(data) <= MAX_DEPTH:
            return data
        reason = "nested too deeply"
    except (TypeError, ValueError, RecursionError) as problem:
        reason = str(problem)
    path, found = find_not_json(value)
    path = root + path[1:MAX_PATH] + "..." * (len(path) > MAX_PATH)
    raise BadOutput(clean(path), clean((found or reason)[:MAX_TEXT]))


def nesting(data):
    """Return the nesting of a JSON text: brackets outside of strings, counted without a loop in Python."""
    from array import array
    from itertools import accumulate

    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = data.translate(None, bytes(set(range(256)) - set(b'[]{}"')))
    outside = b"".join(marks.split(b'"')[::2])
    return max(accumulate(array("b", outside.translate(bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")))), default=0)


def find_not_json(value):
    """Return path and reason of the first value that JSON cannot represent."""
    stack = [("$", value, ())]
    while stack:
        path, node, above = stack.pop()
        if isinstance(node, (int, str, type(None))):
            try:
                json.dumps(node, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                return path, "text with a lone surrogate cannot be sent as UTF-8"
            except ValueError as problem:  # an integer of more digits than this Python formats
                return path, str(problem)
        elif isinstance(node, float):
            if node != node or node in (float("inf"), float("-inf")):
                return path, "%r is not a JSON number" % node
        elif isinstance(node, (dict, list, tuple)):
            if id(node) in above:
                return path, "the value contains itself"
            if len(above) >= MAX_DEPTH:
                return path, "nested too deeply; the limit is %d levels" % MAX_DEPTH
            inside = above + (id(node),)
            if isinstance(node, dict):
                for key in node:
                    if not (key is None or isinstance(key, (str, int, float, bool))):
                        return path, "a key is of type %s; JSON keys are strings" % type(key).__name__
                    wrong = find_not_json(key)[1]
                    if wrong:
                        return path, "a key: %s" % wrong
                pairs = [("%s.%.80s" % (path, key), item, inside) for key, item in node.items()]
            else:
                pairs = [("%s[%d]" % (path, index), item, inside) for index, item in enumerate(node)]
            stack.extend(reversed(pairs))
        else:
            return path, "%s is not JSON; return dict, list, str, int, float, bool or None" % type(node).__name__
    return "$", None


def describe(problem):
    """Return type, message and traceback (only the user's frames) of an exception, even if its methods raise."""
    try:
        message = str(problem)
    except BaseException as broken:  # user code may raise in __str__
        message = "<no message: __str__ raised %s>" % type(broken).__name__
    if isinstance(problem, SystemExit):
        message = "the handler called sys.exit(%s)" % message
    try:
        import traceback

        frames = problem.__traceback__
        while frames is not None and is_between(frames.tb_frame.f_code.co_filename):
            frames = frames.tb_next
        text = "".join(traceback.format_exception(type(problem), problem, frames))
    except BaseException:  # user code may raise here too, and the stack may be exhausted
        text = ""
    if len(text) > MAX_TRACEBACK:
        text = text[: MAX_TRACEBACK // 2] + "\n...\n" + text[-MAX_TRACEBACK // 2 :]
    return clean(type(problem).__qualname__[:MAX_PATH]), clean(message[:MAX_TEXT]), clean(text)


def is_between(filename):
    """Return whether a file's frames lie between worker and handler: those of this file or of asyncio."""
    asyncio = sys.modules.get("asyncio")
    return filename == _HERE or (asyncio is not None and filename.startswith(os.path.dirname(asyncio.__file__)))


def clean(text):
    """Return text that UTF-8 can encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def failed(limit, **fields):
    """Return a message about a failure as JSON, shortened if it exceeds a very low limit of frames."""
    data = json.dumps(fields)
    if len(data) > limit:
        data = json.dumps(dict(fields, message=fields["message"][:MAX_PATH], traceback=""))
    return data.encode()


class Module:
    """The loaded user module: its handler, and how to call it."""

    def __init__(self, hello):
        self.loop = None
        self.task = None
        self.stopped = False
        self.main = self._load(hello)
        self.handler = self._find(hello)
        self.with_context = wants_context(self.handler)
        init = getattr(self.main, "init", None)
        if callable(init):
            self.wait(init())

    @staticmethod
    def _load(hello):
        path = hello["entry"]
        sys.path.insert(0, hello["root"])
        with open(path, "rb") as file:
            source = file.read()
        stem = os.path.basename(os.path.dirname(path) if hello["package"] else path[:-3])
        name = "".join(c if c.isalnum() else "_" for c in stem)
        if name in sys.modules or not name.isidentifier():
            name = "module_" + name
        module = types.ModuleType(name)
        module.__file__ = path
        if hello["package"]:
            module.__package__ = name
            module.__path__ = [os.path.dirname(path)]
        sys.modules[name] = module
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
        return module

    def _find(self, hello):
        name = hello["handler"]
        found = getattr(self.main, name, None)
        if found is None:
            functions = sorted(
                k for k, v in vars(self.main).items() if isinstance(v, types.FunctionType) and k[0] != "_"
            )
            raise LoadError(
                "there is no function %r; the module has: %s" % (name, ", ".join(functions) or "no functions")
            )
        if not callable(found):
            raise LoadError("%r is a %s, not a function" % (name, type(found).__name__))
        return found

    def call(self, value, context, item):
        """Run the handler; return its value. Items of a generator are passed to `item` as they come, and collected."""
        result = self.handler(value, context) if self.with_context else self.handler(value)
        if hasattr(result, "__await__"):
            result = self.wait(result)
        if isinstance(result, types.GeneratorType):
            collected = []
            for part in result:
                item(part)
                collected.append(part)
            return collected
        if isinstance(result, types.AsyncGeneratorType):
            return self.wait(collect(result, item))
        return result

    def wait(self, awaitable):
        """Run an awaitable on this worker's asyncio loop and return its result; return any other value unchanged."""
        if not hasattr(awaitable, "__await__"):
            return awaitable
        import asyncio

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)

        async def wrap():
            return await awaitable

        self.task = self.loop.create_task(wrap())
        try:
            return self.loop.run_until_complete(self.task)
        except asyncio.CancelledError:
            if self.stopped:
                raise Stop from None
            raise
        finally:
            self.task = None
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    def interrupt(self):
        """Raise Stop in the handler; called from the signal handler."""
        self.stopped = True
        if self.task is not None:
            self.loop.call_soon_threadsafe(self.task.cancel)
        else:
            raise Stop


async def collect(generator, item):
    """Return all items of an async generator."""
    collected = []
    try:
        async for part in generator:
            item(part)
            collected.append(part)
    finally:
        await generator.aclose()
    return collected


def wants_context(handler):
    """Return whether the handler takes a context. Raises LoadError if it takes no input."""
    code = getattr(handler, "__code__", None)
    if code is not None and not hasattr(handler, "__wrapped__"):
        bound = 1 if isinstance(handler, types.MethodType) else 0
        names = code.co_varnames[bound : code.co_argcount]
        plain = len(names) - len(handler.__defaults__ or ())
        if code.co_kwonlyargcount == 0:
            if not names and not code.co_flags & 4:
                raise LoadError("the handler takes no parameter; write `def handler(input):`")
            if plain > 2:
                raise LoadError(
                    "the handler needs %d parameters; it is called with input, or input and context" % plain
                )
            return len(names) > 1 and (plain > 1 or names[1] == "context")
    import inspect

    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return False
    for arguments in ((None, None), (None,)):
        try:
            bound = signature.bind(*arguments)
        except TypeError:
            continue
        parameters = [
            p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        second = parameters[1] if len(parameters) > 1 else None
        if len(arguments) == 1 or (second is not None and (second.default is second.empty or second.name == "context")):
            return len(arguments) == 2
    raise LoadError("the handler cannot be called with input, or with input and context: %s" % signature)


class Guest:
    """One worker: state between frames."""

    def __init__(self, channel):
        self.channel = channel
        self.peak = open_peak()
        self.module = None
        self.pid = os.getpid()
        self.running = False

    def on_term(self, _number, _frame):
        """Soft stop: only a running handler is interrupted."""
        if self.running:
            self.running = False
            self.module.interrupt()

    def load(self, hello):
        """Import the module and report the result. Return False if it cannot be imported."""
        began = time.perf_counter()
        self.channel.max_bytes = hello["max_frame_bytes"]
        os.environ.update(hello["variables"])
        if hello["protocol"] != PROTOCOL_VERSION:
            failure = "LoadError", "this worker has protocol %d, not %r" % (PROTOCOL_VERSION, hello["protocol"]), ""
        else:
            failure = None
            try:
                self.module = Module(hello)
            except LoadError as problem:
                failure = "LoadError", clean(str(problem)[:MAX_TEXT]), ""
            except BaseException as problem:  # any exception of the import is data
                failure = describe(problem)
        flush()
        if os.getpid() != self.pid:
            os._exit(0)
        if failure:
            kind, message, text = failure
            fields = {"type": "load_failed", "error_type": kind, "message": message, "traceback": text}
            self.channel.send(failed(self.channel.max_bytes, **fields))
            return False
        if hello["isolation"] == "fork":
            import gc

            gc.collect()
            gc.freeze()  # the collector would write to these objects and so copy their pages in every fork
        self.channel.say(
            {
                "type": "ready",
                "python": "%d.%d.%d" % sys.version_info[:3],
                "pid": self.pid,
                "seconds": time.perf_counter() - began,
                "children": self.children(),
                "subreaper": _LIBC is not None,
            }
        )
        return True

    def children(self):
        """Return whether processes started by user code are left; reap the ended ones."""
        try:
            while True:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is None:
                    return True
                os.waitpid(info.si_pid, os.WNOHANG)
        except ChildProcessError:
            return False

    def run(self, message):
        """Run the handler once; return the answer as JSON without its opening brace and `children`."""
        identity = message["id"]
        head = '"id":%s,' % json.dumps(identity)

        room = self.channel.max_bytes - 256
        places = iter(range(sys.maxsize))

        def item(value):
            data = encode_value(value, room, "$[%d]" % next(places))
            self.channel.send(('{"type":"item",%s"value":' % head).encode() + data + b"}")

        began = time.perf_counter()
        try:
            try:
                self.channel.speak_for(identity)
                self.running = True
                value = self.module.call(message["input"], Context(self.channel, message), item)
            finally:
                self.running = False
                self.channel.speak_for(None)
            data = encode_value(value, room)
            del value
        except BadOutput as problem:
            answer = {"kind": "bad_output", "message": "%s: %s" % (problem.path, problem), "field": problem.path}
        except Stop:
            answer = {"kind": "cancelled", "message": "the handler was stopped"}
        except MemoryError as problem:
            kind, text, trace = describe(problem)
            answer = {"kind": "out_of_memory", "message": text or "MemoryError", "error_type": kind, "traceback": trace}
        except BaseException as problem:  # sys.exit and KeyboardInterrupt are failures of the handler too
            kind, text, trace = describe(problem)
            answer = {"kind": "handler_error", "message": text, "error_type": kind, "traceback": trace}
        else:
            seconds = time.perf_counter() - began
            peak = json.dumps(peak_memory())
            text = '"type":"result",%s"seconds":%.9f,"peak_memory":%s,"value":' % (head, seconds, peak)
            return text.encode() + data + b"}"
        finally:
            flush()
            if os.getpid() != self.pid:  # a fork by the handler returned here: it must not answer
                os._exit(0)
        answer.update(type="error", id=identity, seconds=time.perf_counter() - began, peak_memory=peak_memory())
        return failed(self.channel.max_bytes, **answer)[1:]

    def run_forked(self, message):
        """Run the handler in a child; return the same as `run`."""
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError as problem:  # over the limit of processes, or out of memory
            os.close(reader)
            os.close(writer)
            return self.error(message, "worker_crashed", "the process for the call cannot be started: %s" % problem)
        if pid == 0:
            try:
                os.close(reader)
                self.pid = os.getpid()
                self.channel.adopt()
                payload = self.run(message)
                write_all(writer, len(payload).to_bytes(8, "big") + payload)
                os._exit(0)
            finally:  # user code closed the pipe, or a late signal: this copy must not continue
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(writer)
        payload = read_answer(reader, pid)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        if payload is not None:
            return payload
        if not os.WIFSIGNALED(status):
            text = "the process ended with exit code %d before the handler returned" % os.WEXITSTATUS(status)
        elif os.WTERMSIG(status) == signal.SIGKILL:
            text = "the process was killed by SIGKILL, or closed the descriptor of its channel"
        else:
            names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
            text = "the process was ended by %s" % names.get(os.WTERMSIG(status), "signal %d" % os.WTERMSIG(status))
        return self.error(message, "worker_crashed", text)

    def error(self, message, kind, text):
        """Return a failure of an execution without a result of the handler, in the form of `run`."""
        return json.dumps({"type": "error", "id": message["id"], "kind": kind, "message": text})[1:].encode()

    def serve(self, forked):
        """Answer frames until `shutdown`, or until the host is gone."""
        run = self.run_forked if forked else self.run
        channel = self.channel
        forget_peak(self.peak)
        while True:
            message = channel.receive()
            if message is None:
                os.killpg(0, signal.SIGKILL)
            kind = message["type"]
            if kind == "execute":
                self.children()  # processes that the runner killed after the last call must not count in this one
                problem = message.get("unreadable")
                answer = run(message) if problem is None else self.error(message, "bad_input", problem)
                head = b'{"children":true,' if self.children() else b'{"children":false,'
                channel.send(head + answer)
                forget_peak(self.peak)  # after the answer, so that it delays nothing
            elif kind == "ping":
                channel.say({"type": "pong"})
            elif kind == "shutdown":
                return


def read_answer(reader, pid):
    """Return the answer of a forked child (8 bytes of length, then as many bytes), or None if it ended before."""
    import select

    os.set_blocking(reader, False)
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    try:
        watch = os.pidfd_open(pid)
    except (AttributeError, OSError):
        watch = None
    if watch is not None:
        poller.register(watch, select.POLLIN)
    data = bytearray()
    ended = False
    try:
        while True:
            try:
                part = os.read(reader, 1 << 20)
                data += part
                if len(data) >= 8 and len(data) - 8 >= int.from_bytes(data[:8], "big"):
                    return bytes(data[8:])
                if not part:
                    return None
            except BlockingIOError:
                if ended:  # a grandchild may keep the pipe open: the child's end decides
                    return None
                poller.poll(None if watch is not None else 10)
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    finally:
        if watch is not None:
            os.close(watch)


def open_peak():
    """Return a descriptor for `forget_peak`, or None. Opened before `hide`, after which it belongs to root."""
    try:
        return os.open("/proc/self/clear_refs", os.O_WRONLY)
    except OSError:  # not Linux, or not allowed: the peak covers the whole life
        return None


def forget_peak(fd):
    """Reset the kernel's record of this process's peak memory."""
    try:
        if fd is not None:
            os.write(fd, b"5")
    except OSError:  # user code closed it
        pass


def peak_memory():
    """Return the peak of resident memory in bytes since `forget_peak`, or None."""
    try:
        fd = os.open("/proc/self/status", os.O_RDONLY)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
        return int(text.partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def flush():
    """Flush the buffers of Python and C for descriptors 1 and 2, so that output counts for this execution."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            stream.flush()
        except BaseException:  # user code may have closed or replaced it
            pass
    if _LIBC is not None:
        _LIBC.fflush(None)


def hide():
    """Keep other processes of this user out of the memory and descriptors of this one; root reaches them still.

    Where /proc hides what its reader cannot trace (hidepid), the host would not see this process any more: not there.
    """
    try:
        with open("/proc/self/mounts") as file:
            hidden = "hidepid=" in file.read()
    except OSError:
        hidden = False
    if _LIBC is not None and not hidden:
        _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def arm_lifeline(fd):
    """Make the kernel kill the whole group when the host's end of the pipe closes, even while C code spins."""
    import fcntl

    group = os.getpgrp()
    os.set_inheritable(fd, False)
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(fd, 1) == b"":  # the host was gone before the pipe was armed
            os.killpg(group, signal.SIGKILL)
    except BlockingIOError:
        pass


def main():
    """Run the worker; return after `shutdown`."""
    frames, lifeline = int(sys.argv[1]), int(sys.argv[2])
    arm_lifeline(lifeline)
    os.set_inheritable(frames, False)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.argv[:] = ["handler"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    guest = Guest(Channel(frames))
    hide()
    signal.signal(signal.SIGTERM, guest.on_term)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hello = guest.channel.receive()
    if hello is None or hello["type"] != "hello":
        return
    if guest.load(hello):
        guest.serve(hello["isolation"] == "fork")
