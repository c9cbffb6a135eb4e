"""Arrays and objects of a valid JSON text, read in pieces of whole elements."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec

T = TypeVar("T")

STEP_BYTES: Final = 64 * 1024
LARGE_BYTES: Final = 2 * STEP_BYTES
"""A text up to this size is one step."""
_GUESSES = 4
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TO_MARK = re.compile(rb'(?:[^][{},"]++|' + _STRING + rb")*+([][{},])")
_TO_BRACKET = re.compile(rb'(?:[^][{}"]++|' + _STRING + rb")*+([][{}])")
_ENDS = {b"[": b"],", b"{": b"},", b'"': b'",'}
"""The end of an element, and a comma, by its first byte."""


def pieces(data: bytes, read: Callable[[bytes], T]) -> Iterator[T]:
    """Yield what `read` returns for each run of the elements of an array, or the members of an object.

    `data` is valid JSON without spaces around it. A run has whole elements with their commas, and about `STEP_BYTES`;
    only a single element can be longer. `read` raises DecodeError, without harm, for a run that ends within an element.
    """
    start, stop = 1, len(data) - 1
    while start < stop:
        if stop - start <= STEP_BYTES:
            yield read(data[start:stop])
            return
        guess = _guessed(data, start, read)
        if guess is None:
            end = _end_of_run(data, start, stop)
            guess = read(data[start:end]), end
        yield guess[0]
        start = guess[1] + 1


def _guessed(data: bytes, start: int, read: Callable[[bytes], T]) -> tuple[T, int] | None:
    """Return a run whose last element ends as its first one begins, and its end; None without one."""
    mark = _ENDS.get(data[start : start + 1], b",") if data.startswith(b"[") else b","
    end = start + STEP_BYTES
    for _ in range(_GUESSES):
        end = data.rfind(mark, start, end)
        if end < 0:
            break
        comma = end + len(mark) - 1
        try:
            return read(data[start:comma]), comma
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            pass
    return None


def _end_of_run(data: bytes, start: int, stop: int) -> int:
    """Return the end of a run, found by all brackets in it."""
    at, level, last = start, 0, 0
    while (mark := (_TO_BRACKET if level else _TO_MARK).match(data, at, stop)) is not None:
        at = mark.end()
        if mark[1] in b"[{":
            level += 1
        elif mark[1] in b"]}":
            level -= 1
        elif at - start > STEP_BYTES:
            return last or at - 1
        else:
            last = at - 1
    return last if last and stop - start > STEP_BYTES else stop


def decoded(data: bytes) -> Any:
    """Return a valid JSON text as Python values. Raises msgspec.DecodeError for a number out of range."""
    data = data.strip(b" \t\r\n")
    if len(data) <= LARGE_BYTES or data[:1] not in (b"[", b"{"):
        return msgspec.json.decode(data)
    if data.startswith(b"["):
        return [item for run in pieces(data, _items) for item in run]
    return {name: value for run in pieces(data, _members) for name, value in run.items()}


def _items(run: bytes) -> list[Any]:
    return [decoded(run)] if len(run) > LARGE_BYTES else _list.decode(b"[%b]" % run)


def _members(run: bytes) -> dict[str, Any]:
    if len(run) > LARGE_BYTES:
        return {name: decoded(value) for name, value in members(run).items()}
    return _dict.decode(b"{%b}" % run)


def members(run: bytes) -> dict[str, bytes]:
    """Return the values of members of an object as JSON."""
    return {name: bytes(value) for name, value in _raws.decode(b"{%b}" % run).items()}


_list = msgspec.json.Decoder(list[Any])
_dict = msgspec.json.Decoder(dict[str, Any])
_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
