"""Unit: the rules for an `input_schema`, the places of its mistakes, and that nothing is ever fetched."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import referencing.exceptions
from jsonschema.exceptions import _WrappedReferencingError

from config.mistakes import ConfigError
from config.modules.spec import spec_from_mapping
from config.schema.keywords import TooManyStepsError
from config.schema.schema import mismatch, problems, validator
from tests.modules_file import load_modules

ROOT = Path(__file__).parents[2]
OUTSIDE = "is outside of this schema and is never fetched"

STEPS = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)}
DOUBLING = {"$defs": {**STEPS, "a60": {"type": "null"}}, "$ref": "#/$defs/a0"}
"""Every reference is followed twice, sixty levels deep."""

WRONG = {
    "type": ({"type": "objekt"}, ("type",), "did you mean 'object'?"),
    "type of a property": ({"properties": {"a": {"type": "strin"}}}, ("properties", "a", "type"), "not a type of JSON"),
    "type that is no text": ({"type": 5}, ("type",), "5 is not a type of JSON"),
    "one of several types": ({"type": ["null", "strin"]}, ("type", 1), "'strin' is not one of"),
    "properties": ({"properties": 5}, ("properties",), "5 is not of type 'object'"),
    "a property called like data": ({"properties": {"const": {"type": "x"}}}, ("properties", "const", "type"), "JSON"),
    "required": ({"required": "a"}, ("required",), "'a' is not of type 'array'"),
    "number": ({"multipleOf": 0}, ("multipleOf",), "0 is less than"),
    "pattern": ({"properties": {"a": {"pattern": "("}}}, ("properties", "a", "pattern"), "missing )"),
    "pattern too large": ({"pattern": "a{99999999999}"}, ("pattern",), "invalid repetition size"),
    "pattern of names": ({"patternProperties": {"[": {}}}, ("patternProperties", "["), "missing ]"),
    "version": ({"$schema": "http://x/y"}, ("$schema",), "not a known version of JSON Schema"),
    "version that is no text": ({"$schema": 5}, ("$schema",), "not a known version of JSON Schema"),
    "reference that is no text": ({"$ref": 5}, ("$ref",), "5 is not of type 'string'"),
    "pointer": ({"allOf": [{"$ref": "#/$defs/x"}]}, ("allOf", 0, "$ref"), "points to nothing in this schema"),
    "anchor": ({"$dynamicRef": "#x"}, ("$dynamicRef",), "points to nothing in this schema"),
    "URL": ({"items": {"$ref": "http://127.0.0.1:9/x"}}, ("items", "$ref"), OUTSIDE),
    "file": ({"$ref": "file:///etc/passwd"}, ("$ref",), OUTSIDE),
    "relative file": ({"$ref": "other.json"}, ("$ref",), OUTSIDE),
    "no URL at all": ({"$ref": "http://["}, ("$ref",), OUTSIDE),
    "URL in data that is pointed at": ({"const": {"$ref": "http://x"}, "$ref": "#/const"}, ("$ref", "$ref"), OUTSIDE),
    "URL of an old version": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "definitions": {"a": {"$ref": "http://q"}}},
        ("definitions", "a", "$ref"),
        OUTSIDE,
    ),
    "itself": ({"$ref": "#"}, (), "endlessly"),
    "itself, below": ({"allOf": [{"$ref": "#/allOf/0"}]}, (), "endlessly"),
    "data that is pointed at": ({"const": {"type": "x"}, "$ref": "#/const"}, ("$ref", "type"), "not a type of JSON"),
    "a pattern in data that is pointed at": (
        {"const": {"pattern": "(?=a)"}, "$ref": "#/const"},
        ("$ref", "pattern"),
        "no look-around",
    ),
    "no schema that is pointed at": ({"required": ["a"], "$ref": "#/required"}, ("$ref",), "not a schema"),
    "look-ahead": ({"pattern": "(?=a)b"}, ("pattern",), "no look-around and no back-references"),
    "back-reference": ({"items": {"pattern": r"(a)\1"}}, ("items", "pattern"), "no back-references"),
    "references that double": (DOUBLING, (), "is too large with its references"),
    "many names": ({"required": [f"p{n}" for n in range(10_001)]}, (), "has more than 10000 values"),
    "itself by another": (
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}},
        (),
        "endlessly",
    ),
}


@pytest.mark.parametrize(("schema", "where", "hint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_and_where(schema, where, hint):
    (found,) = problems(schema)

    assert found.where == where
    assert hint in found.message


RIGHT = {
    "nothing": {},
    "a tree": {"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    "an anchor": {"$defs": {"b": {"$anchor": "q"}}, "$ref": "#q"},
    "a name of its own": {"$id": "http://h/a", "$defs": {"b": {"$id": "b", "type": "null"}}, "$ref": "b"},
    "a dynamic anchor": {"$dynamicAnchor": "n", "properties": {"a": {"$dynamicRef": "#n"}}},
    "the schema of schemas": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    "data that looks like a reference": {"const": {"$ref": "http://x"}, "default": {"pattern": "("}},
    "properties called like keywords": {"properties": {"$ref": {"type": "string"}, "pattern": {"type": "string"}}},
    "an old version": {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]},
}


@pytest.mark.parametrize("schema", RIGHT.values(), ids=RIGHT)
def test_what_is_right(schema):
    assert list(problems(schema)) == []
    validator(schema).is_valid({"a": 1})


def test_the_number_of_mistakes_is_bounded_and_so_is_each():
    many = {"properties": {f"p{n}": {"required": "x" * 10_000} for n in range(50)}}

    found = list(problems(many))

    assert len(found) == 10
    assert all(len(wrong.message) <= 200 for wrong in found)


def test_nesting_without_measure_is_a_mistake():
    schema: dict = {}
    for _ in range(5000):
        schema = {"not": schema}

    assert [wrong.message for wrong in problems(schema)] == ["is nested too deeply"]


def test_mistakes_have_file_line_and_field(tmp_path):
    (tmp_path / "modules.yaml").write_text(
        "modules:\n  - name: m\n    env: inline\n    code: handler = print\n    input_schema:\n      type: object\n"
        "      properties:\n        a:\n          type: strin\n        b: {$ref: 'http://127.0.0.1:9/x'}\n"
        "        c:\n          pattern: (\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_modules(tmp_path / "modules.yaml")

    (only,) = caught.value.mistakes
    assert (only.line, only.field) == (9, "m.input_schema.properties.a.type")

    text = (tmp_path / "modules.yaml").read_text().replace("strin\n", "string\n").replace("pattern: (", "pattern: a")
    (tmp_path / "modules.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_modules(tmp_path / "modules.yaml")
    (only,) = caught.value.mistakes
    assert (only.line, only.field) == (10, "m.input_schema.properties.b.$ref")


def test_modules_that_come_as_json_are_checked_as_well():
    with pytest.raises(ConfigError, match=r"input_schema\.type: 'objekt'"):
        spec_from_mapping(
            {"name": "m", "env": "inline", "code": "handler = print", "input_schema": {"type": "objekt"}},
            base=None,
            allow_path=False,
        )


def test_nothing_is_fetched():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        schema = {"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/x"}
        assert OUTSIDE in next(iter(problems(schema))).message
        with pytest.raises((referencing.exceptions.Unresolvable, _WrappedReferencingError)):
            validator(schema).is_valid({})
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_library_is_imported_for_a_schema_only(tmp_path):
    """It costs a tenth of a second."""
    code = (
        "import json, sys\nfrom config.load import load_settings\n"
        "load_settings({'config': sys.argv[1]}, {})\nprint(json.dumps('jsonschema' in sys.modules))"
    )
    said = []
    for schema in ("", ", input_schema: {type: object}"):
        (tmp_path / "m.yaml").write_text(f"modules: {{m: {{env: inline, code: 'handler = print'{schema}}}}}")
        command = [sys.executable, "-c", code, str(tmp_path / "m.yaml")]
        said.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout))

    assert said == [False, True]


SLOW = "^(a+)+$"
"""Takes Python's `re` longer than anybody waits, for what does not match."""
TEXT = "a" * 60 + "!"


