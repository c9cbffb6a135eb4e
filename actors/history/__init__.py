"""The face of the room."""

from actors.history.history import History
from actors.history.queries import MATCHES, Page, Query, module_matches
from actors.history.rollups import ModuleStats
from actors.history.storage import LOST

__all__ = ["LOST", "MATCHES", "History", "ModuleStats", "Page", "Query", "module_matches"]
