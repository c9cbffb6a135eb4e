"""Unit: schemas from type hints, compared with what Python makes of the same hints, and the fast check by them."""

from __future__ import annotations

import json
import sys
from textwrap import dedent
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.code.hints import MAX_PARTS
from config.code.signatures import input_schema
from config.schema import fit
from config.schema.schema import mismatch, problems, validator

OBJECT, ARRAY, NULL = {"type": "object"}, {"type": "array"}, {"type": "null"}
STR, INT, NUMBER, BOOL = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}


def schema(text: str) -> dict[str, Any] | None:
    """Return the schema from a whole file."""
    found = input_schema(dedent(text).encode(), "handler")
    assert found is None or list(problems(found)) == []
    return found


def hinted(hint: str, before: str = "") -> dict[str, Any] | None:
    return schema(f"{before}\ndef handler(input: {hint}): ...")


NAMES = "from typing import Annotated, Any, Dict, List, Literal, Mapping, Optional, Union\n"


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("None", NULL),
        ("bool", BOOL),
        ("int", INT),
        ("float", NUMBER),
        ("str", STR),
        ("list", ARRAY),
        ("List", ARRAY),
        ("list[int]", ARRAY | {"items": INT}),
        ("List[List[str]]", ARRAY | {"items": ARRAY | {"items": STR}}),
        ("list[object]", ARRAY),
        ("dict", OBJECT),
        ("Mapping", OBJECT),
        ("dict[str, float]", OBJECT | {"additionalProperties": NUMBER}),
        ("Dict[str, Any]", OBJECT),
        ("dict[int, str]", OBJECT),
        ("int | None", {"anyOf": [INT, NULL]}),
        ("Optional[int]", {"anyOf": [INT, NULL]}),
        ("Union[int, str, None, int]", {"anyOf": [INT, STR, NULL]}),
        ("Union[int]", INT),
        ("int | (str | float)", {"anyOf": [INT, STR, NUMBER]}),
        ("Literal['a', 1, True, None, -2]", {"enum": ["a", 1, True, None, -2]}),
        ("Literal[1, True, 1]", {"enum": [1, True]}),
        ("Annotated[int, 'positive']", INT),
        ("'list[int]'", ARRAY | {"items": INT}),
        ("list['int']", ARRAY | {"items": INT}),
    ],
)
def test_hints_are_read(hint, expected):
    assert hinted(hint, NAMES) == expected


@pytest.mark.parametrize(
    "hint",
    [
        *("Any", "object", "complex", "tuple", "set[str]", "frozenset", "type", "Ellipsis", "3"),
        *("Optional[Any]", "Optional", "Union", "Literal", "Literal[b'a']", "Literal[1.5]", "Annotated[int]", "x.y"),
        *("Literal[9223372036854775808]", r"Literal['\ud800']", "Literal[1, Other.A]", "Unknown", "Unknown[int]"),
        *("list()", "'('", "Sequence[str]", "f'int'", "tuple[int, int]", "int | Any", "'not a hint'", "lambda: 1"),
        *("list[int, int] | None | Unknown", "int if x else str"),
    ],
)
def test_what_is_not_certain_says_nothing(hint):
    assert hinted(hint, NAMES) is None


