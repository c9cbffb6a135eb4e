"""`Kept`: what is stored of schedules, as the actor writes it, one change at a time.

On one machine it goes into the file (`OwnStarts`). In a cluster a change is one message for all runners.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

import structlog
from attrs import define

from actors.one_file import InTurn, until_first
from actors.starts.firing import Schedule
from actors.starts.stored import StartsFile, State, StoredSchedule
from protocol.errors import RunnerError

log = structlog.get_logger("schedules")


class StartsFeed(Protocol):
    """Records changes of schedules."""

    async def write(
        self, states: Sequence[State] = (), schedules: Sequence[StoredSchedule] = (), deleted: Sequence[str] = ()
    ) -> None:
        """Add or change states and schedules of the API, and delete schedules with their states.

        Done when the file has them. Raises RunnerError `unavailable`, and `OvertakenError` when another runner changed
        one of the schedules first.
        """

    async def forget(self, names: Sequence[str]) -> None:
        """Delete states of schedules of modules that are not here any more. Raises RunnerError `unavailable`."""


@define
class OwnStarts:
    """The feed of a runner that is alone: the file itself."""

    _file: StartsFile
    _in_file: InTurn

    async def write(
        self, states: Sequence[State] = (), schedules: Sequence[StoredSchedule] = (), deleted: Sequence[str] = ()
    ) -> None:
        """Write all of these in one transaction."""
        await self._in_file(self._file.write, tuple(states), tuple(schedules), tuple(deleted))

    async def forget(self, names: Sequence[str]) -> None:
        """Delete states."""
        await self._in_file(self._file.forget, tuple(names))


@define(eq=False)
class Kept:
    """Writes what is stored."""

    _file: StartsFile
    _in_file: InTurn
    _feed: StartsFeed

    async def write_changed(self, schedules: Iterable[Schedule]) -> None:
        """Write changed states; without success they are written with the next change."""
        changed = [schedule for schedule in schedules if schedule.changed]
        if not changed:
            return
        try:
            await until_first(partial(self._write_states, changed))
        except RunnerError as problem:
            log.warning("schedules cannot be written", why=problem.failure.message)

    async def _write_states(self, schedules: Sequence[Schedule]) -> None:
        written = [schedule.sending(schedule.state) for schedule in schedules]
        await self._feed.write(states=written)
        for schedule, state in zip(schedules, written, strict=True):
            if schedule.state == state:
                schedule.changed = False

    async def write(
        self,
        *,
        states: Iterable[State] = (),
        schedules: Iterable[StoredSchedule] = (),
        deleted: Iterable[str] = (),
    ) -> None:
        """Write all of these. Raises RunnerError as the feed does."""
        await self._feed.write(tuple(states), tuple(schedules), tuple(deleted))

    async def forget(self, names: Iterable[str]) -> None:
        """Delete states of schedules of modules that are not here any more. Raises RunnerError `unavailable`."""
        await self._feed.forget(tuple(names))

    async def aclose(self) -> None:
        """Close the file."""
        await self._in_file(self._file.close)
