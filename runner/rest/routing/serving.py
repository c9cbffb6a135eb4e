"""Serving endpoints: the caller, the parameters by the table of operations, and the answer to an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

from attrs import evolve, frozen

from protocol.errors import ErrorKind, error
from runner.api import Service, failure_of
from runner.auth import SEVERAL, Principal, Verifier, authenticate, foreign_name, require
from runner.http import OUTSIDE, Message, Receive
from runner.rest.bodies import inflating
from runner.rest.endpoint import SHARE, Answer, Endpoint, Outcome, Read, Request, problem
from runner.rest.openapi import EXECUTE, Operation
from runner.rest.routing.origins import Origins
from runner.rest.routing.sending import BROKEN, SUBPROTOCOL
from runner.wire import LARGE_BYTES


@frozen
class Endpoints:
    """Serves the endpoints of one application."""

    service: Service
    verifier: Verifier
    origins: Origins

    async def serve(
        self,
        endpoint: Endpoint,
        names: dict[str, str],
        scope: Message,
        receive: Receive,
        read: Read | None = None,
    ) -> Outcome:
        """Return what an endpoint answers to a request; `names` are those in its path. Raises no Exception.

        `read` returns the body as it was sent, where the web framework reads it.
        """
        try:
            operation = endpoint.operation
            fields = fields_of(scope["headers"])
            caller = await self._caller(operation, scope, fields)
            values = _parameters(operation, names, scope["query_string"], fields)
            encoding = fields.get(b"content-encoding")
            if read is not None:
                receive = _given(read)
            inflated = encoding is not None and bool(operation.body)
            if encoding is not None and inflated:
                receive = inflating(receive, encoding.decode("latin-1"))
            request = Request(self.service, values, caller, scope, receive, fields, inflated)
            outcome = await endpoint.function(request)
            if isinstance(outcome, Answer) and len(outcome.body) > LARGE_BYTES and operation.method == "GET":
                self._bound(outcome, request)
        except Exception as found:  # noqa: BLE001  (the error edge)
            return problem(failure_of(found, BROKEN, path=scope["path"], client=_client(scope)))
        return _located(outcome, scope) if OUTSIDE in scope else outcome

    def _bound(self, answer: Answer, request: Request) -> None:
        """Take the memory of a large list or document, whose size was unknown before. Raises RunnerError."""
        if SHARE not in request.scope:
            self.service.answers.take(request.share, len(answer.body))

    async def _caller(self, operation: Operation, scope: Message, fields: Mapping[bytes, bytes]) -> Principal | None:
        """Return the caller where the operation needs one, or one is named. Raises RunnerError."""
        if not operation.token:
            return None
        shown, key = _credentials(scope, fields)
        if operation.scope is None and shown is None and key is None:
            return None if self._foreign_page(fields) else self.verifier.anonymous
        caller = await authenticate(self.verifier, shown, key)
        if caller is self.verifier.anonymous and (why := self._foreign_page(fields)):
            raise error(ErrorKind.FORBIDDEN, why)
        if operation.scope is not None:
            require(caller, operation.scope)
        return caller

    async def caller(self, scope: Message, fields: Mapping[bytes, bytes]) -> Principal:
        """Return the caller of a request that runs a module, by its token or key. Raises RunnerError."""
        caller = await self._caller(EXECUTE, scope, fields)
        assert caller is not None  # noqa: S101  (the operation needs one)
        return caller

    def _foreign_page(self, fields: Mapping[bytes, bytes]) -> str:
        """Return why a caller without a token may be a page of another web site, "" if not.

        A browser on a trusted network runs pages of sites that are not trusted. It names their origin, but not when
        their own name has been made to lead to this machine.
        """
        host, server = fields.get(b"host", b""), self.service.settings.server
        origin = fields.get(b"origin")
        if origin is not None and self.origins.foreign(origin, host):
            return f"pages of {origin.decode('latin-1')!r:.200} need a token; or add the site to `cors_origins`"
        if origin is None and fields.get(b"sec-fetch-site") in _FROM_ELSEWHERE and not self.origins.allows("*"):
            return "links, pictures and scripts in pages of other sites need a token; or open the address by itself"
        return foreign_name(host.decode("latin-1"), server)


_FROM_ELSEWHERE: Final = (b"cross-site", b"same-site")
"""A browser names no origin where it only follows a link or loads a picture, which may run an endpoint."""


def _credentials(scope: Message, fields: Mapping[bytes, bytes]) -> tuple[str | None, str | None]:
    """Return the authorization of a request: its header or, for browsers, the subprotocol of a websocket; and its key.

    Raises RunnerError `unauthenticated` for two of them: a proxy and the runner may not read different ones.
    """
    header, key = fields.get(b"authorization"), fields.get(b"x-api-key")
    shown = None if header is None else header.decode("latin-1")
    several = header is not None and b"," in header
    if scope["type"] == "websocket":
        tokens = [name.removeprefix(SUBPROTOCOL) for name in scope["subprotocols"] if name.startswith(SUBPROTOCOL)]
        several = several or len(tokens) + (header is not None) > 1
        shown = f"Bearer {tokens[0]}" if tokens else shown
    if several:
        raise error(ErrorKind.UNAUTHENTICATED, SEVERAL)
    return shown, None if key is None else key.decode("latin-1")


def fields_of(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by name. Repeated ones are joined, so that no value is silently ignored."""
    fields = dict(headers)
    if len(fields) < len(headers):
        fields = {}
        for name, value in headers:
            fields[name] = b"%b, %b" % (fields[name], value) if name in fields else value
    return fields


def _parameters(
    operation: Operation, names: dict[str, str], query: bytes, fields: Mapping[bytes, bytes]
) -> dict[str, Any]:
    """Return the values of all parameters. Raises RunnerError `bad_input`, which names the parameter at fault."""
    values = operation.defaults | names
    for field, parameter in operation.headers.items():
        if field in fields:
            values[parameter.name] = parameter.read([fields[field].decode("latin-1")])
    if query and not operation.any_query:
        for name, texts in parse_qs(query.decode("latin-1"), keep_blank_values=True).items():
            known = operation.query.get(name)
            if known is None:
                text = f"unknown parameter {name!r:.80}; allowed: {', '.join(operation.query) or 'none'}"
                raise error(ErrorKind.BAD_INPUT, text, field=name)
            values[name] = known.read(texts)
    return values


def _given(read: Read) -> Receive:
    """Return the `receive` of a body that the web framework reads as a whole."""

    async def receive() -> Message:
        return {"type": "http.request", "body": await read(), "more_body": False}

    return receive


def _client(scope: Message) -> str:
    """Return the address of a client for the log."""
    client = scope.get("client")
    return "" if client is None else str(client[0])


def _located(outcome: Outcome, scope: Message) -> Outcome:
    """Return an answer with its `Location` as a path for the client, where a proxy has removed a prefix of paths."""
    prefix = scope[OUTSIDE].prefix.encode()
    if not prefix or not isinstance(outcome, Answer):
        return outcome
    headers = tuple((name, prefix + value if name == b"location" else value) for name, value in outcome.headers)
    return evolve(outcome, headers=headers)
