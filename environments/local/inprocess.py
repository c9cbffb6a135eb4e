"""`isolation: none`: handlers in the runner's own process, for the operator's file only; unisolated and never killed.

A handler runs in a thread; its coroutines run on one asyncio loop for all calls of the module, in another thread. On a
timeout, or when the caller goes away, an `async` handler is cancelled and a generator is closed at its next item. Any
other handler cannot be ended: its thread continues, and occupies one of the module's `concurrency` places until it
returns. Its output is not captured: it appears in the runner's own output.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import threading
import time
import types
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog
import trio
from attrs import define, field

from environments.base import not_copied, refusal
from environments.local.calling import CALLING, Begin, Line, Places
from environments.local.exchange import Exchange
from environments.local.raised import LoadError, clean, failure_of
from environments.local.running import BadArgumentError, arguments, plan, running, serve_operato
from environments.local.values import BadValueError, decode_input, encode_value
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError

MAX_MODULES = 256
"""Loaded modules; beyond that, the least recently called one is unloaded."""
_MAX_TEXT = 4096
_BETWEEN = (__file__, "<frozen importlib", importlib.__file__, str(Path(asyncio.__file__).parent))
"""Files whose frames are between those of the runner and those of the handler."""
_failure = partial(failure_of, between=_BETWEEN)

OnEvent: TypeAlias = Callable[[messages.Item | messages.Progress], None]

log = structlog.get_logger("inprocess")


class _StoppedError(BaseException):
    """The caller has its answer: further items of a generator are not needed."""


@define(eq=False)
class _Call:
    """One call, shared by its thread and the caller's task."""

    execution_id: str
    attempt: int
    seconds: float
    on_event: OnEvent | None
    exchange: Exchange = field(factory=Exchange)
    line: Line | None = None
    """Makes its calls of modules."""
    token: trio.lowlevel.TrioToken = field(factory=trio.lowlevel.current_trio_token, init=False)
    arrived: float = field(factory=time.monotonic, init=False)
    deadline: float = field(init=False)
    awaited: Future[Any] | None = field(default=None, init=False)
    stopped: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.deadline = time.time() + self.seconds

    def check(self) -> None:
        """Raise _StoppedError if the caller has its answer."""
        if self.stopped:
            raise _StoppedError

    def stop(self) -> None:
        """Cancel the running coroutine and the calls of modules; a generator ends at its next item."""
        self.stopped = True
        if self.line is not None:
            self.line.end()
        if self.awaited is not None:
            self.awaited.cancel()

    def say(self, message: messages.Item | messages.Progress) -> None:
        """Pass a message to the caller's task; return when it is handled, so that messages do not queue up."""
        if self.on_event is None or self.stopped:
            return
        try:
            trio.from_thread.run_sync(self._hear, message, trio_token=self.token)
        except trio.RunFinishedError:
            self.stopped = True

    def _hear(self, message: messages.Item | messages.Progress) -> None:
        if self.on_event is not None and not self.stopped:
            try:
                self.on_event(message)
            except Exception:
                log.exception("a listener failed inside the runner", execution=self.execution_id)


