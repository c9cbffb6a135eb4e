"""Nesting and number of the values of a JSON text, which need not be valid."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

_STEP_BYTES: Final = 64 * 1024
_NOT_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_NOT_VALUES = bytes(set(range(256)) - set(b'[{,"'))
_SIGNS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_BACKSLASHES = re.compile(rb"\\*+")


def measure(data: bytes, deepest: int, most: int) -> tuple[int, int]:
    """Return the levels of nesting of a text, valid or not, and the number of its arrays and objects.

    The scan ends as soon as there are more than `deepest` levels, or `most` arrays and objects.
    """
    level, found, count = 0, 0, 0
    for marks in _outside_of_strings(data, _NOT_MARKS):
        opened = marks.count(b"[") + marks.count(b"{")
        count += opened
        if level + opened > found:
            found = max(found, level + max(accumulate(array("b", marks.translate(_SIGNS))), default=0))
        level += 2 * opened - len(marks)
        if found > deepest or count > most:
            break
    return found, count


def has_more_values(data: bytes, most: int) -> bool:
    """Return whether a text has more than so many values, not counting empty arrays and objects twice."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") <= most:
        return False
    count = 0
    for marks in _outside_of_strings(data, _NOT_VALUES):
        count += len(marks)
        if count > most:
            return True
    return False


def _outside_of_strings(data: bytes, dropped: bytes) -> Iterator[bytes]:
    """Yield the bytes that are not in a string, without the `dropped` ones, step by step."""
    at, inside = 0, False
    while at < len(data):
        end = at + _STEP_BYTES
        if data[end - 1 : end] == b"\\":  # a step ends neither within backslashes nor before the byte they escape
            run = _BACKSLASHES.match(data, end)
            end = end + 1 if run is None else run.end() + 1
        piece, at = data[at:end], end
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.translate(None, dropped).split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0
