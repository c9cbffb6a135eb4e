"""The calls of modules that one running handler has made and waits for.

Rules:
* Each call has a task in the nursery of the executions. It ends when its execution has ended and its answer is sent.
* While a call is open, the handler has given its turn to others: its worker counts neither for its module nor for its
  kind. The answer to the last open call is sent when it has its turn again.
* A handler that ends in any way ends its calls: `close` returns when nothing of them is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec
import structlog
import trio
from attrs import define, field

from actors.events import EventLog
from actors.registry import Published
from environments.base import ChannelClosedError, InterruptedWaitError
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Execution

MAX_OPEN: Final = 64
MAX_CALLS: Final = 100_000
_INTERNAL: Final = Failure(ErrorKind.INTERNAL, "internal error; the runner's log has the reason")
_ENDED: Final = Failure(ErrorKind.CANCELLED, "the execution that called it has ended")
_WITHDRAWN: Final = Failure(ErrorKind.CANCELLED, "the handler that called it does not wait for it any more")
T = TypeVar("T")
Reply: TypeAlias = Callable[[messages.HostMessage], Awaitable[None]]

log = structlog.get_logger("children")


class Parent(Protocol):
    """The execution that calls."""

    execution: Execution
    module: Published
    path: tuple[str, ...]
    log: EventLog


class Begun(Protocol):
    """An execution that was called."""

    execution: Execution
    children: Children | None

    def cancel(self, why: Failure) -> None:
        """End it in any state. Never blocks."""


class Turn(Protocol):
    """The turn of a handler among those that may run at a time."""

    def give(self) -> None:
        """Let others run."""

    def take_nowait(self) -> bool:
        """Let it go on if that is possible at once; return whether it was."""

    async def take(self) -> None:
        """Wait until it may go on."""

    def end(self) -> None:
        """Note that it has ended while others run in its place."""


@define(eq=False)
class Open:
    """One call without an answer."""

    message: messages.Call
    pause: trio.CancelScope | None = field(default=None, init=False)
    """The scope of a wait before an execution of its own has begun."""
    child: Begun | None = field(default=None, init=False)
    """The execution that it waits for."""
    owned: bool = field(default=False, init=False)
    """Its execution ends with it."""
    why: Failure | None = field(default=None, init=False)

    def begun(self, child: Begun, *, owned: bool) -> None:
        """Note its execution."""
        self.child, self.owned = child, owned
        if owned and self.why is not None:
            child.cancel(self.why)

    def end(self, why: Failure) -> None:
        """End it; the first reason counts."""
        if self.why is None:
            self.why = why
            if self.child is not None and self.owned:
                self.child.cancel(why)
            elif self.pause is not None:
                self.pause.cancel()

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what some work returns, which `end` ends. Raises RunnerError when it was ended."""
        if self.why is None:
            with trio.CancelScope() as self.pause:
                return await work()
        raise RunnerError(self.why or _ENDED)


Answer: TypeAlias = Callable[[Parent, Open], Awaitable[tuple[str, msgspec.Raw]]]
"""Executes what was called; returns the id of the execution, and its result. Raises RunnerError, with the id if any.

It waits by `Open.wait` as long as no execution has begun that `Open.end` ends: a scope for each call would cost more.
"""


class FailedCallError(RunnerError):
    """The called execution has failed."""

    def __init__(self, failure: Failure, child: str) -> None:
        super().__init__(failure)
        self.child = child


