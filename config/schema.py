"""`input_schema`: what a JSON Schema must be before a module may have it, and the validator that nothing leaves.

Imported where a module has a schema only: the library costs a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jsonschema_specifications  # type: ignore[import-untyped]
import referencing.exceptions
import referencing.jsonschema
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for

from config.mistakes import Where, Wrong, did_you_mean

Resolver: TypeAlias = Any
_Part: TypeAlias = tuple[Any, Where, bool]
"""A value in a schema, its place, and whether it is a mapping of names to schemas."""

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
DATA = ("const", "enum", "default", "examples")
"""Keywords whose values are data: what looks like a reference in them is none."""
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords whose values are schemas by names, which may be called like keywords."""
LATEST = "https://json-schema.org/draft/2020-12/schema"
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_PROBES: tuple[Any, ...] = (None, True, 0, "", [], {})
_MAX_WRONGS = 10


def validator(schema: Mapping[str, Any]) -> Validator:
    """Return the validator of a schema that `problems` finds nothing in. It never fetches what a schema refers to."""
    kind = validator_for(schema, default=Draft202012Validator)
    return kind(schema, registry=jsonschema_specifications.REGISTRY)


def mismatch(checked: Validator, value: Any) -> tuple[str, str] | None:
    """Return the path of the first value that does not fit, `$.rows[3]`, and why; None when all does."""
    first = next(iter(checked.iter_errors(value)), None)
    if first is None:
        return None
    leaf = best_match([first])
    return leaf.json_path, leaf.message


def problems(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Yield what is wrong with a schema, each with its place in it; at most ten."""
    try:
        found = list(_structure(schema)) or list(_patterns(schema)) or list(_references(schema)) or _loops(schema)
    except RecursionError:
        found = [Wrong("is nested too deeply")]
    yield from found[:_MAX_WRONGS]


def _structure(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check against the schema of schemas."""
    named = schema.get("$schema", LATEST)
    nobody: Any = None
    kind = validator_for({"$schema": named}, default=nobody) if isinstance(named, str) else nobody
    if kind is None:
        yield Wrong(f"{named!r} is not a known version of JSON Schema; leave it out, or use {LATEST}", ("$schema",))
        return
    seen = set()
    for each in kind(kind.META_SCHEMA).iter_errors(schema):
        leaf = best_match([each])
        where: Where = tuple(leaf.absolute_path)
        if (where, leaf.message) not in seen:
            seen.add((where, leaf.message))
            yield Wrong(_said(leaf, where), where)


def _said(leaf: ValidationError, where: Where) -> str:
    if leaf.validator == "anyOf" and where[-1:] == ("type",):
        hint = did_you_mean(leaf.instance, _TYPES) if isinstance(leaf.instance, str) else ""
        return f"{leaf.instance!r:.60} is not a type of JSON: {', '.join(_TYPES)}{hint}"
    text = leaf.message
    return text if len(text) <= 200 else f"...{text[-197:]}"


def _patterns(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check every regular expression, the names of `patternProperties` included."""
    todo: list[_Part] = [(schema, (), False)]
    while todo:
        node, where, named = todo.pop()
        if isinstance(node, Mapping) and not named and isinstance(node.get("pattern"), str):
            yield from _pattern(node["pattern"], (*where, "pattern"))
        if isinstance(node, Mapping) and named and where[-1] == "patternProperties":
            for name in node:
                yield from _pattern(name, (*where, name))
        todo += _parts(node, where, named=named)


def _pattern(text: str, where: Where) -> Iterator[Wrong]:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as problem:
        yield Wrong(f"{text!r:.60} is not a regular expression: {problem}", where)


def _references(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Follow every reference; those that leave the schema are refused, so that nothing is ever fetched."""
    specification = referencing.jsonschema.DRAFT202012
    resource = referencing.Resource.from_contents(dict(schema), default_specification=specification)
    resolver = jsonschema_specifications.REGISTRY.resolver_with_root(resource)
    todo: list[tuple[_Part, Resolver]] = [((schema, (), False), resolver)]
    seen: set[int] = set()
    while todo:
        (node, where, named), resolver = todo.pop()
        if isinstance(node, Mapping) and not named:
            if id(node) in seen:
                continue
            seen.add(id(node))
            if where and isinstance(node.get("$id"), str):
                inner = referencing.Resource.from_contents(node, default_specification=specification)
                resolver = resolver.in_subresource(inner)
            for name in REFERENCES:
                target = node.get(name)
                if not isinstance(target, str):
                    continue
                try:
                    found = resolver.lookup(target)
                except referencing.exceptions.Unresolvable:
                    yield Wrong(_unresolved(target), (*where, name), allowed="a reference within the schema")
                else:
                    # What is pointed at is a schema, wherever it stands.
                    todo.append(((found.contents, (*where, name), False), found.resolver))
        todo += [(part, resolver) for part in _parts(node, where, named=named)]


def _unresolved(target: str) -> str:
    if target.startswith("#"):
        return f"{target!r:.80} points to nothing in this schema"
    return f"{target!r:.80} is outside of this schema; nothing is fetched: copy it to `$defs` and write '#/$defs/NAME'"


def _parts(node: Any, where: Where, *, named: bool) -> Iterator[_Part]:
    """Yield the parts of a schema that are schemas or hold some; `named`: `node` is a mapping of names to schemas."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if named or key not in DATA:
                yield value, (*where, key), not named and key in NAMED
    elif isinstance(node, list):
        yield from ((value, (*where, index), False) for index, value in enumerate(node))


def _loops(schema: Mapping[str, Any]) -> list[Wrong]:
    """Try the schema on values of every type: one that refers to itself for the same value has no end."""
    check = validator(schema)
    try:
        for value in _PROBES:
            list(check.iter_errors(value))
    except RecursionError:
        return [Wrong("refers to itself without end")]
    except Exception as problem:  # noqa: BLE001  (a reference may make a schema of what nobody has checked)
        return [Wrong(f"cannot be applied: {type(problem).__name__}: {problem!s:.200}")]
    return []
