"""Types of ASGI messages and header fields, the head of a response, and the response that refuses a request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from wsgiref.handlers import format_date_time

from protocol.errors import PROBLEM, ErrorKind

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]


def problem_body(status: int, detail: str) -> bytes:
    """Return the RFC 9457 problem for an HTTP status; only 413 stands for an `ErrorKind`."""
    about = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        about |= {"title": "too large", "kind": ErrorKind.TOO_LARGE.value, "field": "$"}
    return json.dumps(about).encode()


def refusal(status: int, detail: str, headers: Headers | None = None, *, head_only: bool = False) -> bytes:
    """Return a whole response with a problem, after which the connection closes."""
    body = problem_body(status, detail)
    fields = [(b"content-type", PROBLEM.encode()), (b"content-length", b"%d" % len(body)), *(headers or ())]
    return response_head(status, fields, b"connection: close\r\n") + (b"" if head_only else body)


def response_head(status: int, headers: Iterable[tuple[bytes, bytes]], more: bytes = b"") -> bytes:
    """Return the head of a response: its line, the date, `headers`, and lines that are ready.

    Raises ValueError for a header that would end its line.
    """
    lines = [b"%b: %b\r\n" % header for header in headers]
    fields = b"".join(lines)
    if fields.count(b"\n") != len(lines) or fields.count(b"\r") != len(lines) or b"\0" in fields:
        raise ValueError("a header of the response has a line end or a NUL")
    return b"%b%b%b%b\r\n" % (_status_line(status), _date(int(time.time())), fields, more)


@lru_cache(maxsize=64)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return f"date: {format_date_time(second)}\r\n".encode("ascii")
