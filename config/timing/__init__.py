"""Schedules: the fields of one, and the instants that it means. Pure, but for the names of time zones.

`Cron` is a cron expression in a time zone. `ScheduleSpec` has the fields, and `Timing` the instants of each form.
"""

from config.timing.cron import Cron, local_time
from config.timing.schedule import (
    MAX_SCHEDULES,
    Misfire,
    Overlap,
    ScheduleSpec,
    Timing,
    instant_text,
    known_schedule,
    read_schedule,
    read_schedules,
    schedule_fields,
)

__all__ = [
    "MAX_SCHEDULES",
    "Cron",
    "Misfire",
    "Overlap",
    "ScheduleSpec",
    "Timing",
    "instant_text",
    "known_schedule",
    "local_time",
    "read_schedule",
    "read_schedules",
    "schedule_fields",
]
