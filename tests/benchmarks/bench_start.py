"""Benchmark: how long the program takes to start and what it takes while idle, from source and as one file.

From source, against an interpreter that does nothing and a bare quart-trio server. The one-file executables, against a
plain virtual environment; they are built for it as `make dist` builds them, which needs the network the first time.
Ratios in one run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from environments.installer import find_uv
from tests.benchmarks.report import Report
from tests.interpreter import program

ROOT = Path(__file__).resolve().parents[2]
COLD, WARM, SERVED = 3, 15, 5
IDLE = 1.0
"""Seconds after the start in which spare workers are started."""
MANY = 2000
MODULE = '  m{}: {{env: inline, code: "def handler(input): return input"}}\n'
MODULES = f"modules:\n{MODULE.format(0)}"
BARE = """
import json, os
from functools import partial
from pathlib import Path

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart_trio import QuartTrio

app = QuartTrio(__name__)

@app.post("/")
async def echo():
    return {}

async def main():
    config = Config()
    config.bind = ["127.0.0.1:0"]
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, config))
        Path("ready").write_text(json.dumps({"pid": os.getpid()}))

trio.run(main)
"""


def version(argv: Sequence[str], home: Path) -> float:
    """Return the milliseconds that `--version` takes with this home, which is empty the first time."""
    home.mkdir(exist_ok=True)
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    began = time.perf_counter()
    subprocess.run([*argv, "--version"], env=environ, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def serve(argv: Sequence[str], home: Path, modules: str = MODULES) -> tuple[float, int]:
    """Return the milliseconds from starting a server to its ready file, and its kilobytes when it has been idle."""
    home.mkdir(exist_ok=True)
    (home / "modules.yaml").write_text(modules)
    command = ["serve", "--rest-port", "0", "--grpc-port", "0", "--ready-file", "ready", "--log-level", "error"]
    return until_ready([*argv, *command], home)


def until_ready(command: Sequence[str], home: Path) -> tuple[float, int]:
    """Return the milliseconds until a command has written its process id to `ready`, and its kilobytes when idle."""
    ready = home / "ready"
    ready.unlink(missing_ok=True)
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=home, env=environ, stderr=subprocess.DEVNULL) as server:
        while not ready.exists():
            if server.poll() is not None:
                raise SystemExit(f"{command} did not start")
            time.sleep(0.001)
        taken = (time.perf_counter() - began) * 1000
        time.sleep(IDLE)
        status = Path(f"/proc/{json.loads(ready.read_text())['pid']}/status").read_text()
        server.terminate()
    return taken, int(status.partition("VmRSS:")[2].split()[0])


def served(argv: Sequence[str], home: Path) -> float:
    """Return the milliseconds from starting a server to its ready file."""
    return serve(argv, home)[0]


def measure_source(report: Report, folder: Path) -> None:
    """Report the program from source, whose code is compiled already."""
    main = [sys.executable, str(ROOT / "main.py")]
    nothing = [sys.executable, "-I", "-S", "-c", "pass"]
    bare = folder / "bare.py"
    bare.write_text(BARE)
    many = "".join(MODULE.format(number) for number in range(MANY))
    servers = {
        "bare": lambda: until_ready([sys.executable, str(bare)], folder),
        "one": lambda: serve(main, folder / "one"),
        "many": lambda: serve(main, folder / "many", f"modules:\n{many}"),
    }
    kilobytes = {}

    def start(name: str, _turn: int) -> float:
        taken, kilobytes[name] = servers[name]()
        return taken

    commands = {"nothing": nothing, "version": main}
    began = least(commands, WARM, lambda name, _: version(commands[name], folder / "source"))
    ready = least(servers, SERVED, start)
    against = "of a bare quart-trio server"
    for name, modules in (("one", "one module"), ("many", f"{MANY} modules")):
        what, ratio = f"start to ready, {modules}", ready[name] / ready["bare"]
        report.line(what, f"{ready[name]:.0f} ms, x{ratio:.2f} {against}", ms=ready[name], ratio=ratio)
        size, ratio = kilobytes[name] / 1024, kilobytes[name] / kilobytes["bare"]
        report.line(f"idle, {modules}", f"{size:.1f} MiB, x{ratio:.2f} {against}", mib=size, ratio=ratio)
    ratio = began["version"] / began["nothing"]
    shown = f"{began['version']:.0f} ms, x{ratio:.1f} of an interpreter that does nothing"
    report.line("--version from source", shown, ms=began["version"], ratio=ratio)


def make_plain(folder: Path, wheels: Path, wheel: Path) -> list[str]:
    """Make a virtual environment of the same wheels; return the command that runs the program in it."""
    venv.create(folder)
    python = str(folder / "bin" / "python")
    uv = [find_uv() or "uv", "pip", "install", "-q", "--offline", "--no-index", "--no-config", "--python", python]
    subprocess.run([*uv, "--link-mode", "copy", "--find-links", str(wheels), str(wheel)], check=True)
    return [str(folder / "bin" / "operato-runner")]


def least(names: Iterable[str], rounds: int, measure: Callable[[str, int], float]) -> dict[str, float]:
    """Return the least of `rounds` measures for each name."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name, times in taken.items():
            times.append(measure(name, turn))
    return {name: min(times) for name, times in taken.items()}


def main() -> None:
    """Print one line for each measure."""
    report = Report(__file__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out, wheels = folder / "out", ROOT / "build" / "wheels"
        command = [sys.executable, str(ROOT / "packaging" / "make_dist.py"), "--out", str(out), "--wheels", str(wheels)]
        subprocess.run(command, check=True)
        (wheel,) = out.glob("*.whl")
        programs = {"plain": make_plain(folder / "plain", wheels, wheel)}
        files = {kind: out / f"operato-runner.{kind}" for kind in ("pyz", "pex")}
        programs |= {kind: [str(program()), str(file)] for kind, file in files.items()}
        # The least of some rounds, in which all take their turn: what else this machine does slows all alike.
        cold = least(programs, COLD, lambda name, turn: version(programs[name], folder / f"{name}-{turn}"))
        warm = least(programs, WARM, lambda name, _: version(programs[name], folder / f"{name}-0"))
        ready = least(programs, SERVED, lambda name, _: served(programs[name], folder / f"{name}-0"))
        measure_source(report, folder)
    report.line("plain environment, --version", f"{warm['plain']:.0f} ms", ms=warm["plain"])
    report.line("plain environment, serving", f"{ready['plain']:.0f} ms", ms=ready["plain"])
    for kind in files:
        for what, taken, plain in (
            ("first --version", cold, warm),
            ("later --version", warm, warm),
            ("serving", ready, ready),
        ):
            ratio = taken[kind] / plain["plain"]
            text = f"{taken[kind]:.0f} ms, x{ratio:.1f} of the plain environment"
            report.line(f"{kind}, {what}", text, ms=taken[kind], ratio=ratio)


if __name__ == "__main__":
    main()