class Context:
    """The second parameter of a handler: information about its execution."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self.execution_id = call.execution_id
        self.attempt = call.attempt
        self.deadline = call.deadline

    @property
    def remaining(self) -> float:
        """Seconds until the timeout."""
        return max(0.0, self.deadline - time.time())

    def __getattr__(self, name: str) -> Any:
        """Return one of the ways to call other modules."""
        if name not in CALLING:
            raise AttributeError(f"a context has no attribute {name!r}")
        if self._call.line is None:
            raise RuntimeError("modules cannot be called here")
        return getattr(self._call.line.calls(), name)

    def progress(self, done: float | None = None, total: float | None = None, text: str = "") -> None:
        """Report progress to the watchers of the execution."""
        done = None if done is None else float(done)
        total = None if total is None else float(total)
        self._call.say(messages.Progress(self.execution_id, done, total, clean(str(text)[:_MAX_TEXT])))


@define(eq=False)
class _Loop:
    """An asyncio loop for a thread of its own. It survives `sys.exit` in a task, and ends only by `close`."""

    # Created directly: the policy may be that of a library that runs asyncio on the Trio loop.
    loop: asyncio.AbstractEventLoop = field(factory=asyncio.SelectorEventLoop, init=False)
    _closing: bool = field(default=False, init=False)

    def run(self) -> None:
        """Run the loop until `close`; then cancel its tasks and close it."""
        asyncio.set_event_loop(self.loop)
        while not self._closing:  # a task that exits in the iteration of the stop would undo the stop
            self._survive(self.loop.run_forever)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        ending = self.loop.create_task(self.loop.shutdown_asyncgens())
        while not ending.done():
            self._survive(lambda: self.loop.run_until_complete(ending))
        self.loop.close()

    @staticmethod
    def _survive(run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException:  # (asyncio lets SystemExit and KeyboardInterrupt of a task out)
            log.warning("a task of an in-process module tried to exit", exc_info=True)

    def close(self) -> None:
        """End the loop; may be called in any thread."""
        self._closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)


@define(eq=False)
class _Module:
    """One module, loaded at its first call. `run` is called in threads, any number at a time."""

    name: str
    entry: Path
    function: str
    places: Places
    _handler: Callable[..., Any] | None = field(default=None, init=False)
    _plan: Any = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _failure: Failure | None = field(default=None, init=False)
    _failed_at: float = field(default=0.0, init=False)
    _loop: _Loop | None = field(default=None, init=False)
    _loop_lock: threading.Lock = field(factory=threading.Lock, init=False)

    def run(self, call: _Call, data: bytes, max_bytes: int | None) -> bytes:
        """Return the handler's result as JSON. Raises RunnerError."""
        handler = self._loaded(call)
        try:
            value = decode_input(data)
        except BadValueError as problem:
            raise RunnerError(Failure(ErrorKind.BAD_INPUT, str(problem), field=problem.path)) from None
        try:
            return self._answered(handler, value, call, max_bytes)
        except RunnerError as problem:
            raise RunnerError(refusal(problem)) from None
        except BadArgumentError as problem:
            raise RunnerError(Failure(ErrorKind.BAD_INPUT, str(problem), field=problem.path)) from None
        except BadValueError as problem:
            raise RunnerError(Failure(ErrorKind.BAD_OUTPUT, str(problem), field=problem.path)) from None
        except BaseException as problem:  # noqa: BLE001  (sys.exit is a failure of the handler too)
            kind = ErrorKind.OUT_OF_MEMORY if isinstance(problem, MemoryError) else ErrorKind.HANDLER_ERROR
            raise RunnerError(_failure(kind, problem)) from None
        finally:
            call.exchange.clear()

    def _answered(self, handler: Callable[..., Any], value: Any, call: _Call, max_bytes: int | None) -> bytes:
        try:
            files = call.exchange.bring(call.check)
        except OSError as problem:
            raise RunnerError(not_copied(problem)) from None
        with running(Context(call), files) as current:
            args, named = arguments(self._plan, value, current)
            result = handler(*args, **named)
            kept = call.exchange.keep(call.check)
            return encode_value(self._collected(result, call, max_bytes), limit=max_bytes, store=kept)

    def close(self) -> None:
        """End the module's loop and unload its code."""
        for name in [each for each in sys.modules if f"{each}.".startswith(f"{self.name}.")]:
            del sys.modules[name]
        if self._loop is not None:
            self._loop.close()

    def _loaded(self, call: _Call) -> Callable[..., Any]:
        """Return the handler; one of several first calls loads it, and the others share the handler or the failure."""
        with self._lock:
            if self._handler is None:
                if self._failure is not None and call.arrived < self._failed_at:
                    raise RunnerError(self._failure)
                try:
                    handler = self._import(call)
                    self._plan, self._handler = plan(handler), handler
                except BaseException as problem:  # noqa: BLE001  (any exception of the import is data)
                    self._failure, self._failed_at = _failure(ErrorKind.LOAD_FAILED, problem), time.monotonic()
                    raise RunnerError(self._failure) from None
            return self._handler

    def _import(self, call: _Call) -> Callable[..., Any]:
        serve_operato()
        module = self._executed()
        found = getattr(module, self.function, None)
        if found is None:
            made = (name for name, value in vars(module).items() if isinstance(value, types.FunctionType))
            functions = ", ".join(sorted(name for name in made if not name.startswith("_"))) or "no functions"
            raise LoadError(f"there is no function {self.function!r}; the module has: {functions}")
        if not callable(found):
            raise LoadError(f"{self.function!r} is a {type(found).__name__}, not a function")
        if callable(init := getattr(module, "init", None)):
            begun = init()
            if inspect.isawaitable(begun):
                self._wait(begun, call)
        return found  # type: ignore[no-any-return]

    def _executed(self) -> types.ModuleType:
        """Return the module of the entry: a file alone, or a file of the package that its folder is."""
        package = self.entry.with_name("__init__.py")
        path, folder = (package, [str(package.parent)]) if package.is_file() else (self.entry, None)
        spec = importlib.util.spec_from_file_location(self.name, path, submodule_search_locations=folder)
        module = sys.modules[self.name] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        return module if path == self.entry else importlib.import_module(f"{self.name}.{self.entry.stem}")

    def _collected(self, result: Any, call: _Call, max_bytes: int | None) -> Any:
        """Return the value of a handler; items of a generator are sent as they come, and collected."""
        if inspect.isawaitable(result):
            result = self._wait(result, call)
        if hasattr(type(result), "operato_stream"):
            result = result.operato_stream()
        collected: list[Any] = []

        def item(value: Any) -> None:
            call.check()
            before, keep = call.exchange.stored, call.exchange.keep(call.check)
            data = encode_value(value, limit=max_bytes, root=f"$[{len(collected)}]", store=keep)
            call.say(messages.Item(call.execution_id, msgspec.Raw(data)))
            collected.append(value if call.exchange.stored == before else decode_input(data))  # bytes are stored once

        if inspect.isgenerator(result):
            try:
                for each in result:
                    item(each)
            finally:
                result.close()
        elif inspect.isasyncgen(result):
            self._wait(_drain(result, item), call)
        else:
            return result
        return collected

    def _wait(self, awaitable: Awaitable[Any], call: _Call) -> Any:
        """Run an awaitable on the module's loop; return its result or raise its exception."""
        call.awaited = asyncio.run_coroutine_threadsafe(_outcome(awaitable), self._running_loop())
        if call.stopped:  # between the handler's return and now
            call.awaited.cancel()
        try:
            value, problem = call.awaited.result()
        except CancelledError:
            raise _StoppedError from None
        finally:
            call.awaited = None
        if problem is not None:
            raise problem
        return value

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                self._loop = _Loop()
                threading.Thread(target=self._loop.run, name=f"loop {self.name}", daemon=True).start()
            return self._loop.loop


