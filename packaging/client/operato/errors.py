"""Failures of calls and requests: one exception class for each error kind of the runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

_DETAILS = ("error_type", "traceback", "field", "retry_after", "execution_id", "request_id")


class OperatoError(Exception):
    """A failure, of the class of its kind. Its cause shows the traceback of the handler, if there is one."""

    kind: ClassVar[str] = "internal"
    """The error kind; `docs/errors.md` of the runner has their meanings."""
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed unchanged."""

    message: str
    error_type: str | None
    """The class of the exception that the handler raised."""
    traceback: str | None
    """The traceback of the handler, as text."""
    field: str | None
    """The part of the input or the parameter that is wrong."""
    retry_after: float | None
    """Seconds after which the runner expects another try."""
    execution_id: str | None
    """The id of the failed execution; None if the request never became one."""
    request_id: str | None
    """The id by which the log of the runner has the reason of an internal error."""

    def __init__(
        self,
        message: str,
        *,
        error_type: str | None = None,
        traceback: str | None = None,
        field: str | None = None,
        retry_after: float | None = None,
        execution_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.error_type = error_type
        self.traceback = traceback
        self.field = field
        self.retry_after = retry_after
        self.execution_id = execution_id
        self.request_id = request_id
        if traceback:
            self.__cause__ = RemoteTraceback(traceback)

    def __str__(self) -> str:
        place = f"{self.field}: " if self.field and not self.message.startswith(self.field) else ""
        kind = f"{self.error_type}: " if self.error_type else ""
        return f"{place}{kind}{self.message}"

    def __reduce__(self) -> Any:
        return _restored, (type(self), {name: getattr(self, name) for name in ("message", *_DETAILS)})


class RemoteTraceback(Exception):  # noqa: N818 - it is shown as the cause of an error, and never raised
    """The traceback of a handler, on the runner."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class BadInputError(OperatoError):
    """The request or the input is not valid."""

    kind = "bad_input"


class NotFoundError(OperatoError):
    """Nothing has that name, or the token does not allow it."""

    kind = "not_found"


class ConflictError(OperatoError):
    """The state does not allow it."""

    kind = "conflict"


class UnauthenticatedError(OperatoError):
    """There is no valid token."""

    kind = "unauthenticated"


class ForbiddenError(OperatoError):
    """The token lacks the scope."""

    kind = "forbidden"


class TooLargeError(OperatoError):
    """The body is over a limit of the runner, or the answer over one of this client."""

    kind = "too_large"


class OverloadedError(OperatoError):
    """No worker was free in time, or a queue is full."""

    kind = "overloaded"
    retryable = True


class UnavailableError(OperatoError):
    """The runner cannot do it now, or no runner answers."""

    kind = "unavailable"
    retryable = True


class EnvironmentFailedError(OperatoError):
    """The environment of the module could not be built."""

    kind = "environment_failed"


class LoadFailedError(OperatoError):
    """The module could not be imported."""

    kind = "load_failed"


class HandlerError(OperatoError):
    """The handler raised an exception: `error_type`, `message` and `traceback` are those of the exception."""

    kind = "handler_error"


class BadOutputError(OperatoError):
    """The result is not JSON, or too large."""

    kind = "bad_output"


class ExecutionTimeoutError(OperatoError):
    """The execution took longer than its time limit."""

    kind = "timeout"
    retryable = True


class CancelledError(OperatoError):
    """The execution was cancelled on the runner."""

    kind = "cancelled"


class OutOfMemoryError(OperatoError):
    """The execution took more memory than it may."""

    kind = "out_of_memory"
    retryable = True


class OutputLimitError(OperatoError):
    """The execution printed more than it may."""

    kind = "output_limit"


class OutOfStorageError(OperatoError):
    """The runner has no room for a file."""

    kind = "out_of_storage"


class WorkerCrashedError(OperatoError):
    """The process of the worker ended during the call."""

    kind = "worker_crashed"
    retryable = True


class LostError(OperatoError):
    """The runner ended during the execution, or the connection broke before the answer."""

    kind = "lost"
    retryable = True


class ShutdownError(OperatoError):
    """The runner is shutting down."""

    kind = "shutdown"
    retryable = True


class InternalError(OperatoError):
    """A bug of the runner, or an answer of another server."""

    kind = "internal"


KINDS: Mapping[str, type[OperatoError]] = {each.kind: each for each in OperatoError.__subclasses__()}
"""The exception class of each error kind."""

_BY_STATUS = {
    400: BadInputError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    413: TooLargeError,
    429: OverloadedError,
    503: UnavailableError,
    507: OutOfStorageError,
}


def failure(fields: Mapping[str, Any], *, status: int = 500, **more: Any) -> OperatoError:
    """Return the exception for the error of an execution, or for a problem document."""
    known = KINDS.get(str(fields.get("kind")))
    if known is None:
        known = _BY_STATUS.get(status, BadInputError if 400 <= status < 500 else InternalError)
    message = fields.get("message") or fields.get("detail") or fields.get("title") or f"the runner answered {status}"
    own: dict[str, Any] = {"error_type": fields.get("type"), "traceback": fields.get("traceback")}
    if "title" in fields:  # a problem document, whose `type` is a URL
        own = {"request_id": fields.get("request_id")}
    return known(str(message), field=fields.get("field"), **own, **more)


def _restored(kind: type[OperatoError], fields: dict[str, Any]) -> OperatoError:
    return kind(**fields)
