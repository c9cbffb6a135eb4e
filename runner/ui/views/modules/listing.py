"""The list of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import frozen

from actors.history import ModuleStats
from actors.registry import Published
from protocol.model import Kind, Status
from protocol.terminal import visible
from runner.auth import Scope
from runner.ui.visit import Reply, Visit, view

_PAGE: Final = 50
_ALL: Final = 1_000_000
_TAGS: Final = 24
"""Tags to choose from; the most frequent ones."""
_STATES: Final = ("red", "ran", "idle")


@frozen
class Row:
    """A module with its statistics since yesterday."""

    module: Published
    stats: ModuleStats | None

    @property
    def description(self) -> str:
        """The first line of its description."""
        return visible(self.module.spec.description.partition("\n")[0])

    @property
    def failed(self) -> int:
        """How often it failed."""
        return 0 if self.stats is None else self.stats.statuses.get(Status.FAILED, 0)

    @property
    def total(self) -> int:
        """How often it ran."""
        return 0 if self.stats is None else self.stats.total

    def has(self, state: str) -> bool:
        """Whether it is in a state of the filter."""
        return {"red": self.failed > 0, "ran": self.total > 0, "idle": self.total == 0}.get(state, True)


@view("GET", "/modules", scope=Scope.MODULES_READ)
async def show(page: Visit) -> Reply:
    """Show the modules that match the filters of the address."""
    kinds = [kind for kind in Kind if kind.value in page.query.getlist("env")]
    tags = [tag for tag in page.query.getlist("tag") if tag]
    text, state, cursor = page.query.get("q", ""), page.query.get("state", ""), page.query.get("cursor", "")
    state = state if state in _STATES else ""
    everything, _ = page.service.modules(page.principal, envs=kinds, tags=tags, text=text, limit=_ALL, cursor="")
    lately: Mapping[str, ModuleStats] = {}
    if page.may(Scope.EXECUTIONS_READ):
        lately = await page.service.details.lately(page.principal)
    rows = [Row(module, lately.get(module.ref.name)) for module in everything]
    found = [row for row in rows if row.has(state)]
    after = [row for row in found if row.module.ref.name > cursor]
    query = {"q": text, "env": [kind.value for kind in kinds], "tag": tags, "state": state}
    return page.render(
        "modules.html",
        rows=after[:_PAGE],
        count=len(found),
        red=sum(row.failed > 0 for row in rows),
        query=query,
        filtered=any(query.values()),
        kinds=list(Kind),
        tags=_tags(everything, tags),
        cursor=cursor,
        next_cursor=after[_PAGE - 1].module.ref.name if len(after) > _PAGE else None,
        first=bool(cursor),
    )


def _tags(modules: Iterable[Published], chosen: Iterable[str]) -> list[str]:
    """Return the chosen tags and the most frequent ones, by name."""
    counts = Counter(tag for module in modules for tag in module.spec.tags)
    return sorted({*chosen, *(tag for tag, _ in counts.most_common(_TAGS))})


VIEWS = (show,)
