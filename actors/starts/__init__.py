"""Modules that start by themselves: schedules of modules and of the API, and the actor that starts what is due.

`Schedules` is the actor. `due` is the policy, `Firing` starts each instant once, `StartsFile` is the database.
"""

from actors.starts.firing import Schedule
from actors.starts.schedules import MAX_API_SCHEDULES, Schedules
from actors.starts.stored import STARTS_FILE, State, StoredSchedule

__all__ = ["MAX_API_SCHEDULES", "STARTS_FILE", "Schedule", "Schedules", "State", "StoredSchedule"]
