"""Statements over the table of rollups. Synchronous; run in threads, on read-only connections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from actors.history.queries import UNREADABLE_ERRORS, note_unreadable
from actors.history.tables import rollups
from actors.rollups import Part, Rollup, Statuses, Window
from actors.sqlite import matching
from protocol.model import Status

_decoder: Final = msgspec.msgpack.Decoder(Rollup)
_statuses: Final = msgspec.msgpack.Decoder(Statuses).decode


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
    spans = (table.width == part.width, table.start >= part.start, table.start < part.end)
    for module, counts in connection.execute(sa.select(table.module, table.counts).where(*spans)):
        _merge(connection, found.setdefault(module, Rollup()), module, counts)
    return found


def in_all(connection: sa.Connection, globs: tuple[str, ...], windows: Sequence[Window]) -> list[dict[Status, int]]:
    """Return the ends of all modules that match one of the globs, () for all, for each window of `rollups.steps`."""
    table, part = rollups.c, windows[0].parts[0]
    step = part.end - part.start
    wanted = sa.select(table.start, table.counts).where(
        table.width == part.width, table.start >= part.start, table.start < part.start + step * len(windows)
    )
    if globs:
        wanted = wanted.where(matching(table.module, globs))
    found = [dict[Status, int]() for _ in windows]
    for start, counts in connection.execute(wanted):
        try:
            ended = _statuses(counts).statuses
        except UNREADABLE_ERRORS as problem:
            note_unreadable(connection, "counts of all modules", problem)
            continue
        sums = found[(start - part.start) // step]
        for status, number in ended.items():
            sums[status] = sums.get(status, 0) + number
    return found


def _merge(connection: sa.Connection, result: Rollup, module: str, counts: bytes) -> None:
    try:
        result.merge(_decoder.decode(counts))
    except UNREADABLE_ERRORS as problem:
        note_unreadable(connection, f"counts of {module}", problem)
