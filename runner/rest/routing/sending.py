"""Sending what endpoints return: whole answers, streams, downloads, websockets, and their ends after a failure."""

from __future__ import annotations

from typing import Final

from runner.api import failure_of
from runner.http import Message, Receive, Send, respond
from runner.rest.endpoint import Answer, Close, Download, Outcome, Peer, Socket, Stream, problem
from runner.rest.render import failure_event
from runner.status import CODES

SUBPROTOCOL: Final = "operato.bearer."
BROKEN: Final = "a request failed inside the runner"


async def transmit(outcome: Outcome, scope: Message, receive: Receive, send: Send) -> None:
    """Send what an endpoint returned."""
    if isinstance(outcome, Answer):
        if scope["type"] == "websocket":
            await _reject(outcome, send)
        else:
            await respond(send, outcome.status, outcome.body, outcome.headers, outcome.content_type.encode())
    elif isinstance(outcome, Stream):
        await _stream(outcome, scope, receive, send)
    elif isinstance(outcome, Download):
        await _download(outcome, scope, receive, send)
    else:
        await _converse(outcome, scope, receive, send)


async def _reject(answer: Answer, send: Send) -> None:
    """Answer the handshake of a websocket with a usual answer."""
    about = ((b"content-type", answer.content_type.encode()), (b"content-length", b"%d" % len(answer.body)))
    head = {"status": answer.status, "headers": [*about, *answer.headers]}
    await send({"type": "websocket.http.response.start", **head})
    await send({"type": "websocket.http.response.body", "body": answer.body, "more_body": False})


async def _stream(stream: Stream, scope: Message, receive: Receive, send: Send) -> None:
    headers = [
        (b"content-type", stream.content_type.encode()),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # or Nginx would hold back what it passes on
    ]
    begun = False

    async def write(data: bytes) -> None:
        nonlocal begun
        if not begun:
            begun = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        if data:
            await send({"type": "http.response.body", "body": data, "more_body": True})

    last = b""
    try:
        if scope["method"] != "HEAD":  # which asks for the head only
            await stream.run(write)
        await write(b"")
    except Exception as found:  # noqa: BLE001  (the error edge)
        failure = failure_of(found, BROKEN, path=scope["path"])
        if not begun:
            await transmit(problem(failure), scope, receive, send)
            return
        last = stream.failed(failure)
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def _download(download: Download, scope: Message, receive: Receive, send: Send) -> None:
    about = ((b"content-type", download.content_type.encode()), (b"content-length", b"%d" % download.size))
    head = {"type": "http.response.start", "status": download.status, "headers": [*about, *download.headers]}
    begun = False

    async def write(data: bytes) -> None:
        nonlocal begun
        if not begun:
            begun = True
            await send(head)
        await send({"type": "http.response.body", "body": data, "more_body": True})

    if scope["method"] == "HEAD" or not download.size:
        await send(head)
    else:
        try:
            await download.run(write)
        except Exception as found:
            if begun:
                raise
            failure = failure_of(found, BROKEN, path=scope["path"])
            await transmit(problem(failure), scope, receive, send)
            return
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _converse(socket: Socket, scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept", "subprotocol": _subprotocol(scope)})
    peer = Peer(receive, send)
    try:
        close = await socket.run(peer)
    except Exception as found:  # noqa: BLE001  (the error edge)
        failure = failure_of(found, BROKEN, path=scope["path"])
        await peer.send(failure_event(failure))
        close = Close(CODES[failure.kind].websocket, failure.kind.value)  # a close frame holds 123 bytes of reason
    if close is not None:
        await send({"type": "websocket.close", "code": close.code, "reason": close.reason})


def _subprotocol(scope: Message) -> str | None:
    """Return the subprotocol that shows a token, which the handshake then agrees to."""
    return next((name for name in scope["subprotocols"] if name.startswith(SUBPROTOCOL)), None)
