"""Makes the release: wheel and sdist of runner and client, two one-file executables, and their checksums.

    python packaging/make_dist.py [--out dist] [--wheels build/wheels]

Every checkout of a commit gives the same bytes: times are the commit's, entries are sorted, modes are those of umask
022. (Compressed bytes also depend on the zlib of the Python that runs this.)

Both executables contain the locked packages for each supported Python, for the machine's architecture.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "packaging" / "client"
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
MACHINE = platform.machine()
_GLIBC = [f"manylinux_2_{minor}_{MACHINE}" for minor in range(28, 4, -1)]
PLATFORMS = [*_GLIBC, *(f"{name}_{MACHINE}" for name in ("manylinux2014", "manylinux2010", "manylinux1"))]
"""Platform tags of systems with glibc 2.28 or later."""
SHEBANG = "/usr/bin/env python3"
ENTRY = "runner.cli:main"
NOT_FETCHED = 75
"""Exit code when the locked packages cannot be downloaded: try again with a network."""
PEX_PIP = ROOT / "packaging" / "pip.lock"
"""The pip for pex: its own is too old to build for Python 3.12, and it would download another one."""


def main() -> None:
    """Make everything."""
    parser = argparse.ArgumentParser(description="Make wheel, sdist, executables and checksums.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="output folder  [dist]")
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / "build" / "wheels", help="downloaded wheels  [build/wheels]"
    )
    given = parser.parse_args()
    os.umask(0o022)
    os.environ["SOURCE_DATE_EPOCH"] = _epoch()
    out, wheels = given.out.absolute(), given.wheels.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("operato[_-]runner[-.]*"), *out.glob("operato_client-*"), *out.glob("SHA256SUMS")):
        old.unlink()
    build = [sys.executable, "-m", "hatchling", "build", "-d", out]
    run(build)
    run(build, folder=CLIENT)
    (wheel,) = out.glob("operato_runner-*.whl")
    with tempfile.TemporaryDirectory(prefix="operato-dist-") as name:
        work = Path(name)
        locks = [locked(python, work) for python in PYTHONS]
        fetch(locks, wheels)
        with ThreadPoolExecutor() as pool:  # both mostly wait for child processes
            shiv = pool.submit(make_shiv, wheel, locks, wheels, work, out / "operato-runner.pyz")
            pex = pool.submit(make_pex, wheel, wheels, work, out / "operato-runner.pex")
        shiv.result()
        pex.result()
    names = ("operato-runner.", "operato_runner-", "operato_client-")
    made = sorted(path for path in out.iterdir() if path.name.startswith(names))
    (out / "SHA256SUMS").write_text("".join(f"{sha256(path)}  {path.name}\n" for path in made))


def run(argv: Sequence[object], *, exit_code: int = 1, folder: Path = ROOT) -> None:
    """Run a tool; when it fails, print its output and exit with `exit_code`."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        text = f"error: `{' '.join(words[1:5])} ...` ended with exit code {done.returncode}"
        sys.stderr.write(f"{done.stdout}\n{text}\n")
        sys.exit(exit_code)


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def release(wheel: Path) -> str:
    """Return the version in a wheel's name."""
    return wheel.name.split("-")[1]


def _epoch() -> str:
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return given
    try:
        return subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        sys.exit("error: git cannot tell the time of the commit here; set SOURCE_DATE_EPOCH")


# -- the locked packages ---------------------------------------------------------------------------------------------


def environment(python: tuple[int, int]) -> dict[str, str]:
    """Return the variables of environment markers."""
    version = "{}.{}".format(*python)
    marks = {name: str(value) for name, value in default_environment().items()}
    full = {"python_version": version, "python_full_version": f"{version}.0", "implementation_version": f"{version}.0"}
    return {**{k: v for k, v in marks.items() if k not in {"platform_release", "platform_version"}}, **full}


def entries() -> Iterator[tuple[str, str]]:
    """Yield each requirement of the lock, and its hashes."""
    for line in (ROOT / "requirements.txt").read_text().replace("\\\n", " ").splitlines():
        requirement, mark, hashes = line.partition(" --hash=")
        if requirement.strip():
            yield requirement.strip(), (mark + hashes).strip()


def locked(python: tuple[int, int], work: Path) -> Path:
    """Write the part of the lock for one Python, as pip and uv evaluate markers for their own."""
    path = work / "{}.{}.lock".format(*python)
    environ = environment(python)
    with path.open("w") as file:
        for text, hashes in entries():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate(environ):
                file.write(f"{wanted.name}{wanted.specifier} {hashes}\n")
    return path


def fetch(locks: Sequence[Path], wheels: Path) -> None:
    """Download exactly the locked packages to `wheels`, unless they are there."""
    wanted = "".join(sha256(path) + "\n" for path in (*locks, PEX_PIP)) + f"{MACHINE}\n"
    complete = wheels / "complete"
    if complete.exists() and complete.read_text() == wanted:
        return
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    for (major, minor), lock in zip(PYTHONS, locks, strict=True):
        tags = [f"--platform={name}" for name in PLATFORMS]
        tags += [f"--abi={name}" for name in (f"cp{major}{minor}", "abi3", "none")]
        tags += [f"--python-version={major}.{minor}", "--implementation=cp"]
        run([*pip, "-r", lock, "-d", wheels, *tags], exit_code=NOT_FETCHED)
    run([*pip, "-r", PEX_PIP, "-d", wheels], exit_code=NOT_FETCHED)
    complete.write_text(wanted)


