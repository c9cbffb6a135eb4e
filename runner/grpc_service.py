"""The verbs of the gRPC services: read the request, call the service, render. Trio throughout; no gRPC library."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from attrs import frozen

from protocol.errors import ErrorKind, RunnerError, error
from protocol.rpc.operato.runner import v1
from runner.auth import Principal, Verifier, bearer
from runner.grpc_call import Call, Method
from runner.grpc_codec import make
from runner.grpc_messages import (
    environment_kind,
    environment_message,
    failure_message,
    module_message,
    page_limit,
    response_message,
)
from runner.service import Service

EXECUTOR = "operato.runner.v1.ExecutorService"
MODULES = "operato.runner.v1.ModuleService"
MAX_PARALLELISM = 256
MAX_INPUT_ID = 256


def make_methods(service: Service, verifier: Verifier) -> dict[str, Method]:
    """Return the methods of both services by path."""
    executions, modules = _Executions(service), _Modules(service)

    async def principal(call: Call) -> Principal:
        token = bearer(call.metadata.get("authorization"))
        return verifier.verify_nowait(token) if verifier.local else await verifier.verify(token)

    def unary(verb: Callable[[Call, Principal, Any], Awaitable[Any]]) -> Callable[[Call], Awaitable[Any]]:
        async def handler(call: Call) -> Any:
            who = await principal(call)
            return await verb(call, who, await _message(call))

        return handler

    def bidirectional(verb: Callable[[Call, Principal], Awaitable[None]]) -> Callable[[Call], Awaitable[None]]:
        async def handler(call: Call) -> None:
            await verb(call, await principal(call))

        return handler

    return {
        f"/{EXECUTOR}/Execute": Method(unary(executions.execute), v1.ExecuteRequest),
        f"/{EXECUTOR}/ExecuteBatch": Method(bidirectional(executions.batch), v1.ExecuteBatchRequest),
        f"/{MODULES}/ListModules": Method(unary(modules.list), v1.ListModulesRequest),
        f"/{MODULES}/GetModule": Method(unary(modules.get), v1.GetModuleRequest),
        f"/{MODULES}/ListEnvironments": Method(unary(modules.environments), v1.ListEnvironmentsRequest),
    }


async def _message(call: Call) -> Any:
    message = await call.receive()
    if message is None:
        raise error(ErrorKind.BAD_INPUT, "the call has no message")
    return message


@frozen
class _Executions:
    """The verbs of ExecutorService."""

    service: Service

    async def execute(self, call: Call, who: Principal, request: v1.ExecuteRequest) -> v1.ExecuteResponse:
        execution = await self.service.execute(
            who,
            request.module_name,
            request.input_json.encode(),
            version=request.version or None,
            timeout=_timeout(call, request.timeout),
        )
        return response_message(execution)

    async def batch(self, call: Call, who: Principal) -> None:
        first = await _message(call)
        start = _member(first, "start")
        if start is None:
            raise error(ErrorKind.BAD_INPUT, "the first message of a batch is `start`", field="start")
        module = self.service.module(who, "executions:run", start.module_name, start.version or None)
        if not 0 <= start.parallelism <= MAX_PARALLELISM:
            text = f"parallelism is 1 to {MAX_PARALLELISM}, or 0 for the module's concurrency, not {start.parallelism}"
            raise error(ErrorKind.BAD_INPUT, text, field="parallelism")
        await _Batch(call, who, self.service, start).run(
            start.parallelism or min(module.spec.concurrency, MAX_PARALLELISM)
        )


class _Batch:
    """A running batch: so many tasks as inputs may run at a time, each takes the next input when it is free."""

    def __init__(self, call: Call, who: Principal, service: Service, start: v1.BatchStart) -> None:
        self._call = call
        self._who = who
        self._service = service
        self._start = start
        self._receiving = trio.Lock()
        self._sending = trio.Lock()
        self._ended = False
        self._problem: RunnerError | None = None

    async def run(self, parallelism: int) -> None:
        """Run inputs until there are no more, or one that is not valid; what runs then is let end and answered."""
        async with trio.open_nursery() as nursery:
            for _ in range(parallelism):
                nursery.start_soon(self._work)
        if self._problem is not None:
            raise self._problem

    async def _work(self) -> None:
        while True:
            async with self._receiving:
                if self._ended:
                    return
                try:
                    given = await self._next()
                except RunnerError as problem:
                    self._problem, given = problem, None
                if given is None:
                    self._ended = True
                    return
            answer = await self._run(given)
            async with self._sending:
                await self._call.send(answer)

    async def _next(self) -> v1.BatchInput | None:
        message = await self._call.receive()
        if message is None:
            return None
        given: v1.BatchInput | None = _member(message, "input")
        if given is None:
            raise error(ErrorKind.BAD_INPUT, "only the first message of a batch is not `input`", field="input")
        if len(given.id) > MAX_INPUT_ID:
            raise error(ErrorKind.BAD_INPUT, f"an id has at most {MAX_INPUT_ID} characters", field="input.id")
        return given

    async def _run(self, given: v1.BatchInput) -> v1.ExecuteBatchResponse:
        start = self._start
        try:
            execution = await self._service.execute(
                self._who,
                start.module_name,
                given.input_json.encode(),
                version=start.version or None,
                timeout=_timeout(self._call, start.timeout),
            )
        except RunnerError as problem:
            return make(v1.ExecuteBatchResponse, id=given.id, refused=failure_message(problem.failure))
        return make(v1.ExecuteBatchResponse, id=given.id, response=response_message(execution))


@frozen
class _Modules:
    """The verbs of ModuleService."""

    service: Service

    async def list(self, _call: Call, who: Principal, request: v1.ListModulesRequest) -> v1.ListModulesResponse:
        found, cursor = self.service.modules(
            who,
            env=environment_kind(request.env),
            tag=request.tag or None,
            text=request.text or None,
            limit=page_limit(request.limit),
            cursor=request.cursor,
        )
        return make(v1.ListModulesResponse, modules=[module_message(m) for m in found], cursor=cursor or "")

    async def get(self, _call: Call, who: Principal, request: v1.GetModuleRequest) -> v1.GetModuleResponse:
        module = self.service.module(who, "modules:read", request.module_name, request.version or None)
        return make(v1.GetModuleResponse, module=module_message(module))

    async def environments(
        self, _call: Call, who: Principal, _request: v1.ListEnvironmentsRequest
    ) -> v1.ListEnvironmentsResponse:
        found = self.service.environments(who)
        return make(v1.ListEnvironmentsResponse, environments=[environment_message(e) for e in found])


def _member(message: Any, name: str) -> Any | None:
    """Return a member of a oneof, None when it is not the one that is set."""
    return getattr(message, name, None)


def _timeout(call: Call, seconds: float) -> float | None:
    """Return the smaller one of the field `timeout` (0 is none) and the client's deadline, in seconds."""
    remaining = call.remaining
    if not seconds:
        return remaining
    return seconds if remaining is None else min(seconds, remaining)
