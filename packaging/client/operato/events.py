"""The events of an execution, each once and in order, also over lost connections and restarts of the runner."""

from __future__ import annotations

import json
import time
from typing import Any

from operato.connection import Link, Reply, segment
from operato.errors import (
    InternalError,
    LostError,
    OperatoError,
    OverloadedError,
    ShutdownError,
    UnauthenticatedError,
    UnavailableError,
    failure,
)
from operato.records import Event

PATIENCE_SECONDS = 60.0
"""How long a runner may be away."""
SILENCE_SECONDS = 45.0
"""A runner sends a comment every 15 seconds: one that is silent for so long is lost."""
_COMMENT_SECONDS = 15.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_AWAY = (UnavailableError, LostError, ShutdownError, OverloadedError)
_MAX_EVENT_BYTES = 256 * 1024 * 1024


class Events:
    """A reader of events. `deadline`, by the monotonic clock, ends it with TimeoutError."""

    def __init__(self, link: Link, identity: str, start: int, deadline: float | None = None) -> None:
        self._link = link
        self._path = f"/executions/{segment(identity)}/events"
        self._next = start
        self._deadline = deadline
        self._reply: Reply | None = None
        self._limit = SILENCE_SECONDS
        self._data = bytearray()
        self._ended = self._connected = False
        self._heard_at, self._pause = time.monotonic(), _FIRST_PAUSE

    async def take(self) -> Event | None:
        """Return the next event, None after the last one. Raises OperatoError, TimeoutError."""
        while not self._ended:
            try:
                if self._reply is None and not await self._connect():
                    break
                event = await self._event()
            except _AWAY as problem:
                await self._lost(problem)
                continue
            if event is not None:
                self._next = event.seq + 1
                self._ended = event.last
                if self._ended:
                    await self.close()
                return event
        return None

    async def close(self) -> None:
        """Close the connection."""
        reply, self._reply = self._reply, None
        self._data.clear()
        if reply is not None:
            await reply.close()

    async def _connect(self) -> bool:
        """Open a connection; return False if the last event was read already."""
        remaining = self._remaining()
        self._limit = SILENCE_SECONDS if remaining is None else min(SILENCE_SECONDS, remaining)
        reply = await self._link.open("GET", self._path, query={"from": self._next}, seconds=self._limit)
        if reply.status == 204:
            await reply.close()
            self._ended = True
            return False
        self._reply, self._connected = reply, True
        return True

    async def _event(self) -> Event | None:
        """Return the next event, None for a comment. Raises LostError at the end of the connection."""
        if self._reply is None:
            raise LostError("the connection was closed")
        while b"\n\n" not in self._data:
            part = await self._reply.part()
            if not part:
                raise LostError("the runner ended the stream before the execution")
            self._data += part
            if len(self._data) > _MAX_EVENT_BYTES:
                raise InternalError("an event of the runner is too large")
            self._heard()
        block, _, rest = bytes(self._data).partition(b"\n\n")
        self._data[:] = rest
        remaining = self._remaining()
        if remaining is not None and self._limit > remaining < _COMMENT_SECONDS and b"\n\n" not in self._data:
            await self.close()  # the connection would wait longer than the caller
        return _parsed(block)

    async def _lost(self, problem: OperatoError) -> None:
        """Wait for the runner to come back. Raises the problem when it was away for too long."""
        await self.close()
        remaining = self._remaining()
        if not self._connected or time.monotonic() - self._heard_at > PATIENCE_SECONDS:
            raise problem
        await self._link.transport.sleep(self._pause if remaining is None else min(self._pause, remaining))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _remaining(self) -> float | None:
        if self._deadline is None:
            return None
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the execution has not ended in time")
        return remaining

    def _heard(self) -> None:
        self._heard_at, self._pause = time.monotonic(), _FIRST_PAUSE


def _parsed(block: bytes) -> Event | None:
    """Return the event in a block of lines, None for a comment. Raises the error that ends a stream early."""
    lines = [line.partition(b": ") for line in block.split(b"\n")]
    data = b"\n".join(value for name, _, value in lines if name == b"data")
    if not data:
        return None
    try:
        fields: dict[str, Any] = json.loads(data)
        if not any(name == b"id" for name, _, _ in lines):
            problem = failure(fields["error"])
            raise problem if isinstance(problem, (UnauthenticatedError, InternalError)) else _away(problem)
        return Event(str(fields["type"]), int(fields["seq"]), float(fields.get("at", 0.0)), fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InternalError("an event of the runner cannot be read") from None


def _away(problem: OperatoError) -> OperatoError:
    return problem if isinstance(problem, _AWAY) else LostError(problem.message)
