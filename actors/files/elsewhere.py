"""`Elsewhere`: the other runners as the store of files sees them; `Sharing`: this store as they see it.

A runner alone has no `Elsewhere`. In a cluster the table `shared` has all files of all runners, here or not, by notes
that every runner gets in one order. A file that is here and not in the table is to be offered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from attrs import frozen

from actors.files.content import Content, Stamp
from actors.files.index import COLUMNS, LOOKED_AT, Row, Viewer, seen
from actors.files.model import StoredFile
from actors.files.store import Store
from actors.files.verifying import Verifying

_POSITION: Final = "shared_position"
"""In `meta`: the number of the last note that is applied."""
_ORIGIN: Final = "shared_origin"
"""In `meta`: the stream that the notes came from."""


Load = Callable[[Path], Awaitable[bool]]
"""Writes a content into a path; returns False without one."""


class Elsewhere(Protocol):
    """Files of other runners. Methods are called on the event loop."""

    async def bring(self, name: str, viewer: Viewer | None) -> bool:
        """Store a file of others here, if the viewer sees it; return whether it is here now.

        Raises RunnerError: `unavailable` if others have it and cannot be asked, and as `Files.check_size`.
        """

    async def offer(self, stored: StoredFile, subject: str, execution: str) -> None:
        """Take note of a file that was stored here.

        An upload by a subject is at hand for others when this returns, if they can be asked. A file that an execution
        made is at hand before the end of the execution is.
        """

    async def withdraw(self, name: str, subject: str) -> None:
        """Delete a file of all runners, or the upload of a subject, if one is given and others uploaded it too.

        Raises RunnerError `unavailable` if they cannot be asked.
        """


@frozen
class Shared:
    """A file of the cluster, as its note has it. `part`: it is no file of a caller, but a part of a record."""

    id: str
    size: int
    type: str
    name: str
    created_at: float
    touched_at: float
    subjects: tuple[str, ...] = ()
    """Those who uploaded it."""
    part: bool = False
    sequence: int = 0
    """The number of the note."""


class Sharing:
    """What the cluster knows and needs of this store. Methods raise RunnerError, as those of `Files`."""

    def __init__(self, store: Store, verifying: Verifying) -> None:
        """Share this store."""
        self._store = store
        self._verifying = verifying
        self.received = 0
        """Contents that came from other runners, since the start."""

    # Notes

    async def position(self, origin: int) -> int:
        """Return the number of the last note that is applied; 0 for none.

        `origin` stands for the stream of the notes, 0 for a runner alone. With another one than before all notes are
        forgotten: the files here are to be offered to it.
        """

        def work(link: sqlite3.Connection) -> int:
            found = dict(link.execute("select name, value from meta where name in (?, ?)", (_POSITION, _ORIGIN)))
            if found.get(_ORIGIN) == origin:
                return int(found.get(_POSITION, 0))
            link.execute("delete from shared").close()
            link.execute("delete from uploads where file not in (select id from files)").close()
            link.execute("delete from meta where name = ?", (_POSITION,)).close()
            link.execute("insert or replace into meta values (?, ?)", (_ORIGIN, origin)).close()
            return 0

        return await self._store.ask(work)

    async def apply(self, notes: Sequence[Shared | tuple[str, int]], position: int | None = None) -> None:
        """Apply notes, or the ends of files as id and number, in their order, and note the position.

        A file that ends is deleted here too, unless an execution uses it: then it is to be offered again. Repeating it
        changes nothing.
        """

        def change(link: sqlite3.Connection) -> list[str]:
            gone = [name for note in notes if (name := self._apply(link, note)) is not None]
            if position is not None:
                link.execute("insert or replace into meta values (?, ?)", (_POSITION, position)).close()
            return gone

        def work() -> list[str]:
            gone = self._store.transact(change)
            for name in gone:
                self._store.content.remove(name)
            return gone

        for name in await self._store.run(work):
            self._verifying.forget(name)

    def _apply(self, link: sqlite3.Connection, note: Shared | tuple[str, int]) -> str | None:
        """Apply a note; return the id of a file that is not to be kept here."""
        name, sequence = note if isinstance(note, tuple) else (note.id, note.sequence)
        known = link.execute("select sequence from shared where id = ?", (name,)).fetchone()
        if known is not None and known[0] >= sequence:
            return None
        if isinstance(note, Shared):
            values = (name, note.size, note.type, note.name, note.created_at, note.touched_at, sequence, note.part)
            link.execute("insert or replace into shared values (?, ?, ?, ?, ?, ?, ?, ?)", values)
            if known is not None:  # else an upload here may not be offered yet
                link.execute("delete from uploads where file = ?", (name,))
            uploads = [(name, subject, note.created_at) for subject in note.subjects]
            link.executemany("insert or replace into uploads values (?, ?, ?)", uploads).close()
            described = (note.type, note.name, note.created_at, name)
            link.execute("update files set type = ?, name = ?, created_at = ? where id = ?", described)
            return None
        if known is None:  # the file here was not shared, or was stored again since
            return None
        self.forget(link, name)
        row = self._store.index.get(link, name, None)
        if self._store.index.executions_of(link, name, 1):
            return None
        link.execute("delete from uploads where file = ?", (name,))
        if row is None:
            return None
        self._store.index.delete(link, row)
        return name

    def forget(self, link: sqlite3.Connection, name: str) -> None:
        """Forget the note about a file, in the transaction that stores the file: it is to be offered."""
        link.execute("delete from shared where id = ?", (name,)).close()

    async def find(self, name: str, viewer: Viewer | None = None) -> Shared | None:
        """Return a file of the cluster that the viewer sees; parts of records are for none but the runner itself."""
        return await self._store.ask(lambda link: _shared(link, name, viewer))

    # What the others lack

    async def subjects(self, name: str) -> tuple[str, ...]:
        """Return those who uploaded a file, as far as it is known here."""
        return await self._store.ask(lambda link: _subjects(link, name))

    async def lacking(self, start: str) -> tuple[list[StoredFile], str | None]:
        """Return those of the next files that are here and not shared, and a next start, None at the end."""
        sql = (
            f"select {COLUMNS}, exists (select 1 from shared s where s.id = f.id)"  # noqa: S608
            " from files f where f.id > ? order by f.id limit ?"
        )
        rows = await self._store.ask(lambda link: link.execute(sql, (start, LOOKED_AT)).fetchall())
        following = rows[-1][0] if len(rows) == LOOKED_AT else None
        return [self._stored(row[:5]) for row in rows if not row[5]], following

    async def lacking_of(self, execution: str) -> list[StoredFile]:
        """Return the files of an execution that are here and not shared."""
        sql = (
            f"select {COLUMNS} from uses u join files f on f.id = u.file where u.execution = ?"  # noqa: S608
            " and not exists (select 1 from shared s where s.id = f.id) order by f.id"
        )
        rows = await self._store.ask(lambda link: link.execute(sql, (execution,)).fetchall())
        return list(map(self._stored, rows))

    async def used(self, execution: str) -> list[str]:
        """Return the files that an execution uses."""
        sql = "select file from uses where execution = ? order by file"
        return [row[0] for row in await self._store.ask(lambda link: link.execute(sql, (execution,)).fetchall())]

    async def note_uses(self, uses: Iterable[tuple[str, str, Collection[str]]]) -> None:
        """Note that executions of other runners, each with its module, use files."""
        now = self._store.clock()
        rows = [(execution, name, module, now) for execution, module, names in uses for name in names]

        def work(link: sqlite3.Connection) -> None:
            link.executemany("insert or ignore into uses values (?, ?, ?, ?)", rows).close()

        await self._store.ask(work)

    async def used_ones(self, names: Collection[str]) -> list[str]:
        """Return those of the files that executions use, as far as it is known here."""
        index = self._store.index
        return await self._store.ask(lambda link: [name for name in names if index.executions_of(link, name, 1)])

    async def unused(self, start: str, before: float, kept_seconds: float) -> tuple[list[Shared], str | None]:
        """Return some shared files that no execution names and that nothing touched since `before`, and a next start.

        They come in the order of their ids, after `start`; the next start is None at the end. If damage lost uses, they
        were made after that, until all executions of that time are gone.
        """
        lost = self._store.index.lost_at
        after = lost if lost and self._store.clock() < lost + kept_seconds else 0.0

        def work(link: sqlite3.Connection) -> tuple[list[Shared], str | None]:
            rows, following = self._store.index.unused(link, start, before, after, "shared")
            return [found for row in rows if (found := _shared(link, row[0], None)) is not None], following

        return await self._store.ask(work)

    # Contents

    async def here(self, name: str) -> StoredFile | None:
        """Return a file whose content is here, verified. Raises RunnerError `unavailable` if it is damaged."""
        row = await self._store.ask(lambda link: self._store.index.get(link, name, None))
        return None if row is None else await self._verifying.check(self._stored(row), self._known)

    async def receive(self, shared: Shared, load: Load) -> bool:
        """Store the content of a file, which `load` writes; return False if `load` has none, or another."""
        content = self._store.content
        await self._store.run(partial(content.check_room, shared.size))
        file, path = await self._store.run(content.make)
        try:
            file.close()
            if not await load(path) or await self._verifying.digest(path) != shared.id:
                return False
            row, now = (shared.id, shared.size, shared.type, shared.name, shared.created_at), self._store.clock()

            def work() -> Stamp:
                stamp = self._store.content.place(path, shared.id)

                def change(link: sqlite3.Connection) -> None:
                    self._store.index.add(link, row, "", "", "")
                    link.execute("update files set touched_at = ? where id = ?", (now, shared.id)).close()

                self._store.transact(change)
                return stamp

            self._verifying.remember(shared.id, await self._store.run(work))
            self.received += 1
            return True
        finally:
            path.unlink(missing_ok=True)

    def _stored(self, row: Row) -> StoredFile:
        return stored_file(self._store.content, row)

    async def _known(self, name: str) -> bool:
        return await self._store.ask(lambda link: self._store.index.get(link, name, None)) is not None


def stored_file(content: Content, row: Row) -> StoredFile:
    """Return the file of a row."""
    name, size, kind, shown, at = row
    return StoredFile(name, size, kind, shown, at, content.path_of(name))


def _shared(link: sqlite3.Connection, name: str, viewer: Viewer | None) -> Shared | None:
    where, values = seen(viewer)
    sql = f"select {COLUMNS}, f.touched_at, f.part, f.sequence from shared f where f.id = :id and {where}"  # noqa: S608
    row = link.execute(sql, values | {"id": name}).fetchone()
    if row is None or (viewer is not None and row[6]):
        return None
    return Shared(row[0], row[1], row[2], row[3], row[4], row[5], _subjects(link, name), bool(row[6]), row[7])


def _subjects(link: sqlite3.Connection, name: str) -> tuple[str, ...]:
    return tuple(row[0] for row in link.execute("select subject from uploads where file = ? order by at", (name,)))
