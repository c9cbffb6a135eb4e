"""`Kept`: the file of schedules, as the actor writes it: in a thread, one change at a time."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import structlog
import trio
from attrs import define, field

from actors.sqlite import TROUBLE, reason_of
from actors.starts.firing import Schedule
from actors.starts.stored import StartsFile, State, StoredSchedule
from protocol.errors import ErrorKind, RunnerError, error

log = structlog.get_logger("schedules")


@define(eq=False)
class Kept:
    """Writes the file."""

    _file: StartsFile
    _turn: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    async def write_changed(self, schedules: Iterable[Schedule]) -> None:
        """Write changed states; without success they are written with the next change."""
        changed = [schedule for schedule in schedules if schedule.changed]
        if not changed:
            return
        try:
            await self.write(states=[schedule.state for schedule in changed])
        except RunnerError as problem:
            log.warning("schedules cannot be written", why=problem.failure.message)
            return
        for schedule in changed:
            schedule.changed = False

    async def write(
        self,
        *,
        states: Iterable[State] = (),
        schedules: Iterable[StoredSchedule] = (),
        deleted: Iterable[str] = (),
    ) -> None:
        """Write all of these in one transaction. Raises RunnerError `unavailable`."""
        work = partial(self._file.write, tuple(states), tuple(schedules), tuple(deleted))
        try:
            await trio.to_thread.run_sync(work, limiter=self._turn)
        except TROUBLE as problem:
            text = f"schedules cannot be written: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir", retry_after=5) from problem

    async def aclose(self) -> None:
        """Close the file."""
        await trio.to_thread.run_sync(self._file.close, limiter=self._turn)