@pytest.mark.parametrize("version", ["draft-07", "draft/2019-09", "draft/2020-12"])
def test_patterns_take_time_in_proportion_to_the_text(version):
    scheme = "http" if version == "draft-07" else "https"
    base = {"$schema": f"{scheme}://json-schema.org/{version}/schema"}
    names: dict = {**base, "patternProperties": {SLOW: {"type": "null"}}}
    closed = {**names, "additionalProperties": False}

    assert list(problems(closed)) == []
    assert mismatch(validator({**base, "pattern": SLOW}), TEXT) is not None
    assert mismatch(validator({**base, "pattern": SLOW}), "aaa") is None
    assert mismatch(validator(names), {TEXT: 1}) is None
    assert mismatch(validator(names), {"aa": 1}) == ("$.aa", "1 is not of type 'null'")
    assert mismatch(validator(closed), {"aa": None}) is None
    assert "not match any of" in mismatch(validator(closed), {TEXT: 1})[1]
    assert mismatch(validator({**names, "additionalProperties": {"type": "null"}}), {"b": 1})[0] == "$.b"
    if version != "draft-07":
        rest = {**base, "allOf": [names], "unevaluatedProperties": False}
        assert mismatch(validator(rest), {"aa": None}) is None
        assert "was unexpected" in mismatch(validator(rest), {TEXT: 1})[1]


def test_a_part_with_a_version_of_its_own_is_checked_in_the_same_way():
    part = {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": SLOW}

    assert mismatch(validator({"properties": {"a": part}}), {"a": TEXT})[0] == "$.a"
    assert mismatch(validator({"properties": {"a": part}}), {"a": "aa"}) is None


@pytest.mark.parametrize(("pattern", "fits"), [(r"^\u00e9$", "\u00e9"), (r"^\\u00e9$", "\\u00e9"), (r"^\d+$", "12")])
def test_patterns_are_those_of_the_standard(pattern, fits):
    assert list(problems({"pattern": pattern})) == []
    assert mismatch(validator({"pattern": pattern}), fits) is None
    assert mismatch(validator({"pattern": pattern}), f"{fits}\n") is not None


DEEP: dict = {}
for _ in range(40):
    DEEP = {"allOf": [DEEP], "unevaluatedProperties": False}
NODE = {"properties": {"a": {"$ref": "#"}}}
NESTED: dict = {}
for _ in range(60):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"allOf": [NODE, NODE]}, NESTED),
        (DEEP, {}),
        ({"items": {"enum": [[n] for n in range(2000)]}}, [[1999]] * 10_000),
        ({"items": {"pattern": "^(a{1,500}){1,2}"}}, ["a" * 10_000] * 1000),
    ],
    ids=["references that double below", "properties that are looked for again", "large enum", "large pattern"],
)
def test_a_check_that_takes_too_long_is_ended(schema, value):
    assert list(problems(schema)) == []
    with pytest.raises(TooManyStepsError):
        mismatch(validator(schema), value)


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, True], True),
        ([1, 1.0], False),
        ([{"a": [1]}, {"a": [1.0]}], False),
        ([[0], [False]], True),
        ([1, "1"], True),
    ],
)
def test_items_are_unique_as_json(items, unique):
    assert (mismatch(validator({"uniqueItems": True}), items) is None) is unique
