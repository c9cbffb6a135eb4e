"""Acceptance: the real server as a process, driven over REST with real clients, stopped and killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.server_process import Server, running, wait_for

MODULES = """
modules:
  - name: hello
    env: inline
    code: |
      def handler(input):
          print("greeting")
          return {"message": f"Hello, {input['name']}!"}
  - name: slow
    env: inline
    timeout: 30s
    code: |
      import pathlib, time
      def handler(input):
          pathlib.Path(input).write_text("begun")
          time.sleep(60)
  - name: short
    env: inline
    timeout: 200ms
    code: |
      def handler(input):
          while True: pass
  - {name: elsewhere, env: docker, image: "python:3.12", code: "def handler(input): return 1"}
runner: {docker_host: "unix:///no/such/engine.sock"}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), MODULES) as started:
        yield started
        assert started.stop() == 0


def test_execute_answers_with_the_whole_execution(server: Server) -> None:
    response = server.execute("hello", {"name": "you"})
    answer = response.json()

    assert response.status_code == 200
    assert answer["result"] == {"message": "Hello, you!"}
    assert (answer["status"], answer["exit_code"], answer["stdout"]) == ("succeeded", 0, "greeting\n")
    assert set(answer["timings"]) == {"queue", "build", "start", "import", "run"}


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("POST", "/modules/execute/helo", 404, "did you mean hello"),
        ("POST", "/modules/execute/hello?version=9", 404, "version"),
        ("POST", "/modules/execute/elsewhere", 503, "docker"),
        ("GET", "/modules?env=dcker", 400, "inline, venv, conda, docker"),
        ("GET", "/modules?limit=0", 400, "limit"),
        ("GET", "/modules?colour=red", 400, "colour"),
        ("DELETE", "/modules", 405, "GET"),
        ("GET", "/nothing", 404, "/nothing"),
    ],
)
def test_bad_requests_say_what_is_wrong(server: Server, method: str, path: str, status: int, word: str) -> None:
    response = server.client.request(method, path)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert word in response.json()["detail"]


def test_a_body_that_is_not_json_is_refused(server: Server) -> None:
    response = server.client.post("/modules/execute/hello", content=b'{"name": NaN}')

    assert (response.status_code, response.json()["field"]) == (400, "$.name")


def test_failures_of_the_handler_are_executions(server: Server) -> None:
    failed = server.execute("hello", {})
    late = server.execute("short", None)

    assert (failed.status_code, failed.json()["error"]["kind"], failed.json()["error"]["type"]) == (
        500,
        "handler_error",
        "KeyError",
    )
    assert (late.status_code, late.json()["error"]["kind"]) == (504, "timeout")


def test_tokens_are_needed(server: Server) -> None:
    assert server.execute("hello", {"name": "x"}, authorization="Bearer nonsense").status_code == 401
    assert httpx.get(f"{server.client.base_url}/modules", trust_env=False).status_code == 401
    assert server.client.get("/healthz").status_code == 200


def test_lists_can_be_paged(server: Server) -> None:
    first = server.client.get("/modules", params={"limit": 3}).json()
    second = server.client.get("/modules", params={"limit": 3, "cursor": first["cursor"]}).json()

    assert [m["name"] for m in first["items"] + second["items"]] == ["elsewhere", "hello", "short", "slow"]
    assert second["cursor"] is None


def test_a_broken_file_keeps_the_modules_and_a_good_one_is_published(tmp_path: Path) -> None:
    with running(tmp_path, MODULES) as server:
        (tmp_path / "modules.yaml").write_text("modules: [{name: x}]")
        wait_for(lambda: "not reloaded" in (tmp_path / "log").read_text())
        assert server.execute("hello", {"name": "x"}).status_code == 200

        (tmp_path / "modules.yaml").write_text("modules: [{name: x, env: inline, code: 'def handler(i, /): return 7'}]")
        wait_for(lambda: server.execute("x", None).status_code == 200)
        assert server.execute("hello", {"name": "x"}).status_code == 404
        assert server.stop() == 0


def test_an_answered_execution_is_in_the_history_after_kill_9(tmp_path: Path) -> None:
    with running(tmp_path, MODULES) as server:
        ids = [server.execute("hello", {"name": str(n)}).json()["id"] for n in range(20)]
        server.stop(signal.SIGKILL)
    with running(tmp_path, MODULES) as server:
        assert server.stop() == 0
    with closing(sqlite3.connect(tmp_path / "data" / "history.db")) as link:
        kept = {row[0] for row in link.execute("select id from executions")}

    assert set(ids) <= kept


def test_sigterm_cuts_off_what_does_not_end_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, MODULES) as server:
        mark = tmp_path / "begun"
        code = (
            "import httpx, sys; httpx.post(sys.argv[1], headers={'authorization': sys.argv[2]}, json=sys.argv[3], "
            "timeout=60, trust_env=False)"
        )
        url = f"{server.client.base_url}/modules/execute/slow"
        caller = subprocess.Popen(
            [sys.executable, "-c", code, url, server.client.headers["authorization"], str(mark)],
            stderr=subprocess.DEVNULL,
        )
        wait_for(mark.exists)
        assert server.stop() == 3
        caller.wait(20)
        assert not [p for p in Path("/proc").iterdir() if p.name.isdigit() and is_of(p, tmp_path)]


def is_of(process: Path, home: Path) -> bool:
    """Return whether a process works below a folder."""
    try:
        return str(home) in str((process / "cwd").readlink())
    except OSError:
        return False
