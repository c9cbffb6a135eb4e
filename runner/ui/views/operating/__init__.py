"""The pages of operators: schedules, environments with workers, runners, keys, changes, notices."""

from runner.ui.views.operating import audit, keys, machine, nodes, notices, schedules

VIEWS = (*schedules.VIEWS, *machine.VIEWS, *nodes.VIEWS, *keys.VIEWS, *audit.VIEWS, *notices.VIEWS)

__all__ = ["VIEWS"]
