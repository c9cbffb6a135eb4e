"""Counts of input that costs a client little and the server more: too much of it is a flood."""

from __future__ import annotations

from math import inf
from typing import Final

CHEAP_FRAMES: Final = 5000
"""In one second, of frames that carry no call and no message: pings, settings, windows, empty data, unknown ones."""
PREFACE_BYTES: Final = 24
HEAD_BYTES: Final = 9
DATA: Final = 0
HEADERS: Final = 1
PADDED: Final = 8
MAX_RESETS: Final = 500
RESETS_SECONDS: Final = 10.0
"""More calls cancelled on a connection in this time are a flood (rapid reset)."""
MAX_UNREAD: Final = 1000
"""Calls that a client may make while it does not read, as most of them may be refused."""


class FloodError(Exception):
    """The client sends too much of what is cheap for it."""


class Floods:
    """Counts frames of HTTP/2 that cost the client little. Methods raise FloodError."""

    def __init__(self) -> None:
        self._second, self._cheap = -inf, 0
        self._rest, self._skip = b"", PREFACE_BYTES
        self._since, self._resets = -inf, 0
        self._unread = 0

    def arrived(self, data: bytes, now: float, *, blocked: bool) -> None:
        """Count the frames in these bytes, before they are parsed.

        Frames with data are not counted, even for calls that have ended: windows bound them.
        """
        if now - self._second > 1:
            self._second, self._cheap = now, 0
        data, position = self._rest + data, self._skip
        end = len(data)
        self._unread = self._unread if blocked else 0
        while position + HEAD_BYTES <= end:
            size = int.from_bytes(data[position : position + 3], "big")
            kind, padded = data[position + 3], data[position + 4] & PADDED
            if not size or kind > HEADERS or (kind == DATA and padded):
                self._cheap += 1
            elif kind == HEADERS:
                self._unread += blocked
            position += HEAD_BYTES + size
        self._rest, self._skip = data[position:], max(0, position - end)
        if self._unread > MAX_UNREAD:
            raise FloodError("answers are not read")
        if self._cheap > CHEAP_FRAMES:
            raise FloodError(f"more than {CHEAP_FRAMES} frames in a second carry no call and no message")

    def allow(self, frames: int) -> None:
        """Do not count so many of them."""
        self._cheap -= frames

    def reset(self, now: float) -> None:
        """Count a call that the client cancelled."""
        if now - self._since > RESETS_SECONDS:
            self._since, self._resets = now, 0
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise FloodError(f"more than {MAX_RESETS} calls were cancelled in {RESETS_SECONDS:g} s")
