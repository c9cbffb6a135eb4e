"""Images: pulled when they are not there, built from a base image and requirements, asked for their Python."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve, field, frozen

from environments.base import BuildWatch
from environments.engine import Api, Engine, EngineAwayError, EngineError, NotThereError, StreamBrokenError
from environments.store import Store
from protocol.errors import ErrorKind, error
from protocol.model import Stream

REPOSITORY = "operato-runner"
_LAYOUT = 1
"""Raised when images built by an older runner must not be used any more."""
_PULL_SECONDS = 60.0
"""How long a registry may say nothing."""
_COMMIT_SECONDS = 600.0
_TOLD_LINES = 20
_MAX_TEXT = 1 << 20
_PYTHONS = ("python3", "python")
COMMON: Mapping[str, Any] = {"security_opt": ["no-new-privileges"], "log_config": {"Type": "none"}}
"""What every container has. Limits of files are set in it: not every engine may set those that it adds by itself."""
_READ = """import os
def read(n):
    data = b""
    while len(data) < n:
        part = os.read(0, n - len(data))
        if not part: os._exit(1)
        data += part
    return data
"""
READ_FRAME = _READ + "told = read(int.from_bytes(read(4), 'big'))\n"
"""The beginning of every program that a container is started with: reads one frame from its standard input."""
_ASK = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
_BUILD = (
    READ_FRAME
    + """
