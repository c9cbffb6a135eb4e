"""What `modules push`, `list`, `show`, `versions`, `activate`, `rm` and `log` do."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import click
import msgspec
from attrs import evolve

from config.units import format_duration
from protocol.errors import ErrorKind, RunnerError
from runner.client.connection import Answer, Client, printable, segment
from runner.client.lists import collect, one_line, print_json, print_table, read_items, time_of
from runner.client.module_files import Sent
from runner.client.printing import Interrupts, interruptible
from runner.status import INTERRUPTED

PUBLISH_SECONDS = 3600.0
"""For answers that wait until requirements are locked, an environment is built, or what runs has ended."""
_SHOWN_CHARACTERS = 2000
_DESCRIPTION = 60
"""Characters of a description in a list."""
_DURATIONS = ("timeout", "queue_timeout", "build_timeout", "start_timeout")


class _Module(msgspec.Struct):
    """A module as lists have it."""

    name: str
    version: str
    env: str = ""
    source: str = ""
    tags: list[str] = []
    description: str = ""
    published_at: float | None = None
    active: bool = False


class _Version(msgspec.Struct):
    version: str
    active: bool
    digest: str = ""
    published_at: float | None = None
    published_by: str = ""


class _Versions(msgspec.Struct):
    items: list[_Version]


class _Change(msgspec.Struct):
    at: float
    subject: str
    action: str
    module: str
    version: str | None = None
    detail: dict[str, Any] = {}


async def push(client: Client, sent: Sent, *, activate: bool, prepare: bool, match: str | None) -> int:
    """Have a version made of what is sent, and print what it is. Returns the exit code. Raises RunnerError."""
    query = {
        "name": sent.name if sent.method == "POST" else None,
        "activate": None if activate else "false",
        "prepare": "true" if prepare else None,
    }
    headers = {"content-type": sent.content_type} | ({} if match is None else {"if-match": match})
    answer = await _patiently(
        client, sent.method, sent.path, query, sent.name, prepare=prepare, body=sent.body, headers=headers
    )
    if answer is None:
        return INTERRUPTED
    module = answer.read(_Module)
    name, version = printable(module.name), printable(module.version)
    made = "created" if answer.status == 201 else "unchanged"
    click.echo(f"{name}  {version}  {made}, {'active' if module.active else 'not active'}")
    if not module.active:
        command = f"operato-runner modules activate {shlex.quote(name)} {shlex.quote(version)}"
        click.echo(f"calls that name no version do not get it before: {command}", err=True)
    return 0


async def activate(client: Client, name: str, version: str, *, prepare: bool) -> int:
    """Let calls get a version, and print it. Returns the exit code. Raises RunnerError."""
    path = f"/modules/{segment(name)}/versions/{segment(version)}/activate"
    query = {"prepare": "true" if prepare else None}
    answer = await _patiently(client, "POST", path, query, name, prepare=prepare)
    if answer is None:
        return INTERRUPTED
    module = answer.read(_Module)
    click.echo(f"{printable(module.name)}  {printable(module.version)}  active")
    return 0


async def remove(client: Client, name: str, version: str | None, *, force: bool) -> int:
    """Delete a module or one of its versions. Returns the exit code. Raises RunnerError."""
    path = f"/modules/{segment(name)}" + ("" if version is None else f"/versions/{segment(version)}")
    answer = await _patiently(client, "DELETE", path, {"force": "true" if force else None}, name)
    if answer is None:
        return INTERRUPTED
    click.echo(f"{name}  {version or 'all versions'}  deleted")
    return 0


async def _patiently(
    client: Client,
    method: str,
    path: str,
    query: Mapping[str, object],
    name: str | None,
    *,
    prepare: bool = False,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer | None:
    """Make a request that may take long, and return its answer, None when it was left. Raises RunnerError."""
    found: list[Answer] = []
    look = f"look with `operato-runner modules versions {shlex.quote(name or 'NAME')}`"
    if prepare:
        click.echo("building what is not there yet may take minutes; Ctrl-C leaves", err=True)

    async def work(_interrupts: Interrupts) -> int:
        try:
            answer = await client.request(
                method, path, query=query, body=body, headers=headers, seconds=PUBLISH_SECONDS
            )
        except RunnerError as problem:
            raise _with_hint(problem, look) from None
        found.append(answer)
        return 0

    await interruptible(work)
    if not found:
        click.echo(f"left; whether it was done is not known: {look}", err=True)
        return None
    return found[0]


def _with_hint(problem: RunnerError, look: str) -> RunnerError:
    """Return an error with what can be done about it."""
    failure = problem.failure
    if failure.kind is ErrorKind.LOST:
        hint = f"whether it was done is not known: {look}"
    elif failure.kind is ErrorKind.TOO_LARGE and failure.field is None:  # what is in an archive has the field
        hint = "the limit is the runner's `max_frame`"
    else:
        return problem
    return RunnerError(evolve(failure, message=f"{failure.message.rstrip('.')}; {hint}"))


async def listing(
    client: Client, filters: Mapping[str, object], limit: int, cursor: str | None, *, as_json: bool
) -> int:
    """Print at most `limit` modules by name, and where to go on. Raises RunnerError."""
    items, cursor = await collect(client, "/modules", filters, limit, cursor)
    if as_json:
        print_json(items, cursor)
    else:
        rows = [_row(item) for item in read_items(client, items, _Module)]
        print_table(("NAME", "VERSION", "ENV", "FROM", "PUBLISHED", "TAGS", ""), rows, cursor)
    return 0


def _row(item: _Module) -> tuple[str, ...]:
    said = one_line(" ".join(item.description.split()))
    said = said if len(said) <= _DESCRIPTION else f"{said[: _DESCRIPTION - 3]}..."
    return (item.name, item.version, item.env, item.source, time_of(item.published_at), ",".join(item.tags), said)


async def showing(client: Client, name: str, version: str | None, *, as_json: bool) -> int:
    """Print all that is told of a module. Raises RunnerError."""
    answer = await client.request("GET", f"/modules/{segment(name)}", query={"version": version})
    tag = answer.headers.get("etag", "").strip('"')
    if as_json:
        fields = answer.read(dict[str, msgspec.Raw])
        click.echo(msgspec.json.encode({**fields, "revision": tag}))
        return 0
    click.echo(text_of(answer.read(dict[str, Any]), tag), nl=False)
    return 0


def text_of(fields: Mapping[str, Any], revision: str) -> str:
    """Return a module for people: what is empty is left out, long values are cut."""
    rest = dict(fields)
    first = {name: rest.pop(name, None) for name in ("name", "version", "env", "source")}
    at, by = rest.pop("published_at", None), rest.pop("published_by", "")
    published = f"{time_of(at)} by {by}" if isinstance(at, int | float) else by
    rows = {**first, "published": published, "revision": revision, **rest}
    width = max(map(len, rows)) + 1
    shown = ((name, _value(name, value)) for name, value in rows.items())
    return "".join(f"{one_line(name):<{width}} {value}\n" for name, value in shown if value)


def _value(name: str, value: Any) -> str:
    if value in (None, "", [], {}):
        return ""
    if name in _DURATIONS and isinstance(value, int | float):
        return format_duration(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    text = one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    left = len(text) - _SHOWN_CHARACTERS
    return text if left <= 0 else f"{text[:_SHOWN_CHARACTERS]}... and {left} characters more: --json"


async def versions(client: Client, name: str, *, as_json: bool) -> int:
    """Print the versions of a module, newest first. Raises RunnerError."""
    answer = await client.request("GET", f"/modules/{segment(name)}/versions")
    found = answer.read(_Versions)
    if as_json:
        click.echo(answer.body)
        return 0
    rows = [
        (each.version, "active" if each.active else "", time_of(each.published_at), each.published_by, each.digest[:12])
        for each in found.items
    ]
    print_table(("VERSION", "", "PUBLISHED", "BY", "DIGEST"), rows)
    return 0


async def changes(client: Client, name: str | None, limit: int, cursor: str | None, *, as_json: bool) -> int:
    """Print who changed modules, newest first, and where to go on. Raises RunnerError."""
    items, cursor = await collect(client, "/audit", {"module": name}, limit, cursor)
    if as_json:
        print_json(items, cursor)
        return 0
    rows = [
        (time_of(each.at), each.action, each.module, each.version or "-", each.subject, _value("detail", each.detail))
        for each in read_items(client, items, _Change)
    ]
    print_table(("AT", "ACTION", "MODULE", "VERSION", "WHO", ""), rows, cursor)
    return 0
