"""The input of an endpoint's handler: the request as JSON, in the form that `operato.Request` reads.

A short body that is text is a part of it; another one is a file in the store.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec
import trio
from attrs import frozen

from config.modules import PREFIX
from protocol.errors import ErrorKind, error
from runner.auth import Principal
from runner.http import Message
from runner.inputs import (
    FORM,
    INLINE_BYTES,
    URLENCODED,
    Fields,
    WholeBody,
    is_json,
    read_form,
    read_raw,
    read_urlencoded,
    text_in,
)
from runner.rest.endpoint import Request

OWN_COOKIE: Final = r"(?:__Secure-|__Host-)?operato_"
"""The beginning of the names of the server's own cookies, which no handler gets or sets."""
_OWN_COOKIE: Final = re.compile(OWN_COOKIE.encode(), re.IGNORECASE)
_LEFT_OUT: Final = frozenset({b"authorization", b"proxy-authorization", b"x-api-key"})
"""Headers with the secrets of callers, which would be recorded."""
_OF_THE_CODING: Final = frozenset({b"content-encoding", b"content-length"})
"""Headers that are not true of the content of a compressed body."""


Piece = Callable[[], Awaitable[tuple[bytes, bool]]]


@frozen
class Body:
    """The body of a request, and its fields if it is a form."""

    value: Any = None
    """None if it is empty or a form with files; text, or the JSON of a file."""
    form: Mapping[str, Any] | None = None


async def read_body(request: Request, caller: Principal, *, large: bool) -> Body:
    """Return the body; its files are in the store. Without `large` it is not longer than `max_frame`.

    Raises RunnerError: `bad_input` for a form that cannot be read and if no part of it arrives for `body_timeout`,
    `too_large`, `out_of_storage`. Then nothing is stored.
    """
    media_type = request.header("content-type") or ""
    kind = media_type.partition(";")[0].strip().lower()
    if kind == FORM:
        return Body(form=await _read_form(request, caller, media_type, _patient(request, large=large)))
    if kind == URLENCODED:
        data = await request.body()
        fields = await request.service.checks.whole(_fields, data)
        return Body(text_in(data) if len(data) <= INLINE_BYTES else None, fields)
    return Body(await _read_value(request, caller, media_type, _patient(request, large=large)))


def _fields(data: bytes) -> Mapping[str, Any] | None:
    return None if is_json(data) else read_urlencoded(data, Fields(None, lists=True))


async def _read_form(request: Request, caller: Principal, media_type: str, piece: Piece) -> Mapping[str, Any]:
    service = request.service
    request.stream_body()
    return await read_form(
        media_type,
        piece,
        Fields(None, lists=True),
        partial(service.files.writing, subject=caller.subject),
        budget=service.budget,
        limit=service.settings.server.max_frame_bytes,
    )


async def _read_value(request: Request, caller: Principal, media_type: str, piece: Piece) -> Any:
    if _announces_little(request):
        data = await request.body()
        if (text := text_in(data)) is not None:
            return text or None
        piece = WholeBody(data).piece
    else:
        request.stream_body()
    kind = media_type.partition(";")[0].strip().lower()
    name = f"body{mimetypes.guess_extension(kind) or ''}"
    begin = partial(request.service.files.writing, name, media_type, subject=caller.subject)
    return await read_raw(piece, begin, request.service.budget) or None


def _announces_little(request: Request) -> bool:
    """Return whether the head of a request limits its body to a short one, which needs no care."""
    if request.inflated or b"transfer-encoding" in request.fields:
        return False
    return int(request.fields.get(b"content-length", b"0")) <= INLINE_BYTES


def _patient(request: Request, *, large: bool) -> Piece:
    """Return the reader of a body that may take long, but is not silent."""
    server = request.service.settings.server
    seconds, size = server.body_timeout_seconds, 0

    async def piece() -> tuple[bytes, bool]:
        nonlocal size
        with trio.move_on_after(seconds) as scope:
            data, more = await request.piece()
        if scope.cancelled_caught:
            text = f"no part of the body arrived for {seconds:g} s; the limit is `body_timeout`"
            raise error(ErrorKind.BAD_INPUT, text, field="$")
        size += len(data)
        if size > server.max_frame_bytes and not large:
            text = f"the body is over {server.max_frame_bytes} bytes; without a token the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text, field="$")
        return data, more

    return piece


def request_json(scope: Message, params: Mapping[str, str], body: Body, *, inflated: bool) -> bytes:
    """Return the input for a request. With `inflated`, its body was decoded."""
    client = scope.get("client")
    query = scope["query_string"].decode("latin-1")
    request = {
        "method": scope["method"],
        "path": unquote(scope["raw_path"][len(PREFIX) :].decode("latin-1")),
        "params": params,
        "query": parse_qsl(query, keep_blank_values=True) if query else [],
        "headers": list(_headers(scope["headers"], inflated=inflated)),
        "client": "" if client is None else str(client[0]),
        "body": body.value,
        **({} if body.form is None else {"form": body.form}),
    }
    return msgspec.json.encode({"$request": request})


def _headers(headers: list[tuple[bytes, bytes]], *, inflated: bool) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        if name in _LEFT_OUT or (inflated and name in _OF_THE_CODING):
            continue
        if name == b"cookie" and _OWN_COOKIE.search(value):
            kept = b"; ".join(each.strip() for each in value.split(b";") if not _OWN_COOKIE.match(each.strip()))
            if not kept:
                continue
            yield "cookie", kept.decode("latin-1")
        else:
            yield name.decode("latin-1"), value.decode("latin-1")
