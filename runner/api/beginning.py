"""The record of an execution that is about to begin."""

from __future__ import annotations

import time

from msgspec.structs import replace

from actors.executions import Delivery, fingerprint
from actors.registry import Published
from protocol.errors import ErrorKind, error
from protocol.ids import execution_id
from protocol.model import Execution, Record, Status
from runner.api.checks import Checks


def new_execution(module: Published, subject: str, data: bytes, timeout: float | None) -> Execution:
    """Return an execution with this input; no data is null. Raises RunnerError `bad_input` for the timeout."""
    if timeout is not None and not timeout > 0:
        raise error(ErrorKind.BAD_INPUT, f"the timeout must be above 0 seconds, not {timeout:g}", field="timeout")
    given = data or b"null"
    return Execution(
        id=execution_id(),
        module=module.ref,
        env=module.spec.env,
        status=Status.RUNNING,
        created_at=time.time(),
        input=given,
        subject=subject,
        timeout=timeout,
        summary=module.spec.record is Record.SUMMARY,
        input_bytes=len(given),
    )


async def keyed(execution: Execution, key: str | Delivery, checks: Checks) -> Execution:
    """Return the execution with an idempotency key, and with the hash of an input that is not kept."""
    found = await checks.whole(fingerprint, execution.input) if execution.summary else None
    text = key.key if isinstance(key, Delivery) else key
    return replace(execution, idempotency_key=text, input_hash=found)
