"""Contract: inputs are checked by the hint of the handler, or by the schema of the module, before a worker is taken."""

from __future__ import annotations

import json

import pytest

from actors.registry.code_store import content_digest
from config.modules.spec import spec_to_mapping
from runner.api import module_fields
from tests.contract.test_streams import open_site
from tests.support import inline

ROWS = """
from typing import NotRequired, TypedDict

class Row(TypedDict):
    price: float
    note: NotRequired[str]

def handler(input: list[Row] | None):
    return len(input or [])
"""
HINTED = inline("hinted", ROWS)
OFF = inline("off", ROWS, input_schema={})
OWN = inline("own", ROWS, input_schema={"type": "object", "maxProperties": 1})
NODE = {"properties": {"a": {"$ref": "#"}}}
DOUBLING = inline("doubling", ROWS, input_schema={"allOf": [NODE, NODE]})
BROKEN = inline("broken", "def handler(input: int): ...\nraise SystemExit")
"""Its worker cannot start, so a refusal of the input comes from the check before it."""

TYPED = """
import datetime, decimal

def handler(price: decimal.Decimal, day: datetime.date = None, *, count: int = 2):
    'Multiply.\\n\\nArgs:\\n    price: For one.'
    return [price * count, day]
"""
NAMED = inline("named", TYPED)
UNCHECKED = inline("unchecked", TYPED, input_schema={})


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (HINTED, OFF, OWN, DOUBLING, BROKEN, NAMED, UNCHECKED)) as opened:
        yield opened


async def ask(site, name, body):
    """Return status, field and message."""
    status, _, answer = await site.ask("POST", f"/modules/execute/{name}", body)
    told = json.loads(answer)
    found = told.get("error") or told  # of an execution, or of a problem before it
    return status, found.get("field"), told.get("detail", told.get("result"))


@pytest.mark.parametrize(
    ("body", "rows"), [([], 0), (None, 0), (b"", 0), ([{"price": 1}, {"price": 1.5, "note": "x"}], 2)]
)
async def test_an_input_that_fits_the_hint_is_run(site, body, rows):
    assert await ask(site, "hinted", body) == (200, None, rows)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ([{"price": 1}, {"price": "2"}], "$[1].price", "$[1].price: '2' is not of type 'number'"),
        ([{"price": True}], "$[0].price", "$[0].price: True is not of type 'number'"),
        ([{"note": "x"}], "$[0]", "$[0]: 'price' is a required property"),
        ([3] * 200_000, "$[0]", "$[0]: Expected `object`, got `int`"),
    ],
)
async def test_another_input_is_refused_with_its_place(site, body, field, words):
    assert await ask(site, "hinted", body) == (400, field, words)


async def test_an_input_is_refused_before_a_worker_is_there(site):
    assert (await ask(site, "broken", "x"))[:2] == (400, "$")
    assert (await ask(site, "broken", 3))[0] == 424


@pytest.mark.parametrize("name", ["named", "unchecked"])
async def test_parameters_are_the_keys_of_the_input(site, name):
    assert await ask(site, name, {"price": "1.50"}) == (200, None, ["3.00", None])
    assert await ask(site, name, {"price": 2, "day": "2027-01-31", "count": 3}) == (200, None, ["6", "2027-01-31"])
    assert (await ask(site, name, {"price": "1.50", "count": "3"}))[:2] == (400, "$.count")
    assert (await ask(site, name, {"price": "?"}))[:2] == (400, "$.price")
    assert (await ask(site, name, [1]))[:2] == (400, "$")
    assert (await ask(site, name, {}))[:2] == (400, "$" if name == "named" else "$.price")
    assert (await ask(site, name, {"price": 1, "x": 2}))[:2] == (400, "$" if name == "named" else "$.x")


async def test_the_signature_is_shown_as_the_schema(site):
    _, _, answer = await site.ask("GET", "/modules/named", None)

    assert json.loads(answer)["input_schema"] == {
        "type": "object",
        "properties": {
            "price": {"type": ["string", "number"], "format": "decimal", "description": "For one."},
            "day": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
            "count": {"type": "integer", "default": 2},
        },
        "required": ["price"],
        "additionalProperties": False,
    }


async def test_the_schema_of_the_module_comes_before_the_hint(site):
    assert (await ask(site, "own", {"a": 1}))[::2] == (200, 1)
    assert (await ask(site, "own", {"a": 1, "b": 2}))[:2] == (400, "$")
    assert (await ask(site, "own", []))[:2] == (400, "$")


async def test_an_input_that_takes_too_long_to_check_is_refused(site):
    nested: dict = {}
    for _ in range(60):
        nested = {"a": nested}

    status, field, words = await ask(site, "doubling", nested)

    assert (status, field) == (400, "$")
    assert "takes more than 200000 steps to check" in words


async def test_an_empty_schema_turns_the_hint_off(site):
    assert await ask(site, "off", "text") == (200, None, 4)
    assert site.service.registry.snapshot.get("off").input_schema is None


async def test_a_hint_is_not_part_of_the_specification(site):
    module = site.service.registry.snapshot.get("hinted")

    assert module.input_schema is not None
    assert "input_schema" not in spec_to_mapping(module.spec)
    assert module_fields(module)["input_schema"] == module.input_schema, "callers see the schema of its input"
    assert module.content_digest == content_digest(HINTED, {"hinted.py": ROWS.encode()})


async def test_a_registered_module_is_checked_too_and_after_a_restart(tmp_path):
    async with open_site(tmp_path) as site:
        await site.ask("PUT", "/modules/m", {"env": "inline", "code": "def handler(input: int): return input"})
        assert (await ask(site, "m", "x"))[:2] == (400, "$")
    async with open_site(tmp_path) as site:
        assert (await ask(site, "m", "x"))[:2] == (400, "$")
        assert await ask(site, "m", 3) == (200, None, 3)
