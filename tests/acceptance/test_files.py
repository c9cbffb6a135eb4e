"""Acceptance: files with the real server as a process: commands, large transfers, kill -9, a backup."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.server_process import ROOT, Commands, Server, ended, running, url_of, wait_for

MODULES = """
modules:
  - {name: echo, env: inline, code: "def handler(input): return input"}
"""
DATA = random.Random(17).randbytes(5_000_000)
ID = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("server")
    with running(home, MODULES, "--max-file", "8MiB", "--max-files-bytes", "16MiB") as opened:
        yield opened
        assert opened.stop() == 0


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Commands:
    """Return the program, run in a folder without files of the server."""
    (tmp_path / "photo.jpg").write_bytes(DATA)
    return Commands(tmp_path, url_of(server), server.token)


def contents(home: Path) -> set[str]:
    return {path.name for path in (home / "data" / "files").rglob("*") if path.is_file()}


def test_a_file_goes_in_and_out(run: Commands, tmp_path: Path) -> None:
    code, out, err = run("files", "put", "photo.jpg")

    assert (code, err) == (0, "")
    assert json.loads(out) == {"$file": {"id": ID, "name": "photo.jpg", "type": "image/jpeg", "size": len(DATA)}}
    (tmp_path / "back.jpg").write_bytes(b"old")
    assert run("files", "get", ID, "-o", "back.jpg") == (0, "", "")
    assert (tmp_path / "back.jpg").read_bytes() == DATA
    process = run.start("files", "get", ID)
    assert process.communicate(timeout=60)[0] == DATA
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.jpg", "photo.jpg"]


def test_standard_input_is_a_file(run: Commands) -> None:
    code, out, _ = run("files", "put", "-", "--name", "a.csv", stdin=b"a,b\n")

    described = json.loads(out)["$file"]
    assert (code, described["name"], described["type"], described["size"]) == (0, "a.csv", "text/csv", 4)


def test_lists_and_deletion(run: Commands) -> None:
    _, out, _ = run("files", "put", "-", stdin=b"to be deleted")
    name = json.loads(out)["$file"]["id"]

    listed = json.loads(run("files", "list", "--json")[1])["items"]
    assert name in [each["id"] for each in listed]
    code, table, _ = run("files", "list", "--limit", "1")
    assert (code, table.split()[:5]) == (0, ["ID", "SIZE", "UPLOADED", "TYPE", "NAME"])
    assert run("files", "rm", name) == (0, "", "")
    code, _, err = run("files", "rm", name)
    assert (code, "there is no file" in err) == (3, True)
    code, _, err = run("files", "get", name, "-o", "x")
    assert (code, "there is no file" in err) == (3, True)
    assert not (run.home / "x").exists()
    code, out, _ = run("files", "gc")
    assert (code, out) == (0, "0 files deleted, 0 B\n")


def test_refusals_have_the_exit_codes_of_their_kinds(run: Commands) -> None:
    (run.home / "large").write_bytes(bytes(9 * 1024 * 1024))
    code, _, err = run("files", "put", "large")
    assert (code, "the limit is `max_file`" in err) == (7, True)
    names = []
    for number in range(3):
        (run.home / "large").write_bytes(bytes([number + 1]) * (7 * 1024 * 1024))
        code, out, err = run("files", "put", "large")
        names += [json.loads(out)["$file"]["id"]] if code == 0 else []
    assert (code, "the limit is `max_files_bytes`" in err) == (17, True)
    assert run("files", "rm", *names)[0] == 0
    code, _, err = run("files", "put", "missing.jpg")
    assert code != 0
    assert "missing.jpg" in err


def test_ctrl_c_leaves_nothing(run: Commands, server: Server) -> None:
    before = contents(server.home)
    process = run.start("files", "put", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(DATA)
    process.stdin.flush()
    wait_for(lambda: contents(server.home) - before)
    process.send_signal(signal.SIGINT)

    code, out, _ = ended(process)
    assert (code, out) == (130, "")
    wait_for(lambda: contents(server.home) == before)


def test_curl_and_other_clients(server: Server) -> None:
    packed = gzip.compress(DATA)
    stored = server.client.post("/files", content=packed, headers={"content-encoding": "gzip"})
    assert (stored.status_code, stored.json()["$file"]["id"]) == (201, ID)
    part = server.client.get(stored.headers["location"], headers={"range": "bytes=1000000-1999999"})
    assert (part.status_code, part.content) == (206, DATA[1_000_000:2_000_000])
    metrics = server.client.get("/metrics").text
    assert "operato_files_bytes" in metrics


def test_kill_9_during_an_upload_leaves_nothing_after_the_next_start(tmp_path: Path) -> None:
    with running(tmp_path, MODULES) as server:
        whole = server.client.post("/files", content=b"whole").json()["$file"]["id"]
        with closing(socket.create_connection(("127.0.0.1", server.ready["rest"][0][1]))) as client:
            head = f"POST /files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
            client.sendall(head.encode() + b"Content-Length: 10000000\r\n\r\n" + DATA)
            wait_for(lambda: len(contents(tmp_path)) == 2)
            server.stop(signal.SIGKILL)
    assert len(contents(tmp_path)) == 2
    # A kill between the two steps of a deletion, or of the end of an upload, leaves a content without a row.
    stray = hashlib.sha256(b"stray").hexdigest()
    (tmp_path / "data" / "files" / stray[:2]).mkdir(exist_ok=True)
    (tmp_path / "data" / "files" / stray[:2] / stray).write_bytes(b"stray")

    with running(tmp_path, MODULES) as server:
        wait_for(lambda: contents(tmp_path) == {whole.removeprefix("sha256:")})
        assert server.client.get(f"/files/{whole}").content == b"whole"
        assert server.stop() == 0


def backup(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "runner.backup", *arguments]
    return subprocess.run(command, cwd=ROOT, input=data, capture_output=True, timeout=60, check=False)


def test_a_backup_has_files_if_asked_and_says_so(tmp_path: Path) -> None:
    old, new, bare = tmp_path / "old", tmp_path / "new", tmp_path / "bare"
    for home in (old, new, bare):
        home.mkdir()
    with running(old, MODULES) as server:
        name = server.client.post("/files?name=a.bin", content=DATA).json()["$file"]["id"]
        assert server.execute("echo", 1).status_code == 200
        with_files, without = backup("save", str(old / "data"), "--files"), backup("save", str(old / "data"))
        assert server.stop() == 0

    assert (with_files.returncode, with_files.stderr) == (0, b"1 stored files are in it\n")
    assert (without.returncode, without.stderr) == (0, b"stored files are not in it, as `--files` was not given\n")
    done = backup("restore", str(bare / "data"), data=without.stdout)
    assert (done.returncode, b"are not in it" in done.stderr) == (0, True)
    done = backup("restore", str(new / "data"), data=with_files.stdout)
    assert (done.returncode, done.stderr) == (0, b"1 stored files are in it\n")
    with running(new, MODULES) as server:
        answer = server.client.get(f"/files/{name}")
        assert (answer.content, answer.headers["content-disposition"]) == (DATA, 'attachment; filename="a.bin"')
        assert "damaged" not in server.client.get("/readyz").json()
        assert server.stop() == 0
    with running(bare, MODULES) as server:
        assert server.client.get(f"/files/{name}").status_code == 404
        assert server.stop() == 0
    assert backup("restore", str(new / "data"), data=with_files.stdout).returncode == 1
    assert os.listdir(bare / "data" / "files") == ["unfinished"]
