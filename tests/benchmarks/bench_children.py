"""Benchmark: a call of a module by a handler, beside a plain round trip to a worker and a recorded execution.

`python tests/benchmarks/bench_children.py [ROUNDS]`

Rounds alternate within one process. A handler makes 200 calls, all of which find a warm worker: one after the other,
and by `map` with 8 at a time. `plain` is a lease and a call of the same module, without a record, and `recorded` what a
door does for a caller, without its transport.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.system import Surroundings, open_system
from config.load import base_environment, installer_environment, load_settings, secret_values
from config.settings import Settings
from runner.api.service import Service
from runner.auth.principal import Principal
from tests.benchmarks.bench_workers import call
from tests.benchmarks.report import Report

CALLS = 200
MODULES = """
modules:
  - name: warm
    env: inline
    code: |
      def handler(input):
          return input
  - name: calls
    env: inline
    calls_modules: [warm]
    code: |
      from operato import context
      def handler(input):
          here = context()
          if input:
              here.map("warm", [{"name": "World"}] * 200)
          for _ in range(0 if input else 200):
              here.call("warm", {"name": "World"})
"""
INPUT = b'{"name": "World"}'
ANYBODY = Principal("bench", frozenset({"admin"}), ())


Times = dict[str, list[tuple[float, float]]]
"""Seconds of one call, and CPU seconds of the runner, in each way, for each round."""


async def measured(rounds: int) -> Times:
    """Return the times of calls."""
    found: Times = {"plain": [], "recorded": [], "nested": [], "mapped": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "modules.yaml").write_text(MODULES)
        options = {"config": str(folder / "modules.yaml"), "data_dir": str(folder / "data")}
        loaded = load_settings(options, {})
        around = Surroundings(base_environment(), installer_environment(), secret_values)
        async with open_system(loaded.settings, around, loaded.modules.modules) as system:
            service = Service(system.registry, system.executors, system.history, system.runs, system.files, Settings())
            ways = {
                "plain": lambda: repeated(lambda: call(system, "warm", INPUT)),
                "recorded": lambda: repeated(lambda: service.execute(ANYBODY, "warm", INPUT)),
                "nested": lambda: service.execute(ANYBODY, "calls", b"0"),
                "mapped": lambda: service.execute(ANYBODY, "calls", b"1"),
            }
            for _ in range(rounds + 1):
                for way, run in ways.items():
                    began, used = time.perf_counter(), time.process_time()
                    await run()
                    seconds = time.perf_counter() - began, time.process_time() - used
                    found[way].append((seconds[0] / CALLS, seconds[1] / CALLS))
    return {way: times[1:] for way, times in found.items()}


async def repeated(run: Callable[[], Awaitable[object]]) -> None:
    """Run it many times."""
    for _ in range(CALLS):
        await run()


def main() -> None:
    """Print the lines."""
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    report = Report(__file__)
    found = trio.run(measured, int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    for way, times in found.items():
        ratios = [[one[n] / other[n] for one, other in zip(times, found["plain"], strict=True)] for n in (0, 1)]
        wall, cpu = (statistics.median(each[n] for each in times) * 1e6 for n in (0, 1))
        text = (
            f"{wall:.0f} us, {statistics.median(ratios[0]):.2f} of a plain round trip; "
            f"CPU of the runner {cpu:.0f} us, {statistics.median(ratios[1]):.2f}"
        )
        report.line(way, text, us=wall, ratio=ratios[0], cpu_ratio=ratios[1])


if __name__ == "__main__":
    main()
