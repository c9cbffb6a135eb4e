"""Images: pulled if missing, asked for their Python, and built from a base image and requirements."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import trio
from attrs import define, evolve, field, frozen

from config.packages import is_locked
from environments.base import BuildWatch, Known, Stored
from environments.docker.engine import Api, EngineAwayError, EngineError, NotThereError
from environments.docker.programs import READ_FRAME, Programs
from environments.docker.progress import MAX_TEXT, Lines, Progress
from environments.installer import CA_VARIABLES, Tail, read_ca
from environments.locking import Commits, is_git
from environments.store import MANIFEST, Store
from protocol.errors import ErrorKind, error
from protocol.model import Stream

log = structlog.get_logger("images")

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
folder = tempfile.TemporaryDirectory()
paths = {name: os.path.join(folder.name, name) for name in sent["files"]}
for name in paths:
    with open(paths[name], "w") as file:
        file.write(sent["files"][name])
environ = dict(os.environ, **sent["environ"])
environ.update((name, paths["ca.pem"]) for name in sent["trust"])
pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--no-color"]
install = ["install", "--no-cache-dir", "--progress-bar", "off"]
code = 0
for options in sent["installs"]:
    options = [paths.get(option, option) for option in options]
    code = code or subprocess.call(pip + install + options, env=environ, stdin=subprocess.DEVNULL, stdout=2)
folder.cleanup()
environ = dict(os.environ, **sent["environ"])
sys.exit(code or subprocess.call(pip + ["freeze", "--all"], env=environ, stdin=subprocess.DEVNULL))
"""
)
_NO_GIT = "Cannot find command 'git'"
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


@frozen
class Wanted:
    """What a module wants: an image as it is, or one built of it with requirements."""

    name: str
    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    def key(self, base: str) -> str:
        """Return the tag of the built image over `base`: equal content has an equal tag."""
        content: list[Any] = [_LAYOUT, base, [line.strip() for line in self.requirements]]
        content += [list(self.constraints)] if self.constraints else []
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]


