"""Values as people read them on a terminal: tables, times, sizes, and text without control characters.

The text is the same on a terminal and in a pipe, so scripts may read it too; a terminal adds colours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

_BAR_BYTES = 1024 * 1024
_STYLES = {
    **dict.fromkeys(("succeeded", "ok", "active"), "green"),
    **dict.fromkeys(("failed",), "bold red"),
    **dict.fromkeys(("cancelled", "note"), "yellow"),
    **dict.fromkeys(("running", "queued", "scheduled"), "cyan"),
}
"""Styles of states, by their word."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned lines; each row has as many cells as the first."""
    return "".join(f"{''.join(cells).rstrip()}\n" for cells in _aligned(rows))


def show_table(rows: Sequence[Sequence[str]], *, heads: bool = True) -> None:
    """Print rows to standard output, coloured on a terminal; with `heads` the first row is one of titles."""
    if not sys.stdout.isatty():
        sys.stdout.write(table(rows))
        return
    lines = [[(cell, _STYLES.get(cell.strip(), "")) for cell in cells] for cells in _aligned(rows)]
    if heads:
        lines[0] = [(cell, "bold") for cell, _ in lines[0]]
    _paint(lines, sys.stdout)


def show_line(*pieces: tuple[str, str], err: bool = False) -> None:
    """Print pieces of one line, each with its style of `rich`, which only a terminal shows."""
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        _paint([pieces], stream)
    else:
        stream.write("".join(text for text, _ in pieces) + "\n")


@contextmanager
def upload_bar(total: int, verb: str = "uploading") -> Iterator[Callable[[int], None] | None]:
    """Show the progress of a transfer of `total` bytes on a terminal; yields a function that takes the bytes of steps.

    Small transfers, and those without a terminal, show nothing: then it yields None.
    """
    if total < _BAR_BYTES or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn(verb), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def style_of(word: str) -> str:
    """Return the style of a status or state, empty for other words."""
    return _STYLES.get(word, "")


def _aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in shown) for at in range(len(shown[0]))]
    return [
        [
            f"{cell:<{width}}" + ("  " if at < len(row) - 1 else "")
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in shown
    ]


def _paint(lines: Iterable[Sequence[tuple[str, str]]], stream: TextIO) -> None:
    """Print coloured lines. `NO_COLOR` and `TERM=dumb` turn colours off; lines are neither wrapped nor cut."""
    from rich.console import Console  # noqa: PLC0415  (it takes 0.1 s to import, and only terminals need it)
    from rich.text import Text  # noqa: PLC0415

    console = Console(file=stream, highlight=False, soft_wrap=True)
    for line in lines:
        text = Text.assemble(*line)
        text.rstrip()
        console.print(text)


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
