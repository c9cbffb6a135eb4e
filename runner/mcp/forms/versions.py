"""The revisions of the protocol, and what a request over HTTP must have in each.

A request of 2026-07-28 has everything that it needs in its metadata, which some headers repeat. Clients of the older
revisions begin by `initialize`, and may have a session.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from runner.mcp.forms.jsonrpc import INVALID_PARAMS, Call, Client, Params, RpcError
from runner.mcp.forms.plain import plain

MODERN: Final = "2026-07-28"
LEGACY: Final = ("2025-11-25", "2025-06-18")
LATEST_LEGACY: Final = LEGACY[0]
SUPPORTED: Final = (MODERN, *LEGACY)
_ASSUMED: Final = "2025-03-26"
"""The revision before the header with the revision; what it has of tools is the same."""
_HEADER_MISMATCH: Final = -32020
_MISSING_CAPABILITY: Final = -32021
_UNSUPPORTED_VERSION: Final = -32022
_NAMED: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "resources/read": "uri",
    "tasks/get": "task",
    "tasks/update": "task",
    "tasks/cancel": "task",
}
"""The parameter that the header `Mcp-Name` repeats."""
_VERSION: Final = b"mcp-protocol-version"
_CODED: Final = (b"=?base64?", b"?=")


def is_modern(params: Params, fields: Mapping[bytes, bytes]) -> bool:
    """Return whether a request has the form of 2026-07-28 or later."""
    return params.meta.version is not None or (
        (given := fields.get(_VERSION)) is not None and given.decode("latin-1") >= MODERN
    )


def check_headers(call: Call, params: Params, fields: Mapping[bytes, bytes] | None) -> None:
    """Check metadata and headers of a request of 2026-07-28; without `fields` it has no headers. Raises RpcError."""
    meta = params.meta
    if meta.version is None or meta.capabilities is None:
        missing = "protocolVersion" if meta.version is None else "clientCapabilities"
        text = f"`_meta` of the parameters lacks `io.modelcontextprotocol/{missing}`"
        raise RpcError(INVALID_PARAMS, text, status=400)
    if fields is not None:
        _check_field(fields, _VERSION, meta.version)
    if meta.version != MODERN:
        raise unsupported(meta.version)
    if fields is not None:
        _check_field(fields, b"mcp-method", call.method)
        named = _NAMED.get(call.method)
        name = None if named is None else getattr(params, named)
        if name is not None:
            _check_field(fields, b"mcp-name", name)


def unsupported(version: str) -> RpcError:
    """Return the error for a revision that is not served."""
    data = {"supported": SUPPORTED, "requested": version[:100]}
    return RpcError(_UNSUPPORTED_VERSION, "Unsupported protocol version", data=data, status=400)


def _check_field(fields: Mapping[bytes, bytes], name: bytes, expected: str) -> None:
    given, shown = fields.get(name), name.decode()
    if given is None:
        raise RpcError(_HEADER_MISMATCH, f"Header mismatch: the header {shown} is missing", status=400)
    if _decoded(given) != expected:
        text = f"Header mismatch: the header {shown} has another value than the body"
        raise RpcError(_HEADER_MISMATCH, text, status=400)


def _decoded(value: bytes) -> str | None:
    """Return the text of a header, None if it is coded and broken."""
    first, last = _CODED
    if not (value.startswith(first) and value.endswith(last)):
        return value.decode("latin-1")
    try:
        return base64.b64decode(value[len(first) : -len(last)], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def legacy_version(fields: Mapping[bytes, bytes]) -> None:
    """Check the revision in the header of a request with a handshake before it. Raises RpcError."""
    given = fields.get(_VERSION)
    if given is not None and (version := given.decode("latin-1")) not in (*LEGACY, _ASSUMED):
        raise unsupported(version)


def missing_tasks() -> RpcError:
    """Return the error for a method of tasks without the capability of the client."""
    data: dict[str, Any] = {"requiredCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}
    return RpcError(_MISSING_CAPABILITY, "Missing required client capability", data=data, status=400)


def via_of(client: Client | None) -> str:
    """Return the record of a client: what it says of itself, without characters that change what is shown."""
    if client is None or not client.name:
        return "mcp"
    name, version = plain(client.name)[:80].strip(), plain(client.version)[:40].strip()
    return " ".join(f"mcp {name}{f'/{version}' if version else ''}".split())
