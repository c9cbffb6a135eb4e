"""The one shape of a REST endpoint: an async function `(Request) -> Outcome` for one `Operation`.

An endpoint neither authenticates nor parses parameters nor turns exceptions into answers: `runner.rest.routing` does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from attrs import define, frozen

from protocol.errors import PROBLEM, ErrorKind, Failure, error
from runner.api import Service
from runner.auth import Principal
from runner.http import (
    OUTSIDE,
    BodyError,
    BodyTooLargeError,
    Message,
    Outside,
    Receive,
    Send,
    read_body,
    stream_body,
)
from runner.rest.bodies import paid
from runner.rest.openapi import EVENTS, JSON, OPERATIONS, Operation
from runner.rest.render import failure_headers, problem_json, problem_status
from runner.wire import Share

_BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}

Headers = tuple[tuple[bytes, bytes], ...]
Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]
"""Sends bytes of a stream; the first call sends the head too. Waits while the client does not read."""


SHARE: Final = "operato.share"
"""The key of the memory that the answer takes, in the ASGI scope of a request; `Site` gives it back."""
_DIRECT: Final = Outside()


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
    inflated: bool = False
    """Whether `receive` returns the content of a compressed body."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def principal(self) -> Principal:
        """The caller, where the operation needs a token."""
        assert self.caller is not None  # noqa: S101  (`Endpoints` authenticates first)
        return self.caller

    @property
    def outside(self) -> Outside:
        """The address of the server for this client."""
        found: Outside = self.scope.get(OUTSIDE, _DIRECT)
        return found

    @property
    def share(self) -> Share:
        """The memory that the answer takes until it has left."""
        found: Share | None = self.scope.get(SHARE)
        if found is None:
            found = self.scope[SHARE] = self.service.answers.share()
        return found

    def header(self, name: str) -> str | None:
        """Return the value of a header by its name in lower case."""
        found = self.fields.get(name.encode())
        return None if found is None else found.decode("latin-1")

    async def body(self) -> bytes:
        """Return the whole body. Raises RunnerError `too_large`, or `bad_input` when it does not arrive."""
        try:
            if not self.inflated:
                return await self._read()
            with self.collecting():
                return await self._read()
        except BodyTooLargeError as problem:
            raise error(ErrorKind.TOO_LARGE, f"{problem}; the limit is `max_frame`", field="$") from None
        except BodyError as problem:
            raise error(ErrorKind.BAD_INPUT, str(problem), field="$") from None

    async def _read(self) -> bytes:
        return await read_body(self.scope, self.receive, self.service.settings.server.max_frame_bytes)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Take the content of a compressed body from the budget of all callers, while it is collected."""
        if not self.inflated:
            yield
            return
        uncounted = self.receive
        try:
            with paid(uncounted, self.service.budget) as counted:
                self.receive = counted
                yield
        finally:
            self.receive = uncounted

    def stream_body(self, owes: Callable[[], bool] = lambda: True) -> None:
        """Accept a body of any length, in any time; `piece` reads it. On plain ASGI only.

        `owes`: whether the client waits for nothing before it sends more.
        """
        stream_body(self.scope, owes)

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

    A failure before the first `Write` is a usual answer. After it, `failed` makes the last piece.
    """

    run: Callable[[Write], Awaitable[None]]
    failed: Callable[[Failure], bytes]
    content_type: str = EVENTS


@frozen
class Download:
    """An answer of `size` bytes that is made while it is sent. On plain ASGI only.

    A failure before the first `Write` is a usual answer; one after it closes the connection, so that the client sees
    that bytes are missing.
    """

    run: Callable[[Write], Awaitable[None]]
    size: int
    status: int
    content_type: str
    headers: Headers = ()


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


Outcome = Answer | Stream | Download | Socket


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
