"""Checks of what callers send. A long one runs in a thread, so that it does not hold the event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import trio
from attrs import define, field

from actors.registry import Published
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.scan import LongCheckError
from runner.api.described import parse_description

T = TypeVar("T")
QUICK_BYTES: Final = 64 * 1024
"""A larger body is checked in a thread."""
_THREADS: Final = 2
"""Checks at a time: each can keep the event loop waiting for the lock of the interpreter."""


@define(eq=False)
class Checks:
    """Checks bodies: small ones at once, others in their turn. A cancellation ends only the waiting for a check."""

    _threads: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_THREADS), init=False)

    def quick_input(self, module: Published, data: bytes) -> msgspec.Raw | None:
        """Return what `input` returns; None where that takes long."""
        if len(data) <= QUICK_BYTES:
            try:
                return _checked_input(module, data, quickly=True)
            except LongCheckError:
                pass
        return None

    async def input(self, module: Published, data: bytes) -> msgspec.Raw:
        """Return an input that the module accepts; an empty body is null. Raises RunnerError `bad_input`."""
        raw = self.quick_input(module, data)
        return raw if raw is not None else await self.run(partial(_checked_input, module, data, quickly=False))

    async def description(self, body: bytes, field: str = "$") -> dict[str, Any]:
        """Return the JSON object that describes a module. Raises RunnerError `bad_input` with this field."""
        return await self.whole(partial(parse_description, field=field), body)

    async def whole(self, read: Callable[[bytes], T], body: bytes) -> T:
        """Return what `read` makes of a body, or raise what it raises."""
        return await self.sized(len(body), partial(read, body))

    async def sized(self, size: int, work: Callable[[], T]) -> T:
        """Return what work on so many bytes returns, or raise what it raises."""
        return work() if size <= QUICK_BYTES else await self.run(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what a long check returns, or raise what it raises."""
        found = await trio.to_thread.run_sync(_outcome, work, limiter=self._threads, abandon_on_cancel=True)
        if isinstance(found, Failure):
            raise RunnerError(found)
        return found


def _outcome(work: Callable[[], T]) -> T | Failure:
    """Return the result or the failure: an exception that leaves a thread of Trio keeps itself and the body alive."""
    try:
        return work()
    except RunnerError as problem:
        return problem.failure


def _is_of_bytes(problem: messages.InvalidJsonError) -> bool:
    return isinstance(problem.__cause__, UnicodeDecodeError)


def _checked_input(module: Published, data: bytes, *, quickly: bool) -> msgspec.Raw:
    try:
        raw = messages.check_json(data or b"null")
    except messages.InvalidJsonError as problem:
        more = "; a body of bytes needs its type in `Content-Type`" if _is_of_bytes(problem) else ""
        raise error(ErrorKind.BAD_INPUT, f"the input is not JSON: {problem}{more}", field=problem.path) from None
    if module.inputs is not None and (failure := module.inputs.check(bytes(raw), quickly=quickly)) is not None:
        raise RunnerError(failure)
    return raw
