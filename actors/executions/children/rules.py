"""Permissions and depth of calls of modules, and the execution that is called. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

import msgspec

from actors.registry import Published
from protocol.errors import ErrorKind, error
from protocol.ids import execution_id
from protocol.model import Execution, Record, Status

MAX_DEPTH: Final = 16
"""Calls within calls, those of submitted executions included."""
_globs: Final = msgspec.json.Decoder(tuple[str, ...])
_MATCHES: Final = 4096
"""Names and globs that are remembered: a program calls the same few modules again and again."""


def reach_of(modules: Sequence[str]) -> str | None:
    """Return the module globs of a caller as executions keep them; none allow all modules."""
    return msgspec.json.encode(list(modules)).decode() if modules else None


def globs_of(execution: Execution) -> tuple[str, ...]:
    """Return the module globs of the first caller; () for all modules."""
    return () if execution.reach is None else _globs.decode(execution.reach)


def check_allowed(parent: Execution, allowed: Sequence[str], name: str, path: Sequence[str]) -> None:
    """Raise RunnerError when the handler of an execution may not call a module of this name.

    `allowed` is the field `calls_modules`; `path` has the modules of the handlers that wait for this one, its own last.
    """
    if not _names(tuple(allowed), name):
        text = f"the module {parent.module.name!r} does not name {name!r} in its field `calls_modules`; add it there"
        raise error(ErrorKind.FORBIDDEN, text, field="calls_modules")
    reach = globs_of(parent)
    if reach and not _names(reach, name):
        text = f"the token of {parent.subject!r}, whose call led to this one, does not allow module {name!r}"
        raise error(ErrorKind.FORBIDDEN, text)
    if parent.depth >= MAX_DEPTH:
        way = " > ".join((*path, name))
        text = f"calls within calls go {MAX_DEPTH} deep, and this one is deeper: {way}; end the cycle, or use a loop"
        raise error(ErrorKind.CONFLICT, text)


@lru_cache(_MATCHES)
def _names(globs: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def child_of(parent: Execution, module: Published, data: bytes, group: str | None) -> Execution:
    """Return an execution that a handler calls."""
    return Execution(
        id=execution_id(),
        module=module.ref,
        env=module.spec.env,
        status=Status.RUNNING,
        created_at=time.time(),
        input=data,
        subject=parent.subject,
        priority=parent.priority,
        parent=parent.id,
        root=parent.root or parent.id,
        depth=parent.depth + 1,
        reach=parent.reach,
        group=group,
        on_end=module.telling,
        summary=module.spec.record is Record.SUMMARY,
        input_bytes=len(data),
    )
