"""The states of a connection, and the limits for clients in them."""

from __future__ import annotations

from enum import IntEnum

import attrs


@attrs.frozen(kw_only=True)
class HttpLimits:
    """How much of the server a client may use, and for how long. Those without a default are settings of the user."""

    keep_alive_seconds: float = attrs.field(validator=attrs.validators.gt(0))
    """Idle timeout: a connection between two requests is closed silently."""
    first_byte_seconds: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    """Idle timeout before the first request. Short, as clients connect in order to send; with `keep_alive_seconds`,
    silent connections could keep the door closed with little effort."""
    header_seconds: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))
    """From the first byte of a request head to its last, and for the TLS handshake; a slower head is answered 408."""
    body_seconds: float = attrs.field(validator=attrs.validators.gt(0))
    """From the end of the head to the end of the body, without the time that the handler leaves it unread; then 408."""
    send_seconds: float = attrs.field(validator=attrs.validators.gt(0))
    """A client that accepts no byte of a response for this long is cut off."""
    linger_seconds: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    """Time for a client to close after we did, so that a reset does not destroy the answer on its way."""
    graceful_seconds: float = attrs.field(default=5.0, validator=attrs.validators.ge(0))
    """At shutdown, running requests and sends have this time to end; then they are cancelled."""
    max_connections: int = attrs.field(validator=attrs.validators.gt(0))
    """For one connection above this number, the one that is idle longest is closed."""
    reserved_connections: int = attrs.field(default=32, validator=attrs.validators.gt(0))
    """When none of them is idle, this many more may ask for `reserved_paths`; other requests are answered 503."""
    reserved_paths: frozenset[str] = frozenset()
    """Paths of health checks."""
    max_body_bytes: int = attrs.field(validator=attrs.validators.gt(0))
    """A larger request body is answered 413 before the handler sees all of it, unless the handler streams it; a larger
    websocket message closes with 1009."""
    max_head_bytes: int = attrs.field(default=16 * 1024, validator=attrs.validators.gt(0))
    """A larger request head is answered 431."""


class State(IntEnum):
    """What a connection is doing. An IntEnum, because the hash of other members is computed in Python."""

    OPENING = 0
    """The TLS handshake, if any."""
    SILENT = 1
    """No byte of the first request has arrived."""
    IDLE = 2
    """No byte of a further request has arrived."""
    HEAD = 3
    """A request head is arriving."""
    BODY = 4
    """The handler runs, and the request body is arriving."""
    ANSWERING = 5
    """The handler runs, and its request is complete. Bytes that arrive belong to the next one, and are not parsed."""
    WEBSOCKET = 6
    """The handshake and the frames of a websocket."""
    LINGERING = 7
    """Our end of file is sent. Bytes that arrive are dropped."""
    CLOSED = 8
    """Nothing is read or written."""


_BEGINNING = (State.HEAD, State.BODY, State.ANSWERING, State.WEBSOCKET, State.LINGERING, State.CLOSED)
TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.OPENING: (State.SILENT, State.CLOSED),
    State.SILENT: _BEGINNING,
    State.IDLE: _BEGINNING,
    State.HEAD: _BEGINNING[1:],
    State.BODY: (State.ANSWERING, State.LINGERING, State.CLOSED),
    State.ANSWERING: (State.IDLE, State.LINGERING, State.CLOSED),
    State.WEBSOCKET: (State.LINGERING, State.CLOSED),
    State.LINGERING: (State.CLOSED,),
    State.CLOSED: (),
}
TIME_LIMITS = {
    State.OPENING: "header_seconds",
    State.SILENT: "first_byte_seconds",
    State.IDLE: "keep_alive_seconds",
    State.HEAD: "header_seconds",
    State.BODY: "body_seconds",
    State.LINGERING: "linger_seconds",
}
"""The limit of `HttpLimits` for reading in a state; an answer has none, and a websocket looks after itself."""
IDLE = (State.OPENING, State.SILENT, State.IDLE, State.HEAD)
"""States without a request that a handler knows: the connection can be closed when others need its place."""
ENDING = (State.LINGERING, State.CLOSED)
"""States in which no request is parsed or begun."""


def step(state: State, following: State) -> State:
    """Return `following`. Raises RuntimeError when it does not follow `state`, which is a bug."""
    if following not in TRANSITIONS[state]:
        raise RuntimeError(f"a connection does not go from {state.name} to {following.name}")
    return following
