"""Lines of the log about what clients do: the first ones of a while, then their number, so that no flood fills it."""

from __future__ import annotations

from math import inf
from typing import Any, Final

import trio

PERIOD_SECONDS: Final = 60.0
MOST: Final = 20
"""Lines of a period; further ones are counted."""


class Notes:
    """Logs events of clients within a bound."""

    def __init__(self, log: Any) -> None:
        """Log to `log`, as info."""
        self._log = log
        self._ends = -inf
        self._left = 0
        self._more = 0

    def add(self, event: str, **about: Any) -> None:
        """Log an event, or count it when the period had many."""
        now = trio.current_time()
        if now >= self._ends:
            self.tell()
            self._ends, self._left = now + PERIOD_SECONDS, MOST
        if self._left:
            self._left -= 1
            self._log.info(event, **about)
        else:
            self._more += 1

    def tell(self) -> None:
        """Log the number of the events that were only counted; to be called at the end too."""
        more, self._more = self._more, 0
        if more:
            self._log.info("more events of clients were not logged", number=more, seconds=PERIOD_SECONDS)
