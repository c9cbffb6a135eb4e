"""`input_schema`: the rules for a module's JSON Schema, and its validator, which never fetches anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias

import jsonschema_specifications
import referencing.exceptions
import referencing.jsonschema
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for

from config.mistakes import Where, Wrong, did_you_mean
from config.schema.keywords import MAX_STEPS, PatternError, bounded, compiled, counted

Resolver: TypeAlias = Any
_Part: TypeAlias = tuple[Any, Where, bool]
"""A value in a schema, its place, and whether it is a mapping from names to schemas."""

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
DATA = ("const", "enum", "default", "examples")
"""Keywords whose values are data: references in them have no meaning."""
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords whose values map names to schemas; the names may look like keywords."""
LATEST = "https://json-schema.org/draft/2020-12/schema"
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_IN_PLACE = ("allOf", "anyOf", "oneOf", "if", "then", "else", "not", "extends", "disallow")
"""Keywords whose schemas apply to the same value, not to a part of it."""
_DEPENDENT = ("dependentSchemas", "dependencies")
"""The same, as mappings from names."""
_MAX_WRONGS = 10
_MAX_MESSAGE = 1000
_MAX_VALUES = 10_000
_MAX_APPLIED = 10_000


def validator(schema: Mapping[str, Any]) -> Validator:
    """Return the validator of a schema without `problems`. It never fetches references."""
    kind = bounded(validator_for(schema, default=Draft202012Validator))
    return kind(schema, registry=jsonschema_specifications.REGISTRY)


def mismatch(checked: Validator, value: Any, steps: int = MAX_STEPS) -> tuple[str, str] | None:
    """Return the path of the first invalid value, `$.rows[3]`, and the reason; None if the value is valid.

    Raises TooManyStepsError if the check takes more `steps`, RecursionError if the value is nested too deeply.
    """
    with counted(steps):
        first = next(iter(checked.iter_errors(value)), None)
    if first is None:
        return None
    leaf = best_match([first])
    text = leaf.message  # with the whole value, and the reason at its end
    return leaf.json_path, text if len(
        text
    ) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE // 2]}...{text[-_MAX_MESSAGE // 2 :]}"


