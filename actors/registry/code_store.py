"""The code of a module: read with bounds, hashed, and stored in an immutable folder named by its content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import keyword
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import structlog
from attrs import frozen

from config.code import MAX_BYTES, code_files, find_entry, output_schema
from config.code import input_schema as hinted_schema
from config.mistakes import Wrong
from config.modules import ModuleSpec, spec_to_mapping
from protocol.errors import ErrorKind, error
from protocol.model import Kind

log = structlog.get_logger("registry")

MAX_CODE_BYTES = 64 * 1024 * 1024
_ENTRY = "main.py"
"""The stored name of code that is one file."""


def read_code(spec: ModuleSpec) -> Iterable[tuple[str, bytes]]:
    """Yield relative name and content of every file of a module.

    Raises RunnerError when the code does not exist (any more), is too large or is not a regular file, and OSError.
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
    for path in code_files(spec.path):
        data = _read_file(spec, path)
        total += len(data)
        if total > MAX_CODE_BYTES:
            text = f"{spec.name}: the code is over {MAX_CODE_BYTES} bytes; keep data out of its folder"
            raise error(ErrorKind.TOO_LARGE, text, field="path")
        yield str(path.relative_to(spec.path)) if path != spec.path else path.name, data


def _read_file(spec: ModuleSpec, path: Path) -> bytes:
    """Return the content of a file of a module, at most one byte more than allowed."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block until its other end opens
        raise error(ErrorKind.BAD_INPUT, f"{spec.name}: {path} is not a regular file; take it out", field="path")
    with path.open("rb") as file:
        return file.read(MAX_CODE_BYTES + 1)


@frozen
class Layout:
    """How the files of a module lie below the folder that workers put on `sys.path`.

    A package is a folder in it. Code of one file has a name that hides no library: that of a module often would.
    """

    entry: str
    """The file with the handler."""
    package: bool = False

    @classmethod
    def of(cls, spec: ModuleSpec, files: Mapping[str, bytes], folder: str) -> Layout:
        """Return the layout of a module whose folder has that name. Raises RunnerError `bad_input`."""
        file = spec.handler.rpartition(":")[0]
        if spec.code is None and spec.path is None:  # inside of the image, relative to its working directory
            return cls(f"{file or 'main'}.py")
        single = len(files) == 1 and (spec.code is not None or (spec.path is not None and spec.path.is_file()))
        try:
            name = find_entry(files.__contains__, spec.handler, next(iter(files)) if single else None)
        except Wrong as wrong:
            raise error(ErrorKind.BAD_INPUT, f"{spec.name}: {wrong}", field="handler") from None
        if single and not file:
            return cls(_ENTRY)
        return cls(f"{_package(folder)}/{name}", package=True) if "__init__.py" in files else cls(name)

    @classmethod
    def stored(cls, module: str, entry: str, package: bool, handler: str | None) -> Layout:
        """Return the layout of a stored version, `handler` being None for code in a field.

        Versions of earlier runners have the names of their author: `__init__.py` and `jobs/__init__.py` were packages.
        """
        if handler is None:
            return cls(_ENTRY)
        if package and "/" not in entry:
            return cls(f"{_package(module)}/{entry}", package=True)
        return cls(entry, package and entry != f"{handler.rpartition(':')[0]}/__init__.py")

    def placed(self, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Return the files by their names in this layout."""
        if self.package:
            return {f"{self.folder}/{name}": data for name, data in files.items()}
        return dict(zip([self.entry], files.values(), strict=True)) if len(files) == 1 else files

    @property
    def folder(self) -> str:
        """The folder that the author sees, below the folder on `sys.path`."""
        return self.entry.partition("/")[0] if self.package else "."


def _package(folder: str) -> str:
    """Return the name of the package that a folder is: an identifier that hides nothing of the standard library."""
    name = "".join(character if character.isalnum() else "_" for character in folder)
    free = name.isidentifier() and not keyword.iskeyword(name) and name not in sys.stdlib_module_names
    return name if free else f"module_{name}"


class Schemas(TypedDict):
    """The JSON Schemas of a module; None accepts everything."""

    input_schema: Mapping[str, Any] | None
    output_schema: Mapping[str, Any] | None


