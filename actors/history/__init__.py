"""The face of the room."""

from actors.history.history import History
from actors.history.queries import Page, Query
from actors.history.rollups import ModuleStats
from actors.history.storage import LOST

__all__ = ["LOST", "History", "ModuleStats", "Page", "Query"]
