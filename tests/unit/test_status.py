"""Unit: every kind of failure has its codes at every door, and the promised ones."""

from __future__ import annotations

from collections import Counter

import pytest

from protocol.errors import RETRYABLE, ErrorKind, Failure
from runner.rest.render import failure_headers
from runner.status import CODES

GRPC = """
CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED
FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED
"""
PROMISED_HTTP = {
    "handler_error": 500,
    "bad_output": 502,
    "worker_crashed": 502,
    "timeout": 504,
    "out_of_memory": 507,
    "cancelled": 499,
    "overloaded": 429,
    "environment_failed": 424,
    "load_failed": 424,
    "shutdown": 503,
}


def test_every_kind_has_codes_and_nothing_else_has():
    assert list(CODES) == list(ErrorKind)


@pytest.mark.parametrize("kind", ErrorKind)
def test_the_codes_are_valid_at_the_doors(kind):
    codes = CODES[kind]

    assert 400 <= codes.http <= 599
    assert codes.grpc in GRPC.split()
    # RFC 6455 and its registry: what a server may send, or the range of applications.
    assert codes.websocket in {1009, 1011, 1012, 1013} or 4000 <= codes.websocket <= 4999
    # 126 to 128 are the shell's own, above 128 it means a signal.
    assert 1 <= codes.exit <= 125 or codes.exit in {128 + 2, 128 + 9}


def test_a_script_can_tell_every_kind_by_the_exit_code():
    assert [code for code, times in Counter(codes.exit for codes in CODES.values()).items() if times > 1] == []


def test_exit_codes_are_the_usual_ones():
    """1 is a failure of the handler, 2 wrong usage, 124 is timeout(1), 130 Ctrl-C, 137 a kill."""
    known = {
        ErrorKind.HANDLER_ERROR: 1,
        ErrorKind.BAD_INPUT: 2,
        ErrorKind.TIMEOUT: 124,
        ErrorKind.CANCELLED: 130,
        ErrorKind.OUT_OF_MEMORY: 137,
        ErrorKind.INTERNAL: 70,
    }

    assert {kind: CODES[kind].exit for kind in known} == known


def test_the_http_statuses_are_the_promised_ones():
    assert {kind: CODES[ErrorKind(kind)].http for kind in PROMISED_HTTP} == PROMISED_HTTP


def test_a_close_code_in_the_range_of_applications_repeats_the_http_status():
    private = {kind: codes for kind, codes in CODES.items() if codes.websocket >= 4000}

    assert {kind: codes.websocket - 4000 for kind, codes in private.items()} == {
        kind: codes.http for kind, codes in private.items()
    }


def test_faults_of_the_caller_are_4xx_and_all_others_5xx():
    """499 and 424 are usual for these kinds, and are 4xx too."""
    others = {ErrorKind.CANCELLED, ErrorKind.ENVIRONMENT_FAILED, ErrorKind.LOAD_FAILED}
    callers = {kind for kind, codes in CODES.items() if codes.http < 500} - others

    assert callers == {
        ErrorKind.BAD_INPUT,
        ErrorKind.NOT_FOUND,
        ErrorKind.CONFLICT,
        ErrorKind.UNAUTHENTICATED,
        ErrorKind.FORBIDDEN,
        ErrorKind.TOO_LARGE,
        ErrorKind.OVERLOADED,
    }


def test_codes_that_libraries_retry_mean_retryable_kinds():
    """Libraries retry after 429, 503, UNAVAILABLE, 1012 and 1013."""
    for kind, codes in CODES.items():
        if codes.http in {429, 503} or codes.grpc == "UNAVAILABLE" or codes.websocket in {1012, 1013}:
            assert kind in RETRYABLE, kind


@pytest.mark.parametrize(("after", "said"), [(0.2, b"1"), (2.0, b"2"), (2.4, b"3")])
def test_retry_after_is_never_too_early(after, said):
    failure = Failure(ErrorKind.UNAVAILABLE, "not yet", retry_after=after)

    assert failure_headers(failure) == [(b"retry-after", said)]
