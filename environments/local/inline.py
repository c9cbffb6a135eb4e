"""The `inline` kind: workers of the runner's own interpreter with only its standard library. Also starts guests."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path

import structlog
from attrs import define, field

from config.modules import ModuleSpec
from environments.base import Availability, BuildWatch, Guest, Prepared
from environments.local.process import ProcessTable
from protocol.model import Kind

GUEST_FILES = {
    **{name: name for name in ("guest.py", "many.py", "parts.py", "sharing.py", "values.py")},
    **{name: f"authors/{name}" for name in ("calling.py", "readers.py", "typed.py")},
    "library/operato.py": "authors/operato.py",
}
"""The files of the guest program, and their places in `protocol`. Only user code imports what is in `library`."""

log = structlog.get_logger("launcher")


@define
class Launcher:
    """Starts the guest program under any interpreter. User code inherits only `environ`."""

    table: ProcessTable
    guest_dir: Path
    environ: Mapping[str, str]
    _marks: list[tuple[int, int, int] | None] = field(factory=list, init=False)
    """Size, time of change and number of each file of the guest program, as they were when its content was right."""

    @classmethod
    def install(cls, table: ProcessTable, data_dir: Path, environ: Mapping[str, str]) -> Launcher:
        """Copy the guest program to the data directory, by content, so that interpreters can cache its bytecode."""
        sources = _guest_sources()
        content = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]
        launcher = cls(table, data_dir.absolute() / "guest" / content, environ)
        launcher._write(sources)
        return launcher

    def _write(self, sources: Mapping[str, bytes]) -> None:
        """Have the guest program as `sources`, all of its files or none. Raises OSError."""
        if not self._holds(sources):
            if self.guest_dir.exists():
                log.warning("the worker program is damaged; it is written again", path=str(self.guest_dir))
                shutil.rmtree(self.guest_dir, ignore_errors=True)  # with the bytecode of another content
            self.guest_dir.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.guest_dir.parent) as folder:
                whole = Path(folder) / "whole"
                whole.mkdir()
                for name, data in sources.items():
                    (whole / name).parent.mkdir(exist_ok=True)
                    with (whole / name).open("wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                try:
                    whole.rename(self.guest_dir)
                except OSError:  # another runner has written it meanwhile
                    if not self._holds(sources):
                        raise
        self._marks = self._found()

    def _holds(self, sources: Mapping[str, bytes]) -> bool:
        try:
            return all((self.guest_dir / name).read_bytes() == data for name, data in sources.items())
        except OSError:
            return False

    def _found(self) -> list[tuple[int, int, int] | None]:
        return [_mark_of(self.guest_dir / name) for name in GUEST_FILES]

    def mend(self) -> None:
        """Have the guest program right, and its bytecode made again: a worker did not start. Raises OSError."""
        for cache in self.guest_dir.rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
        self._write(_guest_sources())

    def argv(self, python: str, *flags: str) -> tuple[str, ...]:
        """Return the command that starts a guest, without the descriptors.

        `-I` ignores PYTHON* variables and the working directory.
        """
        boot = f"import sys;sys.path.insert(0,{str(self.guest_dir)!r});import guest;del sys.path[0];guest.main()"
        return (python, "-I", *flags, "-X", "utf8", "-c", boot)

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest. Raises OSError."""
        if self._found() != self._marks:
            self._write(_guest_sources())
        return self.table.spawn(prepared.argv, prepared.environ)


def _guest_sources() -> dict[str, bytes]:
    return {name: files("protocol").joinpath(place).read_bytes() for name, place in GUEST_FILES.items()}


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


@define
class InlineEnvironment:
    """The runner's own interpreter, without site-packages, so that modules do not depend on how it was installed."""

    launcher: Launcher
    kind: Kind = field(default=Kind.INLINE, init=False)

    async def probe(self) -> Availability:
        """Return that it is available: it runs this code."""
        return Availability(available=True, detail={"python": sys.version.split()[0], "executable": sys.executable})

    async def prepare(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:  # noqa: ARG002
        """Return the only environment of this kind, which is never built."""
        return Prepared("inline", self.launcher.argv(sys.executable, "-S"), self.launcher.environ)

    async def lock(self, spec: ModuleSpec, say: BuildWatch) -> None:
        """Do nothing: inline modules have no requirements."""

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest that waits for its `hello`."""
        return self.launcher.launch(prepared)

    async def mend(self, prepared: Prepared) -> bool:  # noqa: ARG002
        """Have the guest program right; the interpreter is the runner's own."""
        self.launcher.mend()
        return False

    def keep(self, keys: Collection[str]) -> None:
        """Do nothing: nothing is built or removed."""
