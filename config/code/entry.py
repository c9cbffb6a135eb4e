"""The source of a module: which files are code, which of them has the handler, and what is wrong with it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from attrs import frozen

from config import units
from config.code.signatures import input_schema, takes_requests
from config.code.source import MAX_BYTES, Verdict, check
from config.mistakes import Wrong, read_or_none
from config.packages import fits, is_range, read_python
from config.requirements import within
from protocol.model import Kind

read_handler = units.matching(
    r"(\w[\w.-]*(/\w[\w.-]*)*:)?[^\W\d]\w*", "the name of a function, or `file:function` for a file of a folder"
)
"""Read the field `handler`."""
RUNNING_VERSION = sys.version_info[:3]
RUNNING = RUNNING_VERSION[:2]
"""The Python of the runner: major and minor version, which decide the grammar."""
QUICK_BYTES = 8 * 1024
"""The largest untrusted source that the runner compiles in its own process."""
ENTRIES = ("main.py", "__init__.py", "handler.py")
"""Files that may have the handler of a folder, in this order, where `handler` names no file."""

_NO_REQUEST = (
    "a handler with endpoints takes the request: one parameter with the hint `Request`, after "
    "`from operato import Request`, or a plain `input`"
)
_CACHES = ("__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache", ".DS_Store")
_EDITING = re.compile(r"\.#.*|.*~|.*\.sw[a-z]|.*\.py[co]|4913")
"""Temporary files of editors, and bytecode."""


@frozen
class Source:
    """The source text that has the handler of a module."""

    text: bytes
    function: str
    """The name of the handler in it; empty leaves the handler unchecked."""
    name: str = "the code"
    """What messages call it."""
    file: str | None = None
    """The file, as mistakes name it; None for the field `code`."""
    package: bool = False
    """Whether it can import relatively: it is in a package, or below the folder on `sys.path`."""
    shared: bool = False
    """Whether a worker runs many calls at a time, for which the handler must be async."""

    def wrongs(self, verdict: Verdict) -> Iterator[Wrong]:
        """Yield the findings as mistakes of the module, with lines of the field or of the file."""
        for finding in verdict.findings:
            if self.file is None:
                offset = None if finding.line is None else finding.line - 1
                yield Wrong(finding.message, (finding.about,), allowed=finding.allowed, offset=offset)
            elif finding.about in ("handler", "calls"):
                yield Wrong(finding.message, (finding.about,), allowed=finding.allowed)
            else:
                yield Wrong(finding.message, ("path",), allowed=finding.allowed, file=self.file, line=finding.line)


def is_left_out(name: str) -> bool:
    """Return whether a file or folder of this name is never code."""
    return name in _CACHES or _EDITING.fullmatch(name) is not None


def code_files(root: Path) -> Iterator[Path]:
    """Yield every code file below the folder `root`, or `root` itself if it is a file.

    Raises OSError for unreadable folders.
    """
    if not root.is_dir():
        yield root
        return
    for folder, names, files in os.walk(root, onerror=_raise):
        names[:] = sorted(name for name in names if not is_left_out(name))
        yield from (Path(folder, name) for name in sorted(files) if not is_left_out(name))


def _raise(problem: OSError) -> NoReturn:
    raise problem


def find_entry(has: Callable[[str], bool], handler: str, only: str | None = None) -> str:
    """Return the file that has the handler, relative to the folder of the module.

    `has` returns whether a file exists; `only` is the file of a module that consists of one file. Raises `Wrong` at
    `handler`.
    """
    file = handler.rpartition(":")[0]
    named = [f"{file}.py", f"{file}/__init__.py", file]
    candidates = named if file else list(ENTRIES if only is None else [only])
    found = next((name for name in candidates if has(name)), None)
    if found is not None:
        return found
    text = f"none of {', '.join(candidates)} is in the folder"
    remedy = "" if file else "; name it as `handler: file:function`"
    raise Wrong(text + remedy, ("handler",), allowed="a file of the module")


def target_python(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the Python that will import a module, from its fields; None if only the environment determines it."""
    env = read_or_none(units.one_of(Kind), data.get("env"))
    python = str(data.get("python") or "")
    version = re.fullmatch(r"3\.([0-9]{1,3})(\..*)?", python)
    if env is Kind.INLINE or (env is Kind.VENV and not python):
        return RUNNING
    if env is Kind.VENV and is_range(read_or_none(read_python, python)) and fits(RUNNING_VERSION, python):
        return RUNNING
    return (3, int(version[1])) if version and not (env is Kind.DOCKER and data.get("image")) else None


def source_wrongs(data: Mapping[str, Any], root: Path | None, *, trusted: bool) -> Iterator[Wrong]:
    """Yield the mistakes in the source of a module: in its `code`, or in the file that its absolute `path` leads to.

    `path` exists. With `root`, code outside of it is refused, and files are named relative to it. Untrusted source is
    checked up to `QUICK_BYTES` only: compiling may take quadratic time, and blocks the event loop.
    """
    written = "handler" if data.get("handler") is None else data["handler"]
    handler, code, path = read_or_none(read_handler, written), data.get("code"), data.get("path")
    if isinstance(code, str) and code and "\0" not in code and (text := _encoded(code)) is not None:
        source = Source(text, "" if handler is None or ":" in handler else handler)
    elif isinstance(path, (str, Path)) and handler is not None:
        try:
            source = source_in(Path(path), handler, root)
        except Wrong as wrong:
            yield wrong
            return
    else:
        return
    largest = MAX_BYTES if trusted else QUICK_BYTES
    target = target_python(data)
    shared = (read_or_none(units.whole, data.get("calls", 1)) or 1) > 1
    given = source.text, source.function, target, source.name, largest
    verdict = check(*given, package=source.package, shared=shared)
    yield from source.wrongs(verdict)
    if data.get("endpoints") and data.get("input_schema") is None and verdict.certain and not verdict.findings:
        schema = input_schema(source.text, source.function)
        if schema is not None and not takes_requests(schema):
            yield Wrong(_NO_REQUEST, ("handler",), allowed="`def handler(request: Request)`")


def source_in(path: Path, handler: str, root: Path | None = None) -> Source:
    """Return the source with the handler, for a module that is a file or a folder.

    With `root`, files outside of it are refused. Raises `Wrong` at `path` or `handler`.
    """
    try:
        entry = entry_of(path, handler)
        if root is not None:
            within(entry.parent, entry.name, root)
        with entry.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise Wrong(f"cannot be read: {error.strerror or error}", ("path",)) from None
    except Wrong as wrong:
        raise (wrong if wrong.where else wrong.under(("path",))) from None
    name = entry.relative_to(path if path.is_dir() else path.parent).as_posix()
    file = entry.relative_to(root) if root is not None and entry.is_relative_to(root) else entry
    package = "/" in name or (path.is_dir() and _is_code(path, "__init__.py"))
    return Source(text, handler.rpartition(":")[2], name, str(file), package)


def entry_of(path: Path, handler: str) -> Path:
    """Return the file with the handler, for a module that is a file or a folder. Raises `Wrong`."""
    if not path.is_dir():
        return path.parent / find_entry(lambda name: name == path.name, handler, path.name)
    return path / find_entry(lambda name: _is_code(path, name), handler)


def _is_code(folder: Path, name: str) -> bool:
    return not any(map(is_left_out, name.split("/"))) and (folder / name).is_file()


def _encoded(code: str) -> bytes | None:
    """Return the code as UTF-8; None for lone surrogates, which the reader of `code` reports."""
    try:
        return code.encode()
    except UnicodeEncodeError:
        return None
