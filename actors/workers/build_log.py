"""What one build says: the newest lines are kept and numbered, and whoever reads pulls.

Readers have no queue: each asks for the lines from a number on, so one that is slow, or gone, costs nothing and holds
up nobody. One that falls behind what is kept is told how many lines it has missed.
"""

from __future__ import annotations

from collections import deque

import trio
from attrs import define, field, frozen

from environments.base import Prepared
from protocol.errors import Failure

KEPT_LINES = 500
_LINE_CHARACTERS = 2000


@frozen
class Lines:
    """What a reader gets: `dropped` lines that are not kept any more, then `lines`, the first of number `first`."""

    first: int
    lines: tuple[str, ...]
    dropped: int = 0

    @property
    def next(self) -> int:
        """The number of the line after these."""
        return self.first + len(self.lines)


@define(eq=False)
class BuildLog:
    """The lines of one build and its end. Changed by one task between checkpoints, read by any number of others."""

    keep: int = KEPT_LINES
    prepared: Prepared | None = field(default=None, init=False)
    failure: Failure | None = field(default=None, init=False)
    next_number: int = field(default=0, init=False)
    _lines: deque[str] = field(init=False)
    _changed: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._lines = deque(maxlen=self.keep)

    @property
    def ended(self) -> bool:
        """Whether the build has come to its end, good or bad."""
        return self.prepared is not None or self.failure is not None

    def add(self, line: str) -> None:
        """Add a line; what is longer than 2000 characters is cut."""
        self._lines.append(line[:_LINE_CHARACTERS])
        self.next_number += 1
        self._wake()

    def end(self, *, prepared: Prepared | None = None, failure: Failure | None = None) -> None:
        """Note how the build ended; the first time counts."""
        if not self.ended:
            self.prepared, self.failure = prepared, failure
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def last(self, count: int) -> tuple[str, ...]:
        """Return the last lines."""
        return tuple(self._lines)[-count:]

    def read(self, start: int) -> Lines:
        """Return the lines from number `start` on, as far as they are kept."""
        oldest = self.next_number - len(self._lines)
        first = max(start, oldest)
        return Lines(first, tuple(self._lines)[first - oldest :], first - start)

    async def wait(self, start: int) -> None:
        """Wait until there is a line of number `start`, or the end. Cancellation leaves nothing behind."""
        while start >= self.next_number and not self.ended:
            await self._changed.wait()

    async def wait_ended(self) -> None:
        """Wait until the build has come to its end. Cancelled, the build goes on."""
        while not self.ended:
            await self._changed.wait()
