"""`SharedFiles`, the actor by which the files of this runner are those of the cluster."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import trio
from attrs import define, evolve, field

from actors.cluster.engine import Engine, EngineError, StaleError
from actors.cluster.files.notes import End, read_note, subject_of, write_end, write_note
from actors.cluster.files.objects import Objects
from actors.cluster.letters import Author, UnreadableError
from actors.files import Files, Shared, Sharing, StoredFile, Viewer
from protocol.errors import ErrorKind, RunnerError, error

LOOK_SECONDS: Final = 30.0
"""Time between two looks for files that the others lack."""
TOUCH_SECONDS: Final = 3600.0
"""A use is noted for the others if the last one is older: they delete nothing that was used a moment ago."""
END_SECONDS: Final = 30 * 86400.0
"""How long the engine keeps the note of a deleted file."""
_TRIES: Final = 8
_FIRST_SECONDS: Final = 5.0
_TROUBLE_SECONDS: Final = 5.0
log: Any = structlog.get_logger("cluster.files")


@define
class _Turn:
    """Work on one file at a time."""

    lock: trio.Lock = field(factory=trio.Lock)
    users: int = 0


@define(eq=False)
class SharedFiles:
    """The actor. Methods are called on the event loop while `run` runs."""

    engine: Engine
    files: Files
    author: Author
    retention_seconds: float
    """`file_retention`."""
    clock: Callable[[], float] = time.time
    unreadable: int = 0
    """Notes that a later release wrote."""
    caught_up: trio.Event = field(factory=trio.Event, init=False)
    """Set when all notes are applied that the engine had at the start."""
    _objects: Objects = field(init=False)
    _wanted: trio.Event = field(factory=trio.Event, init=False)
    _turns: dict[str, _Turn] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._objects = Objects(self.engine, self._sharing, self.author.node)

    @property
    def _sharing(self) -> Sharing:
        return self.files.sharing

    @property
    def objects(self) -> Objects:
        """The contents in the object store."""
        return self._objects

    # For the store of this runner (`Elsewhere`)

    async def bring(self, name: str, viewer: Viewer | None) -> bool:
        """Store a file of the cluster here."""
        shared = await self._sharing.find(name, viewer)
        if shared is None:
            try:
                await self._refresh(name)
            except EngineError as problem:
                text = f"there is no file {name} here, and other runners cannot be asked: {problem}"
                raise error(ErrorKind.UNAVAILABLE, text, field="$file.id", retry_after=_TROUBLE_SECONDS) from problem
            shared = await self._sharing.find(name, viewer)
        if shared is None or shared.part:
            return False
        async with self._turn(name):
            if await self._is_here(name):  # another caller brought it meanwhile
                return True
            self.files.check_size(shared.size)
            await self._objects.fetch(name, self._receiving(shared))
            return True

    async def offer(self, stored: StoredFile, subject: str, execution: str) -> None:
        """Offer a file that was stored here: an upload now, if the engine answers, others soon."""
        if execution or not self.engine.connected:
            self._wanted.set()
            return
        try:
            await self.share(stored, (subject,))
        except EngineError as problem:
            log.warning("a file is offered to the cluster later", file=stored.id, why=str(problem))
            self._wanted.set()

    async def withdraw(self, name: str, subject: str) -> None:
        """Delete a file of the cluster, or the upload of a subject if others uploaded it too."""
        try:
            for _ in range(_TRIES):
                shared = await self._sharing.find(name)
                if shared is None:
                    return
                others = tuple(each for each in shared.subjects if each != subject)
                try:
                    if subject and others:
                        await self._publish(evolve(shared, subjects=others))
                    else:
                        await self.end(shared)
                except StaleError:
                    await self._refresh(name)
                else:
                    return
        except EngineError as problem:
            text = f"the file cannot be deleted, as other runners cannot be told: {problem}"
            raise error(ErrorKind.UNAVAILABLE, text, field="id", retry_after=_TROUBLE_SECONDS) from problem
        raise error(ErrorKind.UNAVAILABLE, f"the file {name} is in use; try again", field="id", retry_after=1.0)

    # For the log of executions

    async def settle(self, execution: str) -> tuple[str, ...]:
        """Have all files that an execution uses at hand for others; return their ids.

        Called before the state of the execution is published. Raises EngineError and RunnerError: then the state must
        wait, too.
        """
        for stored in await self._sharing.lacking("", execution):
            await self.share(stored, await self._sharing.subjects(stored.id))
        names = await self._sharing.used(execution)
        for name in names:
            await self._touch(name)
        return tuple(names)

    async def note_uses(self, execution: str, module: str, names: Collection[str]) -> None:
        """Note the files that an execution of another runner uses. Raises RunnerError."""
        if names:
            await self._sharing.note_uses([(execution, module, names)])

    async def share(self, stored: StoredFile, subjects: Collection[str]) -> None:
        """Bring a file into the object store, then tell all runners. Raises EngineError."""
        async with self._turn(stored.id):
            await self._objects.put(stored.id, stored.path)
            now = self.clock()
            note = Shared(stored.id, stored.size, stored.type, stored.name, stored.created_at, now, tuple(subjects))
            await self._merge(note)

    async def share_part(self, name: str, data: bytes) -> None:
        """Bring a part of a record into the object store, and note it. Raises EngineError."""
        async with self._turn(name):
            now, known = self.clock(), await self._sharing.find(name)
            if known is not None and known.touched_at > now - self._touch_seconds:
                return
            await self._objects.put(name, data)
            await self._merge(Shared(name, len(data), "", "", now, now, part=True))

    async def _touch(self, name: str) -> None:
        """Let the others know that a file is used."""
        shared = await self._sharing.find(name)
        if shared is not None and shared.touched_at <= self.clock() - self._touch_seconds:
            await self._merge(evolve(shared, touched_at=self.clock()))

    @property
    def _touch_seconds(self) -> float:
        return min(TOUCH_SECONDS, self.retention_seconds / 2)

    async def _merge(self, note: Shared) -> None:
        """Publish the note about a file over the last one. Raises EngineError."""
        for _ in range(_TRIES):
            try:
                await self._publish(note)
            except StaleError:
                found = await self._last(note.id)
                if found is None:
                    note = evolve(note, sequence=0)
                elif isinstance(found, tuple):
                    note = evolve(note, sequence=found[1])
                else:
                    subjects = tuple(dict.fromkeys((*found.subjects, *note.subjects)))
                    part = note.part and found.part
                    kept = found if note.part and not part else note
                    note = evolve(
                        kept, subjects=subjects, part=part, sequence=found.sequence, touched_at=note.touched_at
                    )
            else:
                return
        raise StaleError(f"others change the note about {note.id} all the time")

    async def _publish(self, note: Shared) -> None:
        data, subject = write_note(self.author, note), subject_of(self.engine.names, note.id)
        sequence = await self.engine.publish(subject, data, expect=note.sequence)
        await self._sharing.apply([evolve(note, sequence=sequence)])

    async def end(self, shared: Shared) -> None:
        """Delete a file of the cluster. Raises EngineError; `StaleError` if somebody used it meanwhile."""
        subject = subject_of(self.engine.names, shared.id)
        data = write_end(self.author)
        sequence = await self.engine.publish(subject, data, expect=shared.sequence, ttl=END_SECONDS)
        await self._sharing.apply([(shared.id, sequence)])
        await self._objects.remove(shared.id)

    async def _last(self, name: str) -> Shared | End | None:
        """Return the last note about a file. Raises EngineError."""
        stored = await self.engine.last(subject_of(self.engine.names, name), fresh=True)
        if stored is None:
            return None
        try:
            return read_note(stored)
        except UnreadableError as problem:
            text = f"the file {name} cannot be used: {problem}"
            raise error(ErrorKind.UNAVAILABLE, text, field="$file.id") from problem

    async def _refresh(self, name: str) -> None:
        """Apply the last note about a file. Raises EngineError."""
        found = await self._last(name)
        if found is not None:
            await self._sharing.apply([found])

    async def _is_here(self, name: str) -> bool:
        try:
            return await self._sharing.here(name) is not None
        except RunnerError:  # its content is damaged
            return False

    def _receiving(self, shared: Shared) -> Callable[[Callable[[Path], Awaitable[bool]]], Awaitable[bool]]:
        async def receive(load: Callable[[Path], Awaitable[bool]]) -> bool:
            return await self._sharing.receive(shared, load)

        return receive

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(name, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[name]

    # The actor's own tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Apply notes, offer what the others lack, and answer them, until cancelled."""
        self.engine.changed.add(self._changed)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._objects.serve)
                nursery.start_soon(self._follow)
                nursery.start_soon(self._offer_lacking)
                task_status.started()
        finally:
            self.engine.changed.discard(self._changed)

    def _changed(self) -> None:
        if self.engine.connected:
            self._wanted.set()

    async def _follow(self) -> None:
        names = self.engine.names
        while True:
            try:
                position = await self._position()
                async with self.engine.read(names.feed, after=position, subjects=[subject_of(names, "*")]) as reader:
                    while True:
                        notes = [note for each in await reader.batch() if (note := self._read(each)) is not None]
                        await self._sharing.apply(notes, reader.position)
                        if not reader.pending:
                            self.caught_up.set()
            except (EngineError, RunnerError) as problem:
                log.warning("notes about files cannot be followed now", why=str(problem))
                await trio.sleep(_TROUBLE_SECONDS)

    async def _position(self) -> int:
        """Return the last note that is applied; 0 for another stream, or one that lost notes, as after a restore."""
        names = self.engine.names
        answer = await self.engine.ask(f"$JS.API.STREAM.INFO.{names.feed}", b"")
        info = msgspec.json.decode(answer, type=_Info)
        origin = int(datetime.fromisoformat(info.created[:19] + "+00:00").timestamp())
        position = await self._sharing.position(origin)
        if position > info.state.last_seq:
            log.warning("the cluster's servers have lost notes about files: all files are offered again")
            await self._sharing.position(0)
            position = await self._sharing.position(origin)
        last = await self.engine.last(subject_of(names, "*"), fresh=True)
        if last is None or last.sequence <= position:
            self.caught_up.set()
        return position

    def _read(self, stored: Any) -> Shared | End | None:
        try:
            return read_note(stored)
        except UnreadableError as problem:
            self.unreadable += 1
            log.warning("a note about a file is left out", why=str(problem))
            return None

    async def _offer_lacking(self) -> None:
        with trio.move_on_after(_FIRST_SECONDS):
            await self.caught_up.wait()
        while True:
            self._wanted = trio.Event()
            if self.engine.connected:
                try:
                    await self._offer_all()
                except (EngineError, RunnerError) as problem:
                    log.warning("files are offered to the cluster later", why=str(problem))
            with trio.move_on_after(LOOK_SECONDS):
                await self._wanted.wait()

    async def _offer_all(self) -> None:
        after = ""
        while found := await self._sharing.lacking(after):
            for stored in found:
                after = stored.id
                try:
                    await self.share(stored, await self._sharing.subjects(stored.id))
                except FileNotFoundError:  # deleted meanwhile
                    continue


class _State(msgspec.Struct):
    last_seq: int


class _Info(msgspec.Struct):
    state: _State
    created: str