def problems(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Yield at most ten mistakes in a schema, each with its place."""
    root = dict(schema)
    try:
        found = list(_size(root)) or list(islice(_structure(root), _MAX_WRONGS))
        found = found or list(islice(_patterns(root), _MAX_WRONGS)) or list(_references(root))
    except RecursionError:
        found = [Wrong("is nested too deeply")]
    yield from found[:_MAX_WRONGS]


def _size(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Limit the number of values, so that the other checks take a bounded time."""
    todo: list[Any] = [schema]
    count = 0
    while todo:
        node = todo.pop()
        inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ()
        count += len(inner)
        if count > _MAX_VALUES:
            yield Wrong(f"has more than {_MAX_VALUES} values; shorten it, or check the rest in the handler")
            return
        todo += inner


def _structure(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check the schema against its metaschema."""
    named = schema.get("$schema", LATEST)
    no_default: Any = None
    kind = validator_for({"$schema": named}, default=no_default) if isinstance(named, str) else no_default
    if kind is None:
        yield Wrong(f"{named!r} is not a known version of JSON Schema; remove it, or use {LATEST}", ("$schema",))
        return
    seen = set()
    for each in kind(_flat(named), registry=jsonschema_specifications.REGISTRY).iter_errors(schema):
        leaf = best_match([each])
        where: Where = tuple(leaf.absolute_path)
        if (where, leaf.message) not in seen:
            seen.add((where, leaf.message))
            yield Wrong(_message(leaf, where), where)


@lru_cache(maxsize=16)
def _flat(version: str) -> Mapping[str, Any]:
    """Return the metaschema with its parts merged: resolving the parts would take most of the time."""
    no_default: Any = None
    whole: Mapping[str, Any] = validator_for({"$schema": version}, default=no_default).META_SCHEMA
    if "allOf" not in whole:
        return whole
    resolver = jsonschema_specifications.REGISTRY.resolver(whole["$id"])
    parts = [whole, *(resolver.lookup(each["$ref"]).contents for each in whole["allOf"])]
    words = {key: inner for part in parts for key, inner in part["properties"].items()}
    shared = {key: inner for part in parts for key, inner in part.get("$defs", {}).items()}
    return {"type": ["object", "boolean"], "properties": _plain(words), "$defs": _plain(shared)}


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(inner) for inner in node]
    if not isinstance(node, Mapping):
        return node
    if isinstance(node.get("$dynamicRef", node.get("$recursiveRef")), str):  # not the definition of that keyword
        return {"$ref": "#"}
    return {key: _plain(inner) for key, inner in node.items()}


def _message(leaf: ValidationError, where: Where) -> str:
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
        compiled(text)
    except PatternError as problem:
        reason = "is not a regular expression of RE2, which has no look-around and no back-references"
        yield Wrong(f"{text!r:.60} {reason}: {problem!s:.100}", where)


def _references(schema: Mapping[str, Any]) -> Iterator[Wrong]:
    """Follow every reference and refuse those that leave the schema, so that nothing is ever fetched."""
    specification = referencing.jsonschema.DRAFT202012
    resource = referencing.Resource.from_contents(schema, default_specification=specification)
    resolver = jsonschema_specifications.REGISTRY.resolver_with_root(resource)
    todo: list[tuple[_Part, Resolver]] = [((schema, (), False), resolver)]
    applied: dict[int, list[Any]] = {}
    targets: list[tuple[Any, Where]] = []
    wrongs = 0
    while todo:
        (node, where, named), resolver = todo.pop()
        if isinstance(node, Mapping) and not named:
            if id(node) in applied:
                continue
            applied[id(node)] = list(_in_place(node))
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
                    wrongs += 1
                    yield Wrong(_unresolved(target), (*where, name), allowed="a reference within the schema")
                else:
                    # The target of a reference is a schema, even among data.
                    todo.append(((found.contents, (*where, name), False), found.resolver))
                    applied[id(node)].append(found.contents)
                    targets.append((found.contents, (*where, name)))
        todo += [(part, resolver) for part in _parts(node, where, named=named)]
    if not wrongs:
        yield from list(_targets(schema, targets)) or _expansion(applied)


def _targets(schema: Mapping[str, Any], targets: list[tuple[Any, Where]]) -> Iterator[Wrong]:
    """Check targets of references that were not checked as a part of the schema, such as data."""
    checked: set[int] = set()
    todo: list[_Part] = [(schema, (), False)]
    while todo:
        node, where, named = todo.pop()
        if isinstance(node, Mapping) and not named:
            checked.add(id(node))
        todo += _parts(node, where, named=named)
    for target, where in targets:
        if isinstance(target, bool) or id(target) in checked:
            continue
        checked.add(id(target))
        if not isinstance(target, Mapping):
            yield Wrong("points to a value that is not a schema", where)
            continue
        for wrong in islice((*_structure(target), *_patterns(target)), _MAX_WRONGS):
            yield wrong.under(where)


def _in_place(node: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the inner schemas that apply to the same value."""
    for key in _IN_PLACE:
        value = node.get(key)
        yield from value if isinstance(value, list) else (value,)
    for key in _DEPENDENT:
        value = node.get(key)
        yield from value.values() if isinstance(value, Mapping) else ()


def _expansion(applied: Mapping[int, list[Any]]) -> Iterator[Wrong]:
    """Count the schemas that apply to one value, repetitions included; a schema that applies to itself is endless."""
    costs: dict[int, int] = {}
    open_: set[int] = set()

    def cost(key: int) -> int:
        if key in open_:
            raise _LoopError
        if key not in costs:
            open_.add(key)
            total = 1 + sum(cost(id(inner)) for inner in applied[key] if id(inner) in applied)
            open_.discard(key)
            costs[key] = min(total, _MAX_APPLIED + 1)
        return costs[key]

    try:
        largest = max(map(cost, applied))
    except _LoopError:
        yield Wrong("refers to itself endlessly")
        return
    if largest > _MAX_APPLIED:
        yield Wrong(f"is too large with its references: over {_MAX_APPLIED} schemas apply to one value")


class _LoopError(Exception):
    """A schema applies to the same value again."""


def _unresolved(target: str) -> str:
    if target.startswith("#"):
        return f"{target!r:.80} points to nothing in this schema"
    return f"{target!r:.80} is outside of this schema and is never fetched; copy it to `$defs` and write '#/$defs/NAME'"


def _parts(node: Any, where: Where, *, named: bool) -> Iterator[_Part]:
    """Yield the parts of a schema that are or contain schemas; `named`: `node` maps names to schemas."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if named or key not in DATA:
                yield value, (*where, key), not named and key in NAMED
    elif isinstance(node, list):
        yield from ((value, (*where, index), False) for index, value in enumerate(node))
