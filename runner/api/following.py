"""Waiting on behalf of a caller: no longer than its token is valid."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from actors.events import EventLog, Follower
from protocol.errors import ErrorKind, error
from protocol.events import Event
from runner.auth import Principal


@contextmanager
def while_valid(principal: Principal) -> Iterator[None]:
    """Wait inside this block while the token of the caller is valid; then cancel the wait.

    Raises RunnerError `unauthenticated` in its place. Cancels only the block: send nothing in it that must be whole.
    """
    with trio.move_on_after(max(0.0, principal.expires - time.time())) as scope:
        yield
    if scope.cancelled_caught:
        raise _expired()


def check_valid(principal: Principal) -> None:
    """Raise RunnerError `unauthenticated` if the token of the caller has expired since it was verified."""
    if time.time() >= principal.expires:
        raise _expired()


def _expired() -> Exception:
    return error(ErrorKind.UNAUTHENTICATED, "the token has expired; go on with another one")


class Following(Follower):
    """A position in the events of an execution, for one caller."""

    def __init__(self, log: EventLog, start: int, principal: Principal) -> None:
        super().__init__(log, start)
        self._principal = principal

    async def next(self) -> tuple[Event, ...] | None:
        """Return the next events, as `Follower.next`. Raises RunnerError `unauthenticated` if the token expires."""
        with while_valid(self._principal):
            return await super().next()
