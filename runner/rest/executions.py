"""The endpoints of executions that answer at once or at the end: execute, submit, list, show, cancel, count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

import msgspec
from attrs import evolve
from msgspec import UnsetType

from actors.history import Query
from actors.turns import Terms, terms_of
from protocol import views
from protocol.errors import ErrorKind, RunnerError, error
from protocol.events import DroppedEvent, KeptEvent, OutputEvent, decode_all, encode, text_of
from protocol.messages import InvalidJsonError, check_json
from protocol.model import Execution, Stream
from protocol.scan import LARGE_BYTES
from runner.api import is_large
from runner.auth import Scope
from runner.inputs import read_input
from runner.rest.endpoint import Answer, Download, Request, json_answer, serves
from runner.rest.files import has_content, result_answer
from runner.rest.openapi import JSON, TERMS, CancelledPage, Decision, Order, RepeatedPage, Repetition, Repetitions
from runner.rest.render import (
    accepted_json,
    cancelled,
    execution_json,
    execution_status,
    failure_headers,
    line_json,
    record_json,
    repeated,
    stats_json,
)

_decisions: Final = msgspec.json.Decoder(Decision)
_repetitions: Final = msgspec.json.Decoder(Repetition)
_all_repetitions: Final = msgspec.json.Decoder(Repetitions)
T = TypeVar("T")
_VERSION: Final = '{"version": "same", "input": ...}, or nothing'
_REASON: Final = '{"reason": "..."} of at most 500 characters, or nothing'
_ACCEPT_JSON: Final = (b"*/*", b"application/*", b"json")
_orders: Final = msgspec.json.Decoder(Order)


@serves("execute")
async def execute(request: Request) -> Answer | Download:
    """Run a module: the hot path."""
    service, asynchronous = request.service, request["Prefer"]
    run = partial(service.submit, terms=_terms(request)) if asynchronous else service.execute
    if not asynchronous:
        _refuse_terms(request)
    execution = await run(
        request.principal,
        request["name"],
        await _input(request, request["name"], request["version"]),
        version=request["version"],
        timeout=request["X-Timeout"],
        key=request["Idempotency-Key"],
    )
    if asynchronous:
        answer = _accepted(request, execution, execution_json)
        return evolve(answer, headers=(*answer.headers, (b"preference-applied", b"respond-async")))
    if is_large(execution):
        ended = service.answers.ended(request.share, execution)
        del execution  # its result must not be kept while it waits
        execution = await ended
    headers = [(b"x-execution-id", execution.id.encode())]
    if has_content(execution) and _wants_content(request):
        return await result_answer(request, execution, tuple(headers))
    if execution.failure is not None:
        headers += failure_headers(execution.failure)
    return json_answer(execution_json(execution), execution_status(execution), tuple(headers))


def _wants_content(request: Request) -> bool:
    """Whether the client accepts no JSON, and so asks for a file as it is."""
    accepted = request.fields.get(b"accept")
    return accepted is not None and not any(kind in accepted for kind in _ACCEPT_JSON)


async def _input(request: Request, name: str, version: str | None) -> bytes:
    """Return the input in the body of a call. Raises RunnerError."""
    given = request.fields.get(b"content-type", b"")
    if given in (b"", JSON.encode()):
        return await request.body()
    module = request.service.module(request.principal, Scope.EXECUTIONS_RUN, name, version)
    return await read_input(request, given.decode("latin-1"), request.service, request.principal, module)


def _terms(request: Request, order: Order | None = None) -> Terms:
    """Return the terms of a submission: those of the query, else those of the order in its body. Raises RunnerError."""
    given = {}
    for each in TERMS:
        value = request[each.name]
        if value is None and order is not None and (written := getattr(order, each.name)) is not None:
            value = each.read([str(written)])
        given[each.name] = value
    return terms_of(time.time(), **given)


def _refuse_terms(request: Request) -> None:
    """Raise RunnerError `bad_input` when a call that waits has terms of a submission."""
    for each in TERMS:
        if request[each.name] is not None:
            text = f"`{each.name}` is for asynchronous calls; send the header `Prefer: respond-async` as well"
            raise error(ErrorKind.BAD_INPUT, text, field=each.name)


@serves("submit")
async def submit(request: Request) -> Answer:
    """Accept an execution."""
    order = await _ordered(request)
    given = [seconds for seconds in (order.timeout, request["X-Timeout"]) if seconds is not None]
    try:
        execution = await request.service.submit(
            request.principal,
            order.module,
            bytes(order.input),
            version=order.version,
            timeout=min(given, default=None),
            key=request["Idempotency-Key"],
            terms=_terms(request, order),
        )
    except RunnerError as problem:
        if problem.failure.field != "name":
            raise
        raise RunnerError(evolve(problem.failure, field="module")) from None
    return _accepted(request, execution, record_json)


async def _ordered(request: Request) -> Order:
    """Return the order in the body, or with the parameter `module` the order of that with the body as input."""
    name, version = request["module"], request["version"]
    if name is not None:
        return Order(name, msgspec.Raw(await _input(request, name, version)), version)
    if version is not None:
        text = "`version` goes with the parameter `module`, else it is in the body"
        raise error(ErrorKind.BAD_INPUT, text, field="version")
    return await request.service.checks.whole(_order, await request.body())


def _accepted(request: Request, execution: Execution, render: Callable[[Execution], bytes]) -> Answer:
    """Return the path and the state of an accepted execution; `render` shows one that has ended."""
    identity = execution.id.encode()
    headers = ((b"x-execution-id", identity), (b"location", b"/executions/" + identity))
    if execution.status.final:  # the same idempotency key has led to it
        request.service.answers.take_whole(request.share, execution)
        return json_answer(render(execution), 200, headers)
    return json_answer(accepted_json(execution), 202, headers)


def _order(data: bytes) -> Order:
    try:
        if len(data) > LARGE_BYTES:
            check_json(data)  # with its limits
        return _orders.decode(data)
    except (InvalidJsonError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        example = '{"module": "NAME", "input": ...}, and optionally `version`, `timeout`, `priority`, `run_at`'
        raise error(ErrorKind.BAD_INPUT, f"the body cannot be read: {problem}; write {example}", field="$") from None


def _query(request: Request) -> Query:
    return Query(
        module=request["module"],
        version=request["version"],
        status=request["status"],
        kind=request["error"],
        subject=request["subject"],
        schedule=request["schedule"],
        rerun_of=request["rerun_of"],
        parent=request["parent"],
        root=request["root"],
        node=request["node"],
        unresolved=request["unresolved"],
        text=request["text"],
        since=request["since"],
        until=request["until"],
        limit=request["limit"],
        cursor=request.values.get("cursor"),
    )


@serves("listExecutions")
async def list_executions(request: Request) -> Answer:
    """List executions."""
    page = await request.service.list(request.principal, _query(request))
    return json_answer({"items": [views.listed(item) for item in page.items], "cursor": page.next_cursor})


@serves("getExecution")
async def show(request: Request) -> Answer:
    """Show an execution."""
    return _record(request, await request.service.get(request.principal, request["id"]))


@serves("getResult")
async def result(request: Request) -> Answer | Download:
    """Show the result alone: JSON, a file, or the body of a response."""
    execution = await request.service.get(request.principal, request["id"])
    return await result_answer(request, execution, ((b"x-execution-id", execution.id.encode()),))


def _record(request: Request, execution: Execution) -> Answer:
    request.service.answers.take_whole(request.share, execution)
    return json_answer(record_json(execution))


@serves("getOutput")
async def output(request: Request) -> Answer:
    """Show the output of an execution."""
    if (sought := request["search"]) is not None:
        outputs = request.service.outputs
        found = await outputs.search(request.principal, request["id"], sought, request["stream"])
        return Answer(b"".join(map(line_json, found.lines)), content_type="application/jsonl")
    events = (await request.service.get(request.principal, request["id"])).events
    request.service.answers.take(request.share, len(events))
    kept = decode_all(events)
    if request["format"] == "jsonl":
        return Answer(b"".join(_lines(kept, request["stream"])), content_type="application/jsonl")
    return Answer(text_of(kept, request["stream"]).encode(), content_type="text/plain; charset=utf-8")


def _lines(kept: tuple[KeptEvent, ...], stream: Stream | None) -> Iterator[bytes]:
    """Yield the output of all attempts as JSON lines, with a line where output was dropped."""
    for event in kept:
        if isinstance(event, DroppedEvent) or (
            isinstance(event, OutputEvent) and (stream is None or event.stream is stream)
        ):
            yield encode(event) + b"\n"


@serves("cancelExecution")
async def cancel(request: Request) -> Answer:
    """Cancel an execution."""
    return _record(request, await request.service.cancel(request.principal, request["id"]))


@serves("approveExecution")
async def approve(request: Request) -> Answer:
    """Approve an execution."""
    why = _decoded(_decisions, await request.body(), _REASON).reason
    return json_answer(accepted_json(await request.service.decisions.approve(request.principal, request["id"], why)))


@serves("denyExecution")
async def deny(request: Request) -> Answer:
    """Deny an execution."""
    why = _decoded(_decisions, await request.body(), _REASON).reason
    return json_answer(accepted_json(await request.service.decisions.deny(request.principal, request["id"], why)))


@serves("rerunExecution")
async def rerun(request: Request) -> Answer:
    """Repeat an execution."""
    how = await request.service.checks.whole(partial(_decoded, _repetitions), await request.body())
    execution = await request.service.reruns.one(
        request.principal,
        request["id"],
        version=how.version,
        data=None if isinstance(how.input, UnsetType) else bytes(how.input),
        key=request["Idempotency-Key"],
        terms=_terms(request),
    )
    return _accepted(request, execution, record_json)


@serves("rerunExecutions")
async def rerun_all(request: Request) -> Answer:
    """Repeat the executions of a list."""
    version, dry_run = _decoded(_all_repetitions, await request.body()).version, request["dry_run"]
    query = _query(request)
    found, cursor = await request.service.reruns.many(request.principal, query, version=version, dry_run=dry_run)
    shown: RepeatedPage = {"dry_run": dry_run, "items": [repeated(each) for each in found], "cursor": cursor}
    return json_answer(shown)


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes, example: str = _VERSION) -> T:
    try:
        if len(data) > LARGE_BYTES:
            check_json(data)  # with its limits
        return decoder.decode(data or b"{}")
    except (InvalidJsonError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise error(ErrorKind.BAD_INPUT, f"the body cannot be read: {problem}; write {example}", field="$") from None


@serves("cancelExecutions")
async def cancel_all(request: Request) -> Answer:
    """Cancel the executions of a list."""
    dry_run = request["dry_run"]
    found, more = await request.service.cancels.many(request.principal, _query(request), dry_run=dry_run)
    shown: CancelledPage = {"dry_run": dry_run, "items": list(map(cancelled, found)), "more": more}
    return json_answer(shown)


@serves("getStats")
async def stats(request: Request) -> Answer:
    """Count the executions of a module by their end."""
    since, until, window = request["since"], request["until"], request["window"]
    if window is not None:
        if since is not None:
            raise error(ErrorKind.BAD_INPUT, "give `window` or `since`, not both", field="window")
        since = (time.time() if until is None else until) - window
    found = await request.service.details.stats(request.principal, request["name"], since=since, until=until)
    return json_answer(stats_json(found))


ENDPOINTS: Final = (
    execute,
    submit,
    list_executions,
    show,
    result,
    output,
    cancel,
    approve,
    deny,
    rerun,
    rerun_all,
    cancel_all,
    stats,
)
