"""Keywords of JSON Schema with bounded time: patterns in RE2, and a limit on the steps of one check.

Python's `re` may take years for thirty characters; RE2 takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast

import re2
from attrs import fields
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for

Found: TypeAlias = Iterator[ValidationError]
Keyword: TypeAlias = Callable[[Any, Any, Any, Any], Any]

MAX_STEPS: Final = 200_000
"""Keywords applied in one check, roughly one or two seconds."""
_MAX_MEMORY: Final = 1 << 20
_PER_STEP: Final = 2000
"""Characters times instructions of a pattern that count as one step."""
_UNICODE: Final = re.compile(r"(\\\\)|\\u([0-9A-Fa-f]{4})")
"""A `\\u` escape of ECMA 262, which RE2 writes as `\\x`; an escaped backslash does not begin one."""
_HUGE: Final = re.compile(r"(?<!\\)\{(?:\d{5,}|\d{1,9},\d{5,})")
"""A number of repetitions that RE2 reads as text."""
_left: ContextVar[int] = ContextVar("steps that are left", default=MAX_STEPS)


class TooManyStepsError(Exception):
    """The check took more than the steps that it has."""


class PatternError(ValueError):
    """RE2 cannot read the pattern; the message has the reason."""


@contextmanager
def counted(steps: int) -> Iterator[None]:
    """Count the steps of one check, which raises TooManyStepsError after so many."""
    token = _left.set(steps)
    try:
        yield
    finally:
        _left.reset(token)


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Any:
    """Return the pattern for UTF-8 bytes. Raises PatternError if it is invalid, or needs more than linear time."""
    if _HUGE.search(pattern):
        raise PatternError("invalid repetition size")
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    escaped = _UNICODE.sub(lambda match: match[1] or rf"\x{{{match[2]}}}", pattern)
    try:
        return re2.compile(escaped.encode(), options)
    except UnicodeEncodeError:
        raise PatternError("it contains half of a character") from None
    except re2.error as problem:
        reason = problem.args[0]
        raise PatternError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from None


@lru_cache(maxsize=16)
def bounded(kind: type[Validator]) -> type[Validator]:
    """Return a version of JSON Schema with these keywords; every keyword counts as a step."""
    own: dict[str, Keyword] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties(kind.VALIDATORS["additionalProperties"]),
        "uniqueItems": _unique_items,
    }
    if "unevaluatedProperties" in kind.VALIDATORS:
        own["unevaluatedProperties"] = _unevaluated_properties
    known = {**kind.VALIDATORS, **{word: check for word, check in own.items() if word in kind.VALIDATORS}}
    made: Any = extend(kind, {word: _counting(check) for word, check in known.items()})  # type: ignore[no-untyped-call]
    made.evolve = _evolve
    return cast("type[Validator]", made)


def _evolve(checker: Any, **changes: Any) -> Any:
    """Replace the library's method, which gives a part with a `$schema` of its own the unbounded keywords."""
    no_default: Any = None
    plain = validator_for(changes.setdefault("schema", checker.schema), default=no_default)
    kind: Any = type(checker) if plain is None else bounded(plain)
    rest = {each.alias: getattr(checker, each.name) for each in fields(kind) if each.init}
    return kind(**{**rest, **changes})


