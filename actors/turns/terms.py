"""The terms of a submission: what its caller asks for besides the call itself."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from protocol.errors import ErrorKind, error
from protocol.model import DEFAULT_PRIORITY, MAX_PRIORITY, MIN_PRIORITY


@frozen
class Terms:
    """The terms of one submission."""

    priority: int = DEFAULT_PRIORITY


AT_ONCE: Final = Terms()
"""The terms of a submission that asks for nothing."""


def terms_of(*, priority: int | None = None) -> Terms:
    """Return the terms that a caller gave; None is not given. Raises RunnerError `bad_input`."""
    if priority is None:
        return AT_ONCE
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        limits = f"from {MIN_PRIORITY} (last) to {MAX_PRIORITY} (first)"
        raise error(ErrorKind.BAD_INPUT, f"priority must be {limits}, not {priority}", field="priority")
    return Terms(priority)
