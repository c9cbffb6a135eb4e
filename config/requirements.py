"""Requirements of a module: lists, texts and files, made into lines that stand alone.

The installer parses them. Read here is only what must be known before it runs: the files that `-r` and `-c` name, which
are watched and part of the content, and what no runner installs, or none for a caller of the API.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from attrs import define, field, frozen

from config import units
from config.mistakes import Wrong, read_text

_MAX_DEPTH = 10
"""Files that include each other."""
_MAX_LINE = 4096

_INCLUDE = re.compile(r"(?:-([rc])[\s=]*|--(requirement|constraint)[\s=]\s*)(\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)(?![\w-]).*|-e\S.*")
_INDEX = re.compile(r"-i|-f|--index-url|--extra-index-url|--no-index|--find-links|--trusted-host")
_NAMED = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^\]]*\]\s*)?(?:@\s*(?P<target>[^\s-]\S*).*|(?:[<>=!~;(]|--hash).*|)"
)
_AFTER_NAME = re.compile(r"[\s;\[<>=!~(@,]")
_ARCHIVE = re.compile(r".*\.(?:whl|zip|tar|tgz|tbz|tlz|txz|tar\.\w+)", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:git\+)?https?://.*", re.IGNORECASE)
"""Addresses that a caller of the API may give: others name files of the runner's machine, or use its keys."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_OPTION = re.compile(r"\s(--?(?!hash\b)[A-Za-z][\w-]*)")

_FORM = "a requirement such as requests, numpy>=2,<3 or name @ https://host/file.whl"
_ALLOWED = "requirement lines, `-r FILE` and `-c FILE`"
_FOLDER = "commit it and write `name @ git+https://HOST/REPOSITORY`, build a wheel, or put its code beside the module's"

Lines: TypeAlias = tuple[list[str], list[str]]
"""Requirements and constraints."""


@frozen
class Origin:
    """Who gives the requirements of a module, and from where."""

    folder: Path | None
    """Of relative names; without one, no files can be named."""
    trusted: bool = False
    """Paths of this machine, keys and `${VARIABLES}` of the runner are for its operator only."""
    named: list[Path] = field(factory=list)
    """Collects the files that are named, readable or not."""


def is_text(value: str) -> bool:
    """Return whether `requirements` has lines, and not the name of a file."""
    return "\n" in value.strip(" \t") or "\r" in value


def read_lines(value: list[Any] | str | Path, origin: Origin) -> tuple[Lines, list[Wrong]]:
    """Return the lines of a list, a text or a file with those of the files that it includes, and the mistakes.

    Equal requirements give equal lines, and lines that were read are read as they are. Raises `Wrong` if a file cannot
    be read.
    """
    reading = _Reading(origin)
    if isinstance(value, Path):
        reading.read_file(value, constraint=False)
    elif isinstance(value, str):
        reading.read(units.text(value), origin.folder, constraint=False)
    else:
        reading.read_items(value)
    return (reading.requirements, reading.constraints), reading.wrongs


def within(base: Path, name: str, root: Path | None) -> Path:
    """Return `name` relative to `base`. Raises `Wrong` if that is outside of `root` after resolving links."""
    path = base / name
    if root is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise Wrong(f"{units.show(name)} is outside of the folder of the module", allowed="a path inside the folder")
    return path


@define
class _Reading:
    """One reading of lines and of the files that they include."""

    origin: Origin
    requirements: list[str] = field(factory=list)
    constraints: list[str] = field(factory=list)
    wrongs: list[Wrong] = field(factory=list)
    _within: list[str] = field(factory=list)
    """The files that are being read, from the outermost."""
    _done: set[tuple[str, bool]] = field(factory=set)

    def read_items(self, items: list[Any]) -> None:
        for index, item in enumerate(items):
            before = len(self.wrongs)
            try:
                self.read(units.filled(item), self.origin.folder, constraint=False)
            except Wrong as wrong:
                self.wrongs.append(wrong)
            self.wrongs[before:] = [
                wrong.under((index,)) if wrong.file is None else wrong for wrong in self.wrongs[before:]
            ]

    def read_file(self, path: Path, *, constraint: bool) -> None:
        self.origin.named.append(path)
        real = os.path.realpath(path)
        if real in self._within:
            raise Wrong("a requirements file cannot include itself")
        if len(self._within) >= _MAX_DEPTH:
            raise Wrong(f"{_MAX_DEPTH} files already include each other here")
        if (real, constraint) in self._done:
            return
        self._done.add((real, constraint))
        text = read_text(path)
        self._within.append(real)
        self.read(text, path.parent, constraint=constraint, file=path)
        self._within.pop()

    def read(self, text: str, folder: Path | None, *, constraint: bool, file: Path | None = None) -> None:
        for at, line in _logical_lines(text):
            try:
                if include := _INCLUDE.fullmatch(line):
                    self._include(folder, include[3], constraint=constraint or (include[1] or include[2])[0] == "c")
                else:
                    found = _checked(line, folder, trusted=self.origin.trusted)
                    (self.constraints if constraint else self.requirements).append(found)
            except Wrong as wrong:
                place: dict[str, Any] = {"offset": at - 1} if file is None else {"file": str(file), "line": at}
                self.wrongs.append(Wrong(wrong.message, allowed=wrong.allowed, **place))

    def _include(self, folder: Path | None, name: str, *, constraint: bool) -> None:
        name = name.strip("'\"")
        if folder is None:
            raise Wrong(f"{units.show(name)}: files are only for the operator's modules file and for uploads")
        path = within(folder, name, None if self.origin.trusted else self.origin.folder)
        try:
            self.read_file(path, constraint=constraint)
        except Wrong as wrong:
            raise Wrong(f"{name}: {wrong.message}") from None


