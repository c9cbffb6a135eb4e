"""The numbered events of one execution: kept within bounds, replayed, then followed."""

from actors.events.log import EventLog, Follower, LastEvent, LeftEvent, last_of, log_of
from actors.events.store import EventStore

__all__ = ["EventLog", "EventStore", "Follower", "LastEvent", "LeftEvent", "last_of", "log_of"]
