"""The work of the commands `executions list`, `show` and `cancel`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import click
import msgspec

from config.mistakes import ConfigError, Mistake
from config.units import duration, format_duration
from protocol import views
from protocol.model import DEFAULT_PRIORITY
from protocol.views import MAX_PAGE
from runner.client.connection import Client, segment
from runner.client.events import failure_in
from runner.client.lists import collect, print_json, print_table, read_items
from runner.terminal import printable, shortened, show_line, style_of, table, time_of

_SHOWN_CHARACTERS = 2000
_NULL: Final = msgspec.Raw(b"null")
_AGO = re.compile(r"[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)")
_SECONDS = re.compile(r"[0-9]{9,}(\.[0-9]+)?")
_DAYS = {"today": 0, "yesterday": 1}


class _Problem(msgspec.Struct):
    message: str


class _Repeated(msgspec.Struct):
    id: str
    module: str
    version: str
    rerun: str | None = None
    problem: _Problem | None = None


class _RepeatedPage(msgspec.Struct):
    items: list[_Repeated]
    cursor: str | None = None


_JSON: Final = {"content-type": "application/json"}
_RECORD: Final = views.lenient(views.RecordedExecution)
_LISTED: Final = views.lenient(views.ListedExecution)


def moment(value: str | None, option: str) -> str | None:
    """Return a time for the route, in seconds since 1970. A time without a zone is that of this machine.

    Raises ConfigError that names the forms.
    """
    if value is None or _SECONDS.fullmatch(value):
        return value
    if _AGO.fullmatch(value):
        return repr(time.time() - duration(value))
    word = value.strip().lower()
    try:
        if word in _DAYS:
            day = datetime.now().astimezone().date() - timedelta(days=_DAYS[word])
            found = datetime(day.year, day.month, day.day)  # noqa: DTZ001  (the next line gives it the local zone)
        else:
            found = datetime.fromisoformat(value.strip())
        return _seconds(found)
    except (ValueError, OverflowError, OSError):
        text = f"{value!r:.60} is not a time; write today, yesterday, 2h (two hours ago), 2026-01-31 or"
        raise ConfigError([Mistake(f"{text} 2026-01-31T09:30:00Z", None, None, option)]) from None


def coming(value: str | None, option: str) -> str | None:
    """Return a time for the route as `moment` does, from a date or a date and time. Raises ConfigError."""
    if value is None or _SECONDS.fullmatch(value):
        return value
    try:
        return _seconds(datetime.fromisoformat(value.strip()))
    except (ValueError, OverflowError, OSError):
        text = f"{value!r:.60} is not a time; write 2027-01-31, 2027-01-31T09:30 or 2027-01-31T09:30:00Z"
        raise ConfigError([Mistake(text, None, None, option)]) from None


def _seconds(found: datetime) -> str:
    return repr((found if found.tzinfo is not None else found.astimezone()).timestamp())


async def list_executions(
    client: Client, filters: Mapping[str, object], limit: int, cursor: str | None, *, as_json: bool
) -> int:
    """Print at most `limit` executions, newest first, and the next cursor. Raises RunnerError."""
    items, cursor = await collect(client, "/executions", filters, limit, cursor)
    if as_json:
        print_json(items, cursor)
    else:
        rows = [_row(item) for item in read_items(client, items, _LISTED)]
        print_table(("ID", "MODULE", "STATUS", "ACCEPTED", "TOOK", "CALLER", ""), rows, cursor)
    return 0


def _row(item: views.ListedExecution) -> tuple[str, ...]:
    took, failure, waiting = item.get("duration"), item.get("error"), item.get("waiting")
    last = failure["kind"] if failure is not None else waiting["reason"] if waiting is not None else ""
    return (
        item["id"],
        f"{item['module']}@{item['version']}",
        item["status"],
        time_of(item.get("created_at", 0.0)),
        "-" if took is None else f"{took:.3f}s",
        item.get("subject", ""),
        last,
    )


async def show_execution(client: Client, identity: str, *, as_json: bool) -> int:
    """Print all fields of an execution. Raises RunnerError."""
    answer = await client.request("GET", f"/executions/{segment(identity)}")
    shown = answer.read(_RECORD)
    if as_json:
        click.echo(answer.body)
        return 0
    status = shown["status"]
    for line in text_of(shown).splitlines():
        name, _, value = line.partition(" ")
        style = style_of(status) if name == "status" else "bold red" if line.startswith("error: ") else ""
        show_line(
            (name, style if name == "error:" else ""), (line[len(name) :], style if value.strip() == status else "")
        )
    return 0


def text_of(item: views.RecordedExecution) -> str:
    """Return an execution as text, without empty fields and with long values cut."""
    phases: Mapping[str, float] = item.get("timings", {})  # type: ignore[assignment]  # all of its values are floats
    timings = ", ".join(f"{name} {seconds:.3f}s" for name, seconds in phases.items() if seconds >= 0.001)
    waiting, took, failure = item.get("waiting"), item.get("duration"), item.get("error")
    started, finished, timeout = item.get("started_at"), item.get("finished_at"), item.get("timeout")
    run_at, priority = item.get("run_at"), item.get("priority", DEFAULT_PRIORITY)
    memory, dropped = item.get("peak_memory"), item.get("output_dropped", 0)
    rows: list[tuple[str, object]] = [
        ("id", item["id"]),
        ("module", f"{item['module']}@{item['version']} ({item.get('env', '')})"),
        ("status", item["status"]),
        ("waits for", None if waiting is None else waiting["reason"]),
        ("caller", item.get("subject")),
        ("via", item.get("via")),
        ("node", item.get("node")),
        ("runs at", None if run_at is None else time_of(run_at)),
        ("schedule", _schedule(item)),
        ("priority", None if priority == DEFAULT_PRIORITY else priority),
        ("group", item.get("group")),
        ("repeats", item.get("rerun_of")),
        ("repeated by", ", ".join(item.get("reruns", ()))),
        ("called by", item.get("parent")),
        ("began with", None if item.get("root") == item.get("parent") else item.get("root")),
        ("called", ", ".join(item.get("children", ()))),
        ("accepted", time_of(item.get("created_at", 0.0)) + (", asynchronous" if item.get("asynchronous") else "")),
        ("started", None if started is None else time_of(started)),
        ("ended", None if finished is None else time_of(finished)),
        ("took", None if took is None else f"{took:.3f}s" + (f" ({timings})" if timings else "")),
        ("timeout", None if timeout is None else format_duration(timeout)),
        ("key", item.get("idempotency_key")),
        ("attempts", item.get("attempts", 0)),
        ("exit code", item.get("exit_code")),
        ("peak memory", None if memory is None else f"{memory} bytes"),
        ("killed", ", ".join(item.get("killed", ()))),
        ("dropped", f"{dropped} bytes of output" if dropped else None),
        *_payload(item),
    ]
    text = table([(name, str(value)) for name, value in rows if value not in (None, "")])
    if failure is None:
        return text
    shown = failure_in(failure)
    lines = [*printable(shown.traceback or "").splitlines(), f"error: {shown.kind}: {shown.message}"]
    return text + "\n".join(lines) + "\n"


def _schedule(item: views.RecordedExecution) -> str | None:
    name, instant = item.get("schedule"), item.get("scheduled_for")
    return name if instant is None else f"{name} for {time_of(instant)}"


def _payload(item: views.RecordedExecution) -> list[tuple[str, object]]:
    """Return input and result; their sizes where the module records summaries."""
    if item.get("record") == "summary" and item.get("finished_at") is not None:
        sizes = (item.get("input_bytes"), item.get("result_bytes"), item.get("output_bytes"))
        names = ("input", "result", "output")
        return [
            (n, None if size is None else f"{size} bytes, not recorded") for n, size in zip(names, sizes, strict=True)
        ]
    result = _cut(item.get("result", _NULL)) if item["status"] == "succeeded" else None
    return [("input", _cut(item.get("input", _NULL))), ("result", result)]


def _cut(value: msgspec.Raw) -> str:
    return shortened(bytes(value).decode("utf-8", "replace"), _SHOWN_CHARACTERS)


async def rerun_executions(
    client: Client, identities: Sequence[str], version: str, data: bytes | None, terms: Mapping[str, object]
) -> int:
    """Repeat executions one after another, and print the ID of each repetition. Raises RunnerError."""
    body = {"version": version} | ({} if data is None else {"input": msgspec.Raw(data.strip() or b"null")})
    for identity in identities:
        path = f"/executions/{segment(identity)}/rerun"
        answer = await client.request("POST", path, query=terms, body=msgspec.json.encode(body), headers=_JSON)
        click.echo(answer.read(_LISTED)["id"])
    return 0


async def rerun_list(
    client: Client, filters: Mapping[str, object], limit: int, cursor: str | None, version: str, *, dry_run: bool
) -> int:
    """Repeat the executions of a list, and print what became of each; 0, or 1 when one was refused. RunnerError."""
    refused = False
    while limit > 0:
        query = {**filters, "limit": min(limit, MAX_PAGE), "cursor": cursor, "dry_run": "true" if dry_run else None}
        body = msgspec.json.encode({"version": version})
        answer = await client.request("POST", "/executions/rerun", query=query, body=body, headers=_JSON)
        page = answer.read(_RepeatedPage)
        for item in page.items:
            problem = item.problem
            refused = refused or problem is not None
            became = item.rerun or "would be repeated" if problem is None else f"not repeated: {problem.message}"
            click.echo(f"{item.id}  {printable(f'{item.module}@{item.version}  {became}')}")
        limit, cursor = limit - len(page.items), page.cursor
        if cursor is None:
            return int(refused)
    click.echo(f"there may be more; continue with --cursor {cursor}", err=True)
    return int(refused)


async def cancel_executions(client: Client, identities: Sequence[str]) -> int:
    """Cancel executions one after another, and print the state of each. Raises RunnerError."""
    for identity in identities:
        answer = await client.request("POST", f"/executions/{segment(identity)}/cancel")
        click.echo(f"{identity}  {printable(answer.read(_LISTED)['status'])}")
    return 0


async def decide_executions(client: Client, identities: Sequence[str], reason: str, *, approved: bool) -> int:
    """Approve or deny executions one after another, and print each. Raises RunnerError."""
    verb, body = "approve" if approved else "deny", msgspec.json.encode({"reason": reason})
    for identity in identities:
        await client.request("POST", f"/executions/{segment(identity)}/{verb}", body=body, headers=_JSON)
        click.echo(f"{identity}  {'approved' if approved else 'denied'}")
    return 0
