"""Who calls, by the `Authorization` of any door."""

from __future__ import annotations

from runner.auth import Principal, Verifier, bearer


async def authenticate(verifier: Verifier, header: str | None) -> Principal:
    """Return who calls; `header` is `Bearer TOKEN`. No checkpoint where no key must be fetched.

    Raises RunnerError `unauthenticated`, or `unavailable` when keys cannot be fetched.
    """
    token = bearer(header)
    return verifier.verify_nowait(token) if verifier.local else await verifier.verify(token)
