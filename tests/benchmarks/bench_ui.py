"""Benchmark: how long the server takes for each view of the dashboard, beside many modules and a long record.

`python tests/benchmarks/bench_ui.py`

The first line is the first page after the start, which imports the dashboard. For each view, `cold` is its first
request, then come the least, the median and the worst time of the others, and the bytes of the page. The limit is
100 ms for each.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_growth import ROWS, settle, with_rows
from tests.benchmarks.real_server import real_doors
from tests.benchmarks.report import Report

COUNT, TIMES = 2000, 20
CODE = "def handler(input): return input"
MODULES = "modules:\n" + "".join(
    f"  - {{name: team-{n % 10}.module-{n}, env: inline, description: 'Module {n}', tags: [team-{n % 10}], "
    f"code: '{CODE}'{', schedules: [{cron: 0 3 * * *}]' if n % 4 == 0 else ''}}}\n"
    for n in range(COUNT)
)


def views(client: httpx.Client, token: str) -> dict[str, str]:
    """Return the paths of all views by name; those of one execution are of real ones."""
    bearer = {"authorization": f"Bearer {token}"}

    def newest(status: str) -> str:
        found = client.get("/executions", params={"status": status, "limit": 1}, headers=bearer).json()["items"]
        return str(found[0]["id"])

    name = "team-0.module-0"
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 5 * 86400))
    schedule = client.get("/schedules", params={"limit": 1}, headers=bearer).json()["items"][0]["id"]
    return {
        "overview": "/",
        "executions": "/executions",
        "executions, failed": "/executions?status=failed",
        "executions of a module": f"/executions?module={name}",
        "executions of a rare module that failed": "/executions?module=team-9.module-199&status=failed",
        "executions with an error": "/executions?error=timeout",
        "executions of a caller": "/executions?subject=caller-3",
        "executions, unresolved": "/executions?unresolved=true",
        "executions of half a day": f"/executions?since={day}T00:00&until={day}T12:00",
        "execution": f"/executions/{newest('succeeded')}",
        "execution that failed": f"/executions/{newest('failed')}",
        "run again, many": "/executions/rerun?status=failed",
        "modules": "/modules",
        "modules, searched": "/modules?q=module-19",
        "module": f"/modules/{name}",
        "code": f"/modules/{name}/code",
        "versions": f"/modules/{name}/versions",
        "statistics": f"/modules/{name}/statistics",
        "environment of a module": f"/modules/{name}/environment",
        "starts of a module": f"/modules/{name}/starts",
        "publish": "/publish",
        "schedules": "/schedules",
        "schedule": f"/schedules/{schedule}",
        "new schedule": "/schedules/new",
        "environments": "/environments",
        "notices": "/notices",
        "keys": "/keys",
        "audit": "/audit",
    }


def timed(client: httpx.Client, path: str) -> tuple[float, int]:
    """Return the milliseconds of one request, and the bytes of its answer as sent."""
    began = time.perf_counter()
    answer = client.get(f"/ui{path}", headers={"accept": "text/html"})
    taken = (time.perf_counter() - began) * 1000
    if answer.status_code != 200:
        raise SystemExit(f"{path}: {answer.status_code} {answer.text[:500]}")
    return taken, answer.num_bytes_downloaded


def main() -> None:
    """Print one line for each view."""
    report = Report(__file__)
    with real_doors(MODULES, "--history-max-rows", str(2 * ROWS), prepare=with_rows) as (ports, token):
        settle(ports["pid"])
        address = f"http://127.0.0.1:{ports['rest']}"
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            began = time.perf_counter()
            client.get("/ui/sign-in").raise_for_status()
            report.line("the first page", f"{(ms := (time.perf_counter() - began) * 1000):.0f} ms", ms=ms)
            client.post("/ui/sign-in", data={"token": token}, headers={"origin": address})
            for what, path in views(client, token).items():
                cold, size = timed(client, path)
                taken = [timed(client, path)[0] for _ in range(TIMES)]
                middle = statistics.median(taken)
                text = f"cold {cold:.0f} ms, then {min(taken):.1f} to {max(taken):.0f} ms, median {middle:.1f} ms"
                report.line(what, f"{text}; {size:,} bytes", ms=taken, cold_ms=cold)


if __name__ == "__main__":
    main()
