"""Executions while they run: events over websocket and as server-sent events. Plain ASGI, ahead of quart.

A reader pulls from the log of its execution, so a slow one is only ever behind: what it missed is one `dropped` event.
One that takes nothing at all is cut off by the connection (`send_timeout`), one that vanished by its missing pongs.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
import structlog
import trio
from attrs import frozen

from actors.events import Follower
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.events import Event, encode, failure_fields
from runner.api import Service
from runner.auth import Principal, Verifier, authenticate
from runner.http import WEBSOCKET, Message, Receive, Send, respond
from runner.rest.openapi import Operation, operations
from runner.rest.render import failure_headers, problem_json
from runner.status import CODES

_PROBLEM = b"application/problem+json"
_SUBPROTOCOL = "operato.bearer."
KEEP_ALIVE_SECONDS = 15.0
"""So often a silent stream of server-sent events says that it is there: proxies close what is silent for a minute."""
STILL_HERE = b": still here\n\n"
_INPUT_SECONDS = 60.0
"""How long a websocket may be open without the input that it was opened for."""

log = structlog.get_logger("streams")


@frozen
class EventStream:
    """`GET /executions/{id}/events`: server-sent events; `Last-Event-ID` (or `?from=`) says where to go on."""

    service: Service
    verifier: Verifier

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one reader."""
        del receive
        try:
            principal = await authenticate(self.verifier, header(scope, b"authorization"))
            last = header(scope, b"last-event-id")
            start = _number(scope) if last is None else _parsed(last, "Last-Event-ID") + 1
            follower = await self.service.follow(principal, identity_in(scope, operations.FOLLOW), start)
        except RunnerError as problem:
            failure = problem.failure
            await respond(send, CODES[failure.kind].http, problem_json(failure), failure_headers(failure), _PROBLEM)
            return
        if follower.ended:  # a browser that has read the end comes again, and is told to stop by this
            await respond(send, 204)
            return
        await begin_events(send)
        while True:
            events: tuple[Event, ...] | None = ()
            with trio.move_on_after(KEEP_ALIVE_SECONDS):
                events = await follower.next()
            if events is None:
                break
            body = b"".join(map(_sse, events)) if events else STILL_HERE
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def begin_events(send: Send) -> None:
    """Begin an answer of server-sent events."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    # Nginx gathers what it passes on unless it is told not to.
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"x-accel-buffering", b"no")]})


def _sse(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, _type(event).encode(), encode(event))


def _type(event: Event) -> str:
    return str(type(event).__struct_config__.tag)


@frozen
class ExecutionSocket:
    """`WS /executions/{id}/stream?from=N`: the events from number N on, one text message each."""

    service: Service
    verifier: Verifier

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one reader."""
        try:
            principal, subprotocol = await _authenticated(self.verifier, scope)
            name = identity_in(scope, operations.FOLLOW_SOCKET)
            follower = await self.service.follow(principal, name, _number(scope))
        except RunnerError as problem:
            await _reject(send, problem.failure)
            return
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_out, receive, nursery.cancel_scope)
            await _send_events(follower, send)
            nursery.cancel_scope.cancel()
        await _close(send, follower)


@frozen
class ModuleSocket:
    """`WS /modules/stream/{name}`: send the input as the first message, then receive the events of its execution.

    Before them comes `{"type": "execution", "id": ...}`. `{"type": "cancel"}` from the client ends the execution, and
    so does a client that goes away.
    """

    service: Service
    verifier: Verifier

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one call."""
        try:
            principal, subprotocol = await _authenticated(self.verifier, scope)
            name = identity_in(scope, operations.RUN_SOCKET)
            given = arguments(scope, operations.RUN_SOCKET)
            timeout = _seconds(given["timeout"]) if "timeout" in given else None
            version = given.get("version")
            if header(scope, b"idempotency-key") is not None:
                text = "a websocket has no idempotency key; submit the execution and follow it"
                raise error(ErrorKind.BAD_INPUT, text, field="Idempotency-Key")
            self.service.module(principal, "executions:run", name, version)  # what is wrong already is an HTTP answer
        except RunnerError as problem:
            await _reject(send, problem.failure)
            return
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        try:
            data = await _first_message(receive)
            if data is None:
                return
            identity, follower = self.service.begin(principal, name, data, version=version, timeout=timeout)
        except RunnerError as problem:
            await _close_with(send, problem.failure)
            return
        try:
            await _send_text(send, msgspec.json.encode({"type": "execution", "id": identity}))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, receive, identity, nursery.cancel_scope)
                await _send_events(follower, send)
                nursery.cancel_scope.cancel()
        finally:
            self.service.abandon(identity)
        await _close(send, follower)

    async def _listen(self, receive: Receive, identity: str, scope: trio.CancelScope) -> None:
        """Hear what the client says besides its input; its end is the end of the execution."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                scope.cancel()
                return
            if _is_cancel(message):
                self.service.abandon(identity, "cancelled on request")


