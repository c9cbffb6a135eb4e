"""The package of `operato-client` within one test: workers within this process have an `operato` of their own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

CLIENT = Path(__file__).parents[1] / "packaging" / "client"


@contextmanager
def imported() -> Iterator[ModuleType]:
    """Import the package, and forget it at the end."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "operato"}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(CLIENT))
    try:
        package = importlib.import_module("operato")
        importlib.import_module("operato.connection")
        yield package
    finally:
        sys.path.remove(str(CLIENT))
        for name in [name for name in sys.modules if name.partition(".")[0] == "operato"]:
            del sys.modules[name]
        sys.modules.update(before)


def checked(file: Path, cache: Path, python: str = "3.11") -> str:
    """Return what mypy in strict mode has to say about a file that uses the package."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", str(file)]
    # The libraries below the package take most of the time, and their types are not its own. `make lint` has all.
    command += ["--no-site-packages", "--follow-imports=silent"]
    return subprocess.run(
        [*command, f"--python-version={python}"],
        env={"MYPYPATH": str(CLIENT), "PATH": ""},
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
