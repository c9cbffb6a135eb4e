"""Execution ids: UUID version 7 (RFC 9562), so that the order of the text is the order of time."""

from __future__ import annotations

import os
import time

_last = 0


def execution_id() -> str:
    """Return an id that sorts after every id made before it in this process."""
    global _last  # noqa: PLW0603  (the clock may stand still or go back; ids must not)
    # 48 bits of milliseconds and 12 bits below them, as RFC 9562 section 6.2 method 3 allows.
    ticks = time.time_ns() * 4096 // 1_000_000
    _last = ticks = max(ticks, _last + 1)
    tail = int.from_bytes(os.urandom(8), "big")
    late, variant = ticks & 0xFFF, 0x8000 | tail >> 48 & 0x3FFF
    return f"{ticks >> 28:08x}-{ticks >> 12 & 0xFFFF:04x}-7{late:03x}-{variant:04x}-{tail & 0xFFFF_FFFF_FFFF:012x}"
