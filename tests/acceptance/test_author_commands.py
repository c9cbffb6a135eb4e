"""Acceptance: `rollback`, `client generate`, `modules init --from`, `config schema`, and completion in real shells."""

from __future__ import annotations

import ast
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.server_process import ROOT, Commands, Server, running, url_of

FILED = """
modules:
  filed: {env: inline, code: "def handler(input): return 'filed'"}
  invoice:
    env: inline
    description: Adds up an order.
    code: |
      from typing import Literal, TypedDict

      class Row(TypedDict):
          name: str
          price: float

      def handler(rows: list[Row], mode: Literal["fast", "slow"] = "fast") -> dict[str, float]:
          return {row["name"]: row["price"] for row in rows}
"""
SCRIPT = '''\
#!/usr/bin/env python3
"""Count words."""

import sys
from collections import Counter

print("imported")


def _words(text):
    return text.split()


def count(text: str, least: int = 1) -> dict[str, int]:
    """Count the words of a text.

    Args:
        text: Any text.
    """
    return {word: times for word, times in Counter(_words(text)).items() if times >= least}


if __name__ == "__main__":
    print(count(sys.stdin.read()))
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("server")
    with running(home, FILED) as opened:
        yield opened
        assert opened.stop() == 0


@pytest.fixture
def run(server: Server, tmp_path: Path):
    """Return the program, run in a folder without files of the server."""
    return Commands(tmp_path, url_of(server), server.token)


def done(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 0, err
    return out


def publish(server: Server, name: str, version: str) -> None:
    fields = {"env": "inline", "version": version, "code": f"def handler(input): return {version!r}"}
    assert server.client.put(f"/modules/{name}", json=fields).status_code == 201


def test_the_way_back(run, server):
    for version in ("1", "2", "3"):
        publish(server, "back", version)

    code, out, err = run("rollback", "back")
    assert (code, out) == (0, "back  2  active\n")
    assert "back: version 2 (published " in err
    assert ") replaces 3 for calls that name none" in err
    assert "to activate 3 again: operato-runner rollback back --to 3" in err
    assert server.execute("back", None).json()["result"] == "2"

    assert done(run("rollback", "back", "--dry-run")) == "back  1  not activated\n"
    assert server.execute("back", None).json()["result"] == "2"
    assert done(run("rollback", "back")) == "back  1  active\n"
    code, out, err = run("rollback", "back")
    assert (code, out) == (4, "")
    assert "back has no version before 1; --to names another one" in err
    assert done(run("rollback", "back", "--to", "3", "--prepare")) == "back  3  active\n"
    assert done(run("rollback", "back", "--to", "3")) == "back  3  unchanged, active\n"


def test_a_way_back_that_does_not_exist(run, server):
    publish(server, "other", "1")

    code, _, err = run("rollback", "other", "--to", "9")
    assert code == 3
    assert "other has no version '9'; it has 1" in err
    assert run("rollback", "othr")[0] == 3
    code, _, err = run("rollback", "filed")
    assert (code, "has no version before" in err) == (4, True)
    assert done(run("modules", "versions", "filed")).count("\n") == 2


def test_typed_functions_for_the_modules_of_a_server(run, server):
    text = done(run("client", "generate", "invoice"))

    names = [node.name for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert names == ["_given", "invoice", "invoice_async"]
    assert "-> _t.Dict[str, float]:" in text
    assert "mode: _t.Literal['fast', 'slow'] = 'fast'," in text
    assert '"""Adds up an order."""' in text
    assert "def filed(" in done(run("client", "generate"))
    code, _, err = run("client", "generate", "invoise")
    assert code == 3
    assert "did you mean invoice" in err or "did you mean 'invoice'" in err
    program = f"{text}\nprint(invoice(_o.Client(), rows=[dict(name='tea', price=2.5)]))\n"
    called = subprocess.run(
        [sys.executable, "-c", program],
        env={**run.environ, "PYTHONPATH": str(ROOT / "packaging" / "client")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert called.stdout == "{'tea': 2.5}\n", called.stderr


def test_a_script_becomes_a_module(run, tmp_path):
    (tmp_path / "word_count.py").write_text(SCRIPT)

    code, out, err = run("modules", "init", "words", "--from", "word_count.py")
    assert (code, out) == (0, "words/word_count.py: words calls count\n")
    assert "note: line 7 runs at the import, and not at each call; move it into count" in err
    assert 'operato-runner run words/word_count.py \'{"text": "text", "least": 1}\'' in err
    made = (tmp_path / "words" / "word_count.py").read_text()
    assert made.startswith('#!/usr/bin/env python3\n# /// script\n# [tool.operato]\n# name = "words"\n')
    assert made.replace(made[made.index("# ///") : made.index('"""Count words')], "") == SCRIPT

    assert done(run("push", "words/word_count.py")).startswith("words  ")
    assert json.loads(done(run("call", "words", '{"text": "a b a", "least": 2}'))) == {"a": 2}
    shown = json.loads(done(run("modules", "show", "words", "--json")))
    assert shown["description"] == "Count the words of a text."
    assert shown["output_schema"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    again = run("modules", "init", "words", "--from", "word_count.py")
    assert again[0] == 2
    assert "would overwrite word_count.py; nothing was written" in again[2]
    twice = run("modules", "init", "--from", "words/word_count.py", "--folder", "x")
    assert twice[0] == 2
    assert "words/word_count.py:2: is a module already" in twice[2]


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("print(1)\n", (), "has no function; put the lines that each call runs into one, such as `def main():`"),
        ("def a(): ...\ndef b(): ...\n", (), "has several functions, a, b; choose one"),
        ("def abc(): ...\n", ("--function", "abd"), "has no function 'abd'; did you mean"),
        ("def a(:\n", (), "s.py:1: is not Python"),
        (b"\xff", (), "is not UTF-8 text"),
        ("def a(): ...\n", ("--env", "venv"), "--env is for a starter"),
    ],
)
def test_a_script_that_is_no_module(run, tmp_path, text, options, error):
    (tmp_path / "s.py").write_bytes(text if isinstance(text, bytes) else text.encode())

    code, out, err = run("modules", "init", "--from", "s.py", *options)

    assert (code, out) == (2, "")
    assert error in err
    assert [path.name for path in tmp_path.iterdir()] == ["s.py"]


def test_a_starter_needs_a_name(run):
    code, _, err = run("modules", "init")

    assert code == 2
    assert "Missing argument 'NAME'" in err


def test_the_schema_for_editors(run):
    schema = json.loads(done(run("config", "schema")))

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$defs"]["module"]["properties"]["timeout"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the program in it, which is on the path."""
    program = tmp_path / "operato-runner"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "main.py"}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def shell(name: str, *arguments: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_completes(home):
    text = 'eval "$(operato-runner completion bash)"; COMP_WORDS=(operato-runner roll) COMP_CWORD=1; '

    assert (
        shell("bash", "--norc", "-c", f'{text}_operato_runner_completion operato-runner; echo "${{COMPREPLY[@]}}"')
        == "rollback\n"
    )
    assert shell("bash", "--norc", "-c", f"{text}complete -p operato-runner").startswith("complete -o nosort -F ")


def test_fish_completes(home):
    text = 'operato-runner completion fish | source; complete -C "operato-runner executions li"'

    assert shell("fish", "--no-config", "-c", text).startswith("list\t")


def test_zsh_completes(home):
    """It completes only on a terminal."""
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("zsh is not installed")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(zsh, ["zsh", "-f", "-i"])
    try:
        start = (
            f'cd {home}; autoload -Uz compinit; compinit -u -D; eval "$(operato-runner completion zsh)"; PS1=REA""DY'
        )
        os.write(terminal, f"{start}\n".encode())
        read_until(terminal, b"READY")
        os.write(terminal, b"operato-runner roll\t")
        read_until(terminal, b"rollback")
    finally:
        os.close(terminal)
        os.kill(child, 9)
        os.waitpid(child, 0)


def read_until(terminal: int, wanted: bytes) -> None:
    deadline, found = time.monotonic() + 60, b""
    while wanted not in found:
        assert time.monotonic() < deadline, found
        if select.select([terminal], [], [], 1)[0]:
            found += os.read(terminal, 65536)
