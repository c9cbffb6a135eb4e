"""Unit: forms from schemas: every value that a form shows comes back the same, and what is typed becomes JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.ui.forms import NotShownError, Widget, added, fields_of, flatten, pretty, read, removed, shape_of, start_of

FILE = {
    "type": "object",
    "properties": {"$file": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}},
    "required": ["$file"],
}
STORED = {"$file": {"id": "sha256:" + "a" * 64, "name": "a.csv", "size": 3}}
ROW = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "price": {"type": "number"}, "unit": {"enum": ["piece", "kg"]}},
    "required": ["name", "price"],
}
ORDER = {
    "type": "object",
    "properties": {
        "rows": {"type": "array", "items": ROW, "minItems": 1},
        "due": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "paid": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
        "a/b~c": {"type": "integer", "default": 3},
        "scan": {"anyOf": [{"type": "string"}, FILE]},
        "to": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/place"}]},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "minItems": 2,
            "maxItems": 2,
        },
        "more": {},
    },
    "required": ["rows"],
    "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
}


def value_of(shape, posted):
    found = read(shape, posted)
    return json.loads(found.data), dict(found.wrong)


# -- there and back --------------------------------------------------------------------------------------------------

names = st.text("abc/~ $0", min_size=1, max_size=4)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
leaves = st.one_of(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "maxLength": 1000},
            {"type": "integer"},
            {"type": "number"},
            {"type": "boolean"},
            {"type": ["string", "null"]},
            {"type": ["boolean", "null"]},
            {"type": ["integer", "null"], "default": 5},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "time"},
            {"type": "string", "format": "date-time"},
            {"enum": ["a", 1, None, True]},
            {"const": "x"},
            {"type": "object"},
            {"type": "array"},
            {"anyOf": [{"type": "string"}, FILE]},
            {"anyOf": [FILE, {"type": "null"}]},
            {},
        ]
    )
)


def nested(inner):
    return st.one_of(
        st.builds(lambda item: {"type": "array", "items": item}, inner),
        st.builds(
            lambda properties, odd: {"type": "object", "properties": properties, "required": list(properties)[odd:]},
            st.dictionaries(names, inner, min_size=1, max_size=3),
            st.integers(0, 2),
        ),
        st.builds(lambda one: {"anyOf": [one, {"type": "null"}]}, inner),
        st.builds(lambda one, other: {"oneOf": [one, other]}, inner, inner),
        st.builds(
            lambda items: {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)},
            st.lists(inner, min_size=1, max_size=2),
        ),
    )


schemas = st.recursive(leaves, nested, max_leaves=5)
ABSENT = object()
PLAIN = {
    "string": st.text(max_size=6),
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "null": st.none(),
}


def values_of(schema):
    """Return values that fit a schema."""
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of(*map(values_of, choices))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if "properties" in schema:
        return st.just(STORED) if "$file" in schema["properties"] else objects_of(schema)
    if "prefixItems" in schema:
        return st.tuples(*map(values_of, schema["prefixItems"])).map(list)
    if "items" in schema:
        return st.lists(values_of(schema["items"]), max_size=3)
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    return st.one_of(*(PLAIN.get(kind, anything) for kind in types)) if types else anything


def objects_of(schema):
    parts = {
        name: values_of(part) if name in schema["required"] else st.just(ABSENT) | values_of(part)
        for name, part in schema["properties"].items()
    }
    return st.fixed_dictionaries(parts).map(lambda made: {n: v for n, v in made.items() if v is not ABSENT})


@given(schemas.flatmap(lambda schema: st.tuples(st.just(schema), values_of(schema))))
@settings(max_examples=60, deadline=None)
def test_a_value_that_a_form_shows_comes_back_the_same(case):
    schema, value = case
    shape = shape_of(schema)
    try:
        posted = flatten(shape, value)
    except NotShownError:
        return
    drawn = fields_of(shape, posted)
    found = read(shape, posted)

    assert json.loads(found.data) == value
    assert json.loads(pretty(found.value)) == value
    assert not found.wrong
    assert len({each.id for each in drawn.walk()}) == len(list(drawn.walk()))


@given(schemas, st.dictionaries(st.text("inuselpckbak/01~", max_size=8), st.text(max_size=5), max_size=6))
@settings(max_examples=40, deadline=None)
def test_any_post_is_read_and_drawn(schema, posted):
    shape = shape_of(schema)
    found = read(shape, {**start_of(shape), **posted})

    json.loads(found.data)
    fields_of(shape, posted, found.wrong)


def test_a_whole_order_comes_back():
    value = {
        "rows": [{"name": "tea", "price": 2.5, "unit": "kg"}, {"name": "", "price": 1}],
        "due": "2027-01-31",
        "at": "2027-01-31T09:30:00+09:00",
        "paid": False,
        "note": None,
        "a/b~c": 12345678901234567890123,
        "scan": STORED,
        "to": {"city": "Seoul"},
        "pair": [1, "one"],
        "more": {"any": ["thing"]},
    }
    shape = shape_of(ORDER)

    assert value_of(shape, flatten(shape, value)) == (value, {})


# -- what is typed ---------------------------------------------------------------------------------------------------


def typed(schema, **posted):
    """Return what a form of one field reads when this is posted for it."""
    shape = shape_of({"type": "object", "properties": {"x": schema}})
    return value_of(shape, {"use": "1", **{f"{kind}/x": text for kind, text in posted.items()}})


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, " +12 ", 12),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "string"}, " kept ", " kept "),
        ({"type": "string"}, "line\r\nline", "line\nline"),
        ({"type": "boolean"}, "true", True),
        ({"enum": ["a", 1]}, "1", 1),
        ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
        ({"type": "string", "format": "date"}, "2027-01-31", "2027-01-31"),
    ],
)
def test_texts_become_values_of_their_types(schema, text, value):
    assert typed(schema, **{"in": text}) == ({"x": value}, {})


def test_a_moment_has_the_offset_that_was_given():
    moment = {"type": "string", "format": "date-time"}

    assert typed(moment, **{"in": "2027-01-31T09:30", "zone": "+09:00"}) == ({"x": "2027-01-31T09:30+09:00"}, {})


@pytest.mark.parametrize(
    ("schema", "text", "said"),
    [
        ({"type": "integer"}, "1.5", "whole number"),
        ({"type": "number"}, "12,5", "number"),
        ({"type": "object"}, "{a: 1}", "JSON"),
        ({"type": "boolean"}, "[" * 2000, "JSON"),
    ],
)
def test_what_is_wrong_is_said_at_its_field_and_left_out(schema, text, said):
    value, wrong = typed(schema, **{"in": text})

    assert value == {}
    assert list(wrong) == ["$.x"]
    assert said in wrong["$.x"]


def test_an_empty_field_is_no_value_unless_the_schema_wants_one():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": ["string", "null"]}},
        "required": ["b", "c"],
    }

    assert value_of(shape_of(schema), {"use": "1", "in/a": "", "in/b": "", "in/c": ""}) == (
        {"c": None},
        {"$.b": "fill in this field"},
    )


def test_a_group_that_is_left_out_has_no_mistakes():
    place = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    shape = shape_of({"type": "object", "properties": {"to": place, "from": place}, "required": ["from"]})

    value, wrong = value_of(shape, {"use": "1", "in/to/city": "", "use/from": "1", "in/from/city": ""})
    assert value == {"from": {}}
    assert list(wrong) == ["$.from.city"]


def test_a_group_that_was_filled_in_without_its_mark_counts():
    place = {"type": "object", "properties": {"city": {"type": "string"}}}
    shape = shape_of({"type": "object", "properties": {"to": place}})

    assert value_of(shape, {"use": "1", "in/to/city": "Seoul"}) == ({"to": {"city": "Seoul"}}, {})


def test_an_alternative_needs_no_mark_besides_its_choice():
    shape = shape_of(ORDER)
    (to,) = (each for each in fields_of(shape, {}).fields if each.name == "to")

    assert [each.there for each in to.fields] == [True, True]


def test_a_form_begins_with_the_defaults_and_what_is_required():
    shape = shape_of(ORDER)

    assert value_of(shape, start_of(shape))[0] == {"rows": [{}], "a/b~c": 3}


def test_a_schema_that_holds_itself_ends():
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "n": {"type": "integer"}}}
    shape = shape_of(tree)

    assert value_of(shape, flatten(shape, {"left": {"n": 1}})) == ({"left": {"n": 1}}, {})


@pytest.mark.parametrize(
    "schema", [None, {}, {"$ref": "#"}, {"$ref": "other.json"}, {"type": 3}, {"anyOf": 1}, {"enum": 1}]
)
def test_an_odd_schema_is_a_field_for_json(schema):
    assert shape_of(schema).widget is Widget.JSON


# -- lists without a script ------------------------------------------------------------------------------------------


def test_items_are_added_with_their_defaults_and_taken_away():
    item = {
        "type": "object",
        "properties": {"n": {"type": "integer", "default": 7}, "tags": {"type": "array", "items": {"type": "string"}}},
    }
    shape = shape_of({"type": "object", "properties": {"rows": {"type": "array", "items": item}}})
    posted = flatten(shape, {"rows": [{"n": 1, "tags": ["a"]}, {"n": 2}, {"n": 3, "tags": ["b", "c"]}]})

    posted = added(shape, posted, "/rows")
    assert value_of(shape, posted)[0]["rows"][3] == {"n": 7}
    posted = removed(posted, "/rows/1")
    posted = removed(posted, "/rows/1/tags/0")
    assert value_of(shape, posted)[0] == {"rows": [{"n": 1, "tags": ["a"]}, {"n": 3, "tags": ["c"]}, {"n": 7}]}


def test_a_list_that_is_not_there_neither_grows_nor_shrinks():
    shape = shape_of(ORDER)
    posted = start_of(shape)

    assert added(shape, posted, "/nothing") == posted
    assert added(shape, posted, "/due") == posted
    assert removed(posted, "/rows/7") == posted
    assert removed(posted, "/due") == posted


# -- errors at their fields ------------------------------------------------------------------------------------------


def test_a_failure_of_the_check_is_shown_at_its_field():
    shape = shape_of(ORDER)
    posted = flatten(shape, {"rows": [{"name": "tea", "price": 1}, {"name": "rice", "price": 2}]})
    drawn = fields_of(shape, posted, {"$.rows[1].price": "is less than the minimum", "$.more.deep[3]": "is odd"})
    found = {each.path: each.error for each in drawn.walk() if each.error}

    assert found == {"$.rows[1].price": "is less than the minimum", "$.more": "$.more.deep[3]: is odd"}


def test_a_failure_without_a_field_is_shown_at_the_whole():
    assert (
        fields_of(shape_of(ORDER), {}, {"$": "'rows' is a required property"}).error == "'rows' is a required property"
    )


def test_bounds_descriptions_and_defaults_are_told():
    schema = {"type": "integer", "minimum": 1, "maximum": 9, "default": 3, "description": "How many.", "title": "Count"}
    (drawn,) = fields_of(shape_of({"type": "object", "properties": {"n": schema}}), {}).fields

    assert (drawn.title, drawn.description, drawn.default) == ("Count", "How many.", "3")
    assert drawn.bounds == {"minimum": 1, "maximum": 9}
