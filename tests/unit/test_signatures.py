"""Unit: schemas from the parameters of handlers, compared with what the guest takes, and the fast check by them."""

from __future__ import annotations

import ast
import inspect
import json
import time
from textwrap import dedent

import pytest

from config.code import input_schema
from config.code.docstrings import descriptions
from config.schema import InputCheck, examples, problems
from protocol.authors import plan
from tests.unit.test_typed import NOT_READ, PLAIN, READ, SETUP, TYPED

STR, INT, NUMBER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "null"}
FILE = {
    "type": "object",
    "properties": {"$file": {"type": "object", "properties": {"id": STR}, "required": ["id"]}},
    "required": ["$file"],
}
TEXT_OR_FILE = {"anyOf": [STR, FILE]}
CLOSED = {"additionalProperties": False}


def schema(text):
    found = input_schema(dedent(text).encode(), "handler")
    assert found is None or list(problems(found)) == []
    return found


def of(parameters, before=""):
    return schema(f"{before}\ndef handler({parameters}): ...")


def an_object(properties, *required):
    kind = {"required": list(required)} if required else {}
    return {"type": "object" if required else ["object", "null"], "properties": properties} | kind | CLOSED


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("a", an_object({"a": {}}, "a")),
        ("a: int, b: str = 'x'", an_object({"a": INT, "b": STR | {"default": "x"}}, "a")),
        ("a: int = 3, *, context", an_object({"a": INT | {"default": 3}})),
        ("a: int = None", an_object({"a": {"anyOf": [INT, NULL], "default": None}})),
        ("a=None", an_object({"a": {"default": None}})),
        ("a=f()", an_object({"a": {}})),
        ("a=float('nan'), b=-1, c=(1, 2), d={'a': [1]}", None),
        ("a, _b=3", an_object({"a": {}}, "a")),
        ("", an_object({})),
        ("context", an_object({})),
        ("*, key: int", an_object({"key": INT}, "key")),
        ("a: int, **more: str", {**an_object({"a": INT}, "a"), "additionalProperties": STR}),
        ("input: int, size: int = 3", an_object({"input": INT, "size": INT | {"default": 3}}, "input")),
        ("a, b, /, c", an_object({"a": {}, "b": {}, "c": {}}, "a", "b", "c")),
        ("input: bytes", TEXT_OR_FILE),
        ("input: 'bytes | None'", {"anyOf": [STR, FILE, NULL]}),
        ("input: str", STR),
        ("input: list[bytes]", {"type": "array"}),
        ("input", None),
        ("input, context", None),
        ("input, ctx", None),
        ("input: int, ctx: 'operato.Context'", INT),
        ("input: int, ctx: object", INT),
        (
            "input: int, other: list[int]",
            an_object({"input": INT, "other": {"type": "array", "items": INT}}, "input", "other"),
        ),
        (", ".join(f"a{n}" for n in range(300)), None),
        ("_event: int", INT),
        ("event: int, /", INT),
        ("*args", None),
        ("input, **more", None),
    ],
)
def test_parameters_become_an_object(parameters, expected):
    found = of(parameters)
    if parameters.startswith("a=float"):
        expected = an_object({"a": {}, "b": {"default": -1}, "c": {"default": [1, 2]}, "d": {"default": {"a": [1]}}})

    assert found == expected


@pytest.mark.parametrize(
    ("before", "hint", "expected"),
    [
        ("from operato import File", "File", TEXT_OR_FILE),
        ("import operato", "operato.File | None", {"anyOf": [STR, FILE, NULL]}),
        ("import operato as o", "list[o.File]", {"type": "array", "items": TEXT_OR_FILE}),
        ("from mine import File", "File", {}),
        ("", "bytes", TEXT_OR_FILE),
        ("from pathlib import Path", "Path", TEXT_OR_FILE),
        ("import datetime", "datetime.datetime", STR | {"format": "date-time"}),
        ("import datetime as dt", "dt.date", STR | {"format": "date"}),
        ("from datetime import time", "time", STR | {"format": "time"}),
        ("from uuid import UUID", "UUID", STR | {"format": "uuid"}),
        ("from decimal import Decimal", "Decimal", {"type": ["string", "number"], "format": "decimal"}),
        ("from typing import Sequence", "Sequence[int]", {"type": "array", "items": INT}),
        ("", "set[int]", {"type": "array", "items": INT}),
        ("", "tuple[int, ...]", {"type": "array", "items": INT}),
        ("", "tuple[int, str]", {"type": "array", "prefixItems": [INT, STR], "minItems": 2, "maxItems": 2}),
        ("", "dict[int, float]", {"type": "object", "additionalProperties": NUMBER}),
        ("from typing import NewType\nId = NewType('Id', int)", "Id", INT),
        ("from enum import Enum\nclass E(Enum):\n    A = 'a'\n    B = 2\n    _x = 3", "E", {"enum": ["a", 2]}),
        ("import enum\nclass E(str, enum.Enum):\n    A = 'a'", "E", {"enum": ["a"]}),
        ("from enum import Enum, auto\nclass E(Enum):\n    A = auto()", "E", {}),
        ("class E: ...", "E", {}),
        ("class E(Base): ...", "E", {}),
    ],
)
def test_converted_hints(before, hint, expected):
    assert of(f"it: {hint}", before) == an_object({"it": expected}, "it")


