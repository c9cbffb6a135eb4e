"""`operato-runner env`: what environments there are, why, which can go, and how one is built again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import click
import trio
from attrs import evolve, field, frozen

from actors.system import Surroundings, open_environments
from actors.workers import BuildLog, build
from config.load import Loaded
from config.mistakes import did_you_mean
from config.modules import ModuleSpec
from environments.base import Known, Managed, Stored
from environments.store import Rules, Verdict, judge
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Kind
from runner.cli.build_output import follow
from runner.cli.prepare import preparation
from runner.cli.registered import served_specs

__all__ = ["collection", "explanation", "listing", "preparation", "rebuilding", "run"]

Work: TypeAlias = Callable[[Loaded, Mapping[Kind, Managed]], Awaitable[int]]
"""What a command does with the environments of this machine; gives its exit code."""
OLDER_THAN_SECONDS = 30 * 86400.0
_SHOWN_REQUIREMENTS = 20
_HASH = "--hash="


@frozen
class Survey:
    """All environments of one machine, one modules file, and what is registered in its data directory."""

    stored: tuple[Stored, ...]
    known: Mapping[str, Known]
    """By module, registered ones as NAME@VERSION; without those of the kind `inline`, which builds nothing."""
    specs: Mapping[str, ModuleSpec]
    notes: tuple[str, ...] = ()
    unknown: frozenset[str] = field(factory=frozenset)
    """The kinds of which it cannot be told which environments their modules use."""

    def users(self, key: str) -> list[str]:
        """Return the modules that use an environment."""
        return sorted(name for name, known in self.known.items() if known.key == key)

    def judged(self, rules: Rules) -> list[Verdict]:
        """Return what is to become of each environment by these rules."""
        used = {known.key for known in self.known.values() if known.key is not None}
        return judge(self.stored, used=used, unknown=self.unknown, rules=rules, now=time.time())


def run(loaded: Loaded, around: Surroundings, work: Work) -> int:
    """Do `work` with the environments of this machine; return its exit code. Raises RunnerError and OSError."""

    async def inside() -> int:
        async with open_environments(loaded.settings, around) as kinds:
            return await work(loaded, kinds)

    return trio.run(inside)


async def survey(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> Survey:
    """Look at the stores, and find out what all modules would use; nothing is built, locked or pulled."""
    stored: list[Stored] = []
    known: dict[str, Known] = {}
    notes: list[str] = []
    unknown: set[str] = set()
    named, unread = served_specs(loaded)
    notes += [f"{name}: what it uses cannot be told: {why}" for name, why in unread.items()]
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
                notes.append(f"{kind}: what is kept cannot be told: {available.reason}")
        for name, spec in specs.items():
            try:
                known[name] = await environment.known(spec)
            except RunnerError as problem:
                unknown.add(kind)
                known[name] = Known(None, problem.failure.message)
    return Survey(tuple(stored), known, named, tuple(notes), frozenset(unknown))


# -- list --------------------------------------------------------------------------------------------------------------


def listing(*, as_json: bool) -> Work:
    """Return the work of `env list`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        found = await survey(loaded, kinds)
        if as_json:
            click.echo(json.dumps(_document(found), indent=1))
            return 0
        click.echo(_table(found, time.time()))
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


def _table(found: Survey, now: float) -> str:
    rows = [("KEY", "ENV", "PYTHON", "SIZE", "AGE", "LAST USE", "MODULES")]
    for one in found.stored:
        used = "in use" if one.in_use else f"{age(now - one.used_at)} ago"
        modules = ", ".join(found.users(one.key)) or "-"
        rows.append((one.key, one.kind, one.python, size(one.size_bytes), age(now - one.built_at), used, modules))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not found.stored:
        lines = ["there is no environment yet"]
    there = {one.key for one in found.stored}
    for name, known in found.known.items():
        if known.key is None:
            lines.append(f"{name}: no key yet: {known.why}")
        elif known.key not in there:
            lines.append(f"{name}: {known.key} is not built yet")
    return "\n".join([*lines, *found.notes])


