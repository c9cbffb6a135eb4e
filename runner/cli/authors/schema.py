"""The JSON Schema of a modules file, for editors: made of the tables by which the runner reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from config.descriptions import DESCRIPTIONS
from config.load import SETTINGS, Setting, is_optional, limits_of, reader_of
from config.modules import fields_by_kind, module_shape
from config.shapes import Schema, Values, bounded, nullable, shape_of
from protocol.model import Isolation, Kind

_EMPTY: Final[Schema] = {"enum": [None, "", [], {}]}
"""Values that count as not given."""


def modules_schema() -> dict[str, Any]:
    """Return the schema of a modules file.

    Every file that the runner accepts matches it. Mistakes that it does not find are those between fields of other
    modules, and in code, paths and requirements.
    """
    fields = module_shape()
    properties = {name: shape for name, shape in fields["properties"].items() if name != "name"}
    module = {**fields, "properties": properties, "required": [], **_rules()}
    listed = {**module, "properties": fields["properties"], "required": ["name"]}
    named = {
        "type": "object",
        "propertyNames": fields["properties"]["name"],
        "additionalProperties": {"$ref": "#/$defs/named"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Operato Runner: modules file",
        "type": "object",
        "properties": {
            "modules": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/module"}}, named, {"type": "null"}]},
            "runner": {"anyOf": [_settings(), {"type": "null"}]},
        },
        "additionalProperties": False,
        "$defs": {"module": listed, "named": {**module, "properties": fields["properties"]}},
    }


def _rules() -> dict[str, Any]:
    """Return the rules between the fields of a module: its code, and the fields that its kind of environment has."""
    by_kinds: dict[tuple[Kind, ...], list[str]] = {}
    for name, kinds in fields_by_kind().items():
        by_kinds.setdefault(tuple(kinds), []).append(name)
    only = [_beyond(kinds, dict.fromkeys(names, _EMPTY)) for kinds, names in by_kinds.items()]
    only.append(_beyond((Kind.INLINE,), {"isolation": {"not": {"const": Isolation.NONE}}}))
    code, path, image = (_given(name, {"not": _EMPTY}) for name in ("code", "path", "image"))
    # The block of a file may have the kind of environment.
    block = _given("code", {"type": "string", "pattern": "# /// script"})
    kind = {"anyOf": [{"required": ["env"]}, block, path]}
    return {"allOf": [*only, {"not": {"allOf": [code, path]}}, {"anyOf": [code, path, image]}, kind]}


def _beyond(kinds: tuple[Kind, ...], properties: Mapping[str, Schema]) -> Schema:
    """Return the schema of what fields must be for all other kinds of environment."""
    others = [kind for kind in Kind if kind not in kinds]
    return {"if": _given("env", {"enum": others}), "then": {"properties": dict(properties)}}


def _given(name: str, shape: Schema) -> Schema:
    return {"properties": {name: shape}, "required": [name]}


def _settings() -> Schema:
    properties = {name: _setting(setting) for name, setting in SETTINGS.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _setting(setting: Setting) -> Schema:
    limits, options = limits_of(setting)
    shape: Schema = {"enum": [*options]} if options else shape_of(reader_of(setting)) or Values.FILLED
    bounds: Mapping[str, float] = {} if limits is None else limits.keywords
    shape = bounded(shape, bounds)
    if "on" in options or "off" in options:
        shape = {"enum": [*options, True, False]}
    shape = nullable(shape) if is_optional(setting) else shape
    return shape | ({"description": DESCRIPTIONS[setting.name]} if setting.name in DESCRIPTIONS else {})
