"""A JSON Schema of a handler's input, from its parameters, without running anything.

The decision which handlers are typed is that of `protocol/authors/typed.py`. A handler with decorators has no schema.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from attrs import frozen

from config.code.converted import Converted, object_schema, with_default
from config.code.docstrings import descriptions
from config.code.hints import Hints, Schema, TooMuchError, any_of, parsed
from config.code.source import Names, quiet

_MAX_BYTES: Final = 128 * 1024
"""The largest source whose hints are read: parsing blocks the event loop."""
_MAX_PARAMETERS: Final = 200
_MAX_DESCRIPTION: Final = 500
_PLAIN: Final = re.compile(rb"\s*(input|_\w*)\s*(,\s*\w+\s*)?")
"""The parameters of most handlers, which have no hint: the parsing is skipped."""


@frozen
class _Parameter:
    name: str
    kind: str
    annotation: ast.expr | None
    default: ast.expr | None


def input_schema(source: bytes, handler: str) -> Schema | None:
    """Return the schema of a handler's input, or None if it has none or accepts everything."""
    begun = re.findall(rb"def\s+%b\s*\(([^)]*)" % re.escape(handler.encode()), source[: _MAX_BYTES + 1])
    if len(source) > _MAX_BYTES or all(map(_PLAIN.fullmatch, begun)):
        return None
    try:
        with quiet():
            tree = ast.parse(source)
        names = Names(tree)
        function = names.only(handler)
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or function.decorator_list:
            return None
        if getattr(function, "type_params", []):
            return None
        return _of_function(function, names) or None
    except (SyntaxError, ValueError, RecursionError, MemoryError, TooMuchError):
        return None


def takes_requests(schema: Schema) -> bool:
    """Return whether an input of this schema, made by `input_schema`, may be a request to an endpoint."""
    if "anyOf" in schema:
        return any(map(takes_requests, schema["anyOf"]))
    known = "$request" in schema.get("properties", ()) or schema.get("additionalProperties") is not False
    return known and "object" in schema.get("type", ()) and {*schema.get("required", ())} <= {"$request"}


def _of_function(function: ast.FunctionDef | ast.AsyncFunctionDef, names: Names) -> Schema:
    hints = Converted(names)
    parameters = list(_parameters(function.args))
    if len(parameters) > _MAX_PARAMETERS:
        return {}
    taken = [each for each in parameters if each.default is None or not each.name.startswith("_")]
    context = next((each for each in taken if each.name == "context" or _is(each, "Context", hints)), None)
    taken = [each for each in taken if each is not context]
    if not taken and function.args.vararg is not None:
        return {}
    first = taken[0] if taken else None
    if first is not None and (first.name == "input" or first.name.startswith("_") or first.kind == "only"):
        if context is None and len(taken) == 2 and _takes_context(taken[1]):
            taken.pop()
        if len(taken) == 1:
            return _whole(first, hints)
    if len(taken) == 1 and function.args.kwarg is None and first is not None and _is(first, "Request", hints):
        return _whole(first, hints)
    return _of_parameters(function, taken, hints)


def _parameters(arguments: ast.arguments) -> Iterator[_Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for place, (each, default) in enumerate(zip(positional, defaults, strict=True)):
        yield _Parameter(each.arg, "only" if place < len(arguments.posonlyargs) else "", each.annotation, default)
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _Parameter(each.arg, "named", each.annotation, default)


def _is(parameter: _Parameter, name: str, hints: Converted) -> bool:
    """Return whether the hint of a parameter is this class of `operato`."""
    hint = parameter.annotation
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        hint = parsed(hint.value)
    return hint is not None and hints.canonical(hint) == name


def _takes_context(second: _Parameter) -> bool:
    """Return whether the second parameter of a plain handler takes the context, under any name."""
    match second.annotation:
        case None:
            name = "Any"
        case ast.Name(id=name) | ast.Attribute(attr=name):
            pass
        case ast.Constant(value=str(text)):
            name = text.rpartition(".")[2].strip()
        case _:
            return False
    return second.kind != "named" and second.default is None and name in ("Any", "object", "Context")


def _whole(parameter: _Parameter, hints: Converted) -> Schema:
    """Return the schema of a plain handler: only files and requests are more than JSON."""
    if parameter.annotation is None:
        return {}
    inner = [hints.canonical(each) for each in _members(parameter.annotation, hints) if not _is_none(each)]
    converted = len(inner) == 1 and inner[0] in ("bytes", "bytearray", "File", "Request")
    reader = hints if converted else Hints(hints.names)
    schema = reader.schema(parameter.annotation, 0)
    if isinstance(parameter.default, ast.Constant) and parameter.default.value is None:
        schema = any_of([schema, {"type": "null"}])
    return schema


def _members(node: ast.expr, hints: Converted) -> list[ast.expr]:
    """Return the hints of which a union consists."""
    match node:
        case ast.Constant(value=str(text)):
            return _members(parsed(text), hints)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return [*_members(left, hints), *_members(right, hints)]
        case ast.Subscript(value=value, slice=inner) if hints.canonical(value) in ("Optional", "Union"):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return [each for part in parts for each in _members(part, hints)]
    return [node]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _of_parameters(
    function: ast.FunctionDef | ast.AsyncFunctionDef, taken: list[_Parameter], hints: Converted
) -> Schema:
    texts = descriptions(ast.get_docstring(function) or "")
    properties: dict[str, Schema] = {}
    for each in taken:
        schema = {} if each.annotation is None else hints.schema(each.annotation, 0)
        schema = with_default(schema, each.default, hints)
        text = texts.get(each.name, "")
        properties[each.name] = schema | ({"description": text[:_MAX_DESCRIPTION]} if text else {})
    required = [each.name for each in taken if each.default is None]
    schema = object_schema(properties, required)
    more = function.args.kwarg
    if more is not None:
        inner = {} if more.annotation is None else hints.schema(more.annotation, 0)
        del schema["additionalProperties"]
        schema |= {"additionalProperties": inner} if inner else {}
    return schema if required else schema | {"type": ["object", "null"]}
