"""The HTTP/1.1 and websocket transport: serves an ASGI application to clients of any quality, within limits.

It knows nothing of modules and executions. The functions for bodies and responses are the short way for applications
that do without a web framework.
"""

from runner.http.asgi import (
    OUTSIDE,
    WEBSOCKET,
    App,
    BodyError,
    BodyTooLargeError,
    Outside,
    Receive,
    Send,
    read_body,
    respond,
    stream_body,
)
from runner.http.messages import Message, problem_body
from runner.http.server import serve
from runner.http.states import HttpLimits

__all__ = [
    "OUTSIDE",
    "WEBSOCKET",
    "App",
    "BodyError",
    "BodyTooLargeError",
    "HttpLimits",
    "Message",
    "Outside",
    "Receive",
    "Send",
    "problem_body",
    "read_body",
    "respond",
    "serve",
    "stream_body",
]
