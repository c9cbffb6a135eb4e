"""Fields that the author of a module did not write beside its code: taken from its block and the files of its folder.

One rule: a written field wins over the block of the file, field by field, and the block over the files of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from config import packages
from config.code import MAX_BYTES, RUNNING_VERSION, entry_of
from config.completing.script import Block, read_block
from config.files import locate
from config.mistakes import Wrong
from protocol.model import Kind

REQUIREMENTS: Final = "requirements.txt"
CONDA: Final = ("environment.yml", "environment.yaml")
PACKAGE_FILES: Final = (packages.UV_LOCK, packages.PYLOCK, REQUIREMENTS, packages.PROJECT)
"""Files with packages of the index; the first that a folder has counts."""
CONDA_FILES: Final = (*packages.CONDA_LOCK, *CONDA)
"""Files with conda packages; the first that a folder has counts."""


@define
class Completed:
    """The fields of a module with those that were found, and the mistakes in the block."""

    data: dict[str, Any]
    wrongs: list[Wrong] = field(factory=list)
    _block: Block | None = None
    _file: str | None = None
    """The file with the block, as mistakes name it; None for the field `code`."""
    _filled: set[str] = field(factory=set)
    """The fields that the block gave."""

    def fill(self, block: Block, file: str | None, name: str) -> None:
        """Take the missing fields from a block; `name` is that of its file."""
        self._block, self._file = block, file
        self.wrongs += [self._in_file(wrong) for wrong in block.wrongs]
        for key, value in block.fields.items():
            if self.data.get(key) is None:
                self.data[key] = value
                self._filled.add(key)
        if "requirements" in self._filled and block.fields["requirements"]:
            self.data["packages_from"] = {name: ""}

    def settle(self, *, with_env: bool) -> None:
        """Derive the kind of environment and the Python, where they are not written."""
        data, block = self.data, self._block
        if data.get("env") is None and with_env:
            data["env"] = str(_kind(data))
        if block is None or block.requires is None or data.get("python") is not None:
            return
        if data.get("env") != Kind.INLINE:
            data["python"] = block.requires
            self._filled.add("python")
        elif not packages.fits(RUNNING_VERSION, block.requires):
            running = ".".join(map(str, RUNNING_VERSION))
            text = f'env: inline is the Python of the runner, {running}; write `env = "venv"` below [tool.operato]'
            self.wrongs.append(self._in_file(block.placed(Wrong(text, ("python",)), "")))

    def placed(self, wrong: Wrong) -> Wrong:
        """Return a mistake at its place in the block, if the block gave the field."""
        if self._block is None or wrong.file is not None or not wrong.where or wrong.where[0] not in self._filled:
            return wrong
        return self._in_file(self._block.placed(wrong, self._file or ""))

    def _in_file(self, wrong: Wrong) -> Wrong:
        if self._file is not None:
            return Wrong(wrong.message, wrong.where, allowed=wrong.allowed, file=self._file, line=wrong.line)
        message = ".".join(map(str, wrong.where)) + ": " + wrong.message if wrong.where else wrong.message
        offset = None if wrong.line is None else wrong.line - 1
        return Wrong(message, ("code",), allowed=wrong.allowed, offset=offset)


def completed(data: Mapping[str, Any], base: Path | None, *, trusted: bool, allow_path: bool) -> Completed:
    """Return the fields of a module, with missing ones from its code and the files beside it. Bpackages.

    Files that cannot be read give nothing: the readers of the fields report them.
    """
    found = Completed(dict(data))
    code, path = data.get("code"), data.get("path")
    if isinstance(code, str):
        block = read_block(code) if "# /// " in code and len(code) <= MAX_BYTES else None
        if block is not None:
            found.fill(block, None, f"{data.get('name')}.py")
        found.settle(with_env=block is not None)
    elif isinstance(path, str) and allow_path:
        try:
            place = locate(path, base, trusted=trusted)
            entry = _entry(place, data.get("handler"))
            block = None if entry is None else _block_of(entry)
            if block is not None and entry is not None:
                shown = entry.relative_to(base) if not trusted and base and entry.is_relative_to(base) else entry
                found.fill(block, str(shown), entry.name)
            folder = place if trusted or base is None else base
            if folder.is_dir():
                _from_folder(found.data, folder, str if trusted else lambda each: each.name)
            found.settle(with_env=place.exists())
        except (Wrong, OSError, ValueError):
            pass
    return found


def _entry(place: Path, handler: Any) -> Path | None:
    """Return the file with the handler; None for one that cannot be read at once, such as a pipe."""
    try:
        entry = entry_of(place, handler if isinstance(handler, str) else "handler")
    except Wrong:
        return None
    return entry if entry.is_file() else None


def _block_of(file: Path) -> Block | None:
    with file.open("rb") as opened:
        text = opened.read(MAX_BYTES + 1)
    return read_block(text.decode("utf-8-sig", "replace")) if b"# /// " in text and len(text) <= MAX_BYTES else None


def _from_folder(data: MutableMapping[str, Any], folder: Path, naming: Callable[[Path], str]) -> None:
    """Name the files of a folder that list its packages, where the module does not."""
    env = data.get("env")
    if env is None and data.get("dependencies") is None and data.get("requirements") is None:
        conda = next((name for name in CONDA_FILES if (folder / name).is_file()), None)
        env = None if conda is None else str(Kind.CONDA)
    files = packages_in(folder)
    if env == Kind.CONDA:
        data["env"] = env
        names = [name for name in CONDA_FILES if (folder / name).is_file()]
        if data.get("dependencies") is None and names:
            data["dependencies"] = naming(folder / names[0])
        locked = bool(names) and names[0] in packages.CONDA_LOCK
        files = [name for name in files if name == REQUIREMENTS and not locked]
    elif env not in (None, Kind.VENV, Kind.DOCKER):
        return
    if data.get("requirements") is None and files:
        data["requirements"] = naming(folder / files[0])


def packages_in(folder: Path) -> list[str]:
    """Return the names of the files of a folder that list packages of the index, the one that counts first."""
    return [name for name in PACKAGE_FILES if _lists_packages(folder / name)]


def _lists_packages(file: Path) -> bool:
    return file.is_file() and (file.name != packages.PROJECT or packages.has_project(file.read_bytes()))


def passed_over(folder: Path | None, used: Mapping[str, str]) -> list[str]:
    """Return the names of the files in the folder of a module that list packages, and do not count."""
    if folder is None or not used or not folder.is_dir():
        return []
    there = [*packages_in(folder), *(name for name in CONDA_FILES if (folder / name).is_file())]
    return [name for name in there if name not in used]


def _kind(data: Mapping[str, Any]) -> Kind:
    if data.get("image"):
        return Kind.DOCKER
    if data.get("dependencies") or data.get("channels"):
        return Kind.CONDA
    return Kind.VENV if data.get("requirements") else Kind.INLINE
