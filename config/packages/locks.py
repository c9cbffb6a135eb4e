"""Locks and projects that modules are installed from: `pylock.toml`, `uv.lock`, `pyproject.toml`, `conda-lock.yml`.

Their TOML and YAML is read here; the requirements in them stay text for the installer. Only uv reads `uv.lock`: its
text and that of its `pyproject.toml` are kept until the module is locked.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from attrs import field, frozen

from config.mistakes import MAX_BYTES, Wrong, parse_toml, parse_yaml, read_text
from config.packages.versions import read_python
from config.shapes import Values, accepting
from config.units import show, text

UV_LOCK: Final = "uv.lock"
PROJECT: Final = "pyproject.toml"
PYLOCK: Final = "pylock.toml"
CONDA_LOCK: Final = ("conda-lock.yml", "conda-lock.yaml")
CONDA_LOCK_COMMAND: Final = "conda-lock lock -f environment.yml"
_PYLOCK: Final = re.compile(r"pylock\.(?:[A-Za-z0-9_-]+\.)?toml")
_PYLOCK_VERSION, _CONDA_VERSION = "1.", 1
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HASHED = re.compile(r"\s--hash[= ]")
_PINNED = re.compile(r"@\s*git\+[^\s]+@(?:[0-9a-f]{40}|[0-9a-f]{64})(?:\s|#|;|$)", re.IGNORECASE)
_EXPLICIT = re.compile(r"[A-Za-z]+://\S+\.(?:conda|tar\.bz2)#[0-9a-f]+")
_WEB = re.compile(r"(?:git\+)?https?://", re.IGNORECASE)
_REGISTRY = re.compile(r'^source = \{ registry = "([^"\n]{1,2000})" \}', re.MULTILINE)
_FOLDER = "is a folder, which changes without notice; lock a release, a wheel, or a commit of a git repository"
_MOST_FILES: Final = 4
_FILE_NAME = re.compile(r"[^\x00-\x1f/]{1,255}")
Texts: TypeAlias = Mapping[str, str]
"""Names of files, each with its text where uv has still to read it, and without text where it was read."""


@frozen
class Packages:
    """What a file says about the packages of a module."""

    requirements: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    python: str | None = None
    """A range of Pythons."""
    texts: Texts = field(factory=dict)
    """The files that were read."""


@accepting({"type": "object", "maxProperties": _MOST_FILES, "additionalProperties": Values.TEXT})
def read_texts(value: Any) -> Texts:
    """Read the field `packages_from`: at most four files with their texts."""
    if not isinstance(value, Mapping) or len(value) > _MOST_FILES:
        raise Wrong(
            f"{show(value)} is not a mapping of at most {_MOST_FILES} file names to their texts", allowed="a mapping"
        )
    for name, content in value.items():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise Wrong(f"{show(name)} is not the name of a file", (str(name),), allowed="the name of a file")
        if len(text(content)) > MAX_BYTES:
            raise Wrong(f"is over {MAX_BYTES} characters", (name,))
    return dict(value)


def is_project(name: str) -> bool:
    """Return whether a file of that name is one that `read_project` reads."""
    base = Path(name).name
    return base in (UV_LOCK, PROJECT) or _PYLOCK.fullmatch(base) is not None


def is_locked(requirements: Sequence[str]) -> bool:
    """Return whether requirements are a lock: each line has a hash or a commit, and one at least has a hash.

    Exactly these are installed then; what they require themselves is in the lock too, or is not wanted.
    """
    return any(_HASHED.search(line) for line in requirements) and without_hash(requirements) is None


def without_hash(requirements: Sequence[str]) -> str | None:
    """Return the first requirement without hash and commit, if others have a hash; installers want one for each."""
    lines = [line for line in requirements if not line.startswith("--")]
    if not any(_HASHED.search(line) for line in lines):
        return None
    return next((line for line in lines if not (_HASHED.search(line) or _PINNED.search(line))), None)


def registries(lock: str) -> list[str]:
    """Return the indexes that the text of a `uv.lock` names, each once."""
    return list(dict.fromkeys(_REGISTRY.findall(lock)))


def is_explicit(dependencies: Sequence[str]) -> bool:
    """Return whether conda packages are a lock: each is the address of a file with its digest."""
    return bool(dependencies) and all(_EXPLICIT.fullmatch(line) for line in dependencies)


def read_project(path: Path, named: list[Path], largest: int = MAX_BYTES, *, trusted: bool = True) -> Packages:
    """Return the packages of a `uv.lock`, `pylock.toml` or `pyproject.toml`; `named` collects the files.

    Only a `trusted` module (the operator's own) may name files and keys of this machine.

    Raises `Wrong`, with file and line.
    """
    if path.name == UV_LOCK:
        return _read_uv(path.with_name(PROJECT), path, named, largest, trusted=trusted)
    if path.name == PROJECT:
        if path.with_name(UV_LOCK).is_file():
            return _read_uv(path, path.with_name(UV_LOCK), named, largest, trusted=trusted)
        project = _project(_toml(path, named, largest), path)
        return Packages(tuple(_own(project, path)), (), _python(project, path), {path.name: ""})
    return _read_pylock(path, named, largest)


def has_project(text: bytes) -> bool:
    """Return whether a `pyproject.toml` describes a project; many have settings of tools only."""
    try:
        return "project" in parse_toml(text.decode())
    except ValueError:
        return True  # reading it tells what is wrong


def _read_uv(project: Path, lock: Path, named: list[Path], largest: int, *, trusted: bool) -> Packages:
    """Return the texts of a project and its lock, if it names nothing that another machine has not. Raises `Wrong`."""
    data, locked = _toml(project, named, largest), _toml(lock, named, largest)
    table = _project(data, project)
    packages = locked.get("package", [])
    sources = [(each.get("name"), each.get("source")) for each in packages if isinstance(each, Mapping)]
    for name, source in sources:
        if isinstance(source, Mapping) and (problem := _foreign(source, trusted=trusted)):
            raise Wrong(f"package {name}: {problem}", file=str(lock))
    uv = table["tool"].get("uv", {}) if isinstance(table["tool"], Mapping) else {}
    if isinstance(uv, Mapping) and "workspace" in uv:
        text = "tool.uv.workspace: a module is one project; lock it without the workspace"
        raise Wrong(text, file=str(project))
    texts = {PROJECT: read_text(project, largest), UV_LOCK: read_text(lock, largest)}
    return Packages((), (), _python(table, project), texts)


def _foreign(source: Mapping[str, Any], *, trusted: bool) -> str:
    """Return why a source in a `uv.lock` cannot be installed here; empty if it can."""
    for kind in ("directory", "editable"):
        if source.get(kind, ".") != ".":
            return f"{show(source[kind])} {_FOLDER}"
    if "path" in source and not trusted:
        return f"{show(source['path'])} is a file of another machine; lock it by its address"
    places = [source[kind] for kind in ("registry", "git", "url") if kind in source]
    if not trusted and not all(isinstance(each, str) and _WEB.match(each) for each in places):
        return f"{show(places[0])} is only for the operator's modules file; lock it by an address with https"
    return ""


def _toml(path: Path, named: list[Path], largest: int) -> Mapping[str, Any]:
    named.append(path)
    try:
        return parse_toml(read_text(path, largest))
    except Wrong as wrong:
        raise Wrong(wrong.message, allowed=wrong.allowed, file=str(path), line=wrong.line) from None


def _project(data: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    project = data.get("project")
    if not isinstance(project, Mapping):
        text = f"has no table [project]; write one with `dependencies`, or name another file than {path.name}"
        raise Wrong(text, file=str(path))
    return {**project, "tool": data.get("tool", {})}


def _own(project: Mapping[str, Any], path: Path) -> list[str]:
    """Return the dependencies of a project without a lock. Raises `Wrong` for what only a lock of uv can name."""
    dynamic, found = project.get("dynamic", []), project.get("dependencies", [])
    if isinstance(dynamic, list) and "dependencies" in dynamic:
        raise Wrong(
            "project.dynamic: has `dependencies`, which are known only after a build; run `uv lock`", file=str(path)
        )
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise Wrong(f"project.dependencies: {show(found)} is not a list of texts", file=str(path))
    uv = project["tool"].get("uv", {}) if isinstance(project["tool"], Mapping) else {}
    if isinstance(uv, Mapping) and uv.get("sources"):
        raise Wrong("tool.uv.sources: is read from a lock only; run `uv lock`, and send uv.lock too", file=str(path))
    return found


def _python(table: Mapping[str, Any], path: Path) -> str | None:
    value = table.get("requires-python")
    if value is None:
        return None
    try:
        return read_python(value)
    except Wrong as wrong:
        raise Wrong(f"requires-python: {wrong.message}", allowed=wrong.allowed, file=str(path)) from None


# -- pylock.toml -------------------------------------------------------------------------------------------------------


def _read_pylock(path: Path, named: list[Path], largest: int) -> Packages:
    data = _toml(path, named, largest)
    try:
        if not str(data.get("lock-version", "")).startswith(_PYLOCK_VERSION):
            raise Wrong(f"lock-version: {show(data.get('lock-version'))} is not a version that is read here: 1.0")  # noqa: TRY301
        packages = data.get("packages", [])
        if not isinstance(packages, list) or not all(isinstance(each, Mapping) for each in packages):
            raise Wrong("packages: is not an array of tables")  # noqa: TRY301
        lines = tuple(_locked_line(each) for each in packages)
    except Wrong as wrong:
        raise Wrong(wrong.message, allowed=wrong.allowed, file=str(path)) from None
    return Packages(lines, (), _python(data, path), {path.name: ""})


def _locked_line(package: Mapping[str, Any]) -> str:
    """Return one package of a `pylock.toml` as a requirement with hashes. Raises `Wrong`."""
    name, version, marker = package.get("name"), package.get("version"), package.get("marker", "")
    place = f"packages: {name}: "
    texts = [each for each in (name, version, marker) if each is not None]
    if name is None or not all(isinstance(each, str) and "\n" not in each for each in texts):
        raise Wrong(f"packages: {show(name)}: has a name, version or marker that is not text of one line")
    if "dependency_groups" in marker or "extras" in marker:
        raise Wrong(f"{place}its marker asks for extras or groups; export a lock without them")
    end = f" ; {marker}" if marker else ""
    if "directory" in package:
        raise Wrong(place + _FOLDER)
    if isinstance(vcs := package.get("vcs"), Mapping):
        commit, url = str(vcs.get("commit-id", "")), vcs.get("url")
        if vcs.get("type") != "git" or not isinstance(url, str) or not _COMMIT.fullmatch(commit):
            raise Wrong(f"{place}is not a git repository with `url` and a full `commit-id`; lock it again")
        folder = f"#subdirectory={vcs['subdirectory']}" if vcs.get("subdirectory") else ""
        return f"{name} @ git+{url}@{commit}{folder}{end}"
    if isinstance(archive := package.get("archive"), Mapping):
        url = archive.get("url")
        if not isinstance(url, str):
            raise Wrong(f"{place}has an archive without `url`: files of a machine are not in a lock for others")
        return f"{name} @ {url}{end}{_hashes([archive], place)}"
    files = [*(package.get("wheels") or []), *([package["sdist"]] if "sdist" in package else [])]
    if version is None or not files:
        raise Wrong(f"{place}has no `version` with `wheels` or `sdist`; lock it again")
    return f"{name}=={version}{end}{_hashes(files, place)}"


def _hashes(files: list[Any], place: str) -> str:
    found = []
    for each in files:
        hashes = each.get("hashes") if isinstance(each, Mapping) else None
        if not isinstance(hashes, Mapping) or not hashes:
            raise Wrong(f"{place}has a file without `hashes`; lock it again")
        name = "sha256" if "sha256" in hashes else min(hashes)
        if not re.fullmatch(r"[a-z0-9_]+:[0-9a-f]+", text := f"{name}:{hashes[name]}"):
            raise Wrong(f"{place}{show(text)} is not a hash")
        found.append(f" --hash={text}")
    return "".join(dict.fromkeys(found))


# -- conda-lock.yml ----------------------------------------------------------------------------------------------------


def subdir() -> str:
    """Return conda's name for this platform."""
    machine = {"AMD64": "64", "x86_64": "64", "i686": "32", "arm64": "arm64"}.get(
        platform.machine(), platform.machine()
    )
    return f"{'osx' if sys.platform == 'darwin' else 'linux'}-{machine}"


def read_conda_lock(path: Path, largest: int = MAX_BYTES) -> Packages:
    """Return the packages of a `conda-lock.yml` for this platform. Raises `Wrong`, with the file."""
    try:
        data = parse_yaml(read_text(path, largest)).value
        if not isinstance(data, Mapping) or data.get("version") != _CONDA_VERSION:
            raise Wrong(f"is not a lock of version {_CONDA_VERSION}; make it with `{CONDA_LOCK_COMMAND}`")  # noqa: TRY301
        packages = data.get("package")
        if not isinstance(packages, list) or not all(isinstance(each, Mapping) for each in packages):
            raise Wrong("package: is not a list of mappings")  # noqa: TRY301
        here = [each for each in packages if each.get("platform") == subdir()]
        if not here:
            others = ", ".join(sorted({str(each.get("platform")) for each in packages})) or "none"
            remedy = f"make it with `{CONDA_LOCK_COMMAND} -p {subdir()}`"
            raise Wrong(f"has no packages for this platform, {subdir()} (it has {others}); {remedy}")  # noqa: TRY301
        wanted = [each for each in here if each.get("category", "main") == "main" and not each.get("optional")]
        conda, pip = tuple(_conda_lines(wanted)), tuple(_pip_lines(wanted))
    except Wrong as wrong:
        raise Wrong(wrong.message, allowed=wrong.allowed, file=str(path), line=wrong.line) from None
    return Packages(pip, conda, None, {path.name: ""})


def _conda_lines(packages: list[Mapping[str, Any]]) -> Iterator[str]:
    for each in packages:
        if each.get("manager", "conda") == "conda":
            line = f"{each.get('url')}#{_digest(each)}"
            if not _EXPLICIT.fullmatch(line):
                raise Wrong(f"package: {show(each.get('name'))}: has no `url` of a package with a hash; lock it again")
            yield line


def _pip_lines(packages: list[Mapping[str, Any]]) -> Iterator[str]:
    for each in packages:
        if each.get("manager") == "pip":
            name, url, digest = each.get("name"), each.get("url"), _digest(each)
            if not isinstance(name, str) or not isinstance(url, str) or len(digest) != 64:
                raise Wrong(f"package: {show(name)}: has no `url` with a hash of sha256; lock it again")
            yield f"{name} @ {url} --hash=sha256:{digest}"


def _digest(package: Mapping[str, Any]) -> str:
    found = package.get("hash")
    return str(found.get("sha256") or found.get("md5") or "") if isinstance(found, Mapping) else ""
