"""The checks of `doctor`: whether this machine can run the modules of a file, and the remedies where it cannot."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import trio
from attrs import evolve

from actors.files import usage
from actors.history import database_path
from actors.starts import unsent
from actors.system import Surroundings, System, open_system
from config.client import is_loopback
from config.load import Loaded
from config.mistakes import ConfigError
from config.packages import MINORS
from config.settings import ClusterSettings, ServerSettings, Settings
from config.timing import local_time
from environments.installer import find_uv
from environments.local import ProcessTable
from environments.pythons import installed_pythons
from protocol.errors import RunnerError
from protocol.model import Kind
from runner.cli.doctor.cluster import examine_cluster
from runner.cli.doctor.findings import Finding, State
from runner.ports import try_port
from runner.serve import key_mistakes, makes_secret, open_endpoints, secret_mistakes, server_context
from runner.terminal import size

_TOOL_SECONDS = 5.0
_LITTLE_SPACE_BYTES = 1024**3
_NEARLY_FULL = 0.9
_DELEGATE = (
    "for enforcement by the kernel let the runner write control groups: run it as a systemd service with "
    "Delegate=yes, or in a container with a writable cgroup2"
)
_ENFORCEMENT = {
    "cgroup-v1": "by a control group (version 1)",
    "cgroup-v2": "by a control group (version 2)",
    "watched": "by sampling every 0.1 s; it can be exceeded for a moment",
    "affinity": "by CPU affinity: whole CPUs, a fraction is rounded up",
}


def examine(loaded: Loaded, around: Surroundings) -> list[Finding]:
    """Return the results of all checks. A running server is not disturbed. Raises RunnerError and OSError."""
    return trio.run(_examine, loaded, around)


async def _examine(loaded: Loaded, around: Surroundings) -> list[Finding]:
    settings = loaded.settings
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="operato-doctor-") as folder:
        # The parts that are tried are those of a runner alone: a running cluster is not disturbed.
        aside = evolve(settings, store=evolve(settings.store, data_dir=Path(folder)), cluster=ClusterSettings())
        async with open_system(aside, around, ()) as system:
            findings += _kinds(loaded, system)
            findings += _limits(system)
            findings += [finding async for finding in _tools(loaded, system.table, around)]
    findings += _folders(loaded)
    findings += _ports(loaded)
    findings.append(await _key(settings))
    findings += _anonymous(settings)
    findings += _secrets(loaded, around)
    findings += _open(loaded)
    findings += _schedules(loaded)
    findings += _notices(settings)
    if settings.cluster.servers:
        findings += await examine_cluster(loaded)
    return findings


def _users(loaded: Loaded, kind: Kind) -> list[str]:
    return [spec.name for spec in loaded.modules.modules if spec.env is kind]


def _kinds(loaded: Loaded, system: System) -> Iterator[Finding]:
    for kind, executor in system.executors.items():
        found, users = executor.availability, _users(loaded, kind)
        used = f"used by {len(users)} of {len(loaded.modules.modules)} modules"
        if found.available:
            detail = ", ".join(f"{name} {value}" for name, value in found.detail.items())
            yield Finding("environments", kind, State.OK, f"{used}; {detail}" if detail else used)
        else:
            state = State.FAILED if users else State.NOTE
            yield Finding("environments", kind, state, f"{used}; unavailable: {found.reason}")


def _limits(system: System) -> Iterator[Finding]:
    # A kind with limits of its own, such as a container engine's, enforces them itself; the runner enforces the others.
    own = [kind for kind, executor in system.executors.items() if not executor.availability.limits]
    found = [kind for kind in own if system.executors[kind].availability.available]
    enforcement = next(iter(system.executors.values())).limits.enforcement
    for name in ("memory", "cpus", "processes"):
        how = getattr(enforcement, name)
        by_kernel = how.startswith("cgroup")
        state = State.OK if by_kernel else State.NOTE
        text = f"{', '.join(found)}: enforced {_ENFORCEMENT.get(how, how)}"
        yield Finding("limits", name, state, text, "" if by_kernel else _DELEGATE)
    for kind, executor in system.executors.items():
        for name, how in executor.availability.limits.items():
            state = State.NOTE if how == "none" else State.OK
            text = f"{kind}: not enforced" if how == "none" else f"{kind}: enforced by the {how}"
            yield Finding("limits", f"{name} ({kind})", state, text)
    if system.table.subreaper:
        yield Finding(
            "limits", "end of calls", State.OK, "orphaned processes of a call are found and killed (subreaper)"
        )
    else:
        text = "orphaned processes of a call are not found: this system has no PR_SET_CHILD_SUBREAPER"
        yield Finding("limits", "end of calls", State.NOTE, text, "use Linux 3.4 or later")


async def _tools(loaded: Loaded, table: ProcessTable, around: Surroundings) -> AsyncIterator[Finding]:
    users = _users(loaded, Kind.VENV)
    missing = State.FAILED if users else State.NOTE
    uv = find_uv()
    version = None if uv is None else await _first_line(table, [uv, "--version"], around)
    if version is None:
        text = "not found" if uv is None else f"{uv} does not run"
        yield Finding("tools", "uv", missing, text, "`pip install uv`, or put it on PATH")
    else:
        yield Finding("tools", "uv", State.OK, f"{version} ({uv})")
    if (ca := loaded.settings.store.build_ca) is not None:
        yield Finding("tools", "build_ca", State.OK, f"builds trust the CAs in {ca}, and no others")
    yield Finding("tools", "python", State.OK, f"{platform.python_version()}, the runner's own")
    pythons = await installed_pythons(table, around.installer)
    for minor in MINORS:
        found = [python for python in pythons if python.fits(f"3.{minor}")]
        if found:
            text = ", ".join(f"{python.version} ({python.path})" for python in found)
            yield Finding("tools", f"python 3.{minor}", State.OK, text)
    for spec in loaded.modules.modules:
        if spec.env is Kind.VENV and spec.python and not any(python.fits(spec.python) for python in pythons):
            text = f"module {spec.name} needs Python {spec.python}, which is not on this machine"
            yield Finding("tools", f"python {spec.python}", State.FAILED, text, "install it, or change `python`")


async def _first_line(table: ProcessTable, argv: list[str], around: Surroundings) -> str | None:
    """Return the first line printed by a tool, or None if it fails or takes too long."""
    lines: list[str] = []
    with trio.move_on_after(_TOOL_SECONDS), suppress(OSError):
        status = await table.run(
            argv, around.installer, on_line=lambda line: lines.append(line[:200]) if not lines else None
        )
        return lines[0] if status == 0 and lines else None
    return None


def _folders(loaded: Loaded) -> Iterator[Finding]:
    store = loaded.settings.store
    yield _folder("data_dir", store.data_dir, State.FAILED)
    yield _files(loaded.settings)
    yield _folder("venv_path", store.venv_path, State.FAILED if _users(loaded, Kind.VENV) else State.NOTE)
    yield _folder("conda_path", store.conda_path, State.FAILED if _users(loaded, Kind.CONDA) else State.NOTE)


def _files(settings: Settings) -> Finding:
    limit = settings.files.max_files_bytes
    try:
        count, taken = usage(settings.store.data_dir)
    except sqlite3.Error as problem:
        text = f"the database of files cannot be read: {problem}"
        return Finding("folders", "files", State.NOTE, text, "the next start of the server mends it")
    text = f"{count} stored files take {size(taken)} of {size(limit)}"
    if taken > limit * _NEARLY_FULL:
        return Finding("folders", "files", State.NOTE, text, "delete files, or raise `max_files_bytes`")
    return Finding("folders", "files", State.OK, text)


def _folder(name: str, path: Path, otherwise: State) -> Finding:
    """Check that files can be written in a folder, or the folder made in its nearest existing parent."""
    try:
        there = next(place for place in (path, *path.parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as problem:
        text = f"{path} cannot be written: {problem.strerror}"
        return Finding("folders", name, otherwise, text, f"make it writable for this user, or change `{name}`")
    text = f"{path} can be {'written' if there == path else 'made'}, {free / 1024**3:.1f} GiB free"
    if free < _LITTLE_SPACE_BYTES:
        return Finding("folders", name, State.NOTE, text, "free some space: builds and records need it")
    return Finding("folders", name, State.OK, text)


def _ports(loaded: Loaded) -> Iterator[Finding]:
    server = loaded.settings.server
    doors = (("rest_port", server.rest, server.rest_port), ("grpc_port", server.grpc, server.grpc_port))
    for name, enabled, port in doors:
        if not enabled:
            yield Finding("ports", name, State.OK, "disabled")
        elif problem := try_port(server.host, port, f"--{name.replace('_', '-')}"):
            yield Finding("ports", name, State.NOTE, problem, "fine if it is this runner, already started")
        else:
            text = f"{port} of {server.host} is free" if port else "a free port is picked at the start"
            yield Finding("ports", name, State.OK, text)
    yield from _tls(loaded.settings.server)


def _tls(server: ServerSettings) -> Iterator[Finding]:
    try:
        context = server_context(server, ())
    except ConfigError as problem:
        for mistake in problem.mistakes:
            yield Finding("ports", "tls", State.FAILED, str(mistake))
    else:
        yield Finding("ports", "tls", State.OK, "enabled for REST and gRPC" if context else "disabled")


async def _key(settings: Settings) -> Finding:
    """Check the key of tokens as the start does, but make no secret."""
    auth, own = settings.auth, settings.store.data_dir / "jwt-secret"
    if makes_secret(settings):
        return Finding("secrets", "key for tokens", State.OK, f"not configured; the first start makes {own}")
    if mistakes := await key_mistakes(settings):
        return Finding("secrets", "key for tokens", State.FAILED, "; ".join(map(str, mistakes)))
    given = {
        "jwt_secret": auth.secret,
        "jwt_secret_file": auth.secret_file,
        "jwt_public_key_file": auth.public_key_file,
        "jwt_jwks_url": auth.jwks_url,
    }
    configured = next((name for name, value in given.items() if value), None)
    text = f"`{configured}` is usable" if configured else f"the runner's own secret {own} is usable"
    return Finding("secrets", "key for tokens", State.OK, text)


def _anonymous(settings: Settings) -> Iterator[Finding]:
    if scopes := settings.auth.anonymous:
        where = "" if is_loopback(settings.server.host) else f", also from other machines ({settings.server.host})"
        text = f"callers without a token are accepted{where}, with {' '.join(scopes)}"
        yield Finding("secrets", "anonymous", State.NOTE, text, "remove the setting `anonymous` to require tokens")


def _secrets(loaded: Loaded, around: Surroundings) -> Iterator[Finding]:
    for spec in loaded.modules.modules:
        for mistake in secret_mistakes(spec, around):
            yield Finding("secrets", f"{spec.name}.secrets", State.FAILED, str(mistake))


def _open(loaded: Loaded) -> Iterator[Finding]:
    for spec in loaded.modules.modules:
        for text in open_endpoints(spec):
            yield Finding("endpoints", spec.name, State.NOTE, text, "check that its handler may be called by anyone")


def _schedules(loaded: Loaded) -> Iterator[Finding]:
    for module in loaded.modules.modules:
        for each in module.schedules:
            following = each.timing.next(time.time())
            name = f"{module.name}:{each.name}"
            if following is None:
                yield Finding(
                    "schedules", name, State.NOTE, f"{each.at} has passed", "remove it, or write a time to come"
                )
            else:
                yield Finding("schedules", name, State.OK, f"next at {local_time(following, each.timezone)}")


def _notices(settings: Settings) -> Iterator[Finding]:
    try:
        found = unsent(database_path(settings.history.database, settings.store.data_dir))
    except (RunnerError, sqlite3.Error) as problem:
        text = f"the database of notices cannot be read: {problem}"
        yield Finding("notices", "unsent", State.NOTE, text, "the next start of the server mends it")
        return
    text = f"{found['pending']} wait, {found['dead']} are dead"
    if found["dead"]:
        remedy = "`operato-runner notices list --state dead` says why; `notices retry ID` sends one again"
        yield Finding("notices", "unsent", State.NOTE, text, remedy)
    else:
        yield Finding("notices", "unsent", State.OK, text)
