"""The verbs of schedules and notices, the same for every door, and a schedule as callers see it."""

from runner.api.starts.notices import NoticeVerbs
from runner.api.starts.scheduling import MAX_NEXT, Scheduling
from runner.api.starts.shown import ShownSchedule, fields_of, shown_schedule

__all__ = ["MAX_NEXT", "NoticeVerbs", "Scheduling", "ShownSchedule", "fields_of", "shown_schedule"]
