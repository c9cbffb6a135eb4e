"""A fast check of JSON by a simple schema, such as those from hints, read as types of msgspec.

Accepted JSON is valid. Rejected JSON may still be valid, for example with a repeated name: the validator decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Required, TypedDict, Union, get_args, get_origin

import msgspec

_NOTES = frozenset({"title", "description", "default", "examples", "format"})
"""Keywords that allow every value."""
_PLAIN: Mapping[str, Any] = {"null": None, "boolean": bool, "integer": int, "number": float, "string": str}


class _OtherError(Exception):
    """The schema has keywords that are not supported here."""


def decoder(schema: Mapping[str, Any]) -> tuple[Any, msgspec.json.Decoder[Any]] | None:
    """Return a type that only JSON has that fits the schema, and its decoder; None if no type expresses the schema."""
    try:
        kind = _type(schema)
        return kind, msgspec.json.Decoder(kind)
    except (_OtherError, TypeError, RecursionError):  # TypeError: msgspec cannot distinguish two object types
        return None


def told(problem: msgspec.MsgspecError) -> tuple[str, str]:
    """Return the path of the value that does not fit, and the reason."""
    message, _, path = str(problem).rpartition(" - at `")
    return (path.removesuffix("`"), message) if message else ("$", str(problem))


def _type(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        raise _OtherError
    schema = {word: value for word, value in schema.items() if word not in _NOTES}
    if not schema:
        return Any
    words = set(schema)
    if isinstance(schema.get("type"), list) and words <= {"type", "properties", "required", "additionalProperties"}:
        return _union([{**schema, "type": kind} if kind == "object" else {"type": kind} for kind in schema["type"]])
    if words == {"enum"}:
        return _choice(schema["enum"])
    if words == {"anyOf"} and isinstance(schema["anyOf"], list) and schema["anyOf"]:
        return _union(schema["anyOf"])
    kind = schema.get("type")
    read = _SHAPES.get(kind) if isinstance(kind, str) else None
    if read is not None:
        return read(schema)
    if words == {"type"} and isinstance(kind, str) and kind in _PLAIN:
        return _PLAIN[kind]
    raise _OtherError


def _union(schemas: list[Any]) -> Any:
    made: Any = Union[tuple(map(_type, schemas))]  # noqa: UP007  (built at run time)
    parts = get_args(made)
    whole = any(type(value) is int for part in parts if get_origin(part) is Literal for value in get_args(part))
    if whole and float in parts:  # msgspec refuses 0 for `float | Literal[1]`
        raise _OtherError
    return made


def _choice(values: Any) -> Any:
    if not isinstance(values, list) or not all(value is None or type(value) in (str, int) for value in values):
        raise _OtherError
    return Literal[tuple(values)]


def _array(schema: Mapping[str, Any]) -> Any:
    if not schema.keys() <= {"type", "items"}:
        raise _OtherError
    return list[_type(schema.get("items", {}))]  # type: ignore[misc]


def _object(schema: Mapping[str, Any]) -> Any:
    closed = schema.get("additionalProperties", True) is False
    if schema.keys() <= {"type", "additionalProperties"} and not closed:
        return dict[str, _type(schema.get("additionalProperties", {}))]  # type: ignore[misc]
    if not schema.keys() <= {"type", "properties", "required", *(["additionalProperties"] if closed else [])}:
        raise _OtherError
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        raise _OtherError
    if closed:
        return _closed({name: _type(inner) for name, inner in properties.items()}, required)
    fields: dict[str, Any] = {name: _type(inner) for name, inner in properties.items()}
    fields |= {name: Required[fields.get(name, Any)] for name in required}
    return TypedDict("Input", fields, total=False)  # type: ignore[operator]


def _closed(fields: Mapping[str, Any], required: list[Any]) -> Any:
    """Return a type of objects with these names only."""
    if not fields.keys() >= set(required):
        raise _OtherError
    made: list[Any] = [
        (f"field_{number}", kind) if name in required else (f"field_{number}", kind, None)
        for number, (name, kind) in enumerate(fields.items())
    ]
    rename = {f"field_{number}": name for number, name in enumerate(fields)}
    return msgspec.defstruct("Input", made, rename=rename, kw_only=True, forbid_unknown_fields=True)


_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {"array": _array, "object": _object}
