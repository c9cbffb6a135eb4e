"""Values of in-process handlers as strict JSON, as the guest program writes them for all others."""

from __future__ import annotations

import json
import math

MAX_DEPTH = 500
_MAX_PATH = 200


class NotJsonError(ValueError):
    """A value that JSON cannot represent; `path` is its place: `$.rows[3].price`."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path if len(path) <= _MAX_PATH else path[:_MAX_PATH] + "..."
        super().__init__(f"{self.path}: {reason}")


def encode_value(value: object, *, limit: int | None = None, root: str = "$") -> bytes:
    """Return strict JSON as at most `limit` bytes. Raises NotJsonError with the path, from `root`."""
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as problem:
        path, reason = _find(value, root) or (root, str(problem))
        raise NotJsonError(_clean(path), _clean(reason)) from None
    if limit is not None and len(data) > limit:
        raise NotJsonError(root, f"{len(data)} bytes of JSON; the limit is {limit}")
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and (found := _find(value, root)):
        raise NotJsonError(*found)
    return data


def _find(value: object, root: str) -> tuple[str, str] | None:
    """Return path and reason of the first value that JSON cannot represent."""
    stack: list[tuple[str, object, tuple[int, ...]]] = [(root, value, ())]
    while stack:
        path, node, above = stack.pop()
        if isinstance(node, dict | list | tuple):
            if id(node) in above:
                return path, "the value contains itself"
            if len(above) >= MAX_DEPTH:
                return path, f"nested too deeply; the limit is {MAX_DEPTH} levels"
            for key in node if isinstance(node, dict) else ():
                if (reason := _key(key)) is not None:
                    return path, reason
            pairs = node.items() if isinstance(node, dict) else enumerate(node)
            inside = [
                (f"{path}.{key!s:.80}" if isinstance(node, dict) else f"{path}[{key}]", item, (*above, id(node)))
                for key, item in pairs
            ]
            stack.extend(reversed(inside))
        elif (reason := _leaf(node)) is not None:
            return path, reason
    return None


def _key(key: object) -> str | None:
    if not (key is None or isinstance(key, str | int | float)):
        return f"a key is of type {type(key).__name__}; JSON keys are strings"
    reason = _leaf(key)
    return None if reason is None else f"a key: {reason}"


def _leaf(value: object) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value!r} is not a JSON number"
    if not isinstance(value, int | str | None):
        return f"{type(value).__name__} is not JSON; return dict, list, str, int, float, bool or None"
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "text with a lone surrogate cannot be sent as UTF-8"
    except ValueError as problem:  # an integer of more digits than this Python formats
        return str(problem)
    return None


def _clean(text: str) -> str:
    return text[:16384].encode("utf-8", "backslashreplace").decode()
