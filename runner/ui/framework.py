"""The part of the dashboard that quart serves: pages and forms. Importing this file imports quart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, cast

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from protocol.errors import ErrorKind, error
from runner.http import App, Message
from runner.ui.posted import NOTHING, Posted, parse_posted
from runner.ui.visit import Headers, Reply, View

SERVED: Final = "operato.view"
"""The key, in the scope of a request, of the function that serves it: it gets the function that reads the form."""
Serve = Callable[[Callable[[], Awaitable[Posted]]], Awaitable[tuple[Reply, Headers]]]


def make_quart(views: Iterable[View], max_body_bytes: int) -> App:
    """Return the quart application of these views, each at its own path, with names in braces."""
    app = QuartTrio("runner.ui", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.config["BODY_TIMEOUT"] = None  # the connection enforces `body_timeout`
    for each in views:
        app.add_url_rule(each.path, f"{each.method} {each.path}", _serve, methods=[each.method])
    app.register_error_handler(HTTPException, _framework_problem)
    return cast("App", app)


async def _serve() -> Response:
    inner: Message = dict(request.scope)
    serve: Serve = inner[SERVED]
    reply, headers = await serve(_form)
    return _response(reply, headers)


async def _form() -> Posted:
    if request.method != "POST":
        return NOTHING
    try:
        body = await request.get_data(as_text=False)
    except RequestEntityTooLarge:
        limit = request.max_content_length
        raise error(ErrorKind.TOO_LARGE, f"the form is over {limit} bytes (`max_frame`)", field="$") from None
    return await parse_posted(request.headers.get("Content-Type", ""), body if isinstance(body, bytes) else b"")


def _response(reply: Reply, headers: Headers) -> Response:
    response = Response(reply.body, reply.status, content_type=reply.content_type)
    for name, value in headers:
        response.headers.add(name, value)
    return response


async def _framework_problem(found: HTTPException) -> Response:
    return Response(f"{found.description}\n", found.code or 500, content_type="text/plain; charset=utf-8")
