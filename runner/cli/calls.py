"""The commands `call` and `logs` and the groups `executions` and `files`, for a running server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.model import MAX_PRIORITY, MIN_PRIORITY
from runner.cli.options import (
    Command,
    Commands,
    connection_options,
    duration,
    filter_options,
    json_option,
    list_options,
    with_client,
)

if TYPE_CHECKING:
    from runner.client import Form, Raw

_RUN = ("executions:run", "executions:read")
_APPROVE = ("executions:approve", "executions:read")
_FILES_READ, _FILES_WRITE, _FILES_ADMIN = ("files:read",), ("files:write",), ("admin",)


@click.command(cls=Command)
@click.argument("name")
@click.argument("data", metavar="[JSON]", default="")
@click.option("--file", "files", multiple=True, metavar="NAME=@FILE", help="a file of the input; may be repeated")
@click.option("--form", multiple=True, metavar="NAME=TEXT", help="a field of the input as text; may be repeated")
@click.option("--data", "raw", default=None, metavar="@FILE", help="send FILE as it is, as the whole input")
@click.option("--type", "media_type", default=None, metavar="TYPE", help="the media type of --data  [by its name]")
@click.option(
    "-o", "--output", default=None, metavar="PATH", help="write the result to this file, or its files to this folder"
)
@click.option("--follow", is_flag=True, help="show the output of all attempts while the handler runs")
@click.option("--async", "asynchronous", is_flag=True, help="print the id of the execution, and do not wait for it")
@click.option("--version", default=None, metavar="VERSION", help="call this version  [the active version]")
@click.option("--timeout", default=None, metavar="DURATION", help="shorten the module's timeout: 5, 500ms, 2m")
@click.option(
    "--key", default=None, metavar="KEY", help="idempotency key: repeating the call returns the same execution"
)
@click.option(
    "--priority",
    default=None,
    type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY),
    metavar="0-9",
    help="with --async: of the queued calls of a module, the highest runs first  [5]",
)
@click.option(
    "--at", default=None, metavar="TIME", help="with --async: run it then: 2027-01-31T09:30, 2027-01-31T09:30:00Z"
)
@click.option("--delay", default=None, metavar="DURATION", help="with --async: run it after this time: 90, 15m, 2h")
@connection_options()
def call(
    name: str,
    data: str,
    files: tuple[str, ...],
    form: tuple[str, ...],
    raw: str | None,
    media_type: str | None,
    output: str | None,
    follow: bool,
    asynchronous: bool,
    version: str | None,
    timeout: str | None,
    key: str | None,
    priority: int | None,
    at: str | None,
    delay: str | None,
    **options: Any,
) -> int:
    """Call a module of a running server: NAME, with JSON as input.

    Example: operato-runner call greet '{"name": "Ada"}'

    `-` reads the input from standard input; the default is null.

    --file and --form make the input of files and of texts, which the runner converts by the schema of the input:
    operato-runner call resize --file photo=@cat.jpg --form width=200 -o small.jpg

    The result goes to standard output as one line of JSON, the output of the handler (both streams) to standard error.
    Ctrl-C cancels the execution on the server. Exit code: 0 for success, else the code of the error kind.

    With --key the call is accepted first, so it continues if this command is cut off (but not after Ctrl-C); together
    with --follow it needs the scope executions:read. So do --file, --form and --data with --follow.

    With -o a file of the result is written to PATH, which needs the scope files:read, and a result without a file as
    JSON. Several files go into a folder at PATH.
    """
    if follow and asynchronous:
        raise click.UsageError("--follow and --async exclude each other; `logs -f ID` follows an accepted execution")
    if asynchronous and output is not None:
        raise click.UsageError("--async does not wait for a result; `executions result ID -o PATH` writes it later")
    to = None if output is None else Path(output)
    if to is not None and not to.parent.is_dir():
        raise click.UsageError(f"there is no folder {to.parent} for --output")
    for option, value in (("--priority", priority), ("--at", at), ("--delay", delay)):
        if value is not None and not asynchronous:
            raise click.UsageError(f"{option} is for asynchronous calls; add --async")
    from runner.client import MAX_ANSWER_BYTES, Order, coming, follow_call, submit

    other = _content(files, form, raw, media_type)
    if other is not None and data:
        raise click.UsageError("the input is either JSON, --data, or --file and --form")
    content = sys.stdin.buffer.read(MAX_ANSWER_BYTES + 1) if data == "-" else os.fsencode(data)
    seconds = None if timeout is None else duration(timeout, "--timeout")
    after = None if delay is None else duration(delay, "--delay")
    terms = {"priority": priority, "run_at": coming(at, "--at"), "delay": after}
    order = Order(name, content, version, seconds, key, other, terms)
    if asynchronous:
        return with_client(options, _RUN, lambda client: submit(client, order))
    scopes = _RUN if to is None else (*_RUN, "files:read")
    return with_client(options, scopes, lambda client: follow_call(client, order, live=follow, to=to))


def _content(
    files: tuple[str, ...], form: tuple[str, ...], raw: str | None, media_type: str | None
) -> Form | Raw | None:
    """Return the input that is no JSON, None if the options give none. Raises UsageError."""
    from runner.client import Form, Part, Raw

    if media_type is not None and raw is None:
        raise click.UsageError("--type is the type of --data")
    if raw is not None:
        if files or form:
            raise click.UsageError("--data is the whole input, so it excludes --file and --form")
        return Raw(Path(raw.removeprefix("@")), media_type)
    parts = [Part(name, Path(path.removeprefix("@"))) for name, path in _pairs(files, "--file", "NAME=@FILE")]
    parts += [Part(name, text) for name, text in _pairs(form, "--form", "NAME=TEXT")]
    return Form(parts) if parts else None


def _pairs(given: tuple[str, ...], option: str, example: str) -> list[tuple[str, str]]:
    pairs = []
    for text in given:
        name, found, value = text.partition("=")
        if not (name and found and (value or option == "--form")):
            raise click.UsageError(f"{option} is {example}, not {text!r:.80}")
        pairs.append((name, value))
    return pairs


@click.command(cls=Command)
@click.argument("identity", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="continue until the execution ends, with its exit code")
@click.option(
    "--from", "start", default=0, type=click.IntRange(min=0), metavar="N", help="start at event number N  [0]"
)
@connection_options()
def logs(identity: str, follow: bool, start: int, **options: Any) -> int:
    """Print the output of an execution of a running server.

    Standard output and standard error of the handler go to the same streams here, for all attempts in order. Lines that
    begin with -- mark output that was not kept.

    With -f, a lost connection is reopened for up to a minute, without gaps or repetitions, and the exit code is that of
    the execution. Ctrl-C does not stop the execution.
    """
    from runner.client import print_output

    return with_client(options, _RUN, lambda client: print_output(client, identity, start, following=follow))


@click.group(cls=Commands)
def executions() -> None:
    """List, show, cancel and repeat executions of a running server."""


@executions.command("list")
@filter_options
@list_options(50)
@connection_options()
def list_(filters: dict[str, Any], limit: int, cursor: str | None, as_json: bool, **options: Any) -> int:
    """List executions, newest first."""
    from runner.client import list_executions

    return with_client(options, _RUN, lambda client: list_executions(client, filters, limit, cursor, as_json=as_json))


@executions.command("show")
@click.argument("identity", metavar="ID")
@json_option("text")
@connection_options()
def show(identity: str, as_json: bool, **options: Any) -> int:
    """Show one execution: state, times, input, result, error."""
    from runner.client import show_execution

    return with_client(options, _RUN, lambda client: show_execution(client, identity, as_json=as_json))


@executions.command("result")
@click.argument("identity", metavar="ID")
@click.option("-o", "--output", default=None, metavar="FILE", help="write to this file  [standard output]")
@connection_options()
def result(identity: str, output: str | None, **options: Any) -> int:
    """Write a result as it is: JSON, a file, or the body of a response."""
    from runner.client import get_result

    to = None if output is None else Path(output)
    return with_client(options, _RUN, lambda client: get_result(client, identity, to))


@executions.command("cancel")
@click.argument("identities", metavar="ID...", nargs=-1, required=True)
@connection_options()
def cancel(identities: tuple[str, ...], **options: Any) -> int:
    """Cancel executions and wait until their processes have ended.

    Prints the state of each. An execution that has ended is not changed.
    """
    from runner.client import cancel_executions

    return with_client(options, _RUN, lambda client: cancel_executions(client, identities))


_REASON = click.option("--reason", default="", metavar="TEXT", help="why, for the record")


@executions.command("approve")
@click.argument("identities", metavar="ID...", nargs=-1, required=True)
@_REASON
@connection_options()
def approve(identities: tuple[str, ...], reason: str, **options: Any) -> int:
    """Let executions run that wait for approval.

    `executions list --status queued` shows what waits, and why.
    """
    from runner.client import decide_executions

    return with_client(options, _APPROVE, lambda client: decide_executions(client, identities, reason, approved=True))


@executions.command("deny")
@click.argument("identities", metavar="ID...", nargs=-1, required=True)
@_REASON
@connection_options()
def deny(identities: tuple[str, ...], reason: str, **options: Any) -> int:
    """End executions that wait for approval.

    Their callers get the error `forbidden` with the reason.
    """
    from runner.client import decide_executions

    return with_client(options, _APPROVE, lambda client: decide_executions(client, identities, reason, approved=False))


@executions.command("rerun")
@click.argument("identities", metavar="[ID]...", nargs=-1)
@click.option("--with", "wanted", default="same", metavar="VERSION", help="same, active, or the name of one  [same]")
@click.option("--input", "data", default=None, metavar="JSON", help="another input, for executions given by ID")
@click.option("--priority", default=None, type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY), metavar="0-9", help="[same]")
@click.option("--at", default=None, metavar="TIME", help="run it then: 2027-01-31T09:30, 2027-01-31T09:30:00Z")
@click.option("--delay", default=None, metavar="DURATION", help="run it after this time: 90, 15m, 2h")
@click.option("--dry-run", is_flag=True, help="with filters: only tell what would be repeated")
@filter_options
@click.option(
    "--limit", default=50, type=click.IntRange(1, 100_000), metavar="N", help="look at N executions at most  [50]"
)
@click.option("--cursor", default=None, metavar="CURSOR", help="continue where the last command ended")
@connection_options()
def rerun(
    identities: tuple[str, ...],
    wanted: str,
    data: str | None,
    priority: int | None,
    at: str | None,
    delay: str | None,
    dry_run: bool,
    filters: dict[str, Any],
    limit: int,
    cursor: str | None,
    **options: Any,
) -> int:
    """Repeat executions that have ended.

    Those with these IDs, or at most --limit of those that the filters find.

    Example: operato-runner executions rerun --unresolved --module report --since 2h --dry-run

    The repetitions are accepted, and run like other asynchronous calls. Prints their IDs. Of a chain of repetitions the
    filters repeat only the last one. The exit code is 1 when one that the filters found was refused.
    """
    filtered = any(value is not None for value in filters.values())
    single = {"--input": data, "--priority": priority, "--at": at, "--delay": delay}
    for option, value in single.items():
        if value is not None and not identities:
            raise click.UsageError(f"{option} is for executions given by ID")
    if identities and (filtered or dry_run):
        raise click.UsageError("give IDs, or filters with --dry-run")
    if not identities and not filtered:
        raise click.UsageError("give IDs, or a filter such as --unresolved: all executions would be repeated")
    from runner.client import coming, rerun_executions, rerun_list

    if not identities:
        return with_client(
            options, _RUN, lambda client: rerun_list(client, filters, limit, cursor, wanted, dry_run=dry_run)
        )
    after = None if delay is None else duration(delay, "--delay")
    terms = {"priority": priority, "run_at": coming(at, "--at"), "delay": after}
    content = None if data is None else os.fsencode(data)
    return with_client(options, _RUN, lambda client: rerun_executions(client, identities, wanted, content, terms))


@click.group(cls=Commands)
def files() -> None:
    """Upload, download, list and delete files of a running server."""


@files.command("put")
@click.argument("path", metavar="FILE|-")
@click.option("--name", default=None, metavar="NAME", help="its name on the server  [that of FILE]")
@click.option("--type", "media_type", default=None, metavar="TYPE", help="its media type  [by the name]")
@connection_options()
def put_file(path: str, name: str | None, media_type: str | None, **options: Any) -> int:
    """Upload FILE, or standard input.

    Prints the object that names it in an input: {"$file": {"id": "sha256:...", ...}}
    """
    from runner.client import put_file as work

    place = None if path == "-" else Path(path)
    return with_client(options, _FILES_WRITE, lambda client: work(client, place, name, media_type))


@files.command("get")
@click.argument("identity", metavar="ID")
@click.option("-o", "--output", default=None, metavar="FILE", help="write to this file  [standard output]")
@connection_options()
def get_file(identity: str, output: str | None, **options: Any) -> int:
    """Download a file.

    With -o, FILE is replaced when the download is complete and its digest is right.
    """
    from runner.client import get_file as work

    place = None if output is None or output == "-" else Path(output)
    return with_client(options, _FILES_READ, lambda client: work(client, identity, place))


@files.command("list")
@list_options(50)
@connection_options()
def list_files(limit: int, cursor: str | None, as_json: bool, **options: Any) -> int:
    """List files, newest first."""
    from runner.client import list_files as work

    return with_client(options, _FILES_READ, lambda client: work(client, limit, cursor, as_json=as_json))


@files.command("rm")
@click.argument("identities", metavar="ID...", nargs=-1, required=True)
@connection_options()
def remove_files(identities: tuple[str, ...], **options: Any) -> int:
    """Delete files that no execution uses."""
    from runner.client import remove_files as work

    return with_client(options, _FILES_WRITE, lambda client: work(client, identities))


@files.command("gc")
@connection_options()
def collect_files(**options: Any) -> int:
    """Delete the files now that the server deletes once an hour.

    These are the files that no execution of the history uses and that are older than `file_retention`.
    """
    from runner.client import collect_files as work

    return with_client(options, _FILES_ADMIN, work)
