"""JSON Schemas of type hints whose values the guest converts, by the rules of `protocol/authors/typed.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from config.code.hints import MAX_DEPTH, Hints, Schema, any_of, is_json, parsed
from config.code.source import Names

_MAX_CHOICES: Final = 200
_MAX_STATEMENTS: Final = 500
"""Statements of a class whose fields are read."""
_FILE: Final[Schema] = {
    "type": "object",
    "properties": {"$file": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}},
    "required": ["$file"],
}
"""A file as the JSON of an input names it."""
_CONVERTED: Final[Mapping[str, Schema]] = {
    "File": {"anyOf": [{"type": "string"}, _FILE]},
    "bytes": {"anyOf": [{"type": "string"}, _FILE]},
    "bytearray": {"anyOf": [{"type": "string"}, _FILE]},
    "Path": {"anyOf": [{"type": "string"}, _FILE]},
    "Request": {"type": "object", "properties": {"$request": {"type": "object"}}, "required": ["$request"]},
    "datetime": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "UUID": {"type": "string", "format": "uuid"},
    "Decimal": {"type": ["string", "number"], "format": "decimal"},
}
_ARRAYS: Final = frozenset(["tuple", "Tuple", "set", "Set", "frozenset", "FrozenSet", "AbstractSet", "MutableSet"])
_LISTS: Final = _ARRAYS | frozenset(["list", "List", "Sequence", "MutableSequence", "Collection", "Iterable"])
_TYPING: Final = frozenset(["NamedTuple", "NewType", "ClassVar", "Final"]) | _LISTS - {
    "tuple",
    "set",
    "frozenset",
    "list",
}
_ENUMS: Final = frozenset(["Enum", "IntEnum", "StrEnum"])
_MORE: Final[Mapping[str, frozenset[str]]] = {
    "typing": _TYPING,
    "typing_extensions": _TYPING,
    "collections.abc": frozenset(["Sequence", "MutableSequence", "Collection", "Iterable", "Set", "MutableSet"]),
    "operato": frozenset(["File", "Request", "Context"]),
    "datetime": frozenset(["datetime", "date", "time"]),
    "uuid": frozenset({"UUID"}),
    "decimal": frozenset({"Decimal"}),
    "pathlib": frozenset({"Path"}),
    "enum": _ENUMS,
    "dataclasses": frozenset(["dataclass", "field", "InitVar"]),
}


class Converted(Hints):
    """Reads the hints of one file, for a handler whose arguments are converted."""

    builtin: ClassVar[frozenset[str]] = Hints.builtin | frozenset(["bytes", "bytearray", "tuple", "set", "frozenset"])
    library: ClassVar[Mapping[str, frozenset[str]]] = {
        module: Hints.library.get(module, frozenset()) | _MORE.get(module, frozenset())
        for module in (*Hints.library, *_MORE)
    }

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        self._enums: dict[str, dict[str, Any]] = {}
        """Names and values of the members, by the name of the class."""

    def schema(self, node: ast.expr, depth: int) -> Schema:
        """Return the schema of a hint, empty if the hint accepts everything. Raises `TooMuchError`."""
        if isinstance(node, ast.Call) and len(node.args) == 2 and self.canonical(node.func) == "NewType":
            return self.schema(node.args[1], depth + 1)
        return super().schema(node, depth)

    def named(self, node: ast.Name | ast.Attribute, depth: int) -> Schema:
        """Return the schema of a name."""
        name = self.canonical(node)
        if name in _CONVERTED:
            return dict(_CONVERTED[name])
        return {"type": "array"} if name in _LISTS else super().named(node, depth)

    def subscript(self, name: str, inner: ast.expr, depth: int) -> Schema:
        """Return the schema of a type with arguments."""
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        open_end = isinstance(parts[-1], ast.Constant) and parts[-1].value is ...
        if name in ("tuple", "Tuple") and not open_end:
            items = [self.schema(part, depth + 1) for part in parts]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if name in _LISTS and len(parts) == 1 + open_end:
            item = self.schema(parts[0], depth + 1)
            return {"type": "array"} | ({"items": item} if item else {})
        if name in ("dict", "Dict", "Mapping", "MutableMapping") and len(parts) == 2:
            values = self.schema(parts[1], depth + 1)
            return {"type": "object"} | ({"additionalProperties": values} if values else {})
        if name in ("Final", "InitVar"):
            return self.schema(parts[0], depth + 1)
        return super().subscript(name, inner, depth)

    def of_class(self, node: ast.ClassDef, depth: int) -> Schema:
        """Return the schema of an enum, a dataclass, a named tuple or a `TypedDict`; empty for other classes."""
        bases = [self.canonical(base) for base in node.bases]
        if bases and bases[-1] in _ENUMS and not node.decorator_list:
            return self._enum(node)
        fields = self._fields(node, depth) if self._has_fields(node, bases) else None
        if fields is None:
            return super().of_class(node, depth)
        required = [name for name, _, needed in fields if needed]
        return object_schema({name: schema for name, schema, _ in fields}, required)

    def member(self, node: ast.expr) -> Any:
        """Return the value of an expression: a literal, or a member of an enum of the file. Raises ValueError."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = self.names.only(node.value.id)
            if isinstance(found, ast.ClassDef) and found.bases and self.canonical(found.bases[-1]) in _ENUMS:
                return self._members(found)[node.attr]
        return ast.literal_eval(node)

    def _members(self, node: ast.ClassDef) -> dict[str, Any]:
        """Return the members of an enum; none if a value is not in the text, or if there are too many statements."""
        if node.name not in self._enums:
            try:
                self._enums[node.name] = dict(_members(node)) if len(node.body) <= _MAX_STATEMENTS else {}
            except ValueError:
                self._enums[node.name] = {}
        return self._enums[node.name]

    def _enum(self, node: ast.ClassDef) -> Schema:
        values = list(self._members(node).values())
        usable = values and len(values) <= _MAX_CHOICES and all(isinstance(value, str | int) for value in values)
        return {"enum": list(dict.fromkeys(values))} if usable and all(map(is_json, values)) else {}

    def _has_fields(self, node: ast.ClassDef, bases: list[str]) -> bool:
        self.count()
        if len(node.body) > _MAX_STATEMENTS:
            return False
        if bases == ["NamedTuple"]:
            return not node.decorator_list
        if len(node.decorator_list) != 1 or not all(self._parents(node)):
            return False
        made = node.decorator_list[0]
        options = made.keywords if isinstance(made, ast.Call) else []
        maker = made.func if isinstance(made, ast.Call) else made
        return self.canonical(maker) == "dataclass" and all(each.arg != "init" for each in options)

    def _parents(self, node: ast.ClassDef) -> list[ast.ClassDef | None]:
        """Return the dataclasses of the file that a class inherits from; None for other bases."""
        found = [self.class_of(base) for base in node.bases]
        return [
            each if isinstance(each, ast.ClassDef) and each is not node and self._has_fields(each, []) else None
            for each in found
        ]

    def _fields(self, node: ast.ClassDef, depth: int) -> list[tuple[str, Schema, bool]] | None:
        """Return names, schemas of the fields, and whether they are required; None if they are uncertain."""
        self.count()
        methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
        if depth > MAX_DEPTH or "__init__" in methods:
            return None
        found: dict[str, tuple[str, Schema, bool]] = {}
        for parent in reversed(self._parents(node) if node.decorator_list else []):
            inherited = None if parent is None else self._fields(parent, depth + 1)
            if inherited is None:
                return None
            found.update((each[0], each) for each in inherited)
        for name, hint, value in _annotated(node):
            if self._names(hint, "ClassVar"):
                continue
            options = self._options(value)
            if options is not None and isinstance(options.get("init"), ast.Constant):
                continue
            given = value if options is None else options.get("default")
            optional = value is not None and (options is None or bool({"default", "default_factory"} & {*options}))
            found[name] = name, with_default(self.schema(hint, depth + 1), given, self), not optional
        return list(found.values())

    def _names(self, hint: ast.expr, name: str) -> bool:
        if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
            hint = parsed(hint.value)
        return self.canonical(hint.value if isinstance(hint, ast.Subscript) else hint) == name

    def _options(self, value: ast.expr | None) -> dict[str, ast.expr] | None:
        """Return the arguments of `field(...)`; None for another value."""
        if not isinstance(value, ast.Call) or self.canonical(value.func) != "field":
            return None
        return {each.arg: each.value for each in value.keywords if each.arg is not None}


