"""Contract: what a lock lists is installed and nothing else; a stale one is refused with the command that renews it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from config.code.archive import pack
from config.modules import read_modules
from config.packages import subdir
from environments.docker.images import Wanted, installs_of
from environments.installer import find_uv
from protocol.errors import ErrorKind
from protocol.model import Kind
from tests.contract.test_streams import open_site
from tests.support import Watch, open_rig

CODE = "import tinyv\ndef handler(input): return tinyv.V"
CONDA = "import greet\ndef handler(input): return greet.__file__ is not None"
PROJECT = '[project]\nname = "m"\nversion = "1"\nrequires-python = ">=3.8"\ndependencies = ["tinyv<2"]\n'
ELSEWHERE = "https://packages.invalid/simple"
NAMES = ["tinyv", "tinyw"]


def wheel(folder: Path, name: str, version: str) -> str:
    """Write a wheel that requires `never`, which is nowhere; return the link to it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "Requires-Dist: never\n" if name == "tinyw" else ""
    content = {
        f"{name}.py": f"V = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as file:
        for each, data in content.items():
            file.writestr(zipfile.ZipInfo(each), data)
    return f'<a href="{path.name}#sha256={digest_of(path)}">{path.name}</a>'


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return a package index on this machine, with two versions of a package; installers know no other."""
    root = tmp_path / "index"
    for name in NAMES:
        (root / name).mkdir(parents=True)
        links = [wheel(root / name, name, version) for version in ("1.0", "2.0")]
        (root / name / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
    monkeypatch.setenv("UV_DEFAULT_INDEX", str(root))
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return root


@pytest.fixture
async def rig(tmp_path):
    async with open_rig(tmp_path / "rig") as rig:
        yield rig


def locked(folder: Path, index: Path, project: str = PROJECT) -> Path:
    """Write a folder module with a project and the lock that uv makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(CODE)
    (folder / "pyproject.toml").write_text(project)
    uv = [find_uv() or "uv", "lock", "-q", "--directory", str(folder), "--default-index", str(index), "--no-config"]
    subprocess.run([*uv, "--python", sys.executable], check=True, capture_output=True)
    return folder


def specs_of(folder: Path, modules: str):
    (folder / "modules.yaml").write_text(f"modules:\n{modules}")
    file, mistakes = read_modules(folder / "modules.yaml")
    assert mistakes == ()
    return file.modules


async def run(rig, spec):
    """Return the outcome of a module of the modules file."""
    snapshot = await rig.registry.publish([spec])
    return await rig.call(snapshot.get(spec.name))


async def test_the_version_in_the_lock_of_uv_is_installed(rig, index, tmp_path):
    locked(tmp_path / "job", index)
    (spec,) = specs_of(tmp_path, "  m: {path: job}\n")
    assert (await run(rig, spec)).value == "1.0"
    first = await rig.venv_environment.known(spec)

    locked(tmp_path / "job", index, PROJECT.replace("tinyv<2", "tinyv>=2"))
    (other,) = specs_of(tmp_path, "  m: {path: job}\n")
    assert (await run(rig, other)).value == "2.0"
    assert (await rig.venv_environment.known(other)).key != first.key, "the lock is part of the key"
    assert (await rig.venv_environment.known(spec)).key == first.key
    assert rig.venv_environment.store.builds == 2


@pytest.mark.parametrize("kind", [Kind.VENV, Kind.CONDA])
async def test_a_stale_lock_is_refused_with_the_command_that_renews_it(rig, index, tmp_path, kind, request):
    folder = locked(tmp_path / "job", index)
    (folder / "pyproject.toml").write_text(PROJECT.replace("tinyv<2", "tinyv>=2"))
    more = ""
    if kind is Kind.CONDA:
        more = f", channels: [{request.getfixturevalue('channel')}], requirements: job/uv.lock"
        await rig._start(Kind.CONDA)
    (spec,) = specs_of(tmp_path, f"  m: {{path: job, env: {kind}{more}}}\n")
    failure = (await run(rig, spec)).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "run `uv lock`" in failure.message
    assert failure.field == "requirements"
    assert rig.executors[kind].environment.store.builds == 0


async def test_only_what_the_lock_lists_is_installed(rig, index, tmp_path):
    """Its packages are not asked what else they require."""
    digest = digest_of(index / "tinyw" / "tinyw-1.0-py3-none-any.whl")
    lines = (f"tinyw==1.0 --hash=sha256:{digest}",)
    code = "import tinyw\ndef handler(input): return tinyw.V"

    assert (await rig.run(code, env=Kind.VENV, requirements=lines)).value == "1.0"


async def test_a_file_with_another_hash_is_refused(rig, index):
    lines = (f"tinyv==1.0 --hash=sha256:{'0' * 64}",)
    failure = (await rig.run(CODE, env=Kind.VENV, requirements=lines)).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "hash" in failure.message.lower()


async def test_some_hashes_are_no_lock(rig, index):
    lines = (f"tinyv==1.0 --hash=sha256:{'0' * 64}", "tinyw==1.0")
    failure = (await rig.run(CODE, env=Kind.VENV, requirements=lines)).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "requirements")
    assert failure.message.startswith("`tinyw==1.0` has no --hash, and other lines have one; ")


