"""API keys: make one, whose secret is shown once, and revoke them."""

from __future__ import annotations

import time
from typing import Any, Final

from actors.keys import ApiKey
from protocol.errors import ErrorKind, RunnerError
from runner.api import KeyOrder
from runner.auth import Scope
from runner.ui.refusals import status_of
from runner.ui.views.operating.filters import PAGE
from runner.ui.visit import Reply, Visit, view

_MINE: Final = (ErrorKind.BAD_INPUT, ErrorKind.CONFLICT, ErrorKind.FORBIDDEN, ErrorKind.OVERLOADED)
"""Failures that the form itself can show."""
SCOPES: Final = {
    Scope.EXECUTIONS_RUN: "run modules",
    Scope.EXECUTIONS_READ: "see executions with input, output and result",
    Scope.MODULES_READ: "see modules, environments and workers",
    Scope.MODULES_WRITE: "publish modules",
    Scope.MODULES_ADMIN: "publish modules with endpoints",
    Scope.SCHEDULES_READ: "see schedules",
    Scope.SCHEDULES_WRITE: "make, pause and start schedules",
    Scope.FILES_READ: "read files",
    Scope.FILES_WRITE: "store files",
    Scope.METRICS_READ: "read metrics",
    Scope.ADMIN: "everything, keys and audit included",
}
"""What each scope allows, in English."""


@view("GET", "/keys", scope=Scope.ADMIN)
async def show(page: Visit) -> Reply:
    """Show the keys, newest first, and the form for another one."""
    return await _shown(page)


@view("POST", "/keys", scope=Scope.ADMIN)
async def create(page: Visit) -> Reply:
    """Make a key, and show its secret: the one time that this is possible."""
    given = {name: page.form.get(name, "").strip() for name in ("name", "modules", "expires")}
    scopes = tuple(page.form.getlist("scopes"))
    globs = tuple(given["modules"].replace(",", " ").split())
    order = KeyOrder(given["name"], scopes, globs or None, given["expires"] or None)
    try:
        key, secret = await page.service.keys.create(page.principal, order)
    except RunnerError as problem:
        if problem.failure.kind not in _MINE:
            raise
        wrong = problem.failure
        return await _shown(page, status=status_of(wrong), given=given, chosen=scopes, wrong=wrong)
    return await _shown(page, made=key, secret=secret)


@view("POST", "/keys/{id}/revoke", scope=Scope.ADMIN)
async def revoke(page: Visit) -> Reply:
    """Revoke a key."""
    await page.service.keys.revoke(page.principal, page.path["id"])
    return page.redirect("/keys")


async def _shown(page: Visit, *, status: int = 200, **values: Any) -> Reply:
    found, cursor = await page.service.keys.list(page.principal, limit=PAGE, cursor=page.query.get("cursor", ""))
    scopes = {scope: text for scope, text in SCOPES.items() if page.may(scope)}
    empty = {"name": "", "modules": "", "expires": "90d"}
    about = {"given": empty, "chosen": (), "wrong": None, "made": None, "secret": None, **values}
    return page.render(
        "keys.html", status, keys=[(key, state_of(key)) for key in found], cursor=cursor, scopes=scopes, **about
    )


def state_of(key: ApiKey) -> str:
    """Return `valid`, `revoked` or `expired`."""
    if key.revoked:
        return "revoked"
    return "expired" if key.stored.expires_at is not None and key.stored.expires_at < time.time() else "valid"


VIEWS = (show, create, revoke)
