"""Unit: a schema as a part of a larger document keeps its meaning."""

from __future__ import annotations

import pytest
from jsonschema.validators import Draft202012Validator

from config.schema.embedding import embedded
from config.schema.schema import problems, validator

BASE = "#/components/schemas/input.x"
OLD = "http://json-schema.org/draft-07/schema#"
VALUES = [
    *(None, True, 0, 1, 3.5, "", "a", "abcd", [], [1], ["a", 1], [[["a"]]], {}, {"n": 1}, {"n": "a"}, {"n": {"n": {}}}),
    *({"a/b": 1}, {"$ref": "a"}, {"$ref": 1}, {"child": {"child": {"n": 1}}}, {"child": {"child": {"n": "a"}}}),
]
SAME = [
    {"type": "object", "properties": {"n": {"$ref": "#/$defs/a~1b%25c"}}, "$defs": {"a/b%c": {"type": "integer"}}},
    {"properties": {"n": {"$ref": "#"}}, "additionalProperties": False, "type": "object"},
    {"properties": {"$ref": {"$ref": "#/$defs/$ref"}}, "$defs": {"$ref": {"type": "string"}}},
    {"items": {"$ref": "#word"}, "$defs": {"w": {"$anchor": "word", "type": "string"}}},
    {
        "$id": "https://example.org/a",
        "items": {"$ref": "b#/$defs/k"},
        "$defs": {"q": {"$id": "b", "$defs": {"k": {"$ref": "#/$defs/l"}, "l": {"type": "integer"}}}},
    },
    {"$dynamicAnchor": "node", "type": ["object", "integer"], "properties": {"child": {"$dynamicRef": "#node"}}},
    {"$schema": OLD, "properties": {"n": {"$ref": "#/definitions/a"}}, "definitions": {"a": {"maximum": 0}}},
    {"prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
    {"const": {"$ref": "a"}},
    {"discriminator": {"propertyName": "n", "mapping": {"a": "#/$defs/a"}}, "$defs": {"a": {}}, "required": ["n"]},
]
NOT_THE_SAME = [
    {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 3, "exclusiveMaximum": True},
    {"$schema": OLD, "items": [{"type": "string"}]},
    {"$schema": OLD, "properties": {"n": {"$ref": "#/definitions/a", "maximum": 0}}, "definitions": {"a": {}}},
    {"$schema": OLD, "prefixItems": [{"type": "string"}]},
    {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    {"$ref": "#/$defs/a", "$defs": {"a": True}},
    {"$dynamicRef": "#a", "$defs": {"x": {"$id": "x", "$dynamicAnchor": "a"}, "y": {"$dynamicAnchor": "a"}}},
]


@pytest.mark.parametrize("schema", SAME)
def test_it_means_the_same(schema):
    assert list(problems(schema)) == []
    found = embedded(schema, BASE)
    document = {"$ref": BASE, "components": {"schemas": {"input.x": found}}}

    Draft202012Validator.check_schema(found)
    alone, inside = validator(schema), Draft202012Validator(document)
    answers = [alone.is_valid(value) for value in VALUES]
    assert [inside.is_valid(value) for value in VALUES] == answers
    assert set(answers) == {True, False}, "the values tell nothing"
    assert "discriminator" not in found


@pytest.mark.parametrize("schema", NOT_THE_SAME)
def test_what_would_mean_something_else_is_left_out(schema):
    assert list(problems(schema)) == []
    assert embedded(schema, BASE) is None


def test_the_schema_of_the_module_stays_as_it_is():
    schema = {"$id": "https://example.org/a", "properties": {"n": {"$ref": "#"}}}

    assert embedded(schema, BASE) == {"properties": {"n": {"$ref": BASE}}}
    assert schema == {"$id": "https://example.org/a", "properties": {"n": {"$ref": "#"}}}


def test_one_part_at_two_places_is_found_at_one_of_them():
    """So it is with the anchors of YAML."""
    part = {"type": "integer"}
    schema = {"properties": {"a": part, "b": part, "c": {"$ref": "#/properties/b"}}}

    assert embedded(schema, BASE)["properties"]["c"] == {"$ref": f"{BASE}/properties/a"}
