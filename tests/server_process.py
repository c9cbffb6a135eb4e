"""Helpers for the acceptance tests: the real server as a process, and the commands that call it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.program import Forked, run_program, start_program

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, str(ROOT / "main.py"))


class Server:
    """One running server."""

    def __init__(
        self,
        home: Path,
        *options: str,
        program: Sequence[str] = PROGRAM,
        environ: Mapping[str, str] | None = None,
        real: bool = False,
    ) -> None:
        """Start it. Unless it is `real`, as a fork of a process that has imported the program (`tests/program.py`)."""
        self.home = home
        (home / "ready.json").unlink(missing_ok=True)
        common = ["--config", "modules.yaml"]
        main = [*program]
        ports = ["--rest-port", "0", "--grpc-port", "0"]
        serve = [*common, *ports, "--ready-file", "ready.json", "--drain-timeout", "1", *options]
        self.log = (home / "log").open("wb")
        self.process: Forked | subprocess.Popen[bytes]
        variables = os.environ if environ is None else environ
        if real or tuple(main) != PROGRAM:
            self.process = subprocess.Popen([*main, *serve], cwd=home, env=environ, stderr=self.log)
        else:
            with open(os.devnull, "r+b") as nothing:
                streams = (nothing, nothing, self.log)
                self.process = start_program(serve, cwd=home, environ=variables, streams=streams)
        wait_for(lambda: (home / "ready.json").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, (home / "log").read_text()
        self.ready = json.loads((home / "ready.json").read_text())
        token = ["token", "--subject", "test", "--scope", "admin", *common]
        done = (
            run_program(token, cwd=home, environ=variables)
            if tuple(main) == PROGRAM
            else subprocess.run([*main, *token], cwd=home, env=environ, check=False, capture_output=True)
        )
        assert done.returncode == 0, done.stderr
        self.token = done.stdout.decode().strip()
        self.client = httpx.Client(
            base_url="".join(f"http://127.0.0.1:{port}" for _, port in self.ready["rest"]),
            headers={"authorization": f"Bearer {self.token}"},
            timeout=30,
            trust_env=False,
        )

    def execute(self, name: str, value: object, **headers: str) -> httpx.Response:
        return self.client.post(f"/modules/execute/{name}", json=value, headers=headers)

    def stop(self, number: int | None = signal.SIGTERM) -> int:
        """End the server by a signal (None: it is ending already); return its exit code.

        SIGKILL is for the runner itself, not for its watcher.
        """
        if number is not None:
            os.kill(self.ready["pid"] if number == signal.SIGKILL else self.process.pid, number)
        code = self.process.wait(60)
        self.client.close()
        self.log.close()
        return code


def wait_for(condition: object, seconds: float = 60) -> None:
    """Wait until a condition of another process holds."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def running(home: Path, modules: str, *options: str, **how: Any) -> Iterator[Server]:
    """Run a server in `home` that serves `modules`; killed at the end where it is not stopped by then."""
    (home / "modules.yaml").write_text(modules)
    server = Server(home, *options, **how)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


class Commands:
    """The program in a folder, speaking to one server."""

    def __init__(self, home: Path, url: str, token: str | None) -> None:
        self.home = home
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATO_")}
        self.environ = {**clean, "OPERATO_URL": url} | ({"OPERATO_TOKEN": token} if token else {})

    def start(self, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
        command = [*PROGRAM, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.home, env=self.environ, **{**pipes, **options})

    def __call__(self, *arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        words = [each if isinstance(each, bytes) else str(each) for each in arguments]
        done = run_program(words, cwd=self.home, environ=self.environ, stdin=stdin)
        return done.returncode, done.stdout.decode(), done.stderr.decode()


def ended(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> tuple[int, str, str]:
    out, err = process.communicate(stdin, timeout=60)
    return process.returncode, out.decode(), err.decode()


def url_of(server: Server, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.ready['rest'][0][1]}"
