"""The `inline` kind: workers of the runner's own interpreter with only its standard library. Also starts guests."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path

from attrs import define, field

from config.modules import ModuleSpec
from environments.base import Availability, BuildWatch, Guest, Prepared
from environments.local.process import ProcessTable
from protocol.model import Kind


@define
class Launcher:
    """Starts the guest program under any interpreter. User code inherits only `environ`."""

    table: ProcessTable
    guest_dir: Path
    environ: Mapping[str, str]

    @classmethod
    def install(cls, table: ProcessTable, data_dir: Path, environ: Mapping[str, str]) -> Launcher:
        """Copy the guest program to the data directory, by content, so that interpreters can cache its bytecode."""
        source = files("protocol").joinpath("guest.py").read_bytes()
        folder = data_dir.absolute() / "guest" / hashlib.sha256(source).hexdigest()[:16]
        target = folder / "guest.py"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(source)
            os.replace(file.name, target)  # noqa: PTH105  (the name is a str)
        return cls(table, folder, environ)

    def argv(self, python: str, *flags: str) -> tuple[str, ...]:
        """Return the command that starts a guest, without the descriptors.

        `-I` ignores PYTHON* variables and the working directory.
        """
        boot = f"import sys;sys.path.insert(0,{str(self.guest_dir)!r});import guest;del sys.path[0];guest.main()"
        return (python, "-I", *flags, "-X", "utf8", "-c", boot)

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest."""
        return self.table.spawn(prepared.argv, prepared.environ)


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

    def keep(self, keys: Collection[str]) -> None:
        """Do nothing: nothing is built or removed."""
