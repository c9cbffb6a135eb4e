"""The verbs of ExecutorService over gRPC: read the request, call the service, render. No gRPC library."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from attrs import evolve, frozen

from actors.events import Follower, LastEvent, LeftEvent
from actors.history import Query
from actors.turns import terms_of
from protocol.errors import ErrorKind, Failure, error
from protocol.events import last_event
from protocol.rpc.operato.runner import v1
from runner.api import SAME, Batch, Ended, Input, Service, event_size, is_large, is_small
from runner.auth import Principal, Scope, Verifier, authenticate
from runner.grpc.call import Call, Method
from runner.grpc.codec import make
from runner.grpc.files import FileVerbs
from runner.grpc.messages import (
    error_kind,
    event_message,
    execution_message,
    execution_status,
    failure_message,
    page_limit,
    record_message,
    repeated_message,
    response_message,
    seconds,
)
from runner.grpc.modules import KeyVerbs, ModuleVerbs
from runner.grpc.starts import ScheduleVerbs
from runner.inputs import WholeBody, read_input
from runner.wire import Share

EXECUTOR = "operato.runner.v1.ExecutorService"
MODULES = "operato.runner.v1.ModuleService"
FILES = "operato.runner.v1.FileService"
SCHEDULES = "operato.runner.v1.ScheduleService"
KEYS = "operato.runner.v1.KeyService"
MAX_INPUT_ID = 256


def make_methods(service: Service, verifier: Verifier) -> dict[str, Method]:
    """Return the methods of all services by path."""
    executions, files = _Executions(service), FileVerbs(service)
    others = {
        MODULES: ModuleVerbs(service).verbs(),
        KEYS: KeyVerbs(service).verbs(),
        FILES: files.verbs(),
        SCHEDULES: ScheduleVerbs(service).verbs(),
    }

    async def principal(call: Call) -> Principal:
        return await authenticate(verifier, call.metadata.get("authorization"), call.metadata.get("x-api-key"))

    def with_message(verb: Callable[[Call, Principal, Any], Awaitable[Any]]) -> Callable[[Call], Awaitable[Any]]:
        async def handler(call: Call) -> Any:
            who = await principal(call)
            return await verb(call, who, await _message(call))

        return handler

    def with_stream(verb: Callable[[Call, Principal], Awaitable[Any]]) -> Callable[[Call], Awaitable[Any]]:
        async def handler(call: Call) -> Any:
            return await verb(call, await principal(call))

        return handler

    return {
        f"/{EXECUTOR}/Execute": Method(with_message(executions.execute), v1.ExecuteRequest),
        f"/{EXECUTOR}/ExecuteStream": Method(with_message(executions.stream), v1.ExecuteRequest),
        f"/{EXECUTOR}/Submit": Method(with_message(executions.submit), v1.ExecuteRequest),
        f"/{EXECUTOR}/ExecuteBatch": Method(with_stream(executions.batch), v1.ExecuteBatchRequest),
        f"/{EXECUTOR}/GetExecution": Method(with_message(executions.get), v1.GetExecutionRequest),
        f"/{EXECUTOR}/ListExecutions": Method(with_message(executions.list), v1.ListExecutionsRequest),
        f"/{EXECUTOR}/CancelExecution": Method(with_message(executions.cancel), v1.CancelExecutionRequest),
        f"/{EXECUTOR}/ApproveExecution": Method(with_message(executions.approve), v1.DecideExecutionRequest),
        f"/{EXECUTOR}/DenyExecution": Method(with_message(executions.deny), v1.DecideExecutionRequest),
        f"/{EXECUTOR}/RerunExecution": Method(with_message(executions.rerun), v1.RerunExecutionRequest),
        f"/{EXECUTOR}/RerunExecutions": Method(with_message(executions.rerun_all), v1.RerunExecutionsRequest),
        f"/{EXECUTOR}/WatchExecution": Method(with_message(executions.watch), v1.WatchExecutionRequest),
        f"/{FILES}/PutFile": Method(with_stream(files.put), v1.PutFileRequest),
        **{
            f"/{name}/{verb}": Method(with_message(work), kind)
            for name, verbs in others.items()
            for verb, (work, kind) in verbs.items()
        },
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
        _refuse_terms(request)
        execution = await self.service.execute(
            who,
            request.module_name,
            await self._input(who, request),
            version=request.version or None,
            # With a key the execution belongs to all calls with that key: it continues when this call has timed out.
            timeout=_timeout(call, request.timeout) if _key(call) is None else request.timeout or None,
            key=_key(call),
        )
        if is_large(execution):
            ended = self.service.answers.ended(self._share(call), execution)
            del execution  # its result must not be kept while it waits
            execution = await ended
        return response_message(execution)

    async def _input(self, who: Principal, request: v1.ExecuteRequest) -> bytes:
        """Return the input of a request as JSON. Raises RunnerError."""
        if not request.body and not request.content_type:
            return request.input_json.encode()
        if request.input_json:
            raise error(ErrorKind.BAD_INPUT, "the request has `input_json` and `body`; send one", field="body")
        name, version = request.module_name, request.version or None
        module = self.service.module(who, Scope.EXECUTIONS_RUN, name, version)
        kind = request.content_type or "application/octet-stream"
        return await read_input(WholeBody(request.body), kind, self.service, who, module)

    def _share(self, call: Call) -> Share:
        """Return the memory of a call, with nothing of it taken for an earlier message, which has left."""
        if call.share is None:
            call.share = self.service.answers.share()
        call.share.give()
        return call.share

    async def stream(self, call: Call, who: Principal, request: v1.ExecuteRequest) -> None:
        if _key(call) is not None:
            text = "a stream has no idempotency key; submit the execution and watch it"
            raise error(ErrorKind.BAD_INPUT, text, field="idempotency-key")
        _refuse_terms(request)
        name, follower = await self.service.begin(
            who,
            request.module_name,
            await self._input(who, request),
            version=request.version or None,
            timeout=_timeout(call, request.timeout),
        )
        call.initial_metadata.append(("operato-execution-id", name))
        try:
            # Permission to run the module includes reading this execution.
            await self._send_events(call, evolve(who, scopes=who.scopes | {Scope.EXECUTIONS_READ}), name, follower)
        finally:
            self.service.abandon(name)

    async def submit(self, call: Call, who: Principal, request: v1.ExecuteRequest) -> v1.SubmitResponse:
        execution = await self.service.submit(
            who,
            request.module_name,
            await self._input(who, request),
            version=request.version or None,
            timeout=request.timeout or None,  # the deadline limits this call only
            key=_key(call),
            terms=terms_of(
                time.time(),
                priority=request.priority,
                run_at=seconds(request.run_at),
                delay=request.delay or None,
            ),
        )
        self.service.answers.take_whole(self._share(call), execution)
        return make(v1.SubmitResponse, execution=execution_message(execution))

    async def get(self, call: Call, who: Principal, request: v1.GetExecutionRequest) -> v1.GetExecutionResponse:
        execution = await self.service.get(who, request.id)
        self.service.answers.take_whole(self._share(call), execution)
        return record_message(execution)

    async def list(self, _call: Call, who: Principal, request: v1.ListExecutionsRequest) -> v1.ListExecutionsResponse:
        page = await self.service.list(who, _query(request))
        found = [execution_message(execution) for execution in page.items]
        return make(v1.ListExecutionsResponse, executions=found, cursor=page.next_cursor or "")

    async def cancel(
        self, call: Call, who: Principal, request: v1.CancelExecutionRequest
    ) -> v1.CancelExecutionResponse:
        execution = await self.service.cancel(who, request.id)
        self.service.answers.take_whole(self._share(call), execution)
        return make(v1.CancelExecutionResponse, execution=execution_message(execution))

    async def approve(
        self, _call: Call, who: Principal, request: v1.DecideExecutionRequest
    ) -> v1.DecideExecutionResponse:
        execution = await self.service.decisions.approve(who, request.id, request.reason)
        return make(v1.DecideExecutionResponse, execution=execution_message(execution))

    async def deny(self, _call: Call, who: Principal, request: v1.DecideExecutionRequest) -> v1.DecideExecutionResponse:
        execution = await self.service.decisions.deny(who, request.id, request.reason)
        return make(v1.DecideExecutionResponse, execution=execution_message(execution))

    async def rerun(self, call: Call, who: Principal, request: v1.RerunExecutionRequest) -> v1.SubmitResponse:
        given = request.input_json
        execution = await self.service.reruns.one(
            who,
            request.id,
            version=request.version or SAME,
            data=None if given is None else given.encode(),
            key=_key(call),
            terms=terms_of(
                time.time(),
                priority=request.priority,
                run_at=seconds(request.run_at),
                delay=request.delay or None,
            ),
        )
        self.service.answers.take_whole(self._share(call), execution)
        return make(v1.SubmitResponse, execution=execution_message(execution))

    async def rerun_all(
        self, _call: Call, who: Principal, request: v1.RerunExecutionsRequest
    ) -> v1.RerunExecutionsResponse:
        query = _query(request.list or v1.ListExecutionsRequest())
        version, dry_run = request.version or SAME, request.dry_run
        found, cursor = await self.service.reruns.many(who, query, version=version, dry_run=dry_run)
        return make(v1.RerunExecutionsResponse, executions=[*map(repeated_message, found)], cursor=cursor or "")

    async def watch(self, call: Call, who: Principal, request: v1.WatchExecutionRequest) -> None:
        follower = await self.service.follow(who, request.id, request.from_seq)
        await self._send_events(call, who, request.id, follower)

    async def _send_events(self, call: Call, who: Principal, name: str, follower: Follower) -> None:
        """Send events as fast as the client reads them; the log keeps the others, or counts those it drops."""
        answers = self.service.answers
        while (events := await follower.next()) is not None:
            last = events[-1]
            await answers.turn(self._share(call), sum(map(event_size, events)))
            execution = await self.service.get(who, name) if isinstance(last, LastEvent) else None
            whole = [event for event in events if not isinstance(event, LeftEvent)]
            if execution is not None and isinstance(last, LeftEvent):
                whole.append(last_event(execution))
            await call.send(*map(event_message, whole[:-1]), event_message(whole[-1], execution))

    async def batch(self, call: Call, who: Principal) -> None:
        start = _member(await _message(call), "start")
        if start is None:
            raise error(ErrorKind.BAD_INPUT, "the first message of a batch is `start`", field="start")
        version, parallelism = start.version or None, start.parallelism or None
        batch = Batch(self.service, who, start.module_name, version=version, parallelism=parallelism)

        async def take() -> Input | None:
            return await _next_input(call)

        async def answer(ended: Sequence[Ended]) -> None:
            ready = []
            for given, became in ended:
                if isinstance(became, Failure):
                    ready.append(make(v1.ExecuteBatchResponse, id=given.name, refused=failure_message(became)))
                    continue
                if not is_small(became):
                    await call.send(*ready)
                    ready.clear()
                found = became if is_small(became) else await self.service.answers.ended(self._share(call), became)
                ready.append(make(v1.ExecuteBatchResponse, id=given.name, response=response_message(found)))
            await call.send(*ready)

        await batch.run(take, answer, lambda: _timeout(call, start.timeout), call.has_message)


async def _next_input(call: Call) -> Input | None:
    """Return the next input of a batch. Raises RunnerError, which ends the batch."""
    message = await call.receive()
    if message is None:
        return None
    given: v1.BatchInput | None = _member(message, "input")
    if given is None:
        raise error(ErrorKind.BAD_INPUT, "only the first message of a batch is not `input`", field="input")
    if len(given.id) > MAX_INPUT_ID:
        raise error(ErrorKind.BAD_INPUT, f"an id has at most {MAX_INPUT_ID} characters", field="input.id")
    return Input(given.id, given.input_json.encode())


def _query(request: v1.ListExecutionsRequest) -> Query:
    return Query(
        module=request.module_name or None,
        version=request.version or None,
        status=execution_status(request.status),
        kind=error_kind(request.kind),
        subject=request.subject or None,
        schedule=request.schedule or None,
        rerun_of=request.rerun_of or None,
        parent=request.parent or None,
        root=request.root or None,
        node=request.node or None,
        unresolved=request.unresolved,
        since=seconds(request.since),
        until=seconds(request.until),
        limit=page_limit(request.limit),
        cursor=request.cursor or None,
    )


def _refuse_terms(request: v1.ExecuteRequest) -> None:
    """Raise RunnerError `bad_input` when a call that waits has terms of a submission."""
    if request.priority is None and not request.run_at and not request.delay:
        return
    given = {"priority": request.priority is not None, "run_at": request.run_at, "delay": request.delay}
    for name, value in given.items():
        if value:
            raise error(ErrorKind.BAD_INPUT, f"`{name}` is only for Submit", field=name)


def _member(message: Any, name: str) -> Any | None:
    """Return a member of a oneof, None when another member is set."""
    return getattr(message, name, None)


def _key(call: Call) -> str | None:
    return call.metadata.get("idempotency-key")


def _timeout(call: Call, field: float) -> float | None:
    """Return the smaller of the field `timeout` (0: no timeout) and the client's deadline, in seconds."""
    remaining = call.remaining
    if not field:
        return remaining
    return field if remaining is None else min(field, remaining)
