"""The endpoints of notices: list, send again."""

from __future__ import annotations

from typing import Final

from actors.starts import Notice, NoticeQuery
from runner.api import NoticeVerbs
from runner.rest.endpoint import Answer, Request, json_answer, serves
from runner.rest.openapi import NoticeShape


def _verbs(request: Request) -> NoticeVerbs:
    return NoticeVerbs.of(request.service.outbox, request.service.history)


@serves("listNotices")
async def list_notices(request: Request) -> Answer:
    """List notices."""
    query = NoticeQuery(
        state=request["state"],
        module=request["module"],
        execution=request["execution"],
        limit=request["limit"],
        cursor=request["cursor"],
    )
    page = await _verbs(request).list(request.principal, query)
    return json_answer({"items": [notice_json(each) for each in page.items], "cursor": page.next_cursor})


@serves("retryNotice")
async def retry(request: Request) -> Answer:
    """Send a notice again."""
    found = await _verbs(request).retry(request.principal, request["id"])
    return json_answer(notice_json(found), 202)


def notice_json(notice: Notice) -> NoticeShape:
    """Return a notice as lists show it."""
    pending = notice.ended_at is None
    return {
        "id": notice.id,
        "execution": notice.execution,
        "module": notice.module,
        "target": notice.target,
        "state": notice.state,
        "attempts": notice.attempts,
        "reason": notice.reason,
        "created_at": round(notice.created_at, 3),
        "due_at": round(notice.due_at, 3) if pending else None,
        "ended_at": None if notice.ended_at is None else round(notice.ended_at, 3),
    }


ENDPOINTS: Final = (list_notices, retry)
