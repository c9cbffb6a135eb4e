"""What happens without a caller: modules that start by themselves, and notices about ended executions.

`Schedules` is the actor of the schedules of modules and of the API. `due` is the policy, `Firing` starts each instant
once, `StartsFile` is the database. `Notices` is the actor that sends notices, `Outbox` lists and changes them.
"""

from actors.starts.firing import Instants, Schedule
from actors.starts.kept import StartsFeed
from actors.starts.notices import MAX_AT_ONCE, MAX_FOR_ONE, Notices, Post, PostError, delay_after, signature
from actors.starts.outbox import Notice, NoticePage, NoticeQuery, Outbox, unsent
from actors.starts.schedules import MAX_API_SCHEDULES, Schedules
from actors.starts.stored import STARTS_FILE, StartsFile, State, StoredSchedule

__all__ = [
    "MAX_API_SCHEDULES",
    "MAX_AT_ONCE",
    "MAX_FOR_ONE",
    "STARTS_FILE",
    "Instants",
    "Notice",
    "NoticePage",
    "NoticeQuery",
    "Notices",
    "Outbox",
    "Post",
    "PostError",
    "Schedule",
    "Schedules",
    "StartsFeed",
    "StartsFile",
    "State",
    "StoredSchedule",
    "delay_after",
    "signature",
    "unsent",
]
