"""`Repair`: fills holes in the log of the engine with the last ends of the history.

Servers do not mend each other's copies of a stream: one whose files were damaged has holes also when it leads, and who
reads through it, or was away, never gets what they held. So when another server leads the log, this runner looks for
its own last ends there, and for those of runners that are gone. One that is missing is offered, and read by all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import EngineError
from actors.cluster.letters import UnreadableError, unpack
from actors.cluster.record.positions import Position, Positions
from actors.cluster.record.sharedlog import SharedLog
from actors.history import Ended, History, last_ended, origins
from protocol.errors import RunnerError
from protocol.model import Execution

T = TypeVar("T")
_NAME: Final = "repair"
_LOOK_SECONDS: Final = 5.0
_BACK_SECONDS: Final = 3600.0
_MOST: Final = 20_000
"""Ends that are looked for after one change of the leader."""
_MANY: Final = 256
_PAUSE_SECONDS: Final = 0.25
"""Between so many of them."""
_AT_ONCE: Final = 64
"""Letters that are on their way at a time."""

log = structlog.get_logger("cluster")


@define(eq=False)
class Repair:
    """The actor."""

    shared: SharedLog
    history: History
    positions: Positions
    offer: Callable[[Execution], Awaitable[None]]
    """Offers a state of the history to the log."""
    nodes: Callable[[], Collection[str]]
    """Returns the names of the runners that are there."""
    changed: Callable[[], None]
    """Is called when another server leads the log."""
    offered: int = field(default=0, init=False)
    """Ends that the log lacked, since the start."""

    async def run(self) -> None:
        """Look for what a leader lacks, until cancelled."""
        done, told = (await trio.to_thread.run_sync(self.positions.get, _NAME)).of, ""
        while True:
            try:
                done = await self.look(done)
                told = ""
            except (EngineError, RunnerError) as problem:
                told = tell("holes in the log are filled later", str(problem), told)
            await trio.sleep(_LOOK_SECONDS)

    async def look(self, done: str) -> str:
        """Fill the holes of the leader unless it was `done`; return which one is done.

        Raises EngineError and RunnerError.
        """
        engine = self.shared.mail.engine
        led = (await engine.extent(engine.names.log)).led
        if led == done:
            return done
        self.changed()
        before = self.offered
        await self._fill()
        if self.offered > before:
            log.warning("the log lacked ends of executions, which were sent again", count=self.offered - before)
        await trio.to_thread.run_sync(partial(self.positions.put, _NAME, Position(0, led)))
        return led

    async def _fill(self) -> None:
        there = {*self.nodes(), self.shared.node}
        nodes = [name for name in await self.history.read(origins) if name == self.shared.node or name not in there]
        kept_seconds = min(_BACK_SECONDS, self.shared.mail.retention_seconds)  # the log lets go of others by itself
        before, since = sys.maxsize, time.time() - kept_seconds
        for _ in range(_MOST // _MANY):
            read = partial(last_ended, nodes=nodes, before=before, since=since, most=_MANY)
            found: list[Ended] = await self.history.read(read)
            await in_parallel(self._look_for, found)
            if len(found) < _MANY:
                return
            before = found[-1].revision
            await trio.sleep(_PAUSE_SECONDS)

    async def _look_for(self, ended: Ended) -> None:
        engine = self.shared.mail.engine
        stored = await engine.last(engine.names.state(ended.id), fresh=True)  # others may have what the leader lacks
        if stored is not None and not stored.gone and _is_end(stored.data):
            return
        execution = await self.history.get(ended.id)
        if execution is not None:
            self.offered += 1
            await self.offer(execution)


def _is_end(data: bytes) -> bool:
    """Return whether a letter tells an end, or is one of a later release, about which this runner cannot decide."""
    try:
        return unpack(data).execution.status.final
    except UnreadableError:
        return True


def tell(event: str, why: str, told: str) -> str:
    """Log why something waits, but not the same twice in a row; return it."""
    if why != told:
        log.warning(event, why=why)
    return why


async def in_parallel(work: Callable[[T], Awaitable[None]], things: Sequence[T]) -> None:
    """Do some work on many things, several at a time. Raises the first error, after which the rest is left."""
    rest, problems = iter(things), list[Exception]()

    async def some(nursery: trio.Nursery) -> None:
        try:
            for thing in rest:
                await work(thing)
        except (EngineError, RunnerError) as problem:
            problems.append(problem)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(_AT_ONCE, len(things))):
            nursery.start_soon(some, nursery)
    if problems:
        raise problems[0]
