"""Acceptance: records are saved while a runner serves, and restored into another directory."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import tarfile
import threading
from contextlib import closing

import pytest

from runner.backup import RefusedError, restore
from tests.server_process import ROOT, running, wait_for

MODULES = """
modules:
  - {name: echo, env: inline, concurrency: 4, code: "def handler(input): return input"}
"""


def backup(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "runner.backup", *arguments]
    return subprocess.run(command, cwd=ROOT, input=data, capture_output=True, timeout=60, check=False)


def test_executions_answered_before_a_backup_exist_after_a_restore(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    answered: list[dict[str, str]] = []
    enough = threading.Event()
    with running(old, MODULES, "--idle", "1m") as server:
        made = {"name": "registered", "env": "inline", "code": "def handler(input): return 'mine'"}
        assert server.client.post("/modules", json=made).status_code == 201
        key = server.client.post("/keys", json={"name": "ci", "scopes": "executions:run"}).json()["key"]

        def call() -> None:
            while not enough.is_set():
                answered.append(server.execute("echo", len(answered)).json())

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(answered) > 100)
            before = list(answered)
            (old / "data" / "node").write_text("one\n")
            saved = backup("save", str(old / "data"))
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        assert saved.returncode == 0, saved.stderr
        assert [path for path in (old / "data").iterdir() if path.name.startswith(".backup")] == []
        assert server.stop() == 0

    done = backup("restore", str(new / "data"), data=saved.stdout)
    assert done.returncode == 0, done.stderr
    assert {oct(path.stat().st_mode & 0o777) for path in (new / "data").glob("*") if path.is_file()} == {"0o600"}
    with running(new, MODULES) as server:
        for execution in before:
            found = server.client.get(f"/executions/{execution['id']}").json()
            assert (found["status"], found["result"]) == ("succeeded", execution["result"])
        assert server.execute("registered", None).json()["result"] == "mine"
        assert server.execute("registered", None, authorization=f"Bearer {key}").status_code == 200
        assert (new / "data" / "jwt-secret").read_text() == (old / "data" / "jwt-secret").read_text()
        assert (new / "data" / "node").read_text() == "one\n"


def test_records_only_in_the_journal_are_in_the_archive(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    with running(old, MODULES) as server, closing(sqlite3.connect(old / "data" / "history.db", timeout=20)) as held:
        held.execute("begin immediate")  # no other process can write to the database
        answers = [server.execute("echo", number).json() for number in range(5)]
        saved = backup("save", str(old / "data"))
        held.rollback()
    assert saved.returncode == 0, saved.stderr
    restore(new / "data", io.BytesIO(saved.stdout))
    with closing(sqlite3.connect(new / "data" / "history.db")) as copied:
        assert copied.execute("select count(*) from executions").fetchall() == [(0,)], "the test shows nothing"

    with running(new, MODULES) as server:
        for answer in answers:
            assert server.client.get(f"/executions/{answer['id']}").json()["result"] == answer["result"]


def archive(**files: bytes) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made.seek(0)
    return made


@pytest.mark.parametrize("name", ["history.db", "history.db-wal", "modules.db", "journal/7.journal"])
def test_a_directory_with_records_is_refused(tmp_path, name):
    (tmp_path / "journal").mkdir()
    (tmp_path / name).write_bytes(b"mine")

    with pytest.raises(RefusedError, match="restore into a directory without records"):
        restore(tmp_path, archive(**{"history.db": b"theirs"}))
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [b"mine"]


def test_a_directory_in_use_is_refused(tmp_path):
    with running(tmp_path, MODULES):
        data = tmp_path / "data"
        for path in [*data.glob("*.db*"), *(data / "journal").glob("*")]:
            path.unlink()
        with pytest.raises(RefusedError, match="stop it first"):
            restore(tmp_path / "data", archive(**{"history.db": b"theirs"}))


@pytest.mark.parametrize("name", ["../evil", "history.db/x", "code__evil.py", "journal/../../evil", "/etc/evil"])
def test_a_foreign_archive_leaves_nothing(tmp_path, name):
    with pytest.raises(RefusedError, match="does not belong in an archive"):
        restore(tmp_path / "data", archive(**{"journal/1.journal": b"x", "history.db": b"x", name: b"x"}))

    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["history.lock"]


def test_an_incomplete_archive_leaves_nothing(tmp_path):
    with pytest.raises(RefusedError, match="incomplete"):
        restore(tmp_path / "data", archive(**{"journal/1.journal": b"x"}))
    assert not (tmp_path / "data" / "journal" / "1.journal").exists()

    with pytest.raises(tarfile.ReadError):
        restore(tmp_path / "data", io.BytesIO(archive(**{"history.db": os.urandom(5000)}).getvalue()[:3000]))
    assert not (tmp_path / "data" / "history.db").exists()


def test_a_directory_without_records_cannot_be_saved(tmp_path):
    done = backup("save", str(tmp_path))

    assert done.returncode == 1
    assert b"there is no history.db in" in done.stderr
    assert done.stdout == b""


def test_the_secret_in_the_archive_has_the_mode_of_the_owner_only(tmp_path):
    with running(tmp_path, MODULES) as server:
        assert server.stop() == 0
    saved = backup("save", str(tmp_path / "data"))

    with tarfile.open(fileobj=io.BytesIO(saved.stdout)) as tar:
        modes = {info.name: info.mode for info in tar}
    assert modes["jwt-secret"] == 0o600
    assert set(modes.values()) == {0o600}
