"""The SQLite file of registered modules: versions, their code, and the audit log.

Every change is one transaction that adds one entry or more to the audit log; the number of the first becomes the
module's revision. Everything here blocks and is called by one thread at a time.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from attrs import asdict, define

from actors.damage import Copied
from actors.one_file import OneFile, mending
from actors.registry import stored as tables
from actors.registry.stored import (
    ADOPTED_NOTES,
    Action,
    Adopted,
    Change,
    ChangesQuery,
    Note,
    StoredModule,
    StoredVersion,
)
from actors.sqlite import matching, open_reader

SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "modules.db"
"""Its name in the data directory."""
MAX_CHANGES: Final = 100_000
"""Entries that the audit log keeps; the oldest are deleted first."""
_SLACK: Final = 1000
"""Changes between two deletions of old entries, so that not every change pays for one."""

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, zlib.error)


@define
class Catalog(OneFile):
    """An open catalog. Methods raise `sqlalchemy.exc.SQLAlchemyError` and OSError, and change nothing then."""

    WHAT = "registered modules"
    METADATA = tables.metadata
    META = tables.meta
    SCHEMA = SCHEMA_VERSION
    COPIED = (
        Copied("modules", "name"),
        Copied("versions", "module"),
        Copied("code", "module"),
        Copied("changes", "id"),
    )

    def _complete(self, link: sa.Connection) -> None:
        # Which version was active is unknown where the row of the module is lost.
        link.exec_driver_sql(
            "insert or ignore into modules (name, revision, updated_at, updated_by)"
            " select module, max(number), max(created_at), max(created_by) from versions group by module"
        )

    # Reading

    @mending
    def load(self) -> list[StoredModule]:
        """Return every module, by name."""
        return self._modules(sa.true(), sa.true())

    @mending
    def module(self, name: str) -> StoredModule | None:
        """Return one module."""
        found = self._modules(tables.versions.c.module == name, tables.modules.c.name == name)
        return found[0] if found else None

    def _modules(self, versions: sa.ColumnElement[bool], modules: sa.ColumnElement[bool]) -> list[StoredModule]:
        with self._engine.connect() as link:
            found: dict[str, list[StoredVersion]] = {}
            columns = tables.versions.c
            for row in link.execute(
                sa.select(tables.versions).where(versions).order_by(columns.module, columns.number)
            ):
                fields = row._asdict()
                del fields["number"]
                try:
                    fields["spec"] = msgspec.json.decode(fields["spec"], type=dict[str, Any])
                except _UNREADABLE as problem:
                    self._unreadable(f"{row.module}@{row.version}", problem)
                else:
                    found.setdefault(row.module, []).append(StoredVersion(**fields))
            rows = link.execute(sa.select(tables.modules).where(modules).order_by(tables.modules.c.name))
            return [StoredModule(**row._asdict(), versions=tuple(found.get(row.name, ()))) for row in rows]

    @mending
    def files(self, module: str, version: str) -> dict[str, bytes]:
        """Return the code of a version by relative name. Raises KeyError when it is missing."""
        where = (tables.code.c.module == module, tables.code.c.version == version)
        with self._engine.connect() as link:
            data = link.execute(sa.select(tables.code.c.files).where(*where)).scalar()
        if data is None:
            raise KeyError(module, version)
        try:
            return msgspec.msgpack.decode(zlib.decompress(data), type=dict[str, bytes])
        except _UNREADABLE as problem:
            self._unreadable(f"code of {module}@{version}", problem)
            raise KeyError(module, version) from problem

    @mending
    def changes(self, query: ChangesQuery) -> list[Change]:
        """Return entries of the audit log, newest first."""
        wanted = sa.select(tables.changes).order_by(tables.changes.c.id.desc()).limit(query.limit)
        for column, value in (
            (tables.changes.c.module, query.module),
            (tables.changes.c.subject, query.subject),
            (tables.changes.c.action, query.action),
        ):
            if value is not None:
                wanted = wanted.where(column == str(value))
        if query.since is not None:
            wanted = wanted.where(tables.changes.c.at >= query.since)
        if query.until is not None:
            wanted = wanted.where(tables.changes.c.at < query.until)
        if query.before is not None:
            wanted = wanted.where(tables.changes.c.id < query.before)
        if query.modules:
            wanted = wanted.where(matching(tables.changes.c.module, query.modules))
        with self._engine.connect() as link:
            found = []
            for r in link.execute(wanted):
                try:
                    detail = msgspec.json.decode(r.detail)
                    found.append(Change(r.id, r.at, r.subject, Action(r.action), r.module, r.version, detail))
                except _UNREADABLE as problem:
                    self._unreadable(f"change {r.id}", problem)
            return found

    # Changing

    @mending
    def note(self, subject: str, notes: Iterable[Note]) -> None:
        """Add entries to the audit log for changes made elsewhere."""
        with self._transaction() as link:
            for each in notes:
                _noted(link, subject, each)

    @mending
    def register(
        self, version: StoredVersion, files: Mapping[str, bytes], active: str | None, pruned: Iterable[str]
    ) -> int:
        """Add a version, activate `active` (None: as before), delete the versions `pruned`; return the revision.

        A stored version of that name, which could not be restored, is replaced.
        """
        name, subject = version.module, version.created_by
        with self._transaction() as link:
            detail = {"active": active, "digest": version.digest}
            revision = _noted(link, subject, Note(Action.REGISTER, name, version.version, detail))
            _forget(link, name, version.version)
            _add(link, version, files, revision)
            for old in pruned:
                _forget(link, name, old)
                _noted(link, subject, Note(Action.PRUNE, name, old))
            _touch(link, name, active, revision, subject)
            self._apart(link)
        return revision

    @mending
    def activate(self, name: str, version: str, subject: str, before: str | None) -> int:
        """Activate another version; return the revision of the module."""
        with self._transaction() as link:
            revision = _noted(link, subject, Note(Action.ACTIVATE, name, version, {"before": before}))
            _touch(link, name, version, revision, subject)
            self._apart(link)
        return revision

    @mending
    def remove_version(self, name: str, version: str, subject: str) -> int:
        """Delete one version; return the revision of the module."""
        with self._transaction() as link:
            revision = _noted(link, subject, Note(Action.DELETE_VERSION, name, version))
            _forget(link, name, version)
            _touch(link, name, None, revision, subject)
            self._apart(link)
        return revision

    @mending
    def remove(self, name: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Delete a module with all its versions."""
        with self._transaction() as link:
            _noted(link, subject, Note(Action.DELETE, name, None, detail))
            _forget(link, name)
            link.execute(sa.delete(tables.modules).where(tables.modules.c.name == name))
            self._apart(link)

    @mending
    def adopt(self, cluster: int, place: int, changes: Iterable[Adopted]) -> None:
        """Apply changes of a cluster, all up to the one with the number `place`; a second time changes nothing."""
        with self._transaction() as link:
            for each in changes:
                _adopt(link, each)
                if each.number % _SLACK == 0:
                    _shorten(link)
            self._place(link, cluster, place)