def test_dataclasses_and_named_tuples():
    before = """
from dataclasses import dataclass, field, InitVar
from typing import ClassVar, NamedTuple
@dataclass(frozen=True)
class Base:
    name: str
    count: int = 0
@dataclass
class Row(Base):
    price: float = field(default=1.5)
    kids: list["Row"] = field(default_factory=list)
    made: int = field(init=False)
    all: ClassVar[int] = 3
    width: InitVar[int] = None
    must: bool = field(kw_only=True)
class Point(NamedTuple):
    x: float
    y: float = 0.0
"""
    row = an_object(
        {
            "name": STR,
            "count": INT | {"default": 0},
            "price": NUMBER | {"default": 1.5},
            "kids": {"type": "array"},
            "width": {"anyOf": [INT, NULL], "default": None},
            "must": {"type": "boolean"},
        },
        "name",
        "must",
    )
    point = an_object({"x": NUMBER, "y": NUMBER | {"default": 0.0}}, "x")

    assert of("row: Row, point: Point", before) == an_object({"row": row, "point": point}, "row", "point")


@pytest.mark.parametrize(
    "text",
    [
        "@dataclass(init=False)\nclass A:\n    x: int",
        "@dataclass\n@other\nclass A:\n    x: int",
        "@dataclass\nclass A(Other):\n    x: int",
        "@dataclass\nclass A:\n    x: int\n    def __init__(self): ...",
    ],
)
def test_a_dataclass_that_is_not_certain_accepts_everything(text):
    assert of("a: A", f"from dataclasses import dataclass\n{text}") == an_object({"a": {}}, "a")


def test_a_member_of_an_enum_is_a_default():
    before = "from enum import Enum\nclass E(Enum):\n    A = 'a'"

    assert of("it: E = E.A", before) == an_object({"it": {"enum": ["a"], "default": "a"}})
    assert of("it: E = E.B", before) == an_object({"it": {"enum": ["a"]}})


def test_a_request_alone_is_the_whole_input():
    request = {"type": "object", "properties": {"$request": {"type": "object"}}, "required": ["$request"]}

    assert of("request: Request", "from operato import Request") == request
    assert of("r: 'operato.Request', context", "import operato") == request
    both = of("r: Request, size: int", "from operato import Request")
    assert both == an_object({"r": request, "size": INT}, "r", "size")


GOOGLE = """Do it.

Args:
    a: The first.
        b: not one of them
    *b (int, optional): The second: with a colon.

Returns:
    c: not one of them
"""
SPHINX = ":param a: The first.\n:param int b: The second: with a colon.\n:returns c: not one of them"
NUMPY = """Do it.

Parameters
----------
a
    The first.
    c : not one of them
b : int
    The second: with a colon.

Returns
-------
c : int
    not one of them
"""


@pytest.mark.parametrize("text", [GOOGLE, SPHINX, NUMPY], ids=["google", "sphinx", "numpy"])
def test_descriptions_of_parameters(text):
    assert descriptions(text) == {"a": "The first.", "b": "The second: with a colon."}
    found = schema(f"def handler(a, b: int = 1):\n    {text!r}")
    assert found["properties"]["a"] == {"description": "The first."}
    assert found["properties"]["b"] == INT | {"default": 1, "description": "The second: with a colon."}


def test_odd_docstrings():
    assert descriptions("") == descriptions("Args:\n  a:\n\n:param: x\nParameters\n---") == {}
    assert descriptions("Args:\n    a: \ud800") == {"a": "?"}
    assert (
        len(schema(f"def handler(a):\n    'It.\\nArgs:\\n    a: {'x' * 900}'")["properties"]["a"]["description"]) == 500
    )


