"""The server-sent events of an execution's page: lines that began or grew, progress, and that the page has changed.

The number of the last event that a message covers is its `id`, so a browser that connects again continues there. A line
is sent again as it grows, under its own key: the page replaces it, and shows nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import trio
from attrs import define, field

from actors.events import Follower, LeftEvent
from protocol.errors import Failure
from protocol.events import ChildEvent, ErrorEvent, Event, ItemEvent, ProgressEvent, ResultEvent, StatusEvent
from protocol.terminal import visible
from runner.api import MAX_LINE, Line, Lines
from runner.ui.live.lines import fields_of
from runner.ui.visit import Write

KEEP_ALIVE_SECONDS: Final = 15.0
"""A silent stream sends a comment this often: proxies close a connection that is silent for a minute."""
_PAUSE_SECONDS: Final = 0.1
"""Between two messages, so that much output comes in few of them."""
_MAX_LINES: Final = 400
"""Lines in one message; of more, only the last ones are sent, and the page loads the others when they are looked at."""
_MAX_TEXT: Final = 200


@define
class Feed:
    """Makes messages of events. `start` is the number of the first event that the page has not."""

    start: int
    _lines: Lines = field(factory=lambda: Lines(longest=MAX_LINE), init=False)
    _items: int = field(default=0, init=False)

    def message(self, events: Iterable[Event | LeftEvent]) -> bytes:
        """Return the message for some events, b"" if the page need not hear of them."""
        changed: dict[tuple[int, int], Line] = {}
        told: dict[str, Any] = {}
        last = -1
        for event in events:
            last = event.seq
            found = [] if isinstance(event, LeftEvent) else self._lines.add(event)
            self._items += isinstance(event, ItemEvent)
            if last < self.start:
                continue
            changed |= {line.spot: line for line in found}
            match event:
                case StatusEvent() | ChildEvent():
                    told["changed"] = True
                case ItemEvent():
                    told["items"] = self._items
                case ProgressEvent():
                    told["progress"] = progress_fields(event)
                case ResultEvent() | ErrorEvent() | LeftEvent():
                    told["ended"] = True
        if last < self.start or not (changed or told):
            return b""
        self._lines.settle()
        lines = sorted(changed.values(), key=lambda line: line.spot)
        if lines:
            told["skipped"] = max(0, len(lines) - _MAX_LINES)
            told["lines"] = fields_of(lines[-_MAX_LINES:])
        return b"id: %d\nevent: news\ndata: %b\n\n" % (last, msgspec.json.encode(told))


def progress_fields(event: ProgressEvent) -> dict[str, Any]:
    """Return the progress for templates and the script of the page."""
    return {"done": event.done, "total": event.total, "text": visible(event.text[:_MAX_TEXT])}


async def send_news(follower: Follower, start: int, write: Write) -> None:
    """Send the messages of an execution from event `start` on, until its end. Raises RunnerError."""
    feed = Feed(start)
    await write(b"retry: 1000\n\n")
    while True:
        events: tuple[Event | LeftEvent, ...] | None = ()
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            events = await follower.next()
        if events is None:
            return
        if message := feed.message(events):
            await write(message)
            await trio.sleep(_PAUSE_SECONDS)
        elif not events:
            await write(b": still here\n\n")


def failed(failure: Failure) -> bytes:
    """Return the last message of a stream that ends before its execution, such as at the end of the session."""
    return b"event: refused\ndata: %b\n\n" % msgspec.json.encode({"kind": failure.kind, "message": failure.message})
