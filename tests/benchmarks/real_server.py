"""Benchmark: starts the real server as a process and ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def real_server(modules: str, *options: str) -> Iterator[tuple[int, str]]:
    """Serve a modules file on a free port of loopback; give the port and an admin token."""
    with real_doors(modules, *options) as (ports, token):
        yield ports["rest"], token


@contextmanager
def real_doors(
    modules: str, *options: str, prepare: Callable[[Path], None] = lambda _home: None, root: Path = ROOT
) -> Iterator[tuple[dict[str, int], str]]:
    """Serve a modules file on free ports of loopback; give the port of each door by name, `pid`, and an admin token.

    `prepare` is called with the folder, in which `data` is the data directory, before the start. `root` is
    the tree of the program.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "modules.yaml").write_text(modules)
        prepare(home)
        common = ["--config", "modules.yaml", "--data-dir", "data", "--venv-path", "venvs"]
        main = [sys.executable, str(root / "main.py")]
        arguments = [
            *main,
            *common,
            "--rest-port",
            "0",
            "--grpc-port",
            "0",
            "--ready-file",
            "ready.json",
            "--log-level",
            "warning",
            *options,
        ]
        process = subprocess.Popen(arguments, cwd=home, stderr=subprocess.DEVNULL, env=dict(os.environ))
        try:
            deadline = time.monotonic() + 20
            while not (home / "ready.json").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the server did not start")
                time.sleep(0.02)
            token = subprocess.run(
                [*main, "token", "--subject", "bench", "--scope", "admin", *common],
                cwd=home,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            ready = json.loads((home / "ready.json").read_text())
            yield {"pid": ready["pid"]} | {name: ready[name][0][1] for name in ("rest", "grpc") if ready[name]}, token
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
