"""Images: pulled if missing, asked for their Python, and built from a base image and requirements."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve, field, frozen

from environments.base import BuildWatch, Known, Stored
from environments.docker.engine import Api, EngineAwayError, EngineError, NotThereError
from environments.docker.programs import READ_FRAME, Programs
from environments.docker.progress import MAX_TEXT, Lines, Progress
from environments.installer import Tail
from environments.store import MANIFEST, Store
from protocol.errors import ErrorKind, error
from protocol.model import Stream

REPOSITORY = "operato-runner"
_LAYOUT = 1
"""Incremented to reject images built by older runners."""
_PULL_SECONDS = 60.0
"""How long a registry may be silent."""
_COMMIT_SECONDS = 600.0
_PYTHONS = ("python3", "python")
_ASK = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
_BUILD = (
    READ_FRAME
    + """
import json, subprocess, sys, tempfile
sent = json.loads(sent)
environ = dict(os.environ, **sent["environ"])
file, path = tempfile.mkstemp()
os.write(file, sent["requirements"].encode())
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
    """An image that can run the guest program. `id` identifies its content."""

    id: str
    python: str
    """The name of the interpreter."""
    version: str
    workdir: str
    built_seconds: float = 0.0
    key: str = ""
    """Its key in the store, if it was built for requirements."""


