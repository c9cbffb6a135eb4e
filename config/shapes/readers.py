"""Schemas beside readers, and the schemas of readers that are made of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Schema: TypeAlias = dict[str, Any]
_SHAPE = "shape"
"""The attribute of a reader."""


def shaped(read: Callable[[Any], T], schema: Schema | Callable[[], Schema]) -> Callable[[Any], T]:
    """Return the reader with its schema, or with a function that makes it when it is needed."""
    setattr(read, _SHAPE, schema)
    return read


def accepting(schema: Schema) -> Callable[[Callable[[Any], T]], Callable[[Any], T]]:
    """Return a decorator that gives a reader its schema."""
    return lambda read: shaped(read, schema)


def shape_of(read: Callable[[Any], Any]) -> Schema:
    """Return the schema of a reader; one without a schema may accept everything."""
    found = getattr(read, _SHAPE, {})
    return dict(found() if callable(found) else found)


def nullable(schema: Schema) -> Schema:
    """Return a schema that also accepts null."""
    if not schema:
        return schema
    return {"anyOf": [*(schema["anyOf"] if list(schema) == ["anyOf"] else [schema]), {"type": "null"}]}


def bounded(schema: Schema, bounds: Mapping[str, float]) -> Schema:
    """Return a schema whose numbers are within bounds, such as `minimum`; amounts in text are not compared."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [bounded(each, bounds) for each in schema["anyOf"]]}
    return {**schema, **bounds} if schema.get("type") in ("number", "integer") else schema
