"""The guest program as its interpreter imports it: by plain names, out of its own folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import protocol
from environments.local.inline import GUEST_FILES

FOLDER = Path(protocol.__file__).parent
"""The folder of the files of the guest program."""
FILES = tuple(GUEST_FILES)
"""The files of the guest program, where a worker finds them."""

sys.path.insert(0, str(FOLDER))
try:
    import guest
    import parts
    import values

    many = guest.more("sharing", "many", package="protocol.")
finally:
    sys.path.remove(str(FOLDER))
    for name in ("guest", "parts", "values"):
        sys.modules.pop(name, None)


def install(folder: Path) -> None:
    """Copy the guest program to a folder, as the host does."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source(name), folder / name)


def source(name: str) -> Path:
    """Return the source of a file of the guest program."""
    return FOLDER / GUEST_FILES.get(name, name)


__all__ = ["FILES", "FOLDER", "guest", "install", "many", "parts", "source", "values"]
