"""A gRPC client of bare HTTP/2 frames, for requests that no real client makes, and the door that it calls."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Any

import attrs
import h2.config
import h2.connection
import h2.errors
import h2.events
import trio
from grpclib.const import Status
from hyperframe.frame import GoAwayFrame

from protocol.rpc.operato.runner import v1
from runner.grpc import GrpcLimits, serve
from runner.grpc.call import Method
from runner.grpc.codec import decode, encode
from runner.wire import Budget

GrpcStatus: Any = IntEnum("GrpcStatus", [(status.name, status.value) for status in Status])
"""The status codes of gRPC, which compare with the numbers of answers."""
PATIENCE = 60
LIMITS = {
    "max_message_bytes": 16 << 20,
    "max_connections": 1000,
    "max_calls": 1000,
    "message_seconds": 60.0,
    "send_seconds": 30.0,
    "graceful_seconds": 0.1,
}
"""Seconds after which a test counts as hung."""


@attrs.define
class Answer:
    """The answer received on one stream."""

    head: dict[str, str] = attrs.field(factory=dict)
    trailers: dict[str, str] = attrs.field(factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None
    received: int = 0

    @property
    def status(self) -> int:
        assert self.reset is None, h2.errors.ErrorCodes(self.reset)
        return int({**self.head, **self.trailers}["grpc-status"])

    @property
    def said(self) -> dict[str, str]:
        """The trailers, even if they came with the head."""
        return {**self.head, **self.trailers}

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.data
        while len(rest) >= 5 and len(rest) >= 5 + int.from_bytes(rest[1:5], "big"):
            size = int.from_bytes(rest[1:5], "big")
            found.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return found

    def message(self, cls: type[Any] = v1.ExecuteResponse) -> Any:
        (only,) = self.messages
        return decode(cls, only)


class _Http2(h2.connection.H2Connection):
    """h2 ends the connection at the first GOAWAY; RFC 9113 lets running calls continue, as this class does."""

    def __init__(self, goaways: list[GoAwayFrame], config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self._frame_dispatch_table[GoAwayFrame] = lambda frame: (goaways.append(frame), ([], []))[1]


@attrs.define
class Client:
    """One connection."""

    stream: Any
    http: h2.connection.H2Connection
    answers: dict[int, Answer] = attrs.field(factory=dict)
    goaways: list[GoAwayFrame] = attrs.field(factory=list)
    closed: bool = False
    reads: bool = True
    """Whether received data is acknowledged, so that the server may send more."""

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None, *, window: int = 65_535) -> Client:
        stream: Any = await trio.open_tcp_stream("127.0.0.1", port)
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)
            await stream.do_handshake()
        goaways: list[GoAwayFrame] = []
        http = _Http2(goaways, h2.config.H2Configuration(client_side=True, validate_outbound_headers=False))
        http.local_settings.initial_window_size = window
        http.local_settings.acknowledge()
        http.initiate_connection()
        client = cls(stream, http, goaways=goaways)
        await client.flush()
        return client

    async def flush(self) -> None:
        await self.stream.send_all(self.http.data_to_send())

    async def send(
        self,
        path: str,
        *messages: Any,
        metadata: Mapping[str, Any] | None = None,
        end: bool = True,
        flush: bool = True,
    ) -> int:
        """Begin a call with these messages; return its stream."""
        number = self.http.get_next_available_stream_id()
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
            **(metadata or {}),
        }
        self.http.send_headers(number, list(fields.items()))
        self.answers[number] = Answer()
        data = b"".join(framed(message) for message in messages)
        if data or end:
            self.http.send_data(number, data, end_stream=end)
        if flush:
            await self.flush()
        return number

    async def more(self) -> None:
        """Receive the next data."""
        data = await self.stream.receive_some(65_536)
        if not data:
            self.closed = True
            raise EOFError("the server closed the connection")
        for event in self.http.receive_data(data):
            self._note(event)
        await self.flush()

    def _note(self, event: h2.events.Event) -> None:
        answer = self.answers.get(getattr(event, "stream_id", None) or 0, Answer())
        match event:
            case h2.events.ResponseReceived():
                answer.head = {name.decode(): value.decode() for name, value in event.headers}
            case h2.events.TrailersReceived():
                answer.trailers = {name.decode(): value.decode() for name, value in event.headers}
            case h2.events.DataReceived():
                answer.data += event.data
                answer.received += len(event.data)
                if self.reads:
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                answer.ended = True
            case h2.events.StreamReset():
                if event.error_code != h2.errors.ErrorCodes.NO_ERROR:
                    answer.reset = event.error_code
                answer.ended = True

    async def ended(self, number: int) -> Answer:
        """Wait for the end of a call."""
        with trio.fail_after(PATIENCE):
            while not self.answers[number].ended:
                await self.more()
        return self.answers[number]

    async def call(self, path: str, *messages: Any, metadata: Mapping[str, Any] | None = None) -> Answer:
        """Make a call and wait for its end."""
        return await self.ended(await self.send(path, *messages, metadata=metadata))

    async def reset(self, number: int) -> None:
        self.http.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        await self.flush()

    async def until_closed(self) -> None:
        """Read until the server has closed or cut the connection."""
        with trio.fail_after(PATIENCE):
            try:
                while True:
                    await self.more()
            except (EOFError, trio.BrokenResourceError, OSError):
                self.closed = True

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


def framed(message: Any) -> bytes:
    """Return the bytes of a message on the wire; bytes stay as they are."""
    if isinstance(message, bytes):
        return message
    data = encode(message)
    return b"\0" + len(data).to_bytes(4, "big") + data


@attrs.define
class OpenDoor:
    """An open door and its clients."""

    port: int
    draining: trio.Event
    closed: trio.Event
    ended: trio.Event
    scope: trio.CancelScope
    tls: ssl.SSLContext | None = None
    clients: list[Client] = attrs.field(factory=list)

    async def connect(self, **how: Any) -> Client:
        client = await Client.connect(self.port, self.tls, **how)
        self.clients.append(client)
        return client

    async def raw(self) -> trio.SocketStream:
        """Return a socket on which nothing is sent yet."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def open_door(
    methods: Mapping[str, Method],
    *,
    tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    budget: Budget | None = None,
    ready: Callable[[], bool] = lambda: True,
    **limits: Any,
) -> AsyncIterator[OpenDoor]:
    """Open a door for these methods on a free port of loopback; close it at the end."""
    draining, closed, ended = trio.Event(), trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: Any) -> None:
            try:
                await serve(
                    methods,
                    host="127.0.0.1",
                    port=0,
                    limits=GrpcLimits(**{**LIMITS, **limits}),
                    budget=Budget(256 << 20) if budget is None else budget,
                    draining=draining,
                    closed=closed,
                    ready=ready,
                    tls=tls,
                    task_status=task_status,
                )
            finally:
                ended.set()

        scope = trio.CancelScope()

        async def guarded(*, task_status: Any) -> None:
            with scope:
                await run(task_status=task_status)

        (address,) = await nursery.start(guarded)
        door = OpenDoor(address[1], draining, closed, ended, scope, client_tls)
        try:
            yield door
        finally:
            draining.set()
            closed.set()
            with trio.CancelScope(shield=True), trio.move_on_after(PATIENCE) as patience:
                for client in door.clients:
                    await client.aclose()
                await ended.wait()
            nursery.cancel_scope.cancel()
            assert not patience.cancelled_caught, "the door did not close"


def unread_socket(port: int) -> socket.socket:
    """Return a connected socket with a small buffer, which unread data soon fills."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock
