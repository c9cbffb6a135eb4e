"""The connection of one gRPC client: HTTP/2 by grpclib on an asyncio loop inside Trio, made safe.

The only module that imports asyncio and trio-asyncio. Of grpclib, only the connection is used. Its server runs each
call as an asyncio task without limits, ends the program on an unknown frame, and accepts messages of any size. Here

* `_Connection` feeds HTTP/2 events, and ends itself, never the program, when a client breaks the rules;
* `Call.run` is one Trio task under one cancel scope, which the client's reset, disconnect or deadline cancels;
* an answer leaves in one write when the client accepts it at once.

The methods of `_Link`, `_Events` and `_Connection` are called by the asyncio loop; everything else is for Trio tasks.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Any

import structlog
import trio
from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, Connection, EventsProcessor, H2Protocol, Stream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, PingReceived, RemoteSettingsChanged, StreamReset
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from trio_asyncio import aio_as_trio, allow_asyncio, open_loop

from protocol.errors import RunnerError
from runner.grpc.call import Call, GoneError, GrpcError, Method
from runner.grpc.door import Door

READ_BYTES = 32_768
"""Read from a connection at once: parsing a read is work during which no other task runs."""
MERGED_BYTES = 4096
"""Data that waits is merged up to this size: each byte in a frame of its own would cost two hundred."""
MAX_RESETS, RESETS_SECONDS = 500, 10.0
"""More calls cancelled on a connection in this many seconds are a flood (rapid reset), and cut it off."""
MAX_UNREAD_REPLIES = 1000
"""Answers to pings, settings and refused calls that a client may leave unread."""
HANDSHAKE_SECONDS = 10.0
BACKLOG = 1024
STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 16 << 20
"""Bytes that a client may send ahead of its handlers, per call and in all: stalled calls leave room for others."""
MAX_HEADER_BYTES = 16_384
MAX_CLOSED_STREAMS = 1000
"""Ended calls that h2 remembers for each connection, 130 bytes each; its own limit amounts to 8 MB."""
H2_CONFIG = H2Configuration(
    client_side=False,
    # Bytes that are not ASCII must not raise during parsing; a token with such bytes is refused as any other.
    header_encoding="latin-1",
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)
GOAWAY = GoAwayFrame(0, last_stream_id=2**31 - 1).serialize()
"""Asks a client to make no more calls on this connection; running calls continue, which h2's own frame would end."""

log = structlog.get_logger("grpc")


@asynccontextmanager
async def open_asyncio() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Open the loop in which connections live; an error in one of its callbacks is logged."""
    async with open_loop() as loop:
        # The default handler of trio-asyncio raises out of the loop, so that one bad callback would end the program.
        loop.set_exception_handler(_log_loop_error)
        yield loop


async def accept(
    loop: asyncio.AbstractEventLoop, door: Door, sockets: Iterable[socket.socket], tls: ssl.SSLContext | None
) -> Callable[[], None]:
    """Accept clients; return the function that stops accepting."""
    options = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
    create = partial(aio_as_trio(loop.create_server), lambda: _Connection(door), backlog=BACKLOG, **options)
    servers = [await create(sock=sock) for sock in sockets]

    def close() -> None:
        for server in servers:
            server.close()

    return close


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.warning("error in the asyncio loop", message=context.get("message"), exc_info=context.get("exception"))


class _Http2(H2Connection):
    MAX_CLOSED_STREAMS = MAX_CLOSED_STREAMS
    DEFAULT_MAX_HEADER_LIST_SIZE = MAX_HEADER_BYTES


def _open_http2(max_streams: int) -> H2Connection:
    """Return the state of a connection whose client may have `max_streams` calls at a time; its preface is ready."""
    http = _Http2(config=H2_CONFIG)
    values = {
        SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
        SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
    }
    http.local_settings = Settings(client=False, initial_values=values)
    http.initiate_connection()
    http.increment_flow_control_window(CONNECTION_WINDOW - http.inbound_flow_control_window)
    return http


class _Link(Connection):
    """grpclib's connection; its `close` cuts the client off."""

    def close(self) -> None:
        """Cut the client off: one that answers no ping would never accept the data in the buffer."""
        transport = getattr(self, "_transport", None)
        super().close()
        if transport is not None:
            transport.abort()


class _Events(EventsProcessor):
    """grpclib's events, with limits. Methods raise ConnectionAbortedError for a client that floods."""

    resets = 0
    since = -inf
    unread = 0

    def process(self, event: Event) -> None:
        if type(event) not in getattr(self, "processors", ()):
            return  # RFC 9113, 5.5: frames of an unknown type are ignored; grpclib raises
        if isinstance(event, PingReceived | RemoteSettingsChanged):
            self.replied()
        super().process(event)

    def replied(self) -> None:
        """Count an answer that leaves without waiting for room in the buffer."""
        self.unread = 0 if self.connection.write_ready.is_set() else self.unread + 1
        if self.unread > MAX_UNREAD_REPLIES:
            raise ConnectionAbortedError("answers are not read")

    def process_data_received(self, event: DataReceived) -> None:
        stream = self.streams.get(event.stream_id)
        waiting = None if stream is None else stream.buffer._unacked._queue  # type: ignore[attr-defined]  # noqa: SLF001
        if not event.flow_controlled_length:
            return  # an empty frame is not the end of the stream
        if waiting and 0 < waiting[-1].data_size < MERGED_BYTES:
            last = waiting[-1]
            data = last.data + event.data
            waiting[-1] = last._replace(
                data=data, data_size=len(data), ack_size=last.ack_size + event.flow_controlled_length
            )
        else:
            super().process_data_received(event)

    def process_stream_reset(self, event: StreamReset) -> None:
        super().process_stream_reset(event)
        now = trio.current_time()
        if now - self.since > RESETS_SECONDS:
            self.since, self.resets = now, 0
        self.resets += 1
        if self.resets > MAX_RESETS:
            raise ConnectionAbortedError(f"more than {MAX_RESETS} calls were cancelled in {RESETS_SECONDS:g} s")


