"""The page of one execution."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from protocol.errors import Failure
from protocol.model import Execution, Status
from protocol.terminal import visible
from runner.api import ACTIVE, SAME
from runner.auth import Scope
from runner.ui.drawing import Part, share
from runner.ui.live import MAX_SHOWN, key_of, progress_fields, some_of
from runner.ui.looks import formatting
from runner.ui.results import Shown, pretty, shown
from runner.ui.visit import Reply, Visit, view
from runner.ui.words import Words

_MAX_EDITED: Final = 128 * 1024
"""Bytes of an input that is put into the form for the next one."""
_MAX_TRACEBACK: Final = 8_000


@view("GET", "/executions/{id}", scope=Scope.EXECUTIONS_READ)
async def show(page: Visit) -> Reply:
    """Show an execution."""
    return await shown_page(page)


async def shown_page(
    page: Visit, *, failure: Failure | None = None, typed: Mapping[str, str] | None = None, status: int = 200
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
    return page.render("execution.html", status=status, failure=failure, form=form, here="/executions", **values)


async def _values(page: Visit, execution: Execution) -> dict[str, Any]:
    service, ended = page.service, execution.status.final
    given = await _shown(page, execution.input)
    result = None if execution.result is None else await _shown(page, execution.result)
    # Where an execution failed or still runs, the news are at the end.
    last = execution.status is not Status.SUCCEEDED
    look = await service.outputs.look(execution, MAX_SHOWN, last=last)
    lines = some_of(look.window, last=last)
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
        "mistake": None if look.mistake is None else key_of(look.mistake),
        "progress": None if ended or look.progress is None else progress_fields(look.progress),
        "error": None if execution.failure is None else _error(execution.failure),
        "attempts": [(each, _error(each.failure)) for each in execution.failed_attempts],
        "follow": execution.status in (Status.RUNNING, Status.QUEUED),
        "may_cancel": may_run and not ended,
        "may_rerun": may_run and ended,
        "editable": editable,
        "versions": (SAME, ACTIVE),
    }


async def _shown(page: Visit, data: bytes) -> Shown:
    return await page.service.checks.sized(len(data), partial(shown, data))


def _error(failure: Failure) -> dict[str, str]:
    """Return the texts of a failure, with nothing hidden in them."""
    traceback = failure.traceback or ""
    cut = len(traceback) - _MAX_TRACEBACK
    return {
        "kind": failure.kind.value,
        "type": visible(failure.type or ""),
        "message": visible(failure.message),
        "traceback": visible(traceback[-_MAX_TRACEBACK:] if cut > 0 else traceback),
    }


def _phases(t: Words, execution: Execution) -> Any:
    timings = execution.timings
    parts = (
        (t("queue"), "queue", timings.queue),
        (t("build"), "build", timings.build),
        (t("start"), "start", timings.start),
        (t("import"), "import", timings.load),
        (t("run"), "run", timings.run),
    )
    return share(t("Phases"), [Part(name, look, value, formatting.duration(value)) for name, look, value in parts])


VIEWS = (show,)
