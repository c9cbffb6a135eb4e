"""What executions need of others, where a cluster has parts of its own in place of those of a single machine."""

from actors.executions.seams.ending import Ending
from actors.executions.seams.recording import ExecutionLog

__all__ = ["Ending", "ExecutionLog"]
