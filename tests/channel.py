"""A conda channel for the tests, made of the running interpreter and a few packages of a few lines: no network."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from environments.conda.conda import subdir
from tests import interpreter
from tests.interpreter import VERSION

PLACEHOLDER = "/opt/" + "placeholder_" * 20
"""What packages are built with; longer than any directory of the tests."""
_BLOCK = 1 << 17


@attrs.frozen
class File:
    """One file of a package; `link` instead of `data` is a symbolic one, `prefix` says that it holds PLACEHOLDER."""

    data: bytes = b""
    mode: int = 0o644
    link: str | None = None
    prefix: str | None = None


def make_channel(root: Path) -> str:
    """Write the channel; return its URL. It has python, greet 1.0 and 2.0, and act, which has to be activated."""
    native = subdir()
    tables: dict[str, dict[str, Any]] = {native: {}, "noarch": {}}

    def add(name: str, version: str, files: Mapping[str, File], where: str = native, **index: Any) -> None:
        (root / where).mkdir(parents=True, exist_ok=True)
        record = {"name": name, "version": version, "build": "0", "build_number": 0, "subdir": where, "depends": []}
        record |= {"timestamp": int(time.time() * 1000), "license": "MIT", **index}
        data = _package(f"{name}-{version}-0", record, files)
        (root / where / f"{name}-{version}-0.conda").write_bytes(data)
        sums = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
        tables[where][f"{name}-{version}-0.conda"] = record | sums

    full = "{}.{}.{}".format(*sys.version_info)
    site = f"lib/python{VERSION}/site-packages"
    add("python", full, _python(), python_site_packages_path=site)
    for version in ("1.0", "2.0"):
        code = f"__version__ = {version!r}\ndef hi(name): return f'hi {{name}} from {version}'\n".encode()
        meta = f"Metadata-Version: 2.1\nName: greet\nVersion: {version}\n".encode()
        info = f"site-packages/greet-{version}.dist-info"
        files = {"site-packages/greet.py": File(code), f"{info}/METADATA": File(meta), f"{info}/RECORD": File()}
        add("greet", version, files, "noarch", noarch="python", depends=["python >=3.8"])
    add("act", "1.0", _act())
    for where, records in tables.items():
        info = {"info": {"subdir": where}, "packages": {}, "packages.conda": records, "repodata_version": 1}
        (root / where / "repodata.json").write_text(json.dumps(info))
    return root.as_uri()


def _python() -> dict[str, File]:
    """Return the running interpreter as a package."""
    program = interpreter.relocated(interpreter.program().read_bytes())
    files = {f"bin/python{VERSION}": File(program, 0o755)}
    files |= {name: File(link=f"python{VERSION}") for name in ("bin/python3", "bin/python")}
    if (library := interpreter.library()) is not None:
        files[f"lib/{library.name}"] = File(library.read_bytes(), 0o755)
    for name, path in interpreter.modules():
        files[f"lib/python{VERSION}/{name}"] = File(path.read_bytes())
    # For an interpreter of a distribution that searches other places: add the usual one.
    here = "import site\nsite.addsitedir(__file__.rpartition('/')[0] + '/site-packages')\n"
    files[f"lib/python{VERSION}/sitecustomize.py"] = File(here.encode())
    files[f"lib/python{VERSION}/site-packages/README.txt"] = File(b"packages go here\n")
    return files


def _act() -> dict[str, File]:
    script = b'export ACT_HOME="$CONDA_PREFIX/share/act"\nexport ACT_LINES="one\ntwo"\necho noise\n'
    return {
        "etc/conda/activate.d/act.sh": File(script),
        "etc/conda/env_vars.d/act.json": File(b'{"ACT_VARIABLE": "from the package"}'),
        "share/act/prefix.txt": File(PLACEHOLDER.encode(), prefix="text"),
    }


def _package(name: str, record: Mapping[str, Any], files: Mapping[str, File]) -> bytes:
    """Return a `.conda` file: a zip of two archives."""
    paths = []
    for path, file in files.items():
        row = {"_path": path, "path_type": "hardlink" if file.link is None else "softlink"}
        row |= {"sha256": hashlib.sha256(file.data).hexdigest(), "size_in_bytes": len(file.data)}
        if file.prefix:
            row |= {"file_mode": file.prefix, "prefix_placeholder": PLACEHOLDER}
        paths.append(row)
    info = {
        "info/index.json": File(json.dumps(record).encode()),
        "info/paths.json": File(json.dumps({"paths": paths, "paths_version": 1}).encode()),
        "info/files": File("".join(f"{path}\n" for path in files).encode()),
    }
    if record.get("noarch") == "python":
        link = {"noarch": {"type": "python"}, "package_metadata_version": 1}
        info["info/link.json"] = File(json.dumps(link).encode())
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as package:
        package.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
        package.writestr(f"pkg-{name}.tar.zst", _stored(_tar(files)))
        package.writestr(f"info-{name}.tar.zst", _stored(_tar(info)))
    return data.getvalue()


def _tar(files: Mapping[str, File]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, file in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.mtime, info.size = file.mode, 1_700_000_000, len(file.data)
            if file.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, file.link
            tar.addfile(info, io.BytesIO(file.data))
    return data.getvalue()


def _stored(data: bytes) -> bytes:
    """Return a zstd frame of blocks that are stored as they are, which needs no library."""
    parts = [b"\x28\xb5\x2f\xfd", b"\x00\x38"]
    for at in range(0, len(data), _BLOCK):
        block = data[at : at + _BLOCK]
        last = at + _BLOCK >= len(data)
        parts += [(len(block) << 3 | last).to_bytes(3, "little"), block]
    return b"".join(parts)
