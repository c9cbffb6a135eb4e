"""Benchmark: the cost of a worker: frames, forks, starts, builds, large payloads, memory. Ratios within one run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.events import EventLog
from actors.system import Surroundings, System, open_system
from actors.workers.call import Call, Outcome
from actors.workers.pool import Phases
from config.load import base_environment, installer_environment, load_settings, secret_values
from environments import proc
from protocol.messages import check_json
from tests.benchmarks.report import Report

MODULES = """
modules:
  - {name: warm, env: inline, concurrency: 1, code: "def handler(input):\\n    return input\\n"}
  - {name: forked, env: inline, concurrency: 1, isolation: fork, code: "def handler(input):\\n    return input\\n"}
  - {name: first, env: inline, concurrency: 1, code: "def handler(input):\\n    return input\\n"}
  - name: ready-venv
    env: venv
    requirements: [tabulate]
    code: "def handler(input): return input"
"""


def median_ms(work: Callable[[], object], times: int) -> float:
    """Return the median time of `work` in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def bare_round_trip_ms() -> float:
    """Return the round trip of 100 bytes to a child over a blocking pipe pair, and nothing else."""
    code = "import os\nwhile True:\n    d = os.read(0, 65536)\n    if not d: break\n    os.write(1, d)\n"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=-1, stdout=-1, bufsize=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        to, back, data = child.stdin.fileno(), child.stdout.fileno(), b"x" * 100

        def trip() -> None:
            os.write(to, data)
            os.read(back, 65536)

        trip()
        result = median_ms(trip, 3000)
        child.stdin.close()
    return result


async def call(system: System, name: str, data: bytes) -> Outcome:
    """Run a module once through its executor."""
    module = system.registry.snapshot.get(name)
    log = EventLog(limit=1 << 20, keep=1 << 20)
    small = len(data) < 1 << 16  # the doors check a large input in a thread too
    value = check_json(data) if small else await trio.to_thread.run_sync(check_json, data)
    async with system.executors[module.spec.env].lease(module, Phases()) as worker:
        outcome = await worker.execute(Call("bench", value, 1, 60.0, log))
    if outcome.failure is not None:
        raise SystemExit(str(outcome.failure))
    return outcome


async def median_call_ms(system: System, name: str, data: bytes, times: int) -> float:
    """Return the median time of a call in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call(system, name, data)
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


async def longest_hold_ms(system: System, data: bytes) -> float:
    """Return the longest time for which one call with a large payload blocked the loop, in milliseconds."""
    longest = 0.0
    async with trio.open_nursery() as nursery:

        async def probe() -> None:
            nonlocal longest
            last = time.perf_counter()
            while True:
                await trio.lowlevel.checkpoint()
                now = time.perf_counter()
                longest, last = max(longest, now - last), now

        nursery.start_soon(probe)
        for _ in range(3):  # the probe needs a time to compare with, before and after
            await trio.lowlevel.checkpoint()
        await call(system, "warm", data)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return longest * 1000


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[System]:
    """Open a system with the modules of this benchmark."""
    file = folder / "modules.yaml"
    file.write_text(MODULES)
    given = {"config": str(file), "data_dir": str(folder / "data"), "venv_path": str(folder / "venvs")}
    loaded = load_settings(given, {})
    around = Surroundings(base_environment(), installer_environment(), secret_values)
    async with open_system(loaded.settings, around, loaded.modules.modules) as system:
        yield system


async def first_call_ms(system: System, name: str) -> float:
    """Return the time of the first call of a module whose environment exists and has a spare interpreter."""
    module = system.registry.snapshot.get(name)
    executor = system.executors[module.spec.env]
    with trio.fail_after(60):
        while not executor.statistics().spares:
            await trio.sleep(0.05)
    await trio.sleep(0.3)  # let the spare come up: that is its purpose
    began = time.perf_counter()
    await call(system, name, b"1")
    return (time.perf_counter() - began) * 1000


async def new_venv_ms(folder: Path) -> float:
    """Return the time from publishing a venv module with one small requirement to its first answer, cache warm."""
    taken = []
    for number in range(2):  # the first fills the installer's cache
        home = folder / f"new-{number}"
        home.mkdir()
        async with opened(home) as system:
            file = home / "modules.yaml"
            file.write_text(MODULES + json_module())
            loaded = load_settings({"config": str(file)}, {})
            await call(system, "ready-venv", b"1")  # its build is not to be a part of this one
            began = time.perf_counter()
            await system.publish(loaded.modules.modules)
            await call(system, "later", b"1")
            taken.append((time.perf_counter() - began) * 1000)
    return taken[-1]


def json_module() -> str:
    """Return one more module for the file."""
    spec = {
        "name": "later",
        "env": "venv",
        "requirements": ["toolz==1.0.0"],
        "code": "import toolz\ndef handler(i, /): return 1\n",
    }
    return f"  - {json.dumps(spec)}\n"


async def main() -> None:
    """Print one line for each measure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    bare = bare_round_trip_ms()
    python = median_ms(lambda: subprocess.run([sys.executable, "-I", "-c", "pass"], check=True), 15)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with opened(folder) as system:
            first = await first_call_ms(system, "first")
            first_venv = await first_call_ms(system, "ready-venv")
            await call(system, "warm", b"1")
            trip = await median_call_ms(system, "warm", b'{"name":"' + b"x" * 80 + b'"}', 3000)
            await call(system, "forked", b"1")
            fork = await median_call_ms(system, "forked", b"1", 300)
            large = json.dumps([{"name": "x" * 20, "value": n * 1.5} for n in range(200_000)]).encode()
            hold = min([await longest_hold_ms(system, large) for _ in range(3)])
            workers = [pid for pid in proc.children(os.getpid()) if proc.alive(pid)]
            worker = statistics.median(proc.resident_bytes(pid) for pid in workers)
        new = await new_venv_ms(folder)
    report = Report(__file__)
    text = f"{trip * 1000:.0f} us, x{trip / bare:.1f} of a bare pipe round trip"
    report.line("frame out to frame in", text, us=trip * 1000, ratio=trip / bare)
    report.line("fork per call", f"{fork:.2f} ms, x{fork / trip:.1f} of a warm call", ms=fork, ratio=fork / trip)
    for what, taken in {
        "first call (inline)": first,
        "first call, environment exists (venv)": first_venv,
        "new venv, one small requirement, cache warm": new,
    }.items():
        report.line(what, f"{taken:.1f} ms, x{taken / python:.2f} of a bare start", ms=taken, ratio=taken / python)
    text = f"{hold:.1f} ms, for {len(large) / 1e6:.1f} MB of JSON in and out"
    report.line("longest hold of the loop", text, ms=hold)
    report.line("memory of an idle worker", f"{worker / 1e6:.1f} MB private", mb=worker / 1e6)


if __name__ == "__main__":
    trio.run(main)
