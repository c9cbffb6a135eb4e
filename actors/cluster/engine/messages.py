"""Messages of the engine as values: those of the link, those of streams, and failures, which its users decide about."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import msgspec

NO_RESPONDERS: Final = "503"
_STALE: Final = frozenset({10071, 10164})
"""The engine's numbers for a wrong expected sequence: on the subject; of a publish that another one overtook."""
_FULL: Final = frozenset({10002, 10023, 10028, 10047, 10077})
"""Its numbers for limits of the account and of a server, and for a failed write."""
_NONE: Final[Mapping[str, str]] = {}


class EngineError(Exception):
    """Any failure of the engine."""


class StaleError(EngineError):
    """The subject has a later message than expected: nothing was stored."""

    def __init__(self, text: str, stream: str = "") -> None:
        super().__init__(text)
        self.stream = stream


class AwayError(EngineError):
    """No answer: the connection or the leader is away. A publish may be stored or not; see `Engine.publish`."""


class LeaderlessError(AwayError):
    """No server leads the stream at present: nothing was stored."""


class FullError(AwayError):
    """The servers, or the account, have no room at present: nothing was stored."""

    def __init__(self, text: str) -> None:
        super().__init__(f"no room: {text}; raise `max_file_store` of the servers, or the limit of the account")


class RefusedError(EngineError):
    """The engine refused for another reason, which the text names: nothing was stored."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code
        """The engine's own number of the error, or 0."""


class OversizeError(RefusedError):
    """The message is larger than the servers take: it never goes through."""


class UnansweredError(EngineError):
    """No runner serves the subject, or the runner that answered went away."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message over the link. `status` is set on messages of the server itself, which have no data."""

    subject: str
    data: bytes
    reply: str = ""
    headers: Mapping[str, str] = _NONE

    @property
    def status(self) -> str:
        """The number of the status line, or an empty text."""
        return self.headers.get("Status", "")


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One message of a stream. `time` is the engine's clock, in seconds since 1970."""

    subject: str
    data: bytes
    sequence: int
    time: float
    headers: Mapping[str, str] = _NONE

    @property
    def gone(self) -> bool:
        """Whether it marks the end of a message whose time to live is over."""
        return "Nats-Marker-Reason" in self.headers


class Extent(msgspec.Struct, frozen=True):
    """Which stream it is, and where it ends."""

    made: str
    """When it was made: one that was made again is another stream."""
    last: int
    """The sequence of its last message, or of the last one that there was."""
    led: str = ""
    """Which server leads it and since when; nothing for one without replicas."""


def from_direct(message: Message) -> Stored:
    """Return the message of an answer to a direct get."""
    headers = message.headers
    return Stored(
        subject=headers["Nats-Subject"],
        data=message.data,
        sequence=int(headers["Nats-Sequence"]),
        time=_seconds(headers["Nats-Time-Stamp"]),
        headers={name: value for name, value in headers.items() if name not in _OF_DIRECT},
    )


_OF_DIRECT: Final = frozenset(
    {"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"}
)


class Position(msgspec.Struct, frozen=True, gc=False):
    """What the subject for the acknowledgement of a delivered message says about it."""

    delivered: int
    """How many times it was delivered, this time included."""
    sequence: int
    """In the stream."""
    number: int
    """In the deliveries of the consumer, without gaps."""
    time: float
    pending: int
    """Messages of the consumer that follow."""


def position(reply: str) -> Position:
    """Return the position that is written in the reply subject of a delivered message."""
    parts = reply.split(".")
    first = 4 if len(parts) == _SHORT else 6  # the longer form names a domain and an account first
    delivered, sequence, number, nanoseconds, pending = (int(part) for part in parts[first : first + 5])
    return Position(delivered, sequence, number, nanoseconds / 1e9, pending)


_SHORT: Final = 9


def from_get(message: Mapping[str, Any]) -> Stored:
    """Return the message of an answer of the leader, which is JSON."""
    lines = base64.b64decode(message.get("hdrs", "")).decode(errors="replace").split("\r\n")[1:]
    headers = {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
    data = base64.b64decode(message.get("data", ""))
    return Stored(message["subject"], data, message["seq"], _seconds(message["time"]), headers or _NONE)


def _seconds(text: str) -> float:
    """Read a time of RFC 3339 with nanoseconds."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return dt.datetime.fromisoformat(whole + "+00:00").timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def read_answer(message: Message) -> dict[str, Any]:
    """Return an answer of the engine. Raises `StaleError`, `AwayError` where it cannot answer now, `RefusedError`."""
    if message.status == NO_RESPONDERS:
        raise AwayError("the stream or its leader is away")
    answer: dict[str, Any] = msgspec.json.decode(message.data)
    failed = answer.get("error")
    if failed is None:
        return answer
    code, text = failed.get("err_code", 0), failed.get("description", "refused")
    if code in _STALE:
        raise StaleError(text, answer.get("stream", ""))
    if code in _FULL:
        raise FullError(text)
    if failed.get("code") == 503:
        raise AwayError(text)
    raise RefusedError(text, code)
