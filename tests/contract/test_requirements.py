"""Contract: requirements of every kind: git repositories become commits, constraints count, builds trust `build_ca`."""

from __future__ import annotations

import hashlib
import io
import json
import ssl
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from actors.system import Surroundings, open_environments
from config.load import base_environment, installer_environment, secret_values
from config.modules import ModuleSpec
from config.modules.policies import WorkersPolicy
from config.settings import Settings, StoreSettings
from environments.base import Managed
from environments.installer import only_wheels
from environments.locking import Projects
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Kind
from tests import engines
from tests.certificates import Authority
from tests.contract.test_environments import make_wheel
from tests.proxies import file_server
from tests.support import Watch, open_rig

CODE = "import tinyx\ndef handler(input): return tinyx.V"
BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "tinyx-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.write("tinyx.py")
        wheel.writestr("tinyx-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tinyx\\nVersion: 1.0\\n")
        wheel.writestr("tinyx-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tinyx-1.0.dist-info/RECORD", "")
    return name
"""
PKG_INFO = "Metadata-Version: 2.1\nName: tinyx\nVersion: 1.0\n"
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tinyx"
version = "1.0"
"""


class Repository:
    """A git repository with one package, which builds itself without an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "backend.py").write_text(BACKEND)
        self.git("init", "-q", "-b", "main")

    def commit(self, value: str) -> str:
        """Write the package with a value; return the commit."""
        (self.folder / "tinyx.py").write_text(f"V = {value!r}\n")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", value)
        return self.git("rev-parse", "HEAD").strip()

    @property
    def requirement(self) -> str:
        return f"tinyx @ git+file://{self.folder}@main"

    def git(self, *arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
async def rig(tmp_path):
    async with open_rig(tmp_path / "rig") as rig:
        yield rig


@pytest.mark.parametrize("kind", [Kind.VENV, Kind.CONDA])
async def test_a_git_requirement_is_its_commit_for_as_long_as_it_is_locked(rig, repository, kind, request, tmp_path):
    how = {"env": kind, "requirements": (repository.requirement, make_wheel(tmp_path)), "build_timeout": 60.0}
    if kind is Kind.CONDA:
        how["channels"] = (request.getfixturevalue("channel"),)
    first = repository.commit("first")
    ran = await rig.run(CODE, **how)
    assert ran.value == "first", ran.outcome

    repository.commit("second")
    environment = rig.executors[kind].environment
    module = await rig.publish(CODE + "  # again", **how)
    assert (await rig.call(module)).value == "first"
    (found,) = await environment.stored()
    assert first in json.dumps(found.manifest)
    assert (await environment.known(module.spec)).key == found.key
    assert environment.store.builds == 1


@pytest.mark.parametrize("kind", [Kind.VENV, Kind.CONDA])
async def test_what_is_no_repository_is_said_before_anything_is_built(rig, tmp_path, kind, request):
    how = {"env": kind, "requirements": (f"tinyx @ git+file://{tmp_path}/nothing",)}
    if kind is Kind.CONDA:
        how["channels"] = (request.getfixturevalue("channel"),)
    failure = (await rig.run(CODE, **how)).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "nothing" in failure.message
    assert rig.executors[kind].environment.store.builds == 0


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Return the only folder with packages: it has the sources of one, whose build writes a file."""
    folder = tmp_path / "packages"
    folder.mkdir()
    files = {"pyproject.toml": PROJECT, "tinyx.py": "V = 'built'\n", "PKG-INFO": PKG_INFO}
    files["backend.py"] = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{BACKEND}"
    with tarfile.open(folder / "tinyx-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tinyx-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    return folder


@pytest.mark.parametrize("kind", [Kind.VENV, Kind.CONDA])
async def test_modules_of_the_api_install_wheels_only_if_the_operator_says_so(tmp_path, sources, kind, request):
    how = {"env": kind, "requirements": ("tinyx",)}
    if kind is Kind.CONDA:
        how["channels"] = (request.getfixturevalue("channel"),)
    async with open_rig(tmp_path / "rig", api_builds="wheels") as rig:
        module = await rig.publish(CODE, workers=WorkersPolicy(min=0), **how)
        registered = attrs.evolve(module, trusted=False, digest="registered")
        executor = rig.executors[kind]
        await rig.wait_until(lambda: executor.statistics().built == 1, "the operator's module is not built")
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()

        failure = (await rig.call(registered)).failure
        assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
        assert "tinyx" in failure.message
        assert "setting `api_builds`" in failure.message
        if kind is Kind.VENV:
            with pytest.raises(RunnerError, match=r"(?s)tinyx.*setting `api_builds`"):
                await executor.lock(registered)

        make_wheel(sources, "tinyx")
        again = attrs.evolve(registered, digest="again")
        assert "has no attribute 'V'" in (await rig.call(again)).failure.message, "it is not that of the wheel"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "line",
    ["x @ git+https://example.org/x", "git+https://example.org/x", "x @ https://example.org/x-1.tar.gz ; extra == 'a'"],
)
def test_what_is_no_wheel_is_refused_by_name(line):
    spec = ModuleSpec("m", Kind.VENV, code=CODE, requirements=("y==1", line))

    with pytest.raises(RunnerError) as raised:
        only_wheels(spec)
    assert line in raised.value.failure.message
    assert raised.value.failure.field == "requirements"


