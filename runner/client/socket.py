"""A websocket to a runner, on a stream of our own, which distinguishes each way in which opening it can fail.

If the connection ends before the answer to the handshake, trio-websocket waits for ever; if the server closes first, it
leaves the stream open. Both are handled here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from config.client import Address
from protocol.errors import ErrorKind, Failure, RunnerError, error
from runner.client.trouble import NO_HOST, lost, not_a_runner, unreachable
from runner.groups import leaves

NORMAL, GOING_AWAY, TOO_LARGE, RESTART = 1000, 1001, 1009, 1012
_ABNORMAL = 1006
_PING_SECONDS = 20.0
_HEAD_BYTES = 1024 * 1024
"""Largest answer to the handshake; it may hold a problem document."""
_QUEUED_MESSAGES = 1000
"""Messages buffered while the terminal is blocked, so that pings are still answered."""
_CLOSE_SECONDS = 2.0

Refusal: TypeAlias = Callable[[int, Mapping[str, str], bytes], Failure]


class _Wire(trio.abc.Stream):
    """The bytes below a websocket; knows when they end and whether a reader waits for more."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner
        self.on_end: Callable[[], None] | None = None
        self.reading = False
        self.broken: trio.BrokenResourceError | None = None
        self.budget: int | None = _HEAD_BYTES

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self.reading = True
        try:
            data = bytes(await self._inner.receive_some(max_bytes))
        except trio.BrokenResourceError as problem:
            self.broken = problem
            self._ended()
            raise
        finally:
            self.reading = False
        if self.budget is not None:
            self.budget -= len(data)
            if self.budget < 0:
                data = b""
        if not data:
            self._ended()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._ended()
        await trio.aclose_forcefully(self._inner)

    def _ended(self) -> None:
        if self.on_end is not None:
            self.on_end()


@define(eq=False)
class Socket:
    """An open websocket. Receive from one task."""

    _connection: WebSocketConnection
    code: int | None = field(default=None, init=False)
    """The close code, once `receive` has returned None; 1006 if the connection broke."""

    async def send(self, text: str) -> None:
        """Send a message. On a closed websocket it is dropped, and the next `receive` returns None."""
        try:
            await self._connection.send_message(text)
        except ConnectionClosed:
            return

    async def receive(self) -> bytes | None:
        """Return the next message, or None if the websocket was closed; then `code` has the reason.

        Raises RunnerError `too_large` for a message beyond the bound.
        """
        try:
            message = await self._connection.get_message()
        except ConnectionClosed as closed:
            self.code = _ABNORMAL if closed.reason is None else closed.reason.code
            if closed.reason is not None and self.code == TOO_LARGE and "Exceeded" in (closed.reason.reason or ""):
                raise error(
                    ErrorKind.TOO_LARGE, f"a message of the runner is too large: {closed.reason.reason}"
                ) from None
            return None
        return message.encode() if isinstance(message, str) else message


@asynccontextmanager
async def open_socket(
    address: Address,
    resource: str,
    headers: list[tuple[bytes, bytes]],
    *,
    context: ssl.SSLContext | None,
    seconds: float,
    max_bytes: int,
    refusal: Refusal,
) -> AsyncIterator[Socket]:
    """Yield a websocket, opened within `seconds`, with messages of at most `max_bytes`. It is closed at the end.

    Raises RunnerError: `unavailable` without a runner, `lost`, or the failure that `refusal` makes of a rejected
    handshake. Cancelled, it is closed.
    """
    wire: _Wire | None = None
    try:
        with _one_error():
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(seconds) as opening:
                    wire = await _connected(address, context)
                    connection = await nursery.start(_serve, address, wire, resource, headers, max_bytes, refusal)
                    nursery.start_soon(_watch, connection, wire)
                if opening.cancelled_caught:
                    raise unreachable(address, f"no answer within {seconds:g} s")
                yield Socket(connection)
                with trio.move_on_after(_CLOSE_SECONDS):
                    await connection.aclose()
                nursery.cancel_scope.cancel()
    finally:
        if wire is not None:
            await trio.aclose_forcefully(wire)


@contextmanager
def _one_error() -> Iterator[None]:
    """Unwrap an exception that is alone in its group."""
    try:
        yield
    except BaseExceptionGroup as group:
        found = list(leaves(group))
        if len(found) > 1:
            raise
        raise found[0] from None


async def _connected(address: Address, context: ssl.SSLContext | None) -> _Wire:
    """Return the open stream, its TLS handshake done. Raises RunnerError."""
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except OSError as problem:
        raise unreachable(address, problem) from None
    except UnicodeError:  # not a host name
        raise unreachable(address, NO_HOST) from None
    if context is None:
        return _Wire(stream)
    secure = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except trio.BrokenResourceError as problem:
        await trio.aclose_forcefully(stream)
        raise unreachable(address, problem) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return _Wire(secure)


async def _serve(
    address: Address,
    wire: _Wire,
    resource: str,
    headers: list[tuple[bytes, bytes]],
    max_bytes: int,
    refusal: Refusal,
    *,
    task_status: trio.TaskStatus[WebSocketConnection],
) -> None:
    """Open the websocket and read from it until it ends. Raises RunnerError if it does not open."""
    opened = False
    try:
        async with trio.open_nursery() as nursery:
            wire.on_end = nursery.cancel_scope.cancel
            connection = await wrap_client_stream(
                nursery,
                wire,  # type: ignore[arg-type]  # its annotation names two classes, any stream works
                address.authority,
                resource,
                extra_headers=headers,
                message_queue_size=_QUEUED_MESSAGES,
                max_message_size=max_bytes,
                receive_buffer_size=65536,
            )
            wire.on_end = wire.budget = None
            opened = True
            task_status.started(connection)
    except BaseExceptionGroup as group:
        broken = [leaf for leaf in leaves(group) if isinstance(leaf, Exception)]
        if not broken or any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves(group)):
            raise
        rejected = next((leaf for leaf in broken if isinstance(leaf, ConnectionRejected)), None)
        if rejected is not None:
            raise RunnerError(_refused(rejected, refusal)) from None
        if not opened:
            raise not_a_runner(address, "it does not speak the websocket protocol") from None
        # The failure has closed the channel of messages, so the reader ends too.
        await wire.aclose()
    if not opened:
        raise lost(address, wire.broken or "it was closed before the websocket was open")


def _refused(rejected: ConnectionRejected, refusal: Refusal) -> Failure:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in rejected.headers or ()}
    return refusal(rejected.status_code, headers, rejected.body or b"")


async def _watch(connection: WebSocketConnection, wire: _Wire) -> None:
    """Close the stream if the server does not answer pings while a reader waits."""
    while True:
        await trio.sleep(_PING_SECONDS)
        with trio.move_on_after(_PING_SECONDS) as waiting:
            try:
                await connection.ping()
            except ConnectionClosed:
                return
        if waiting.cancelled_caught and wire.reading:
            await wire.aclose()
            return
