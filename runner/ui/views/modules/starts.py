"""What starts a module besides a call, and who hears of its ends."""

from __future__ import annotations

import shlex
from typing import Any, Final

from actors.starts import NoticeQuery
from config.modules import PREFIX, Auth, EndpointSpec
from runner.api import NoticeVerbs
from runner.auth import Scope
from runner.ui.views.modules.subject import subject_of
from runner.ui.visit import Reply, Visit, view

_SCHEDULES: Final = 100
_NOTICES: Final = 20


@view("GET", "/modules/{name}/starts", scope=Scope.MODULES_READ)
async def show(page: Visit) -> Reply:
    """Show schedules, endpoints with a command for each, and notices."""
    subject = subject_of(page)
    service, name = page.service, subject.name
    schedules = more = None
    if page.may(Scope.SCHEDULES_READ):
        schedules, more = service.schedules.page(page.principal, module=name, limit=_SCHEDULES, cursor="")
    notices = None
    if page.may(Scope.EXECUTIONS_READ):
        query = NoticeQuery(module=name, limit=_NOTICES)
        notices = (await NoticeVerbs.of(service.outbox, service.history).list(page.principal, query)).items
    fields = subject.fields
    return subject.render(
        "module_starts.html",
        "/starts",
        schedules=schedules,
        more=more is not None,
        endpoints=[
            (each, f"{page.base}{PREFIX}{each.path}", command(page, each)) for each in subject.module.spec.endpoints
        ],
        call=_call(page, name),
        recipients=fields["on_end"],
        notices=notices,
    )


def _call(page: Visit, name: str) -> str:
    """Return the command that calls a module over REST."""
    return (
        f"curl -X POST {shlex.quote(f'{page.base}/modules/execute/{name}')} \\\n"
        f"  -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\\n"
        "  -d '{}'"
    )


def command(page: Visit, endpoint: EndpointSpec) -> str:
    """Return the command that calls an endpoint; words in capitals are to be replaced."""
    path = endpoint.path.replace("...", "")
    address = f"{page.base}{PREFIX}" + path.replace("{", "").replace("}", "")
    method: Any = endpoint.methods[0]
    words = ["curl"] if method == "GET" else ["curl", "-X", str(method)]
    line = f"{' '.join(words)} {shlex.quote(address)}"
    if endpoint.auth is Auth.TOKEN:
        line += ' \\\n  -H "Authorization: Bearer $TOKEN"'
    elif endpoint.auth is Auth.KEY:
        line += ' \\\n  -H "X-API-Key: $KEY"'
    if method != "GET":
        line += " \\\n  -H 'Content-Type: application/json' -d '{}'"
    return line


VIEWS = (show,)
