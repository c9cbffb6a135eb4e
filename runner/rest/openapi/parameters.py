"""Parameters: what each may be, as JSON Schema for the document and as the reader of its text; and the shared ones.

`Parameter.read` is the only reader of parameters, so the document and the server cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal

from attrs import frozen

from config.units import decimal, duration
from protocol.errors import ErrorKind, error
from protocol.model import MAX_PRIORITY, MIN_PRIORITY
from protocol.views import DEFAULT_PAGE, MAX_PAGE

MAX_EVENT: Final = 10**18 - 1


@frozen
class Value:
    """What a parameter may be."""

    schema: Mapping[str, Any]
    read: Callable[[str], Any]
    """Returns the value of a text; raises ValueError."""
    words: str = "text"
    """Completes `NAME must be ...`."""
    default: Any = None
    """The value of a parameter that is not given."""


@frozen
class Parameter:
    """One parameter of an operation."""

    name: str
    text: str
    value: Value
    place: Literal["query", "path", "header"] = "query"
    most: int = 0
    """How often it may be given, as a list; 0: once, as a single value."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON Schema of its value."""
        schema = self.value.schema
        return {"type": "array", "items": schema, "maxItems": self.most} if self.most else schema

    @property
    def default(self) -> Any:
        """Its value where it is not given."""
        return () if self.most else self.value.default

    def read(self, texts: Sequence[str]) -> Any:
        """Return the value. Raises RunnerError `bad_input` with the name of the parameter and what it must be."""
        if len(texts) > max(self.most, 1):
            times = f"at most {self.most} times" if self.most else "once"
            raise error(
                ErrorKind.BAD_INPUT, f"{self.name} may be given {times}, not {len(texts)} times", field=self.name
            )
        values = tuple(map(self._one, texts))
        return values if self.most else values[0]

    def _one(self, text: str) -> Any:
        try:
            return self.value.read(text)
        except ValueError:
            message = f"{self.name} must be {self.value.words}, not {text!r:.80}"
            raise error(ErrorKind.BAD_INPUT, message, field=self.name) from None


# What a parameter may be


def text(pattern: str | None = None, default: str | None = None) -> Value:
    """Return a value of any text; its pattern is documentation, and is checked by the code that knows its meaning."""
    return Value(
        _with_default({"type": "string"} | ({} if pattern is None else {"pattern": pattern}), default),
        str,
        default=default,
    )


def choice(kind: type[StrEnum], default: StrEnum | None = None) -> Value:
    """Return a value of a closed set."""
    return Value(_with_default(_words(*kind), default), kind, f"one of {', '.join(kind)}", default)


def word(*words: str, default: str) -> Value:
    """Return a value of these words."""

    def read(given: str) -> str:
        if given not in words:
            raise ValueError(given)
        return given

    return Value(_with_default(_words(*words), default), read, f"one of {', '.join(words)}", default)


def flag(*, default: bool) -> Value:
    """Return a value that is true or false."""
    known = {"true": True, "false": False}

    def read(given: str) -> bool:
        if given not in known:
            raise ValueError(given)
        return known[given]

    return Value(_with_default(_words(*known), str(default).lower()), read, "true or false", default)


def whole(low: int, high: int, default: int | None = None, words: str = "") -> Value:
    """Return a value that is a whole number within bounds."""

    def read(given: str) -> int:
        found = decimal(given)
        if found is None or not low <= found <= high:
            raise ValueError(given)
        return found

    schema = _with_default({"type": "integer", "minimum": low, "maximum": high}, default)
    return Value(schema, read, words or f"a whole number from {low} to {high}", default)


