"""`isolation: none`: a handler in the runner's own process, for the operator's file only. No wall, no kill, no capture.

A handler runs in a thread; what it awaits runs on an asyncio loop that all calls of the module share, in one more
thread. On a timeout, or when the caller goes away, an `async` handler is cancelled and a generator is closed at its
next item. Any other one cannot be ended: its thread goes on, and holds one of the module's `concurrency` places until
it returns. What it prints goes where the runner prints.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
import time
import traceback
import types
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog
import trio
from attrs import define, field

from environments.local.values import UnsayableError, encode_value
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError

MAX_MODULES = 256
"""Loaded modules; the one that was called longest ago is forgotten for another."""
_MAX_TEXT = 4096
_MAX_TRACEBACK = 65536
_BETWEEN = (__file__, str(Path(asyncio.__file__).parent))
"""Files between the runner's frames and those of the handler."""

OnEvent: TypeAlias = Callable[[messages.Item | messages.Progress], None]

log = structlog.get_logger("inprocess")


class LoadError(Exception):
    """The module has no handler that could be called; the message says what is wanted."""


class _StoppedError(BaseException):
    """The caller has its answer: what a generator would still yield is for nobody."""


@define(eq=False)
class _Call:
    """One call, seen from its thread and from the caller's task."""

    execution_id: str
    attempt: int
    seconds: float
    on_event: OnEvent | None
    token: trio.lowlevel.TrioToken = field(factory=trio.lowlevel.current_trio_token, init=False)
    arrived: float = field(factory=time.monotonic, init=False)
    deadline: float = field(init=False)
    awaited: Future[Any] | None = field(default=None, init=False)
    stopped: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.deadline = time.time() + self.seconds

    def stop(self) -> None:
        """Cancel what is awaited; a generator ends at its next item."""
        self.stopped = True
        if self.awaited is not None:
            self.awaited.cancel()

    def say(self, message: messages.Item | messages.Progress) -> None:
        """Tell the caller's task; returns when it has heard, so that nothing piles up."""
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
    """What a handler may ask about the execution that it is part of: its second parameter."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self.execution_id = call.execution_id
        self.attempt = call.attempt
        self.deadline = call.deadline

    @property
    def remaining(self) -> float:
        """Seconds until the caller is answered that time is up."""
        return max(0.0, self.deadline - time.time())

    def progress(self, done: float | None = None, total: float | None = None, text: str = "") -> None:
        """Tell those who watch how far this is."""
        done = None if done is None else float(done)
        total = None if total is None else float(total)
        self._call.say(messages.Progress(self.execution_id, done, total, _clean(str(text)[:_MAX_TEXT])))


@define(eq=False)
class _Module:
    """One loaded module. `load` and `run` are called in threads, any number at a time."""

    name: str
    entry: Path
    function: str
    limiter: trio.CapacityLimiter
    _handler: Callable[..., Any] | None = field(default=None, init=False)
    _with_context: bool = field(default=False, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _failure: Failure | None = field(default=None, init=False)
    _failed_at: float = field(default=0.0, init=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)
    _loop_lock: threading.Lock = field(factory=threading.Lock, init=False)

    def run(self, call: _Call, data: bytes, max_bytes: int | None) -> bytes:
        """Return the handler's result as JSON. Raises RunnerError."""
        handler = self._loaded(call)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as problem:  # good JSON that this Python does not read
            raise RunnerError(Failure(ErrorKind.BAD_INPUT, str(problem), field="$")) from None
        try:
            result = handler(value, Context(call)) if self._with_context else handler(value)
            return encode_value(self._collected(result, call, max_bytes), limit=max_bytes)
        except UnsayableError as problem:
            raise RunnerError(Failure(ErrorKind.BAD_OUTPUT, str(problem), field=problem.path)) from None
        except BaseException as problem:  # noqa: BLE001  (sys.exit is the handler's failure too)
            kind = ErrorKind.OUT_OF_MEMORY if isinstance(problem, MemoryError) else ErrorKind.HANDLER_ERROR
            raise RunnerError(_failure(kind, problem)) from None

    def close(self) -> None:
        """End the loop of the module and forget its code."""
        sys.modules.pop(self.name, None)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _loaded(self, call: _Call) -> Callable[..., Any]:
        """Return the handler; of several first calls one loads, and the others get its handler or its failure."""
        with self._lock:
            if self._handler is None:
                if self._failure is not None and call.arrived < self._failed_at:
                    raise RunnerError(self._failure)
                try:
                    handler = self._import(call)
                    self._with_context, self._handler = _wants_context(handler), handler
                except BaseException as problem:  # noqa: BLE001  (whatever the module does when imported is data)
                    self._failure, self._failed_at = _failure(ErrorKind.LOAD_FAILED, problem), time.monotonic()
                    raise RunnerError(self._failure) from None
            return self._handler

    def _import(self, call: _Call) -> Callable[..., Any]:
        module = types.ModuleType(self.name)
        module.__file__ = str(self.entry)
        if self.entry.name == "__init__.py":
            module.__package__, module.__path__ = self.name, [str(self.entry.parent)]
        sys.modules[self.name] = module
        exec(compile(self.entry.read_bytes(), str(self.entry), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
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

    def _collected(self, result: Any, call: _Call, max_bytes: int | None) -> Any:
        """Return the value of a handler; the items of a generator are told as they come and collected."""
        if inspect.isawaitable(result):
            result = self._wait(result, call)
        collected: list[Any] = []

        def item(value: Any) -> None:
            if call.stopped:
                raise _StoppedError
            data = encode_value(value, limit=max_bytes, root=f"$[{len(collected)}]")
            call.say(messages.Item(call.execution_id, msgspec.Raw(data)))
            collected.append(value)

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
        """Return what an awaitable comes to on the module's loop; raise what it raises."""
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
                # Made by hand: the policy may be that of a library which runs asyncio on the Trio loop.
                self._loop = asyncio.SelectorEventLoop()
                threading.Thread(target=_run_loop, args=(self._loop,), name=f"loop {self.name}", daemon=True).start()
            return self._loop


@define(eq=False)
class InProcess:
    """The loaded modules, by digest. `close` ends their loops; handlers that still run are left."""

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
    ) -> bytes:
        """Return the handler's result as JSON of at most `max_bytes`.

        `on_event` is called in this task's loop with items and progress. Raises RunnerError: `load_failed`,
        `handler_error`, `out_of_memory`, `bad_input`, `bad_output` or `timeout`. Cancelled, the handler is stopped as
        far as that can be done, and its thread is left.
        """
        module = self._module(digest, entry, function, concurrency)
        call = _Call(execution_id, attempt, seconds, on_event)
        try:
            with trio.move_on_after(seconds):
                return await trio.to_thread.run_sync(
                    module.run, call, data, max_bytes, abandon_on_cancel=True, limiter=module.limiter
                )
            awaiting = call.awaited is not None
        finally:
            call.stop()
        left = "its task was cancelled" if awaiting else "its thread goes on (isolation: none)"
        text = f"the handler did not end within {seconds:g} s; {left}"
        raise RunnerError(Failure(ErrorKind.TIMEOUT, text, field="timeout"))

    def close(self) -> None:
        """Forget all modules."""
        while self._modules:
            self._modules.popitem()[1].close()

    def _module(self, digest: str, entry: Path, function: str, concurrency: int) -> _Module:
        found = self._modules.get(digest)
        if found is None:
            stem = entry.parent.name if entry.name == "__init__.py" else entry.stem
            name = "".join(c if c.isalnum() else "_" for c in f"inprocess_{stem}_{digest[:12]}")
            found = self._modules[digest] = _Module(name, entry, function, trio.CapacityLimiter(concurrency))
            idle = [key for key, module in self._modules.items() if not module.limiter.borrowed_tokens]
            for key in idle[: max(0, len(self._modules) - MAX_MODULES)]:
                if key != digest:
                    self._modules.pop(key).close()
        self._modules.move_to_end(digest)
        return found


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped; `sys.exit` in a task of user code does not end it for the others."""
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
            break
        except BaseException:  # (asyncio lets SystemExit and KeyboardInterrupt of a task out)
            log.warning("a task of an in-process module tried to exit", exc_info=True)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Return what comes of an awaitable. As a value, since some exceptions would end the loop."""
    try:
        return await awaitable, None
    except BaseException as problem:  # noqa: BLE001  (raised again in the thread of the call)
        return None, problem


async def _drain(generator: AsyncIterator[Any], item: Callable[[Any], None]) -> None:
    try:
        async for each in generator:
            item(each)
    finally:
        await generator.aclose()  # type: ignore[attr-defined]


def _wants_context(handler: Callable[..., Any]) -> bool:
    """Return whether the handler has a second parameter to be filled: one without default, or named `context`."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # builtins do not always say
        return False
    named = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for arguments in ((None, None), (None,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        second = named[1] if len(named) > 1 else None
        if len(arguments) == 1 or (second is not None and (second.default is second.empty or second.name == "context")):
            return len(arguments) == 2
    if not signature.parameters:
        raise LoadError("the handler takes no parameter; write `def handler(input):`")
    needed = [p for p in named if p.default is p.empty]
    if len(needed) > 2:
        text = f"the handler needs {len(needed)} parameters; it is called with input, or input and context"
        raise LoadError(text)
    raise LoadError(f"the handler cannot be called with input, or with input and context: {signature}")


def _failure(kind: ErrorKind, problem: BaseException) -> Failure:
    """Return an exception of user code as data, whatever it does when it is looked at."""
    try:
        message = str(problem)
    except BaseException as broken:  # noqa: BLE001  (user code may raise in __str__)
        message = f"<its message could not be made: {type(broken).__name__}>"
    if isinstance(problem, SystemExit):
        message = f"the handler called sys.exit({message})"
    try:
        frames = problem.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_BETWEEN):
            frames = frames.tb_next
        text = (
            ""
            if isinstance(problem, LoadError)
            else "".join(traceback.format_exception(type(problem), problem, frames))
        )
    except BaseException:  # noqa: BLE001  (the same again)
        text = ""
    if len(text) > _MAX_TRACEBACK:
        text = text[: _MAX_TRACEBACK // 2] + "\n...\n" + text[-_MAX_TRACEBACK // 2 :]
    if isinstance(problem, MemoryError):
        message = message or "MemoryError"
    return Failure(kind, _clean(message[:16384]), _clean(type(problem).__qualname__), _clean(text))


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
