"""Processes of this machine as workers, the `inline` kind, and handlers in the runner's own process."""

from environments.local.exchange import Exchange
from environments.local.inline import InlineEnvironment, Launcher
from environments.local.inprocess import InProcess
from environments.local.process import ProcessTable

__all__ = ["Exchange", "InProcess", "InlineEnvironment", "Launcher", "ProcessTable"]
