"""Benchmark: bytes on the worker channel: a large file in and out, and 1 and 10 MB beside JSON of the same size.

`python tests/benchmarks/bench_channel.py [MIB]`

`memory` is the growth of the runner's memory, `step` the longest step of a task by its own CPU time, and `ratio` the
CPU time of the runner divided by that of a copy with SHA-256 on the same disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.events import EventLog
from actors.system import Surroundings, System, open_system
from actors.workers.call import Call
from actors.workers.pool import Phases
from config.load import base_environment, installer_environment, load_settings, secret_values
from environments import proc
from protocol.messages import check_json
from tests.benchmarks.report import Report

MIB = 1 << 20
MODULES = """
modules:
  - name: takes
    env: inline
    timeout: 600
    code: |
      from operato import File
      def handler(input): return File(input["f"]).size
  - name: gives
    env: inline
    timeout: 600
    code: |
      import io
      class Source(io.RawIOBase):
          def __init__(self, pieces): self.pieces = pieces
          def readable(self): return True
          def seekable(self): return False
          def read(self, size=-1):
              self.pieces -= 1
              return PIECE if self.pieces >= 0 else b""
      PIECE = bytes(1 << 20)
      def handler(input): return Source(input)
  - {name: data, env: inline, code: "def handler(input): return bytes(input)"}
  - {name: text, env: inline, code: "def handler(input): return 'x' * input"}
"""


class Steps(trio.abc.Instrument):
    """The longest step of a task by CPU time, and the highest memory."""

    def __init__(self) -> None:
        self.at, self.longest, self.base, self.highest = time.thread_time(), 0.0, 0, 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.at = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self.at)

    def begin(self) -> None:
        """Begin a measure."""
        self.longest, self.base, self.highest = 0.0, proc.resident_bytes(os.getpid()), 0

    async def watch(self) -> None:
        """Follow the memory."""
        while True:
            self.highest = max(self.highest, proc.resident_bytes(os.getpid()))
            await trio.sleep(0.01)


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def call(system: System, name: str, value: Any, files: Mapping[str, tuple[Path, str]] | None = None) -> Any:
    """Run a module once through its executor."""
    module, log = system.registry.snapshot.get(name), EventLog(limit=MIB, keep=MIB)
    store = partial(system.files.writing, execution="bench", module=name)
    async with system.executors[module.spec.env].lease(module, Phases()) as worker:
        raw = check_json(json.dumps(value).encode())
        outcome = await worker.execute(Call("bench", raw, 1, 600.0, log, files or {}, store))
    if outcome.failure is not None or outcome.result is None:
        raise SystemExit(str(outcome.failure))
    return json.loads(outcome.result)


def copy_seconds(source: Path, target: Path) -> tuple[float, float]:
    """Return wall and CPU time of a copy with its digest, brought to the disk."""
    began, used, digest = time.perf_counter(), cpu_seconds(), hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as copy:
        while piece := file.read(MIB):
            digest.update(piece)
            copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())
    target.unlink()
    return time.perf_counter() - began, cpu_seconds() - used


async def median_ms(system: System, name: str, size: int) -> float:
    """Return the median time of a call with a result of this size."""
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        await call(system, name, size)
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[System]:
    """Open a system with the modules of this benchmark."""
    file = folder / "modules.yaml"
    file.write_text(MODULES)
    loaded = load_settings({"config": str(file), "data_dir": str(folder / "data"), "max_file": "4GiB"}, {})
    around = Surroundings(base_environment(), installer_environment(), secret_values)
    async with open_system(loaded.settings, around, loaded.modules.modules) as system:
        yield system


async def large(system: System, report: Report, size: int, folder: Path) -> None:
    """Measure one large file, out of a handler and into one."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(steps.watch)
        await call(system, "gives", 1)
        steps.begin()
        began, used = time.perf_counter(), cpu_seconds()
        found = (await call(system, "gives", size // MIB))["$file"]
        wall, used = time.perf_counter() - began, cpu_seconds() - used
        grown, step = (steps.highest - steps.base) / MIB, steps.longest * 1000
        stored = await system.files.find(found["id"])
        assert stored is not None
        steps.begin()
        began = time.perf_counter()
        await call(system, "takes", {"f": {"$file": found}}, {stored.id: (stored.path, stored.name)})
        into = time.perf_counter() - began
        into_grown, into_step = (steps.highest - steps.base) / MIB, steps.longest * 1000
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(steps)
    copied, copied_cpu = copy_seconds(stored.path, folder / "copy")
    speed = f"{size / MIB / wall:,.0f} MiB/s, cp and SHA-256 {size / MIB / copied:,.0f}"
    ratio = used / copied_cpu
    text = f"{speed}; CPU time {ratio:.2f} times; memory +{grown:.0f} MiB; longest step {step:.1f} ms"
    report.line("a large file out", text, mib_s=size / MIB / wall, ratio=ratio, memory=grown, step=step)
    text = f"{size / MIB / into:,.0f} MiB/s; memory +{into_grown:.0f} MiB; longest step {into_step:.1f} ms"
    report.line("a large file in", text, mib_s=size / MIB / into, memory=into_grown, step=into_step)


async def main(size: int) -> None:
    """Print one line for each measure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    report = Report(__file__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with opened(folder) as system:
            await large(system, report, size, folder)
            for count in (1_000_000, 10_000_000):
                data, text = [await median_ms(system, kind, count) for kind in ("data", "text")]
                shown = f"{data:.1f} ms as bytes, {text:.1f} ms as JSON"
                report.line(f"a result of {count // 1_000_000} MB", shown, ms=data, ratio=data / text)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1] if len(sys.argv) > 1 else 1024) * MIB)
