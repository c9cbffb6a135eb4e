"""The face of the room."""

from actors.workers.build_log import BuildLog
from actors.workers.builds import build
from actors.workers.executor import Executor
from actors.workers.masking import Masker, look_up
from actors.workers.pool import ExecutorStatistics, Phases, Waiter
from actors.workers.worker import Call, Outcome

__all__ = [
    "BuildLog",
    "Call",
    "Executor",
    "ExecutorStatistics",
    "Masker",
    "Outcome",
    "Phases",
    "Waiter",
    "build",
    "look_up",
]
