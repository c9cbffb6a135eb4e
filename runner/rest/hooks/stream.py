"""The answer of a generator: its items as pieces of a body, sent as they come."""

from __future__ import annotations

from typing import Final

import msgspec
import trio
from attrs import define, field

from actors.events import Follower
from protocol.errors import RunnerError
from protocol.events import DroppedEvent, ErrorEvent, Event, ItemEvent, StatusEvent
from protocol.model import Status
from runner.api import Answers, failure_of
from runner.http import Send
from runner.rest.endpoint import Headers
from runner.rest.hooks.outgoing import TEXT, Reply, is_head, reply_of
from runner.rest.openapi import EVENTS
from runner.rest.routing import BROKEN

LINES: Final = "application/jsonl"
_texts: Final = msgspec.json.Decoder(str)


class CutError(Exception):
    """The rest of a body that has begun cannot be sent: the client gets an end that is not the end of the body."""


@define(eq=False)
class ItemStream:
    """Sends the items of one execution. The first one may be a response without a body: the head of the answer."""

    answers: Answers
    send: Send
    more: Headers
    """Headers of the runner."""
    begun: bool = field(default=False, init=False)
    """Whether the head may have left."""
    ended: bool = field(default=False, init=False)
    """Whether the whole body has left."""
    problem: RunnerError | None = field(default=None, init=False)
    """Why no answer could begin."""
    _events: bool = field(default=False, init=False)
    """Whether the body is of server-sent events."""

    async def run(self, follower: Follower, scope: trio.CancelScope) -> None:
        """Send all items; cancel `scope`, in which the generator runs, when they cannot be sent."""
        share = self.answers.share()
        try:
            while (events := await follower.next()) is not None:
                await self.answers.turn_of(share, events)
                body = b"".join([piece for event in events if (piece := await self._piece(event))])
                if body:
                    await self.send({"type": "http.response.body", "body": body, "more_body": True})
                share.give()
                del events, body
            if self.begun:
                await self.send({"type": "http.response.body", "body": b"", "more_body": False})
                self.ended = True
        except CutError:
            scope.cancel()
        except Exception as found:  # noqa: BLE001  (a bug too ends this answer only)
            self.problem = RunnerError(failure_of(found, BROKEN))
            scope.cancel()
        finally:
            share.give()

    async def _piece(self, event: Event) -> bytes:
        """Return the bytes for an event; the first item sends the head too. Raises CutError and RunnerError."""
        if isinstance(event, ItemEvent):
            item = bytes(event.value)
            if self.begun:
                return self._encoded(item)
            head = is_head(item)
            await self._begin(reply_of(item) if head else Reply(content_type=TEXT if item[:1] == b'"' else LINES))
            return b"" if head else self._encoded(item)
        again = isinstance(event, StatusEvent) and event.status is Status.RUNNING
        if self.begun and (again or isinstance(event, DroppedEvent | ErrorEvent)):
            raise CutError
        return b""

    async def _begin(self, head: Reply) -> None:
        """Send the head."""
        content_type = head.content_type or LINES
        self._events = content_type.partition(";")[0].strip().lower() == EVENTS
        named = {name for name, _ in head.headers}
        own = ((b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))  # or Nginx would hold items back
        headers = [(b"content-type", content_type.encode("latin-1")), *head.headers, *self.more]
        headers += [header for header in own if header[0] not in named]
        self.begun = True
        await self.send({"type": "http.response.start", "status": head.status, "headers": headers})

    def _encoded(self, item: bytes) -> bytes:
        """Return an item: text as it is, other values as a line of JSON or as an event."""
        if item[:1] == b'"':
            try:
                return _texts.decode(item).encode()
            except (msgspec.DecodeError, UnicodeError):
                raise CutError from None
        line = item.replace(b"\n", b" ")  # between values only: in strings a line end is written as two characters
        return b"data: %b\n\n" % line if self._events else line + b"\n"
