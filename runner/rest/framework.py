"""The part of the REST application that quart serves. Importing this file imports quart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from protocol.errors import PROBLEM
from runner.http import BodyTooLargeError, Message, problem_body
from runner.rest.endpoint import Answer, Endpoint
from runner.rest.routing import FOUND, Endpoints


def make_quart(endpoints: Endpoints, served: Iterable[Endpoint]) -> QuartTrio:
    """Return the quart application that serves these endpoints.

    `Site` has found the operation of a request; here it is found again by its own path, with names in braces.
    """
    app = QuartTrio("runner.rest", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = endpoints.service.settings.server.max_frame_bytes
    app.config["BODY_TIMEOUT"] = None  # the connection enforces `body_timeout`
    for endpoint in served:
        operation = endpoint.operation
        app.add_url_rule(operation.path, operation.name, _view(endpoints, endpoint), methods=[operation.method])
    app.register_error_handler(HTTPException, _framework_problem)
    return app


def _view(endpoints: Endpoints, endpoint: Endpoint) -> Callable[..., Awaitable[Response]]:
    """Return an endpoint as a view of quart."""

    async def view() -> Response:
        inner: Message = dict(request.scope)
        scope, names = inner[FOUND]
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


async def _framework_problem(found: HTTPException) -> Response:
    """Return what quart refuses in the form of every problem."""
    status = found.code or 500
    return _response(Answer(problem_body(status, found.description or found.name), status, PROBLEM))
