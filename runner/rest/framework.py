"""The part of the REST application that quart serves. Importing this file imports quart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from protocol.errors import PROBLEM
from runner.http import WEBSOCKET, BodyTooLargeError, Message, problem_body
from runner.rest.endpoint import Answer, Endpoint, Endpoints
from runner.rest.openapi import OPERATIONS


def make_quart(endpoints: Endpoints, served: Iterable[Endpoint]) -> QuartTrio:
    """Return the quart application that serves these endpoints, and explains what no endpoint serves."""
    settings = endpoints.service.settings.server
    app = QuartTrio("runner.rest", static_folder=None)
    app.url_map.merge_slashes = False  # a redirect would lead to the `Host` that the request names
    app.config["MAX_CONTENT_LENGTH"] = settings.max_frame_bytes
    app.config["BODY_TIMEOUT"] = None  # the connection enforces `body_timeout`
    for endpoint in served:
        operation = endpoint.operation
        app.add_url_rule(operation.rule, operation.name, _view(endpoints, endpoint), methods=[operation.method])
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
