"""Unit: the runner's own secret is made once and is private; a secret from a file; which of them is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.mistakes import ConfigError
from config.settings import AuthSettings, ServerSettings, Settings, StoreSettings
from protocol.errors import ErrorKind, RunnerError
from runner.auth.issuing import issue_token
from runner.auth.secret import load_or_make_secret, with_secret
from runner.auth.tokens import Verifier
from runner.serve import make_verifier


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
from runner.auth.issuing import issue_token
from runner.auth.secret import load_or_make_secret
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
def test_a_file_without_a_usable_secret_is_refused(tmp_path, content):
    path = tmp_path / "jwt-secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RunnerError, match="is not a secret"):
        load_or_make_secret(tmp_path)


def test_links_and_special_files_are_refused(tmp_path):
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


# -- a secret that was configured as a file --------------------------------------------------------------------------


def test_a_secret_file_is_the_secret_without_the_space_around_it(tmp_path):
    file = tmp_path / "secret"
    file.write_text("  " + "s" * 32 + "\n")

    assert with_secret(AuthSettings(secret_file=file)).secret == "s" * 32
    assert with_secret(AuthSettings(secret="t" * 32)).secret == "t" * 32
    assert "s" * 32 not in repr(with_secret(AuthSettings(secret_file=file)))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"s" * 31, "must hold a secret of 32 to 4096 bytes"),
        (b"s" * 31 + b"\n\n", "must hold a secret of 32 to 4096 bytes"),
        (b"s" * 4097, "must hold a secret of 32 to 4096 bytes"),
        (b"\xff" * 40, "is not text in UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_the_error_about_a_secret_file_does_not_show_its_content(tmp_path, content, word):
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        with_secret(AuthSettings(secret_file=file))
    (mistake,) = caught.value.mistakes
    assert mistake.field == "jwt_secret_file"
    assert word in str(mistake)
    assert "sss" not in str(mistake)


# -- which key counts ------------------------------------------------------------------------------------------------


def settings(tmp_path, host="0.0.0.0", **auth):
    server, store = ServerSettings(host=host), StoreSettings(data_dir=tmp_path / "data")
    return Settings(server=server, store=store, auth=AuthSettings(**auth))


async def test_the_own_secret_serves_beyond_loopback_only_if_a_setting_allows_it(tmp_path):
    with pytest.raises(ConfigError, match="`jwt_own_secret`"):
        await make_verifier(settings(tmp_path))
    assert not (tmp_path / "data").exists()

    _, secret = await make_verifier(settings(tmp_path, own_secret=True))

    assert secret == (tmp_path / "data" / "jwt-secret").read_text().strip()


async def test_a_configured_key_replaces_the_own_secret(tmp_path):
    """The image always allows its own secret; beside a configured key it must not count."""
    file = tmp_path / "secret"
    file.write_text("s" * 32)
    given = settings(tmp_path, own_secret=True, secret_file=file)
    verifier, secret = await make_verifier(given)

    assert secret is None
    assert not (tmp_path / "data").exists()
    token = issue_token(given, "me", ["admin"], 60)
    assert verifier.verify_nowait(token).subject == "me"
    assert Verifier(AuthSettings(), secret="s" * 32).verify_nowait(token).subject == "me"
