"""Modules, versions and the active one of each; publishes an immutable snapshot that everybody reads without asking."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import structlog
import trio
from attrs import asdict, define, field, frozen

from actors.mailbox import Mailbox, Question
from config.mistakes import ConfigError
from config.modules import ModuleSpec, spec_to_mapping
from config.secrets import LookUp
from protocol.errors import ErrorKind, error
from protocol.model import Isolation, Kind, ModuleRef

MAX_CODE_BYTES = 64 * 1024 * 1024
_CACHES = ("__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache", ".DS_Store")
_EDITING = re.compile(r"\.#.*|.*~|.*\.sw[a-z]|.*\.py[co]|4913")
"""What editors put beside the file that is being edited, and what interpreters do."""
_TOLD_NAMES = 20

_WAITING = 16
"""Changes that may wait for their turn."""

log = structlog.get_logger("registry")


@frozen
class Published:
    """One version of a module, with its code where nothing changes it any more.

    `digest` is the identity of everything that a worker is made of, the values of secrets included, which are not
    kept: two equal ones run the same thing. It means nothing outside of this process. `content_digest` is what is
    shown, and what the version is derived from: it says nothing about secrets, as a short one could be guessed from a
    plain hash.
    """

    ref: ModuleRef
    spec: ModuleSpec
    digest: str
    content_digest: str
    root: Path
    entry: Path
    function: str
    package: bool
    published_at: float
    trusted: bool = False
    """It comes from the operator's own file."""


@frozen
class Changes:
    """What is different between two snapshots: names of modules, sorted."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def told(self) -> dict[str, list[str]]:
        """Return what there is to tell, for a line of the log."""
        return {kind: _shortened(names) for kind, names in asdict(self).items() if names}


@frozen
class RegistrySnapshot:
    """All modules at one moment, by name. Reading it needs no lock and no await."""

    modules: Mapping[str, Published] = field(factory=dict)

    def get(self, name: str, version: str | None = None) -> Published:
        """Return the active version, or the one asked for. Raises RunnerError `not_found` with the names alike."""
        found = self.modules.get(name)
        if found is None:
            raise error(ErrorKind.NOT_FOUND, f"there is no module {name!r}{_alike(name, self.modules)}", field="name")
        if version is not None and version != found.ref.version:
            text = f"module {name!r} has no version {version!r}; it has {found.ref.version}"
            raise error(ErrorKind.NOT_FOUND, text, field="version")
        return found

    def since(self, before: RegistrySnapshot) -> Changes:
        """Return what has changed from `before` to this."""
        old, new = before.modules, self.modules
        return Changes(
            added=tuple(sorted(new.keys() - old.keys())),
            changed=tuple(sorted(name for name in new.keys() & old.keys() if new[name] is not old[name])),
            removed=tuple(sorted(old.keys() - new.keys())),
        )

    def find(self, *, env: Kind | None = None, tag: str | None = None, text: str | None = None) -> list[Published]:
        """Return the modules that match every condition, by name. `text` is looked for in name and description."""
        wanted = text.lower() if text else ""
        return [
            module
            for _, module in sorted(self.modules.items())
            if (env is None or module.spec.env is env)
            and (tag is None or tag in module.spec.tags)
            and (not wanted or wanted in module.spec.name.lower() or wanted in module.spec.description.lower())
        ]


def _alike(name: str, names: Iterable[str]) -> str:
    import difflib  # noqa: PLC0415  (only on the way to an error)

    close = difflib.get_close_matches(name, list(names), n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


@frozen
class _Publish(Question[RegistrySnapshot]):
    """Make these the modules of the operator's file."""

    specs: tuple[ModuleSpec, ...]


