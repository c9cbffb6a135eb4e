"""The workers of one module version, with its waiting callers and the back-off after failed starts."""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import trio
from attrs import Factory, define, evolve, field, frozen

from actors.workers.build_log import BuildLog
from actors.workers.shared import Seats
from protocol.errors import ErrorKind, Failure
from protocol.model import Isolation, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.events import EventLog
    from actors.registry import Published
    from actors.workers.worker import Worker
    from config.modules import ModuleSpec
    from environments.base import Prepared

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0


def _seats(spec: ModuleSpec) -> Seats[Worker] | None:
    return Seats(spec.calls, spec.concurrency, spec.workers.max_calls) if spec.calls > 1 else None


@define(eq=False)
class Phases:
    """Seconds that one caller spent before its handler ran."""

    queue: float = 0.0
    build: float = 0.0
    start: float = 0.0
    load: float = 0.0

    def add(self, waited: float, built: float, start: Phases | None) -> None:
        """Add a wait: `built` of its seconds for a build, and its end for `start`, as far as they overlap."""
        self.build += built
        left = waited - built
        if start is not None:
            load = min(left, start.load)
            began = min(left - load, start.start)
            self.load += load
            self.start += began
            left -= load + began
        self.queue += max(0.0, left)


@define(eq=False)
class Waiter:
    """One caller without a worker. `report` is called with the reason why it waits, each time the reason changes."""

    report: Callable[[str], None] = field(default=lambda _reason: None)
    log: EventLog | None = None
    """Gets what the module prints while it is imported, if this caller caused the start and while it waits."""
    level: int = 0
    """How many handlers wait for this caller, each called by the one before. The highest level is served first."""
    caused: bool = field(default=False, init=False)
    """A start is in progress because of this caller."""
    expires: float = field(default=math.inf, init=False)
    """The Trio time at which `queue_timeout` ends the wait; the executor looks at it."""
    woken: trio.Event = field(factory=trio.Event, init=False)
    """The wait is over. A cancel scope, with a deadline of its own, would cost as much as the rest of the wait."""
    worker: Worker | None = field(default=None, init=False)
    failure: Failure | None = field(default=None, init=False)
    phases: Phases | None = field(default=None, init=False)
    starts: int = field(default=0, init=False)
    """Starts that failed while this caller was the first in its queue."""

    def wake(
        self, *, worker: Worker | None = None, failure: Failure | None = None, phases: Phases | None = None
    ) -> None:
        """End the wait with a worker or a failure; the caller has left its queue."""
        self.log = None
        self.worker, self.failure, self.phases = worker, failure, phases
        self.woken.set()

    def hear(self, stream: Stream, data: bytes) -> None:
        """Take output of the import."""
        if self.log is not None:
            self.log.add_output(stream, data)

    def give_up(self, why: Failure) -> None:
        """End the wait from another task with the failure `why`, unless a worker has been handed over already.

        Until its task runs, the caller stays in the queue; a worker that it is handed then takes the place of `why`.
        """
        if not self.woken.is_set():
            self.failure = why
            self.woken.set()


@frozen
class WorkerState:
    """One worker of a module at a moment."""

    pid: int | None
    """None where it has no process on this machine."""
    busy: bool
    calls: int
    """Calls that it has begun."""
    age_seconds: float
    memory_bytes: int


@frozen
class PoolState:
    """The workers of one module version at a moment."""

    module: Published
    key: str | None
    """Of its environment; None while that is not prepared."""
    workers: tuple[WorkerState, ...]
    starting: int
    waiting: int
    """Callers without a worker."""
    reason: str
    """Why these wait; empty without any."""
    failure: Failure | None
    """Of the last start, when it failed."""
    build: BuildLog | None
    """The last build of its environment, or the one in progress."""


@frozen
class Openings:
    """The calls of a module version that could begin now."""

    calls: int
    warm: bool = False
    """There is a worker, at least one that starts."""
    prepared: bool = False
    """The environment is there."""
    starting: bool = False
    """A worker is being started, or its environment is built."""
    failing: bool = False
    """The last start of a worker failed a moment ago."""


