"""The work of the commands `modules push`, `list`, `show`, `versions`, `activate`, `rm` and `log`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec
from attrs import evolve, frozen

from config.units import format_duration
from protocol.errors import ErrorKind, RunnerError, error
from runner.client.connection import Answer, Client, segment
from runner.client.lists import collect, print_json, print_table, read_items
from runner.client.printing import Interrupts, interruptible
from runner.status import INTERRUPTED
from runner.terminal import one_line, printable, shortened, size, table, time_of, upload_bar

PUBLISH_SECONDS = 3600.0
"""Time limit of answers that wait for locked requirements, a built environment or the end of executions."""
_SHOWN_CHARACTERS = 2000
_SHOWN_VERSIONS = 10
_DESCRIPTION = 60
"""Characters of a description in a list."""
_DURATIONS = ("timeout", "queue_timeout", "build_timeout", "start_timeout", "idle", "initial", "max")
_SIZES = ("memory", "output", "shm")
_FLAT = ("workers", "retry", "backoff", "variables")
"""Fields with few inner fields, shown in one line."""
_ABOUT = ("tags", "description")
_SECTIONS = {
    "code": (
        *("handler", "python", "packages_from", "requirements", "constraints", "dependencies", "channels"),
        *("image", "digest"),
    ),
    "calls": ("isolation", "calls", "concurrency", "workers", "retry", "timeout", "queue_timeout", "record"),
    "starts": ("build_timeout", "start_timeout", "variables", "secrets"),
    "limits": ("memory", "cpus", "processes", "output", "network", "user", "writable", "shm"),
    "input": ("input_schema", "output_schema"),
}
"""The fields of a module by topic, as `show` prints them; other fields follow."""


@frozen
class Sent:
    """A module as the request that creates a version of it."""

    method: str
    path: str
    content_type: str
    body: bytes
    name: str | None
    """None if only the runner can determine it."""


class _Module(msgspec.Struct):
    """A module as an item of a list."""

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
    published_by: str | None = None


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
    """Create a version, and print its name and state. Returns the exit code. Raises RunnerError."""
    query = {
        "name": sent.name if sent.method == "POST" else None,
        "activate": None if activate else "false",
        "prepare": "true" if prepare else None,
    }
    headers = {"content-type": sent.content_type} | ({} if match is None else {"if-match": match})
    answer = await _request(
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
        click.echo(f"to use it for calls that name no version: {command}", err=True)
    return 0


async def activate(client: Client, name: str, version: str, *, prepare: bool) -> int:
    """Activate a version, and print it. Returns the exit code. Raises RunnerError."""
    path = f"/modules/{segment(name)}/versions/{segment(version)}/activate"
    query = {"prepare": "true" if prepare else None}
    answer = await _request(client, "POST", path, query, name, prepare=prepare)
    if answer is None:
        return INTERRUPTED
    module = answer.read(_Module)
    click.echo(f"{printable(module.name)}  {printable(module.version)}  active")
    return 0


async def rollback(client: Client, name: str, wanted: str | None, *, prepare: bool, dry_run: bool) -> int:
    """Activate the version that was published before the active one, or the `wanted` one; print what changes.

    Nothing is activated if the module changes meanwhile. Returns the exit code. Raises RunnerError.
    """
    shown = await client.request("GET", f"/modules/{segment(name)}")
    found = (await client.request("GET", f"/modules/{segment(name)}/versions")).read(_Versions).items
    active = next((each for each in found if each.active), None)
    target = _before(found, active, name) if wanted is None else next((v for v in found if v.version == wanted), None)
    if target is None:
        known = ", ".join(printable(each.version) for each in found[:_SHOWN_VERSIONS])
        raise error(ErrorKind.NOT_FOUND, f"{name} has no version {wanted!r:.80}; it has {known}", field="--to")
    before, after = ("-" if each is None else printable(each.version) for each in (active, target))
    published = f"published {time_of(target.published_at)} by {target.published_by or '-'}"
    click.echo(f"{name}: version {after} ({one_line(published)}) replaces {before} for calls that name none", err=True)
    if target is active:
        click.echo(f"{name}  {after}  unchanged, active")
        return 0
    if dry_run:
        click.echo(f"{name}  {after}  not activated")
        return 0
    path = f"/modules/{segment(name)}/versions/{segment(target.version)}/activate"
    match = {"if-match": shown.headers.get("etag", "*")}
    query = {"prepare": "true" if prepare else None}
    if await _request(client, "POST", path, query, name, prepare=prepare, headers=match) is None:
        return INTERRUPTED
    click.echo(f"{name}  {after}  active")
    back = f"operato-runner rollback {shlex.quote(name)} --to {shlex.quote(before)}"
    click.echo(f"to activate {before} again: {back}", err=True)
    return 0


def _before(found: Sequence[_Version], active: _Version | None, name: str) -> _Version:
    """Return the version published before the active one; the list begins with the newest. Raises RunnerError."""
    older = found[found.index(active) + 1 :] if active is not None else found
    if not older:
        text = f"{name} has no version before {'any' if active is None else active.version}; --to names another one"
        raise error(ErrorKind.CONFLICT, text, field="name")
    return older[0]


async def remove(client: Client, name: str, version: str | None, *, force: bool) -> int:
    """Delete a module or one of its versions. Returns the exit code. Raises RunnerError."""
    path = f"/modules/{segment(name)}" + ("" if version is None else f"/versions/{segment(version)}")
    answer = await _request(client, "DELETE", path, {"force": "true" if force else None}, name)
    if answer is None:
        return INTERRUPTED
    click.echo(f"{name}  {version or 'all versions'}  deleted")
    return 0


async def _request(
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
    """Make a request that may take long; return its answer, or None after Ctrl-C. Raises RunnerError."""
    found: list[Answer] = []
    check = f"check with `operato-runner modules versions {shlex.quote(name or 'NAME')}`"
    if prepare:
        click.echo("building the environment may take minutes; Ctrl-C stops waiting", err=True)

    async def work(_interrupts: Interrupts) -> int:
        try:
            with upload_bar(len(body or b"")) as sent:
                answer = await client.request(
                    method, path, query=query, body=body, headers=headers, seconds=PUBLISH_SECONDS, sent=sent
                )
        except RunnerError as problem:
            raise _with_hint(problem, check) from None
        found.append(answer)
        return 0

    await interruptible(work)
    if not found:
        click.echo(f"interrupted; the change may have been made: {check}", err=True)
        return None
    return found[0]


def _with_hint(problem: RunnerError, check: str) -> RunnerError:
    """Return an error with its remedy."""
    failure = problem.failure
    if failure.kind is ErrorKind.LOST:
        hint = f"the change may have been made: {check}"
    elif failure.kind is ErrorKind.TOO_LARGE and failure.field is None:  # a refusal of HTTP, which has no field
        hint = "the limit is the runner's `max_frame`"
    else:
        return problem
    return RunnerError(evolve(failure, message=f"{failure.message.rstrip('.')}; {hint}"))


async def list_modules(
    client: Client, filters: Mapping[str, object], limit: int, cursor: str | None, *, as_json: bool
) -> int:
    """Print at most `limit` modules by name, and the next cursor. Raises RunnerError."""
    items, cursor = await collect(client, "/modules", filters, limit, cursor)
    if as_json:
        print_json(items, cursor)
    else:
        rows = [_row(item) for item in read_items(client, items, _Module)]
        print_table(("NAME", "VERSION", "ENV", "FROM", "PUBLISHED", "TAGS", ""), rows, cursor)
    return 0


def _row(item: _Module) -> tuple[str, ...]:
    text = one_line(" ".join(item.description.split()))
    text = text if len(text) <= _DESCRIPTION else f"{text[: _DESCRIPTION - 3]}..."
    return (item.name, item.version, item.env, item.source, time_of(item.published_at), ",".join(item.tags), text)


async def show_module(client: Client, name: str, version: str | None, *, as_json: bool) -> int:
    """Print all fields of a module. Raises RunnerError."""
    answer = await client.request("GET", f"/modules/{segment(name)}", query={"version": version})
    tag = answer.headers.get("etag", "").strip('"')
    if as_json:
        fields = answer.read(dict[str, msgspec.Raw])
        click.echo(msgspec.json.encode({**fields, "revision": tag}))
        return 0
    click.echo(text_of(answer.read(dict[str, Any]), tag), nl=False)
    return 0


def text_of(fields: Mapping[str, Any], revision: str) -> str:
    """Return a module as text in sections, without empty fields; sizes and times as people write them."""
    rest = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
    at, by = rest.pop("published_at", None), rest.pop("published_by", None)
    published = time_of(at) if isinstance(at, int | float) else ""
    published += f" by {by}" if by else ""
    first = {name: rest.pop(name, "") for name in ("name", "version", "env", "source")}
    top = {**first, "published": published.strip(), "revision": revision}
    sections = [_rows(top | {name: rest.pop(name) for name in _ABOUT if name in rest})]
    for title, names in _SECTIONS.items():
        rows = _rows({name: rest.pop(name) for name in names if name in rest})
        sections += [[(f"{title}:", ""), *((f"  {name}", value) for name, value in rows)]] if rows else []
    if hooks := [_endpoint(each) for each in rest.pop("endpoints", [])]:
        sections.append([("endpoints:", ""), *hooks])
    others = _rows(rest)
    return "\n".join(table(rows) for rows in (*sections, others) if rows)


def _endpoint(fields: Mapping[str, Any]) -> tuple[str, str]:
    signature = fields.get("signature") or {}
    auth = f"{fields.get('auth')} {signature.get('scheme') or signature.get('header') or ''}".strip()
    more = "" if fields.get("wait", True) else ", answered at once"
    about = f"{', '.join(fields.get('methods', ()))}, auth {auth}{more}"
    return f"  {one_line(str(fields.get('url')))}", one_line(about)


def _rows(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, shown) for name, value in fields.items() if (shown := _value(name, value))]


def _value(name: str, value: Any) -> str:
    """Return a value for people: `30s`, `16 MiB`, `a, b`, `min 0, max_calls 0`."""
    if value in (None, "", [], {}):
        return ""
    if name in _DURATIONS and isinstance(value, int | float):
        return format_duration(value)
    if name in _SIZES and isinstance(value, int):
        return size(value).replace(".0 ", " ")
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    elif name == "retry" and isinstance(value, dict) and value.get("attempts") == 1:
        return "none"
    elif name in _FLAT and isinstance(value, dict):
        parts = ((inner, _value(inner, each)) for inner, each in value.items())
        value = ", ".join(f"{inner} {each}" for inner, each in parts if each)
    text = one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return shortened(text, _SHOWN_CHARACTERS)


async def list_versions(client: Client, name: str, *, as_json: bool) -> int:
    """Print the versions of a module, newest first. Raises RunnerError."""
    answer = await client.request("GET", f"/modules/{segment(name)}/versions")
    found = answer.read(_Versions)
    if as_json:
        click.echo(answer.body)
        return 0
    rows = [
        (
            *(each.version, "active" if each.active else "", time_of(each.published_at)),
            *(each.published_by or "", each.digest[:12]),
        )
        for each in found.items
    ]
    print_table(("VERSION", "", "PUBLISHED", "BY", "DIGEST"), rows)
    return 0


async def list_changes(client: Client, name: str | None, limit: int, cursor: str | None, *, as_json: bool) -> int:
    """Print who changed modules, newest first, and the next cursor. Raises RunnerError."""
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
