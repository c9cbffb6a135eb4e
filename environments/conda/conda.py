"""The `conda` kind: environments of conda packages, solved and installed by py-rattler, or by an installed tool."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import structlog
import trio
from attrs import define, field, frozen

from config.mistakes import parse_yaml
from config.modules import ModuleSpec
from config.packages import CONDA_LOCK, CONDA_LOCK_COMMAND, is_explicit, is_locked, is_range, subdir
from environments.base import Availability, Known, Prepared
from environments.built import BuiltEnvironment
from environments.conda.activation import activated
from environments.installer import Tail, find_uv, run_installer, run_uv
from environments.local import Launcher
from environments.locking import Commits, Projects
from environments.store import Store, environment_key
from protocol.errors import ErrorKind, error
from protocol.model import Kind

DEFAULT_CHANNELS = ("conda-forge",)
_REMEDY = "install the library (`pip install '.[conda]'`), or micromamba, mamba or conda"

log = structlog.get_logger("conda")


@frozen
class Client:
    """The solver and installer: the library at `library`, or the program `exe`."""

    name: str
    library: str = ""
    exe: str = ""


@frozen
class Locked:
    """The packages to install. `lines` identify the content; `path` is the library's lock file."""

    lines: tuple[str, ...]
    python: str
    path: Path | None = None


@frozen
class _Plan:
    """The content of a module's environment."""

    client: Client
    specs: tuple[str, ...]
    channels: tuple[str, ...]
    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    locked: Locked

    @property
    def key(self) -> str:
        content = [*self.locked.lines, *(f"pip {line}" for line in self.requirements)]
        content += [f"pip -c {line}" for line in self.constraints]
        return environment_key(Kind.CONDA, content, self.locked.python)

    @property
    def in_place(self) -> bool:
        """Whether pip or a tool writes the directory's path into files."""
        return bool(self.requirements or self.client.exe)

    @property
    def manifest(self) -> dict[str, object]:
        return {
            "kind": "conda",
            "client": self.client.name,
            "channels": list(self.channels),
            "packages": list(self.locked.lines),
            "requirements": list(self.requirements),
        }


def find_client(exe: Path | None, environ: Mapping[str, str]) -> Client | None:
    """Return the client: the configured one, else the library, else the first installed program."""
    if exe is None and (library := _library()) is not None:
        return library
    named = [str(exe)] if exe else [environ.get("MAMBA_EXE"), "micromamba", "mamba", environ.get("CONDA_EXE"), "conda"]
    for name in named:
        if name and (path := shutil.which(name, path=environ.get("PATH"))):
            return Client(Path(path).name, exe=path)
    return None


def _library() -> Client | None:
    """Return the installed py-rattler, without importing it into this process."""
    spec = importlib.util.find_spec("rattler")
    if spec is None or spec.origin is None:
        return None
    version = importlib.metadata.version("py-rattler")
    return Client(f"py-rattler {version}", library=str(Path(spec.origin).parent.parent))


