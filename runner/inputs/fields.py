"""Fields of a form by the JSON Schema of an input: texts become the values that the schema wants."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from attrs import frozen

from protocol.errors import ErrorKind, RunnerError, error
from protocol.messages import InvalidJsonError, check_json

Schema: TypeAlias = Mapping[str, Any]
Value: TypeAlias = Any
"""A value that is encoded as JSON: a text, `msgspec.Raw`, None, or the object of a file."""

_MAX_DEPTH: Final = 16
_MAX_BRANCHES: Final = 200
_SHOWN_NAMES: Final = 20
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_FILE_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TRUE, _FALSE = ("true", "1", "on", "yes"), ("false", "0", "off", "no")
_TYPES: Final[Mapping[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    dict: "object",
    list: "array",
}


@frozen
class Field:
    """A field by its schema."""

    name: str
    types: frozenset[str]
    """The types of JSON that it may have, besides a file."""
    items: Field | None
    """Its items, if it may be an array."""
    file: bool
    """Whether it may be a file."""
    any: bool = False
    """Whether it may be everything, by its schema or without one."""
    plain: bool = False
    """Whether a text stays a text, even if it is the id of a file."""

    @property
    def path(self) -> str:
        """Its path in messages."""
        return path_of(self.name)

    @property
    def repeated(self) -> bool:
        """Whether several parts of this name make one array."""
        return "array" in self.types

    @property
    def words(self) -> str:
        """The types of the field, for messages."""
        return " or ".join([*(read.words for read in _READERS if read.type in self.types), *["a file"] * self.file])

    def twice(self, count: int) -> RunnerError:
        """Return the error of several parts with the name of a field that is no array."""
        text = f"the form has {count} parts named {self.name!r:.80}, which is no array by the schema of the input"
        return error(ErrorKind.BAD_INPUT, f"{text}; send one, or declare a list", field=self.path)

    def text(self, text: str) -> Value:
        """Return the value of a text. Raises RunnerError `bad_input` if it is not of a type of the field."""
        if self.file and not self.plain and _FILE_ID.fullmatch(text):
            return {"$file": {"id": text}}
        if self.any or "string" in self.types:
            return text
        for read in _READERS:
            if read.type in self.types and (found := read.value(text)) is not None:
                return found
        if "null" in self.types and text in ("", "null"):
            return None
        said = f"the form field {self.name!r:.80} is {text[:80]!r}, not {self.words}"
        raise error(ErrorKind.BAD_INPUT, said, field=self.path)

    def one(self, value: Value) -> bool:
        """Whether a single part is the whole value of the field, and not the only item of an array."""
        if not self.repeated:
            return True
        if not isinstance(value, str):
            return self.file and not (self.items is not None and self.items.file)
        return "string" in self.types

    def whole(self, values: Sequence[Value]) -> Value:
        """Return the value of a field by those of its parts, where texts are `str` and files are objects.

        Raises RunnerError `bad_input`.
        """
        first = values[0]
        if len(values) > 1 and not self.repeated:
            raise self.twice(len(values))
        if len(values) == 1 and isinstance(first, str):
            if self.one(first):
                return self.text(first)
            if (found := _json(first, b"[")) is not None:
                return found
            if first == "" and "null" in self.types:
                return None
        elif len(values) == 1 and self.one(first):
            return first
        item = self.items or Field(self.name, frozenset(), None, file=True, any=True)
        return [item.text(value) if isinstance(value, str) else value for value in values]

    def takes_file(self) -> bool:
        """Whether a file can be the value, or an item, of the field: also as a text, for a string."""
        return self.file or self.any or "string" in self.types or bool(self.items and self.items.takes_file())

    def is_text(self) -> bool:
        """Whether a file can be the value, or an item, only as its text."""
        which = self.items if self.items is not None and self.repeated else self
        return not (which.file or which.any) and "string" in which.types


@frozen
class _Reader:
    """How a text is read as a type of JSON."""

    type: str
    words: str

    def value(self, text: str) -> Value | None:
        """Return the value as JSON, None for a text of another type."""
        match self.type:
            case "integer":
                plain = text.strip().removeprefix("+")
                return msgspec.Raw(plain.encode()) if _INTEGER.fullmatch(plain) else None
            case "number":
                plain = text.strip().removeprefix("+")
                return msgspec.Raw(plain.encode()) if _NUMBER.fullmatch(plain) else None
            case "boolean":
                word = text.strip().lower()
                return word in _TRUE if word in (*_TRUE, *_FALSE) else None
            case "array":
                return _json(text, b"[")
            case _:
                return _json(text, b"{")


_READERS: Final = (
    _Reader("boolean", "true or false"),
    _Reader("integer", "a whole number"),
    _Reader("number", "a number"),
    _Reader("array", "a JSON array"),
    _Reader("object", "a JSON object"),
)


def _json(text: str, begin: bytes) -> msgspec.Raw | None:
    data = text.encode("utf-8", "surrogatepass").strip()
    if not data.startswith(begin):
        return None
    try:
        return check_json(data)
    except InvalidJsonError:
        return None


class Fields:
    """The fields that a form for one input may have."""

    def __init__(self, schema: Schema | None, *, lists: bool = False) -> None:
        """Take the schema of the input, None for any. `lists`: without a schema a repeated name makes a list."""
        self._root = schema or {}
        self._lists = lists
        objects = [each for each in self._branches(self._root) if not self._types(each) or _is_object(each)]
        self._properties: dict[str, Schema] = {}
        self._others: list[Any] = []
        for each in objects:
            self._properties |= each.get("properties", {})
            self._others.append(each.get("additionalProperties", True))
        self._known: dict[str, Field] = {}
        self.root = self._field("input", self._root)
        """The input as a whole."""
        self.taken = bool(objects)
        """Whether the input may be an object, and so a form."""
        self.request = any("$request" in each.get("properties", ()) for each in self._branches(self._root))
        """Whether the input is a request."""
        self.raw = self.request or (not self.root.any and (self.root.file or "string" in self.root.types))
        """Whether the input may be a text or a file, and so a body of any type."""

    def of(self, name: str) -> Field:
        """Return a field. Raises RunnerError `bad_input` for one that the input does not have."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._field(name, self._schema_of(name))
        return found

    def _schema_of(self, name: str) -> Schema:
        if name in self._properties:
            return _object(self._properties[name])
        if self._others and not any(self._others):
            known = ", ".join(sorted(self._properties)[:_SHOWN_NAMES]) or "none"
            text = f"the input has no field {name!r:.80}; allowed: {known}"
            raise error(ErrorKind.BAD_INPUT, text, field=path_of(name))
        return next((_object(each) for each in self._others if isinstance(each, Mapping)), {})

    def _field(self, name: str, schema: Schema, depth: int = 0) -> Field:
        if not schema and self._lists and not depth:
            return Field(name, frozenset({"string", "array"}), None, file=True, plain=True)
        branches = list(self._branches(schema))
        types: set[str] = set()
        for each in branches:
            types |= self._types(each)
        anything = not all(self._types(each) for each in branches)
        array = next((each for each in branches if "array" in self._types(each)), None)
        items = None
        if array is not None and depth < _MAX_DEPTH:
            items = self._field(name, _object(array.get("items", {})), depth + 1)
        files = [each for each in branches if _is_file(each)]
        if not any("object" in self._types(each) for each in branches if each not in files):
            types -= {"object"}
        return Field(name, frozenset(types), items, file=bool(files) or anything, any=anything)

    def _branches(self, schema: Schema) -> Iterator[Schema]:
        """Yield the schemas of which one holds, each reference followed once; one of everything ends too many."""
        waiting, followed = [schema], set[str]()
        for _ in range(_MAX_BRANCHES):
            if not waiting:
                return
            found = waiting.pop(0)
            choices = found.get("anyOf") or found.get("oneOf")
            if isinstance(reference := found.get("$ref"), str):
                waiting += [] if reference in followed else [self._referred(reference)]
                followed.add(reference)
            elif choices:
                waiting += map(_object, choices)
            else:
                yield found
        yield {}

    def _referred(self, reference: str) -> Schema:
        found: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            if not isinstance(found, Mapping):
                return {}
            found = found.get(part.replace("~1", "/").replace("~0", "~"))
        return _object(found)

    def _types(self, schema: Schema) -> frozenset[str]:
        """Return the types that a schema without choices allows; none: every type."""
        given = schema.get("type")
        if given is not None:
            return frozenset([given] if isinstance(given, str) else given)
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        return frozenset(_TYPES.get(type(value), "object") for value in values)


def path_of(name: str) -> str:
    """Return the path of a field of the input, for messages."""
    return f"$.{name:.80}"


def _object(schema: Any) -> Schema:
    return schema if isinstance(schema, Mapping) else {}


def _is_object(schema: Schema) -> bool:
    known = schema.get("properties", ())
    return "object" in schema["type"] and "$file" not in known and "$request" not in known


def _is_file(schema: Schema) -> bool:
    return "$file" in schema.get("properties", ())
