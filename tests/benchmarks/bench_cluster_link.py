"""Benchmark: what the way over the link costs: publishes with their acknowledgement, beside bare nats-py.

`python tests/benchmarks/bench_cluster_link.py [PUBLISHES]`

Both use one real server and the same stream in its memory, in turns. `ratio` is the CPU time of this process for one
publish over the engine, divided by that of nats-py alone on its own loop; `wall` the same of the time on the clock.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nats.aio.client import Client

from actors.cluster.engine import Engine, open_engine
from tests.benchmarks.report import Report
from tests.cluster.servers import running

ROUNDS = 7
DATA = bytes(400)


def cpu() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def over_engine(engine: Engine, count: int, at_a_time: int) -> tuple[float, float]:
    """Publish, and return the seconds of CPU and clock for each."""
    left = iter(range(count))

    async def work() -> None:
        for number in left:
            await engine.publish(engine.names.presence(f"n{number % 64}"), DATA, headers={"Kind": "x"})

    began, used = time.perf_counter(), cpu()
    async with trio.open_nursery() as nursery:
        for _ in range(at_a_time):
            nursery.start_soon(work)
    return (cpu() - used) / count, (time.perf_counter() - began) / count


async def bare(url: str, prefix: str, count: int, at_a_time: int) -> tuple[float, float]:
    """Publish with nats-py alone, and return the same."""
    client = Client()
    await client.connect(url)
    stream = client.jetstream()
    left = iter(range(count))

    async def work() -> None:
        for number in left:
            await stream.publish(f"{prefix}.n.n{number % 64}", DATA, headers={"Kind": "x"})

    began, used = time.perf_counter(), cpu()
    await asyncio.gather(*(work() for _ in range(at_a_time)))
    found = (cpu() - used) / count, (time.perf_counter() - began) / count
    await client.close()
    return found


async def measure(settings: Any, count: int, report: Report) -> None:
    """Measure both in turns, one at a time and many."""
    async with open_engine(settings) as engine:
        for at_a_time in (1, 64):
            each: dict[str, list[tuple[float, float]]] = {"engine": [], "bare": []}
            for _ in range(ROUNDS):
                each["engine"].append(await over_engine(engine, count, at_a_time))
                alone = (settings.servers[0], settings.name, count, at_a_time)
                each["bare"].append(await trio.to_thread.run_sync(lambda: asyncio.run(bare(*alone))))  # noqa: B023
            pairs = list(zip(each["engine"], each["bare"], strict=True))
            ratios = [one[0] / other[0] for one, other in pairs]
            walls = [one[1] / other[1] for one, other in pairs]
            used, alone_used = (statistics.median(cost for cost, _ in each[name]) * 1e6 for name in each)
            clock, alone_clock = (statistics.median(each_wall for _, each_wall in each[name]) * 1e6 for name in each)
            text = f"{used:.0f} us of CPU, {alone_used:.0f} bare; {clock:.0f} us on the clock, {alone_clock:.0f} bare"
            report.line(f"publish, {at_a_time} at a time", text, ratio=ratios, wall=walls)


def main() -> None:
    """Run the benchmark."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), 1) as servers:
        trio.run(measure, servers.settings(), count, Report(__file__))


if __name__ == "__main__":
    main()
