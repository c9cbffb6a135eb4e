"""Python types of JSON Schemas: what a schema allows has a type that is at least as wide."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from runner.client.stubs.names import Names, docstring, is_parameter

ANY: Final = "_t.Any"
_PLAIN: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_MAX_DEPTH: Final = 20
_MAX_PARTS: Final = 5000
"""Parts of the schemas of one module; more are Any."""
_MAX_CHOICES: Final = 300


class Types:
    """The types of one file, of inputs or of results. Objects become `TypedDict`s, which are in `made`."""

    def __init__(self, names: Names, made: list[str], *, results: bool) -> None:
        self._names = names
        self._made = made
        self._results = results
        self._array = "_t.List" if results else "_t.Sequence"
        self._object = "_t.Dict" if results else "_t.Mapping"
        self._root: Any = None
        self._parts = 0
        self._known: dict[str, str] = {}
        """The types of references."""
        self._within: list[str] = []

    def of(self, schema: Any, name: str) -> str:
        """Return the type of a whole schema, which may have references to its own parts."""
        self._root, self._parts, self._known = schema, 0, {}
        return self.part(schema, (name,), 0)

    def of_properties(self, schema: Mapping[str, Any], name: str) -> dict[str, str]:
        """Return the types of the keys of an object, by their names."""
        self._root, self._parts, self._known = schema, 0, {}
        return {key: self.part(part, (name, key), 1) for key, part in schema["properties"].items()}

    def part(self, schema: Any, name: tuple[str, ...], depth: int) -> str:
        """Return the type of a part of the schema."""
        self._parts += 1
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH or self._parts > _MAX_PARTS:
            return ANY
        if isinstance(reference := schema.get("$ref"), str):
            return self._reference(reference, name, depth)
        if "const" in schema or "enum" in schema:
            return _literal(schema.get("enum", [schema.get("const")]))
        parts = _alternatives(schema)
        if parts is not None:
            return union([self.part(part, (*name, str(at)), depth + 1) for at, part in enumerate(parts)])
        kinds = schema.get("type", "object" if "properties" in schema else None)
        kinds = kinds if isinstance(kinds, list) and kinds else [kinds]
        return union([self._kind(kind, schema, name, depth) for kind in kinds])

    def _kind(self, kind: Any, schema: Mapping[str, Any], name: tuple[str, ...], depth: int) -> str:
        if kind == "array":
            items = schema.get("prefixItems", schema.get("items", {}))
            parts = [*items, schema.get("items", {})] if "prefixItems" in schema else [items]
            if isinstance(items, list):
                parts = [part for part in parts if part is not False]
            found = [self.part(part, (*name, "item"), depth + 1) for part in parts if isinstance(part, Mapping)]
            return f"{self._array}[{union(found or [ANY])}]"
        if kind == "object":
            return self._of_object(schema, name, depth)
        return _PLAIN.get(kind, ANY) if isinstance(kind, str) else ANY

    def _of_object(self, schema: Mapping[str, Any], name: tuple[str, ...], depth: int) -> str:
        if is_file(schema):
            return "_t.Dict[str, _t.Any]" if self._results else "_t.Union[_o.File, bytes, _t.Mapping[str, _t.Any]]"
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            more = schema.get("additionalProperties")
            return f"{self._object}[str, {self.part(more, (*name, 'value'), depth + 1)}]"
        given = self._names.type(*name)
        hints = {key: self.part(part, (*name, key), depth + 1) for key, part in properties.items()}
        self._write(given, hints, required_of(schema), str(schema.get("description") or ""))
        return given

    def _reference(self, reference: str, name: tuple[str, ...], depth: int) -> str:
        if reference in self._known:
            return self._known[reference]
        target = _followed(self._root, reference)
        if reference in self._within or not isinstance(target, Mapping):
            return ANY
        if _is_object(target):  # it may contain itself, so it has its name before its fields
            given = self._known[reference] = self._names.type(name[0], reference.rpartition("/")[2])
            properties: Mapping[str, Any] = target["properties"]
            hints = {key: self.part(part, (given, key), depth + 1) for key, part in properties.items()}
            self._write(given, hints, required_of(target), str(target.get("description") or ""))
            return given
        self._within.append(reference)
        try:
            found = self._known[reference] = self.part(target, name, depth + 1)
        finally:
            self._within.pop()
        return found

    def _write(self, name: str, hints: Mapping[str, str], required: Sequence[str], text: str) -> None:
        """Add a TypedDict to the text."""
        needed = {key: hint for key, hint in hints.items() if key in required}
        optional = {key: hint for key, hint in hints.items() if key not in required}
        base = "_t.TypedDict"
        if needed and optional:
            base = self._names.type(name, "Required")
            self._made.append(_typed_dict(base, "_t.TypedDict", needed, "", total=True))
        self._made.append(_typed_dict(name, base, optional or needed, text, total=not optional))


def _alternatives(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the schemas of which a value matches one; None if the schema is a plain one."""
    for word in ("anyOf", "oneOf"):
        parts = schema.get(word)
        if isinstance(parts, list) and parts:
            return parts
    parts = schema.get("allOf")
    if not isinstance(parts, list):
        return None
    return parts if len(parts) == 1 and "properties" not in schema else [{}]


