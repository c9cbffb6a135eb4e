"""The turns of handlers that wait for calls of their own: others run in their place meanwhile."""

from actors.workers.parking.parking import Parking

__all__ = ["Parking"]
