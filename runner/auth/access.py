"""Who calls, by the `Authorization` of any door, and whether they may."""

from __future__ import annotations

from protocol.errors import ErrorKind, error
from runner.auth.tokens import Principal, Verifier, bearer


async def authenticate(verifier: Verifier, header: str | None) -> Principal:
    """Return who calls; `header` is `Bearer TOKEN`. No checkpoint where no key must be fetched.

    Raises RunnerError `unauthenticated`, or `unavailable` when keys cannot be fetched.
    """
    token = bearer(header)
    return verifier.verify_nowait(token) if verifier.local else await verifier.verify(token)


def require(principal: Principal, scope: str) -> None:
    """Raise RunnerError `forbidden` when the principal does not have the scope."""
    if not principal.allows(scope):
        raise error(ErrorKind.FORBIDDEN, f"the token lacks the scope {str(scope)!r} (claim `scope`)")


def require_module(principal: Principal, name: str) -> None:
    """Raise RunnerError `forbidden` when the principal may not use the module."""
    if not principal.may_use(name):
        raise error(ErrorKind.FORBIDDEN, f"the token does not allow module {name!r} (claim `modules`)")
