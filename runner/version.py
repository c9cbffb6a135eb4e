"""Which release this is, and of which commit: read from the source, or baked into what was built of it."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path

BAKED = "commit.txt"
"""Beside this module in what was built, and never in the source."""

_SHOWN_CHARACTERS = 7
_COMMIT = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(-dirty)?")


def version_of_this() -> str:
    """Return release and commit, `0.1.0 (3f5e74e)`; without the commit where nobody knows it."""
    known = commit()
    if known is None:
        return release()
    digits, dash, mark = known.partition("-")
    return f"{release()} ({digits[:_SHOWN_CHARACTERS]}{dash}{mark})"


def release() -> str:
    """Return the version of the project file where this runs from source, else of what is installed."""
    project = _source() / "pyproject.toml"
    try:
        return str(tomllib.loads(project.read_text())["project"]["version"])
    except (OSError, ValueError, KeyError):
        from importlib.metadata import version  # noqa: PLC0415  (it imports a mail library, 20 ms)

        return version("operato-runner")


def commit() -> str | None:
    """Return the whole name of the commit; with `-dirty` where files differed from it when this was built."""
    baked = files("runner").joinpath(BAKED)
    if baked.is_file():
        return _name(baked.read_text())
    return commit_of(_source())


def commit_of(root: Path) -> str | None:
    """Return the commit that is checked out in `root`, or None. Git's files are read: the program may not be there."""
    try:
        folder = root / ".git"
        if folder.is_file():  # a linked work tree: its own HEAD is there, the branches where `commondir` says
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        common = folder / "commondir"
        shared = folder / common.read_text().strip() if common.is_file() else folder
        head = (folder / "HEAD").read_text().strip()
        branch = head.removeprefix("ref:").strip()
        if branch == head:
            return _name(head)
        if (shared / branch).is_file():
            return _name((shared / branch).read_text())
        packed = (line.partition(" ") for line in (shared / "packed-refs").read_text().splitlines())
        return next((_name(digits) for digits, _, name in packed if name == branch), None)
    except (OSError, ValueError):
        return None


def _name(text: str) -> str | None:
    return text.strip() if _COMMIT.fullmatch(text.strip()) else None


def _source() -> Path:
    return Path(__file__).parents[1]
