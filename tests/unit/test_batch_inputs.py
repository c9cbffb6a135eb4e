"""Unit: the inputs of a batch are cut out of bytes that come in any pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Execution, Kind, ModuleRef, Status
from runner.rest.batch_inputs import Array, Lines
from runner.rest.render import execution_line, problem_line

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def read(source, then=None):
    """Return all inputs of a source as (name, data or kind of refusal)."""

    async def run():
        found = []
        while (one := await source.next()) is not None:
            found.append((one.name, one.refusal.kind if one.refusal else one.data))
        assert await source.next() is None
        return found

    return trio.run(run)


def lines(*pieces, limit=100):
    """Return the inputs of a body in these pieces."""
    rest = list(pieces)

    async def more():
        return rest.pop(0) if rest else None

    return read(Lines(more, limit))


@settings(deadline=None)
@given(st.lists(VALUES), st.integers(0, 3), st.sampled_from([",", " ,\n ", "\t,"]))
def test_an_array_is_cut_into_its_elements(values, indent, between):
    spread = json.dumps(values, indent=indent or None, ensure_ascii=bool(indent % 2))
    joined = " [ " + between.join(json.dumps(value) for value in values) + " ]\n"

    for text in (spread, joined):
        found = read(Array(text.encode()))
        assert [name for name, _ in found] == [str(n) for n in range(len(values))]
        assert [json.loads(data) for _, data in found] == values


@pytest.mark.parametrize("body", [b"", b"{}", b"1", b"[1", b"[1,]", b"[NaN]", b"[1] [2]", b'["\xff"]', b"[" * 600])
def test_a_body_without_an_array_is_refused_as_a_whole(body):
    with pytest.raises(RunnerError) as caught:
        Array(body)

    field = "$[0]" if body == b"[NaN]" else "$"
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, field)


def test_an_array_of_brackets_lets_other_tasks_run():
    async def run():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await Array(b"[[" + b",".join([b"[]"] * 50_000) + b"]]").next()
            nursery.cancel_scope.cancel()
        return turns

    assert trio.run(run) > 10


@settings(deadline=None)
@given(st.lists(VALUES), st.lists(st.integers(0, 400)), st.sampled_from(["\n", "\r\n", "\n \n\n"]))
def test_lines_are_the_same_in_any_pieces(values, cuts, end):
    body = end.join(json.dumps(value) for value in values).encode()
    at = sorted({min(cut, len(body)) for cut in (0, *cuts, len(body))})
    pieces = [body[begin:to] for begin, to in pairwise(at)]

    found = lines(*pieces, limit=10**6)
    assert [name for name, _ in found] == [str(n) for n in range(len(values))]
    assert [json.loads(data) for _, data in found] == values


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_is_one_refused_input(size, end):
    body = b"1\n" + b"x" * 101 + b"\n2\n" + b"y" * 500 + b"\n" + b"z" * 100 + b"\n" + b" " * 300 + end
    pieces = [body[at : at + size] for at in range(0, len(body), size)]

    refused = ErrorKind.TOO_LARGE
    assert lines(*pieces) == [
        ("0", b"1"),
        ("1", refused),
        ("2", b"2"),
        ("3", refused),
        ("4", b"z" * 100),
        ("5", refused),
    ]


def test_a_line_that_is_too_long_is_not_kept():
    seen = []

    async def run():
        left = 1000

        async def more():
            nonlocal left
            left -= 1
            seen.append(len(source._buffer))
            return b"x" * 50 if left else None

        source = Lines(more, 100)
        assert (await source.next()).refusal.kind is ErrorKind.TOO_LARGE

    trio.run(run)
    assert max(seen) <= 150


def test_an_answer_is_one_line_for_any_json_of_a_worker():
    module = ModuleRef("m", "1")
    ended = Execution("e", module, Kind.INLINE, Status.SUCCEEDED, 1.0, result=b'{"a":\n [1,\n2]}')
    line = execution_line(ended, 7)

    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")
    assert (json.loads(line)["index"], json.loads(line)["result"]) == (7, {"a": [1, 2]})


def test_problems_hold_the_time_to_wait():
    failure = Failure(ErrorKind.OVERLOADED, "full", retry_after=2.5)

    assert json.loads(problem_line(failure, 0)) == {
        "index": 0,
        "problem": {
            "type": "about:blank",
            "title": "overloaded",
            "status": 429,
            "detail": "full",
            "kind": "overloaded",
            "retry_after": 2.5,
        },
    }
    assert "index" not in json.loads(problem_line(failure))


def test_lines_are_ready_when_the_next_one_need_not_be_waited_for():
    pieces = [b"1\n", b"2", None]

    async def more():
        return pieces.pop(0)

    async def run():
        source = Lines(more, 100)
        states = [source.ready()]
        for _ in range(2):
            await source.next()
            states.append(source.ready())
        return states

    assert trio.run(run) == [False, False, True]
    assert Array(b"[1]").ready()
