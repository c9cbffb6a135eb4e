"""The REST door: parse, call the service, render. Execute is served as plain ASGI ahead of quart, the rest by quart."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote

import structlog
from attrs import frozen
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.model import Execution
from runner.api import Service
from runner.auth import Principal, Verifier, authenticate
from runner.http import (
    WEBSOCKET,
    BodyError,
    BodyTooLargeError,
    Front,
    Handler,
    Message,
    Receive,
    Route,
    Send,
    read_body,
    respond,
)
from runner.rest.batch import BatchExecution
from runner.rest.documents import add_document_routes
from runner.rest.executions import add_execution_routes
from runner.rest.metrics import add_metrics_route
from runner.rest.modules import add_module_routes
from runner.rest.openapi import PROBLEM, Operation, module_operations, operations
from runner.rest.preparation import Preparation
from runner.rest.render import accepted_json, execution_json, execution_status, failure_headers, problem_json
from runner.rest.streams import EventStream, ExecutionSocket, ModuleSocket, not_found
from runner.rest.web import arguments, framework_problem, json_answer, problem_answer, seconds_of, serves
from runner.status import CODES

log = structlog.get_logger("rest")


def make_app(service: Service, verifier: Verifier) -> Front:
    """Return the ASGI application of all REST routes."""
    routes = [
        _route(operations.BATCH, BatchExecution(service, verifier)),
        _route(operations.EXECUTE, _Execute(service, verifier)),
        _route(module_operations.PREPARE, Preparation(service, verifier)),
        _route(operations.FOLLOW, EventStream(service, verifier)),
        _route(operations.FOLLOW_SOCKET, ExecutionSocket(service, verifier)),
        _route(operations.RUN_SOCKET, ModuleSocket(service, verifier)),
        Route(WEBSOCKET, "", not_found),
    ]
    return Front(_slow_routes(service, verifier), routes)


def _route(operation: Operation, handler: Handler) -> Route:
    return Route(operation.method, operation.prefix, handler, operation.suffix)


@frozen
class _Execute:
    """`POST /modules/execute/{name}`: the hot path."""

    service: Service
    verifier: Verifier

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            header = timeout = key = None
            wait = True
            for name, value in scope["headers"]:
                if name == b"authorization":
                    header = value.decode("latin-1")
                elif name == b"x-timeout":
                    timeout = seconds_of("X-Timeout", value.decode("latin-1"))
                elif name == b"idempotency-key":
                    key = value.decode("latin-1")
                elif name == b"prefer":
                    wait = wait and not _asynchronously(value)
            principal = await authenticate(self.verifier, header)
            name = unquote(scope["path"][len(operations.EXECUTE.prefix) :])
            version = _version(scope["query_string"])
            data = await read_body(scope, receive, self.service.settings.server.max_frame_bytes)
            run = self.service.execute if wait else self.service.submit
            execution = await run(principal, name, data, version=version, timeout=timeout, key=key)
        except RunnerError as problem:
            await _refuse(send, problem.failure)
        except BodyError as problem:
            kind = ErrorKind.TOO_LARGE if isinstance(problem, BodyTooLargeError) else ErrorKind.BAD_INPUT
            hint = "; the limit is `max_frame`" if kind is ErrorKind.TOO_LARGE else ""
            await _refuse(send, Failure(kind, f"{problem}{hint}", field="$"))
        except Exception:
            log.exception("a request failed inside the runner", path=scope["path"])
            await _refuse(send, Failure(ErrorKind.INTERNAL, "the runner failed; its log says why"))
        else:
            await _answer(send, execution, wait=wait)


async def _answer(send: Send, execution: Execution, *, wait: bool) -> None:
    headers = [(b"x-execution-id", execution.id.encode())]
    if not wait:
        headers += [(b"location", b"/executions/" + execution.id.encode()), (b"preference-applied", b"respond-async")]
    if not execution.status.final:
        await respond(send, 202, accepted_json(execution), headers)
        return
    if not wait:  # the same idempotency key has led to one that has ended: that it is found is a success
        await respond(send, 200, execution_json(execution), headers)
        return
    if execution.failure is not None:
        headers += failure_headers(execution.failure)
    await respond(send, execution_status(execution), execution_json(execution), headers)


async def _refuse(send: Send, failure: Failure) -> None:
    await respond(send, CODES[failure.kind].http, problem_json(failure), failure_headers(failure), PROBLEM.encode())


def _asynchronously(prefer: bytes) -> bool:
    """Return whether a `Prefer` header (RFC 7240) asks for an answer that does not wait."""
    preferences = prefer.decode("latin-1").lower().split(",")
    return any(part.partition(";")[0].strip() == "respond-async" for part in preferences)


def _version(query: bytes) -> str | None:
    if not query:
        return None
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    if unknown := sorted(set(values) - {*operations.EXECUTE.query}):
        raise error(ErrorKind.BAD_INPUT, f"unknown parameter {unknown[0]!r}; allowed: version", field=unknown[0])
    return values["version"][-1] if "version" in values else None


def _slow_routes(service: Service, verifier: Verifier) -> QuartTrio:
    """Return the quart application of everything but execute."""
    app = QuartTrio("runner.rest", static_folder=None)
    app.url_map.merge_slashes = False  # a redirect would lead to whatever `Host` the request names
    app.config["MAX_CONTENT_LENGTH"] = service.settings.server.max_frame_bytes
    app.config["BODY_TIMEOUT"] = None  # the connection holds `body_timeout`

    async def principal() -> Principal:
        return await authenticate(verifier, request.headers.get("authorization"))

    @app.errorhandler(RunnerError)
    async def refused(problem: RunnerError) -> Response:
        return problem_answer(problem.failure)

    @app.errorhandler(HTTPException)
    async def http_problem(problem: HTTPException) -> Response:
        return framework_problem(problem, request)

    @app.errorhandler(Exception)
    async def broken(problem: Exception) -> Response:
        log.error("a request failed inside the runner", path=request.path, exc_info=problem)
        return problem_answer(Failure(ErrorKind.INTERNAL, "the runner failed; its log says why"))

    @serves(app, operations.ENVIRONMENTS)
    async def environments() -> Response:
        who = await principal()
        arguments(operations.ENVIRONMENTS)
        return json_answer({"items": service.environments(who)})

    _add_health(app, service)
    add_metrics_route(app, service, principal)
    add_module_routes(app, service, principal)
    add_execution_routes(app, service, principal)
    add_document_routes(app, service, verifier)
    return app


def _add_health(app: QuartTrio, service: Service) -> None:
    @serves(app, operations.HEALTH)
    async def healthz() -> Response:
        return json_answer({"status": "ok"})

    @serves(app, operations.READINESS)
    async def readyz() -> Response:
        if service.runs.stopping:
            return problem_answer(shutting_down())
        return json_answer({"status": "ready", "modules": len(service.registry.snapshot.modules)})
