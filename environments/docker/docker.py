"""The `docker` kind: isolated containers of any image with Python, on any engine with Docker's API."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Mapping
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import structlog
import trio
from attrs import define, field, frozen

from config.modules import ModuleSpec
from config.packages import UV_LOCK, fits, minor_for
from config.settings import DockerSettings
from environments.base import Availability, BuildWatch, Guest, Known, Prepared, Stored
from environments.docker.container import BASE, Container, ContainerGuest, remove_container
from environments.docker.engine import Address, Api, Engine, EngineAwayError, EngineError, NotThereError
from environments.docker.images import Image, Images, Wanted
from environments.docker.programs import COMMON, READ_FRAME, Programs
from environments.local import ProcessTable
from environments.locking import Commits, Projects
from environments.store import Store
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Kind

INSTANCE, BOOT = "operato.instance", "operato.boot"
"""Labels of every container: its data directory, and the run of the runner that made it."""
_START = READ_FRAME + (
    "import json, os, sys, types\n"
    "sent = json.loads(sent)\n"
    "for name, text in sent['files'].items():\n"
    f"    path = os.path.join({BASE!r}, name)\n"
    "    os.makedirs(os.path.dirname(path), exist_ok=True)\n"
    "    with open(path, 'w', encoding='utf-8') as file:\n"
    "        file.write(text)\n"
    "for name, text in sent['modules'].items():\n"
    "    module = sys.modules[name] = types.ModuleType(name)\n"
    f"    module.__file__ = {BASE!r} + '/' + name + '.py'\n"
    "    exec(compile(text, module.__file__, 'exec'), module.__dict__)\n"
    f"sys.modules['relay'].main({BASE!r})\n"
)
_MODULES = ("values", "parts", "guest", "relay")
_FILES = {
    "many.py": "many.py",
    "sharing.py": "sharing.py",
    "calling.py": "authors/calling.py",
    "readers.py": "authors/readers.py",
    "typed.py": "authors/typed.py",
    "library/operato.py": "authors/operato.py",
}
"""Files of the guest program that few modules need, below the relay's directory."""
_OWN_PROCESSES = 2
"""The relay and the worker, which are not counted for the author."""

log = structlog.get_logger("docker")


@frozen
class Walls:
    """Limits and access of one container. Everything that the module does not open is closed."""

    memory_bytes: int
    cpus: float
    processes: int
    scratch_bytes: int
    shm_bytes: int
    user: str
    network: bool = False
    writable: bool = False

    @classmethod
    def of(cls, spec: ModuleSpec, settings: DockerSettings) -> Walls:
        """Return the walls of a module. Shared memory counts as memory, so its limit is the same by default."""
        memory = spec.memory or settings.memory_bytes
        return cls(
            memory_bytes=memory,
            cpus=spec.cpus or settings.cpus,
            processes=spec.processes or settings.processes,
            scratch_bytes=settings.scratch_bytes,
            shm_bytes=spec.shm or memory,
            user=spec.user or settings.user,
            network=bool(spec.network),
            writable=bool(spec.writable),
        )

    def options(self) -> dict[str, Any]:
        """Return the arguments of the engine's host configuration."""
        return {
            "network_mode": "bridge" if self.network else "none",
            "read_only": not self.writable,
            "tmpfs": {
                "/tmp": f"rw,nosuid,nodev,noexec,mode=1777,size={self.scratch_bytes}",  # noqa: S108
                BASE: f"rw,nosuid,nodev,exec,mode=1777,size={self.scratch_bytes}",
            },
            "cap_drop": ["ALL"],
            "mem_limit": self.memory_bytes,
            "memswap_limit": self.memory_bytes,
            "nano_cpus": int(self.cpus * 1e9),
            "pids_limit": self.processes + _OWN_PROCESSES,
            "ipc_mode": "private",
            "shm_size": self.shm_bytes,
            "init": False,
            **COMMON,
        }


@frozen
class PreparedImage(Prepared):
    """An image with the walls of its containers."""

    image: str = ""
    workdir: str = "/"
    walls: Walls = field(kw_only=True)


