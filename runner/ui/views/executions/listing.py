"""The list of executions, newest first."""

from __future__ import annotations

import re
from typing import Any, Final

from actors.history import Page
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from runner.auth import Scope
from runner.ui.views.executions.filters import Filters, read_filters, refused
from runner.ui.visit import Reply, Visit, view

_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_STATES: Final = (Status.RUNNING, Status.QUEUED, Status.SCHEDULED, Status.FAILED, Status.SUCCEEDED, Status.CANCELLED)


@view("GET", "/executions", scope=Scope.EXECUTIONS_READ)
async def show(page: Visit) -> Reply:
    """List executions. A text that is the ID of one leads to it."""
    filters = read_filters(page)
    if _ID.fullmatch(filters["text"].lower()):
        return page.redirect(f"/executions/{filters['text'].lower()}")
    try:
        found = await page.service.list(page.principal, filters.query)
    except RunnerError as problem:
        filters, found = refused(filters, problem), Page(())
    return page.render("executions.html", status=400 if filters.problems else 200, **_values(page, filters, found))


def _values(page: Visit, filters: Filters, found: Page) -> dict[str, Any]:
    """Return the values of the templates."""
    searched = found.next_cursor is not None and len(found.items) < filters.query.limit
    return {
        "filters": filters,
        "found": found,
        "searched": searched,
        "first": filters.query.cursor is None,
        "states": _STATES,
        "kinds": tuple(ErrorKind),
        "many": bool(filters.texts) and not filters.problems and page.may(Scope.EXECUTIONS_RUN),
    }


VIEWS = (show,)
