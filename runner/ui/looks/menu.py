"""The entries of the menu."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, Protocol

from attrs import frozen

from runner.auth import Principal, Scope


class Reader(Protocol):
    """The visit of a page, as the menu sees it."""

    caller: Principal | None

    @property
    def clustered(self) -> bool:
        """Whether the runner is one of a cluster."""

    def may(self, scope: str, /) -> bool:
        """Whether the reader has a scope."""


@frozen
class Entry:
    """One entry: its path, its English text, the scope that its page needs, and the key after `g` that goes there."""

    path: str
    text: str
    scope: Scope | None
    key: str
    clustered: bool = False
    """Only for a runner of a cluster."""


ENTRIES: Final = (
    Entry("/", "Overview", None, "o"),
    Entry("/executions", "Executions", Scope.EXECUTIONS_READ, "e"),
    Entry("/modules", "Modules", Scope.MODULES_READ, "m"),
    Entry("/schedules", "Schedules", Scope.SCHEDULES_READ, "s"),
    Entry("/environments", "Environments", Scope.MODULES_READ, "n"),
    Entry("/nodes", "Nodes", Scope.METRICS_READ, "d", clustered=True),
    Entry("/notices", "Notices", Scope.EXECUTIONS_READ, "t"),
    Entry("/keys", "Keys", Scope.ADMIN, "k"),
    Entry("/audit", "Audit", Scope.ADMIN, "a"),
)


def entries(pages: Collection[str], page: Reader) -> Iterator[Entry]:
    """Yield the entries that the reader of a page may use; `pages` are the paths that exist."""
    for each in ENTRIES:
        if each.path not in pages or page.caller is None or (each.clustered and not page.clustered):
            continue
        if each.scope is None or page.may(each.scope):
            yield each