@pytest.mark.parametrize(
    ("before", "hint", "expected"),
    [
        ("import typing", "typing.Optional[int]", {"anyOf": [INT, NULL]}),
        ("import typing as t", "t.List[int]", ARRAY | {"items": INT}),
        ("from typing import List as L", "L[int]", ARRAY | {"items": INT}),
        ("import collections.abc", "collections.abc.Mapping[str, int]", OBJECT | {"additionalProperties": INT}),
        ("from collections import abc", "abc.Mapping", OBJECT),
        ("from collections.abc import Mapping", "Mapping", OBJECT),
        ("from types import NoneType", "NoneType", NULL),
        (
            "try:\n    from typing import List\nexcept ImportError:\n    from typing_extensions import List",
            "List",
            ARRAY,
        ),
        ("Rows = list[int]", "Rows", ARRAY | {"items": INT}),
        ("Rows = 'list[int]'", "Rows | None", {"anyOf": [ARRAY | {"items": INT}, NULL]}),
        ("", "List[int]", None),
        ("", "typing.List[int]", None),
        ("import os as typing", "typing.List", None),
        ("from .typing import List", "List", None),
        ("from mine import List", "List", None),
        ("from mine import int", "int", None),
        ("from typing import List\nfrom mine import List", "List", None),
        ("class int: ...", "int", None),
        ("int = str", "list[int]", ARRAY | {"items": STR}),
        ("int = float\nint = str", "int", None),
        ("def f():\n    global int\n    int = 3", "int", None),
        ("from mine import *", "int", None),
        ("exec('int = str')", "int", None),
        ("Rows = list['Rows']", "Rows", ARRAY),
        ("A = 'B'\nB = 'A'", "A", None),
        ("Rows: type = list[int]", "Rows", None),
        ("from typing import NewType\nUser = NewType('User', int)", "User", None),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int", "A", None),
        ("from enum import Enum\nclass A(Enum):\n    x = 1", "A", None),
        ("from enum import Enum\nclass A(str, Enum):\n    x = 'a'", "A | None", None),
    ],
)
def test_names_are_looked_up_in_the_file(before, hint, expected):
    assert hinted(hint, before) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("async def handler(input: int, context): yield 1", INT),
        ("def handler(input: int, /): ...", INT),
        ("def handler(input: int, *rest: str): ...", INT),
        ("def handler(input: int = None): ...", {"anyOf": [INT, NULL]}),
        ("def handler(input: int = 5): ...", INT),
        ("def handler(input, context: int = None): ...", None),
        ("def handler(input): ...", None),
        ("def handler(*args: int): ...", None),
        ("@decorated\ndef handler(input: int): ...", None),
        ("def handler(input: int): ...\nhandler = wrapped(handler)", None),
        ("handler = lambda input: input\ndef other(input: int): ...", None),
        ("class handler:\n    def handler(input: int): ...", None),
        ("def handler(input: int", None),
        ("if True:\n    def handler(input: int): ...", INT),
    ],
)
def test_the_hint_is_that_of_the_first_parameter(text, expected):
    assert schema(text) == expected


@pytest.mark.skipif(sys.version_info < (3, 12), reason="grammar of Python 3.12")
def test_type_parameters_say_nothing():
    assert schema("def handler[int](input: int): ...") is None
    assert schema("type Rows = list[int]\ndef handler(input: Rows): ...") is None


def test_a_typed_dict_is_read_with_its_ancestors():
    text = '''
        from typing import Annotated, NotRequired, Required, TypedDict
        import typing as t

        class Point(TypedDict):
            """Where."""
            x: float
            y: float
            note: NotRequired[str]
            __hidden: int

        class Place(Point, total=False):
            name: Required[str]
            tags: list[str]
            anything: object
            inner: Annotated["Required[Point]", "inside"]
            y: t.Annotated[int, 1]

        def handler(input: Place | None): ...
        '''
    point = {
        "type": "object",
        "properties": {"x": NUMBER, "y": NUMBER, "note": STR},
        "required": ["x", "y"],
    }
    place = {
        "type": "object",
        "properties": {"x": NUMBER, "y": INT, "note": STR, "name": STR, "tags": ARRAY | {"items": STR}, "inner": point},
        "required": ["x", "name", "inner"],
    }
    assert schema(text) == {"anyOf": [place, NULL]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class A(TypedDict):\n    a: 'list[A]'", OBJECT | {"properties": {"a": ARRAY}, "required": ["a"]}),
        ("class A(TypedDict, total=False):\n    a: int", OBJECT | {"properties": {"a": INT}}),
        (
            "class A(TypedDict, total=NO):\n    a: int\n    b: Required[int]",
            OBJECT | {"properties": {"a": INT, "b": INT}, "required": ["b"]},
        ),
        ("class A(TypedDict): ...", OBJECT),
        ("class A(TypedDict):\n    a: int\n    if B:\n        a: str", OBJECT),
        ("class A(TypedDict, closed=True):\n    a: int", None),
        ("class A(TypedDict, metaclass=M):\n    a: int", None),
        ("@changed\nclass A(TypedDict):\n    a: int", None),
        ("class A(TypedDict, Generic):\n    a: int", None),
        ("class A(B):\n    a: int\nclass B: ...", None),
        ("class A(B):\n    a: int\nclass B(A):\n    a: int", None),
        ("class A:\n    a: int", None),
        ("class A(TypedDict):\n    a: int\nclass A(TypedDict):\n    b: int", None),
        ("A = TypedDict('A', {'a': int})", None),
        ("class TypedDict: ...\nclass A(TypedDict):\n    a: int", None),
    ],
)
def test_a_class_says_something_where_it_is_plainly_a_typed_dict(text, expected):
    before = "" if text.startswith("class TypedDict") else "from typing import Required, TypedDict\n"
    assert hinted("A", before + text) == expected