@define
class Images:
    """The images of one engine: pulled, asked for their Python, and built."""

    programs: Programs
    store: Store
    installer_environ: Mapping[str, str]
    build_network: str
    commits: Commits
    build_ca: Path | None = None
    """The CAs that pip and git trust in a container; it gets a copy for the time of the build."""
    _pulling: dict[str, trio.Lock] = field(factory=dict, init=False)

    async def get(self, wanted: Wanted, say: BuildWatch) -> Image:
        """Return an image, pulled and built if it is missing; `say` gets the lines of both.

        Raises RunnerError: `environment_failed` with the last lines of engine or pip, `unavailable`.
        Cancelled, no container is left; the engine may continue to pull a layer.
        """
        began = time.perf_counter()
        found = await self._pull(wanted.name, say)
        image = await self._ask(found["Id"], wanted.name)
        if wanted.requirements:
            image = await self._built(image, await self._fixed(wanted, image, say), say)
        return evolve(image, built_seconds=time.perf_counter() - began)

    async def _pull(self, name: str, say: BuildWatch) -> Mapping[str, Any]:
        """Return the engine's description of an image; pull it if it is missing."""
        lock = self._pulling.setdefault(name, trio.Lock())
        if lock.locked():
            say.building()
        async with lock:
            for again in (True, False):
                try:
                    return await self._inspect(name)
                except NotThereError:
                    if not again:
                        raise
                say.building()
                say(f"pulling {name}")
                try:
                    with _logged_pull(name):
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
        if (noted := self._noted(identity)) is not None:
            return noted
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
                self._note(image)
                return image
            why = f"{python} ended with exit code {code}: {version[-500:]}"
        text_ = f"the image {name} has no Python that can run a worker ({why}); choose one with python3 on its PATH"
        raise error(ErrorKind.ENVIRONMENT_FAILED, text_, field="image")

    def _noted(self, identity: str) -> Image | None:
        path = self._path_of_note(identity)
        return Image(identity, **json.loads(path.read_text())) if path.exists() else None

    def _path_of_note(self, identity: str) -> Path:
        return self.store.root / ".known" / identity.rpartition(":")[2]

    def _note(self, image: Image) -> None:
        """Record the result: it depends only on the content of the image."""
        path = self._path_of_note(image.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"python": image.python, "version": image.version, "workdir": image.workdir}))
        temporary.rename(path)

    async def _fixed(self, wanted: Wanted, base: Image, say: BuildWatch) -> Wanted:
        """Return what is wanted with commits instead of branches and tags."""
        return evolve(wanted, requirements=await self.commits.fixed(wanted.requirements, base.version, say))

    async def _built(self, base: Image, wanted: Wanted, say: BuildWatch) -> Image:
        """Return the image with the requirements installed, built once for each content."""
        key = wanted.key(base.id)
        tag = f"{REPOSITORY}:{key}"
        await self.store.uses.hold(key, say)
        async with self.store.lock(key, say):
            try:
                found = await self._inspect(tag)
            except NotThereError:
                async with say.place(key):
                    say(f"installing {len(wanted.requirements)} requirements into {wanted.name}")
                    await self._build(base, wanted, say)
                found = await self._inspect(tag)
        return evolve(base, id=found["Id"], key=key)

    async def rebuild(self, wanted: Wanted, say: BuildWatch) -> Image:
        """Build the image of requirements again; the tag moves to it, and the old one is removed unless it is in use.

        Raises RunnerError `conflict` if a process uses the image, and as `get`; nothing has changed then.
        """
        base = await self._ask((await self._pull(wanted.name, say))["Id"], wanted.name)
        wanted = await self._fixed(wanted, base, say)
        key = wanted.key(base.id)
        tag = f"{REPOSITORY}:{key}"
        async with self.store.lock(key, say), say.place(key):
            with self.store.alone(key):
                old = await self._found(tag)
                await self._build(base, wanted, say)
                found = await self._inspect(tag)
            if old is not None and old["Id"] != found["Id"]:
                with contextlib.suppress(EngineError):
                    await self.programs.engine.call(lambda api: api.remove_image(old["Id"]))
        return evolve(base, id=found["Id"], key=key)

    async def known(self, wanted: Wanted) -> Known:
        """Return the key of the image of requirements if its base image is pulled."""
        if not wanted.requirements:
            return Known(None, f"it uses the image {wanted.name} as it is")
        found = await self._found(wanted.name)
        if found is None:
            return Known(None, f"the image {wanted.name} is not pulled yet")
        noted = self._noted(found["Id"])
        fixed = self.commits.known(wanted.requirements, noted.version if noted else "")
        if fixed is None:
            return Known(None, "the commits of its git requirements are not known yet")
        return Known(evolve(wanted, requirements=fixed).key(found["Id"]))

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

    async def _build(self, base: Image, wanted: Wanted, say: Callable[[str], None]) -> None:
        """Install with the image's own pip in a container, and commit the container as an image."""
        key = wanted.key(base.id)
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

            sent = json.dumps(self._sent(wanted)).encode()
            argv = [base.python, "-I", "-c", _BUILD]
            async with self.programs.container() as container:
                code = await self.programs.run(
                    container, base.id, argv, sent, take, network=self.build_network, user="0"
                )
                split.feed(b"\n")
                if code:
                    text = tail.text(f"pip ended with exit code {code}")
                    text = f"the image could not be built (its pip, in {base.id[:19]}):\n{text}"
                    text += f"\n{wanted.name} has no git; name an image that has it" if _NO_GIT in text else ""
                    raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="requirements")
                await self.programs.engine.call(lambda api: _commit(api, container, key), seconds=_COMMIT_SECONDS)
        folder = self.store.path(key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.lock").write_bytes(b"".join(lock))
        manifest: dict[str, Any] = {"kind": "docker", "python": base.version, "image": wanted.name, "base": base.id}
        manifest |= {"requirements": list(wanted.requirements), "key": key}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))

    def _sent(self, wanted: Wanted) -> dict[str, Any]:
        """Return what the program in the container gets on standard input: nothing of it is in a layer."""
        files, installs = installs_of(wanted)
        texts = {name: "".join(f"{line}\n" for line in lines) for name, lines in files.items()}
        if self.build_ca is not None:
            texts["ca.pem"] = read_ca(self.build_ca)
        return {
            "files": texts,
            "installs": installs,
            "environ": self._pip_environ(),
            "trust": CA_VARIABLES if self.build_ca else (),
        }

    def _pip_environ(self) -> dict[str, str]:
        """Return the index variables of pip in a container."""
        given = {name.upper(): value for name, value in self.installer_environ.items()}
        environ = {name: given[name] for name in (*_FOR_PIP, *_PROXIES) if name in given}
        index = given.get("UV_DEFAULT_INDEX") or given.get("UV_INDEX_URL")
        if index:
            environ.setdefault("PIP_INDEX_URL", index)
        environ |= {name.lower(): environ[name] for name in _PROXIES if name in environ}
        return environ | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1"}


def installs_of(wanted: Wanted) -> tuple[dict[str, Sequence[str]], list[list[str]]]:
    """Return the files of requirements, and the options of each call of pip that installs them.

    Of a lock nothing but its lines is installed. Pip has no hash for a commit and wants one for all lines of a call.
    """
    lines = wanted.requirements
    if not is_locked(lines):
        files = {"requirements.txt": lines, "constraints.txt": wanted.constraints}
        return dict(files), [["-r", "requirements.txt", "-c", "constraints.txt"]]
    split = {"requirements.txt": [line for line in lines if not is_git(line)]}
    split["commits.txt"] = [line for line in lines if is_git(line)]
    return dict(split), [["--no-deps", "-r", name] for name in split if split[name]]


@contextlib.contextmanager
def _logged_pull(name: str) -> Iterator[None]:
    """Log begin and end of a pull."""
    began, result = trio.current_time(), "cancelled"
    log.info("pull began", image=name)
    try:
        yield
        result = "pulled"
    except EngineError:
        result = "failed"
        raise
    finally:
        say = log.info if result == "pulled" else log.warning
        say("pull ended", image=name, result=result, seconds=round(trio.current_time() - began, 3))


def _commit(api: Api, container: str, key: str) -> None:
    changes = ["ENTRYPOINT []", "CMD []", f"LABEL operato.environment={key}"]
    api.commit(container, repository=REPOSITORY, tag=key, changes=changes)
