"""Live executions: run in their caller's task or dispatched in turn, retried, cancelled, and recorded at their end."""

from actors.executions.approvals import WAITS, decision_of, not_asked
from actors.executions.attempts import Attempts
from actors.executions.children import reach_of
from actors.executions.idempotency import Delivery, Idempotency, fingerprint
from actors.executions.inputs import use_named
from actors.executions.live import Live, LiveExecutions
from actors.executions.owners import Here, Owners
from actors.executions.recovery import served
from actors.executions.runs import Runs
from actors.executions.tally import BUCKETS, PHASES, Histogram

__all__ = [
    "BUCKETS",
    "PHASES",
    "WAITS",
    "Attempts",
    "Delivery",
    "Here",
    "Histogram",
    "Idempotency",
    "Live",
    "LiveExecutions",
    "Owners",
    "Runs",
    "decision_of",
    "fingerprint",
    "not_asked",
    "reach_of",
    "served",
    "use_named",
]
