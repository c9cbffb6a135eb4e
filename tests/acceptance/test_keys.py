"""Acceptance: `key` as people use it, keys that outlive kills, and clients without a token, against the real server."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from protocol.model import KEY
from tests.server_process import ROOT, Commands, Server, running, url_of, wait_for

HELLO = """
modules:
  - name: hello-world
    env: inline
    code: |
      def handler(input):
          return "Hello, " + input["name"]
  - name: sleeps
    env: inline
    code: |
      import time
      def handler(input):
          time.sleep(600)
"""
ANONYMOUS = f'runner: {{anonymous: "executions:run modules:read"}}\n{HELLO}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("server"), HELLO) as opened:
        yield opened
        assert opened.stop() == 0


@pytest.fixture
def run(server: Server):
    """Return the program in the folder of the server, without a token; its keys are revoked at the end."""
    yield Commands(server.home, url_of(server), None)
    for key in server.client.get("/keys").json()["items"]:
        server.client.delete(f"/keys/{key['id']}")


def called(server: Server, key: str) -> httpx.Response:
    return httpx.post(
        f"{url_of(server)}/modules/execute/hello-world",
        json={"name": "Ada"},
        headers={"x-api-key": key},
        trust_env=False,
    )


def test_a_key_from_its_creation_to_its_end(server: Server, run: Commands) -> None:
    code, out, err = run("key", "create", "ci", "--scope", "executions:run", "--modules", "hello-*", "--expires", "90d")
    assert code == 0, err
    key = out.strip()
    name = KEY.fullmatch(key)[1]
    assert f"operato-runner key revoke {name}" in err

    assert called(server, key).json()["result"] == "Hello, Ada"
    code, out, _ = run("key", "list", "--json")
    (shown,) = (each for each in json.loads(out)["items"] if each["id"] == name)
    assert (shown["name"], shown["scopes"], shown["modules"]) == ("ci", ["executions:run"], ["hello-*"])
    assert shown["used_at"] >= shown["created_at"]
    code, out, _ = run("key", "list")
    assert re.search(rf"^{name} +ci +valid +executions:run +hello-\* ", out, re.MULTILINE)

    assert run("key", "revoke", "ci") == (0, f"{name}  revoked\n", "")
    assert (called(server, key).status_code, called(server, key).json()["detail"]) == (401, "the API key was revoked")
    code, _, err = run("key", "revoke", "ci")
    assert (code, "is not valid any more" in err) == (3, True)
    code, out, _ = run("key", "list")
    assert re.search(rf"^{name} +ci +revoked ", out, re.MULTILINE)
    assert key not in (server.home / "log").read_text()


def test_a_key_is_a_token_for_commands(server: Server, run: Commands) -> None:
    key = run("key", "create", "cli")[1].strip()
    run.environ["OPERATO_TOKEN"] = key
    assert run("call", "hello-world", '{"name": "Ada"}')[:2] == (0, '"Hello, Ada"\n')
    code, _, err = run("key", "list")
    assert (code, "the API key lacks the scope 'admin'" in err) == (6, True)


def test_a_revoked_key_ends_the_stream_of_a_command(server: Server, run: Commands) -> None:
    key = run("key", "create", "cli", "--scope", "executions:run executions:read")[1].strip()
    admin = Commands(server.home, url_of(server), None)
    run.environ["OPERATO_TOKEN"] = key
    process = run.start("call", "sleeps")
    wait_for(lambda: server.client.get("/executions", params={"status": "running"}).json()["items"])
    assert admin("key", "revoke", "cli")[0] == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the API key was revoked" in err.decode()


@pytest.mark.parametrize("mistake", [["--scope", "all"], ["--expires", "soon"], ["--expires", "0"], ["--modules", ","]])
def test_a_mistake_makes_no_key(server: Server, run: Commands, mistake: list[str]) -> None:
    before = server.client.get("/keys").json()["items"]
    code, out, err = run("key", "create", "wrong", *mistake)
    assert (code != 0, out, err.startswith("error: ")) == (True, "", True)
    assert server.client.get("/keys").json()["items"] == before


def test_a_command_says_what_to_do_without_a_server(tmp_path: Path) -> None:
    code, _, err = Commands(tmp_path, "http://127.0.0.1:1", "x")("key", "create", "ci")

    assert code != 0
    assert "no runner answers at http://127.0.0.1:1" in err
    assert "operato-runner serve" in err


def follow(link: str) -> httpx.Response:
    """Open a link as a browser does, and return the overview."""
    address, _, code = link.partition("/ui/sign-in?code=")
    with httpx.Client(base_url=address, headers={"sec-fetch-site": "same-origin"}, trust_env=False) as browser:
        assert browser.get(f"/ui/sign-in?code={code}").status_code == 200
        done = browser.post("/ui/sign-in", data={"code": code})
        assert (done.status_code, done.headers.get("location")) == (303, "/ui/"), done.text
        return browser.get("/ui/")


def test_a_command_prints_a_link_to_the_dashboard(server: Server, run: Commands) -> None:
    code, out, err = run("ui")
    assert (code, "within 60 seconds" in err) == (0, True)
    assert "hello-world" not in out
    assert "Sign out" in follow(out.strip()).text
    code, out, _ = run("ui", "--scope", "files:read", "--expires", "5m")
    assert "nothing for you to see here" in follow(out.strip()).text
    run.environ["OPERATO_TOKEN"] = run("key", "create", "reader", "--scope", "modules:read")[1].strip()
    code, out, _ = run("ui")
    assert "key:reader" in follow(out.strip()).text
    run.environ["OPERATO_TOKEN"] = "opk_0123456789_" + "0" * 48
    code, out, err = run("ui")
    assert (code, out, "the API key is not valid" in err) == (5, "", True)


def test_a_start_on_a_terminal_prints_a_link(tmp_path: Path) -> None:
    (tmp_path / "modules.yaml").write_text(HELLO)
    terminal, theirs = pty.openpty()
    ports = ["--rest-port", "0", "--no-grpc", "--config", "modules.yaml"]
    process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), *ports], cwd=tmp_path, stderr=theirs)
    os.close(theirs)
    try:
        text = ""
        while (link := re.search(r"(http://127\S+/ui/sign-in\?code=\S+)\r\n", text)) is None:
            text += os.read(terminal, 65536).decode()
        assert "local" in follow(link[1]).text
    finally:
        process.terminate()
        while process.poll() is None:  # it writes to the terminal until its end
            with contextlib.suppress(OSError):
                os.read(terminal, 65536)
        os.close(terminal)
    assert process.returncode == 0


def test_the_dashboard_can_be_turned_off(tmp_path: Path) -> None:
    with running(tmp_path, f"runner: {{ui: false}}\n{HELLO}") as server:
        assert server.client.get("/ui/").status_code == 404
        home = server.client.get("/", headers={"accept": "text/html"})
        assert home.headers["location"] == "/docs"
        code, _, err = Commands(server.home, url_of(server), None)("ui")
        assert (code, "its setting `ui` is false" in err) == (3, True)
        assert server.stop() == 0


def test_what_was_answered_about_keys_outlives_a_kill(tmp_path: Path) -> None:
    with running(tmp_path, HELLO) as server:
        kept, revoked = (
            server.client.post("/keys", json={"name": name, "scopes": "executions:run"}).json() for name in ("a", "b")
        )
        assert called(server, revoked["key"]).status_code == 200
        assert server.client.delete(f"/keys/{revoked['id']}").status_code == 204
        server.stop(signal.SIGKILL)
    with running(tmp_path, HELLO) as server:
        assert called(server, kept["key"]).status_code == 200
        assert called(server, revoked["key"]).json()["detail"] == "the API key was revoked"
        actions = [each["action"] for each in server.client.get("/audit").json()["items"]]
        assert actions[:3] == ["key_revoke", "key_create", "key_create"]
        (tmp_path / "data/keys.db").write_bytes(b"noise" * 1000)
        server.stop(signal.SIGKILL)
    with running(tmp_path, HELLO) as server:
        assert called(server, kept["key"]).json()["detail"] == "the API key is not valid"
        assert server.client.get("/readyz").json()["damaged"] == ["keys"]
        assert 'operato_damaged{part="keys"} 1.0' in server.client.get("/metrics").text
        assert server.stop() == 0


def test_clients_without_a_token(tmp_path: Path) -> None:
    stubs = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protocol"), "executor.proto"]
    subprocess.run([*stubs, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"], check=True)
    page = (ROOT / "docs/calling/grpc.md").read_text()
    (example,) = re.findall(r"```python\n(import executor_pb2\n.*?)```", page, re.DOTALL)
    with running(tmp_path, ANONYMOUS) as server:
        assert 'grpc.insecure_channel("localhost:50051")' in example
        program = example.replace(":50051", f":{server.ready['grpc'][0][1]}")
        ran = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.stdout == '"Hello, Ada"\n'
        with httpx.Client(base_url=url_of(server).replace("127.0.0.1", "localhost"), trust_env=False) as client:
            answer = client.post("/modules/execute/hello-world", json={"name": "you"})
            assert (answer.status_code, answer.json()["result"]) == (200, "Hello, you")
            assert client.get("/executions").status_code == 401
            assert client.get("/modules", headers={"authorization": "Bearer x"}).status_code == 401
        wait_for(lambda: "callers without a token are accepted" in (tmp_path / "log").read_text())
        (line,) = (line for line in (tmp_path / "log").read_text().splitlines() if "without a token" in line)
        assert "scopes='executions:run modules:read'" in line
        assert server.stop() == 0


@pytest.mark.parametrize(("scopes", "words"), [("admin", "would let callers"), ("executions:all", "unknown scope")])
def test_scopes_that_nobody_should_have_are_refused(tmp_path: Path, scopes: str, words: str) -> None:
    (tmp_path / "modules.yaml").write_text(HELLO)
    for command in (["config", "check"], ["serve", "--rest-port", "0", "--grpc-port", "0"]):
        program = [sys.executable, str(ROOT / "main.py"), *command, "--anonymous", scopes]
        ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (ran.returncode, words in ran.stderr, "anonymous" in ran.stderr) == (2, True, True)


def test_doctor_names_callers_without_a_token(tmp_path: Path) -> None:
    (tmp_path / "modules.yaml").write_text(ANONYMOUS)
    program = [sys.executable, str(ROOT / "main.py"), "doctor", "--json"]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    (found,) = (each for each in json.loads(ran.stdout)["findings"] if each["name"] == "anonymous")

    assert (found["state"], "executions:run modules:read" in found["says"]) == ("note", True)
