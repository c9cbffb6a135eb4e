"""Contract: the module `operato` in workers of every kind and isolation."""

from __future__ import annotations

import json

import pytest

from protocol.errors import ErrorKind
from tests.workers import WORKERS, chosen


@pytest.fixture(params=WORKERS)
def how(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


async def test_a_handler_finds_its_context_in_any_thread(rig, how):
    code = """
import operato, threading
try:
    operato.context()
except RuntimeError as problem:
    before = str(problem)
def handler(input, context):
    found = []
    thread = threading.Thread(target=lambda: found.append(operato.context()))
    thread.start()
    thread.join()
    return [found == [context], operato.context() is context, before]
"""
    assert (await rig.run(code, **how)).value == [
        True,
        True,
        "no call is running: `context()` works in a handler, and in threads that it starts",
    ]


async def test_an_operato_of_the_author_is_taken(rig, how, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "main.py").write_text("import operato\ndef handler(input): return operato.whose + input\n")
    (tmp_path / "mine" / "operato.py").write_text("whose = 'mine'\n")

    assert (await rig.run(None, "!", path=tmp_path / "mine", **how)).value == "mine!"


async def test_a_response_is_a_result(rig, how):
    code = """
from operato import Response
def handler(input):
    if input == "stream":
        return Response((text for text in "ab"), headers={"x-a": "b"}, type="text/csv")
    return Response(input, status=201)
"""
    head = {"status": 201, "headers": []}
    module = await rig.publish(code, **how)

    assert (await rig.call(module, "hello")).value == {"$response": {**head, "text": "hello"}}
    assert (await rig.call(module, [1])).value == {"$response": {**head, "json": [1]}}
    streamed = await rig.call(module, "stream")
    first = {"$response": {"status": 200, "headers": [["x-a", "b"], ["content-type", "text/csv"]]}}
    assert streamed.value == [first, "a", "b"]
    assert [json.loads(bytes(event.value)) for event in streamed.events] == streamed.value


async def test_a_response_that_http_cannot_carry_is_refused(rig):
    code = "from operato import Response\ndef handler(input): return Response('', headers={'x': input})"
    ran = await rig.run(code, "a\r\nset-cookie: b")

    assert ran.kind is ErrorKind.HANDLER_ERROR
    assert ran.failure.message == "the header field 'x' has a line break, or a character that is not ASCII"


async def test_child_processes_find_it_too(rig, how):
    code = """
import multiprocessing, operato
def name(file): return file.name
def handler(input):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(name, [operato.File(b"", name="x.txt")])
"""
    assert (await rig.run(code, **how)).value == ["x.txt"]