@define
class Images:
    """The images of one engine: pulled, asked for their Python, and built."""

    programs: Programs
    store: Store
    installer_environ: Mapping[str, str]
    build_network: str
    _pulling: dict[str, trio.Lock] = field(factory=dict, init=False)

    async def get(self, name: str, requirements: Sequence[str], say: BuildWatch) -> Image:
        """Return an image, pulled and built if it is missing; `say` gets the lines of both.

        Raises RunnerError: `environment_failed` with the last lines of engine or pip, `unavailable`.
        Cancelled, no container is left; the engine may continue to pull a layer.
        """
        began = time.perf_counter()
        found = await self._pull(name, say)
        image = await self._ask(found["Id"], name)
        if requirements:
            image = await self._built(image, name, requirements, say)
        return evolve(image, built_seconds=time.perf_counter() - began)

    async def _pull(self, name: str, say: Callable[[str], None]) -> Mapping[str, Any]:
        """Return the engine's description of an image; pull it if it is missing."""
        async with self._pulling.setdefault(name, trio.Lock()):
            for again in (True, False):
                try:
                    return await self._inspect(name)
                except NotThereError:
                    if not again:
                        raise
                say(f"pulling {name}")
                try:
                    await self.programs.engine.call(Progress(name, say).follow, seconds=_PULL_SECONDS, abandon=True)
                except EngineAwayError:
                    raise
                except EngineError as problem:
                    text = f"the image {name} could not be pulled: {problem.failure.message}"
                    raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="image") from problem
        raise AssertionError  # the loop returns or raises

    async def _inspect(self, image: str) -> Mapping[str, Any]:
        return await self.programs.engine.call(lambda api: dict(api.inspect_image(image)))

    async def _ask(self, identity: str, name: str) -> Image:
        """Return the image with the version of its Python. Raises `environment_failed` if it has no usable Python."""
        note = self.store.root / ".known" / identity.rpartition(":")[2]
        if note.exists():
            return Image(identity, **json.loads(note.read_text()))
        found = await self._inspect(identity)
        why = ""
        for python in _PYTHONS:
            try:
                code, version = await self.programs.output(identity, [python, "-I", "-S", "-c", _ASK])
            except EngineAwayError:
                raise
            except EngineError as problem:
                why = problem.failure.message
                continue
            if code == 0 and version.count(".") == 2:
                if [int(part) for part in version.split(".")[:2]] < [3, 8]:
                    why = f"its Python is {version}; a worker needs 3.8 or later"
                    break
                image = Image(identity, python, version, found.get("Config", {}).get("WorkingDir") or "/")
                self._note(note, image)
                return image
            why = f"{python} ended with exit code {code}: {version[-500:]}"
        text_ = f"the image {name} has no Python that can run a worker ({why}); choose one with python3 on its PATH"
        raise error(ErrorKind.ENVIRONMENT_FAILED, text_, field="image")

    @staticmethod
    def _note(path: Path, image: Image) -> None:
        """Record the result: it depends only on the content of the image."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"python": image.python, "version": image.version, "workdir": image.workdir}))
        temporary.rename(path)

    async def _built(self, base: Image, name: str, requirements: Sequence[str], say: BuildWatch) -> Image:
        """Return the image with the requirements installed, built once for each content."""
        key = image_key(base.id, requirements)
        tag = f"{REPOSITORY}:{key}"
        await self.store.uses.hold(key, say)
        async with self.store.lock(key, say):
            try:
                found = await self._inspect(tag)
            except NotThereError:
                async with say.place():
                    say(f"installing {len(requirements)} requirements into {name}")
                    await self._build(base, key, name, requirements, say)
                found = await self._inspect(tag)
        return evolve(base, id=found["Id"], key=key)

    async def rebuild(self, name: str, requirements: Sequence[str], say: BuildWatch) -> Image:
        """Build the image of requirements again; the tag moves to it, and the old one is removed unless it is in use.

        Raises RunnerError `conflict` if a process uses the image, and as `get`; nothing has changed then.
        """
        base = await self._ask((await self._pull(name, say))["Id"], name)
        key = image_key(base.id, requirements)
        tag = f"{REPOSITORY}:{key}"
        async with self.store.lock(key, say), say.place():
            with self.store.alone(key):
                old = await self._found(tag)
                await self._build(base, key, name, requirements, say)
                found = await self._inspect(tag)
            if old is not None and old["Id"] != found["Id"]:
                with contextlib.suppress(EngineError):
                    await self.programs.engine.call(lambda api: api.remove_image(old["Id"]))
        return evolve(base, id=found["Id"], key=key)

    async def known(self, name: str, requirements: Sequence[str]) -> Known:
        """Return the key of the image of requirements if its base image is pulled."""
        if not requirements:
            return Known(None, f"it uses the image {name} as it is")
        found = await self._found(name)
        if found is None:
            return Known(None, f"the image {name} is not pulled yet")
        return Known(image_key(found["Id"], requirements))

    async def stored(self) -> list[Stored]:
        """Return the images built for modules of this data directory, by key."""
        images = await self.programs.engine.call(lambda api: list(api.images(name=REPOSITORY)))
        found = []
        for image in images:
            for tag in image.get("RepoTags") or ():
                key = tag.rpartition(":")[2]
                if self.store.path(key).is_dir():  # others belong to another data directory
                    stored = self.store.describe(key, int(image.get("Size") or 0))
                    built = float(image.get("Created") or 0)
                    used = max(stored.used_at, built)
                    found.append(evolve(stored, kind="docker", path=tag, built_at=built, used_at=used))
        return sorted(found, key=lambda stored: stored.key)

    async def remove(self, key: str) -> bool:
        """Remove a built image unless a process or a container uses it."""
        tag = f"{REPOSITORY}:{key}"
        with self.store.uses.alone(key) as alone:
            if not alone:
                return False
            try:
                await self.programs.engine.call(lambda api: api.remove_image(tag))
            except EngineAwayError:
                raise
            except NotThereError:
                pass
            except EngineError:  # a container uses it
                return False
        return await self.store.remove(key)

    async def _found(self, image: str) -> Mapping[str, Any] | None:
        try:
            return await self._inspect(image)
        except NotThereError:
            return None

    async def _build(
        self, base: Image, key: str, name: str, requirements: Sequence[str], say: Callable[[str], None]
    ) -> None:
        """Install with the image's own pip in a container, and commit the container as an image."""
        self.store.builds += 1
        lock: list[bytes] = []
        with self.store.build_log(key, say) as keep:
            tail = Tail(keep)
            split = Lines(tail)

            def take(stream: Stream, data: bytes) -> None:
                if stream is Stream.STDERR:
                    split.feed(data)
                elif sum(map(len, lock)) < MAX_TEXT:
                    lock.append(data)

            sent = json.dumps({"requirements": "\n".join(requirements) + "\n", "environ": self._pip_environ()}).encode()
            argv = [base.python, "-I", "-c", _BUILD]
            async with self.programs.container() as container:
                code = await self.programs.run(
                    container, base.id, argv, sent, take, network=self.build_network, user="0"
                )
                split.feed(b"\n")
                if code:
                    text = tail.text(f"pip ended with exit code {code}")
                    text = f"the image could not be built (its pip, in {base.id[:19]}):\n{text}"
                    raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="requirements")
                await self.programs.engine.call(lambda api: _commit(api, container, key), seconds=_COMMIT_SECONDS)
        folder = self.store.path(key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.lock").write_bytes(b"".join(lock))
        manifest: dict[str, Any] = {"kind": "docker", "python": base.version, "image": name, "base": base.id}
        manifest |= {"requirements": list(requirements), "key": key}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))

    def _pip_environ(self) -> dict[str, str]:
        """Return the index variables of pip in a container. They are sent on standard input, and are in no layer."""
        given = {name.upper(): value for name, value in self.installer_environ.items()}
        environ = {name: given[name] for name in (*_FOR_PIP, *_PROXIES) if name in given}
        index = given.get("UV_DEFAULT_INDEX") or given.get("UV_INDEX_URL")
        if index:
            environ.setdefault("PIP_INDEX_URL", index)
        environ |= {name.lower(): environ[name] for name in _PROXIES if name in environ}
        return environ | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1"}


def image_key(base: str, requirements: Sequence[str]) -> str:
    """Return the tag of an image with requirements installed: equal content has an equal tag."""
    content = json.dumps([_LAYOUT, base, [line.strip() for line in requirements]])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def _commit(api: Api, container: str, key: str) -> None:
    changes = ["ENTRYPOINT []", "CMD []", f"LABEL operato.environment={key}"]
    api.commit(container, repository=REPOSITORY, tag=key, changes=changes)
