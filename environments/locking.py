"""Requirements that uv fixes before an installation: git repositories to commits, projects to their lock."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import define, evolve, field

from config.code import RUNNING_VERSION
from config.modules import ModuleSpec
from config.packages import PROJECT, UV_LOCK, fits, registries
from environments.installer import find_uv, run_uv, wheels_only, write_lock
from environments.local import ProcessTable
from protocol.errors import ErrorKind, RunnerError, error

_STALE = ("needs to be updated", "No solution found", "Failed to parse")
_NO_INDEX = "https://no-index.invalid/simple"


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


@define
class Projects:
    """The requirements in `uv.lock` of modules, read once by uv for each content, in files of `folder`.

    uv also compares the lock with its `pyproject.toml`; it asks no index for that, and builds nothing.
    """

    folder: Path
    table: ProcessTable
    environ: Mapping[str, str]
    _locking: dict[str, trio.Lock] = field(factory=dict, init=False)

    def known(self, spec: ModuleSpec) -> ModuleSpec | None:
        """Return a module with the requirements of its lock; None if these were not read yet."""
        path = self._path(spec)
        if path is None:
            return spec
        if not path.exists():
            return None
        lines = [line for line in _whole_lines(path.read_text()) if not line.startswith("#")]
        read = evolve(
            spec, requirements=(*spec.requirements, *lines), packages_from=dict.fromkeys(spec.packages_from, "")
        )
        return wheels_only(read)

    async def read(self, spec: ModuleSpec, say: Callable[[str], None]) -> ModuleSpec:
        """Return a module with the requirements of its lock. Raises RunnerError `environment_failed`."""
        path = self._path(spec)
        if path is not None:
            async with self._locking.setdefault(path.name, trio.Lock()):
                if not path.exists():
                    say(f"reading {UV_LOCK}")
                    await self._export(spec, path)
        return self.known(spec) or spec

    async def _export(self, spec: ModuleSpec, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = spec.packages_from[UV_LOCK]
        first, *more = registries(lock) or [_NO_INDEX]
        indexes = ["--default-index", first, *(option for each in more for option in ("--index", each))]
        python = ["--python", sys.executable] if fits(RUNNING_VERSION, spec.python) else []
        options = ["--locked", "--no-build", "--no-dev", "--no-emit-project", "--no-header", "--no-annotate", "-q"]
        environ = {name: value for name, value in self.environ.items() if not _is_index(name)}
        with tempfile.TemporaryDirectory(prefix="operato-lock-") as folder:
            for name in (PROJECT, UV_LOCK):
                Path(folder, name).write_text(spec.packages_from.get(name, ""))
            target = Path(folder, "requirements.txt")
            arguments = ["export", "--directory", folder, *options, *indexes, *python, "-o", str(target)]
            try:
                uv, failed = find_uv(), f"{UV_LOCK} cannot be used"
                await run_uv(uv, arguments, self.table, environ, _unheard, failed=failed, offline=True)
            except RunnerError as problem:
                raise _explained(problem) from None
            temporary = path.with_suffix(".tmp")
            temporary.write_text(target.read_text())
            temporary.rename(path)

    def _path(self, spec: ModuleSpec) -> Path | None:
        """Return the file of the requirements in a lock, existing or not; None without a lock that uv has to read."""
        if not spec.packages_from.get(UV_LOCK):
            return None
        content = json.dumps([spec.packages_from.get(PROJECT), spec.packages_from[UV_LOCK]])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.uv.txt"


def _explained(problem: RunnerError) -> RunnerError:
    """Return the failure of reading a lock: with the command that renews it, if it is stale."""
    text = problem.failure.message
    if problem.failure.kind is not ErrorKind.ENVIRONMENT_FAILED or not any(each in text for each in _STALE):
        return problem
    remedy = f"{UV_LOCK} is not the lock of this {PROJECT} any more; run `uv lock`, and publish both again"
    return error(ErrorKind.ENVIRONMENT_FAILED, remedy, field="requirements")


def _is_index(name: str) -> bool:
    return name.startswith("UV_") and ("INDEX" in name or "FIND_LINKS" in name)


def _whole_lines(text: str) -> list[str]:
    """Return the lines of requirements, each with the hashes that follow it."""
    return [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def _unheard(_line: str) -> None:
    """Take a line of a program whose failure has the last ones."""
