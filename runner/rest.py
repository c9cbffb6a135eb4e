"""The REST door: parse, call the service, render. Execute is served as plain ASGI ahead of quart, the rest by quart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
import structlog
from attrs import frozen
from quart import Request, Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Kind
from runner.auth import Principal, Verifier, bearer
from runner.http import BodyError, BodyTooLargeError, Front, Receive, Route, Send, read_body, respond
from runner.http_exchange import Message
from runner.render import execution_json, execution_status, failure_headers, module_json, problem_json
from runner.service import Service
from runner.status import CODES

EXECUTE = "/modules/execute/"
_PROBLEM = b"application/problem+json"
_MAX_PAGE = 500

log = structlog.get_logger("rest")


def make_app(service: Service, verifier: Verifier) -> Front:
    """Return the ASGI application of all REST routes."""
    door = _Execute(service, verifier)
    return Front(_slow_routes(service, verifier), [Route("POST", EXECUTE, door)])


async def authenticate(verifier: Verifier, header: str | None) -> Principal:
    """Return who calls. Raises RunnerError `unauthenticated`."""
    token = bearer(header)
    return verifier.verify_nowait(token) if verifier.local else await verifier.verify(token)


@frozen
class _Execute:
    """`POST /modules/execute/{name}`: the hot path."""

    service: Service
    verifier: Verifier

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            header = timeout = None
            for name, value in scope["headers"]:
                if name == b"authorization":
                    header = value.decode("latin-1")
                elif name == b"x-timeout":
                    timeout = _seconds(value.decode("latin-1"))
            principal = await authenticate(self.verifier, header)
            name = unquote(scope["path"][len(EXECUTE) :])
            version = _version(scope["query_string"])
            data = await read_body(scope, receive, self.service.settings.server.max_frame_bytes)
            execution = await self.service.execute(principal, name, data, version=version, timeout=timeout)
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
            headers = [(b"x-execution-id", execution.id.encode())]
            if execution.failure is not None:
                headers += failure_headers(execution.failure)
            await respond(send, execution_status(execution), execution_json(execution), headers)


async def _refuse(send: Send, failure: Failure) -> None:
    await respond(send, CODES[failure.kind].http, problem_json(failure), failure_headers(failure), _PROBLEM)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise error(ErrorKind.BAD_INPUT, f"X-Timeout is a number of seconds, not {text!r}", field="X-Timeout") from None


def _version(query: bytes) -> str | None:
    if not query:
        return None
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    if unknown := sorted(set(values) - {"version"}):
        raise error(ErrorKind.BAD_INPUT, f"unknown parameter {unknown[0]!r}; allowed: version", field=unknown[0])
    return values["version"][-1] if "version" in values else None


def _slow_routes(service: Service, verifier: Verifier) -> QuartTrio:
    """Return the quart application of everything but execute."""
    app = QuartTrio("runner.rest", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = service.settings.server.max_frame_bytes

    async def principal() -> Principal:
        return await authenticate(verifier, request.headers.get("authorization"))

    @app.errorhandler(RunnerError)
    async def refused(problem: RunnerError) -> Response:
        return _problem(problem.failure)

    @app.errorhandler(HTTPException)
    async def http_problem(problem: HTTPException) -> Response:
        return _http_problem(problem, request)

    @app.errorhandler(Exception)
    async def broken(problem: Exception) -> Response:
        log.error("a request failed inside the runner", path=request.path, exc_info=problem)
        return _problem(Failure(ErrorKind.INTERNAL, "the runner failed; its log says why"))

    @app.get("/modules")
    async def modules() -> Response:
        who = await principal()
        args = _arguments(("env", "tag", "q", "limit", "cursor"))
        found, cursor = service.modules(
            who,
            env=_kind(args.get("env")),
            tag=args.get("tag"),
            text=args.get("q"),
            limit=_limit(args.get("limit")),
            cursor=args.get("cursor", ""),
        )
        return _json({"items": [module_json(m) for m in found], "cursor": cursor})

    @app.get("/modules/<name>")
    async def module(name: str) -> Response:
        who = await principal()
        version = _arguments(("version",)).get("version")
        return _json(module_json(service.module(who, "modules:read", name, version)))

    @app.get("/environments")
    async def environments() -> Response:
        who = await principal()
        _arguments(())
        return _json({"items": service.environments(who)})

    @app.get("/healthz")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        if service.draining:
            return _problem(Failure(ErrorKind.SHUTDOWN, "the runner is shutting down"))
        return _json({"status": "ready", "modules": len(service.registry.snapshot.modules)})

    return app


def _arguments(allowed: Iterable[str]) -> dict[str, str]:
    """Return the query parameters. Raises RunnerError `bad_input` for one that is not `allowed`."""
    for name in request.args:
        if name not in allowed:
            text = f"unknown parameter {name!r}; allowed: {', '.join(allowed) or 'none'}"
            raise error(ErrorKind.BAD_INPUT, text, field=name)
    return dict(request.args.items())


def _kind(value: str | None) -> Kind | None:
    if value is None:
        return None
    try:
        return Kind(value)
    except ValueError:
        allowed = ", ".join(Kind)
        raise error(ErrorKind.BAD_INPUT, f"env {value!r} is not one of {allowed}", field="env") from None


def _limit(value: str | None) -> int:
    if value is None:
        return 50
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= _MAX_PAGE:
        raise error(ErrorKind.BAD_INPUT, f"limit is a number from 1 to {_MAX_PAGE}, not {value!r}", field="limit")
    return int(value)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, content_type="application/json")


def _problem(failure: Failure) -> Response:
    response = Response(problem_json(failure), CODES[failure.kind].http, content_type=_PROBLEM.decode())
    for name, value in failure_headers(failure):
        response.headers[name.decode()] = value.decode()
    return response


def _http_problem(problem: HTTPException, at: Request) -> Response:
    """Return what the framework refuses (no such route, wrong method) as the same kind of problem."""
    status = problem.code or 500
    allowed = getattr(problem, "valid_methods", None) or ()
    details = {
        404: f"there is no {at.path}; see the table of routes in the README",
        405: f"{at.method} is not possible at {at.path}; allowed: {', '.join(sorted(allowed))}",
    }
    body = {
        "type": "about:blank",
        "title": problem.name,
        "status": status,
        "detail": details.get(status, problem.description),
    }
    response = Response(msgspec.json.encode(body), status, content_type=_PROBLEM.decode())
    for name, value in problem.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response
