"""The endpoints that follow an execution while it runs: by server-sent events and by websocket.

A reader pulls from the log of the execution, so a slow reader is only ever behind: one `dropped` event counts what it
missed. The connection cuts off a reader that takes nothing (`send_timeout`) or answers no ping.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec
import trio

from actors.events import Follower, LeftEvent
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.events import Event, encode
from runner.api import Answers
from runner.rest.endpoint import Answer, Close, Peer, Request, Socket, Stream, Write, serves
from runner.rest.render import failure_event

KEEP_ALIVE_SECONDS = 15.0
"""A silent stream sends a comment this often: proxies close a connection that is silent for a minute."""
STILL_HERE: Final = b": still here\n\n"
_INPUT_SECONDS = 60.0
"""The time that a client has for sending the input after it opened a websocket."""


@serves("followEvents")
async def follow(request: Request) -> Answer | Stream:
    """Follow an execution by server-sent events, from `Last-Event-ID` or `from`."""
    last = request["Last-Event-ID"]
    start = request["from"] if last is None else last + 1
    follower = await request.service.follow(request.principal, request["id"], start)
    if follower.ended:  # 204 stops a browser, which reconnects after the last event
        return Answer(status=204)

    answers = request.service.answers

    async def run(write: Write) -> None:
        await write(b"")
        while True:
            events: tuple[Event | LeftEvent, ...] | None = ()
            with trio.move_on_after(KEEP_ALIVE_SECONDS):
                events = await follower.next()
            if events is None:
                return
            share = answers.share()
            try:
                whole = await answers.turn_of(share, events)
                await write(b"".join(map(_sse, whole)) if whole else STILL_HERE)
            finally:
                share.give()

    return Stream(run, _failed)


def _failed(failure: Failure) -> bytes:
    """Return the last event of a stream that ends before its execution: it has no number, and no `id`."""
    return b"event: error\ndata: %s\n\n" % failure_event(failure)


def _sse(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, _type(event).encode(), encode(event))


def _type(event: Event) -> str:
    return str(type(event).__struct_config__.tag)


@serves("followStream")
async def follow_socket(request: Request) -> Socket:
    """Follow an execution by websocket: one text message for each event."""
    follower = await request.service.follow(request.principal, request["id"], request["from"])

    async def run(peer: Peer) -> Close:
        await _converse(partial(_ignore, peer), follower, peer, request.service.answers)
        return _close(follower)

    return Socket(run)


@serves("stream")
async def run_socket(request: Request) -> Socket:
    """Run a module on the first message, and send its events; `{"type": "cancel"}` or a disconnect ends it."""
    service, principal = request.service, request.principal
    name, version = request["name"], request["version"]
    if request.header("idempotency-key") is not None:
        text = "a websocket has no idempotency key; submit the execution and follow it"
        raise error(ErrorKind.BAD_INPUT, text, field="Idempotency-Key")
    service.check_room(principal, name, version)  # for an HTTP answer, while that is possible

    async def run(peer: Peer) -> Close | None:
        data = await _input(peer)
        if data is None:
            return None
        identity, follower = await service.begin(principal, name, data, version=version, timeout=request["timeout"])

        async def listen(scope: trio.CancelScope) -> None:
            while (message := await peer.receive()) is not None:
                if _is_cancel(message):
                    service.abandon(identity, "cancelled on request")
            scope.cancel()

        try:
            await peer.send(msgspec.json.encode({"type": "execution", "id": identity}))
            await _converse(listen, follower, peer, service.answers)
        finally:
            service.abandon(identity)
        return _close(follower)

    return Socket(run)


class _Cancel(msgspec.Struct, tag="cancel"):
    """The one message that a client may send while its execution runs."""


_CANCEL_BYTES: Final = 1024
_cancel_decoder: Final = msgspec.json.Decoder(_Cancel)


def _is_cancel(message: bytes) -> bool:
    if len(message) > _CANCEL_BYTES:
        return False
    try:
        _cancel_decoder.decode(message)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


async def _input(peer: Peer) -> bytes | None:
    """Return the input; None: the client has gone. Raises RunnerError when it does not come in time."""
    with trio.move_on_after(_INPUT_SECONDS):
        return await peer.receive()
    raise error(ErrorKind.BAD_INPUT, f"the input was not sent within {_INPUT_SECONDS:g} s", field="$")


async def _ignore(peer: Peer, scope: trio.CancelScope) -> None:
    """Drop the messages of the client, so that its disconnect is noticed."""
    while await peer.receive() is not None:
        pass
    scope.cancel()


async def _converse(
    listen: Callable[[trio.CancelScope], Awaitable[None]], follower: Follower, peer: Peer, answers: Answers
) -> None:
    """Send events while `listen` reads; it ends both by the scope. Raises RunnerError."""
    problem = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, nursery.cancel_scope)
        try:
            await _send_events(follower, peer, answers)
        except RunnerError as ended:  # caught here, as the nursery would wrap it in a group
            problem = ended
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem


async def _send_events(follower: Follower, peer: Peer, answers: Answers) -> None:
    share = answers.share()
    while (events := await follower.next()) is not None:
        for event in events:
            try:
                for whole in await answers.turn_of(share, (event,)):
                    await peer.send(encode(whole))
            finally:
                share.give()


def _close(follower: Follower) -> Close:
    if follower.ended:
        return Close(1000, "the execution has ended")
    return Close(1012, f"{shutting_down().message}; follow it again")


ENDPOINTS: Final = (follow, follow_socket, run_socket)