def test_hints_without_measure_say_nothing():
    assert hinted("list[" * 300 + "int" + "]" * 300) in (
        None,
        ARRAY | {"items": hinted("list[" * 14 + "list" + "]" * 14)},
    )
    assert hinted(" | ".join(["int", *(f"list[{n}]" for n in range(MAX_PARTS))])) is None
    wide = "from typing import TypedDict\nclass A0(TypedDict):\n    x: int\n"
    for n in range(1, 15):
        wide += f"class A{n}(TypedDict):\n" + "".join(f"    f{k}: A{n - 1}\n" for k in range(10))
    assert hinted("A14", wide) is None
    bases = "from typing import TypedDict\nclass A0(TypedDict):\n    x: int\n"
    for n in range(1, 15):
        bases += f"class A{n}({', '.join([f'A{n - 1}'] * 50)}):\n    x: int\n"
    assert hinted("A14", bases) is None


@given(st.text(max_size=60))
def test_no_hint_makes_it_fail(text):
    input_schema(f"from typing import *\ndef handler(input: {text}): ...".encode("utf-8", "replace"), "handler")
    input_schema(f"def handler(input: {text!r}): ...".encode("utf-8", "replace"), "handler")


# -- values ----------------------------------------------------------------------------------------------------------

PLAIN = ["None", "bool", "int", "float", "str", "list", "dict", "Any", "Literal['a', 1, None]", "Literal[True, -3]"]
HINTS = st.recursive(
    st.sampled_from([(name,) for name in PLAIN]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["list[{}]", "dict[str, {}]", "Optional[{}]", "Annotated[{}, 'x']", "'{}'"]), inner),
        st.tuples(st.sampled_from(["Union[{}, {}]", "row"]), inner, inner),
    ),
    max_leaves=4,
)
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -3, 2**70, 1.5, "a", "x", ""]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=5,
)


def written(hint: tuple, classes: list[str]) -> str:
    """Return a hint as it stands in a file, and put the classes that it needs before it."""
    form, *inner = hint
    texts = [written(each, classes) for each in inner]
    if form == "row":
        name = f"Row{len(classes)}"
        classes.append(f"class {name}(TypedDict):\n    a: {texts[0]}\n    b: NotRequired[{texts[1]}]\n")
        return name
    if form == "'{}'":
        return repr(texts[0])
    return form.format(*texts)


def fits(value: Any, hint: tuple) -> bool:  # noqa: C901, PLR0911  (one for each form)
    """Return whether a value of JSON fits a hint, as type checkers decide."""
    form, *inner = hint
    match form:
        case "Any":
            return True
        case "None":
            return value is None
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "bool" | "str" | "list" | "dict":
            return isinstance(value, {"bool": bool, "str": str, "list": list, "dict": dict}[form])
        case "Literal['a', 1, None]":
            return value in ("a", None) or (value == 1 and not isinstance(value, bool))
        case "Literal[True, -3]":
            return value is True or value == -3
        case "list[{}]":
            return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
        case "dict[str, {}]":
            return isinstance(value, dict) and all(fits(each, inner[0]) for each in value.values())
        case "Optional[{}]":
            return value is None or fits(value, inner[0])
        case "row":
            known = isinstance(value, dict) and "a" in value and fits(value["a"], inner[0])
            return known and ("b" not in value or fits(value["b"], inner[1]))
    return any(fits(value, each) for each in inner)


