"""The workers of one module version, and the pure decision what a waiting caller gets next."""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING

import trio
from attrs import define, evolve, field, frozen

from actors.workers.build_log import BuildLog
from protocol.errors import Failure
from protocol.model import Isolation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from actors.registry import Published
    from actors.workers.worker import Worker
    from environments.base import Prepared

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
TURN_SECONDS = 0.1
"""How long a module may go on with a worker while another one waits for it."""


class Step(Enum):
    """What is to be done for one waiting caller."""

    REUSE = "reuse"
    SPAWN = "spawn"
    EVICT = "evict"
    """Retire an idle worker of another module, then spawn."""
    WAIT = "wait"
    REFUSE = "refuse"
    """Answer as the last start was answered: it failed a moment ago, and there is no worker to wait for."""


def next_step(
    *,
    idle: int,
    own: int,
    starting: int,
    waiting: int,
    concurrency: int,
    total: int,
    room: int,
    evictable: bool,
    paused: bool,
) -> Step:
    """Return what a caller of a module gets.

    `own` counts the module's workers (starting ones included), `waiting` its callers without a worker, `total` the
    workers of the kind, `room` how many the kind may have, `evictable` whether another module has an idle one,
    `paused` whether a start failed so lately that none is tried.
    """
    if idle:
        return Step.REUSE
    if paused:
        return Step.WAIT if own else Step.REFUSE
    if own >= concurrency or starting >= waiting:
        return Step.WAIT
    if total < room:
        return Step.SPAWN
    return Step.EVICT if evictable else Step.WAIT


@frozen
class ExecutorStatistics:
    """What one executor has at this moment."""

    workers: int
    idle: int
    busy: int
    starting: int
    waiting: int
    spares: int
    started: int
    ended: int
    building: int = 0
    """Environments that are prepared now."""
    built: int = 0
    """Environments that were built since the start; one that was there is none of them."""
    builds_failed: int = 0


@define(eq=False)
class Phases:
    """Seconds that one caller spent before its handler ran."""

    queue: float = 0.0
    build: float = 0.0
    start: float = 0.0
    load: float = 0.0

    def add(self, other: Phases) -> float:
        """Add what a start took to what this caller waited for; return how long that was."""
        self.build += other.build
        self.start += other.start
        self.load += other.load
        return other.build + other.start + other.load


@define(eq=False)
class Waiter:
    """One caller without a worker. `tell` hears why it waits, each time that the reason changes."""

    tell: Callable[[str], None] = field(default=lambda _reason: None)
    scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    """Round the wait."""
    woken: trio.Event = field(factory=trio.Event, init=False)
    worker: Worker | None = field(default=None, init=False)
    failure: Failure | None = field(default=None, init=False)
    phases: Phases | None = field(default=None, init=False)
    starts: int = field(default=0, init=False)
    """How many starts have failed under this caller's eyes."""

    def wake(
        self, *, worker: Worker | None = None, failure: Failure | None = None, phases: Phases | None = None
    ) -> None:
        """Let the caller go on, with a worker or a failure; it has been taken off its queue."""
        self.worker, self.failure, self.phases = worker, failure, phases
        self.woken.set()

    def give_up(self, why: Failure) -> None:
        """End the wait from another task: the caller is told `why`, unless it has been given a worker already."""
        if not self.woken.is_set():
            self.failure = why
            self.scope.cancel()


