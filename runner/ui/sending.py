"""Sending answers and static files over ASGI."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Final

from attrs import evolve

from protocol.errors import ErrorKind
from runner.api import failure_of
from runner.http import Message, Send, respond
from runner.ui.looks import Assets
from runner.ui.refusals import FAILED, problem_page
from runner.ui.visit import HTML, Answer, Headers, Reply, Stream, Visit

_SMALL: Final = 4096
"""Bytes of a page that is sent as it is: it fits into few packets."""
_LARGE: Final = 1 << 20
_LEVEL: Final = 3
"""Less than a millisecond for the page of a long list, which becomes an eighth."""
_KEPT: Final = (b"cache-control", b"public, max-age=31536000, immutable")


def fields_of(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by name; repeated ones are joined."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        joint = b"; " if name == b"cookie" else b", "
        fields[name] = fields[name] + joint + value if name in fields else value
    return fields


def packed(page: Visit, answer: Answer) -> Answer:
    """Return a page compressed, where it is large and the browser takes that.

    No other site can have pages with a guess in them sent and compare their sizes: its requests carry no session.
    """
    if not isinstance(answer, Reply) or answer.content_type != HTML or not _SMALL < len(answer.body) < _LARGE:
        return answer
    if b"gzip" not in page.fields.get(b"accept-encoding", b"").lower():
        return answer
    small = gzip.compress(answer.body, _LEVEL, mtime=0)
    return evolve(answer, body=small, headers=(*answer.headers, ("content-encoding", "gzip")))


async def transmit(page: Visit, answer: Answer, headers: Headers, send: Send) -> None:
    """Send what a raw view returned."""
    if isinstance(answer, Reply):
        await respond(send, answer.status, answer.body, _raw(headers), answer.content_type.encode())
    else:
        await _stream(page, answer, headers, send)


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]


async def _stream(page: Visit, stream: Stream, headers: Headers, send: Send) -> None:
    """Send a stream, no longer than the session of its reader."""
    about = [(b"content-type", stream.content_type.encode()), (b"x-accel-buffering", b"no"), *_raw(headers)]
    if stream.size is not None:
        about.append((b"content-length", b"%d" % stream.size))
    begun = False

    async def write(data: bytes) -> None:
        nonlocal begun
        if not begun:
            begun = True
            await send({"type": "http.response.start", "status": 200, "headers": about})
        if data:
            await send({"type": "http.response.body", "body": data, "more_body": True})

    last = b""
    try:
        if page.scope["method"] != "HEAD":  # which asks for the head only
            with page.lasting():
                await stream.run(write)
        await write(b"")
    except Exception as found:
        failure = failure_of(found, FAILED, path=page.scope["path"])
        if not begun:
            await transmit(page, problem_page(page, failure), headers, send)
            return
        if stream.failed is not None:
            last = stream.failed(failure)
        elif stream.size is not None or failure.kind is not ErrorKind.UNAUTHENTICATED:
            raise
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def send_asset(assets: Assets, path: str, scope: Message, send: Send) -> None:
    """Send a static file, which browsers keep for good: another content has another address."""
    digest, _, name = path.removeprefix("/ui/static/").partition("/")
    asset = assets.by_name.get(name) if digest == assets.digest else None
    if asset is None:
        await respond(send, 404, b"there is no such file\n", content_type=b"text/plain")
        return
    headers = [_KEPT, (b"x-content-type-options", b"nosniff"), (b"vary", b"accept-encoding")]
    accepted = fields_of(scope["headers"]).get(b"accept-encoding", b"").lower()
    body = asset.content
    if asset.small is not None and b"gzip" in accepted:
        body = asset.small
        headers.append((b"content-encoding", b"gzip"))
    await respond(send, 200, body, headers, asset.type.encode())
