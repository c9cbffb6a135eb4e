"""Values as people read them on a terminal: tables, times, sizes, and text without control characters.

The output is the same on a terminal and in a pipe, so scripts may read it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned lines; each row has as many cells as the first."""
    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in shown) for at in range(len(shown[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in shown)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def one_line(text: str) -> str:
    """Return text on one line, without control characters."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def printable(text: str) -> str:
    """Return text without the control characters that steer a terminal; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def shortened(text: str, characters: int) -> str:
    """Return the beginning of a long text, with how much more `--json` prints."""
    left = len(text) - characters
    return text if left <= 0 else f"{text[:characters]}... and {left} characters more: --json"


def time_of(seconds: float | None) -> str:
    """Return seconds since 1970 as a date and time in UTC, `-` for None."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: float) -> str:
    """Return a rounded size: `31.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def age(seconds: float) -> str:
    """Return a rounded time span: `5m`, `3h`, `12d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
