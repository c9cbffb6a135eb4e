"""The calls of a module's workers that run many at a time: which worker takes the next one."""

from __future__ import annotations

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
    """The calls of the workers of one module. Changed only between checkpoints."""

    calls: int
    """Most calls of a worker at a time."""
    concurrency: int
    """Most calls of all workers at a time."""
    max_calls: int
    """Calls after which a worker takes no other; 0 means no limit."""
    taken: dict[W, int] = field(factory=dict, init=False)
    """The workers with calls, and how many they have."""
    lent: int = field(default=0, init=False)
    """The calls of all workers."""
    _open: list[W] = field(factory=list, init=False)

    @property
    def full(self) -> bool:
        """Whether as many calls run as may."""
        return self.lent >= self.concurrency

    def next(self) -> W | None:
        """Return the fullest worker that takes another call beside its own, so that the others become idle."""
        self._open = [worker for worker in self._open if worker.reusable and worker.guest.exit_code is None]
        return None if self.full else max(self._open, key=self.taken.__getitem__, default=None)

    def take(self, worker: W) -> None:
        """Count a call of a worker."""
        count = self.taken.get(worker, 0) + 1
        self.taken[worker] = count
        self.lent += 1
        worker.calls += 1
        if worker in self._open:
            self._open.remove(worker)
        self._see(worker, count)

    def give_back(self, worker: W, *, keeps: bool) -> bool:
        """Count a call of a worker no more; return whether it was its last one."""
        count = self.taken.pop(worker) - 1
        self.lent -= 1
        if worker in self._open:
            self._open.remove(worker)
        if count:
            self.taken[worker] = count
            if keeps:
                self._see(worker, count)
        return not count

    def _see(self, worker: W, count: int) -> None:
        if count < self.calls and not 0 < self.max_calls <= worker.calls:
            self._open.append(worker)
