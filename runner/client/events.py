"""The events of an execution as a client has them: what they mean, and following them over lost connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec
import trio
from attrs import frozen

from protocol import views
from protocol.errors import ErrorKind, Failure, RunnerError, shutting_down
from protocol.events import (
    DroppedEvent,
    Error,
    ErrorEvent,
    ItemEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    StatusEvent,
)
from runner.client.connection import Client, printable, segment
from runner.client.socket import NORMAL, RESTART, TOO_LARGE, Socket
from runner.client.trouble import lost, not_a_runner

PATIENCE_SECONDS = 60.0
"""How long a runner may be away before nobody waits for it any more."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_AWAY = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.LOST, ErrorKind.SHUTDOWN, ErrorKind.OVERLOADED})
"""What a runner that is being restarted looks like."""


class Begun(msgspec.Struct, frozen=True, tag="execution"):
    """The first message of a call: the execution that it is."""

    id: str


class Refused(msgspec.Struct, frozen=True, tag="error"):
    """The only message of a call that never began."""

    error: msgspec.Raw


Message: TypeAlias = (
    Begun | StatusEvent | OutputEvent | ItemEvent | ProgressEvent | DroppedEvent | ResultEvent | ErrorEvent
)
Show: TypeAlias = Callable[[Message], Awaitable[None]]

ANSWER: Final = views.lenient(views.Execution)
"""How the answer to a call is decoded."""
_FAILURE: Final = views.lenient(Error)
_messages: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_refusals = msgspec.json.Decoder(Refused)
_types = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KNOWN = frozenset(str(kind.__struct_config__.tag) for kind in Message.__args__)


@frozen
class End:
    """How an execution ended: with JSON as bytes, or with a failure."""

    result: bytes | None = None
    failure: Failure | None = None


def decode(data: bytes) -> Message | None:
    """Return what a message says, None for one of a later runner. Raises RunnerError for a refusal, DecodeError."""
    try:
        return _messages.decode(data)
    except msgspec.ValidationError:
        fields = _types.decode(data)
        if bytes(fields.get("type", msgspec.Raw(b"null"))).strip(b'"').decode() not in _KNOWN:
            return None
        if "error" in fields and "seq" not in fields:
            raise RunnerError(failure_in(msgspec.json.decode(_refusals.decode(data).error, type=_FAILURE))) from None
        raise


def failure_in(fields: Error) -> Failure:
    """Return the failure that a runner reported; a kind that is not known here is `internal`."""
    kind = ErrorKind(fields["kind"]) if fields["kind"] in set(ErrorKind) else ErrorKind.INTERNAL
    message = printable(fields.get("message", ""))
    return Failure(kind, message, fields.get("type"), fields.get("traceback"), fields.get("field"))


def end_of(event: ResultEvent | ErrorEvent) -> End:
    """Return the end that a last event says. Raises msgspec.DecodeError."""
    if isinstance(event, ResultEvent):
        return End(result=bytes(event.result))
    return End(failure=failure_in(msgspec.json.decode(event.error, type=_FAILURE)))


def end_in(execution: views.Execution) -> End | None:
    """Return the end of an execution, None while it has none."""
    if execution["status"] in ("queued", "running"):
        return None
    failure = execution.get("error")
    if failure is not None:
        return End(failure=failure_in(failure))
    return End(result=bytes(execution["result"]))


async def read_events(client: Client, socket: Socket, show: Show) -> End | None:
    """Show the events of a websocket and return the end of the execution, None when it was closed before that.

    Raises RunnerError for a refusal, and for what is no event.
    """
    while (data := await socket.receive()) is not None:
        try:
            event = decode(data)
            if isinstance(event, ResultEvent | ErrorEvent):
                return end_of(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise not_a_runner(client.address, "a message cannot be read") from None
        if event is not None:
            await show(event)
    return None


async def follow(client: Client, identity: str, start: int, show: Show, again: Callable[[], None]) -> End:
    """Show the events of an execution from number `start` on, and return how it ended.

    After a lost connection it goes on with the number after the last one, so nothing comes twice and nothing is left
    out; `again` is called first. Raises RunnerError: what the first connection meets, what the runner refuses, and
    `unavailable` or `lost` when the runner was away for `PATIENCE_SECONDS`.
    """
    place = _Place(start)

    async def shown(event: Message) -> None:
        if not isinstance(event, Begun):
            place.next = event.seq + 1
        place.heard()
        await show(event)

    while True:
        try:
            end = await _once(client, identity, place, shown)
        except RunnerError as problem:
            if problem.failure.kind not in _AWAY or not place.connected:
                raise
            if trio.current_time() - place.heard_at > PATIENCE_SECONDS:
                raise
        else:
            if end is not None:
                return end
        again()
        await trio.sleep(place.pause)
        place.pause = min(2 * place.pause, _LONGEST_PAUSE)


class _Place:
    """How far a reader is, and when it last heard of the runner."""

    def __init__(self, start: int) -> None:
        self.next = start
        self.connected = False
        self.heard()

    def heard(self) -> None:
        self.heard_at = trio.current_time()
        self.pause = _FIRST_PAUSE


async def _once(client: Client, identity: str, place: _Place, show: Show) -> End | None:
    """Follow until the end or until the connection is lost, which is None."""
    path = f"/executions/{segment(identity)}/stream"
    async with client.socket(path, query={"from": place.next}) as socket:
        place.connected = True
        end = await read_events(client, socket, show)
        if end is not None or socket.code != NORMAL:
            return end
    # It had ended before the number that was asked for.
    answer = await client.request("GET", f"/executions/{segment(identity)}")
    return end_in(answer.read(ANSWER))


def cut_off(client: Client, socket: Socket, identity: str | None, module: str) -> RunnerError:
    """Return the error for a call whose websocket was closed before its end."""
    if socket.code == TOO_LARGE and identity is None:
        text = "the input is too large for the runner; the limit is its `max_frame`"
        return RunnerError(Failure(ErrorKind.TOO_LARGE, text, field="$"))
    why = shutting_down().message if socket.code == RESTART else f"the websocket was closed with {socket.code}"
    return told_where(lost(client.address, why), identity, module)


def told_where(problem: RunnerError, identity: str | None, module: str) -> RunnerError:
    """Return the same error with how to look at the execution that may go on."""
    failure = problem.failure
    if identity is None:
        where = f"whether the call began is not known: `operato-runner executions list --module {module}`"
    else:
        where = f"execution {identity} may go on: `operato-runner executions show {identity}`"
    return RunnerError(Failure(failure.kind, f"{failure.message}; {where}"))
