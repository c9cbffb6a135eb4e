"""Numbers, durations, sizes and times as text, the same in both languages. Pure."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from protocol.terminal import visible

NONE: Final = "\N{EN DASH}"
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def number(value: float) -> str:
    """Return a number with separators of thousands."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def size(value: float | None) -> str:
    """Return a number of bytes: `1.5 MiB`; a dash for None."""
    if value is None:
        return NONE
    left, unit = float(value), _SIZES[0]
    for unit in _SIZES:
        if abs(left) < 1024 or unit == _SIZES[-1]:
            break
        left /= 1024
    return f"{left:.0f} {unit}" if unit == "B" or left >= 100 else f"{left:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Return a duration: `12 ms`, `3.4 s`, `5 min 20 s`, `2 h 5 min`, `3 d 4 h`; a dash for None."""
    if seconds is None:
        return NONE
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for width, name, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= width:
            rest = whole % width // below
            return f"{whole // width} {name} {rest} {small}" if rest else f"{whole // width} {name}"
    return f"{whole} s"


def about(seconds: float) -> str:
    """Return a duration in its largest unit: `12 s`, `6 min`, `2 h`, `3 d`."""
    for width, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= width:
            return f"{seconds / width:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def percent(share: float | None) -> str:
    """Return a share of 1 in percent; a dash for None. Only all is 100 %, and only none 0 %."""
    if share is None:
        return NONE
    shown = f"{share * 100:.1f}".removesuffix(".0")
    if shown == "100" and share < 1:
        shown = "99.9"
    elif shown == "0" and share > 0:
        shown = "0.1"
    return f"{shown} %"


def iso(at: float) -> str:
    """Return a time in seconds since the epoch in ISO 8601, UTC: for the attribute `datetime`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(at: float) -> str:
    """Return a time for people without script: UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


GLOBALS: Final = {
    "as_number": number,
    "as_size": size,
    "as_duration": duration,
    "as_about": about,
    "as_percent": percent,
    "as_iso": iso,
    "as_clock": clock,
    "now": time.time,
    "visible": visible,
}
