"""Contract: no frames of a client raise an exception in the gRPC server, keep memory or harm another client.

`FUZZ_EXAMPLES=20000 pytest tests/contract/test_grpc_fuzz.py` looks for longer. A failure belongs into `INTERESTING`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.rpc.operato.runner import v1
from runner.grpc.call import Call, Method
from runner.wire import Budget
from tests.contract.test_grpc_attacks import CALL, PREFACE, frame
from tests.grpc_client import framed, open_door

ECHO = "/test.Test/Hang"
"""The path in `CALL`, here of a method that answers."""
REQUEST = v1.ExecuteRequest(module_name="m", input_json="1")
MESSAGE = framed(REQUEST)
FUZZED = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
STREAMS = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 2, 2**31 - 1])
NUMBERS = st.sampled_from([0, 1, 2**14, 2**16, 2**31 - 1, 2**32 - 1]).map(lambda number: number.to_bytes(4, "big"))
SETTINGS = st.tuples(st.integers(0, 9).map(lambda name: name.to_bytes(2, "big")), NUMBERS).map(b"".join)
FRAMES = st.one_of(
    st.builds(
        frame, st.just(1), st.sampled_from([0, 1, 4, 5, 0x0C, 0x25]), STREAMS, st.just(CALL) | st.binary(max_size=40)
    ),
    st.builds(frame, st.just(0), st.sampled_from([0, 1, 8, 9]), STREAMS, st.just(MESSAGE) | st.binary(max_size=40)),
    st.builds(frame, st.just(2), st.just(0), STREAMS, st.binary(min_size=4, max_size=6)),
    st.builds(frame, st.sampled_from([3, 8]), st.just(0), STREAMS, NUMBERS),
    st.builds(frame, st.just(4), st.sampled_from([0, 1]), STREAMS, st.lists(SETTINGS, max_size=4).map(b"".join)),
    st.builds(frame, st.just(6), st.sampled_from([0, 1]), STREAMS, st.binary(min_size=7, max_size=9)),
    st.builds(frame, st.just(7), st.just(0), STREAMS, st.tuples(NUMBERS, NUMBERS).map(b"".join)),
    st.builds(frame, st.just(9), st.sampled_from([0, 4]), STREAMS, st.binary(max_size=20)),
    st.builds(frame, st.integers(0, 255), st.integers(0, 255), STREAMS, st.binary(max_size=20)),
    st.binary(max_size=30),
)
INTERESTING = [
    [],
    [frame(1, 5, 1, CALL), frame(0, 1, 1, MESSAGE)],
    [frame(1, 4, 1, CALL), frame(0, 0, 1, MESSAGE[:7]), frame(3, 0, 1, b"\0\0\0\x08"), frame(0, 1, 1, MESSAGE[7:])],
    [frame(1, 4, 1, CALL + b"\x0f\x0d\x015"), frame(0, 1, 1, MESSAGE)],
    [frame(1, 4, 1, CALL), frame(1, 5, 1, CALL)],
    [frame(1, 4, 1, CALL), frame(1, 5, 1, b"\x00\x01x\x01y"), frame(0, 1, 1, MESSAGE)],
    [frame(4, 0, 0, b"\0\4\0\0\0\0"), frame(1, 4, 1, CALL), frame(0, 1, 1, MESSAGE), frame(8, 0, 1, b"\0\0\0\1")],
    [frame(4, 0, 0, b"\0\1\0\0\0\0"), frame(1, 4, 1, CALL), frame(0, 1, 1, MESSAGE)],
    [frame(7, 0, 0, bytes(8)), frame(1, 4, 1, CALL)],
]


async def echo(call: Call) -> Any:
    request = await call.receive()
    return v1.ExecuteResponse(result_json="" if request is None else request.input_json)


async def attack(pieces: Sequence[bytes], end: str) -> None:
    """Send the pieces, end the connection, and check that the server is as before."""
    budget = Budget(100_000)
    async with open_door({ECHO: Method(echo, v1.ExecuteRequest)}, budget=budget) as door:
        other, bad = await door.connect(), await door.raw()
        with suppress(trio.BrokenResourceError):
            for piece in (PREFACE, *pieces):
                await bad.send_all(piece)
                await trio.lowlevel.checkpoint()
            if end == "end of file":
                await bad.send_eof()
                while await bad.receive_some(65_536):
                    pass
        assert (await other.call(ECHO, REQUEST)).message().result_json == "1"
        await bad.aclose()
        with trio.fail_after(10):
            while budget.taken:
                await trio.lowlevel.checkpoint()


def attacked(pieces: Sequence[bytes], end: str) -> None:
    with structlog.testing.capture_logs() as logs:
        trio.run(attack, pieces, end)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


@pytest.mark.timeout(int(os.environ.get("FUZZ_EXAMPLES", "150")) + 120)
@FUZZED
@given(st.lists(FRAMES, max_size=12), st.sampled_from(["end of file", "nothing"]))
def test_frames(pieces: list[bytes], end: str) -> None:
    attacked(pieces, end)


@pytest.mark.parametrize("pieces", INTERESTING, ids=range(len(INTERESTING)))
@pytest.mark.parametrize("end", ["end of file", "nothing"])
def test_interesting_frames(pieces: list[bytes], end: str) -> None:
    attacked(pieces, end)
