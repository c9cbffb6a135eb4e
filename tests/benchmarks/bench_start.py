"""Benchmark: how long the one-file executables take to start, against a plain virtual environment. Ratios in one run.

They are built for it as `make dist` builds them, which needs the network the first time.
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
MODULES = 'modules: {m: {env: inline, code: "def handler(input): return input"}}'


def version(argv: Sequence[str], home: Path) -> float:
    """Return the milliseconds that `--version` takes with this home, which is empty the first time."""
    home.mkdir(exist_ok=True)
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    began = time.perf_counter()
    subprocess.run([*argv, "--version"], env=environ, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def served(argv: Sequence[str], home: Path) -> float:
    """Return the milliseconds from starting a server to its ready file."""
    ready = home / "ready"
    ready.unlink(missing_ok=True)
    (home / "modules.yaml").write_text(MODULES)
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    command = [*argv, "serve", "--rest-port", "0", "--grpc-port", "0", "--ready-file", "ready", "--log-level", "error"]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=home, env=environ, stderr=subprocess.DEVNULL) as server:
        while not ready.exists():
            if server.poll() is not None:
                raise SystemExit(f"{argv} did not start")
            time.sleep(0.001)
        taken = (time.perf_counter() - began) * 1000
        assert json.loads(ready.read_text())["rest"]
        server.terminate()
    return taken


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
    report = Report(__file__)
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
