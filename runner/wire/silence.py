"""Clients that begin something and do not go on: whose place others get while a door is full."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final, Protocol, TypeVar

import trio

SILENT_SECONDS: Final = 1.0
"""A body or message of which no byte came for this long can be given up."""
PAUSE_SECONDS: Final = 0.1
"""After a search in vain the next one waits, as one looks at everybody, and a flood could ask for many."""


class Arriving(Protocol):
    """A connection or call, of which something may be arriving."""

    @property
    def silent_since(self) -> float:
        """When the last byte of what is unfinished came (Trio time); inf while the client owes nothing."""


Each = TypeVar("Each", bound=Arriving)


class Silence:
    """Finds the longest silence."""

    def __init__(self) -> None:
        self._again = -inf

    def longest(self, everybody: Iterable[Each]) -> Each | None:
        """Return the one that owes bytes and is silent longest; None if each of them made progress lately."""
        now = trio.current_time()
        if now < self._again:
            return None
        found = min(everybody, key=lambda each: each.silent_since, default=None)
        if found is None or now - found.silent_since < SILENT_SECONDS:
            self._again = now + PAUSE_SECONDS
            return None
        return found
