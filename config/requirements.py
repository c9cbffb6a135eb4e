"""Requirement lines and requirements files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from config import units
from config.mistakes import Wrong, read_text

_Requirements: TypeAlias = tuple[list[str], list[Wrong]]

_INCLUDE = re.compile(r"(?:-r\s*|--requirement[\s=]\s*)(\S.*)")
_INDEX = re.compile(r"-i|-f|--index-url|--extra-index-url|--no-index|--find-links|--trusted-host")
_VERSION_CLAUSE = r"(?:===|[<>=!~]=|[<>])\s*[\w*][^\s,;()]*"
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[\w\s,.-]*\]\s*)?"
    rf"(?:@\s*[^\s-]\S*|\(?\s*(?:{_VERSION_CLAUSE}(?:\s*,\s*{_VERSION_CLAUSE})*)?\s*\)?)"
    r"\s*(?:;(?:(?! --)[^\\])*)?(?:\s+--hash=\w+:[0-9a-fA-F]+)*",
    re.ASCII,
)


def requirement(value: Any) -> str:
    """Read one requirement line. Only its form is checked; the installer checks the rest."""
    # Runs of blanks become one: the expression would try each blank in several ways.
    line = " ".join(units.text(value).split())
    if line.startswith("-"):
        option = re.split(r"[\s=]", line)[0]
        allowed = "requirement lines; in a requirements file also `-r FILE`"
        hint = ": package indexes are set in the operator's uv configuration" if _INDEX.fullmatch(option) else ""
        raise Wrong(f"the option {option} is not allowed{hint}; allowed are {allowed}", allowed=allowed)
    if len(line) > 4096 or len(value.strip().splitlines()) > 1 or not _REQUIREMENT.fullmatch(line):
        allowed = "a requirement such as requests, numpy>=2,<3 or name @ https://host/file.whl"
        raise Wrong(f"{units.show(value)} is not {allowed}", allowed=allowed)
    return line


def read_requirements(path: Path, *, root: Path | None, inner: bool = False) -> _Requirements:
    """Return the lines of a requirements file and of the files that it includes (`-r`, one level), and the mistakes.

    With `root`, files outside of it are refused. Raises `Wrong` if the file itself cannot be read.
    """
    lines: list[str] = []
    wrongs: list[Wrong] = []
    for at, line in _logical_lines(read_text(path)):
        try:
            if include := _INCLUDE.fullmatch(line):
                if inner:
                    raise Wrong("an included file cannot include another one; includes have one level")  # noqa: TRY301
                more_lines, more_wrongs = _include(path, include[1], root)
                lines += more_lines
                wrongs += more_wrongs
            else:
                lines.append(requirement(line))
        except Wrong as wrong:
            wrongs.append(Wrong(wrong.message, allowed=wrong.allowed, file=str(path), line=at))
    return lines, wrongs


def requirements_files(path: Path) -> Iterator[Path]:
    """Yield a requirements file and the files that it includes, readable or not."""
    yield path
    try:
        for _, line in _logical_lines(read_text(path)):
            if include := _INCLUDE.fullmatch(line):
                yield path.parent / include[1]
    except Wrong:
        return


def _include(path: Path, name: str, root: Path | None) -> _Requirements:
    target = within(path.parent, name, root)
    if os.path.realpath(target) == os.path.realpath(path):
        raise Wrong("a requirements file cannot include itself")
    try:
        return read_requirements(target, root=root, inner=True)
    except Wrong as wrong:
        raise Wrong(f"{name}: {wrong.message}") from None


def within(base: Path, name: str, root: Path | None) -> Path:
    """Return `name` relative to `base`. Raises `Wrong` if that is outside of `root` after resolving links."""
    path = base / name
    if root is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise Wrong(f"{units.show(name)} is outside of the folder of the module", allowed="a path inside the folder")
    return path


def _logical_lines(content: str) -> Iterator[tuple[int, str]]:
    """Yield the logical lines with their first line number: continuations joined, comments removed."""
    joined, begun = "", 0
    for at, line in enumerate(content.splitlines(), start=1):
        begun = begun if joined else at
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        text = re.sub(r"(^|\s)#.*$", "", joined + line).strip()
        joined = ""
        if text:
            yield begun, text
    if joined.strip():
        yield begun, joined.strip()
