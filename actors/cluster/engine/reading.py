"""A stream read in order, over lost connections and servers that come and go."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from typing import Any, Final

import trio

from actors.cluster.engine.connection import Connection
from actors.cluster.engine.messages import AwayError, RefusedError, Stored, position
from actors.cluster.engine.pulling import HEARTBEAT_SECONDS, NANO, Pull
from actors.cluster.engine.requests import Requests

_BATCH: Final = 512
_BATCH_BYTES: Final = 4 * 1024 * 1024
"""The size of one question, which bounds the messages that wait here."""
_EXPIRES_SECONDS: Final = 30
_FORGET_SECONDS: Final = 30
"""After this time the engine forgets the consumer of a reader that is gone."""
_PAUSE_SECONDS: Final = 0.25
_ATTEMPTS: Final = 4
_PLACES: Final = 12
"""Servers choose by chance which of them has a consumer: so often it is made again to have it at the leader."""


class Reader:
    """Gives the messages of a stream after a position, in order and each once.

    Its consumer lives in the memory of one server and is made again where the last message ended, whenever a message
    is missing or the server does not answer.
    """

    def __init__(
        self, connection: Connection, requests: Requests, stream: str, *, after: int, subjects: Sequence[str]
    ) -> None:
        self.position = after
        """The sequence of the last message that was given."""
        self.pending = 0
        """Messages that follow it in the stream, as of the last answer."""
        self._requests = requests
        self._connection = connection
        self._stream = stream
        self._subjects = list(subjects)
        self._name = ""
        self._number = 0
        self._behind = 0
        self._pull = Pull(connection, late=lambda _: None)

    async def batch(self) -> Sequence[Stored]:
        """Return the next messages, at least one. Waits for the first one, also without a connection.

        A cancelled call loses none. A stream that is gone is waited for: `open_engine` makes it again.
        """
        while True:
            try:
                if not self._name:
                    await self._begin()
                if not self._pull.open and not self._pull.messages:
                    self._ask()
                await self._pull.wait()
            except AwayError:
                self._drop()
                await trio.sleep(_PAUSE_SECONDS)
                continue
            found = self._take()
            if found:
                return found
            if self._pull.status and self._pull.status not in _OVER:
                self._drop()  # the consumer is gone, or about to

    def close(self) -> None:
        """Ask for no more."""
        self._pull.close()
        self._drop()

    def _drop(self) -> None:
        """Remove the consumer. If the word is lost, the engine forgets it after a while."""
        name, self._name = self._name, ""
        if name:
            with contextlib.suppress(AwayError):
                self._connection.post(f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}", b"")

    async def _begin(self) -> None:
        """Make a consumer that continues after the position."""
        self._pull.withdraw()
        leader = await self._check()
        for _ in range(_PLACES):
            placed = await self._make()
            if placed in (None, leader) or not self.pending:  # a server alone; new messages reach all alike
                return
            self._drop()
        await self._make()

    async def _make(self) -> str | None:
        """Make a consumer; return which of several servers has it."""
        name = secrets.token_hex(8)
        config: dict[str, Any] = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.position + 1,
            "ack_policy": "none",
            "max_deliver": 1,
            "inactive_threshold": _FORGET_SECONDS * NANO,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if self._subjects:
            config["filter_subjects"] = self._subjects
        subject = f"$JS.API.CONSUMER.CREATE.{self._stream}.{name}"
        try:
            answer = await self._requests.call(subject, {"stream_name": self._stream, "config": config})
        except RefusedError as error:  # no server has room for the consumer now, or the stream is about to be made
            raise AwayError(str(error)) from error
        self._name, self._number, self.pending = name, 0, answer.get("num_pending", 0)
        server: str | None = (answer.get("cluster") or {}).get("leader")
        return server

    async def _check(self) -> str | None:
        """Go back to the beginning where the stream ends before the position: another one has taken its place.

        Returns the server that leads the stream: runners offer again what that server lacks, not what others lack.

        A leader that has just been elected may lag for a moment, so it is asked several times.
        """
        try:
            found = await self._requests.call(f"$JS.API.STREAM.INFO.{self._stream}")
        except RefusedError as error:
            raise AwayError(str(error)) from error
        leader: str | None = (found.get("cluster") or {}).get("leader")
        if found["state"]["last_seq"] >= self.position:
            self._behind = 0
            return leader
        self._behind += 1
        if self._behind < _ATTEMPTS:
            raise AwayError("the stream ends before the position")
        self.position = self._behind = 0
        return leader

    def _ask(self) -> None:
        body = {
            "max_bytes": max(_BATCH_BYTES, 2 * self._connection.max_payload),
            "expires": _EXPIRES_SECONDS * NANO,
            "idle_heartbeat": HEARTBEAT_SECONDS * NANO,
        }
        self._pull.ask(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", _BATCH, body)

    def _take(self) -> Sequence[Stored]:
        """Return the messages that are here, up to one that is missing."""
        found = []
        while self._pull.messages:
            message = self._pull.messages.popleft()
            at = position(message.reply)
            self._number += 1
            if at.number != self._number:
                self._drop()
                self._pull.withdraw()
                break
            self.position, self.pending = at.sequence, at.pending
            found.append(Stored(message.subject, message.data, at.sequence, at.time, message.headers))
        return found


_OVER: Final = frozenset({"404", "408"})
"""The time of a question is over, and its consumer is as before."""
