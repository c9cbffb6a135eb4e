"""Parameters and answers that several operations share."""

from __future__ import annotations

from typing import Final

from protocol.pages import DEFAULT_PAGE, MAX_PAGE
from runner.rest.openapi import shapes
from runner.rest.openapi.operation import PROBLEM, Answer, Header, Parameter, number, path_name, text

_MOMENT: Final = {
    "anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}],
    "examples": ["2026-01-31T09:30:00Z"],
}

MODULE = path_name("name", "The name of a module.")
EXECUTION = path_name("id", "The id of an execution.")
VERSION = Parameter("version", "A version of the module; without it the active one.", text())
LIMIT = Parameter("limit", "How long a page may be.", number(1, MAX_PAGE, DEFAULT_PAGE))
CURSOR = Parameter("cursor", "The `cursor` of the page before.", text())
SINCE = Parameter("since", "Not before this time: seconds since 1970, or a time with its zone.", _MOMENT)
UNTIL = Parameter("until", "Before this time.", _MOMENT)
FROM = Parameter("from", "The number of the first event.", number(0, 10**18 - 1, 0))
TIMEOUT = Parameter(
    "X-Timeout",
    "Seconds that the handler may take; can only shorten.",
    {"type": "number", "exclusiveMinimum": 0},
    "header",
)
KEY = Parameter(
    "Idempotency-Key",
    "Repeated with the same input it means the first execution; such a call goes on when its caller disconnects.",
    text("^[\\x21-\\x7e]([\\x20-\\x7e]{0,253}[\\x21-\\x7e])?$"),
    "header",
)
IF_MATCH = Parameter(
    "If-Match", "The `ETag` of the module as it was read, or `*`: else 412.", text('^(\\*|"[!#-~]{1,64}")$'), "header"
)
IF_NONE_MATCH = Parameter(
    "If-None-Match", "`*`: there must be no such module, else 412.", {"type": "string", "enum": ["*"]}, "header"
)

ETAG = Header("ETag", "The state of the module, for `If-Match`.")
UNMET = Answer(412, "`conflict`: the module is not as the request wants it to be.", {PROBLEM: shapes.Problem})
