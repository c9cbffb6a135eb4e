"""`isolation: none`: a handler in the runner's own process, for the operator's file only. No wall, no kill, no capture.

The handler runs in a thread. A timeout answers the caller but cannot end the thread: it goes on, and holds one of
the module's `concurrency` places until it returns. What it prints goes where the runner prints.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import trio
from attrs import define, field

from protocol.errors import ErrorKind, Failure, RunnerError


@define(eq=False)
class InProcess:
    """The loaded handlers, by module digest."""

    _handlers: dict[str, Callable[[Any], Any]] = field(factory=dict, init=False)
    _limiters: dict[str, trio.CapacityLimiter] = field(factory=dict, init=False)

    async def call(self, digest: str, entry: Path, function: str, concurrency: int, data: bytes, *, seconds: float) -> bytes:  # fmt: skip  # noqa: E501
        """Return the handler's result as JSON.

        Raises RunnerError `load_failed`, `handler_error`, `bad_output` or `timeout`. Cancelled, the thread is left.
        """
        limiter = self._limiters.setdefault(digest, trio.CapacityLimiter(concurrency))
        with trio.move_on_after(seconds):
            return await trio.to_thread.run_sync(
                lambda: self._call(digest, entry, function, data), abandon_on_cancel=True, limiter=limiter
            )
        text = f"the handler did not end within {seconds:g} s; its thread goes on (isolation: none)"
        raise RunnerError(Failure(ErrorKind.TIMEOUT, text, field="timeout"))

    def _call(self, digest: str, entry: Path, function: str, data: bytes) -> bytes:
        handler = self._handlers.get(digest)
        if handler is None:
            try:
                handler = self._handlers[digest] = _load(entry, function)
            except BaseException as problem:  # noqa: BLE001  (whatever the module does when imported is data)
                raise RunnerError(_failure(ErrorKind.LOAD_FAILED, problem)) from None
        try:
            result = handler(msgspec.json.decode(data))
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            elif inspect.isasyncgen(result):
                result = asyncio.run(_collect(result))
            elif inspect.isgenerator(result):
                result = list(result)
        except BaseException as problem:  # noqa: BLE001  (sys.exit is the handler's failure too)
            raise RunnerError(_failure(ErrorKind.HANDLER_ERROR, problem)) from None
        try:
            return _encode(result)
        except (TypeError, ValueError, RecursionError) as problem:
            raise RunnerError(Failure(ErrorKind.BAD_OUTPUT, f"$: {problem}", field="$")) from None


async def _collect(generator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in generator]


def _encode(value: object) -> bytes:
    import json  # noqa: PLC0415  (msgspec writes NaN as null; strict JSON refuses it)

    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _load(entry: Path, function: str) -> Callable[[Any], Any]:
    module = types.ModuleType(f"inprocess_{entry.stem.replace('-', '_')}")
    module.__file__ = str(entry)
    sys.modules[module.__name__] = module
    exec(compile(entry.read_bytes(), str(entry), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    found = getattr(module, function, None)
    if not callable(found):
        raise LookupError(f"there is no function {function!r} in {entry.name}")  # noqa: TRY004  (told to the author)
    if callable(init := getattr(module, "init", None)):
        init()
    return found  # type: ignore[no-any-return]


def _failure(kind: ErrorKind, problem: BaseException) -> Failure:
    frames = problem.__traceback__.tb_next if problem.__traceback__ else None
    text = "".join(traceback.format_exception(type(problem), problem, frames))
    return Failure(kind, str(problem), type(problem).__qualname__, text[-65536:])
