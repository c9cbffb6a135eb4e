"""Notices about ended executions: which were delivered, and those that were not, to send again."""

from __future__ import annotations

from typing import Final

from actors.starts import NoticeQuery
from runner.api import NoticeVerbs
from runner.auth import Scope
from runner.ui.views.operating.filters import PAGE, filters
from runner.ui.visit import Reply, Visit, view

STATES: Final = {"pending": "Pending", "delivered": "Delivered", "dead": "Given up"}
"""The English words of each state."""


def _verbs(page: Visit) -> NoticeVerbs:
    return NoticeVerbs.of(page.service.outbox, page.service.history)


@view("GET", "/notices", scope=Scope.EXECUTIONS_READ)
async def show(page: Visit) -> Reply:
    """Show the notices that match, newest first."""
    given = filters(page, "state", "module", "execution")
    query = NoticeQuery(
        state=given["state"] or None,
        module=given["module"] or None,
        execution=given["execution"] or None,
        limit=PAGE,
        cursor=page.query.get("cursor") or None,
    )
    found = await _verbs(page).list(page.principal, query)
    return page.render("notices.html", notices=found.items, filters=given, states=STATES, cursor=found.next_cursor)


@view("POST", "/notices/{id}/retry", scope=Scope.EXECUTIONS_RUN)
async def retry(page: Visit) -> Reply:
    """Send a notice again, and show its list."""
    notice = await _verbs(page).retry(page.principal, page.path["id"])
    return page.redirect("/notices", execution=notice.execution)


VIEWS = (show, retry)
