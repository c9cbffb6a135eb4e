"""`Operation`: the method, path, parameters, scope and answers of one route; `operations.py` has all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from attrs import field, frozen

from protocol.errors import ErrorKind
from runner.auth import Scope
from runner.rest.openapi.parameters import Parameter

JSON: Final = "application/json"
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
"""Kinds that an execution may end with."""


@frozen
class Header:
    """One header of an answer."""

    name: str
    text: str
    schema: Mapping[str, Any] = field(factory=lambda: {"type": "string"})


@frozen
class Response:
    """One answer other than a refusal. `content` maps each content type to a Python type or a JSON Schema."""

    status: int
    text: str
    content: Mapping[str, Any] = field(factory=dict)
    headers: tuple[Header, ...] = ()


@frozen(eq=False)
class Operation:
    """One route: its parameters, the scope it needs, and all of its answers."""

    method: str
    path: str
    """With names in braces."""
    name: str
    summary: str
    answers: tuple[Response, ...]
    scope: Scope | None = None
    """The scope that the token must allow; None: no token is needed."""
    token: bool = field()
    """Whether a token that is sent is verified."""
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] = field(factory=dict)
    """The content of the request, in the form of `Response.content`; empty: no body."""
    body_text: str = ""
    body_required: bool = False
    refused: Collection[ErrorKind] = ()
    """Kinds of refusal, answered as problems, besides those that every operation has."""
    ended: Collection[ErrorKind] = ()
    """Kinds that are answered with the execution that ended with them."""
    text: str = ""
    tag: str = "executions"
    any_query: bool = False
    """Whether the query is ignored, instead of checked: probes may add one."""
    query: Mapping[str, Parameter] = field(init=False)
    """Its query parameters by name."""
    headers: Mapping[bytes, Parameter] = field(init=False)
    """Its header parameters by the name of the header in lower case."""
    defaults: dict[str, Any] = field(init=False)
    """The values of all query and header parameters that a request does not give."""

    @token.default
    def _token(self) -> bool:
        return self.scope is not None

    @query.default
    def _query(self) -> dict[str, Parameter]:
        return {each.name: each for each in self.parameters if each.place == "query"}

    @headers.default
    def _headers(self) -> dict[bytes, Parameter]:
        return {each.name.lower().encode(): each for each in self.parameters if each.place == "header"}

    @defaults.default
    def _defaults(self) -> dict[str, Any]:
        return {each.name: each.default for each in self.parameters if each.place != "path"}

    @property
    def refusals(self) -> tuple[ErrorKind, ...]:
        """All kinds of refusal, in the order of `ErrorKind`. Any answer may be `unavailable` or `internal`."""
        kinds = {ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL, *self.refused}
        if self.token:
            kinds |= {ErrorKind.BAD_INPUT, ErrorKind.UNAUTHENTICATED}
        if self.scope is not None:
            kinds.add(ErrorKind.FORBIDDEN)
        return tuple(kind for kind in ErrorKind if kind in kinds)
