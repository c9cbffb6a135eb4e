"""A JSON Schema as a form sees it: one widget for each part, references followed, alternatives told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, TypeAlias

from attrs import field, frozen

Schema: TypeAlias = Mapping[str, Any]

_MAX_DEPTH: Final = 6
"""Levels of fields; deeper values are written as JSON."""
_MAX_PROPERTIES: Final = 100
_MAX_CHOICES: Final = 200
_MAX_BRANCHES: Final = 8
_MAX_PARTS: Final = 50
"""Parts of `allOf` that are merged into one schema, at each of at most `_MAX_DEPTH` levels."""
_LONG: Final = 200
"""A text that may be longer has a field of several lines."""


class Widget(StrEnum):
    """How a part is filled in."""

    TEXT = "text"
    AREA = "area"
    INTEGER = "integer"
    NUMBER = "number"
    CHOICE = "choice"
    DATE = "date"
    TIME = "time"
    MOMENT = "moment"
    FILE = "file"
    JSON = "json"
    GROUP = "group"
    LIST = "list"
    EITHER = "either"

    @property
    def whole(self) -> bool:
        """Whether it has parts, and so needs a mark that says whether it is there."""
        return self in (Widget.GROUP, Widget.LIST)


_FORMATS: Final = {"date": Widget.DATE, "time": Widget.TIME, "date-time": Widget.MOMENT}
_TYPES: Final = {"integer": Widget.INTEGER, "number": Widget.NUMBER}


@frozen(eq=False)
class Shape:
    """A part of a form."""

    root: Schema
    """The whole schema, for its references."""
    schema: Schema
    """The schema of this part, references followed."""
    widget: Widget
    depth: int = 0
    nullable: bool = False
    branches: tuple[Shape, ...] = ()
    """Of `EITHER`: the alternatives."""
    choices: tuple[Any, ...] = ()
    """Of `CHOICE`: the values."""
    also_text: bool = False
    """Of `FILE`: whether a text is allowed too."""
    fixed: bool = field(default=False)
    """Of `GROUP`: whether it is an array with one part for each place."""

    @cached_property
    def parts(self) -> tuple[tuple[str, Shape, bool], ...]:
        """The name, shape and duty of each part of a group."""
        if self.fixed:
            items = [_of(self.root, each, self.depth + 1) for each in self.schema["prefixItems"]]
            return tuple((str(at), each, True) for at, each in enumerate(items))
        required = _texts(self.schema.get("required"))
        known = _mapping(self.schema.get("properties"))
        return tuple((name, _of(self.root, each, self.depth + 1), name in required) for name, each in known.items())

    @cached_property
    def item(self) -> Shape:
        """Each item of a list."""
        return _of(self.root, self.schema["items"], self.depth + 1)

    @property
    def least(self) -> int:
        """The number of items that a list has at least."""
        found = self.schema.get("minItems")
        return found if isinstance(found, int) and not isinstance(found, bool) else 0


def shape_of(schema: Schema | None) -> Shape:
    """Return the form of a schema, whose largest part may be written as JSON only; None allows everything."""
    return _of(schema or {}, schema or {}, 0)


def _of(root: Schema, schema: Any, depth: int) -> Shape:
    found = _resolved(root, schema, depth)
    choices = _alternatives(found)
    if choices and "properties" not in found:
        return _either(root, found, choices, depth)
    types, nullable = _types(found)
    if "enum" in found or "const" in found:
        return _choice(root, found, depth)
    if len(types) != 1 or depth > _MAX_DEPTH:
        decimal = set(types) == {"string", "number"} and found.get("format") == "decimal"
        return Shape(root, found, Widget.TEXT if decimal else Widget.JSON, depth, nullable)
    if types == ["boolean"]:
        return Shape(root, found, Widget.CHOICE, depth, nullable, choices=(True, False, *([None] if nullable else [])))
    fixed = types == ["array"] and _is_tuple(found)
    return Shape(root, found, _widget(found, *types), depth, nullable, fixed=fixed)


def _widget(schema: Schema, kind: str) -> Widget:
    """Return the widget of a type; an object or array is written as JSON unless its parts are known."""
    properties = _mapping(schema.get("properties"))
    if kind == "string":
        return _text(schema)
    if "$file" in properties:
        return Widget.FILE
    closed = schema.get("additionalProperties") is False or properties
    if kind == "object" and closed and len(properties) <= _MAX_PROPERTIES and "$request" not in properties:
        return Widget.GROUP
    if kind == "array" and "prefixItems" in schema:
        return Widget.GROUP if _is_tuple(schema) else Widget.JSON
    if kind == "array" and isinstance(schema.get("items"), Mapping) and schema["items"]:
        return Widget.LIST
    return _TYPES.get(kind, Widget.JSON)


def _is_tuple(schema: Schema) -> bool:
    items = schema.get("prefixItems")
    if not isinstance(items, list) or not 0 < len(items) <= _MAX_PROPERTIES:
        return False
    return schema.get("minItems") == schema.get("maxItems") == len(items)


def _either(root: Schema, schema: Schema, choices: Sequence[Any], depth: int) -> Shape:
    """Return the shape of alternatives: `null` is no alternative, and one that is left stands for itself."""
    found = [_resolved(root, each, depth) for each in choices[: _MAX_BRANCHES + 2]]
    nullable = any(each.get("type") == "null" for each in found)
    rest = [each for each in found if each.get("type") != "null"]
    notes = {word: schema[word] for word in ("title", "description", "default", "examples") if word in schema}
    if len(rest) == 1 and not _alternatives(rest[0]):
        inner = _of(root, {**rest[0], **notes}, depth)
        return Shape(
            root,
            inner.schema,
            inner.widget,
            depth,
            nullable or inner.nullable,
            choices=(*inner.choices, *([None] if nullable and inner.choices and None not in inner.choices else [])),
            fixed=inner.fixed,
        )
    files = [each for each in rest if "$file" in _mapping(each.get("properties"))]
    if len(rest) == 2 and len(files) == 1 and any(each.get("type") == "string" for each in rest):
        return Shape(root, {**files[0], **notes}, Widget.FILE, depth, nullable, also_text=True)
    if not 1 < len(rest) <= _MAX_BRANCHES or depth >= _MAX_DEPTH:
        return Shape(root, schema, Widget.JSON, depth, nullable)
    branches = tuple(_of(root, each, depth + 1) for each in rest)
    if all(each.widget is Widget.CHOICE for each in branches):
        values = tuple(value for each in branches for value in each.choices)
        return Shape(root, schema, Widget.CHOICE, depth, nullable, choices=(*values, *([None] if nullable else [])))
    return Shape(root, schema, Widget.EITHER, depth, nullable, branches=branches)


def _choice(root: Schema, schema: Schema, depth: int) -> Shape:
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(values, list) or not 0 < len(values) <= _MAX_CHOICES:
        return Shape(root, schema, Widget.JSON, depth)
    return Shape(root, schema, Widget.CHOICE, depth, None in values, choices=tuple(values))


def _text(schema: Schema) -> Widget:
    if (found := _FORMATS.get(str(schema.get("format")))) is not None:
        return found
    most = schema.get("maxLength")
    return Widget.AREA if isinstance(most, int) and most > _LONG else Widget.TEXT


def _types(schema: Schema) -> tuple[list[str], bool]:
    """Return the types besides null, and whether null is one; none when every type is allowed."""
    given = schema.get("type")
    if given is None:
        words = (("properties", "object"), ("items", "array"), ("prefixItems", "array"))
        given = next((kind for word, kind in words if word in schema), [])
    kinds = [given] if isinstance(given, str) else _texts(given)
    return [kind for kind in kinds if kind != "null"], "null" in kinds


def _alternatives(schema: Schema) -> Sequence[Any]:
    found = schema.get("anyOf") or schema.get("oneOf")
    return found if isinstance(found, list) else ()


def _resolved(root: Schema, schema: Any, depth: int) -> Schema:
    """Return a schema with what its reference and its `allOf` say; a circle ends at the limit of depth."""
    found: dict[str, Any] = {}
    waiting, left = [schema], _MAX_PARTS
    while waiting and left:
        left -= 1
        each = _mapping(waiting.pop(0))
        for word, value in each.items():
            old = found.get(word)
            if word == "properties" and isinstance(old, Mapping):
                found[word] = {**_mapping(value), **old}
            elif word == "required" and isinstance(old, list):
                found[word] = [*old, *_texts(value)]
            elif word not in ("$ref", "allOf"):
                found.setdefault(word, value)
        if isinstance(reference := each.get("$ref"), str):
            waiting.append(_referred(root, reference))
        if isinstance(parts := each.get("allOf"), list):
            waiting += parts
    return found if depth <= _MAX_DEPTH + 1 else {}


def _referred(root: Schema, reference: str) -> Any:
    node: Any = root
    if not reference.startswith("#"):
        return {}
    for step in _steps(reference[1:]):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def _steps(pointer: str) -> Iterator[str]:
    for step in pointer.split("/")[1:]:
        yield step.replace("~1", "/").replace("~0", "~")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list | tuple) else []
