"""The code of a module: which of its files has the handler, which are left out, and what is wrong with it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from config import units
from config.code.source import MAX_BYTES, Finding, Verdict, check
from config.mistakes import Wrong, read_or_none
from config.requirements import within
from protocol.model import Kind

HANDLER = units.matching(
    r"(\w[\w.-]*(/\w[\w.-]*)*:)?[^\W\d]\w*", "the name of a function, or `file:function` for a file of a folder"
)
"""The form of the field `handler`."""
RUNNING = sys.version_info[:2]
"""The Python of the runner, as far as grammar goes."""
NAME = "the code"
"""What messages call source that has no file."""
QUICK_BYTES = 8 * 1024
"""Source of anybody that is checked by the runner itself."""
ENTRIES = ("main.py", "__init__.py", "handler.py")
"""The files of a folder that are looked for, in turn, where `handler` names none."""

_CACHES = ("__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache", ".DS_Store")
_EDITING = re.compile(r"\.#.*|.*~|.*\.sw[a-z]|.*\.py[co]|4913")
"""What editors put beside the file that is being edited, and what interpreters do."""


def is_left_out(name: str) -> bool:
    """Return whether a file or folder of this name is no code, wherever it stands."""
    return name in _CACHES or _EDITING.fullmatch(name) is not None


def code_files(root: Path) -> Iterator[Path]:
    """Yield every file below a folder, or the file that `root` is. Raises OSError for folders that cannot be read."""
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

    `has` says whether there is a file of a name; `only` is the one file of a module that is no folder. Raises `Wrong`
    at `handler`.
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


def target(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the Python that will import a module, as its fields say; None where only its environment knows."""
    env = read_or_none(units.one_of(Kind), data.get("env"))
    version = re.fullmatch(r"3\.([0-9]{1,3})(\..*)?", str(data.get("python") or ""))
    if env is Kind.INLINE or (env is Kind.VENV and not data.get("python")):
        return RUNNING
    return (3, int(version[1])) if version and not (env is Kind.DOCKER and data.get("image")) else None


def wrongs(data: Mapping[str, Any], root: Path | None, *, trusted: bool) -> Iterator[Wrong]:
    """Yield what is wrong with the code that a module has: its text, or what its path (absolute) names.

    The path is known to be there. With `root`, code outside of it is refused, and files are told relative to it. Of
    what is not `trusted` only `QUICK_BYTES` are looked at: compiling may take the square of that, and holds all else.
    """
    largest = MAX_BYTES if trusted else QUICK_BYTES
    said = "handler" if data.get("handler") is None else data["handler"]
    handler, code, path = read_or_none(HANDLER, said), data.get("code"), data.get("path")
    if isinstance(code, str) and code and "\0" not in code and (source := _encoded(code)) is not None:
        function = "" if handler is None or ":" in handler else handler
        yield from map(in_code, check(source, function, target(data), NAME, largest).findings)
    elif isinstance(path, (str, Path)) and handler is not None:
        yield from _path_wrongs(Path(path), handler, target(data), root, largest)


def entry_of(path: Path, handler: str) -> Path:
    """Return the file that has the handler, of a module that is a file or a folder. Raises `Wrong`."""
    if not path.is_dir():
        return path.parent / find_entry(lambda name: name == path.name, handler, path.name)
    return path / find_entry(lambda name: _is_code(path, name), handler)


def read_entry(entry: Path) -> bytes:
    """Return a source, at most a little more than is looked at. Raises `Wrong`."""
    try:
        with entry.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Wrong(f"cannot be read: {error.strerror or error}", ("path",)) from None


def in_code(finding: Finding) -> Wrong:
    """Return a finding in the field `code` as what is wrong with a module, in lines from its first one."""
    offset = None if finding.line is None else finding.line - 1
    return Wrong(finding.message, (finding.about,), allowed=finding.allowed, offset=offset)


def file_wrongs(verdict: Verdict, file: str) -> Iterator[Wrong]:
    """Yield the findings in a file as what is wrong with a module, in the file's own lines."""
    for finding in verdict.findings:
        if finding.about == "handler":
            yield Wrong(finding.message, ("handler",), allowed=finding.allowed)
        else:
            yield Wrong(finding.message, ("path",), allowed=finding.allowed, file=file, line=finding.line)


def _path_wrongs(
    path: Path, handler: str, python: tuple[int, int] | None, root: Path | None, largest: int
) -> Iterator[Wrong]:
    try:
        entry = entry_of(path, handler)
        shown = entry.relative_to(path if path.is_dir() else path.parent).as_posix()
        if root is not None:
            within(entry.parent, entry.name, root)
        verdict = check(read_entry(entry), handler.rpartition(":")[2], python, shown, largest)
    except OSError as error:
        yield Wrong(f"cannot be read: {error.strerror or error}", ("path",))
    except Wrong as wrong:
        yield wrong if wrong.where else wrong.under(("path",))
    else:
        told = str(entry if root is None or not entry.is_relative_to(root) else entry.relative_to(root))
        yield from file_wrongs(verdict, told)


def _is_code(folder: Path, name: str) -> bool:
    return not any(map(is_left_out, name.split("/"))) and (folder / name).is_file()


def _encoded(code: str) -> bytes | None:
    """Return code as the guest reads it; None for half characters, which are told as such."""
    try:
        return code.encode()
    except UnicodeEncodeError:
        return None
