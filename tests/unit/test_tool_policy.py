"""Unit: the field `tool` of a module: how it is read, refused, and written again."""

from __future__ import annotations

import pytest

from config.mistakes import ConfigError
from config.modules import ToolPolicy, module_shape, spec_from_mapping, spec_to_mapping
from config.schema import InputCheck

PLAIN = {"name": "m", "env": "inline", "code": "def handler(input): return input\n"}


def read(**fields):
    return spec_from_mapping({**PLAIN, **fields}, base=None, allow_path=False)


@pytest.mark.parametrize(
    ("written", "tool", "again"),
    [
        (None, ToolPolicy(), True),
        (True, ToolPolicy(), True),
        ({}, ToolPolicy(), True),
        (False, ToolPolicy(offered=False), False),
        ({"destructive": True, "title": None}, ToolPolicy(), True),
        (
            {"title": "Send mail", "read_only": True, "destructive": False, "idempotent": True, "confirm": True},
            ToolPolicy(title="Send mail", read_only=True, destructive=False, idempotent=True, confirm=True),
            {"title": "Send mail", "read_only": True, "destructive": False, "idempotent": True, "confirm": True},
        ),
    ],
)
def test_it_is_read_and_written_as_the_same(written, tool, again):
    spec = read(tool=written)

    assert spec.tool == tool
    assert spec_to_mapping(spec)["tool"] == again
    assert spec_from_mapping(spec_to_mapping(spec), base=None, allow_path=False) == spec


def test_a_module_without_it_is_a_tool():
    assert read().tool == ToolPolicy(offered=True)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("yes", "tool: 'yes' is neither true, false nor a mapping"),
        (["confirm"], "tool: a list is neither"),
        ({"confirm": "yes"}, "tool.confirm: 'yes' is neither true nor false"),
        ({"titel": "x"}, "tool.titel: unknown field; did you mean 'title'?"),
        ({"offered": False}, "tool.offered: unknown field"),
        ({"title": "two\nlines"}, "tool.title:"),
        ({"title": "\x1b[31mred"}, "tool.title:"),
        ({"title": "csi \x9b31m"}, "tool.title:"),
        ({"title": ""}, "tool.title:"),
        ({"title": "x" * 101}, "tool.title:"),
    ],
)
def test_mistakes_name_the_key(written, message):
    with pytest.raises(ConfigError) as caught:
        read(tool=written)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("written", "fits"),
    [("true", True), ("false", True), ('{"confirm":true}', True), ('"yes"', False), ('{"offered":false}', False)],
)
def test_its_schema_for_editors_accepts_the_same(written, fits):
    check = InputCheck(module_shape()["properties"]["tool"])

    assert (check.check(written.encode()) is None) is fits
