"""Failure x attempt x policy -> delay or give up. Pure."""

from __future__ import annotations

from config.modules import RetryPolicy
from protocol.errors import Failure


def retry_delay(failure: Failure, attempt: int, policy: RetryPolicy, spread: float) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    `attempt` counts from 1 and is the one that failed; `spread` is a random number in [-1, 1].
    """
    if attempt >= policy.attempts or failure.kind not in policy.on:
        return None
    backoff = policy.backoff
    delay = min(backoff.max, backoff.initial * backoff.factor ** (attempt - 1))
    return max(0.0, delay * (1 + backoff.jitter * spread))
