"""What a browser posts for a value: one text for each control, by a pointer to its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from runner.ui.forms.shape import Shape, Widget
from runner.ui.forms.texts import MOMENT, branch, compact, pretty, step

Posted: TypeAlias = Mapping[str, str]
"""The controls of a form by their names: what they are, and the JSON pointer of their place.

`in` is the text of a field, `zone` the offset of a moment, `keep` a file of the store as JSON, `use` the mark that a
group or list is there, `len` the number of items of a list, `pick` the alternative. `blank` says what an empty text
stands for, where that is not what the schema suggests: `null` or `text`.
"""
_KINDS: Final[Mapping[Widget, tuple[type, ...]]] = {Widget.INTEGER: (int,), Widget.NUMBER: (int, float)}


class NotShownError(Exception):
    """The value has no place in this form."""


class _Absent:
    """The value of a property that is not there."""


ABSENT = _Absent()
MOST_CONTROLS = 2000
"""Controls of one form; a larger value is written as JSON."""


def flatten(shape: Shape, value: Any) -> dict[str, str]:
    """Return what a browser would post for a value. Raises NotShownError."""
    return flatten_at(shape, "", value)


def flatten_at(shape: Shape, at: str, value: Any) -> dict[str, str]:
    """Return what a browser would post for a value at a place, which may be `ABSENT`. Raises NotShownError."""
    flat = _Flat()
    flat.put(shape, at, value)
    return flat.posted


class _Flat:
    def __init__(self) -> None:
        self.posted: dict[str, str] = {}

    def put(self, shape: Shape, at: str, value: Any) -> None:
        """Add the controls of a value, which may be `ABSENT`."""
        if len(self.posted) > MOST_CONTROLS:
            raise NotShownError
        match shape.widget:
            case Widget.GROUP | Widget.LIST:
                self._whole(shape, at, value)
            case Widget.EITHER:
                self._either(shape, at, value)
            case Widget.CHOICE:
                known = value is ABSENT or any(_same(value, each) for each in shape.choices)
                self._set("in", at, "" if value is ABSENT else compact(value), fits=known)
            case Widget.JSON:
                self._set("in", at, "" if value is ABSENT else pretty(value))
            case Widget.FILE:
                self._file(shape, at, value)
            case _:
                self._text(shape, at, value)

    def _set(self, kind: str, at: str, text: str, *, fits: bool = True) -> None:
        if not fits:
            raise NotShownError
        self.posted[kind + at] = text

    def _text(self, shape: Shape, at: str, value: Any) -> None:
        if value is ABSENT or value is None or value == "":
            self._blank(shape, at, value)
        elif (kinds := _KINDS.get(shape.widget)) is not None:
            self._set("in", at, compact(value), fits=isinstance(value, kinds) and not isinstance(value, bool))
        elif not isinstance(value, str) or "\r" in value or (shape.widget is not Widget.AREA and "\n" in value):
            raise NotShownError  # a browser changes the ends of lines
        elif shape.widget is Widget.MOMENT and (found := MOMENT.fullmatch(value)):
            self._set("in", at, found[1])
            self._set("zone", at, found[2] or "")
        else:
            self._set("in", at, value)

    def _blank(self, shape: Shape, at: str, value: Any) -> None:
        """Add an empty text, which may stand for several values."""
        self._set("in", at, "")
        if value is None:
            self._set("blank", at, "null", fits=shape.nullable)
        elif value == "":
            self._set("blank", at, "text", fits=shape.widget not in _KINDS)

    def _file(self, shape: Shape, at: str, value: Any) -> None:
        if isinstance(value, dict) and set(value) == {"$file"}:
            self._set("keep", at, compact(value))
        elif value is ABSENT or value is None or (value == "" and shape.also_text):
            self._blank(shape, at, value)
        else:
            self._set("in", at, value, fits=shape.also_text and isinstance(value, str) and "\r" not in value)

    def _either(self, shape: Shape, at: str, value: Any) -> None:
        if value is ABSENT or (value is None and shape.nullable):
            self._set("pick", at, "")
            if value is None:
                self._set("blank", at, "null")
            return
        for number, each in enumerate(shape.branches):
            before = dict(self.posted)
            try:
                self.put(each, at + branch(number), value)
            except NotShownError:
                self.posted = before
            else:
                self._set("pick", at, str(number))
                return
        raise NotShownError

    def _whole(self, shape: Shape, at: str, value: Any) -> None:
        there = value is not ABSENT and value is not None
        if there:
            self._set("use", at, "1")
        elif value is None:
            self._set("blank", at, "null", fits=shape.nullable)
        if shape.widget is Widget.LIST:
            self._items(shape, at, value if there else [])
        elif shape.fixed:
            self._places(shape, at, value if there else [ABSENT] * len(shape.parts))
        else:
            self._properties(shape, at, value if there else {})

    def _items(self, shape: Shape, at: str, value: Any) -> None:
        self._set("len", at, str(len(value)) if isinstance(value, list) else "", fits=isinstance(value, list))
        for number, each in enumerate(value):
            self.put(shape.item, at + step(str(number)), each)

    def _places(self, shape: Shape, at: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) != len(shape.parts):
            raise NotShownError
        for (name, part, _), each in zip(shape.parts, value, strict=True):
            self.put(part, at + step(name), each)

    def _properties(self, shape: Shape, at: str, value: Any) -> None:
        if not isinstance(value, dict) or value.keys() - {name for name, _, _ in shape.parts}:
            raise NotShownError
        for name, part, _ in shape.parts:
            self.put(part, at + step(name), value.get(name, ABSENT))


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same JSON: 1 is not true."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
