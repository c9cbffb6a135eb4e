"""`Methods`: each method of the protocol, for both kinds of revisions, over any transport."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from attrs import define, field

from actors.events import last_of
from protocol.model import Execution, Status
from runner.api import Service, failure_of
from runner.auth import Principal, Scope, require
from runner.mcp.calls import Calls
from runner.mcp.exchange import Exchange, rpc_error
from runner.mcp.forms import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    LATEST_LEGACY,
    LEGACY,
    LEVELS,
    METHOD_NOT_FOUND,
    SUPPORTED,
    TASKS,
    RpcError,
    error_message,
    missing_tasks,
    response,
    task_of,
    tool_of,
)
from runner.mcp.resources import TEMPLATES, Resources
from runner.version import release

_PAGE: Final = 100
_PAGE_BYTES: Final = 256 * 1024
"""A page with more than this ends before `_PAGE` tools."""
_LIST_MS: Final = 10_000
_DISCOVER_MS: Final = 60_000
_INSTRUCTIONS: Final = (
    "Each tool is a module of this Operato Runner, and each call is recorded as an execution. A failed call says why; "
    "resources with the scheme `operato` are results and files of calls."
)
Method = Callable[[Exchange], Awaitable[dict[str, Any]]]


@define(eq=False)
class Methods:
    """Answers messages."""

    service: Service
    calls: Calls = field(init=False)
    resources: Resources = field(init=False)
    _modern: dict[str, Method] = field(init=False)
    _legacy: dict[str, Method] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.calls, self.resources = Calls(self.service), Resources(self.service)
        both: dict[str, Method] = {
            "tools/list": self._list,
            "tools/call": self.calls.call,
            "resources/list": _no_resources,
            "resources/templates/list": _templates,
            "resources/read": self.resources.read,
        }
        self._modern = {
            **both,
            "server/discover": self._discover,
            "tasks/get": self._task,
            "tasks/update": self._update_task,
            "tasks/cancel": self._cancel_task,
        }
        self._legacy = {**both, "initialize": _initialize, "ping": _ping, "logging/setLevel": _set_level}

    async def answer(self, exchange: Exchange) -> tuple[bytes, int]:
        """Return the answer to a request, and the status of HTTP with it. Raises no Exception."""
        identity = exchange.call.id
        assert identity is not None  # noqa: S101  (a notification has no answer)
        try:
            method = (self._modern if exchange.modern else self._legacy).get(exchange.call.method)
            if method is None:
                status = 404 if exchange.modern else 200
                text = f"Method not found: {exchange.call.method[:100]}"
                raise RpcError(METHOD_NOT_FOUND, text, status=status)  # noqa: TRY301  (the error edge)
            if exchange.level is not None and exchange.level not in LEVELS:
                raise _wrong_level()  # noqa: TRY301
            result = await method(exchange)
            if exchange.modern:
                result = _complete(exchange.call.method, result)
            return response(identity, result), 200
        except RpcError as problem:
            return error_message(identity, problem), problem.status
        except Exception as found:  # noqa: BLE001  (the error edge)
            failure = failure_of(found, "a message failed inside the runner", method=exchange.call.method[:100])
            return error_message(identity, rpc_error(failure)), 200

    def hear(self, exchange: Exchange) -> None:
        """Act on a notification. Unknown ones are ignored."""
        session, request = exchange.session, exchange.params.request
        if exchange.call.method == "notifications/cancelled" and session is not None and request is not None:
            execution = session.calls.get(request)
            if execution is not None:
                self.service.abandon(execution, "cancelled on request")

    async def _discover(self, exchange: Exchange) -> dict[str, Any]:
        extensions: dict[str, Any] = (
            {"extensions": {TASKS: {}}} if exchange.principal.allows(Scope.EXECUTIONS_READ) else {}
        )
        return {
            "supportedVersions": SUPPORTED,
            "capabilities": {**_CAPABILITIES, **extensions},
            "instructions": _INSTRUCTIONS,
        }

    async def _list(self, exchange: Exchange) -> dict[str, Any]:
        principal, after = exchange.principal, _place(exchange.params.cursor)
        require(principal, Scope.EXECUTIONS_RUN)
        tools: list[msgspec.Raw] = []
        size, last = 0, None
        for name, module in sorted(self.service.registry.snapshot.modules.items()):
            if name <= after or not module.spec.tool.offered or not principal.may_use(name):
                continue
            if len(tools) == _PAGE or size > _PAGE_BYTES:
                self.service.answers.take(exchange.share, size)
                return {"tools": tools, "nextCursor": base64.urlsafe_b64encode((last or "").encode()).decode()}
            shown = msgspec.json.encode(tool_of(module, legacy=not exchange.modern))
            tools.append(msgspec.Raw(shown))
            size, last = size + len(shown), name
        self.service.answers.take(exchange.share, size)
        return {"tools": tools}

    async def _task(self, exchange: Exchange) -> dict[str, Any]:
        execution = await self._tracked(exchange)
        task = task_of(execution)
        if execution.status not in (Status.SUCCEEDED, Status.FAILED):
            return task
        module = self.service.registry.snapshot.modules.get(execution.module.name)
        result = await self.calls.result(exchange, module, execution.id, last_of(execution))
        return {**task, "result": {**result, "resultType": "complete"}}

    async def _update_task(self, exchange: Exchange) -> dict[str, Any]:
        await self._tracked(exchange)  # no task asks for input, so answers are for nothing
        return {}

    async def _cancel_task(self, exchange: Exchange) -> dict[str, Any]:
        execution = await self._tracked(exchange)
        await self.service.cancel(exchange.principal, execution.id)
        return {}

    async def _tracked(self, exchange: Exchange) -> Execution:
        """Return the execution of a task. Raises RpcError and RunnerError."""
        if not exchange.has_tasks:
            raise missing_tasks()
        if exchange.params.task is None:
            raise RpcError(INVALID_PARAMS, "the parameters lack `taskId`", status=400)
        return await self.service.get(exchange.principal, exchange.params.task)


_CAPABILITIES: Final[dict[str, Any]] = {"tools": {}, "resources": {}, "logging": {}}
_CACHED: Final = {
    "server/discover": _DISCOVER_MS,
    "tools/list": _LIST_MS,
    "resources/list": _LIST_MS,
    "resources/templates/list": _DISCOVER_MS,
    "resources/read": _DISCOVER_MS,
}
"""How long a client may keep the answer, for its own caller only."""


def _about() -> dict[str, str]:
    return {"name": "operato-runner", "title": "Operato Runner", "version": release()}


def _complete(method: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with what each one has in 2026-07-28."""
    about = {**result.get("_meta", {}), "io.modelcontextprotocol/serverInfo": _about()}
    kept = {"ttlMs": _CACHED[method], "cacheScope": "private"} if method in _CACHED else {}
    return {"resultType": "complete", **result, **kept, "_meta": about}


