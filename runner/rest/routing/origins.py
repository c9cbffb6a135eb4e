"""Web sites that may use the server from a browser (CORS): the headers of answers, preflights, and websockets.

A token is sent by the code of a page, never by the browser itself, so no answer allows credentials.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import define, field

from runner.http import Message, Send
from runner.rest.openapi import Operation

_MAX_AGE: Final = b"600"
"""How long a browser may remember a preflight, in seconds."""
_REQUEST: Final = ("Authorization", "Content-Type", "Content-Encoding", "X-API-Key")
_ANSWER: Final = ("Accept-Encoding", "Allow", "Retry-After", "WWW-Authenticate", "X-Request-Id", "Preference-Applied")


@define(eq=False)
class Origins:
    """The origins of the setting `cors_origins`."""

    allowed: frozenset[str]
    operations: tuple[Operation, ...]
    _request: bytes = field(init=False)
    """The headers that pages may send."""
    _answer: bytes = field(init=False)
    """The headers that pages may read."""

    @classmethod
    def of(cls, allowed: Iterable[str], operations: Iterable[Operation]) -> Origins:
        """Return the origins of the settings, with the headers of the table."""
        return cls(frozenset(allowed), tuple(operations))

    @_request.default
    def _request_headers(self) -> bytes:
        names = {each.name for op in self.operations for each in op.parameters if each.place == "header"}
        return ", ".join(sorted({*names, *_REQUEST})).encode()

    @_answer.default
    def _answer_headers(self) -> bytes:
        names = {header.name for op in self.operations for answer in op.answers for header in answer.headers}
        return ", ".join(sorted({*names, *_ANSWER})).encode()

    def allows(self, origin: str) -> bool:
        """Return whether pages of an origin may use the server."""
        return "*" in self.allowed or origin.lower() in self.allowed

    def wrap(self, origin: bytes | None, send: Send) -> Send:
        """Return a `send` that adds the headers of CORS to an answer."""
        if not self.allowed:
            return send
        every = "*" in self.allowed
        added = [] if every else [(b"vary", b"origin")]
        if origin is not None and self.allows(origin.decode("latin-1")):
            added.append((b"access-control-allow-origin", b"*" if every else origin))
            added.append((b"access-control-expose-headers", self._answer))

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        return sent

    def preflight(self, methods: Iterable[str]) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers that allow a request with one of these methods; `wrap` adds the origin."""
        if not self.allowed:
            return ()
        return (
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", self._request),
            (b"access-control-max-age", _MAX_AGE),
        )

    def refuses_socket(self, origin: bytes, host: bytes) -> bool:
        """Return whether a page of `origin` may not open a websocket at `host`; its own site may.

        Browsers send websockets to every server, and leave this check to it. Without `cors_origins` every page may that
        shows a token.
        """
        return bool(self.allowed) and self.foreign(origin, host)

    def foreign(self, origin: bytes, host: bytes) -> bool:
        """Return whether an origin is neither that of the server at `host` nor one of the setting."""
        text = origin.decode("latin-1")
        same = text.lower().partition("://")[2] == host.decode("latin-1").lower()
        return not same and not self.allows(text)
