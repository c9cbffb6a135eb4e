"""The handlers of all pages: one file, or one room, for each area; each lists its views as `VIEWS`."""

from runner.ui.views import executions, modules, operating, overview, publishing, signing
from runner.ui.visit import View

VIEWS: tuple[View, ...] = (
    *signing.VIEWS,
    *overview.VIEWS,
    *executions.VIEWS,
    *modules.VIEWS,
    *publishing.VIEWS,
    *operating.VIEWS,
)

__all__ = ["VIEWS"]
