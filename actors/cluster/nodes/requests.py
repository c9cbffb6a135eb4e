"""Requests between runners: a question and its answer, however large. The engine carries them; nothing is stored."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import AwayError
from actors.cluster.nodes import wording
from actors.cluster.nodes.wording import Answer, Broken, Bytes, Large, Piece, Question
from protocol.errors import RunnerError

_ROOM_BYTES: Final = 16 * 1024
"""Of the largest message of the engine, what is left for the rest around a piece."""
_HOLD_SECONDS: Final = 30.0
"""A large message that is not fetched any more is forgotten after this time."""
_MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""Large messages of all requests together."""
_MAX_ASKED: Final = 4096
"""Requests of others that are answered at a time; most of them wait for events."""
_PIECE_SECONDS: Final = 10.0
_MAX_FOLLOWED: Final = 256

log = structlog.get_logger("cluster")


class Names(Protocol):
    """The streams and subjects of a cluster."""

    @property
    def nodes(self) -> str:
        """The stream with the presence of runners."""

    def presence(self, node: str) -> str:
        """Return the subject of the presence of a runner."""

    def requests(self, node: str) -> str:
        """Return the subject of requests to a runner."""


class Carrier(Protocol):
    """What carries requests: the engine."""

    @property
    def names(self) -> Names:
        """The subjects of the cluster."""

    @property
    def max_payload(self) -> int:
        """The largest message in bytes."""

    async def ask(self, subject: str, data: bytes, *, timeout: float = 5.0) -> bytes:
        """Return the answer of the runner that serves a subject."""

    def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]], /) -> AbstractAsyncContextManager[None]:
        """Answer the questions of a subject, each in a task of its own."""


@define(eq=False)
class _Held:
    data: bytes
    until: float


@define(eq=False)
class Requests:
    """Asks other runners, and answers them."""

    node: str
    release: str
    carrier: Carrier
    answer: Callable[[str, Question], Awaitable[Answer]] | None = field(default=None, init=False)
    """Answers a question of a runner; never raises RunnerError."""
    turns: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_MAX_FOLLOWED), init=False)
    """For those that wait for the events of executions of others; the engine bounds all questions together."""
    _held: dict[str, _Held] = field(factory=dict, init=False)
    _asked: int = field(default=0, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer other runners until cancelled."""
        async with self.carrier.serve(self.carrier.names.requests(self.node), self._serve):
            task_status.started()
            await trio.sleep_forever()

    async def ask(self, node: str, question: Question, *, timeout: float = 5.0) -> Answer:
        """Return the answer of a runner. Raises UnansweredError (it does not serve) and AwayError (no answer)."""
        data = self._fitting(wording.write(self.node, self.release, question))
        answer = wording.read_answer(await self._ask(node, data, timeout))
        if isinstance(answer, Large):
            whole = await self._fetch(node, answer)
            answer = _lost(node) if whole is None else wording.read_answer(whole)
        if isinstance(answer, Broken):
            log.warning("a runner gives no answer", node=node, why=answer.why)
            raise AwayError(answer.why)
        return answer

    async def _ask(self, node: str, data: bytes, timeout: float) -> bytes:
        try:
            return await self.carrier.ask(self.carrier.names.requests(node), data, timeout=timeout)
        except RunnerError as problem:  # too many are served, or a bug
            raise AwayError(problem.failure.message) from problem

    async def _serve(self, data: bytes) -> bytes:
        self._asked += 1
        try:
            return self._fitting(wording.write(self.node, self.release, await self._answered(data)))
        finally:
            self._asked -= 1

    async def _answered(self, data: bytes) -> Answer:
        node, question = wording.read_question(data)
        if isinstance(question, Large):
            whole = await self._fetch(node, question)
            node, question = (node, _lost(node)) if whole is None else wording.read_question(whole)
        if isinstance(question, Broken):
            log.warning("a request of a runner cannot be read", node=node, why=question.why)
            return question
        if isinstance(question, Piece):
            return self._piece(question)
        if self.answer is None or isinstance(question, Large) or self._asked > _MAX_ASKED:
            return Broken(f"the runner {self.node} is not ready")
        return await self.answer(node, question)

    # Large messages

    def _fitting(self, data: bytes) -> bytes:
        """Return a message, or one in its place that says how to fetch it."""
        if len(data) <= self.carrier.max_payload - _ROOM_BYTES:
            return data
        now = trio.current_time()
        self._held = {name: held for name, held in self._held.items() if held.until > now}
        if len(data) + sum(len(held.data) for held in self._held.values()) > _MAX_HELD_BYTES:
            text = f"large messages take all the memory for them at the runner {self.node}; try again"
            return wording.write(self.node, self.release, Broken(text))
        name = secrets.token_hex(8)
        self._held[name] = _Held(data, now + _HOLD_SECONDS)
        return wording.write(self.node, self.release, Large(name, len(data)))

    def _piece(self, question: Piece) -> Answer:
        held = self._held.get(question.name)
        if held is None:
            return wording.Absent()
        held.until = trio.current_time() + _HOLD_SECONDS
        piece = held.data[question.offset : question.offset + self.carrier.max_payload - 2 * _ROOM_BYTES]
        if question.offset + len(piece) >= len(held.data):
            del self._held[question.name]
        return Bytes(piece)

    async def _fetch(self, node: str, large: Large) -> bytes | None:
        """Return a large message of a runner; None if it has forgotten it."""
        if large.size > _MAX_HELD_BYTES:
            return None
        found = bytearray()
        while len(found) < large.size:
            question = wording.write(self.node, self.release, Piece(large.name, len(found)))
            answer = wording.read_answer(await self._ask(node, question, _PIECE_SECONDS))
            if not isinstance(answer, Bytes) or not answer.data:
                return None
            found += answer.data
        return bytes(found)


def _lost(node: str) -> Broken:
    return Broken(f"a large message of the runner {node} was lost; try again")
