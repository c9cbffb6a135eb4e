"""`Registry`, the actor that owns modules and versions and publishes them as an immutable snapshot.

Modules have two sources: the operator's file, published as a whole each time it is read, and the API, whose modules are
stored in the catalog version by version. When both have a name, the file wins.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio
from attrs import define, evolve, field, frozen

from actors.mailbox import Mailbox, MailboxStatistics, Question
from actors.one_file import InTurn, until_first
from actors.registry.catalog import Catalog
from actors.registry.feed import Audit, Feed, OwnFeed
from actors.registry.published import Published
from actors.registry.publisher import Publisher, stored
from actors.registry.served import Served
from actors.registry.snapshot import Changes, Condition, Registered, RegistrySnapshot
from actors.registry.stored import Action, Note
from config.modules import ModuleSpec
from config.settings import RegistrySettings
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import ModuleRef

FILE = "operator's file"
"""The subject of changes by the operator's file, in the audit log."""
_WAITING = 16
"""Changes that may wait in the queue."""
T = TypeVar("T")

log = structlog.get_logger("registry")


@frozen
class Added:
    """The outcome of a registration."""

    module: Published
    registered: Registered
    created: bool
    """Whether the version did not exist before."""


@frozen
class _Publish(Question[RegistrySnapshot]):
    """Make these the modules of the operator's file."""

    specs: tuple[ModuleSpec, ...]


@frozen
class _Register(Question[Added]):
    module: Published
    files: Mapping[str, bytes]
    activate: bool
    condition: Condition


@frozen
class _Activate(Question[Registered]):
    name: str
    version: str
    subject: str
    condition: Condition


@frozen
class _Remove(Question[None]):
    name: str
    version: str | None
    """None is the whole module."""
    subject: str
    condition: Condition


