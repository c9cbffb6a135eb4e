"""The group `schedules`: the schedules of a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from config.mistakes import ConfigError, Mistake
from config.units import format_duration
from runner.cli.options import Commands, connection_options, json_option, list_options, with_client

if TYPE_CHECKING:
    from runner.client import Client

_READ = ("schedules:read",)
_WRITE = ("schedules:write",)


class _Last(msgspec.Struct):
    execution: str


class _Schedule(msgspec.Struct):
    id: str
    module: str
    cron: str | None = None
    every: float | None = None
    at: str | None = None
    timezone: str = "UTC"
    paused: bool = False
    next: float | None = None
    last: _Last | None = None
    problem: str | None = None


class _Instant(msgspec.Struct):
    local: str


class _Instants(msgspec.Struct):
    items: list[_Instant]


class _Execution(msgspec.Struct):
    id: str


@click.group(cls=Commands)
def schedules() -> None:
    """Manage the schedules of modules on a running server."""


@schedules.command("list")
@click.option("--module", default=None, metavar="NAME", help="only the schedules of this module")
@list_options(500)
@connection_options()
def list_(module: str | None, limit: int, cursor: str | None, as_json: bool, **options: Any) -> int:
    """List schedules, with their next times.

    Needs the scope schedules:read.
    """
    from runner.client import collect, print_json, print_table, read_items
    from runner.terminal import time_of

    async def work(client: Client) -> int:
        items, following = await collect(client, "/schedules", {"module": module}, limit, cursor)
        if as_json:
            print_json(items, following)
            return 0
        rows = [
            (
                each.id,
                each.module,
                _when(each),
                "paused" if each.paused else time_of(each.next),
                each.last.execution if each.last else "-",
                each.problem or "",
            )
            for each in read_items(client, items, _Schedule)
        ]
        print_table(("ID", "MODULE", "WHEN", "NEXT", "LAST", ""), rows, following)
        return 0

    return with_client(options, _READ, work)


def _when(each: _Schedule) -> str:
    if each.every is not None:
        return f"every {format_duration(each.every)}"
    return f"at {each.at}" if each.at is not None else f"{each.cron} {each.timezone}"


@schedules.command("show")
@click.argument("name", metavar="ID")
@connection_options()
def show(name: str, **options: Any) -> int:
    """Print a schedule as JSON.

    Needs the scope schedules:read.
    """

    async def work(client: Client) -> int:
        click.echo((await client.request("GET", _path(name))).body)
        return 0

    return with_client(options, _READ, work)


@schedules.command("next")
@click.argument("name", metavar="ID")
@click.option("-n", "--count", default=10, type=click.IntRange(1, 100), metavar="N", help="print so many times  [10]")
@json_option("lines")
@connection_options()
def next_(name: str, count: int, as_json: bool, **options: Any) -> int:
    """Print the next times of a schedule, in its time zone.

    Needs the scope schedules:read.
    """

    async def work(client: Client) -> int:
        answer = await client.request("GET", f"{_path(name)}/next?count={count}")
        if as_json:
            click.echo(answer.body)
            return 0
        for instant in answer.read(_Instants).items:
            click.echo(instant.local)
        return 0

    return with_client(options, _READ, work)


@schedules.command("pause")
@click.argument("name", metavar="ID")
@connection_options()
def pause(name: str, **options: Any) -> int:
    """Pause a schedule; its running executions continue.

    Needs the scope schedules:write.
    """
    return _change(name, "pause", "paused", options)


@schedules.command("resume")
@click.argument("name", metavar="ID")
@connection_options()
def resume(name: str, **options: Any) -> int:
    """Resume a schedule.

    Times that passed while it was paused do not run.

    Needs the scope schedules:write.
    """
    return _change(name, "resume", "resumed", options)


def _change(name: str, verb: str, done: str, options: dict[str, Any]) -> int:
    async def work(client: Client) -> int:
        answer = await client.request("POST", f"{_path(name)}/{verb}")
        click.echo(f"{answer.read(_Schedule).id}  {done}")
        return 0

    return with_client(options, _WRITE, work)


@schedules.command("fire")
@click.argument("name", metavar="ID")
@connection_options()
def fire(name: str, **options: Any) -> int:
    """Run a schedule now, and print the ID of the execution.

    Needs the scope schedules:write.
    """

    async def work(client: Client) -> int:
        answer = await client.request("POST", f"{_path(name)}/fire")
        click.echo(answer.read(_Execution).id)
        return 0

    return with_client(options, _WRITE, work)


@schedules.command("create")
@click.argument("module")
@click.argument("input_json", metavar="[JSON]", default="null")
@click.option("--name", default=None, metavar="ID", help="its identifier  [from module, time and input]")
@click.option("--cron", default=None, metavar="EXPRESSION", help="minute hour day month weekday, or @daily")
@click.option("--every", default=None, metavar="DURATION", help="15m, 1h, 1d")
@click.option("--at", default=None, metavar="TIME", help="once: 2027-01-31T09:30:00Z")
@click.option("--timezone", default=None, metavar="ZONE", help="such as Asia/Seoul  [UTC]")
@click.option("--overlap", default=None, metavar="WORD", help="skip, queue, cancel or parallel  [skip]")
@click.option("--misfire", default=None, metavar="WORD", help="skip, last or all  [skip]")
@click.option("--jitter", default=None, metavar="DURATION", help="start up to so much later  [0]")
@click.option("--version", default=None, metavar="VERSION", help="the version to run  [the active one]")
@json_option("the ID")
@connection_options()
def create(module: str, input_json: str, as_json: bool, **options: Any) -> int:
    """Create a schedule of MODULE with the input JSON, and print its ID.

    Needs the scope schedules:write.
    """
    names = ("name", "cron", "every", "at", "timezone", "overlap", "misfire", "jitter", "version")
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    try:
        value = msgspec.json.decode(input_json)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise ConfigError([Mistake(f"is not JSON: {problem}", None, None, "JSON")]) from None
    order = {"module": module, "input": value, **given}

    async def work(client: Client) -> int:
        answer = await client.request(
            "POST", "/schedules", body=msgspec.json.encode(order), headers={"content-type": "application/json"}
        )
        click.echo(answer.body if as_json else answer.read(_Schedule).id)
        return 0

    return with_client(options, _WRITE, work)


@schedules.command("rm")
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@connection_options()
def remove(names: tuple[str, ...], **options: Any) -> int:
    """Delete schedules that were created over the API.

    Their executions stay.

    Needs the scope schedules:write.
    """

    async def work(client: Client) -> int:
        for name in names:
            await client.request("DELETE", _path(name))
            click.echo(f"{name}  deleted")
        return 0

    return with_client(options, _WRITE, work)


def _path(name: str) -> str:
    from runner.client import segment

    return f"/schedules/{segment(name)}"
