"""Repeating and cancelling the executions that a list finds: always shown first, then done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import evolve

from protocol.errors import ErrorKind, RunnerError, error
from runner.api import ACTIVE, SAME, Again, Cancelled
from runner.auth import Scope
from runner.ui.views.executions.filters import Filters, read_filters
from runner.ui.visit import Reply, Visit, view

_AT_ONCE: Final = 100
"""Executions of one step: all of them are shown before anything is done."""


@view("GET", "/executions/rerun", scope=Scope.EXECUTIONS_RUN)
async def show_rerun(page: Visit) -> Reply:
    """Show which executions would be repeated."""
    return await _rerun(page, dry_run=True)


@view("POST", "/executions/rerun", scope=Scope.EXECUTIONS_RUN)
async def rerun(page: Visit) -> Reply:
    """Repeat them."""
    return await _rerun(page, dry_run=False)


async def _rerun(page: Visit, *, dry_run: bool) -> Reply:
    filters = _filters(page)
    version = ACTIVE if (page.query if dry_run else page.form).get("repeat") == ACTIVE else SAME
    query = evolve(filters.query, limit=_AT_ONCE)
    try:
        found, cursor = await page.service.reruns.many(page.principal, query, version=version, dry_run=dry_run)
    except RunnerError as problem:
        if problem.failure.kind is not ErrorKind.OVERLOADED:
            raise
        return page.render("executions_many.html", status=429, failure=problem.failure, what="rerun", filters=filters)
    return _answer(page, filters, found, what="rerun", cursor=cursor, version=version, done=not dry_run)


@view("GET", "/executions/cancel", scope=Scope.EXECUTIONS_RUN)
async def show_cancel(page: Visit) -> Reply:
    """Show which executions would be cancelled."""
    return await _cancel(page, dry_run=True)


@view("POST", "/executions/cancel", scope=Scope.EXECUTIONS_RUN)
async def cancel(page: Visit) -> Reply:
    """Cancel them, and wait until they have ended."""
    return await _cancel(page, dry_run=False)


async def _cancel(page: Visit, *, dry_run: bool) -> Reply:
    filters = _filters(page)
    query = evolve(filters.query, limit=_AT_ONCE, cursor=None)
    found, more = await page.service.cancels.many(page.principal, query, dry_run=dry_run)
    return _answer(page, filters, found, what="cancel", more=more, done=not dry_run)


def _filters(page: Visit) -> Filters:
    """Return the filters. Raises RunnerError for one that cannot be read: without it, more would be changed."""
    filters = read_filters(page)
    for name, text in filters.problems.items():
        raise error(ErrorKind.BAD_INPUT, text, field=name)
    return filters


def _answer(
    page: Visit,
    filters: Filters,
    found: Sequence[Again | Cancelled],
    *,
    what: str,
    done: bool,
    cursor: str | None = None,
    version: str = SAME,
    more: bool = False,
) -> Reply:
    return page.render(
        "executions_many.html",
        filters=filters,
        found=found,
        what=what,
        done=done,
        cursor=cursor,
        version=version,
        more=more,
        good=sum(each.problem is None for each in found),
        failure=None,
    )


VIEWS = (show_rerun, rerun, show_cancel, cancel)
