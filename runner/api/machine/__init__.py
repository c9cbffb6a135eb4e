"""The verbs of the machine, the same for every door: kinds of environment, built environments, and workers."""

from runner.api.machine.machine import Machine
from runner.api.machine.shown import BuiltEnvironment, ShownWorker

__all__ = ["BuiltEnvironment", "Machine", "ShownWorker"]
