"""The answer of a generator: its items as pieces of a body, sent as they come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
import trio
from attrs import define, field

from actors.events import Follower, LeftEvent
from actors.files import StoredFile
from protocol.errors import RunnerError
from protocol.events import DroppedEvent, ErrorEvent, Event, ItemEvent, StatusEvent
from protocol.model import Status
from runner.api import failure_of
from runner.http import Send
from runner.rest.endpoint import Download, Headers, Request
from runner.rest.files import file_answer
from runner.rest.hooks.outgoing import NOSNIFF, TEXT, Reply, file_of, is_head, reply_of
from runner.rest.openapi import EVENTS
from runner.rest.routing import BROKEN

LINES: Final = "application/jsonl"
_texts: Final = msgspec.json.Decoder(str)


class CutError(Exception):
    """The rest of a body that has begun cannot be sent: the client gets an end that is not the end of the body."""


@define(eq=False)
class ItemStream:
    """Sends the items of one execution. The first one may be a response without a body: the head of the answer."""

    request: Request
    send: Send
    more: Headers
    """Headers of the runner."""
    find: Callable[[Mapping[str, Any]], Awaitable[StoredFile]]
    """Returns a file that an item is. Raises RunnerError."""
    begun: bool = field(default=False, init=False)
    """Whether the head may have left."""
    ended: bool = field(default=False, init=False)
    """Whether the whole body has left."""
    problem: RunnerError | None = field(default=None, init=False)
    """Why no answer could begin."""
    _held: list[bytes] = field(factory=list, init=False)
    """Pieces that are to be sent together."""
    _events: bool = field(default=False, init=False)
    """Whether the body is of server-sent events."""

    async def run(self, follower: Follower, scope: trio.CancelScope) -> None:
        """Send all items; cancel `scope`, in which the generator runs, when they cannot be sent."""
        answers = self.request.service.answers
        share = answers.share()
        try:
            while (events := await follower.next()) is not None:
                whole = [event for event in events if not isinstance(event, LeftEvent)]  # the result is not sent
                await answers.turn_of(share, whole)
                for event in whole:
                    await self._take(event)
                await self._flush()
                share.give()
                del events, whole
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

    async def _take(self, event: Event) -> None:
        """Take the next event: an item is sent, soon; the first one sends the head. Raises CutError and RunnerError."""
        if isinstance(event, ItemEvent):
            item = bytes(event.value)
            if not self.begun and is_head(item):
                await self._begin(reply_of(item))
                return
            if not self.begun:
                await self._begin(Reply(content_type=TEXT if item[:1] == b'"' else LINES))
            if (file := file_of(item)) is None:
                self._held.append(self._encoded(item))
            else:
                await self._flush()
                await self._send_file(file)
            return
        again = isinstance(event, StatusEvent) and event.status is Status.RUNNING
        if self.begun and (again or isinstance(event, DroppedEvent | ErrorEvent)):
            raise CutError

    async def _flush(self) -> None:
        """Send what was taken."""
        body = b"".join(self._held)
        self._held.clear()
        if body:
            await self._write(body)

    async def _write(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def _send_file(self, file: Mapping[str, Any]) -> None:
        """Send the content of a file: bytes of a generator are one. Raises CutError and RunnerError."""
        answer = file_answer(self.request, await self.find(file), status=206)
        if isinstance(answer, Download) and answer.size:
            await answer.run(self._write)

    async def _begin(self, head: Reply) -> None:
        """Send the head."""
        content_type = head.content_type or LINES
        self._events = content_type.partition(";")[0].strip().lower() == EVENTS
        named = {name for name, _ in head.headers}
        own = (
            NOSNIFF,
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        )  # or Nginx would hold items back
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
