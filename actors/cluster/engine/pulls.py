"""Messages of a consumer, asked for: what a reader of a stream and a puller of jobs have in common."""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import trio

from actors.cluster.engine.errors import AwayError
from actors.cluster.engine.link import Handle, Link, Subscription
from actors.cluster.engine.messages import Message

NANO: Final = 1_000_000_000
HEARTBEAT_SECONDS: Final = 2
_SILENCE_SECONDS: Final = 2.5 * HEARTBEAT_SECONDS
"""After this silence the server of the consumer counts as gone, which nobody else tells."""
_HEARTBEAT: Final = "100"


class Pull:
    """One question at a time, and the messages that it brought. It has an inbox of its own.

    The engine forgets a question when nobody listens at its inbox: `withdraw` ends both.
    """

    def __init__(self, link: Link, late: Handle) -> None:
        self.messages: deque[Message] = deque()
        self.open = 0
        """How many messages the question may still bring; 0 after its end."""
        self.status = ""
        """Why the engine ended the question; empty if it brought all."""
        self._link = link
        self._late = late
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._arrived = trio.Event()
        link.losses.add(self._lost)

    def ask(self, subject: str, count: int, body: Mapping[str, Any]) -> None:
        """Ask for up to `count` messages. Raises `AwayError`."""
        if self._subscription is None:
            self._inbox = f"_INBOX.{secrets.token_hex(11)}"
            self._subscription = self._link.subscribe(self._inbox, self._receive)
        self._link.post(subject, json.dumps({"batch": count, **body}).encode(), self._inbox)
        self.open, self.status = count, ""

    async def wait(self) -> None:
        """Wait until there is a message, or the question has ended. Raises `AwayError` after a silence."""
        while self.open and not self.messages:
            self._arrived = trio.Event()
            with trio.move_on_after(_SILENCE_SECONDS):
                await self._arrived.wait()
                continue
            self.withdraw()
            raise AwayError("the server of the consumer does not answer")

    def withdraw(self) -> None:
        """End the question. Messages that are on their way go to `late`, as those that were not taken."""
        self.open = 0
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.handle = self._too_late
            self._link.unsubscribe(subscription)
        while self.messages:
            self._late(self.messages.popleft())

    def close(self) -> None:
        """Withdraw, for the last time."""
        self.withdraw()
        self._link.losses.discard(self._lost)

    def _receive(self, message: Message) -> None:
        status = message.status
        if status == _HEARTBEAT:
            pass
        elif status:
            self.open, self.status = 0, status
        else:
            self.open -= 1
            self.messages.append(message)
        self._arrived.set()

    def _too_late(self, message: Message) -> None:
        if not message.status:
            self._late(message)

    def _lost(self) -> None:
        self.open, self.status = 0, "503"
        self._arrived.set()
