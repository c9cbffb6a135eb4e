"""The calls of a module's workers that run many at a time: which worker takes the next one."""

from __future__ import annotations

from collections import Counter
from typing import Generic, Protocol, TypeVar

from attrs import define, field

from environments.base import Guest


class Taking(Protocol):
    """The parts of a worker that are looked at."""

    guest: Guest
    reusable: bool
    calls: int


W = TypeVar("W", bound=Taking)


@define(eq=False)
class Seats(Generic[W]):
    """The calls of the workers of one module. Changed only between checkpoints.

    A call whose handler waits for calls of its own has no seat. Each level of callers has as many places: the waiting
    ones are not for others of their level, so that the number of calls is bounded, and a call of the next level finds
    a seat.
    """

    calls: int
    """Most calls of a worker at a time."""
    concurrency: int
    """Most calls of all workers at a time."""
    max_calls: int
    """Calls after which a worker takes no other; 0 means no limit."""
    taken: dict[W, int] = field(factory=dict, init=False)
    """The workers with calls, and how many of them run."""
    lent: int = field(default=0, init=False)
    """The running calls of all workers."""
    _waiting: dict[W, Counter[int]] = field(factory=dict, init=False)
    """How many calls of a worker wait for others, by the level of their callers."""
    _levels: Counter[int] = field(factory=Counter, init=False)

    def full(self, level: int = 0) -> bool:
        """Return whether as many calls run as may, for callers of this level."""
        return self.lent + self._levels[level] >= self.concurrency

    def next(self, level: int = 0) -> W | None:
        """Return the fullest worker that takes another call beside its own, so that the others become idle."""
        while not self.full(level):
            able = [worker for worker in self.taken if self._takes(worker, level)]
            worker = max(able, key=self.taken.__getitem__, default=None)
            if worker is None or worker.guest.exit_code is None:
                return worker
            worker.reusable = False
        return None

    def _takes(self, worker: W, level: int) -> bool:
        waiting = self._waiting[worker][level] if worker in self._waiting else 0
        ended = 0 < self.max_calls <= worker.calls
        return worker.reusable and not ended and self.taken[worker] + waiting < self.calls

    def take(self, worker: W) -> None:
        """Count a call of a worker."""
        self._count(worker, 1)
        worker.calls += 1

    def give_back(self, worker: W, *, keeps: bool) -> bool:
        """Count a call of a worker no more; return whether it was its last one. Without `keeps` it takes no other."""
        self._count(worker, -1)
        worker.reusable = worker.reusable and keeps
        if self.taken[worker] or worker in self._waiting:
            return False
        del self.taken[worker]
        return True

    def park(self, worker: W, level: int) -> None:
        """Note that the handler of a call waits; its caller has this level."""
        self._count(worker, -1)
        self._waiting.setdefault(worker, Counter())[level] += 1
        self._levels[level] += 1

    def has_room(self, worker: W) -> bool:
        """Return whether a waiting handler of a worker may go on."""
        return self.lent < self.concurrency and self.taken.get(worker, 0) < self.calls

    def resume(self, worker: W, level: int) -> None:
        """Note that the handler of a call continues, or has ended."""
        self._count(worker, 1)
        self._levels[level] -= 1
        waiting = self._waiting[worker]
        waiting[level] -= 1
        if not waiting.total():
            del self._waiting[worker]

    def level(self, worker: W) -> int | None:
        """Return the highest level of the callers of a worker whose calls all wait; None if some run."""
        if self.taken.get(worker) or worker not in self._waiting:
            return None
        return max(+self._waiting[worker])

    def _count(self, worker: W, change: int) -> None:
        self.taken[worker] = self.taken.get(worker, 0) + change
        self.lent += change
