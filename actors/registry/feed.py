"""`Feed`: where changes of registered modules get their order and their numbers, and are recorded.

On one machine the catalog does so (`OwnFeed`). In a cluster a change is one message, which each runner applies to its
own catalog. `Audit` is the log of changes, in the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import define

from actors.one_file import InTurn
from actors.registry.catalog import Catalog
from actors.registry.stored import Change, ChangesQuery, Note, StoredVersion
from protocol.errors import ErrorKind, error


class Feed(Protocol):
    """Records changes. Each method returns when the change is in the catalog, with the revision of the module.

    All raise RunnerError `unavailable`; nothing is changed then, unless its text tells otherwise. Those that return a
    revision, and `remove`, raise `OvertakenError` too.
    """

    async def catch_up(self) -> None:
        """Have every change in the registry that was made before this call."""

    async def register(
        self, version: StoredVersion, files: Mapping[str, bytes], active: str | None, pruned: Sequence[str]
    ) -> int:
        """Add a version, activate `active` (None: as before), delete the versions `pruned`."""

    async def activate(self, name: str, version: str, subject: str, before: str | None) -> int:
        """Activate another version than `before`."""

    async def remove_version(self, name: str, version: str, subject: str) -> int:
        """Delete one version."""

    async def remove(self, name: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Delete a module with all its versions."""

    async def note(self, subject: str, notes: Iterable[Note]) -> None:
        """Add entries to the audit log for changes that are made elsewhere."""


@define
class OwnFeed:
    """The feed of a runner that is alone: the catalog itself."""

    _catalog: Catalog
    _in_catalog: InTurn

    async def catch_up(self) -> None:
        """Do nothing: all changes are made here. Not a checkpoint."""

    async def register(
        self, version: StoredVersion, files: Mapping[str, bytes], active: str | None, pruned: Sequence[str]
    ) -> int:
        """Add a version, as the catalog does."""
        return await self._in_catalog(self._catalog.register, version, files, active, pruned)

    async def activate(self, name: str, version: str, subject: str, before: str | None) -> int:
        """Activate another version."""
        return await self._in_catalog(self._catalog.activate, name, version, subject, before)

    async def remove_version(self, name: str, version: str, subject: str) -> int:
        """Delete one version."""
        return await self._in_catalog(self._catalog.remove_version, name, version, subject)

    async def remove(self, name: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Delete a module with all its versions."""
        await self._in_catalog(self._catalog.remove, name, subject, detail)

    async def note(self, subject: str, notes: Iterable[Note]) -> None:
        """Add entries to the audit log."""
        await self._in_catalog(self._catalog.note, subject, tuple(notes))


@define
class Audit:
    """The log of who changed modules and API keys. Methods raise RunnerError `unavailable`."""

    _catalog: Catalog | None
    _in_catalog: InTurn
    feed: Feed | None = None

    def known(self) -> Feed:
        """Return where modules are changed. Raises RunnerError `unavailable` without a catalog."""
        if self.feed is None:
            raise _nothing_is_kept()
        return self.feed

    async def changes(self, query: ChangesQuery) -> list[Change]:
        """Return entries of the log, newest first."""
        if self._catalog is None:
            raise _nothing_is_kept()
        return await self._in_catalog(self._catalog.changes, query)

    async def note(self, subject: str, notes: Iterable[Note]) -> None:
        """Add entries to the log for changes that are made elsewhere."""
        await self.known().note(subject, notes)


def _nothing_is_kept() -> Exception:
    text = "this runner serves only its modules file; nothing can be registered"
    return error(ErrorKind.UNAVAILABLE, text)
