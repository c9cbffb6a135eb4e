"""Unit: the JSON Schema of a handler's result, from its hint."""

from __future__ import annotations

from textwrap import dedent

import pytest

from config.code import output_schema

FILE = {
    "type": "object",
    "properties": {"$file": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}},
    "required": ["$file"],
}
CLASSES = """
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Optional, TypedDict
from decimal import Decimal
from enum import Enum
import datetime
from operato import File, Response

class Unit(Enum):
    PIECE = "piece"
    KILO = "kg"

@dataclass
class Row:
    price: Decimal
    unit: Unit = Unit.PIECE
    note: Optional[str] = None
    total: float = field(init=False, default=0.0)

class Point(NamedTuple):
    x: int
    y: int = 0

class Some(TypedDict, total=False):
    a: int
"""
UNIT = {"enum": ["piece", "kg"]}


def schema(hint, body="return 1", head="def"):
    return output_schema(dedent(f"{CLASSES}\n{head} handler(input) -> {hint}:\n    {body}\n").encode(), "handler")


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("int", {"type": "integer"}),
        ("'list[str]'", {"type": "array", "items": {"type": "string"}}),
        (
            "dict[str, float] | None",
            {"anyOf": [{"type": "object", "additionalProperties": {"type": "number"}}, {"type": "null"}]},
        ),
        ("None", {"type": "null"}),
        ("Literal['a', 1]", {"enum": ["a", 1]}),
        ("File", FILE),
        ("bytes", FILE),
        ("Decimal", {"type": "string"}),
        ("datetime.datetime", {"type": "string", "format": "date-time"}),
        ("Unit", UNIT),
        (
            "Point",
            {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 0}},
                "required": ["x", "y"],
            },
        ),
        ("Some", {"type": "object", "properties": {"a": {"type": "integer"}}}),
    ],
)
def test_a_hint_is_read(hint, expected):
    assert schema(hint) == expected
    assert schema(hint, head="async def") == expected


def test_an_object_of_a_class_has_all_fields_and_may_have_more():
    found = schema("Row")

    assert found["required"] == ["price", "unit", "note"]
    assert found["properties"]["price"] == {"type": "string"}
    assert "additionalProperties" not in found


@pytest.mark.parametrize("hint", ["Response", "Any", "object", "Unknown", "1 +", "x.y", "'['"])
def test_other_hints_say_nothing(hint):
    assert schema(hint) is None


@pytest.mark.parametrize("body", ["yield 1", "x = [(yield 1)]", "yield from [1]", "if input: yield 1"])
def test_a_generator_has_no_result(body):
    assert schema("int", body) is None


@pytest.mark.parametrize("body", ["return (lambda: (yield))", "def inner():\n        yield 1\n    return 1"])
def test_a_generator_in_a_handler_makes_none_of_it(body):
    assert schema("int", body) == {"type": "integer"}


@pytest.mark.parametrize(
    "source",
    [
        "def handler(input): return '->'",
        "@cached\ndef handler(input) -> int: ...",
        "def handler(input) -> int: ...\nhandler = 3",
        "def handler(input) -> " + "list[" * 500 + "int" + "]" * 500 + ": ...",
        "def handler(input) -> int: ..." + " " * 140_000,
    ],
)
def test_what_is_uncertain_has_no_schema(source):
    assert output_schema(source.encode(), "handler") is None
