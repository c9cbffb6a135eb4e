"""Lines of output as pages show them: for templates and, as JSON, for the script of a page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from protocol.model import Stream
from protocol.terminal import styled
from runner.api import MAX_LINE, Line, Spot, Window

MAX_SHOWN: Final = 100
"""Lines in a page as it is loaded; its script loads more."""
_MAX_PARTS: Final = 200
_PAGE_CHARACTERS: Final = 8_000


@frozen
class ShownLine:
    """One line."""

    key: str
    """Names its spot; it never changes."""
    number: int
    sort: str
    """`text`, `gap` or `attempt`."""
    stream: str
    attempt: int
    at: float
    parts: tuple[tuple[str, str], ...]
    """Styles and texts, ready to be shown."""
    cut: int
    """Characters that are left out at its end; of a gap the bytes that were not kept."""

    @property
    def fields(self) -> dict[str, Any]:
        """The line for the script of the page; keys are short, as there are many."""
        return {
            "k": self.key,
            "n": self.number,
            "o": self.sort,
            "s": self.stream,
            "a": self.attempt,
            "p": self.parts,
            "c": self.cut,
        }


def shown_line(line: Line) -> ShownLine:
    """Return a line as pages show it: cut, with styles, and nothing hidden in it."""
    text = line.text[:MAX_LINE]
    parts = styled(text)
    cut = line.cut + len(line.text) - len(text)
    if len(parts) > _MAX_PARTS:
        cut += sum(len(part) for _, part in parts[_MAX_PARTS:])
    stream = "" if line.stream is None else line.stream.value
    kept = tuple(parts[:_MAX_PARTS])
    return ShownLine(key_of(line.spot), line.number, line.sort.value, stream, line.attempt, line.at, kept, cut)


def some_of(window: Window, *, last: bool) -> tuple[ShownLine, ...]:
    """Return the first lines of a window, or its last ones, that fit into a page as it is loaded."""
    found: list[ShownLine] = []
    left = _PAGE_CHARACTERS
    for line in reversed(window.lines) if last else window.lines:
        left -= 60 + min(len(line.text), MAX_LINE)
        if found and left < 0:
            break
        found.append(shown_line(line))
    return tuple(reversed(found) if last else found)


def window_fields(window: Window) -> dict[str, Any]:
    """Return a window for the script of the page."""
    return {
        "lines": fields_of(window.lines),
        "total": window.total,
        "before": window.before,
        "after": window.after,
        "next": window.next_seq,
    }


def fields_of(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return lines for the script of the page."""
    return [shown_line(line).fields for line in lines]


def key_of(spot: Spot) -> str:
    """Return the name of a spot."""
    return f"{spot[0]}.{spot[1]}"


def spot_of(key: str | None) -> Spot | None:
    """Return the spot of a name, None for another text."""
    first, _, second = (key or "").partition(".")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 18 for part in (first, second)):
        return None
    return int(first), int(second)


def stream_of(name: str | None) -> Stream | None:
    """Return the stream with a name, None for both of them."""
    return Stream(name) if name in ("stdout", "stderr") else None
