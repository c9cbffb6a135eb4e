"""The face of the room."""

from environments.local.inline import InlineEnvironment, Launcher
from environments.local.inprocess import InProcess
from environments.local.process import ProcessTable

__all__ = ["InProcess", "InlineEnvironment", "Launcher", "ProcessTable"]
