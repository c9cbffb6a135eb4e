"""Conversations between runners: a question with one answer, one with many, and those who serve them.

A conversation of many answers ends with a word of the runner that serves it. Both sides hear of each other at least
every two seconds, so that each knows when the other one is gone; and the asking side says how far it has read, so that
neither side keeps more than a window of answers.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import structlog
import trio

from actors.cluster.engine.connection import Connection
from actors.cluster.engine.messages import NO_RESPONDERS, AwayError, Message, UnansweredError
from actors.cluster.engine.requests import Requests
from protocol.errors import ErrorKind, Failure, RunnerError

log = structlog.get_logger("runner.cluster")

Answer = Callable[[bytes], Awaitable[bytes]]
"""Answers a question."""
Say = Callable[[bytes], Awaitable[None]]
"""Sends one of many answers; waits while the asking side is behind."""
AnswerMany = Callable[[bytes, Say], Awaitable[None]]
"""Answers a question with as many answers as it says."""

WINDOW: Final = 64
"""Answers that are sent before the asking side has read the first."""
MAX_SERVED: Final = 1024
"""Questions that are served at a time."""
_MAX_ECHO: Final = 1024
_BEAT_SECONDS: Final = 2.0
_GONE_SECONDS: Final = 7.0
"""After this silence the other side counts as gone."""
_KIND: Final = "Operato-Kind"
_NUMBER: Final = "Operato-Number"
_FAILED: Final = {_KIND: "failed"}
_END: Final = {_KIND: "end"}
_BEAT: Final = {_KIND: "beat"}
_STOP: Final = {_KIND: "stop"}


def open_answer(message: Message) -> bytes:
    """Return the data of an answer, or raise the `RunnerError` of the runner that answered."""
    if message.headers.get(_KIND) == "failed":
        raise RunnerError(msgspec.msgpack.decode(message.data, type=Failure))
    return message.data


class Talk:
    """One question with many answers, as the asking side sees it: iterate over it."""

    def __init__(self, connection: Connection, requests: Requests) -> None:
        self._connection = connection
        self._waiting: deque[Message] = deque()
        self._arrived = trio.Event()
        self._read = 0
        self._told = 0
        self._back = ""
        self._lost = False
        self._ended = False
        self._heard = trio.current_time()
        self._requests = requests
        self._inbox = requests.open(self._receive)

    def begin(self, subject: str, data: bytes) -> None:
        """Ask. Raises `AwayError`."""
        self._connection.post(subject, data, self._inbox)

    def __aiter__(self) -> Talk:
        return self

    async def __anext__(self) -> bytes:
        """Return the next answer. Raises `UnansweredError` or the `RunnerError` of the runner that answers."""
        while not self._ended:
            message = await self._next()
            kind = message.headers.get(_KIND, "")
            if kind == "end":
                self._ended = True
                break
            self._ended = kind == "failed"
            data = open_answer(message)
            if message.headers.get(_NUMBER) != str(self._read):
                self._ended = True
                raise UnansweredError("an answer was lost")
            self._read += 1
            if self._read - self._told >= WINDOW // 2:
                self._tell()
            return data
        raise StopAsyncIteration

    async def _next(self) -> Message:
        while not self._waiting:
            if self._lost:
                raise UnansweredError("the connection was lost")
            if trio.current_time() >= self._heard + _GONE_SECONDS:
                raise UnansweredError("the runner that answered is gone")
            self._arrived = trio.Event()
            with trio.move_on_at(self._heard + _GONE_SECONDS):
                await self._arrived.wait()
        message = self._waiting.popleft()
        if message.status == NO_RESPONDERS and not message.data:
            self._ended = True
            raise UnansweredError("no runner serves the subject")
        return message

    def close(self) -> None:
        """Let the other side know that no answers are wanted any more. One not heard of yet ends by the silence."""
        if not self._ended and self._back:
            with contextlib.suppress(AwayError):
                self._connection.post(self._back, b"", "", _STOP)
        self._requests.close(self._inbox)

    def _tell(self) -> None:
        """Tell how many answers were read, and that this side is there."""
        self._told = self._read
        if self._back:
            with contextlib.suppress(AwayError):
                self._connection.post(self._back, b"", "", {_NUMBER: str(self._read)})

    def _receive(self, message: Message | None) -> None:
        if message is None:
            self._lost = True
            self._arrived.set()
            return
        self._heard = trio.current_time()
        self._back = message.reply or self._back
        if message.headers.get(_KIND) == "beat":
            self._tell()  # here, as the reader of the answers may be busy
            return
        self._waiting.append(message)  # at most a window of them
        self._arrived.set()


class Echo:
    """A question to all runners, with an answer of each: iterate over it, within a time limit."""

    def __init__(self, connection: Connection, requests: Requests) -> None:
        self._connection = connection
        self._requests = requests
        self._waiting: deque[Message] = deque(maxlen=_MAX_ECHO)
        self._arrived = trio.Event()
        self._inbox = requests.open(self._receive)
        self._lost = False

    def begin(self, subject: str, data: bytes) -> None:
        """Ask. Raises `AwayError`."""
        self._connection.post(subject, data, self._inbox)

    def __aiter__(self) -> Echo:
        return self

    async def __anext__(self) -> bytes:
        """Return the next answer that is no failure. Raises `UnansweredError` if the subject is not served."""
        while True:
            while not self._waiting:
                if self._lost:
                    raise AwayError("the connection was lost")
                self._arrived = trio.Event()
                await self._arrived.wait()
            message = self._waiting.popleft()
            if message.status == NO_RESPONDERS:
                raise UnansweredError("no runner serves the subject")
            with contextlib.suppress(RunnerError):
                return open_answer(message)

    def close(self) -> None:
        """Drop later answers."""
        self._requests.close(self._inbox)

    def _receive(self, message: Message | None) -> None:
        if message is None:
            self._lost = True
        else:
            self._waiting.append(message)
        self._arrived.set()


class _Served:
    """One question with many answers, as the side that answers sees it."""

    def __init__(self, connection: Connection, requests: Requests, question: Message) -> None:
        self._connection = connection
        self._requests = requests
        self._question = question
        self._said = 0
        self._read = 0
        self._scope = trio.CancelScope()
        self._moved = trio.Event()
        self._back = requests.open(self._hear)
        self._heard = trio.current_time()

    async def run(self, answer: AnswerMany) -> None:
        """Answer; ends early when the asking side stops, is silent or lost."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._beat)
                    headers, data = _END, b""
                    try:
                        await answer(self._question.data, self._say)
                    except Exception as error:  # noqa: BLE001 - becomes the answer
                        headers, data = _FAILED, _failure(error)
                    await self._connection.room()
                    self._post(data, headers)
                    nursery.cancel_scope.cancel()
        finally:
            self._requests.close(self._back)

    async def _say(self, data: bytes) -> None:
        while self._said - self._read >= WINDOW:
            self._moved = trio.Event()
            await self._moved.wait()
        await self._connection.room()
        self._post(data, {_NUMBER: str(self._said)})
        self._said += 1

    async def _beat(self) -> None:
        while True:
            self._post(b"", _BEAT)
            await trio.sleep(_BEAT_SECONDS)
            if trio.current_time() - self._heard > _GONE_SECONDS:
                self._scope.cancel()

    def _post(self, data: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(AwayError):  # the loss of the connection ends it
            self._connection.post(self._question.reply, data, self._back, headers)

    def _hear(self, message: Message | None) -> None:
        self._heard = trio.current_time()
        if message is None or message.headers.get(_KIND) == "stop":
            self._scope.cancel()
        else:
            self._read = int(message.headers.get(_NUMBER, 0))
            self._moved.set()


class Serving:
    """Serves questions in tasks of a nursery."""

    def __init__(self, connection: Connection, requests: Requests, nursery: trio.Nursery) -> None:
        self._connection = connection
        self._requests = requests
        self._nursery = nursery
        self._served = 0

    @asynccontextmanager
    async def open(self, subject: str, serve: Callable[[Message], Awaitable[None]]) -> AsyncIterator[None]:
        """Serve a subject; ends with its questions cancelled."""
        scopes: set[trio.CancelScope] = set()

        async def run(message: Message) -> None:
            with trio.CancelScope() as scope:
                scopes.add(scope)
                try:
                    await serve(message)
                finally:
                    scopes.discard(scope)
                    self._served -= 1

        def receive(message: Message) -> None:
            if self._served >= MAX_SERVED:
                failure = Failure(
                    ErrorKind.OVERLOADED, "the runner serves too many requests of others", retry_after=1.0
                )
                self._reply(message, msgspec.msgpack.encode(failure), _FAILED)
                return
            self._served += 1
            self._nursery.start_soon(run, message)

        subscription = self._connection.subscribe(subject, receive, limit=MAX_SERVED)
        try:
            yield
        finally:
            self._connection.unsubscribe(subscription)
            for scope in scopes:
                scope.cancel()

    async def one(self, answer: Answer, message: Message) -> None:
        """Answer a question once."""
        try:
            data, headers = await answer(message.data), None
        except Exception as error:  # noqa: BLE001 - becomes the answer
            data, headers = _failure(error), _FAILED
        await self._connection.room()
        self._reply(message, data, headers)

    async def many(self, answer: AnswerMany, message: Message) -> None:
        """Answer a question as many times as the answerer says."""
        await _Served(self._connection, self._requests, message).run(answer)

    def _reply(self, message: Message, data: bytes, headers: dict[str, str] | None) -> None:
        if message.reply:
            with contextlib.suppress(AwayError):
                self._connection.post(message.reply, data, "", headers)


def _failure(error: Exception) -> bytes:
    """Return the failure of an answer, for the other side."""
    if isinstance(error, RunnerError):
        return msgspec.msgpack.encode(error.failure)
    log.error("a request of another runner failed", exc_info=error)
    return msgspec.msgpack.encode(Failure(ErrorKind.INTERNAL, f"{type(error).__name__} in the runner that was asked"))
