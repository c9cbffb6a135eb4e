"""Benchmark: many modules: one caller calls them in turn, and one of them alone. Ratios within one run.

The same with bare processes that send JSON back, one and many of them, tells what is the machine's part: a process that
waits its turn among many finds its memory in no cache of the processor.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.system import Surroundings, System, open_system
from config.load import base_environment, installer_environment, load_settings, secret_values
from config.settings import Settings
from runner.api import Service
from runner.auth import Principal
from tests.benchmarks.report import Report

ANYBODY = Principal("bench", frozenset({"admin"}))
MODULES = 100
CALLS = 1000
ROUNDS = 3
ECHO = """
import json, socket, sys
host = socket.socket(fileno=int(sys.argv[1]))
while data := host.recv(65536):
    host.sendall(json.dumps(json.loads(data)).encode())
"""


@contextmanager
def bare_process() -> Iterator[trio.socket.SocketType]:
    """Start a process that sends JSON back; give the socket to it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-S", "-c", ECHO, str(theirs.fileno())]
    with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()]):
        theirs.close()
        channel = trio.socket.from_stdlib_socket(ours)
        yield channel
        channel.close()


async def bare_rate(channels: list[trio.socket.SocketType]) -> float:
    """Return calls of bare processes for each second."""
    began = time.perf_counter()
    for number in range(CALLS):
        channel = channels[number % len(channels)]
        await channel.send(b'{"n": 1}')
        await channel.recv(65536)
    return CALLS / (time.perf_counter() - began)


async def rate(service: Service, names: list[str]) -> tuple[float, float]:
    """Return calls for each second, and processor time of this process for each call in microseconds."""
    began, used = time.perf_counter(), time.process_time()
    for number in range(CALLS):
        done = await service.execute(ANYBODY, names[number % len(names)], b'{"n": 1}')
        if done.failure is not None:
            raise SystemExit(str(done.failure))
    return CALLS / (time.perf_counter() - began), (time.process_time() - used) / CALLS * 1e6


async def measure(system: System, settings: Settings) -> None:
    """Call the modules, interleaved."""
    report = Report(__file__)
    service = Service(system.registry, system.executors, system.history, system.runs, system.files, settings)
    names = [f"m{number}" for number in range(MODULES)]
    began = time.perf_counter()
    for name in names:
        await service.execute(ANYBODY, name, b"1")
    first = (time.perf_counter() - began) / MODULES * 1000
    report.line("first calls of all, each", f"{first:.1f} ms", ms=first)
    with ExitStack() as stack:
        bare = [stack.enter_context(bare_process()) for _ in names]
        rounds, bare_rounds = [], []
        for _ in range(ROUNDS):
            rounds.append((await rate(service, names[:1]), await rate(service, names)))
            bare_rounds.append((await bare_rate(bare[:1]), await bare_rate(bare)))
    (one, one_cpu), (many, many_cpu) = (max(each[side] for each in rounds) for side in range(2))
    bare_one, bare_many = (max(each[side] for each in bare_rounds) for side in range(2))
    report.line("one module", f"{one:.0f} a second, {one_cpu:.0f} us of processor time", rate=one)
    text = f"{many:.0f} a second, x{many / one:.2f} of one, {many_cpu:.0f} us of processor time"
    report.line(f"{MODULES} modules in turn", text, rate=many, ratio=many / one)
    text = f"{bare_many:.0f} a second, x{bare_many / bare_one:.2f} of one"
    report.line(f"{MODULES} bare processes in turn", text, rate=bare_many, ratio=bare_many / bare_one)
    slower, bare_slower = (1e6 / many - 1e6 / one for one, many in ((one, many), (bare_one, bare_many)))
    text = f"{slower:.0f} us a call, {bare_slower:.0f} us with bare processes"
    report.line(f"what {MODULES} cost more than one", text, us=slower, ratio=slower / bare_slower)
    (found,) = (executor.statistics() for kind, executor in system.executors.items() if kind == "inline")
    text = f"{found.idle} workers, {found.kept_memory / 1e6:.0f} MB private, {found.evicted} evicted"
    report.line("kept", text, workers=found.idle, mb=found.kept_memory / 1e6)


async def main() -> None:
    """Print one line for each measure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "modules.yaml")
        code = 'code: "def handler(input):\\n    return input\\n"'
        file.write_text("modules:\n" + "".join(f"  - {{name: m{n}, env: inline, {code}}}\n" for n in range(MODULES)))
        given = {"config": str(file), "data_dir": str(Path(name, "data")), "venv_path": str(Path(name, "venvs"))}
        loaded = load_settings(given | dict(each.split("=", 1) for each in sys.argv[1:]), os.environ)
        around = Surroundings(base_environment(), installer_environment(), secret_values)
        async with open_system(loaded.settings, around, loaded.modules.modules) as system:
            await measure(system, loaded.settings)


if __name__ == "__main__":
    trio.run(main)
