"""`OneFile`: a small SQLite database of few and precious rows, which mends itself when its file is damaged.

Everything here blocks and is called by one thread at a time.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial, wraps
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, Self, TypeVar, cast

import msgspec
import sqlalchemy as sa
import structlog
import trio
from attrs import define, field
from sqlalchemy.pool import StaticPool

from actors.damage import Copied, check, is_damage, salvage, set_aside
from actors.sqlite import ONE_FILE, TROUBLE, begin, check_schema, identity_of, open_writer, reason_of
from protocol.errors import ErrorKind, Failure, RunnerError, error

_CHECK_SECONDS: Final = 1.0
_SALVAGE_SECONDS: Final = 30.0
_MOST_TRIES: Final = 20
"""How often a change is tried when other runners are faster."""
_CLUSTER: Final = "cluster"
_PLACE: Final = "place"
S = TypeVar("S", bound="OneFile")
T = TypeVar("T")
P = ParamSpec("P")
log: Any = structlog.get_logger(__name__)


class OvertakenError(RunnerError):
    """Another runner of the cluster made a change first. It is applied here, so the next try is based on it."""

    def __init__(self) -> None:
        text = "other callers make changes all the time; try again"
        super().__init__(Failure(ErrorKind.UNAVAILABLE, text, retry_after=1.0))


async def until_first(change: Callable[[], Awaitable[T]]) -> T:
    """Make a change, again each time another runner was faster. Raises OvertakenError after too many tries."""
    for _ in range(_MOST_TRIES - 1):
        with suppress(OvertakenError):
            return await change()
    return await change()


@define
class InTurn:
    """Runs work with a file in a thread, one at a time, also when cancelled; `failing` begins its errors."""

    _failing: str
    _turn: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    async def __call__(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return the result of `work`. Raises RunnerError `unavailable`."""
        try:
            return await trio.to_thread.run_sync(partial(work, *arguments), limiter=self._turn)
        except TROUBLE as problem:
            text = f"{self._failing}: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir", retry_after=5) from problem


