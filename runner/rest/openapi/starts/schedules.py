"""The operations on schedules: list, show, create, change, delete, pause, resume, fire, next instants."""

from __future__ import annotations

from typing import Annotated, Final, TypedDict

from msgspec import Meta

from config.timing import Misfire, Overlap
from protocol.errors import ErrorKind
from protocol.views import ListedExecution
from runner.api import MAX_NEXT, ShownSchedule
from runner.auth import Scope
from runner.rest.openapi.operation import JSON, Header, Operation, Response
from runner.rest.openapi.parameters import CURSOR, LIMIT, Parameter, path_name, text, whole


class SchedulePage(TypedDict):
    """Schedules by their identifiers."""

    items: list[ShownSchedule]
    cursor: Annotated[str | None, Meta(description="An identifier, for the next page; null on the last page.")]


class Instant(TypedDict):
    """One instant of a schedule."""

    at: Annotated[float, Meta(description="Seconds since 1970.")]
    local: Annotated[str, Meta(description="In the time zone of the schedule, with its offset.")]


class Instants(TypedDict):
    """The next instants of a schedule."""

    timezone: str
    items: list[Instant]


_SPAN: Final = {"anyOf": [{"type": "string", "pattern": "^[1-9][0-9]{0,5}(s|m|h|d)$"}, {"type": "number"}]}
_FIELDS: Final = {
    "cron": {"type": "string", "maxLength": 200, "examples": ["30 3 * * mon-fri", "@daily"]},
    "every": {**_SPAN, "description": "From 1 second to 366 days; its multiples since 1970-01-01T00:00Z."},
    "at": {"type": "string", "examples": ["2027-01-31T09:30:00Z"]},
    "timezone": {"type": "string", "default": "UTC", "examples": ["Asia/Seoul"]},
    "input": {"description": "The input of each execution, at most 64 KiB. Default: null."},
    "overlap": {"type": "string", "enum": [str(each) for each in Overlap], "default": "skip"},
    "misfire": {"type": "string", "enum": [str(each) for each in Misfire], "default": "skip"},
    "jitter": {**_SPAN, "default": 0},
}
_MODULE: Final = {
    "module": {"type": "string", "minLength": 1},
    "version": {"type": ["string", "null"], "minLength": 1, "description": "Default: the version active at the time."},
}
_NAME: Final = {
    "name": {
        "type": "string",
        "maxLength": 64,
        "pattern": "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        "description": "Its identifier. Default: one that derives from module, time and input.",
    }
}
_ORDER: Final = {
    "type": "object",
    "properties": {**_NAME, **_MODULE, **_FIELDS},
    "required": ["module"],
    "oneOf": [{"required": [form]} for form in ("cron", "every", "at")],
    "additionalProperties": False,
}
_CHANGES: Final = {
    "type": "object",
    "properties": {**_MODULE, **_FIELDS},
    "minProperties": 1,
    "additionalProperties": False,
}
_ID: Final = path_name("id", "The identifier of a schedule.")
_ONE: Final = {JSON: ShownSchedule}

LIST: Final = Operation(
    "GET",
    "/schedules",
    "listSchedules",
    "List schedules",
    (Response(200, "A page.", {JSON: SchedulePage}),),
    Scope.SCHEDULES_READ,
    parameters=(Parameter("module", "Only those of this module.", text()), LIMIT, CURSOR),
    text="Those of modules and those of the API.",
    tag="schedules",
)
CREATE: Final = Operation(
    "POST",
    "/schedules",
    "createSchedule",
    "Create a schedule",
    (Response(201, "The schedule.", _ONE, headers=(Header("Location", "Its address."),)),),
    Scope.SCHEDULES_WRITE,
    body={JSON: _ORDER},
    body_required=True,
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.TOO_LARGE, ErrorKind.OVERLOADED),
    text="The module of a schedule must be allowed by the token, which needs no `executions:run` for it.",
    tag="schedules",
)
SHOW: Final = Operation(
    "GET",
    "/schedules/{id}",
    "getSchedule",
    "Show a schedule",
    (Response(200, "The schedule.", _ONE),),
    Scope.SCHEDULES_READ,
    parameters=(_ID,),
    refused=(ErrorKind.NOT_FOUND,),
    tag="schedules",
)
CHANGE: Final = Operation(
    "PATCH",
    "/schedules/{id}",
    "changeSchedule",
    "Change a schedule",
    (Response(200, "The schedule.", _ONE),),
    Scope.SCHEDULES_WRITE,
    parameters=(_ID,),
    body={JSON: _CHANGES},
    body_required=True,
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.TOO_LARGE, ErrorKind.OVERLOADED),
    text="With other times it begins anew. A schedule of a module is changed in the module.",
    tag="schedules",
)
DELETE: Final = Operation(
    "DELETE",
    "/schedules/{id}",
    "deleteSchedule",
    "Delete a schedule",
    (Response(204, "It is deleted; its executions stay."),),
    Scope.SCHEDULES_WRITE,
    parameters=(_ID,),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    tag="schedules",
)
PAUSE: Final = Operation(
    "POST",
    "/schedules/{id}/pause",
    "pauseSchedule",
    "Pause a schedule",
    (Response(200, "The schedule.", _ONE),),
    Scope.SCHEDULES_WRITE,
    parameters=(_ID,),
    refused=(ErrorKind.NOT_FOUND,),
    tag="schedules",
)
RESUME: Final = Operation(
    "POST",
    "/schedules/{id}/resume",
    "resumeSchedule",
    "Resume a schedule",
    (Response(200, "The schedule. Times that passed while it was paused do not run.", _ONE),),
    Scope.SCHEDULES_WRITE,
    parameters=(_ID,),
    refused=(ErrorKind.NOT_FOUND,),
    tag="schedules",
)
FIRE: Final = Operation(
    "POST",
    "/schedules/{id}/fire",
    "fireSchedule",
    "Run a schedule now",
    (Response(202, "The accepted execution.", {JSON: ListedExecution}, headers=(Header("Location", "Its address."),)),),
    Scope.SCHEDULES_WRITE,
    parameters=(_ID,),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.OVERLOADED, ErrorKind.SHUTDOWN),
    text="Besides its times, even while it is paused or another of its executions runs.",
    tag="schedules",
)
NEXT: Final = Operation(
    "GET",
    "/schedules/{id}/next",
    "listInstants",
    "Show the next times of a schedule",
    (Response(200, "In order, without jitter.", {JSON: Instants}),),
    Scope.SCHEDULES_READ,
    parameters=(_ID, Parameter("count", "How many at most.", whole(1, MAX_NEXT, 10))),
    refused=(ErrorKind.NOT_FOUND,),
    tag="schedules",
)

SCHEDULES: Final = (LIST, CREATE, SHOW, CHANGE, DELETE, PAUSE, RESUME, FIRE, NEXT)
