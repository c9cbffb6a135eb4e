"""Checks inputs of any size by a type, in pieces, so that other threads get their turn between two of them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, Union, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

from config.schema.fit import told
from protocol.scan import LARGE_BYTES, members, pieces

_SPACE: Final = b" \t\r\n"
_INDEX: Final = re.compile(r"\$\[(\d+)\]")


class MismatchError(Exception):
    """The input does not fit: the path of the value, and the reason."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path = path
        self.why = why


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def check(kind: Any, data: bytes, path: str = "$") -> None:
    """Check a valid JSON text by a type of `fit`. Raises MismatchError."""
    data = data.strip(_SPACE)
    if len(data) <= LARGE_BYTES or data[:1] not in (b"[", b"{"):
        _read(kind, data, path)
        return
    part = _container(kind, array=data.startswith(b"["))
    if part is None:
        _read(kind, data[:1] + data[-1:], path)  # which fails, as an empty one of its kind
    elif part is not Any:
        (_check_fields if _has_names(part) else _check_pieces)(part, data, path)


def _container(kind: Any, *, array: bool) -> Any:
    """Return the type, of all that a union has, for an array or an object; None without one."""
    for part in get_args(kind) if get_origin(kind) is Union else (kind,):
        if part is Any or (get_origin(part) is list if array else get_origin(part) is dict or _has_names(part)):
            return part
    return None


def _has_names(kind: Any) -> bool:
    return is_typeddict(kind) or _is_closed(kind)


def _is_closed(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _read(kind: Any, data: bytes, path: str) -> Any:
    try:
        return _decoder(kind).decode(data)
    except msgspec.MsgspecError as problem:
        raise MismatchError(*_told(problem, path)) from None


def _told(problem: msgspec.MsgspecError, path: str, offset: int = 0) -> tuple[str, str]:
    """Return path and reason of a problem in the value at `path`, whose first `offset` items are not in the text."""
    inner, why = told(problem)
    if found := _INDEX.match(inner):
        return f"{path}[{int(found[1]) + offset}]{inner[found.end() :]}", why
    return f"{path}{inner.removeprefix('$')}", why


def _check_pieces(kind: Any, data: bytes, path: str) -> None:
    """Check an array or a mapping whose values have one type."""
    array, inner, count = get_origin(kind) is list, get_args(kind)[-1], 0
    if inner is Any:
        return

    def read(run: bytes) -> int:
        if len(run) > LARGE_BYTES and array:
            check(inner, run, f"{path}[{count}]")
            return 1
        if len(run) > LARGE_BYTES:
            for value in members(run).values():
                check(inner, value, f"{path}[...]")
            return 1
        try:
            return len(_decoder(kind).decode(b"[%b]" % run if array else b"{%b}" % run))
        except msgspec.ValidationError as problem:
            raise MismatchError(*_told(problem, path, count)) from None

    try:
        for number in pieces(data, read):
            count += number
    except msgspec.DecodeError as problem:
        raise MismatchError(path, str(problem)) from None


def _check_fields(kind: Any, data: bytes, path: str) -> None:
    """Check an object whose names are known; others are skipped, or refused if the type is closed."""
    names, raw = _fields(kind)
    found = _read(raw, data, path)
    for field, (name, inner) in names.items():
        if (value := getattr(found, field)) is not None:
            check(inner, bytes(value), f"{path}.{name}")


@lru_cache(maxsize=256)
def _fields(kind: Any) -> tuple[dict[str, tuple[str, Any]], Any]:
    """Return names and types of the fields, and a type that leaves their values as they are."""
    closed = _is_closed(kind)
    if closed:
        known = {each.encode_name: each.type for each in msgspec.structs.fields(kind)}
        required = {each.encode_name for each in msgspec.structs.fields(kind) if each.required}
    else:
        known, required = get_type_hints(kind), kind.__required_keys__
    names = {f"field_{number}": each for number, each in enumerate(known.items())}
    raw: list[Any] = [
        (field, msgspec.Raw) if name in required else (field, msgspec.Raw, None) for field, (name, _) in names.items()
    ]
    rename = {field: name for field, (name, _) in names.items()}
    return names, msgspec.defstruct("Fields", raw, rename=rename, kw_only=True, forbid_unknown_fields=closed)
