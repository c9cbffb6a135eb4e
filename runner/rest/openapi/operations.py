"""Everything that can be asked over REST: one table, of which the routes and the OpenAPI document are made.

A route is registered with its operation, and takes the query parameters that it names. A new route is one `Operation`
here, in `OPERATIONS` too, and a function that serves it.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from config.settings import ServerSettings
from protocol import views
from protocol.errors import ErrorKind
from protocol.events import Event
from protocol.model import Status, Stream
from runner.api import MAX_PARALLELISM
from runner.auth import Scope
from runner.http import WEBSOCKET
from runner.rest.openapi import module_operations as modules
from runner.rest.openapi import shapes
from runner.rest.openapi.operation import (
    ENDED,
    EVENTS,
    JSON,
    PROBLEM,
    Answer,
    Header,
    Operation,
    Parameter,
    choice,
    number,
    text,
)
from runner.rest.openapi.parameters import CURSOR, EXECUTION, FROM, KEY, LIMIT, MODULE, SINCE, TIMEOUT, UNTIL, VERSION

LINES: Final = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
"""Content types of JSON in lines."""
PREFER = Parameter("Prefer", "`respond-async` is answered at once, with 202.", text(), "header")

EXECUTION_ID = Header("X-Execution-Id", "The id of the execution.")
LOCATION = Header("Location", "Where the execution is.")

WHOLE = {JSON: views.Execution}
RECORD = {JSON: views.RecordedExecution}
ACCEPTED = Answer(
    202, "It was accepted, and runs when it is its turn.", {JSON: views.ListedExecution}, (LOCATION, EXECUTION_ID)
)
_EVENTS_TEXT = "Every event has a number; from the one asked for all come once and in order, what was and what comes."
_SOCKET = (
    Answer(101, "The websocket is open."),
    Answer(426, "The request was none for a websocket.", {PROBLEM: shapes.Problem}),
)
_SOCKET_TEXT = (
    "A websocket: text messages of JSON, closed with 1000 behind the end. Browsers show their token as the subprotocol "
    "`operato.bearer.TOKEN`. "
)

EXECUTE = Operation(
    "POST",
    "/modules/execute/{name}",
    "execute",
    "Run a module, and wait for its end",
    (
        Answer(
            200, "It succeeded; or with `Prefer: respond-async` and a known key: it has ended.", WHOLE, (EXECUTION_ID,)
        ),
        ACCEPTED,
    ),
    Scope.EXECUTIONS_RUN,
    parameters=(MODULE, VERSION, TIMEOUT, KEY, PREFER),
    body={JSON: {}},
    body_text="The input of the handler; nothing is null.",
    refused=(
        ErrorKind.NOT_FOUND,
        ErrorKind.CONFLICT,
        ErrorKind.TOO_LARGE,
        ErrorKind.OVERLOADED,
        ErrorKind.SHUTDOWN,
    ),
    ended=ENDED,
    text="A client that closes its connection cancels its call, unless it has a key.",
)
BATCH = Operation(
    "POST",
    "/modules/execute/{name}/batch",
    "executeBatch",
    "Run a module on many inputs",
    (Answer(200, "What becomes of each, one in a line, as they end.", {"application/x-ndjson": text()}),),
    Scope.EXECUTIONS_RUN,
    parameters=(
        MODULE,
        VERSION,
        Parameter(
            "parallel", "So many run at a time; else as many as the module has workers.", number(1, MAX_PARALLELISM)
        ),
        TIMEOUT,
    ),
    body={JSON: {"type": "array"}, **{kind: text() for kind in LINES}},
    body_text="An array, or JSON in lines, which are read as they run: read while you send.",
    refused=(
        ErrorKind.NOT_FOUND,
        ErrorKind.TOO_LARGE,
        ErrorKind.OVERLOADED,
        ErrorKind.SHUTDOWN,
    ),
    text="A line has the `index` of its input, from 0, and the `Execution`, or a `problem` where it never began. One "
    "without `index` is the last, and says what ended the batch early.",
)
RUN_SOCKET = Operation(
    WEBSOCKET,
    "/modules/stream/{name}",
    "stream",
    "Run a module, and follow it",
    _SOCKET,
    Scope.EXECUTIONS_RUN,
    parameters=(MODULE, VERSION, Parameter("timeout", "Seconds that the handler may take.", TIMEOUT.schema)),
    refused=(ErrorKind.NOT_FOUND,),
    text=_SOCKET_TEXT
    + 'The first message is the input. `{"type": "execution", "id": ...}` comes back, then each `Event`. '
    '`{"type": "cancel"}`, or leaving, ends the execution. What never began is `{"type": "error", "error": ...}`, and '
    "a close code of its own.",
)
SUBMIT = Operation(
    "POST",
    "/executions",
    "submit",
    "Accept an execution, and run it when it is its turn",
    (Answer(200, "The key was known, and its execution has ended.", RECORD, (LOCATION, EXECUTION_ID)), ACCEPTED),
    Scope.EXECUTIONS_RUN,
    parameters=(TIMEOUT, KEY),
    body={JSON: shapes.Order},
    body_required=True,
    refused=(
        ErrorKind.NOT_FOUND,
        ErrorKind.CONFLICT,
        ErrorKind.TOO_LARGE,
        ErrorKind.OVERLOADED,
        ErrorKind.SHUTDOWN,
    ),
    text="What was accepted is on record, and runs also after a restart.",
)
LIST = Operation(
    "GET",
    "/executions",
    "listExecutions",
    "List executions, newest first",
    (Answer(200, "A page, without payloads.", {JSON: shapes.ExecutionPage}),),
    Scope.EXECUTIONS_READ,
    parameters=(
        Parameter("module", "Of this module.", text()),
        Parameter("version", "Of this version.", text()),
        Parameter("status", "In this state.", choice(Status)),
        Parameter("error", "That ended with this kind of failure.", choice(ErrorKind)),
        Parameter("subject", "Of this caller.", text()),
        SINCE,
        UNTIL,
        LIMIT,
        CURSOR,
    ),
)
GET = Operation(
    "GET",
    "/executions/{id}",
    "getExecution",
    "Show everything of an execution",
    (Answer(200, "As it is now.", RECORD),),
    Scope.EXECUTIONS_READ,
    parameters=(EXECUTION,),
    refused=(ErrorKind.NOT_FOUND,),
)
OUTPUT = Operation(
    "GET",
    "/executions/{id}/output",
    "getOutput",
    "Show what an execution printed",
    (
        Answer(
            200,
            "Text of the last attempt, or all attempts as one event in a line.",
            {"text/plain": text(), "application/jsonl": text()},
        ),
    ),
    Scope.EXECUTIONS_READ,
    parameters=(
        EXECUTION,
        Parameter("stream", "One stream; without it both, in order.", choice(Stream)),
        Parameter("format", "Text, or JSON lines.", {"type": "string", "enum": ["text", "jsonl"], "default": "text"}),
    ),
    refused=(ErrorKind.NOT_FOUND,),
)
FOLLOW = Operation(
    "GET",
    "/executions/{id}/events",
    "followEvents",
    "Follow an execution by server-sent events",
    (
        Answer(200, "An `Event` in each `data`, its `seq` as `id`, its `type` as `event`.", {EVENTS: Event}),
        Answer(204, "The end was read already."),
    ),
    Scope.EXECUTIONS_READ,
    parameters=(
        EXECUTION,
        FROM,
        Parameter("Last-Event-ID", "The number of the last event that was read.", number(0, 10**18 - 1), "header"),
    ),
    refused=(ErrorKind.NOT_FOUND,),
    text=_EVENTS_TEXT,
)
FOLLOW_SOCKET = Operation(
    WEBSOCKET,
    "/executions/{id}/stream",
    "followStream",
    "Follow an execution by websocket",
    _SOCKET,
    Scope.EXECUTIONS_READ,
    parameters=(EXECUTION, FROM),
    refused=(ErrorKind.NOT_FOUND,),
    text=f"{_SOCKET_TEXT}Each message is one `Event`. {_EVENTS_TEXT}",
)
CANCEL = Operation(
    "POST",
    "/executions/{id}/cancel",
    "cancelExecution",
    "End an execution",
    (Answer(200, "It has ended; one that had is left as it is.", RECORD),),
    Scope.EXECUTIONS_RUN,
    parameters=(EXECUTION,),
    refused=(ErrorKind.NOT_FOUND,),
    text="Whoever may not read executions is not shown what it was given, printed and returned.",
)
STATS = Operation(
    "GET",
    "/modules/{name}/stats",
    "getStats",
    "Show how the executions of a module ended",
    (Answer(200, "Those that ended in the window, which is widened to whole spans.", {JSON: shapes.Stats}),),
    Scope.EXECUTIONS_READ,
    parameters=(
        MODULE,
        SINCE,
        UNTIL,
        Parameter(
            "window", "Instead of `since`: so long before `until`, or before now.", text("^[0-9]{1,4}(s|m|h|d)$")
        ),
    ),
    refused=(ErrorKind.NOT_FOUND,),
)
ENVIRONMENTS = Operation(
    "GET",
    "/environments",
    "listEnvironments",
    "Show the kinds of environment, what holds their limits, and their workers",
    (Answer(200, "All kinds.", {JSON: shapes.Environments}),),
    Scope.MODULES_READ,
    tag="server",
)
HEALTH = Operation(
    "GET",
    "/healthz",
    "getHealth",
    "Ask whether the process answers",
    (Answer(200, "It does.", {JSON: shapes.Healthy}),),
    tag="server",
)
READINESS = Operation(
    "GET",
    "/readyz",
    "getReadiness",
    "Ask whether new work is accepted",
    (Answer(200, "It is.", {JSON: shapes.Ready}),),
    refused=(ErrorKind.SHUTDOWN,),
    tag="server",
)
METRICS = Operation(
    "GET",
    "/metrics",
    "getMetrics",
    "Show what the runner counts",
    (Answer(200, "For Prometheus.", {"text/plain": text(), "application/openmetrics-text": text()}),),
    Scope.METRICS_READ,
    tag="server",
)
DOCUMENT = Operation(
    "GET",
    "/openapi.json",
    "getDocument",
    "Show this document",
    (Answer(200, "OpenAPI 3.1.", {JSON: {"type": "object"}}),),
    token=True,
    text="A token that may run and read modules is shown each of its modules as a path of its own.",
    tag="server",
)
DOCS = Operation(
    "GET",
    "/docs",
    "getDocs",
    "Show this document as a page",
    (Answer(200, "A page that needs nothing else.", {"text/html": text()}),),
    tag="server",
)

OPERATIONS: Final[tuple[Operation, ...]] = (
    *(EXECUTE, BATCH, RUN_SOCKET, SUBMIT, LIST, GET, OUTPUT, FOLLOW, FOLLOW_SOCKET, CANCEL, STATS),
    *(modules.LIST, modules.REGISTER, modules.UPLOAD, modules.TEMPLATE),
    *(modules.SHOW, modules.PUT, modules.PATCH, modules.DELETE),
    *(modules.VERSIONS, modules.SHOW_VERSION, modules.DELETE_VERSION, modules.ACTIVATE),
    *(modules.PREPARE, modules.AUDIT),
    *(ENVIRONMENTS, HEALTH, READINESS, METRICS, DOCUMENT, DOCS),
)
"""In the order in which they are shown."""


def served(settings: ServerSettings) -> tuple[Operation, ...]:
    """Return the operations that these settings have: metrics may be open, or closed to all."""
    metrics = evolve(METRICS, scope=None, token=False) if settings.metrics == "open" else METRICS
    shown = (metrics if operation is METRICS else operation for operation in OPERATIONS)
    return tuple(operation for operation in shown if operation is not METRICS or settings.metrics != "off")
