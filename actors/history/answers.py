"""The questions that a history answers: from what is pending in memory, and from the database in threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

import sqlalchemy as sa
import trio
from msgspec.structs import replace

from actors import rollups
from actors.history import counts, queries
from actors.history.archive import Archive, Past
from actors.history.committer import Committer
from actors.history.pending import unavailable
from actors.history.pieces import NOTHING, joined
from actors.history.queries import Page, Query
from actors.rollups import EndCounts, Ends, ModuleStats
from actors.sqlite import TROUBLE, reason_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind, error
from protocol.model import Execution

T = TypeVar("T")
MEND_SECONDS: Final = 60.0
"""How long a reader waits for a damaged database to be replaced."""


class Answers:
    """The part of a history that reads, and lets others keep tables beside the record.

    Methods are called on the event loop, while the history is open.
    """

    def __init__(self, settings: HistorySettings, clock: Callable[[], float], node: str | None) -> None:
        self.node = node
        self._settings = settings
        self._clock = clock
        self._archive: Archive | None = None
        self._committer = Committer(settings, clock)
        self._pending = self._committer.pending
        self.room = self._committer.room
        """The room for records. An execution waits for it before its handler is called."""

    async def get(self, name: str) -> Execution | None:
        """Return the whole execution with this id in its latest state, or None.

        A running execution has the events added by `append`. Raises `RunnerError` (`unavailable`) when the database
        cannot be read. Cancellation waits for the end of the read.
        """
        await trio.lowlevel.checkpoint()
        known = self._pending.find(name)
        if known is not None and known.status.final:
            return known
        waiting = self._pending.pieces.find(name)
        if known is not None and known.events != NOTHING:
            waiting = (known.events, *waiting)
        stored = await self._read(lambda link: queries.fetch(link, name, waiting))
        latest = self._pending.find(name) or known
        if latest is None or latest.status.final:
            return latest or stored
        return replace(latest, events=joined(waiting) if stored is None else stored.events)

    async def existing(self, names: Collection[str]) -> set[str]:
        """Return those of the ids that are executions whose payloads are kept. Raises `RunnerError` as `get`."""
        pending = {name for name in names if _is_whole(self._pending.find(name))}
        return pending | await self._read(lambda link: queries.existing(link, names))

    async def find_keyed(self, subject: str, module: str, key: str, since: float) -> Execution | None:
        """Return a caller's newest execution of `module` with this idempotency key, whole, or None.

        Only executions created at or after `since` (seconds since the epoch) count. Raises `RunnerError` as `get`.
        Nothing is reserved: when two calls with one key both get None, the caller of this method must serialize them.
        """
        wanted = (subject, module, key)
        waiting = self._pending.find_keyed(wanted)
        stored = await self._read(lambda link: queries.find_keyed(link, wanted, since))
        found = [execution for execution in (waiting, stored) if execution and execution.created_at >= since]
        if not found:
            return None
        newest = max(found, key=lambda execution: (execution.created_at, execution.id))
        # The copy in memory may have a later state.
        return await self.get(newest.id) or newest

    async def list(self, query: Query) -> Page:
        """Return one page of executions, newest first, without input, result, traceback, events, failed attempts.

        Executions recorded before the call are included, unless the database cannot be written now. A page with fewer
        than `limit` executions, or none, may have a `next_cursor`: then the search continues there. Raises
        `RunnerError`: `bad_input` for limit and cursor, `unavailable` as `get`.
        """
        await self._committer.catch_up()
        return await self._read(lambda link: queries.page(link, query))

    async def due(self, until: float, most: int) -> tuple[tuple[str, ...], float]:
        """Return the ids of at most `most` scheduled executions that are due, the oldest `run_at` first.

        With them comes the next `run_at` after `until`, infinite without one. Raises `RunnerError` as `get`.
        """
        await self._committer.catch_up()
        return await self._read(lambda link: queries.due(link, until, most, joined=self.node is not None))

    async def catch_up(self) -> None:
        """Wait, at most a second, until readers of the database find everything that was recorded before."""
        await self._committer.catch_up()

    async def last_repetition(self, root: str) -> str | None:
        """Return the id of the last execution of a chain of repetitions, None without one. Raises as `get`."""
        return await self._read(lambda link: queries.last_repetition(link, root))

    async def count_scheduled(self) -> int:
        """Return the number of scheduled executions. Raises `RunnerError` as `get`."""
        return await self._read(lambda link: queries.count_scheduled(link, joined=self.node is not None))

    async def stats(self, module: str, *, since: float | None = None, until: float | None = None) -> ModuleStats:
        """Return statistics of the executions of `module` that ended in `since` <= time < `until`; None is no bound.

        Durations are within 2 %. The window is widened to whole spans of 5 minutes, of an hour where it is more than
        2 days ago, and of a day after 60 days; the answer has the widened bounds. Executions that were deleted because
        there were too many are counted too. Raises `RunnerError`: `bad_input` for a bound that is not a number,
        `unavailable` as `get`.
        """
        for name, bound in (("since", since), ("until", until)):
            if bound is not None and math.isnan(bound):
                raise error(ErrorKind.BAD_INPUT, f"{name} must be a number of seconds since the epoch", field=name)
        await self._committer.catch_up()
        over = rollups.window(since, until, self._clock(), self._settings.retention_seconds)
        total = await self._read(lambda link: counts.total(link, module, over.parts))
        return rollups.summary(module, over, total)

    async def stats_over(self, module: str, *, seconds: int, step: int) -> Sequence[ModuleStats]:
        """Return statistics of `module` for each step of the last `seconds`, the oldest first; the last step is now's.

        A step is a multiple of the width of a level of rollups that is kept so long. Raises `RunnerError` as `get`.
        """
        await self._committer.catch_up()
        end = math.floor(self._clock() / step + 1) * step
        windows = rollups.steps(end - seconds, end, step)
        found = await self._read(lambda link: counts.by_start(link, module, windows))
        return [rollups.summary(module, over, total) for over, total in zip(windows, found, strict=True)]

    async def ends(
        self, globs: tuple[str, ...], *, seconds: int, step: int
    ) -> tuple[Sequence[Ends], Mapping[str, EndCounts]]:
        """Return the ends of the modules of these globs, () for all: in each step, and since yesterday by module.

        Steps are those of `stats_over`, over all modules together; yesterday is that of UTC. Raises `RunnerError` as
        `get`.
        """
        await self._committer.catch_up()
        end = math.floor(self._clock() / step + 1) * step
        windows, lately = rollups.steps(end - seconds, end, step), rollups.since_yesterday(self._clock()).parts[0]

        def read(link: sa.Connection) -> tuple[Sequence[EndCounts], Mapping[str, EndCounts]]:
            return counts.ended_in_all(link, globs, windows), counts.ended_by_module(link, globs, lately)

        found, by_module = await self._read(read)
        over = [Ends(each.parts[0].start, sums.statuses) for each, sums in zip(windows, found, strict=True)]
        return over, by_module

    async def stats_lately(self) -> dict[str, ModuleStats]:
        """Return statistics of the modules that ran since yesterday, UTC. Raises `RunnerError` as `get`."""
        await self._committer.catch_up()
        over = rollups.since_yesterday(self._clock())
        found = await self._read(lambda link: counts.by_module(link, over.parts[0]))
        return {module: rollups.summary(module, over, total) for module, total in found.items()}

    def left(self) -> Past:
        """Return the ids of the executions that the last runner left queued, and of those that it lost, oldest first.

        Running executions were failed as `lost` when the history was opened; they keep their stored events. A retry
        numbers its events from `events_count`, which is 1,000,000 above the next multiple of 1,000,000 over the highest
        stored number: a reader may have seen events that were never stored, and no number may come twice.
        """
        return self._opened().past

    @property
    def noticed(self) -> trio.Event:
        """The event of the next notices that are stored."""
        return self._committer.noticed

    def notice(self) -> None:
        """Let those that wait for notices look at the stored ones."""
        self._committer.notice()

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of `work` on the stored record, for questions about tables that others own.

        It may lack what was recorded in the last second. Raises `RunnerError` as `get`.
        """
        return await self._read(work)

    async def change(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of `work` in a transaction, for changes of tables that others own.

        Raises `RunnerError` (`unavailable`); then nothing has changed. Cancellation waits for its end.
        """
        archive = self._opened()
        try:
            return await archive.write(work)
        except TROUBLE as problem:
            if archive.suspect(problem):
                self._committer.wake()
            raise unavailable("written", reason_of(problem)) from problem

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._opened().read(work)
        except TROUBLE as problem:
            if not self._opened().suspect(problem):
                raise unavailable("read", reason_of(problem)) from problem
        await self._committer.wait_mended(MEND_SECONDS)
        try:
            return await self._opened().read(work)
        except TROUBLE as problem:
            raise unavailable("read", reason_of(problem)) from problem

    def _opened(self) -> Archive:
        if self._archive is None:
            raise error(ErrorKind.UNAVAILABLE, "the history is not open", retry_after=1.0)
        return self._archive


def _is_whole(execution: Execution | None) -> bool:
    return execution is not None and not (execution.summary and execution.status.final)
