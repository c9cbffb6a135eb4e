"""The running interpreter as relocatable files, for the test image and the test channel."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

VERSION = "{}.{}".format(*sys.version_info)
_LEFT_OUT = {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "site-packages", "__pycache__", "pydoc_data"}
_LEFT_OUT_FILES = (".a", ".pyc")


def program() -> Path:
    """Return the file of the interpreter itself, out of any virtual environment."""
    return Path(os.path.realpath(sys._base_executable))


def stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))


def library() -> Path | None:
    """Return the libpython that came with the interpreter, if it is linked to one."""
    for path in libraries(program()):
        if "libpython" in path and not path.startswith(("/lib", "/usr/lib")):
            return Path(path)
    return None


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the files of the standard library that handlers need, by their names below `lib/pythonX.Y`."""
    root = stdlib()
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _LEFT_OUT and not name.startswith("config-"))
        for name in sorted(files):
            path = Path(folder) / name
            if path.suffix not in _LEFT_OUT_FILES and name != "EXTERNALLY-MANAGED" and path.is_file():
                yield path.relative_to(root).as_posix(), path


def compiled() -> Iterator[tuple[str, bytes]]:
    """Yield the compiled files beside those of `modules`. Python uses them without looking at the time of the source.

    Without them each interpreter with a read-only root compiles everything that it imports.
    """
    for name, path in modules():
        cached = Path(importlib.util.cache_from_source(path))
        if path.suffix == ".py" and cached.is_file():
            data = cached.read_bytes()
            yield str(Path(name).parent / "__pycache__" / cached.name), data[:4] + b"\1\0\0\0" + bytes(8) + data[16:]


def pip() -> Iterator[tuple[str, bytes]]:
    """Yield the files of the pip that comes with Python, below `site-packages`."""
    (wheel,) = (stdlib() / "ensurepip" / "_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            yield name, file.read(name)


def libraries(path: str | Path) -> set[str]:
    """Return the shared libraries that a program loads, the loader itself included."""
    told = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    words = [word for line in told.splitlines() for word in line.split() if word.startswith("/")]
    return {word for word in words if Path(word).is_file()}


def relocated(data: bytes) -> bytes:
    """Return a program that searches libpython beside itself instead of in one fixed directory."""
    wanted = b"$ORIGIN/../lib\0"
    for folder in {sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib"}:
        old = folder.encode() + b"\0"
        if len(old) >= len(wanted):
            data = data.replace(old, wanted.ljust(len(old), b"\0"))
    return data
