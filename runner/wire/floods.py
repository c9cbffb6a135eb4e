"""Counts of input that costs a client little and the server more: too much of it is a flood."""

from __future__ import annotations

from math import inf
from typing import Final

CHEAP_BYTES: Final = 65_536
"""In one second, of frames that carry no call and no message: pings, settings, windows, resets, unknown ones."""
MAX_RESETS: Final = 500
RESETS_SECONDS: Final = 10.0
"""More calls cancelled on a connection in this time are a flood (rapid reset)."""
MAX_UNREAD_REPLIES: Final = 1000
"""Refusals that a client may leave unread."""


class FloodError(Exception):
    """The client sends too much of what is cheap for it."""


class Floods:
    """Counts frames that cost the client little. Methods raise FloodError."""

    def __init__(self) -> None:
        self._second, self._cheap = -inf, 0
        self._since, self._resets = -inf, 0
        self._unread = 0

    def arrived(self, size: int, now: float) -> None:
        """Count bytes of any kind."""
        if now - self._second > 1:
            self._second, self._cheap = now, 0
        self._cheap += size

    def useful(self, size: int) -> None:
        """Do not count so many of them."""
        self._cheap -= size

    def check(self, *, blocked: bool) -> None:
        """Check the bytes of the last second, after the events of all of them."""
        if self._cheap > CHEAP_BYTES:
            many = f"more than {CHEAP_BYTES} bytes in a second carry no call and no message"
            raise FloodError("answers are not read" if blocked else many)

    def reset(self, now: float) -> None:
        """Count a call that the client cancelled."""
        if now - self._since > RESETS_SECONDS:
            self._since, self._resets = now, 0
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise FloodError(f"more than {MAX_RESETS} calls were cancelled in {RESETS_SECONDS:g} s")

    def refused(self, *, blocked: bool) -> None:
        """Count an answer that was queued without a wait."""
        self._unread = self._unread + 1 if blocked else 0
        if self._unread > MAX_UNREAD_REPLIES:
            raise FloodError("answers are not read")
