"""What a client hears of its call before the end: progress, log messages, and why it waits."""

from __future__ import annotations

import math
from typing import Final

from protocol.events import Event, OutputEvent, ProgressEvent, StatusEvent
from protocol.model import Stream
from runner.mcp.forms.jsonrpc import Id, notification

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_OUTPUT: Final = {Stream.STDOUT: "info", Stream.STDERR: "warning"}
_FULL_BYTES: Final = 65_536
_MAX_TEXT: Final = 1000
"""Characters of the text of one progress."""


class Notes:
    """Gathers the events of one call, and makes notifications of them. Bounded: `full` asks to take them."""

    def __init__(self, token: Id | None, level: str | None) -> None:
        """Make progress for `token`, and log messages from `level` on; None: not at all."""
        self._token, self._least = token, len(LEVELS) if level is None else LEVELS.index(level)
        self._done: float | None = None
        self._progress: ProgressEvent | None = None
        self._reason = ""
        self._output: list[tuple[Stream, list[str]]] = []
        self._size = 0

    @property
    def pending(self) -> bool:
        """Whether there is something to send."""
        return bool(self._progress or self._reason or self._output)

    @property
    def full(self) -> bool:
        """Whether it must be sent before more is added."""
        return self._size >= _FULL_BYTES

    def add(self, event: Event) -> None:
        """Add an event; of several progresses between two notifications the last one counts."""
        match event:
            case ProgressEvent() if self._token is not None:
                self._progress = event
            case StatusEvent(reason=reason) if reason and self._token is not None:
                self._reason = reason
            case OutputEvent() if LEVELS.index(_OUTPUT[event.stream]) >= self._least:
                self._size += len(event.text)
                if not self._output or self._output[-1][0] is not event.stream:
                    self._output.append((event.stream, []))
                self._output[-1][1].append(event.text)

    def take(self) -> list[bytes]:
        """Return the notifications, and forget what they are made of."""
        made = [self._message(stream, "".join(texts)) for stream, texts in self._output]
        if self._reason:
            made += self._progressed(None, None, self._reason)
        if self._progress is not None:
            made += self._progressed(self._progress.done, self._progress.total, self._progress.text)
        self._output, self._size, self._progress, self._reason = [], 0, None, ""
        return made

    def _message(self, stream: Stream, text: str) -> bytes:
        return notification("notifications/message", {"level": _OUTPUT[stream], "logger": stream.value, "data": text})

    def _progressed(self, done: float | None, total: float | None, text: str) -> list[bytes]:
        """Return a notification whose number is above that of the one before, or none."""
        last = self._done
        if done is None or not math.isfinite(done):  # only a text: the number must rise all the same
            done = 0.0 if last is None else math.nextafter(last, math.inf)
        if not math.isfinite(done) or (last is not None and done <= last):
            return []
        self._done = done
        params = {"progressToken": self._token, "progress": done}
        if total is not None and math.isfinite(total):
            params["total"] = total
        if text:
            params["message"] = text[:_MAX_TEXT]
        return [notification("notifications/progress", params)]
