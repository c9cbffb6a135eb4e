"""What the routes that quart serves share: parameters in, JSON and problems out."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from quart import Quart, Request, Response, request
from werkzeug.exceptions import HTTPException

from protocol.errors import ErrorKind, Failure, error
from protocol.pages import DEFAULT_PAGE, MAX_PAGE
from runner.rest.openapi import PROBLEM, Operation, Problem
from runner.rest.render import failure_headers, problem_json, problem_status

E = TypeVar("E", bound=StrEnum)
H = TypeVar("H", bound=Callable[..., Awaitable[Response]])


def serves(app: Quart, operation: Operation) -> Callable[[H], H]:
    """Return the decorator of the function that serves an operation."""
    return app.route(operation.rule, methods=[operation.method])


def arguments(operation: Operation) -> dict[str, str]:
    """Return the query parameters. Raises RunnerError `bad_input` for one that the operation does not have."""
    allowed = operation.query
    for name in request.args:
        if name not in allowed:
            text = f"unknown parameter {name!r}; allowed: {', '.join(allowed) or 'none'}"
            raise error(ErrorKind.BAD_INPUT, text, field=name)
    return dict(request.args.items())


def one_of(kind: type[E], name: str, value: str | None) -> E | None:
    """Return a parameter that is one of a closed set. Raises RunnerError `bad_input`."""
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError:
        text = f"{name} {value!r:.80} is not one of {', '.join(kind)}"
        raise error(ErrorKind.BAD_INPUT, text, field=name) from None


def flag(name: str, value: str | None) -> bool | None:
    """Return a parameter that is true or false, None when it is not there. Raises RunnerError `bad_input`."""
    if value is None:
        return None
    if value not in ("true", "false"):
        raise error(ErrorKind.BAD_INPUT, f"{name} is true or false, not {value!r:.80}", field=name)
    return value == "true"


def page_limit(value: str | None) -> int:
    """Return how long a page may be. Raises RunnerError `bad_input`."""
    if value is None:
        return DEFAULT_PAGE
    if not value.isascii() or not value.isdigit() or len(value) > 9 or not 1 <= int(value) <= MAX_PAGE:
        raise error(ErrorKind.BAD_INPUT, f"limit is a number from 1 to {MAX_PAGE}, not {value!r:.80}", field="limit")
    return int(value)


def moment(name: str, value: str | None) -> float | None:
    """Return a time as seconds since the epoch: a number of them, or ISO 8601 with a time zone.

    Raises RunnerError `bad_input`.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            # A `+` that was not escaped arrives as a blank.
            when = datetime.fromisoformat(value.replace(" ", "+") if value.count(" ") == 1 else value)
            seconds = when.timestamp() if when.tzinfo is not None else math.nan
        except ValueError:
            seconds = math.nan
    if not math.isfinite(seconds):
        text = f"{name} is seconds since 1970 or a time like 2026-01-31T09:30:00Z, not {value!r:.80}"
        raise error(ErrorKind.BAD_INPUT, text, field=name)
    return seconds


def seconds_of(name: str, value: str) -> float:
    """Return a time limit in seconds; its range is the service's matter. Raises RunnerError `bad_input`."""
    try:
        return float(value)
    except ValueError:
        text = f"{name} is a number of seconds, not {value!r:.80}"
        raise error(ErrorKind.BAD_INPUT, text, field=name) from None


def json_answer(value: Any, status: int = 200) -> Response:
    """Return an answer; bytes are JSON already."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(body, status, content_type="application/json")


def problem_answer(failure: Failure) -> Response:
    """Return the answer to what never began."""
    response = Response(problem_json(failure), problem_status(failure), content_type=PROBLEM)
    for name, value in failure_headers(failure):
        response.headers[name.decode()] = value.decode()
    return response


def status_problem(status: int, detail: str) -> Response:
    """Return a problem that is of no kind, but of HTTP."""
    body: Problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return Response(msgspec.json.encode(body), status, content_type=PROBLEM)


def framework_problem(problem: HTTPException, at: Request) -> Response:
    """Return what the framework refuses (no such route, wrong method) as the same kind of problem."""
    status = problem.code or 500
    allowed = getattr(problem, "valid_methods", None) or ()
    details = {
        404: f"there is no {at.path}; see the table of routes in the README",
        405: f"{at.method} is not possible at {at.path}; allowed: {', '.join(sorted(allowed))}",
    }
    response = status_problem(status, details.get(status) or problem.description or problem.name)
    for name, value in problem.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response
