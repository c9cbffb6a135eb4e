"""The credentials of a command: a given token, or one signed with the secret of a runner on this machine.

A signed token is sent only to loopback, only if the port belongs to the same user, to root or to the owner of the
secret, and is usually valid for one minute: another user who listens there instead of the runner must not get one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from attrs import frozen

from config.client import Address, ClientSettings
from config.load import load_settings
from config.mistakes import ConfigError
from config.settings import Settings
from protocol.errors import RunnerError
from runner.auth import find_secret, sign_for, with_secret

SUBJECT = "local"
"""The subject of the token that a runner prints at its start, too."""
_VALID_SECONDS = 60.0
"""A token is signed for each connection and verified when that begins."""
_ROOT = 0
_LISTENING = "0A"


@frozen
class Credentials:
    """The token of a client, and the hint for a rejected one."""

    token: Callable[[], str | None]
    """Returns the token for a connection that begins now."""
    remedy: str
    """What to do if the runner rejects it."""
    cause: str = ""
    """Why there is no token."""


class _NoTokenError(Exception):
    """The reason why no token can be signed."""


def credentials(settings: ClientSettings, scopes: Sequence[str], seconds: float = _VALID_SECONDS) -> Credentials:
    """Return the credentials of a command that needs `scopes`. Blocks. Without a token, the runner decides.

    A signed token is valid for `seconds`.
    """
    command = f'`operato-runner token --subject NAME --scope "{" ".join(scopes)}"`'
    how = f"OPERATO_TOKEN; {command} prints one in the folder of that runner"
    if settings.token is not None:
        return Credentials(lambda: settings.token, f"set another token in {how}")
    try:
        found = _local(settings.address, scopes, seconds)
    except _NoTokenError as reason:
        return Credentials(lambda: None, f"set {how}", f"there is no token: {reason}")
    remedy = (
        f"the runner at {settings.address} has another secret than the one found here; run the command in the folder "
        f"of that runner, or with its OPERATO_DATA_DIR or OPERATO_CONFIG, or set {how}"
    )
    return Credentials(found, remedy)


def _local(address: Address, scopes: Sequence[str], seconds: float) -> Callable[[], str]:
    """Return a function that signs tokens. Raises _NoTokenError."""
    if not address.loopback:
        raise _NoTokenError("a token is signed automatically only for a runner on this machine")
    try:
        loaded = load_settings({}, modules=False, needed=False)
        if loaded.sources["store.data_dir"] == "default":  # beside the modules file, which must be there then
            loaded = load_settings({}, modules=False)
        settings = loaded.settings
    except ConfigError as problem:
        # These commands have no --config.
        why = str(problem.mistakes[0]).replace("--config or OPERATO_CONFIG", "OPERATO_CONFIG")
        raise _NoTokenError(f"no secret of a runner was found here: {why}") from None
    auth = settings.auth
    if auth.public_key_file or auth.jwks_url:
        raise _NoTokenError("the runner of the modules file here verifies tokens with a public key")
    secret, owner = _secret(settings)
    if not listens_as(_sockets(), address.port, {_ROOT, os.geteuid(), owner}):
        raise _NoTokenError(f"none was signed: port {address.port} does not belong to a runner of this user")
    return lambda: sign_for(auth, secret, SUBJECT, scopes, seconds)


def _secret(settings: Settings) -> tuple[str, int]:
    """Return the secret of the settings here and the id of its owner. Raises _NoTokenError."""
    try:
        configured = with_secret(settings.auth).secret
    except ConfigError as problem:
        raise _NoTokenError(str(problem.mistakes[0])) from None
    if configured is not None:
        return configured, os.geteuid()
    try:
        found = find_secret(settings.store.data_dir)
    except RunnerError as problem:
        raise _NoTokenError(problem.failure.message) from None
    except OSError as problem:
        raise _NoTokenError(f"the secret in {settings.store.data_dir} cannot be read: {problem.strerror}") from None
    if found is None:
        raise _NoTokenError(f"there is no secret in {settings.store.data_dir}")
    return found


def _sockets() -> str:
    """Return the tables of TCP sockets of this network namespace, empty if they cannot be read."""
    texts = []
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            texts.append(Path(name).read_text())
        except OSError:
            continue
    return "".join(texts)


def listens_as(tables: str, port: int, users: Iterable[int]) -> bool:
    """Return whether all processes that listen on a port, at least one, belong to these users."""
    owners = set()
    for line in tables.splitlines():
        fields = line.split()
        if len(fields) > 7 and fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
            owners.add(int(fields[7]))
    return bool(owners) and owners <= set(users)
