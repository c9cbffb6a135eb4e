"""`Mail`: letters about executions, written into the log and read from it, with what belongs to them."""

from __future__ import annotations

import time
from typing import Final

import trio
from attrs import define
from msgspec.structs import replace

from actors.cluster.engine import Engine
from actors.cluster.files import Parts, SharedFiles
from actors.cluster.letters import Author, Letter, pack, unpack
from actors.cluster.life import State
from protocol.model import Execution

_QUICK_BYTES: Final = 64 * 1024
_FILE: Final = b'"$file"'


@define(eq=False)
class Mail:
    """Writes and reads letters. Files and large parts are with the others before the letter that names them."""

    engine: Engine
    me: Author
    """The process that writes."""
    files: SharedFiles
    parts: Parts
    retention_seconds: float
    """How long after an end the log keeps it."""

    async def send(self, letter: Letter, expect: int) -> int:
        """Put a letter into the log, if the last one about its execution has the sequence `expect`, 0 for none.

        Return its sequence. Raises EngineError; and RunnerError when a file that it names cannot be read here.
        """
        execution = letter.execution
        if _may_name_files(execution):
            letter = replace(letter, files=await self.files.settle(execution.id))
        if len(execution.input) + len(execution.result or b"") + len(execution.events) <= _QUICK_BYTES:
            packed = pack(letter)
        else:
            packed = await trio.to_thread.run_sync(pack, letter)
        if packed.parts:
            await self.parts.store(packed, execution.id, execution.module.name)
        subject, ttl = self.engine.names.state(execution.id), self._ttl(execution)
        return await self.engine.publish(subject, packed.data, expect=expect, ttl=ttl)

    def _ttl(self, execution: Execution) -> float | None:
        if execution.finished_at is None:
            return None
        return max(1.0, execution.finished_at + self.retention_seconds - time.time())

    async def state(self, name: str, *, fresh: bool = False) -> State | None:
        """Return the last letter about an execution; with `fresh`, as its leader knows it.

        Raises EngineError, UnreadableError, and RunnerError when a large part of it cannot be had.
        """
        stored = await self.engine.last(self.engine.names.state(name), fresh=fresh)
        if stored is None or stored.gone:
            return None
        return State(await self.whole(unpack(stored.data)), stored.sequence)

    async def whole(self, letter: Letter) -> Letter:
        """Return a letter with its large parts. Raises UnreadableError and RunnerError."""
        return await self.parts.load(letter) if letter.parts else letter


def _may_name_files(execution: Execution) -> bool:
    return _FILE in execution.input or _FILE in execution.events or _FILE in (execution.result or b"")
