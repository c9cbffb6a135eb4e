"""Benchmark: bytes in and out of a call, against JSON of the same size and a plain ASGI echo, in one run.

`python tests/benchmarks/bench_bytes.py [--rounds 5]`

All requests go over one connection of loopback. The rounds go over all ways in turn, so that a noisy neighbour hits
them alike; printed are medians, and the ratio to the first row.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runner.http import HttpLimits, read_body, respond, serve
from runner.wire import Budget
from tests.benchmarks.real_server import real_doors
from tests.benchmarks.report import Report

MB = 1_000_000
SIZES = (MB, 10 * MB)
MODULES = """
modules:
  - {name: bytes, env: inline, code: "def handler(input: bytes): return input"}
  - {name: summary, env: inline, record: summary, code: "def handler(input: bytes): return input"}
  - {name: json, env: inline, code: "def handler(input): return input"}
  - {name: form, env: inline, code: "def handler(file: bytes): return len(file)"}
"""
BINARY = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
FORM = {"Content-Type": "multipart/form-data; boundary=bnd"}
_HEAD = b'--bnd\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
_CLOCK = os.sysconf("SC_CLK_TCK")


@frozen
class Way:
    """One way to send bytes and to get them back."""

    name: str
    port: int
    pid: int
    path: str
    body: bytes
    headers: dict[str, str]
    link: http.client.HTTPConnection

    def once(self) -> int:
        """Make a call, and return the number of bytes of its answer."""
        self.link.request("POST", self.path, self.body, self.headers)
        answer = self.link.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{self.name}: {answer.status} {data[:300]!r}")
        return len(data)


def echo_server() -> None:
    """Answer each body with itself until SIGTERM; print the port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            body = await read_body(scope, receive, 64 * MB)
            await respond(send, 200, body, content_type=b"application/octet-stream")

    limits = HttpLimits(
        keep_alive_seconds=75, body_seconds=60, send_seconds=30, max_connections=100, max_body_bytes=64 * MB
    )

    async def main() -> None:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                start = partial(
                    serve, app, host="127.0.0.1", port=0, limits=limits, budget=Budget(256 * MB), shutdown=stop
                )
                bound = await nursery.start(start)
                print(bound[0][1], flush=True)
                async for _ in signals:
                    stop.set()
                    break

    trio.run(main)


@contextmanager
def echo() -> Iterator[tuple[int, int]]:
    """Run the echo in a process; give its port and pid."""
    process = subprocess.Popen([sys.executable, __file__, "--echo"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK


def ways(ports: tuple[int, int], pids: tuple[int, int], token: str, size: int) -> list[Way]:
    """Return all ways for one size: the echo first."""
    data = os.urandom(size)
    text = b'"' + b"x" * (size - 2) + b'"'
    given = {"Authorization": f"Bearer {token}"}
    shown = (
        ("echo", 1, "/", data, {}),
        ("bytes, in and out", 0, "/modules/execute/bytes", data, BINARY),
        ("bytes, with record: summary", 0, "/modules/execute/summary", data, BINARY),
        ("JSON text, in and out", 0, "/modules/execute/json", text, {"Content-Type": "application/json"}),
        ("a form with a file, in", 0, "/modules/execute/form", _HEAD + data + b"\r\n--bnd--\r\n", FORM),
    )
    return [
        Way(
            name,
            ports[server],
            pids[server],
            path,
            body,
            given | headers,
            http.client.HTTPConnection("127.0.0.1", ports[server]),
        )
        for name, server, path, body, headers in shown
    ]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--echo", action="store_true")
    given = parser.parse_args()
    if given.echo:
        echo_server()
        return
    report = Report(__file__)
    with ExitStack() as stack:
        doors, token = stack.enter_context(real_doors(MODULES, "--history-max-bytes", "1GiB"))
        port, pid = stack.enter_context(echo())
        for size in SIZES:
            measure(report, ways((doors["rest"], port), (doors["pid"], pid), token, size), size, given.rounds)


def measure(report: Report, all_ways: list[Way], size: int, rounds: int) -> None:
    """Print the lines of one size."""
    calls = max(2, 20 * MB // size)
    walls: dict[str, list[float]] = {way.name: [] for way in all_ways}
    cpus: dict[str, list[float]] = {way.name: [] for way in all_ways}
    for way in all_ways:
        way.once()
    for _ in range(rounds):
        for way in all_ways:
            began, used = time.perf_counter(), cpu_seconds(way.pid)
            for _ in range(calls):
                way.once()
            walls[way.name].append((time.perf_counter() - began) / calls)
            cpus[way.name].append((cpu_seconds(way.pid) - used) / calls)
    first = all_ways[0].name
    for way in all_ways:
        wall, cpu = statistics.median(walls[way.name]), statistics.median(cpus[way.name])
        ratio = wall / statistics.median(walls[first])
        text = f"{wall * 1000:8.1f} ms a call, {cpu * 1000:8.1f} ms CPU of the server, {ratio:6.1f} times the echo"
        report.line(f"{size // MB} MB: {way.name}", text, ms=[each * 1000 for each in walls[way.name]], ratio=ratio)


if __name__ == "__main__":
    main()
