"""The group `key`, for API keys of a running server, and `ui`, which opens its dashboard."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import KEY_ID
from runner.cli.options import Command, Commands, connection_options, duration, json_option, list_options, with_client

if TYPE_CHECKING:
    from runner.client import Client

_ADMIN = ("admin",)
_MOST = 10_000
"""Keys in which a name is searched: a runner keeps no more."""


class _Key(msgspec.Struct):
    id: str
    name: str
    scopes: list[str] = []
    modules: list[str] | None = None
    created_by: str = ""
    expires_at: float | None = None
    used_at: float | None = None
    revoked_at: float | None = None


class _Created(_Key):
    key: str = ""


@click.group(cls=Commands)
def key() -> None:
    """Manage API keys of a running server."""


@key.command("create")
@click.argument("name")
@click.option(
    "--scope",
    default="executions:run modules:read",
    metavar="SCOPES",
    help="permissions, separated by spaces; see `token --help`  [executions:run modules:read]",
)
@click.option(
    "--modules", "globs", multiple=True, metavar="GLOB", help="allow only these modules; repeatable  [all of yours]"
)
@click.option("--expires", default=None, metavar="DURATION", help="how long it is valid: 12h, 90d  [until revoked]")
@json_option("the key")
@connection_options()
def create(name: str, scope: str, globs: tuple[str, ...], expires: str | None, as_json: bool, **options: Any) -> int:
    """Create an API key and print it.

    It is printed this one time: the runner stores a hash. A program sends it as X-API-Key, or in place of a token; the
    commands of this program take it as OPERATO_TOKEN. Needs the scope admin.
    """
    order = {
        "name": name,
        "scopes": scope.split(),
        "modules": [glob for each in globs for glob in re.split(r"[\s,]+", each) if glob] if globs else None,
        "expires": None if expires is None else duration(expires, "--expires"),
    }

    async def work(client: Client) -> int:
        answer = await client.request(
            "POST", "/keys", body=msgspec.json.encode(order), headers={"content-type": "application/json"}
        )
        if as_json:
            click.echo(answer.body)
            return 0
        made = answer.read(_Created)
        click.echo(made.key)
        click.echo(f"this key is not shown again; to revoke it: operato-runner key revoke {made.id}", err=True)
        return 0

    return with_client(options, _ADMIN, work)


@key.command("list")
@list_options(500)
@connection_options()
def list_(limit: int, cursor: str | None, as_json: bool, **options: Any) -> int:
    """List API keys, the newest first, with their last use.

    Needs the scope admin.
    """
    from runner.client import collect, print_json, print_table, read_items
    from runner.terminal import time_of

    async def work(client: Client) -> int:
        items, following = await collect(client, "/keys", {}, limit, cursor)
        if as_json:
            print_json(items, following)
            return 0
        rows = [
            (
                each.id,
                each.name,
                _state(each),
                " ".join(each.scopes),
                ",".join(each.modules or ["*"]),
                time_of(each.expires_at),
                time_of(each.used_at),
                each.created_by,
            )
            for each in read_items(client, items, _Key)
        ]
        print_table(("ID", "NAME", "STATE", "SCOPES", "MODULES", "EXPIRES", "LAST USED", "BY"), rows, following)
        return 0

    return with_client(options, _ADMIN, work)


@key.command("revoke")
@click.argument("wanted", metavar="ID|NAME")
@connection_options()
def revoke(wanted: str, **options: Any) -> int:
    """Revoke an API key.

    It is refused at once, and streams that were opened with it end. The list still has it. Needs the scope admin.
    """

    async def work(client: Client) -> int:
        found = wanted if KEY_ID.fullmatch(wanted) else await _identifier(client, wanted)
        await client.request("DELETE", f"/keys/{found}")
        click.echo(f"{found}  revoked")
        return 0

    return with_client(options, _ADMIN, work)


async def _identifier(client: Client, name: str) -> str:
    """Return the identifier of the valid key with a name. Raises RunnerError `not_found`."""
    from runner.client import collect, read_items

    items, _ = await collect(client, "/keys", {}, _MOST, None)
    keys = [each for each in read_items(client, items, _Key) if each.name == name]
    valid = [each.id for each in keys if _state(each) == "valid"]
    if not valid:
        text = f"key {name!r:.80} is not valid any more" if keys else f"there is no key {name!r:.80}"
        raise error(ErrorKind.NOT_FOUND, f"{text}; see `operato-runner key list`")
    return valid[0]


def _state(each: _Key) -> str:
    if each.revoked_at is not None:
        return "revoked"
    return "expired" if each.expires_at is not None and each.expires_at <= time.time() else "valid"


class _Link(msgspec.Struct):
    path: str
    seconds: float
    base: str = ""


@click.command(cls=Command)
@click.option(
    "--expires", default="12h", metavar="DURATION", help="how long the browser stays signed in: 1h, 7d  [12h]"
)
@click.option("--scope", default="admin", metavar="SCOPES", help="permissions; see `token --help`  [admin]")
@click.option("--open", "opened", is_flag=True, help="open the link in the browser of this machine")
@connection_options()
def ui(expires: str, scope: str, opened: bool, **options: Any) -> int:
    """Print a link that signs in to the dashboard.

    It signs in once, within a minute. The browser may do what the token of this command allows: with OPERATO_TOKEN or
    --token that of the token, for as long as it is valid; otherwise --scope and --expires, signed with the secret of
    the runner on this machine.
    """

    async def work(client: Client) -> int:
        try:
            answer = await client.request("POST", "/ui/links")
        except RunnerError as problem:
            if problem.failure.kind is not ErrorKind.NOT_FOUND:
                raise
            text = f"the runner at {client.address} serves no dashboard: its setting `ui` is false, or it is older"
            raise error(ErrorKind.NOT_FOUND, text) from None
        made = answer.read(_Link)
        link = (made.base or str(client.address)) + made.path
        click.echo(link)
        click.echo(f"the link signs in once, within {made.seconds:.0f} seconds", err=True)
        if opened:
            click.launch(link)
        return 0

    return with_client(options, scope.split(), work, duration(expires, "--expires"))
