"""Who calls, on the machine of the runner: a token of its own secret, for whoever may read that and gave no token.

The token goes only to loopback, only where the port is held by the same user, by root or by the owner of the secret,
and is good for a minute: another user who listens there in place of the runner must not get one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from attrs import frozen

from config.client import Address, ClientSettings
from config.load import load_settings
from config.mistakes import ConfigError
from config.settings import AuthSettings, Settings
from protocol.errors import RunnerError
from runner.auth import find_secret, sign, with_secret

SUBJECT = "local"
"""As in the token that a runner prints when it starts."""
_GOOD_SECONDS = 60.0
"""A token is made for each connection and is looked at when that begins."""
_ROOT = 0
_LISTENING = "0A"


@frozen
class Credentials:
    """How a client shows who calls."""

    token: Callable[[], str | None]
    """The token for a connection that begins now."""
    remedy: str
    """What to do when the runner does not take it."""


class _NoneError(Exception):
    """Says why no token is made."""


def credentials(settings: ClientSettings, scopes: Sequence[str]) -> Credentials:
    """Return the credentials of a command that needs `scopes`. Blocks; never fails: the runner says what is missing."""
    how = f'OPERATO_TOKEN; `operato-runner token --subject NAME --scope "{" ".join(scopes)}"` prints one'
    if settings.token is not None:
        return Credentials(lambda: settings.token, f"set another one in {how}")
    try:
        found = _local(settings.address, scopes)
    except _NoneError as reason:
        return Credentials(lambda: None, f"set {how} ({reason})")
    remedy = f"the runner at {settings.address} has another secret than the modules file here says; set {how}"
    return Credentials(found, remedy)


def _local(address: Address, scopes: Sequence[str]) -> Callable[[], str]:
    """Return what makes tokens. Raises _NoneError."""
    if not address.loopback:
        raise _NoneError("one is made only for a runner on this machine")
    try:
        settings = load_settings({}).settings
    except ConfigError as problem:
        # A command that is a client has no --config.
        why = str(problem.mistakes[0]).replace("--config or OPERATO_CONFIG", "OPERATO_CONFIG")
        raise _NoneError(f"no secret of a runner is known here: {why}") from None
    auth = settings.auth
    if auth.public_key_file or auth.jwks_url:
        raise _NoneError("the runner of the modules file here does not sign tokens")
    secret, owner = _secret(settings)
    if not held_by(_sockets(), address.port, {_ROOT, os.geteuid(), owner}):
        raise _NoneError(f"none was made, as port {address.port} is not held by a runner of this user")
    return lambda: _signed(secret, auth, scopes)


def _secret(settings: Settings) -> tuple[str, int]:
    """Return the secret of the settings here, and who owns it. Raises _NoneError."""
    try:
        configured = with_secret(settings.auth).secret
    except ConfigError as problem:
        raise _NoneError(str(problem.mistakes[0])) from None
    if configured is not None:
        return configured, os.geteuid()
    try:
        found = find_secret(settings.store.data_dir)
    except RunnerError as problem:
        raise _NoneError(problem.failure.message) from None
    except OSError as problem:
        raise _NoneError(f"the secret in {settings.store.data_dir} cannot be read: {problem.strerror}") from None
    if found is None:
        raise _NoneError(f"there is no secret in {settings.store.data_dir}")
    return found


def _signed(secret: str, auth: AuthSettings, scopes: Sequence[str]) -> str:
    return sign(
        secret,
        subject=SUBJECT,
        scopes=scopes,
        expires_seconds=_GOOD_SECONDS,
        issuer=auth.issuer,
        audience=auth.audience,
    )


def _sockets() -> str:
    """Return the tables of TCP sockets of this network namespace; nothing where they cannot be read."""
    texts = []
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            texts.append(Path(name).read_text())
        except OSError:
            continue
    return "".join(texts)


def held_by(tables: str, port: int, users: Iterable[int]) -> bool:
    """Return whether somebody listens on a port, and all who do are of these users."""
    owners = set()
    for line in tables.splitlines():
        fields = line.split()
        if len(fields) > 7 and fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
            owners.add(int(fields[7]))
    return bool(owners) and owners <= set(users)
