"""Questions and their answers over the link: one subscription serves all of them."""

from __future__ import annotations

import itertools
import secrets
from typing import Any, Final

import attrs
import msgspec
import trio

from actors.cluster.engine.errors import AwayError, RefusedError, UnansweredError
from actors.cluster.engine.link import Handle, Link
from actors.cluster.engine.messages import NO_RESPONDERS, Message, Stored, from_get, read_answer

_NO_MESSAGE: Final = 10037
MAX_ASKED: Final = 1024
"""Questions without an answer yet; more wait for their turn."""


@attrs.define(eq=False)
class _Waiting:
    """A task that waits for an answer; None if the connection was lost."""

    task: trio.lowlevel.Task
    message: Message | None = None


class Requests:
    """Asks, and hands each answer to the task that waits for it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox = f"_INBOX.{secrets.token_hex(11)}."
        self._numbers = itertools.count()
        self._waiting: dict[str, _Waiting | Handle] = {}
        self._asked = 0
        self._turns = trio.lowlevel.ParkingLot()
        link.subscribe(self._inbox + "*", self._answered)
        link.losses.add(self._lose)

    async def ask(
        self, subject: str, data: bytes = b"", *, headers: dict[str, str] | None = None, timeout: float = 5.0
    ) -> Message:
        """Return the answer. Raises `AwayError` if none came, `UnansweredError` if nobody serves the subject."""
        with trio.move_on_after(timeout):
            while self._asked >= MAX_ASKED:
                await self._turns.park()
            await self._link.room()
            self._asked += 1
            inbox = f"{self._inbox}{next(self._numbers):x}"
            self._waiting[inbox] = waiting = _Waiting(trio.lowlevel.current_task())
            try:
                self._link.post(subject, data, inbox, headers)
                await trio.lowlevel.wait_task_rescheduled(_interrupted)
            finally:
                self._waiting.pop(inbox, None)
                self._asked -= 1
                if self._turns:
                    self._turns.unpark()
            message = waiting.message
            if message is None:
                raise AwayError("the connection to the cluster's servers was lost")
            if not message.data and message.status == NO_RESPONDERS:
                raise UnansweredError(f"nobody serves {subject}")
            return message
        raise AwayError(f"no answer in {timeout:g} s")

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

    def open(self, handle: Handle) -> str:
        """Return an inbox whose messages are handled until it is closed."""
        inbox = f"{self._inbox}{next(self._numbers):x}"
        self._waiting[inbox] = handle
        return inbox

    def close(self, inbox: str) -> None:
        """Forget an inbox; later messages are dropped."""
        self._waiting.pop(inbox, None)

    def _lose(self) -> None:
        """Fail all questions: the connection that they went over is lost."""
        for inbox, waiting in list(self._waiting.items()):
            if isinstance(waiting, _Waiting):
                del self._waiting[inbox]
                trio.lowlevel.reschedule(waiting.task)

    def _answered(self, message: Message) -> None:
        waiting = self._waiting.get(message.subject)
        if isinstance(waiting, _Waiting):
            del self._waiting[message.subject]
            waiting.message = message
            trio.lowlevel.reschedule(waiting.task)
        elif waiting is not None:
            waiting(message)


def _interrupted(_: Any) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED
