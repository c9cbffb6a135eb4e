"""Messages of a consumer, asked for: what readers and pullers of jobs have in common, and the jobs."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import msgspec
import trio

from actors.cluster.engine.connection import Connection
from actors.cluster.engine.link import Handle, Subscription
from actors.cluster.engine.messages import AwayError, Message, position
from actors.cluster.engine.requests import Requests

NANO: Final = 1_000_000_000
HEARTBEAT_SECONDS: Final = 2
_SILENCE_SECONDS: Final = 2.5 * HEARTBEAT_SECONDS
"""After this silence the server of the consumer counts as gone: no other server reports it."""
_HEARTBEAT: Final = "100"
_NAK: Final = b"-NAK"
_PROGRESS: Final = b"+WPI"
_PAUSE_SECONDS: Final = 0.25
_NO_ANSWERS: Final = 8
"""After so many attempts the consumer is made again: it may have been deleted."""
_IDLE_SECONDS: Final = 86_400
"""A consumer without questions for this time is deleted; its jobs stay, and the next one of its name gets them."""
PINNED_SECONDS: Final = 10
"""A pinned runner that asks for nothing in this time loses its consumer to another one."""


class Pull:
    """One question at a time, and the messages that it brought. It has an inbox of its own.

    The engine forgets a question without a listener at its inbox: `withdraw` ends both.
    """

    def __init__(self, connection: Connection, late: Handle) -> None:
        self.messages: deque[Message] = deque()
        self.open = 0
        """How many messages the question may still bring; 0 after its end."""
        self.status = ""
        """Why the engine ended the question; empty if it brought all."""
        self._connection = connection
        self._late = late
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._arrived = trio.Event()
        connection.losses.add(self._lost)

    def ask(self, subject: str, count: int, body: Mapping[str, Any]) -> None:
        """Ask for up to `count` messages. Raises `AwayError`."""
        if self._subscription is None:
            self._inbox = f"_INBOX.{secrets.token_hex(11)}"
            self._subscription = self._connection.subscribe(self._inbox, self._receive)
        self._connection.post(subject, json.dumps({"batch": count, **body}).encode(), self._inbox)
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
            self._connection.unsubscribe(subscription)
        while self.messages:
            self._late(self.messages.popleft())

    def close(self) -> None:
        """Withdraw, for the last time."""
        self.withdraw()
        self._connection.losses.discard(self._lost)

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


@attrs.frozen
class Consumer:
    """A durable consumer of the queue, the same for all runners."""

    stream: str
    name: str
    subjects: tuple[str, ...]
    ack_wait_seconds: float = 15.0
    max_ack_pending: int = 10_000
    """Most jobs that all runners together have at a time."""
    policy: str = "prioritized"
    """`prioritized`: the runner that asks with the smallest number gets the job. `pinned_client`: one gets all jobs."""

    def config(self) -> Mapping[str, Any]:
        """Return the settings for the engine."""
        config: dict[str, Any] = {
            "durable_name": self.name,
            "filter_subjects": list(self.subjects),
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait_seconds * NANO),
            "max_deliver": -1,
            "max_ack_pending": self.max_ack_pending,
            "max_waiting": 512,
            "inactive_threshold": _IDLE_SECONDS * NANO,
            "priority_policy": self.policy,
            "priority_groups": [_GROUP],
        }
        if self.policy == "pinned_client":
            config["priority_timeout"] = PINNED_SECONDS * NANO
        return config


_GROUP: Final = "all"


class Delivery(msgspec.Struct, frozen=True):
    """A job that this runner has until it answers, or is silent for the ack wait of the consumer."""

    subject: str
    data: bytes
    sequence: int
    """Of the job in the stream; it stays when the job is delivered again."""
    delivered: int
    """How many times it was delivered, this time included."""
    headers: Mapping[str, str]
    reply: str
    """The subject that takes the answers to it."""
    _connection: Connection

    async def ack(self) -> None:
        """Take the job off the queue. If the word is lost, the job is delivered again."""
        await self._connection.room()
        self._say(b"+ACK")

    async def nak(self, delay: float = 0.0) -> None:
        """Give the job back, to be delivered again after `delay` seconds."""
        await self._connection.room()
        self._say(_nak(delay))

    def in_progress(self) -> None:
        """Keep the job for another ack wait."""
        self._say(_PROGRESS)

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(AwayError):
            self._connection.post(self.reply, word)


def _nak(delay: float) -> bytes:
    return _NAK + b" " + json.dumps({"delay": int(delay * NANO)}).encode() if delay else _NAK


class Puller:
    """Pulls the jobs of one consumer. Only one task may use it."""

    def __init__(self, connection: Connection, requests: Requests, consumer: Consumer) -> None:
        self._connection = connection
        self._requests = requests
        self._consumer = consumer
        self._pin = ""
        self._priority = 0
        self._silences = 0
        self._asked = 0.0
        self._pull = Pull(connection, late=lambda message: self._give_back(message.reply))

    async def ensure(self) -> None:
        """Make the consumer, or change it to its settings. Raises `AwayError` or `RefusedError`."""
        stream, name = self._consumer.stream, self._consumer.name
        body = {"stream_name": stream, "config": self._consumer.config()}
        await self._requests.call(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{name}", body)

    async def fetch(self, count: int, *, priority: int = 0, seconds: float = 30.0) -> Sequence[Delivery]:
        """Return one to `count` jobs as soon as there is one, or none after `seconds`.

        Nothing is asked for any more when it returns or is cancelled, and jobs that were not taken are given back. It
        waits over a lost connection. Raises `RefusedError` if the engine refuses the consumer.
        """
        deadline = trio.current_time() + seconds
        while (left := deadline - trio.current_time()) > 0:
            try:
                found = await self._once(count, priority, {"no_wait": True}, left)
                if not found:
                    found = await self._once(1, priority, self._waits(left), left)
            except AwayError:
                await self._away()
                continue
            self._silences = 0
            if found:
                return found
        return ()

    async def next(self, count: int, *, priority: int = 0) -> Sequence[Delivery]:
        """Return the jobs that came, at least one, of about `count` that are asked for at most.

        The question stays open between two calls, and after a cancellation: so a job does not go to a runner that wants
        it less while this one looks at another. A call with another priority asks anew. `pause` ends it. It waits over
        a lost connection.
        """
        pull = self._pull
        while not pull.messages:
            if pull.open and (priority != self._priority or pull.open > 2 * count):
                pull.withdraw()
            try:
                if not pull.open:
                    self._ask(count, priority, self._waits(_LONGEST_SECONDS))
                await pull.wait()
                self._ended(found=bool(pull.messages))
            except AwayError:
                await self._away()
        self._silences = 0
        found = []
        while pull.messages:
            found.append(self._delivery(pull.messages.popleft()))
        return found

    def pause(self) -> None:
        """Ask for no more until the next call. Jobs that are on their way are given back."""
        self._pull.withdraw()

    async def keep(self) -> bool:
        """Stay the runner of a pinned consumer without getting jobs, while it has no place for more.

        Only questions keep a consumer: call it every third of `PINNED_SECONDS`, or more often. Returns False if another
        runner may have it now. Raises `AwayError`.
        """
        if not self._pin or self._pull.open or trio.current_time() < self._asked + PINNED_SECONDS / 4:
            return bool(self._pin)
        try:
            await self._once(1, 0, {"no_wait": True, "max_bytes": 1}, PINNED_SECONDS)
        except AwayError:
            if self._pull.status != _TOO_LARGE:  # no message is as small as a byte
                raise
        return bool(self._pin)

    def close(self) -> None:
        """Ask for no more."""
        self._pull.close()

    async def _once(self, count: int, priority: int, body: Mapping[str, Any], seconds: float) -> Sequence[Delivery]:
        """Ask once, and return what came before the end of the question."""
        found: list[Delivery] = []
        pull = self._pull
        try:
            with trio.move_on_after(seconds):
                self._ask(count, priority, body)
                while pull.open or pull.messages:
                    await pull.wait()
                    while pull.messages:
                        found.append(self._delivery(pull.messages.popleft()))
        except trio.Cancelled:
            for each in found:
                self._give_back(each.reply)
            raise
        finally:
            if pull.open or pull.messages:
                pull.withdraw()
        self._ended(found=bool(found))
        return found

    def _ask(self, count: int, priority: int, body: Mapping[str, Any]) -> None:
        group: dict[str, Any] = {"group": _GROUP, "priority": priority}
        if self._consumer.policy == "pinned_client":
            group = {"group": _GROUP} | ({"id": self._pin} if self._pin else {})
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._consumer.stream}.{self._consumer.name}"
        self._priority = priority
        self._asked = trio.current_time()
        self._pull.ask(subject, count, {**body, **group})

    def _waits(self, seconds: float) -> Mapping[str, Any]:
        """Return how long the engine keeps a question; only questions that begin keep a pinned consumer."""
        longest = PINNED_SECONDS / 2 if self._consumer.policy == "pinned_client" else _LONGEST_SECONDS
        expires = max(min(seconds, longest), 2 * HEARTBEAT_SECONDS + 0.1)
        return {"expires": int(expires * NANO), "idle_heartbeat": HEARTBEAT_SECONDS * NANO}

    def _ended(self, *, found: bool) -> None:
        """Look why a question has ended. Raises `AwayError` when the engine ended it."""
        status = self._pull.status
        if status == "423":
            self._pin = ""
        elif not found and status not in _EMPTY:
            raise AwayError(f"the engine ended the question: {status}")

    def _delivery(self, message: Message) -> Delivery:
        at = position(message.reply)
        self._pin = message.headers.get("Nats-Pin-Id", self._pin)
        return Delivery(
            message.subject, message.data, at.sequence, at.delivered, message.headers, message.reply, self._connection
        )

    async def _away(self) -> None:
        self._silences += 1
        await trio.sleep(_PAUSE_SECONDS)
        if self._silences % _NO_ANSWERS == 0:
            with contextlib.suppress(AwayError):
                await self.ensure()

    def _give_back(self, reply: str) -> None:
        with contextlib.suppress(AwayError):
            self._connection.post(reply, _NAK)


_LONGEST_SECONDS: Final = 60.0
_TOO_LARGE: Final = "409"
_EMPTY: Final = frozenset({"", "404", "408"})
"""The time of the question is over."""