def test_wheels_are_allowed():
    lines = ("y==1", "x @ https://example.org/x-1-py3-none-any.whl#sha256=00", "z>=2; python_version > '3'")

    assert only_wheels(ModuleSpec("m", Kind.VENV, requirements=lines)).requirements == ("--only-binary :all:", *lines)
    assert only_wheels(ModuleSpec("m", Kind.VENV)).requirements == ()


async def test_a_lock_of_uv_installs_wheels_only_too(rig, tmp_path):
    """Its lines are known only when uv has read it."""
    files = {"pyproject.toml": "[project]", "uv.lock": "version = 1"}
    spec = only_wheels(ModuleSpec("m", Kind.VENV, packages_from=files))
    projects = Projects(tmp_path / "locks", rig.table, {})
    path = projects._path(spec)
    assert spec.requirements == ("--only-binary :all:",)
    assert projects.known(spec) is None

    path.parent.mkdir()
    path.write_text("a==1 \\\n    --hash=sha256:00\nb==1 ; python_version >= '3' \\\n    --hash=sha256:11\n")
    assert projects.known(spec).requirements == (
        "--only-binary :all:",
        "a==1 --hash=sha256:00",
        "b==1 ; python_version >= '3' --hash=sha256:11",
    )
    path.write_text(f"x @ git+https://example.org/x@{'0' * 40}\n")
    with pytest.raises(RunnerError, match="is no wheel, and would be built"):
        projects.known(spec)


@pytest.mark.parametrize("kind", [Kind.VENV, Kind.CONDA])
async def test_constraints_count(rig, tmp_path, kind, request):
    how = {"env": kind, "requirements": (make_wheel(tmp_path),)}
    if kind is Kind.CONDA:
        how["channels"] = (request.getfixturevalue("channel"),)
    code = "import tiny\ndef handler(input): return tiny.answer"

    assert (await rig.run(code, constraints=("tiny==1.0", "other<3"), **how)).value == 42
    failure = (await rig.run(code, constraints=("tiny>=2",), **how)).failure
    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "tiny>=2" in failure.message


# -- build_ca ----------------------------------------------------------------------------------------------------------