class _Cancel(msgspec.Struct, tag="cancel"):
    """What a client may say while its execution runs."""


_cancel_decoder = msgspec.json.Decoder(_Cancel)


def _is_cancel(message: Message) -> bool:
    try:
        _cancel_decoder.decode(message.get("text") or message.get("bytes") or b"")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


async def _first_message(receive: Receive) -> bytes | None:
    """Return the input, or None when the client went away first. Raises RunnerError when it says nothing."""
    with trio.move_on_after(_INPUT_SECONDS):
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return None
            if message["type"] == "websocket.receive":
                text = message.get("text")
                return text.encode() if text is not None else bytes(message.get("bytes") or b"")
    raise error(ErrorKind.BAD_INPUT, f"the input was not sent within {_INPUT_SECONDS:g} s", field="$")


async def _read_out(receive: Receive, scope: trio.CancelScope) -> None:
    """Take what the client says, which is of no account, so that its going away is seen."""
    while (await receive())["type"] != "websocket.disconnect":
        pass
    scope.cancel()


async def _send_events(follower: Follower, send: Send) -> None:
    while (events := await follower.next()) is not None:
        for event in events:
            await _send_text(send, encode(event))


async def _send_text(send: Send, data: bytes) -> None:
    await send({"type": "websocket.send", "text": data.decode()})


async def _authenticated(verifier: Verifier, scope: Message) -> tuple[Principal, str | None]:
    """Return who opens a websocket, by header or, for browsers, by a subprotocol that is then agreed to."""
    offered = [name for name in scope["subprotocols"] if name.startswith(_SUBPROTOCOL)]
    if offered:
        token = offered[0].removeprefix(_SUBPROTOCOL)
        return await authenticate(verifier, f"Bearer {token}"), offered[0]
    return await authenticate(verifier, header(scope, b"authorization")), None


async def _reject(send: Send, failure: Failure) -> None:
    """Answer a handshake with a problem instead of a websocket."""
    headers = [(b"content-type", _PROBLEM), *failure_headers(failure)]
    body = problem_json(failure)
    headers.append((b"content-length", b"%d" % len(body)))
    status = CODES[failure.kind].http
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})


async def not_found(scope: Message, receive: Receive, send: Send) -> None:
    """Answer a websocket that nothing serves."""
    del receive
    routes = " and ".join(each.path for each in operations.OPERATIONS if each.method == WEBSOCKET)
    await _reject(send, Failure(ErrorKind.NOT_FOUND, f"there is no websocket at {scope['path']}; there are {routes}"))


async def _close_with(send: Send, failure: Failure) -> None:
    await _send_text(send, msgspec.json.encode({"type": "error", "error": failure_fields(failure)}))
    # A close frame has room for 123 bytes of reason.
    reason = failure.kind.value
    await send({"type": "websocket.close", "code": CODES[failure.kind].websocket, "reason": reason})


async def _close(send: Send, follower: Follower) -> None:
    if follower.ended:
        await send({"type": "websocket.close", "code": 1000, "reason": "the execution has ended"})
    else:
        await send({"type": "websocket.close", "code": 1012, "reason": f"{shutting_down().message}; follow it again"})


def identity_in(scope: Message, operation: Operation) -> str:
    """Return the name in the path of a request."""
    return unquote(scope["path"].removeprefix(operation.prefix).removesuffix(operation.suffix))


def header(scope: Message, name: bytes) -> str | None:
    """Return the value of a header, whose name is in lower case."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def arguments(scope: Message, operation: Operation) -> dict[str, str]:
    """Return the query parameters. Raises RunnerError `bad_input` for one that the operation does not have."""
    allowed = operation.query
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    for name in query:
        if name not in allowed:
            text = f"unknown parameter {name!r}; allowed: {', '.join(allowed)}"
            raise error(ErrorKind.BAD_INPUT, text, field=name)
    return {name: values[-1] for name, values in query.items()}


def _number(scope: Message) -> int:
    return _parsed(arguments(scope, operations.FOLLOW).get("from", "0"), "from")


def _parsed(text: str, field: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise error(ErrorKind.BAD_INPUT, f"{field} is the number of an event, not {text!r:.40}", field=field)
    return int(text)


def _seconds(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise error(ErrorKind.BAD_INPUT, f"timeout is a number of seconds, not {text!r:.40}", field="timeout") from None
