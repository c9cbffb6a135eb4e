"""Acceptance: `operato-runner env` and `prepare`, without and beside a real server."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.test_environments import make_wheel
from tests.program import run_program
from tests.server_process import ROOT, running

MINE = """
runner: {offline: true}
modules:
  plain: {env: venv, code: "def handler(input): return 1"}
  here: {env: inline, code: "def handler(input): return 1"}
"""
NONE = 'modules: {here: {env: inline, code: "def handler(input): return 1"}}'


@pytest.fixture
def run(tmp_path):
    """Return `run(*arguments)`, which runs a command in the folder of the test."""

    def go(*arguments, file=MINE):
        (tmp_path / "modules.yaml").write_text(file)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATO_")}
        done = run_program(arguments, cwd=tmp_path, environ=clean)
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in done.stderr
        return done

    return go


def key_of(done):
    """Return the key in the output."""
    (key,) = set(re.findall(r"venv-py[\d.]+-[0-9a-f]{20}", done.stdout))
    return key


def listed(run, **options):
    done = run("env", "list", "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_prepare_builds_missing_environments_and_list_shows_them(run, tmp_path):
    assert listed(run)["environments"] == []
    assert "is not built yet" in run("env", "list").stdout

    first = run("prepare")
    assert first.returncode == 0, first.stderr
    key = key_of(first)
    assert re.search(rf"plain +{key}  ready, built in [\d.]+ s\n", first.stdout)
    assert "here   inline, nothing to build" in first.stdout
    assert "plain: building environment" in first.stderr
    assert f"plain  {key}  ready, already built" in run("prepare", "plain").stdout

    (found,) = listed(run)["environments"]
    assert (found["key"], found["env"], found["modules"]) == (key, "venv", ["plain"])
    assert found["python"] == "{}.{}.{}".format(*sys.version_info)
    assert found["size_bytes"] > 0
    assert not found["in_use"]
    assert Path(found["path"]) == tmp_path / "venvs" / key
    assert f"{key}  venv " in run("env", "list").stdout


def test_prepare_shows_bars_on_a_terminal(run, tmp_path):
    (tmp_path / "modules.yaml").write_text(MINE)
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "prepare"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    ) as child:
        os.close(slave)
        shown = b""
        while select.select([master], [], [], 30)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
        out = child.stdout.read().decode()
        assert child.wait(30) == 0
    os.close(master)
    assert "ready, built in" in out
    assert b"plain" in shown
    assert "━".encode() in shown, "no bar was drawn"


def test_prepare_fails_with_the_code_of_the_failure(run):
    file = MINE.replace("plain: {env: venv,", "plain: {env: venv, python: '3.99',")
    done = run("prepare", file=file)

    assert done.returncode == 10
    assert "error: plain: environment_failed: Python 3.99 was not found" in done.stderr
    assert "here " in done.stdout, "the others are not held up"
    assert run("prepare", "plan").returncode == 3
    assert "did you mean 'plain'" in run("prepare", "plan").stderr


def test_why_shows_the_contents(run, tmp_path):
    wheel = make_wheel(tmp_path)
    file = (
        f'runner: {{offline: true}}\nmodules: {{m: {{env: venv, requirements: ["{wheel}"], code: "handler = print"}}}}'
    )
    before = run("env", "why", "m", file=file)
    assert "m has no key yet: its requirements are not locked yet" in before.stdout

    key = key_of(run("prepare", file=file))
    for name in ("m", key):
        shown = run("env", "why", name, file=file).stdout
        assert key in shown
        assert "tiny @ file://" in shown
        assert "--hash" not in shown
        assert str(tmp_path / "venvs" / ".logs" / f"{key}.log") in shown
        assert "it stays: a module of the file uses it" in shown
    assert "unused, but within the limits of age and space" in run("env", "why", key, file=NONE).stdout
    nothing = run("env", "why", "nothing")
    assert (nothing.returncode, nothing.stdout) == (3, "")


def test_gc_removes_unused_environments(run, tmp_path):
    key = key_of(run("prepare"))
    assert "0 of 1 environments were removed" in run("env", "gc", "--keep-bytes", "1").stdout

    assert f"kept      {key}" in run("env", "gc", file=NONE).stdout
    dry = run("env", "gc", "--keep-bytes", "1", "--dry-run", file=NONE)
    assert f"would go  {key}" in dry.stdout
    assert (tmp_path / "venvs" / key).is_dir()

    done = run("env", "gc", "--keep-bytes", "1", file=NONE)
    assert f"removed   {key}" in done.stdout
    assert "1 of 1 environments were removed" in done.stdout
    assert not (tmp_path / "venvs" / key).exists()
    assert not list((tmp_path / "venvs" / ".tmp").iterdir())
    assert listed(run, file=NONE)["environments"] == []

    assert run("prepare").returncode == 0
    note = tmp_path / "venvs" / key / "operato.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "built_at": 1000}))
    os.utime(tmp_path / "venvs" / ".locks" / f"{key}.use", (1000, 1000))
    assert f"removed   {key}" in run("env", "gc", file=NONE).stdout, "30 days are the default"


def test_environments_of_registered_versions_are_known_without_a_server(run, tmp_path):
    with running(tmp_path, NONE) as server:
        body = {"env": "venv", "code": "def handler(input): return 1"}
        made = server.client.put("/modules/m?prepare=true", json=body)
        assert made.status_code == 201, made.text
    version = f"m@{made.json()['version']}"
    found = listed(run, file=NONE)
    assert [one["modules"] for one in found["environments"]] == [[version]]
    kept = run("env", "gc", "--older-than", "1ms", file=NONE)
    assert kept.returncode == 0, kept.stderr
    assert len(listed(run, file=NONE)["environments"]) == 1
    assert version in run("env", "why", version, file=NONE).stdout


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--older-than", "soon"], "--older-than"),
        (["--keep-bytes", "much"], "--keep-bytes"),
    ],
)
def test_gc_names_its_wrong_options(run, arguments, shown):
    done = run("env", "gc", *arguments)

    assert done.returncode == 2
    assert f"error: {shown}" in done.stderr


def test_environments_in_use_by_a_server_stay(run, tmp_path):
    home = tmp_path / "server"
    home.mkdir()
    venvs = ["--venv-path", str(tmp_path / "venvs")]
    with running(home, MINE, "--no-grpc", *venvs) as server:
        assert server.execute("plain", None).json()["result"] == 1
        (found,) = listed(run, file=NONE)["environments"]
        key = found["key"]
        assert found["in_use"]
        assert found["pids"] == [server.ready["pid"]]

        gc = run("env", "gc", "--keep-bytes", "1", file=NONE)
        assert f"kept      {key}  " in gc.stdout
        assert "a process uses it" in gc.stdout
        rebuild = run("env", "rebuild", "plain")
        assert rebuild.returncode == 4
        assert f"{key} is in use by process {server.ready['pid']}" in rebuild.stderr
        assert "(modules that use it: plain)" in rebuild.stderr
        assert server.execute("plain", None).json()["result"] == 1

        server.stop(signal.SIGKILL)
    assert f"removed   {key}" in run("env", "gc", "--keep-bytes", "1", file=NONE).stdout


def test_rebuild_by_module_and_by_key(run, tmp_path):
    key = key_of(run("prepare"))
    for name in ("plain", key):
        mark = tmp_path / "venvs" / key / "mark"
        mark.write_text("")
        done = run("env", "rebuild", name)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(rf"{key} was rebuilt in [\d.]+ s\n", done.stdout)
        assert not mark.exists()
    orphan = run("env", "rebuild", key, file=NONE)
    assert orphan.returncode == 2
    assert "no module of the file uses" in orphan.stderr
    assert run("env", "rebuild", "here").returncode == 2
    assert run("env", "rebuild", "nothing").returncode == 3
