"""Unit: failures are a closed set of values, the same in every answer."""

from __future__ import annotations

import ast
import inspect
import itertools

import attrs
import pytest

from protocol import errors
from protocol.errors import RETRYABLE, ErrorKind, Failure, RunnerError, error

ACTORS = ("The caller", "The operator", "The author", "No action", "The developers")
PROMISED = """
bad_input not_found conflict unauthenticated forbidden too_large overloaded unavailable environment_failed load_failed
handler_error bad_output timeout cancelled out_of_memory output_limit out_of_storage worker_crashed lost
shutdown internal
"""


def test_the_set_is_the_promised_one():
    assert [kind.value for kind in ErrorKind] == PROMISED.split()
    assert all(kind.name == kind.value.upper() for kind in ErrorKind)
    assert all(f"{kind}" == kind.value for kind in ErrorKind)


def test_every_kind_says_who_must_act():
    (body,) = (n.body for n in ast.parse(inspect.getsource(errors)).body if getattr(n, "name", "") == "ErrorKind")
    said = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.Assign):
            assert isinstance(after, ast.Expr), node.targets[0].id
            said[node.targets[0].id] = after.value.value

    assert list(said) == [kind.name for kind in ErrorKind]
    assert {name: text for name, text in said.items() if not text.startswith(ACTORS)} == {}


@pytest.mark.parametrize("kind", ErrorKind)
def test_a_failure_is_retryable_by_its_kind_alone(kind):
    assert Failure(kind, "x").retryable is (kind in RETRYABLE)


def test_what_is_certain_to_fail_again_is_not_retryable():
    certain = {
        ErrorKind.BAD_INPUT,
        ErrorKind.NOT_FOUND,
        ErrorKind.UNAUTHENTICATED,
        ErrorKind.FORBIDDEN,
        ErrorKind.TOO_LARGE,
        ErrorKind.BAD_OUTPUT,
        ErrorKind.CANCELLED,
    }

    assert certain & RETRYABLE == set()


def test_a_failure_is_a_value():
    failure = Failure(ErrorKind.TIMEOUT, "late", field="timeout")

    assert failure == Failure(ErrorKind.TIMEOUT, "late", field="timeout")
    assert hash(failure) == hash(attrs.evolve(failure))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        failure.message = "later"


def test_an_error_carries_its_failure_and_reads_well():
    raised = error(ErrorKind.OVERLOADED, "3 workers busy", field="concurrency", retry_after=2.5)

    assert isinstance(raised, RunnerError)
    assert str(raised) == "overloaded: 3 workers busy"
    assert raised.failure == Failure(ErrorKind.OVERLOADED, "3 workers busy", field="concurrency", retry_after=2.5)
