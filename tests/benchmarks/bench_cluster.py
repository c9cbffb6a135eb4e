"""Benchmark: runners of a cluster, over three NATS servers on this machine, beside one runner without a cluster.

`python tests/benchmarks/bench_cluster.py [STATES]`

All processes share the processors of this machine, so that rates and latencies tell more about it than about a cluster;
ratios within one run hold. STATES (100,000) are the executions in the log when a runner starts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.cluster.engine import Engine, open_engine
from actors.cluster.letters import Author, Letter, pack
from protocol.ids import execution_id
from protocol.model import Execution, Kind, ModuleRef, Status
from tests.benchmarks.report import Report
from tests.cluster.fleet import REDELIVERY, Fleet, Runner, fleet
from tests.cluster.servers import Servers, running
from tests.server_process import wait_for

report = Report(__file__)
STATES = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
ROUNDS, SUBMITS, NAPS, NAP = 5, 40, 40, 0.5
OTHERS = Author("bench", "bench", "1")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def submit(runner: Runner, calls: Path, count: int, seconds: float = 0.0) -> tuple[list[str], float]:
    """Submit one after the other; return the ids, and the median of the seconds until the answer."""
    names, took = list[str](), list[float]()
    for _ in range(count):
        began = time.perf_counter()
        name = runner.submit("once", {"calls": str(calls), "seconds": seconds})
        took.append(time.perf_counter() - began)
        assert name is not None
        names.append(name)
    return names, statistics.median(took)


def wait_ended(runner: Runner, name: str) -> None:
    wait_for(lambda: (runner.get(f"/executions/{name}") or {}).get("status") == "succeeded")


def resident(runner: Runner) -> int:
    """Return the bytes of a runner that no other process shares."""
    lines = Path(f"/proc/{runner.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def submits(alone: Runner, cluster: Fleet) -> None:
    """Measure one execution after the other, alone and in the cluster, in turns."""
    answers: list[list[float]] = [[], []]
    wholes: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for at, runner in enumerate((alone, cluster.runners[0])):
            began = time.perf_counter()
            names, median = submit(runner, cluster.calls, SUBMITS)
            for name in names:
                wait_ended(runner, name)
            answers[at].append(median)
            wholes[at].append((time.perf_counter() - began) / SUBMITS)
    one, three = statistics.median(answers[0]), statistics.median(answers[1])
    text = f"{three * 1e3:.1f} ms in a cluster, {one * 1e3:.1f} ms alone: {three / one:.1f} times"
    report.line("answer to a submission", text, ms=three * 1e3, ratio=three / one)
    one, three = statistics.median(wholes[0]), statistics.median(wholes[1])
    text = f"{three * 1e3:.1f} ms in a cluster, {one * 1e3:.1f} ms alone: {three / one:.1f} times"
    report.line("submissions that run, one runner submits", text, ms=three * 1e3, ratio=three / one)


def doors(cluster: Fleet) -> None:
    """Read an execution that runs, through the door of its owner and of another runner, in turns."""
    until = cluster.folder / "until-doors"
    name = cluster.submit(cluster.runners[0], "once", until=str(until))
    assert name is not None
    wait_for(lambda: cluster.begun(name))
    node = cluster.runners[0].get(f"/executions/{name}")["node"]
    owner = next(each for each in cluster.runners if each.node == node)
    other = next(each for each in cluster.runners if each.node != node)
    took: list[list[float]] = [[], []]
    for _ in range(100):
        for at, runner in enumerate((owner, other)):
            took[at].append(timed(lambda runner=runner: runner.get(f"/executions/{name}")))  # type: ignore[misc]
    until.touch()
    here, there = statistics.median(took[0]), statistics.median(took[1])
    text = f"{there * 1e3:.2f} ms, {here * 1e3:.2f} ms through its owner: {there / here:.1f} times"
    report.line("a running execution through another door", text, ms=there * 1e3, ratio=there / here)


def forwarding(cluster: Fleet) -> None:
    """Call a module whose labels one runner has, at that runner and at another one, in turns."""
    door, *_, owner = cluster.runners
    owner.stop()
    owner.options = (*owner.options, "--labels", "bench")
    owner.start()
    owner.wait_ready()
    code = "def handler(input):\n    return input\n"
    assert owner.client is not None
    owner.client.post("/modules", json={"name": "labelled", "env": "inline", "code": code, "needs": ["bench"]})
    wait_for(lambda: door.call("labelled", 1) is not None)
    took: list[list[float]] = [[], []]
    for _ in range(200):
        for at, runner in enumerate((owner, door)):
            took[at].append(timed(partial(runner.call, "labelled", 1)))
    here, there = statistics.median(took[0]), statistics.median(took[1])
    text = f"{there * 1e3:.2f} ms, {here * 1e3:.2f} ms at the runner that runs it: {there / here:.1f} times"
    report.line("a call that another runner runs", text, ms=there * 1e3, ratio=there / here)


def redelivery(cluster: Fleet) -> None:
    """Measure the time from the kill of a runner to the next attempt elsewhere."""
    until = cluster.folder / "until-killed"
    name = cluster.submit(cluster.runners[0], "again", until=str(until))
    assert name is not None
    wait_for(lambda: cluster.begun(name))
    node = cluster.runners[0].get(f"/executions/{name}")["node"]
    killed = next(each for each in cluster.runners if each.node == node)
    killed.kill()
    took = timed(lambda: wait_for(lambda: len(cluster.begun(name)) == 2))
    until.touch()
    report.line("from kill -9 to the next attempt", f"{took:.1f} s with `redelivery` {REDELIVERY} s", seconds=took)
    cluster.heal()


def capacity(cluster: Fleet) -> None:
    """Run sleeping handlers on one, two and three runners."""
    rates: dict[int, float] = {}
    for count in (3, 2, 1):
        for runner in cluster.runners[count:]:
            if runner.running:
                runner.stop()
        submit(cluster.runners[0], cluster.calls, 4 * count, NAP)  # workers start
        began = time.perf_counter()
        names, _ = submit(cluster.runners[0], cluster.calls, NAPS * count, NAP)
        for name in names:
            wait_ended(cluster.runners[0], name)
        rates[count] = NAPS * count / (time.perf_counter() - began)
    shown = ", ".join(f"{rates[count]:.0f} a second with {count}" for count in (1, 2, 3))
    report.line(f"sleeping handlers of {NAP} s", shown, ratio=rates[3] / rates[1])
    cluster.heal()


def state(number: int) -> Execution:
    now = time.time()
    ended = {"result": b"1", "started_at": now, "finished_at": now, "attempts": 1, "exit_code": 0}
    module = ModuleRef("bench", "1")
    return Execution(execution_id(), module, Kind.INLINE, Status.SUCCEEDED, now, b"%d" % number, **ended)  # type: ignore[arg-type]


async def publish(engine: Engine, count: int, rate: float | None) -> str:
    """Publish ended executions, at most `rate` a second; return the id of the last one."""
    began, left, last = trio.current_time(), iter(range(count)), ""

    async def work() -> None:
        nonlocal last
        for number in left:
            if rate is not None:
                await trio.sleep_until(began + number / rate)
            execution = state(number)
            await engine.publish(engine.names.state(execution.id), pack(Letter(OTHERS, execution)).data, expect=0)
            if number == count - 1:
                last = execution.id

    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(work)
    return last


async def lag(servers: Servers, cluster: Fleet, name: str) -> None:
    """Publish 1,000 ends a second for five seconds, as another runner would."""
    async with open_engine(servers.settings(name, node="bench")) as engine:
        began = time.perf_counter()
        last = await publish(engine, 5000, 1000)
        took = time.perf_counter() - began
        lags = [await trio.to_thread.run_sync(lambda r=r: timed(lambda: wait_ended(r, last))) for r in cluster.runners]  # type: ignore[misc]
    text = f"{max(lags) * 1e3:.0f} ms after the last of {5000 / took:.0f} a second"
    report.line("all doors have a state of another runner", text, ms=max(lags) * 1e3)


async def fill(servers: Servers, name: str) -> None:
    async with open_engine(servers.settings(name, node="bench")) as engine:
        await publish(engine, STATES, None)


def start(servers: Servers, folder: Path, name: str) -> None:
    """Start a runner without history in a cluster with many executions."""
    trio.run(fill, servers, name)
    began = time.perf_counter()
    with fleet(servers, folder, name=name, nodes=("late",)) as late:
        ready = time.perf_counter() - began
        wait_for(lambda: late.runners[0].get("/nodes")["lag"] == 0, 600)
        whole = time.perf_counter() - began
        size = resident(late.runners[0]) / 2**20
    text = f"{ready:.1f} s until it serves, {whole:.1f} s until its history is whole, {size:.0f} MB then"
    report.line(f"start with {STATES:,} executions in the log", text, seconds=whole)


def main() -> None:
    with tempfile.TemporaryDirectory() as place, running(Path(place) / "servers", 3) as servers:
        folder = Path(place)
        with fleet(servers, folder / "fleet", name="bench") as cluster:
            alone = Runner("alone", folder / "alone", ("--max-workers", "4"))
            alone.start()
            alone.wait_ready()
            try:
                submits(alone, cluster)
                doors(cluster)
                one, three = resident(alone) / 2**20, resident(cluster.runners[0]) / 2**20
                text = f"{three:.0f} MB in a cluster, {one:.0f} MB alone"
                report.line("memory of a runner", text, ratio=three / one)
            finally:
                alone.kill()
            forwarding(cluster)
            redelivery(cluster)
            capacity(cluster)
            trio.run(lag, servers, cluster, "bench")
        start(servers, folder / "late", "many")


main()