@define(eq=False)
class Pool:
    """The workers of one module version. Changed only between checkpoints of the executor that owns it."""

    module: Published
    idle: list[Worker] = field(factory=list)
    busy: set[Worker] = field(factory=set)
    starting: int = 0
    waiters: deque[Waiter] = field(factory=deque)
    """The callers without a worker, oldest first."""
    turn_at: float = -math.inf
    """When a worker was last given to this module although others waited for one."""
    retired: bool = False
    """Its workers take no call any more."""
    served: bool = True
    """Calls get this version without asking for it, so that workers are kept ahead of them."""
    prepared: Prepared | None = None
    preparing: trio.Lock = field(factory=trio.Lock)
    build: BuildLog | None = None
    """What the last build says, or has said."""
    activity: str = ""
    """What a start is busy with, for those who ask why they wait."""
    activity_since: float = 0.0
    last_failure: Failure | None = None
    failures: int = 0
    retry_at: float = 0.0

    @property
    def own(self) -> int:
        """Number of workers, those that are starting included."""
        return len(self.idle) + len(self.busy) + self.starting

    @property
    def fewest(self) -> int:
        """How many workers are kept at least."""
        return self.module.spec.workers.min if self.served and not self.retired else 0

    @property
    def unused(self) -> bool:
        """Whether nothing would be lost with it."""
        return not self.own and not self.waiters

    def rank(self, now: float) -> tuple[float, float]:
        """Return the order in which modules with waiting callers are served, lowest first.

        Whoever has the fewest workers at work comes first, and of those whoever had its turn longest ago, so that the
        flood of one module does not starve the others. A turn lasts a moment: a worker is not retired for each call.
        """
        if self.idle and now - self.turn_at < TURN_SECONDS:
            return -1, self.turn_at
        return len(self.busy) + self.starting, self.turn_at

    def say(self, activity: str, now: float) -> None:
        """Note what a start is busy with, and tell those whom it is for."""
        self.activity, self.activity_since = activity, now
        for waiter in islice(self.waiters, self.starting):
            waiter.tell(activity)

    def keeps(self, worker: Worker, *, now: float, max_age: float) -> bool:
        """Return whether a worker that was given back may serve another call."""
        spec = self.module.spec
        limit = spec.workers.max_calls
        return (
            worker.reusable
            and not self.retired
            and spec.isolation is not Isolation.FRESH
            and (limit == 0 or worker.calls < limit)
            and now - worker.launched_at < max_age
        )

    def missing(self, now: float) -> int:
        """Return how many workers are to be started for `workers.min`."""
        return 0 if self.pause(now) else max(0, self.fewest - self.own)

    def outlived(self, now: float, idle: float, max_age: float) -> list[Worker]:
        """Return the idle workers that are too old, or have been without a call for too long; limits in seconds."""
        policy = self.module.spec.workers
        limit = idle if policy.idle is None else policy.idle
        surplus = len(self.idle) + len(self.busy) - self.fewest
        found = []
        for worker in self.idle:  # idle for longest first
            if surplus > 0 and now - worker.idle_since > limit:
                surplus -= 1
                found.append(worker)
            elif now - worker.launched_at > max_age:
                found.append(worker)
        return found

    def failed(self, failure: Failure, now: float) -> None:
        """Remember a start that failed: until a pause is over the same is answered without trying again."""
        if failure is self.last_failure:  # several starts waited for one build
            return
        self.last_failure = failure
        self.failures += 1
        self.retry_at = now + min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (self.failures - 1))

    def refusal(self, now: float) -> Failure | None:
        """Return the failure of the last start while none may be tried, saying when the next one is tried."""
        if self.last_failure is None:
            return None
        pause = self.pause(now)
        text = f"{self.last_failure.message}\n(not tried again for {pause:.1f} s)"
        return evolve(self.last_failure, message=text, retry_after=pause)

    def log_build(self) -> BuildLog:
        """Return the log of the build that is under way or begins now."""
        if self.build is None or self.build.ended:
            self.build = BuildLog()
        return self.build

    def started(self) -> None:
        """Forget the failures: a worker has started."""
        self.last_failure = None
        self.failures = 0

    def pause(self, now: float) -> float:
        """Return the seconds until the next start may be tried; 0 when one may be tried now."""
        return 0.0 if self.last_failure is None else max(0.0, self.retry_at - now)

    def forget_ended(self) -> None:
        """Leave out idle workers that have ended a moment ago: whoever looks after them does not know it yet."""
        self.idle[:] = [worker for worker in self.idle if worker.guest.exit_code is None]

    def reuse(self) -> Worker:
        """Return the idle worker that was used last; it is busy now."""
        worker = self.idle.pop()
        self.busy.add(worker)
        return worker

    def reason(self, now: float) -> str:
        """Return why a caller waits."""
        if self.activity:
            return f"{self.activity} (for {now - self.activity_since:.1f} s)"
        if self.busy:
            workers = "its only worker is busy" if len(self.busy) == 1 else f"its {len(self.busy)} workers are busy"
            return f"{workers}; callers that wait: {len(self.waiters)}"
        return f"all workers of the kind are busy with other modules; callers that wait: {len(self.waiters)}"


def next_served(pools: Iterable[Pool], now: float) -> Pool | None:
    """Return the module whose oldest waiting caller is to be served next, or None when nobody waits."""
    return min((pool for pool in pools if pool.waiters), key=lambda pool: pool.rank(now), default=None)


def oldest_idle(pools: Mapping[str, Pool], *, besides: Pool) -> tuple[Pool, Worker] | None:
    """Return the worker idle for longest among the other modules, never one below its module's `workers.min`."""
    found = [
        (pool.idle[0].idle_since, pool)
        for pool in pools.values()
        if pool is not besides and len(pool.idle) + len(pool.busy) > pool.fewest and pool.idle
    ]
    if not found:
        return None
    pool = min(found, key=lambda pair: pair[0])[1]
    return pool, pool.idle[0]


def count(pools: Collection[Pool], waiting: int) -> ExecutorStatistics:
    """Return what there is in the pools."""
    return ExecutorStatistics(
        workers=sum(pool.own for pool in pools),
        idle=sum(len(pool.idle) for pool in pools),
        busy=sum(len(pool.busy) for pool in pools),
        starting=sum(pool.starting for pool in pools),
        waiting=waiting,
        spares=0,
        started=0,
        ended=0,
    )
