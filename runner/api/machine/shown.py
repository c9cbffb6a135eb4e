"""Environments and workers as callers see them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, TypedDict

from msgspec import Meta

from actors.workers import PoolState
from environments.base import Stored

_HASH: Final = "--hash="
_WORKING: Final = ("client", "image", "base")


class BuiltEnvironment(TypedDict):
    """An environment that was built on this machine."""

    key: Annotated[str, Meta(description="A hash of its content.")]
    env: str
    python: str
    size_bytes: int
    built_at: Annotated[float, Meta(description="Seconds since 1970.")]
    used_at: Annotated[float, Meta(description="The last start of a worker; seconds since 1970.")]
    in_use: Annotated[bool, Meta(description="A process uses it, so it is neither removed nor replaced.")]
    modules: Annotated[list[str], Meta(description="The served modules that use it, as NAME@VERSION.")]
    packages: Annotated[list[str], Meta(description="Its content, with versions.")]


class ShownWorker(TypedDict):
    """A worker, or one that is being started."""

    module: str
    version: str
    env: str
    state: Annotated[str, Meta(description="`idle`, `busy` or `starting`.")]
    pid: Annotated[int | None, Meta(description="Null while it starts, and for a container without one here.")]
    calls: Annotated[int, Meta(description="Calls that it has begun.")]
    age: Annotated[float, Meta(description="Seconds since its start.")]
    memory_bytes: Annotated[int, Meta(description="Memory that it shares with no other process, when last idle.")]


def shown_environment(one: Stored, users: Iterable[str]) -> BuiltEnvironment:
    """Return a built environment, with the modules that use it."""
    return {
        "key": one.key,
        "env": one.kind,
        "python": one.python,
        "size_bytes": one.size_bytes,
        "built_at": round(one.built_at, 3),
        "used_at": round(one.used_at, 3),
        "in_use": one.in_use,
        "modules": sorted(users),
        "packages": _packages(one.manifest),
    }


def _packages(manifest: Any) -> list[str]:
    """Return the content that a manifest records, locks without their hashes."""
    found = [f"{name} {manifest[name]}" for name in _WORKING if name in manifest]
    for name in ("packages", "requirements"):
        found += [line.strip(" \\") for line in manifest.get(name) or () if not str(line).strip().startswith(_HASH)]
    return found


def shown_workers(pool: PoolState) -> list[ShownWorker]:
    """Return the workers of a module, those that are being started last."""
    starting: ShownWorker = {
        "module": pool.module.ref.name,
        "version": pool.module.ref.version,
        "env": pool.module.spec.env.value,
        "state": "starting",
        "pid": None,
        "calls": 0,
        "age": 0.0,
        "memory_bytes": 0,
    }
    started: list[ShownWorker] = [
        {
            **starting,
            "state": "busy" if each.busy else "idle",
            "pid": each.pid,
            "calls": each.calls,
            "age": round(each.age_seconds, 1),
            "memory_bytes": each.memory_bytes,
        }
        for each in pool.workers
    ]
    return [*started, *[starting] * pool.starting]
