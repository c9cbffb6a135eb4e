"""What handlers in the runner's own process raise, as failures."""

from __future__ import annotations

import traceback

from protocol.errors import ErrorKind, Failure

_MAX_TRACEBACK = 65536


class LoadError(Exception):
    """The module has no callable handler; the message has the remedy."""


def failure_of(kind: ErrorKind, problem: BaseException, between: tuple[str, ...]) -> Failure:
    """Return an exception of user code as a failure, even if its `__str__` raises.

    The frames of the files `between`, at its beginning, are left out.
    """
    try:
        message = str(problem)
    except BaseException as broken:  # noqa: BLE001  (user code may raise in __str__)
        message = f"<no message: __str__ raised {type(broken).__name__}>"
    if isinstance(problem, SystemExit):
        message = f"the handler called sys.exit({message})"
    try:
        frames = problem.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(between):
            frames = frames.tb_next
        text = (
            ""
            if isinstance(problem, LoadError)
            else "".join(traceback.format_exception(type(problem), problem, frames))
        )
    except BaseException:  # noqa: BLE001  (user code may raise here too)
        text = ""
    if len(text) > _MAX_TRACEBACK:
        text = text[: _MAX_TRACEBACK // 2] + "\n...\n" + text[-_MAX_TRACEBACK // 2 :]
    if isinstance(problem, MemoryError):
        message = message or "MemoryError"
    return Failure(kind, clean(message[:16384]), clean(type(problem).__qualname__), clean(text))


def clean(text: str) -> str:
    """Return text that UTF-8 can encode."""
    return text.encode("utf-8", "backslashreplace").decode()
