"""The output of an execution, for the script of its page and for download: parts, search, and what comes."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec

from protocol.errors import ErrorKind, RunnerError, error
from runner.api import MAX_LINES
from runner.auth import Scope
from runner.ui.live import failed, key_of, send_news, spot_of, stream_of, window_fields
from runner.ui.visit import Answer, Reply, Stream, Visit, view

_JSON: Final = "application/json"
_MAX_SEQ: Final = 10**18 - 1


@view("GET", "/executions/{id}/lines", scope=Scope.EXECUTIONS_READ)
async def lines(page: Visit) -> Reply:
    """Return some lines: `after` or `before` the key of one, `around` one, or the last ones."""
    query = page.query
    around = spot_of(query.get("around"))
    window = await page.service.outputs.window(
        page.principal,
        page.path["id"],
        limit=min(_number(query.get("limit"), 500), MAX_LINES),
        stream=stream_of(query.get("stream")),
        after=around or spot_of(query.get("after")),
        before=around or spot_of(query.get("before")),
        last=query.get("last") == "true",
    )
    return _json(window_fields(window))


@view("GET", "/executions/{id}/search", scope=Scope.EXECUTIONS_READ)
async def search(page: Visit) -> Reply:
    """Return the keys of the lines of the whole output that contain a text."""
    try:
        found = await page.service.outputs.search(
            page.principal, page.path["id"], page.query.get("q", ""), stream_of(page.query.get("stream"))
        )
    except RunnerError as problem:
        if problem.failure.kind is not ErrorKind.BAD_INPUT:
            raise
        return _json({"count": 0, "keys": [], "problem": problem.failure.message}, 400)
    return _json({"count": found.count, "keys": [key_of(line.spot) for line in found.lines], "problem": None})


@view("GET", "/executions/{id}/output", scope=Scope.EXECUTIONS_READ)
async def download(page: Visit) -> Reply:
    """Return the kept output as it was printed."""
    return _attachment(await page.service.outputs.text(page.principal, page.path["id"]), page.path["id"], "txt")


@view("GET", "/executions/{id}/input", scope=Scope.EXECUTIONS_READ)
async def download_input(page: Visit) -> Reply:
    """Return the input as JSON."""
    execution = await page.service.get(page.principal, page.path["id"])
    return _attachment(execution.input, f"{execution.id}-input", "json", _JSON)


@view("GET", "/executions/{id}/result", scope=Scope.EXECUTIONS_READ)
async def download_result(page: Visit) -> Reply:
    """Return the result as JSON."""
    execution = await page.service.get(page.principal, page.path["id"])
    if execution.result is None:
        raise error(ErrorKind.NOT_FOUND, f"the execution {execution.id} has no result", field="result")
    return _attachment(execution.result, f"{execution.id}-result", "json", _JSON)


@view("GET", "/executions/{id}/events", scope=Scope.EXECUTIONS_READ, raw=True)
async def events(page: Visit) -> Answer:
    """Follow an execution from event `after`, or from the last one that the browser has had."""
    last = page.header("last-event-id")
    start = _number(page.query.get("after"), 0) if last is None else _number(last, -1) + 1
    if (await page.service.follow(page.principal, page.path["id"], start)).ended:
        return Reply(status=204)  # stops a browser, which connects again after the last event
    follower = await page.service.follow(page.principal, page.path["id"])  # lines grow from the first event on
    return Stream(partial(send_news, follower, start), failed=failed)


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(msgspec.json.encode(value), status, _JSON)


def _attachment(data: bytes, name: str, ending: str, kind: str = "text/plain; charset=utf-8") -> Reply:
    named = "".join(letter for letter in name if letter.isascii() and (letter.isalnum() or letter == "-"))
    return Reply(data, 200, kind, (("content-disposition", f'attachment; filename="{named}.{ending}"'),))


def _number(text: str | None, default: int) -> int:
    """Return a number in a query, the default for another text."""
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 18):
        return default
    return min(int(text), _MAX_SEQ)


VIEWS = (lines, search, download, download_input, download_result, events)