def _words(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": [str(word) for word in words]}


def _with_default(schema: dict[str, Any], default: Any) -> dict[str, Any]:
    return schema if default is None else {**schema, "default": default}


def _moment(given: str) -> float:
    """Return seconds since 1970: a number of them, or ISO 8601 with a time zone."""
    try:
        seconds = float(given)
    except ValueError:
        # A `+` that was not escaped arrives as a blank.
        when = datetime.fromisoformat(given.replace(" ", "+") if given.count(" ") == 1 else given)
        seconds = math.nan if when.tzinfo is None else when.timestamp()
    if not math.isfinite(seconds):
        raise ValueError(given)
    return seconds


def _asynchronous(given: str) -> bool:
    """Return whether a `Prefer` header (RFC 7240) asks for an answer that does not wait."""
    return any(part.partition(";")[0].strip() == "respond-async" for part in given.lower().split(","))


MOMENT: Final = Value(
    {"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}], "examples": ["2026-01-31T09:30:00Z"]},
    _moment,
    "seconds since 1970, or a time with its zone, such as 2026-01-31T09:30:00Z",
)
SECONDS: Final = Value({"type": "number", "exclusiveMinimum": 0}, float, "a number of seconds")
SPAN: Final = Value(text("^[0-9]{1,4}(s|m|h|d)$").schema, duration, "a duration, such as 15m, 24h, 7d")
EVENT: Final = whole(0, MAX_EVENT, words="the number of an event")

# Parameters that several operations share


def path_name(name: str, description: str) -> Parameter:
    """Return a name in a path."""
    return Parameter(name, description, Value({"type": "string", "minLength": 1}, str), "path")


MODULE: Final = path_name("name", "The name of a module.")
EXECUTION: Final = path_name("id", "The ID of an execution.")
VERSION: Final = Parameter("version", "A version of the module. Default: the active version.", text())
LIMIT: Final = Parameter("limit", "The maximum number of items on a page.", whole(1, MAX_PAGE, DEFAULT_PAGE))
CURSOR: Final = Parameter("cursor", "The `cursor` of the previous page.", text())
SINCE: Final = Parameter("since", "At or after this time: seconds since 1970, or a time with its zone.", MOMENT)
UNTIL: Final = Parameter("until", "Before this time.", MOMENT)
FROM: Final = Parameter("from", "The number of the first event.", whole(0, MAX_EVENT, 0, EVENT.words))
LAST_EVENT: Final = Parameter("Last-Event-ID", "The number of the last event that the client read.", EVENT, "header")
TIMEOUT: Final = Parameter(
    "X-Timeout", "Time limit of the handler in seconds; it can only shorten the module's own.", SECONDS, "header"
)
KEY: Final = Parameter(
    "Idempotency-Key",
    "A repeated call with the same key and input returns the first execution. A call with a key continues when its "
    "client disconnects.",
    text("^[\\x21-\\x7e]([\\x20-\\x7e]{0,253}[\\x21-\\x7e])?$"),
    "header",
)
PREFER: Final = Parameter(
    "Prefer",
    "`respond-async`: answer 202 at once, without waiting for the end.",
    Value(text().schema, _asynchronous, default=False),
    "header",
)
PRIORITY: Final = Parameter(
    "priority",
    "0 to 9; of the queued executions of a module, the highest runs first. Only for asynchronous calls. Default: 5.",
    whole(MIN_PRIORITY, MAX_PRIORITY),
)
RUN_AT: Final = Parameter(
    "run_at", "When it is queued: seconds since 1970, or a time with its zone. Only for asynchronous calls.", MOMENT
)
DELAY: Final = Parameter(
    "delay",
    "After how long it is queued, such as 90, 15m or 2h; in place of `run_at`.",
    Value(text("^[0-9]{1,4}(ms|s|m|h|d)?$").schema, duration, "a duration, such as 90 (seconds), 15m, 2h, 7d"),
)
TERMS: Final = (PRIORITY, RUN_AT, DELAY)
"""The terms of a submission; in the body of `POST /executions` as well."""
IF_MATCH: Final = Parameter(
    "If-Match",
    "The `ETag` of the module as the client read it, or `*`. If the module has changed, the answer is 412.",
    text('^(\\*|"[!#-~]{1,64}")$'),
    "header",
)
IF_NONE_MATCH: Final = Parameter(
    "If-None-Match", "`*`: if the module exists, the answer is 412.", Value(_words("*"), str), "header"
)
