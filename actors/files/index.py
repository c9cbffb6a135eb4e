"""The SQLite file of the store: names, types and sizes, who uploaded a file, and which executions name it.

Everything here blocks, and is called by one thread at a time. Methods raise `sqlite3.Error` and OSError.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog
from attrs import define, field, frozen

from actors.damage import Copied, check, is_damage, salvage, set_aside
from actors.files.model import PLAIN_NAME, PLAIN_TYPE
from actors.sqlite import check_schema, open_reader, open_writer

FILE_NAME: Final = "files.db"
"""Its name in the data directory."""
SCHEMA_VERSION: Final = 1
_CHECK_SECONDS: Final = 1.0
_SALVAGE_SECONDS: Final = 30.0
_LOST: Final = "uses_lost_at"
"""In `meta`: when uses were lost by damage, in seconds since the epoch."""
_TABLES: Final = """
create table if not exists meta (name text primary key, value integer not null) without rowid;
create table if not exists files (
  id text primary key, size integer not null, type text not null, name text not null,
  created_at real not null, touched_at real not null
);
create index if not exists files_created on files (created_at, id);
create table if not exists uses (
  execution text not null, file text not null, module text not null, at real not null,
  primary key (execution, file)
) without rowid;
create index if not exists uses_file on uses (file, module);
create table if not exists uploads (
  file text not null, subject text not null, at real not null, primary key (file, subject)
) without rowid;
create table if not exists shared (
  id text primary key, size integer not null, type text not null, name text not null,
  created_at real not null, touched_at real not null, sequence integer not null, part integer not null
);
create index if not exists shared_created on shared (created_at, id);
"""
"""`shared` has the files of the cluster, whether they are here or not; a runner alone has none."""
_SALVAGED: Final = (Copied("files", "id"), Copied("uses", "execution"), Copied("uploads", "file"))
_SEEN: Final = (
    "(exists (select 1 from uploads u where u.file = f.id and u.subject = :subject)"
    # From module to module: a file may have a million uses.
    " or exists (with recursive m(module) as ("
    "  select min(s.module) from uses s where s.file = f.id union all"
    "  select (select min(s.module) from uses s where s.file = f.id and s.module > m.module) from m"
    "  where m.module is not null"
    ") select 1 from m where m.module is not null and module_matches(m.module, :globs)))"
)
LOOKED_AT: Final = 1000
"""Rows that one step looks at, so that other changes do not wait long."""
# Statements are put together (S608) of texts of this file only; everything else is a parameter.
COLUMNS: Final = "f.id, f.size, f.type, f.name, f.created_at"
NOT_HERE: Final = "not f.part and not exists (select 1 from files h where h.id = f.id)"
"""Of `shared f`: the file is elsewhere only, and is no part of a record."""
Row = tuple[str, int, str, str, float]
"""Id, size, type, name, time of the latest upload."""
Place = tuple[float, str]
"""Time of the latest upload and id, in the order of which files are listed."""
T = TypeVar("T")
log: Any = structlog.get_logger(__name__)


@frozen
class Viewer:
    """A caller that is limited to modules: it sees the files that it uploaded, and those of these modules' executions.

    `modules` are globs.
    """

    subject: str
    modules: tuple[str, ...]


@frozen
class Collected:
    """What a collection removed."""

    files: int = 0
    bytes: int = 0


@define
class Index:
    """The open file."""

    path: Path
    total_bytes: int = 0
    count: int = 0
    damaged: bool = False
    lost_at: float = 0.0
    """When uses were lost by damage; of files from before that, it is unknown whether they are used."""
    lacking: bool = False
    """Rows were lost; `adopt` makes them from the contents."""
    _link: sqlite3.Connection = field(init=False)

    def open(self, now: float, *, contents: bool) -> None:
        """Open or make the file, mended if it is damaged; `contents` tells whether there are contents already."""
        missing = not self.path.exists()
        try:
            self._prepare()
            with closing(sqlite3.connect(self.path)) as link:
                found = check(link, _CHECK_SECONDS)
        except sqlite3.DatabaseError as problem:
            if not is_damage(problem):
                raise
            found = str(problem)
        if found:
            self._mend(found, now)
        elif missing and contents:
            log.error("the database of files is gone; it is made again from their contents", path=str(self.path))
            self._lose(now)
        self.count_again()

    def close(self) -> None:
        """Close the file."""
        with suppress(AttributeError, sqlite3.Error):
            self._link.close()

    def run(self, now: float, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of `work` in a transaction; a file that turns out to be damaged is mended once."""
        try:
            return self._transact(work)
        except sqlite3.DatabaseError as problem:
            if not is_damage(problem):
                raise
            self._mend(str(problem), now)
        return self._transact(work)

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._link:
                self._link.execute("begin immediate").close()
                return work(self._link)
        except BaseException:
            with suppress(sqlite3.Error):
                self.count_again()
            raise

    def _prepare(self) -> None:
        self._link = open_writer(self.path)
        self._link.isolation_level = None  # `_transact` begins
        self._link.executescript(_TABLES).close()
        known = self._link.execute("select value from meta where name = 'schema'").fetchone()
        if known is None:
            self._link.execute("insert into meta values ('schema', ?)", (SCHEMA_VERSION,)).close()
        else:
            check_schema(self.path, known[0], SCHEMA_VERSION)
        lost = self._link.execute("select value from meta where name = ?", (_LOST,)).fetchone()
        self.lost_at = 0.0 if lost is None else float(lost[0])

    def _mend(self, reason: str, now: float) -> None:
        """Set the damaged file aside, and go on with a fresh one that has what could be read."""
        self.close()
        aside = set_aside(self.path)
        self._prepare()
        whole = salvage(self._link, aside, _SALVAGED, _SALVAGE_SECONDS)
        log.error("the database of files was damaged", reason=reason, kept=str(aside), all_read=whole)
        self._lose(now)
        self.count_again()

    def _lose(self, now: float) -> None:
        self.damaged = self.lacking = True
        self.lost_at = now
        self._link.execute("insert or replace into meta values (?, ?)", (_LOST, int(now))).close()

    def count_again(self) -> None:
        """Read number and size of the files, which are known in memory otherwise."""
        row = self._link.execute("select count(*), coalesce(sum(size), 0) from files").fetchone()
        self.count, self.total_bytes = int(row[0]), int(row[1])

    # Each takes the connection of `run`.

    def add(self, link: sqlite3.Connection, row: Row, subject: str, execution: str, module: str) -> None:
        """Add a file, or give it another name and type; note who uploaded it, or which execution made it."""
        name, size, kind, shown, now = row
        known = link.execute("select size from files where id = ?", (name,)).fetchone()
        link.execute("insert or replace into files values (?, ?, ?, ?, ?, ?)", (name, size, kind, shown, now, now))
        if subject:
            link.execute("insert or replace into uploads values (?, ?, ?)", (name, subject, now))
        if execution:
            link.execute("insert or ignore into uses values (?, ?, ?, ?)", (execution, name, module, now))
        if known is None:
            self.count, self.total_bytes = self.count + 1, self.total_bytes + size

    def use(
        self,
        link: sqlite3.Connection,
        execution: str,
        module: str,
        names: Collection[str],
        viewer: Viewer | None,
        now: float,
    ) -> tuple[dict[str, Row], str | None]:
        """Note that an execution names these files; return them, or the first one that there is not, noting nothing."""
        rows: dict[str, Row] = {}
        for name in names:
            row = self.get(link, name, viewer)
            if row is None:
                return {}, name
            rows[name] = row
        for name in rows:
            link.execute("insert or ignore into uses values (?, ?, ?, ?)", (execution, name, module, now))
            link.execute("update files set touched_at = ? where id = ?", (now, name))
        return rows, None

    def get(self, link: sqlite3.Connection, name: str, viewer: Viewer | None, table: str = "files") -> Row | None:
        """Return a file that the viewer sees, out of `files` or of `shared`."""
        where, values = seen(viewer)
        found = link.execute(f"select {COLUMNS} from {table} f where f.id = :id and {where}", values | {"id": name})  # noqa: S608
        row: Row | None = found.fetchone()
        return row

    def page(
        self, link: sqlite3.Connection, viewer: Viewer | None, limit: int, before: Place | None
    ) -> tuple[list[Row], Place | None]:
        """Return at most `limit` files, newest first, and where the next page begins; None on the last page.

        A limited viewer may see few of the rows that are looked at, or none: then the page is short.
        """
        where, values = seen(viewer)
        looked, known = max(limit, LOOKED_AT), {"at": before[0], "id": before[1]} if before is not None else {}
        older = "(f.created_at, f.id) < (:at, :id)" if before is not None else "true"
        here = f"select {COLUMNS}, true as listed from files f where {older}"  # noqa: S608
        other = f"select {COLUMNS}, {NOT_HERE} from shared f where {older}"  # noqa: S608
        newest = f"{here} union all {other} order by 5 desc, 1 desc limit :looked"  # two indexes, merged
        sql = f"select {COLUMNS}, listed and {where} from ({newest}) f order by f.created_at desc, f.id desc"  # noqa: S608
        found: list[Row] = []
        last: Place | None = None
        with closing(link.execute(sql, values | known | {"looked": looked})) as rows:
            for number, (*row, visible) in enumerate(rows, 1):
                last = (row[4], row[0])
                if visible:
                    found.append((row[0], row[1], row[2], row[3], row[4]))
                if len(found) == limit or number == looked:
                    return found, last
        return found, None

    def executions_after(self, link: sqlite3.Connection, after: str, noted_before: float, limit: int) -> list[str]:
        """Return the next executions with files, by their ids."""
        sql = "select distinct execution from uses where execution > ? and at < ? order by execution limit ?"
        return [row[0] for row in link.execute(sql, (after, noted_before, limit))]

    def executions_of(self, link: sqlite3.Connection, name: str, limit: int) -> list[tuple[str, float]]:
        """Return executions that name a file, and since when."""
        return link.execute("select execution, at from uses where file = ? limit ?", (name, limit)).fetchall()

    def adopt(self, link: sqlite3.Connection, found: Iterable[tuple[str, os.stat_result]]) -> None:
        """Add files whose rows were lost, by their contents."""
        rows = [(name, stat.st_size, PLAIN_TYPE, PLAIN_NAME, stat.st_mtime, stat.st_mtime) for name, stat in found]
        link.executemany("insert or ignore into files values (?, ?, ?, ?, ?, ?)", rows).close()

    def unknown(self, link: sqlite3.Connection, names: Iterable[str]) -> list[str]:
        """Return those of the ids that no file has."""
        select = "select 1 from files where id = ?"
        return [name for name in names if link.execute(select, (name,)).fetchone() is None]

    def forget(self, link: sqlite3.Connection, executions: Iterable[str]) -> None:
        """Forget the uses of executions that do not exist any more."""
        link.executemany("delete from uses where execution = ?", ((each,) for each in executions)).close()

    def withdraw(self, link: sqlite3.Connection, name: str, subject: str) -> bool:
        """Forget the upload of a caller; return whether other callers have uploaded the file."""
        link.execute("delete from uploads where file = ? and subject = ?", (name, subject))
        return link.execute("select 1 from uploads where file = ?", (name,)).fetchone() is not None

    def unused(
        self, link: sqlite3.Connection, start: str, before: float, after: float, table: str = "files"
    ) -> tuple[list[Row], str | None]:
        """Return some files that no execution names, touched before one time, created after another.

        Files, or those of `shared`, are looked at in the order of their ids, after `start`; the second result is the
        next start, None at the end.
        """
        sql = (
            f"select {COLUMNS}, f.touched_at, exists (select 1 from uses s where s.file = f.id)"  # noqa: S608
            f" from {table} f where f.id > ? order by f.id limit ?"
        )
        rows = link.execute(sql, (start, LOOKED_AT)).fetchall()
        found = [row[:5] for row in rows if row[5] < before and row[4] > after and not row[6]]
        return found, rows[-1][0] if len(rows) == LOOKED_AT else None

    def delete(self, link: sqlite3.Connection, row: Row) -> None:
        """Delete a file. Uses and uploads of a file that others have stay."""
        link.execute("delete from files where id = ?", (row[0],))
        for table in ("uploads", "uses"):
            sql = f"delete from {table} where file = ? and not exists (select 1 from shared s where s.id = file)"  # noqa: S608
            link.execute(sql, (row[0],))
        self.count, self.total_bytes = self.count - 1, self.total_bytes - row[1]


def usage(data_dir: Path) -> tuple[int, int]:
    """Return number and bytes of the stored files, also beside a running server. Raises `sqlite3.Error`."""
    path = data_dir / FILE_NAME
    if not path.exists():
        return 0, 0
    with closing(open_reader(path)) as link:
        row = link.execute("select count(*), coalesce(sum(size), 0) from files").fetchone()
    return int(row[0]), int(row[1])


def seen(viewer: Viewer | None) -> tuple[str, dict[str, Any]]:
    """Return the condition that a viewer sees the file `f`, and its parameters."""
    if viewer is None:
        return "true", {}
    return _SEEN, {"subject": viewer.subject, "globs": msgspec.json.encode(viewer.modules).decode()}