@define
class CondaEnvironment(BuiltEnvironment[_Plan]):
    """Locks, builds and starts conda environments. Installers get `installer_environ`."""

    launcher: Launcher
    store: Store
    lock_dir: Path
    installer_environ: Mapping[str, str]
    offline: bool = False
    exe: Path | None = None
    kind: Kind = field(default=Kind.CONDA, init=False)
    _client: Client | None = field(default=None, init=False)
    _locking: dict[str, trio.Lock] = field(factory=dict, init=False)
    _activated: dict[str, Mapping[str, str]] = field(factory=dict, init=False)
    _commits: Commits = field(init=False)
    _projects: Projects = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._projects = Projects(self.lock_dir, self.launcher.table, self.installer_environ)
        self._commits = Commits(self.lock_dir, self.launcher.table, self.installer_environ, self.offline)

    async def probe(self) -> Availability:
        """Return whether a conda client is installed."""
        self._client = find_client(self.exe, self.installer_environ)
        if self._client is None:
            where = f"{self.exe} cannot be run" if self.exe else "no conda client is installed"
            return Availability(available=False, reason=f"{where}; {_REMEDY}")
        return Availability(available=True, detail={"client": self._client.name, "store": str(self.store.root)})

    async def known(self, spec: ModuleSpec) -> Known:
        """Return the key of a module's environment if its packages are locked."""
        client = await self._usable()
        read = self._projects.known(spec)
        if read is None:
            return Known(None, "its requirements are not locked yet")
        spec, specs, channels = read, _specs(spec), spec.channels or DEFAULT_CHANNELS
        if not client.exe and not self._lock_path([*specs, *_asked(spec)], channels).with_suffix(".json").exists():
            return Known(None, "its packages are not locked yet")
        locked = await self._lock(client, specs, channels, spec, lambda _: None)
        requirements = self._commits.known(spec.requirements, locked.python)
        if requirements is None:
            return Known(None, "its requirements are not locked yet")
        return Known(_Plan(client, tuple(specs), channels, requirements, spec.constraints, locked).key)

    async def _usable(self) -> Client:
        if self._client is None:
            raise error(ErrorKind.UNAVAILABLE, (await self.probe()).reason, field="env")
        return self._client

    async def _plan(self, spec: ModuleSpec, say: Callable[[str], None]) -> _Plan:
        client = await self._usable()
        spec = await self._projects.read(spec, say)
        specs, channels = _specs(spec), spec.channels or DEFAULT_CHANNELS
        locked = await self._lock(client, specs, channels, spec, say)
        requirements = await self._commits.fixed(spec.requirements, locked.python, say)
        return _Plan(client, tuple(specs), channels, requirements, spec.constraints, locked)

    async def _prepared(self, plan: _Plan, path: Path, seconds: float) -> Prepared:
        if seconds or plan.key not in self._activated:
            base = self.launcher.environ
            self._activated[plan.key] = await activated(path, base, self.launcher.table)
        argv = self.launcher.argv(str(path / "bin" / "python"))
        return Prepared(plan.key, argv, self._activated[plan.key], seconds)

    def _lock_path(self, specs: Sequence[str], channels: Sequence[str]) -> Path:
        """Return the lock file of packages, existing or not; the runner reads the `.json` beside it."""
        content = json.dumps([subdir(), list(channels), list(specs)])
        return self.lock_dir / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.conda.lock"

    async def _lock(
        self,
        client: Client,
        specs: Sequence[str],
        channels: Sequence[str],
        spec: ModuleSpec,
        say: Callable[[str], None],
    ) -> Locked:
        """Return the locked packages: solved once by the library, then read. A tool solves during the installation."""
        if client.exe:
            python = None if is_range(spec.python) else spec.python
            return Locked((Path(client.exe).name, *channels, *specs), python or "3")
        asked = _asked(spec)
        path = self._lock_path([*specs, *asked], channels)
        packages, name = path.with_suffix(".json"), path.name.partition(".")[0]
        async with self._locking.setdefault(name, trio.Lock()):
            if not packages.exists():
                self.lock_dir.mkdir(parents=True, exist_ok=True)
                say("solving the environment")
                temporary = self.lock_dir / f"{name}.{os.getpid()}.tmp"
                request: dict[str, object] = {
                    "do": "lock",
                    "specs": list(specs),
                    "channels": list(channels),
                    "lock": str(temporary),
                }
                request |= {"platform": subdir(), "urls": [_url(channel) for channel in channels]}
                request |= {"explicit": is_explicit(specs), "asked": asked}
                try:
                    solved = await self._child(client, request, say, "solved")
                    temporary.rename(path)
                    temporary.write_text(json.dumps(solved))
                    temporary.rename(packages)
                finally:
                    temporary.unlink(missing_ok=True)
        solved = json.loads(packages.read_text())
        version = next((version for name, version, *_ in solved if name == "python"), "")
        if [int(part) for part in version.split(".")[:2] if part.isdigit()] < [3, 8]:
            text = f"the environment has Python {version or 'none'}; a worker needs 3.8 or later"
            raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="dependencies")
        lines = sorted(f"{url}#{digest}" for _, _, url, digest in solved)
        return Locked(tuple(lines), version, path)

    async def _build(self, to: Path, plan: _Plan, say: Callable[[str], None]) -> None:
        if plan.client.exe:
            await self._create(plan, to, say)
        else:
            lock = plan.locked.path or ""
            request = {"do": "install", "stage": str(to), "prefix": str(self.store.path(plan.key)), "lock": str(lock)}
            await self._child(plan.client, request, say, "installed")
            shutil.copyfile(lock, to / "conda.lock")
        if plan.requirements:
            listing = to / "requirements.txt"
            listing.write_text("\n".join(plan.requirements) + "\n")
            limits = to / "constraints.txt"
            limits.write_text("\n".join(plan.constraints) + "\n")
            interpreter = ["--python", str(to / "bin" / "python")]
            options = ["--break-system-packages", "--compile-bytecode", "--strict"]
            options += ["--no-deps", "--verify-hashes"] if is_locked(plan.requirements) else []
            arguments = ["install", *options, *interpreter, "-c", str(limits), "-r", str(listing)]
            await self._pip(arguments, say, "the requirements could not be installed")
            installed: list[str] = []
            await self._pip(["freeze", "-q", *interpreter], installed.append, "installed packages could not be listed")
            (to / "requirements.lock").write_text("\n".join(installed))

    async def _pip(self, arguments: Sequence[str], say: Callable[[str], None], failed: str) -> None:
        table, environ = self.launcher.table, self.installer_environ
        await run_uv(find_uv(), ["pip", *arguments], table, environ, say, failed=failed, offline=self.offline)

    async def _create(self, plan: _Plan, to: Path, say: Callable[[str], None]) -> None:
        """Create the environment with an installed tool, which never runs anything in it."""
        where = [option for channel in plan.channels for option in ("--channel", channel)]
        argv = [plan.client.exe, "create", "--yes", "--prefix", str(to), "--override-channels", *where, *plan.specs]
        if is_explicit(plan.specs):
            listing = self.store.root / ".cache" / f"{plan.key}.explicit.txt"
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text("\n".join(["@EXPLICIT", *plan.specs]) + "\n")
            argv = [plan.client.exe, "create", "--yes", "--prefix", str(to), "--file", str(listing)]
        argv += ["--offline"] if self.offline else []
        environ = {"MAMBA_ROOT_PREFIX": str(self.store.root / ".cache" / "mamba"), **self.installer_environ}
        failed = "the environment could not be created"
        await run_installer(self.launcher.table, argv, environ, say, failed=failed, field="dependencies")

    async def _child(
        self, client: Client, request: Mapping[str, object], say: Callable[[str], None], done: str
    ) -> list[list[str]]:
        """Run the child program; return the solved packages. Its message `done` decides, not its exit code."""
        cache = str(self.store.root / ".cache")
        request = {**request, "cache": cache, "library": client.library, "offline": self.offline}
        heard = _Heard(say)
        program = files("environments.conda").joinpath("child.py").read_text("utf-8")
        argv = [sys.executable, "-I", "-c", program, json.dumps(request)]
        status = await self.launcher.table.run(argv, self.installer_environ, on_line=heard.hear)
        if heard.stale:
            text = f"the lock does not fit environment.yml any more: {heard.stale}; run `{CONDA_LOCK_COMMAND}`"
            raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="dependencies")
        if not heard.done:
            text = heard.error or heard.tail.text(f"the installer ended with exit code {status}")
            raise error(
                ErrorKind.ENVIRONMENT_FAILED, f"the environment could not be {done}:\n{text}", field="dependencies"
            )
        return heard.packages


