"""The input of an endpoint's handler: the request as JSON, in the form that `operato.Request` reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from config.modules import PREFIX
from runner.http import Message

SESSION: Final = b"operato_"
"""The beginning of the names of the server's own cookies, which no handler gets or sets."""
_LEFT_OUT: Final = frozenset({b"authorization", b"proxy-authorization", b"x-api-key"})
"""Headers with the secrets of callers, which would be recorded."""
_OF_THE_CODING: Final = frozenset({b"content-encoding", b"content-length"})
"""Headers that are not true of the content of a compressed body."""


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
