"""Acceptance: one file is a module: run, served while it is edited, pushed; and a script for uv all the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from environments.installer import find_uv
from tests.contract.test_locks import wheel
from tests.program import run_program
from tests.server_process import ROOT, running, wait_for

PROGRAM = (sys.executable, str(ROOT / "main.py"))

FILE = """\
# /// script
# requires-python = ">=3.9"
# dependencies = ["tinyv"]
#
# [tool.operato]
# description = "Says the version"
# timeout = "20s"
# ///
import sys

import tinyv


def handler(input):
    print("got", input)
    if input == "bad":
        raise ValueError("not " + input)
    return {"version": tinyv.V, "input": input}


if __name__ == "__main__":
    print(handler("by hand"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder without a modules file, with the index, the caches and the variables of its commands."""
    root = tmp_path_factory.mktemp("dev")
    (root / "index" / "tinyv").mkdir(parents=True)
    link = wheel(root / "index" / "tinyv", "tinyv", "1.0")
    (root / "index" / "tinyv" / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPERATO_", "PIP_"))}
    environ = clean | {"HOME": str(root), "UV_DEFAULT_INDEX": str(root / "index"), "UV_CACHE_DIR": str(root / "uv")}
    (root / "work").mkdir()
    return root / "work", environ


def command(place, *arguments, **extra):
    home, environ = place
    done = run_program(arguments, cwd=home, environ={**environ, **extra})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def file(place):
    path = place[0] / "hello.py"
    path.write_text(FILE)
    return path


def test_a_file_runs_without_a_modules_file(place, file):
    code, out, err = command(place, "run", "hello.py", '"Ada"')
    assert (code, json.loads(out)) == (0, {"version": "1.0", "input": "Ada"}), err
    assert err == "got Ada\n"

    code, out, err = command(place, "run", "hello.py", '"bad"')
    assert (code, out) == (1, "")
    assert f'File "{file}", line 17, in handler\n    raise ValueError("not " + input)\n' in err
    assert sorted(each.name for each in place[0].iterdir()) == ["hello.py"], "it leaves nothing beside it"


def test_a_mistake_in_the_block_names_its_line(place, file):
    file.write_text(FILE.replace('"20s"', '"soon"'))
    code, out, err = command(place, "run", "hello.py")

    assert (code, out) == (2, "")
    assert err.startswith("error: hello.py:7: timeout: 'soon' is not a duration; ")


def test_the_same_file_runs_under_uv(place, file):
    home, environ = place
    uv = [find_uv() or "uv", "run", "--no-config", "--offline", "--python", sys.executable, "hello.py"]
    done = subprocess.run(uv, cwd=home, env=environ, capture_output=True, check=False, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "got by hand\n{'version': '1.0', 'input': 'by hand'}\n"


def save(file: Path, text: str) -> None:
    """Write a file as a whole, so that the watcher sees no half of it and tells of no mistake more."""
    whole = file.parent.parent / "whole"
    whole.write_text(text)
    whole.replace(file)


def test_a_file_is_served_while_it_is_edited(place, file):
    home, environ = place
    log, ready = home.parent / "log", home.parent / "ready.json"
    with log.open("w") as opened:
        ports = ["--rest-port", "0", "--ready-file", str(ready)]
        process = subprocess.Popen([*PROGRAM, "dev", "hello.py", *ports], cwd=home, env=environ, stderr=opened)
    try:
        wait_for(lambda: "  call  " in log.read_text() or process.poll() is not None)
        ((_, port),) = json.loads(ready.read_text())["rest"]
        assert f"hello.py serves hello at http://127.0.0.1:{port}\n" in log.read_text()
        assert f"http://127.0.0.1:{port}/ui/modules/hello\n" in log.read_text()
        (shown,) = [line for line in log.read_text().splitlines() if "  call  " in line]
        variables = dict(each.split("=", 1) for each in shown.partition("  call  ")[2].split()[:2])

        def call(value):
            return command(place, "call", "hello", json.dumps(value), **variables)

        assert call("Ada")[:2] == (0, '{"version":"1.0","input":"Ada"}\n')
        wait_for(lambda: "#1 succeeded in " in log.read_text())
        lines = [line.partition(" ")[2] for line in log.read_text().splitlines()]
        assert {'#1 call hello "Ada"', "#1 | got Ada"} <= {*lines}
        assert any(line.endswith(': {"version":"1.0","input":"Ada"}') and "(handler " in line for line in lines)

        assert call("bad")[0] == 1
        wait_for(lambda: "#2 handler_error after " in log.read_text())
        assert '#2 |   File "hello.py", line 17, in handler\n' in log.read_text()
        assert '#2 |     raise ValueError("not " + input)\n' in log.read_text()

        save(file, FILE.replace("(input):", "(input:"))
        wait_for(lambda: log.read_text().count("the last good version keeps serving") == 1)
        assert "hello.py:14: path: does not compile: '(' was never closed" in log.read_text()
        assert call("still")[0] == 0

        save(file, FILE.replace("import sys", "import nothing_like_this"))
        wait_for(lambda: log.read_text().count("the last good version keeps serving") == 2)
        assert 'File "hello.py", line 9, in <module>\n' in log.read_text()
        assert call("still")[0] == 0

        save(file, FILE)
        wait_for(lambda: " the mistake is gone; nothing else changed\n" in log.read_text())
        assert " reloaded\n" not in log.read_text()

        save(file, FILE.replace('"input": input', '"other": input'))
        wait_for(lambda: " reloaded\n" in log.read_text())
        assert call("new")[:2] == (0, '{"version":"1.0","other":"new"}\n')
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert sorted(each.name for each in home.iterdir()) == ["hello.py"], "it leaves nothing beside it"


def test_the_link_of_a_terminal_leads_to_the_page_of_the_file(place):
    home, environ = place
    (home / "plain.py").write_text("def handler(input): return input\n")
    leader, terminal = os.openpty()
    ports = ["--rest-port", "0", "--venv-path", str(home.parent / "venvs")]
    process = subprocess.Popen([*PROGRAM, "dev", "plain.py", *ports], cwd=home, env=environ, stderr=terminal)
    os.close(terminal)
    try:
        shown = b""
        while b"Ctrl-C" not in shown:
            shown += os.read(leader, 65536)
        (link,) = re.findall(r"(http://\S+/ui/sign-in\?\S+)", re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()))
        base = link.partition("/ui/")[0]
        with httpx.Client(base_url=base, headers={"origin": base, "accept": "text/html"}, trust_env=False) as browser:
            inputs = re.findall(r'name="(code|next)" value="([^"]*)"', browser.get(link).text)
            fields = dict(reversed(inputs))  # those of the first form
            signed_in = browser.post("/ui/sign-in", data=fields)
            assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/ui/modules/plain")
            assert "plain" in browser.get("/ui/modules/plain").raise_for_status().text
            overview = browser.get("/ui/").raise_for_status().text
            assert "cannot be shown" not in overview
            assert not {"/ui/schedules", "/ui/keys", "/ui/audit"} & {*re.findall(r'href="([^"]*)"', overview)}
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        os.close(leader)
        (home / "plain.py").unlink()


def test_dev_needs_a_file_that_is_a_module(place):
    code, _, err = command(place, "dev", "missing.py")

    assert (code, err) == (2, "error: missing.py: does not exist\n")
    assert command(place, "dev", ".")[2] == "error: .: is a folder; name one Python file in it\n"


def test_a_folder_is_not_run_as_a_file(place, tmp_path):
    (tmp_path / "modules.yaml").write_text("modules: []\n")
    (tmp_path / "job").mkdir()
    code, _, err = command((tmp_path, place[1]), "run", "job")

    assert code == 3
    assert err.startswith("error: not_found: there is no module 'job'; a folder runs as the `path` of a module, or ")


def test_a_file_is_pushed_with_its_block(place, file, tmp_path):
    _, environ = place
    with running(tmp_path, "modules: []\n", environ=environ) as server:
        where = {"OPERATO_URL": str(server.client.base_url), "OPERATO_TOKEN": server.token}
        code, out, err = command(place, "push", "hello.py", **where)
        assert (code, err) == (0, ""), err
        assert out.startswith("hello  ")
        assert server.execute("hello", 1).json()["result"] == {"version": "1.0", "input": 1}
        _, out, _ = command(place, "modules", "show", "hello", **where)
        assert "  packages_from  hello.py\n" in out
        assert "Says the version" in out
        assert Path(place[0] / "hello.py").exists()
