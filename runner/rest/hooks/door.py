"""`Hooks`: the requests of endpoints, from the route to the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import trio
from attrs import define, evolve, frozen

from actors.events import EventLog, Follower
from actors.executions import Delivery
from actors.files import StoredFile, Viewer
from actors.registry import Route
from actors.workers import look_up_named
from config.modules import PREFIX, Auth, Signature
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Execution
from runner.api import Service, failure_of, is_large
from runner.auth import Principal, Scope
from runner.http import Message, Receive, Send
from runner.rest.bodies import inflating
from runner.rest.endpoint import Answer, Download, Headers, Request, json_answer, problem
from runner.rest.files import file_answer
from runner.rest.hooks.incoming import read_body, request_json
from runner.rest.hooks.outgoing import NOSNIFF, TEXT, Reply, file_name, file_type, is_error, reply_of, shown_failure
from runner.rest.hooks.signatures import Checked, check
from runner.rest.hooks.stream import ItemStream
from runner.rest.render import accepted_json
from runner.rest.routing import BROKEN, Endpoints, Origins, fields_of, nothing_at, other_method, transmit

_SANDBOX: Final = (
    b"content-security-policy",
    b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts",
)


@frozen
class _Call:
    """One request that may run its module."""

    route: Route
    request: Request
    caller: Principal
    data: bytes
    """The input."""
    delivery: str | None
    """The id of the message, by which it is run once."""

    @property
    def stranger(self) -> bool:
        """Whether the caller has neither token nor key: it may not know why something failed, nor store large files."""
        return _is_open(self.route)


@define(eq=False)
class Hooks:
    """The ASGI application of all endpoints."""

    endpoints: Endpoints
    origins: Origins
    beside_pages: bool = False
    """Whether the dashboard has the same origin: no page of a module may act in the name of its readers."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one request. Its handler is cancelled when the client disconnects, unless the request has an id."""
        if self.beside_pages:
            send = _in_sandbox(send)
        routes = self.endpoints.service.registry.snapshot.routes
        found = routes.find(scope["raw_path"][len(PREFIX) :].decode("latin-1"))
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        chosen = next((each for each in found if method in each[0].endpoint.methods), None)
        if chosen is not None:
            answer = await self._serve(*chosen, scope, receive, send)
        elif found:
            given = {str(method) for route, _ in found for method in route.endpoint.methods}
            allowed = sorted(given | ({"HEAD"} if "GET" in given else set()) | {"OPTIONS"})
            answer = other_method(scope, allowed, self.origins)
        else:
            answer = nothing_at(scope["path"])
        if answer is not None:
            await transmit(answer, scope, receive, send)

    async def _serve(
        self, route: Route, names: Mapping[str, str], scope: Message, receive: Receive, send: Send
    ) -> Answer | Download | None:
        """Return the answer to a request, None if its pieces have been sent. Raises no Exception."""
        try:
            call = await self._call(route, names, scope, receive)
            return await (_run(call, send) if route.endpoint.wait else _accept(call))
        except Exception as found:  # noqa: BLE001  (the error edge)
            failure = failure_of(found, BROKEN, path=scope["path"], module=route.module.ref.name)
            return _refused(route, failure)

    async def _call(self, route: Route, names: Mapping[str, str], scope: Message, receive: Receive) -> _Call:
        """Return a request whose caller or signature was checked. Raises RunnerError."""
        service, endpoint = self.endpoints.service, route.endpoint
        fields = fields_of(scope["headers"])
        caller = await self._caller(route, scope, fields)
        encoding = fields.get(b"content-encoding")
        inflate = partial(inflating, encoding="" if encoding is None else encoding.decode("latin-1"))
        delivery = None
        if endpoint.signature is not None:
            sent = await Request(service, {}, caller, scope, receive, fields).body()
            checked = await _check(service, route, endpoint.signature, fields, sent)
            if checked.refusal is not None:
                service.signatures_refused[checked.refusal] += 1
                text = f"the signature of the request is {checked.refusal}"
                raise error(ErrorKind.UNAUTHENTICATED, text)
            delivery, receive = checked.delivery, _again(sent)
        inflated = encoding is not None
        request = Request(service, {}, caller, scope, inflate(receive) if inflated else receive, fields, inflated)
        body = await read_body(request, caller, large=not _is_open(route))
        data = request_json(scope, names, body, inflated=inflated)
        return _Call(route, request, caller, data, delivery)

    async def _caller(self, route: Route, scope: Message, fields: Mapping[bytes, bytes]) -> Principal:
        """Return the caller. Raises RunnerError `unauthenticated` or `forbidden`."""
        name, endpoint = route.module.ref.name, route.endpoint
        if _is_open(route):
            return Principal(f"endpoint {endpoint.path}", frozenset({Scope.EXECUTIONS_RUN}), (name,))
        caller = await self.endpoints.caller(scope, fields)
        if not caller.may_use(name):
            raise error(ErrorKind.NOT_FOUND, f"there is no endpoint at {scope['path']}")
        if endpoint.auth is Auth.KEY and caller.key is None:
            text = "this endpoint needs an API key: send it as `X-API-Key`, or as `Authorization: Bearer opk_...`"
            raise error(ErrorKind.UNAUTHENTICATED, text)
        return caller


