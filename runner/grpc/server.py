"""The gRPC door: HTTP/2 by grpclib on the Trio loop, made safe, with one Trio task for each call.

The only module that imports asyncio, grpclib and trio-asyncio. `grpc_http2` and `grpc_call` (one RPC) import h2;
`grpc_service` (verbs) and `grpc_messages` (values) import the generated messages, and `grpc_codec` makes bytes of them.

grpclib's own server is not used, only its connection: it runs each call as an asyncio task that nobody limits, ends the
program on an unknown frame, and accepts messages of any size. Here
* `_Connection` feeds HTTP/2 events and ends its connection, never the program, when a client breaks the rules;
* `Call.run` is one Trio task under one cancel scope, which the client's reset, end or deadline cancels;
* an answer leaves in one write when the client takes it at once.

Functions are Trio-flavored; the methods of `_Link`, `_Events` and `_Connection` are called by the asyncio loop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.resources import files
from math import inf
from typing import Any

import structlog
import trio
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpclib.config import Configuration
from grpclib.health.v1 import health_pb2
from grpclib.protocol import AbstractHandler, Connection, EventsProcessor, H2Protocol, Stream
from grpclib.reflection.service import ServerReflection
from h2.connection import H2Connection
from h2.events import DataReceived, Event, PingReceived, RemoteSettingsChanged, StreamReset
from h2.exceptions import H2Error
from trio_asyncio import aio_as_trio, allow_asyncio, open_loop

from protocol.errors import RunnerError
from runner.grpc.call import Call, GoneError, GrpcError, GrpcLimits, GrpcStatus, Method
from runner.grpc.door import Door
from runner.grpc.http2 import GOAWAY, H2_CONFIG, open_http2

READ_BYTES = 32_768
"""Of a connection in one go: parsing a read is work during which nothing else runs."""
MERGED_BYTES = 4096
"""Data that waits is put together up to this size: a byte in a frame of its own would cost two hundred."""
MAX_RESETS, RESETS_SECONDS = 500, 10.0
"""A connection with more calls cancelled in so many seconds is a flood (rapid reset) and is cut."""
MAX_UNREAD_REPLIES = 1000
"""Answers to pings, settings and refused calls that a client may leave unread."""
HANDSHAKE_SECONDS = 10.0
BACKLOG = 1024
_HEALTH = "grpc.health.v1.Health"

log = structlog.get_logger("grpc")


async def serve(
    methods: Mapping[str, Method],
    *,
    host: str,
    port: int,
    limits: GrpcLimits,
    draining: trio.Event,
    closed: trio.Event,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `methods` by path, health and reflection until `closed` is set.

    Port 0 takes a free one; `task_status.started` is called with the bound (host, port) pairs.

    When `draining` is set nothing more is accepted, health says NOT_SERVING, clients are told to go elsewhere (GOAWAY),
    new calls and batches that wait for input are answered UNAVAILABLE, and calls that run go on. After `closed` they
    have `graceful_seconds`; those that are left are cancelled and answered UNAVAILABLE.

    Raises OSError when the address cannot be bound.

    **Cancellation** cuts all clients off at once.
    """
    async with AsyncExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(fileno=listener.socket.detach()))
            for listener in await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
        ]
        addresses = [sock.getsockname()[:2] for sock in sockets]
        loop = await stack.enter_async_context(open_loop())
        # The default handler of trio-asyncio raises out of the loop, so that one bad callback would end the program.
        loop.set_exception_handler(_log_loop_error)
        async with trio.open_nursery() as nursery:
            health = _Health(draining, {path.split("/")[1] for path in methods})
            door = Door({**methods, **health.methods(), **_reflection(health.services)}, limits, nursery)
            given = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
            accept = partial(aio_as_trio(loop.create_server), lambda: _Connection(door), backlog=BACKLOG, **given)
            servers = [await accept(sock=sock) for sock in sockets]
            try:
                task_status.started(addresses)
                await draining.wait()
                _close(servers)
                door.drain()
                await closed.wait()
                await door.finish()
            finally:
                _close(servers)
                door.abort()
                nursery.cancel_scope.cancel()