# -- shiv ------------------------------------------------------------------------------------------------------------


def make_shiv(wheel: Path, locks: Sequence[Path], wheels: Path, work: Path, to: Path) -> None:
    """Make the zipapp: one site-packages with a folder for each interpreter; the preamble chooses."""
    trees = [install(wheel, python, lock, wheels, work) for python, lock in zip(PYTHONS, locks, strict=True)]
    site = work / "site-packages"
    gather(trees, site)
    raw = work / "raw.pyz"
    shiv = [sys.executable, "-m", "shiv.cli", "--site-packages", site, "-e", ENTRY, "--uncompressed", "-o", raw]
    run([*shiv, "--preamble", ROOT / "packaging" / "preamble.py", "-p", SHEBANG, "--reproducible"])
    rewrite(raw, to)


def install(wheel: Path, python: tuple[int, int], lock: Path, wheels: Path, work: Path) -> Path:
    """Install for one Python, which need not be installed here; return the folder."""
    version = "{}.{}".format(*python)
    tree = work / f"tree-{version}"
    uv = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-config", "--no-deps", "--target", tree]
    uv += ["--python-version", version, "--python-platform", f"{MACHINE}-manylinux_2_28", "--link-mode", "copy"]
    run([*uv, "--offline", "--no-index", "--find-links", wheels, "--no-build", "--require-hashes", "-r", lock])
    run([*uv, "--offline", "--no-index", wheel])
    return tree


def gather(trees: Sequence[Path], site: Path) -> None:
    """Merge the trees of all Pythons: equal distributions once, others in a folder of their interpreter.

    A distribution is moved as a whole, so that its metadata matches its files.
    """
    contents = [{found.name: files(found, tree) for found in distributions(path=[str(tree)])} for tree in trees]
    for (major, minor), tree, content in zip(PYTHONS, trees, contents, strict=True):
        for name, held in content.items():
            same = all(other.get(name) == held for other in contents)
            to = site if same else site / f"cpython-{major}{minor}-{MACHINE}-linux-gnu"
            for file in held:
                target = to / file
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(tree / file, target)


def files(found: Distribution, tree: Path) -> dict[str, str]:
    """Return the files of a distribution with their checksums, without scripts (except uv, which is a program).

    Files that describe the place of the installation are left out as well. RECORD is rewritten to match.
    """
    names = []
    for name in map(str, found.files or ()):
        private = name.endswith((".dist-info/direct_url.json", ".dist-info/uv_cache.json", ".dist-info/REQUESTED"))
        if not private and (not name.startswith("bin/") or found.name == "uv") and (tree / name).is_file():
            names.append(name)
    (record,) = (tree / name for name in names if name.endswith(".dist-info/RECORD"))
    with record.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0] in names]
    with record.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return {name: sha256(tree / name) for name in names}


def rewrite(raw: Path, to: Path) -> None:
    """Write a zipapp again with sorted entries, one time and plain modes; shiv takes some from the disk."""
    moment = time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))[:6]
    with zipfile.ZipFile(raw) as source, to.open("wb") as file:
        file.write(f"#!{SHEBANG}\n".encode())
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
            for old in sorted(source.infolist(), key=lambda info: info.filename):
                new = zipfile.ZipInfo(old.filename, moment)
                new.compress_type = zipfile.ZIP_DEFLATED
                program = (old.external_attr >> 16) & stat.S_IXUSR
                new.external_attr = (stat.S_IFREG | (0o755 if program else 0o644)) << 16
                target.writestr(new, source.read(old))
    to.chmod(0o755)


# -- pex -------------------------------------------------------------------------------------------------------------


def make_pex(wheel: Path, wheels: Path, work: Path, to: Path) -> None:
    """Make the pex: the wheels of all Pythons in one file, which creates its own virtual environment when run."""
    listing = work / "all.txt"
    lines = [f"{requirement} {hashes}\n" for requirement, hashes in entries()]
    listing.write_text("".join([*lines, f"operato-runner=={release(wheel)} --hash=sha256:{sha256(wheel)}\n"]))
    pip = next(text.split()[0] for text in PEX_PIP.read_text().splitlines() if text.startswith("pip=="))
    pex = [
        sys.executable,
        "-m",
        "pex",
        "-r",
        listing,
        "--no-pypi",
        "--find-links",
        wheels,
        "--find-links",
        wheel.parent,
    ]
    pex += ["--pip-version", pip.removeprefix("pip=="), "--no-build", "--pex-root", work / "pex-root"]
    for python in PYTHONS:
        pex += ["--complete-platform", complete_platform(python, work)]
    run([*pex, "--python-shebang", SHEBANG, "--venv", "prepend", "-e", ENTRY, "-o", to])


def complete_platform(python: tuple[int, int], work: Path) -> Path:
    """Describe an interpreter for pex, which need not be installed here."""
    cpython = f"cp{python[0]}{python[1]}"
    tags = [str(tag) for tag in cpython_tags(python, platforms=PLATFORMS)]
    tags += [str(tag) for tag in compatible_tags(python, cpython, PLATFORMS)]
    path = work / f"{cpython}.json"
    path.write_text(json.dumps({"marker_environment": environment(python), "compatible_tags": tags}))
    return path


if __name__ == "__main__":
    main()
