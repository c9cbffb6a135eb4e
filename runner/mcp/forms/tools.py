"""A module as a tool: its name, description and hints, the schemas, and the input for its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from actors.registry import Published
from runner.mcp.forms.jsonrpc import INVALID_PARAMS, RpcError
from runner.mcp.forms.plain import plain

_MAX_DESCRIPTION: Final = 8192
"""Characters."""
_CONFIRMED: Final = (
    "A person must approve each call before it runs. A call waits for the decision, and fails if it is denied or "
    "not decided in time."
)
_ANY: Final = {"type": "object"}
_MAX_STEPS: Final = 100
_HEADER: Final = "x-mcp-header"
_WRAPPED: Final = "input"


def tool_of(module: Published, *, legacy: bool) -> dict[str, Any]:
    """Return a module as `tools/list` shows it."""
    policy, description = module.spec.tool, plain(module.spec.description)[:_MAX_DESCRIPTION]
    if policy.confirm:
        description = f"{description}\n\n{_CONFIRMED}".strip()
    hints = {"readOnlyHint": policy.read_only, "idempotentHint": policy.idempotent}
    if not policy.read_only:
        hints["destructiveHint"] = policy.destructive
    tool: dict[str, Any] = {"name": module.spec.name}
    if policy.title is not None:
        tool["title"] = plain(policy.title)
    tool |= {"description": description, "inputSchema": _input_schema(module), "annotations": hints}
    output = shown_output(module, legacy=legacy)
    if output is not None:
        tool["outputSchema"] = output
    return tool


def shown_output(module: Published, *, legacy: bool) -> Mapping[str, Any] | None:
    """Return the schema of the result as clients of a revision may get it: older ones know objects only."""
    schema = module.output_schema
    return schema if schema is None or not legacy or schema.get("type") == "object" else None


def _input_schema(module: Published) -> dict[str, Any]:
    """Return the schema of the arguments, which are an object: another input is the argument `input`."""
    schema = module.input_schema
    if schema is None:
        return _ANY
    found = dict(_without_headers(schema))
    if takes_object(found):
        return found | _ANY
    hoisted = {name: found.pop(name) for name in ("$schema", "$defs", "definitions") if name in found}
    wrapped = {"properties": {_WRAPPED: found}, "required": [_WRAPPED], "additionalProperties": False}
    return {**_ANY, **wrapped, **hoisted}


def takes_object(schema: Mapping[str, Any]) -> bool:
    """Return whether an input can be an object."""
    waiting: list[Any] = [schema]
    for _ in range(_MAX_STEPS):
        if not waiting:
            return False
        part = waiting.pop()
        if not isinstance(part, Mapping):
            if part is not False:
                return True
            continue
        kinds, reference = part.get("type"), part.get("$ref")
        given = [part[name] for name in ("anyOf", "oneOf") if isinstance(part.get(name), list)]
        values = part.get("enum", [part["const"]] if "const" in part else None)
        if kinds is not None:
            if "object" in (kinds if isinstance(kinds, list) else [kinds]):
                return True
        elif isinstance(reference, str):
            waiting.append(_target(schema, reference))
        elif given:
            waiting += [branch for branches in given for branch in branches]
        elif values is None or any(isinstance(value, Mapping) for value in values):
            return True
    return True


def _target(schema: Mapping[str, Any], reference: str) -> Any:
    found: Any = schema
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _without_headers(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema without requests to repeat arguments in headers, which no client could trust here."""
    if _HEADER.encode() not in msgspec.json.encode(schema):
        return schema
    found: Mapping[str, Any] = _stripped(schema)
    return found


def _stripped(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {name: _stripped(value) for name, value in part.items() if name != _HEADER or isinstance(value, Mapping)}
    return [_stripped(each) for each in part] if isinstance(part, (list, tuple)) else part


class _Wrapped(Struct, forbid_unknown_fields=True):
    input: Raw | UnsetType = UNSET


_wrapped: Final = msgspec.json.Decoder(_Wrapped)


def input_of(module: Published, arguments: Raw | UnsetType) -> bytes:
    """Return the input for the arguments of a call. Raises RpcError."""
    data = b"{}" if isinstance(arguments, UnsetType) else bytes(arguments)
    if data.lstrip()[:1] != b"{":
        raise RpcError(INVALID_PARAMS, "`arguments` must be an object", status=400)
    if module.input_schema is None or takes_object(module.input_schema):
        return data
    try:
        found = _wrapped.decode(data).input
    except (msgspec.DecodeError, RecursionError):
        found = UNSET
    if isinstance(found, UnsetType):
        raise RpcError(INVALID_PARAMS, f"the input of this tool is the one argument `{_WRAPPED}`", status=400)
    return bytes(found)
