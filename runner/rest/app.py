"""The REST application: the endpoints on the runner itself, and all endpoints on their routes.

Executing, preparing, streams, websockets, probes and metrics are served as plain ASGI, ahead of quart; quart serves the
rest, and is imported at the first request for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from runner.api import Service
from runner.auth import Verifier
from runner.http import WEBSOCKET, App, Front, Message, Receive, Route, Send
from runner.rest import batch, executions, metrics, modules, streams
from runner.rest.endpoint import Answer, Endpoint, Endpoints, Request, json_answer, problem, serves, transmit
from runner.rest.openapi import OPERATIONS, Documents, docs_page, served
from runner.version import release

_AHEAD: Final = (*batch.ENDPOINTS, executions.execute, modules.prepare, *streams.ENDPOINTS)
"""Served ahead of quart, in this order: the path of `execute` begins like that of a batch."""
_POLLED: Final = {"getHealth", "getReadiness", "getMetrics"}
HEALTH_PATHS: Final = frozenset(each.path for each in OPERATIONS if each.name in {"getHealth", "getReadiness"})
"""Answered also when the door is full."""


def make_app(service: Service, verifier: Verifier) -> Front:
    """Return the ASGI application of all REST routes."""
    endpoints = Endpoints(service, verifier)
    operations = {operation.name: operation for operation in served(service.settings.server)}
    behind = [
        Endpoint(operations[each.operation.name], each.function)
        for each in (*executions.ENDPOINTS, *modules.ENDPOINTS, *metrics.ENDPOINTS, *_server_endpoints(service))
        if each not in _AHEAD and each.operation.name in operations
    ]
    routes = [*map(endpoints.route, _AHEAD), Route(WEBSOCKET, "", _no_websocket)]
    return Front(_Late(endpoints, behind), routes)


class _Late:
    """The application behind the routes ahead of quart: it serves polls, and imports quart at the first other request.

    Quart takes 0.15 s to import and 9 MB, which a runner that only executes does not need.
    """

    def __init__(self, endpoints: Endpoints, served: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._served = served
        self._polled = {each.operation.path: each for each in served if each.operation.name in _POLLED}
        self._quart: App | None = None
        self._lock = trio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["method"] == "GET" and scope["path"] in self._polled:
            outcome = await self._endpoints.serve(self._polled[scope["path"]], {}, scope, receive)
            await transmit(outcome, scope, receive, send)
        else:
            app = self._quart or await self._import()
            await app(scope, receive, send)

    async def _import(self) -> App:
        """Import quart in a thread, so that other requests are served meanwhile."""
        async with self._lock:
            if self._quart is None:
                self._quart = await trio.to_thread.run_sync(self.make)
            return self._quart

    def make(self) -> App:
        """Return the quart application."""
        from runner.rest.framework import make_quart  # noqa: PLC0415

        return make_quart(self._endpoints, self._served)


async def _live(receive: Receive, send: Send) -> None:
    """Answer the two events in the life of an application that has nothing to start and nothing to end."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


async def _no_websocket(scope: Message, receive: Receive, send: Send) -> None:
    """Refuse the handshake of a websocket at a path that has none."""
    paths = " and ".join(each.path for each in OPERATIONS if each.method == WEBSOCKET)
    text = f"there is no websocket at {scope['path']}; there are {paths}"
    await transmit(problem(Failure(ErrorKind.NOT_FOUND, text)), scope, receive, send)


def _server_endpoints(service: Service) -> tuple[Endpoint, ...]:
    documents = Documents(service.registry, release(), served(service.settings.server))
    making = trio.Lock()  # in a thread, as there may be thousands of modules

    @serves("getDocument")
    async def document(request: Request) -> Answer:
        headers = ((b"cache-control", b"no-cache"), (b"vary", b"authorization"))
        async with making:
            made = await trio.to_thread.run_sync(documents.get, request.caller)
        return Answer(made, headers=headers)

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
    service = request.service
    refusing = service.history.statistics().refusing
    if refusing is not None:
        raise error(ErrorKind.UNAVAILABLE, f"no execution can be recorded: {refusing}", retry_after=5)
    # No names of modules: this route needs no token.
    damaged = {"damaged": found} if (found := service.damaged()) else {}
    return json_answer({"status": "ready", "modules": len(service.registry.snapshot.modules), **damaged})


@serves("getDocs")
async def _docs(request: Request) -> Answer:
    del request
    html, headers = docs_page()
    return Answer(html, content_type="text/html; charset=utf-8", headers=headers)
