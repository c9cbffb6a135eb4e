"""`Timer`: which schedule is looked at next, by the time of day, and changes of the clock."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

_LOOK_SECONDS: Final = 1.0
"""How soon a change of the clock is noticed."""
_JUMP_SECONDS: Final = 1.0
_SPARE: Final = 100
"""Entries that may be out of date before all of them are removed."""


@define(eq=False)
class Timer:
    """One heap for all schedules. `clock` returns the time of day in seconds since the epoch."""

    clock: Callable[[], float]
    _heap: list[tuple[float, str]] = field(factory=list, init=False)
    _due: dict[str, float] = field(factory=dict, init=False)
    """When each schedule is looked at; an entry of the heap with another time is out of date."""
    _wake: trio.Event = field(factory=trio.Event, init=False)
    _offset: float | None = field(default=None, init=False)
    """The time of day when the clock of the event loop shows 0."""

    def put(self, name: str, due: float | None) -> None:
        """Look at a schedule at this time, and not before; None: not by time."""
        if due is None:
            self._due.pop(name, None)
        else:
            self._due[name] = due
            heapq.heappush(self._heap, (due, name))
            if len(self._heap) > 2 * len(self._due) + _SPARE:
                self._heap = [(at, each) for each, at in self._due.items()]
                heapq.heapify(self._heap)

    def take(self, most: int) -> list[str]:
        """Return the schedules to look at now, at most so many."""
        now, found = self.clock(), list[str]()
        while len(found) < most and (first := self._first()) is not None and first[0] <= now:
            heapq.heappop(self._heap)
            del self._due[first[1]]
            found.append(first[1])
        return found

    def ring(self) -> None:
        """End the sleep."""
        self._wake.set()

    async def sleep(self) -> None:
        """Wait until a schedule is due, a change of the clock may have to be noticed, or `ring` is called."""
        first = self._first()
        with trio.move_on_after(math.inf if first is None else self._seconds(first[0])):
            await self._wake.wait()
        self._wake = trio.Event()

    def _seconds(self, due: float) -> float:
        return min(_LOOK_SECONDS, max(0.0, due - self.clock()))

    def jumped(self) -> float:
        """Return by how many seconds the clock was set since the last call; small corrections are 0."""
        offset = self.clock() - trio.current_time()
        before, self._offset = self._offset, offset
        return offset - before if before is not None and abs(offset - before) > _JUMP_SECONDS else 0.0

    def _first(self) -> tuple[float, str] | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None
