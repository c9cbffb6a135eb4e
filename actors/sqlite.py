"""SQLite files of the runner: how they are opened, and the one function of ours that their SQL may call."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
import sqlalchemy as sa

from protocol.errors import ErrorKind, error

TROUBLE: Final = (OSError, sa.exc.SQLAlchemyError)
"""The exceptions of a disk or database that fails."""
_BUSY_SECONDS: Final = 5.0
_MATCHES: Final = "module_matches"
WAL: Final = ("journal_mode=wal", "synchronous=full")
"""Readers and the writer never block each other; the last commits are in a second file, the `-wal`."""
ONE_FILE: Final = ("journal_mode=delete", "synchronous=extra")
"""Everything that was committed is in the database file itself; reader and writer block each other."""

_globs_decoder = msgspec.json.Decoder(tuple[str, ...])


def reason_of(problem: Exception) -> str:
    """Return the reason in one of `TROUBLE`, without the statement that failed."""
    original = getattr(problem, "orig", None) or problem
    return getattr(original, "strerror", None) or str(original)


def _lenient(text: bytes) -> str:
    return text.decode(errors="replace")


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one that replaces it, or None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_busy(problem: Exception) -> bool:
    """Return whether a database could not be written because another process is writing."""
    code = getattr(getattr(problem, "orig", problem), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def open_writer(
    path: Path, before: Iterable[str] = (), after: Iterable[str] = (), durable: Iterable[str] = WAL
) -> sqlite3.Connection:
    """Open a database for writing, made readable for its owner only when missing. Commits survive a power loss.

    `before` and `after` are pragmas of the caller around those of durability, `durable`. Raises `OSError` and
    `sqlite3.Error`.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    for pragma in (*before, *durable, *after):
        connection.execute(f"pragma {pragma}").close()
    _add_functions(connection)
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a database that exists; the connection cannot write. Raises `sqlite3.Error`."""
    uri = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)
    connection.text_factory = _lenient  # a damaged text must not keep a whole page from being read
    _add_functions(connection)
    return connection


def begin(link: sa.Connection) -> None:
    """Begin a write transaction now: the driver begins one by itself before rows are changed, but not before tables."""
    link.exec_driver_sql("begin immediate")


def check_schema(path: Path, found: int, known: int) -> None:
    """Raise `RunnerError` (`unavailable`) when a database has another schema than this runner knows."""
    if found != known:
        text = f"{path} has schema {found}, and this runner reads schema {known} only"
        remedy = "start the version of the runner that wrote it, or move the file away to begin with an empty one"
        raise error(ErrorKind.UNAVAILABLE, f"{text}; {remedy}", field="data_dir")


# The globs of a token


def matching(module: sa.ColumnElement[str], globs: tuple[str, ...]) -> sa.ColumnElement[bool]:
    """Return the condition that one of `globs` matches the name of a module."""
    matches: sa.ColumnElement[bool] = getattr(sa.func, _MATCHES)(module, msgspec.json.encode(globs).decode())
    return matches


def module_matches(module: str, globs: Iterable[str]) -> bool:
    """Return whether one of `globs` matches the name, by the rules of tokens."""
    return any(fnmatchcase(module, glob) for glob in globs)


@lru_cache(maxsize=4096)
def _module_matches(module: str, globs: str) -> bool:
    return module_matches(module, _globs_decoder.decode(globs))


def _add_functions(connection: sqlite3.Connection) -> None:
    connection.create_function(_MATCHES, 2, _module_matches, deterministic=True)