@define(eq=False)
class DockerEnvironment:
    """Prepares images and starts containers. `store` has descriptions and build logs of images."""

    settings: DockerSettings
    store: Store
    installer_environ: Mapping[str, str]
    table: ProcessTable
    data_dir: Path
    max_frame_bytes: int
    sweeps: bool = True
    """Whether to remove containers of the data directory that this runner does not know, left by dead runners."""
    offline: bool = False
    build_ca: Path | None = None
    kind: Kind = field(default=Kind.DOCKER, init=False)
    boot: str = field(factory=lambda: secrets.token_hex(6), init=False)
    _engine: Engine | None = field(default=None, init=False)
    _absent: str = field(default="no container engine has been asked yet", init=False)
    """Why there is no engine."""
    _projects: Projects = field(init=False)
    _images: Images | None = field(default=None, init=False)
    _program: bytes = field(init=False)
    _guests: dict[str, ContainerGuest] = field(factory=dict, init=False)
    _built: dict[str, str] = field(factory=dict, init=False)
    """By key of the environment: the store's key of its built image."""
    _count: Any = field(factory=lambda: count(1), init=False)

    def __attrs_post_init__(self) -> None:
        self._program = _program()
        self._projects = Projects(self.data_dir / "locks", self.table, self.installer_environ)

    async def probe(self) -> Availability:
        """Return whether an engine answers; remove the containers that dead runners left on it."""
        try:
            engine = self._engine or Engine(Address.read(self.settings.host, self.installer_environ))
            info = await engine.ping()
            self._engine = engine
            swept = await self._sweep(engine) if self.sweeps else 0
        except EngineError as problem:
            self._absent = problem.failure.message
            return Availability(available=False, reason=self._absent)
        if info.get("OSType", "linux") != "linux":
            reason = f"{engine.address.shown} runs {info['OSType']} containers; workers need linux"
            return Availability(available=False, reason=reason)
        detail = {"engine": str(info.get("ServerVersion", "?")), "host": engine.address.shown, "api": engine.version}
        known = (("memory", "MemoryLimit"), ("cpus", "CpuCfsQuota"), ("processes", "PidsLimit"))
        limits = {limit: "engine" if info.get(name, True) else "none" for limit, name in known}
        if swept:
            log.info("containers of dead runners were removed", count=swept)
        return Availability(available=True, detail=detail, limits=limits)

    async def prepare(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Return the module's image, pulled and built if it is missing, with its walls."""
        wanted = _wanted(self.settings, await self._projects.read(spec, say))
        image = await self._made().get(wanted, say)
        if not fits(tuple(map(int, image.version.split("."))), spec.python):
            text = f"the image {wanted.name} has Python {image.version}, the module wants {spec.python}"
            text += "; change one of them"
            raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="python")
        return self._prepared(spec, image)

    async def lock(self, spec: ModuleSpec, say: BuildWatch) -> None:
        """Build the image of requirements, since only a build resolves them; do nothing without requirements."""
        if spec.requirements or UV_LOCK in spec.packages_from:
            await self.prepare(spec, say)

    async def rebuild(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Build the image of the module's requirements again. Raises RunnerError `bad_input` without requirements."""
        read = await self._projects.read(spec, say)
        if not read.requirements:
            text = f"{spec.name} uses the image {_wanted(self.settings, spec).name} as it is; there is nothing to build"
            raise error(ErrorKind.BAD_INPUT, text, field="requirements")
        return self._prepared(spec, await self._made().rebuild(_wanted(self.settings, read), say))

    async def known(self, spec: ModuleSpec) -> Known:
        """Return the key of the image for the module's requirements."""
        read = self._projects.known(spec)
        if read is None:
            return Known(None, f"its {UV_LOCK} has not been read yet")
        return await self._made().known(_wanted(self.settings, read))

    async def stored(self) -> list[Stored]:
        """Return the images built for modules of this data directory."""
        return await self._made().stored()

    async def remove(self, key: str) -> bool:
        """Remove an image unless a process or a container uses it."""
        return await self._made().remove(key)

    async def tidy(self) -> int:
        """Remove the remains of killed builds and removals."""
        return await self.store.tidy()

    async def mend(self, prepared: Prepared) -> bool:  # noqa: ARG002
        """Do nothing: images belong to the engine, and the programs go in with every container."""
        return False

    def keep(self, keys: Collection[str]) -> None:
        """Stop using all environments but these."""
        self._built = {key: image for key, image in self._built.items() if key in keys}
        self.store.uses.keep(set(self._built.values()))

    def _made(self) -> Images:
        """Return the images of the engine. Raises RunnerError `unavailable` if no engine has answered."""
        engine = self._ready()
        if self._images is None:
            programs = Programs(engine, self._labels(), self._name)
            environ, network = self.installer_environ, self.settings.build_network
            commits = Commits(self.data_dir / "locks", self.table, environ, self.offline)
            self._images = Images(programs, self.store, environ, network, commits, self.build_ca)
        return self._images

    def _prepared(self, spec: ModuleSpec, image: Image) -> PreparedImage:
        walls = Walls.of(spec, self.settings)
        content = json.dumps([image.id, attrs.astuple(walls)]).encode()
        key = f"docker-py{image.version}-{hashlib.sha256(content).hexdigest()[:20]}"
        if image.key:
            self._built[key] = image.key
        return PreparedImage(
            key=key,
            argv=(image.python, "-I", "-X", "utf8", "-c", _START),
            environ={"LANG": "C.UTF-8"},
            built_seconds=image.built_seconds,
            image=image.id,
            workdir=image.workdir,
            walls=walls,
        )

    def launch(self, prepared: Prepared) -> Guest:
        """Return a guest; `tend` creates its container. Raises RunnerError `unavailable`."""
        engine = self._ready()
        if not isinstance(prepared, PreparedImage):
            raise TypeError(f"{prepared.key} is not of this kind")
        if prepared.key in self._built:
            self.store.uses.touch(self._built[prepared.key])

        def create(api: Api, name: str) -> None:
            api.create_container(
                prepared.image,
                name=name,
                entrypoint=list(prepared.argv),
                environment=dict(prepared.environ),
                user=prepared.walls.user,
                working_dir="/",
                labels=self._labels(),
                host_config=api.create_host_config(**prepared.walls.options()),
                stdin_open=True,
                healthcheck={"test": ["NONE"]},
            )

        guest = ContainerGuest(
            container=Container(engine, self._name(), create),
            program=self._program,
            workdir=prepared.workdir,
            memory_bytes=prepared.walls.memory_bytes,
            max_frame_bytes=self.max_frame_bytes,
        )
        self._guests = {name: known for name, known in self._guests.items() if known.exit_code is None}
        self._guests[guest.name] = guest
        return guest

    def _ready(self) -> Engine:
        if self._engine is None:
            raise error(ErrorKind.UNAVAILABLE, self._absent)
        return self._engine

    def _name(self) -> str:
        return f"operato-{self.boot}-{next(self._count)}"

    def _labels(self) -> dict[str, str]:
        return {INSTANCE: self.instance, BOOT: self.boot}

    @property
    def instance(self) -> str:
        """The id of the data directory in labels, created once, so that the next runner recognises its containers."""
        path = self.data_dir / "instance"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"instance.{os.getpid()}")
            temporary.write_text(secrets.token_hex(8))
            temporary.rename(path)
        return path.read_text().strip()

    async def _sweep(self, engine: Engine) -> int:
        """Remove the containers of this data directory without a living guest; return how many."""
        label = f"{INSTANCE}={self.instance}"
        found = await engine.containers(label)
        mine = (self._images.programs.busy if self._images else set()) | {
            name for name, guest in self._guests.items() if guest.exit_code is None
        }
        orphans = [c["Id"] for c in found if not any(name.lstrip("/") in mine for name in c["Names"] or ())]
        async with trio.open_nursery() as nursery:
            for orphan in orphans:
                nursery.start_soon(self._remove, engine, orphan)
        return len(orphans)

    async def _remove(self, engine: Engine, container: str) -> None:
        try:
            await engine.call(lambda api: remove_container(api, container))
        except NotThereError:
            return
        except EngineAwayError:
            raise
        except RunnerError as problem:
            log.warning(
                "an orphaned container could not be removed", container=container[:12], why=problem.failure.message
            )


def _wanted(settings: DockerSettings, spec: ModuleSpec) -> Wanted:
    name = spec.image or settings.base_image.replace("{python}", minor_for(spec.python, "3.12"))
    return Wanted(name, spec.requirements, spec.constraints)


def _program() -> bytes:
    """Return the first frame for a container's Python: the sources of guest and relay, each after what it imports."""
    texts = {name: files("protocol").joinpath(f"{name}.py").read_text("utf-8") for name in _MODULES}
    later = {name: files("protocol").joinpath(place).read_text("utf-8") for name, place in _FILES.items()}
    data = json.dumps({"files": later, "modules": texts}).encode()
    return len(data).to_bytes(4, "big") + data