def _counting(check: Keyword) -> Keyword:
    def count_and_check(checker: Any, value: Any, instance: Any, schema: Any) -> Any:
        _spend(1 + (len(value) // 2 if isinstance(value, list) else len(value) // 8 if isinstance(value, dict) else 0))
        if isinstance(instance, (list, dict)):
            _spend(len(instance) // 256)  # an error shows all of it
        return check(checker, value, instance, schema)

    return count_and_check


def _spend(steps: int) -> None:
    left = _left.get() - steps
    if left < 0:
        raise TooManyStepsError
    _left.set(left)


def _matches(pattern: str, text: str) -> bool:
    search = compiled(pattern)
    _spend(len(text) * search.programsize // _PER_STEP)
    return search.search(text.encode(errors="replace")) is not None


def _pattern(checker: Any, pattern: str, instance: Any, _schema: Any) -> Found:
    if checker.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(checker: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any) -> Found:
    if not checker.is_type(instance, "object"):
        return
    for pattern, inner in patterns.items():
        _spend(len(instance) // 8)
        for name, value in instance.items():
            if _matches(pattern, name):
                yield from checker.descend(value, inner, path=name, schema_path=pattern)


def _named(instance: Mapping[str, Any], schema: Mapping[str, Any]) -> set[str]:
    """Return the names that `properties` or `patternProperties` of the schema cover."""
    patterns = schema.get("patternProperties", {})
    _spend(len(instance) * (1 + len(patterns)) // 8)
    known = schema.get("properties", {})
    return {name for name in instance if name in known or any(_matches(pattern, name) for pattern in patterns)}


def _additional_properties(plain: Keyword) -> Keyword:
    def check(checker: Any, inner: Any, instance: Any, schema: Mapping[str, Any]) -> Found:
        if "patternProperties" not in schema or not checker.is_type(instance, "object"):
            yield from plain(checker, inner, instance, schema) or ()
            return
        named = _named(instance, schema)
        extras = [name for name in instance if name not in named]
        if inner is not False:
            for name in extras:
                yield from checker.descend(instance[name], inner, path=name)
        elif extras:
            patterns = ", ".join(map(repr, sorted(schema["patternProperties"])))
            verb = "does" if len(extras) == 1 else "do"
            yield ValidationError(f"{', '.join(map(repr, sorted(extras)))} {verb} not match any of: {patterns}")

    return check


def _unevaluated_properties(checker: Any, inner: Any, instance: Any, schema: Mapping[str, Any]) -> Found:
    if not checker.is_type(instance, "object"):
        return
    beside = {word: value for word, value in schema.items() if word != "unevaluatedProperties"}
    known = _evaluated(checker, instance, beside)
    wrong = [
        name
        for name, value in instance.items()
        if name not in known and next(checker.descend(value, inner, path=name), None) is not None
    ]
    if wrong:
        verb = "was" if len(wrong) == 1 else "were"
        names = ", ".join(map(repr, sorted(wrong)))
        yield ValidationError(f"Unevaluated properties are not allowed ({names} {verb} unexpected)")


def _evaluated(checker: Any, instance: Mapping[str, Any], schema: Any) -> set[str]:
    """Return the names that any part of a schema covers, for an instance that fits it."""
    _spend(1)
    if not isinstance(schema, Mapping):
        return set()
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        return set(instance)
    known = _named(instance, schema)
    for word in ("$ref", "$dynamicRef", "$recursiveRef"):
        if word in schema:
            found = checker._resolver.lookup(schema[word])  # noqa: SLF001  (the library's own keywords do it)
            inner = checker.evolve(schema=found.contents, _resolver=found.resolver)
            known |= _evaluated(inner, instance, found.contents)
    for inner in _applied(checker, instance, schema):
        known |= _evaluated(checker, instance, inner)
    return known


def _applied(checker: Any, instance: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the inner schemas for the same value that it fits."""

    def fits(inner: Any) -> bool:
        return next(checker.descend(instance, inner), None) is None

    for word in ("allOf", "anyOf", "oneOf"):
        yield from (inner for inner in schema.get(word, ()) if fits(inner))
    yield from (inner for name, inner in schema.get("dependentSchemas", {}).items() if name in instance)
    if "if" in schema:
        if fits(schema["if"]):
            yield from (schema["if"], schema.get("then"))
        else:
            yield schema.get("else")


def _unique_items(checker: Any, wanted: Any, instance: Any, _schema: Any) -> Found:
    if wanted and checker.is_type(instance, "array"):
        _spend(len(instance) // 8)
        if len(set(map(_key, instance))) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")


def _key(value: Any) -> Any:
    """Return a key that is equal for equal JSON: true differs from 1, and 1 equals 1.0."""
    if isinstance(value, dict):
        return "{}", frozenset((name, _key(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return "[]", tuple(map(_key, value))
    return type(value).__name__ if isinstance(value, bool) else "", value
