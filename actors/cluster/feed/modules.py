"""`SharedModules`: the registered modules of all runners of a cluster, one change after the other."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog
from attrs import define, evolve, field

from actors.cluster.engine import Engine, Stored
from actors.cluster.feed.code import CodeStore
from actors.cluster.feed.follower import Follower
from actors.cluster.feed.news import (
    AUDIT,
    MODULE,
    AuditNews,
    ModuleNews,
    ToldModule,
    ToldVersion,
    notes_of,
    token,
    told,
    unpack,
)
from actors.cluster.letters import Author, UnreadableError
from actors.one_file import InTurn, until_first
from actors.registry import Action, Adopted, Catalog, Note, StoredModule, StoredVersion

NOTE_SECONDS: Final = 90 * 86400.0
"""How long the cluster keeps entries of the audit log for runners that are away."""
_NOTES: Final = 500
"""Entries of the audit log in one message."""

log = structlog.get_logger("cluster")


@define(eq=False)
class SharedModules:
    """The feed of the registry of one runner in a cluster. `hear` serves modules after a change."""

    engine: Engine
    author: Author
    catalog: Catalog
    in_catalog: InTurn
    code: CodeStore
    hear: Callable[[Collection[str]], Awaitable[None]] | None = None
    follower: Follower = field(init=False)
    _theirs: set[str] = field(factory=set, init=False)
    """Modules that the cluster had when this runner joined it."""

    def __attrs_post_init__(self) -> None:
        topics = (MODULE, AUDIT)
        self.follower = Follower(self.engine, self.author, topics, self.catalog, self.in_catalog, self._apply)

    # Changes

    async def catch_up(self) -> None:
        """Have every change of modules in the registry that was made before this call."""
        await self.follower.catch_up(MODULE)

    async def register(
        self, version: StoredVersion, files: Mapping[str, bytes], active: str | None, pruned: Sequence[str]
    ) -> int:
        """Add a version: its code first, so that all runners find it when they read of it."""
        base, name = self.follower.base(MODULE), version.module
        known = await self.in_catalog(self.catalog.module, name)
        await self.code.put(version, files)
        before = () if known is None else known.versions
        kept = [each for each in before if each.version not in (*pruned, version.version)]
        notes = [Note(Action.REGISTER, name, version.version, {"active": active, "digest": version.digest})]
        notes += [Note(Action.PRUNE, name, each) for each in pruned]
        active = active if active is not None or known is None else known.active
        number = await self._change(name, version.created_by, notes, base, active, [*kept, version])
        await self._expire(number, (each for each in before if each.version in pruned))
        return number

    async def activate(self, name: str, version: str, subject: str, before: str | None) -> int:
        """Activate another version."""
        base = self.follower.base(MODULE)
        known = await self.in_catalog(self.catalog.module, name)
        notes = [Note(Action.ACTIVATE, name, version, {"before": before})]
        return await self._change(name, subject, notes, base, version, () if known is None else known.versions)

    async def remove_version(self, name: str, version: str, subject: str) -> int:
        """Delete one version."""
        base = self.follower.base(MODULE)
        known = await self.in_catalog(self.catalog.module, name)
        before, active = ((), None) if known is None else (known.versions, known.active)
        kept = [each for each in before if each.version != version]
        number = await self._change(name, subject, [Note(Action.DELETE_VERSION, name, version)], base, active, kept)
        await self._expire(number, (each for each in before if each.version == version))
        return number

    async def remove(self, name: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Delete a module with all its versions."""
        base = self.follower.base(MODULE)
        known = await self.in_catalog(self.catalog.module, name)
        notes = told([Note(Action.DELETE, name, None, detail)], self.author.node)
        news = ModuleNews(**self._head(), name=name, subject=subject, notes=notes)
        number = await self.follower.change(MODULE, token(name), news, base)
        await self._expire(number, () if known is None else known.versions)

    async def note(self, subject: str, notes: Iterable[Note]) -> None:
        """Add entries to the audit logs of all runners."""
        added = told(tuple(notes), self.author.node)
        for first in range(0, len(added), _NOTES):
            news = AuditNews(**self._head(), subject=subject, notes=added[first : first + _NOTES])
            await self.follower.add(AUDIT, news, NOTE_SECONDS)

    async def _change(
        self,
        name: str,
        subject: str,
        notes: Sequence[Note],
        base: int,
        active: str | None,
        versions: Iterable[StoredVersion],
    ) -> int:
        module = ToldModule(active, subject, tuple(ToldVersion(each.version, each.digest) for each in versions))
        added = told(notes, self.author.node)
        news = ModuleNews(**self._head(), name=name, subject=subject, notes=added, module=module)
        return await self.follower.change(MODULE, token(name), news, base)

    async def _expire(self, number: int, versions: Iterable[StoredVersion]) -> None:
        for each in versions:
            await self.code.expire(each, number)

    def _head(self) -> dict[str, Any]:
        return {"author": self.author, "id": secrets.token_hex(8), "at": time.time()}

    # What all runners know

    async def _apply(self, cluster: int, place: int, batch: Sequence[Stored]) -> None:
        changes = [change for stored in batch if (change := await self._read(stored)) is not None]
        await self.in_catalog(self.catalog.adopt, cluster, self.follower.noted(place), changes)
        names = {each.name for each in changes if each.name is not None}
        self._theirs |= names if self.follower.joining else set()
        if names and self.hear is not None:
            await self.hear(names)

    async def _read(self, stored: Stored) -> Adopted | None:
        topic = stored.subject.rsplit(".", 2)[1]
        try:
            if topic == AUDIT:
                note = unpack(stored.data, AuditNews)
                return Adopted(stored.sequence, note.subject, note.at, notes_of(note.notes))
            if topic != MODULE:
                return None
            news = unpack(stored.data, ModuleNews)
        except UnreadableError as problem:
            self.follower.leave_out(stored, problem)
            return None
        change = Adopted(stored.sequence, news.subject, news.at, notes_of(news.notes), news.name)
        if news.module is None:
            return change
        versions, code = await self._versions(stored, news.name, news.module)
        updated = news.at, news.module.updated_by
        module = StoredModule(news.name, news.module.active, stored.sequence, *updated, tuple(versions))
        return evolve(change, module=module, code=code)

    async def _versions(
        self, change: Stored, name: str, module: ToldModule
    ) -> tuple[list[StoredVersion], dict[str, Mapping[str, bytes]]]:
        """Return the versions of a module, and the code of those that this runner does not have."""
        known = await self.in_catalog(self.catalog.module, name)
        mine = {(each.version, each.digest): each for each in (() if known is None else known.versions)}
        versions, code = list[StoredVersion](), dict[str, Mapping[str, bytes]]()
        for each in module.versions:
            stored = mine.get((each.version, each.digest))
            if stored is None:
                found = await self.code.get(name, each.version, each.digest)
                if found is None:
                    last = await self.code.last(change.subject)
                    if last is None or last.sequence <= change.sequence:  # else a later change deleted it
                        log.error("the code of a version is gone", module=name, version=each.version)
                    continue
                stored, code[each.version] = found
            versions.append(stored)
        return versions, code

    # Join

    async def mine(self) -> list[StoredModule]:
        """Return the modules of this runner before it joins. Raises RunnerError `unavailable`."""
        self._theirs.clear()
        return await self.in_catalog(self.catalog.load)

    async def join(self, mine: Sequence[StoredModule]) -> list[str]:
        """Bring modules that the cluster does not have; return what is lost, in words. Raises RunnerError."""
        lost = []
        for module in mine:
            if module.name not in self._theirs:
                await until_first(partial(self._bring, module))
            if module.name in self._theirs:
                now = await self.in_catalog(self.catalog.module, module.name)
                kept = {(each.version, each.digest) for each in (() if now is None else now.versions)}
                gone = [each.version for each in module.versions if (each.version, each.digest) not in kept]
                if gone:
                    lost.append(f"versions {', '.join(gone)} of module {module.name}, which the cluster has too")
        return lost

    async def _bring(self, module: StoredModule) -> None:
        base, name = self.follower.base(MODULE), module.name
        if name in self._theirs:
            return
        brought = []
        for each in module.versions:
            try:
                await self.code.put(each, await self.in_catalog(self.catalog.files, name, each.version))
            except KeyError:
                log.warning("a version without code is not brought to the cluster", module=name, version=each.version)
            else:
                brought.append(each)
        detail = {"active": module.active, "brought": [each.version for each in brought]}
        notes = [Note(Action.REGISTER, name, module.active, detail)]
        await self._change(name, module.updated_by, notes, base, module.active, brought)
        log.info("a module is now one of the cluster", module=name, versions=detail["brought"])
