"""The pages of modules: their list, and for each module a form to run it and what there is to know."""

from runner.ui.views.modules import building, code, listing, running, starts, statistics, versions
from runner.ui.visit import View

VIEWS: tuple[View, ...] = (
    *listing.VIEWS,
    *running.VIEWS,
    *code.VIEWS,
    *versions.VIEWS,
    *statistics.VIEWS,
    *building.VIEWS,
    *starts.VIEWS,
)

__all__ = ["VIEWS"]
