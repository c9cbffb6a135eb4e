"""The log of changes: who changed which module, key or schedule."""

from __future__ import annotations

from typing import Any, Final

from actors.registry import Action, Change, ChangesQuery
from config.units import decimal
from protocol.errors import ErrorKind, error
from runner.auth import Scope
from runner.ui.views.operating.filters import PAGE, filters, since, until
from runner.ui.visit import Reply, Visit, view

_DIGEST: Final = 12
"""Characters of a digest that a page shows."""
ACTIONS: Final = {
    Action.REGISTER: "Module registered",
    Action.ACTIVATE: "Version activated",
    Action.DELETE: "Module deleted",
    Action.DELETE_VERSION: "Version deleted",
    Action.PRUNE: "Version deleted, as there were too many",
    Action.FILE_ADD: "Module added in the file",
    Action.FILE_CHANGE: "Module changed in the file",
    Action.FILE_REMOVE: "Module removed from the file",
    Action.KEY_CREATE: "Key made",
    Action.KEY_REVOKE: "Key revoked",
    Action.SCHEDULE_CREATE: "Schedule made",
    Action.SCHEDULE_CHANGE: "Schedule changed",
    Action.SCHEDULE_DELETE: "Schedule deleted",
    Action.SCHEDULE_PAUSE: "Schedule paused",
    Action.SCHEDULE_RESUME: "Schedule resumed",
    Action.EXECUTION_APPROVE: "Execution approved",
    Action.EXECUTION_DENY: "Execution denied",
}
"""The English words of each change."""


@view("GET", "/audit", scope=Scope.ADMIN)
async def show(page: Visit) -> Reply:
    """Show the changes that match, newest first."""
    given = filters(page, "module", "subject", "action", "since", "until")
    query = ChangesQuery(
        module=given["module"] or None,
        subject=given["subject"] or None,
        action=_action(given["action"]),
        since=since(given),
        until=until(given),
        before=_before(page.query.get("cursor", "")),
        modules=page.principal.modules,
        limit=PAGE + 1,
    )
    found = await page.service.management.changes(page.principal, query)
    cursor = str(found[PAGE - 1].id) if len(found) > PAGE else None
    changes = [(change, ACTIONS[change.action], _about(change)) for change in found[:PAGE]]
    return page.render("audit.html", changes=changes, filters=given, actions=ACTIONS, cursor=cursor)


def _action(text: str) -> Action | None:
    if not text:
        return None
    try:
        return Action(text)
    except ValueError:
        found = f"there is no change {text!r:.40}; there are {', '.join(Action)}"
        raise error(ErrorKind.BAD_INPUT, found, field="action") from None


def _before(cursor: str) -> int | None:
    found = decimal(cursor)
    if found is None and cursor:
        raise error(ErrorKind.BAD_INPUT, "the cursor is not known; begin anew", field="cursor")
    return found


def _about(change: Change) -> list[tuple[str, str, float | None]]:
    """Return the details of a change as names and texts, or times."""
    return [_detail(name, value) for name, value in change.detail.items() if value not in (None, "", [])]


def _detail(name: str, value: Any) -> tuple[str, str, float | None]:
    if name.endswith("_at") and isinstance(value, int | float):
        return name, "", float(value)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return name, text[:_DIGEST] if name == "digest" else text, None


VIEWS = (show,)
