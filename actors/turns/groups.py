"""Groups: how many executions of one module and one value of its input run at a time. Pure.

A place that becomes free goes to the caller that has waited longest, and else to the backlog.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from protocol.errors import ErrorKind, RunnerError, error

Key = tuple[str, str]
"""Module name, value of the group."""
_MAX_CHARACTERS: Final = 256
_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_arrays: Final = msgspec.json.Decoder(list[msgspec.Raw])


def group_of(path: str, data: bytes) -> str:
    """Return the value of an input at a path (`$.customer` or `/customer`) as JSON, a long one as its hash.

    Raises RunnerError `bad_input` when it is missing, an object or an array.
    """
    value = msgspec.Raw(data or b"null")
    for name in _names(path):
        try:
            value = _inner(value, name)
        except (msgspec.DecodeError, KeyError, IndexError, ValueError, RecursionError):
            raise _missing(path) from None
    try:
        found: Any = msgspec.json.decode(value)
    except (msgspec.DecodeError, ValueError, RecursionError):  # such as a number that is too large
        raise _missing(path) from None
    if isinstance(found, (dict, list)):
        raise _missing(path)
    text = msgspec.json.encode(found).decode()
    return text if len(text) <= _MAX_CHARACTERS else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _names(path: str) -> list[str]:
    if path.startswith("/"):
        return [name.replace("~1", "/").replace("~0", "~") for name in path[1:].split("/")]
    return path.removeprefix("$").removeprefix(".").split(".") if path != "$" else []


def _inner(value: msgspec.Raw, name: str) -> msgspec.Raw:
    try:
        return _objects.decode(value)[name]
    except msgspec.DecodeError:
        return _arrays.decode(value)[int(name)]


def _missing(path: str) -> RunnerError:
    text = f"the module groups its executions by {path}, where the input must have a text, number, true, false or null"
    return error(ErrorKind.BAD_INPUT, text, field=path)


class Groups:
    """The places that running executions take in their groups."""

    def __init__(self) -> None:
        self._taken: dict[Key, int] = {}
        self._waiting: dict[Key, OrderedDict[int, Callable[[], None]]] = {}
        self._numbers = 0

    def taken(self, key: Key) -> int:
        """Return how many executions of a group run."""
        return self._taken.get(key, 0)

    def full(self, key: Key, most: int) -> bool:
        """Return whether no execution of a group may begin out of the backlog."""
        return self.taken(key) >= most or key in self._waiting

    def take(self, key: Key) -> None:
        """Take a place."""
        self._taken[key] = self.taken(key) + 1

    def wait(self, key: Key, has_place: Callable[[], None]) -> int:
        """Wait for a place: `has_place` is called with it. Return the number by which `leave_queue` ends the wait."""
        self._numbers += 1
        self._waiting.setdefault(key, OrderedDict())[self._numbers] = has_place
        return self._numbers

    def leave_queue(self, key: Key, number: int) -> None:
        """End a wait that has got no place."""
        waiting = self._waiting[key]
        del waiting[number]
        if not waiting:
            del self._waiting[key]

    def leave(self, key: Key) -> bool:
        """Give back a place; return whether it is free for the backlog."""
        waiting = self._waiting.get(key)
        if waiting:
            number = next(iter(waiting))
            has_place = waiting[number]
            self.leave_queue(key, number)
            has_place()
            return False
        left = self.taken(key) - 1
        if left:
            self._taken[key] = left
        else:
            self._taken.pop(key, None)
        return True


class Rates:
    """When modules last began executions: at most `number` in any `seconds`."""

    def __init__(self) -> None:
        self._begun: dict[str, deque[float]] = {}

    def wait(self, module: str, number: int, seconds: float, now: float) -> float:
        """Return how long the next execution of a module must wait."""
        begun = self._begun.get(module)
        if begun is None:
            return 0.0
        while begun and begun[0] <= now - seconds:
            begun.popleft()
        if not begun:
            del self._begun[module]
            return 0.0
        return 0.0 if len(begun) < number else begun[len(begun) - number] + seconds - now

    def note(self, module: str, now: float) -> None:
        """Note that an execution of a module begins."""
        self._begun.setdefault(module, deque()).append(now)
