"""Statements over the table of rollups. Synchronous; run in threads, on read-only connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from actors.history.queries import UNREADABLE_ERRORS, note_unreadable
from actors.history.tables import rollups
from actors.rollups import ALL, EndCounts, Part, Rollup, Window
from actors.sqlite import matching

_decoder: Final = msgspec.msgpack.Decoder(Rollup)
_ends_of: Final = msgspec.msgpack.Decoder(EndCounts).decode


def total(connection: sa.Connection, module: str, parts: Iterable[Part]) -> Rollup:
    """Return the sum of the rollups of a module over some spans."""
    table, result = rollups.c, Rollup()
    for part in parts:
        spans = (table.module == module, table.width == part.width, table.start >= part.start, table.start < part.end)
        for counts in connection.execute(sa.select(table.counts).where(*spans)).scalars():
            _merge(connection, result, module, counts)
    return result


def by_start(connection: sa.Connection, module: str, windows: Sequence[Window]) -> list[Rollup]:
    """Return the sum of the rollups of a module for each window of `rollups.steps`."""
    table, part, step = rollups.c, windows[0].parts[0], windows[0].parts[0].end - windows[0].parts[0].start
    found = [Rollup() for _ in windows]
    end = part.start + step * len(windows)
    spans = (table.module == module, table.width == part.width, table.start >= part.start, table.start < end)
    for start, counts in connection.execute(sa.select(table.start, table.counts).where(*spans)):
        _merge(connection, found[(start - part.start) // step], module, counts)
    return found


def by_module(connection: sa.Connection, part: Part) -> dict[str, Rollup]:
    """Return the sum of the rollups of each module over some spans."""
    table, found = rollups.c, dict[str, Rollup]()
    spans = (table.width == part.width, table.start >= part.start, table.start < part.end, table.module != ALL)
    for module, counts in connection.execute(sa.select(table.module, table.counts).where(*spans)):
        _merge(connection, found.setdefault(module, Rollup()), module, counts)
    return found


def ended_by_module(connection: sa.Connection, globs: tuple[str, ...], part: Part) -> dict[str, EndCounts]:
    """Return the ends of each module that matches one of the globs, () for all, over some spans."""
    found = dict[str, EndCounts]()
    for module, _, counts in _ends(connection, globs, part):
        if module in found:
            found[module].merge(counts)
        else:
            found[module] = counts
    return found


def ended_in_all(connection: sa.Connection, globs: tuple[str, ...], windows: Sequence[Window]) -> list[EndCounts]:
    """Return the ends of all modules that match one of the globs, () for all, for each window of `rollups.steps`."""
    found = [EndCounts() for _ in windows]
    first, last = windows[0].parts[0], windows[-1].parts[0]
    step = first.end - first.start
    whole = Part(first.width, first.start, last.end)
    if not globs:
        for _, start, counts in _ends(connection, (ALL,), whole):
            found[(start - whole.start) // step].merge(counts)
    # Databases of earlier releases have no rows of all modules for the time before.
    for at, sums in enumerate(found):
        if not sums.statuses:
            for _, _, counts in _ends(connection, globs, windows[at].parts[0]):
                sums.merge(counts)
    return found


def _ends(connection: sa.Connection, globs: tuple[str, ...], part: Part) -> Iterator[tuple[str, int, EndCounts]]:
    """Yield module, start and ends of the rows of some spans; with the glob `ALL` those of all together."""
    table = rollups.c
    wanted = sa.select(table.module, table.start, table.counts).where(
        table.width == part.width, table.start >= part.start, table.start < part.end
    )
    if globs == (ALL,):
        wanted = wanted.where(table.module == ALL)
    else:
        wanted = wanted.where(table.module != ALL)
        wanted = wanted.where(matching(table.module, globs)) if globs else wanted
    for module, start, counts in connection.execute(wanted):
        try:
            yield module, start, _ends_of(counts)
        except UNREADABLE_ERRORS as problem:
            note_unreadable(connection, f"counts of {module or 'all modules'}", problem)


def _merge(connection: sa.Connection, result: Rollup, module: str, counts: bytes) -> None:
    try:
        result.merge(_decoder.decode(counts))
    except UNREADABLE_ERRORS as problem:
        note_unreadable(connection, f"counts of {module}", problem)
