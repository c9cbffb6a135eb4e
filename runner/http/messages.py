"""Types of ASGI messages and header fields, and the response that refuses a request."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import Any
from wsgiref.handlers import format_date_time

from protocol.errors import PROBLEM

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]


def problem_body(status: int, detail: str) -> bytes:
    """Return the RFC 9457 problem for an HTTP status that stands for no `ErrorKind`."""
    title = HTTPStatus(status).phrase
    return json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()


def refusal(status: int, detail: str, *, head_only: bool = False) -> bytes:
    """Return a whole response with a problem, after which the connection closes."""
    body = problem_body(status, detail)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ndate: {format_date_time(time.time())}\r\n"
        f"content-type: {PROBLEM}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if head_only else body)
