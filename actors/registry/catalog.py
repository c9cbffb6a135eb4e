"""The SQLite file of registered modules: versions, their code, and the audit log.

Every change is one transaction that adds one entry or more to the audit log; the number of the first becomes the
module's revision. Everything here blocks and is called by one thread at a time.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from attrs import define, frozen
from sqlalchemy.pool import StaticPool

from actors.sqlite import ONE_FILE, TROUBLE, begin, check_schema, matching, open_writer, reason_of
from protocol.errors import ErrorKind, error
from protocol.views import DEFAULT_PAGE

SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "modules.db"
"""Its name in the data directory."""
MAX_CHANGES: Final = 100_000
"""Entries that the audit log keeps; the oldest are deleted first."""
_SLACK: Final = 1000
"""Changes between two deletions of old entries, so that not every change pays for one."""

metadata = sa.MetaData()

_meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_modules = sa.Table(
    "modules",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("active", sa.Text),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
_versions = sa.Table(
    "versions",
    metadata,
    sa.Column("module", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),  # the order of registration
    sa.Column("spec", sa.LargeBinary, nullable=False),  # JSON, without the path of the code
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("entry", sa.Text, nullable=False),
    sa.Column("package", sa.Boolean, nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
)
_code = sa.Table(
    "code",
    metadata,
    sa.Column("module", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("files", sa.LargeBinary, nullable=False),  # zlib of msgpack: name -> content
)
_changes = sa.Table(
    "changes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("module", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("detail", sa.LargeBinary, nullable=False),  # JSON
    sa.Index("changes_by_module", "module", "id"),
    sa.Index("changes_by_subject", "subject", "id"),
    sqlite_autoincrement=True,  # a number is never reused
)


class Action(StrEnum):
    """The kinds of change."""

    REGISTER = "register"
    ACTIVATE = "activate"
    DELETE = "delete"
    DELETE_VERSION = "delete_version"
    PRUNE = "prune"
    """A version was deleted because there were too many."""
    FILE_ADD = "file_add"
    FILE_CHANGE = "file_change"
    FILE_REMOVE = "file_remove"


@frozen
class StoredVersion:
    """One stored version. `spec` is the module without its path, `folder` the name of its code folder."""

    module: str
    version: str
    spec: Mapping[str, Any]
    digest: str
    entry: str
    package: bool
    folder: str
    created_at: float
    created_by: str


@frozen
class StoredModule:
    """One stored module; its versions oldest first."""

    name: str
    active: str | None
    revision: int
    updated_at: float
    updated_by: str
    versions: tuple[StoredVersion, ...]


@frozen
class Change:
    """One entry of the audit log. `id` rises, `at` is in seconds since the epoch."""

    id: int
    at: float
    subject: str
    action: Action
    module: str
    version: str | None
    detail: Mapping[str, Any]


@frozen
class Note:
    """An entry to add to the audit log."""

    action: Action
    module: str
    version: str | None = None
    detail: Mapping[str, Any] = {}


@frozen
class ChangesQuery:
    """The filters of the audit log: newest first, entries before the id `before`; None is no filter.

    `modules` are globs of module names, () for all. Times are seconds since the epoch.
    """

    module: str | None = None
    subject: str | None = None
    action: Action | None = None
    since: float | None = None
    until: float | None = None
    before: int | None = None
    modules: tuple[str, ...] = ()
    limit: int = DEFAULT_PAGE


@define
class Catalog:
    """An open catalog. Methods raise `sqlalchemy.exc.SQLAlchemyError` and OSError, and change nothing then."""

    _engine: sa.Engine

    @classmethod
    def open(cls, path: Path) -> Catalog:
        """Open or make the file. Raises RunnerError `unavailable`."""
        # Changes are few and precious: none of them may be lost with a `-wal` file.
        connect = partial(open_writer, path, durable=ONE_FILE)
        opened = cls(sa.create_engine("sqlite://", creator=connect, poolclass=StaticPool))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened._prepare(path)
        except (*TROUBLE, sqlite3.Error) as problem:
            opened.close()
            text = f"registered modules cannot be read from {path}: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir") from problem
        except BaseException:
            opened.close()
            raise
        return opened

    def _prepare(self, path: Path) -> None:
        with self._transaction() as link:
            metadata.create_all(link)
            known = link.execute(sa.select(_meta.c.value).where(_meta.c.name == "schema")).scalar()
            if known is None:
                link.execute(sa.insert(_meta).values(name="schema", value=SCHEMA_VERSION))
            else:
                check_schema(path, known, SCHEMA_VERSION)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._engine.connect() as link, link.begin():
            begin(link)
            yield link

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    # Reading

    def load(self) -> list[StoredModule]:
        """Return every module, by name."""
        with self._engine.connect() as link:
            found: dict[str, list[StoredVersion]] = {}
            for row in link.execute(sa.select(_versions).order_by(_versions.c.module, _versions.c.number)):
                fields = row._asdict()
                del fields["number"]
                fields["spec"] = msgspec.json.decode(fields["spec"])
                found.setdefault(row.module, []).append(StoredVersion(**fields))
            rows = link.execute(sa.select(_modules).order_by(_modules.c.name))
            return [StoredModule(**row._asdict(), versions=tuple(found.get(row.name, ()))) for row in rows]

    def files(self, module: str, version: str) -> dict[str, bytes]:
        """Return the code of a version by relative name. Raises KeyError when it is missing."""
        where = (_code.c.module == module, _code.c.version == version)
        with self._engine.connect() as link:
            data = link.execute(sa.select(_code.c.files).where(*where)).scalar()
        if data is None:
            raise KeyError(module, version)
        files: dict[str, bytes] = msgspec.msgpack.decode(zlib.decompress(data), type=dict[str, bytes])
        return files

    def changes(self, query: ChangesQuery) -> list[Change]:
        """Return entries of the audit log, newest first."""
        wanted = sa.select(_changes).order_by(_changes.c.id.desc()).limit(query.limit)
        for column, value in (
            (_changes.c.module, query.module),
            (_changes.c.subject, query.subject),
            (_changes.c.action, query.action),
        ):
            if value is not None:
                wanted = wanted.where(column == str(value))
        if query.since is not None:
            wanted = wanted.where(_changes.c.at >= query.since)
        if query.until is not None:
            wanted = wanted.where(_changes.c.at < query.until)
        if query.before is not None:
            wanted = wanted.where(_changes.c.id < query.before)
        if query.modules:
            wanted = wanted.where(matching(_changes.c.module, query.modules))
        with self._engine.connect() as link:
            return [
                Change(r.id, r.at, r.subject, Action(r.action), r.module, r.version, msgspec.json.decode(r.detail))
                for r in link.execute(wanted)
            ]

    # Changing

    def note(self, subject: str, notes: Iterable[Note]) -> None:
        """Add entries to the audit log for changes made elsewhere."""
        with self._transaction() as link:
            for each in notes:
                _noted(link, subject, each)

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
            link.execute(
                sa.insert(_versions).values(
                    module=name,
                    version=version.version,
                    number=revision,
                    spec=msgspec.json.encode(version.spec),
                    digest=version.digest,
                    entry=version.entry,
                    package=version.package,
                    folder=version.folder,
                    created_at=version.created_at,
                    created_by=subject,
                )
            )
            packed = zlib.compress(msgspec.msgpack.encode(dict(files)))
            link.execute(sa.insert(_code).values(module=name, version=version.version, files=packed))
            for old in pruned:
                _forget(link, name, old)
                _noted(link, subject, Note(Action.PRUNE, name, old))
            _touch(link, name, active, revision, subject)
        return revision

    def activate(self, name: str, version: str, subject: str, before: str | None) -> int:
        """Activate another version; return the revision of the module."""
        with self._transaction() as link:
            revision = _noted(link, subject, Note(Action.ACTIVATE, name, version, {"before": before}))
            _touch(link, name, version, revision, subject)
        return revision

    def remove_version(self, name: str, version: str, subject: str) -> int:
        """Delete one version; return the revision of the module."""
        with self._transaction() as link:
            revision = _noted(link, subject, Note(Action.DELETE_VERSION, name, version))
            _forget(link, name, version)
            _touch(link, name, None, revision, subject)
        return revision

    def remove(self, name: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Delete a module with all its versions."""
        with self._transaction() as link:
            _noted(link, subject, Note(Action.DELETE, name, None, detail))
            _forget(link, name)
            link.execute(sa.delete(_modules).where(_modules.c.name == name))


def _noted(link: sa.Connection, subject: str, note: Note) -> int:
    values = {
        "at": time.time(),
        "subject": subject,
        "action": note.action.value,
        "module": note.module,
        "version": note.version,
        "detail": msgspec.json.encode(note.detail),
    }
    made = link.execute(sa.insert(_changes).values(**values)).inserted_primary_key
    number = int(made[0]) if made is not None else 0
    if number % _SLACK == 0:
        link.execute(sa.delete(_changes).where(_changes.c.id <= number - MAX_CHANGES))
    return number


def _touch(link: sa.Connection, name: str, active: str | None, revision: int, subject: str) -> None:
    """Record a change of a module; `active` is its active version from now on, None as before."""
    values: dict[str, Any] = {"revision": revision, "updated_at": time.time(), "updated_by": subject}
    if active is not None:
        values["active"] = active
    if not link.execute(sa.update(_modules).where(_modules.c.name == name).values(**values)).rowcount:
        link.execute(sa.insert(_modules).values(name=name, **values))


def _forget(link: sa.Connection, name: str, version: str | None = None) -> None:
    for table in (_versions, _code):
        where = [table.c.module == name, *([] if version is None else [table.c.version == version])]
        link.execute(sa.delete(table).where(*where))
