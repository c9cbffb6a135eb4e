"""The routes that say what the others are: the OpenAPI document, its page, and plain requests where websockets are."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio

from runner.api import Service
from runner.auth import Verifier, authenticate
from runner.http import WEBSOCKET
from runner.rest.openapi import JSON, Documents, operations, page
from runner.rest.web import arguments, serves, status_problem
from runner.version import release


def add_document_routes(app: QuartTrio, service: Service, verifier: Verifier) -> None:
    """Add the routes to `app`."""
    documents = Documents(service.registry, release(), operations.served(service.settings.server))

    @serves(app, operations.DOCUMENT)
    async def openapi() -> Response:
        shown = request.headers.get("authorization")
        reader = None if shown is None else await authenticate(verifier, shown)
        arguments(operations.DOCUMENT)
        response = Response(documents.get(reader), content_type=JSON)
        response.headers.update({"cache-control": "no-cache", "vary": "authorization"})
        return response

    @serves(app, operations.DOCS)
    async def docs() -> Response:
        arguments(operations.DOCS)
        html, headers = page()
        return Response(html, content_type="text/html; charset=utf-8", headers=headers)

    async def no_websocket(**_names: str) -> Response:
        response = status_problem(426, f"{request.path} is a websocket; open it as one")
        response.headers.update({"upgrade": "websocket", "connection": "upgrade"})
        return response

    for operation in operations.OPERATIONS:
        if operation.method == WEBSOCKET:
            app.add_url_rule(operation.rule, operation.name, no_websocket, methods=["GET"])
