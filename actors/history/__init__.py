"""The record of executions: what ran, what runs and how it ended, safe before an answer and there after a crash.

`History` is the actor. `Query` and `Page` are lists, `ModuleStats` counts, `LOST` the failure of executions that ran
when the runner died. The files of the room follow a record on its way: journal, pending, committer, archive, storage;
queries and rollups read, retention deletes.
"""

from actors.history.committer import HistoryStatistics
from actors.history.database import database_path
from actors.history.history import History, summary_of
from actors.history.pending import LARGE_BYTES, Room, Stage, stage_of
from actors.history.queries import AT_WORK, MAX_LINKED, Page, Query
from actors.history.shared import Ended, ended_after, is_elsewhere, join, last_ended, open_ones, origins, own, stages
from actors.history.storage import LOST
from actors.rollups import EndCounts, Ends, ModuleStats

__all__ = [
    "AT_WORK",
    "LARGE_BYTES",
    "LOST",
    "MAX_LINKED",
    "EndCounts",
    "Ended",
    "Ends",
    "History",
    "HistoryStatistics",
    "ModuleStats",
    "Page",
    "Query",
    "Room",
    "Stage",
    "database_path",
    "ended_after",
    "is_elsewhere",
    "join",
    "last_ended",
    "open_ones",
    "origins",
    "own",
    "stage_of",
    "stages",
    "summary_of",
]
