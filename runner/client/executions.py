"""What `executions list`, `show` and `cancel` do."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

import click
import msgspec

from config.units import duration, format_duration
from runner.client.connection import Client, printable, segment
from runner.client.events import FailureFields, failure_in
from runner.client.lists import collect, print_json, print_table, read_items, time_of

_SHOWN_CHARACTERS = 2000
_AGO = re.compile(r"[0-9.]+\s*(ms|s|m|h|d)")


class _Waiting(msgspec.Struct):
    reason: str


class _Listed(msgspec.Struct):
    """An execution as lists have it."""

    id: str
    module: str
    version: str
    status: str
    env: str = ""
    subject: str = ""
    created_at: float = 0.0
    error: FailureFields | None = None
    duration: float | None = None
    waiting: _Waiting | None = None


class _Shown(_Listed):
    """An execution as it is shown alone."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    exit_code: int | None = None
    attempts: int = 0
    output_dropped: int = 0
    killed: list[str] = []
    peak_memory: int | None = None
    timings: dict[str, float] = {}
    asynchronous: bool = False
    timeout: float | None = None
    idempotency_key: str | None = None
    started_at: float | None = None
    finished_at: float | None = None


def moment(value: str | None) -> str | None:
    """Return a time as the route takes it: `2h` is two hours ago, what else there is is the runner's to read."""
    if value is None or not _AGO.fullmatch(value):
        return value
    return repr(time.time() - duration(value))


async def listing(
    client: Client, filters: Mapping[str, object], limit: int, cursor: str | None, *, as_json: bool
) -> int:
    """Print at most `limit` executions, newest first, and where to go on. Raises RunnerError."""
    items, cursor = await collect(client, "/executions", filters, limit, cursor)
    if as_json:
        print_json(items, cursor)
    else:
        rows = [_row(item) for item in read_items(client, items, _Listed)]
        print_table(("ID", "MODULE", "STATUS", "ACCEPTED", "TOOK", "CALLER", ""), rows, cursor)
    return 0


def _row(item: _Listed) -> tuple[str, ...]:
    took = "-" if item.duration is None else f"{item.duration:.3f}s"
    last = item.error.kind if item.error is not None else item.waiting.reason if item.waiting is not None else ""
    module = f"{item.module}@{item.version}"
    return (item.id, module, item.status, time_of(item.created_at), took, item.subject, last)


async def showing(client: Client, identity: str, *, as_json: bool) -> int:
    """Print all that is known of an execution. Raises RunnerError."""
    answer = await client.request("GET", f"/executions/{segment(identity)}")
    shown = answer.read(_Shown)
    if as_json:
        click.echo(answer.body)
        return 0
    click.echo(text_of(shown), nl=False)
    return 0


def text_of(item: _Shown) -> str:
    """Return an execution for people: what is empty is left out, long values are cut."""
    timings = ", ".join(f"{name} {seconds:.3f}s" for name, seconds in item.timings.items() if seconds >= 0.001)
    rows: list[tuple[str, object]] = [
        ("id", item.id),
        ("module", f"{item.module}@{item.version} ({item.env})"),
        ("status", item.status),
        ("waits for", None if item.waiting is None else item.waiting.reason),
        ("caller", item.subject),
        ("accepted", time_of(item.created_at) + (", asynchronous" if item.asynchronous else "")),
        ("started", None if item.started_at is None else time_of(item.started_at)),
        ("ended", None if item.finished_at is None else time_of(item.finished_at)),
        ("took", None if item.duration is None else f"{item.duration:.3f}s" + (f" ({timings})" if timings else "")),
        ("timeout", None if item.timeout is None else format_duration(item.timeout)),
        ("key", item.idempotency_key),
        ("attempts", item.attempts),
        ("exit code", item.exit_code),
        ("peak memory", None if item.peak_memory is None else f"{item.peak_memory} bytes"),
        ("killed", ", ".join(item.killed)),
        ("dropped", f"{item.output_dropped} bytes of output" if item.output_dropped else None),
        ("input", _cut(item.input)),
        ("result", _cut(item.result) if item.status == "succeeded" else None),
    ]
    lines = [f"{name:<12} {printable(str(value))}".rstrip() for name, value in rows if value not in (None, "")]
    if item.error is not None:
        failure = failure_in(item.error)
        lines += printable(failure.traceback or "").splitlines()
        lines.append(f"error: {failure.kind}: {failure.message}")
    return "\n".join(lines) + "\n"


def _cut(value: msgspec.Raw) -> str:
    text = bytes(value).decode("utf-8", "replace")
    rest = len(text) - _SHOWN_CHARACTERS
    return text if rest <= 0 else f"{text[:_SHOWN_CHARACTERS]}... and {rest} characters more: --json"


async def cancelling(client: Client, identities: Sequence[str]) -> int:
    """End executions, one after another, and print what each is then. Raises RunnerError."""
    for identity in identities:
        answer = await client.request("POST", f"/executions/{segment(identity)}/cancel")
        click.echo(f"{identity}  {printable(answer.read(_Listed).status)}")
    return 0
