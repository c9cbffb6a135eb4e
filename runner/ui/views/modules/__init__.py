"""The pages of modules: the list, and for each module calls by a form, code, versions, statistics, environment, starts."""

from runner.ui.views.modules import building, code, editing, listing, running, starts, statistics, versions
from runner.ui.visit import View

VIEWS: tuple[View, ...] = (
    *listing.VIEWS,
    *running.VIEWS,
    *code.VIEWS,
    *versions.VIEWS,
    *statistics.VIEWS,
    *building.VIEWS,
    *starts.VIEWS,
    *editing.VIEWS,
)

__all__ = ["VIEWS"]
