"""Conditions and ranges of a request for a file (RFC 9110, 13 and 14). Pure."""

from __future__ import annotations

import re
from typing import Final

_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})[ \t]*")
_TAG: Final = re.compile(r'[ \t]*((?:W/)?"[!#-~\x80-\xff]*")[ \t]*(?:,|$)')


class UnsatisfiableError(Exception):
    """A range has no byte of the file."""


def part_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the number of bytes that `Range` asks for; None asks for the whole file.

    A header that is not understood is ignored, and so is one with several ranges, as RFC 9110 allows. Raises
    UnsatisfiableError.
    """
    match = None if header is None else _RANGE.fullmatch(header.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        length = min(int(match[2]), size)
        if not length:
            raise UnsatisfiableError
        return size - length, length
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return None
    if first >= size:
        raise UnsatisfiableError
    return first, min(last, size - 1) - first + 1


def names_tag(header: str, tag: str, *, strong: bool) -> bool:
    """Return whether `If-Match` or `If-None-Match` names an entity tag; only the former compares strongly."""
    if header.strip() == "*":
        return True
    at, found = 0, []
    while match := _TAG.match(header, at):
        found.append(match[1])
        at = match.end()
        if at >= len(header):
            break
    return tag in (found if strong else [each.removeprefix("W/") for each in found])
