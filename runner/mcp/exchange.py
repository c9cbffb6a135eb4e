"""`Exchange`: one message and the client that sent it, as the methods see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from attrs import field, frozen

from protocol.errors import ErrorKind, Failure
from runner.api import InternalFailure
from runner.auth import Principal
from runner.mcp.forms import INTERNAL, INVALID_PARAMS, TASKS, Call, Client, Params, RpcError, via_of
from runner.mcp.sessions import Session
from runner.status import CODES
from runner.wire import Share

_CODES = {
    ErrorKind.BAD_INPUT: INVALID_PARAMS,
    ErrorKind.NOT_FOUND: INVALID_PARAMS,
    ErrorKind.INTERNAL: INTERNAL,
}
"""The other kinds have codes of their own, outside of what JSON-RPC reserves: the statuses of HTTP."""


@frozen(eq=False)
class Exchange:
    """One message with its parameters, and the way back to its client."""

    call: Call
    params: Params
    principal: Principal
    modern: bool
    """Whether it is of revision 2026-07-28."""
    share: Share
    """The memory that the answer takes."""
    notify: Callable[[bytes], Awaitable[None]] | None = None
    """Sends one notification; None: the client reads none."""
    idle: Callable[[], Awaitable[None]] | None = None
    """Shows that the call still runs, while there is nothing to send."""
    session: Session | None = None
    """That of an older revision."""
    key: str | None = field(default=None)
    """The idempotency key in the headers."""

    @property
    def client(self) -> Client | None:
        """Name and version that the client gives itself."""
        if self.modern:
            return self.params.meta.client
        return None if self.session is None else self.session.client

    @property
    def via(self) -> str:
        """The client as the record of an execution has it."""
        return via_of(self.client)

    @property
    def level(self) -> str | None:
        """The least level of log messages that the client wants."""
        if self.modern:
            return self.params.meta.level
        return None if self.session is None else self.session.level

    @property
    def has_tasks(self) -> bool:
        """Whether the client can poll for results."""
        capabilities = self.params.meta.capabilities
        return self.modern and capabilities is not None and TASKS in capabilities.extensions


def rpc_error(failure: Failure) -> RpcError:
    """Return the error for a call that did not begin."""
    data: dict[str, Any] = {"kind": failure.kind.value}
    if failure.field is not None:
        data["field"] = failure.field
    if failure.retry_after is not None:
        data["retry_after"] = failure.retry_after
    if isinstance(failure, InternalFailure):
        data["request_id"] = failure.request_id
    code = _CODES.get(failure.kind, CODES[failure.kind].http)
    return RpcError(code, failure.message, data=data)
