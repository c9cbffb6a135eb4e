"""Benchmark: the longest pause of the event loop under each hostile input, and what another caller notices.

`python tests/benchmarks/bench_stalls.py [--only TEXT ...]`

The real server runs with a probe in its loop (`tests/probe.py`), and gets the inputs of `tests/hostile.py` one after
the other. `held` is the longest pause without the noise of the machine, `wall` the longest by the clock, in
milliseconds. Another caller, a process of its own, meanwhile executes a small module: its p50 and p99.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.report import Report
from tests.hostile import CASES, Target, modules
from tests.probe import Numbers
from tests.server_process import Server

PAUSE_SECONDS = 0.02


def other(port: int, token: str, orders: Connection) -> None:
    """Call a module again and again; on each order return the times since the order before."""
    times: list[float] = []
    headers = {"authorization": f"Bearer {token}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while True:
        if orders.poll(PAUSE_SECONDS):
            if not orders.recv():
                return
            orders.send(times)
            times = []
        began = time.perf_counter()
        try:
            connection.request("POST", "/modules/execute/hello", b"null", headers)
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
        times.append(time.perf_counter() - began)


def main(only: list[str]) -> None:
    """Measure the cases whose names contain one of the texts."""
    report = Report(__file__)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "modules.yaml").write_text(modules(home))
        numbers = Numbers(home / "numbers")
        program = (sys.executable, "-m", "tests.probe", str(home / "numbers"))
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        server = Server(home, "--log-level", "warning", program=program, environ=environ)
        target = Target(server.ready["rest"][0][1], server.ready["grpc"][0][1], server.token, home, server.ready["pid"])
        here, there = multiprocessing.Pipe()
        caller = multiprocessing.get_context("spawn").Process(target=other, args=(target.rest, target.token, there))
        caller.start()
        try:
            time.sleep(1)
            for name, attack in CASES.items():
                if only and not any(text in name for text in only):
                    continue
                here.send(True)
                here.recv()
                numbers.reset()
                attack(target)
                time.sleep(0.2)
                held, wall, ticks = numbers.read()
                assert ticks, "the probe has stopped"
                here.send(True)
                times = sorted(here.recv())
                p50, p99 = statistics.median(times) * 1e3, times[len(times) * 99 // 100] * 1e3
                text = (
                    f"held {held * 1e3:7.1f} ms, wall {wall * 1e3:7.1f}, another caller p50 {p50:6.1f} p99 {p99:7.1f}"
                )
                report.line(f"{name:38}", text, held_ms=held * 1e3, wall_ms=wall * 1e3, p50_ms=p50, p99_ms=p99)
        finally:
            here.send(False)
            caller.join()
            server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    main(parser.parse_args().only)
