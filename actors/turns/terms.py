"""The terms of a submission: what its caller asks for besides the call itself."""

from __future__ import annotations

import math
from typing import Final

from attrs import frozen
from msgspec.structs import replace

from protocol.errors import ErrorKind, error
from protocol.model import DEFAULT_PRIORITY, MAX_PRIORITY, MIN_PRIORITY, Execution, Status

MAX_DAYS: Final = 3660
"""How far away the time of an execution may be."""
_DAY: Final = 86400.0


@frozen
class Terms:
    """The terms of one submission."""

    priority: int | None = None
    run_at: float | None = None
    """In seconds since the epoch."""

    rerun_of: str | None = None
    rerun_root: str | None = None

    def applied(self, execution: Execution) -> Execution:
        """Return an execution as it is accepted with these terms."""
        waits = self.run_at is not None and self.run_at > execution.created_at
        return replace(
            execution,
            asynchronous=True,
            status=Status.SCHEDULED if waits else Status.QUEUED,
            priority=DEFAULT_PRIORITY if self.priority is None else self.priority,
            run_at=self.run_at,
            rerun_of=self.rerun_of,
            rerun_root=self.rerun_root,
        )


AT_ONCE: Final = Terms()
"""The terms of a submission that asks for nothing."""


def terms_of(
    now: float, *, priority: int | None = None, run_at: float | None = None, delay: float | None = None
) -> Terms:
    """Return the terms that a caller gave at the time `now`; None is not given. Raises RunnerError `bad_input`."""
    if priority is not None and not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        limits = f"from {MIN_PRIORITY} (last) to {MAX_PRIORITY} (first)"
        raise error(ErrorKind.BAD_INPUT, f"priority must be {limits}, not {priority}", field="priority")
    if delay is not None:
        if run_at is not None:
            raise error(ErrorKind.BAD_INPUT, "give `run_at` or `delay`, not both", field="delay")
        if not 0 <= delay <= MAX_DAYS * _DAY:
            text = f"delay must be from 0 to {MAX_DAYS} days, not {delay:g} seconds"
            raise error(ErrorKind.BAD_INPUT, text, field="delay")
        run_at = now + delay
    elif run_at is not None and not (math.isfinite(run_at) and run_at <= now + MAX_DAYS * _DAY):
        raise error(ErrorKind.BAD_INPUT, f"run_at is more than {MAX_DAYS} days away", field="run_at")
    return Terms(priority, run_at)
