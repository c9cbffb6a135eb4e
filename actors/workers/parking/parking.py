"""Workers whose handlers wait for calls of their own give up their places, and take them again in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio
from attrs import define, field

from actors.workers.pool import running

if TYPE_CHECKING:
    from actors.workers.pool import Pool
    from actors.workers.shared import Seats
    from actors.workers.worker import Worker


class Capacity(Protocol):
    """The pools of one kind, and how many of their workers count."""

    pools: dict[str, Pool]
    working: int

    @property
    def room(self) -> int:
        """How many more workers of the kind may run."""

    @property
    def waiting(self) -> int:
        """Callers without a worker."""

    def pump(self) -> None:
        """Serve callers as far as capacity allows."""


@define(eq=False)
class Seat:
    """A handler of a worker that runs many calls at a time, which waits for its turn."""

    pool: Pool
    worker: Worker
    level: int
    turn: trio.Event = field(factory=trio.Event, init=False)


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
    seated: list[Seat] = field(factory=list, init=False)
    """The handlers of shared workers that are to continue, the first one first."""
    _parked: dict[Worker, int] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._parked)

    def __contains__(self, worker: object) -> bool:
        return worker in self._parked

    def can_lend(self, pool: Pool, level: int) -> bool:
        """Return whether a caller of a module, of this level, gets a worker at once."""
        if pool.seats is not None:
            if pool.seats.full(level):
                return False
            if self.open(pool, level) is not None:
                return True
        return pool.has_idle() and self.room_for(pool, level) > 0

    def must_wait(self, pool: Pool) -> bool:
        """Return whether a caller of a module has to wait until others have ended."""
        full = pool.seats is not None and pool.seats.full(0)
        return full or not (self.can_lend(pool, 0) or self.room_for(pool, 0) > 0)

    def open(self, pool: Pool, level: int) -> Worker | None:
        """Return a busy worker that takes another call."""
        worker = None if pool.seats is None else pool.seats.next(level)
        return None if worker in self and self.room_for(pool, level) <= 0 else worker

    def room_for(self, pool: Pool, level: int) -> int:
        """Return how many more workers of a module may run for callers of this level."""
        room, own = self.capacity.room, pool.module.spec.most_workers - running(pool)
        if self.levels:
            room -= self.levels.get(level, 0)
            own -= pool.parked.get(level, 0)
        return min(room, own)

    def settle(self, pool: Pool, worker: Worker) -> None:
        """Park a shared worker whose calls all wait, or let it work again."""
        level = None if pool.seats is None else pool.seats.level(worker)
        if level is None and self.end(worker, pool):
            self.capacity.working += 1
        elif level is not None and worker not in self:
            self._begin(worker, pool, level)

    def _begin(self, worker: Worker, pool: Pool, level: int) -> None:
        self._parked[worker] = level
        for levels in (self.levels, pool.parked):
            levels[level] = levels.get(level, 0) + 1
        self.capacity.working -= 1

    def unpark(self, worker: Worker, level: int) -> None:
        """Note that a handler has ended while it was parked, before its worker is given back."""
        pool = self._pool(worker)
        if pool is not None and pool.seats is not None:
            self._seat(Seat(pool, worker, level))

    def _seat(self, seat: Seat) -> None:
        """Let a handler of a shared worker continue."""
        if seat in self.seated:
            self.seated.remove(seat)
        if seat.pool.seats is not None:
            seat.pool.seats.resume(seat.worker, seat.level)
            self.settle(seat.pool, seat.worker)
        seat.turn.set()

    async def _wait_seated(self, seat: Seat, seats: Seats[Worker]) -> None:
        self.seated.append(seat)
        self.serve()
        try:
            await seat.turn.wait()
        except trio.Cancelled:
            if seat in self.seated:
                self.seated.remove(seat)
            else:
                seats.park(seat.worker, seat.level)  # `unpark` follows
                self.settle(seat.pool, seat.worker)
            raise

    def _may_work(self, pool: Pool) -> bool:
        return self.capacity.room > 0 and running(pool) < pool.module.spec.most_workers

    def park(self, worker: Worker, level: int) -> None:
        """Let others run in place of a worker whose handler waits for calls of its own; its caller has this level."""
        pool = self._pool(worker)
        if pool is not None and worker in pool.busy:
            if pool.seats is None:
                self._begin(worker, pool, level)
            else:
                pool.seats.park(worker, level)
                self.settle(pool, worker)
            if self.capacity.waiting or self.resuming or self.seated:
                self.capacity.pump()

    def resume_nowait(self, worker: Worker) -> bool:
        """Let a parked handler continue if none waits for that and there is a place; return whether it continues."""
        pool = self._pool(worker)
        if pool is None or pool.seats is not None or self.resuming or not self._may_work(pool):
            return False
        if self.end(worker, pool):
            self.capacity.working += 1
        return True

    async def resume(self, worker: Worker, level: int) -> None:
        """Return when it is the turn of a parked handler again; at once if its worker has ended, or is not parked."""
        pool = self._pool(worker)
        if pool is not None and pool.seats is not None:
            await self._wait_seated(Seat(pool, worker, level), pool.seats)
        elif worker in self._parked:
            turn = self.resuming.setdefault(worker, trio.Event())
            self.serve()
            if not turn.is_set():
                await turn.wait()

    def serve(self) -> None:
        """Let parked workers continue, as far as capacity allows: they come before all that wait for a worker."""
        for worker in list(self.resuming):
            pool = self._pool(worker)
            if pool is not None and self._may_work(pool):
                self.end(worker, pool)
                self.capacity.working += 1
        for each in list(self.seated):
            seats = each.pool.seats
            works = each.worker not in self or self._may_work(each.pool)
            if seats is None or (works and seats.has_room(each.worker)):
                self._seat(each)

    def end(self, worker: Worker, pool: Pool) -> bool:
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
        for turn in (*self.resuming.values(), *(seat.turn for seat in self.seated)):
            turn.set()
        for each in (self.levels, self.resuming, self.seated, self._parked):
            each.clear()

    def _pool(self, worker: Worker) -> Pool | None:
        return self.capacity.pools.get(worker.module.digest) if worker.module else None
