"""`Audit`: the log of changes, in the catalog."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define

from actors.one_file import InTurn
from actors.registry.catalog import Catalog
from actors.registry.feed import Feed
from actors.registry.stored import Change, ChangesQuery, Note
from protocol.errors import ErrorKind, error


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
