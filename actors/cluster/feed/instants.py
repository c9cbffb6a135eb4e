"""`SharedInstants`: each instant of a schedule is settled by one runner of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio
from attrs import define, field

from actors.cluster.engine import Engine, EngineError, StaleError, Stored
from actors.cluster.feed.news import ClaimNews, pack, token, unpack
from actors.cluster.feed.reached import Reached
from actors.cluster.letters import Author, UnreadableError
from actors.executions import Live
from actors.history import AT_WORK, Query
from protocol.errors import ErrorKind, error

UNSETTLED_SECONDS: Final = 15.0
"""After this time without a state of its schedule, an instant is settled by another runner."""
_KEPT_SECONDS: Final = 86400.0
_MOST_WATCHED: Final = 10_000
_MOST_RUNNING: Final = 100


@define(eq=False)
class SharedInstants:
    """The instants of schedules, of which each belongs to the runner that was first."""

    engine: Engine
    author: Author
    runs: Reached
    clock: Callable[[], float] = trio.current_time
    _seen: dict[tuple[str, int], float] = field(factory=dict, init=False)
    """When the claims of other runners were seen first."""

    async def take(self, name: str) -> bool:
        """Return whether this runner settles the instant. Raises RunnerError `unavailable`."""
        subject = self.engine.names.claim(token("instant", name))
        data = pack(ClaimNews(author=self.author, name=name))
        expect = 0
        try:
            while True:
                try:
                    await self.engine.publish(subject, data, expect=expect, ttl=_KEPT_SECONDS)
                except StaleError:
                    found = await self.engine.last(subject, fresh=True)
                else:
                    return True
                if found is None or found.gone:
                    expect = 0 if found is None else found.sequence
                elif self._is_mine(found):
                    return True
                elif self._is_unsettled(name, found):
                    expect = found.sequence
                else:
                    return False
        except EngineError as problem:
            text = f"the servers of the cluster do not answer: {problem}"
            raise error(ErrorKind.UNAVAILABLE, text, field="cluster", retry_after=5) from problem

    def _is_mine(self, found: Stored) -> bool:
        try:
            return unpack(found.data, ClaimNews).author.boot == self.author.boot
        except UnreadableError:
            return False

    def _is_unsettled(self, name: str, found: Stored) -> bool:
        """Return whether a claim is so old that its runner should have settled the instant."""
        seen = self._seen.setdefault((name, found.sequence), self.clock())
        if len(self._seen) > _MOST_WATCHED:
            del self._seen[next(iter(self._seen))]
        return self.clock() - seen > UNSETTLED_SECONDS

    async def running(self, schedule: str) -> Sequence[Live]:
        """Return the executions of a schedule, of any runner, that have not ended. Raises RunnerError."""
        names = dict[str, None]()
        for status in AT_WORK:
            page = await self.runs.history.list(Query(schedule=schedule, status=status, limit=_MOST_RUNNING))
            names.update((each.id, None) for each in page.items)
        found = [await self.runs.owners.reach(name) for name in names]
        return [live for live in found if live is not None]
