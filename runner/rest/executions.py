"""The REST routes of executions: accept, look, list, cancel; parse, call the service, render."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

import msgspec
from attrs import evolve
from quart import Response, request
from quart_trio import QuartTrio

from actors.history import Query
from config.mistakes import Wrong
from config.units import duration
from protocol import views
from protocol.errors import ErrorKind, RunnerError, error
from protocol.events import DroppedEvent, KeptEvent, OutputEvent, decode_all, encode, text_of
from protocol.model import Execution, Status, Stream
from runner.api import Service
from runner.auth import Principal
from runner.rest.openapi import Order, operations
from runner.rest.render import accepted_json, record_json, stats_json
from runner.rest.web import arguments, json_answer, moment, one_of, page_limit, seconds_of, serves

_orders = msgspec.json.Decoder(Order)


def add_execution_routes(app: QuartTrio, service: Service, principal: Callable[[], Awaitable[Principal]]) -> None:
    """Add the routes to `app`; `principal` says who makes the request at hand."""
    _add_lists(app, service, principal)

    @serves(app, operations.SUBMIT)
    async def accept() -> Response:
        who = await principal()
        arguments(operations.SUBMIT)
        data = await request.get_data(as_text=False)
        order = _order(data if isinstance(data, bytes) else data.encode())
        key = request.headers.get("idempotency-key")
        return accepted(await _submit(service, who, order, key, _shorter(order.timeout)))

    @serves(app, operations.GET)
    async def execution(id: str) -> Response:  # noqa: A002  (as its path says)
        who = await principal()
        arguments(operations.GET)
        return json_answer(record_json(await service.get(who, id)))

    @serves(app, operations.OUTPUT)
    async def output(id: str) -> Response:  # noqa: A002  (as its path says)
        who = await principal()
        args = arguments(operations.OUTPUT)
        stream = one_of(Stream, "stream", args.get("stream"))
        kept = decode_all((await service.get(who, id)).events)
        form = args.get("format", "text")
        if form not in ("text", "jsonl"):
            raise error(ErrorKind.BAD_INPUT, f"format {form!r:.80} is not one of text, jsonl", field="format")
        if form == "jsonl":
            return Response(b"".join(_lines(kept, stream)), content_type="application/jsonl")
        return Response(text_of(kept, stream), content_type="text/plain; charset=utf-8")

    @serves(app, operations.CANCEL)
    async def cancel(id: str) -> Response:  # noqa: A002  (as its path says)
        who = await principal()
        arguments(operations.CANCEL)
        return json_answer(record_json(await service.cancel(who, id)))


def _add_lists(app: QuartTrio, service: Service, principal: Callable[[], Awaitable[Principal]]) -> None:
    @serves(app, operations.LIST)
    async def executions() -> Response:
        who = await principal()
        args = arguments(operations.LIST)
        query = Query(
            module=args.get("module"),
            version=args.get("version"),
            status=one_of(Status, "status", args.get("status")),
            kind=one_of(ErrorKind, "error", args.get("error")),
            subject=args.get("subject"),
            since=moment("since", args.get("since")),
            until=moment("until", args.get("until")),
            limit=page_limit(args.get("limit")),
            cursor=args.get("cursor"),
        )
        page = await service.list(who, query)
        return json_answer({"items": [views.listed(item) for item in page.items], "cursor": page.next_cursor})

    @serves(app, operations.STATS)
    async def stats(name: str) -> Response:
        who = await principal()
        args = arguments(operations.STATS)
        since, until = moment("since", args.get("since")), moment("until", args.get("until"))
        if "window" in args:
            since = _window_start(args["window"], since, until)
        return json_answer(stats_json(await service.stats(who, name, since=since, until=until)))


def accepted(execution: Execution) -> Response:
    """Return the answer to an execution that was accepted: where it is, and what it is now."""
    # The same idempotency key may lead to one that has ended: then this is its end.
    body, status = (record_json(execution), 200) if execution.status.final else (accepted_json(execution), 202)
    response = json_answer(body, status)
    response.headers["location"] = f"/executions/{execution.id}"
    response.headers["x-execution-id"] = execution.id
    return response


async def _submit(service: Service, who: Principal, order: Order, key: str | None, timeout: float | None) -> Execution:
    try:
        return await service.submit(
            who, order.module, bytes(order.input), version=order.version, timeout=timeout, key=key
        )
    except RunnerError as problem:
        if problem.failure.field != "name":
            raise
        raise RunnerError(evolve(problem.failure, field="module")) from None


def _shorter(timeout: float | None) -> float | None:
    """Return the smaller one of the order's time limit and that of the header."""
    header = request.headers.get("x-timeout")
    if header is None:
        return timeout
    seconds = seconds_of("X-Timeout", header)
    return seconds if timeout is None else min(timeout, seconds)


def _order(data: bytes) -> Order:
    try:
        return _orders.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        fields = "`module`, and if wanted `input`, `version`, `timeout` (seconds)"
        text = f"the body is not an order of an execution: {problem}; it has {fields}"
        raise error(ErrorKind.BAD_INPUT, text, field="$") from None


def _lines(kept: tuple[KeptEvent, ...], stream: Stream | None) -> Iterator[bytes]:
    """Yield what was printed in all attempts, as JSON lines; what was not kept is said."""
    for event in kept:
        if isinstance(event, DroppedEvent) or (
            isinstance(event, OutputEvent) and (stream is None or event.stream is stream)
        ):
            yield encode(event) + b"\n"


def _window_start(text: str, since: float | None, until: float | None) -> float:
    if since is not None:
        raise error(ErrorKind.BAD_INPUT, "give `window` or `since`, not both", field="window")
    try:
        length = duration(text)
    except Wrong as wrong:
        raise error(
            ErrorKind.BAD_INPUT, f"window: {wrong.message}; a window is like 15m, 24h, 7d", field="window"
        ) from None
    return (time.time() if until is None else until) - length
