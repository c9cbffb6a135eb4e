"""Workers whose handlers wait for calls of modules: they count for no limit until they continue."""

from actors.workers.parking.parking import Parking, running

__all__ = ["Parking", "running"]
