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
    tail = int.from_bytes(os.urandom(8), "big") & 0x3FFF_FFFF_FFFF_FFFF
    value = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0x2 << 62 | tail
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
