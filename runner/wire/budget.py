"""The memory that the requests or the answers of all callers may take together, over all doors."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

LARGE_BYTES: Final = 65_536
"""Smaller answers take nothing of a budget, as they cost the kernel more than the runner."""


class Budget:
    """A number of bytes that many share. Bytes that were taken must be given back in any case."""

    def __init__(self, limit: int) -> None:
        """Share `limit` bytes, the setting `max_buffered`."""
        self.limit = limit
        self.taken = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    def take(self, size: int) -> bool:
        """Take `size` bytes, or none of them and return False because too few are free, or others wait for them."""
        if self._waiting or self.taken + size > self.limit:
            return False
        self.taken += size
        return True

    async def wait(self, size: int, seconds: float) -> bool:
        """Take `size` bytes, at most the limit, when those who came before have theirs; return False after `seconds`.

        **Cancellation** takes nothing.
        """
        if self.take(size):
            return True
        turn = (size, trio.Event())
        self._waiting.append(turn)
        served = False
        try:
            with trio.move_on_after(seconds):
                await turn[1].wait()
                served = True
        finally:
            if not served and turn[1].is_set():  # its turn came together with the end of its patience
                self.taken -= size
            elif not served:
                self._waiting.remove(turn)
            if not served:
                self._serve()
        return served

    def give(self, size: int) -> None:
        """Give back `size` bytes that were taken."""
        self.taken -= size
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        """Let those that wait have what is free, in their order."""
        while self._waiting and self.taken + self._waiting[0][0] <= self.limit:
            size, turn = self._waiting.popleft()
            self.taken += size
            turn.set()


class Share:
    """What one large answer takes of a budget, from before it is made until it has left. `give` it back in any case."""

    def __init__(self, budget: Budget) -> None:
        """Take nothing yet."""
        self._budget = budget
        self._size = 0

    def take(self, size: int) -> bool:
        """Take the bytes of an answer, those of a small one from nowhere; return False when too few are free."""
        if size <= LARGE_BYTES:
            return True
        size = min(size, self._budget.limit)
        taken = self._budget.take(size)
        self._size += size if taken else 0
        return taken

    async def wait(self, size: int, seconds: float) -> bool:
        """Take the bytes of an answer as `take` does when its turn comes; return False after `seconds`."""
        if size <= LARGE_BYTES:
            return True
        size = min(size, self._budget.limit)
        taken = await self._budget.wait(size, seconds)
        self._size += size if taken else 0
        return taken

    def give(self) -> None:
        """Give all back."""
        size, self._size = self._size, 0
        self._budget.give(size)
