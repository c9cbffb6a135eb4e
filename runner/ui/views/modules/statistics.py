"""How the executions of a module ended over time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from actors.history import ModuleStats
from protocol.model import Status
from runner.api import SPANS
from runner.auth import Scope
from runner.ui.drawing import Labels, Series, lines, stacked
from runner.ui.looks import as_duration
from runner.ui.views.modules.subject import subject_of
from runner.ui.visit import Reply, Visit, view
from runner.ui.words import Words

_FORMS: Final = {"day": "%H:%M", "week": "%d %b %H:%M", "month": "%d %b"}


@view("GET", "/modules/{name}/statistics", scope=Scope.EXECUTIONS_READ)
async def show(page: Visit) -> Reply:
    """Show counts and durations of the last day, week or month."""
    subject = subject_of(page)
    name = page.query.get("span", "day")
    name = name if name in SPANS else "day"
    span = SPANS[name]
    steps = await page.service.details.over_time(page.principal, subject.name, span)
    whole = await page.service.details.stats(page.principal, subject.name, since=steps[0].since, until=steps[-1].until)
    times = [datetime.fromtimestamp(step.since, UTC).strftime(_FORMS[name]) for step in steps]
    return subject.render(
        "module_stats.html",
        "/statistics",
        span=name,
        spans=tuple(SPANS),
        whole=whole,
        kinds=sorted(whole.kinds.items(), key=lambda each: -each[1]),
        ends=_ends(page.words, times, steps),
        durations=_durations(page.words, times, steps),
    )


def _ends(t: Words, times: Sequence[str], steps: Sequence[ModuleStats]) -> str:
    series = [
        Series(t(name), status.value, [step.statuses.get(status, 0) for step in steps])
        for name, status in (
            ("succeeded", Status.SUCCEEDED),
            ("cancelled", Status.CANCELLED),
            ("failed", Status.FAILED),
        )
    ]
    total, failed = sum(step.total for step in steps), sum(series[-1].values)  # type: ignore[arg-type]
    summary = t("{total} executions ended, {failed} of them failed.", total=f"{total:,}", failed=f"{failed:,}")
    return stacked(Labels(t("Executions by their end"), times, t("Begin (UTC)"), t("As a table"), summary), series)


def _durations(t: Words, times: Sequence[str], steps: Sequence[ModuleStats]) -> str:
    series = [
        Series("p50", "p50", [step.p50 for step in steps]),
        Series("p95", "p95", [step.p95 for step in steps]),
        Series("p99", "p99", [step.p99 for step in steps]),
    ]
    known = [value for value in series[0].values if value is not None]
    summary = t("Half of the calls took at most {time} at their slowest.", time=as_duration(max(known, default=0.0)))
    labels = Labels(t("Time in the handler"), times, t("Begin (UTC)"), t("As a table"), summary)
    return lines(labels, series, as_duration)


VIEWS = (show,)
