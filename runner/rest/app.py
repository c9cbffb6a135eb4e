"""The REST application: the endpoints on the runner itself, and all endpoints on their routes.

Executing, submitting, reading an execution, preparing, uploads, streams, websockets, probes and metrics are plain ASGI,
ahead of quart; quart serves the rest, and is imported at the first request for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from protocol.errors import ErrorKind, RunnerError, error, shutting_down
from runner.api import Service
from runner.auth import Verifier
from runner.http import App, Message, Receive, Send
from runner.rest import access, batch, executions, files, metrics, modules, starts, streams
from runner.rest.endpoint import Answer, Endpoint, Request, json_answer, serves
from runner.rest.hooks import Hooks
from runner.rest.openapi import OPERATIONS, Documents, docs_page, served
from runner.rest.routing import Endpoints, Origins, Proxies, Site
from runner.version import release

_AHEAD: Final = (
    *batch.ENDPOINTS,
    executions.execute,
    executions.submit,
    executions.show,
    executions.output,
    executions.result,
    modules.prepare,
    modules.upload,
    *files.ENDPOINTS,
    *streams.ENDPOINTS,
)
"""Served ahead of quart: the hot path, endpoints that read or send piece by piece, and large answers, which quart keeps
in circles of objects until they are collected.
"""
_POLLED: Final = {"getHealth", "getReadiness", "getMetrics", "getIndex"}
"""Served ahead of quart too, which a runner that is only polled need not import."""
HEALTH_PATHS: Final = frozenset(each.path for each in OPERATIONS if each.name in {"getHealth", "getReadiness"})
"""Answered also when the door is full."""


_LINKS: Final = {
    "docs": "/docs",
    "openapi": "/openapi.json",
    "modules": "/modules",
    "executions": "/executions",
    "files": "/files",
    "health": "/healthz",
    "readiness": "/readyz",
}


def make_app(service: Service, verifier: Verifier, ui: App | None = None, mcp: App | None = None) -> Site:
    """Return the ASGI application of all REST routes, and of the dashboard and the door for agents where they are."""
    settings = service.settings.server
    operations = {operation.name: operation for operation in served(settings)}
    origins = Origins.of(settings.cors_origins, operations.values())
    endpoints = Endpoints(service, verifier, origins)
    every = [
        Endpoint(operations[each.operation.name], each.function)
        for each in (
            *(*_AHEAD, *executions.ENDPOINTS, *modules.ENDPOINTS, *starts.ENDPOINTS, *access.ENDPOINTS),
            metrics.endpoint(verifier.refused),
            *_server_endpoints(service, "/docs" if ui is None else "/ui/"),
        )
        if each.operation.name in operations
    ]
    first = {*(each.operation.name for each in _AHEAD), *_POLLED}
    return Site(
        endpoints,
        tuple(operations.values()),
        Proxies.of(settings),
        origins,
        _Late(endpoints, [each for each in every if each.operation.name not in first]),
        {each.operation.name: each for each in every if each.operation.name in first},
        Hooks(endpoints, origins, beside_pages=ui is not None),
        ui,
        mcp,
    )


class _Late:
    """The application behind the routes ahead of quart, which imports quart at the first request.

    Quart takes 0.15 s to import and 9 MB, which a runner that only executes does not need.
    """

    def __init__(self, endpoints: Endpoints, served: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._served = served
        self._quart: App | None = None
        self._lock = trio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
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


def _server_endpoints(service: Service, home: str) -> tuple[Endpoint, ...]:
    documents = Documents(service.registry, release(), served(service.settings.server))
    making = trio.Lock()  # in a thread, as there may be thousands of modules

    @serves("getDocument")
    async def document(request: Request) -> Answer:
        headers = ((b"cache-control", b"no-cache"), (b"vary", b"authorization"))
        async with making:
            made = await trio.to_thread.run_sync(documents.get, request.caller, request.outside.base)
        return Answer(made, headers=headers)

    @serves("getIndex")
    async def index(request: Request) -> Answer:
        vary = (b"vary", b"accept")
        if "text/html" in (request["Accept"] or ""):
            return Answer(status=307, headers=((b"location", home.encode()), vary))
        links = _LINKS if home == "/docs" else {"ui": home, **_LINKS}
        shown = {name: request.outside.prefix + path for name, path in links.items()}
        return json_answer({"name": "operato-runner", "version": release(), "links": shown}, headers=(vary,))

    return index, _environments, _built, _workers, _nodes, _health, _readiness, document, _docs


@serves("listEnvironments")
async def _environments(request: Request) -> Answer:
    return json_answer({"items": request.service.machine.kinds(request.principal)})


@serves("listBuiltEnvironments")
async def _built(request: Request) -> Answer:
    return json_answer({"items": await request.service.machine.built(request.principal)})


@serves("listWorkers")
async def _workers(request: Request) -> Answer:
    return json_answer({"items": request.service.machine.workers(request.principal)})


@serves("listNodes")
async def _nodes(request: Request) -> Answer:
    return json_answer(request.service.machine.nodes(request.principal))


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
