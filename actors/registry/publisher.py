"""From module definitions to versions ready to be served: stored code, digests, secrets. Everything here blocks."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import structlog
from attrs import define, evolve, field

from actors.registry import code_store
from actors.registry.code_store import Layout
from actors.registry.published import Published
from actors.registry.snapshot import Registered
from actors.registry.stored import StoredModule, StoredVersion
from actors.sqlite import TROUBLE
from config.mistakes import ConfigError
from config.modules import ModuleSpec, spec_from_mapping, spec_to_mapping
from config.secrets import LookUp
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import ModuleRef

log = structlog.get_logger("registry")


@define
class Publisher:
    """Makes versions that can be served. `secrets` looks up values by name and raises ConfigError."""

    code_dir: Path
    secrets: LookUp
    _key: bytes = field(factory=lambda: secrets.token_bytes(32), init=False, repr=False)
    """The key of digests with secrets: without it they cannot be computed outside of this process."""
    _marks: dict[Path, code_store.Marks] = field(factory=dict, init=False)
    """The marks of the code folders, as they were when their content was right."""

    def publish_all(self, specs: Iterable[ModuleSpec], before: Mapping[str, Published]) -> list[Published]:
        """Return the modules of the operator's file; unchanged ones are the same objects as in `before`.

        Raises RunnerError `bad_input` naming the module, the field and the remedy, and OSError.
        """
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
        files = self._read(spec)
        content_digest = code_store.content_digest(spec, files)
        layout = Layout.of(spec, files, spec.name if spec.path is None else spec.path.name)
        digest = self._identity(content_digest, spec, secret, layout)
        if known is not None and known.digest == digest and self.intact(known):
            return known
        return evolve(self._made(spec, layout.placed(files), secret, content_digest, layout), trusted=True)

    def _read(self, spec: ModuleSpec) -> dict[str, bytes]:
        try:
            return dict(code_store.read_code(spec))
        except OSError as problem:
            raise error(ErrorKind.BAD_INPUT, f"{spec.name}: the code cannot be read: {problem}", field="path") from None

    def _root(self, folder: str) -> Path:
        return self.code_dir.absolute() / folder

    def _made(
        self,
        spec: ModuleSpec,
        files: Mapping[str, bytes],
        secret: Mapping[str, str],
        content_digest: str,
        layout: Layout,
    ) -> Published:
        root = self._root(code_store.folder_of(spec.name, files))
        self._marks[root] = code_store.keep(root, files)
        entry, function = _entry(spec, root, layout), spec.handler.rpartition(":")[2]
        return Published(
            ref=ModuleRef(spec.name, spec.version or content_digest[:12]),
            spec=spec,
            digest=self._identity(content_digest, spec, secret, layout),
            content_digest=content_digest,
            root=root,
            entry=entry,
            function=function,
            package=layout.package,
            published_at=time.time(),
            **code_store.schemas(spec, files.get(layout.entry, b""), function),
        )

    def _identity(self, content_digest: str, spec: ModuleSpec, secret: Mapping[str, str], layout: Layout) -> str:
        if not secret and not layout.package:
            return content_digest
        looked_up = [(name, spec.secrets[name].place, value) for name, value in sorted(secret.items())]
        return hmac.new(
            self._key, json.dumps([content_digest, layout.folder, looked_up]).encode(), hashlib.sha256
        ).hexdigest()

    def stage(self, spec: ModuleSpec, subject: str) -> tuple[Published, Mapping[str, bytes]]:
        """Return a version ready to be registered by `subject`, and its code by relative name.

        Raises RunnerError: `bad_input` naming field and remedy, `too_large`, `unavailable` when it cannot be stored.
        """
        files = self._read(spec)
        layout = Layout.of(spec, files, spec.name)
        digest = code_store.content_digest(spec, files)
        try:
            made = self._made(spec, layout.placed(files), self.secrets(spec.secrets), digest, layout)
        except ConfigError as problem:
            text = "\n".join(f"secrets.{mistake}" for mistake in problem.mistakes)
            raise error(ErrorKind.BAD_INPUT, text, field="secrets") from None
        except OSError as problem:
            raise error(ErrorKind.UNAVAILABLE, f"code cannot be stored: {problem}", field="data_dir") from problem
        inside = spec if spec.path is None else evolve(spec, path=made.root / layout.folder)
        return evolve(made, spec=inside, published_by=subject), files

    def remove_code(self, besides: Collection[Path]) -> None:
        """Remove all code folders but these."""
        if self.code_dir.is_dir():
            for path in self.code_dir.absolute().iterdir():
                if path not in besides:
                    shutil.rmtree(path, ignore_errors=True)
                    self._marks.pop(path, None)

    def intact(self, module: Published) -> bool:
        """Return whether the stored code of a module is as it was published; it is read only if a mark changed."""
        marks = self._marks.get(module.root)
        if marks is not None and code_store.marks_of(module.root, marks) == marks:
            return True
        marks = code_store.intact(module.root)
        if marks is not None:
            self._marks[module.root] = marks
        return marks is not None

    def mend(self, module: Published, files: Callable[[], Mapping[str, bytes]] | None) -> None:
        """Write the stored code of a module again: `files` returns it, or it is read where the author has it.

        Raises RunnerError `unavailable` when the author's code is another one now, or cannot be read, and OSError.
        """
        try:
            found = self._read(module.spec) if files is None else files()
        except (RunnerError, KeyError) as problem:
            found, why = {}, str(problem)
        else:
            why = "its source has other content now"
        found = Layout(_entry_name(module), module.package).placed(found)
        if module.root.name != code_store.folder_of(module.spec.name, found):
            text = f"the stored code of {module.ref} is damaged and cannot be made again: {why}; publish it again"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir")
        self._marks[module.root] = code_store.keep(module.root, found)

    def restore_all(
        self,
        kept: Iterable[StoredModule],
        files: Callable[[str, str], Mapping[str, bytes]],
        known: Mapping[ModuleRef, Published] = MappingProxyType({}),
    ) -> dict[str, Registered]:
        """Return the modules as they were registered, by name; versions that cannot be served are left out and logged.

        `files` has the code of a version. Versions that are `known` stay the same objects.
        """
        found = {}
        for module in kept:
            versions = {}
            for each in module.versions:
                same = known.get(ModuleRef(each.module, each.version))
                if same is not None and same.content_digest == each.digest:
                    versions[each.version] = same
                    continue
                try:
                    versions[each.version] = self.restore(each, partial(files, each.module, each.version))
                except (ConfigError, RunnerError, KeyError, *TROUBLE) as problem:
                    why = str(problem) or type(problem).__name__
                    log.warning("a version is not served", module=module.name, version=each.version, why=why)
            active = module.active if module.active in versions else None
            found[module.name] = Registered(
                module.name, versions, active, module.revision, module.updated_at, module.updated_by
            )
        return found

    def restore(self, stored: StoredVersion, files: Callable[[], Mapping[str, bytes]]) -> Published:
        """Return a version as it was registered; `files` returns its code, if its folder is gone or damaged.

        Raises ConfigError and RunnerError when this runner cannot serve it, and OSError.
        """
        handler = None if "code" in stored.spec else str(stored.spec.get("handler", ""))
        layout = Layout.stored(stored.module, stored.entry, stored.package, handler)
        folder, placed = stored.folder, None
        if layout.entry != stored.entry:  # an earlier runner had other names
            placed = layout.placed(files())
            folder = code_store.folder_of(stored.module, placed)
        root = self._root(folder)
        marks = code_store.intact(root)
        if marks is None:
            marks = code_store.keep(root, layout.placed(files()) if placed is None else placed)
        self._marks[root] = marks
        spec = spec_from_mapping(stored.spec, base=root, allow_path=True, checked=True)
        spec = spec if spec.path is None else evolve(spec, path=root / layout.folder)
        try:
            secret = self.secrets(spec.secrets)
        except ConfigError:  # workers report it at their start; until then the module can be read
            secret = {}
        entry, function = _entry(spec, root, layout), spec.handler.rpartition(":")[2]
        return Published(
            ref=ModuleRef(stored.module, stored.version),
            spec=spec,
            digest=self._identity(stored.digest, spec, secret, layout),
            content_digest=stored.digest,
            root=root,
            entry=entry,
            function=function,
            package=layout.package,
            published_at=stored.created_at,
            published_by=stored.created_by,
            **code_store.schemas(spec, entry, function),
        )


def _entry(spec: ModuleSpec, root: Path, layout: Layout) -> Path:
    """Return the file with the handler: below `root`, or below the working directory of the image that has the code."""
    return Path(layout.entry) if spec.code is None and spec.path is None else root / layout.entry


def _entry_name(module: Published) -> str:
    """Return the file with the handler, relative to `root`; that of an image as it is."""
    inside = module.entry.is_relative_to(module.root)
    return str(module.entry.relative_to(module.root) if inside else module.entry)


def stored(module: Published) -> StoredVersion:
    """Return a staged version in the form of the catalog."""
    data = spec_to_mapping(module.spec)
    if "path" in data:
        data["path"] = "."
    return StoredVersion(
        module=module.spec.name,
        version=module.ref.version,
        spec=data,
        digest=module.content_digest,
        entry=_entry_name(module),
        package=module.package,
        folder=module.root.name,
        created_at=module.published_at,
        created_by=str(module.published_by),
    )
