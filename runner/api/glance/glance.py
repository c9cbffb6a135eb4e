"""`Glance`: what a caller wants to know first, in a bounded number of lines."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Final

import trio
from attrs import frozen
from msgspec.structs import replace

from actors.executions import Live, Runs
from actors.history import EndCounts, Ends, History, HistoryStatistics
from config.settings import Settings
from protocol.errors import ErrorKind
from protocol.model import Execution, Status
from runner.api.details import Span
from runner.api.glance.hardware import Hardware
from runner.auth import Principal, Scope, require

_MOST: Final = 500
"""Executions of other runners that are counted, of each state."""


@frozen
class Lives:
    """Executions that have not ended, without inputs and output: the oldest ones, and how many there are."""

    running: tuple[Execution, ...]
    running_total: int
    waiting: tuple[Execution, ...]
    """Queued ones, and those that wait for a worker or a build; each knows why."""
    waiting_total: int


@frozen
class Red:
    """A module with failures since yesterday, UTC."""

    name: str
    failed: int
    total: int
    kind: ErrorKind | None
    """The most frequent kind of failure."""


@frozen
class Glance:
    """Looks at everything at once. Each method raises RunnerError `forbidden` without its scope."""

    runs: Runs
    history: History
    settings: Settings

    async def lives(self, principal: Principal, most: int) -> Lives:
        """Return the executions that run and wait now, at most so many of each. Raises RunnerError `unavailable`."""
        require(principal, Scope.EXECUTIONS_READ)
        here = self._lives(principal, most)
        owners, modules = self.runs.owners, principal.modules
        others = [await owners.others(status, modules, _MOST) for status in (Status.RUNNING, Status.QUEUED)]
        if not any(others):
            return here
        run, wait = (sorted(found, key=_created)[:most] for found in others)
        waiting = sorted([*here.waiting, *await owners.explained(wait)], key=_created)[:most]
        running = sorted([*here.running, *run], key=_created)[:most]
        totals = here.running_total + len(others[0]), here.waiting_total + len(others[1])
        return Lives(tuple(running), totals[0], tuple(waiting), totals[1])

    def _lives(self, principal: Principal, most: int) -> Lives:
        running, waiting = list[Live](), list[Live]()
        for live in self.runs.live_executions():
            if principal.may_use(live.execution.module.name):
                (waiting if _waits(live) else running).append(live)
        return Lives(self._oldest(running, most), len(running), self._oldest(waiting, most), len(waiting))

    async def ends(self, principal: Principal, span: Span) -> tuple[Sequence[Ends], list[Red]]:
        """Return how many executions ended in each step of a span of time until now, by status, the oldest first.

        With them come the modules with failures since yesterday, those with most of them first. Raises RunnerError
        `unavailable`.
        """
        require(principal, Scope.EXECUTIONS_READ)
        over, lately = await self.history.ends(principal.modules, seconds=span.seconds, step=span.step)
        failures = [
            Red(name, failed, sum(each.statuses.values()), _most_frequent(each))
            for name, each in lately.items()
            if (failed := each.statuses.get(Status.FAILED, 0))
        ]
        return over, sorted(failures, key=lambda each: (-each.failed, each.name))

    async def machine(self, principal: Principal) -> tuple[Hardware, HistoryStatistics]:
        """Return the state of the machine, and that of the record."""
        require(principal, Scope.METRICS_READ)
        machine = await trio.to_thread.run_sync(Hardware.read, self.settings.store.data_dir)
        return machine, self.history.statistics()

    def _oldest(self, lives: Iterable[Live], most: int) -> tuple[Execution, ...]:
        found = heapq.nsmallest(most, lives, key=_since)
        return tuple(replace(live.execution, waiting=self.runs.waiting(live)) for live in found)


def _most_frequent(ends: EndCounts) -> ErrorKind | None:
    return max(ends.kinds, key=lambda kind: ends.kinds[kind], default=None)


def _waits(live: Live) -> bool:
    return live.waiting is not None or live.execution.status is Status.QUEUED


def _created(execution: Execution) -> float:
    return execution.started_at or execution.created_at


def _since(live: Live) -> float:
    return live.began_at or live.execution.created_at
