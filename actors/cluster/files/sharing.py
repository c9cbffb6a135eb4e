"""`SharedFiles`, the actor by which the files of this runner are those of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any, Final

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import Engine, EngineError, Stored
from actors.cluster.files.notes import End, read_note, subject_of
from actors.cluster.files.objects import Objects
from actors.cluster.files.store import SharedStore
from actors.cluster.letters import Author, UnreadableError
from actors.files import Files, Shared, Sharing, StoredFile, Viewer
from protocol.errors import ErrorKind, RunnerError, error

LOOK_SECONDS: Final = 3600.0
"""Time between two looks at all files for those that the others lack."""
AGAIN_SECONDS: Final = 30.0
"""Time until the next look after one that failed."""
MAX_MADE: Final = 1000
"""Made files that wait in memory to be offered; more are found by a look at all files."""
_FIRST_SECONDS: Final = 5.0
_TROUBLE_SECONDS: Final = 5.0
log: Any = structlog.get_logger("cluster.files")


@define(eq=False)
class SharedFiles:
    """The actor. Methods are called on the event loop while `run` runs."""

    engine: Engine
    files: Files
    author: Author
    retention_seconds: float
    """`file_retention`."""
    clock: Callable[[], float] = time.time
    store: SharedStore = field(init=False)
    unreadable: int = field(default=0, init=False)
    """Notes that a later release wrote."""
    caught_up: trio.Event = field(factory=trio.Event, init=False)
    """Set when all notes are applied that the engine had at the start."""
    _made: dict[str, StoredFile] = field(factory=dict, init=False)
    """Files that are to be offered."""
    _whole: bool = field(default=True, init=False)
    """Whether others may lack files that are not in `_made`."""
    _wanted: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        sharing = self.files.sharing
        self.store = SharedStore(self.engine, self.author, sharing, self.retention_seconds, self.clock)

    @property
    def objects(self) -> Objects:
        """The contents in the object store."""
        return self.store.objects

    @property
    def _sharing(self) -> Sharing:
        return self.files.sharing

    # For the store of this runner (`Elsewhere`)

    async def bring(self, name: str, viewer: Viewer | None) -> bool:
        """Store a file of the cluster here."""
        shared = await self._sharing.find(name, viewer)
        if shared is None:
            try:
                await self.store.refresh(name)
            except EngineError as problem:
                text = f"there is no file {name} here, and other runners cannot be asked: {problem}"
                raise error(ErrorKind.UNAVAILABLE, text, field="$file.id", retry_after=_TROUBLE_SECONDS) from problem
            shared = await self._sharing.find(name, viewer)
        if shared is None or shared.part:
            return False
        async with self.store.turn(name):
            if not await self._is_here(name):  # else another caller brought it meanwhile
                await self.objects.fetch(name, partial(self.files.receive, shared))
            return True

    async def offer(self, stored: StoredFile, subject: str, execution: str) -> None:
        """Offer a file that was stored here: an upload now, if the engine answers, others soon."""
        if not execution and self.engine.connected:
            try:
                await self.store.share(stored, (subject,) if subject else ())
            except EngineError as problem:
                log.warning("a file is offered to the cluster later", file=stored.id, why=str(problem))
            else:
                return
        if len(self._made) < MAX_MADE:
            self._made[stored.id] = stored
        else:
            self._whole = True
        self._wanted.set()

    async def withdraw(self, name: str, subject: str) -> None:
        """Delete a file of the cluster, or the upload of a subject if others uploaded it too."""
        try:
            await self.store.withdraw(name, subject)
        except EngineError as problem:
            text = f"the file cannot be deleted, as other runners cannot be reached: {problem}"
            raise error(ErrorKind.UNAVAILABLE, text, field="id", retry_after=_TROUBLE_SECONDS) from problem

    async def _is_here(self, name: str) -> bool:
        try:
            return await self._sharing.here(name) is not None
        except RunnerError:  # its content is damaged
            return False

    # For the log of executions

    async def settle(self, execution: str) -> tuple[str, ...]:
        """Have all files that an execution uses at hand for others; return their ids.

        Called before the state of the execution is published. Raises EngineError and RunnerError: then the state must
        wait, too.
        """
        for stored in await self._sharing.lacking_of(execution):
            await self.store.share(stored, await self._sharing.subjects(stored.id))
        names = await self._sharing.used(execution)
        for name in names:
            await self.store.touch(name)
        return tuple(names)

    async def note_uses(self, execution: str, module: str, names: Collection[str]) -> None:
        """Note the files that an execution of another runner uses. Raises RunnerError."""
        if names:
            await self._sharing.note_uses([(execution, module, names)])

    # The actor's own tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Apply notes, offer what the others lack, and answer them, until cancelled."""
        changed = self.engine.changed
        changed.add(self._changed)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.objects.serve)
                nursery.start_soon(self._follow)
                nursery.start_soon(self._offer_lacking)
                task_status.started()
        finally:
            changed.discard(self._changed)

    def _changed(self) -> None:
        if self.engine.connected:
            self._whole = True
            self._wanted.set()

    async def _follow(self) -> None:
        engine = self.engine
        subjects = [subject_of(engine.names, "*")]
        while True:
            try:
                position = await self._position()
                async with engine.read(engine.names.feed, after=position, subjects=subjects) as reader:
                    while True:
                        notes = [note for each in await reader.batch() if (note := self._read(each)) is not None]
                        await self._sharing.apply(notes, reader.position)
                        if any(isinstance(note, tuple) for note in notes):  # one may be in use here
                            self._whole = True
                            self._wanted.set()
                        if not reader.pending:
                            self.caught_up.set()
            except (EngineError, RunnerError) as problem:
                log.warning("notes about files cannot be followed now", why=str(problem))
                await trio.sleep(_TROUBLE_SECONDS)

    async def _position(self) -> int:
        """Return the last note that is applied; 0 for another stream, or one that lost notes, as after a restore."""
        engine = self.engine
        extent = await engine.extent(engine.names.feed)
        origin = int.from_bytes(sha256(extent.made.encode()).digest()[:7])
        position = await self._sharing.position(origin)
        if position > extent.last:
            log.warning("the cluster's servers have lost notes about files: all files are offered again")
            await self._sharing.position(0)
            position = await self._sharing.position(origin)
        last = await engine.last(subject_of(engine.names, "*"), fresh=True)
        if last is None or last.sequence <= position:
            self.caught_up.set()
        return position

    def _read(self, stored: Stored) -> Shared | End | None:
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
            self._wanted, seconds = trio.Event(), LOOK_SECONDS
            if self.engine.connected:
                try:
                    await self._offer_made()
                    await self._offer_all()
                except (EngineError, RunnerError) as problem:
                    log.warning("files are offered to the cluster later", why=str(problem))
                    self._whole, seconds = True, AGAIN_SECONDS
            with trio.move_on_after(seconds) as late:
                await self._wanted.wait()
            self._whole = self._whole or late.cancelled_caught

    async def _offer_made(self) -> None:
        while self._made:
            _, stored = self._made.popitem()
            await self._offer(stored)

    async def _offer_all(self) -> None:
        """Look at all files, if others may lack any."""
        following = "" if self._whole else None
        self._whole = False
        while following is not None:
            found, following = await self._sharing.lacking(following)
            for stored in found:
                await self._offer(stored)

    async def _offer(self, stored: StoredFile) -> None:
        if await self._sharing.find(stored.id) is not None:  # its execution has ended meanwhile
            return
        with suppress(FileNotFoundError):  # deleted meanwhile
            await self.store.share(stored, await self._sharing.subjects(stored.id))
