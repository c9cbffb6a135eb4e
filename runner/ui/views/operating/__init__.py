"""The pages of operators: schedules, environments with workers, keys, changes, notices."""

from runner.ui.views.operating import audit, keys, machine, notices, schedules

VIEWS = (*schedules.VIEWS, *machine.VIEWS, *keys.VIEWS, *audit.VIEWS, *notices.VIEWS)

__all__ = ["VIEWS"]