async def test_a_pylock_is_installed(rig, index, tmp_path):
    folder = locked(tmp_path / "job", index)
    uv = [find_uv() or "uv", "export", "-q", "--frozen", "--directory", str(folder), "--format", "pylock.toml"]
    subprocess.run([*uv, "--no-emit-project", "-o", "pylock.toml"], check=True, capture_output=True)
    (folder / "uv.lock").unlink()
    (spec,) = specs_of(tmp_path, "  m: {path: job}\n")

    assert list(spec.packages_from) == ["pylock.toml"]
    assert (await run(rig, spec)).value == "1.0"


async def test_a_stale_lock_is_refused_before_it_is_registered(index, tmp_path):
    folder = locked(tmp_path / "job", index)
    lock = (folder / "uv.lock").read_text().replace(str(index), ELSEWHERE).replace("path =", "url =")
    project = PROJECT.replace("tinyv<2", "tinyv>=2")
    files = {"main.py": CODE.encode(), "pyproject.toml": project.encode(), "uv.lock": lock.encode()}
    async with open_site(tmp_path / "site", ()) as site:
        zipped = {"Content_Type": "application/zip"}
        status, _, answer = await site.ask("POST", "/modules/upload?name=m", pack(files), **zipped)
        problem = json.loads(answer)
        assert (problem["kind"], problem["field"]) == ("environment_failed", "requirements"), status
        assert "run `uv lock`" in problem["detail"]
        assert (await site.ask("GET", "/modules/m"))[0] == 404

        files["pyproject.toml"] = PROJECT.encode()
        status, _, answer = await site.ask("POST", "/modules/upload?name=m", pack(files), **zipped)
        assert status == 201, answer
        shown = await site.json("GET", "/modules/m")
        assert (shown["env"], shown["packages_from"]) == ("venv", ["pyproject.toml", "uv.lock"])
        status, _, answer = await site.ask("PATCH", "/modules/m", {"requirements": []})
        assert (await site.json("GET", "/modules/m"))["packages_from"] == []


async def test_a_block_is_read_from_every_door_of_rest(index, tmp_path):
    code = '# /// script\n# dependencies = ["tinyv<2"]\n# [tool.operato]\n# tags = ["block"]\n# ///\n' + CODE
    async with open_site(tmp_path / "site", ()) as site:
        assert (await site.ask("PUT", "/modules/a", {"code": code}))[0] == 201
        zipped = {"Content_Type": "application/zip"}
        assert (await site.ask("POST", "/modules/upload?name=b", pack({"b.py": code.encode()}), **zipped))[0] == 201
        for name in ("a", "b"):
            shown = await site.json("GET", f"/modules/{name}")
            assert (shown["env"], shown["requirements"], shown["tags"]) == ("venv", ["tinyv<2"], ["block"])
            assert shown["packages_from"] == [f"{name}.py"]
        assert (await site.json("POST", "/modules/execute/a"))["result"] == "1.0"


# -- conda -----------------------------------------------------------------------------------------------------------


def conda_lock(channel: str, packages: list[str]) -> str:
    """Return a `conda-lock.yml` of packages given as `URL#DIGEST`."""
    listed = []
    for line in packages:
        url, _, digest = line.rpartition("#")
        name, version, _ = url.rpartition("/")[2].rsplit("-", 2)
        listed.append({"name": name, "version": version, "manager": "conda", "platform": subdir(), "url": url})
        listed[-1] |= {"hash": {"sha256": digest}, "category": "main", "optional": False, "dependencies": {}}
    metadata = {"content_hash": {}, "channels": [{"url": channel}], "platforms": [subdir()], "sources": []}
    return yaml.safe_dump({"version": 1, "metadata": metadata, "package": listed})


async def test_a_conda_lock_is_installed_and_compared_with_its_environment(rig, channel, tmp_path):
    await rig._start(Kind.CONDA)
    how = {"env": Kind.CONDA, "dependencies": ("greet=1.0",), "channels": (channel,)}
    module = await rig.publish(CONDA, **how)
    environment = rig.executors[Kind.CONDA].environment
    solved = await environment._plan(module.spec, Watch())

    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "main.py").write_text(CONDA)
    (folder / "conda-lock.yml").write_text(conda_lock(channel, list(solved.locked.lines)))
    (folder / "environment.yml").write_text("dependencies: [python >=3.8, greet=1.0]\n")
    (spec,) = specs_of(tmp_path, "  m: {path: job}\n")
    assert (await run(rig, spec)).value is True
    assert (await environment.known(spec)).key == solved.key, "the same packages are the same environment"

    (folder / "environment.yml").write_text("dependencies: [python >=3.8, greet=2.0]\n")
    (stale,) = specs_of(tmp_path, "  m: {path: job}\n")
    failure = (await run(rig, stale)).failure
    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "it has no greet=2.0; run `conda-lock lock -f environment.yml`" in failure.message


# -- docker ----------------------------------------------------------------------------------------------------------


def test_a_container_installs_a_lock_without_asking_what_else_is_required():
    """Commits have no hash, so pip gets them in a call of their own."""
    commit = f"ours @ git+https://x.org/ours@{'c' * 40}"
    hashed = f"tinyv==1.0 --hash=sha256:{'0' * 64}"
    files, installs = installs_of(Wanted("image", (hashed, commit), ("other<3",)))
    assert files == {"requirements.txt": [hashed], "commits.txt": [commit]}
    assert installs == [["--no-deps", "-r", "requirements.txt"], ["--no-deps", "-r", "commits.txt"]]

    files, installs = installs_of(Wanted("image", ("tinyv",), ("other<3",)))
    assert files == {"requirements.txt": ("tinyv",), "constraints.txt": ("other<3",)}
    assert installs == [["-r", "requirements.txt", "-c", "constraints.txt"]]
