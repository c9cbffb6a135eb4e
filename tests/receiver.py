"""A receiver of notices for the tests: a small HTTP server that keeps what it gets, and answers as the test says."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio


@attrs.frozen
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> Any:
        return json.loads(self.body)


@attrs.define(eq=False)
class Receiver:
    """Listens on loopback. `answers` are statuses in order, the last one for ever; `hold` keeps answers back."""

    port: int
    answers: list[int] = attrs.field(factory=lambda: [204])
    got: list[Got] = attrs.field(factory=list)
    hold: trio.Event | None = None
    headers: list[tuple[str, str]] = attrs.field(factory=list)
    connections: int = 0
    _arrived: trio.Event = attrs.field(factory=trio.Event)

    def url(self, path: str = "/hook", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def wait(self, number: int = 1) -> list[Got]:
        """Return what came, once it is so much."""
        while len(self.got) < number:
            await self._arrived.wait()
        return self.got

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        link = h11.Connection(h11.SERVER)
        try:
            while await self._one(link, stream):
                link.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError, ssl.SSLError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _one(self, link: h11.Connection, stream: trio.abc.Stream) -> bool:
        request, body = None, b""
        while True:
            event = link.next_event()
            if event is h11.NEED_DATA:
                link.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request is not None
        headers = {name.decode(): value.decode() for name, value in request.headers}
        self.got.append(Got(request.target.decode(), headers, body))
        arrived, self._arrived = self._arrived, trio.Event()
        arrived.set()
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if self.hold is not None:
            await self.hold.wait()
        answer = h11.Response(status_code=status, headers=[("content-length", "0"), *self.headers])
        await stream.send_all(link.send(answer) + link.send(h11.EndOfMessage()))
        return True


@asynccontextmanager
async def receiving(context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    """Listen while the context is open."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        receiver = Receiver(listeners[0].socket.getsockname()[1])
        wrapped: list[Any] = [trio.SSLListener(each, context) for each in listeners] if context else list(listeners)
        serve: Callable[..., Any] = trio.serve_listeners
        nursery.start_soon(serve, receiver.serve, wrapped)
        try:
            yield receiver
        finally:
            if receiver.hold is not None:
                receiver.hold.set()
            nursery.cancel_scope.cancel()
