"""A container engine for the tests: its availability, and a base image made of the running interpreter."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

from config.load import installer_environment
from config.settings import DockerSettings
from environments import proc
from environments.docker.engine import Address
from tests import interpreter
from tests.interpreter import VERSION, program

IMAGE = f"operato-test-python-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
"""Each process that runs tests has images of its own."""
_WHEELS_LOAD = ("libc", "libdl", "libgcc_s", "libm", "libpthread", "libresolv", "librt", "libstdc++", "libutil", "libz")
"""Libraries that wheels may expect, and that every image with Python has."""
TOOLS = ("sh", "echo", "true", "yes", "sleep", "setsid")


@contextmanager
def client() -> Iterator[Any]:
    """Lend an SDK client of the engine that the runner would use."""
    address = Address.read(None, installer_environment())
    address.knock()
    with docker.APIClient(address.base_url, "auto", timeout=60) as api:
        yield api


def missing() -> str:
    """Return why no engine can be used, or nothing."""
    try:
        with client() as api:
            api.ping()
    except Exception as problem:  # noqa: BLE001  (any exception is the reason)
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


def make_base_image_for_wheels() -> str:
    """Import the same image with the libraries that compiled wheels are linked to; return its name."""
    folders = {Path(library).parent for library in interpreter.libraries(program())}
    found = {str(path) for folder in folders for name in _WHEELS_LOAD for path in folder.glob(f"{name}.so.[0-9]")}
    with client() as api:
        api.import_image_from_data(_image(found).getvalue(), repository=IMAGE, tag="wheels")
    return f"{IMAGE}:wheels"


def remove_images() -> list[str]:
    """Remove the images of this process; return those that modules of its tests had built on them."""
    with client() as api:
        found = [(image["ParentId"], image["Id"], tag) for image in api.images() for tag in image["RepoTags"] or []]
        mine = [(identity, tag) for _, identity, tag in found if tag.startswith(f"{IMAGE}:")]
        built = [tag for parent, _, tag in found if tag.startswith("operato-runner:") and parent in dict(mine)]
        for tag in (*built, *(tag for _, tag in mine)):
            api.remove_image(tag, force=True)
        return built


def containers(instance: str) -> list[str]:
    """Return the names of the containers of one data directory, stopped ones included."""
    with client() as api:
        found = api.containers(all=True, filters={"label": f"operato.instance={instance}"})
        return [container["Names"][0].lstrip("/") for container in found]


def gone(container: str, pid: int) -> bool:
    """Return whether a process, by its number in a container, is no more. The engine is on this machine."""
    with client() as api:
        try:
            first = int(api.inspect_container(container)["State"]["Pid"])
        except docker.errors.NotFound:
            return True
    for process in proc.descendants(first) if first else ():
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        inside = next((line.split()[-1] for line in lines if line.startswith("NSpid:")), "")
        if inside == str(pid) and proc.alive(process):
            return False
    return True


def touch(instance: str, path: str) -> None:
    """Make a file in every container of one data directory."""
    with client() as api:
        for name in containers(instance):
            command = ["sh", "-c", f"echo > {path}"]
            api.exec_start(api.exec_create(name, command, user="65534:65534")["Id"], detach=True)


def _image(more: Iterable[str] = ()) -> io.BytesIO:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, mode in (("tmp", 0o1777), ("usr/local/bin", 0o755), ("etc", 0o755), ("dev", 0o755), ("proc", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        users = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
        _add(tar, "etc/passwd", users)
        libraries = set(more)
        _add_python(tar, libraries)
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, f"{tool} is not here"
            _add(tar, f"bin/{tool}", Path(path).read_bytes(), 0o755)
            libraries |= interpreter.libraries(path)
        for library in sorted(libraries):
            # Where the loader looks without a configuration; one that came with the interpreter is moved there.
            at = library if library.startswith(("/lib", "/usr/lib")) else f"/usr/lib/{Path(library).name}"
            _add(tar, at.lstrip("/"), Path(library).read_bytes(), 0o755)
    return data


def _add_python(tar: tarfile.TarFile, libraries: set[str]) -> None:
    _add(tar, f"usr/local/bin/python{VERSION}", program().read_bytes(), 0o755)
    for name in ("python3", "python"):
        link = tarfile.TarInfo(f"usr/local/bin/{name}")
        link.type, link.linkname = tarfile.SYMTYPE, f"python{VERSION}"
        tar.addfile(link)
    libraries |= interpreter.libraries(program())
    for name, path in interpreter.modules():
        _add(tar, f"usr/local/lib/python{VERSION}/{name}", path.read_bytes())
        if path.suffix == ".so":
            libraries |= interpreter.libraries(path)
    for name, data in interpreter.compiled():
        _add(tar, f"usr/local/lib/python{VERSION}/{name}", data)
    for name, data in interpreter.pip():
        _add(tar, f"usr/local/lib/python{VERSION}/site-packages/{name}", data)


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))
