"""The one shape of a REST endpoint: an async function `(Request) -> Answer | Stream | Socket` for one `Operation`.

`Endpoints` serves endpoints, on plain ASGI and behind quart. It authenticates the caller, reads the parameters by the
table of operations, calls the function and sends what it returns. It is also the one place where an exception becomes
an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from attrs import define, frozen

from protocol.errors import PROBLEM, ErrorKind, Failure, error
from protocol.events import failure_fields
from runner.api import Service, failure_of
from runner.auth import Principal, Verifier, authenticate, require
from runner.http import (
    BodyError,
    BodyTooLargeError,
    Message,
    Receive,
    Route,
    Send,
    read_body,
    respond,
    stream_body,
)
from runner.rest.openapi import EVENTS, JSON, OPERATIONS, Operation
from runner.rest.render import failure_headers, problem_json, problem_status
from runner.status import CODES

_SUBPROTOCOL: Final = "operato.bearer."
_BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}
_BROKEN: Final = "a request failed inside the runner"

Headers = tuple[tuple[bytes, bytes], ...]
Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]
"""Sends bytes of a stream; the first call sends the head too. Waits while the client does not read."""


@define(eq=False)
class Request:
    """One request with its parameters: `request["limit"]` is the value of `limit`, or its default."""

    service: Service
    values: Mapping[str, Any]
    caller: Principal | None
    """None where the operation needs no token and none was sent."""
    scope: Message
    receive: Receive
    fields: Mapping[bytes, bytes]
    """The headers by name in lower case; repeated ones are joined by commas (RFC 9110)."""
    _read: Read | None = None
    """Reads the body; None: from `receive`."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def principal(self) -> Principal:
        """The caller, where the operation needs a token."""
        assert self.caller is not None  # noqa: S101  (`Endpoints` authenticates first)
        return self.caller

    def header(self, name: str) -> str | None:
        """Return the value of a header by its name in lower case."""
        found = self.fields.get(name.encode())
        return None if found is None else found.decode("latin-1")

    async def body(self) -> bytes:
        """Return the whole body. Raises RunnerError `too_large`, or `bad_input` when it does not arrive."""
        try:
            if self._read is not None:
                return await self._read()
            return await read_body(self.scope, self.receive, self.service.settings.server.max_frame_bytes)
        except BodyTooLargeError as problem:
            raise error(ErrorKind.TOO_LARGE, f"{problem}; the limit is `max_frame`", field="$") from None
        except BodyError as problem:
            raise error(ErrorKind.BAD_INPUT, str(problem), field="$") from None

    def stream_body(self) -> None:
        """Accept a body of any length, in any time; `piece` reads it. On plain ASGI only."""
        stream_body(self.scope)

    async def piece(self) -> tuple[bytes, bool]:
        """Return the next bytes of a streamed body, and whether more follow. Raises RunnerError `bad_input`."""
        message = await self.receive()
        if message["type"] != "http.request":
            raise error(ErrorKind.BAD_INPUT, "the client closed before its body was complete", field="$")
        return bytes(message.get("body", b"")), bool(message.get("more_body", False))


@frozen
class Answer:
    """A whole answer."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: Headers = ()


@frozen
class Stream:
    """An answer that is sent piece by piece. On plain ASGI only.

    A failure before the first `Write` is a usual answer. After it, `failed` makes the last piece; without `failed` the
    answer is cut off, which HTTP shows to the client.
    """

    run: Callable[[Write], Awaitable[None]]
    content_type: str = EVENTS
    failed: Callable[[Failure], bytes] | None = None


@frozen
class Close:
    """The end of a websocket."""

    code: int
    reason: str


@frozen
class Peer:
    """The client of a websocket."""

    _receive: Receive
    _send: Send

    async def send(self, data: bytes) -> None:
        """Send a text message."""
        await self._send({"type": "websocket.send", "text": data.decode()})

    async def receive(self) -> bytes | None:
        """Return the next message; None: the client has gone."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return None
            if message["type"] == "websocket.receive":
                text = message.get("text")
                return bytes(message.get("bytes") or b"") if text is None else text.encode()


@frozen
class Socket:
    """A websocket: `run` serves it until its end; None: the client has gone. On plain ASGI only.

    What `run` raises is sent as `{"type": "error", "error": ...}`, and closes with the code of its kind.
    """

    run: Callable[[Peer], Awaitable[Close | None]]


Outcome = Answer | Stream | Socket


@frozen
class Endpoint:
    """A function and the operation that it serves."""

    operation: Operation
    function: Callable[[Request], Awaitable[Outcome]]


def serves(name: str) -> Callable[[Callable[[Request], Awaitable[Outcome]]], Endpoint]:
    """Return the decorator that makes a function the endpoint of the operation with this name in the table."""
    return lambda function: Endpoint(_BY_NAME[name], function)


def json_answer(value: Any, status: int = 200, headers: Headers = ()) -> Answer:
    """Return an answer of JSON; bytes are JSON already."""
    return Answer(value if isinstance(value, bytes) else msgspec.json.encode(value), status, JSON, headers)


