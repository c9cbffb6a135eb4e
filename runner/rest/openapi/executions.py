"""The operations on executions: run, submit, list, show, follow, cancel, count."""

from __future__ import annotations

from typing import Final

from protocol import views
from protocol.errors import PROBLEM, ErrorKind
from protocol.events import Event
from protocol.model import Status, Stream
from runner.api import MAX_PARALLELISM
from runner.auth import Scope
from runner.http import WEBSOCKET
from runner.inputs import ANY, FORM, URLENCODED
from runner.rest.openapi import shapes
from runner.rest.openapi.operation import ENDED, EVENTS, JSON, Header, Operation, Response
from runner.rest.openapi.parameters import (
    CURSOR,
    EXECUTION,
    FROM,
    KEY,
    LAST_EVENT,
    LIMIT,
    MODULE,
    PREFER,
    SECONDS,
    SINCE,
    SPAN,
    TERMS,
    TIMEOUT,
    UNTIL,
    VERSION,
    Parameter,
    choice,
    flag,
    text,
    whole,
    word,
)

LINES: Final = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
"""Content types of JSON lines."""
EXECUTION_ID: Final = Header("X-Execution-Id", "The ID of the execution.")
_LOCATION: Final = Header("Location", "The path of the execution.")
_TEXT: Final = {"type": "string"}

_WHOLE: Final = {JSON: views.Execution}
_RECORD: Final = {JSON: views.RecordedExecution}
_ACCEPTED: Final = Response(
    202,
    "The execution was accepted, and runs when its turn comes.",
    {JSON: views.ListedExecution},
    (_LOCATION, EXECUTION_ID),
)
_BEGINNING: Final = (
    ErrorKind.NOT_FOUND,
    ErrorKind.CONFLICT,
    ErrorKind.TOO_LARGE,
    ErrorKind.OVERLOADED,
    ErrorKind.SHUTDOWN,
)
_BINARY: Final = {"type": "string", "format": "binary"}
_CONTENT: Final = {JSON: {}, ANY: _BINARY}
_FORM: Final = {"type": "object", "propertyNames": {"minLength": 1}}
_OTHER_BODIES: Final = {FORM: _FORM, URLENCODED: _FORM, ANY: {}}
_EVENTS_TEXT: Final = (
    "Events are numbered. The stream replays past events from the number asked for, then continues live; each event "
    "comes once, in order."
)
_SOCKET: Final = (
    Response(101, "The websocket is open."),
    Response(426, "The request is not a websocket handshake.", {PROBLEM: shapes.Problem}),
)
_SOCKET_TEXT: Final = (
    "A websocket with text messages of JSON. After the last message it is closed with code 1000. Browsers send their "
    "token as the subprotocol `operato.bearer.TOKEN`. "
)

