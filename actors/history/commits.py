"""How the commits of history go: who waits for which, and what is counted of them. On the event loop."""

from __future__ import annotations

import trio
from attrs import evolve, frozen

from actors.history.pending import Batch
from actors.history.storage import Stored


@frozen
class HistoryStatistics:
    """`pending` rows are recorded and not in the database yet, `running` ones are known in memory only."""

    pending: int = 0
    running: int = 0
    segments: int = 0
    """Pieces of events that wait for the database."""
    segments_dropped: int = 0
    """Those that there was no room for, or that could not be stored."""
    journal_bytes: int = 0
    rows: int = 0
    """Executions in the database; `database_bytes` is what they and all else there occupy."""
    database_bytes: int = 0
    committed: int = 0
    """Rows written since the start, by `commits` transactions."""
    commits: int = 0
    rejected: int = 0
    """Rows that the database would never take, each logged with its reason."""
    deleted: int = 0
    """Executions that were too old or too many, since the start."""
    last_commit_seconds: float = 0.0
    last_error: str | None = None
    """Why the database cannot be written now; None while it can."""


class Commits:
    """Numbers the commits, so that a caller can wait for the one that holds what it recorded."""

    def __init__(self) -> None:
        self.started = 0
        self.stored = 0
        self.counted = HistoryStatistics()
        self._hurry = trio.Event()
        self._settled = trio.Event()

    def hurry(self) -> None:
        """Say that somebody waits for the next commit."""
        self._hurry.set()

    async def wait_hurry(self) -> None:
        """Wait until somebody waits."""
        await self._hurry.wait()

    async def wait_settled(self) -> None:
        """Wait until the next commit has ended, well or not."""
        await self._settled.wait()

    async def wait_stored(self, number: int, seconds: float) -> bool:
        """Wait until the commit with this number, or a later one that took over its rows, is done; return whether."""
        with trio.move_on_after(seconds):
            while self.stored < number:
                await self._settled.wait()
        return self.stored >= number

    def begin(self) -> int:
        """Return the number of the commit that begins now; who hurries from now on waits for another one."""
        self._hurry = trio.Event()
        self.started += 1
        return self.started

    def end(self, number: int, *, stored: bool) -> None:
        """Tell all who wait that this commit has ended."""
        if stored:
            self.stored = number
        settled, self._settled = self._settled, trio.Event()
        settled.set()

    def count(self, batch: Batch, stored: Stored, seconds: float) -> None:
        """Count what was stored."""
        counted = self.counted
        self.counted = evolve(
            counted,
            committed=counted.committed + len(batch.entries) - len(stored.refused),
            commits=counted.commits + 1,
            rejected=counted.rejected + len(stored.refused),
            segments_dropped=counted.segments_dropped + len(stored.refused_segments),
            last_commit_seconds=seconds,
            last_error=None,
        )