def _close(servers: Iterable[asyncio.AbstractServer]) -> None:
    for server in servers:
        server.close()


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.warning("error in the asyncio loop", message=context.get("message"), exc_info=context.get("exception"))


class _Link(Connection):
    """grpclib's connection, which closes for good."""

    def close(self) -> None:
        """Cut the client off: one that answers no ping would never take what is in the buffer."""
        transport = getattr(self, "_transport", None)
        super().close()
        if transport is not None:
            transport.abort()


class _Events(EventsProcessor):
    """grpclib's events, against floods. Methods raise ConnectionAbortedError for a client that floods."""

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
            return  # an empty frame is no end of the stream
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
    """One client. Its errors end it and nothing else."""

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
        self.http = open_http2(self.door.limits.max_calls)
        self.connection = _Link(self.http, transport, config=self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = _Events(self, self.connection)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this client's
            self.cut(problem)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self in self.door.connections:
            self.door.lost(self)
            super().connection_lost(exc)

    def cut(self, problem: Exception) -> None:
        """Cut the client off for what it did."""
        log.info("a client was cut off", why=repr(problem), client=self._transport.get_extra_info("peername"))
        self.abort()

    def abort(self) -> None:
        """Cut the client off."""
        self._transport.abort()

    def say_goaway(self) -> None:
        """Ask the client to make its next calls elsewhere."""
        self._transport.write(GOAWAY)

    def hang_up(self) -> None:
        """Say goodbye, and close when what was written has left."""
        if not self.connection.is_closing():
            with suppress(H2Error):
                self.http.close_connection()
                self.connection.flush()
            self._transport.close()

    # What grpclib's events call

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        door, fields = self.door, dict(headers)
        method = door.methods.get(fields.get(":path", ""))
        call = Call(_Transport(self, stream), method or _NOTHING, fields, door.limits)
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
        had: int = buffer._acked_size  # noqa: SLF001
        return had >= size or (bool(waiting) and had + waiting[0].data_size >= size)

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


class _Health:
    """grpc.health.v1: every service is as ready as the runner."""

    def __init__(self, draining: trio.Event, services: set[str]) -> None:
        self.services = {*services, _HEALTH}
        self._draining = draining

    def methods(self) -> dict[str, Method]:
        request = health_pb2.HealthCheckRequest
        return {
            f"/{_HEALTH}/Check": Method(self._check, request, work=False),
            f"/{_HEALTH}/Watch": Method(self._watch, request, work=False),
        }

    async def _check(self, call: Call) -> Any:
        request = await call.receive()
        if request is None or request.service not in {"", *self.services}:
            raise GrpcError(GrpcStatus.NOT_FOUND, "there is no such service")
        return self._response()

    async def _watch(self, call: Call) -> None:
        request = await call.receive()
        if request is None or request.service not in {"", *self.services}:
            unknown = health_pb2.HealthCheckResponse.ServingStatus.SERVICE_UNKNOWN
            await call.send(health_pb2.HealthCheckResponse(status=unknown))
        else:
            await call.send(self._response())
            if not self._draining.is_set():
                await self._draining.wait()
                await call.send(self._response())
        await trio.sleep_forever()  # until the client or the runner ends it

    def _response(self) -> Any:
        status = health_pb2.HealthCheckResponse.ServingStatus
        return health_pb2.HealthCheckResponse(status=status.NOT_SERVING if self._draining.is_set() else status.SERVING)


class _Named:
    """A service as grpclib's reflection wants to see it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __mapping__(self) -> dict[str, Any]:
        return {f"/{self.name}/": None}


def _reflection(names: Iterable[str]) -> dict[str, Method]:
    """Return the methods of server reflection, v1 and v1alpha, over the descriptors that were made from the .proto."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files("protocol.rpc").joinpath("executor.binpb").read_bytes()).file:
        pool.Add(file)
    pool.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    named = [_Named(name) for name in sorted(names)]
    return {
        path: Method(handler.func, handler.request_type, work=False)
        for service in ServerReflection.extend(named, pool=pool)[len(named) :]
        for path, handler in service.__mapping__().items()
    }


async def _nothing(_call: Call) -> None:
    """Stand for a method that is not there; a call of it is refused before it runs."""


_NOTHING = Method(_nothing, None, work=False)
