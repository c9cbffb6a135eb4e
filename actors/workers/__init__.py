"""Workers: environments are built, interpreters started and kept, and lent to executions one call at a time."""

from actors.workers.build_log import BuildLog
from actors.workers.builds import build
from actors.workers.call import Call, Outcome
from actors.workers.executor import Executor, ExecutorStatistics
from actors.workers.masking import Masker, look_up, look_up_named
from actors.workers.pool import Openings, Phases, PoolState, Waiter
from actors.workers.worker import Worker

__all__ = [
    "BuildLog",
    "Call",
    "Executor",
    "ExecutorStatistics",
    "Masker",
    "Openings",
    "Outcome",
    "Phases",
    "PoolState",
    "Waiter",
    "Worker",
    "build",
    "look_up",
    "look_up_named",
]
