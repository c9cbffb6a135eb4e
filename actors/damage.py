"""Damaged SQLite files: found, set aside under a name with the time, and read into a fresh file as far as they can be.

Everything here blocks.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from attrs import frozen

_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_STEPS: Final = 100_000
"""Steps of SQLite's machine between two looks at the clock: some milliseconds."""
_LETTERS: Final = 40
"""Characters of a key by which ranges are divided."""
_PARTS: Final = 256
"""Ranges into which the keys between the first and the last are divided before anything is copied."""
_HALVED: Final = 8
"""How often a range is halved when a part of it cannot be read."""
_HALVED_BLINDLY: Final = 60
"""The same when it is unknown where the keys begin and end."""
_HOPELESS: Final = 3000
"""So many parts in a row that cannot be read end the copying of a table."""
Range = tuple[int, int]


@frozen
class Copied:
    """A table to copy: its name and a column, text or number, that an index begins with."""

    name: str
    key: str


def is_damage(problem: BaseException) -> bool:
    """Return whether an exception says that a database is damaged, not busy or out of space."""
    code = getattr(getattr(problem, "orig", problem), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE


def check(connection: sqlite3.Connection, seconds: float) -> str | None:
    """Return the damage that SQLite's quick check finds, "" for none, None when it takes longer than `seconds`."""
    end = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        with closing(connection.execute("pragma quick_check(1)")) as found:
            text = str(found.fetchone()[0])
    except sqlite3.DatabaseError as problem:
        if is_damage(problem):
            return str(problem)
        if problem.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return None
        raise
    finally:
        connection.set_progress_handler(None, 0)
    return "" if text == "ok" else text.replace("\n", " ")


def set_aside(path: Path) -> Path:
    """Rename a database with the files beside it; return its new name. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = next(
        name
        for number in range(1000)
        if not (name := path.with_name(f"{path.name}.damaged-{stamp}" + (f"-{number}" if number else ""))).exists()
    )
    path.rename(aside)
    for end in ("-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    return aside


def salvage(connection: sqlite3.Connection, aside: Path, tables: Iterable[Copied], seconds: float) -> bool:
    """Copy the rows of `aside` that can be read into tables of the same names; return whether that was all of them.

    Rows that exist already stay. The newest, by their keys, come first: after `seconds` the rest is left. Commits.
    """
    end = time.monotonic() + seconds
    whole = True
    with closing(sqlite3.connect(aside)) as old:
        old.text_factory = _decoded
        for table in tables:
            whole = _copy_table(old, connection, table, end) and whole
            connection.commit()
    return whole


def _decoded(text: bytes) -> str:
    return text.decode(errors="replace")


def _copy_table(old: sqlite3.Connection, to: sqlite3.Connection, table: Copied, end: float) -> bool:
    """Copy range by range; one that cannot be read is divided some times, then read from both of its ends."""
    kinds, known = _columns(to, table), _columns(old, table)
    kinds = {name: kind for name, kind in kinds.items() if name in known} or kinds  # it may have an older schema
    columns, number = ", ".join(f"[{column}]" for column in kinds), kinds[table.key] != "TEXT"
    reading = f"select {columns} from {table.name} where {table.key} >= ? and {table.key} < ?"  # noqa: S608
    backwards = f"{reading} order by {table.key} desc"
    marks = ", ".join("?" * len(kinds))
    writing = f"insert or ignore into {table.name} ({columns}) values ({marks})"  # noqa: S608
    found, depth = _ranges(old, table, number=number)
    ranges, whole, failed = [(low, high, depth) for low, high in found], True, 0

    def copied(sql: str, low: int, high: int) -> bool:
        nonlocal failed
        try:
            with closing(old.execute(sql, (low, high) if number else (_text(low), _text(high)))) as rows:
                to.executemany(writing, rows).close()
        except sqlite3.DatabaseError as problem:
            if not is_damage(problem):
                raise
            failed += 1
            return False
        failed = 0
        return True

    while ranges:
        low, high, left = ranges.pop()
        if time.monotonic() > end or failed > _HOPELESS:
            return False
        if not copied(reading, low, high):
            if left and high - low > 1:
                middle = (low + high) // 2
                ranges += [(low, middle, left - 1), (middle, high, left - 1)]
            else:
                copied(backwards, low, high)
                whole = False
    return whole


def _columns(link: sqlite3.Connection, table: Copied) -> dict[str, str]:
    """Return the types of the columns by name; nothing if they cannot be read."""
    try:
        return {row[1]: str(row[2]).upper() for row in link.execute(f"pragma table_info({table.name})")}
    except sqlite3.DatabaseError:
        return {}


def _ranges(old: sqlite3.Connection, table: Copied, *, number: bool) -> tuple[list[Range], int]:
    """Return ranges of keys that together are all keys, in their order, and how often each may be halved."""
    largest = 2**62 if number else 128**_LETTERS
    try:
        edges = [
            old.execute(f"select {edge}({table.key}) from {table.name}").fetchone()[0]  # noqa: S608
            for edge in ("min", "max")
        ]
        low, high = (edge if number else _number(edge) for edge in edges)
    except (sqlite3.DatabaseError, TypeError):  # it cannot be read, or is empty
        return [(0, largest)], _HALVED_BLINDLY
    step = max(1, (high - low) // _PARTS)
    inner = list(range(low, high, step)) or [low]
    return [(0, low), *zip(inner, [*inner[1:], largest], strict=True)], _HALVED


def _number(key: str) -> int:
    """Return the number that stands for a key in the order of keys."""
    number = 0
    for letter in key[:_LETTERS].ljust(_LETTERS, "\0"):
        number = number * 128 + min(ord(letter), 127)
    return number


def _text(number: int) -> str:
    """Return the first key of a range."""
    letters = []
    for _ in range(_LETTERS):
        number, letter = divmod(number, 128)
        letters.append(chr(letter))
    if number:  # above every key
        return "\U0010ffff"
    return "".join(reversed(letters)).rstrip("\0")
