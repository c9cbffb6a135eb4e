"""The endpoints of API keys: create, list, revoke."""

from __future__ import annotations

from typing import Final

import msgspec

from actors.keys import ApiKey
from protocol.errors import ErrorKind, error
from runner.api import KeyOrder
from runner.rest.endpoint import Answer, Request, json_answer, serves
from runner.rest.openapi import Key

_MAX_BYTES: Final = 64 * 1024
_NO_STORE: Final = (b"cache-control", b"no-store")


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /keys`."""

    name: str
    scopes: list[str] | str
    modules: list[str] | None = None
    expires: str | float | None = None


_decoder: Final = msgspec.json.Decoder(_Order)


@serves("createKey")
async def create(request: Request) -> Answer:
    """Make a key, and show it: the one time that this is possible."""
    order = _order(await request.body())
    key, secret = await request.service.keys.create(request.principal, order)
    return json_answer({**key_json(key), "key": secret}, 201, (_NO_STORE,))


def _order(body: bytes) -> KeyOrder:
    if len(body) > _MAX_BYTES:
        text = f"the description of a key of {len(body)} bytes is over {_MAX_BYTES}"
        raise error(ErrorKind.TOO_LARGE, text, field="$")
    try:
        given = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        example = '{"name": "ci", "scopes": "executions:run"}, and optionally `modules` (globs) and `expires` (90d)'
        raise error(ErrorKind.BAD_INPUT, f"the body cannot be read: {problem}; write {example}", field="$") from None
    scopes = given.scopes.split() if isinstance(given.scopes, str) else given.scopes
    return KeyOrder(given.name, tuple(scopes), None if given.modules is None else tuple(given.modules), given.expires)


@serves("listKeys")
async def list_keys(request: Request) -> Answer:
    """List keys."""
    found, cursor = await request.service.keys.list(
        request.principal, limit=request["limit"], cursor=request["cursor"] or ""
    )
    return json_answer({"items": [key_json(key) for key in found], "cursor": cursor})


@serves("revokeKey")
async def revoke(request: Request) -> Answer:
    """Revoke a key."""
    await request.service.keys.revoke(request.principal, request["id"])
    return Answer(status=204)


def key_json(key: ApiKey) -> Key:
    """Return a key as lists show it, without its secret and hash."""
    stored = key.stored
    return {
        "id": stored.id,
        "name": stored.name,
        "scopes": list(stored.scopes),
        "modules": list(stored.modules) or None,
        "created_at": round(stored.created_at, 3),
        "created_by": stored.created_by,
        "expires_at": None if stored.expires_at is None else round(stored.expires_at, 3),
        "used_at": None if key.used_at is None else round(key.used_at, 3),
        "revoked_at": None if stored.revoked_at is None else round(stored.revoked_at, 3),
        "revoked_by": stored.revoked_by,
    }


ENDPOINTS: Final = (create, list_keys, revoke)
