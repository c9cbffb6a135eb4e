"""Unit: a failed check leaves nothing of its body behind, without the help of the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import partial

import pytest

from protocol.errors import ErrorKind, RunnerError, error
from runner.api.checks import Checks


class Body:
    """Something to wait for the end of."""


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def refuse(body: Body) -> None:
    raise error(ErrorKind.BAD_INPUT, f"no {type(body).__name__} is good", field="x")


@pytest.mark.usefixtures("_no_collector")
async def test_a_refused_body_is_freed_at_once() -> None:
    body = Body()
    gone = weakref.ref(body)
    failure = None
    try:
        await Checks().run(partial(refuse, body))
    except RunnerError as problem:
        failure = problem.failure
    del body
    assert failure is not None
    assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "x")
    assert gone() is None
