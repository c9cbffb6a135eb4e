"""`Firing`: from a due instant to an accepted execution, once.

Rules:
* The execution of an instant has the idempotency key `SCHEDULE/INSTANT`, so an instant that was accepted is found, not
  accepted again, even if the runner died before it wrote the state.
* The state of a schedule changes after acceptance. An instant that cannot be accepted at the moment stays due.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.executions import Delivery, Idempotency, Live, Runs, fingerprint, use_named
from actors.registry import Published, Registry
from actors.starts.policy import delay, due
from actors.starts.stored import State, StoredSchedule
from actors.turns import group_of
from config.mistakes import Wrong
from config.timing import Misfire, Overlap, ScheduleSpec, instant_text
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.ids import execution_id
from protocol.model import Execution, Record, Status
from protocol.scan import LongCheckError

MAX_PENDING: Final = 100
_ALWAYS: Final = 10.0**10
"""Seconds for which the key of an instant is valid: as long as the history has its execution."""
_OTHERS_SECONDS: Final = 5.0
"""How soon an instant is looked at again that another runner settles, unless its state arrives before."""
_ONCE: Final = Delivery("", refused=lambda _: False)
"""The input of a schedule may have changed since its instant was accepted."""
_PASSING: Final = (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE, ErrorKind.SHUTDOWN)
"""Refusals after which the same instant is tried again."""

log = structlog.get_logger("schedules")


@define(eq=False)
class Schedule:
    """A schedule in its present state."""

    id: str
    module: str
    spec: ScheduleSpec
    state: State
    stored: StoredSchedule | None = None
    """None if it belongs to its module."""
    due: float | None = field(default=None, init=False)
    """When to look at it next, in seconds since the epoch; None: not by time."""
    changed: bool = field(default=False, init=False)
    """Its state is not written."""
    watched: bool = field(default=False, init=False)
    """A task waits for the end of its executions."""
    shared: State | None = field(default=None, init=False)
    """Its state as the cluster knows it."""
    sent: tuple[State, State] | None = field(default=None, init=False)
    """The last state that was written here, and the one on which that is based."""
    _lives: list[Live] = field(factory=list, init=False)

    @property
    def version(self) -> str | None:
        """The version to start; None is the active one."""
        return None if self.stored is None else self.stored.version

    def running(self) -> list[Live]:
        """Return its executions that have not ended."""
        self._lives = [live for live in self._lives if not live.ended.is_set()]
        return self._lives

    def add(self, live: Live) -> None:
        """Add an execution of this schedule."""
        if all(live.execution.id != each.execution.id for each in self._lives):
            self._lives.append(live)

    def sending(self, state: State) -> State:
        """Note that this state is written now, and return it."""
        self.sent = state, self.state
        return state

    def set(self, **values: object) -> None:
        """Change the state."""
        self.state, self.changed = replace(self.state, **values), True


class Instants(Protocol):
    """The agreement of the runners of a cluster about who settles an instant. A runner that is alone needs none."""

    async def take(self, name: str) -> bool:
        """Return whether this runner settles the instant; another one may have gone that did not.

        Raises RunnerError `unavailable`.
        """

    async def running(self, schedule: str) -> Sequence[Live]:
        """Return the executions of a schedule on other runners that have not ended. Raises RunnerError."""


@define(eq=False)
class Firing:
    """Starts what is due."""

    registry: Registry
    runs: Runs
    instants: Instants | None = None
    counts: Counter[str] = field(factory=lambda: Counter(started=0, skipped=0, missed=0, failed=0), init=False)
    """Instants since the start of the runner."""
    _idempotency: Idempotency = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._idempotency = Idempotency.of(self.runs, _ALWAYS)

    async def look(self, schedule: Schedule, now: float) -> None:
        """Start everything of a schedule that is due at `now`, and set when to look again.

        A runner that drains leaves it to the others of its cluster.
        Raises RunnerError when an instant cannot be accepted at the moment: then it and later ones stay due.
        """
        if schedule.state.paused_by is not None:
            schedule.due = None
            return
        try:
            schedule.spec.timing  # noqa: B018  (computed once)
        except Wrong as wrong:  # such as a time zone that this machine does not have
            schedule.due = None
            self._fail(schedule, str(wrong))
            return
        before = schedule.state.cursor
        if self.instants is not None and (self.runs.stopping or not await self._mine(schedule, self.instants, now)):
            schedule.due = now + (_OTHERS_SECONDS if schedule.state.cursor == before else 0)
            return
        await self._release(schedule)
        found = due(schedule.spec, schedule.id, schedule.state.cursor, now)
        if found.missed:
            log.warning("instants of a schedule were missed", schedule=schedule.id, missed=found.missed)
        for late, instants in ((True, found.late), (False, found.on_time)):
            for instant in instants:
                await self._settle(schedule, instant, late=late)
                schedule.set(cursor=instant)
        schedule.due = found.next
        if found.cursor != schedule.state.cursor or found.missed:
            schedule.set(cursor=found.cursor)
            self._count(schedule, "missed", found.missed)

    async def _mine(self, schedule: Schedule, instants: Instants, now: float) -> bool:
        """Return whether this runner settles the instants that are due now. Others come to know it by the state."""
        cursor = schedule.state.cursor
        first = schedule.spec.timing.next(cursor)
        is_due = first is not None and first + delay(schedule.spec, schedule.id, first) <= now
        if is_due or schedule.state.pending:
            for live in await instants.running(schedule.id):
                schedule.add(live)
        if not is_due or first is None:
            return True
        return await instants.take(f"{schedule.id}/{instant_text(first)}") and schedule.state.cursor == cursor

    async def fire(self, schedule: Schedule, subject: str) -> Live:
        """Start a schedule now, even beside its other executions. Raises RunnerError."""
        module, data = await self._checked(schedule)
        execution = _execution(schedule, module, data, subject=subject)
        await use_named(self.runs.attempts.files, execution.id, module.spec.name, data)
        live = await self.runs.dispatcher.submit(module, execution)
        schedule.add(live)
        schedule.set(last_execution=execution.id, last_for=None)
        self._count(schedule, "started")
        return live

    async def _release(self, schedule: Schedule) -> None:
        while schedule.state.pending and not schedule.running():
            instant = schedule.state.pending[0]
            await self._begin(schedule, instant)
            schedule.set(pending=tuple(each for each in schedule.state.pending if each != instant))

    async def _settle(self, schedule: Schedule, instant: float, *, late: bool) -> None:
        """Start an instant, or let it wait, or leave it out, by `overlap`."""
        running, state, overlap = schedule.running(), schedule.state, schedule.spec.overlap
        # The runner may have died, or the clock may have been set back, after the instant had been settled.
        if instant in state.pending:
            return
        if known := [live.execution.id for live in running if live.execution.scheduled_for == instant]:
            schedule.set(last_execution=known[0], last_for=instant)
            return
        if late and schedule.spec.misfire is Misfire.ALL and overlap is not Overlap.PARALLEL:
            overlap = Overlap.QUEUE
        if overlap is Overlap.QUEUE and (running or state.pending) and len(state.pending) < MAX_PENDING:
            schedule.set(pending=(*state.pending, instant))
        elif running and overlap in (Overlap.SKIP, Overlap.QUEUE):
            log.info("the last execution has not ended", schedule=schedule.id, skipped=instant_text(instant))
            self._count(schedule, "skipped")
        else:
            if overlap is Overlap.CANCEL:
                for live in running:
                    why = f"the schedule {schedule.id} started the next execution"
                    await self.runs.dispatcher.cancel(live, Failure(ErrorKind.CANCELLED, why))
            await self._begin(schedule, instant)

    async def _begin(self, schedule: Schedule, instant: float) -> None:
        """Accept the execution of an instant, unless it was accepted before. Raises RunnerError to try again."""
        try:
            module, data = await self._checked(schedule)
            execution = _execution(schedule, module, data, instant=instant)
        except RunnerError as problem:
            self._fail(schedule, problem.failure.message)
            return
        try:
            await use_named(self.runs.attempts.files, execution.id, module.spec.name, data)
            begin = partial(self.runs.dispatcher.submit, module, execution)
            known = await self._idempotency.first(execution, begin, _ONCE)
        except RunnerError as problem:
            if problem.failure.kind in _PASSING:
                raise
            self._fail(schedule, problem.failure.message)
            return
        accepted = known.execution if isinstance(known, Live) else known
        if isinstance(known, Live):
            schedule.add(known)
        if accepted.id == execution.id:
            self._count(schedule, "started")
        schedule.set(last_execution=accepted.id, last_for=instant, problem=None)

    def _fail(self, schedule: Schedule, why: str) -> None:
        """Note that an instant could not start."""
        if schedule.state.problem != why:
            log.warning("a schedule could not start its module", schedule=schedule.id, module=schedule.module, why=why)
        schedule.set(problem=why)
        self._count(schedule, "failed")

    def _count(self, schedule: Schedule, how: str, number: int = 1) -> None:
        if number:
            self.counts[how] += number
            schedule.set(**{how: getattr(schedule.state, how) + number})

    async def _checked(self, schedule: Schedule) -> tuple[Published, bytes]:
        """Return the module and its input. Raises RunnerError if there is no such version, or it refuses the input."""
        module = self.registry.snapshot.get(schedule.module, schedule.version)
        data = msgspec.json.encode(schedule.spec.input)
        if (check := module.inputs) is not None:
            try:
                failure = check.check(data, quickly=True)
            except LongCheckError:
                failure = await trio.to_thread.run_sync(check.check, data)
            if failure is not None:
                raise RunnerError(failure)
        return module, data


def _execution(
    schedule: Schedule, module: Published, data: bytes, *, instant: float | None = None, subject: str | None = None
) -> Execution:
    summary = module.spec.record is Record.SUMMARY
    return Execution(
        id=execution_id(),
        module=module.ref,
        env=module.spec.env,
        status=Status.QUEUED,
        created_at=time.time(),
        input=data,
        subject=subject or f"schedule:{schedule.id}",
        asynchronous=True,
        idempotency_key=None if instant is None else f"{schedule.id}/{instant_text(instant)}",
        schedule=schedule.id,
        scheduled_for=instant,
        summary=summary,
        input_bytes=len(data),
        input_hash=fingerprint(data) if summary else None,
        group=None if module.spec.group is None else group_of(module.spec.group.key, data),
    )
