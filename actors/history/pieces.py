"""Events of running executions in pieces: waiting for the database, and joined again.

A piece is a JSON array of events (`protocol.events`). It is stored best effort: the record of an ended execution has
all of its events, so pieces matter only if the runner dies before that end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from attrs import frozen

from actors.history.tables import events as stored_events
from protocol.events import decode_all, printed_text
from protocol.model import Status
from protocol.terminal import plain

NOTHING: Final = b"[]"
MAX_BYTES: Final = 32 * 1024 * 1024
"""The limit of pieces in memory while the database is behind."""

Seqs = tuple[int, int]
"""A half-open range of event numbers."""


class _Numbered(msgspec.Struct):
    seq: int


_numbers: Final = msgspec.json.Decoder(list[_Numbered])
_elements: Final = msgspec.json.Decoder(list[msgspec.Raw])


@frozen
class Piece:
    """Events of the execution with the id `name`; the first has the number `first_seq`."""

    name: str
    first_seq: int
    events: bytes


@frozen
class Forgotten:
    """A deletion: the pieces of `name` that lie in `seqs` as a whole."""

    name: str
    seqs: Seqs


def seqs_of(events: bytes) -> Seqs | None:
    """Return the numbers in a JSON array of events, None when it is empty. Raises `msgspec.MsgspecError`."""
    numbers = _numbers.decode(events)
    return (numbers[0].seq, numbers[-1].seq + 1) if numbers else None


def joined(arrays: Iterable[bytes]) -> bytes:
    """Return one array with the events of all arrays, each once, ordered by number. Raises `msgspec.MsgspecError`."""
    some = list(arrays)
    if len(some) == 1:
        return some[0]
    numbered = [(numbers, array) for array in some if (numbers := [event.seq for event in _numbers.decode(array)])]
    parts: list[bytes] = []
    last = -1
    for numbers, array in sorted(numbered):
        if numbers[0] > last:
            parts.append(array.strip()[1:-1])
        else:
            elements = zip(numbers, _elements.decode(array), strict=True)
            parts += [bytes(element) for number, element in elements if number > last]
        last = max(last, numbers[-1])
    return b"[" + b",".join(parts) + b"]"


class Waiting:
    """Pieces that are not in the database yet, at most `most` and `MAX_BYTES`; the oldest are dropped.

    Taken pieces are in the running commit.
    """

    def __init__(self, most: int) -> None:
        self.dropped = 0
        """Pieces dropped for want of room."""
        self._most = most
        self._bytes = 0
        self._number = 0
        self._fresh: dict[int, Piece] = {}
        self._taken: dict[int, Piece] = {}
        self._by_name: dict[str, dict[int, Piece]] = {}
        self._forgotten: dict[str, Seqs] = {}
        self._taken_forgotten: dict[str, Seqs] = {}

    def __len__(self) -> int:
        """Return the number of waiting pieces."""
        return len(self._fresh) + len(self._taken)

    @property
    def due(self) -> bool:
        """Whether there is something to take."""
        return bool(self._fresh or self._forgotten)

    def add(self, piece: Piece) -> None:
        """Add a piece, the newest of its execution."""
        self._number += 1
        self._fresh[self._number] = piece
        self._by_name.setdefault(piece.name, {})[self._number] = piece
        self._bytes += len(piece.events)
        self._bound()

    def forget(self, name: str, seqs: Seqs) -> None:
        """Ask for the deletion of the pieces in `seqs`; touching ranges of one execution become one."""
        start, end = self._forgotten.get(name, seqs)
        if seqs[0] > end or seqs[1] < start:
            # The earlier range stays in the database until the end of the execution.
            start, end = seqs
        self._forgotten[name] = (min(start, seqs[0]), max(end, seqs[1]))

    def find(self, name: str) -> tuple[bytes, ...]:
        """Return the waiting events of an execution, oldest first."""
        return tuple(piece.events for piece in self._by_name.get(name, {}).values())

    def discard(self, name: str) -> None:
        """Drop everything of an execution that has ended."""
        for number in tuple(self._by_name.get(name, ())):
            self._remove(number)
        self._forgotten.pop(name, None)
        self._taken_forgotten.pop(name, None)

    def take(self) -> tuple[tuple[Piece, ...], tuple[Forgotten, ...]]:
        """Take everything, oldest first, for a commit; `settle` must follow."""
        self._taken, self._fresh = self._fresh, {}
        self._taken_forgotten, self._forgotten = self._forgotten, {}
        forgotten = tuple(Forgotten(name, seqs) for name, seqs in self._taken_forgotten.items())
        return tuple(self._taken.values()), forgotten

    def settle(self, *, stored: bool) -> None:
        """End a take; what was not stored waits again."""
        if stored:
            for number in tuple(self._taken):
                self._remove(number)
        else:
            self._fresh = {**self._taken, **self._fresh}
            newer, self._forgotten = self._forgotten, self._taken_forgotten
            for name, seqs in newer.items():
                self.forget(name, seqs)
        self._taken, self._taken_forgotten = {}, {}
        self._bound()

    def _bound(self) -> None:
        while self._fresh and (len(self) > self._most or self._bytes > MAX_BYTES):
            self._remove(next(iter(self._fresh)))
            self.dropped += 1

    def _remove(self, number: int) -> None:
        piece = self._fresh.pop(number, None) or self._taken.pop(number)
        self._bytes -= len(piece.events)
        of_name = self._by_name[piece.name]
        del of_name[number]
        if not of_name:
            del self._by_name[piece.name]


TEXT_BYTES: Final = 4 * 1024 * 1024
"""Bytes of stored events that one page of a list searches at most for a text: some ten milliseconds."""
_LEAST_BYTES: Final = 4096
_PIECES: Final = (
    sa.select(stored_events.c.id, stored_events.c.events)
    .where(stored_events.c.id.in_(sa.bindparam("names", expanding=True)))
    .order_by(stored_events.c.id, stored_events.c.first_seq)
)


def printing(
    connection: sa.Connection, rows: Sequence[Mapping[Any, Any]], sought: str
) -> Iterator[tuple[Mapping[Any, Any], bool]]:
    """Yield executions, each with whether it printed a text in lower case, until enough output was searched."""
    left = TEXT_BYTES
    for some in _in_parts(rows):
        if left <= 0:
            return
        printed: dict[str, list[bytes]] = {}
        for name, piece in connection.execute(_PIECES, {"names": [row["id"] for row in some]}):
            printed.setdefault(name, []).append(piece)
            left -= len(piece)
        for row in some:
            yield row, row["id"] in printed and _contains(printed[row["id"]], sought)


def _in_parts(rows: Sequence[Mapping[Any, Any]]) -> Iterator[list[Mapping[Any, Any]]]:
    """Yield rows in parts whose output one statement reads: few, where they printed much."""
    some, size = list[Mapping[Any, Any]](), 0
    for row in rows:
        some.append(row)
        # It is counted at the end of an execution.
        size += _LEAST_BYTES + (row["output_bytes"] if Status(row["status"]).final else TEXT_BYTES // 8)
        if size > TEXT_BYTES // 4:
            yield some
            some, size = [], 0
    if some:
        yield some


def _contains(pieces: Sequence[bytes], sought: str) -> bool:
    try:
        return sought in plain(printed_text(decode_all(joined(pieces)))).casefold()
    except (msgspec.MsgspecError, ValueError, TypeError):
        return False  # damaged: noticed by those who read it
