"""Labels of runners, and the labels that a module needs.

A label is a name, `gpu`, or a name with a value, `zone=eu`. A module that needs `zone` runs where any value of it is;
one that needs `zone=eu` only where this one is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from config.mistakes import Wrong
from config.shapes import Schema, accepting, nullable
from config.units import filled, show, words

MAX_LABELS: Final = 64
"""Labels of one runner; a module needs as many at most."""
_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
_LABEL: Final = re.compile(rf"{_PART}(?:={_PART})?")
_FORM: Final = "a name such as gpu, or a name with a value such as zone=eu, of letters, digits, '.', '_', '/' and '-'"
_LIST: Final[Schema] = {"type": "array", "items": {"type": "string", "pattern": f"^(?:{_LABEL.pattern})$"}}
_VALUES: Final[Schema] = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


@accepting(nullable({"anyOf": [_LIST, _VALUES, {"type": "string"}]}))
def read_labels(value: Any) -> tuple[str, ...]:
    """Read the labels of a runner: a mapping `{gpu: true, zone: eu}`, a list, or text with commas or blanks."""
    if isinstance(value, Mapping):
        value = [_joined(name, given) for name, given in value.items()]
    found = _unique(map(_label, words(value)))
    names = [label.partition("=")[0] for label in found]
    for name in names:
        if names.count(name) > 1:
            raise Wrong(f"{name} is given twice; a runner has one value of a label", allowed="each name once")
    return found


@accepting(nullable(_LIST | {"maxItems": MAX_LABELS}))
def read_needs(value: Any) -> tuple[str, ...]:
    """Read the labels that a module needs, in order of the alphabet: equal needs have one queue."""
    if value is not None and not isinstance(value, (list, tuple)):
        raise Wrong(f"{show(value)} is not a list of labels; write [gpu]", allowed="a list of labels")
    return tuple(sorted(_unique(_label(filled(item)) for item in value or ())))


def missing_labels(needs: Iterable[str], labels: Collection[str]) -> tuple[str, ...]:
    """Return those of `needs` that a runner with these labels does not have."""
    names = {label.partition("=")[0] for label in labels}
    return tuple(need for need in needs if need not in (labels if "=" in need else names))


def _joined(name: Any, value: Any) -> str:
    if value is True:
        return str(name)
    if value is False or value is None or isinstance(value, (Mapping, list)):
        reason = f"{show(name)} is {show(value)}; leave out a label that the runner does not have"
        raise Wrong(reason, allowed="true, text or a number")
    return f"{name}={value}"


def _label(value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise Wrong(f"{show(value)} is not a label: {_FORM}", allowed=_FORM)
    return value


def _unique(labels: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(labels))
    if len(found) > MAX_LABELS:
        raise Wrong(f"has {len(found)} labels; the limit is {MAX_LABELS}", allowed=f"at most {MAX_LABELS}")
    return found
