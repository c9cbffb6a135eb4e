"""Benchmark: what starts without a caller: 10,000 schedules at the start and while idle, and notices about calls.

`python tests/benchmarks/bench_starts.py [--schedules 10000] [--idle 10] [--calls 200] [--rounds 10]`

One server has the modules with their schedules, one the same modules without; both start and idle in turn. Then, in one
server, the same handler is called without `on_end`, with a recipient that hears of no success, and with one that hears
of each; the rounds go over them in turn, so that a noisy neighbour hits them alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from config.timing import MAX_SCHEDULES
from tests.benchmarks.bench_endpoints import caller, cpu_seconds
from tests.benchmarks.real_server import real_doors
from tests.benchmarks.report import Report

REPORT = Report(__file__)
_HANDLER = "env: inline, code: 'def handler(input): return input'"
_REFUSED = "url: 'http://127.0.0.1:9/'"
"""An address that is not public, so that an attempt to send costs no more than its record."""
TOLD = f"""modules:
  plain: {{{_HANDLER}}}
  quiet: {{{_HANDLER}, on_end: [{{{_REFUSED}, when: [failed]}}]}}
  told: {{{_HANDLER}, on_end: [{{{_REFUSED}, when: [succeeded]}}]}}
"""


def scheduled(number: int, *, empty: bool) -> str:
    """Return a modules file with so many schedules, of which none is due soon; `empty` leaves them out."""
    lines = ["modules:"]
    for first in range(0, number, MAX_SCHEDULES):
        lines.append(f"  m{first}:\n    env: inline\n    code: 'def handler(input): return input'")
        if not empty:
            lines.append("    schedules:")
            each = range(min(MAX_SCHEDULES, number - first))
            lines += [f'      - {{name: s{place}, cron: "{place % 60} 3 29 2 *"}}' for place in each]
    return "\n".join(lines) + "\n"


def start_and_idle(modules: str, seconds: float) -> tuple[float, float]:
    """Return the CPU time of a start, and the share of a CPU that the idle server takes."""
    with real_doors(modules, "--no-grpc") as (doors, _):
        start = cpu_seconds(doors["pid"])
        time.sleep(2)  # what follows the start
        began, used = time.perf_counter(), cpu_seconds(doors["pid"])
        time.sleep(seconds)
        return start, (cpu_seconds(doors["pid"]) - used) / (time.perf_counter() - began)


def measure_schedules(number: int, seconds: float) -> None:
    """Print start and idleness with and without schedules."""
    found: dict[str, list[tuple[float, float]]] = {"without": [], f"{number} schedules": []}
    for _ in range(3):
        for name, numbers in found.items():
            numbers.append(start_and_idle(scheduled(number, empty=name == "without"), seconds))
    for name, numbers in found.items():
        start, idle = (statistics.median(each) for each in zip(*numbers, strict=True))
        text = f"{start:.2f} s of CPU for the start, {idle:.2%} of a CPU while idle"
        REPORT.line(name, text, s=[each[0] for each in numbers])


def measure_notices(calls: int, rounds: int) -> None:
    """Print what a recipient adds to a call."""
    with real_doors(TOLD, "--no-grpc") as (doors, token):
        bearer = {"authorization": f"Bearer {token}"}
        names = ("plain", "quiet", "told")
        run = {name: caller(doors["rest"], f"/modules/execute/{name}", bearer) for name in names}
        wall: dict[str, list[float]] = {name: [] for name in names}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name, call in run.items():
                began, used = time.perf_counter(), cpu_seconds(doors["pid"])
                for _ in range(calls):
                    call()
                if number:  # the first round warms up
                    wall[name].append((time.perf_counter() - began) / calls)
                    cpu[name].append((cpu_seconds(doors["pid"]) - used) / calls)
    for name in names:
        ratios = [own / base for own, base in zip(wall[name], wall["plain"], strict=True)]
        busy = statistics.fmean(cpu[name]) / statistics.fmean(cpu["plain"])
        micros = statistics.median(wall[name]) * 1e6
        text = f"{micros:6.0f} us, {statistics.median(ratios):.2f} times plain; CPU {busy:.2f} times"
        REPORT.line(f"call, {name}", text, us=[each * 1e6 for each in wall[name]], ratio=ratios)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--idle", type=float, default=10.0)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    measure_notices(options.calls, options.rounds)
    measure_schedules(options.schedules, options.idle)


if __name__ == "__main__":
    main()