def _checked(line: str, folder: Path | None, *, trusted: bool) -> str:
    """Return one line for the installer; a path in it becomes an address."""
    _refuse_options(line)
    target = _target(line)
    if target is None:
        return line
    if not trusted and not _ADDRESS.fullmatch(target):
        allowed = "packages of the index, and addresses with https or git+https"
        text = f"{units.show(target)} is only for the operator's modules file; allowed are {allowed}"
        raise Wrong(text, allowed=allowed)
    if not trusted and "${" in line:
        raise Wrong(f"{units.show(target)}: variables are only for the operator's modules file")
    path = _path(target, folder)
    if path is None:
        return line
    if os.path.isdir(path):  # noqa: PTH112  (it takes any text)
        raise Wrong(f"{units.show(target)} is a folder, which changes without notice; {_FOLDER}", allowed=_FORM)
    fragment = target[len(target.partition("#")[0]) :]
    return line if target.startswith("file:///") else line.replace(target, path.as_uri() + fragment, 1)


def _refuse_options(line: str) -> None:
    if _EDITABLE.fullmatch(line):
        raise Wrong(f"the option -e is not allowed: environments do not change; {_FOLDER}", allowed=_ALLOWED)
    if found := _OPTION.search(f" {line}"):
        option = found[1]
        hint = ": package indexes are set in the operator's uv configuration" if _INDEX.fullmatch(option) else ""
        raise Wrong(f"the option {option} is not allowed{hint}; allowed are {_ALLOWED}", allowed=_ALLOWED)


def _target(line: str) -> str | None:
    """Return the address or path in a line; None for a package of the index. Raises `Wrong` for what is neither."""
    head = _AFTER_NAME.split(line, maxsplit=1)[0]
    if head.startswith(".") or re.search(r"[:/\\]", head) or _ARCHIVE.fullmatch(head):
        return line.split(" ", 1)[0]
    named = _NAMED.fullmatch(line)
    if len(line.partition(" --hash")[0]) > _MAX_LINE or named is None:
        raise Wrong(f"{units.show(line)} is not {_FORM}", allowed=_FORM)
    return named["target"]


def _path(target: str, folder: Path | None) -> Path | None:
    """Return the path on this machine that an address or a name of a file means; None for another address."""
    if "${" in target:
        return None
    if target.lower().startswith("file:"):
        return (folder or Path("/")) / unquote(urlsplit(target).path)
    if _SCHEME.match(target):
        return None
    path = Path(target.partition("#")[0])
    if folder is None and not path.is_absolute():
        raise Wrong(f"{units.show(target)} is not an absolute path", allowed="an absolute path")
    return (folder or Path("/")) / path


def _logical_lines(content: str) -> Iterator[tuple[int, str]]:
    """Yield the logical lines with their first line number: continuations joined, comments and spare blanks removed."""
    joined, begun = "", 0
    for at, line in enumerate([*re.split(r"\r\n|\n|\r", content.removeprefix("\ufeff")), ""], start=1):
        comment = line.lstrip().startswith("#")
        begun = begun if joined else at
        if line.endswith("\\") and not comment:
            joined += line[:-1] + " "
            continue
        text = " ".join(re.sub(r"(^|\s)#.*$", "", joined if comment else joined + line).split())
        joined = ""
        if text:
            yield begun, text