def _in_sandbox(send: Send) -> Send:
    """Return a `send` that gives every answer an origin of its own in a browser, besides the policy of its handler."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), _SANDBOX]}
        await send(message)

    return sent


def _is_open(route: Route) -> bool:
    """Return whether callers of an endpoint have neither token nor key."""
    return route.endpoint.auth in (Auth.NONE, Auth.SIGNATURE)


async def _check(
    service: Service, route: Route, signature: Signature, fields: Mapping[bytes, bytes], body: bytes
) -> Checked:
    """Check the signature of a body as it was sent: a long one in a thread. Raises RunnerError `unavailable`."""
    look_up = service.runs.attempts.secrets
    secrets = await look_up_named(route.module.spec, look_up, signature.secret, quickly=True)
    now = time.time()
    return await service.checks.whole(lambda data: check(signature, secrets.values(), fields, data, now), body)


def _again(body: bytes) -> Receive:
    """Return the `receive` of a body that has been read."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _accept(call: _Call) -> Answer:
    """Accept an execution."""
    delivery = None if call.delivery is None else Delivery(call.delivery, lambda _: False)
    name = call.route.module.ref.name
    execution = await call.request.service.submit(call.caller, name, call.data, key=delivery)
    location = f"{call.request.outside.prefix}/executions/{execution.id}".encode()
    shown = b'{"id":"%b"}' % execution.id.encode() if call.stranger else accepted_json(execution)
    return json_answer(shown, 202, (*_own(execution.id), (b"location", location)))


async def _run(call: _Call, send: Send) -> Answer | Download | None:
    """Run an execution; return its answer, None if that was sent in pieces. Raises RunnerError."""
    service, name = call.request.service, call.route.module.ref.name
    delivery = None if call.delivery is None else Delivery(call.delivery, _is_refused)
    stream: ItemStream | None = None
    failure: RunnerError | None = None
    async with trio.open_nursery() as nursery:

        def begin(identity: str, log: EventLog) -> None:
            nonlocal stream
            stream = ItemStream(call.request, send, _own(identity), partial(_find, call))
            nursery.start_soon(stream.run, Follower(log), nursery.cancel_scope)

        try:
            execution = await service.execute(call.caller, name, call.data, key=delivery, on_item=begin)
        except RunnerError as problem:  # caught here, as the nursery would wrap it in a group
            failure = problem
    if stream is not None and stream.begun:
        return None
    failure = failure if stream is None or stream.problem is None else stream.problem
    if failure is not None:
        raise failure
    if is_large(execution):
        execution = await service.answers.ended(call.request.share, execution)
    return await _answer(call, execution)


async def _answer(call: _Call, execution: Execution) -> Answer | Download:
    """Return the answer for an execution that has ended."""
    try:
        if execution.failure is not None:
            raise RunnerError(execution.failure)  # noqa: TRY301  (one edge for failures of user code)
        # Where the history keeps no result, another delivery of the message has an answer without a body.
        result = execution.result
        reply = Reply() if result is None else await call.request.service.checks.whole(reply_of, result)
        headers = (*reply.headers, *_own(execution.id))
        if reply.file is not None:
            stored = await _find(call, reply.file, reply.content_type)
            return file_answer(call.request, stored, status=reply.status, headers=headers)
    except RunnerError as problem:
        return _refused(call.route, problem.failure, execution)
    if not any(name == NOSNIFF[0] for name, _ in headers):
        headers = (*headers, NOSNIFF)
    return Answer(reply.body, reply.status, reply.content_type or TEXT, headers)


async def _find(call: _Call, file: Mapping[str, Any], content_type: str | None = None) -> StoredFile:
    """Return a file that an answer names, with its name and type there. Raises RunnerError.

    An answer may be made of what a stranger sent, so it has no files but those of its module's executions.
    """
    identity, viewer = str(file.get("id")), Viewer("", (call.route.module.ref.name,))
    stored = await call.request.service.files.find(identity, viewer)
    if stored is None:
        text = f"the response names the file {identity[:100]}, which does not belong to its module"
        raise error(ErrorKind.BAD_OUTPUT, text, field="$.file")
    return evolve(stored, name=file_name(file, stored.name), type=content_type or file_type(file, stored.type))


def _own(execution: str) -> Headers:
    return ((b"x-execution-id", execution.encode()),)


def _refused(route: Route, failure: Failure, execution: Execution | None = None) -> Answer:
    """Return the problem of a request that failed. A signature is no scheme of `WWW-Authenticate`."""
    stranger = _is_open(route)
    name = None if execution is None else execution.id
    answer = problem(shown_failure(failure, stranger=stranger, execution=name))
    headers = tuple(each for each in answer.headers if not stranger or each[0] != b"www-authenticate")
    return evolve(answer, headers=(*headers, *(() if execution is None else _own(execution.id))))


def _is_refused(execution: Execution) -> bool:
    """Return whether the answer to an ended execution is an error, after which its message is delivered again."""
    return execution.failure is not None or is_error(execution.result or b"null")
