"""Benchmark: what a warm call over REST costs beside many modules, a long record, and many idle connections.

`python tests/benchmarks/bench_growth.py`

Each case is a server of its own; they are called in turn, in short rounds. Printed are the least processor time of the
runner's process for a call in all its threads, which other load changes least, and its ratio to that of one module,
no record and no idle connection.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import bench_history
from tests.benchmarks.bench_executions import MODULES, answers, request
from tests.benchmarks.bench_grpc import threads_us, used_us
from tests.benchmarks.real_server import real_doors
from tests.benchmarks.report import Report

ROWS, CONNECTIONS, OTHERS = 1_000_000, 900, 1999
CALLS, ROUNDS, CALLERS = 1000, 20, 16
INPUT = b'{"name": "World"}'
MANY = MODULES + "".join(
    f"  - {{name: other-{n}, env: inline, code: 'def handler(input): return input'}}\n" for n in range(OTHERS)
)


def with_rows(home: Path) -> None:
    """Write the record of many executions, as long as the bounds of history allow."""
    bench_history.ROWS = ROWS
    (home / "data").mkdir()
    bench_history.fill(home / "data" / "history.db")


@contextmanager
def idle(port: int) -> Iterator[None]:
    """Keep connections open that have made a request each."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            sock.recv(65536)
        yield


def settle(pid: int) -> None:
    """Wait until a server has done what it does after its start, such as to check a large record."""
    for _ in range(300):
        before = threads_us(pid)
        time.sleep(1.0)
        if used_us(pid, before) < 50_000:
            return
    raise SystemExit("the server does not come to rest")


def main() -> None:
    """Print one line for each case."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    report = Report(__file__)
    bounds = ("--history-max-rows", str(2 * ROWS))
    with ExitStack() as stack:
        servers = {
            "one module, no record": real_doors(MODULES),
            f"{OTHERS + 1:,} modules": real_doors(MANY),
            f"{ROWS:,} executions on record": real_doors(MODULES, *bounds, prepare=with_rows),
            f"{CONNECTIONS} idle connections": real_doors(MODULES),
        }
        running = {what: stack.enter_context(server) for what, server in servers.items()}
        for ports, token in running.values():
            settle(ports["pid"])
            answers(ports["rest"], request("POST", "/modules/execute/hello", token, INPUT), CALLS, CALLERS)
        stack.enter_context(idle(running[f"{CONNECTIONS} idle connections"][0]["rest"]))
        costs: dict[str, list[float]] = {what: [] for what in running}
        for _ in range(ROUNDS):
            for what, (ports, token) in running.items():
                before = threads_us(ports["pid"])
                answers(ports["rest"], request("POST", "/modules/execute/hello", token, INPUT), CALLS, CALLERS)
                costs[what].append(used_us(ports["pid"], before) / CALLS)
    base = next(iter(costs.values()))
    for what, found in costs.items():
        text = f"{min(found):.0f} us of CPU for a call, x{min(found) / min(base):.2f}"
        text += f"; medians x{statistics.median(found) / statistics.median(base):.2f}"
        report.line(what, text, us=found, ratio=min(found) / min(base))


if __name__ == "__main__":
    main()
