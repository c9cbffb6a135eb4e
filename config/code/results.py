"""A JSON Schema of a handler's result, from the hint behind `->`, without running anything. Nothing checks results."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Final

from config.code.converted import Converted
from config.code.hints import Schema, TooMuchError
from config.code.source import Names, quiet

_MAX_BYTES: Final = 128 * 1024
_FILE: Final[Schema] = {
    "type": "object",
    "properties": {"$file": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}},
    "required": ["$file"],
}
_WRITTEN: Final[Mapping[str, Schema]] = {
    "File": _FILE,
    "bytes": _FILE,
    "bytearray": _FILE,
    "Path": {"type": "string"},
    "Decimal": {"type": "string"},
    "Request": {},
}
"""The types that results have in another form than inputs."""


def output_schema(source: bytes, handler: str) -> Schema | None:
    """Return the schema of a handler's result, or None if its hint says nothing.

    A generator has none: its items are no result.
    """
    if len(source) > _MAX_BYTES or b"->" not in source:
        return None
    try:
        with quiet():
            tree = ast.parse(source)
        names = Names(tree)
        function = names.only(handler)
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or function.returns is None:
            return None
        if function.decorator_list or getattr(function, "type_params", []) or any(map(_yields, _inside(function))):
            return None
        return _Returned(names).schema(function.returns, 0) or None
    except (SyntaxError, ValueError, RecursionError, MemoryError, TooMuchError):
        return None


class _Returned(Converted):
    """Reads the hints of values that become JSON."""

    def named(self, node: ast.Name | ast.Attribute, depth: int) -> Schema:
        """Return the schema of a name."""
        name = self.canonical(node)
        return dict(_WRITTEN[name]) if name in _WRITTEN else super().named(node, depth)

    def of_class(self, node: ast.ClassDef, depth: int) -> Schema:
        """Return the schema of a class: an object of it has all fields, and may have more."""
        schema = super().of_class(node, depth)
        if schema.get("additionalProperties") is not False:
            return schema
        more = {name: value for name, value in schema.items() if name != "additionalProperties"}
        return more | {"required": list(schema["properties"])}


def _inside(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of functions in it."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)


def _yields(node: ast.AST) -> bool:
    return isinstance(node, (ast.Yield, ast.YieldFrom))