@define(eq=False)
class Pool:
    """The workers of one module version. Changed only between checkpoints, by the executor that owns it."""

    module: Published
    idle: list[Worker] = field(factory=list)
    busy: set[Worker] = field(factory=set)
    seats: Seats[Worker] | None = field(default=Factory(lambda self: _seats(self.module.spec), takes_self=True))
    """The calls of the busy ones, if they run many at a time."""
    parked: dict[int, int] = field(factory=dict)
    """How many of the busy ones wait for calls of their own, by the level of their callers. They do not count."""
    starting: int = 0
    waiters: deque[Waiter] = field(factory=deque)
    """The callers without a worker: by level, the oldest first."""
    turn_at: float = -math.inf
    """When this module last got a worker while other modules waited for one."""
    retired: bool = False
    """The version is not published any more: its workers take no further call."""
    served: bool = True
    """Calls that name no version get this one, so workers are kept ahead of calls."""
    prepared: Prepared | None = None
    rebuilding: str | None = None
    """The key of its environment while that is built again."""
    preparing: trio.Lock = field(factory=trio.Lock)
    build: BuildLog | None = None
    """The log of the last build."""
    building: str = ""
    """The step of the build in progress."""
    built_from: float = 0.0
    """When the last build began."""
    built_until: float = 0.0
    """When it ended; infinity while it runs."""
    activity: str = ""
    """The step of the start in progress, shown as the waiting reason."""
    activity_since: float = 0.0
    last_failure: Failure | None = None
    failures: int = 0
    retry_at: float = 0.0

    @property
    def own(self) -> int:
        """Number of workers, starting ones included."""
        return len(self.idle) + len(self.busy) + self.starting

    @property
    def fewest(self) -> int:
        """The minimum number of workers to keep."""
        return self.module.spec.workers.min if self.served and not self.retired else 0

    @property
    def was_unavailable(self) -> bool:
        """Whether the last start failed for a reason outside of module and environment."""
        return self.last_failure is not None and self.last_failure.kind is ErrorKind.UNAVAILABLE

    @property
    def unused(self) -> bool:
        """Whether it has neither workers nor waiting callers."""
        return not self.own and not self.waiters

    def report(self, activity: str, now: float, cause: Waiter | None) -> None:
        """Set the step of a start in progress; the caller that it is for gets it as its waiting reason.

        A start that no waiting caller caused is for the oldest of those that caused none.
        """
        self.activity, self.activity_since = activity, now
        if cause is not None and cause in self.waiters:
            cause.report(activity)
            return
        for waiter in islice(self.waiters, self.starting):
            if not waiter.caused:
                waiter.report(activity)

    def build_begins(self, now: float) -> None:
        """Note that a build begins, or a look whether one is needed."""
        self.built_from, self.built_until = now, math.inf

    def report_build(self, step: str, now: float) -> None:
        """Set the step of the build in progress; all callers wait for it."""
        self.building = self.activity = step
        self.activity_since = now
        for waiter in self.waiters:
            waiter.report(step)

    def build_ended(self, now: float) -> None:
        """Note the end of the build; callers without a start wait for others again."""
        self.built_until = now
        self.building = self.activity = ""
        for waiter in self.waiters:
            if not waiter.caused:
                waiter.report(self.reason(now))

    def built(self, since: float, now: float) -> float:
        """Return the seconds of the last build between two times."""
        return max(0.0, min(now, self.built_until) - max(since, self.built_from))

    def next_cause(self) -> Waiter | None:
        """Return the oldest caller for which no start is in progress."""
        return next((waiter for waiter in self.waiters if not waiter.caused), None)

    def keeps(self, worker: Worker, *, now: float, max_age: float) -> bool:
        """Return whether a released worker may serve another call."""
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
        """Return how many workers must be started for `workers.min`."""
        return 0 if self.pause(now) else max(0, self.fewest - self.own)

    def outlived(self, now: float, idle: float, max_age: float) -> list[Worker]:
        """Return the idle workers that are too old, or without a call for too long; limits in seconds."""
        policy = self.module.spec.workers
        limit = idle if policy.idle is None else policy.idle
        surplus = len(self.idle) + len(self.busy) - self.fewest
        found = []
        for worker in self.idle:  # the longest idle first
            if surplus > 0 and now - worker.idle_since > limit:
                surplus -= 1
                found.append(worker)
            elif now - worker.launched_at > max_age:
                found.append(worker)
        return found

    def failed(self, failure: Failure, now: float) -> None:
        """Remember a failed start: until the pause is over, callers get the same failure without another start."""
        if failure is self.last_failure:  # several starts waited for one build
            return
        self.last_failure = failure
        self.failures += 1
        self.retry_at = now + min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (self.failures - 1))

    def started(self) -> None:
        """Forget the failures: a worker has started."""
        self.last_failure = None
        self.failures = 0

    def pause(self, now: float) -> float:
        """Return the seconds until the next start is allowed; 0 when it is allowed now."""
        return 0.0 if self.last_failure is None else max(0.0, self.retry_at - now)

    def refusal(self, now: float) -> Failure | None:
        """Return the failure of the last start while no start is allowed, with the time of the next one."""
        if self.last_failure is None:
            return None
        pause = self.pause(now)
        text = f"{self.last_failure.message}\n(not tried again for {pause:.1f} s)"
        return evolve(self.last_failure, message=text, retry_after=pause)

    def log_build(self) -> BuildLog:
        """Return the log of the build in progress, or of one that begins now."""
        if self.build is None or self.build.ended:
            self.build = BuildLog()
        return self.build

    def has_idle(self) -> bool:
        """Return whether a worker can be lent. The next one is looked at, which may have ended a moment ago."""
        while self.idle and self.idle[-1].guest.exit_code is not None:
            self.idle.pop()  # the task that tends it has not noticed yet
        return bool(self.idle)

    def reason(self, now: float) -> str:
        """Return why a caller waits."""
        if self.activity:
            return f"{self.activity} (for {now - self.activity_since:.1f} s)"
        if self.seats is not None and self.seats.lent:
            calls = f"its {self.seats.lent} calls run in {len(self.busy)} of its workers"
            if self.seats.full(0):
                calls += ", as many as `concurrency` allows"
            return f"{calls}; callers that wait: {len(self.waiters)}"
        if self.busy and not self.idle:
            workers = "its only worker is busy" if len(self.busy) == 1 else f"its {len(self.busy)} workers are busy"
            return f"{workers}; callers that wait: {len(self.waiters)}"
        if self.starting and not self.idle:
            workers = (
                "a worker is being started" if self.starting == 1 else f"{self.starting} workers are being started"
            )
            return f"{workers}; callers that wait: {len(self.waiters)}"
        return f"as many workers run as `max_workers` allows; callers that wait: {len(self.waiters)}"


