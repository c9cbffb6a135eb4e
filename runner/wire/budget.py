"""The memory that unfinished requests of all callers may take together, over all doors."""

from __future__ import annotations


class Budget:
    """A number of bytes that many share. Bytes that were taken must be given back in any case."""

    def __init__(self, limit: int) -> None:
        """Share `limit` bytes, the setting `max_buffered`."""
        self.limit = limit
        self.taken = 0

    def take(self, size: int) -> bool:
        """Take `size` bytes, or none of them and return False because too few are free."""
        if self.taken + size > self.limit:
            return False
        self.taken += size
        return True

    def give(self, size: int) -> None:
        """Give back `size` bytes that were taken."""
        self.taken -= size
