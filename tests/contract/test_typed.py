"""Contract: handlers with parameters of their own, in workers of every kind and isolation."""

from __future__ import annotations

import json

import pytest

from environments.local.exchange import Exchange
from environments.local.inprocess import InProcess
from protocol import messages
from protocol.errors import ErrorKind
from protocol.model import Isolation
from tests.contract.test_guest_pythons import host  # noqa: F401  (a fixture)
from tests.stored import id_of, open_store
from tests.support import PATIENCE
from tests.workers import WORKERS, chosen

CODE = """
from __future__ import annotations

import datetime
import decimal
import enum
from dataclasses import dataclass, field
from typing import List, Optional


class Unit(enum.Enum):
    PIECE = "piece"
    KILO = "kg"


@dataclass
class Row:
    name: str
    price: decimal.Decimal
    unit: Unit = Unit.PIECE


def handler(rows: List[Row], day: Optional[datetime.date] = None, *, context, rate: float = 1.0):
    total = sum(row.price for row in rows) * decimal.Decimal(rate)
    return [total, day, [row.unit for row in rows], type(rate).__name__, bool(context.execution_id)]
"""
ROWS = [{"name": "tea", "price": "1.10", "unit": "kg"}, {"name": "milk", "price": 2}]


@pytest.fixture(params=WORKERS)
def how(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


async def test_an_input_becomes_arguments(rig, how):
    module = await rig.publish(CODE, **how)

    assert (await rig.call(module, {"rows": ROWS, "day": "2027-01-31", "rate": 2})).value == [
        "6.20",
        "2027-01-31",
        ["kg", "piece"],
        "float",
        True,
    ]
    assert (await rig.call(module, {"rows": []})).value == ["0", None, [], "float", True]
    failure = (await rig.call(module, {"rows": [*ROWS, {"name": "x", "price": "?"}]})).failure
    assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "$.rows[2].price")
    assert failure.message.startswith("$.rows[2].price: expected a decimal number")
    assert failure.traceback is None
    assert (await rig.call(module, {"rows": ROWS})).value[0] == "3.10", "the worker is as it was"


FILES = """
from operato import File, Response
from pathlib import Path
def handler(photo: File, raw: bytes, path: Path, *, many: list[File] = (), answer=False):
    if answer:
        return Response(photo, 201, type="image/png")
    return [photo.name, photo.read_text(), raw.decode(), path.read_text(), [each.read_text() for each in many], photo]
"""


async def test_files_are_arguments_at_any_depth(rig, how, tmp_path):
    one, two = b"one", b"two"
    async with open_store(tmp_path / "store") as stored:
        module = await rig.publish(FILES, **how)
        files = {id_of(one): await stored.add(one, "a.png"), id_of(two): await stored.add(two, "b.txt")}
        first, second = ({"$file": {"id": id_of(data)}} for data in (one, two))
        named = {"$file": {**first["$file"], "name": "a.png"}}
        value = {"photo": named, "raw": second, "path": first, "many": [second, "text"]}

        *read, photo = (await rig.call(module, value, files=files, store=stored.store)).value
        response = (await rig.call(module, {**value, "answer": True}, files=files, store=stored.store)).value

        assert read == ["a.png", "one", "two", "one", ["two", "text"]]
        assert stored.content(photo) == one
        assert response["$response"]["headers"] == [["content-type", "image/png"]]
        assert stored.content(response["$response"]["file"]) == one
        failure = (await rig.call(module, {**value, "raw": {"$file": {"id": "x"}}}, files=files)).failure
        assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "$.raw")


async def test_files_are_arguments_in_the_runner(rig, tmp_path):
    one = b"one"
    runner = InProcess()
    async with open_store(tmp_path / "store") as stored:
        module = await rig.publish(FILES, isolation=Isolation.NONE)
        file = {"$file": {"id": id_of(one), "name": "a.png"}}
        data = json.dumps({"photo": file, "raw": file, "path": file, "answer": True}).encode()
        exchange = Exchange({id_of(one): await stored.add(one, "a.png")}, stored.store, tmp_path)

        call = runner.call(module.digest, module.entry, module.function, 1, data, seconds=PATIENCE, exchange=exchange)
        answer = json.loads(await call)["$response"]

        assert (answer["status"], stored.content(answer["file"])) == (201, one)
    runner.close()


@pytest.mark.parametrize("isolation", ["warm", "fork"])
def test_under_every_python(host, tmp_path, isolation):  # noqa: F811  (the fixture)
    entry = tmp_path / "main.py"
    entry.write_text(CODE)
    host.say(messages.Hello(str(entry), str(tmp_path), "handler", isolation=isolation))
    assert isinstance(host.hear(), messages.Ready)

    answer = host.call("e1", {"rows": ROWS, "day": "2027-01-31"})
    assert json.loads(bytes(answer.value)) == ["3.10", "2027-01-31", ["kg", "piece"], "float", True]
    refused = host.call("e2", {"row": []})
    assert (refused.kind, refused.field) == ("bad_input", "$.row")
    assert refused.message == "$.row: the handler has no parameter of this name; it has rows, day, rate"
    host.say(messages.Shutdown())
    assert host.close() == ("", "")


async def test_files_of_the_author_do_not_hide_what_conversions_need(rig, tmp_path):
    files = {
        "main.py": "def handler(when: 'date', names: 'List[str]' = ()): return [when.year, names]\n"
        "from datetime import date\nfrom typing import List\n",
        "enum.py": "raise SystemExit('the one of the author')\n",
        "inspect.py": "raise SystemExit('the one of the author')\n",
        "readers.py": "raise SystemExit('the one of the author')\n",
        "protocol.py": "raise SystemExit('the one of the author')\n",
    }
    (tmp_path / "m").mkdir()
    for name, text in files.items():
        (tmp_path / "m" / name).write_text(text)

    ran = await rig.run("", {"when": "2027-01-31", "names": ["a"]}, path=tmp_path / "m")

    assert ran.value == [2027, ["a"]]


async def test_user_code_sees_nothing_of_the_plan(rig):
    code = """
import sys
def handler(size: int, before=sorted(sys.modules)):
    new = set(sys.modules) - set(before)
    return sorted(name for name in new if "readers" in name or "typed" in name or "protocol" in name)
"""
    assert (await rig.run(code, {"size": 1})).value == []


async def test_a_mistake_of_a_class_is_a_bad_input_and_one_of_the_handler_is_not(rig):
    code = """
from dataclasses import dataclass
@dataclass
class Size:
    width: int
    def __post_init__(self):
        if self.width < 0:
            raise ValueError("a width is not negative")
def handler(size: Size):
    raise ValueError("mine")
"""
    module = await rig.publish(code)

    failure = (await rig.call(module, {"size": {"width": -1}})).failure
    assert (failure.kind, failure.message) == (ErrorKind.BAD_INPUT, "$.size: a width is not negative")
    failure = (await rig.call(module, {"size": {"width": 1}})).failure
    assert (failure.kind, failure.message) == (ErrorKind.HANDLER_ERROR, "mine")
    assert "typed.py" not in failure.traceback


async def test_endless_types_end_at_the_limit_of_the_stack(rig):
    code = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Optional
@dataclass
class Node:
    next: Optional[Node] = None
def handler(node: Node):
    count = 0
    while node:
        node, count = node.next, count + 1
    return count
"""

    def chain(levels):
        value = None
        for _ in range(levels):
            value = {"next": value}
        return {"node": value}

    module = await rig.publish(code)

    assert (await rig.call(module, chain(100))).value == 100
    failure = (await rig.call(module, chain(490))).failure
    assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "$")
    assert "nested too deeply" in failure.message