def mending(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Let a method mend the file if it turns out to be damaged, and then try once more."""

    @wraps(method)
    def work(self: S, /, *arguments: P.args, **named: P.kwargs) -> T:
        try:
            return method(self, *arguments, **named)
        except sa.exc.DatabaseError as problem:
            if not is_damage(problem):
                raise
            self.mend(reason_of(problem))
        return method(self, *arguments, **named)

    return cast("Callable[Concatenate[S, P], T]", work)


def sealed(value: Any) -> dict[str, bytes]:
    """Return the columns of a value that is kept as JSON, with the digest that shows damage."""
    content = msgspec.json.encode(value)
    return {"content": content, "digest": sha256(content).digest()}


@define
class OneFile:
    """An open database. Methods raise `sqlalchemy.exc.SQLAlchemyError` and OSError, and change nothing then."""

    WHAT: ClassVar[str]
    """What it has, in messages: `registered modules`."""
    METADATA: ClassVar[sa.MetaData]
    META: ClassVar[sa.Table]
    """The table with the number of the schema, by `name` and `value`."""
    SCHEMA: ClassVar[int]
    COPIED: ClassVar[tuple[Copied, ...]]
    """The tables that are copied from a damaged file."""

    _path: Path
    _engine: sa.Engine
    damaged: bool = field(default=False, init=False)
    """The file, or a part of it, was found damaged."""
    _opened: tuple[int, int] | None = field(default=None, init=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the file, mended if it is damaged. Raises RunnerError `unavailable`."""
        # Changes are few and precious: none of them may be lost with a `-wal` file.
        connect = partial(open_writer, path, durable=ONE_FILE)
        opened = cls(path, sa.create_engine("sqlite://", creator=connect, poolclass=StaticPool))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened._prepare_checked()
        except (*TROUBLE, sqlite3.Error) as problem:
            opened.close()
            text = f"{cls.WHAT} cannot be read from {path}: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir") from problem
        except BaseException:
            opened.close()
            raise
        return opened

    def _prepare_checked(self) -> None:
        try:
            self._prepare()
            with closing(sqlite3.connect(self._path)) as link:
                found = check(link, _CHECK_SECONDS)
        except (sa.exc.DatabaseError, sqlite3.DatabaseError) as problem:
            if not is_damage(problem):
                raise
            found = reason_of(problem)
        if found:
            self.mend(found)

    def mend(self, reason: str) -> None:
        """Set the damaged file aside, and go on with a fresh one that has what could be read."""
        with suppress(sa.exc.SQLAlchemyError, sqlite3.Error):
            self._engine.dispose()
        aside = set_aside(self._path)
        self._prepare()
        with self._engine.connect() as link:
            raw: Any = link.connection.driver_connection
            whole = salvage(raw, aside, self.COPIED, _SALVAGE_SECONDS)
        with self._transaction() as link:
            self._complete(link)
        self.damaged = True
        log.error("a database was damaged", of=self.WHAT, reason=reason, kept=str(aside), all_read=whole)

    def _complete(self, link: sa.Connection) -> None:
        """Make the rows consistent that could be read from a damaged file."""

    def _unreadable(self, what: str, problem: Exception) -> None:
        self.damaged = True
        log.error("a row of a database cannot be read", of=self.WHAT, row=what, reason=str(problem))

    def _sealed_rows(self, link: sa.Connection, table: sa.Table, kind: type[T]) -> Iterator[tuple[sa.Row[Any], T]]:
        """Yield the rows with `sealed` values of a table, and these; a row that is damaged is reported and left out."""
        decoder = msgspec.json.Decoder(kind)
        for row in link.execute(sa.select(table)):
            try:
                value = decoder.decode(row.content) if sha256(row.content).digest() == row.digest else None
            except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError) as problem:
                self._unreadable(f"{table.name} {row.id}", problem)
            else:
                if value is None:
                    self._unreadable(f"{table.name} {row.id}", ValueError("its digest does not match"))
                else:
                    yield row, value

    def _prepare(self) -> None:
        self._opened = None
        meta = self.META
        with self._transaction() as link:
            self.METADATA.create_all(link)
            known = link.execute(sa.select(meta.c.value).where(meta.c.name == "schema")).scalar()
            if known is None:
                link.execute(sa.insert(meta).values(name="schema", value=self.SCHEMA))
            else:
                check_schema(self._path, known, self.SCHEMA)
        self._opened = identity_of(self._path)

    # The changes of a cluster

    def place(self) -> tuple[int, int]:
        """Return the number of the cluster whose changes the file has, 0 for none, and that of the last change."""
        with self._engine.connect() as link:
            rows = link.execute(sa.select(self.META).where(self.META.c.name.in_((_CLUSTER, _PLACE))))
            found = {row.name: row.value for row in rows}
        return found.get(_CLUSTER, 0), found.get(_PLACE, 0)

    def set_place(self, cluster: int, place: int) -> None:
        """Note up to which change of which cluster the file has all."""
        with self._transaction() as link:
            self._place(link, cluster, place)

    def keep_copy(self, suffix: str) -> Path:
        """Return a copy of the file as it is now."""
        moment = time.strftime("%Y%m%d-%H%M%S")
        copy = self._path.with_name(f"{self._path.name}.{suffix}-{moment}")
        with self._transaction():
            shutil.copyfile(self._path, copy)
            copy.chmod(0o600)
        return copy

    def _place(self, link: sa.Connection, cluster: int, place: int) -> None:
        rows = [{"name": _CLUSTER, "value": cluster}, {"name": _PLACE, "value": place}]
        link.execute(sa.insert(self.META).prefix_with("or replace"), rows)

    def _apart(self, link: sa.Connection) -> None:
        """Note a change that no cluster knows: from now on the file has a state of its own."""
        link.execute(sa.delete(self.META).where(self.META.c.name == _CLUSTER))

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        if self._opened is not None and identity_of(self._path) != self._opened:
            text = f"{self._path} was deleted or replaced; restart the runner"
            raise FileNotFoundError(errno.ENOENT, text)
        with self._engine.connect() as link, link.begin():
            begin(link)
            yield link

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()
