"""The line by which another terminal runs a command of this program for this server."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from config.client import DEFAULT_URL
from config.load import Loaded


def command_line(loaded: Loaded, url: str) -> str:
    """Return the program as it was started, after the variables by which its commands find this server.

    The line works in any folder: paths are absolute.
    """
    given = {"OPERATO_DATA_DIR": str(loaded.settings.store.data_dir)}
    if loaded.settings.config.exists():
        given = {"OPERATO_CONFIG": str(loaded.settings.config), **given}
    if url != DEFAULT_URL:
        given["OPERATO_URL"] = url
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in given.items()), _program()])


def _program() -> str:
    """Return the program: its name if PATH has it, else its path, after that of Python for a file of Python."""
    started = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).with_name("operato-runner")
    if started.name == "main.py" and os.access(beside, os.X_OK):  # made by `make run`
        return shlex.quote(str(beside))
    found = shutil.which(started.name)
    if found is not None and Path(found).absolute() == started:
        return shlex.quote(started.name)
    if started.suffix != ".py" and os.access(started, os.X_OK):
        return shlex.quote(str(started))
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(started))}"