def _adopt(link: sa.Connection, change: Adopted) -> None:
    for index, note in enumerate(change.notes):
        _note(link, note, change.subject, change.at, change.number * ADOPTED_NOTES + index)
    if change.name is None:
        return
    module = change.module
    kept = set() if module is None else {(each.version, each.digest) for each in module.versions}
    table = tables.versions
    for row in link.execute(sa.select(table.c.version, table.c.digest).where(table.c.module == change.name)).all():
        if (row.version, row.digest) not in kept:
            _forget(link, change.name, row.version)
    if module is None:
        link.execute(sa.delete(tables.modules).where(tables.modules.c.name == change.name))
        return
    for number, version in enumerate(module.versions, 1):
        where = (table.c.module == version.module, table.c.version == version.version)
        if not link.execute(sa.update(table).where(*where).values(number=number)).rowcount:
            files = change.code.get(version.version)
            if files is not None:
                _add(link, version, files, number)
    values: dict[str, Any] = {"active": module.active, "revision": change.number}
    values |= {"updated_at": module.updated_at, "updated_by": module.updated_by}
    link.execute(sa.insert(tables.modules).prefix_with("or replace").values(name=change.name, **values))


def _add(link: sa.Connection, version: StoredVersion, files: Mapping[str, bytes], number: int) -> None:
    values = {**asdict(version), "number": number, "spec": msgspec.json.encode(version.spec)}
    link.execute(sa.insert(tables.versions).values(**values))
    packed = zlib.compress(msgspec.msgpack.encode(dict(files)))
    link.execute(sa.insert(tables.code).values(module=version.module, version=version.version, files=packed))


def _noted(link: sa.Connection, subject: str, note: Note) -> int:
    number = _note(link, note, subject, time.time(), None)
    if number % _SLACK == 0:
        _shorten(link)
    return number


def _note(link: sa.Connection, note: Note, subject: str, at: float, number: int | None) -> int:
    values: dict[str, Any] = {
        "at": at,
        "subject": subject,
        "action": note.action.value,
        "module": note.module,
        "version": note.version,
        "detail": msgspec.json.encode(note.detail),
    }
    if number is not None:
        values["id"] = number
    made = link.execute(sa.insert(tables.changes).prefix_with("or ignore").values(**values)).inserted_primary_key
    return int(made[0]) if made is not None else 0


def _shorten(link: sa.Connection) -> None:
    """Delete the oldest entries of the audit log."""
    column = tables.changes.c.id
    last = sa.select(column).order_by(column.desc()).limit(1).offset(MAX_CHANGES).scalar_subquery()
    link.execute(sa.delete(tables.changes).where(column <= last))


def _touch(link: sa.Connection, name: str, active: str | None, revision: int, subject: str) -> None:
    """Record a change of a module; `active` is its active version from now on, None as before."""
    values: dict[str, Any] = {"revision": revision, "updated_at": time.time(), "updated_by": subject}
    if active is not None:
        values["active"] = active
    if not link.execute(sa.update(tables.modules).where(tables.modules.c.name == name).values(**values)).rowcount:
        link.execute(sa.insert(tables.modules).values(name=name, **values))


def _forget(link: sa.Connection, name: str, version: str | None = None) -> None:
    for table in (tables.versions, tables.code):
        where = [table.c.module == name, *([] if version is None else [table.c.version == version])]
        link.execute(sa.delete(table).where(*where))


def registered_names(data_dir: Path) -> set[str]:
    """Return the names of registered modules, also beside a running server. Raises `sqlite3.Error`."""
    path = data_dir / FILE_NAME
    if not path.exists():
        return set()
    with closing(open_reader(path)) as link:
        return {name for (name,) in link.execute("select name from modules where active is not null")}
