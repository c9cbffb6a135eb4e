"""The mistakes that keep a server from starting and show without one: in secrets, TLS files and the key of tokens.

`serve` refuses them, and `config check` and `doctor` report them, by the same functions.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

import trio
from attrs import evolve

from actors.registry import registered_names
from actors.system import Surroundings
from config.client import is_loopback
from config.cluster import file_mistakes
from config.load import Loaded
from config.mistakes import ConfigError, Mistake
from config.modules import PREFIX, Auth, ModuleSpec
from config.settings import Settings
from protocol.errors import RunnerError
from runner.auth import Verifier, anonymous_caller, load_or_make_secret, with_secret
from runner.serve.tls import server_context


async def start_mistakes(loaded: Loaded, around: Surroundings) -> list[Mistake]:
    """Return all mistakes that `serve` refuses, beyond those that reading the modules file finds. Makes nothing."""
    settings = loaded.settings
    found = [mistake for spec in loaded.modules.modules for mistake in secret_mistakes(spec, around)]
    found += _raised(lambda: server_context(settings.server, ()))
    found += await trio.to_thread.run_sync(cluster_mistakes, settings)
    return [*found, *await key_mistakes(settings)]


def secret_mistakes(spec: ModuleSpec, around: Surroundings) -> list[Mistake]:
    """Return a mistake for each secret of a module without a value on this machine."""
    return [
        evolve(each, field=f"{spec.name}.secrets.{each.field}")
        for each in _raised(lambda: around.secrets(spec.secrets))
    ]


def cluster_mistakes(settings: Settings) -> list[Mistake]:
    """Return the mistakes in the files of a cluster; none without one. Blocks."""
    cluster = settings.cluster
    if not cluster.servers:
        return []
    return [*file_mistakes(cluster.credentials, cluster.ca, cluster.cert, cluster.key)]


def open_endpoints(spec: ModuleSpec) -> list[str]:
    """Return the endpoints of a module that every client may call, in words."""
    found = [each for each in spec.endpoints if each.auth is Auth.NONE]
    return [f"{', '.join(each.methods)} {PREFIX}{each.path} is open to every client (`auth: none`)" for each in found]


def unknown_recipients(specs: Iterable[ModuleSpec], known: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield each module that tells one that is not known, with a warning: it may be registered later."""
    for spec in specs:
        for place, each in enumerate(spec.on_end):
            if each.module is not None and each.module not in known:
                text = f"there is no module {each.module!r} yet; its notices wait a day for it, then they are dead"
                yield spec.name, f"on_end[{place}].module: {text}"


def registered(data_dir: Path) -> set[str]:
    """Return the names of the modules that were registered over the API; none where they cannot be read."""
    try:
        return registered_names(data_dir)
    except sqlite3.Error:
        return set()


async def key_mistakes(settings: Settings) -> list[Mistake]:
    """Return the mistakes in the key of tokens and in `anonymous`. A secret to be made is no mistake."""
    try:
        anonymous_caller(settings.auth.anonymous)
        if makes_secret(settings):
            return []
        await make_verifier(settings)
    except ConfigError as problem:
        return list(problem.mistakes)
    except RunnerError as problem:
        return [Mistake(problem.failure.message, None, None, problem.failure.field or "")]
    return []


def makes_secret(settings: Settings) -> bool:
    """Return whether the start would make a secret: no key is configured, and the data directory has no secret."""
    auth = settings.auth
    if auth.secret or auth.secret_file or auth.public_key_file or auth.jwks_url:
        return False
    allowed = auth.own_secret or is_loopback(settings.server.host)
    return allowed and not os.path.lexists(settings.store.data_dir / "jwt-secret")


async def make_verifier(settings: Settings) -> tuple[Verifier, str | None]:
    """Return the verifier, and the secret if it is the runner's own (no key is configured).

    Raises ConfigError, and RunnerError `bad_input` with the name of a setting.
    """
    verifier, secret = await _make_verifier(settings)
    verifier.anonymous = anonymous_caller(settings.auth.anonymous)
    return verifier, secret


async def _make_verifier(settings: Settings) -> tuple[Verifier, str | None]:
    auth = await trio.to_thread.run_sync(with_secret, settings.auth)
    if auth.secret or auth.public_key_file or auth.jwks_url:
        key = None if auth.public_key_file is None else _read_key(auth.public_key_file)
        return Verifier(auth, public_key=key), None
    if not auth.own_secret and not is_loopback(settings.server.host):
        remedy = (
            "configure `jwt_secret`, `jwt_secret_file`, `jwt_public_key_file` or `jwt_jwks_url`, listen on 127.0.0.1, "
            "or allow the runner's own secret with `jwt_own_secret`"
        )
        text = f"{settings.server.host!r:.80} is not a loopback address, and no key for tokens is configured; {remedy}"
        raise ConfigError([Mistake(text, None, None, "host")])
    secret, _ = await trio.to_thread.run_sync(load_or_make_secret, settings.store.data_dir)
    return Verifier(auth, secret=secret), secret


def _read_key(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(1024 * 1024)
    except OSError as problem:
        text = f"{file} cannot be read: {problem.strerror}"
        raise ConfigError([Mistake(text, None, None, "jwt_public_key_file")]) from None


def _raised(check: Callable[[], object]) -> tuple[Mistake, ...]:
    try:
        check()
    except ConfigError as problem:
        return problem.mistakes
    return ()
