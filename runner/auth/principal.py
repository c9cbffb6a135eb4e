"""`Principal`: a caller, with the scopes and modules of its token, and the checks of them."""

from __future__ import annotations

import math
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from attrs import field, frozen

from protocol.errors import ErrorKind, error


class Scope(StrEnum):
    """The permissions that a token may hold."""

    MODULES_READ = "modules:read"
    MODULES_WRITE = "modules:write"
    EXECUTIONS_RUN = "executions:run"
    EXECUTIONS_READ = "executions:read"
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

    def allows(self, scope: str) -> bool:
        """Whether the token has `scope`; `admin` includes all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_use(self, module_name: str) -> bool:
        """Whether the token allows this module."""
        return not self.modules or any(fnmatchcase(module_name, glob) for glob in self.modules)


def require(principal: Principal, scope: Scope) -> None:
    """Raise RunnerError `forbidden` when the principal does not have the scope."""
    if not principal.allows(scope):
        raise error(ErrorKind.FORBIDDEN, f"the token lacks the scope {str(scope)!r} (claim `scope`)")


def require_module(principal: Principal, name: str) -> None:
    """Raise RunnerError `forbidden` when the principal may not make a module of this name, if there is one or not."""
    if not principal.may_use(name):
        raise error(ErrorKind.FORBIDDEN, f"the token does not allow module {name!r} (claim `modules`)")
