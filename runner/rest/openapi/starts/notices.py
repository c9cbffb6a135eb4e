"""The operations on notices: list, send again."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, TypeAlias, TypedDict

from msgspec import Meta

from actors.outbox import DEAD, DELIVERED, PENDING
from protocol.errors import ErrorKind
from protocol.views import Moment
from runner.auth import Scope
from runner.rest.openapi.operation import JSON, Operation, Response
from runner.rest.openapi.parameters import CURSOR, LIMIT, Parameter, choice, path_name, text


class Notice(TypedDict):
    """A message about an ended execution to one recipient."""

    id: Annotated[str, Meta(description="The `webhook-id` of all attempts.")]
    execution: str
    module: Annotated[str, Meta(description="Of the execution.")]
    target: Annotated[str, Meta(description="Scheme, host and port of the URL, or `module NAME`.")]
    state: Annotated[str, Meta(description="`pending`, `delivered` or `dead`.")]
    attempts: int
    reason: Annotated[str | None, Meta(description="Why the last attempt failed.")]
    created_at: Moment
    due_at: Annotated[float | None, Meta(description="When it is sent next; null when it has ended.")]
    ended_at: float | None


class NoticePage(TypedDict):
    """Notices, newest first."""

    items: list[Notice]
    cursor: Annotated[str | None, Meta(description="Null on the last page.")]


NoticeShape: TypeAlias = Notice
"""The name for other rooms, where a `Notice` is the stored one."""


class State(StrEnum):
    """The states of a notice."""

    PENDING = PENDING
    DELIVERED = DELIVERED
    DEAD = DEAD


LIST: Final = Operation(
    "GET",
    "/notices",
    "listNotices",
    "List notices about ended executions, the newest first",
    (Response(200, "A page.", {JSON: NoticePage}),),
    Scope.EXECUTIONS_READ,
    parameters=(
        Parameter("state", "Only notices in this state.", choice(State)),
        Parameter("module", "Only about executions of this module.", text()),
        Parameter("execution", "Only about this execution.", text()),
        LIMIT,
        CURSOR,
    ),
    text="A page may be short, and has a cursor then.",
    tag="notices",
)
RETRY: Final = Operation(
    "POST",
    "/notices/{id}/retry",
    "retryNotice",
    "Send a notice again that is not delivered",
    (Response(202, "It is sent now, and tried for another day.", {JSON: Notice}),),
    Scope.EXECUTIONS_RUN,
    parameters=(path_name("id", "The identifier of a notice."),),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    tag="notices",
)
NOTICES: Final = (LIST, RETRY)
