"""`Door`: the protocol over HTTP: one POST for each message, and one answer or stream for each request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import define, field

from protocol.errors import ErrorKind, Failure, error
from runner.api import Service, failure_of
from runner.auth import SEVERAL, Principal, Verifier, authenticate, foreign_name
from runner.http import App, BodyError, BodyTooLargeError, Message, Receive, Send, read_body, respond
from runner.mcp.exchange import Exchange, rpc_error
from runner.mcp.forms import (
    INVALID_REQUEST,
    Call,
    Params,
    RpcError,
    check_headers,
    error_message,
    is_modern,
    legacy_version,
    read_call,
    read_params,
)
from runner.mcp.methods import Methods, who
from runner.mcp.sessions import Session, Sessions
from runner.status import CODES

PATH: Final = "/mcp"
_SESSION: Final = b"mcp-session-id"
_ALLOWED: Final = b"POST, DELETE, OPTIONS"
_HEADERS: Final = (
    b"Authorization, Content-Type, X-API-Key, Idempotency-Key, "
    b"MCP-Protocol-Version, Mcp-Method, Mcp-Name, Mcp-Session-Id"
)
_STREAM: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # or Nginx would hold back what it passes on
)
_STILL_HERE: Final = b": still here\n\n"
Headers = tuple[tuple[bytes, bytes], ...]


@define(eq=False)
class _Reply:
    """The answer to one request: a stream from the first notification on, else JSON."""

    send: Send
    headers: Headers = ()
    begun: bool = field(default=False, init=False)

    async def notify(self, message: bytes) -> None:
        """Send one message of the stream. Waits while the client does not read."""
        await self._write(b"event: message\ndata: %b\n\n" % message, more=True)

    async def idle(self) -> None:
        """Send a comment: proxies close a connection that is silent for long."""
        await self._write(_STILL_HERE, more=True)

    async def finish(self, message: bytes, status: int) -> None:
        """Send the last message."""
        if self.begun:
            await self._write(b"event: message\ndata: %b\n\n" % message, more=False)
        else:
            await respond(self.send, status, message, self.headers)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not self.begun:
            self.begun = True
            head = [*_STREAM, *self.headers]
            await self.send({"type": "http.response.start", "status": 200, "headers": head})
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


@define(eq=False)
class Door:
    """The ASGI application of `PATH`."""

    service: Service
    verifier: Verifier
    methods: Methods = field(init=False)
    sessions: Sessions = field(factory=Sessions, init=False)

    def __attrs_post_init__(self) -> None:
        self.methods = Methods(self.service)

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one request. It is cancelled when the client disconnects."""
        fields = _fields(scope["headers"])
        try:
            if scope["method"] == "OPTIONS":
                await respond(send, 204, headers=((b"allow", _ALLOWED), *self._preflight(fields)))
                return
            if scope["method"] not in ("POST", "DELETE"):
                text = "the protocol takes POST here, and no stream is opened by GET"
                await _refuse(send, 405, RpcError(INVALID_REQUEST, text), ((b"allow", _ALLOWED),))
                return
            principal = await self._caller(fields)
            if scope["method"] == "DELETE":
                await self._end(fields, principal, send)
            else:
                await self._post(fields, principal, scope, receive, send)
        except RpcError as problem:
            await _refuse(send, problem.status, problem)
        except Exception as found:  # noqa: BLE001  (the error edge)
            failure = failure_of(found, "a request failed inside the runner", path=scope["path"])
            await _refuse(send, CODES[failure.kind].http, rpc_error(failure), _failure_headers(failure))

    async def _caller(self, fields: Mapping[bytes, bytes]) -> Principal:
        """Return the caller. Raises RunnerError."""
        host, origin = fields.get(b"host", b"").decode("latin-1"), fields.get(b"origin")
        if origin is not None and self._is_foreign(origin.decode("latin-1"), host):
            text = f"pages of {origin.decode('latin-1')!r:.200} may not call tools; add the site to `cors_origins`"
            raise error(ErrorKind.FORBIDDEN, text, field="origin")
        shown, key = fields.get(b"authorization"), fields.get(b"x-api-key")
        if shown is not None and b"," in shown:
            raise error(ErrorKind.UNAUTHENTICATED, SEVERAL)
        given = None if shown is None else shown.decode("latin-1")
        caller = await authenticate(self.verifier, given, None if key is None else key.decode("latin-1"))
        if caller is self.verifier.anonymous and (why := foreign_name(host, self.service.settings.server)):
            raise error(ErrorKind.FORBIDDEN, why)
        return caller

    def _is_foreign(self, origin: str, host: str) -> bool:
        """Return whether a page of this origin is of another site."""
        server = self.service.settings.server
        own = {host.lower(), urlsplit(server.external_url or "").netloc.lower()} - {""}
        allowed = {each.lower() for each in server.cors_origins}
        return origin.lower().partition("://")[2] not in own and not {"*", origin.lower()} & allowed

    def _preflight(self, fields: Mapping[bytes, bytes]) -> Headers:
        if not self.service.settings.server.cors_origins or b"access-control-request-method" not in fields:
            return ()
        return ((b"access-control-allow-methods", _ALLOWED), (b"access-control-allow-headers", _HEADERS))

    async def _end(self, fields: Mapping[bytes, bytes], principal: Principal, send: Send) -> None:
        """End a session, as its client asks."""
        name = fields.get(_SESSION, b"").decode("latin-1")
        await respond(send, 204 if self.sessions.close(name, who(principal)) else 404)

    async def _post(
        self, fields: Mapping[bytes, bytes], principal: Principal, scope: Message, receive: Receive, send: Send
    ) -> None:
        """Answer one message. Raises RpcError and RunnerError."""
        body = await self._body(fields, scope, receive)
        call = await self.service.checks.whole(read_call, body)
        size = len(body)
        del body
        try:
            params = await self.service.checks.sized(size, partial(read_params, call))
            modern = is_modern(params, fields)
            if modern:
                check_headers(call, params, fields)
            else:
                legacy_version(fields)
        except RpcError as problem:
            await respond(send, problem.status, error_message(call.id, problem))
            return
        session: Session | None = None
        headers: Headers = ()
        if not modern:
            session, headers = self._session(call, params, fields, principal)
        share = self.service.answers.share()
        reply = _Reply(send, headers)
        streams = b"text/event-stream" in fields.get(b"accept", b"")
        key = fields.get(b"idempotency-key")
        exchange = Exchange(
            call,
            params,
            principal,
            modern,
            share,
            reply.notify if streams else None,
            reply.idle if streams else None,
            session,
            None if key is None else key.decode("latin-1"),
        )
        if call.id is None:
            self.methods.hear(exchange)
            await respond(send, 202)
            return
        try:
            await reply.finish(*await self.methods.answer(exchange))
        finally:
            share.give()

    async def _body(self, fields: Mapping[bytes, bytes], scope: Message, receive: Receive) -> bytes:
        """Return the body. Raises RpcError and RunnerError."""
        kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" or b"content-encoding" in fields:
            text = "a message is sent as `Content-Type: application/json`, and not compressed"
            raise RpcError(INVALID_REQUEST, text, status=415)
        try:
            return await read_body(scope, receive, self.service.settings.server.max_frame_bytes)
        except BodyTooLargeError as problem:
            raise error(ErrorKind.TOO_LARGE, f"{problem}; the limit is `max_frame`", field="$") from None
        except BodyError as problem:
            raise error(ErrorKind.BAD_INPUT, str(problem), field="$") from None

    def _session(
        self, call: Call, params: Params, fields: Mapping[bytes, bytes], principal: Principal
    ) -> tuple[Session | None, Headers]:
        """Return the session of a request, a new one for `initialize`, and the headers with it. Raises RpcError."""
        if call.method == "initialize" and call.id is not None:
            name = self.sessions.open(who(principal), params.client)
            return self.sessions.find(name, who(principal)), ((_SESSION, name.encode()),)
        given = fields.get(_SESSION)
        if given is None:
            return None, ()
        found = self.sessions.find(given.decode("latin-1"), who(principal))
        if found is None:
            raise RpcError(INVALID_REQUEST, "the session is gone; send `initialize` again", status=404)
        return found, ()


def make_mcp(service: Service, verifier: Verifier) -> App:
    """Return the ASGI application that serves tools at `PATH`."""
    return Door(service, verifier)


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by name. Repeated ones are joined, so that no value is silently ignored."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        fields[name] = b"%b, %b" % (fields[name], value) if name in fields else value
    return fields


def _failure_headers(failure: Failure) -> Headers:
    if failure.kind is ErrorKind.UNAUTHENTICATED:
        return ((b"www-authenticate", b'Bearer realm="operato-runner"'),)
    return ()


async def _refuse(send: Send, status: int, problem: RpcError, headers: Headers = ()) -> None:
    """Answer a request whose message is not known."""
    await respond(send, status, error_message(None, problem), headers)
