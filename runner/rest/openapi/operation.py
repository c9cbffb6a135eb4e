"""`Operation`: what one route of the REST door takes, needs and answers; `operations.py` has all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, Final, Literal

from attrs import field, frozen

from protocol.errors import ErrorKind
from runner.auth import Scope

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
EVENTS: Final = "text/event-stream"
NEVER_BEGAN: Final = frozenset(
    {
        ErrorKind.BAD_INPUT,
        ErrorKind.CONFLICT,
        ErrorKind.UNAUTHENTICATED,
        ErrorKind.FORBIDDEN,
        ErrorKind.TOO_LARGE,
    }
)
"""Kinds that no execution ends with."""
ENDED: Final = tuple(kind for kind in ErrorKind if kind not in NEVER_BEGAN)
"""Kinds that one may end with."""


@frozen
class Parameter:
    """One parameter of an operation; `schema` is JSON Schema of its value."""

    name: str
    text: str
    schema: Mapping[str, Any]
    place: Literal["query", "path", "header"] = "query"


def path_name(name: str, text: str) -> Parameter:
    """Return the name in a path."""
    return Parameter(name, text, {"type": "string", "minLength": 1}, "path")


@frozen
class Header:
    """One header of an answer."""

    name: str
    text: str
    schema: Mapping[str, Any] = field(factory=lambda: {"type": "string"})


@frozen
class Answer:
    """An answer that is no refusal. `content` has for each content type a Python type or a JSON Schema."""

    status: int
    text: str
    content: Mapping[str, Any] = field(factory=dict)
    headers: tuple[Header, ...] = ()


@frozen
class Operation:
    """One route: what it takes, what it needs, and everything that it answers with."""

    method: str
    path: str
    """With names in braces."""
    name: str
    summary: str
    answers: tuple[Answer, ...]
    scope: Scope | None = None
    """What the token needs to allow; None where none is needed."""
    token: bool = field()
    """Whether a token is looked at."""
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] = field(factory=dict)
    """As the content of an answer; empty: there is none."""
    body_text: str = ""
    body_required: bool = False
    refused: Collection[ErrorKind] = ()
    """Kinds of refusal, as problems, besides those of every operation."""
    ended: Collection[ErrorKind] = ()
    """Kinds that are answered with the execution that ended so."""
    text: str = ""
    tag: str = "executions"
    query: tuple[str, ...] = field(init=False)
    """The names of the query parameters that it takes."""
    prefix: str = field(init=False)
    """The path before its name."""
    suffix: str = field(init=False)
    """The path behind it."""
    rule: str = field(init=False)
    """The path as quart writes it."""

    @token.default
    def _needed(self) -> bool:
        return self.scope is not None

    @query.default
    def _query(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters if parameter.place == "query")

    @prefix.default
    def _prefix(self) -> str:
        return self.path.partition("{")[0]

    @suffix.default
    def _suffix(self) -> str:
        return self.path.rpartition("}")[2] if "}" in self.path else ""

    @rule.default
    def _rule(self) -> str:
        return self.path.replace("{", "<").replace("}", ">")

    @property
    def refusals(self) -> tuple[ErrorKind, ...]:
        """All kinds of refusal, in the order of `ErrorKind`. Any answer may be `unavailable` or `internal`."""
        kinds = {ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL, *self.refused}
        if self.token:
            kinds |= {ErrorKind.BAD_INPUT, ErrorKind.UNAUTHENTICATED}
        if self.scope is not None:
            kinds.add(ErrorKind.FORBIDDEN)
        return tuple(kind for kind in ErrorKind if kind in kinds)


def text(pattern: str | None = None) -> dict[str, Any]:
    """Return the schema of a string."""
    return {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}


def choice(kind: type[StrEnum]) -> dict[str, Any]:
    """Return the schema of one word of a closed set."""
    return {"type": "string", "enum": [word.value for word in kind]}


def number(low: int, high: int | None = None, default: int | None = None) -> dict[str, Any]:
    """Return the schema of a whole number."""
    bounds = {"minimum": low, "maximum": high, "default": default}
    return {"type": "integer", **{name: value for name, value in bounds.items() if value is not None}}