@define
class Registry:
    """The actor that owns the snapshot. Reading `snapshot` needs no wait; changes are questions to the actor.

    `follow` gets each snapshot before the question that made it is answered. Without a `catalog` nothing can be
    registered. `feed_of` returns what records the changes.
    """

    publisher: Publisher
    catalog: Catalog | None = None
    settings: RegistrySettings = field(factory=RegistrySettings)
    follow: Callable[[RegistrySnapshot], None] = field(default=lambda _snapshot: None)
    feed_of: Callable[[Catalog, InTurn], Feed] = OwnFeed
    damaged: set[str] = field(factory=set, init=False)
    """Versions whose stored code is damaged and could not be made again."""
    _served: Served = field(init=False)
    _mailbox: Mailbox = field(factory=lambda: Mailbox("registry", _WAITING), init=False)
    _staged: Counter[Path] = field(factory=Counter, init=False)
    """Code folders of staged versions, which may become versions or not; counted."""
    _registering: Published | None = field(default=None, init=False)
    """The version that is being registered, to be served as it is."""
    _keeping: trio.Lock = field(factory=trio.Lock, init=False)
    """Held while code folders are made or removed."""
    _in_catalog: InTurn = field(factory=lambda: InTurn("registered modules cannot be read or written"), init=False)
    audit: Audit = field(init=False)

    def __attrs_post_init__(self) -> None:
        feed = None if self.catalog is None else self.feed_of(self.catalog, self._in_catalog)
        self.audit = Audit(self.catalog, self._in_catalog, feed)
        self._served = Served(self.follow)

    @property
    def snapshot(self) -> RegistrySnapshot:
        """All modules as they are now."""
        return self._served.snapshot

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Restore the registered modules, then make one change after the other until cancelled."""
        if self.catalog is not None and self._served.file is None:
            await self._served.restore(partial(_restored, self.publisher, self._in_catalog, self.catalog))
        task_status.started()
        await self._mailbox.serve(self._handle)

    async def _handle(self, question: Question[Any]) -> Any:
        if self.audit.feed is not None and not isinstance(question, _Publish):
            await self.audit.feed.catch_up()
        return await until_first(partial(self._change, question))

    async def _change(self, question: Question[Any]) -> Any:
        match question:
            case _Publish():
                return await self._publish_all(question)
            case _Register():
                return await self._register(question)
            case _Activate():
                return await self._activate(question)
            case _Remove():
                return await self._remove(question)
            case _:
                raise TypeError(f"the registry knows no {type(question).__name__}")

    # The operator's file

    async def publish(self, specs: Iterable[ModuleSpec]) -> RegistrySnapshot:
        """Make `specs` the modules of the operator's file. Unchanged ones keep their identity and their workers.

        Raises RunnerError: `bad_input` naming the module, the field and the remedy, `unavailable` when the code cannot
        be stored or the registry does not run; the snapshot is unchanged then. A cancelled call may still take effect.
        """
        return await self._mailbox.ask(_Publish(tuple(specs)))

    def statistics(self) -> MailboxStatistics:
        """Return the state of the actor's queue."""
        return self._mailbox.statistics()

    async def _publish_all(self, question: _Publish) -> RegistrySnapshot:
        before = self._served.file
        async with self._keeping:
            try:
                after = await trio.to_thread.run_sync(self.publisher.publish_all, question.specs, before or {})
            except OSError as problem:
                raise error(ErrorKind.UNAVAILABLE, f"code cannot be stored: {problem}", field="data_dir") from problem
            file = {module.spec.name: module for module in after}
            await self._served.set_file(file)
        # In a thread, as there may be thousands of modules.
        changes = await trio.to_thread.run_sync(RegistrySnapshot(file).since, RegistrySnapshot(before or {}))
        log.debug("modules published", **changes.summary(), total=len(after))
        for name in sorted(changes.added):
            if name in self._served.registered:
                log.warning("the file has a module of this name; the registered one is not served", module=name)
        if before is not None and changes and self.catalog is not None:
            try:
                await self.audit.note(FILE, _notes_of(changes, file))
            except RunnerError as problem:  # the file is served, whether that can be noted or not
                log.warning("a reload is not in the audit log", why=str(problem))
        return self.snapshot

    # What is registered

    async def stage(self, spec: ModuleSpec, subject: str) -> tuple[Published, Mapping[str, bytes]]:
        """Return a version ready to be registered, and its code; nothing is served or recorded yet.

        The code folder stays until `release`, and longer if a version uses it by then.
        Raises RunnerError: `bad_input` naming field and remedy, `too_large`, `unavailable` when it cannot be stored.
        """
        async with self._keeping:
            module, files = await trio.to_thread.run_sync(self.publisher.stage, spec, subject)
            self._staged[module.root] += 1
        return module, files

    def release(self, module: Published) -> None:
        """End the staging of a version, registered or not."""
        self._staged[module.root] -= 1
        if not self._staged[module.root]:
            del self._staged[module.root]

    async def register(
        self, module: Published, files: Mapping[str, bytes], *, activate: bool, condition: Condition
    ) -> Added:
        """Register a staged version; `activate` makes it the active one. An equal version is found, not made again.

        Raises RunnerError: `conflict` (the file has the name; the version has other content; the condition does not
        hold), `overloaded` when there are too many modules, `unavailable` when it cannot be recorded.
        A cancelled call may still take effect.
        """
        return await self._mailbox.ask(_Register(module, files, activate, condition))

    async def activate(self, name: str, version: str, *, subject: str, condition: Condition) -> Registered:
        """Activate this version. Raises RunnerError as `register`, and `not_found`."""
        return await self._mailbox.ask(_Activate(name, version, subject, condition))

    async def remove(self, name: str, version: str | None, *, subject: str, condition: Condition) -> None:
        """Delete a version that is not active, or the module with all versions. Raises RunnerError as `activate`."""
        await self._mailbox.ask(_Remove(name, version, subject, condition))

    async def verify(self, module: Published) -> None:
        """Have the stored code of a module as it was published; damaged code is made again.

        Raises RunnerError `unavailable` when that is impossible; `damaged` names the module until it works.
        """
        if await trio.to_thread.run_sync(self.publisher.intact, module):
            self.damaged.discard(str(module.ref))
            return
        name, version, files = module.spec.name, module.ref.version, None
        known = self._served.registered.get(name)
        if self.catalog is not None and known is not None and known.versions.get(version) is module:
            files = partial(self.catalog.files, name, version)
        async with self._keeping:
            try:
                await self._in_catalog(self.publisher.mend, module, files)
            except RunnerError as problem:
                self.damaged.add(str(module.ref))
                log.error("stored code is damaged", module=str(module.ref), why=str(problem))  # noqa: TRY400
                raise
        self.damaged.discard(str(module.ref))

    async def _register(self, question: _Register) -> Added:
        feed, module, name = self.audit.known(), question.module, question.module.spec.name
        known = self.snapshot.changeable(name, question.condition)
        version = module.ref.version
        if known is not None and (there := known.versions.get(version)) is not None:
            if there.content_digest != module.content_digest:
                text = f"version {version!r} of module {name!r} exists with other content, and versions do not change"
                raise error(ErrorKind.CONFLICT, f"{text}; give it another `version`, or none", field="version")
            if question.activate and known.active != version:
                known = await self._make_active(feed, known, version, str(module.published_by))
            return Added(there, known, created=False)
        if known is None and len(self._served.registered) >= self.settings.max_modules:
            text = f"there are {len(self._served.registered)} registered modules; the limit is `max_modules`"
            raise error(ErrorKind.OVERLOADED, f"{text}; delete some", field="name")
        if question.activate:
            self.snapshot.check_loop(module)
            self.snapshot.routes.check(module.ref.name, module.spec)
        active = version if question.activate else known.active if known else None
        versions = {**(known.versions if known else {}), version: module}
        pruned = [each for each in versions if each not in (active, version)]
        pruned = pruned[: max(0, len(versions) - self.settings.max_versions)]
        self._registering = module
        revision = await feed.register(stored(module), question.files, active, pruned)
        kept = {each: published for each, published in versions.items() if each not in pruned}
        after = Registered(name, kept, active, revision, module.published_at, str(module.published_by))
        await self._served.put(after)
        log.info("registered", module=str(module.ref), by=module.published_by, active=active == version)
        return Added(module, after, created=True)

    async def _activate(self, question: _Activate) -> Registered:
        feed, known = self.audit.known(), self.snapshot.get_registered(question.name, question.condition)
        self.snapshot.get(question.name, question.version)
        if known.active == question.version:
            return known
        return await self._make_active(feed, known, question.version, question.subject)

    async def _make_active(self, feed: Feed, known: Registered, version: str, subject: str) -> Registered:
        self.snapshot.check_loop(known.versions[version])
        self.snapshot.routes.check(known.name, known.versions[version].spec)
        revision = await feed.activate(known.name, version, subject, known.active)
        after = evolve(known, active=version, revision=revision, updated_at=time.time(), updated_by=subject)
        await self._served.put(after)
        log.info("activated", module=known.name, version=version, before=known.active, by=subject)
        return after

    async def _remove(self, question: _Remove) -> None:
        feed, name, version = self.audit.known(), question.name, question.version
        known = self.snapshot.get_registered(name, question.condition)
        if version is None:
            detail = {"versions": list(known.versions), "active": known.active}
            await feed.remove(name, question.subject, detail)
            await self._served.drop(known)
        else:
            self.snapshot.get(name, version)
            if version == known.active:
                text = f"version {version!r} is the active one; activate another one first, or delete the module"
                raise error(ErrorKind.CONFLICT, text, field="version")
            revision = await feed.remove_version(name, version, question.subject)
            versions = {each: module for each, module in known.versions.items() if each != version}
            await self._served.put(evolve(known, versions=versions, revision=revision))
        log.info("deleted", module=name, version=version, by=question.subject)

    async def adopt(self, names: Collection[str]) -> None:
        """Serve these modules as the catalog has them now, after changes by runners of the cluster.

        Raises RunnerError `unavailable`; then nothing is changed.
        """
        if self.catalog is not None:
            async with self._keeping:
                were = [self._served.registered[name] for name in names if name in self._served.registered]
                known = {version.ref: version for module in were for version in module.versions.values()}
                if (mine := self._registering) is not None:
                    known[mine.ref] = mine
                load = partial(_restored, self.publisher, self._in_catalog, self.catalog, names, known)
                await self._served.adopt(names, load)

    async def collect(self, besides: Iterable[Path] = ()) -> None:
        """Remove code folders that no version uses, except those in `besides`, in which something runs."""
        async with self._keeping:
            more = {*besides, *self._staged}
            await trio.to_thread.run_sync(
                _remove_code, self.publisher, self.snapshot, dict(self._served.registered), more
            )


