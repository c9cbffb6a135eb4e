"""Call Python functions on an Operato Runner, and write them: `Client`, `AsyncClient`, and what handlers import.

`File`, `Request`, `Response`, `Context` and `context` are those that workers have. The clients are imported when they
are used, so a handler does not pay for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from operato import authors
from operato.authors import *  # noqa: F403 - all that handlers import, also what is added to it
from operato.errors import (
    BadInputError,
    BadOutputError,
    CancelledError,
    ConflictError,
    EnvironmentFailedError,
    ExecutionTimeoutError,
    ForbiddenError,
    HandlerError,
    InternalError,
    LoadFailedError,
    LostError,
    NotFoundError,
    OperatoError,
    OutOfMemoryError,
    OutOfStorageError,
    OutputLimitError,
    OverloadedError,
    RemoteTraceback,
    ShutdownError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    WorkerCrashedError,
)
from operato.records import Event, Execution, Outcome

if TYPE_CHECKING:
    from operato.client import AsyncClient, Client
    from operato.streams import AsyncStream, Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "BadInputError",
    "BadOutputError",
    "CancelledError",
    "Client",
    "ConflictError",
    "EnvironmentFailedError",
    "Event",
    "Execution",
    "ExecutionTimeoutError",
    "ForbiddenError",
    "HandlerError",
    "InternalError",
    "LoadFailedError",
    "LostError",
    "NotFoundError",
    "OperatoError",
    "OutOfMemoryError",
    "OutOfStorageError",
    "Outcome",
    "OutputLimitError",
    "OverloadedError",
    "RemoteTraceback",
    "ShutdownError",
    "Stream",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "WorkerCrashedError",
]
__all__ += authors.__all__

_LATE = {"AsyncClient": "client", "Client": "client", "AsyncStream": "streams", "Stream": "streams"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - only programs that call need the clients

    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
