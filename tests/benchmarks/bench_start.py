"""Benchmark: how long the one-file executables take to start, against a plain virtual environment. Ratios in one run.

They are built for it as `make dist` builds them, which needs the network the first time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from environments.venv import find_uv
from tests.interpreter import program

ROOT = Path(__file__).resolve().parents[2]
COLD, WARM, SERVED = 3, 15, 5
MODULES = 'modules: {m: {env: inline, code: "def handler(input): return input"}}'


def median_ms(work: Callable[[], object], times: int) -> float:
    """Return the median time of `work` in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def version(argv: Sequence[str], home: Path) -> None:
    """Run `--version` with a home."""
    home.mkdir(exist_ok=True)
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    subprocess.run([*argv, "--version"], env=environ, check=True, stdout=subprocess.DEVNULL)


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


def main() -> None:
    """Print one line for each measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out, wheels = folder / "out", ROOT / "build" / "wheels"
        command = [sys.executable, str(ROOT / "packaging" / "make_dist.py"), "--out", str(out), "--wheels", str(wheels)]
        subprocess.run(command, check=True)
        (wheel,) = out.glob("*.whl")
        plain = make_plain(folder / "plain", wheels, wheel)
        home = folder / "home"
        version(plain, home)  # its bytecode
        bare, bare_served = (
            median_ms(lambda: version(plain, home), WARM),
            statistics.median(served(plain, home) for _ in range(SERVED)),
        )
        print(f"plain virtual environment: --version {bare:.0f} ms, serving after {bare_served:.0f} ms")
        for kind in ("pyz", "pex"):
            file = out / f"operato-runner.{kind}"
            argv = [str(program()), str(file)]
            homes = iter([folder / f"{kind}-{number}" for number in range(COLD)])
            cold = median_ms(lambda argv=argv, homes=homes: version(argv, next(homes)), COLD)  # type: ignore[misc]
            home = folder / f"{kind}-0"
            warm = median_ms(lambda argv=argv, home=home: version(argv, home), WARM)  # type: ignore[misc]
            ready = statistics.median(served(argv, home) for _ in range(SERVED))
            size = file.stat().st_size / 1e6
            print(f"{kind}, {size:.0f} MB: first --version {cold:.0f} ms, x{cold / bare:.1f} of a plain environment's")
            print(f"{kind}: later --version {warm:.0f} ms, x{warm / bare:.2f}; serving x{ready / bare_served:.2f}")


if __name__ == "__main__":
    main()
