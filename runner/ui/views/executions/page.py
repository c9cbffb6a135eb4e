"""The page of one execution."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from attrs import evolve

from actors.executions import WAITS
from protocol.errors import Failure
from protocol.model import Execution, Status
from protocol.terminal import visible
from runner.api import ACTIVE, MAX_SEARCHED, SAME, Look, Matches
from runner.auth import Scope
from runner.ui import drawing
from runner.ui.live import MAX_SHOWN, key_of, progress_fields, shown_line, some_of, spot_of
from runner.ui.looks import as_duration
from runner.ui.results import Shown, pretty, shown
from runner.ui.views.executions.family import family_of
from runner.ui.visit import Reply, Visit, view
from runner.ui.words import Words

_MAX_EDITED: Final = 128 * 1024
"""Bytes of an input that is put into the form for the next one."""
_MAX_TRACEBACK: Final = 8_000
_SOURCE_LINE: Final = re.compile(r'File "(?P<path>[^"\n]{1,500})", line (?P<line>[0-9]{1,9})')
_ELSEWHERE: Final = re.compile(r"^<|/(site-packages|lib/python[0-9.]+)/")
"""Files that are no code of a module."""


@view("GET", "/executions/{id}", scope=Scope.EXECUTIONS_READ)
async def show(page: Visit) -> Reply:
    """Show an execution."""
    return await shown_page(page)


async def shown_page(
    page: Visit, *, failure: Failure | None = None, typed: Mapping[str, str | None] | None = None, status: int = 200
) -> Reply:
    """Return the page; with a failure, and what was typed into its form, if that was refused."""
    service = page.service
    share_of_page = service.answers.share()
    try:
        execution = await service.get(page.principal, page.path["id"])
        service.answers.take_whole(share_of_page, execution)
        values = await _values(page, execution)
    finally:
        share_of_page.give()
    form = {"version": SAME, "input": None} if typed is None else typed
    return page.render("execution.html", status=status, failure=failure, form=form, **values)


async def _values(page: Visit, execution: Execution) -> dict[str, Any]:
    ended = execution.status.final
    given = await _shown(page, execution.input)
    result = None if execution.result is None else await _shown(page, execution.result)
    look, last = await _look(page, execution)
    lines = some_of(look.window, last=last)
    sought = page.query.get("search", "").strip()
    matches = await _matches(page, sought)
    may_run = page.may(Scope.EXECUTIONS_RUN, execution.module.name)
    editable = None if execution.summary else pretty(execution.input, _MAX_EDITED)
    return {
        "execution": execution,
        "title": execution.module.name,
        "phases": _phases(page.words, execution),
        "given": given,
        "result": result,
        "look": look,
        "lines": lines,
        "earlier": look.window.before or (last and len(lines) < len(look.window.lines)),
        "later": look.window.after or (not last and len(lines) < len(look.window.lines)),
        "sought": sought,
        "matches": matches,
        "matched": [] if matches is None else [shown_line(line) for line in matches.lines[:MAX_SHOWN]],
        "mistake": None if look.mistake is None else key_of(look.mistake),
        "progress": None if ended or look.progress is None else progress_fields(look.progress),
        "family": await family_of(page, execution),
        "error": None if execution.failure is None else _error(execution.failure),
        "attempts": [(each, _error(each.failure)) for each in execution.failed_attempts],
        "follow": execution.status in (Status.RUNNING, Status.QUEUED),
        "may_cancel": may_run and not ended,
        "may_rerun": may_run and ended,
        "may_decide": _asks(execution) and page.may(Scope.EXECUTIONS_APPROVE, execution.module.name),
        "editable": editable,
        "versions": (SAME, ACTIVE),
    }


def _asks(execution: Execution) -> bool:
    return execution.waiting is not None and execution.waiting.reason == WAITS


async def _look(page: Visit, execution: Execution) -> tuple[Look, bool]:
    """Return the lines of the page, and whether it shows the last ones of them.

    Those are the last lines where an execution failed or still runs, as the news are at its end; the first ones of
    others; and without a script, those that a link of the page asks for.
    """
    outputs, query = page.service.outputs, page.query
    last = execution.status is not Status.SUCCEEDED
    look = await outputs.look(execution, MAX_SHOWN, last=last)
    around, before, after = (spot_of(query.get(name)) for name in ("around", "before", "after"))
    if around is None and before is None and after is None:
        return look, last
    window = await outputs.window(
        page.principal, execution.id, limit=MAX_SHOWN, after=around or after, before=around or before
    )
    return evolve(look, window=window), before is not None


async def _matches(page: Visit, sought: str) -> Matches | None:
    """Return the lines with a text that a reader without script searches."""
    if not sought:
        return None
    return await page.service.outputs.search(page.principal, page.path["id"], sought[:MAX_SEARCHED])


async def _shown(page: Visit, data: bytes) -> Shown:
    return await page.service.checks.sized(len(data), partial(shown, data))


def _error(failure: Failure) -> dict[str, Any]:
    """Return the texts of a failure, with nothing hidden in them; of its traceback, its parts."""
    traceback = failure.traceback or ""
    cut = len(traceback) - _MAX_TRACEBACK
    return {
        "kind": failure.kind.value,
        "type": visible(failure.type or ""),
        "message": visible(failure.message),
        "traceback": _linked(visible(traceback[-_MAX_TRACEBACK:] if cut > 0 else traceback)),
    }


def _linked(traceback: str) -> list[tuple[str, str, str]]:
    """Return the parts of a traceback, each with the path and the number of the line that it names, else with ""."""
    parts: list[tuple[str, str, str]] = []
    at = 0
    for found in _SOURCE_LINE.finditer(traceback):
        if not _ELSEWHERE.search(found["path"]):
            parts += [(traceback[at : found.start()], "", ""), (found[0], found["path"], found["line"])]
            at = found.end()
    return [part for part in (*parts, (traceback[at:], "", "")) if part[0]]


def _phases(t: Words, execution: Execution) -> Any:
    timings, begun = execution.timings, execution.started_at
    running = execution.status is Status.RUNNING and begun is not None
    run = time.time() - (begun or 0.0) if running else timings.run
    parts = (
        (t("queue"), "queue", timings.queue),
        (t("build"), "build", timings.build),
        (t("start"), "start", timings.start),
        (t("import"), "import", timings.load),
        (t("run"), "run", run),
    )
    return drawing.share(
        t("Phases"),
        [drawing.Part(name, look, value, as_duration(value)) for name, look, value in parts if value > 0.0005],
    )


VIEWS = (show,)
