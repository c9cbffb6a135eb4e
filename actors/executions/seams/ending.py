"""`Ending`: the end of an execution, for those that wait for it."""

from __future__ import annotations

from typing import Protocol


class Ending(Protocol):
    """A `trio.Event`. That of an execution of another runner asks for the news meanwhile."""

    def is_set(self) -> bool:
        """Return whether the execution has ended."""

    def set(self) -> None:
        """Wake those that wait."""

    async def wait(self) -> None:
        """Wait for the end."""
