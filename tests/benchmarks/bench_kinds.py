"""Benchmark: what each kind of environment costs: warm calls, first calls, fork and fresh, builds. Ratios in one run.

Images and conda packages are those of the tests, made of the running interpreter, so nothing is fetched for them. A
kind that this machine does not have is left out with its reason.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.events import EventLog
from actors.system import Surroundings, System, open_system
from actors.workers.call import Call
from actors.workers.pool import Phases
from config.load import base_environment, installer_environment, load_settings, secret_values
from protocol.errors import RunnerError
from protocol.messages import check_json
from protocol.model import Isolation, Kind
from tests import engines
from tests.benchmarks.report import Report
from tests.channel import make_channel

report = Report(__file__)
REQUIREMENT = "toolz==1.0.0"
CALLS = {Isolation.WARM: 300, Isolation.FORK: 60, Isolation.FRESH: 15}
FIRST_CALLS = 5
PREPARE_SECONDS = 300
CODE = "def handler(input):\n    return input\n"


async def call(system: System, name: str) -> float:
    """Run a module once; return the milliseconds that it took from asking for a worker to its answer."""
    module = system.registry.snapshot.get(name)
    log = EventLog(limit=1 << 20, keep=1 << 20)
    began = time.perf_counter()
    async with system.executors[module.spec.env].lease(module, Phases()) as worker:
        outcome = await worker.execute(Call("bench", check_json(b'{"name": "world"}'), 1, 60.0, log))
    if outcome.failure is not None:
        raise RunnerError(outcome.failure)
    return (time.perf_counter() - began) * 1000


@asynccontextmanager
async def opened(folder: Path, modules: list[dict[str, object]], **options: object) -> AsyncIterator[System]:
    """Open a system with these modules, without spares, so that a first call starts its worker."""
    file = folder / "modules.yaml"
    file.write_text(json.dumps({"modules": modules}))
    given = {"config": str(file), "data_dir": str(folder / "data"), "venv_path": str(folder / "venvs")}
    given |= {"conda_path": str(folder / "condas"), "spares": 0, "log_level": "error", **options}
    loaded = load_settings(given, {})
    around = Surroundings(base_environment(), installer_environment(), secret_values)
    async with open_system(loaded.settings, around, loaded.modules.modules) as system:
        yield system


async def ready(system: System, name: str) -> str:
    """Build the environment of a module; return why it cannot be had, or nothing."""
    module = system.registry.snapshot.get(name)
    try:
        build = system.executors[module.spec.env].prepare(module)
    except RunnerError as problem:
        return problem.failure.message
    with trio.move_on_after(PREPARE_SECONDS):
        await build.wait_ended()
        return "" if build.failure is None else build.failure.message
    return f"not built within {PREPARE_SECONDS} s"


async def kinds(folder: Path) -> None:
    """Print what calls cost for each kind: warm and first ones, and those of the other isolations."""
    conda: dict[str, object] = {"channels": [make_channel(folder / "channel")]}
    options = {}
    if not engines.missing():
        options = {"docker_base_image": engines.make_base_image(), "docker_build_network": "host"}
    modules: list[dict[str, object]] = [
        {"name": f"{kind}-{isolation}", "env": kind, "isolation": isolation, "concurrency": 1, "code": CODE}
        | (conda if kind is Kind.CONDA else {})
        for kind in Kind
        for isolation in CALLS
    ]
    # A module of its own for each first call: the environment is the same, the worker is not there.
    modules += [
        {"name": f"{kind}-first-{n}", "env": kind, "code": f"{CODE}# {n}\n"} | (conda if kind is Kind.CONDA else {})
        for kind in Kind
        for n in range(FIRST_CALLS)
    ]
    inline = 0.0
    async with opened(folder, modules, max_workers=64, **options) as system:
        for kind in Kind:
            if why := await ready(system, f"{kind}-{Isolation.WARM}"):
                print(f"{kind}: left out: {' '.join(why.split())[:200]}")
                continue
            for n in range(FIRST_CALLS):
                await ready(system, f"{kind}-first-{n}")
            first = statistics.median([await call(system, f"{kind}-first-{n}") for n in range(FIRST_CALLS)])
            taken = {}
            for isolation, times in CALLS.items():
                await call(system, f"{kind}-{isolation}")
                taken[isolation] = statistics.median([await call(system, f"{kind}-{isolation}") for _ in range(times)])
            warm, fork, fresh = (taken[isolation] for isolation in CALLS)
            inline = inline or warm
            text = f"{warm:.2f} ms, x{warm / inline:.2f} of inline"
            report.line(f"{kind}, warm call", text, ms=warm, ratio=warm / inline)
            report.line(f"{kind}, first call", f"{first:.0f} ms", ms=first)
            report.line(f"{kind}, fork", f"{fork:.2f} ms", ms=fork)
            report.line(f"{kind}, fresh", f"{fresh:.1f} ms, x{fresh / fork:.1f} of fork", ms=fresh, ratio=fresh / fork)


async def venv_build_ms(home: Path, cache: Path) -> float:
    """Return how long it takes to lock and build an environment with one small requirement, until it is ready."""
    home.mkdir()
    module = {"name": "m", "env": "venv", "requirements": [REQUIREMENT], "code": CODE}
    file = home / "modules.yaml"
    file.write_text(json.dumps({"modules": [module]}))
    around = Surroundings(base_environment(), installer_environment() | {"UV_CACHE_DIR": str(cache)}, secret_values)
    given = {"config": str(file), "data_dir": str(home / "data"), "venv_path": str(home / "venvs"), "spares": 0}
    loaded = load_settings(given, {})
    began = time.perf_counter()
    async with open_system(loaded.settings, around, loaded.modules.modules) as system:
        if why := await ready(system, "m"):
            raise OSError(why.splitlines()[-1][:200])
        return (time.perf_counter() - began) * 1000


def pip_build_ms(home: Path, cache: Path) -> float:
    """Return how long `python -m venv` and pip take for the same."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--cache-dir", str(cache)]
    subprocess.run([*pip, "install", "-q", REQUIREMENT], check=True, capture_output=True)
    return (time.perf_counter() - began) * 1000


async def builds(folder: Path) -> None:
    """Print what building a venv costs with an empty and with a filled cache, against venv and pip."""
    try:
        own = [await venv_build_ms(folder / f"own-{n}", folder / "uv-cache") for n in range(3)]
        pip = [pip_build_ms(folder / f"pip-{n}", folder / "pip-cache") for n in range(3)]
    except (OSError, subprocess.CalledProcessError) as problem:
        print(f"venv build: left out: {problem}")
        return
    for what, ours, theirs in (("empty", own[0], pip[0]), ("filled", min(own[1:]), min(pip[1:]))):
        text = f"{ours:.0f} ms, x{ours / theirs:.2f} of venv and pip ({theirs:.0f} ms)"
        report.line(f"venv build, cache {what}", text, ms=ours, ratio=ours / theirs)


async def main() -> None:
    """Print a few lines for each kind."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as name:
        try:
            await kinds(Path(name))
        finally:
            if not engines.missing():
                engines.remove_images()
    with tempfile.TemporaryDirectory() as name:
        await builds(Path(name))


if __name__ == "__main__":
    trio.run(main)
