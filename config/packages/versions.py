"""Versions of Python that a module asks for: one version, or a specifier such as `>=3.11,<4`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from config.mistakes import Wrong
from config.shapes import Values, accepting
from config.units import filled, show

Version: TypeAlias = tuple[int, ...]

MINORS: Final = range(8, 17)
"""Minor versions of Python 3 that a worker can run under, as far as they are known."""
ALLOWED: Final = "a Python version such as 3.12 or 3.12.4, or a range such as >=3.11,<4"
_ONE = re.compile(r"3(\.[0-9]{1,3}){1,2}")
_CLAUSE = re.compile(r"(===?|~=|!=|<=|>=|<|>)\s*([0-9]{1,6}(?:\.[0-9]{1,6}){0,3})(\.\*)?")


@accepting(Values.TEXT)
def read_python(value: Any) -> str:
    """Read the field `python`. Raises `Wrong`."""
    if isinstance(value, str) and _ONE.fullmatch(value):
        return value
    text = "" if not isinstance(value, str) else filled(value).strip()
    if not text or not text.startswith(("=", "~", "!", "<", ">")) or len(text) > 200:
        raise Wrong(f"{show(value)} is not {ALLOWED}", allowed=ALLOWED)
    clauses = _clauses(text)
    if not any(_satisfied((3, minor), clauses, series=True) for minor in MINORS):
        raise Wrong(f"{show(value)} allows no Python 3 from 3.{MINORS[0]} on", allowed=ALLOWED)
    return ",".join(f"{operator}{'.'.join(map(str, version))}{star}" for operator, version, star in clauses)


def is_range(python: str | None) -> bool:
    """Return whether the field `python` names no version, but a range of them."""
    return python is not None and not python[:1].isdigit()


def fits(version: Sequence[int], python: str | None) -> bool:
    """Return whether a full version is one that `python` asks for; None asks for any."""
    if python is None:
        return True
    if is_range(python):
        return _satisfied(tuple(version), _clauses(python))
    wanted = tuple(map(int, python.split(".")))
    return tuple(version)[: len(wanted)] == wanted


def minor_for(python: str | None, default: str) -> str:
    """Return `python` as one version, for a place that has no ranges: the default if it fits, else the newest known."""
    if not is_range(python):
        return python or default
    clauses = _clauses(str(python))
    first = tuple(map(int, default.split(".")))
    order = [first, *((3, minor) for minor in reversed(MINORS))]
    return ".".join(map(str, next((each for each in order if _satisfied(each, clauses, series=True)), first)))


def _clauses(text: str) -> list[tuple[str, Version, str]]:
    """Return operator, version and `.*` of each part of a specifier. Raises `Wrong`."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _CLAUSE.fullmatch(part)
        if match is None or (match[3] and match[1] not in ("==", "!=")) or (match[1] == "~=" and "." not in match[2]):
            raise Wrong(f"{show(part)} is not {ALLOWED}", allowed=ALLOWED)
        found.append((match[1], tuple(map(int, match[2].split("."))), match[3] or ""))
    return found


def _satisfied(version: Version, clauses: Sequence[tuple[str, Version, str]], *, series: bool = False) -> bool:
    """Return whether a version fits all clauses; of a `series` such as 3.12, whether one of its versions may."""
    return all(_fits_one(version, operator, wanted, star, series=series) for operator, wanted, star in clauses)


def _fits_one(version: Version, operator: str, wanted: Version, star: str, *, series: bool) -> bool:
    if star:
        return (version[: len(wanted)] == wanted) is (operator == "==")
    if series and len(wanted) > len(version) and version == wanted[: len(version)]:
        return True  # `>=3.12.4` and `!=3.12.4` leave a 3.12
    if operator == "~=":
        return _compared(version, wanted) >= 0 and version[: len(wanted) - 1] == wanted[:-1]
    return _COMPARE[operator](_compared(version, wanted))


def _compared(one: Version, other: Version) -> int:
    """Return the order of two versions as -1, 0 or 1; missing numbers are zeros."""
    length = max(len(one), len(other))
    left, right = ((*each, *[0] * (length - len(each))) for each in (one, other))
    return (left > right) - (left < right)


_COMPARE: Mapping[str, Callable[[int], bool]] = {
    "==": lambda order: order == 0,
    "===": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<=": lambda order: order <= 0,
    ">=": lambda order: order >= 0,
    "<": lambda order: order < 0,
    ">": lambda order: order > 0,
}
