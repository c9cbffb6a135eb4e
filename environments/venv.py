"""The `venv` kind: virtual environments built by uv, locked at publication, shared by equal content."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog
import trio
from attrs import define, field, frozen

from config.code import RUNNING_VERSION
from config.modules import ModuleSpec
from config.packages import fits, is_locked, is_range, without_hash
from environments.base import Availability, Known, Prepared
from environments.built import BuiltEnvironment
from environments.installer import find_uv, run_uv, write_lock
from environments.local import Launcher
from environments.locking import Projects, is_git
from environments.pythons import installed_pythons, python_at, python_candidates, search_path
from environments.store import Store, environment_key, platform_tag
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Kind

log = structlog.get_logger("venv")


@frozen
class _Plan:
    """The content of a module's environment."""

    key: str
    python: str
    version: str
    locked: tuple[str, ...]

    in_place: bool = False

    @property
    def manifest(self) -> dict[str, object]:
        return {"kind": "venv", "python": self.version, "requirements": list(self.locked)}


@define
class VenvEnvironment(BuiltEnvironment[_Plan]):
    """Builds and starts virtual environments. uv gets `installer_environ` (proxy, index and cache settings)."""

    launcher: Launcher
    store: Store
    lock_dir: Path
    installer_environ: Mapping[str, str]
    offline: bool = False
    kind: Kind = field(default=Kind.VENV, init=False)
    _uv: str | None = field(factory=find_uv, init=False)
    _pythons: dict[str | None, tuple[str, str]] = field(factory=dict, init=False)
    _locking: dict[str, trio.Lock] = field(factory=dict, init=False)
    _projects: Projects = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._projects = Projects(self.lock_dir, self.launcher.table, self.installer_environ)

    async def probe(self) -> Availability:
        """Return whether uv is installed."""
        if self._uv is None:
            return Availability(available=False, reason="uv is not installed; `pip install uv` or put it on PATH")
        return Availability(available=True, detail={"uv": self._uv, "store": str(self.store.root)})

    async def known(self, spec: ModuleSpec) -> Known:
        """Return the key of a module's environment if its requirements are locked."""
        python, version = await self._python(spec.python)
        read = self._projects.known(spec)
        path = None if read is None else self._lock_path(read, version)
        if read is None or (path is not None and not path.exists()):
            return Known(None, "its requirements are not locked yet")
        return Known(_plan(python, version, _locked(read, path)).key)

    async def _plan(self, spec: ModuleSpec, say: Callable[[str], None]) -> _Plan:
        if self._uv is None:
            raise error(ErrorKind.UNAVAILABLE, (await self.probe()).reason)
        python, version = await self._python(spec.python)
        read = await self._projects.read(spec, say)
        return _plan(python, version, _locked(read, await self._lock(read, python, version, say)))

    async def _prepared(self, plan: _Plan, path: Path, seconds: float) -> Prepared:
        environ = dict(self.launcher.environ)
        environ["VIRTUAL_ENV"] = str(path)
        environ["PATH"] = f"{path / 'bin'}:{environ.get('PATH', '')}"
        return Prepared(plan.key, self.launcher.argv(str(path / "bin" / "python")), environ, seconds)

    async def find(self, version: str | None) -> str | None:
        """Return the path of an interpreter on this machine, or None if that version is missing."""
        try:
            return (await self._python(version))[0]
        except RunnerError:
            return None

    async def _python(self, version: str | None) -> tuple[str, str]:
        """Return path and full version of the interpreter; cached."""
        if version not in self._pythons:
            table, environ = self.launcher.table, self.installer_environ
            own = is_range(version) and fits(RUNNING_VERSION, version)
            for candidate in python_candidates(None if own else version, search_path(environ)):
                python = await python_at(candidate, table, environ)
                if python is not None and python.fits(version):
                    self._pythons[version] = (python.path, python.version)
                    break
            else:
                versions = dict.fromkeys(python.version for python in await installed_pythons(table, environ))
                others = f"it has {', '.join(versions)}" if versions else "it has no Python"
                text = f"Python {version} was not found on this machine ({others}); install it, or change `python`"
                raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="python")
        return self._pythons[version]

    def _lock_path(self, spec: ModuleSpec, version: str) -> Path | None:
        """Return the lock file of requirements, existing or not; None without requirements, or if they are a lock."""
        if not spec.requirements or is_locked(spec.requirements):
            return None
        limits = [f"-c {line}" for line in spec.constraints]
        content = "\n".join([version, platform_tag(), *spec.requirements, *limits])
        return self.lock_dir / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.txt"

    async def _lock(self, spec: ModuleSpec, python: str, version: str, say: Callable[[str], None]) -> Path | None:
        """Return the lock file of a module's requirements, created once with fixed versions and commits."""
        path = self._lock_path(spec, version)
        if path is None:
            return None
        if (bare := without_hash(spec.requirements)) is not None:  # uv would replace the hashes that are given
            remedy = "a lock has one for every line: `uv pip compile --generate-hashes` writes them"
            text = f"`{bare}` has no --hash, and other lines have one; {remedy}"
            raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="requirements")

        async def run(arguments: list[str]) -> None:
            options = ["--generate-hashes", "--emit-build-options", "--python", python]
            await self._run([*arguments, *options], say, "the requirements could not be locked")

        async with self._locking.setdefault(path.stem, trio.Lock()):
            if not path.exists():
                say("locking requirements")
                await write_lock(path, spec.requirements, spec.constraints, run)
        return path

    async def _build(self, to: Path, plan: _Plan, say: Callable[[str], None]) -> None:
        options = ["--relocatable", "--no-project", "-q"]
        failed = "the virtual environment could not be created"
        await self._run(["venv", *options, "--python", plan.python, str(to)], say, failed)
        if plan.locked:
            listing = to / "requirements.lock"
            listing.write_text("\n".join(plan.locked) + "\n")
            # A commit is its own hash, and uv has no other for it; the lock gives all other lines theirs.
            hashes = "--verify-hashes" if any(map(is_git, plan.locked)) else "--require-hashes"
            options = [hashes, "--no-deps", "--compile-bytecode", "--strict"]
            interpreter = ["--python", str(to / "bin" / "python")]
            await self._install(["pip", "install", *options, *interpreter, "-r", str(listing)], say)

    async def _install(self, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        """Install from uv's cache alone if it has every wheel: the lock says which, so no index need be asked."""
        table, environ, failed = self.launcher.table, self.installer_environ, "the requirements could not be installed"
        if not self.offline:
            with contextlib.suppress(RunnerError):
                cached = [*arguments, "--no-build"]
                await run_uv(self._uv, cached, table, environ, _unheard, failed=failed, offline=True)
                return
        await self._run(arguments, say, failed)

    async def _run(self, arguments: Sequence[str], say: Callable[[str], None], failed: str) -> None:
        table, environ = self.launcher.table, self.installer_environ
        await run_uv(self._uv, arguments, table, environ, say, failed=failed, offline=self.offline)


def _unheard(_line: str) -> None:
    """Take a line of an attempt whose failure is no failure of the build."""


def _locked(spec: ModuleSpec, lock: Path | None) -> tuple[str, ...]:
    """Return the lines to install: those of the lock file, or the requirements that are a lock themselves."""
    return spec.requirements if lock is None else tuple(lock.read_text().splitlines())


def _plan(python: str, version: str, locked: tuple[str, ...]) -> _Plan:
    return _Plan(environment_key(Kind.VENV, locked, version), python, version, locked)