import json, subprocess, sys, tempfile
told = json.loads(told)
environ = dict(os.environ, **told["environ"])
file, path = tempfile.mkstemp()
os.write(file, told["requirements"].encode())
os.close(file)
pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--no-color"]
install = ["install", "--no-cache-dir", "--progress-bar", "off", "-r", path]
code = subprocess.call(pip + install, env=environ, stdin=subprocess.DEVNULL, stdout=2)
os.unlink(path)
sys.exit(code or subprocess.call(pip + ["freeze", "--all"], env=environ, stdin=subprocess.DEVNULL))
"""
)
_FOR_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_TIMEOUT")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@frozen
class Image:
    """An image that can run the guest program. `id` names its content."""

    id: str
    python: str
    """The name of the program."""
    version: str
    workdir: str
    built_seconds: float = 0.0


@define
class Images:
    """The images of one engine. `labels` mark the containers in which something is asked or built."""

    engine: Engine
    store: Store
    installer_environ: Mapping[str, str]
    build_network: str
    labels: Mapping[str, str]
    name: Callable[[], str]
    """Returns a name for a container that no other has."""
    busy: set[str] = field(factory=set, init=False)
    """Names of the containers in which something is asked or built now."""
    _pulling: dict[str, trio.Lock] = field(factory=dict, init=False)

    async def get(self, name: str, requirements: Sequence[str], say: BuildWatch) -> Image:
        """Return an image, pulled and built where it is not there; `say` gets the lines of both.

        Raises RunnerError: `environment_failed` with the last words of whoever failed, `unavailable`.
        Cancelled, no container is left; the engine may go on with a layer that it has begun to pull.
        """
        began = time.perf_counter()
        found = await self._pull(name, say)
        image = await self._ask(found["Id"], name)
        if requirements:
            image = await self._built(image, name, requirements, say)
        return evolve(image, built_seconds=time.perf_counter() - began)

    async def _pull(self, name: str, say: Callable[[str], None]) -> Mapping[str, Any]:
        """Return what the engine knows of an image; pull it once when that is nothing."""
        async with self._pulling.setdefault(name, trio.Lock()):
            for again in (True, False):
                try:
                    return await self._inspect(name)
                except NotThereError:
                    if not again:
                        raise
                say(f"pulling {name}")
                try:
                    await self.engine.call(_Progress(name, say).follow, seconds=_PULL_SECONDS, abandon=True)
                except EngineAwayError:
                    raise
                except EngineError as problem:
                    text = f"the image {name} could not be pulled: {problem.failure.message}"
                    raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="image") from problem
        raise AssertionError  # the loop returns or raises

    async def _inspect(self, image: str) -> Mapping[str, Any]:
        return await self.engine.call(lambda api: dict(api.inspect_image(image)))

    async def _ask(self, identity: str, name: str) -> Image:
        """Return the image with what its Python says of itself. Raises `environment_failed` when there is none."""
        note = self.store.root / ".known" / identity.rpartition(":")[2]
        if note.exists():
            return Image(identity, **json.loads(note.read_text()))
        found = await self._inspect(identity)
        why = ""
        for python in _PYTHONS:
            try:
                code, version = await self._run(identity, [python, "-I", "-S", "-c", _ASK])
            except EngineAwayError:
                raise
            except EngineError as problem:
                why = problem.failure.message
                continue
            if code == 0 and version.count(".") == 2:
                if [int(part) for part in version.split(".")[:2]] < [3, 8]:
                    why = f"its Python is {version}, and 3.8 is the oldest that runs a worker"
                    break
                image = Image(identity, python, version, found.get("Config", {}).get("WorkingDir") or "/")
                self._note(note, image)
                return image
            why = f"{python} ended with exit code {code}: {version[-500:]}"
        text_ = f"the image {name} has no Python that can run a worker ({why}); choose one with python3 on its PATH"
        raise error(ErrorKind.ENVIRONMENT_FAILED, text_, field="image")

    @staticmethod
    def _note(path: Path, image: Image) -> None:
        """Keep what was found out: it holds for the content of an image, wherever and whenever it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"python": image.python, "version": image.version, "workdir": image.workdir}))
        temporary.rename(path)

    async def _built(self, base: Image, name: str, requirements: Sequence[str], say: BuildWatch) -> Image:
        """Return the image with the requirements installed; built once for each content."""
        key = image_key(base.id, requirements)
        tag = f"{REPOSITORY}:{key}"
        async with self.store.lock(key, say):
            try:
                found = await self._inspect(tag)
            except NotThereError:
                async with say.place():
                    say(f"installing {len(requirements)} requirements into {name}")
                    await self._build(base, key, requirements, say)
                found = await self._inspect(tag)
        return evolve(base, id=found["Id"])

    async def _build(self, base: Image, key: str, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Install with the image's own pip in a container, and make what it has become an image."""
        self.store.builds += 1
        path = self.store.log_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        lock: list[bytes] = []
        with path.open("w", buffering=1) as file:

            def keep(line: str) -> None:
                lines.append(line)
                del lines[:-_TOLD_LINES]
                file.write(line + "\n")
                say(line)

            split = _Lines(keep)

            def take(stream: Stream, data: bytes) -> None:
                if stream is Stream.STDERR:
                    split.feed(data)
                elif sum(map(len, lock)) < _MAX_TEXT:
                    lock.append(data)

            told = {"requirements": "\n".join(requirements) + "\n", "environ": self._pip_environ()}
            container = self.name()
            try:
                argv = [base.python, "-I", "-c", _BUILD]
                network = self.build_network
                code = await self._work(container, base.id, argv, json.dumps(told).encode(), take, network, user="0")
                split.feed(b"\n")
                if code:
                    text = "\n".join(line for line in lines if line.strip()) or f"pip ended with exit code {code}"
                    text = f"the image could not be built (its pip, in {base.id[:19]}):\n{text}"
                    raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="requirements")
                await self.engine.call(lambda api: _commit(api, container, key), seconds=_COMMIT_SECONDS)
            finally:
                await self._remove(container)
        folder = self.store.path(key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.lock").write_bytes(b"".join(lock))

    def _pip_environ(self) -> dict[str, str]:
        """Return where pip inside a container finds packages. It goes in on standard input, and into no layer."""
        given = {name.upper(): value for name, value in self.installer_environ.items()}
        environ = {name: given[name] for name in (*_FOR_PIP, *_PROXIES) if name in given}
        index = given.get("UV_DEFAULT_INDEX") or given.get("UV_INDEX_URL")
        if index:
            environ.setdefault("PIP_INDEX_URL", index)
        environ |= {name.lower(): environ[name] for name in _PROXIES if name in environ}
        return environ | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1"}

    async def _run(self, image: str, argv: Sequence[str]) -> tuple[int, str]:
        """Return exit code and output of a program in an image."""
        container = self.name()
        parts: list[bytes] = []
        try:
            code = await self._work(
                container, image, argv, b"", lambda _, data: parts.append(data), "none", user="65534:65534"
            )
        finally:
            await self._remove(container)
        return code, b"".join(parts).decode(errors="replace").strip()

    async def _work(
        self,
        container: str,
        image: str,
        argv: Sequence[str],
        data: bytes,
        take: Callable[[Stream, bytes], None],
        network: str,
        *,
        user: str,
    ) -> int:
        """Run a program in a container to its end; return its exit code. The container is left to the caller."""

        def create(api: Api) -> None:
            host = api.create_host_config(network_mode=network, **COMMON)
            api.create_container(
                image,
                name=container,
                entrypoint=list(argv),
                user=user,
                working_dir="/",
                labels=dict(self.labels),
                host_config=host,
                stdin_open=True,
                healthcheck={"test": ["NONE"]},
            )

        self.busy.add(container)
        await self.engine.call(create)
        attached = await self.engine.attach(container)
        try:
            await self.engine.call(lambda api: api.start(container))
            if data:
                await attached.send(len(data).to_bytes(4, "big") + data)
            while True:
                for stream, part in await attached.receive():
                    take(stream, part)
        except StreamBrokenError:
            pass
        finally:
            attached.close()
        found = await self.engine.call(lambda api: api.wait(container))
        return int(found["StatusCode"])

    async def _remove(self, container: str) -> None:
        """Remove a container of ours, whatever became of it; the sweep takes what an absent engine keeps."""
        with trio.CancelScope(shield=True):
            with contextlib.suppress(EngineError):
                await self.engine.call(lambda api: api.remove_container(container, force=True, v=True))
            self.busy.discard(container)


def image_key(base: str, requirements: Sequence[str]) -> str:
    """Return the tag of what requirements make of an image: equal content has an equal tag."""
    import hashlib  # noqa: PLC0415  (cheap, and used here only)

    content = json.dumps([_LAYOUT, base, [line.strip() for line in requirements]])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def _commit(api: Api, container: str, key: str) -> None:
    changes = ["ENTRYPOINT []", "CMD []", f"LABEL operato.environment={key}"]
    api.commit(container, repository=REPOSITORY, tag=key, changes=changes)


class _Lines:
    """Cuts bytes into lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_MAX_TEXT:]
        for line in lines:
            self._say(line.decode(errors="replace").rstrip("\r"))


@define
class _Progress:
    """Follows the pull of an image, in a thread; says at most one line a second of what is on its way."""

    name: str
    say: Callable[[str], None]
    _layers: dict[str, tuple[int, int]] = field(factory=dict, init=False)
    _said: float = field(default=0.0, init=False)

    def follow(self, api: Api) -> None:
        for event in api.pull(self.name, stream=True, decode=True):
            if "error" in event:
                raise EngineError(str(event["error"]))
            self._note(event)

    def _note(self, event: Mapping[str, Any]) -> None:
        layer, detail = event.get("id"), event.get("progressDetail") or {}
        if layer and event.get("status") == "Downloading":
            self._layers[layer] = (int(detail.get("current") or 0), int(detail.get("total") or 0))
            now = time.monotonic()
            if now - self._said < 1.0:
                return
            self._said = now
            done, total = (sum(pair[at] for pair in self._layers.values()) / 1e6 for at in (0, 1))
            self._tell(f"pulling {self.name}: {done:.1f} of {total:.1f} MB")
        elif not detail:
            self._tell(" ".join(str(event[key]) for key in ("id", "status") if event.get(key)))

    def _tell(self, line: str) -> None:
        trio.from_thread.run_sync(self.say, line)