class _Heard:
    """Reads the messages of the child program."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.done = False
        self.error = ""
        self.tail = Tail(say)
        self.stale = ""
        self.packages: list[list[str]] = []
        self._say = say

    def hear(self, line: str) -> None:
        try:
            message = json.loads(line)
            event = message["event"]
        except (ValueError, KeyError, TypeError):  # a crash does not print JSON
            if line.strip():
                self.tail(line)
            return
        if event == "done":
            self.done = True
        elif event == "error":
            self.error = message["message"]
            for part in self.error.splitlines():
                self._say(part)
        elif event == "stale":
            self.stale = message["why"]
        elif event == "solved":
            self.packages = message["packages"]
            self._say(f"solved: {len(self.packages)} packages")
        elif event == "download":
            self._say(f"downloading {message['name']}: {message['done'] / 1e6:.1f} of {message['total'] / 1e6:.1f} MB")
        elif event == "link":
            self._say(f"installing {message['name']} ({message['at']} of {message['total']})")


def _specs(spec: ModuleSpec) -> list[str]:
    """Return the module's packages, with a Python if it is missing."""
    specs = list(spec.dependencies)
    if is_explicit(specs):
        return specs
    named = any(_name(line) == "python" for line in specs)
    if spec.python:
        specs.append(f"python {spec.python}" if is_range(spec.python) else f"python {spec.python}.*")
    elif not named:
        specs.append("python")
    return specs


def _asked(spec: ModuleSpec) -> list[str]:
    """Return the packages in the `environment.yml` beside a lock, which the lock must have."""
    locked = any(name in spec.packages_from for name in CONDA_LOCK)
    texts = [text for name, text in spec.packages_from.items() if name not in CONDA_LOCK and text]
    found = parse_yaml(texts[0]).value if locked and texts else None
    asked = found.get("dependencies") if isinstance(found, dict) else None
    return [line for line in asked if isinstance(line, str)] if isinstance(asked, list) else []


def _name(line: str) -> str:
    """Return the package name of a spec: numpy for `conda-forge::numpy>=2`."""
    rest = line.rpartition("::")[2].strip()
    return rest[: next((at for at, character in enumerate(rest) if character in " =<>!~[|"), len(rest))].lower()


def _url(channel: str) -> str:
    """Return the URL of a channel for lock files."""
    return channel if "://" in channel else f"https://conda.anaconda.org/{channel}"
