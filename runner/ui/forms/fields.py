"""The fields of a form, as a template draws them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Final

from attrs import evolve, field, frozen

from runner.ui.forms.flat import MOST_CONTROLS, Posted
from runner.ui.forms.shape import Shape, Widget
from runner.ui.forms.texts import MOMENT, branch, compact, step, under

_SHOWN: Final = 80
"""Characters of a value in a hint."""
_TYPES: Final = {
    Widget.DATE: (r"\d{4}-\d\d-\d\d", "date"),
    Widget.TIME: (r"\d\d:\d\d(:\d\d(\.\d{1,3})?)?", "time"),
}
_BOUNDS: Final = (
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
)
_EMAIL: Final = {"email": "email", "uri": "url"}


@frozen
class Choice:
    """One value to choose."""

    value: str
    label: str
    chosen: bool


@frozen
class Field:
    """One field, with the fields inside of it."""

    id: str
    at: str
    """The pointer to its place, which the names of its controls end in."""
    path: str
    """Its path, as failures write it."""
    name: str
    """The name of the property, the number of an item from 1 on, or nothing."""
    title: str
    description: str
    widget: Widget
    required: bool
    nullable: bool = False
    text: str = ""
    kind: str = "text"
    """Of a control for one line: its type in HTML."""
    zone: str = ""
    keep: str = ""
    blank: str = ""
    choices: tuple[Choice, ...] = ()
    fields: tuple[Field, ...] = ()
    """Those of a group, the items of a list, the alternatives."""
    there: bool = True
    """Of a group or list: whether it is a part of the value."""
    pick: str = ""
    also_text: bool = False
    least: int = 0
    """Of a list: the items that it has at least."""
    bounds: Mapping[str, Any] = field(factory=dict)
    default: str | None = None
    """The default as JSON, where the schema has one."""
    placeholder: str = ""
    error: str | None = None

    @property
    def keep_name(self) -> str:
        """The name of the stored file, or its id."""
        found = self._file
        return str(found.get("name") or found.get("id", ""))

    @property
    def keep_size(self) -> int | None:
        """The bytes of the stored file, where they are known."""
        found = self._file.get("size")
        return found if isinstance(found, int) else None

    @property
    def _file(self) -> Mapping[str, Any]:
        try:
            found = json.loads(self.keep)["$file"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def walk(self) -> Iterator[Field]:
        """Yield the field and all inside of it."""
        yield self
        for each in self.fields:
            yield from each.walk()


def fields_of(shape: Shape, posted: Posted, wrong: Mapping[str, str] | None = None) -> Field:
    """Return the fields for a posted form, each with its mistake."""
    drawn = _Drawing(posted).field(shape, "", "$", "", required=True)
    return drawn if not wrong else _marked(drawn, _places(drawn, wrong))


class _Drawing:
    def __init__(self, posted: Posted) -> None:
        self._posted = posted
        self._numbers = count()

    def field(self, shape: Shape, at: str, path: str, name: str, *, required: bool) -> Field:
        """Return the field of a part."""
        number = next(self._numbers)
        text = self._posted.get("in" + at, "")
        schema = shape.schema
        bounds = {word: schema[word] for word in _BOUNDS if isinstance(schema.get(word), int | float | str)}
        made = Field(
            id=f"field{number}",
            at=at,
            path=path,
            name=name,
            title=str(schema.get("title", "")),
            description=str(schema.get("description", "")),
            widget=shape.widget,
            required=required,
            nullable=shape.nullable,
            text=text,
            kind=_kind(shape, text),
            zone=self._posted.get("zone" + at, ""),
            keep=self._posted.get("keep" + at, ""),
            blank=self._posted.get("blank" + at, ""),
            there=not shape.widget.whole or bool(self._posted.get("use" + at)),
            pick=self._posted.get("pick" + at, ""),
            also_text=shape.also_text,
            least=shape.least,
            bounds=bounds,
            default=compact(schema["default"])[:_SHOWN] if "default" in schema else None,
            placeholder=_placeholder(schema),
            choices=tuple(Choice(value := compact(each), _label(each), value == text) for each in shape.choices),
        )
        inner = self._inner(shape, at, path) if number < MOST_CONTROLS else ()
        return evolve(made, fields=tuple(inner))

    def _inner(self, shape: Shape, at: str, path: str) -> Iterator[Field]:
        if shape.widget is Widget.GROUP:
            for name, part, required in shape.parts:
                inner = f"{path}[{name}]" if shape.fixed else under(path, name)
                yield self.field(part, at + step(name), inner, name, required=required)
        elif shape.widget is Widget.LIST:
            text = self._posted.get("len" + at, "0")
            for number in range(int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0):
                place = at + step(str(number))
                yield self.field(shape.item, place, f"{path}[{number}]", str(number + 1), required=True)
        for number, each in enumerate(shape.branches):
            # Its choice says that it is there.
            yield evolve(self.field(each, at + branch(number), path, "", required=True), there=True)


def _kind(shape: Shape, text: str) -> str:
    """Return the type of a control that shows a text as it is: a browser empties fields that it does not understand."""
    if shape.widget is Widget.MOMENT:
        found = MOMENT.fullmatch(text)
        return "datetime-local" if not text or (found and found[2] is None) else "text"
    if shape.widget in _TYPES:
        pattern, kind = _TYPES[shape.widget]
        return kind if not text or re.fullmatch(pattern, text) else "text"
    return _EMAIL.get(str(shape.schema.get("format")), "text") if shape.widget is Widget.TEXT else "text"


def _label(value: Any) -> str:
    return value if isinstance(value, str) and value else compact(value)


def _placeholder(schema: Mapping[str, Any]) -> str:
    examples = schema.get("examples")
    given = examples[0] if isinstance(examples, list) and examples else schema.get("default", "")
    return (given if isinstance(given, str) else compact(given))[:_SHOWN] if given is not None else ""


def _places(drawn: Field, wrong: Mapping[str, str]) -> dict[str, str]:
    """Return the mistakes by the place of the field nearest to each path."""
    known: dict[str, str] = {}
    for each in drawn.walk():
        known.setdefault(each.path, each.at)
    found: dict[str, str] = {}
    for path, text in wrong.items():
        near = path
        while near not in known and near != "$":
            near = near[: max(near.rfind("."), near.rfind("["), 1)]
        found.setdefault(known[near], text if near == path else f"{path}: {text}")
    return found


def _marked(drawn: Field, wrong: Mapping[str, str]) -> Field:
    inner = tuple(_marked(each, wrong) for each in drawn.fields)
    return evolve(drawn, fields=inner, error=wrong.get(drawn.at))
