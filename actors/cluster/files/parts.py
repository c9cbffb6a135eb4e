"""`Parts`: the large parts of letters, in the object store beside files, and collected with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field

from actors.cluster.files.sharing import SharedFiles
from actors.cluster.letters import Author, Letter, Packed, complete, pack
from protocol.model import Execution

MAX_AT_ONCE: Final = 8
"""Parts that are loaded at a time; one has at most the largest frame."""
_PREFIX: Final = "sha256:"
Get = Callable[[str], Awaitable[Execution | None]]
"""Finds an execution in the records of this runner."""


def ids_of(letter: Letter) -> list[str]:
    """Return the ids of what a letter names in the object store: files, and its own parts."""
    return [*letter.files, *(f"{_PREFIX}{digest}" for digest in letter.parts.values())]


@define(eq=False)
class Parts:
    """Stores and loads the parts."""

    files: SharedFiles
    _limit: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_AT_ONCE), init=False)

    async def store(self, packed: Packed, execution: str, module: str) -> None:
        """Bring the parts of a letter into the object store. Raises EngineError."""
        names = [f"{_PREFIX}{digest}" for digest in packed.parts]
        await self.files.note_uses(execution, module, names)  # its own collection must know, too
        for digest, data in packed.parts.items():
            await self.files.store.share_part(f"{_PREFIX}{digest}", data)

    async def load(self, letter: Letter) -> Letter:
        """Return a letter with its parts. Raises RunnerError `unavailable`, and UnreadableError."""
        found: dict[str, bytes] = {}
        for digest in dict.fromkeys(letter.parts.values()):
            async with self._limit:
                found[digest] = await self.files.objects.part(f"{_PREFIX}{digest}", letter.execution.id)
        return complete(letter, found)


def part_finder(get: Get, author: Author) -> Callable[[str, str], Awaitable[bytes | None]]:
    """Return what finds a part of an execution in the records of this runner, if it has it."""

    async def find(name: str, execution: str) -> bytes | None:
        found = await get(execution)
        if found is None:
            return None
        packed = await trio.to_thread.run_sync(pack, Letter(author, found))
        return packed.parts.get(name.removeprefix(_PREFIX))

    return find
