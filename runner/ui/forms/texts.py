"""Texts of fields, and values as JSON."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?)(Z|[+-]\d\d:\d\d)?")
"""A date and time as a browser has it, and its offset."""


def compact(value: Any) -> str:
    """Return a value in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def pretty(value: Any) -> str:
    """Return a value of a form, which may hold JSON as it is, for people."""
    return json.dumps(plain(value), ensure_ascii=False, indent=2)


def plain(value: Any) -> Any:
    """Return a value of a form as Python values. Numbers of any size stay as they are."""
    if isinstance(value, msgspec.Raw):
        return json.loads(bytes(value))
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def step(name: str) -> str:
    """Return the name of a property as a part of a pointer."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def branch(number: int) -> str:
    """Return the part of a pointer for an alternative, which no property has."""
    return f"/~b{number}"


def under(path: str, name: str) -> str:
    """Return the path of a property, as failures write it."""
    return f"{path}.{name}"
