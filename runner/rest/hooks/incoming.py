"""The input of an endpoint's handler: the request as JSON, in the form that `operato.Request` reads.

A short body that is text is a part of it; another one is a file in the store.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec
import trio

from config.modules import PREFIX
from protocol.errors import ErrorKind, error
from runner.auth import Principal
from runner.http import Message
from runner.rest.endpoint import Request

TEXT_BYTES: Final = 64 * 1024
"""A longer body, and one that is not UTF-8, is a file."""

SESSION: Final = b"operato_"
"""The beginning of the names of the server's own cookies, which no handler gets or sets."""
_LEFT_OUT: Final = frozenset({b"authorization", b"proxy-authorization", b"x-api-key"})
"""Headers with the secrets of callers, which would be recorded."""
_OF_THE_CODING: Final = frozenset({b"content-encoding", b"content-length"})
"""Headers that are not true of the content of a compressed body."""


async def read_body(request: Request, caller: Principal) -> Any:
    """Return the body: None if it is empty, text, or the JSON of a file.

    Raises RunnerError: `bad_input` if no part of it arrives for `body_timeout`, `too_large`, `out_of_storage`.
    """
    piece, more = _patient(request), True
    if _announces_little(request):
        held, more = bytearray(await request.body()), False
    else:
        request.stream_body()
        held = bytearray()
    while more and len(held) <= TEXT_BYTES:
        data, more = await piece()
        held += data
    if not more and len(held) <= TEXT_BYTES and (text := _text(held)) is not None:
        return text or None
    media_type = request.header("content-type") or ""
    kind = media_type.partition(";")[0].strip().lower()
    name = f"body{mimetypes.guess_extension(kind) or ''}"
    async with request.service.files.writing(name, media_type, subject=caller.subject) as writing:
        await writing.write(held)
        del held
        while more:
            data, more = await piece()
            await writing.write(data)
        return {"$file": (await writing.finish()).described}


def _announces_little(request: Request) -> bool:
    """Return whether the head of a request limits its body to a short one, which needs no care."""
    if request.inflated or b"transfer-encoding" in request.fields:
        return False
    return int(request.fields.get(b"content-length", b"0")) <= TEXT_BYTES


def _patient(request: Request) -> Callable[[], Awaitable[tuple[bytes, bool]]]:
    """Return the reader of a body that may be long, but not silent."""
    seconds = request.service.settings.server.body_timeout_seconds

    async def piece() -> tuple[bytes, bool]:
        with trio.move_on_after(seconds):
            return await request.piece()
        text = f"no part of the body arrived for {seconds:g} s; the limit is `body_timeout`"
        raise error(ErrorKind.BAD_INPUT, text, field="$")

    return piece


def _text(data: bytes | bytearray) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def request_json(
    scope: Message, params: Mapping[str, str], body: Any, form: Mapping[str, Any] | None = None, *, inflated: bool
) -> bytes:
    """Return the input for a request: `body` is None, text or the JSON of a file; `form` are its fields, if it is one.

    With `inflated`, the body was decoded.
    """
    client = scope.get("client")
    query = scope["query_string"].decode("latin-1")
    request = {
        "method": scope["method"],
        "path": unquote(scope["raw_path"][len(PREFIX) :].decode("latin-1")),
        "params": params,
        "query": parse_qsl(query, keep_blank_values=True) if query else [],
        "headers": list(_headers(scope["headers"], inflated=inflated)),
        "client": "" if client is None else str(client[0]),
        "body": body,
        **({} if form is None else {"form": form}),
    }
    return msgspec.json.encode({"$request": request})


def _headers(headers: list[tuple[bytes, bytes]], *, inflated: bool) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        if name in _LEFT_OUT or (inflated and name in _OF_THE_CODING):
            continue
        if name == b"cookie" and SESSION in value:
            kept = b"; ".join(each.strip() for each in value.split(b";") if not each.strip().startswith(SESSION))
            if not kept:
                continue
            yield "cookie", kept.decode("latin-1")
        else:
            yield name.decode("latin-1"), value.decode("latin-1")