class _Connection(H2Protocol, AbstractHandler):
    """One client. Its errors end this connection only."""

    http: H2Connection
    processor: _Events

    def __init__(self, door: Door) -> None:
        limits = door.limits
        config = Configuration(
            _keepalive_time=limits.ping_seconds,
            _keepalive_timeout=limits.pong_seconds,
            _keepalive_permit_without_calls=True,
            _http2_max_pings_without_data=0,
            _http2_min_sent_ping_interval_without_data=min(limits.ping_seconds, limits.pong_seconds),
        )
        super().__init__(self, config, H2_CONFIG)
        self.door = door
        self._calls: dict[Stream, Call] = {}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self.door.draining or len(self.door.connections) >= self.door.limits.max_connections:
            transport.abort()
            return
        self.door.connections.add(self)
        getattr(transport, "_ssl_protocol", transport).max_size = READ_BYTES
        self.http = _open_http2(self.door.limits.max_calls)
        self.connection = _Link(self.http, transport, config=self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = _Events(self, self.connection)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as problem:  # noqa: BLE001  (any error is this client's)
            self.cut(problem)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self in self.door.connections:
            self.door.lost(self)
            super().connection_lost(exc)

    def cut(self, problem: Exception) -> None:
        """Cut the client off for breaking the rules."""
        log.info("client cut off", why=repr(problem), client=self._transport.get_extra_info("peername"))
        self.abort()

    # For the door

    def abort(self) -> None:
        """Cut the client off."""
        self._transport.abort()

    def send_goaway(self) -> None:
        """Ask the client to make its next calls elsewhere."""
        self._transport.write(GOAWAY)

    def close_gracefully(self) -> None:
        """Announce the end, and close after all written data has left."""
        if not self.connection.is_closing():
            with suppress(H2Error):
                self.http.close_connection()
                self.connection.flush()
            self._transport.close()

    # For grpclib's events

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        door, fields = self.door, dict(headers)
        method = door.methods.get(fields.get(":path", ""))
        call = Call(_Transport(self, stream), method or _UNKNOWN, fields, door.limits)
        try:
            call.begin(known=method is not None, full=door.working >= door.limits.max_calls, draining=door.draining)
        except (RunnerError, GrpcError) as problem:
            call.refuse(problem)
            release_stream()
            return
        self._calls[stream] = call
        door.calls.add(call)
        door.working += call.method.work
        door.nursery.start_soon(self._run, call, stream, release_stream, name=fields[":path"])

    async def _run(self, call: Call, stream: Stream, release_stream: Callable[[], None]) -> None:
        try:
            await call.run()
        finally:
            self._calls.pop(stream, None)
            self.door.ended(call)
            with suppress(H2Error):
                release_stream()

    def cancel(self, stream: Stream) -> None:
        call = self._calls.get(stream)
        if call is not None:
            call.cancel()

    def close(self) -> None:
        for call in self._calls.values():
            call.cancel()


class _Transport:
    """A stream of a connection, as a call uses it."""

    def __init__(self, connection: _Connection, stream: Stream) -> None:
        self.http = connection.http
        self.stream_id = stream.id or 0
        self._connection = connection
        self._stream = stream

    @property
    def writable(self) -> bool:
        return self._connection.connection.write_ready.is_set()

    def has(self, size: int) -> bool:
        buffer = self._stream.buffer
        waiting = buffer._unacked._queue  # type: ignore[attr-defined]  # noqa: SLF001
        acknowledged: int = buffer._acked_size  # noqa: SLF001
        return acknowledged >= size or (bool(waiting) and acknowledged + waiting[0].data_size >= size)

    async def read(self, size: int) -> bytes:
        data: bytes = await allow_asyncio(self._stream.recv_data, size)
        return data

    async def wait_writable(self) -> None:
        if self.writable:
            self._stream.window_updated.clear()
            await allow_asyncio(self._stream.window_updated.wait)
        else:
            await allow_asyncio(self._connection.connection.write_ready.wait)

    def flush(self) -> None:
        link = self._connection.connection
        if link.is_closing():
            raise GoneError
        link.flush()

    def replied(self) -> None:
        try:
            self._connection.processor.replied()
        except ConnectionAbortedError as problem:
            self._connection.cut(problem)


async def _unknown(_call: Call) -> None:
    """Stand for an unknown method, whose calls are refused before they run."""


_UNKNOWN = Method(_unknown, None, work=False)
