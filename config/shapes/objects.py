"""The schema of a class whose fields are read one by one."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from textwrap import dedent
from types import NoneType
from typing import Any, get_args

import attrs

from config.shapes.readers import Schema, nullable, shape_of

Readers = Mapping[type, Mapping[str, Callable[[Any], Any]]]


def object_shape(kind: type, table: Readers) -> Schema:
    """Return the schema of a mapping with the fields of an attrs class; fields without a reader are of classes too."""
    properties: dict[str, Schema] = {}
    texts = _texts(kind)
    for field in attrs.fields(attrs.resolve_types(kind)):
        reader = table[kind].get(field.name)
        shape = _of_class(field.type, table) if reader is None else shape_of(reader)
        text = texts.get(field.name)
        properties[field.name] = shape | ({"description": text} if text else {})
    required = [field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING]
    shape = {"type": "object", "properties": properties, "additionalProperties": False}
    return shape | ({"required": required} if required else {})


def _of_class(kind: Any, table: Readers) -> Schema:
    """Return the schema of a field whose type is a class of the table, or one or None."""
    (inner,) = [each for each in get_args(kind) or (kind,) if each is not NoneType]
    shape = object_shape(inner, table)
    return nullable(shape) if NoneType in get_args(kind) else shape


def list_shape(kind: type, table: Readers, most: int) -> Schema:
    """Return the schema of a list of such mappings, which may be null."""
    return nullable({"type": "array", "items": object_shape(kind, table), "maxItems": most})


@cache
def _texts(kind: type) -> Mapping[str, str]:
    """Return the texts below the fields of a class; none where its source is not there."""
    try:
        (node,) = ast.parse(dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    found: dict[str, str] = {}
    body = node.body if isinstance(node, ast.ClassDef) else []
    for field, text in pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found
