"""Modules, versions and the active one of each; publishes an immutable snapshot that everybody reads without asking."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog
import trio
from attrs import define, field, frozen

from config.modules import ModuleSpec, spec_to_mapping
from protocol.errors import ErrorKind, error
from protocol.model import Isolation, Kind, ModuleRef

MAX_CODE_BYTES = 64 * 1024 * 1024
_SKIPPED = ("__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache")

log = structlog.get_logger("registry")


@frozen
class Published:
    """One version of a module, with its code where nothing changes it any more.

    `digest` is the identity of everything that the author wrote: two equal digests run the same thing.
    """

    ref: ModuleRef
    spec: ModuleSpec
    digest: str
    root: Path
    entry: Path
    function: str
    package: bool
    variables: Mapping[str, str]
    published_at: float
    trusted: bool = False
    """It comes from the operator's own file."""


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


@define
class Registry:
    """Owns the snapshot. `publish` replaces what comes from the operator's file; a failed one changes nothing."""

    code_dir: Path
    secrets: Callable[[tuple[str, ...]], Mapping[str, str]]
    snapshot: RegistrySnapshot = field(factory=RegistrySnapshot, init=False)
    _lock: trio.Lock = field(factory=trio.Lock, init=False)

    async def publish(self, specs: Iterable[ModuleSpec]) -> RegistrySnapshot:
        """Make `specs` the modules of the operator's file. Unchanged ones keep their identity and their workers.

        Raises RunnerError `bad_input` naming the module; the snapshot is unchanged then. Cancelled, likewise.
        """
        async with self._lock:
            before = self.snapshot.modules
            wanted = list(specs)
            after = await trio.to_thread.run_sync(lambda: [self._publish(spec, before) for spec in wanted])
            self.snapshot = RegistrySnapshot({module.spec.name: module for module in after})
        changed = [m.spec.name for m in after if before.get(m.spec.name) is not m]
        removed = sorted(set(before) - {m.spec.name for m in after})
        if changed or removed:
            log.info("modules published", changed=changed, removed=removed, total=len(after))
        return self.snapshot

    def _publish(self, spec: ModuleSpec, before: Mapping[str, Published]) -> Published:
        try:
            files = dict(_read_code(spec))
        except OSError as problem:
            raise error(ErrorKind.BAD_INPUT, f"{spec.name}: the code cannot be read: {problem}", field="path") from None
        variables = {**spec.variables, **self.secrets(spec.secrets)}
        digest = _digest(spec, files, variables)
        known = before.get(spec.name)
        if known is not None and known.digest == digest and known.root.is_dir():
            return known
        root = self._keep(spec, files)
        file, _, function = spec.handler.rpartition(":")
        entry, package = _entry(spec, root, files, file)
        return Published(
            ref=ModuleRef(spec.name, spec.version or digest[:12]),
            spec=spec,
            digest=digest,
            root=root,
            entry=entry,
            function=function,
            package=package,
            variables=variables,
            published_at=time.time(),
            trusted=True,
        )

    def _keep(self, spec: ModuleSpec, files: Mapping[str, bytes]) -> Path:
        """Write the code to a directory named by its content, whole or not at all; return it."""
        content = hashlib.sha256()
        for name, data in sorted(files.items()):
            content.update(f"{name}\0{len(data)}\0".encode() + data)
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


def _read_code(spec: ModuleSpec) -> Iterable[tuple[str, bytes]]:
    """Yield relative name and content of every file of a module. Raises RunnerError when they are too large."""
    if spec.code is not None:
        yield f"{spec.name}.py", spec.code.encode()
        return
    if spec.path is None:
        return
    if spec.path.is_file():
        yield spec.path.name, spec.path.read_bytes()
        return
    total = 0
    for folder, names, files in os.walk(spec.path):
        names[:] = sorted(n for n in names if n not in _SKIPPED)
        for name in sorted(files):
            path = Path(folder) / name
            data = path.read_bytes()
            total += len(data)
            if total > MAX_CODE_BYTES:
                text = f"{spec.name}: the folder is over {MAX_CODE_BYTES} bytes; keep data out of it"
                raise error(ErrorKind.TOO_LARGE, text, field="path")
            yield str(path.relative_to(spec.path)), data


def _entry(spec: ModuleSpec, root: Path, files: Mapping[str, bytes], file: str) -> tuple[Path, bool]:
    """Return the file that has the handler, and whether it makes its folder a package."""
    if not files:  # what is in the image, relative to its working directory
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


def _digest(spec: ModuleSpec, files: Mapping[str, bytes], variables: Mapping[str, str]) -> str:
    content = hashlib.sha256()
    described = {k: v for k, v in spec_to_mapping(spec).items() if k not in ("code", "path")}
    content.update(json.dumps([described, dict(variables)], sort_keys=True, default=str).encode())
    for name, data in sorted(files.items()):
        content.update(f"{name}\0{len(data)}\0".encode() + data)
    return content.hexdigest()


def may_run_in_process(module: Published) -> bool:
    """Return whether a module may run in the runner's own process: inline, asked for, and from the operator's file."""
    return module.trusted and module.spec.env is Kind.INLINE and module.spec.isolation is Isolation.NONE