@settings(max_examples=500, deadline=None)
@given(HINTS, st.lists(VALUES, min_size=1, max_size=4))
def test_inputs_pass_that_the_hint_allows_and_no_others(hint, values):
    classes: list[str] = []
    said = written(hint, classes)
    before = "from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict, Union\n" + "".join(classes)
    found = hinted(said, before) or {}
    fast = fit.decoder(found)
    for value in values:
        right = fits(value, hint)
        assert (mismatch(validator(found), value) is None) == right
        if fast is not None:
            assert fitting(fast[1], value) == right


def fitting(fast: msgspec.json.Decoder[Any], value: Any) -> bool:
    try:
        fast.decode(json.dumps(value).encode())
    except msgspec.MsgspecError:
        return False
    return True


# -- the fast look ---------------------------------------------------------------------------------------------------

WORDS = st.recursive(
    st.sampled_from(
        [{}, NULL, BOOL, INT, NUMBER, STR, ARRAY, OBJECT, {"enum": ["a", 1, None]}, {"enum": [True]}, {"minimum": 1}]
    ),
    lambda inner: st.one_of(
        st.builds(lambda items: ARRAY | {"items": items}, inner),
        st.builds(lambda values: OBJECT | {"additionalProperties": values}, inner),
        st.builds(
            lambda properties, required: OBJECT | {"properties": properties, "required": required},
            st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            st.lists(st.sampled_from("abc"), unique=True, max_size=2),
        ),
        st.builds(lambda schemas: {"anyOf": schemas}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=4,
)
TEXTS = st.one_of(
    VALUES.map(json.dumps),
    st.sampled_from(
        ['{"a": 1, "a": 1}', '{"a": 1, "a": "x"}', '{"a": "x", "a": 1, "b": null}', "1.0", "-0", "1e2", "[1.0, 2]"]
    ),
)


@settings(max_examples=500, deadline=None)
@given(WORDS, st.lists(TEXTS, min_size=1, max_size=4))
def test_what_the_fast_look_lets_pass_fits_the_schema(words, texts):
    fast = fit.decoder(words)
    for text in texts if fast is not None else ():
        try:
            fast[1].decode(text)
        except msgspec.MsgspecError:
            continue
        assert mismatch(validator(words), json.loads(text)) is None


@pytest.mark.parametrize(
    "words",
    [
        {"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": {}, "additionalProperties": {}},
        {"type": ["string", "null"], "maxLength": 3},
        {"type": ["nothing"]},
        {"type": []},
        {"anyOf": [{"type": "number"}, {"enum": ["a", 1]}]},
        {"type": "string", "maxLength": 3},
        {"type": "array", "items": True},
        {"type": "array", "minItems": 1},
        {"type": "nothing"},
        {"type": {}},
        {"anyOf": []},
        {"anyOf": {}},
        {"enum": [1.5]},
        {"enum": {}},
        {"properties": {"a": {}}},
        {"type": "object", "properties": []},
        {"type": "object", "required": {}},
        {"anyOf": [OBJECT | {"properties": {"a": INT}}, OBJECT | {"properties": {"b": INT}}]},
        {"$ref": "#"},
    ],
)
def test_schemas_that_say_more_are_not_for_the_fast_look(words):
    assert fit.decoder(words) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"rows": [{"a": "x"}]}', ("$.rows[0].a", "Expected `int`, got `str`")),
        ("3", ("$", "Expected `object`, got `int`")),
        ('{"rows": [{}]}', ("$.rows[0]", "Object missing required field `a`")),
    ],
)
def test_the_fast_look_tells_the_place(text, expected):
    row = OBJECT | {"properties": {"a": INT}, "required": ["a"]}
    fast = fit.decoder(OBJECT | {"properties": {"rows": ARRAY | {"items": row}}})
    assert fast is not None
    with pytest.raises(msgspec.MsgspecError) as caught:
        fast[1].decode(text)
    assert fit.told(caught.value) == expected
