"""The handshake and the frames of a websocket, by wsproto: which requests open one, what is agreed on, what arrives."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, Final

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.events import Message as MessageEvent
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import generate_accept_token, split_comma_header

from runner.http.messages import Headers
from runner.http.requests import Head, RefusedError
from runner.wire import Budget

INFLATED_BYTES: Final = 1024
"""So many compressed bytes at a time are inflated: to 1 MiB at most, as deflate shrinks 1,032 times at best."""
PARSED_BYTES: Final = 65_536
"""So many bytes at a time are parsed without compression."""
DEFLATED_BYTES: Final = 65_536
"""Larger messages to the client are not compressed."""
MOST_EMPTY_FRAMES: Final = 500
"""Frames in a second that carry next to nothing: control frames, and small pieces of messages."""
SMALL_BYTES: Final = 256
_VERSION: Final = b"13"


def check_handshake(head: Head) -> None:
    """Raise RefusedError, with the status and headers of its answer, if a request does not open a websocket."""
    fields = head.fields
    tokens = [
        each.strip(b" \t").lower()
        for name, value in head.headers
        if name == b"connection"
        for each in value.split(b",")
    ]
    if head.version != "1.1" or b"upgrade" not in tokens:
        raise RefusedError(400, "a websocket handshake has `Connection: Upgrade`, in HTTP/1.1")
    if fields.get(b"sec-websocket-version") != _VERSION:
        offer = [(b"sec-websocket-version", _VERSION), (b"upgrade", b"websocket")]
        raise RefusedError(426, "the only version of websockets here is 13; give it as `Sec-WebSocket-Version`", offer)
    try:
        key = base64.b64decode(fields.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        raise RefusedError(400, "`Sec-WebSocket-Key` is not the base64 of 16 bytes")
    for name in (b"sec-websocket-protocol", b"sec-websocket-extensions"):
        listed(head, name)


def listed(head: Head, name: bytes) -> list[str]:
    """Return the members of all fields of a name, such as subprotocols. Raises RefusedError if one is not ASCII."""
    value = b",".join(value for field, value in head.headers if field == name)
    if not value.isascii():
        raise RefusedError(400, f"the field `{name.decode()}` is not ASCII")
    return split_comma_header(value) if value else []


def agree(head: Head, subprotocol: str | None, deflate: Deflate) -> Headers:
    """Return the headers that accept a handshake; `deflate` is enabled if the client offers compression."""
    headers: Headers = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-accept", generate_accept_token(head.fields[b"sec-websocket-key"])),
    ]
    if subprotocol is not None:
        if subprotocol not in listed(head, b"sec-websocket-protocol"):
            raise RuntimeError("the client did not offer this subprotocol")
        headers.append((b"sec-websocket-protocol", subprotocol.encode("ascii")))
    offers = listed(head, b"sec-websocket-extensions")
    try:
        accepted = server_extensions_handshake(offers, [deflate]) if offers else None
    except ValueError:  # a parameter that should be a number
        accepted = None
    if accepted:
        headers.append((b"sec-websocket-extensions", accepted))
    return headers


class ClosingError(Exception):
    """The client broke a rule or a limit; carries the code and the reason of the close frame."""

    def __init__(self, code: int, reason: str | None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Deflate(PerMessageDeflate):
    """Compression of messages, except large ones to the client: that would hold up all other tasks."""

    def frame_outbound(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        data: bytes,
        fin: bool,
    ) -> tuple[RsvBits, bytes]:
        """Return the bits and the data of a frame; a message that is not compressed has its bit unset."""
        if fin and opcode is not Opcode.CONTINUATION and len(data) > DEFLATED_BYTES:
            return rsv, data
        return super().frame_outbound(proto, opcode, rsv, data, fin)


class Frames:
    """The frames of an accepted websocket, in both directions."""

    def __init__(self, deflate: Deflate, max_bytes: int, budget: Budget) -> None:
        """Limit a message to `max_bytes`; the bytes of messages are taken from `budget`, and `give` returns them."""
        extensions = [deflate] if deflate.enabled() else []
        self.connection = Connection(ConnectionType.SERVER, [*extensions])
        self.size = 0
        """The bytes of the last message."""
        self._step = INFLATED_BYTES if extensions else PARSED_BYTES
        self._max_bytes = max_bytes
        self._budget = budget
        self._held = 0
        self._unparsed = b""
        self._events: Iterator[Event] | None = None
        self._message = bytearray()
        self._second = 0
        self._empty_frames = 0

    @property
    def waiting(self) -> bool:
        """Whether bytes have arrived that are not parsed."""
        return self._events is not None or bool(self._unparsed)

    def feed(self, data: bytes) -> None:
        """Add bytes from the client."""
        self._unparsed += data

    def take(self) -> bytes | str | Ping | CloseConnection | None:
        """Parse one frame, or a piece of one; return the message that it ends, a ping or the client's close.

        Raises ClosingError.
        """
        if self._events is None:
            piece, self._unparsed = self._unparsed[: self._step], self._unparsed[self._step :]
            self.connection.receive_data(piece)
            self._events = self.connection.events()
        event = next(self._events, None)
        if isinstance(event, MessageEvent):
            return self._extend(event)
        if isinstance(event, Ping | Pong):
            self._count()
            return event if isinstance(event, Ping) else None
        if isinstance(event, CloseConnection):
            if self.connection.state is ConnectionState.REMOTE_CLOSING:
                return event
            raise ClosingError(event.code, event.reason)
        self._events = None
        return None

    def give(self, size: int) -> None:
        """Give back the bytes of a message that is not kept any more."""
        self._held -= size
        self._budget.give(size)

    def close(self) -> None:
        """Drop what has arrived."""
        self.give(self._held)
        self._events, self._unparsed = None, b""
        self._message.clear()

    def _extend(self, event: MessageEvent[Any]) -> bytes | str | None:
        data = event.data.encode() if isinstance(event.data, str) else event.data
        if len(self._message) + len(data) > self._max_bytes:
            raise ClosingError(CloseReason.MESSAGE_TOO_BIG, f"a message is over {self._max_bytes} bytes")
        if not self._budget.take(len(data)):
            text = "unfinished requests take all the memory of `max_buffered`"
            raise ClosingError(CloseReason.TRY_AGAIN_LATER, text)
        self._held += len(data)
        self._message += data
        if event.message_finished:
            whole, self._message = bytes(self._message), bytearray()
            self.size = len(whole)
            return whole.decode() if isinstance(event, TextMessage) else whole
        if event.frame_finished and len(data) < SMALL_BYTES:
            self._count()
        return None

    def _count(self) -> None:
        """Count a frame that carries next to nothing."""
        second = int(trio.current_time())
        if second != self._second:
            self._second, self._empty_frames = second, 0
        self._empty_frames += 1
        if self._empty_frames > MOST_EMPTY_FRAMES:
            text = f"over {MOST_EMPTY_FRAMES} control frames and small fragments in a second"
            raise ClosingError(CloseReason.POLICY_VIOLATION, text)