async def _restored(
    publisher: Publisher,
    in_catalog: InTurn,
    catalog: Catalog,
    names: Collection[str] | None = None,
    known: Mapping[ModuleRef, Published] | None = None,
) -> Mapping[str, Registered]:
    """Return the registered modules of the catalog, or those with these names; `known` versions are kept."""
    if names is None:
        kept = await in_catalog(catalog.load)
    else:
        found = [await in_catalog(catalog.module, name) for name in names]
        kept = [each for each in found if each is not None]
    return await trio.to_thread.run_sync(publisher.restore_all, kept, catalog.files, known or {})


def _remove_code(
    publisher: Publisher, snapshot: RegistrySnapshot, registered: Mapping[str, Registered], used: set[Path]
) -> None:
    """Remove code folders that no version uses and that are not in `used`. Blocks."""
    used |= {module.root for module in snapshot.everything()}
    used |= {version.root for module in registered.values() for version in module.versions.values()}
    publisher.remove_code(used)


def _notes_of(changes: Changes, file: Mapping[str, Published]) -> list[Note]:
    return [
        Note(action, name, file[name].ref.version if name in file else None)
        for action, names in (
            (Action.FILE_ADD, changes.added),
            (Action.FILE_CHANGE, changes.changed),
            (Action.FILE_REMOVE, changes.removed),
        )
        for name in names
    ]
