"""Ask, answer, refuse: how other tasks talk to an actor whose state changes must wait for the disk.

One rule: every question is answered, refused or cancelled, so that no task waits for an actor that is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio
from attrs import frozen

from protocol.errors import ErrorKind, Failure, RunnerError

A = TypeVar("A")


class ActorGone(RunnerError):  # noqa: N818 - it says what happened, as trio's own `EndOfChannel` does
    """The actor ended before it answered, or is not running."""

    def __init__(self, name: str) -> None:
        super().__init__(Failure(ErrorKind.UNAVAILABLE, f"the {name} is not running", retry_after=1.0))


class Question(Generic[A]):
    """Base of the messages of an actor: a frozen class whose parameter names the type of its answer."""


class Letter(Generic[A]):
    """One question on its way, with its answer once it arrives. Only `Mailbox` makes letters."""

    def __init__(self, question: Question[A]) -> None:
        self.question = question
        self.withdrawn = False
        """The asker was cancelled: an answer would reach no task, so the work need not be done."""
        self._settled = trio.Event()
        self._answer: A
        self._refusal: Exception | None = None

    def answer(self, value: A) -> None:
        """Return `value` to the asker. Never blocks; the first of `answer` and `refuse` counts."""
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
    """`waiting` letters, at most `capacity`, are not yet taken; `blocked` askers wait for room to post theirs."""

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

        Raises `ActorGone` when the actor ends first or is not running, and the error with which the actor refuses.
        Cancellation withdraws the question: if the actor has not taken it, it is never handled; if it has, the work
        is finished and the answer is discarded.
        """
        letter = Letter(question)
        try:
            await self._send.send(letter)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise ActorGone(self._name) from None
        return await letter.wait()

    async def serve(self, handle: Callable[[Any], Awaitable[Any]]) -> None:
        """Answer questions one after the other with the result of `handle(question)`; only cancellation ends it.

        A `RunnerError` of `handle` refuses that question. Any other exception is a bug of the actor and reaches its
        supervisor. At every end, all askers are refused with `ActorGone` and the mailbox is closed; serving again
        (after a restart) opens it again.
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
        """Refuse all waiting and later letters with `ActorGone`. Never blocks; closing again is allowed."""
        self._open = False
        # Letters first: closing a channel discards its letters, and their askers would wait for ever. Taking a letter
        # admits a blocked sender, hence the loop until the channel is empty.
        while True:
            try:
                letter = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
            letter.refuse(ActorGone(self._name))
        self._receive.close()
        self._send.close()

    def statistics(self) -> MailboxStatistics:
        """Return the counters."""
        if not self._open:
            return MailboxStatistics(self._capacity, 0, 0, open=False)
        channel = self._receive.statistics()
        return MailboxStatistics(self._capacity, channel.current_buffer_used, channel.tasks_waiting_send, open=True)
