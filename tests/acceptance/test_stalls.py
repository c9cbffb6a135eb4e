"""Acceptance: no hostile input of `tests/hostile.py` holds the event loop of the real server.

What counts is processor time of the server's process, so that a busy machine changes nothing. The limit is several
times what `tests/benchmarks/bench_stalls.py` shows.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.hostile import CASES, Target, modules
from tests.probe import Numbers
from tests.server_process import ROOT, Server, wait_for

LIMIT_SECONDS = 0.25
LIMITS = {"reload: 2,000 modules": 1.0}
"""Threads compute for a second here, so that each step of the loop waits for the lock of the interpreter."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("stalls")


@pytest.fixture(scope="module")
def numbers(home):
    return Numbers(home / "numbers")


@pytest.fixture(scope="module")
def target(home, numbers):
    (home / "modules.yaml").write_text(modules(home))
    program = (sys.executable, "-m", "tests.probe", str(home / "numbers"))
    server = Server(home, program=program, environ={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        rest, grpc = (server.ready[door][0][1] for door in ("rest", "grpc"))
        yield Target(rest, grpc, server.token, home, server.ready["pid"])
    finally:
        server.stop(signal.SIGKILL)


@pytest.mark.parametrize("case", CASES)
def test_no_input_holds_the_event_loop(case, target, numbers):
    """An input that holds it does so each time; what the machine does beside it does not."""
    limit = LIMITS.get(case, LIMIT_SECONDS)
    held = hold(case, target, numbers)
    for _ in range(2):
        if held >= limit:
            held = min(held, hold(case, target, numbers))
    assert held < limit


def hold(case, target, numbers):
    """Return the longest time in seconds for which a case held the loop."""
    numbers.reset()

    CASES[case](target)

    wait_for(lambda: numbers.read()[2] > 1)  # the answer that was awaited when the case ended counts too
    assert target.execute("hello", b"null")[0] == 200
    return numbers.read()[0]
