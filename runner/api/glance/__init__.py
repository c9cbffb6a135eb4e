"""The verbs of a first look: what runs and waits now, how executions ended over time, the state of the machine."""

from actors.history import Ends
from runner.api.glance.glance import Glance, Lives
from runner.api.glance.hardware import Hardware

__all__ = ["Ends", "Glance", "Hardware", "Lives"]
