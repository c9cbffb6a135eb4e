"""The workers whose handlers wait for calls of their own: others run in their place until they continue."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import trio
from attrs import define, field

Worker = Any
"""A worker, which is only compared here; its `module` has the digest by which its pool is found."""


class Counted(Protocol):
    """The workers of one module version."""

    @property
    def module(self) -> Any:
        """The version."""

    @property
    def busy(self) -> Collection[Worker]:
        """Those that are lent."""

    @property
    def starting(self) -> int:
        """How many start."""

    @property
    def parked(self) -> dict[int, int]:
        """How many of the busy ones wait, by the level of their callers."""


def running(pool: Counted) -> int:
    """Return how many workers count against `concurrency`: those that start, or whose handlers do not just wait."""
    working = len(pool.busy) + pool.starting
    return working - sum(pool.parked.values()) if pool.parked else working


class Capacity(Protocol):
    """The pools of one kind, and how many of their workers count."""

    working: int

    @property
    def pools(self) -> Mapping[str, Counted]:
        """The pools by digest."""

    @property
    def room(self) -> int:
        """How many more workers of the kind may run."""

    @property
    def waiting(self) -> int:
        """Callers without a worker."""

    def pump(self) -> None:
        """Serve callers as far as capacity allows."""


@define(eq=False)
class Parking:
    """The workers whose handlers wait for calls of their own, and those of them that are to continue.

    Others run in their place. Each level of callers has places of its own: those of handlers that wait are not for
    others of their level, so that the number of workers is bounded, and a call of the next level finds a place.
    """

    capacity: Capacity
    levels: dict[int, int] = field(factory=dict, init=False)
    """Their number by the level of their callers."""
    resuming: dict[Worker, trio.Event] = field(factory=dict, init=False)
    """Those that are to continue, the first one first."""
    _parked: dict[Worker, int] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._parked)

    def room_for(self, pool: Counted, level: int) -> int:
        """Return how many more workers of a module may run for callers of this level."""
        room = self.capacity.room
        own: int = pool.module.spec.concurrency - running(pool)
        if self.levels:
            room -= self.levels.get(level, 0)
            own -= pool.parked.get(level, 0)
        return min(room, own)

    def park(self, worker: Worker, level: int) -> None:
        """Let others run in place of a worker whose handler waits for calls of its own; its caller has this level."""
        pool = self._pool(worker)
        if pool is not None and worker in pool.busy:
            self._parked[worker] = level
            for levels in (self.levels, pool.parked):
                levels[level] = levels.get(level, 0) + 1
            self.capacity.working -= 1
            if self.capacity.waiting or self.resuming:
                self.capacity.pump()

    async def resume(self, worker: Worker) -> None:
        """Return when it is the turn of a parked worker again; at once if it has ended, or is not parked."""
        if worker in self._parked:
            turn = self.resuming.setdefault(worker, trio.Event())
            self.serve()
            if not turn.is_set():
                await turn.wait()

    def serve(self) -> None:
        """Let parked workers continue, as far as capacity allows: they come before all that wait for a worker."""
        for worker in list(self.resuming):
            pool = self._pool(worker)
            if self.capacity.room > 0 and pool is not None and running(pool) < pool.module.spec.concurrency:
                self.end(worker, pool)
                self.capacity.working += 1

    def end(self, worker: Worker, pool: Counted) -> bool:
        """Note that a worker continues, or has ended; return whether it was parked."""
        level = self._parked.pop(worker, None) if self._parked else None
        if level is None:
            return False
        for levels in (self.levels, pool.parked):
            levels[level] -= 1
            if not levels[level]:
                del levels[level]
        if (turn := self.resuming.pop(worker, None)) is not None:
            turn.set()
        return True

    def clear(self) -> None:
        """Forget all; they have ended."""
        for turn in self.resuming.values():
            turn.set()
        for each in (self.levels, self.resuming, self._parked):
            each.clear()

    def _pool(self, worker: Worker) -> Counted | None:
        return self.capacity.pools.get(worker.module.digest) if worker.module else None