async def _initialize(exchange: Exchange) -> dict[str, Any]:
    asked = exchange.params.version
    return {
        "protocolVersion": asked if asked in LEGACY else LATEST_LEGACY,
        "capabilities": _CAPABILITIES,
        "serverInfo": _about(),
        "instructions": _INSTRUCTIONS,
    }


async def _ping(exchange: Exchange) -> dict[str, Any]:
    del exchange
    return {}


async def _set_level(exchange: Exchange) -> dict[str, Any]:
    if exchange.params.level not in LEVELS:
        raise _wrong_level()
    if exchange.session is None:
        raise RpcError(INVALID_REQUEST, "log messages need a session: send `initialize` first")
    exchange.session.level = exchange.params.level
    return {}


async def _no_resources(exchange: Exchange) -> dict[str, Any]:
    del exchange
    return {"resources": []}  # there are as many as executions; tool results lead to them


async def _templates(exchange: Exchange) -> dict[str, Any]:
    del exchange
    return {"resourceTemplates": TEMPLATES}


def _wrong_level() -> RpcError:
    return RpcError(INVALID_PARAMS, f"the level of log messages is one of {', '.join(LEVELS)}")


def _place(cursor: str | None) -> str:
    """Return the name after which a page begins. Raises RpcError."""
    if cursor is None:
        return ""
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise RpcError(INVALID_PARAMS, "the cursor is not one of this list; take it from a page") from None


def who(principal: Principal) -> str:
    """Return the owner of a session: the caller and its credential."""
    return f"{principal.subject}\n{'' if principal.key is None else principal.key.stored.id}"
