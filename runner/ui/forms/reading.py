"""What a browser posted, as the JSON of an input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from attrs import frozen

from protocol.messages import InvalidJsonError, check_json
from runner.ui.forms.flat import ABSENT, MOST_CONTROLS, Posted
from runner.ui.forms.shape import Shape, Widget
from runner.ui.forms.texts import INTEGER, NUMBER, branch, step, under

_MOST_ITEMS: Final = 1000
_DEEPEST: Final = 32
"""Parts of a pointer that are looked at; a form has fewer levels."""
_NEEDED: Final = "fill in this field"


@frozen
class Reading:
    """The value of a form, and its mistakes."""

    value: Any
    """`msgspec.Raw` in it is JSON already. Fields with mistakes are left out."""
    wrong: Mapping[str, str]
    """Remedies by the path of the field."""

    @property
    def data(self) -> bytes:
        """The value as JSON."""
        return msgspec.json.encode(self.value)


def read(shape: Shape, posted: Posted) -> Reading:
    """Return the value of what was posted."""
    reader = _Reader(posted)
    value = reader.value(shape, "", "$", required=True)
    return Reading(None if value is ABSENT else value, reader.wrong)


class _Reader:
    def __init__(self, posted: Posted) -> None:
        self._posted = posted
        self._left = MOST_CONTROLS
        self._above = {place for name, text in posted.items() if text for place in _above(name)}
        """The places that have something filled in below them."""
        self.wrong: dict[str, str] = {}

    def value(self, shape: Shape, at: str, path: str, *, required: bool) -> Any:
        """Return the value of a part, `ABSENT` when nothing was given."""
        match shape.widget:
            case Widget.GROUP | Widget.LIST:
                return self._whole(shape, at, path, required=required)
            case Widget.EITHER:
                pick = self._posted.get("pick" + at, "")
                if pick in map(str, range(len(shape.branches))):
                    return self.value(shape.branches[int(pick)], at + branch(int(pick)), path, required=True)
            case Widget.CHOICE:
                pass
            case Widget.FILE if keep := self._posted.get("keep" + at):
                return self._json(keep, path)
        text = self._posted.get("in" + at, "").replace("\r\n", "\n")
        return self._blank(shape, at, path, required=required) if text == "" else self._text(shape, text, at, path)

    def _blank(self, shape: Shape, at: str, path: str, *, required: bool) -> Any:
        mark = self._posted.get("blank" + at)
        if mark == "text" and shape.widget not in (Widget.INTEGER, Widget.NUMBER):
            return ""
        if shape.nullable and (mark == "null" or (required and shape.widget is not Widget.CHOICE)):
            return None
        if required:
            self.wrong[path] = _NEEDED
        return ABSENT

    def _text(self, shape: Shape, text: str, at: str, path: str) -> Any:
        match shape.widget:
            case Widget.INTEGER | Widget.NUMBER:
                whole = shape.widget is Widget.INTEGER
                plain = text.strip().removeprefix("+")
                if (INTEGER if whole else NUMBER).fullmatch(plain):
                    return msgspec.Raw(plain.encode())
                self.wrong[path] = "write a whole number, such as 12" if whole else "write a number, such as 12.5"
                return ABSENT
            case Widget.CHOICE | Widget.JSON:
                return self._json(text, path)
            case Widget.MOMENT:
                return text + self._posted.get("zone" + at, "").strip()
        return text

    def _json(self, text: str, path: str) -> Any:
        try:
            return check_json(text.encode("utf-8", "replace"))
        except InvalidJsonError as problem:
            self.wrong[path] = f"this is not JSON: {problem}"
            return ABSENT

    def _whole(self, shape: Shape, at: str, path: str, *, required: bool) -> Any:
        self._left -= 1
        if self._left < 0:
            return ABSENT
        wrong = dict(self.wrong)
        if shape.widget is Widget.LIST:
            found: Any = self._items(shape, at, path)
        else:
            found = self._parts(shape, at, path)
        if self._posted.get("use" + at) or self._filled(shape, at):
            return found
        self.wrong = wrong  # an absent part has no mistakes
        return self._blank(shape, at, path, required=required)

    def _filled(self, shape: Shape, at: str) -> bool:
        """Whether a field inside was filled in; a browser without scripts does not mark the part as present."""
        return self._count(at) > 0 if shape.widget is Widget.LIST else at in self._above

    def _count(self, at: str) -> int:
        text = self._posted.get("len" + at, "0")
        return min(int(text), _MOST_ITEMS) if text.isascii() and text.isdigit() and len(text) < 6 else 0

    def _items(self, shape: Shape, at: str, path: str) -> list[Any]:
        found = []
        for number in range(self._count(at)):
            value = self.value(shape.item, at + step(str(number)), f"{path}[{number}]", required=True)
            found.append(None if value is ABSENT else value)
        return found

    def _parts(self, shape: Shape, at: str, path: str) -> Any:
        found = {}
        for name, part, required in shape.parts:
            inner = f"{path}[{name}]" if shape.fixed else under(path, name)
            value = self.value(part, at + step(name), inner, required=required)
            if value is not ABSENT or shape.fixed:
                found[name] = None if value is ABSENT else value
        return list(found.values()) if shape.fixed else found


def _above(name: str) -> Iterator[str]:
    """Yield the places above a control that has a text."""
    kind, *steps = name.split("/", _DEEPEST)
    if kind in ("in", "keep"):
        at = ""
        for each in steps:
            yield at
            at += "/" + each
