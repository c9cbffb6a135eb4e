"""`Principal`: a caller, with the scopes and modules of its token, and the checks of them."""

from __future__ import annotations

import math
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from protocol.errors import ErrorKind, error

if TYPE_CHECKING:
    from actors.keys import ApiKey


class Scope(StrEnum):
    """The permissions that a token may hold."""

    MODULES_READ = "modules:read"
    MODULES_WRITE = "modules:write"
    MODULES_ADMIN = "modules:admin"
    """Endpoints of modules that are registered over the API, besides `modules:write`."""
    EXECUTIONS_RUN = "executions:run"
    EXECUTIONS_READ = "executions:read"
    EXECUTIONS_APPROVE = "executions:approve"
    """Decisions about executions that wait for a person."""
    SCHEDULES_READ = "schedules:read"
    SCHEDULES_WRITE = "schedules:write"
    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    METRICS_READ = "metrics:read"
    ADMIN = "admin"
    """Every scope."""


SCOPES: Final = frozenset(scope.value for scope in Scope)


@frozen
class Principal:
    """A caller and the permissions of its token.

    `modules` are globs of module names, which limit admins too; () allows all modules.
    """

    subject: str
    scopes: frozenset[str]
    modules: tuple[str, ...] = ()
    expires: float = field(default=math.inf, eq=False)
    """The end of its token, leeway included, in seconds since the epoch."""
    key: ApiKey | None = field(default=None, eq=False, repr=False)
    """The API key in place of a token."""
    anonymous: bool = field(default=False, eq=False)
    """Whether it showed no credential."""

    def allows(self, scope: str) -> bool:
        """Whether the token has `scope`; `admin` includes all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_use(self, module_name: str) -> bool:
        """Whether the token allows this module."""
        return not self.modules or any(fnmatchcase(module_name, glob) for glob in self.modules)


def require(principal: Principal, scope: Scope) -> None:
    """Raise RunnerError `forbidden` when the principal does not have the scope.

    Without a token, and after its API key was revoked, which may be while its request arrived, it is `unauthenticated`.
    """
    if principal.key is not None and principal.key.revoked:
        raise error(ErrorKind.UNAUTHENTICATED, "the API key was revoked")
    if principal.allows(scope):
        return
    if principal.anonymous:
        text = f"callers without a token do not have the scope {str(scope)!r}: send `Authorization: Bearer TOKEN`"
        raise error(ErrorKind.UNAUTHENTICATED, text)
    raise error(
        ErrorKind.FORBIDDEN, f"the {_shown(principal)} lacks the scope {str(scope)!r}{_claim(principal, 'scope')}"
    )


def require_module(principal: Principal, name: str) -> None:
    """Raise RunnerError `forbidden` when the principal may not make a module of this name, if there is one or not."""
    if not principal.may_use(name):
        text = f"the {_shown(principal)} does not allow module {name!r}{_claim(principal, 'modules')}"
        raise error(ErrorKind.FORBIDDEN, text)


def _shown(principal: Principal) -> str:
    return "token" if principal.key is None else "API key"


def _claim(principal: Principal, name: str) -> str:
    return f" (claim `{name}`)" if principal.key is None else ""