@define
class Registry:
    """The actor that owns the snapshot. Everybody reads `snapshot` without asking; changes are asked for."""

    code_dir: Path
    secrets: LookUp
    snapshot: RegistrySnapshot = field(factory=RegistrySnapshot, init=False)
    _mailbox: Mailbox = field(factory=lambda: Mailbox("registry", _WAITING), init=False)
    _key: bytes = field(factory=lambda: secrets.token_bytes(32), init=False, repr=False)
    """What keeps identities from being computed outside of this process."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Change the snapshot, one change after the other, until cancelled."""
        task_status.started()
        await self._mailbox.serve(self._publish_all)

    async def publish(self, specs: Iterable[ModuleSpec]) -> RegistrySnapshot:
        """Make `specs` the modules of the operator's file. Unchanged ones keep their identity and their workers.

        Raises RunnerError: `bad_input` naming the module, the field and the remedy, `unavailable` when the code cannot
        be kept or the registry does not run; the snapshot is unchanged then. Cancelled, it may be changed all the same.
        """
        return await self._mailbox.ask(_Publish(tuple(specs)))

    async def _publish_all(self, question: _Publish) -> RegistrySnapshot:
        before = self.snapshot
        try:
            after = await trio.to_thread.run_sync(self._published, question.specs, before.modules)
        except OSError as problem:
            raise error(ErrorKind.UNAVAILABLE, f"code cannot be kept: {problem}", field="data_dir") from problem
        self.snapshot = RegistrySnapshot({module.spec.name: module for module in after})
        log.debug("modules published", **self.snapshot.since(before).told(), total=len(after))
        return self.snapshot

    def _published(self, specs: Iterable[ModuleSpec], before: Mapping[str, Published]) -> list[Published]:
        values, missing = [], []
        for spec in specs:
            try:
                values.append((spec, self.secrets(spec.secrets)))
            except ConfigError as problem:
                missing += [f"{spec.name}.secrets.{mistake}" for mistake in problem.mistakes]
        if missing:
            raise error(ErrorKind.BAD_INPUT, "\n".join(missing), field="secrets")
        return [self._publish(spec, secret, before.get(spec.name)) for spec, secret in values]

    def _publish(self, spec: ModuleSpec, secret: Mapping[str, str], known: Published | None) -> Published:
        try:
            files = dict(_read_code(spec))
        except OSError as problem:
            raise error(ErrorKind.BAD_INPUT, f"{spec.name}: the code cannot be read: {problem}", field="path") from None
        content_digest = _digest(spec, files)
        digest = self._identity(content_digest, spec, secret)
        if known is not None and known.digest == digest and known.root.is_dir():
            return known
        root = self._keep(spec, files)
        file, _, function = spec.handler.rpartition(":")
        entry, package = _entry(spec, root, files, file)
        return Published(
            ref=ModuleRef(spec.name, spec.version or content_digest[:12]),
            spec=spec,
            digest=digest,
            content_digest=content_digest,
            root=root,
            entry=entry,
            function=function,
            package=package,
            published_at=time.time(),
            trusted=True,
        )

    def _identity(self, content_digest: str, spec: ModuleSpec, secret: Mapping[str, str]) -> str:
        if not secret:
            return content_digest
        looked_up = [(name, spec.secrets[name].place, value) for name, value in sorted(secret.items())]
        return hmac.new(self._key, json.dumps([content_digest, looked_up]).encode(), hashlib.sha256).hexdigest()

    def _keep(self, spec: ModuleSpec, files: Mapping[str, bytes]) -> Path:
        """Write the code to a directory named by its content, whole or not at all; return it."""
        content = hashlib.sha256()
        for name, data in sorted(files.items()):
            content.update(_framed(name, data))
        target = self.code_dir.absolute() / f"{spec.name}-{content.hexdigest()[:16]}"
        if not target.is_dir():
            self.code_dir.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.code_dir, prefix=".tmp-"))
            try:
                for name, data in files.items():
                    path = temporary / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                temporary.chmod(0o755)
                temporary.rename(target)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if not target.is_dir():
                    raise
        return target

    def collect(self) -> None:
        """Remove code that no published module uses; called when no worker runs."""
        used = {module.root for module in self.snapshot.modules.values()}
        if self.code_dir.is_dir():
            for path in self.code_dir.absolute().iterdir():
                if path not in used:
                    shutil.rmtree(path, ignore_errors=True)


