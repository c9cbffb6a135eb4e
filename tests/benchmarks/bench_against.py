"""Benchmark: two commits against each other: calls over REST and gRPC, batches, asynchronous executions.

`python tests/benchmarks/bench_against.py BASE [HEAD]`; HEAD is this working tree if it is not given.

Each commit is checked out beside this one and served by the Python of this one, with the clients of this one. The
rounds go over both in turn, so that a noisy neighbour hits them alike. Printed are the medians of calls a second, the
least processor time of the runner's process for a call, in all its threads, and the ratios of both.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_executions import MODULES, answers, asynchronous_seconds, request
from tests.benchmarks.bench_grpc import INPUT, light_rate, rest_batch_us, threads_us, used_us
from tests.benchmarks.real_server import ROOT, real_doors
from tests.benchmarks.report import Report

ROUNDS, CALLS = 8, 2000
CALL = b"\x0a\x05hello\x12%c%b" % (len(INPUT), INPUT.encode())
"""The message of a call over gRPC."""


def rest(callers: int, ports: dict[str, int], token: str) -> float:
    """Return calls a second over REST."""
    asked = request("POST", "/modules/execute/hello", token, INPUT.encode())
    return CALLS / answers(ports["rest"], asked, CALLS, callers)


def grpc(callers: int, ports: dict[str, int], token: str) -> float:
    """Return calls a second over gRPC."""
    return light_rate(ports["grpc"], CALL, token, callers, 1.0)


def batch(ports: dict[str, int], token: str) -> float:
    """Return inputs a second of a batch over REST."""
    return 1e6 / rest_batch_us(ports["rest"], token)


def asynchronous(ports: dict[str, int], token: str) -> float:
    """Return asynchronous executions a second, from the first to the end of the last."""
    return CALLS / asynchronous_seconds(ports["rest"], token, CALLS)[1]


MEASURES = {
    "REST, 1 caller": partial(rest, 1),
    "REST, 16 callers": partial(rest, 16),
    "REST, 64 callers": partial(rest, 64),
    "gRPC, 1 caller": partial(grpc, 1),
    "gRPC, 16 callers": partial(grpc, 16),
    "gRPC, 64 callers": partial(grpc, 64),
    "REST batch, one at a time": batch,
    "asynchronous": asynchronous,
}


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Check a commit out into a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measured(what: str, ports: dict[str, int], token: str) -> tuple[float, float]:
    """Return calls a second, and the processor time of one in microseconds."""
    began, before = time.perf_counter(), threads_us(ports["pid"])
    rate = MEASURES[what](ports, token)
    return rate, used_us(ports["pid"], before) / (rate * (time.perf_counter() - began))


def main(base: str, head: str | None = None) -> None:
    """Print one line for each measure."""
    report = Report(__file__)
    with ExitStack() as stack:
        trees = [stack.enter_context(checked_out(base))]
        trees.append(ROOT if head is None else stack.enter_context(checked_out(head)))
        running = [stack.enter_context(real_doors(MODULES, root=tree)) for tree in trees]
        for what in MEASURES:
            found: list[list[tuple[float, float]]] = [[], []]
            for number in range(1 + ROUNDS):
                for side, (ports, token) in enumerate(running):
                    result = measured(what, ports, token)
                    if number:  # the first round warms up
                        found[side].append(result)
            (was, cost), (now, costs) = ([list(each) for each in zip(*side, strict=True)] for side in found)
            ratio, cheaper = statistics.median(now) / statistics.median(was), min(costs) / min(cost)
            text = f"{statistics.median(was):,.0f} and {statistics.median(now):,.0f} a second, x{ratio:.2f}; "
            text += f"{min(cost):.0f} and {min(costs):.0f} us of CPU, x{cheaper:.2f}"
            report.line(what, text, ratio=ratio, ratio_cpu=cheaper)


if __name__ == "__main__":
    main(*sys.argv[1:3])
