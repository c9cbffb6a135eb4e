"""Questions and their answers over the link: one subscription serves all of them."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import attrs
import msgspec
import trio

from actors.cluster.engine.connection import Connection
from actors.cluster.engine.messages import (
    NO_RESPONDERS,
    AwayError,
    LeaderlessError,
    Message,
    OversizeError,
    RefusedError,
    StaleError,
    Stored,
    UnansweredError,
    from_get,
    read_answer,
)

_NO_MESSAGE: Final = 10037
_HEADERS_BYTES: Final = 1024
"""Room for the headers of a message, which count as its data."""
MAX_ASKED: Final = 1024
"""Questions without an answer yet; more wait for their turn."""

Hear = Callable[[Message | None], None]
"""Hears the messages of an inbox."""


@attrs.define(eq=False)
class _Waiting:
    """A task that waits for an answer; None if the connection was lost."""

    task: trio.lowlevel.Task
    message: Message | None = None


class Requests:
    """Asks, and hands each answer to the task that waits for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = f"_INBOX.{secrets.token_hex(11)}."
        self._numbers = itertools.count()
        self._waiting: dict[str, _Waiting | Hear] = {}
        self._asked = 0
        self._turns = trio.lowlevel.ParkingLot()
        connection.subscribe(self._inbox + "*", self._answered)
        connection.losses.add(self._lose)

    async def ask(
        self, subject: str, data: bytes = b"", *, headers: dict[str, str] | None = None, timeout: float = 5.0
    ) -> Message:
        """Return the answer. Raises `AwayError` if none came, `UnansweredError` if the subject is not served."""
        with trio.move_on_after(timeout):
            while self._asked >= MAX_ASKED:
                await self._turns.park()
            await self._connection.room()
            self._asked += 1
            inbox = f"{self._inbox}{next(self._numbers):x}"
            self._waiting[inbox] = waiting = _Waiting(trio.lowlevel.current_task())
            try:
                self._connection.post(subject, data, inbox, headers)
                await trio.lowlevel.wait_task_rescheduled(partial(self._interrupted, inbox))
            finally:
                self._waiting.pop(inbox, None)
                self._asked -= 1
                if self._turns:
                    self._turns.unpark()
            message = waiting.message
            if message is None:
                raise AwayError("the connection to the cluster's servers was lost")
            if not message.data and message.status == NO_RESPONDERS:
                raise UnansweredError(f"no runner serves {subject}")
            return message
        raise AwayError(f"no answer in {timeout:g} s")

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        headers: Mapping[str, str] | None = None,
        ttl: float | None = None,
        message_id: str | None = None,
        timeout: float = 5.0,
    ) -> int:
        """Store a message; see `Engine.publish`."""
        if len(data) > self._connection.max_payload - _HEADERS_BYTES:
            raise OversizeError(f"a message of {len(data)} bytes: the servers take {self._connection.max_payload}")
        sent = dict(headers) if headers else {}
        if expect is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        if ttl is not None:
            sent["Nats-TTL"] = f"{max(ttl, 1.0):.0f}s"
        if message_id is not None:
            sent["Nats-Msg-Id"] = message_id
        try:
            answer = await self.ask(subject, data, headers=sent or None, timeout=timeout)
        except UnansweredError as error:
            raise LeaderlessError(f"the stream of {subject} or its leader is away") from error
        try:
            sequence: int = read_answer(answer)["seq"]
        except StaleError as stale:
            own = await self.last(stale.stream, subject) if message_id is not None else None
            if own is None or own.headers.get("Nats-Msg-Id") != message_id:
                raise
            return own.sequence
        return sequence

    async def call(self, subject: str, body: Any = None, *, timeout: float = 5.0) -> dict[str, Any]:
        """Ask the engine's own interface, with JSON. Raises as `read_answer`."""
        data = b"" if body is None else msgspec.json.encode(body)
        try:
            return read_answer(await self.ask(subject, data, timeout=timeout))
        except UnansweredError as error:
            raise AwayError(str(error)) from error

    async def last(self, stream: str, subject: str, *, timeout: float = 5.0) -> Stored | None:
        """Return the last message of a subject as the leader of the stream has it."""
        try:
            found = await self.call(f"$JS.API.STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout=timeout)
        except RefusedError as error:
            if error.code == _NO_MESSAGE:
                return None
            raise
        return from_get(found["message"])

    async def batch(self, subject: str, body: Any, *, timeout: float) -> Sequence[Message]:
        """Return the messages that answer a question of the engine's own interface, up to the one that ends them.

        `timeout` is for each. Raises `AwayError`.
        """
        found: list[Message] = []
        arrived = trio.Event()

        def receive(message: Message | None) -> None:
            if message is not None:
                found.append(message)
            arrived.set()

        inbox = self.open(receive)
        try:
            self._connection.post(subject, msgspec.json.encode(body), inbox)
            while not (found and found[-1].status):
                arrived = trio.Event()
                before = len(found)
                with trio.move_on_after(timeout):
                    await arrived.wait()
                if len(found) == before or found[-1].status == NO_RESPONDERS:
                    raise AwayError(f"no answer in {timeout:g} s, or the connection was lost")
            return found[:-1]
        finally:
            self.close(inbox)

    def open(self, hear: Hear) -> str:
        """Return an inbox whose messages go to `hear` until it is closed, and None when the connection is lost."""
        inbox = f"{self._inbox}{next(self._numbers):x}"
        self._waiting[inbox] = hear
        return inbox

    def close(self, inbox: str) -> None:
        """Forget an inbox; later messages are dropped."""
        self._waiting.pop(inbox, None)

    def _lose(self) -> None:
        """Fail all questions, and tell all inboxes by None: the connection that they went over is lost."""
        for inbox, waiting in list(self._waiting.items()):
            del self._waiting[inbox]
            if isinstance(waiting, _Waiting):
                trio.lowlevel.reschedule(waiting.task)
            else:
                waiting(None)

    def _answered(self, message: Message) -> None:
        waiting = self._waiting.get(message.subject)
        if isinstance(waiting, _Waiting):
            del self._waiting[message.subject]
            waiting.message = message
            trio.lowlevel.reschedule(waiting.task)
        elif waiting is not None:
            waiting(message)

    def _interrupted(self, inbox: str, _: Any) -> trio.lowlevel.Abort:
        del self._waiting[inbox]  # an answer that arrives before the task runs must not wake it again
        return trio.lowlevel.Abort.SUCCEEDED