HOSTILE = {
    "many bases": "from dataclasses import dataclass\n"
    + "".join(f"@dataclass\nclass A{n}(A{n + 1}, A{n + 2}):\n    x: int\n" for n in range(60))
    + "def handler(a: A0, b): ...",
    "many members": "from enum import Enum\nclass E(Enum):\n"
    + "".join(f"    a{n} = {n}\n" for n in range(6000))
    + f"def handler({', '.join(f'p{n}: E = E.a1' for n in range(200))}): ...",
    "a large default": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: list = ["
    + "1," * 40_000
    + f"]\ndef handler({', '.join(f'p{n}: A' for n in range(150))}): ...",
    "a long line": 'def handler(a):\n    """It.\n\n    Args:\n        a' + " " * 100_000 + '\n    """',
    "a long field": 'def handler(a):\n    """It.\n\n    :param' + " a" * 50_000 + '\n    """',
    "spaces in a field": 'def handler(a):\n    """It.\n\n    :param' + " " * 100_000 + 'a"""',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_reading_a_signature_takes_a_bounded_time(name):
    source = HOSTILE[name].encode()
    assert len(source) < 128 * 1024

    parsing, reading = seconds(ast.parse, source), seconds(input_schema, source, "handler")

    assert reading < 1 + 20 * parsing


def seconds(function, *given):
    """Return the processor's time of the fastest of three calls: a collection or a busy machine rarely meets all."""
    spent = []
    for _ in range(3):
        began = time.thread_time()
        function(*given)
        spent.append(time.thread_time() - began)
    return min(spent)


# -- the host and the guest ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hint", "value"), [row[:2] for row in READ])
@pytest.mark.parametrize("future", ["", "from __future__ import annotations"], ids=["objects", "text"])
def test_the_host_refuses_nothing_that_the_guest_reads(hint, value, future):
    check = InputCheck(schema(f"{future}\n{SETUP}\ndef handler(it: {hint}): ..."))

    assert check.check(b'{"it": %b}' % value.encode()) is None


def test_the_host_refuses_most_of_what_the_guest_refuses():
    refused = 0
    for hint, value, place, _ in NOT_READ:
        check = InputCheck(schema(f"{SETUP}\ndef handler(it: {hint}): ..."))
        if place is not None and "\\ud" not in value:
            refused += check.check(b'{"it": %b}' % value.encode()) is not None

    assert refused > len(NOT_READ) / 2


@pytest.mark.parametrize("name", [*PLAIN, *TYPED])
def test_both_decide_alike_which_handlers_are_typed(name):
    """The schema of a typed handler is one of an object; a plain one without hints has none."""
    handler = (PLAIN | TYPED)[name][0]
    if not hasattr(handler, "__code__") or hasattr(handler, "__wrapped__") or hasattr(handler, "__self__"):
        pytest.skip("only functions have a signature in the source")
    found = of(str(inspect.signature(handler))[1:-1])

    assert (found is None) == (type(plan(handler)).__name__ == "Plain")


SIGNATURE = """
from dataclasses import dataclass
from operato import File
@dataclass
class Row:
    name: str
    price: float = 1.0
def handler(rows: list[Row], photo: File = None, rate: float = 1.0): ...
"""


def test_the_fast_check_reads_signatures():
    check = InputCheck(schema(SIGNATURE))
    assert check._fast is not None
    row = {"name": "x" * 1000, "price": 2}

    for count in (1, 1000):
        good = {"rows": [row] * count, "photo": {"$file": {"id": "sha256:1"}}}
        assert check.check(json.dumps(good).encode()) is None
        assert check.check(json.dumps({**good, "photo": "text"}).encode()) is None
        assert check.check(json.dumps({**good, "z": 1}).encode()) is not None
        assert check.check(json.dumps({**good, "rows": [*good["rows"], {**row, "z": 1}]}).encode()) is not None
        assert check.check(json.dumps({"photo": None, "rate": [1] * count * 1000}).encode()) is not None
    assert [check.check(json.dumps(value).encode()) for value in examples(schema(SIGNATURE))] == [None, None]


def test_nothing_is_an_input_where_nothing_is_required():
    check = InputCheck(of("a: int = 3"))

    assert check._fast is not None
    assert check.check(b"null") is None
    assert check.check(b"{}") is None
    assert check.check(b"[]") is not None
