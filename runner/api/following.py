"""Waiting on behalf of a caller: no longer than its token or API key is valid."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from math import inf

import trio
from attrs import evolve

from actors.events import EventLog, Follower, LeftEvent, log_of
from actors.executions import Live
from protocol.errors import ErrorKind, error
from protocol.events import Event
from protocol.model import Execution
from runner.auth import Principal

_READS = 10


@contextmanager
def while_valid(principal: Principal) -> Iterator[None]:
    """Wait inside this block while the token or key of the caller is valid; then cancel the wait.

    Raises RunnerError `unauthenticated` in its place. Cancels only the block: send nothing in it that must be whole.
    """
    key = principal.key
    with trio.move_on_after(max(0.0, principal.expires - time.time())) as scope:
        if key is None:
            yield
        else:
            if key.revoked:
                scope.cancel()
            key.watchers.add(scope.cancel)
            try:
                yield
            finally:
                key.watchers.discard(scope.cancel)
    if scope.cancelled_caught:
        raise _invalid(principal)


def check_valid(principal: Principal) -> None:
    """Raise RunnerError `unauthenticated` if the token or key of the caller is no longer valid."""
    if time.time() >= principal.expires or (principal.key is not None and principal.key.revoked):
        raise _invalid(principal)


def _invalid(principal: Principal) -> Exception:
    if principal.key is None:
        return error(ErrorKind.UNAUTHENTICATED, "the token has expired; go on with another one")
    what = "was revoked" if principal.key.revoked else "has expired"
    return error(ErrorKind.UNAUTHENTICATED, f"the API key {what}; go on with another one")


class Following(Follower):
    """A position in the events of an execution, for one caller."""

    def __init__(self, log: EventLog, start: int, principal: Principal) -> None:
        super().__init__(log, start)
        self._principal = principal

    async def next(self) -> tuple[Event | LeftEvent, ...] | None:
        """Return the next events, as `Follower.next`. Raises RunnerError `unauthenticated` at the end of the token."""
        with while_valid(self._principal):
            return await super().next()


def following_call(log: EventLog, principal: Principal) -> Follower:
    """Return the position of a caller in the events of its own call.

    A call that has begun continues when its token or key expires, but its events end when its key is revoked.
    """
    return Follower(log) if principal.key is None else Following(log, 0, evolve(principal, expires=inf))


async def current_log(read: Callable[[], Awaitable[Execution]], find: Callable[[], Awaitable[Live | None]]) -> EventLog:
    """Return the events of an execution: those of the live one, else those in its record, which has its end.

    While the record is read, the execution may begin to live, or end: then it is looked for again.
    """
    for _ in range(_READS):
        execution = await read()
        if execution.status.final:
            return log_of(execution)
        live = await find()
        if live is not None:
            return live.log
    text = f"execution {execution.id} is {execution.status}, and no runner that can be reached has it; follow it again"
    raise error(ErrorKind.UNAVAILABLE, text, field="id")
