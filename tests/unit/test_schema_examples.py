"""Unit: examples of inputs: what is offered to begin with fits the schema."""

from __future__ import annotations

import json

import pytest

from config.schema import InputCheck, examples

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 6}, "age": {"type": "integer", "exclusiveMinimum": 17}},
    "required": ["name"],
}
SCHEMAS = {
    "an object": (PERSON, {"name": "textxx", "age": 18}),
    "no keywords": ({}, None),
    "a choice": ({"enum": ["a", "b"]}, "a"),
    "one value": ({"const": 5}, 5),
    "an example of its own": ({"type": "string", "pattern": "^[A-Z]{3}$", "examples": ["ABC"]}, "ABC"),
    "a default": ({"type": "integer", "default": 7}, 7),
    "bounds": ({"type": "number", "minimum": 2.5, "maximum": 2.6}, 2.5),
    "open bounds": ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, 0.25),
    "a multiple": ({"type": "integer", "multipleOf": 5, "exclusiveMinimum": 10}, 15),
    "only a highest": ({"type": "integer", "maximum": -3}, -3),
    "items": ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, [1, 1, 1]),
    "a list of people": ({"type": "array", "items": PERSON}, [{"name": "textxx", "age": 18}]),
    "first items": ({"prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False}, ["text", True]),
    "one of several": ({"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 2}]}, "te"),
    "several types": ({"type": ["null", "integer"]}, 1),
    "a reference": ({"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, {"name": "textxx", "age": 18}),
    "all of them": (
        {"allOf": [PERSON, {"properties": {"at": {"type": "string", "format": "date"}}, "required": ["at"]}]},
        {"at": "2026-01-31", "name": "textxx", "age": 18},
    ),
    "no room for more": ({**PERSON, "maxProperties": 1}, {"name": "textxx"}),
    "different items": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1]),
}


def offered(schema):
    """Return the first example that fits, as JSON."""
    check = InputCheck(schema)
    return next((v for v in examples(schema) if check.check(json.dumps(v).encode()) is None), "none")


@pytest.mark.parametrize("case", SCHEMAS)
def test_an_example_fits_its_schema(case):
    schema, expected = SCHEMAS[case]

    assert offered(schema) == expected


def test_the_work_is_bounded():
    wide = {f"p{n}": {"$ref": "#"} for n in range(20)}
    deep = {"allOf": [{"$ref": "#"}, {"$ref": "#"}], "type": "object"}

    assert len(json.dumps(list(examples({"type": "object", "properties": wide})))) < 10_000
    assert list(examples(deep)) == [None, None]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^[A-Z]{3}$"},
        {"not": {}},
        {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]},
        {"$ref": "#/$defs/none"},
    ],
)
def test_nothing_is_offered_that_does_not_fit(schema):
    if "$ref" in schema:
        assert list(examples(schema)) == [None, None]
        return
    assert offered(schema) == "none"