def object_schema(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    """Return the schema of an object with these keys only."""
    known: Schema = {"type": "object", "properties": dict(properties)} | ({"required": required} if required else {})
    return known | {"additionalProperties": False}


def with_default(schema: Schema, default: ast.expr | None, hints: Converted) -> Schema:
    """Return the schema of a value with its default: of a type of JSON, or a member of an enum."""
    if default is None:
        return schema
    for _ in ast.walk(default):
        hints.count()
    try:
        value = hints.member(default)
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError):
        return schema
    if value is None:
        schema = any_of([schema, {"type": "null"}]) if schema else schema
    value = list(value) if isinstance(value, tuple) else value
    return schema | {"default": value} if _is_plain(value, 0) else schema


def _is_plain(value: Any, depth: int) -> bool:
    """Return whether a default can be a part of a schema as it is."""
    if isinstance(value, list | dict):
        inner = list(value) if isinstance(value, list) else [*value, *value.values()]
        keys = isinstance(value, list) or all(isinstance(key, str) for key in value)
        return depth < MAX_DEPTH and len(inner) <= _MAX_CHOICES and keys and all(_is_plain(i, depth + 1) for i in inner)
    if isinstance(value, float):
        return value - value == 0
    return (value is None or isinstance(value, str | int)) and is_json(value)


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id, item.annotation, item.value


def _members(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the members of an enum. Raises ValueError if a value is not in the text."""
    for item in node.body:
        if isinstance(item, ast.Assign):
            value = ast.literal_eval(item.value)
            for target in item.targets:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    yield target.id, value
