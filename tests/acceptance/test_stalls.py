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

LIMIT_SECONDS = 1.0
"""Wide: other threads of the runner compute too, and on a busy machine their time is not told apart from a hold."""


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
    numbers.reset()

    CASES[case](target)

    wait_for(lambda: numbers.read()[2] > 1)  # the answer that was awaited when the case ended counts too
    assert target.execute("hello", b"null")[0] == 200
    assert numbers.read()[0] < LIMIT_SECONDS
