"""Secrets in files: the runner's own, made once in the data directory with mode 0600, or one that a setting names."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from attrs import evolve

from config.mistakes import ConfigError, Mistake
from config.settings import AuthSettings
from protocol.errors import ErrorKind, error
from runner.auth.keys import MIN_SECRET_BYTES

_MAX_SECRET_BYTES = 4096


def with_secret(settings: AuthSettings) -> AuthSettings:
    """Return the settings with the content of `secret_file` as `secret`; without such a file, unchanged. Blocks.

    White space around the secret is removed. The mode of the file is not checked: mounted secrets belong to root and
    are readable by a group. Raises ConfigError if the file cannot be read or has no secret.
    """
    path = settings.secret_file
    if path is None:
        return settings
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SECRET_BYTES + 1)
        secret = data.decode().strip()
    except OSError as problem:
        raise _mistake(f"{path} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise _mistake(f"{path} is not text in UTF-8") from None
    if len(data) > _MAX_SECRET_BYTES or len(secret.encode()) < MIN_SECRET_BYTES:
        text = f"{path} must hold a secret of {MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} bytes"
        raise _mistake(f"{text}, like that of `openssl rand -base64 48`")
    return evolve(settings, secret=secret)


def _mistake(message: str) -> ConfigError:
    return ConfigError([Mistake(message, None, None, "jwt_secret_file")])


def load_or_make_secret(data_dir: Path) -> tuple[str, bool]:
    """Return the secret in the file `jwt-secret` of `data_dir`, and whether this call made it. Blocks.

    When several processes make it at once, one succeeds and all return the same. Raises `RunnerError` (`unavailable`)
    if others may read the file, if it holds no secret, or if it cannot be read or made.
    """
    path = data_dir / "jwt-secret"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        made = not path.exists() and _make_secret(path)
        return _read_secret(path), made
    except OSError as problem:
        message = f"the secret {path} cannot be read or made ({problem.strerror}); change `data_dir`, or its mode"
        raise error(ErrorKind.UNAVAILABLE, message, field="data_dir") from None


def find_secret(data_dir: Path) -> tuple[str, int] | None:
    """Return the secret of a data directory and the ID of its owner, or None if there is no secret. Blocks.

    Makes nothing. Raises `RunnerError` (`unavailable`) as `load_or_make_secret`, and OSError.
    """
    path = data_dir / "jwt-secret"
    try:
        return _read_secret(path), path.stat().st_uid
    except FileNotFoundError:
        return None


def _make_secret(path: Path) -> bool:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(fd)
        # A link appears with its content and, unlike a rename, never replaces the file of another process.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _read_secret(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        data = file.read(4096).strip() if stat.S_ISREG(status.st_mode) else b""
    if status.st_mode & 0o077:
        message = f"others may read the secret {path}: `chmod 600` it, or delete it to have a new one made"
        raise error(ErrorKind.UNAVAILABLE, message, field="data_dir")
    if len(data) < MIN_SECRET_BYTES or not data.isascii():
        message = f"{path} is not a secret of {MIN_SECRET_BYTES} characters or more: delete it to have a new one made"
        raise error(ErrorKind.UNAVAILABLE, message, field="data_dir")
    return data.decode("ascii")
