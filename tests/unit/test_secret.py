"""Unit: the runner's own secret is made once, by one of many processes, and refused when others may read it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError
from runner.auth import Verifier
from runner.secret import load_or_make_secret


def test_the_secret_is_made_once_and_for_the_owner_only(tmp_path):
    secret, made = load_or_make_secret(tmp_path / "data")
    assert made
    assert len(secret) >= 32
    assert load_or_make_secret(tmp_path / "data") == (secret, False)
    (path,) = (tmp_path / "data").iterdir()
    assert path.name == "jwt-secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert Verifier(AuthSettings(), secret=secret).local


LOAD = """
import json, sys
from pathlib import Path
from runner.secret import load_or_make_secret
sys.stdin.readline()
print(json.dumps(load_or_make_secret(Path(sys.argv[1]))))
"""


def test_many_processes_make_one_secret(tmp_path):
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True) for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    got = []
    for process in processes:
        out, _ = process.communicate(timeout=60)
        got.append(json.loads(out))

    assert len({secret for secret, _ in got}) == 1
    assert [made for _, made in got].count(True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["jwt-secret"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_secret_that_others_may_read_is_refused(tmp_path, mode):
    load_or_make_secret(tmp_path)
    (tmp_path / "jwt-secret").chmod(mode)
    with pytest.raises(RunnerError, match="chmod 600") as caught:
        load_or_make_secret(tmp_path)
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_file_that_is_no_secret_is_refused(tmp_path, content):
    path = tmp_path / "jwt-secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RunnerError, match="is not a secret"):
        load_or_make_secret(tmp_path)


def test_links_and_things_that_are_no_files_are_refused(tmp_path):
    load_or_make_secret(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "jwt-secret").symlink_to(tmp_path / "a" / "jwt-secret")
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "jwt-secret", 0o600)
    (tmp_path / "d").write_text("")
    for name in "bcd":
        with pytest.raises(RunnerError) as caught:
            load_or_make_secret(tmp_path / name)
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
