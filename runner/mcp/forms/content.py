"""The result of a tool call: blocks for agents, the value for programs, links to what is too large."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw

Block: TypeAlias = dict[str, Any]
MAX_TEXT_BYTES: Final = 65_536
"""A larger result is a link. The events of an execution leave it to the record from this size on as well."""
MAX_STRUCTURED_BYTES: Final = 1024 * 1024
"""A result with a schema is a value for programs up to this size."""
EMBEDDED_BYTES: Final = 65_536
"""Of a file within a result; a larger one is a link."""
MEDIA_BYTES: Final = 1024 * 1024
"""Of pictures and sound within a result."""
MAX_FILES: Final = 100
URI: Final = re.compile(r"operato://executions/([A-Za-z0-9_-]{1,64})/(?:result|files/(sha256:[0-9a-f]{64}))")
_MAX_VALUES: Final = 10_000
_TEXTS: Final = ("application/json", "application/xml", "application/yaml", "application/x-yaml")


def text(words: str) -> Block:
    """Return a block of text."""
    return {"type": "text", "text": words}


def result_uri(execution: str) -> str:
    """Return the address of the result of an execution."""
    return f"operato://executions/{execution}/result"


def file_uri(execution: str, file: str) -> str:
    """Return the address of a file in the result of an execution."""
    return f"operato://executions/{execution}/files/{file}"


def link(uri: str, name: str, kind: str, size: int) -> Block:
    """Return a block with the address of a resource."""
    return {"type": "resource_link", "uri": uri, "name": name, "mimeType": kind, "size": size}


def contents(uri: str, kind: str, data: bytes) -> dict[str, Any]:
    """Return the content of a resource: as text if it is one."""
    about = {"uri": uri, "mimeType": kind}
    plain = kind.partition(";")[0].strip().lower()
    if plain.startswith("text/") or plain in _TEXTS or plain.endswith(("+json", "+xml")):
        try:
            return {**about, "text": data.decode()}
        except UnicodeDecodeError:
            pass
    return {**about, "blob": base64.b64encode(data).decode()}


def embedded(uri: str, kind: str, data: bytes) -> Block:
    """Return a block with the content of a resource."""
    return {"type": "resource", "resource": contents(uri, kind, data)}


def is_media(kind: str, size: int) -> bool:
    """Return whether agents get a file as a picture or sound."""
    return size <= MEDIA_BYTES and kind.partition("/")[0] in ("image", "audio")


def media(kind: str, data: bytes) -> Block:
    """Return a block with a picture or sound."""
    return {"type": kind.partition("/")[0], "data": base64.b64encode(data).decode(), "mimeType": kind}


def files_in(value: Any) -> list[Mapping[str, Any]]:
    """Return the files that a result names, at most `MAX_FILES`, in order."""
    found: list[Mapping[str, Any]] = []
    waiting, steps = [value], 0
    while waiting and steps < _MAX_VALUES and len(found) < MAX_FILES:
        part, steps = waiting.pop(), steps + 1
        if isinstance(part, dict):
            file = part.get("$file")
            if len(part) == 1 and isinstance(file, dict) and isinstance(file.get("id"), str):
                found.append(file)
            else:
                waiting += reversed(part.values())
        elif isinstance(part, list):
            waiting += reversed(part)
    return found


def shown_result(data: bytes, value: Any, *, typed: bool, legacy: bool) -> dict[str, Any]:
    """Return the result of a call that succeeded: `data` is its JSON, `value` its value.

    `typed`: the client knows its schema. Clients of older revisions take objects only as the value for programs.
    """
    words = value if isinstance(value, str) else data.decode()
    shown: dict[str, Any] = {"content": [text(words)], "isError": False}
    if typed or isinstance(value, dict) or (isinstance(value, list) and not legacy):
        shown["structuredContent"] = Raw(data)
    return shown


def failed(failure: Mapping[str, Any], *, traceback: bool) -> dict[str, Any]:
    """Return the result of a call that failed: an error of the tool, which agents can act on."""
    words = f"{failure['kind']}: {failure['message']}"
    if failure.get("field"):
        words = f"{words} (at {failure['field']})"
    if traceback and failure.get("traceback"):
        words = f"{words}\n\n{failure['traceback']}"
    return {"content": [text(_cut(words))], "isError": True}


def _cut(words: str) -> str:
    data = words.encode("utf-8", "replace")
    if len(data) <= MAX_TEXT_BYTES:
        return words
    return data[:MAX_TEXT_BYTES].decode("utf-8", "ignore") + "\n(the rest is left out)"


def decoded(data: bytes) -> Any:
    """Return the value of a result."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):  # a number out of range, or deeper than the decoder reads
        return None
