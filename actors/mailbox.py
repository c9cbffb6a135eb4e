"""Ask / answer / refuse: how other tasks talk to an actor whose state changes must wait for the disk.

One rule holds it together: whoever asks is answered, refused, or cancelled; nobody waits for an actor that is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio
from attrs import frozen

from protocol.errors import ErrorKind, Failure, RunnerError

A = TypeVar("A")


class ActorGone(RunnerError):  # noqa: N818 - it says what happened, as trio's own `EndOfChannel` does
    """The actor that was asked ended before it answered, or is not running."""

    def __init__(self, name: str) -> None:
        super().__init__(Failure(ErrorKind.UNAVAILABLE, f"the {name} is not running", retry_after=1.0))


class Question(Generic[A]):
    """Base of the messages of an actor: a frozen class whose parameter names the type of its answer."""


class Letter(Generic[A]):
    """One question on its way, and the place where its answer arrives. Only `Mailbox` makes these."""

    def __init__(self, question: Question[A]) -> None:
        self.question = question
        self.withdrawn = False
        """The asker was cancelled: an answer would reach nobody, so the work may be left undone."""
        self._settled = trio.Event()
        self._answer: A
        self._refusal: Exception | None = None

    def answer(self, value: A) -> None:
        """Give the asker `value`. Never blocks; the first of `answer` and `refuse` counts."""
        if not self._settled.is_set():
            self._answer = value
            self._settled.set()

    def refuse(self, error: Exception) -> None:
        """Raise `error` in the asker. Never blocks; the first of `answer` and `refuse` counts."""
        if not self._settled.is_set():
            self._refusal = error
            self._settled.set()

    async def wait(self) -> A:
        """Return the answer or raise the refusal. A cancelled wait withdraws the question."""
        try:
            await self._settled.wait()
        except trio.Cancelled:
            self.withdrawn = True
            raise
        if self._refusal is not None:
            raise self._refusal
        return self._answer


@frozen
class MailboxStatistics:
    """`waiting` letters are not taken yet (at most `capacity`), `blocked` askers wait for room to post theirs."""

    capacity: int
    waiting: int
    blocked: int
    open: bool


class Mailbox:
    """A bounded queue of questions to one actor, named for messages; it holds `capacity` letters (at least 1)."""

    def __init__(self, name: str, capacity: int = 100) -> None:
        if capacity < 1:
            raise ValueError("a mailbox holds at least one letter")
        self._name = name
        self._capacity = capacity
        self._reopen()

    def _reopen(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Letter[Any]](self._capacity)
        self._open = True

    async def ask(self, question: Question[A]) -> A:
        """Post `question`, waiting while the mailbox is full, and return the actor's answer.

        Raises `ActorGone` when the actor ends first or is not running, and whatever the actor refuses with.
        Cancellation withdraws the question: one that nobody took yet is never handled, one in hand is finished
        and its answer is thrown away.
        """
        letter = Letter(question)
        try:
            await self._send.send(letter)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise ActorGone(self._name) from None
        return await letter.wait()

    async def serve(self, handle: Callable[[Any], Awaitable[Any]]) -> None:
        """Answer questions one after the other with what `handle(question)` returns; only cancellation ends it.

        A `RunnerError` of `handle` refuses that question. Any other exception is a bug of the actor: it goes on to
        the supervisor. However this ends, every asker is refused with `ActorGone` and the mailbox is closed; serving
        again (after a restart) opens it again.
        """
        if not self._open:
            self._reopen()
        letter: Letter[Any] | None = None
        try:
            async for letter in self._receive:
                if letter.withdrawn:
                    continue
                try:
                    letter.answer(await handle(letter.question))
                except RunnerError as error:
                    letter.refuse(error)
        finally:
            if letter is not None:
                letter.refuse(ActorGone(self._name))
            self.close()

    def close(self) -> None:
        """Refuse every letter that waits, and all later ones, with `ActorGone`. Never blocks; closing again is fine."""
        self._open = False
        # In this order: closing a channel throws its letters away, and their askers would wait for ever. Taking
        # one lets a blocked sender in, hence until it is empty.
        while True:
            try:
                letter = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
            letter.refuse(ActorGone(self._name))
        self._receive.close()
        self._send.close()

    def statistics(self) -> MailboxStatistics:
        """Return what waits now."""
        if not self._open:
            return MailboxStatistics(self._capacity, 0, 0, open=False)
        channel = self._receive.statistics()
        return MailboxStatistics(self._capacity, channel.current_buffer_used, channel.tasks_waiting_send, open=True)
