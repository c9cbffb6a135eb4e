"""The overview: running and waiting executions, failures since yesterday, next schedules, health of the machine.

Each part needs its scope. A part that cannot be read has a note in its place; the others are shown.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from attrs import field, frozen

from protocol.errors import RunnerError
from protocol.model import Status
from runner.api import Ends, Glance, Span
from runner.auth import Scope
from runner.ui.drawing import Labels, Series, stacked
from runner.ui.views.health import find_health
from runner.ui.visit import Reply, Visit, view

T = TypeVar("T")
_MOST: Final = 6
"""Lines of each list; the pages of the lists have the rest."""
_DAY: Final = Span(24 * 3600, 3600)
_ORDER: Final = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


@frozen
class _Parts:
    """What could be read, and why the rest could not."""

    found: dict[str, Any] = field(factory=dict)
    problems: list[str] = field(factory=list)

    async def take(self, name: str, reading: Awaitable[object]) -> None:
        """Read one part; None in its place if it cannot be read."""
        self.found[name] = None
        try:
            self.found[name] = await reading
        except RunnerError as problem:
            if (text := problem.failure.message) not in self.problems:
                self.problems.append(text)


@view("GET", "/")
async def show(page: Visit) -> Reply:
    """Show the overview."""
    service, reader = page.service, page.principal
    glance = Glance(service.runs, service.history, service.settings)
    parts = _Parts()
    if page.may(Scope.EXECUTIONS_READ):
        await parts.take("lives", glance.lives(reader, _MOST))
        await parts.take("ends", glance.ends(reader, _DAY))
    if page.may(Scope.EXECUTIONS_APPROVE):
        await parts.take("awaiting", service.decisions.awaiting(reader, _MOST))
    if page.may(Scope.SCHEDULES_READ):
        await parts.take("coming", _coming(page))
    found = parts.found
    ends, red = found.get("ends") or (None, None)
    return page.render(
        "overview.html",
        problems=parts.problems,
        lives=found.get("lives"),
        awaiting=found.get("awaiting"),
        chart=None if ends is None or not any(each.statuses for each in ends) else _chart(page, ends),
        ended=None if ends is None else _sums(ends),
        red=None if red is None else red[:_MOST],
        red_modules=len(red or ()),
        red_total=sum(each.failed for each in red or ()),
        since=_yesterday(),
        coming=found.get("coming"),
        health=await find_health(page, glance),
        modules=_count_modules(page),
    )


async def _coming(page: Visit) -> Sequence[Mapping[str, Any]]:
    return page.service.schedules.soonest(page.principal, _MOST)


def _sums(ends: Sequence[Ends]) -> dict[str, int]:
    return {status.value: sum(each.statuses.get(status, 0) for each in ends) for status in _ORDER}


def _chart(page: Visit, ends: Sequence[Ends]) -> str:
    """Return the executions of the last day as columns, one for each hour."""
    t, sums = page.words, _sums(ends)
    words = {Status.SUCCEEDED: t("succeeded"), Status.FAILED: t("failed"), Status.CANCELLED: t("cancelled")}
    summary = t(
        "{succeeded} succeeded, {failed} failed and {cancelled} were cancelled.",
        **{name: f"{number:,}" for name, number in sums.items()},
    )
    labels = Labels(
        title=t("Ended in the last 24 hours"),
        points=[datetime.fromtimestamp(each.start, UTC).strftime("%H:%M UTC") for each in ends],
        time=t("Hour from"),
        numbers=t("Show as numbers"),
        summary=summary,
    )
    series = [
        Series(words[status], status.value, [each.statuses.get(status, 0) for each in ends])
        for status in _ORDER
        if sums[status] or status is not Status.CANCELLED
    ]
    return stacked(labels, series)


def _yesterday() -> str:
    """Return the date from which on `lately` counts, for the filters of lists."""
    return (datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1)).date().isoformat()


def _count_modules(page: Visit) -> int | None:
    """Return the number of modules that the reader may see."""
    if not page.may(Scope.MODULES_READ):
        return None
    modules = page.service.registry.snapshot.modules
    return len(modules) if not page.principal.modules else sum(page.principal.may_use(name) for name in modules)


VIEWS = (show,)
