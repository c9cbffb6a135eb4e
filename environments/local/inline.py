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

log = structlog.get_logger("launcher")


@define
class Launcher:
    """Starts the guest program under any interpreter. User code inherits only `environ`."""

    table: ProcessTable
    guest_dir: Path
    environ: Mapping[str, str]
    _mark: tuple[int, int, int] | None = field(default=None, init=False)
    """Size, time of change and number of the guest program's file, as it was when its content was right."""

    @classmethod
    def install(cls, table: ProcessTable, data_dir: Path, environ: Mapping[str, str]) -> Launcher:
        """Copy the guest program to the data directory, by content, so that interpreters can cache its bytecode."""
        source = _guest_source()
        launcher = cls(table, data_dir.absolute() / "guest" / hashlib.sha256(source).hexdigest()[:16], environ)
        launcher._write(source)
        return launcher

    def _write(self, source: bytes) -> None:
        """Have the guest program as `source`. Raises OSError."""
        target = self.guest_dir / "guest.py"
        try:
            right = target.read_bytes() == source
        except OSError:
            right = False
        if not right:
            if self.guest_dir.exists():
                log.warning("the worker program is damaged; it is written again", path=str(target))
                shutil.rmtree(self.guest_dir, ignore_errors=True)  # with the bytecode of another content
            self.guest_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.guest_dir, delete=False) as file:
                file.write(source)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, target)  # noqa: PTH105  (the name is a str)
        self._mark = _mark_of(target)

    def mend(self) -> None:
        """Have the guest program right, and its bytecode made again: a worker did not start. Raises OSError."""
        shutil.rmtree(self.guest_dir / "__pycache__", ignore_errors=True)
        self._write(_guest_source())

    def argv(self, python: str, *flags: str) -> tuple[str, ...]:
        """Return the command that starts a guest, without the descriptors.

        `-I` ignores PYTHON* variables and the working directory.
        """
        boot = f"import sys;sys.path.insert(0,{str(self.guest_dir)!r});import guest;del sys.path[0];guest.main()"
        return (python, "-I", *flags, "-X", "utf8", "-c", boot)

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest. Raises OSError."""
        if _mark_of(self.guest_dir / "guest.py") != self._mark:
            self._write(_guest_source())
        return self.table.spawn(prepared.argv, prepared.environ)


def _guest_source() -> bytes:
    return files("protocol").joinpath("guest.py").read_bytes()


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
