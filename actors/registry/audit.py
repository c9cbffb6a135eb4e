"""`Audit`: the log of changes in the catalog, and work in the catalog one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import trio
from attrs import define, field

from actors.registry.catalog import Catalog
from actors.registry.stored import Change, ChangesQuery, Note
from actors.sqlite import TROUBLE, reason_of
from protocol.errors import ErrorKind, error

T = TypeVar("T")


@define
class InTurn:
    """Runs catalog work in a thread, one at a time, also when cancelled."""

    _turn: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))

    async def __call__(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return the result of `work`. Raises RunnerError `unavailable`."""
        try:
            return await trio.to_thread.run_sync(partial(work, *arguments), limiter=self._turn)
        except TROUBLE as problem:
            text = f"registered modules cannot be read or written: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir", retry_after=5) from problem


@define
class Audit:
    """The log of who changed modules and API keys. Methods raise RunnerError `unavailable`."""

    _catalog: Catalog | None
    _in_catalog: InTurn

    def known(self) -> Catalog:
        """Return the catalog. Raises RunnerError `unavailable` without one."""
        if self._catalog is None:
            text = "this runner serves only its modules file; nothing can be registered"
            raise error(ErrorKind.UNAVAILABLE, text)
        return self._catalog

    async def changes(self, query: ChangesQuery) -> list[Change]:
        """Return entries of the log, newest first."""
        return await self._in_catalog(self.known().changes, query)

    async def note(self, subject: str, notes: Iterable[Note]) -> None:
        """Add entries to the log for changes that are made elsewhere."""
        await self._in_catalog(self.known().note, subject, tuple(notes))
