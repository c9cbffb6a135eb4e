"""The Pythons of this machine that virtual environments can be made of."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio
from attrs import frozen

from config.packages import MINORS, fits, is_range
from environments.local import ProcessTable

_SECONDS = 5.0
_AT_A_TIME = 4
_CODE = "import sys; print('%d.%d.%d' % sys.version_info[:3], sys._base_executable)"


@frozen
class Python:
    """An interpreter: its full version and its path."""

    version: str
    path: str

    def fits(self, version: str | None) -> bool:
        """Return whether it has a wanted version: `3.12`, `3.12.1`, `>=3.11` or any."""
        return fits(self.order, version)

    @property
    def order(self) -> tuple[int, ...]:
        """The version as numbers."""
        return tuple(int(part) for part in self.version.split("."))


def python_candidates(version: str | None, search: Sequence[Path]) -> list[Path]:
    """Return interpreters on this machine that may have `version` (`3.12`, `3.12.1`; None means the runner's own).

    Of a range such as `>=3.11` the newest ones come first.
    """
    if version is None:
        return [Path(sys.executable)]
    if is_range(version):
        return [path for minor in reversed(MINORS) for path in python_candidates(f"3.{minor}", search)]
    short = ".".join(version.split(".")[:2])
    names = [f"python{short}", "python3", "python"]
    folders = [*search, Path("/usr/local/bin"), Path("/usr/bin")]
    homes = (
        (Path.home() / ".pyenv" / "versions", f"{short}*"),
        (Path.home() / ".local" / "share" / "uv" / "python", f"cpython-{short}.*"),
        (Path("/opt/python"), f"{short}*"),
    )
    for home, form in homes:
        if os.access(home, os.R_OK | os.X_OK) and home.is_dir():
            folders.extend(sorted((p / "bin" for p in home.glob(form)), reverse=True))
    return [folder / name for folder in folders for name in names if os.access(folder / name, os.X_OK)]


async def python_at(path: Path, table: ProcessTable, environ: Mapping[str, str]) -> Python | None:
    """Return the interpreter that a program starts, or None if it does not answer within five seconds."""
    lines: list[str] = []
    with trio.move_on_after(_SECONDS), suppress(OSError):
        status = await table.run([str(path), "-I", "-S", "-c", _CODE], environ, on_line=lines.append)
        version, _, base = lines[0].partition(" ") if status == 0 and lines else ("", "", "")
        if version:
            return Python(version, base or str(path))
    return None


async def installed_pythons(table: ProcessTable, environ: Mapping[str, str]) -> list[Python]:
    """Return every interpreter that a module can name as `python`, the newest first; each is started once."""
    search = search_path(environ)
    candidates = (path for minor in MINORS for path in python_candidates(f"3.{minor}", search))
    found: list[Python] = []
    places = trio.CapacityLimiter(_AT_A_TIME)

    async def look(path: Path) -> None:
        async with places:
            python = await python_at(path, table, environ)
        if python is not None:
            found.append(python)

    async with trio.open_nursery() as nursery:
        for path in {os.path.realpath(path): path for path in candidates}.values():
            nursery.start_soon(look, path)
    return sorted(_apart(found), key=lambda python: (python.order, python.path), reverse=True)


def search_path(environ: Mapping[str, str]) -> list[Path]:
    """Return the folders of PATH."""
    return [Path(part) for part in environ.get("PATH", "").split(":") if part]


def _apart(pythons: Iterable[Python]) -> list[Python]:
    """Return the interpreters without those that are others by another name, such as shims."""
    return list({os.path.realpath(python.path): python for python in pythons}.values())
