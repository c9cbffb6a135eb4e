"""The face of the room."""

from runner.http.exchange import Message
from runner.http.server import (
    WEBSOCKET,
    BodyError,
    BodyTooLargeError,
    ClientGoneError,
    Front,
    Handler,
    HttpLimits,
    Receive,
    Route,
    Send,
    read_body,
    respond,
    serve,
    stream_body,
)

__all__ = [
    "WEBSOCKET",
    "BodyError",
    "BodyTooLargeError",
    "ClientGoneError",
    "Front",
    "Handler",
    "HttpLimits",
    "Message",
    "Receive",
    "Route",
    "Send",
    "read_body",
    "respond",
    "serve",
    "stream_body",
]
