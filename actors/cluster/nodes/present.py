"""`Present`: the actor that tells the other runners that this one is there, and hears the same of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import EngineError
from actors.cluster.nodes.presence import RENEW_SECONDS, TTL_SECONDS, Neighbours, decode, encode
from actors.cluster.nodes.requests import Names
from protocol.nodes import Presence

_LAST_SECONDS: Final = 1.0
"""For the last message, that this runner ends."""
_TELL_SECONDS: Final = 2.0
"""The longest wait for the engine to store a presence."""
_AGAIN_SECONDS: Final = 0.5
"""Pause after it was not stored, as during an election."""

log = structlog.get_logger("cluster")


class Heard(Protocol):
    """A message of a stream."""

    @property
    def data(self) -> bytes:
        """What it says; nothing at the end of a message that was not renewed."""


class Batches(Protocol):
    """Reads a stream."""

    async def batch(self) -> Sequence[Heard]:
        """Return the next messages."""


class Board(Protocol):
    """Where runners tell that they are there: the engine."""

    @property
    def changed(self) -> set[Callable[[], None]]:
        """Hooks that are called when the connection comes and when it goes."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""

    @property
    def names(self) -> Names:
        """The names of the stream and its subjects."""

    async def publish(self, subject: str, data: bytes, *, ttl: float | None = None, timeout: float = 5.0) -> int:
        """Store a message."""

    def read(self, stream: str, *, after: int) -> AbstractAsyncContextManager[Batches]:
        """Read a stream in order."""


@define(eq=False)
class Present:
    """Tells and hears presence."""

    board: Board
    neighbours: Neighbours
    look: Callable[[], Presence]
    """Returns this runner as it is now."""
    _soon: trio.Event = field(factory=trio.Event, init=False)
    _told: str | None = field(default=None, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell and hear until cancelled; then tell that this runner ends."""
        self.board.changed.add(self._changed)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear)
                nursery.start_soon(self._tell)
                task_status.started()
        finally:
            self.board.changed.discard(self._changed)
            with trio.CancelScope(shield=True), trio.move_on_after(_LAST_SECONDS):
                await self._publish(replace(self.look(), leaving=True))

    def tell_soon(self) -> None:
        """Tell the others at once: this runner drains, say."""
        self._soon.set()

    def _changed(self) -> None:
        if self.board.connected:
            self.neighbours.back(trio.current_time())
            self.tell_soon()
        else:
            self.neighbours.away(trio.current_time())

    async def _tell(self) -> None:
        while True:
            self._soon = trio.Event()
            now = self.look()
            self.neighbours.hear(now, trio.current_time())
            stored = await self._publish(now)
            with trio.move_on_after(RENEW_SECONDS if stored else _AGAIN_SECONDS):
                await self._soon.wait()

    async def _publish(self, presence: Presence) -> bool:
        """Return whether the engine has stored a presence."""
        try:
            subject = self.board.names.presence(presence.node)
            await self.board.publish(subject, encode(presence), ttl=TTL_SECONDS, timeout=_TELL_SECONDS)
        except EngineError as problem:
            log.debug("presence is not published", why=str(problem))
            return False
        return True

    async def _hear(self) -> None:
        async with self.board.read(self.board.names.nodes, after=0) as reader:
            while True:
                for message in await reader.batch():
                    if not message.data:
                        continue  # the engine forgot one that was not renewed
                    presence = decode(message.data)
                    if presence is None:
                        log.info("the presence of a runner of another release cannot be read")
                        continue
                    self.neighbours.hear(presence, trio.current_time())
                    if presence.boot == self.neighbours.boot:
                        self.neighbours.echo(trio.current_time())
                self._warn_doubled()

    def _warn_doubled(self) -> None:
        doubled = self.neighbours.doubled
        if doubled is not None and doubled != self._told:
            self._told = doubled
            text = "another runner has the same name; give each a name of its own by the setting `node`"
            log.error(text, node=self.neighbours.node)
