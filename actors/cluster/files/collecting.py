"""`SharedCollecting`: files of the cluster that no execution uses are deleted, by one runner at a time.

It is safe against uses at the same time: a note ends only if it is still the one that was looked at, and each use after
a while touches the note before others can know of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog
import trio
from attrs import define

from actors.cluster.engine import Engine, EngineError, StaleError, UnansweredError
from actors.cluster.files.objects import others
from actors.cluster.files.sharing import SharedFiles
from actors.cluster.files.sweeping import Sweeping
from actors.files import Shared
from protocol.errors import RunnerError

COLLECT_SECONDS: Final = 3600.0
NEW_SECONDS: Final = 120.0
"""A file that was touched so late is kept, with any `file_retention`."""
_CLAIM: Final = "files-collection"
_ANSWER_SECONDS: Final = 10.0
log: Any = structlog.get_logger("cluster.files")


@define(eq=False)
class SharedCollecting:
    """Deletes files of the cluster."""

    files: SharedFiles
    kept_seconds: float
    """For how long the history keeps executions."""
    settled: Callable[[], bool]
    """Whether the history of this runner has all states that the cluster had a moment ago."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Collect once in an hour, if no other runner has; and answer others that do, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve)
            task_status.started()
            while True:
                await trio.sleep(COLLECT_SECONDS * (0.9 + 0.2 * random.random()))  # noqa: S311  (spreads the runners)
                try:
                    if await self._first():
                        await self.collect()
                except (EngineError, RunnerError) as problem:
                    log.warning("files of the cluster are not collected now", why=str(problem))

    async def _first(self) -> bool:
        """Claim this hour; return False if another runner has."""
        engine = self.files.engine
        try:
            await engine.publish(engine.names.claim(_CLAIM), b"", expect=0, ttl=COLLECT_SECONDS / 2)
        except StaleError:
            return False
        return True

    async def collect(self) -> int:
        """Delete the files that no execution uses, and return their number. Raises EngineError and RunnerError."""
        deleted, start = 0, ""
        following: str | None = start
        while following is not None and self.settled() and self.files.caught_up.is_set():
            before = self.files.clock() - max(self.files.retention_seconds, NEW_SECONDS)
            found, following = await self.files.files.sharing.unused(following, before, self.kept_seconds)
            used = await self._used_elsewhere(found)
            for shared in found:
                if shared.id not in used:
                    deleted += await self._delete(shared)
        if following is None:
            left = await Sweeping(self.files.engine, self.files.files.sharing, self.files.clock).sweep()
            if left:
                log.info("contents of killed runners were removed from the object store", contents=left)
        if deleted:
            log.info("files of the cluster were deleted that no execution uses", files=deleted)
        return deleted

    async def _delete(self, shared: Shared) -> bool:
        try:
            await self.files.store.end(shared)
        except StaleError:  # it was used meanwhile, or another runner was faster
            return False
        return True

    async def _used_elsewhere(self, found: list[Shared]) -> set[str]:
        """Return the files that other runners need: each keeps executions for a time of its own.

        Raises EngineError if one that is there does not answer.
        """
        used: set[str] = set()
        if not found:
            return used
        engine, question = self.files.engine, msgspec.msgpack.encode([shared.id for shared in found])
        for node in await others(engine, self.files.author.node):
            with suppress(UnansweredError):  # it has gone
                answer = await engine.ask(_asked(engine, node), question, timeout=_ANSWER_SECONDS)
                used.update(msgspec.msgpack.decode(answer, type=list[str]))
        return used

    async def _serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        engine = self.files.engine
        async with engine.serve(_asked(engine, self.files.author.node), self._using):
            task_status.started()
            await trio.sleep_forever()

    async def _using(self, data: bytes) -> bytes:
        names = msgspec.msgpack.decode(data, type=list[str])
        return msgspec.msgpack.encode(await self.files.files.sharing.used_ones(names))


def _asked(engine: Engine, node: str) -> str:
    return f"{engine.names.requests(node)}.files.used"
