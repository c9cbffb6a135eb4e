"""The forms of one execution: cancel it, approve or deny it, repeat it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from protocol.errors import ErrorKind, RunnerError
from runner.api import ACTIVE, SAME
from runner.auth import Principal, Scope
from runner.status import CODES
from runner.ui.views.executions.page import shown_page
from runner.ui.visit import Reply, Visit, view


@view("POST", "/executions/{id}/cancel", scope=Scope.EXECUTIONS_RUN)
async def cancel(page: Visit) -> Reply:
    """Cancel an execution, and show it when it has ended."""
    name = page.path["id"]
    await page.service.cancel(page.principal, name)
    return page.redirect(f"/executions/{name}")


@view("POST", "/executions/{id}/approve", scope=Scope.EXECUTIONS_APPROVE)
async def approve(page: Visit) -> Reply:
    """Approve an execution, and show it."""
    return await _decided(page, page.service.decisions.approve)


@view("POST", "/executions/{id}/deny", scope=Scope.EXECUTIONS_APPROVE)
async def deny(page: Visit) -> Reply:
    """Deny an execution, and show it."""
    return await _decided(page, page.service.decisions.deny)


async def _decided(page: Visit, decide: Callable[[Principal, str, str], Awaitable[object]]) -> Reply:
    name = page.path["id"]
    try:
        await decide(page.principal, name, page.form.get("reason", ""))
    except RunnerError as problem:
        failure = problem.failure
        if failure.kind is not ErrorKind.CONFLICT or not page.may(Scope.EXECUTIONS_READ):
            raise
        return await shown_page(page, failure=failure, status=CODES[failure.kind].http)
    return page.redirect(f"/executions/{name}")


@view("POST", "/executions/{id}/rerun", scope=Scope.EXECUTIONS_RUN)
async def rerun(page: Visit) -> Reply:
    """Repeat an execution, with the same input or another one, and show the repetition."""
    version = page.form.get("version") or SAME
    typed = page.form.get("input")
    data = None if typed is None else typed.strip().encode()
    try:
        made = await page.service.reruns.one(
            page.principal, page.path["id"], version=ACTIVE if version == ACTIVE else SAME, data=data
        )
    except RunnerError as problem:
        failure = problem.failure
        refusable = failure.kind in (ErrorKind.BAD_INPUT, ErrorKind.CONFLICT) or failure.field == "version"
        if not refusable or not page.may(Scope.EXECUTIONS_READ):
            raise
        values = {"version": version, "input": typed}
        return await shown_page(page, failure=failure, typed=values, status=CODES[failure.kind].http)
    return page.redirect(f"/executions/{made.id}")


VIEWS = (cancel, approve, deny, rerun)
