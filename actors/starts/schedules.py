"""`Schedules`, the actor that starts modules by time.

Rules:
* A schedule belongs to a module (the field `schedules` of its active version), or was made over the API.
* Due instants start in batches; then the states of a batch are written in one transaction.
* The clock of the machine may be set at any moment. If it goes back, the instants that come again are due again; those
  that were accepted are found by their keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.executions import Live, Runs
from actors.one_file import InTurn, until_first
from actors.registry import Registry
from actors.starts.firing import Firing, Instants, Schedule
from actors.starts.kept import Kept, OwnStarts, StartsFeed
from actors.starts.known import Known, state_of
from actors.starts.stored import StartsFile, StoredSchedule
from config.timing import ScheduleSpec
from protocol.errors import ErrorKind, RunnerError, error

MAX_API_SCHEDULES: Final = 10_000
_RETRY_SECONDS: Final = 5.0
_BATCH: Final = 1000
_PIECE: Final = 20
"""Schedules that are looked at without a pause for others."""

log = structlog.get_logger("schedules")


@define(eq=False)
class Schedules:
    """The actor that owns all schedules. `clock` returns the time of day in seconds since the epoch."""

    _file: StartsFile
    registry: Registry
    runs: Runs
    clock: Callable[[], float] = time.time
    feed_of: Callable[[StartsFile, InTurn], StartsFeed] = OwnStarts
    """Returns where changes are recorded."""
    instants: Instants | None = None
    known: Known = field(init=False)
    _firing: Firing = field(init=False)
    _changing: trio.Lock = field(factory=trio.Lock, init=False)
    """Held by the one that starts or changes schedules."""
    _kept: Kept = field(init=False)
    _published: bool = field(default=True, init=False)
    """The modules changed, and their schedules have not been read since."""

    def __attrs_post_init__(self) -> None:
        self.known, self._firing = Known(self.clock), Firing(self.registry, self.runs, self.instants)
        in_file = InTurn("schedules cannot be written")
        self._kept = Kept(self._file, in_file, self.feed_of(self._file, in_file))

    @classmethod
    def open(
        cls,
        path: Path,
        registry: Registry,
        runs: Runs,
        feed_of: Callable[[StartsFile, InTurn], StartsFeed] = OwnStarts,
        instants: Instants | None = None,
    ) -> Schedules:
        """Open or make the file of schedules. Blocks. Raises RunnerError `unavailable`."""
        opened = cls(StartsFile.open(path), registry, runs, feed_of=feed_of, instants=instants)
        try:
            opened._load()
        except BaseException:
            opened._file.close()
            raise
        return opened

    @property
    def damaged(self) -> bool:
        """Whether the file, or a part of it, was found damaged."""
        return self._file.damaged

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start what is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            await self._take_modules()
            for schedule in self.known.by_id.values():
                schedule.watched = False  # the task that did so is gone if this actor was restarted
            for live in self.runs.live_executions():  # those that the last runner left
                if (known := self.known.by_id.get(live.execution.schedule or "")) is not None:
                    known.add(live)
            task_status.started()
            while True:
                if self._published:
                    await self._take_modules()
                self._notice_clock()
                names = self.known.timer.take(_BATCH)
                if names:
                    await self._start(names, nursery)
                else:
                    await self.known.timer.sleep()

    def follow(self) -> None:
        """Take the schedules of modules again: the modules have changed. Never blocks."""
        self._published = True
        self.known.timer.ring()

    def all(self) -> list[Schedule]:
        """Return all schedules, by their identifiers."""
        return [self.known.by_id[name] for name in sorted(self.known.by_id)]

    def get(self, name: str) -> Schedule | None:
        """Return the schedule with this identifier."""
        return self.known.by_id.get(name)

    def statistics(self) -> dict[str, int]:
        """Return the number of schedules by their state, and of instants since the start of the runner by their end."""
        paused = sum(schedule.state.paused_by is not None for schedule in self.known.by_id.values())
        return {"active": len(self.known.by_id) - paused, "paused": paused, **self._firing.counts}

    # Changes over the API

    async def put(self, stored: StoredSchedule, spec: ScheduleSpec, before: StoredSchedule | None = None) -> Schedule:
        """Add a schedule of the API, or change the one that was `before`; done when it is written.

        Raises RunnerError: `conflict` when another caller was faster, `overloaded` when there are too many,
        `unavailable` when it cannot be written. On cancellation it may have been made.
        """
        async with self._changing:
            return await until_first(partial(self._put, stored, spec, before))

    async def _put(self, stored: StoredSchedule, spec: ScheduleSpec, before: StoredSchedule | None) -> Schedule:
        known = self.known.by_id.get(stored.id)
        if (None if known is None else known.stored) != before:
            text = f"the schedule {stored.id!r} was changed by another caller; read it again"
            raise error(ErrorKind.CONFLICT, text, field="name")
        if known is None and sum(each.stored is not None for each in self.known.by_id.values()) >= MAX_API_SCHEDULES:
            text = f"there are {MAX_API_SCHEDULES} schedules; delete some"
            raise error(ErrorKind.OVERLOADED, text, field="name")
        state = state_of(stored.id, spec, None if known is None else known.state, self.clock())
        await self._kept.write(states=[state if known is None else known.sending(state)], schedules=[stored])
        found = self.known.by_id.get(stored.id)
        if found is not None and found.stored == stored:  # a cluster has made it known
            return found
        return self.known.enter(Schedule(stored.id, stored.module, spec, state, stored), known, written=True)

    async def remove(self, schedule: Schedule) -> None:
        """Delete a schedule of the API; done when it is written. Its executions stay. Raises RunnerError."""
        async with self._changing:
            await until_first(partial(self._kept.write, deleted=[schedule.id]))
            self.known.by_id.pop(schedule.id, None)

    async def pause(self, schedule: Schedule, subject: str | None) -> None:
        """Start no more instants, or with None those from now on; done when it is written. Raises RunnerError."""
        async with self._changing:
            await until_first(partial(self._pause, schedule, subject))

    async def _pause(self, schedule: Schedule, subject: str | None) -> None:
        before = schedule.state
        if (before.paused_by is None) is (subject is None):
            return
        state = replace(before, paused_by=subject, cursor=max(before.cursor, self.clock()))
        await self._kept.write(states=[schedule.sending(state)])
        if schedule.state is before:  # else a cluster has made it known
            schedule.state = state
        self.known.look_now(schedule)

    async def fire(self, schedule: Schedule, subject: str) -> Live:
        """Start a schedule now, besides its instants. Raises RunnerError."""
        async with self._changing:
            live = await self._firing.fire(schedule, subject)
        self.known.look_now(schedule)  # its state is to be written
        return live

    # What is due

    async def _start(self, names: Iterable[str], nursery: trio.Nursery) -> None:
        async with self._changing:
            looked_at = [schedule for name in names if (schedule := self.known.by_id.get(name)) is not None]
            for number, schedule in enumerate(looked_at):
                if number % _PIECE == 0:
                    await trio.lowlevel.checkpoint()
                now = self.clock()
                try:
                    await self._firing.look(schedule, now)
                except RunnerError as problem:
                    if problem.failure.kind is not ErrorKind.SHUTDOWN:
                        log.warning("a schedule is tried again", schedule=schedule.id, why=problem.failure.message)
                    schedule.due = now + _RETRY_SECONDS
                except Exception:
                    log.exception("a schedule failed inside the runner", schedule=schedule.id)
                    schedule.due = now + _RETRY_SECONDS
                self.known.timer.put(schedule.id, schedule.due)
                if schedule.state.pending and schedule.running() and not schedule.watched:
                    schedule.watched = True
                    nursery.start_soon(self._watch, schedule)
            await self._kept.write_changed(looked_at)

    async def _watch(self, schedule: Schedule) -> None:
        """Look at a schedule again when its executions have ended."""
        for live in tuple(schedule.running()):
            await live.ended.wait()
        schedule.watched = False
        if not self.runs.stopping:
            self.known.look_now(schedule)

    def _notice_clock(self) -> None:
        seconds = self.known.timer.jumped()
        if seconds:
            log.warning("the clock of the machine was set", seconds=round(seconds, 1))
        if seconds < 0:
            now = self.clock()
            for schedule in self.known.by_id.values():
                if schedule.state.cursor > now:
                    schedule.set(cursor=now)
                self.known.look_now(schedule)

    # The set of schedules

    def _load(self) -> None:
        """Read the schedules of the API, and how far all have come. Blocks."""
        self.known.load(*self._file.load())

    async def _take_modules(self) -> None:
        """Have the schedules of all modules as they are now."""
        async with self._changing:
            self._published = False
            wanted = {
                f"{name}:{spec.name}": (name, spec)
                for name, module in self.registry.snapshot.modules.items()
                for spec in module.spec.schedules
            }
            for name in [
                each.id for each in self.known.by_id.values() if each.stored is None and each.id not in wanted
            ]:
                self.known.left[name] = self.known.by_id.pop(name).state
            for name, (module, spec) in wanted.items():
                before = self.known.by_id.get(name)
                if before is None or before.spec != spec:
                    state = self.known.state_before(name) if before is None else before.state
                    after = state_of(name, spec, state, self.clock())
                    self.known.enter(Schedule(name, module, spec, after), before, written=after == state)
            try:
                if self.known.left:
                    await self._kept.forget(self.known.left)
                self.known.left = {}
            except RunnerError as problem:
                log.warning("schedules cannot be written", why=problem.failure.message)

    async def aclose(self) -> None:
        """Close the file."""
        await self._kept.aclose()
