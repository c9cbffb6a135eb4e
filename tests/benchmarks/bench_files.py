"""Benchmark: a large file in and out over REST, beside `cp` and `sha256sum` on the same disk.

`python tests/benchmarks/bench_files.py [--mib 1024] [--rounds 3]`

Each round measures the copy and the server in turn. `ratio` is the throughput of the server divided by that of `cp`
and `sha256sum` of the copy; above 0.5 is good. For `in` the copy is brought to the disk, as the server does. `memory`
is the growth of the runner's memory to its highest, `held` the longest pause of its loop without the noise of the
machine, `wall` by the clock.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.report import Report
from tests.probe import Numbers
from tests.server_process import Server

MIB = 1024 * 1024
MODULES = "modules:\n  - {name: echo, env: inline, code: 'def handler(input): return input'}\n"


def memory(pid: int, name: str) -> int:
    """Return a memory of a process in bytes: `VmRSS`, or `VmHWM`, the highest."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Target:
    """The server, and one file."""

    def __init__(self, server: Server, source: Path) -> None:
        self.server = server
        self.source = source
        self.path = ""

    def _begin(self, head: str) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.server.ready["rest"][0][1]))
        lines = [head, "Host: x", f"Authorization: Bearer {self.server.token}", "Connection: close"]
        if head.startswith("POST"):
            lines.append(f"Content-Length: {self.source.stat().st_size}")
        client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return client

    def put(self) -> None:
        """Upload the file."""
        with self._begin("POST /files HTTP/1.1") as client, self.source.open("rb") as file:
            client.sendfile(file)
            answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 201"), answer
        found = re.search(rb"location: (\S+)", answer)
        assert found is not None
        self.path = found[1].decode()

    def get(self) -> None:
        """Download the file, and drop it."""
        size, buffer = 0, bytearray(MIB)
        with self._begin(f"GET {self.path} HTTP/1.1") as client:
            while count := client.recv_into(buffer):
                size += count
        assert size > self.source.stat().st_size, "the answer is cut off"


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def copy(source: Path, *, durable: bool) -> None:
    """Copy the file, bring it to the disk if `durable`, and read it for its digest."""
    to = source.with_name("copy")
    subprocess.run(["cp", source, to], check=True)
    if durable:
        subprocess.run(["sync", to], check=True)
    subprocess.run(["sha256sum", to], check=True, stdout=subprocess.DEVNULL)
    to.unlink()


def main(mib: int, rounds: int) -> None:
    """Measure."""
    report = Report(__file__)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "modules.yaml").write_text(MODULES)
        source = home / "source"
        with source.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        numbers = Numbers(home / "numbers")
        program = (sys.executable, "-m", "tests.probe", str(home / "numbers"))
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        server = Server(home, "--log-level", "warning", program=program, environ=environ)
        try:
            target, pid = Target(server, source), server.ready["pid"]
            target.put()  # the first requests import
            target.get()
            for what, work in (("in", target.put), ("out", target.get)):
                copies, took, pauses, walls, grown = [], [], [], [], []
                for _ in range(rounds):
                    copies.append(seconds(partial(copy, source, durable=what == "in")))
                    Path(f"/proc/{pid}/clear_refs").write_text("5")
                    before = memory(pid, "VmRSS")
                    numbers.reset()
                    took.append(seconds(work))
                    held, wall, _ = numbers.read()
                    pauses.append(held * 1e3)
                    walls.append(wall * 1e3)
                    grown.append((memory(pid, "VmHWM") - before) / MIB)
                theirs, ours = statistics.median(copies), statistics.median(took)
                ratio = theirs / ours
                text = (
                    f"{mib / ours:.0f} MiB/s, cp and sha256sum {mib / theirs:.0f}, ratio {ratio:.2f},"
                    f" memory +{max(grown):.1f} MiB, held {max(pauses):.1f} ms, wall {max(walls):.1f}"
                )
                report.line(f"{mib} MiB {what}", text, ratio=ratio, held_ms=pauses, wall_ms=walls, memory_mib=grown)
        finally:
            server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    main(given.mib, given.rounds)
