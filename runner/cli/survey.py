"""The environments of this machine: which exist, which modules use them, and which can be removed.

Modules are those of the modules file and all versions registered in the data directory, read without a server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import click
from attrs import field, frozen

from actors.registry import FILE_NAME, Catalog
from config.load import Loaded
from config.mistakes import ConfigError, did_you_mean
from config.modules import ModuleSpec, spec_from_mapping
from environments.base import Known, Managed, Stored
from environments.installer import only_wheels
from environments.store import Rules, Verdict, judge
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Kind
from runner.terminal import age, show_table, size, table

Work: TypeAlias = Callable[[Loaded, Mapping[Kind, Managed]], Awaitable[int]]
"""The work of a command with the environments of this machine; returns the exit code."""
OLDER_THAN_SECONDS = 30 * 86400.0
_SHOWN_REQUIREMENTS = 20
_HASH = "--hash="
_NO_CODE = {"code": "handler = print", "handler": "handler", "path": None}
"""Placeholder for the code of registered modules, on which no environment depends."""


@frozen
class Survey:
    """All environments of one machine and the modules that use them."""

    stored: tuple[Stored, ...]
    known: Mapping[str, Known]
    """By module, registered versions as NAME@VERSION; without the kind `inline`, which builds nothing."""
    specs: Mapping[str, ModuleSpec]
    notes: tuple[str, ...] = ()
    unknown: frozenset[str] = field(factory=frozenset)
    """Kinds with modules whose environments cannot be determined."""

    def users(self, key: str) -> list[str]:
        """Return the modules that use an environment."""
        return sorted(name for name, known in self.known.items() if known.key == key)

    def judged(self, rules: Rules) -> list[Verdict]:
        """Return for each environment whether these rules remove it."""
        used = {known.key for known in self.known.values() if known.key is not None}
        return judge(self.stored, used=used, unknown=self.unknown, rules=rules, now=time.time())

    def missing(self, wanted: str) -> RunnerError:
        """Return the error for a name that is neither a module nor an environment."""
        names = [*self.specs, *(one.key for one in self.stored)]
        versions = [name for name in names if name.startswith(f"{wanted}@")]
        hint = (
            f"; it is registered: name one of {', '.join(versions[-5:])}" if versions else did_you_mean(wanted, names)
        )
        return error(ErrorKind.NOT_FOUND, f"there is no module and no environment {wanted!r:.80}{hint}", field="key")


async def survey(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> Survey:
    """Read the stores and determine the environment of each module; nothing is built, locked or pulled."""
    stored: list[Stored] = []
    known: dict[str, Known] = {}
    unknown: set[str] = set()
    named, unread = read_specs(loaded)
    notes = [f"{name}: cannot determine its environment: {why}" for name, why in unread.items()]
    for kind, environment in kinds.items():
        if unread:
            unknown.add(kind)
        specs = {name: spec for name, spec in named.items() if spec.env is kind}
        available = await environment.probe()
        try:
            stored += await environment.stored()
        except RunnerError:
            unknown.add(kind)
            if specs:
                notes.append(f"{kind}: cannot list the environments: {available.reason}")
        for name, spec in specs.items():
            try:
                known[name] = await environment.known(spec)
            except RunnerError as problem:
                unknown.add(kind)
                known[name] = Known(None, problem.failure.message)
    return Survey(tuple(stored), known, named, tuple(notes), frozenset(unknown))


def read_specs(loaded: Loaded) -> tuple[dict[str, ModuleSpec], dict[str, str]]:
    """Return the modules of the file by name and all registered versions as NAME@VERSION, and the unreadable ones.

    A registered version is returned without code and path, an unreadable one as name and reason. Blocks. Raises
    RunnerError `unavailable` if the registry cannot be read.
    """
    named = {spec.name: spec for spec in loaded.modules.modules}
    unread: dict[str, str] = {}
    path = loaded.settings.store.data_dir / FILE_NAME
    if not path.exists():
        return named, unread
    catalog = Catalog.open(path)
    try:
        modules = catalog.load()
    finally:
        catalog.close()
    for version in (version for module in modules for version in module.versions):
        name = f"{version.module}@{version.version}"
        try:
            named[name] = spec_from_mapping({**version.spec, **_NO_CODE}, base=None, allow_path=False, checked=True)
            if loaded.settings.executor.api_builds == "wheels":
                with suppress(RunnerError):  # it has no environment now; that of another setting is named
                    named[name] = only_wheels(named[name])
        except ConfigError as problem:
            unread[name] = str(problem)
    return named, unread


# -- list --------------------------------------------------------------------------------------------------------------


def listing(*, as_json: bool) -> Work:
    """Return the work of `env list`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        found = await survey(loaded, kinds)
        if as_json:
            click.echo(json.dumps(_document(found), indent=1))
        else:
            _print(found, time.time())
        return 0

    return work


def _document(found: Survey) -> dict[str, Any]:
    return {
        "environments": [_fields(one) | {"modules": found.users(one.key)} for one in found.stored],
        "modules": [
            {"module": name, "env": found.specs[name].env, "key": known.key, "why": known.why or None}
            for name, known in found.known.items()
        ],
        "notes": list(found.notes),
    }