def running(pool: Pool) -> int:
    """Return how many workers count against `concurrency`: those that start, or whose handlers do not just wait."""
    working = len(pool.busy) + pool.starting
    return working - sum(pool.parked.values()) if pool.parked else working


def openings(pool: Pool, room: int, waiting: int, now: float) -> Openings:
    """Return what a kind with `room` for more workers and with `waiting` callers could begin of a module."""
    spec, seats = pool.module.spec, pool.seats
    free = min(room, spec.most_workers - running(pool))
    if seats is not None:
        seated = len(pool.busy) * spec.calls - seats.lent
        free = min(spec.concurrency - seats.lent, seated + max(0, free) * spec.calls)
    return Openings(
        calls=max(0, free - waiting),
        warm=pool.own > 0,
        prepared=pool.prepared is not None,
        starting=pool.starting > 0 or bool(pool.building),
        failing=pool.pause(now) > 0 and not pool.own,
    )


def join(waiters: deque[Waiter], waiter: Waiter) -> None:
    """Add a caller behind those of its level."""
    place = len(waiters)
    if waiter.level:
        place = next((at for at, each in enumerate(waiters) if each.level < waiter.level), place)
    waiters.insert(place, waiter)


def state_of(pool: Pool, now: float) -> PoolState:
    """Return the workers and callers of a pool at this moment."""
    return PoolState(
        module=pool.module,
        key=pool.rebuilding if pool.prepared is None else pool.prepared.key,
        workers=tuple(
            WorkerState(
                pid=worker.guest.pid,
                busy=worker in pool.busy,
                calls=worker.calls,
                age_seconds=now - worker.launched_at,
                memory_bytes=worker.footprint.memory_bytes,
            )
            for worker in (*pool.busy, *pool.idle)
        ),
        starting=pool.starting,
        waiting=len(pool.waiters),
        reason=pool.reason(now) if pool.waiters else "",
        failure=pool.last_failure,
        build=pool.build,
    )
