"""Calls of modules by handlers in the runner's own process: those of a worker, with the loop in place of a channel."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import structlog
import trio
from attrs import define, field

from environments.local.values import BadValueError, decode_input
from protocol import authors, messages

_QUICK_BYTES: Final = 64 * 1024
"""A larger result is decoded in a thread."""
Reply: TypeAlias = Callable[[messages.HostMessage], Awaitable[None]]
Begin: TypeAlias = Callable[[messages.Call | messages.Withdraw, Reply], None]
"""Begins or withdraws a call, in the task of the caller's loop; `Reply` gets the answer."""

CALLING: Final = ("call", "map", "submit", "call_async", "map_async", "submit_async")
"""The ways to call other modules, as in a worker."""
log = structlog.get_logger("inprocess")
_calls: Final[Callable[..., Any]] = authors.Calls
_answers: Final[Callable[..., Any]] = authors.Answers


@define(eq=False)
class Places:
    """The places of a module for calls that run at a time: others for each number of handlers that wait for a call."""

    concurrency: int
    _limiters: dict[int, trio.CapacityLimiter] = field(factory=dict, init=False)

    def of(self, level: int) -> trio.CapacityLimiter:
        """Return the places for calls of a level."""
        return self._limiters.setdefault(level, trio.CapacityLimiter(self.concurrency))

    @property
    def used(self) -> bool:
        """Whether a call runs."""
        return any(limiter.borrowed_tokens for limiter in self._limiters.values())


class Line:
    """One call of a handler and the loop of the runner: what `authors.Calls` takes for the channel of a worker."""

    def __init__(self, execution: str, begin: Begin, encode: Callable[[Any], bytes]) -> None:
        self.execution = execution
        self.speaker: str | None = execution
        self.owner = os.getpid()
        self.turn = threading.RLock()
        self.cancelled = False
        self._begin = begin
        self._token = trio.lowlevel.current_trio_token()
        self._answers: Any = None
        self._encode = encode

    def calls(self) -> Any:
        """Return the calls of the handler, in any thread. Raises RuntimeError when it has ended."""
        with self.turn:
            if self.speaker is None:
                raise RuntimeError("the execution has ended, and so have its calls")
            if self._answers is None:
                self._answers = _answers(self, self.execution, reads=False)
                self._answers.calls = _calls(self, self._answers, self._encode)
            return self._answers.calls

    def send(self, payload: bytes, _execution: str | None = None) -> None:
        """Take a message of the handler. Never waits, as the sender has locks that `_reply` takes."""
        message = messages.decode(payload)
        if isinstance(message, messages.Call | messages.Withdraw):
            self._token.run_sync_soon(self._take, message)

    def _take(self, message: messages.Call | messages.Withdraw) -> None:
        try:
            self._begin(message, self._reply)
        except Exception:  # it would end the loop
            log.exception("a call failed inside the runner", execution=self.execution)

    def end(self) -> None:
        """End the calls: the handler has ended, or its caller has an answer."""
        self.speaker, self.cancelled = None, True
        if self._answers is not None:
            with self._answers.changed:
                self._answers.changed.notify_all()

    async def _reply(self, message: messages.HostMessage) -> None:
        size = len(bytes(message.value)) if isinstance(message, messages.Called) else 0
        heard = _heard(message) if size <= _QUICK_BYTES else await trio.to_thread.run_sync(_heard, message)
        with self._answers.changed:
            self._answers.hear(heard)
        self._answers.send_later()


def _heard(message: messages.HostMessage) -> dict[str, Any]:
    """Return an answer as a worker reads it."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    fields["type"] = message.__struct_config__.tag
    if isinstance(message, messages.Called):
        try:
            fields["value"] = decode_input(bytes(message.value))
        except BadValueError as problem:
            fields["unreadable"] = problem.path, problem
    return fields