def index(module: bytes = b"answer = 42\n", more: str = ""):
    """Return the pages of a package index with the package tiny."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as wheel:
        wheel.writestr("tiny.py", module)
        wheel.writestr("tiny-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n{more}")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    name = "tiny-1.0-py3-none-any.whl"
    return {"/simple/tiny/": f'<a href="/{name}">{name}</a>'.encode(), f"/{name}": data.getvalue()}.get


@pytest.fixture
def unbuilt_images():
    """Remove the images that a test builds."""

    def built():
        with engines.client() as api:
            return {tag for i in api.images() for tag in i["RepoTags"] or () if tag.startswith("operato-runner:")}

    before = built()
    yield lambda: built() - before
    with engines.client() as api:
        for tag in built() - before:
            api.remove_image(tag, force=True)


@asynccontextmanager
async def open_kind(folder: Path, kind: Kind, ca: Path | None, **variables: str) -> AsyncIterator[Managed]:
    """Yield one kind with a `build_ca`, stores of its own, and no index but that of `variables`."""
    store = StoreSettings(
        data_dir=folder / "data", venv_path=folder / "venvs", conda_path=folder / "condas", build_ca=ca
    )
    docker = {"docker": engines.settings()} if kind is Kind.DOCKER else {}
    given = {k: v for k, v in installer_environment().items() if not k.startswith(("PIP_", "UV_INDEX", "UV_DEFAULT"))}
    given |= {"UV_CACHE_DIR": str(folder / "cache"), **variables}
    around = Surroundings(base_environment(), given, secret_values)
    async with open_environments(Settings(store=store, **docker), around) as kinds:
        assert (await kinds[kind].probe()).available
        yield kinds[kind]


async def check_trust(folder: Path, files, make: Callable[[int], ModuleSpec], **variables: str) -> None:
    """Build a module with what a TLS server on loopback has; only `build_ca` vouches for its certificate."""
    authority, other = Authority(folder), Authority(folder, "other")
    signed = authority.sign("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.certificate, signed.key)
    async with file_server(files, heads={"/simple/": "text/html"}, context=context) as port:
        spec = make(port)
        variables = {name: value.format(port=port) for name, value in variables.items()}
        for name, ca in (("nobody", None), ("other", other.file)):
            async with open_kind(folder / name, spec.env, ca, **variables) as kind:
                with pytest.raises(RunnerError, match=r"(?i)certificate|tls|ssl"):
                    await kind.prepare(spec, Watch())
        async with open_kind(folder / "authority", spec.env, authority.file, **variables) as kind:
            assert (await kind.prepare(spec, Watch())).key


def files_of(folder: Path) -> Callable[[str], bytes | None]:
    def read(path: str) -> bytes | None:
        file = folder / path.partition("?")[0].removeprefix("/")
        return file.read_bytes() if file.is_file() else None

    return read


async def test_a_venv_trusts_build_ca_and_nothing_else(tmp_path):
    spec = ModuleSpec("m", Kind.VENV, code=CODE, requirements=("tiny",))
    await check_trust(tmp_path, index(), lambda _: spec, UV_INDEX_URL="https://127.0.0.1:{port}/simple")


async def test_git_trusts_build_ca_and_nothing_else(tmp_path, repository):
    commit = repository.commit("over TLS")
    repository.git("update-server-info")

    def make(port):
        line = f"tinyx @ git+https://127.0.0.1:{port}/.git@{commit}"
        return ModuleSpec("m", Kind.VENV, code=CODE, requirements=(line,))

    await check_trust(tmp_path, files_of(repository.folder), make)


async def test_conda_trusts_build_ca_and_nothing_else(tmp_path, channel):
    def make(port):
        channels = (f"https://127.0.0.1:{port}",)
        return ModuleSpec("m", Kind.CONDA, code=CODE, dependencies=("greet",), channels=channels)

    await check_trust(tmp_path, files_of(Path(channel.removeprefix("file://"))), make)


@pytest.mark.usefixtures("with_engine")
@pytest.mark.timeout(300)
async def test_pip_in_a_docker_container_trusts_build_ca_and_nothing_else(tmp_path, unbuilt_images):
    spec = ModuleSpec("m", Kind.DOCKER, code=CODE, requirements=("tiny",), constraints=("tiny<2",))
    pages = index(f"answer = 42  # {tmp_path}\n".encode())
    await check_trust(tmp_path, pages, lambda _: spec, PIP_INDEX_URL="https://127.0.0.1:{port}/simple")

    (tag,) = unbuilt_images()
    with engines.client() as api:
        assert "CERTIFICATE" not in json.dumps([api.inspect_image(tag), api.history(tag)])


@pytest.mark.usefixtures("with_engine")
@pytest.mark.timeout(300)
async def test_an_image_without_git_is_named(rig, repository, unbuilt_images):
    repository.commit("first")
    repository.git("update-server-info")
    async with file_server(files_of(repository.folder)) as port:
        line = f"tinyx @ git+http://127.0.0.1:{port}/.git@main"
        failure = (await rig.run(CODE, env=Kind.DOCKER, requirements=(line,))).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "has no git; name an image that has it" in failure.message
    assert not unbuilt_images()


@pytest.mark.usefixtures("with_engine")
@pytest.mark.timeout(300)
async def test_a_container_has_what_its_lock_lists_and_nothing_else(rig, tmp_path, unbuilt_images):
    """The wheel requires another package, which is not in the lock and nowhere to be had."""
    pages = index(f"answer = 42  # {tmp_path}\n".encode(), "Requires-Dist: never\n")
    digest = hashlib.sha256(pages("/tiny-1.0-py3-none-any.whl")).hexdigest()
    code = "import tiny\ndef handler(input): return tiny.answer"
    async with file_server(pages) as port:
        line = f"tiny @ http://127.0.0.1:{port}/tiny-1.0-py3-none-any.whl --hash=sha256:"
        failure = (await rig.run(code, env=Kind.DOCKER, requirements=(line + "0" * 64,))).failure
        assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
        assert "hash" in failure.message.lower()
        assert not unbuilt_images()
        assert (await rig.run(code, env=Kind.DOCKER, requirements=(line + digest,))).value == 42
    assert unbuilt_images()
