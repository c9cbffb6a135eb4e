"""`Objects`: contents in the object store of the engine, by their digest; damage is healed by a runner that has one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import define

from actors.cluster.engine import AwayError, Engine, EngineError, UnansweredError
from actors.files import Sharing
from protocol.errors import ErrorKind, RunnerError, error

_PREFIX: Final = "sha256:"
_YES: Final = b"+"
_NO: Final = b"-"
_HEAL_SECONDS: Final = 60.0
"""A runner that has a content brings it into the object store in this time."""
log: Any = structlog.get_logger("cluster.files")
Load = Callable[[Path], Awaitable[bool]]
"""Writes a content into a path; returns False without one."""
Find = Callable[[str], Awaitable[bytes | None]]
"""Finds a part of a record by its id."""


@define(eq=False)
class Objects:
    """The contents. Methods raise EngineError when the engine does not answer."""

    engine: Engine
    sharing: Sharing
    part_of: Find | None = None
    """Finds parts that the records of this runner have."""

    async def put(self, name: str, content: Path | bytes, *, again: bool = False) -> None:
        """Store a content, if it is not there; `again` replaces a damaged one."""
        if again or not await self.engine.object_exists(name):
            await self.engine.put_object(name, content)

    async def remove(self, name: str) -> None:
        """Remove a content. Failures are logged: a content without a note is removed by the next collection."""
        try:
            await self.engine.delete_object(name)
        except EngineError as problem:
            log.warning("a content is not removed now", file=name, why=str(problem))

    async def fetch(self, name: str, receive: Callable[[Load], Awaitable[bool]]) -> None:
        """Have `receive` store a content, by the function that it is given; it returns whether it was whole.

        Raises RunnerError `unavailable` if no runner and no server has it whole, or none of them answers.
        """

        async def load(path: Path) -> bool:
            return await self._load(name, path)

        try:
            if await receive(load) or (await self._healed(name) and await receive(load)):
                return
        except AwayError as problem:
            raise _unavailable(name, f"the cluster's servers do not answer: {problem}") from problem
        raise _unavailable(name, "the object store has it damaged or not at all, and no runner that answers has it")

    async def part(self, name: str) -> bytes:
        """Return a small content, verified. Raises RunnerError `unavailable`."""
        found: list[bytes] = []

        async def receive(_: Load) -> bool:
            data = await self._data(name)
            if data is None or _PREFIX + sha256(data).hexdigest() != name:
                return False
            found.append(data)
            return True

        await self.fetch(name, receive)
        return found[0]

    async def _load(self, name: str, path: Path) -> bool:
        try:
            return await self.engine.get_object(name, path) is not None
        except AwayError:
            raise
        except EngineError as problem:
            log.error("a content in the object store is damaged", file=name, why=str(problem))
            return False

    async def _data(self, name: str) -> bytes | None:
        try:
            return await self.engine.get_object(name)
        except AwayError:
            raise
        except EngineError as problem:
            log.error("a content in the object store is damaged", file=name, why=str(problem))
            return None

    # Healing

    @property
    def _wanted(self) -> str:
        return self.engine.names.requests("_files.wanted")

    async def _healed(self, name: str) -> bool:
        """Ask all runners for a content that the object store lacks; return whether one has brought it."""
        try:
            with trio.move_on_after(_HEAL_SECONDS):
                async with self.engine.ask_many(self._wanted, name.encode()) as answers:
                    async for answer in answers:
                        if answer == _YES:
                            log.warning("a content in the object store was healed", file=name)
                            return True
        except UnansweredError:
            pass
        return False

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer other runners that lack a content, until cancelled."""
        async with self.engine.serve(self._wanted, self._bring):
            task_status.started()
            await trio.sleep_forever()

    async def _bring(self, data: bytes) -> bytes:
        name = data.decode(errors="replace")
        try:
            stored = await self.sharing.here(name)
            content = stored.path if stored is not None else await self._part(name)
            if content is None:
                return _NO
            await self.put(name, content, again=True)
        except (EngineError, RunnerError, OSError) as problem:
            log.warning("a content that another runner lacks cannot be brought", file=name, why=str(problem))
            return _NO
        return _YES

    async def _part(self, name: str) -> bytes | None:
        return None if self.part_of is None else await self.part_of(name)


def _unavailable(name: str, why: str) -> RunnerError:
    return error(ErrorKind.UNAVAILABLE, f"the file {name} cannot be read: {why}", field="$file.id", retry_after=5.0)
