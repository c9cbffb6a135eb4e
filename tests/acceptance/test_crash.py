"""Acceptance: kills of the server at random moments under load: every accepted execution ends, none runs twice."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_process import Server, running, wait_for

MODULES = """
modules:
  - name: once
    env: inline
    concurrency: 4
    code: &code |
      import os, time
      def handler(input, context):
          with open(f"{input['calls']}/{context.execution_id}", "a") as file:
              file.write(f"{context.attempt}\\n")
          print("begun", flush=True)
          while not os.path.exists(input.get("until", "/")):
              time.sleep(0.01)
          time.sleep(input["seconds"])
          return context.attempt
  - name: again
    env: inline
    concurrency: 4
    retry: {attempts: 100, on: [lost]}
    code: *code
  - name: asks
    env: inline
    retry: {attempts: 3, on: [lost]}
    calls_modules: [once, again]
    code: |
      def handler(input, context):
          context.submit("again", input)
          return context.call("once", input)
"""
ROUNDS = 8
CALLERS = 4
SEED = 20_261_124


class Load:
    """Callers that submit as fast as the answers come, and remember accepted executions."""

    def __init__(self, server: Server, calls: Path, seed: int) -> None:
        self.accepted: dict[str, str] = {}
        self.answered: dict[str, int] = {}
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(server, calls, seed + n)) for n in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _call(self, server: Server, calls: Path, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=server.client.base_url, headers=server.client.headers, trust_env=False) as client:
            while not self._ended.is_set():
                module = chance.choice(["once", "again"])
                value = {"calls": str(calls), "seconds": chance.choice([0, 0, 0.01, 0.1])}
                headers = {"prefer": "respond-async"} if chance.random() < 0.8 else {}
                delay = chance.choice(["0", "0.01", "0.3", "1"]) if headers else None
                params = {} if delay is None else {"delay": delay}
                try:
                    response = client.post(
                        f"/modules/execute/{module}", json=value, headers=headers, params=params, timeout=20
                    )
                except httpx.HTTPError:
                    return  # it was killed
                if response.status_code == 202:
                    self.accepted[response.json()["id"]] = module
                elif response.status_code == 200:
                    self.answered[response.json()["id"]] = response.json()["result"]

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.timeout(300)  # nine starts
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    chance = random.Random(SEED)
    accepted: dict[str, str] = {}
    answered: dict[str, int] = {}
    for number in range(ROUNDS):
        with running(tmp_path, MODULES) as server:
            if number == 0:
                accepted |= begin(server, calls, tmp_path / "go")
            load = Load(server, calls, SEED + 100 * number)
            wait_for(lambda load=load: len(load.accepted) > 10)
            time.sleep(chance.uniform(0.02, 0.6))  # a random moment, not a wait for an event
            server.stop(signal.SIGKILL)
            load.stop()
        accepted |= load.accepted
        answered |= load.answered
    (tmp_path / "go").touch()

    with running(tmp_path, MODULES) as server:
        wait_for(lambda: unended(server) == 0, 60)
        found = {name: server.client.get(f"/executions/{name}").json() for name in accepted | answered}
        assert server.stop() == 0

    lost = 0
    for name, execution in found.items():
        runs = (calls / name).read_text().split() if (calls / name).exists() else []
        assert execution.get("status") in ("succeeded", "failed"), execution
        assert len(runs) == len(set(runs)), f"{name} made an attempt twice: {runs}"
        if execution["module"] == "once":
            assert len(runs) <= 1, f"{name} ran twice: {runs}"
        if execution["status"] == "succeeded":
            assert runs[-1:] == [str(execution["result"])], execution
        else:
            assert (execution["module"], execution["error"]["kind"]) == ("once", "lost"), execution
            lost += 1
        assert len(execution["failed_attempts"]) == execution["attempts"] - (1 if execution["attempts"] else 0)
    for name, result in answered.items():
        assert (found[name]["status"], found[name]["result"]) == ("succeeded", result), "an answer is not in the record"
    assert lost > 0, "nothing was ever cut off"
    assert any(found[name]["attempts"] > 1 for name, module in accepted.items() if module == "again")


def begin(server: Server, calls: Path, go: Path) -> dict[str, str]:
    """Begin a call of each module that runs until `go` exists, so that the first kill cuts it off."""
    begun = {}
    for module in ("once", "again"):
        order = {"module": module, "input": {"calls": str(calls), "seconds": 0, "until": str(go)}}
        name = server.client.post("/executions", json=order).json()["id"]
        wait_for((calls / name).exists)
        begun[name] = module
    return begun


def unended(server: Server) -> int:
    """Return the number of executions that have not ended."""
    states = ("scheduled", "queued", "running")
    found = [server.client.get("/executions", params={"status": status}).json() for status in states]
    return sum(len(page["items"]) + (page["cursor"] is not None) for page in found)


def test_what_was_said_is_kept_when_the_runner_is_killed(tmp_path: Path) -> None:
    """Output is stored while the execution runs, about a second late."""
    calls = tmp_path / "calls"
    calls.mkdir()
    with running(tmp_path, MODULES) as server:
        order = {"module": "once", "input": {"calls": str(calls), "seconds": 30}}
        name = server.client.post("/executions", json=order).json()["id"]
        database = tmp_path / "data" / "history.db"
        wait_for(lambda: "begun" in server.client.get(f"/executions/{name}/output").text)
        wait_for(lambda: b"begun" in database.read_bytes() + wal(database))
        server.stop(signal.SIGKILL)
    with running(tmp_path, MODULES) as server:
        execution = server.client.get(f"/executions/{name}").json()
        lines = server.client.get(f"/executions/{name}/events", timeout=10).text
        assert server.stop() == 0

    assert (execution["status"], execution["error"]["kind"]) == ("failed", "lost")
    assert execution["stdout"] == "begun\n"
    assert "event: error" in lines


def test_calls_of_modules_when_the_runner_is_killed(tmp_path: Path) -> None:
    """A called execution is lost with its caller; one that is tried again calls anew, a submitted one runs again."""
    calls = tmp_path / "calls"
    calls.mkdir()
    with running(tmp_path, MODULES) as server:
        order = {"module": "asks", "input": {"calls": str(calls), "until": str(tmp_path / "until"), "seconds": 0}}
        parent = server.client.post("/executions", json=order).json()["id"]
        wait_for(lambda: len(list(calls.iterdir())) == 2 and len(of(server, parent)) == 2)
        server.stop(signal.SIGKILL)
    (tmp_path / "until").touch()
    with running(tmp_path, MODULES) as server:
        wait_for(lambda: server.client.get(f"/executions/{parent}").json()["status"] == "succeeded")
        wait_for(lambda: len(children := of(server, parent)) == 4 and all(each["finished_at"] for each in children))
        found = {(each["asynchronous"], each["status"]) for each in of(server, parent)}
        assert server.client.get(f"/executions/{parent}").json()["attempts"] == 2
        assert server.stop() == 0

    assert found == {(False, "failed"), (False, "succeeded"), (True, "succeeded")}


def of(server: Server, parent: str) -> list[dict[str, Any]]:
    """Return the executions that one has called."""
    found: list[dict[str, Any]] = server.client.get(f"/executions?parent={parent}").json()["items"]
    return found


def wal(database: Path) -> bytes:
    path = database.with_name(database.name + "-wal")
    return path.read_bytes() if path.exists() else b""


def test_registered_modules_survive_the_loss_of_every_file_beside_their_database(tmp_path: Path) -> None:
    with running(tmp_path, "modules: []") as server:
        for number in (1, 2, 3):
            body = {"env": "inline", "code": f"def handler(input): return {number}"}
            assert server.client.put(f"/modules/kept-{number}", json=body).status_code == 201
        server.stop(signal.SIGKILL)
    for file in (tmp_path / "data").glob("modules.db-*"):
        file.unlink()

    with running(tmp_path, "modules: []") as server:
        assert [server.execute(f"kept-{number}", None).json()["result"] for number in (1, 2, 3)] == [1, 2, 3]
        assert server.stop() == 0
