"""The events of an execution for a client: decoding them, and following them across lost connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec
import trio
from attrs import frozen

from protocol import views
from protocol.errors import ErrorKind, Failure, RunnerError, shutting_down
from protocol.events import (
    ChildEvent,
    DroppedEvent,
    Error,
    ErrorEvent,
    ItemEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    StatusEvent,
)
from runner.client.connection import Client, segment
from runner.client.socket import NORMAL, RESTART, TOO_LARGE, Socket
from runner.client.trouble import lost, not_a_runner
from runner.terminal import printable

PATIENCE_SECONDS = 60.0
"""How long `follow` waits for a runner to come back."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_AWAY = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.LOST, ErrorKind.SHUTDOWN, ErrorKind.OVERLOADED})
"""The error kinds seen while a runner restarts."""


class Begun(msgspec.Struct, frozen=True, tag="execution"):
    """The first message of a call, with the id of its execution."""

    id: str


class Refused(msgspec.Struct, frozen=True, tag="error"):
    """The only message of a refused call."""

    error: msgspec.Raw


Message: TypeAlias = (
    Begun | StatusEvent | OutputEvent | ItemEvent | ProgressEvent | ChildEvent | DroppedEvent | ResultEvent | ErrorEvent
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
    """The end of an execution: a result as JSON bytes, or a failure."""

    result: bytes | None = None
    failure: Failure | None = None


def decode(data: bytes) -> Message | None:
    """Return a message, None for an unknown type of a later runner. Raises RunnerError for a refusal, DecodeError."""
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
    """Return the failure in an answer; an unknown kind becomes `internal`."""
    kind = ErrorKind(fields["kind"]) if fields["kind"] in set(ErrorKind) else ErrorKind.INTERNAL
    message = printable(fields.get("message", ""))
    return Failure(kind, message, fields.get("type"), fields.get("traceback"), fields.get("field"))


def end_of(event: ResultEvent | ErrorEvent) -> End:
    """Return the end in a last event. Raises msgspec.DecodeError."""
    if isinstance(event, ResultEvent):
        return End(result=bytes(event.result))
    return End(failure=failure_in(msgspec.json.decode(event.error, type=_FAILURE)))


def end_in(execution: views.Execution) -> End | None:
    """Return the end of an execution, None while it has not ended."""
    if execution["status"] in ("scheduled", "queued", "running"):
        return None
    failure = execution.get("error")
    if failure is not None:
        return End(failure=failure_in(failure))
    return End(result=bytes(execution["result"]))


async def read_events(client: Client, socket: Socket, show: Show) -> End | None:
    """Show the events of a websocket; return the end of the execution, None if the websocket was closed earlier.

    Raises RunnerError for a refusal and for a message that is not an event.
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

    After a lost connection it calls `again` and continues with the next number, so no event is repeated or missing.
    Raises RunnerError: for a failed first connection, for a refusal, and `unavailable` or `lost` after
    `PATIENCE_SECONDS` without the runner.
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
    """The next event number of a reader, and when the last event came."""

    def __init__(self, start: int) -> None:
        self.next = start
        self.connected = False
        self.heard()

    def heard(self) -> None:
        self.heard_at = trio.current_time()
        self.pause = _FIRST_PAUSE


async def _once(client: Client, identity: str, place: _Place, show: Show) -> End | None:
    """Follow until the end, or until the connection is lost: then return None."""
    path = f"/executions/{segment(identity)}/stream"
    async with client.socket(path, query={"from": place.next}) as socket:
        place.connected = True
        end = await read_events(client, socket, show)
        if end is not None or socket.code != NORMAL:
            return end
    # The execution ended before event number `place.next`.
    answer = await client.request("GET", f"/executions/{segment(identity)}")
    return end_in(answer.read(ANSWER))


def cut_off(client: Client, socket: Socket, identity: str | None, module: str) -> RunnerError:
    """Return the error for a call whose websocket was closed before the end of the call."""
    if socket.code == TOO_LARGE and identity is None:
        text = "the input is too large for the runner; the limit is its `max_frame`"
        return RunnerError(Failure(ErrorKind.TOO_LARGE, text, field="$"))
    why = shutting_down().message if socket.code == RESTART else f"the websocket was closed with {socket.code}"
    return with_execution(lost(client.address, why), identity, module)


def with_execution(problem: RunnerError, identity: str | None, module: str) -> RunnerError:
    """Return the same error, with the command that shows the execution, which may still run."""
    failure = problem.failure
    if identity is None:
        hint = f"the call may have begun: `operato-runner executions list --module {module}`"
    else:
        hint = f"execution {identity} may still run: `operato-runner executions show {identity}`"
    return RunnerError(Failure(failure.kind, f"{failure.message}; {hint}"))
