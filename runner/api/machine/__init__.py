"""The verbs of the machine, the same for every door: environments, workers, and the runners of a cluster."""

from runner.api.machine.machine import Machine
from runner.api.machine.nodes import ShownCluster, ShownNode
from runner.api.machine.shown import BuiltEnvironment, ShownWorker

__all__ = ["BuiltEnvironment", "Machine", "ShownCluster", "ShownNode", "ShownWorker"]
