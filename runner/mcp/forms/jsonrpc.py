"""JSON-RPC: a message is read into values of known types, of any size and depth; answers and notifications are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL: Final = -32603
_MAX_ID: Final = 256
"""Characters of an id or token, which answers repeat."""
_MOST: Final = 2**63
Id: TypeAlias = int | str


class RpcError(Exception):
    """A request that has an error in place of a result. `status` is that of HTTP."""

    def __init__(self, code: int, message: str, *, data: Mapping[str, Any] | None = None, status: int = 200) -> None:
        super().__init__(message)
        self.code, self.message, self.data, self.status = code, message, data, status


class Client(Struct, frozen=True):
    """Name and version that a client gives itself."""

    name: str = ""
    version: str = ""


class Capabilities(Struct, frozen=True):
    """What a client can do, as far as it matters here."""

    extensions: dict[str, Raw] = {}


_PREFIX: Final = "io.modelcontextprotocol/"


class Meta(
    Struct,
    frozen=True,
    rename={
        "token": "progressToken",
        "version": f"{_PREFIX}protocolVersion",
        "client": f"{_PREFIX}clientInfo",
        "capabilities": f"{_PREFIX}clientCapabilities",
        "level": f"{_PREFIX}logLevel",
        "key": "operato/idempotency-key",
    },
):
    """The metadata of a request."""

    token: Id | None = None
    """By which the client knows the progress of this request; None: it wants none."""
    version: str | None = None
    client: Client | None = None
    capabilities: Capabilities | None = None
    level: str | None = None
    """The least level of log messages; None: it wants none."""
    key: str | None = None
    traceparent: str | None = None


class Params(
    Struct,
    frozen=True,
    rename={
        "meta": "_meta",
        "task": "taskId",
        "version": "protocolVersion",
        "client": "clientInfo",
        "request": "requestId",
    },
):
    """The parameters of all methods that are served."""

    meta: Meta = Meta()
    name: str | None = None
    arguments: Raw | UnsetType = UNSET
    uri: str | None = None
    cursor: str | None = None
    task: str | None = None
    level: str | None = None
    version: str | None = None
    client: Client | None = None
    request: Id | None = None


class _Envelope(Struct, frozen=True):
    jsonrpc: str = ""
    method: str | UnsetType = UNSET
    id: Id | UnsetType | None = UNSET
    params: Raw | UnsetType = UNSET


class Call(Struct, frozen=True):
    """A request, or a notification: without an id."""

    method: str
    id: Id | None
    params: Raw | None


_envelopes: Final = msgspec.json.Decoder(_Envelope)
_params: Final = msgspec.json.Decoder(Params)
_encoder: Final = msgspec.json.Encoder()


def read_call(body: bytes) -> Call:
    """Return the request or notification in a body. Raises RpcError."""
    if body.lstrip()[:1] == b"[":
        text = "the body is an array; batches are not a part of the protocol: send one message in each request"
        raise RpcError(INVALID_REQUEST, text, status=400)
    try:
        found = _envelopes.decode(body)
    except msgspec.ValidationError as problem:
        raise RpcError(INVALID_REQUEST, f"the body is no JSON-RPC message: {problem}", status=400) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise RpcError(PARSE_ERROR, f"the body is not JSON: {problem}", status=400) from None
    if found.jsonrpc != "2.0":
        raise RpcError(INVALID_REQUEST, '`jsonrpc` must be "2.0"', status=400)
    if isinstance(found.method, UnsetType):
        text = "the message has no `method`; this server sends no requests, so it takes no responses"
        raise RpcError(INVALID_REQUEST, text, status=400)
    if found.id is None or (not isinstance(found.id, UnsetType) and _is_large(found.id)):
        text = f"`id` must be an integer of 64 bits, or a text of at most {_MAX_ID} characters"
        raise RpcError(INVALID_REQUEST, text, status=400)
    return Call(
        found.method,
        None if isinstance(found.id, UnsetType) else found.id,
        None if isinstance(found.params, UnsetType) else found.params,
    )


def read_params(call: Call) -> Params:
    """Return the parameters of a call. Raises RpcError."""
    if call.params is None:
        return Params()
    try:
        found = _params.decode(call.params)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise RpcError(INVALID_PARAMS, f"the parameters are not valid: {problem}", status=400) from None
    if found.meta.token is not None and _is_large(found.meta.token):
        text = f"`progressToken` must be an integer of 64 bits, or a text of at most {_MAX_ID} characters"
        raise RpcError(INVALID_PARAMS, text, status=400)
    return found


def _is_large(value: Id) -> bool:
    return len(value) > _MAX_ID if isinstance(value, str) else not -_MOST <= value < _MOST


def response(identity: Id, result: Mapping[str, Any]) -> bytes:
    """Return the message with a result, in one line."""
    return _line({"jsonrpc": "2.0", "id": identity, "result": result})


def error_message(identity: Id | None, problem: RpcError) -> bytes:
    """Return the message with an error; without an id where that could not be read."""
    about: dict[str, Any] = {"code": problem.code, "message": problem.message}
    if problem.data is not None:
        about["data"] = problem.data
    return _line({"jsonrpc": "2.0", **({} if identity is None else {"id": identity}), "error": about})


def notification(method: str, params: Mapping[str, Any]) -> bytes:
    """Return a notification."""
    return _line({"jsonrpc": "2.0", "method": method, "params": params})


def _line(message: Mapping[str, Any]) -> bytes:
    # A result passes through as its worker wrote it: line ends between its values are possible, in its strings not.
    return _encoder.encode(message).replace(b"\n", b" ").replace(b"\r", b" ")
