"""The log of one build: its newest lines are kept and numbered, and readers pull.

Readers have no queue: each asks for the lines from a number on, so a slow or vanished reader costs nothing and delays
no one. A reader that falls behind the kept lines gets the number of lines that it missed.
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
    """The answer to a reader: `lines` from number `first` on; `dropped` earlier ones were no longer kept."""

    first: int
    lines: tuple[str, ...]
    dropped: int = 0

    @property
    def next(self) -> int:
        """The number of the line after these."""
        return self.first + len(self.lines)


@define(eq=False)
class BuildLog:
    """The lines of one build and its end. Written by one task between checkpoints, read by any number of tasks."""

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
        """Whether the build has ended, well or badly."""
        return self.prepared is not None or self.failure is not None

    def add(self, line: str) -> None:
        """Add a line, cut to 2000 characters."""
        self._lines.append(line[:_LINE_CHARACTERS])
        self.next_number += 1
        self._wake()

    def end(self, *, prepared: Prepared | None = None, failure: Failure | None = None) -> None:
        """Set the end of the build; the first call counts."""
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
        """Return the kept lines from number `start` on."""
        oldest = self.next_number - len(self._lines)
        first = max(start, oldest)
        return Lines(first, tuple(self._lines)[first - oldest :], first - start)

    async def wait(self, start: int) -> None:
        """Wait until there is a line with number `start`, or the end. Cancellation leaves nothing behind."""
        while start >= self.next_number and not self.ended:
            await self._changed.wait()

    async def wait_ended(self) -> None:
        """Wait for the end of the build. Cancelled, the build continues."""
        while not self.ended:
            await self._changed.wait()
