"""A container engine for the tests: whether one answers, and a base image made of the running interpreter."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

from config.load import installer_environment
from config.settings import DockerSettings
from environments.engine import Address

IMAGE = "operato-test-python"
TOOLS = ("sh", "echo", "true", "yes", "sleep", "setsid")
_LEFT_OUT = {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "site-packages", "__pycache__", "pydoc_data"}
_LEFT_OUT_FILES = (".a", ".pyc")


@contextmanager
def client() -> Iterator[Any]:
    """Lend an SDK client of the engine that the runner would use."""
    address = Address.read(None, installer_environment())
    with docker.APIClient(address.base_url, "auto", timeout=60) as api:
        yield api


def missing() -> str:
    """Return why no engine can be used, or nothing."""
    try:
        with client() as api:
            api.ping()
    except Exception as problem:  # noqa: BLE001  (whatever it is, it is the reason)
        return f"no container engine answers: {problem}"
    return ""


def settings(**fields: Any) -> DockerSettings:
    """Return the settings of the tests: the base image that was made here."""
    return DockerSettings(**{"base_image": f"{IMAGE}:base", "build_network": "host", **fields})


def make_base_image() -> str:
    """Import the running interpreter, its libraries and a few programs as an image; return its name."""
    with client() as api:
        api.import_image_from_data(_image().getvalue(), repository=IMAGE, tag="base")
    return f"{IMAGE}:base"


def remove_images() -> list[str]:
    """Remove the images of the tests; return those that modules of the tests had built."""
    with client() as api:
        built = []
        for image in api.images():
            tags = image.get("RepoTags") or []
            mine = [tag for tag in tags if tag.startswith((f"{IMAGE}:", "operato-runner:"))]
            built += [tag for tag in mine if tag.startswith("operato-runner:")]
            for tag in mine:
                api.remove_image(tag, force=True)
        return built


def containers(instance: str) -> list[str]:
    """Return the names of the containers of one data directory, stopped ones included."""
    with client() as api:
        found = api.containers(all=True, filters={"label": f"operato.instance={instance}"})
        return [container["Names"][0].lstrip("/") for container in found]


def touch(instance: str, path: str) -> None:
    """Make a file in every container of one data directory."""
    with client() as api:
        for name in containers(instance):
            command = ["sh", "-c", f"echo > {path}"]
            api.exec_start(api.exec_create(name, command, user="65534:65534")["Id"], detach=True)


def _image() -> io.BytesIO:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, mode in (("tmp", 0o1777), ("usr/local/bin", 0o755), ("etc", 0o755), ("dev", 0o755), ("proc", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        users = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
        _add(tar, "etc/passwd", users)
        libraries: set[str] = set()
        _add_python(tar, libraries)
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, f"{tool} is not here"
            _add(tar, f"bin/{tool}", Path(path).read_bytes(), 0o755)
            libraries |= _libraries(path)
        for library in sorted(libraries):
            # Where the loader looks without a configuration; one that came with the interpreter is moved there.
            at = library if library.startswith(("/lib", "/usr/lib")) else f"/usr/lib/{Path(library).name}"
            _add(tar, at.lstrip("/"), Path(library).read_bytes(), 0o755)
    return data


def _add_python(tar: tarfile.TarFile, libraries: set[str]) -> None:
    version = "{}.{}".format(*sys.version_info)
    program = os.path.realpath(sys._base_executable)
    _add(tar, f"usr/local/bin/python{version}", Path(program).read_bytes(), 0o755)
    for name in ("python3", "python"):
        link = tarfile.TarInfo(f"usr/local/bin/{name}")
        link.type, link.linkname = tarfile.SYMTYPE, f"python{version}"
        tar.addfile(link)
    libraries |= _libraries(program)
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    home = f"usr/local/lib/python{version}"
    for folder, names, files in os.walk(stdlib):
        names[:] = [name for name in names if name not in _LEFT_OUT and not name.startswith("config-")]
        for name in files:
            path = Path(folder) / name
            if path.suffix in _LEFT_OUT_FILES or name == "EXTERNALLY-MANAGED" or not path.is_file():
                continue
            _add(tar, f"{home}/{path.relative_to(stdlib).as_posix()}", path.read_bytes())
            if path.suffix == ".so":
                libraries |= _libraries(path)
    (wheel,) = (stdlib / "ensurepip" / "_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(wheel) as pip:
        for name in pip.namelist():
            _add(tar, f"{home}/site-packages/{name}", pip.read(name))


def _libraries(program: str | Path) -> set[str]:
    """Return the shared libraries that a program loads, the loader itself included."""
    told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    words = [word for line in told.splitlines() for word in line.split() if word.startswith("/")]
    return {word for word in words if Path(word).is_file()}


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))