@define(eq=False)
class InProcess:
    """The loaded modules, by digest. `close` ends their loops; handlers that still run continue."""

    _modules: OrderedDict[str, _Module] = field(factory=OrderedDict, init=False)

    async def call(
        self,
        digest: str,
        entry: Path,
        function: str,
        concurrency: int,
        data: bytes,
        *,
        seconds: float,
        execution_id: str = "",
        attempt: int = 1,
        on_event: OnEvent | None = None,
        max_bytes: int | None = None,
        exchange: Exchange | None = None,
        begin: Begin | None = None,
        level: int = 0,
    ) -> bytes:
        """Return the handler's result as JSON of at most `max_bytes`.

        `on_event` is called in this task's loop with items and progress, `begin` with calls of modules; `level` is the
        number of handlers that wait for this one. Raises RunnerError: `load_failed`,
        `handler_error`, `out_of_memory`, `bad_input`, `bad_output` or `timeout`. Cancelled, the handler is stopped as
        far as possible, and its thread is abandoned.
        """
        module = self._module(digest, entry, function, concurrency)
        call = _Call(execution_id, attempt, seconds, on_event, exchange or Exchange())
        if begin is not None:
            call.line = Line(execution_id, begin, partial(_encoded, call, max_bytes))
        try:
            with trio.move_on_after(seconds):
                return await trio.to_thread.run_sync(
                    module.run, call, data, max_bytes, abandon_on_cancel=True, limiter=module.places.of(level)
                )
            awaiting = call.awaited is not None
        finally:
            call.stop()
        left = "its task was cancelled" if awaiting else "its thread continues (isolation: none)"
        text = f"the handler did not end within its `timeout` of {seconds:g} s; {left}"
        raise RunnerError(Failure(ErrorKind.TIMEOUT, text, field="timeout"))

    def close(self) -> None:
        """Unload all modules."""
        while self._modules:
            self._modules.popitem()[1].close()

    def _module(self, digest: str, entry: Path, function: str, concurrency: int) -> _Module:
        found = self._modules.get(digest)
        if found is None:
            stem = entry.parent.name if entry.name == "__init__.py" else entry.stem
            name = "".join(c if c.isalnum() else "_" for c in f"inprocess_{stem}_{digest[:12]}")
            found = self._modules[digest] = _Module(name, entry, function, Places(concurrency))
            idle = [key for key, module in self._modules.items() if not module.places.used]
            for key in idle[: max(0, len(self._modules) - MAX_MODULES)]:
                if key != digest:
                    self._modules.pop(key).close()
        self._modules.move_to_end(digest)
        return found


def _encoded(call: _Call, max_bytes: int | None, value: Any) -> bytes:
    """Return the input for a call of a module. Raises BadValueError."""
    return encode_value(value, limit=max_bytes, store=call.exchange.keep(call.check))


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Return result and exception of an awaitable: some exceptions would end the loop if raised."""
    try:
        return await awaitable, None
    except BaseException as problem:  # noqa: BLE001  (raised in the thread of the call)
        return None, problem


async def _drain(generator: AsyncIterator[Any], item: Callable[[Any], None]) -> None:
    try:
        async for each in generator:
            item(each)
    finally:
        await generator.aclose()  # type: ignore[attr-defined]
