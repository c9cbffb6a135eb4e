"""Live executions: run in their caller's task or dispatched in turn, retried, cancelled, and recorded at their end."""

from actors.executions.approvals import WAITS, decision_of, not_asked
from actors.executions.attempts import Attempts
from actors.executions.children import reach_of
from actors.executions.idempotency import Claims, Delivery, Idempotency, fingerprint
from actors.executions.inputs import use_named
from actors.executions.live import Live, LiveExecutions, SupersededError
from actors.executions.owners import Here, Owners
from actors.executions.queueing import Queue
from actors.executions.recovery import end_without_module, served
from actors.executions.runs import Runs
from actors.executions.seams import ExecutionLog
from actors.executions.tally import BUCKETS, PHASES, Histogram

__all__ = [
    "BUCKETS",
    "PHASES",
    "WAITS",
    "Attempts",
    "Claims",
    "Delivery",
    "ExecutionLog",
    "Here",
    "Histogram",
    "Idempotency",
    "Live",
    "LiveExecutions",
    "Owners",
    "Queue",
    "Runs",
    "SupersededError",
    "decision_of",
    "end_without_module",
    "fingerprint",
    "not_asked",
    "reach_of",
    "served",
    "use_named",
]
