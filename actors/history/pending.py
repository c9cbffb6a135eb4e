"""Records that are not in the database yet, and the room for more of them. Memory only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import trio
from attrs import frozen

from actors.history.pieces import Forgotten, Piece, Waiting
from actors.journal import Entry
from config.settings import HistorySettings
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution, ModuleRef, Status

LARGE_BYTES: Final = 65_536
"""Records up to this size have more room than larger ones."""
WAIT_SECONDS: Final = 30.0
"""How long callers wait for room or for the disk."""
_MOST_LARGE: Final = 10_000
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
        self.bytes = 0
        """Inputs, results and events of what is in `done` and `taken`."""
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
            self._replace(entry)
        else:
            self.begun[name] = (now, entry)
        self._remember_key(entry.execution)

    def expect(self, names: Iterable[str]) -> None:
        """Note that the database has earlier states of executions."""
        self._stored.update(names)

    def put(self, entry: Entry) -> None:
        """Add a recorded state, the newest of its execution."""
        self.begun.pop(entry.execution.id, None)
        self._replace(entry)
        self._remember_key(entry.execution)
        if entry.execution.status.final:
            self.pieces.discard(entry.execution.id)

    def _replace(self, entry: Entry) -> None:
        before = self.done.get(entry.execution.id)
        self.bytes += weight(entry.execution) - (0 if before is None else weight(before.execution))
        self.done[entry.execution.id] = entry

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
        for name, (at, _) in tuple(self.begun.items()):
            if at > before:
                break  # ordered by the begin
            self._take_begun(name)
        pieces, forgotten = self.pieces.take()
        for piece in pieces:
            # Pieces are stored with or after their execution, never before it.
            if piece.name in self.begun:
                self._take_begun(piece.name)
        known = frozenset(self._stored & (self.taken.keys() | {piece.name for piece in pieces}))
        return Batch(tuple(self.taken.values()), pieces, forgotten, known)

    def _take_begun(self, name: str) -> None:
        _, entry = self.begun.pop(name)
        before = self.taken.get(name)
        self.bytes += weight(entry.execution) - (0 if before is None else weight(before.execution))
        self.taken[name] = entry

    def settle(self, *, stored: bool) -> None:
        """End a take; without success the taken states are pending again, unless newer ones came meanwhile."""
        taken, self.taken = self.taken, {}
        gone = taken.keys() if stored else taken.keys() & self.done.keys()
        self.bytes -= sum(weight(taken[name].execution) for name in gone)
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


class Room:
    """The rows and bytes that may wait for the database.

    Small records have as many bytes again, so that large ones do not hold them up; a record is also taken for large
    after another one of its module was.
    """

    def __init__(self, pending: Pending, settings: HistorySettings, hurry: Callable[[], None]) -> None:
        self.arriving = 0
        """Bytes of records on their way into the journal."""
        self.coming: set[int] = set()
        """The revisions of these records."""
        self.reason: str | None = None
        """Why the database cannot be written now."""
        self._pending = pending
        self._settings = settings
        self._hurry = hurry
        self._large: dict[ModuleRef, None] = {}
        self._freed = trio.Event()

    @property
    def taken(self) -> int:
        """Bytes of inputs, results and events that the database does not have."""
        return self._pending.bytes + self.arriving

    @property
    def scarce(self) -> bool:
        """Whether large records must wait."""
        settings = self._settings
        return self.taken > settings.max_unwritten_bytes or len(self._pending) > settings.max_pending

    def lacks(self, execution: Execution, *, growing: bool = True) -> bool:
        """Whether the record of this execution must wait; a `growing` one gets a result, like others of its module."""
        if not self.scarce:
            return False
        large = is_large(execution) or (growing and execution.module in self._large)
        most = self._settings.max_unwritten_bytes * (1 if large else 2)
        return self.taken > most or len(self._pending) > self._settings.max_pending

    def lacking(self, revision: int) -> int:
        """Return the lowest revision that the database does not have; `revision` if it has all before that."""
        pending = self._pending
        waiting = (entry.revision for some in (pending.done, pending.taken) for entry in some.values())
        return min((*self.coming, *waiting), default=revision)

    def note(self, execution: Execution) -> None:
        """Remember a module with a large record."""
        self._large[execution.module] = None
        if len(self._large) > _MOST_LARGE:
            del self._large[next(iter(self._large))]

    def free(self) -> None:
        """Let those that wait look again."""
        freed, self._freed = self._freed, trio.Event()
        freed.set()

    async def wait(self, execution: Execution, *, growing: bool = True) -> bool:
        """Wait for room for a record, at most 30 seconds; return, without a checkpoint, whether there is some."""
        return await self._wait(partial(self.lacks, execution, growing=growing))

    async def wait_for_rows(self) -> None:
        """Wait, at most 30 seconds, while too many rows wait for the database."""
        await self._wait(lambda: len(self._pending) > self._settings.max_pending)

    async def _wait(self, lacking: Callable[[], bool]) -> bool:
        if not lacking():  # a scope would cost a twentieth of an execution
            return True
        with trio.move_on_after(WAIT_SECONDS):
            while lacking():
                self._hurry()
                await self._freed.wait()
        return not lacking()

    async def take(self, execution: Execution, *, growing: bool = True) -> None:
        """Wait as `wait` does. Raises `RunnerError` (`unavailable`) without room."""
        if not await self.wait(execution, growing=growing):
            reason = self.reason or f"{len(self._pending)} rows and {self.taken} bytes wait for the database"
            raise unavailable("written", reason)


@frozen
class Stage:
    """How far an execution has come."""

    status: Status
    attempts: int
    finished_at: float | None

    def follows(self, before: Stage | None) -> bool:
        """Return whether this is later than another stage of the execution; of two ends, the one that is given now."""
        if before is None:
            return True
        if self.status.final and before.status.final:
            return self != before
        return _order(self) > _order(before)


_ORDER: Final = {Status.SCHEDULED: 0, Status.RUNNING: 1, Status.QUEUED: 2}
"""With the same number of attempts, one that is queued follows one that runs: it is queued again."""


def _order(stage: Stage) -> tuple[bool, int, int]:
    return stage.status.final, stage.attempts, _ORDER.get(stage.status, 0)


def stage_of(execution: Execution) -> Stage:
    """Return how far an execution has come."""
    return Stage(execution.status, execution.attempts, execution.finished_at)


def unavailable(verb: str, reason: str) -> RunnerError:
    """Return the error for a history that cannot be read or written."""
    return error(ErrorKind.UNAVAILABLE, f"the history cannot be {verb}: {reason}", retry_after=1.0)


def weight(execution: Execution) -> int:
    """Return the bytes of a record that its author or its caller can make large."""
    return len(execution.input) + len(execution.result or b"") + len(execution.events)


def is_large(execution: Execution) -> bool:
    """Return whether a record takes much memory."""
    return weight(execution) > LARGE_BYTES


def key_of(execution: Execution) -> Key | None:
    """Return the identity of an idempotent call, None without a key."""
    if execution.idempotency_key is None:
        return None
    return execution.subject, execution.module.name, execution.idempotency_key
