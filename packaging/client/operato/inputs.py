"""Inputs as JSON: files in them are uploaded, and values that typed handlers convert back are written as text."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import uuid
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from operato.authors import File
from operato.errors import BadInputError
from operato.files import Files

_MAX_DEPTH = 200


async def encoded(files: Files, value: Any) -> bytes:
    """Return an input as JSON. Files and bytes in it are uploaded, and named in it. Raises BadInputError."""
    if value is None:
        return b"null"
    try:
        return json.dumps(await _plain(files, value, 0), allow_nan=False, separators=(",", ":")).encode()
    except ValueError as problem:
        raise BadInputError(f"the input is not JSON: {problem}", field="$") from None


async def _plain(files: Files, value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise BadInputError("the input is nested too deeply", field="$")
    if isinstance(value, (File, bytes, bytearray)):
        return await files.upload(value if isinstance(value, File) else bytes(value))
    if isinstance(value, Mapping):
        return {_key(key): await _plain(files, inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [await _plain(files, inner, depth + 1) for inner in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: await _plain(files, getattr(value, each.name), depth + 1) for each in fields(value)}
    return _leaf(value)


def _leaf(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    raise BadInputError(f"the input has a {type(value).__name__}, which JSON has not", field="$")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise BadInputError(f"the input has the key {key!r:.60}, which is not text", field="$")
    return key
