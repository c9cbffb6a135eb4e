"""`SharedStore`: contents and notes of files, published so that the last note of a file always has its content."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio
from attrs import define, evolve, field

from actors.cluster.engine import Engine, StaleError
from actors.cluster.files.notes import End, read_note, subject_of, write_end, write_note
from actors.cluster.files.objects import Objects
from actors.cluster.letters import Author, UnreadableError
from actors.files import PLAIN_NAME, PLAIN_TYPE, Shared, Sharing, StoredFile
from protocol.errors import ErrorKind, error

TOUCH_SECONDS: Final = 3600.0
"""A use is noted for the others if the last one is older: they delete nothing that was used a moment ago."""
END_SECONDS: Final = 30 * 86400.0
"""How long the engine keeps the note of a deleted file."""
_TRIES: Final = 8
log: Any = structlog.get_logger("cluster.files")


@define
class _Turn:
    """Work on one file at a time."""

    lock: trio.Lock = field(factory=trio.Lock)
    users: int = 0


@define(eq=False)
class SharedStore:
    """The files of the cluster. Methods raise EngineError when the engine does not answer, and RunnerError."""

    engine: Engine
    author: Author
    sharing: Sharing
    retention_seconds: float
    """`file_retention`."""
    clock: Callable[[], float] = time.time
    objects: Objects = field(init=False)
    _turns: dict[str, _Turn] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.objects = Objects(self.engine, self.sharing, self.author.node)

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait until no other task of this runner works on a file."""
        turn = self._turns.setdefault(name, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[name]

    async def share(self, stored: StoredFile, subjects: Collection[str]) -> None:
        """Bring a file into the object store, then publish its note."""
        async with self.turn(stored.id):
            await self.objects.put(stored.id, stored.path)
            now = self.clock()
            note = Shared(stored.id, stored.size, stored.type, stored.name, stored.created_at, now, tuple(subjects))
            await self._merge(note)

    async def share_part(self, name: str, data: bytes) -> None:
        """Bring a part of a record into the object store, and publish its note."""
        async with self.turn(name):
            now, known = self.clock(), await self.sharing.find(name)
            if known is not None and known.touched_at > now - self._touch_seconds:
                return
            await self.objects.put(name, data)
            await self._merge(Shared(name, len(data), "", "", now, now, part=True))

    async def touch(self, name: str) -> None:
        """Let the others know that a file is used."""
        shared = await self.sharing.find(name)
        if shared is not None and shared.touched_at <= self.clock() - self._touch_seconds:
            await self._merge(evolve(shared, touched_at=self.clock()))

    async def withdraw(self, name: str, subject: str) -> None:
        """Delete a file, or the upload of a subject if others uploaded it too."""
        for _ in range(_TRIES):
            shared = await self.sharing.find(name)
            if shared is None:
                return
            others = tuple(each for each in shared.subjects if each != subject)
            try:
                if subject and others:
                    await self._publish(evolve(shared, subjects=others))
                else:
                    await self.end(shared)
            except StaleError:
                await self.refresh(name)
            else:
                return
        raise error(ErrorKind.UNAVAILABLE, f"the file {name} is in use; try again", field="id", retry_after=1.0)

    async def end(self, shared: Shared) -> None:
        """Delete a file. Raises StaleError if it was used or uploaded meanwhile."""
        subject, data = subject_of(self.engine.names, shared.id), write_end(self.author)
        sequence = await self.engine.publish(subject, data, expect=shared.sequence, ttl=END_SECONDS)
        await self.sharing.apply([(shared.id, sequence)])
        await self.objects.remove(shared.id)

    async def refresh(self, name: str) -> None:
        """Apply the last note about a file."""
        found = await self._last(name)
        if found is not None:
            await self.sharing.apply([found])

    @property
    def _touch_seconds(self) -> float:
        return min(TOUCH_SECONDS, self.retention_seconds / 2)

    async def _merge(self, note: Shared) -> None:
        """Publish the note about a file over the last one."""
        for _ in range(_TRIES):
            try:
                await self._publish(note)
            except StaleError:
                found = await self._last(note.id)
                note = _over(note, found)
            else:
                return
        raise StaleError(f"others change the note about {note.id} all the time")

    async def _publish(self, note: Shared) -> None:
        subject, data = subject_of(self.engine.names, note.id), write_note(self.author, note)
        sequence = await self.engine.publish(subject, data, expect=note.sequence)
        await self.sharing.apply([evolve(note, sequence=sequence)])

    async def _last(self, name: str) -> Shared | End | None:
        stored = await self.engine.last(subject_of(self.engine.names, name), fresh=True)
        if stored is None:
            return None
        try:
            return read_note(stored)
        except UnreadableError as problem:
            text = f"the file {name} cannot be used: {problem}"
            raise error(ErrorKind.UNAVAILABLE, text, field="$file.id") from problem


def _over(note: Shared, found: Shared | End | None) -> Shared:
    """Return a note that can follow the last one: a file stays a file, and keeps those who uploaded it."""
    if found is None:
        return evolve(note, sequence=0)
    if isinstance(found, tuple):
        return evolve(note, sequence=found[1])
    # A note that was made again from a content, or of a part, knows no name and type.
    nameless = (note.name, note.type) in (("", ""), (PLAIN_NAME, PLAIN_TYPE))
    shown = found if nameless and not found.part else note
    subjects = tuple(dict.fromkeys((*found.subjects, *note.subjects)))
    part, touched = note.part and found.part, max(note.touched_at, found.touched_at)
    return evolve(shown, subjects=subjects, part=part, touched_at=touched, sequence=found.sequence)
