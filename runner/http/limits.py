"""The limits for clients of the HTTP server, and the hypercorn configuration that follows from them."""

from __future__ import annotations

import logging
import time

import attrs
from hypercorn.config import Config

from runner.http.messages import Headers


@attrs.frozen(kw_only=True)
class HttpLimits:
    """How much of the server a client may use, and for how long. Those without a default are settings of the user."""

    keep_alive_seconds: float = attrs.field(validator=attrs.validators.gt(0))
    """Idle timeout: a connection without a request is closed silently."""
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
    """Connections above this number are answered 503 and closed."""
    max_body_bytes: int = attrs.field(validator=attrs.validators.gt(0))
    """A larger request body is answered 413 before the handler sees all of it, unless the handler streams it; a larger
    websocket message closes with 1009."""
    max_head_bytes: int = attrs.field(default=16 * 1024, validator=attrs.validators.gt(0))
    """A larger request head is answered 431."""


class ServerConfig(Config):
    """The hypercorn configuration that follows from `HttpLimits`."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.errorlog = logging.getLogger("runner.http")
        self.include_server_header = False
        self.graceful_timeout = limits.graceful_seconds
        self.websocket_max_message_size = limits.max_body_bytes
        self._date: tuple[int, Headers] = (0, [])

    def response_headers(self, protocol: str) -> Headers:
        """Return the headers of every response; the date is rendered once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, super().response_headers(protocol))
        return self._date[1]
