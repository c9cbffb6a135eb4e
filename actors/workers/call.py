"""One call of a handler and its outcome; how deaths, limits and cuts become failures. Pure."""

from __future__ import annotations

import math
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, evolve, field, frozen

from protocol import frames, messages
from protocol.errors import ErrorKind, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import msgspec

    from actors.channel import Nested
    from actors.events import EventLog
    from environments.base import Guest, Store

_GUEST_KINDS = {
    "handler_error": ErrorKind.HANDLER_ERROR,
    "bad_output": ErrorKind.BAD_OUTPUT,
    "out_of_memory": ErrorKind.OUT_OF_MEMORY,
    "worker_crashed": ErrorKind.WORKER_CRASHED,
    "cancelled": ErrorKind.CANCELLED,
    "bad_input": ErrorKind.BAD_INPUT,
    "out_of_storage": ErrorKind.OUT_OF_STORAGE,
}


@define(eq=False)
class Call:
    """One attempt to run a handler, from its creation to its `Outcome`. `timeout` is in seconds from its start.

    `cancel` ends it from another task; unlike a cancellation of the task that runs it, this leads to an `Outcome`.
    """

    id: str
    input: msgspec.Raw
    attempt: int
    timeout: float
    log: EventLog
    files: Mapping[str, tuple[Path, str]] = {}
    """The files of the input: id -> where they are, and their names."""
    store: Store | None = None
    """Stores the files that the handler makes."""
    nested: Nested | None = None
    """Makes the calls of other modules; None if the module may call none."""
    refused: Failure | None = field(default=None, init=False)
    """Why a file of the result was not stored."""
    stopped_by: Failure | None = field(default=None, init=False)
    """Why it was cancelled."""
    killed: tuple[str, ...] = field(default=(), init=False)
    """Processes killed when the task that ran it was cancelled."""
    deadline: float = field(default=math.inf, init=False)
    """The Trio time at which its `timeout` ends it; the executor looks at it."""
    interrupted: bool = field(default=False, init=False)
    """It ends without an answer."""
    _wake: Callable[[], None] | None = field(default=None, init=False)

    def cancel(self, why: Failure) -> None:
        """End the handler: soft stop, then the kill of its process tree. The first reason counts; never blocks."""
        if self.stopped_by is None:
            self.stopped_by = why
            self.interrupt()

    def begin(self, wake: Callable[[], None]) -> None:
        """Start its time; `wake` ends the wait of the task that runs it. A scope would cost a twentieth of a call."""
        self.deadline, self._wake = trio.current_time() + self.timeout, wake
        if self.stopped_by is not None:
            self.interrupt()

    @contextmanager
    def woken_by(self, wake: Callable[[], None]) -> Iterator[None]:
        """End the wait inside this block by `wake` in place of what `begin` was given."""
        before, self._wake = self._wake, wake
        try:
            yield
        finally:
            self._wake = before

    def end(self) -> None:
        """Note that nothing is waited for that `interrupt` could end."""
        self._wake = None

    def interrupt(self) -> None:
        """End the call while it waits for its answer."""
        if self._wake is not None and not self.interrupted:
            self.interrupted = True
            self._wake()

    def cut_off(self, killed: tuple[str, ...]) -> Outcome:
        """Return the outcome of a call without an answer: cancelled, printed too much, or timed out."""
        if self.stopped_by is not None:
            return Outcome(failure=self.stopped_by, exit_code=130, killed=killed)
        if self.log.exceeded:
            return printed_too_much(self.log, killed)
        text = f"the handler did not end within its `timeout` of {self.timeout:g} s"
        failure = Failure(ErrorKind.TIMEOUT, text, field="timeout")
        return Outcome(failure=failure, seconds=self.timeout, exit_code=124, killed=killed)


@frozen
class Outcome:
    """The outcome of one attempt: a result as JSON, or a failure; `seconds` is the handler's own time."""

    result: bytes | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    exit_code: int = 0
    killed: tuple[str, ...] = ()
    """The processes that were killed, as `pid name`."""
    peak_memory: int | None = None
    reached: bool = True
    """False when the worker was gone before the call could reach it, so that nothing has run."""


def printed_too_much(log: EventLog, killed: tuple[str, ...]) -> Outcome:
    """Return the outcome of a call whose handler passed the limit `output`."""
    text = f"the execution printed more than {log.limit} bytes; raise `output` or print less"
    return Outcome(failure=Failure(ErrorKind.OUTPUT_LIMIT, text, field="output"), exit_code=1, killed=killed)


def failure_of(answer: messages.Error) -> Failure:
    """Return the failure that a guest reports."""
    kind = _GUEST_KINDS.get(answer.kind, ErrorKind.HANDLER_ERROR)
    return Failure(kind, answer.message, answer.error_type, answer.traceback, answer.field)


def load_failure(answer: messages.LoadFailed) -> Failure:
    """Return the failure of an import that a guest reports."""
    return Failure(ErrorKind.LOAD_FAILED, answer.message, answer.error_type, answer.traceback or None)


def import_failure(log: EventLog, timeout: float) -> Failure:
    """Return the failure of an import that was cut off: it printed too much, or passed `start_timeout`."""
    if log.exceeded:
        text = f"more than {log.limit} bytes were printed while the module was imported; raise `output` or print less"
        return Failure(ErrorKind.OUTPUT_LIMIT, text, field="output")
    text = f"the module was not imported within start_timeout ({timeout:g} s); raise it, or do less in the import"
    return Failure(ErrorKind.LOAD_FAILED, text, field="start_timeout")


def limit_failure(passed: str, otherwise: ErrorKind) -> Failure:
    """Return the failure of a worker that passed the limit named in `passed`."""
    if "memory" in passed:
        return Failure(ErrorKind.OUT_OF_MEMORY, passed, field="memory")
    return Failure(otherwise, passed, field="processes")


def crash(guest: Guest, when: str, kind: ErrorKind, cause: Exception | None = None) -> Failure:
    """Return why a guest that has ended is gone."""
    if (fault := guest.fault) is not None:
        return evolve(fault, kind=kind) if kind is ErrorKind.WORKER_CRASHED else fault
    if isinstance(cause, messages.ProtocolError) and isinstance(cause.__cause__, RecursionError):
        # Newer interpreters write deeper values than this one reads.
        return Failure(ErrorKind.BAD_OUTPUT, "$: nested too deeply", field="$")
    if isinstance(cause, messages.ProtocolError | frames.FrameTooLargeError):
        return Failure(kind, f"the worker's channel was disturbed {when}: {cause}")
    code = guest.exit_code or 0
    if code == -signal.SIGKILL:
        how = "was killed by SIGKILL, or closed the descriptor of its channel,"
    elif code < 0:
        how = f"was ended by {_signal_name(-code)}"
    else:
        how = f"ended with exit code {code}"
    return Failure(kind, f"the worker {how} {when}")


def _signal_name(number: int) -> str:
    if number == signal.SIGBUS:
        return "SIGBUS, as when /dev/shm is full (field `shm`),"
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
