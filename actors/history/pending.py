"""Records that are not in the database yet. Memory only; nothing here waits."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from actors.history.pieces import Forgotten, Piece, Waiting
from actors.journal import Entry
from protocol.model import Execution

Key = tuple[str, str, str]
"""Caller, module and idempotency key."""


@frozen
class Batch:
    """The content of one transaction: at most one entry of each execution, pieces, deletions of pieces."""

    entries: tuple[Entry, ...] = ()
    pieces: tuple[Piece, ...] = ()
    forgotten: tuple[Forgotten, ...] = ()
    known: frozenset[str] = frozenset()
    """Ids of which the database may have an earlier state; others are looked up only if they are in the way."""
    all_known: bool = False
    """The database may have an earlier state of each."""

    def __bool__(self) -> bool:
        """Whether there is anything to store."""
        return bool(self.entries or self.pieces or self.forgotten)

    def parts(self) -> list[Batch]:
        """Return one batch for each thing in this one, in their order."""
        return [
            *(Batch(entries=(entry,), all_known=True) for entry in self.entries),
            *(Batch(pieces=(piece,), all_known=True) for piece in self.pieces),
            *(Batch(forgotten=(gone,)) for gone in self.forgotten),
        ]


class Pending:
    """Records that are not in the database yet. Each dict holds at most one state of an execution.

    `begun`: runs, known in memory only; `done`: recorded; `taken`: in the running commit. States in an earlier one of
    these are newer than those in a later one.
    """

    def __init__(self, most_pieces: int) -> None:
        self.begun: dict[str, tuple[float, Entry]] = {}
        self.done: dict[str, Entry] = {}
        self.taken: dict[str, Entry] = {}
        self.pieces = Waiting(most_pieces)
        self._stored: set[str] = set()
        """Ids that the database may have in an earlier state."""
        self._keyed: dict[Key, set[str]] = {}

    def __len__(self) -> int:
        """Return the number of rows that the database lacks, without those in `begun`."""
        return len(self.done) + len(self.taken)

    @property
    def due(self) -> bool:
        """Whether there is something to take."""
        return bool(self.begun or self.done or self.pieces.due)

    def find(self, name: str) -> Execution | None:
        """Return the newest pending state of the execution with the id `name`, or None."""
        begun = self.begun.get(name)
        entry = begun[1] if begun else self.done.get(name) or self.taken.get(name)
        return None if entry is None else entry.execution

    def find_keyed(self, key: Key) -> Execution | None:
        """Return the newest pending execution with this key, or None."""
        found = [execution for name in self._keyed.get(key, ()) if (execution := self.find(name)) is not None]
        return max(found, key=lambda execution: (execution.created_at, execution.id), default=None)

    def begin(self, now: float, entry: Entry) -> None:
        """Add an execution that begins to run at `now`."""
        name = entry.execution.id
        self.begun.pop(name, None)
        if name in self.done:
            # It is recorded as queued. It must stay in the next commit, which deletes the journal segment that has it.
            self.done[name] = entry
        else:
            self.begun[name] = (now, entry)
        self._remember_key(entry.execution)

    def expect(self, names: Iterable[str]) -> None:
        """Note that the database has earlier states of executions."""
        self._stored.update(names)

    def put(self, entry: Entry) -> None:
        """Add a recorded state, the newest of its execution."""
        self.begun.pop(entry.execution.id, None)
        self.done[entry.execution.id] = entry
        self._remember_key(entry.execution)
        if entry.execution.status.final:
            self.pieces.discard(entry.execution.id)

    def append(self, piece: Piece, seqs: tuple[int, int] | None) -> None:
        """Add events of a running execution and forget others; ignored when it has ended."""
        known = self.find(piece.name)
        if known is None or not known.status.final:
            self.pieces.add(piece)
            if seqs is not None:
                self.pieces.forget(piece.name, seqs)

    def take(self, before: float) -> Batch:
        """Take everything done, and executions begun before `before`, for a commit; `settle` must follow."""
        self.taken, self.done = self.done, {}
        for name, (at, entry) in tuple(self.begun.items()):
            if at > before:
                break  # ordered by the begin
            self.taken[name] = entry
            del self.begun[name]
        pieces, forgotten = self.pieces.take()
        for piece in pieces:
            # Pieces are stored with or after their execution, never before it.
            begun = self.begun.pop(piece.name, None)
            if begun is not None:
                self.taken[piece.name] = begun[1]
        known = frozenset(self._stored & (self.taken.keys() | {piece.name for piece in pieces}))
        return Batch(tuple(self.taken.values()), pieces, forgotten, known)

    def settle(self, *, stored: bool) -> None:
        """End a take; without success the taken states are pending again, unless newer ones came meanwhile."""
        taken, self.taken = self.taken, {}
        if stored:
            for name, entry in taken.items():
                self._forget_key(name, entry.execution)
                if entry.execution.status.final:
                    self._stored.discard(name)
                else:
                    self._stored.add(name)
        else:
            self.done = {**taken, **self.done}
            self._stored.update(taken)  # it may have failed after the commit
        self.pieces.settle(stored=stored)

    def _remember_key(self, execution: Execution) -> None:
        key = key_of(execution)
        if key is not None:
            self._keyed.setdefault(key, set()).add(execution.id)

    def _forget_key(self, name: str, execution: Execution) -> None:
        key = key_of(execution)
        if key is not None and self.find(name) is None:
            names = self._keyed.get(key, set())
            names.discard(name)
            if not names:
                self._keyed.pop(key, None)


def key_of(execution: Execution) -> Key | None:
    """Return the identity of an idempotent call, None without a key."""
    if execution.idempotency_key is None:
        return None
    return execution.subject, execution.module.name, execution.idempotency_key
