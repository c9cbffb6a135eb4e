"""Benchmark: an endpoint against execute, in one server with 2,000 modules and 5,000 endpoints.

`python tests/benchmarks/bench_endpoints.py [--calls 300] [--rounds 15]`

The same handler is called over one connection, one call after the other: over `execute`, over an open endpoint, over
one that needs a token, and over one whose requests are signed as GitHub does. The rounds go over all of them in turn,
so that a noisy neighbour hits them alike; printed are medians of wall time and of the runner's CPU time, with their
ratios to execute.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import http.client
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.real_server import real_doors
from tests.benchmarks.report import Report

REPORT = Report(__file__)
SECRET = "secret of the benchmark"
BODY = b'{"name": "World"}'
_MODULE = """
  - name: hello
    env: inline
    secrets: [HOOK]
    code: |
      def handler(input):
          return {"message": "Hello"}
    endpoints:
      - {path: "/hello/{name}", auth: none}
      - {path: "/token/{name}"}
      - {path: "/signed/{name}", auth: signature, signature: {scheme: github, secret: HOOK}}
"""
_OTHER = """
  - name: other-{number}
    env: inline
    code: "handler = print"
    endpoints: [{{path: "/other-{number}/{{x}}"}}, {{path: "/other-{number}/b/c"}}{more}]
"""


def modules() -> str:
    """Return a modules file with 2,000 modules and 5,000 endpoints."""
    more = ', {path: "/more/b/c"}'
    others = (
        _OTHER.format(number=number, more=more.replace("more", f"more-{number}") if number % 2 else "")
        for number in range(1, 2000)
    )
    return f"modules:{_MODULE}{''.join(others)}"


def caller(port: int, path: str, headers: dict[str, str]) -> Callable[[], None]:
    """Return a function that makes one call over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def call() -> None:
        connection.request("POST", path, BODY, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body!r:.200}")

    return call


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run all rounds, and print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    os.environ["OPERATO_SECRET_HOOK"] = SECRET
    signature = {"x-hub-signature-256": "sha256=" + hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()}
    with real_doors(modules(), "--no-grpc") as (doors, token):
        bearer = {"authorization": f"Bearer {token}"}
        calls = {
            "execute": caller(doors["rest"], "/modules/execute/hello", bearer),
            "open endpoint": caller(doors["rest"], "/http/hello/world", {}),
            "endpoint with a token": caller(doors["rest"], "/http/token/world", bearer),
            "endpoint with a signature": caller(doors["rest"], "/http/signed/world", signature),
        }
        wall: dict[str, list[float]] = {name: [] for name in calls}
        cpu: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(options.rounds + 1):
            for name, call in calls.items():
                began, used = time.perf_counter(), cpu_seconds(doors["pid"])
                for _ in range(options.calls):
                    call()
                if number:  # the first round warms up
                    wall[name].append((time.perf_counter() - began) / options.calls)
                    cpu[name].append((cpu_seconds(doors["pid"]) - used) / options.calls)
    for name in calls:
        ratios = [own / base for own, base in zip(wall[name], wall["execute"], strict=True)]
        busy = statistics.fmean(cpu[name]) / statistics.fmean(cpu["execute"])
        micros = statistics.median(wall[name]) * 1e6
        text = f"{micros:6.0f} us, {statistics.median(ratios):.2f} times execute; CPU {busy:.2f} times"
        REPORT.line(name, text, us=[each * 1e6 for each in wall[name]], ratio=ratios)


if __name__ == "__main__":
    main()
