"""Text that programs print for terminals: its escape sequences, and characters that a reader cannot see.

Output may have any of them, by accident or to mislead a reader: overwritten lines, hidden and reordered text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_ESCAPE: Final = re.compile(
    r"(?:\x1b\[|\x9b)(?P<given>[0-?]*)[ -/]*(?P<what>[@-~])"  # control sequences, such as colours
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # texts for the terminal, such as a title or a link
    r"|\x1b[ -/]*[0-~]"
)
"""No sequence spans lines, so that none can hide what follows it."""

_STEP: Final = 64 * 1024
_CONTROLS: Final = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: "\u2421"}
_OTHERS: Final = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
_VISIBLE: Final = _CONTROLS | {code: f"[U+{code:04X}]" for code in (*_OTHERS, 0x2028, 0x2029)}


def plain(text: str) -> str:
    """Return a text without escape sequences; it has the same lines. Works in short steps, for callers in threads."""
    if "\x1b" not in text and "\x9b" not in text:
        return text
    return "".join(_ESCAPE.sub("", step) for step in _steps(text))


def _steps(text: str) -> Iterator[str]:
    """Yield a text in parts, between which other threads run: each begins with a sequence or has none at its end."""
    at = 0
    while at < len(text):
        end = at + _STEP
        if end < len(text):
            found = text.rfind("\x1b", at + 1, end)
            end = found if found > at else end
        yield text[at:end]
        at = end


def visible(text: str) -> str:
    """Return a text with a sign in place of each control character, and of those that change the order of others.

    Line ends and tabs stay.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_VISIBLE)


def last_written(line: str) -> str:
    r"""Return a line as a terminal shows it at last: after the last `\r` that was followed by other text."""
    return line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line


def styled(text: str) -> list[tuple[str, str]]:
    """Return the parts of a line with the names of their styles, separated by blanks; the parts are visible.

    Styles are `bold`, `dim`, `italic`, `underline`, and colours from `c0` to `c15`. Backgrounds are left out: a text in
    the colour of its background would be hidden.
    """
    if "\x1b" not in text and "\x9b" not in text:
        return [("", visible(text))] if text else []
    parts: list[tuple[str, str]] = []
    style: dict[str, str] = {}
    at = 0
    for found in _ESCAPE.finditer(text):
        _add(parts, style, text[at : found.start()])
        at = found.end()
        if found["what"] == "m":
            _change(style, found["given"])
    _add(parts, style, text[at:])
    return parts


def _add(parts: list[tuple[str, str]], style: dict[str, str], text: str) -> None:
    if text:
        parts.append((" ".join(style.values()), visible(text)))


_MARKS: Final = {1: "bold", 2: "dim", 3: "italic", 4: "underline"}
_ENDED: Final = {22: ("bold", "dim"), 23: ("italic",), 24: ("underline",), 39: ("colour",)}


def _change(style: dict[str, str], given: str) -> None:
    """Apply the numbers of one sequence; unknown ones change nothing."""
    numbers = [int(number) if number.isdecimal() else 0 for number in given[:64].split(";")]
    while numbers:
        number = numbers.pop(0)
        if number == 0:
            style.clear()
        elif number in _MARKS:
            style[_MARKS[number]] = _MARKS[number]
        elif number in _ENDED:
            for name in _ENDED[number]:
                style.pop(name, None)
        elif 30 <= number <= 37 or 90 <= number <= 97:
            style["colour"] = f"c{number - 30 if number < 40 else number - 82}"
        elif number in (38, 48):
            _extended(style, number, numbers)


def _extended(style: dict[str, str], number: int, numbers: list[int]) -> None:
    """Take the numbers of one of many colours; only the sixteen that have a name are shown."""
    mode = numbers.pop(0) if numbers else 0
    if mode == 5 and numbers:
        colour = numbers.pop(0)
        if number == 38 and colour < 16:
            style["colour"] = f"c{colour}"
    elif mode == 2:
        del numbers[:3]