@define(eq=False)
class Children:
    """The open calls of one attempt of an execution."""

    parent: Parent
    nursery: trio.Nursery
    answer: Answer
    turn: Turn | None = None
    stopped: bool = field(default=False, init=False)
    _open: dict[int, Open] = field(factory=dict, init=False)
    _last: int = field(default=0, init=False)
    _waiting: int = field(default=0, init=False)
    """Calls that the handler waits for."""
    _parked: bool = field(default=False, init=False)
    _rest: trio.CancelScope | None = field(default=None, init=False)
    """The wait for its turn."""
    _turning: trio.Lock = field(factory=trio.Lock, init=False)
    _none_left: trio.Event | None = field(default=None, init=False)

    @property
    def open(self) -> int:
        """How many calls have no answer yet."""
        return len(self._open)

    def begin(self, message: messages.Call, reply: Reply) -> None:
        """Begin a call. Raises ProtocolError for a number that was used, and for too many calls."""
        number = message.number
        if number <= self._last or number > MAX_CALLS or len(self._open) >= MAX_OPEN:
            raise messages.ProtocolError(
                f"call number {number} of a module: at most {MAX_OPEN} are open at a time, and {MAX_CALLS} are made"
            )
        self._last = number
        made = self._open[number] = Open(message)
        if self.stopped:
            made.end(_ENDED)
        elif message.waits:
            self._waiting += 1
            self._park()
        self.nursery.start_soon(self._run, number, made, reply, name=f"call {message.module}")

    def take(self, message: messages.Call | messages.Withdraw, reply: Reply) -> None:
        """Begin or withdraw a call of a handler in the runner's own process."""
        if isinstance(message, messages.Call):
            self.begin(message, reply)
        else:
            self.withdraw(message.number)

    def withdraw(self, number: int) -> None:
        """End a call that is not waited for any more."""
        if (made := self._open.get(number)) is not None:
            made.end(_WITHDRAWN)

    def stop(self) -> None:
        """End all calls, and begin no more. Never blocks."""
        self.stopped = True
        for made in self._open.values():
            made.end(_ENDED)
        if self._rest is not None:
            self._rest.cancel()

    async def close(self) -> None:
        """End all calls; return when nothing of them is left. Not cancellable: executions have bounds of their own."""
        self.stop()
        if self._open:
            self._none_left = trio.Event()
            with trio.CancelScope(shield=True):
                await self._none_left.wait()
        if self._parked and self.turn is not None:
            self._parked = False
            self.turn.end()

    def awaited(self) -> list[Begun]:
        """Return the executions that the handler waits for."""
        return [made.child for made in self._open.values() if made.child is not None and made.message.waits]

    async def _run(self, number: int, made: Open, reply: Reply) -> None:
        try:
            answer = await self._answer(made)
            if made.message.waits and not self.stopped:
                await self._take_turn()
        finally:
            del self._open[number]
            if not self._open and self._none_left is not None:
                self._none_left.set()
        with suppress(ChannelClosedError, InterruptedWaitError):  # the handler is being stopped, or has ended
            await reply(answer)

    async def _answer(self, made: Open) -> messages.Called | messages.CallFailed:
        """Execute what was called; return the message with its end."""
        message, child = made.message, ""
        try:
            child, value = await self.answer(self.parent, made)
            return messages.Called(message.id, message.number, child, value)
        except RunnerError as problem:
            failure = problem.failure
            child = problem.child if isinstance(problem, FailedCallError) else ""
        except Exception:
            log.exception("a call failed inside the runner", execution=message.id, module=message.module)
            failure = _INTERNAL
        return messages.CallFailed(
            message.id,
            message.number,
            failure.kind.value,
            failure.message,
            child,
            failure.type,
            failure.traceback,
            failure.field,
        )

    async def _take_turn(self) -> None:
        """Note the end of a call that is waited for; after the last one, wait until the handler may go on."""
        self._waiting -= 1
        if self.turn is None or self._waiting or not self._parked:
            return
        if self._rest is None and self.turn.take_nowait():
            self._parked = False
            return
        try:
            self._turning.acquire_nowait()  # without a checkpoint, which would cost a turn of the loop
        except trio.WouldBlock:
            await self._turning.acquire()
        try:
            if self._parked and not self._waiting:
                with trio.CancelScope() as self._rest:
                    await self.turn.take()
                    self._parked = False
                self._rest = None
            self._park()  # the handler may have called again meanwhile
        finally:
            self._turning.release()

    def _park(self) -> None:
        """Give the turn of a handler that waits to others."""
        if self.turn is not None and self._waiting and not self._parked and not self.stopped:
            self._parked = True
            self.turn.give()
