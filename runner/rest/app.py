"""The REST application: the endpoints on the runner itself, and all endpoints on their routes.

Executing, preparing, streams and websockets are served as plain ASGI, ahead of quart; quart serves the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from protocol.errors import PROBLEM, ErrorKind, Failure, RunnerError, shutting_down
from runner.api import Service
from runner.auth import Verifier
from runner.http import WEBSOCKET, BodyTooLargeError, Front, Message, Receive, Route, Send, problem_body
from runner.rest import batch, executions, metrics, modules, streams
from runner.rest.endpoint import Answer, Endpoint, Endpoints, Request, json_answer, problem, serves, transmit
from runner.rest.openapi import OPERATIONS, Documents, docs_page, served
from runner.version import release

_AHEAD: Final = (*batch.ENDPOINTS, executions.execute, modules.prepare, *streams.ENDPOINTS)
"""Served ahead of quart, in this order: the path of `execute` begins like that of a batch."""
HEALTH_PATHS: Final = frozenset(each.path for each in OPERATIONS if each.name in {"getHealth", "getReadiness"})
"""Answered also when the door is full."""
_BEHIND: Final = tuple(
    each for each in (*executions.ENDPOINTS, *modules.ENDPOINTS, *metrics.ENDPOINTS) if each not in _AHEAD
)


def make_app(service: Service, verifier: Verifier) -> Front:
    """Return the ASGI application of all REST routes."""
    endpoints = Endpoints(service, verifier)
    routes = [*map(endpoints.route, _AHEAD), Route(WEBSOCKET, "", _no_websocket)]
    return Front(_behind(endpoints), routes)


def _behind(endpoints: Endpoints) -> QuartTrio:
    """Return the quart application."""
    settings = endpoints.service.settings.server
    app = QuartTrio("runner.rest", static_folder=None)
    app.url_map.merge_slashes = False  # a redirect would lead to the `Host` that the request names
    app.config["MAX_CONTENT_LENGTH"] = settings.max_frame_bytes
    app.config["BODY_TIMEOUT"] = None  # the connection enforces `body_timeout`
    operations = {operation.name: operation for operation in served(settings)}
    for endpoint in (*_BEHIND, *_server_endpoints(endpoints.service)):
        operation = operations.get(endpoint.operation.name)
        if operation is not None:
            view = _view(endpoints, Endpoint(operation, endpoint.function))
            app.add_url_rule(operation.rule, operation.name, view, methods=[operation.method])
    for operation in OPERATIONS:
        if operation.method == WEBSOCKET:
            app.add_url_rule(operation.rule, operation.name, _upgrade_required, methods=["GET"])
    app.register_error_handler(HTTPException, _framework_problem)
    return app


def _view(endpoints: Endpoints, endpoint: Endpoint) -> Callable[..., Awaitable[Response]]:
    """Return an endpoint as a view of quart."""

    async def view(**names: str) -> Response:
        scope: Message = dict(request.scope)
        answer = await endpoints.serve(endpoint, names, scope, _no_receive, _read_body)
        if not isinstance(answer, Answer):
            raise TypeError(f"quart does not serve streams: {endpoint.operation.path}")
        return _response(answer)

    return view


async def _read_body() -> bytes:
    try:
        body = await request.get_data(as_text=False)
    except RequestEntityTooLarge:
        limit = request.max_content_length
        raise BodyTooLargeError(f"the body is over {limit} bytes") from None
    return body if isinstance(body, bytes) else body.encode()


async def _no_receive() -> Message:
    raise RuntimeError("quart reads the body")


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, content_type=None if answer.status == 204 else answer.content_type)
    for name, value in answer.headers:
        response.headers[name.decode()] = value.decode()
    return response


async def _upgrade_required(**_names: str) -> Response:
    upgrade = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))
    return _response(
        _status_problem(426, f"{request.path} is a websocket; open it with a websocket handshake", upgrade)
    )


async def _framework_problem(found: HTTPException) -> Response:
    """Return what quart refuses (unknown path, wrong method) in the form of every problem."""
    status = found.code or 500
    allowed = sorted(getattr(found, "valid_methods", None) or ())
    details = {
        404: f"there is no {request.path}; /docs lists all paths",
        405: f"{request.method} is not possible at {request.path}; allowed: {', '.join(allowed)}",
    }
    headers = tuple((b"allow", value.encode()) for name, value in found.get_headers() if name.lower() == "allow")
    return _response(_status_problem(status, details.get(status) or found.description or found.name, headers))


def _status_problem(status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...]) -> Answer:
    """Return a problem that has a status of HTTP and no kind."""
    return Answer(problem_body(status, detail), status, PROBLEM, headers)


async def _no_websocket(scope: Message, receive: Receive, send: Send) -> None:
    """Refuse the handshake of a websocket at a path that has none."""
    paths = " and ".join(each.path for each in OPERATIONS if each.method == WEBSOCKET)
    text = f"there is no websocket at {scope['path']}; there are {paths}"
    await transmit(problem(Failure(ErrorKind.NOT_FOUND, text)), scope, receive, send)


def _server_endpoints(service: Service) -> tuple[Endpoint, ...]:
    documents = Documents(service.registry, release(), served(service.settings.server))

    @serves("getDocument")
    async def document(request: Request) -> Answer:
        headers = ((b"cache-control", b"no-cache"), (b"vary", b"authorization"))
        return Answer(documents.get(request.caller), headers=headers)

    return _environments, _health, _readiness, document, _docs


@serves("listEnvironments")
async def _environments(request: Request) -> Answer:
    return json_answer({"items": request.service.environments(request.principal)})


@serves("getHealth")
async def _health(request: Request) -> Answer:
    del request
    return json_answer({"status": "ok"})


@serves("getReadiness")
async def _readiness(request: Request) -> Answer:
    if request.service.runs.stopping:
        raise RunnerError(shutting_down())
    registry = request.service.registry
    damaged = {"damaged": ["code"]} if registry.damaged else {}  # no names of modules: this route needs no token
    return json_answer({"status": "ready", "modules": len(registry.snapshot.modules), **damaged})


@serves("getDocs")
async def _docs(request: Request) -> Answer:
    del request
    html, headers = docs_page()
    return Answer(html, content_type="text/html; charset=utf-8", headers=headers)