EXECUTE: Final = Operation(
    "POST",
    "/modules/execute/{name}",
    "execute",
    "Run a module and wait for the end",
    (
        Response(
            200,
            "The execution succeeded. With `Prefer: respond-async` and a known key: it has ended.",
            {**_WHOLE, ANY: _BINARY},
            (EXECUTION_ID,),
        ),
        _ACCEPTED,
    ),
    Scope.EXECUTIONS_RUN,
    parameters=(MODULE, VERSION, *TERMS, TIMEOUT, KEY, PREFER),
    body={JSON: {}, **_OTHER_BODIES},
    body_text="The input of the handler; an empty body is null. Fields of a form become the fields of the input by its "
    "schema; files are stored, and the handler gets them. Any other type is taken as it is by handlers of text, bytes, "
    "a file or a request.",
    refused=(*_BEGINNING, ErrorKind.OUT_OF_STORAGE),
    ended=ENDED,
    text="A client that disconnects cancels its call, unless the call has a key. If the header `Accept` allows no JSON "
    "and the result is a file or a response, the answer is that content alone.",
)
BATCH: Final = Operation(
    "POST",
    "/modules/execute/{name}/batch",
    "executeBatch",
    "Run a module on many inputs",
    (Response(200, "One line for each input, in the order in which they end.", {LINES[0]: _TEXT}),),
    Scope.EXECUTIONS_RUN,
    parameters=(
        MODULE,
        VERSION,
        Parameter(
            "parallel",
            "How many inputs run at a time. Default: the `concurrency` of the module.",
            whole(1, MAX_PARALLELISM),
        ),
        TIMEOUT,
    ),
    body={JSON: {"type": "array"}, **dict.fromkeys(LINES, _TEXT)},
    body_text="An array, or JSON lines, which run while they arrive: read the answer while you send.",
    refused=(ErrorKind.NOT_FOUND, ErrorKind.TOO_LARGE, ErrorKind.OVERLOADED, ErrorKind.SHUTDOWN),
    text="A line holds the `index` of its input, counted from 0, and the `Execution`, or a `problem` if it never "
    "began. A line without `index` is the last one, and holds the problem that ended the batch early.",
)
RUN_SOCKET: Final = Operation(
    WEBSOCKET,
    "/modules/stream/{name}",
    "stream",
    "Run a module and follow it",
    _SOCKET,
    Scope.EXECUTIONS_RUN,
    parameters=(MODULE, VERSION, Parameter("timeout", "Time limit of the handler in seconds.", SECONDS)),
    refused=(ErrorKind.NOT_FOUND,),
    text=_SOCKET_TEXT
    + 'Send the input as the first message. The answer is `{"type": "execution", "id": ...}`, then every `Event`. '
    '`{"type": "cancel"}` or a disconnect ends the execution. If it never began, the message is '
    '`{"type": "error", "error": ...}`, and the close code is that of its kind.',
)
SUBMIT: Final = Operation(
    "POST",
    "/executions",
    "submit",
    "Accept an execution that runs when its turn comes",
    (
        Response(200, "The key is known, and its execution has ended.", _RECORD, (_LOCATION, EXECUTION_ID)),
        _ACCEPTED,
    ),
    Scope.EXECUTIONS_RUN,
    parameters=(
        Parameter("module", "The name of the module; the body is its input then, as in a call that waits.", text()),
        VERSION,
        *TERMS,
        TIMEOUT,
        KEY,
    ),
    body={JSON: shapes.Order, **_OTHER_BODIES},
    body_required=True,
    refused=(*_BEGINNING, ErrorKind.OUT_OF_STORAGE),
    text="Accepted executions are recorded and run even after a restart.",
)
_SOUGHT: Final = r"^(?=[\s\S]*\S)[\s\S]{1,200}$"
FILTERS: Final = (
    Parameter("module", "Executions of this module.", text()),
    Parameter("version", "Executions of this version.", text()),
    Parameter("status", "Executions in this state.", choice(Status)),
    Parameter("error", "Executions that ended with this kind of error.", choice(ErrorKind)),
    Parameter("subject", "Executions of this caller.", text()),
    Parameter("schedule", "Executions that this schedule started.", text()),
    Parameter("rerun_of", "Repetitions of the execution with this ID.", text()),
    Parameter("parent", "Executions that the handler of this one called or submitted.", text()),
    Parameter("root", "Executions that this one led to, by calls within calls.", text()),
    Parameter("node", "Executions of this runner of a cluster.", text()),
    Parameter("unresolved", "Failures without a later success in the chain of their repetitions.", flag(default=False)),
    Parameter("text", "Executions with this text in output or error message; case is ignored.", text(_SOUGHT)),
    SINCE,
    UNTIL,
)
"""The filters of a list."""
LIST: Final = Operation(
    "GET",
    "/executions",
    "listExecutions",
    "List executions, newest first",
    (Response(200, "A page, without payloads.", {JSON: shapes.ExecutionPage}),),
    Scope.EXECUTIONS_READ,
    parameters=(*FILTERS, LIMIT, CURSOR),
)
GET: Final = Operation(
    "GET",
    "/executions/{id}",
    "getExecution",
    "Show an execution",
    (Response(200, "Its latest state.", _RECORD),),
    Scope.EXECUTIONS_READ,
    parameters=(EXECUTION,),
    refused=(ErrorKind.NOT_FOUND,),
)
RESULT: Final = Operation(
    "GET",
    "/executions/{id}/result",
    "getResult",
    "Get the result of an execution as it is",
    (
        Response(200, "The result: JSON, the file that it is, or the body of a response.", _CONTENT, (EXECUTION_ID,)),
        Response(206, "A part of the file.", {ANY: _BINARY}, (EXECUTION_ID,)),
        Response(304, "The client has the file."),
        Response(412, "The file has another ETag.", {PROBLEM: shapes.Problem}),
        Response(416, "The range has no byte of the file.", {PROBLEM: shapes.Problem}),
    ),
    Scope.EXECUTIONS_READ,
    parameters=(EXECUTION,),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    text="A file is answered as by `GET /files/{id}`, with ranges and conditions. While the execution has not ended, "
    "the answer is 409; without a result, after a failure or of a module that records summaries, 404.",
)
OUTPUT: Final = Operation(
    "GET",
    "/executions/{id}/output",
    "getOutput",
    "Show the output of an execution",
    (
        Response(
            200,
            "The text of the last attempt, or the output of all attempts with one event on each line.",
            {"text/plain": _TEXT, "application/jsonl": _TEXT},
        ),
    ),
    Scope.EXECUTIONS_READ,
    parameters=(
        EXECUTION,
        Parameter("stream", "One stream. Default: both, in order.", choice(Stream)),
        Parameter("format", "Text, or JSON lines.", word("text", "jsonl", default="text")),
        Parameter(
            "search",
            "Only the first 1000 lines with this text, of all attempts; as JSON lines.",
            text(r"^(?=.*\S)[^\n]{1,200}$"),
        ),
    ),
    refused=(ErrorKind.NOT_FOUND,),
    text="`search` ignores the case of letters and the escape sequences of terminals. Each line of its answer has the "
    "`line` of the kept output, the `seq` of the event in which it begins, `at`, `attempt`, `stream` and `text`.",
)
FOLLOW: Final = Operation(
    "GET",
    "/executions/{id}/events",
    "followEvents",
    "Follow an execution by server-sent events",
    (
        Response(200, "Each `data` is an `Event`, with its `seq` as `id` and its `type` as `event`.", {EVENTS: Event}),
        Response(204, "The client has read the last event already."),
    ),
    Scope.EXECUTIONS_READ,
    parameters=(EXECUTION, FROM, LAST_EVENT),
    refused=(ErrorKind.NOT_FOUND,),
    text=_EVENTS_TEXT,
)
FOLLOW_SOCKET: Final = Operation(
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
CANCEL: Final = Operation(
    "POST",
    "/executions/{id}/cancel",
    "cancelExecution",
    "Cancel an execution",
    (Response(200, "It has ended. An execution that had ended before is unchanged.", _RECORD),),
    Scope.EXECUTIONS_RUN,
    parameters=(EXECUTION,),
    refused=(ErrorKind.NOT_FOUND,),
    text="Without the scope `executions:read`, input, output and result are omitted.",
)
_DECIDING: Final = (ErrorKind.NOT_FOUND, ErrorKind.CONFLICT)
_DECISION: Final = "Nothing, or the reason. `conflict`: it does not wait for approval, or somebody has decided."
APPROVE: Final = Operation(
    "POST",
    "/executions/{id}/approve",
    "approveExecution",
    "Let an execution run that waits for approval",
    (Response(200, "It is approved, and that is recorded.", {JSON: views.ListedExecution}),),
    Scope.EXECUTIONS_APPROVE,
    parameters=(EXECUTION,),
    body={JSON: shapes.Decision},
    body_text=_DECISION,
    refused=_DECIDING,
)
DENY: Final = Operation(
    "POST",
    "/executions/{id}/deny",
    "denyExecution",
    "End an execution that waits for approval",
    (Response(200, "It has ended as `forbidden`, without an attempt.", {JSON: views.ListedExecution}),),
    Scope.EXECUTIONS_APPROVE,
    parameters=(EXECUTION,),
    body={JSON: shapes.Decision},
    body_text=_DECISION,
    refused=_DECIDING,
)
RERUN: Final = Operation(
    "POST",
    "/executions/{id}/rerun",
    "rerunExecution",
    "Repeat an execution that has ended",
    (
        Response(200, "The key is known, and its execution has ended.", _RECORD, (_LOCATION, EXECUTION_ID)),
        _ACCEPTED,
    ),
    Scope.EXECUTIONS_RUN,
    parameters=(EXECUTION, *TERMS, KEY),
    body={JSON: shapes.Repetition},
    body_text="Nothing, for the same version and input.",
    refused=_BEGINNING,
    text="The repetition is an asynchronous execution with `rerun_of`. Input, time limit and priority are the same "
    "where none is given. A version that is gone is refused.",
)
RERUN_ALL: Final = Operation(
    "POST",
    "/executions/rerun",
    "rerunExecutions",
    "Repeat the executions of a list",
    (Response(200, "What became of each.", {JSON: shapes.RepeatedPage}),),
    Scope.EXECUTIONS_RUN,
    parameters=(
        *FILTERS,
        Parameter("dry_run", "Only tell which executions would be repeated.", flag(default=False)),
        LIMIT,
        CURSOR,
    ),
    body={JSON: shapes.Repetitions},
    body_text="Nothing, for the versions that ran.",
    refused=(ErrorKind.TOO_LARGE,),
    text="At least one filter is needed. Of a chain of repetitions only the last one is repeated, and only if it has "
    "ended: so a request that is sent again repeats nothing twice.",
)
CANCEL_ALL: Final = Operation(
    "POST",
    "/executions/cancel",
    "cancelExecutions",
    "Cancel the executions of a list",
    (Response(200, "What became of each.", {JSON: shapes.CancelledPage}),),
    Scope.EXECUTIONS_RUN,
    parameters=(
        *FILTERS,
        Parameter("dry_run", "Only tell which executions would be cancelled.", flag(default=False)),
        LIMIT,
    ),
    text="At least one filter is needed. The answer waits until each has ended. While `more` is true, send the request "
    "again.",
)
STATS: Final = Operation(
    "GET",
    "/modules/{name}/stats",
    "getStats",
    "Count the executions of a module by their end",
    (
        Response(
            200,
            "The executions that ended in the window. The window is widened to whole spans.",
            {JSON: shapes.Stats},
        ),
    ),
    Scope.EXECUTIONS_READ,
    parameters=(
        MODULE,
        SINCE,
        UNTIL,
        Parameter("window", "Instead of `since`: the length of time before `until`, or before now.", SPAN),
    ),
    refused=(ErrorKind.NOT_FOUND,),
)

EXECUTIONS: Final = (
    EXECUTE,
    BATCH,
    RUN_SOCKET,
    SUBMIT,
    LIST,
    GET,
    RESULT,
    OUTPUT,
    FOLLOW,
    FOLLOW_SOCKET,
    CANCEL,
    CANCEL_ALL,
    APPROVE,
    DENY,
    RERUN,
    RERUN_ALL,
    STATS,
)
