"""One RPC: its limits, its messages, its status. Trio only; bytes go by h2, waiting by the `Transport` it is given."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from typing import Any, Protocol, Self
from urllib.parse import quote

import structlog
import trio
from attrs import frozen
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from runner.groups import leaves
from runner.grpc.codec import MalformedError, decode, encode
from runner.status import CODES

MAX_STATUS_BYTES = 1000
"""Of a status message; it may take three times as many on the wire, and clients take 8 KiB of trailers."""
_HEAD = [(":status", "200"), ("content-type", "application/grpc+proto"), ("grpc-accept-encoding", "identity")]
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)

log = structlog.get_logger("grpc")


class GrpcStatus(IntEnum):
    """The statuses of gRPC by number."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(Exception):
    """A status that no `ErrorKind` stands for."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class GoneError(Exception):
    """Nobody is there who would read an answer."""


class SlowReaderError(Exception):
    """The client takes nothing of what it is sent."""


@frozen(kw_only=True)
class GrpcLimits:
    """What a client may take of the server, and how long."""

    max_message_bytes: int = 16 << 20
    """A larger message is answered RESOURCE_EXHAUSTED before it is read."""
    max_connections: int = 1000
    """A connection above this number is closed."""
    max_calls: int = 1000
    """Over all connections; one more is answered RESOURCE_EXHAUSTED. Health and reflection do not count."""
    message_seconds: float = 60.0
    """For a first message to arrive, and for a later one from its first byte to its last."""
    send_seconds: float = 30.0
    """A client that takes nothing of a message for so long is cut off."""
    graceful_seconds: float = 2.0
    """For calls to end by themselves once the door is closing."""
    ping_seconds: float = 30.0
    """After so long a client is asked whether it is there, time and again."""
    pong_seconds: float = 10.0
    """A client that does not answer in this time is cut off, and its calls are cancelled."""


@frozen
class Method:
    """One method of a service.

    The handler answers with one message, or sends messages and returns None. What it raises is the status of the call:
    a RunnerError by the table of `status`, a GrpcError its own, anything else INTERNAL.
    """

    handler: Callable[[Call], Awaitable[Any | None]]
    request: Any
    """The class of the messages that come in."""
    work: bool = True
    """Counts as a call: limited in number, and waited for at the end."""


class Transport(Protocol):
    """What a call needs of its connection and stream."""

    http: H2Connection
    stream_id: int

    @property
    def writable(self) -> bool:
        """Whether the buffer of the connection has room."""

    def has(self, size: int) -> bool:
        """Whether `read` would return so many bytes without a wait; False also when that is not known."""

    async def read(self, size: int) -> bytes:
        """Return `size` bytes that the client sent, b"" at its end; AssertionError when it ended before."""

    async def wait_writable(self) -> None:
        """Wait until the buffer of the connection has room or the client takes more."""

    def flush(self) -> None:
        """Send what h2 has ready. Raises GoneError."""

    def replied(self) -> None:
        """Note an answer that did not wait; a client that leaves too many unread is cut off."""


class Call:
    """One RPC as its handler sees it. Cancelled when the client cancels, leaves, or its deadline passes."""

    def __init__(self, transport: Transport, method: Method, metadata: Mapping[str, str], limits: GrpcLimits) -> None:
        self.metadata = metadata
        """What came with the call, names in lower case; of a name that is there twice the last one."""
        self.initial_metadata: list[tuple[str, str]] = []
        """What goes out ahead of the first message, names in lower case."""
        self.method = method
        self._transport = transport
        self._limits = limits
        self._scope = trio.CancelScope()
        self._why: Failure | None = None
        self._reading: trio.CancelScope | None = None
        self._first = True
        self._stopped = False
        self._begun = False  # the head of the answer was sent
        self._torn = False  # a message was sent in part

    # For handlers

    @property
    def remaining(self) -> float | None:
        """Seconds to the client's deadline, None without one."""
        if self._scope.deadline == math.inf:
            return None
        return max(0.001, self._scope.deadline - trio.current_time())

    async def receive(self) -> Any | None:
        """Return the next message, None when the client has ended its side.

        Raises RunnerError: `too_large`, `bad_input`, `shutdown` when the runner goes down meanwhile; GrpcError
        UNIMPLEMENTED for a compressed message.
        """
        head = await self._read(5, self._limits.message_seconds if self._first else math.inf)
        if not head:
            return None
        self._first = False
        if head[0]:
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, "compressed messages are not supported")
        size = int.from_bytes(head[1:], "big")
        if size > self._limits.max_message_bytes:
            text = f"the message of {size} bytes is over {self._limits.max_message_bytes}; the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text)
        data = await self._read(size, self._limits.message_seconds) if size else b""
        if len(data) < size:
            raise error(ErrorKind.BAD_INPUT, "the message is cut off")
        try:
            return decode(self.method.request, data)
        except MalformedError as problem:
            raise error(ErrorKind.BAD_INPUT, f"the message is malformed: {problem}") from None

    async def send(self, *messages: Any) -> None:
        """Send messages; waits while the client does not read, `send_seconds` at most without progress."""
        for message in messages:
            await self._write(encode(message))
        self._transport.flush()
        await trio.lowlevel.checkpoint()

    # For grpclib's reflection, which has names of its own for the two

    recv_message = receive
    send_message = send

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    # For the door

    def begin(self, *, known: bool, full: bool, draining: bool) -> None:
        """Look at the head of the call. Raises RunnerError or GrpcError for one that is not to be run."""
        fields = self.metadata
        if fields.get(":method") != "POST" or not fields.get("content-type", "").startswith("application/grpc"):
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "gRPC is POST with content-type application/grpc")
        if not known:
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, f"there is no method {fields.get(':path', '')}")
        if "grpc-timeout" in fields:
            found = _TIMEOUT.fullmatch(fields["grpc-timeout"])
            if found is None:
                raise error(ErrorKind.BAD_INPUT, "the deadline is not valid", field="grpc-timeout")
            seconds = int(found[1]) * _UNITS[found[2]]
            if not seconds:
                raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "the deadline had passed")
            self._scope.deadline = trio.current_time() + seconds
        if self.method.work and draining:
            raise RunnerError(shutting_down())
        if self.method.work and full:
            raise error(ErrorKind.OVERLOADED, "too many calls are running", retry_after=1)

    async def run(self) -> None:
        """Serve the call to its end. Raises only a cancellation from outside."""
        with self._scope:
            try:
                answer = await self.method.handler(self)
                if answer is not None:
                    await self._write(encode(answer))
                self._end(GrpcStatus.OK, [])
            except Exception as problem:  # noqa: BLE001 - `refuse` logs what is a bug
                self.refuse(problem)
            except BaseExceptionGroup as group:
                cancelled, rest = group.split(trio.Cancelled)
                if rest is not None:
                    self.refuse(rest)
                if cancelled is not None:
                    raise cancelled from None
        if self._scope.cancelled_caught:
            if self._why is not None:
                self.refuse(RunnerError(self._why))
            elif trio.current_time() >= self._scope.deadline:
                self.refuse(GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "the deadline passed"))

    def cancel(self, why: Failure | None = None) -> None:
        """End the call: `why` is what the client is told, None when it is gone."""
        self._why = why
        self._scope.cancel()

    def stop_receiving(self) -> None:
        """Let the call end with what it has received, since the runner goes down."""
        if self.method.work:
            self._stopped = True
            if self._reading is not None:
                self._reading.cancel()

    def refuse(self, problem: BaseException) -> None:
        """End the call with the status of an exception; does not wait, and does not raise."""
        found = _telling(problem)
        if isinstance(found, GoneError | H2Error | ConnectionError):
            self._reset(ErrorCodes.CANCEL)
        elif isinstance(found, SlowReaderError):
            self._reset(ErrorCodes.ENHANCE_YOUR_CALM)
        elif isinstance(found, GrpcError):
            self._end(found.status, _message(str(found)))
        elif isinstance(found, RunnerError):
            failure = found.failure
            self._end(GrpcStatus[CODES[failure.kind].grpc], [*_message(failure.message), *_details(failure)])
        else:
            log.error("a call failed inside the runner", method=self.metadata.get(":path"), exc_info=problem)
            self._end(GrpcStatus.INTERNAL, _message("the runner failed; its log says why"))

    # Bytes

    async def _read(self, size: int, seconds: float) -> bytes:
        if self._stopped:
            raise RunnerError(shutting_down())
        if self._transport.has(size):  # nearly always, and a cancel scope costs as much as all of this
            return await self._transport.read(size)
        self._reading = trio.CancelScope(deadline=trio.current_time() + seconds)
        try:
            with self._reading:
                return await self._transport.read(size)
        except AssertionError:  # what grpclib raises
            raise error(ErrorKind.BAD_INPUT, "the message is cut off") from None
        finally:
            self._reading = None
        if self._stopped:
            raise RunnerError(shutting_down())
        raise error(ErrorKind.BAD_INPUT, f"the message did not arrive in {seconds:g} s")

    async def _write(self, data: bytes) -> None:
        """Give a message to h2, in parts as far as the client takes it. What is whole may wait for the next flush."""
        transport, stream = self._transport, self._transport.stream_id
        http = transport.http
        if not self._begun:
            self._begun = True
            http.send_headers(stream, [*_HEAD, *self.initial_metadata])
        rest = memoryview(b"\0" + len(data).to_bytes(4, "big") + data)
        while True:
            room = min(http.local_flow_control_window(stream), http.max_outbound_frame_size)
            if transport.writable and room > 0:
                http.send_data(stream, bytes(rest[:room]))
                rest = rest[room:]
                if not rest:
                    self._torn = False
                    return
                self._torn = True
                transport.flush()
                await trio.lowlevel.checkpoint()
            else:
                transport.flush()
                with trio.move_on_after(self._limits.send_seconds) as scope:
                    await transport.wait_writable()
                if scope.cancelled_caught:
                    raise SlowReaderError(f"nothing was taken for {self._limits.send_seconds:g} s")

    def _end(self, status: GrpcStatus, details: list[tuple[str, str]]) -> None:
        """Send the status, which does not wait. After a torn message there is nothing to be said but a reset."""
        if self._torn:
            self._reset(ErrorCodes.CANCEL)
            return
        transport = self._transport
        head = [] if self._begun else _HEAD
        try:
            transport.http.send_headers(
                transport.stream_id, [*head, ("grpc-status", str(int(status))), *details], end_stream=True
            )
            if status is not GrpcStatus.OK:
                self._reset(ErrorCodes.NO_ERROR)  # the client may send what it likes, nobody reads it
            transport.flush()
            transport.replied()
        except (H2Error, GoneError):
            pass  # the client is gone, or has cancelled

    def _reset(self, code: ErrorCodes) -> None:
        """End the stream, where it is open on any side, and send what is ready."""
        transport = self._transport
        with suppress(H2Error, GoneError):
            stream = transport.http.streams.get(transport.stream_id)
            if stream is not None and not stream.closed:
                transport.http.reset_stream(transport.stream_id, code)
        with suppress(GoneError):
            transport.flush()


def _telling(problem: BaseException) -> BaseException:
    """Return the exception of a group that says most: a bug before what was raised on purpose."""
    found = list(leaves(problem))
    known = (RunnerError, GrpcError, GoneError, SlowReaderError, H2Error)
    return next((leaf for leaf in found if not isinstance(leaf, known)), found[0])


def _message(text: str) -> list[tuple[str, str]]:
    cut = text.encode()[:MAX_STATUS_BYTES].decode(errors="ignore")
    return [("grpc-message", quote(cut, safe=_PRINTABLE))]


def _details(failure: Failure) -> list[tuple[str, str]]:
    """Return the trailing metadata that says of a failure what its status does not."""
    details = [("operato-kind", failure.kind.value)]
    if failure.field is not None:
        details.append(("operato-field", quote(failure.field, safe=_PRINTABLE)))
    if failure.retry_after is not None:
        details.append(("retry-after", str(max(1, math.ceil(failure.retry_after)))))
    return details
