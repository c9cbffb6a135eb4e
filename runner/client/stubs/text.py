"""The text of the file: two functions for each module, and the types of inputs and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from runner.client.stubs.names import Names, docstring, is_parameter
from runner.client.stubs.types import Types, fits, required_of, words_of

_HEAD: Final = '''\
"""Functions of an Operato Runner. Made by `operato-runner client generate`; make it again instead of editing it."""

# ruff: noqa
from __future__ import annotations

import typing as _t

import operato as _o

_OMITTED: _t.Any = object()


class _How(_t.TypedDict, total=False):
    version: str
    timeout: float
    key: str


def _given(**values: _t.Any) -> _t.Dict[str, _t.Any]:
    return {name: value for name, value in values.items() if value is not _OMITTED}
'''
_MOST: Final = 200
"""Parameters of a function; an input with more keys is one parameter."""


class Described(msgspec.Struct):
    """A module as the server describes it."""

    name: str
    description: str = ""
    input_schema: Any = None
    output_schema: Any = None


def write_stubs(modules: Sequence[Described]) -> str:
    """Return a Python file for these modules. Type checkers accept it with any names and texts in the modules."""
    names = Names()
    functions = [names.function(module.name) for module in modules]
    blocks: list[str] = []
    for module, function in zip(modules, functions, strict=True):
        made: list[str] = []
        result = Types(names, made, results=True).of(module.output_schema, f"{function} result")
        inputs = Types(names, made, results=False)
        calls = _functions(module, function, inputs, result)
        blocks += [*made, *calls]
    return _HEAD + "".join(f"\n\n{block}\n" for block in blocks)


def _functions(module: Described, function: str, inputs: Types, result: str) -> list[str]:
    """Return the function for a Client, and the one for an AsyncClient."""
    schema = module.input_schema if isinstance(module.input_schema, Mapping) else {}
    properties = _parameters_of(schema)
    if properties is None or words_of([result]) & {*properties}:
        properties = None
        optional = not schema or fits(None, schema)
        hint = inputs.of(schema, f"{function} input")
        parameters = [f"input: {hint} = None" if optional else f"input: {hint}"]
        given, about = "input", ""
    else:
        hints = inputs.of_properties(schema, function)
        required = required_of(schema)
        parameters = ["*", *(_parameter(key, part, hints[key], key in required) for key, part in properties.items())]
        given = f"_given({', '.join(f'{key}={key}' for key in properties)})"
        about = "\n".join(f"    {key}: {text}" for key, part in properties.items() if (text := _description(part)))
    text = "\n\n".join(part for part in (module.description.strip(), about and f"Args:\n{about}") if part)
    text = text or f"Call the module {module.name}."
    client = "client"
    while properties is not None and client in properties:
        client += "_"
    return [
        _function(function, client, "Client", parameters, result, text, f"{client}.call({module.name!r}, {given}"),
        _function(
            f"{function}_async",
            client,
            "AsyncClient",
            parameters,
            result,
            text,
            f"{client}.call({module.name!r}, {given}",
        ),
    ]


def _function(name: str, client: str, kind: str, parameters: Sequence[str], result: str, text: str, call: str) -> str:
    head, wait = ("async def", "await ") if kind == "AsyncClient" else ("def", "")
    named = parameters if parameters[0] == "*" else [*parameters, "*"]
    shown = "".join(
        f"    {each},\n" for each in (f"{client}: _o.{kind}", "/", *named, "_how: _t.Optional[_How] = None")
    )
    body = f"    _result: {result} = {wait}{call}, **(_how or _How()))\n    return _result"
    return f"{head} {name}(\n{shown}) -> {result}:\n    {docstring(text, '    ')}\n{body}"


def _parameters_of(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the keys of an input that become parameters; None if the input is one parameter."""
    kinds, properties = schema.get("type", "object"), schema.get("properties")
    is_object = kinds == "object" or (isinstance(kinds, list) and set(kinds) == {"object", "null"})
    other = {"$ref", "anyOf", "oneOf", "allOf", "enum", "const"} & {*schema}
    if not is_object or other or not isinstance(properties, Mapping) or not 0 < len(properties) <= _MOST:
        return None
    missing = [key for key in required_of(schema) if key not in properties]
    return properties if all(map(is_parameter, properties)) and not missing else None


def _parameter(key: str, part: Any, hint: str, required: bool) -> str:
    if required:
        return f"{key}: {hint}"
    default = part.get("default") if isinstance(part, Mapping) else None
    known = isinstance(part, Mapping) and "default" in part and fits(default, part)
    return f"{key}: {hint} = {ascii(default) if known else '_OMITTED'}"


def _description(part: Any) -> str:
    return " ".join(str(part.get("description") or "").split()) if isinstance(part, Mapping) else ""
