"""An asynchronous execution as a task of the extension `io.modelcontextprotocol/tasks`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from protocol.model import Execution, Status

TASKS: Final = "io.modelcontextprotocol/tasks"
_POLL_MS: Final = 1000
_STATUSES: Final = {
    Status.QUEUED: "working",
    Status.RUNNING: "working",
    Status.SCHEDULED: "working",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "completed",  # a failed task is one that has no result of the tool at all
    Status.CANCELLED: "cancelled",
}


def task_of(execution: Execution) -> dict[str, Any]:
    """Return an execution as a task, without its result."""
    updated = execution.finished_at or execution.started_at or execution.created_at
    task: dict[str, Any] = {
        "taskId": execution.id,
        "status": _STATUSES[execution.status],
        "createdAt": _time(execution.created_at),
        "lastUpdatedAt": _time(updated),
        "ttlMs": None,
        "pollIntervalMs": _POLL_MS,
    }
    message = execution.failure.message if execution.failure is not None else ""
    if not execution.status.final:
        message = execution.status.value if execution.waiting is None else execution.waiting.reason
    return {**task, "statusMessage": message[:1000]} if message else task


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
