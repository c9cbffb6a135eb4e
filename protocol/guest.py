"""The worker program: loads one module and runs its handler for each `execute` frame. SPEC.md is its contract.

This file, `parts.py` and `values.py`, standard library only, Python 3.8 and later. The host starts it as
`python -I ... -c "import guest; guest.main()" FRAMES_FD LIFELINE_FD`; descriptors 1 and 2 belong to user code.
Modules that cost time to import are imported by `standard` where they are needed. User code does not see this program:
it is not in `sys.modules`, its folder is not on `sys.path`, and its frames are not in tracebacks.
"""

import _signal
import gc
import json
import os
import signal
import sys
import time
import types
from _frozen_importlib import module_from_spec
from _frozen_importlib_external import PathFinder, spec_from_file_location

import parts
import values
from parts import Channel, Context, Refused, Stop, peak_memory, write_all
from values import MAX_PATH, MAX_TEXT, BadInput, BadOutput, clean, encode_value

try:
    import ctypes

    _LIBC = ctypes.CDLL(None, use_errno=True)
except (ImportError, OSError):  # a Python without ctypes works too, without subreaper and flush of C streams
    _LIBC = None

PROTOCOL_VERSION = 1
MAX_TRACEBACK = 64 * 1024
_STORES = b"\xff" * 8
"""Before the first bytes that a fork stores, in the place of the length of its answer."""
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_F_SETSIG = 10
_HERE = os.path.dirname(__file__)
_MORE = {name: os.path.join(_HERE, name + ".py") for name in ("readers", "typed", "calling", "sharing", "many")}
_OURS = (__file__, parts.__file__, values.__file__) + tuple(_MORE.values())
_LATER = ("asyncio", "inspect", "select", "traceback")
_FIRST = frozenset(
    ["_collections_abc", "_frozen_importlib", "_frozen_importlib_external", "abc", "codecs", "encodings", "genericpath"]
    + ["io", "os", "posixpath", "site", "stat", "sys", "zipimport"]
)
"""Modules that every program has at its start, so that no file hides them."""
_PATH = []
_PLACES = ["built-in", "frozen", os.path.join(os.path.dirname(os.__file__), "")]
_STANDARD = {}
_JSON = ("dict", "Dict", "list", "List", "int", "float", "bool", "None", "NoneType", "Any", "object", "Mapping")
_DONE = frozenset((dict, list, str, int, float, bool, type(None)))
_HELPERS = (
    ("multiprocessing.resource_tracker", "_resource_tracker", "_pid"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid"),
    ("joblib.externals.loky.backend.resource_tracker", "_resource_tracker", "_pid"),
)
"""Module, variable and attribute with the process id of each helper that multiprocessing starts once for a program."""


class LoadError(Exception):
    """The module has no callable handler; the message has the remedy."""


def standard(name, load=__import__):
    """Import a module of the standard library, even if user code changed `sys.path` or replaced modules."""
    if name not in _STANDARD:
        theirs = {}
        if not is_standard(sys.modules.get(name)):
            present = library_names().intersection(sys.modules) - _FIRST
            theirs = {each: sys.modules[each] for each in present if not is_standard(sys.modules[each])}
        for each in theirs:
            del sys.modules[each]
        sys.path[:0] = _PATH  # in front, so that threads find all that they found before
        try:
            load(name)
            _STANDARD[name] = sys.modules[name]
            if theirs and name == "asyncio":
                settle_asyncio()
        finally:
            if sys.path[: len(_PATH)] == _PATH:
                del sys.path[: len(_PATH)]
            sys.modules.update(theirs)
    return _STANDARD[name]


def more(*names, package="protocol.authors.", program=sys.modules[__name__]):
    """Import files of this program that only some handlers need; return the last one."""
    names = [package + name for name in names]
    ours = {"protocol.values": values, "protocol.parts": parts, "protocol.guest": program}
    theirs = {name: sys.modules[name] for name in (*ours, *names) if name in sys.modules}

    def load(_):
        sys.modules.update(ours)
        for name in names:
            spec = spec_from_file_location(name, _MORE[name.rpartition(".")[2]])
            module = sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(module)
            module.standard = standard

    try:
        return standard(names[-1], load)
    finally:
        for name in (*ours, *names):
            sys.modules.pop(name, None)
        sys.modules.update(theirs)


def settle_asyncio():
    """Make a loop, for which asyncio imports parts of itself by name."""
    _STANDARD["asyncio"].new_event_loop().close()


def library_names():
    """Return the top-level names of the standard library."""
    known = getattr(sys, "stdlib_module_names", None)  # Python 3.10
    if known is None:
        known = {file.partition(".")[0] for path in _PATH if os.path.isdir(path) for file in os.listdir(path)}
    return frozenset(known)


def is_standard(module):
    """Return whether a module comes from where a program finds the standard library."""
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return isinstance(origin, str) and origin.startswith(tuple(_PLACES))


def give_way(root):
    """Let files of the author in `root`, which is first on `sys.path`, hide modules of the standard library.

    User code finds these files then, as under `python main.py`; this program keeps the modules of the library.
    """
    names = {file.partition(".")[0] for file in os.listdir(root)}
    hiding = {name for name in library_names() & names - _FIRST if is_in(find(name), root)}
    if hiding:
        for name in _LATER:
            standard(name)
        settle_asyncio()
        for name in list(sys.modules):
            if name.partition(".")[0] in hiding:
                del sys.modules[name]


def find(name):
    """Return the spec that an import of a top-level name would use, or None."""
    return next(filter(None, (finder.find_spec(name, None) for finder in sys.meta_path)), None)


def is_in(spec, folder):
    """Return whether a spec leads to a file or folder below `folder`."""
    places = () if spec is None else [spec.origin] if spec.has_location else spec.submodule_search_locations or ()
    return any(place.startswith(os.path.join(folder, "")) for place in places)


def import_entry(root, path, package):
    """Import the file with the handler by its name below `root`. A package finds its own files by plain names too.

    A file without such a name (`a-b.py`) is `__mp_main__` and has no spec, as a script in children of multiprocessing.
    """
    _PATH[:] = sys.path
    _PLACES.extend(os.path.join(path, "") for path in _PATH if path)
    sys.path.insert(0, root)
    if os.path.isdir(root):
        give_way(root)
    parts = os.path.relpath(path, root).split(os.sep)
    if package:
        sys.path.append(os.path.join(root, parts[0]))
    if parts[-1] == "__init__.py":
        del parts[-1]
    else:
        parts[-1] = parts[-1][:-3] if parts[-1].endswith(".py") else ""
    spec = find(parts[0]) if all(map(str.isidentifier, parts)) and parts[0] not in sys.modules else None
    if not is_in(spec, root) or (len(parts) == 1 and spec.origin != path):
        from importlib import machinery

        module = sys.modules["__main__"] = sys.modules["__mp_main__"] = types.ModuleType("__mp_main__")
        module.__file__, module.__package__ = path, ""
        module.__loader__ = machinery.SourceFileLoader("__mp_main__", path)
    elif len(parts) > 1:
        name = ".".join(parts)
        __import__(name)
        return sys.modules[name]
    else:
        module = sys.modules[spec.name] = module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no call waits until bytecode is written
    try:
        code = module.__loader__.get_code(module.__name__)
    finally:
        sys.dont_write_bytecode = before
    exec(code, module.__dict__)
    return sys.modules[module.__name__]


class Running:
    """The running call, where `operato` finds it; and the last finder of imports, for user code without its own one."""

    operato_call = True
    context = files = None

    def find_spec(self, name, *_):
        """Return the spec of `operato`. Its folder is put on `sys.path`, where child processes look too."""
        if name != "operato":
            return None
        sys.path.append(os.path.join(_HERE, "library"))
        return PathFinder.find_spec(name, sys.path[-1:])


RUNNING = Running()


def describe(problem):
    """Return type, message and traceback (only the user's frames) of an exception, even if its methods raise."""
    try:
        message = str(problem)
    except BaseException as broken:  # user code may raise in __str__
        message = "<no message: __str__ raised %s>" % type(broken).__name__
    if isinstance(problem, SystemExit):
        message = "the handler called sys.exit(%s)" % message
    try:
        frames = problem.__traceback__
        while frames is not None and is_between(frames.tb_frame.f_code.co_filename):
            frames = frames.tb_next
        last = below = frames
        while below is not None:  # a call of a module that failed is raised by this program
            if below.tb_frame.f_code.co_filename not in _OURS:
                last = below
            below = below.tb_next
        if last is not None:
            last.tb_next = None
        text = "".join(standard("traceback").format_exception(type(problem), problem, frames))
    except BaseException:  # user code may raise here too, and the stack may be exhausted
        text = plain_traceback(problem, message)
    if len(text) > MAX_TRACEBACK:
        text = text[: MAX_TRACEBACK // 2] + "\n...\n" + text[-MAX_TRACEBACK // 2 :]
    return clean(type(problem).__qualname__[:MAX_PATH]), clean(message[:MAX_TEXT]), clean(text)


def plain_traceback(problem, message):
    """Return a traceback without source lines, which needs no other module."""
    lines, frames = ["Traceback (most recent call last):"], problem.__traceback__
    while frames is not None:
        code = frames.tb_frame.f_code
        if code.co_filename not in _OURS:
            lines.append('  File "%s", line %d, in %s' % (code.co_filename, frames.tb_lineno, code.co_name))
        frames = frames.tb_next
    return "\n".join(lines + ["%s: %s" % (type(problem).__qualname__, message), ""])


def is_between(filename):
    """Return whether a file's frames lie between worker and handler: of this program, imports or asyncio."""
    asyncio = _STANDARD.get("asyncio")
    inside = asyncio is not None and filename.startswith(os.path.dirname(asyncio.__file__))
    return inside or filename in _OURS or filename.startswith("<frozen importlib")


def fields_of(problem):
    """Return the fields of the answer to an execution that ended by an exception."""
    if isinstance(problem, Refused):
        return {"kind": problem.kind, "message": str(problem)}
    if isinstance(problem, (BadInput, BadOutput)):
        return {"kind": problem.kind, "message": "%s: %s" % (problem.path, problem), "field": problem.path}
    if isinstance(problem, Stop):
        return {"kind": "cancelled", "message": "the handler was stopped"}
    name, text, trace = describe(problem)
    kind = "out_of_memory" if isinstance(problem, MemoryError) else "handler_error"
    text = text or ("MemoryError" if kind == "out_of_memory" else "")
    return {"kind": kind, "message": text, "error_type": name, "traceback": trace}


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
        self.plan = more("readers", "typed").plan(self.handler) if self.with_context is None else None
        init = getattr(self.main, "init", None)
        if callable(init):
            self.wait(init())

    @staticmethod
    def _load(hello):
        try:
            return import_entry(hello["root"], hello["entry"], hello["package"])
        except ImportError as problem:
            if problem.msg == "attempted relative import with no known parent package":
                problem.msg += "; write `import name`, or add an `__init__.py` to the folder to make it a package"
            raise

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
        """Run the handler; return its value, or of a generator what `item` returns for its items, as they come."""
        RUNNING.context = context
        if self.plan is not None:
            args, named = self.plan.arguments(value, RUNNING)
            result = self.handler(*args, **named)
        else:
            result = self.handler(value, context) if self.with_context else self.handler(value)
        if type(result) in _DONE:
            return result
        if hasattr(result, "__await__"):
            result = self.wait(result)
        result = result.operato_stream() if hasattr(type(result), "operato_stream") else result
        if isinstance(result, types.GeneratorType):
            return [item(part) for part in result]
        if isinstance(result, types.AsyncGeneratorType):
            return self.wait(collect(result, item))
        return result

    def wait(self, awaitable):
        """Run an awaitable on this worker's asyncio loop and return its result; return any other value unchanged."""
        if not hasattr(awaitable, "__await__"):
            return awaitable
        asyncio = standard("asyncio")
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
    try:
        return [item(part) async for part in generator]
    finally:
        await generator.aclose()


def wants_context(handler):
    """Return whether a handler `handler(input)` takes a context; None for others, which `typed` has a plan of."""
    code = getattr(handler, "__code__", None)
    if code is None or hasattr(handler, "__wrapped__") or code.co_kwonlyargcount or code.co_flags & 12:
        return None
    bound = 1 if isinstance(handler, types.MethodType) else 0
    names = code.co_varnames[bound : code.co_argcount]
    if not names or len(names) > 2 or (names[0] != "input" and names[0][0] != "_" and code.co_posonlyargcount <= bound):
        return None
    try:
        hints = getattr(handler, "__annotations__", {})
    except Exception:  # a name that exists for type checkers only
        return None
    other = names[1:] not in ((), ("context",)) and (handler.__defaults__ or names[1] in hints)
    return None if other or not is_json(hints.get(names[0], "Any")) else len(names) == 2


def is_json(hint):
    """Return whether a plain handler with this hint gets its input as it is; False if that takes a closer look."""
    text = hint if isinstance(hint, str) else repr(hint)
    name = text.partition("[")[0].rpartition(".")[2].strip("<>'")
    return "|" not in text and name.rpartition(" ")[2].strip("'") in _JSON


class Guest:
    """One worker: state between frames."""

    found = RUNNING

    def __init__(self, channel):
        self.channel = channel
        channel.calling = self.calling
        self.memory = Memory()
        self.left = False
        self.make, self.module = Module, None
        self.pid = os.getpid()
        self.running = False
        self.forking = False
        self.signals = {
            signal.SIGTERM: (self.on_term, signal.SIG_DFL),
            signal.SIGINT: (self.on_int, signal.default_int_handler),
        }

    def calling(self, execution):
        """Return the calls of the running execution to other modules; several threads may begin at once."""
        made = self.channel.calls
        if made is not None and self.channel.speaker == execution:
            return made.calls
        with self.channel.turn:
            return more("calling").of(self.channel, execution)

    def take_signals(self):
        """Give user code and its children the signals that a shell gives a program, however the host was started."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in set(range(1, signal.NSIG)) - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python itself ignores
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        for number, (ours, _) in self.signals.items():
            signal.signal(number, ours)
        os.register_at_fork(before=self.before_fork, after_in_parent=self.after_fork, after_in_child=self.in_fork)

    def before_fork(self):
        """Hold signals back: one that reached a fork before `in_fork` would be lost."""
        self.mask = _signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)

    def after_fork(self):
        """Let signals pass again."""
        _signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def in_fork(self):
        """Undo `take_signals` in a process that user code forked, unless user code has handlers of its own."""
        for number, (ours, default) in self.signals.items():
            if not self.forking and _signal.getsignal(number) == ours:
                signal.signal(number, default)
        self.after_fork()

    def on_term(self, number, _frame):
        """Stop the handler softly if the host has announced it by `cancel`; else end as any program does."""
        if not self.running:
            return
        if not self.channel.waiting():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.module is not None and not self.channel.storing:  # which finds the announcement by itself
            self.running = False
            self.module.interrupt()

    def on_int(self, number, frame):
        """Raise KeyboardInterrupt in user code; between executions nothing is there to interrupt."""
        if self.running and not self.channel.storing:
            signal.default_int_handler(number, frame)

    def load(self, hello):
        """Import the module and report the result. Return False if it cannot be imported."""
        began = time.perf_counter()
        self.channel.max_bytes = hello["max_frame_bytes"]
        os.environ.update(hello["variables"])
        apply_variables(os.environ)
        sys.meta_path.append(self.found)
        if hello["protocol"] != PROTOCOL_VERSION:
            failure = "LoadError", "this worker has protocol %d, not %r" % (PROTOCOL_VERSION, hello["protocol"]), ""
        else:
            failure = None
            try:
                try:
                    self.running = True
                    self.module = self.make(hello)
                finally:
                    self.running = False
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
            self.memory.prepare()
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
        store = self.channel.store

        def item(value):
            before = self.channel.stored
            data = encode_value(value, room, "$[%d]" % next(places), store)
            self.channel.send(('{"type":"item",%s"value":' % head).encode() + data + b"}")
            return value if self.channel.stored == before else json.loads(data)  # its bytes are stored once

        began = time.perf_counter()
        try:
            try:
                self.channel.speak_for(identity)
                self.running = True
                RUNNING.files = message.get("files") or {}
                value = self.module.call(message["input"], Context(self.channel, message), item)
            finally:
                self.running = False
                self.channel.speak_for(None)
                if self.channel.calls is not None:
                    self.channel.calls.finish()
            data = encode_value(value, room, "$", store)
            del value
        except BaseException as problem:  # sys.exit and KeyboardInterrupt are failures of the handler too
            answer = fields_of(problem)
        else:
            seconds = time.perf_counter() - began
            peak = json.dumps(self.memory.peak())
            text = '"type":"result",%s"seconds":%.9f,"peak_memory":%s,"value":' % (head, seconds, peak)
            return text.encode() + data + b"}"
        finally:
            flush()
            if os.getpid() != self.pid:  # a fork by the handler returned here: it must not answer
                os._exit(0)
        answer.update(type="error", id=identity, seconds=time.perf_counter() - began, peak_memory=self.memory.peak())
        return failed(self.channel.max_bytes, **answer)[1:]

    def run_forked(self, message):
        """Run the handler in a child; return the same as `run`."""
        reader, writer = os.pipe()
        try:
            self.forking = True
            pid = os.fork()
        except OSError as problem:  # over the limit of processes, or out of memory
            os.close(reader)
            os.close(writer)
            return self.error(message, "worker_crashed", "the process for the call cannot be started: %s" % problem)
        finally:
            self.forking = False
        if pid == 0:
            try:
                os.close(reader)
                self.memory.begin()
                self.pid = os.getpid()
                self.channel.adopt()
                self.channel.before_store = lambda: write_all(writer, _STORES)
                reseed()
                payload = self.run(message)
                write_all(writer, len(payload).to_bytes(8, "big") + payload)
                os._exit(0)
            finally:  # user code closed the pipe, or a late signal: this copy must not continue
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(writer)
        payload, stores = read_answer(reader, pid)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        if payload is not None:
            return payload
        if stores:  # it may have cut off a frame, after which nothing can be sent
            end_like(status)
        if not os.WIFSIGNALED(status):
            text = "the process ended with exit code %d before the handler returned" % os.WEXITSTATUS(status)
        elif os.WTERMSIG(status) == signal.SIGKILL:
            text = "the process was killed by SIGKILL, or closed the descriptor of its channel"
        else:
            names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
            names[signal.SIGBUS] = "SIGBUS, as when /dev/shm is full (field `shm`)"
            text = "the process was ended by %s" % names.get(os.WTERMSIG(status), "signal %d" % os.WTERMSIG(status))
        return self.error(message, "worker_crashed", text)

    def error(self, message, kind, text, field=None):
        """Return a failure of an execution without a result of the handler, in the form of `run`."""
        fields = {"type": "error", "id": message["id"], "kind": kind, "message": text, "field": field}
        return json.dumps(fields)[1:].encode()

    def serve(self, forked):
        """Answer frames until `shutdown`, or until the host is gone."""
        run = self.run_forked if forked else self.run
        channel = self.channel
        self.memory.reset()
        while True:
            message = channel.receive()
            if message is None:
                os.killpg(0, signal.SIGKILL)
            kind = message["type"]
            if kind == "execute":
                if self.left:  # processes that the runner killed after the last call must not count in this one
                    self.children()
                if "unreadable" in message:
                    field, problem = message["unreadable"]
                    answer = self.error(message, "bad_input", "%s: %s" % (field, problem), field)
                else:
                    answer = run(message)
                self.left = self.children()
                left = b'true,"stays":%s' % json.dumps(helpers()).encode() if self.left else b"false"
                channel.send(b'{"children":' + left + b"," + answer)
                if not forked:
                    self.memory.forget()  # after the answer, so that it delays nothing
            elif kind == "ping":
                channel.say({"type": "pong"})
            elif kind == "shutdown":
                return


def helpers():
    """Return the process ids of helpers of multiprocessing: they serve later calls too, and end with this process."""
    found = [getattr(getattr(sys.modules.get(module), name, None), pid, None) for module, name, pid in _HELPERS]
    return [pid for pid in found if type(pid) is int]


def apply_variables(variables):
    """Do what a starting Python does for variables; the runner refuses those that have no effect later."""
    if "TZ" in variables:
        time.tzset()
    if variables.get("PYTHONPATH"):
        sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    if variables.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True
    if variables.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    if variables.get("PYTHONFAULTHANDLER"):
        import faulthandler

        faulthandler.enable()
    if variables.get("PYTHONWARNINGS"):
        import warnings

        options = variables["PYTHONWARNINGS"].split(",")
        sys.warnoptions.extend(options)
        warnings._processoptions(options)


def reseed():
    """Give a fork random numbers of its own; Python itself does so for the functions of `random`."""
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        try:
            numpy.seed()
        except Exception:  # user code has chosen a generator that cannot be seeded
            pass


def read_answer(reader, pid):
    """Return the answer of a forked child (8 bytes of length, then as many bytes), or None if it ended before.

    The second value is whether it has begun to store bytes, on the channel.
    """
    select = standard("select")
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
    stores = ended = False
    try:
        while True:
            try:
                part = os.read(reader, 1 << 20)
                data += part
                while data.startswith(_STORES):
                    stores = True
                    del data[: len(_STORES)]
                if len(data) >= 8 and len(data) - 8 >= int.from_bytes(data[:8], "big"):
                    return bytes(data[8:]), stores
                if not part:
                    return None, stores
            except BlockingIOError:
                if ended:  # a grandchild may keep the pipe open: the child's end decides
                    return None, stores
                poller.poll(None if watch is not None else 10)
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    finally:
        if watch is not None:
            os.close(watch)


def end_like(status):
    """End this process as another one has ended, by its status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGTERM, signal.SIGINT):  # this process has handlers of its own
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


class Memory:
    """The peak of this process's resident memory in each call.

    The kernel's record takes longer to read than many a call. But memory grows by page faults only: after a call
    without any, the peak is known until the next page fault.
    """

    def __init__(self):
        self.usage = self.faults = self.known = None
        self.forked = False
        try:
            self.fd = os.open("/proc/self/clear_refs", os.O_WRONLY)  # after `hide` it belongs to root
        except OSError:  # not Linux, or not allowed: the peak covers the whole life
            self.fd = None

    def peak(self):
        """Return the peak since `reset` in bytes, or None if it is unknown."""
        if self.forked and self.usage:
            return self.usage.getrusage(self.usage.RUSAGE_SELF).ru_maxrss * 1024
        quiet = self.faults is not None and self.count() == self.faults
        if not quiet or self.known is None:
            found = peak_memory()
            self.known = found if quiet else None
            return found
        return self.known

    def prepare(self):
        """Import what counts page faults."""
        if self.usage is None:
            try:
                self.usage = standard("resource")
            except ImportError:  # a Python without it: each call reads the record
                self.usage = False

    def forget(self):
        """Forget the peak of the last call."""
        self.prepare()
        if self.known is None and self.reset() and self.usage:
            self.faults = self.count()

    def count(self):
        """Return the number of page faults of this process."""
        usage = self.usage.getrusage(self.usage.RUSAGE_SELF)
        return usage.ru_minflt + usage.ru_majflt

    def reset(self):
        """Reset the kernel's record; return whether that was possible."""
        try:
            return self.fd is not None and os.write(self.fd, b"5") > 0
        except OSError:  # user code closed it
            self.fd = None
            return False

    def begin(self):
        """Begin anew in a fork, for whose life the kernel has the peak. That of a program includes its starter's."""
        self.forked = True
        if self.fd is not None:
            os.close(self.fd)
        self.fd = self.faults = None


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


def main(alone=False):
    """Run the worker; return after `shutdown`. In a container it is `alone`: no other worker has its user."""
    frames, lifeline = int(sys.argv[1]), int(sys.argv[2])
    arm_lifeline(lifeline)
    os.set_inheritable(frames, False)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.argv[:] = ["handler"]
    for name in ("guest", "parts", "relay", "values"):
        sys.modules.pop(name, None)
        vars(sys.modules["__main__"]).pop(name, None)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    guest = Guest(Channel(frames, standard))
    guest.take_signals()
    if not alone:
        hide()
    hello = guest.channel.receive()
    if hello is None or hello["type"] != "hello":
        return
    if hello.get("calls", 1) > 1:
        more("sharing", "many", package="protocol.").Many(guest).serve(hello)
    elif guest.load(hello):
        guest.serve(hello["isolation"] == "fork")
