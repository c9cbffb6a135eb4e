"""The release and the commit of this program: read from the source, or baked into the built distribution."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

BAKED = "commit.txt"
"""Beside this module in a built distribution, never in the source."""
_PLACE = Path(__file__).with_name(BAKED)

_SHOWN_CHARACTERS = 7
_COMMIT = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(-dirty)?")


def version_of_this() -> str:
    """Return release and commit, `0.1.0 (3f5e74e)`; without the commit if it is unknown."""
    name = commit()
    if name is None:
        return release()
    digits, dash, mark = name.partition("-")
    return f"{release()} ({digits[:_SHOWN_CHARACTERS]}{dash}{mark})"


@cache
def release() -> str:
    """Return the version in the project file of the source, else of the installed distribution."""
    project = _source() / "pyproject.toml"
    try:
        return str(tomllib.loads(project.read_text())["project"]["version"])
    except (OSError, ValueError, KeyError):
        from importlib.metadata import version  # noqa: PLC0415  (it imports a mail library, 20 ms)

        return version("operato-runner")


def commit() -> str | None:
    """Return the full name of the commit, with `-dirty` if files differed from it at the build; None if unknown."""
    if _PLACE.is_file():
        return _name(_PLACE.read_text())
    return commit_of(_source())


def commit_of(root: Path) -> str | None:
    """Return the commit checked out in `root`, or None. Reads the files of git, which need not be installed."""
    try:
        folder = root / ".git"
        if folder.is_file():  # a linked work tree: it has its own HEAD, and the branches are in `commondir`
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