def problem(failure: Failure) -> Answer:
    """Return the answer to a request that did not begin an execution."""
    return Answer(problem_json(failure), problem_status(failure), PROBLEM, tuple(failure_headers(failure)))


@frozen
class Endpoints:
    """Serves the endpoints of one application."""

    service: Service
    verifier: Verifier

    def route(self, endpoint: Endpoint) -> Route:
        """Return the route that serves an endpoint as plain ASGI, ahead of the web framework."""
        operation = endpoint.operation
        [name] = [each.name for each in operation.parameters if each.place == "path"]
        begin, end = len(operation.prefix), len(operation.suffix)

        async def handler(scope: Message, receive: Receive, send: Send) -> None:
            path = scope["path"]
            outcome = await self.serve(endpoint, {name: path[begin : len(path) - end]}, scope, receive)
            await transmit(outcome, scope, receive, send)

        return Route(operation.method, operation.prefix, handler, operation.suffix)

    async def serve(
        self,
        endpoint: Endpoint,
        names: dict[str, str],
        scope: Message,
        receive: Receive,
        read: Read | None = None,
    ) -> Outcome:
        """Return what an endpoint answers to a request; `names` are those in its path. Raises no Exception."""
        try:
            operation, caller = endpoint.operation, None
            fields = _fields(scope["headers"])
            if operation.token:
                shown = _credentials(scope, fields)
                if operation.scope is not None:
                    caller = await authenticate(self.verifier, shown)
                    require(caller, operation.scope)
                elif shown is not None:
                    caller = await authenticate(self.verifier, shown)
            values = _parameters(operation, names, scope["query_string"], fields)
            return await endpoint.function(Request(self.service, values, caller, scope, receive, fields, read))
        except Exception as found:  # noqa: BLE001  (the error edge)
            return problem(failure_of(found, _BROKEN, path=scope["path"]))


def _credentials(scope: Message, fields: Mapping[bytes, bytes]) -> str | None:
    """Return the authorization of a request: its header or, for browsers, the subprotocol of a websocket."""
    if scope["type"] == "websocket" and (subprotocol := _subprotocol(scope)) is not None:
        return f"Bearer {subprotocol.removeprefix(_SUBPROTOCOL)}"
    shown = fields.get(b"authorization")
    return None if shown is None else shown.decode("latin-1")


def _fields(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by name. Repeated ones are joined, so that no value is silently ignored."""
    fields = dict(headers)
    if len(fields) < len(headers):
        fields = {}
        for name, value in headers:
            fields[name] = b"%b, %b" % (fields[name], value) if name in fields else value
    return fields


def _parameters(
    operation: Operation, names: dict[str, str], query: bytes, fields: Mapping[bytes, bytes]
) -> dict[str, Any]:
    """Return the values of all parameters. Raises RunnerError `bad_input`, which names the parameter at fault."""
    values = operation.defaults | names
    for field, parameter in operation.headers.items():
        if field in fields:
            values[parameter.name] = parameter.read([fields[field].decode("latin-1")])
    if query and not operation.any_query:
        for name, texts in parse_qs(query.decode("latin-1"), keep_blank_values=True).items():
            known = operation.query.get(name)
            if known is None:
                text = f"unknown parameter {name!r:.80}; allowed: {', '.join(operation.query) or 'none'}"
                raise error(ErrorKind.BAD_INPUT, text, field=name)
            values[name] = known.read(texts)
    return values


async def transmit(outcome: Outcome, scope: Message, receive: Receive, send: Send) -> None:
    """Send what an endpoint returned."""
    if isinstance(outcome, Answer):
        if scope["type"] == "websocket":
            await _reject(outcome, send)
        else:
            await respond(send, outcome.status, outcome.body, outcome.headers, outcome.content_type.encode())
    elif isinstance(outcome, Stream):
        await _stream(outcome, scope, receive, send)
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
        await stream.run(write)
        await write(b"")
    except Exception as found:
        if begun and stream.failed is None:
            raise
        failure = failure_of(found, _BROKEN, path=scope["path"])
        if not begun or stream.failed is None:
            await transmit(problem(failure), scope, receive, send)
            return
        last = stream.failed(failure)
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def _converse(socket: Socket, scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept", "subprotocol": _subprotocol(scope)})
    peer = Peer(receive, send)
    try:
        close = await socket.run(peer)
    except Exception as found:  # noqa: BLE001  (the error edge)
        failure = failure_of(found, _BROKEN, path=scope["path"])
        await peer.send(msgspec.json.encode({"type": "error", "error": failure_fields(failure)}))
        close = Close(CODES[failure.kind].websocket, failure.kind.value)  # a close frame holds 123 bytes of reason
    if close is not None:
        await send({"type": "websocket.close", "code": close.code, "reason": close.reason})


def _subprotocol(scope: Message) -> str | None:
    """Return the subprotocol that shows a token, which the handshake then agrees to."""
    return next((name for name in scope["subprotocols"] if name.startswith(_SUBPROTOCOL)), None)