def schemas(spec: ModuleSpec, source: bytes | Path, function: str) -> Schemas:
    """Return the JSON Schemas of a module: of its input, given or derived from the type hints, and of its result.

    `source` is the code with the handler, or its file. Raises OSError when it cannot be read.
    """
    given = None if spec.input_schema is None else spec.input_schema or None
    if spec.code is None and spec.path is None:  # the code is in the image
        return {"input_schema": given, "output_schema": None}
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(MAX_BYTES + 1)
    schema = hinted_schema(source, function) if spec.input_schema is None else given
    if schema is not None and spec.input_schema is None:
        # In this thread: the first call would hold up the event loop for 50 ms.
        import config.schema  # noqa: F401, PLC0415
    return {"input_schema": schema, "output_schema": output_schema(source, function)}


def content_digest(spec: ModuleSpec, files: Mapping[str, bytes]) -> str:
    """Return the hash of everything that the author wrote.

    Fields with their defaults are left out, so that a release with one more field gives the same hash.
    """
    content = hashlib.sha256()
    defaults = spec_to_mapping(ModuleSpec("", Kind.INLINE))
    described = {k: v for k, v in spec_to_mapping(spec).items() if k not in ("code", "path") and v != defaults.get(k)}
    described["secrets"] = list(spec.secrets)  # the place of their values belongs to the machine, as `path` does
    content.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, data in sorted(files.items()):
        content.update(_framed(name, data))
    return content.hexdigest()


def modules_digest(contents: Mapping[str, str]) -> str:
    """Return the hash of modules, given by name with their content digests: equal on runners with equal modules."""
    return hashlib.sha256(json.dumps(sorted(contents.items())).encode()).hexdigest()


def specs_digest(specs: Iterable[ModuleSpec]) -> str:
    """Return the same hash of modules as they are on disk now. Blocks. Raises OSError."""
    return modules_digest({spec.name: content_digest(spec, dict(read_code(spec))) for spec in specs})


def _framed(name: str, data: bytes) -> bytes:
    """Return name and content with their lengths, so that no two sequences of files give the same bytes."""
    return os.fsencode(name) + f"\0{len(data)}\0".encode() + data


def folder_of(module: str, files: Mapping[str, bytes]) -> str:
    """Return the name of the folder for these files, by their names in the layout of the module."""
    return f"{module}-{_hash_of(files)}"


def _hash_of(files: Mapping[str, bytes]) -> str:
    content = hashlib.sha256()
    for name, data in sorted(files.items()):
        content.update(_framed(name, data))
    return content.hexdigest()[:16]


Marks: TypeAlias = Mapping[str, tuple[int, int, int]]
"""Size, time of change and number of each file of a folder, by relative name: equal as long as nothing wrote to it."""


def marks_of(target: Path, names: Iterable[str]) -> Marks:
    """Return the marks of these files; those that are gone have none."""
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            found[name] = _mark(target / name)
    return found


def _mark(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def intact(target: Path) -> Marks | None:
    """Return the marks of the files in a folder, or None if it does not have the content that its name tells."""
    files: dict[str, bytes] = {}
    marks: dict[str, tuple[int, int, int]] = {}
    root = str(target)
    try:
        for folder, folders, names in os.walk(root):
            folders[:] = [each for each in folders if each != "__pycache__"]  # Python's own, made by workers
            for each in names:
                path, name = Path(folder, each), f"{folder[len(root) + 1 :]}/{each}".lstrip("/")
                marks[name] = _mark(path)  # before it is read: a later change shows
                files[name] = path.read_bytes()
    except OSError:
        return None
    right = (files or target.is_dir()) and root.endswith(f"-{_hash_of(files)}")
    return marks if right else None


def keep(target: Path, files: Mapping[str, bytes]) -> Marks:
    """Have a folder with these files, whole or not at all; return its marks.

    A folder with other content is replaced: one that a loss of power damaged too, so that no file waits for the disk.
    Raises OSError.
    """
    marks = intact(target)
    if marks is not None:
        return marks
    old = None
    if target.exists():
        log.warning("stored code is damaged; it is written again", folder=str(target))
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=".old-"))
        target.rename(old / target.name)
    try:
        _write(target, files)
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    return marks_of(target, files)


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
    try:
        for name, data in files.items():
            path = temporary / name
            if "/" in name:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