def size(count: float) -> str:
    """Return a size for people: `31.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def age(seconds: float) -> str:
    """Return how long ago something was, for people: `5m`, `3h`, `12d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


# -- why ---------------------------------------------------------------------------------------------------------------


def explanation(wanted: str) -> Work:
    """Return the work of `env why`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        found = await survey(loaded, kinds)
        spec = found.specs.get(wanted)
        if spec is not None and spec.env is Kind.INLINE:
            click.echo(f"{wanted} is an inline module: it runs in the runner's own Python, and nothing is built for it")
            return 0
        key = wanted
        if spec is not None:
            known = found.known[wanted]
            if known.key is None:
                click.echo(f"{wanted} has no key yet: {known.why}")
                return 0
            key = known.key
        verdicts = {verdict.stored.key: verdict for verdict in found.judged(Rules(OLDER_THAN_SECONDS))}
        if key in verdicts:
            click.echo("\n".join(_why(verdicts[key], found.users(key), time.time())))
        elif spec is not None:
            click.echo(f"{key} is not built yet; `operato-runner prepare {wanted}` builds it")
        else:
            raise _nothing(wanted, [*found.specs, *verdicts])
        return 0

    return work


def _nothing(wanted: str, names: Iterable[str]) -> RunnerError:
    known = list(names)
    versions = [name for name in known if name.startswith(f"{wanted}@")]
    hint = f"; it is registered: name one of {', '.join(versions[-5:])}" if versions else did_you_mean(wanted, known)
    text = f"there is no module and no environment {wanted!r:.80}{hint}"
    return error(ErrorKind.NOT_FOUND, text, field="key")


def _why(verdict: Verdict, users: list[str], now: float) -> list[str]:
    one = verdict.stored
    rows = [
        ("key", one.key),
        ("env", f"{one.kind}, Python {one.python}"),
        ("where", one.path),
        ("size", size(one.size_bytes)),
        ("built", f"{age(now - one.built_at)} ago"),
        ("last use", f"{age(now - one.used_at)} ago"),
        ("build log", one.log or "none is kept"),
        ("modules", ", ".join(users) or "none"),
        ("processes", ", ".join(map(str, one.users)) or ("not visible from here" if one.in_use else "none")),
        ("verdict", f"{'gc would remove it' if verdict.remove else 'it stays'}: {verdict.why}"),
    ]
    rows += [(name, str(one.manifest[name])) for name in ("client", "image", "base") if name in one.manifest]
    for name in ("channels", "packages", "requirements"):
        lines = _stated(one.manifest.get(name) or ())
        rows += [(name if at == 0 else "", line) for at, line in enumerate(lines)]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _stated(lines: Iterable[str]) -> list[str]:
    """Return the lines of a lock without their hashes, the first of many."""
    found = [line.rstrip(" \\") for line in lines if not line.strip().startswith(_HASH)]
    more = len(found) - _SHOWN_REQUIREMENTS
    return found if more <= 0 else [*found[:_SHOWN_REQUIREMENTS], f"and {more} more"]


# -- gc ----------------------------------------------------------------------------------------------------------------


def collection(older_than: float, keep_bytes: int | None, *, dry_run: bool) -> Work:
    """Return the work of `env gc`; parameters as `Rules`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        found = await survey(loaded, kinds)
        freed = count = 0
        for verdict in found.judged(Rules(older_than, keep_bytes)):
            one = verdict.stored
            gone = verdict.remove and (dry_run or await kinds[Kind(one.kind)].remove(one.key))
            said = "removed" if gone and not dry_run else "would go" if gone else "kept"
            why = verdict.why if gone or not verdict.remove else "a process has begun to use it"
            click.echo(f"{said:<8}  {one.key}  {size(one.size_bytes)}  {why}")
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
    """Remove what builds that were killed have left in the stores."""
    left = 0
    for environment in kinds.values():
        left += await environment.tidy()
    if left:
        click.echo(f"removed   what {left} builds or removals that were cut off had left")


# -- rebuild -----------------------------------------------------------------------------------------------------------


def rebuilding(wanted: str) -> Work:
    """Return the work of `env rebuild`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        found = await survey(loaded, kinds)
        names = [wanted] if wanted in found.specs else found.users(wanted)
        if not names and any(one.key == wanted for one in found.stored):
            text = f"no module of the file uses {wanted}, so nothing says how it is built; `env gc` removes it in time"
            raise error(ErrorKind.BAD_INPUT, text, field="key")
        if not names:
            raise _nothing(wanted, [*found.specs, *(one.key for one in found.stored)])
        spec = found.specs[names[0]]
        if spec.env is Kind.INLINE:
            text = f"{spec.name} is an inline module: it runs in the runner's own Python, and nothing is built for it"
            raise error(ErrorKind.BAD_INPUT, text, field="module")
        began = time.perf_counter()
        said = BuildLog()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, said, lambda line: click.echo(line, err=True))
            try:
                rebuild, places = kinds[spec.env].rebuild, trio.CapacityLimiter(1)
                prepared = await build(rebuild, spec, places, said, said.add)
            except RunnerError as problem:
                said.end(failure=problem.failure)
                raise _with_modules(problem, found) from None
            said.end(prepared=prepared)
        click.echo(f"{prepared.key} was built anew in {time.perf_counter() - began:.1f} s")
        sys.stdout.flush()
        return 0

    return work


def _with_modules(problem: RunnerError, found: Survey) -> RunnerError:
    """Return the refusal to replace what is used, with the modules that use it."""
    if problem.failure.kind is not ErrorKind.CONFLICT:
        return problem
    users = found.users(problem.failure.message.partition(" ")[0])
    text = f"{problem.failure.message} (modules that use it: {', '.join(users) or 'none'})"
    return RunnerError(evolve(problem.failure, message=text))