def _fields(one: Stored) -> dict[str, Any]:
    return {
        "key": one.key,
        "env": one.kind,
        "python": one.python,
        "path": one.path,
        "log": one.log or None,
        "size_bytes": one.size_bytes,
        "built_at": round(one.built_at, 3),
        "used_at": round(one.used_at, 3),
        "in_use": one.in_use,
        "pids": list(one.users),
    }


def _print(found: Survey, now: float) -> None:
    rows = [("KEY", "ENV", "PYTHON", "SIZE", "AGE", "LAST USE", "MODULES")]
    for one in found.stored:
        used = "in use" if one.in_use else f"{age(now - one.used_at)} ago"
        modules = ", ".join(found.users(one.key)) or "-"
        rows.append((one.key, one.kind, one.python, size(one.size_bytes), age(now - one.built_at), used, modules))
    if found.stored:
        show_table(rows)
    else:
        click.echo("there is no environment yet")
    lines = []
    there = {one.key for one in found.stored}
    for name, known in found.known.items():
        if known.key is None:
            lines.append(f"{name}: no key yet: {known.why}")
        elif known.key not in there:
            lines.append(f"{name}: {known.key} is not built yet")
    for line in (*lines, *found.notes):
        click.echo(line)


# -- why ---------------------------------------------------------------------------------------------------------------


def explanation(wanted: str) -> Work:
    """Return the work of `env why`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        click.echo(_explained(await survey(loaded, kinds), wanted))
        return 0

    return work


def _explained(found: Survey, wanted: str) -> str:
    """Return the explanation of an environment or of the one of a module. Raises RunnerError `not_found`."""
    spec = found.specs.get(wanted)
    if spec is not None and spec.env is Kind.INLINE:
        return nothing_to_build(spec)
    key = wanted
    if spec is not None:
        known = found.known[wanted]
        if known.key is None:
            return f"{wanted} has no key yet: {known.why}"
        key = known.key
    for verdict in found.judged(Rules(OLDER_THAN_SECONDS)):
        if verdict.stored.key == key:
            return table(_why(verdict, found.users(key), time.time())).rstrip("\n")
    if spec is None:
        raise found.missing(wanted)
    return f"{key} is not built yet; `operato-runner prepare {wanted}` builds it"


def nothing_to_build(spec: ModuleSpec) -> str:
    """Return why an inline module has no environment."""
    return f"{spec.name} is an inline module: it runs in the runner's own Python and has no environment to build"


def _why(verdict: Verdict, users: list[str], now: float) -> list[tuple[str, str]]:
    one = verdict.stored
    rows = [
        ("key", one.key),
        ("env", f"{one.kind}, Python {one.python}"),
        ("where", one.path),
        ("size", size(one.size_bytes)),
        ("built", f"{age(now - one.built_at)} ago"),
        ("last use", f"{age(now - one.used_at)} ago"),
        ("build log", one.log or "not kept"),
        ("modules", ", ".join(users) or "none"),
        ("processes", ", ".join(map(str, one.users)) or ("not visible from here" if one.in_use else "none")),
        ("verdict", f"{'gc would remove it' if verdict.remove else 'it stays'}: {verdict.why}"),
    ]
    rows += [(name, str(one.manifest[name])) for name in ("client", "image", "base") if name in one.manifest]
    for name in ("channels", "packages", "requirements"):
        lines = _without_hashes(one.manifest.get(name) or ())
        rows += [(name if at == 0 else "", line) for at, line in enumerate(lines)]
    return rows


def _without_hashes(lines: Iterable[str]) -> list[str]:
    """Return the first lines of a lock without their hashes, and how many more there are."""
    found = [line.rstrip(" \\") for line in lines if not line.strip().startswith(_HASH)]
    more = len(found) - _SHOWN_REQUIREMENTS
    return found if more <= 0 else [*found[:_SHOWN_REQUIREMENTS], f"and {more} more"]


# -- gc ----------------------------------------------------------------------------------------------------------------


def collection(rules: Rules, *, dry_run: bool) -> Work:
    """Return the work of `env gc`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        found = await survey(loaded, kinds)
        freed = count = 0
        for verdict in found.judged(rules):
            one = verdict.stored
            gone = verdict.remove and (dry_run or await kinds[Kind(one.kind)].remove(one.key))
            action = "removed" if gone and not dry_run else "would go" if gone else "kept"
            why = verdict.why if gone or not verdict.remove else "a process has begun to use it"
            click.echo(f"{action:<8}  {one.key}  {size(one.size_bytes)}  {why}")
            freed += one.size_bytes if gone else 0
            count += bool(gone)
        if not dry_run:
            await _tidy(kinds)
        for note in found.notes:
            click.echo(note)
        verb = "would be" if dry_run else "were"
        click.echo(f"{count} of {len(found.stored)} environments {verb} removed, {size(freed)}")
        return 0

    return work


async def _tidy(kinds: Mapping[Kind, Managed]) -> None:
    """Remove the remains of killed builds and removals from the stores."""
    left = 0
    for environment in kinds.values():
        left += await environment.tidy()
    if left:
        click.echo(f"removed   the remains of {left} interrupted builds or removals")
