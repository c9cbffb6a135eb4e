"""Acceptance: schedules over kills and changed clocks: no instant starts twice, and none is lost but by policy."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.server_process import Commands, Server, running, url_of, wait_for

MODULES = """
modules:
  - name: tick
    env: inline
    concurrency: 4
    code: |
      def handler(input):
          return input
    schedules:
      - {name: a, every: 1s, overlap: parallel, misfire: all, input: 1}
      - {name: b, every: 1s, overlap: parallel, misfire: all, input: 2}
      - {name: c, every: 2s, overlap: queue, misfire: all, input: 3}
"""
HOURLY = """
modules:
  - name: tick
    env: inline
    code: "def handler(input): return input"
    schedules:
      - {name: hourly, every: 1h, misfire: last, overlap: parallel}
"""
ROUNDS = 8
SEED = 20_261_129


def instants(server: Server, schedule: str) -> list[float]:
    """Return the instants of a schedule that have an execution, in order."""
    found: list[float] = []
    cursor = None
    while True:
        params = {"schedule": schedule, "limit": 500, **({"cursor": cursor} if cursor else {})}
        page = server.client.get("/executions", params=params).json()
        found += [each["scheduled_for"] for each in page["items"]]
        cursor = page["cursor"]
        if cursor is None:
            return sorted(found)


@pytest.mark.timeout(300)  # nine starts
def test_kill_9_at_random_moments_starts_every_instant_once(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    for number in range(ROUNDS):
        with running(tmp_path, MODULES) as server:
            if number == 0:
                wait_for(lambda server=server: len(instants(server, "tick:c")) > 0)
            time.sleep(chance.uniform(0.02, 1.2))  # a random moment, not a wait for an event
            server.stop(signal.SIGKILL)
    with running(tmp_path, MODULES) as server:
        now = time.time()
        for name, every in (("a", 1), ("b", 1), ("c", 2)):
            wait_for(lambda name=name: instants(server, f"tick:{name}")[-1] > now)
            found = instants(server, f"tick:{name}")
            first, last = found[0], found[-1]
            assert found == [first + n * every for n in range(int((last - first) / every) + 1)]
        assert server.stop() == 0


def test_a_clock_that_is_set_forward_and_back(tmp_path: Path) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("libfaketime is not installed")
    shift = tmp_path / "shift"
    hour = 3600.0
    to_next = hour - time.time() % hour

    def set_clock(seconds: float) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(f"{seconds:+.0f}\n")
        fresh.replace(shift)

    def last_of(server: Server) -> float:
        found: float = server.client.get("/schedules/tick:hourly").json()["last"]["scheduled_for"]
        return found

    set_clock(to_next - 120)  # two minutes before an hour
    environ = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(shift),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    # Tokens are valid for an hour, so callers need none.
    modules = f'runner: {{anonymous: "executions:read schedules:read"}}\n{HOURLY}'
    with running(tmp_path, modules, environ=environ) as server:
        del server.client.headers["authorization"]
        set_clock(to_next + 5)
        wait_for(lambda: len(instants(server, "tick:hourly")) == 1)
        set_clock(to_next + 3 * hour + 600)  # three hours are missed: the last of them starts
        wait_for(lambda: len(instants(server, "tick:hourly")) == 2)
        (first, last) = instants(server, "tick:hourly")
        assert last - first == 3 * hour
        set_clock(to_next - 120)
        wait_for(lambda: server.client.get("/schedules/tick:hourly").json()["next"] == first)
        for n in range(5):  # the first and the fourth were started before
            set_clock(to_next + n * hour + 5)
            wait_for(lambda n=n: last_of(server) == first + n * hour)

        assert instants(server, "tick:hourly") == [first + n * hour for n in range(5)]
        assert server.stop() == 0


def test_schedules_on_the_command_line(tmp_path: Path) -> None:
    with running(tmp_path, HOURLY) as server:
        run = Commands(server.home, url_of(server), server.token)
        code, out, err = run(
            "schedules", "create", "tick", '{"a": 1}', "--cron", "30 3 * * *", "--timezone", "Asia/Seoul"
        )
        assert code == 0, err
        name = out.strip()
        code, out, _ = run("schedules", "list")
        assert [line.split()[0] for line in out.splitlines()[1:]] == [name, "tick:hourly"]
        assert "30 3 * * * Asia/Seoul" in out
        assert "every 1h" in out
        code, out, _ = run("schedules", "next", name, "--count", "2")
        assert [line[10:] for line in out.splitlines()] == ["T03:30:00+09:00"] * 2
        assert run("schedules", "pause", name) == (0, f"{name}  paused\n", "")
        assert "paused" in run("schedules", "list", "--module", "tick")[1]
        assert run("schedules", "resume", name) == (0, f"{name}  resumed\n", "")
        code, fired, _ = run("schedules", "fire", name)
        assert server.client.get(f"/executions/{fired.strip()}").json()["schedule"] == name
        assert '"timezone":"Asia/Seoul"' in run("schedules", "show", name)[1]
        assert run("schedules", "rm", name) == (0, f"{name}  deleted\n", "")
        code, _, err = run("schedules", "rm", "tick:hourly")
        assert (code != 0, "belongs to the module" in err) == (True, True)
        code, _, err = run("schedules", "create", "tick", "--cron", "0 0 30 2 *")
        assert (code != 0, "month 2 has no day 30" in err) == (True, True)
        assert server.stop() == 0


def test_doctor_shows_the_next_times_and_config_check_the_mistakes(tmp_path: Path) -> None:
    run = Commands(tmp_path, "http://127.0.0.1:1", None)
    (tmp_path / "modules.yaml").write_text(HOURLY + '      - {at: "2020-01-01T00:00:00Z", name: past}\n')
    out = run("doctor", "--json")[1]
    found = {each["name"]: each for each in json.loads(out)["findings"] if each["topic"] == "schedules"}
    assert found["tick:hourly"]["says"].startswith("next at 20")
    assert found["tick:past"]["says"] == "2020-01-01T00:00:00+00:00 has passed"

    (tmp_path / "modules.yaml").write_text(HOURLY + '      - {cron: "0 0 30 2 *", timezone: Seoul}\n')
    code, out, err = run("config", "check")
    assert code == 2
    assert "tick.schedules[1].timezone: 'Seoul' is not a time zone; did you mean 'Asia/Seoul'?" in out + err