def _shortened(names: tuple[str, ...]) -> list[str]:
    more = len(names) - _TOLD_NAMES
    return [*names[:_TOLD_NAMES], *([f"and {more} more"] if more > 0 else [])]


def _read_code(spec: ModuleSpec) -> Iterable[tuple[str, bytes]]:
    """Yield relative name and content of every file of a module.

    Raises RunnerError when the code is not there (any more), is too large or is no file, and OSError.
    """
    if spec.code is not None:
        yield f"{spec.name}.py", spec.code.encode()
        return
    if spec.path is None:
        return
    if not spec.path.exists():
        text = f"{spec.name}.path: {spec.path} does not exist (any more); bring it back, or change `path`"
        raise error(ErrorKind.BAD_INPUT, text, field="path")
    total = 0
    for path in _files(spec.path):
        data = _read_file(spec, path)
        total += len(data)
        if total > MAX_CODE_BYTES:
            text = f"{spec.name}: the code is over {MAX_CODE_BYTES} bytes; keep data out of its folder"
            raise error(ErrorKind.TOO_LARGE, text, field="path")
        yield str(path.relative_to(spec.path)) if path != spec.path else path.name, data


def _files(root: Path) -> Iterator[Path]:
    """Yield every file below a folder, or the file that `root` is. Raises OSError for folders that cannot be read."""
    if not root.is_dir():
        yield root
        return
    for folder, names, files in os.walk(root, onerror=_raise):
        names[:] = sorted(name for name in names if not is_left_out(name))
        yield from (Path(folder, name) for name in sorted(files) if not is_left_out(name))


def is_left_out(name: str) -> bool:
    """Return whether a file or folder of this name is no code, wherever it stands."""
    return name in _CACHES or _EDITING.fullmatch(name) is not None


def _raise(problem: OSError) -> NoReturn:
    raise problem


def _read_file(spec: ModuleSpec, path: Path) -> bytes:
    """Return the content of a file of a module, at most a little more than is allowed."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
        raise error(ErrorKind.BAD_INPUT, f"{spec.name}: {path} is not a regular file; take it out", field="path")
    with path.open("rb") as file:
        return file.read(MAX_CODE_BYTES + 1)


def _entry(spec: ModuleSpec, root: Path, files: Mapping[str, bytes], file: str) -> tuple[Path, bool]:
    """Return the file that has the handler, and whether it makes its folder a package."""
    if spec.code is None and spec.path is None:  # what is in the image, relative to its working directory
        return Path(f"{file or 'main'}.py"), False
    if file:
        candidates = [f"{file}.py", f"{file}/__init__.py", file]
    elif len(files) == 1 and (spec.code is not None or (spec.path is not None and spec.path.is_file())):
        candidates = list(files)
    else:
        candidates = ["main.py", "__init__.py", "handler.py"]
    for name in candidates:
        if name in files:
            return root / name, name.endswith("__init__.py")
    text = f"{spec.name}: none of {', '.join(candidates)} is in the folder; name it as `handler: file:function`"
    raise error(ErrorKind.BAD_INPUT, text, field="handler")


def _digest(spec: ModuleSpec, files: Mapping[str, bytes]) -> str:
    """Return the hash of all that the author wrote."""
    content = hashlib.sha256()
    described = {k: v for k, v in spec_to_mapping(spec).items() if k not in ("code", "path")}
    described["secrets"] = list(spec.secrets)  # where their values are is the machine's matter, as with `path`
    content.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, data in sorted(files.items()):
        content.update(_framed(name, data))
    return content.hexdigest()


def _framed(name: str, data: bytes) -> bytes:
    """Return a file such that no two different ones look alike in a row."""
    return os.fsencode(name) + f"\0{len(data)}\0".encode() + data


def may_run_in_process(module: Published) -> bool:
    """Return whether a module may run in the runner's own process: inline, asked for, and from the operator's file."""
    return module.trusted and module.spec.env is Kind.INLINE and module.spec.isolation is Isolation.NONE
