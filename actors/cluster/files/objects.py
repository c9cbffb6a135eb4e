"""`Objects`: contents in the object store of the engine, by their digest; damage is healed by a runner that has one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import trio
from attrs import define

from actors.cluster.engine import AwayError, Engine, EngineError, RefusedError, UnansweredError
from actors.files import Load, Sharing
from protocol.errors import ErrorKind, RunnerError, error

_PREFIX: Final = "sha256:"
_YES: Final = b"+"
_NO: Final = b"-"
_HEAL_SECONDS: Final = 60.0
"""A runner that has a content brings it into the object store in this time."""
log: Any = structlog.get_logger("cluster.files")
Find = Callable[[str, str], Awaitable[bytes | None]]
"""Finds a part of a record by its id and that of the execution."""


@define(eq=False)
class Objects:
    """The contents. Methods raise EngineError when the engine does not answer."""

    engine: Engine
    sharing: Sharing
    node: str
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

    async def fetch(self, name: str, receive: Callable[[Load], Awaitable[bool]], execution: str = "") -> None:
        """Have `receive` store a content, by the function that it is given; it returns whether it was whole.

        Raises RunnerError `unavailable` if no runner and no server has it whole, or none of them answers.
        """

        async def load(path: Path) -> bool:
            return await self._load(name, path)

        try:
            if await receive(load) or (await self._healed(name, execution) and await receive(load)):
                return
        except AwayError as problem:
            raise _unavailable(name, f"the cluster's servers do not answer: {problem}") from problem
        raise _unavailable(name, "the object store has it damaged or not at all, and no runner that answers has it")

    async def part(self, name: str, execution: str) -> bytes:
        """Return a part of the record of an execution, verified. Raises RunnerError `unavailable`."""
        found: list[bytes] = []

        async def receive(_: Load) -> bool:
            data = await self._got(name, None)
            if data is None or _PREFIX + sha256(data).hexdigest() != name:
                return False
            found.append(data)
            return True

        await self.fetch(name, receive, execution)
        return found[0]

    async def _load(self, name: str, path: Path) -> bool:
        return await self._got(name, path) is not None

    async def _got(self, name: str, path: Path | None) -> bytes | None:
        """Return what the object store has, or b"" if it was written into the path; None if it has nothing whole."""
        try:
            return await self.engine.get_object(name, path)
        except RefusedError as problem:
            log.warning("a content in the object store is damaged", file=name, why=str(problem))
            return None

    # Healing

    async def _healed(self, name: str, execution: str) -> bool:
        """Ask the other runners for a content that the object store lacks; return whether one has brought it.

        A part of a record is asked for with its execution.
        """
        for node in await others(self.engine, self.node):
            try:
                question = f"{name} {execution}".encode()
                answer = await self.engine.ask(wanted(self.engine, node), question, timeout=_HEAL_SECONDS)
            except (UnansweredError, RunnerError):
                continue
            if answer == _YES:
                log.warning("a content in the object store was healed", file=name, by=node)
                return True
        return False

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer other runners that lack a content, until cancelled."""
        async with self.engine.serve(wanted(self.engine, self.node), self._bring):
            task_status.started()
            await trio.sleep_forever()

    async def _bring(self, data: bytes) -> bytes:
        name, _, execution = data.decode(errors="replace").partition(" ")
        try:
            stored = await self.sharing.here(name)
            content = stored.path if stored is not None else await self._part(name, execution)
            if content is None:
                return _NO
            await self.put(name, content, again=True)
        except (EngineError, RunnerError, OSError) as problem:
            log.warning("a content that another runner lacks cannot be brought", file=name, why=str(problem))
            return _NO
        return _YES

    async def _part(self, name: str, execution: str) -> bytes | None:
        return None if self.part_of is None or not execution else await self.part_of(name, execution)


def wanted(engine: Engine, node: str) -> str:
    """Return the subject on which a runner is asked for contents."""
    return f"{engine.names.requests(node)}.files.wanted"


async def others(engine: Engine, node: str) -> list[str]:
    """Return the names of the other runners that are there. Raises EngineError."""
    prefix = engine.names.presence("")
    question = msgspec.json.encode({"subjects_filter": f"{prefix}*"})
    answer = await engine.ask(f"$JS.API.STREAM.INFO.{engine.names.nodes}", question)
    subjects = msgspec.json.decode(answer, type=_Info).state.subjects
    return sorted({subject.removeprefix(prefix) for subject in subjects} - {node})


class _State(msgspec.Struct):
    subjects: dict[str, int] = {}


class _Info(msgspec.Struct):
    state: _State


def _unavailable(name: str, why: str) -> RunnerError:
    return error(ErrorKind.UNAVAILABLE, f"the file {name} cannot be read: {why}", field="$file.id", retry_after=5.0)
