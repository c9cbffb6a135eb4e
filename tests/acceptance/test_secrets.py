"""Acceptance: the secrets of a real runner are nowhere to be found but in the handlers that were given them."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from tests.program import run_program
from tests.server_process import Server, running, wait_for

IN_VARIABLE = "vrbl-9f8e7d6c5b4a"
IN_FILE = "file-1a2b3c4d5e6f"
ROTATED = "file-after-rotation"
MARKER = "marker-of-what-is-kept"
"""Printed beside the values: what finds it would find them."""

MODULES = f"""
modules:
  talks:
    env: inline
    secrets: &secrets
      TOKEN: {{env: VAULT_TOKEN}}
      KEY: {{file: keys/key}}
    code: |
      import hashlib, os, sys
      def handler(input, context):
          token, key = os.environ["TOKEN"], os.environ["KEY"]
          print("{MARKER}", token, key)
          print("{MARKER}", repr(dict(os.environ)), file=sys.stderr)
          context.progress(1, 2, "{MARKER} " + token)
          if input == "raise":
              raise ValueError("{MARKER}", token, key)
          if input == "abort":
              sys.stdout.flush()
              os.abort()
          if input == "unsayable":
              return {{token: object()}}
          return hashlib.sha256((token + key).encode()).hexdigest()
  fails:
    env: inline
    secrets: *secrets
    code: |
      import os
      raise ValueError("{MARKER}", dict(os.environ))
      def handler(input): pass
  glue:
    env: inline
    isolation: none
    secrets: *secrets
    code: |
      def handler(input):
          raise ValueError(open(input).read())
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VAULT_TOKEN", IN_VARIABLE)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "key").write_text(IN_FILE + "\n")
    return tmp_path


def command(home: Path, *arguments: str) -> str:
    """Run a command beside the server; return all that it says."""
    done = run_program(arguments, cwd=home, environ=os.environ)
    return (done.stdout + done.stderr).decode()


def answers(server: Server) -> list[str]:
    """Return what a server says of all that it has run, in every form."""
    said = []
    listed = server.client.get("/executions", params={"limit": 100})
    for execution in listed.json()["items"]:
        path = f"/executions/{execution['id']}"
        said += [server.client.get(path).text, server.client.get(f"{path}/output").text]
        with server.client.stream("GET", f"{path}/events", headers={"accept": "text/event-stream"}) as stream:
            said.append(stream.read().decode())
    paths = ["/modules", "/environments", *(f"/modules/{name}" for name in ("talks", "fails", "glue"))]
    return [listed.text, *said, *(server.client.get(path).text for path in paths)]


def everything(home: Path) -> dict[str, bytes]:
    """Return every file that the runner has written, its log included."""
    ours = {home / "keys" / "key", home / "modules.yaml"}
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file() and path not in ours}


def where(wanted: str, files: dict[str, bytes]) -> list[str]:
    return [path for path, content in files.items() if wanted.encode() in content]


def test_values_are_nowhere_to_be_found(home):
    said = []
    with running(home, MODULES, "--log-level", "debug") as server:
        good = server.execute("talks", "x")
        said.append(good.text)
        assert good.json()["result"] == hashlib.sha256((IN_VARIABLE + IN_FILE).encode()).hexdigest()
        assert good.json()["stdout"] == f"{MARKER} *** ***\n"
        assert "'TOKEN': '***', 'KEY': '***'" in good.json()["stderr"]
        for name, value in (("talks", "raise"), ("talks", "abort"), ("talks", "unsayable"), ("fails", "x")):
            said.append(server.execute(name, value).text)
        said.append(server.execute("glue", "keys/key").text)
        assert "***" in said[-1]
        accepted = server.client.post("/executions", json={"module": "talks", "input": "raise"})
        assert accepted.status_code == 202
        found = f"/executions/{accepted.json()['id']}"
        wait_for(lambda: server.client.get(found).json()["status"] == "failed")
        server.client.get("/modules/talks").raise_for_status()
        assert sorted(server.client.get("/modules/talks").json()["secrets"]) == ["KEY", "TOKEN"]

        (home / "keys" / "key").write_text(ROTATED)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "'talks'" in "".join(x for x in (home / "log").read_text().split("\n") if "reloaded" in x))
        again = server.execute("talks", "x").json()
        assert again["result"] == hashlib.sha256((IN_VARIABLE + ROTATED).encode()).hexdigest()
        assert again["version"] == good.json()["version"]
        said += answers(server)
        server.stop(signal.SIGKILL)
    after = everything(home)
    with running(home, MODULES, "--log-level", "debug", "--log-format", "json") as server:
        said += [*answers(server), server.execute("fails", "x").text]
        server.stop()
    said += [
        command(home, "config", "check"),
        command(home, "doctor"),
        command(home, "doctor", "--json"),
        command(home, "env", "why", "talks"),
        command(home, "run", "talks", '"raise"'),
    ]
    files = {f"killed {path}": content for path, content in after.items()} | everything(home)

    assert len(where(MARKER, files)) >= 3, "the record was not looked at"
    assert sum(MARKER in text for text in said) > 10
    for value in (IN_VARIABLE, IN_FILE, ROTATED):
        assert where(value, files) == []
        assert [text for text in said if value in text] == []


def test_a_secret_that_is_not_there_ends_the_start_and_is_named(home):
    (home / "keys" / "key").unlink()
    (home / "modules.yaml").write_text(MODULES)
    said = command(home, "serve", "--rest-port", "0", "--grpc-port", "0")
    checked = command(home, "config", "check")

    missing = f"{home}/keys/key does not exist; create it, or remove KEY from `secrets`"
    assert f"error: talks.secrets.KEY: {missing}" in said
    assert f"error: talks.secrets.KEY: {missing}" in checked
    assert IN_VARIABLE not in said + checked
