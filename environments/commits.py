"""Git requirements of the kinds that resolve requirements while they install: fixed to commits before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import define, field

from environments.installer import find_uv, run_uv, write_lock
from environments.local import ProcessTable


def is_git(line: str) -> bool:
    """Return whether a requirement line names a git repository."""
    return "git+" in line.lower().partition(";")[0]


@define
class Commits:
    """The commits of git requirements, found once by uv for each content, in files of `folder`."""

    folder: Path
    table: ProcessTable
    environ: Mapping[str, str]
    offline: bool = False
    _locking: dict[str, trio.Lock] = field(factory=dict, init=False)

    def known(self, requirements: Sequence[str], python: str) -> tuple[str, ...] | None:
        """Return the requirements with commits, or None if the commits were not looked up yet."""
        path = self._path(requirements, python)
        if path is None:
            return tuple(requirements)
        if not path.exists():
            return None
        return (*(line for line in requirements if not is_git(line)), *path.read_text().splitlines())

    async def fixed(self, requirements: Sequence[str], python: str, say: Callable[[str], None]) -> tuple[str, ...]:
        """Return the requirements with commits. Raises RunnerError `environment_failed` in the words of uv."""
        path = self._path(requirements, python)
        if path is not None:
            async with self._locking.setdefault(path.name, trio.Lock()):
                if not path.exists():
                    say("looking up the commits of git requirements")

                    async def run(arguments: list[str]) -> None:
                        options = ["--no-deps", *(["--python-version", python] if "." in python else [])]
                        failed = "the commits of git requirements could not be found"
                        uv, environ = find_uv(), self.environ
                        await run_uv(
                            uv, [*arguments, *options], self.table, environ, say, failed=failed, offline=self.offline
                        )

                    await write_lock(path, [line for line in requirements if is_git(line)], (), run)
        return self.known(requirements, python) or ()

    def _path(self, requirements: Sequence[str], python: str) -> Path | None:
        """Return the file of the commits, existing or not; None without git requirements."""
        git = [line for line in requirements if is_git(line)]
        if not git:
            return None
        return self.folder / f"{hashlib.sha256(chr(10).join([python, *git]).encode()).hexdigest()[:32]}.git.txt"