def union(hints: Sequence[str]) -> str:
    """Return a union of types, each once."""
    found = list(dict.fromkeys(hints))
    if ANY in found:
        return ANY
    return found[0] if len(found) == 1 else f"_t.Union[{', '.join(found)}]"


def required_of(schema: Mapping[str, Any]) -> list[str]:
    """Return the required keys of an object."""
    required = schema.get("required")
    return [key for key in required if isinstance(key, str)] if isinstance(required, list) else []


def fits(value: Any, schema: Any) -> bool:
    """Return whether a type checker accepts a default for the type of a schema: a plain value only."""
    if not isinstance(schema, Mapping) or not (value is None or isinstance(value, bool | int | float | str)):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return isinstance(choices, list) and any(type(each) is type(value) and each == value for each in choices)
    parts = [part for word in ("anyOf", "oneOf") for part in schema.get(word) or []]
    if parts:
        return any(fits(value, part) for part in parts)
    kinds = schema.get("type")
    allowed = kinds if isinstance(kinds, list) else [kinds]
    actual = {bool: ["boolean"], int: ["integer", "number"], float: ["number"], str: ["string"]}
    return any(kind in allowed for kind in actual.get(type(value), ["null"]))


def words_of(hints: Iterable[str]) -> set[str]:
    """Return the names in types: a field or parameter of the same name would hide them."""
    return {word for hint in hints for word in re.findall(r"[A-Za-z_]\w*", hint)}


def is_file(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema is that of a file in JSON."""
    properties = schema.get("properties")
    return isinstance(properties, Mapping) and list(properties) == ["$file"]


def _is_object(schema: Mapping[str, Any]) -> bool:
    plain = isinstance(schema.get("properties"), Mapping) and schema["properties"] and not is_file(schema)
    return (
        bool(plain)
        and schema.get("type", "object") == "object"
        and not {"$ref", "enum", "anyOf", "oneOf", "allOf"} & {*schema}
    )


def _followed(root: Any, reference: str) -> Any:
    """Return the part of a schema that a JSON Pointer names; None without one."""
    if not reference.startswith("#"):
        return None
    found = root
    for word in reference[1:].split("/")[1:]:
        key = word.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(key)
        elif isinstance(found, list) and key.isascii() and key.isdigit() and len(key) < 5 and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def _literal(values: Any) -> str:
    if not isinstance(values, list) or not 0 < len(values) <= _MAX_CHOICES:
        return ANY
    shown = [_shown(value) for value in values]
    return ANY if None in shown else f"_t.Literal[{', '.join(dict.fromkeys(map(str, shown)))}]"


def _shown(value: Any) -> str | None:
    """Return a value of `Literal` as Python, None for another value."""
    return ascii(value) if value is None or isinstance(value, bool | int | str) else None


def _typed_dict(name: str, base: str, hints: Mapping[str, str], text: str, *, total: bool) -> str:
    ending = "" if total else ", total=False"
    if all(map(is_parameter, hints)) and not words_of(hints.values()) & {*hints}:
        body = [f"    {docstring(text, '    ')}"] if text.strip() else []
        body += [f"    {key}: {hint}" for key, hint in hints.items()]
        return "\n".join([f"class {name}({base}{ending}):", *body])
    # The keys are no names of Python, so a class cannot have them; types in quotes may be defined later.
    fields = "".join(f"        {key!a}: {json.dumps(hint)},\n" for key, hint in hints.items())
    if base == "_t.TypedDict":
        return f"{name} = _t.TypedDict(\n    {name!r},\n    {{\n{fields}    }}{ending},\n)"
    inner = f"_{name}"
    return (
        f"{inner} = _t.TypedDict(\n    {inner!r},\n    {{\n{fields}    }}{ending},\n)\n\n\n"
        f"class {name}({base}, {inner}{ending}):\n    pass"
    )
