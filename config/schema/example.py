"""An example of a value that a schema allows, for people to begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_DEPTH: Final = 6
_STEPS: Final = 200
"""Parts of a schema that are looked at for one example: references to itself grow exponentially."""
_PROPERTIES: Final = 20
_ITEMS: Final = 10
_CHARACTERS: Final = 100
_TEXTS: Final = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T09:30:00Z",
    "decimal": "9.90",
    "duration": "PT1H",
    "email": "ada@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "09:30:00Z",
    "uri": "https://example.org/",
    "uuid": "01a22848-7aaf-7c8b-9919-c392f7690260",
}
"""Texts of a format."""


def examples(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield values that the schema may allow, the most telling first. Check them: patterns, for one, are not followed.

    The first has all properties of objects, the second only those that are required.
    """
    for everything in (True, False):
        yield _Example(schema, everything=everything).of(schema, 0)


class _Example:
    """Makes a value from the keywords of a schema, not deeper or longer than a person would write by hand."""

    def __init__(self, root: Mapping[str, Any], *, everything: bool) -> None:
        self._root = root
        self._everything = everything
        self._left = _STEPS

    def of(self, schema: Any, depth: int) -> Any:
        """Return a value for a schema."""
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > _DEPTH or self._left < 0:
            return None
        for given in (schema.get("examples"), schema.get("enum")):
            if isinstance(given, list) and given:
                return given[0]
        for name in ("const", "default"):
            if name in schema:
                return schema[name]
        if (schema := self._merged(schema, depth)) is None:
            return None
        choice = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(choice, list) and "properties" not in schema:
            values = [self.of(each, depth + 1) for each in choice[:_ITEMS]]
            return next((value for value in values if value is not None), None)
        return self._typed(schema, depth)

    def _merged(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any] | None:
        """Return the keywords of a schema with those of its `$ref` and `allOf`, or None if one cannot be found."""
        merged = dict(schema)
        parts = schema.get("allOf", [])
        reference = schema.get("$ref")
        found = [self._target(reference)] if isinstance(reference, str) else []
        for part in [*found, *(parts if isinstance(parts, list) else [])]:
            self._left -= 1
            possible = isinstance(part, Mapping) and depth < _DEPTH and self._left > 0
            inner = self._merged(part, depth + 1) if possible else None
            if inner is None:
                return None
            for name, value in inner.items():
                old = merged.get(name)
                if isinstance(old, dict) and isinstance(value, dict):
                    merged[name] = {**value, **old}
                elif isinstance(old, list) and isinstance(value, list) and name == "required":
                    merged[name] = [*old, *value]
                else:
                    merged.setdefault(name, value)
        return merged

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            return None
        node: Any = self._root
        for step in filter(None, reference[1:].split("/")):
            name = step.replace("~1", "/").replace("~0", "~")
            node = node.get(name) if isinstance(node, Mapping) else None
        return node

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        given = schema.get("type")
        kinds = given if isinstance(given, list) else [given]
        kind = next((kind for kind in kinds if kind != "null"), None)
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array" or (kind is None and "items" in schema):
            return self._array(schema, depth)
        if kind == "string":
            return _text(schema)
        if kind in ("integer", "number"):
            return _number({**schema, "type": kind})
        return True if kind == "boolean" else None

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        required = [name for name in schema.get("required") or () if isinstance(name, str)]
        names = [*required, *(known if self._everything else ())]
        return {name: self.of(known.get(name), depth + 1) for name in list(dict.fromkeys(names))[:_PROPERTIES]}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        least = schema.get("minItems")
        count = min(least if isinstance(least, int) else 0, _ITEMS)
        first = schema.get("prefixItems")
        values = [self.of(each, depth + 1) for each in first[:_ITEMS]] if isinstance(first, list) else []
        if "items" in schema and schema["items"] is not False:
            missing = max(count - len(values), 1 if self._everything and not values else 0)
            values += [self.of(schema["items"], depth + 1)] * missing
        return values


def _text(schema: Mapping[str, Any]) -> str:
    text = _TEXTS.get(str(schema.get("format")), "text")
    least, most = schema.get("minLength"), schema.get("maxLength")
    if isinstance(least, int):
        text = text.ljust(min(least, _CHARACTERS), "x")
    return text[:most] if isinstance(most, int) else text


def _number(schema: Mapping[str, Any]) -> float:
    """Return the first of a few plain numbers that is between the bounds."""
    names = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
    low, above, high, below, step = (schema.get(name) for name in names)
    bounds = [each for each in (low, above, high, below) if isinstance(each, int | float)]
    size = step if isinstance(step, int | float) and step > 0 else 1
    tried: list[float] = [1, size, 0]
    for bound in bounds:
        near = bound // size * size
        tried += [near, near + size, near - size, bound]
    if bounds:
        tried.append((min(bounds) + max(bounds)) / 2)
    for value in tried:
        inside = (low is None or value >= low) and (above is None or value > above)
        inside = inside and (high is None or value <= high) and (below is None or value < below)
        if inside and (step is None or value % size == 0) and (schema["type"] == "number" or value == int(value)):
            return int(value) if value == int(value) else value
    return 1
