"""`Feeds`: what a runner of a cluster shares with the others besides executions, and how it joins and follows them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import Engine
from actors.cluster.feed.code import CodeStore
from actors.cluster.feed.follower import Follower
from actors.cluster.feed.keys import SharedKeys
from actors.cluster.feed.modules import SharedModules
from actors.cluster.feed.schedules import SharedStarts
from actors.cluster.letters import Author
from actors.keys import ApiKeys, KeyFile
from actors.one_file import InTurn
from actors.registry import Catalog, Registry
from actors.starts import Schedules, StartsFile
from actors.supervise import supervise
from protocol.errors import ErrorKind, RunnerError, error

M = TypeVar("M")
_COPY: Final = "before-cluster"
_OPEN_SECONDS: Final = 120.0
"""How long a start may take to read everything that the cluster has."""

_RETRY_SECONDS: Final = 5.0

log = structlog.get_logger("cluster")


class Shared(Protocol[M]):
    """Something that all runners have alike."""

    follower: Follower

    async def mine(self) -> M:
        """Return what this runner has of it before it joins."""

    async def join(self, mine: M) -> list[str]:
        """Bring what the cluster does not have; return what is lost, in words."""


@define(eq=False)
class Feeds:
    """Makes the feeds of the registry, the API keys and the schedules, and keeps them up to date."""

    engine: Engine
    author: Author
    _modules: SharedModules | None = field(default=None, init=False)
    _keys: SharedKeys | None = field(default=None, init=False)
    _starts: SharedStarts | None = field(default=None, init=False)

    @property
    def unreadable(self) -> dict[str, str]:
        """Why changes of other runners could not be read, by topic."""
        shared = (self._modules, self._keys, self._starts)
        return {topic: why for each in shared if each is not None for topic, why in each.follower.unreadable.items()}

    def modules(self, catalog: Catalog, in_catalog: InTurn) -> SharedModules:
        """Return the feed of the registry."""
        code = CodeStore(self.engine, self.author)
        self._modules = SharedModules(self.engine, self.author, catalog, in_catalog, code)
        return self._modules

    def keys(self, file: KeyFile, in_file: InTurn) -> SharedKeys:
        """Return the feed of the API keys."""
        self._keys = SharedKeys(self.engine, self.author, file, in_file)
        return self._keys

    def schedules(self, file: StartsFile, in_file: InTurn) -> SharedStarts:
        """Return the feed of the schedules."""
        self._starts = SharedStarts(self.engine, self.author, file, in_file)
        return self._starts

    @asynccontextmanager
    async def following_modules(self, registry: Registry) -> AsyncIterator[None]:
        """Keep the registry, which runs, as the cluster has it. Raises RunnerError `unavailable`."""
        assert self._modules is not None  # noqa: S101  (the registry has this feed)
        self._modules.hear = registry.adopt
        async with _following(self._modules, "modules"):
            yield

    @asynccontextmanager
    async def following_keys(self, keys: ApiKeys) -> AsyncIterator[None]:
        """Keep the API keys as the cluster has them. Raises RunnerError `unavailable`."""
        assert self._keys is not None  # noqa: S101  (the keys have this feed)
        self._keys.hear = keys.adopt
        async with _following(self._keys, "API keys"):
            yield

    @asynccontextmanager
    async def following_schedules(self, schedules: Schedules) -> AsyncIterator[None]:
        """Keep the schedules, which do not run yet, as the cluster has them. Raises RunnerError `unavailable`."""
        assert self._starts is not None  # noqa: S101  (the schedules have this feed)
        self._starts.hear = schedules.known.adopt
        async with _following(self._starts, "schedules"):
            yield


@asynccontextmanager
async def _following(shared: Shared[Any], what: str) -> AsyncIterator[None]:
    problem = None
    async with trio.open_nursery() as nursery:
        try:
            with trio.fail_after(_OPEN_SECONDS):
                await _begin(shared, what, nursery)
        except RunnerError as failed:
            problem = failed
        except trio.TooSlowError:
            text = f"the {what} of the cluster cannot be read within {_OPEN_SECONDS:g} s"
            problem = error(ErrorKind.UNAVAILABLE, text, field="cluster")
        try:
            if problem is None:
                yield
        finally:
            nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem


async def _begin(shared: Shared[Any], what: str, nursery: trio.Nursery) -> None:
    """Have everything as the cluster has it, and bring to it what only this runner has. Raises RunnerError."""

    async def lost() -> None:
        mine, copy = await _own(shared)
        nursery.start_soon(_join_again, shared, mine, copy)

    follower = shared.follower
    follower.lost = lost
    await follower.open()
    own = await _own(shared) if follower.joining else None
    await nursery.start(partial(supervise, follower, name=f"{what} of the cluster"))
    if own is not None:
        await _join(shared, *own)


async def _own(shared: Shared[M]) -> tuple[M, Path]:
    """Return what this runner has, and the copy of its file."""
    return await shared.mine(), await shared.follower.in_file(shared.follower.file.keep_copy, _COPY)


async def _join(shared: Shared[M], mine: M, copy: Path) -> None:
    follower = shared.follower
    lost = await shared.join(mine)
    await follower.joined()
    if not lost:
        await follower.in_file(copy.unlink)
    for each in lost:
        log.warning("this runner joins a cluster: what the cluster has wins", lost=each, kept=str(copy))


async def _join_again(shared: Shared[M], mine: M, copy: Path) -> None:
    """Bring what this runner has to a cluster that has lost it."""
    while True:
        try:
            await shared.follower.wait_read()
            await _join(shared, mine, copy)
        except RunnerError as problem:
            log.warning("this runner cannot join the cluster yet", why=str(problem))
            await trio.sleep(_RETRY_SECONDS)
        else:
            return
