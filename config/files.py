"""Files that a module names in place of a value: its code, its requirements, its `environment.yml`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from config import packages, requirements, units
from config.code import ENTRIES
from config.mistakes import ABSENT, MAX_BYTES, MAX_UPLOADED_BYTES, Wrong, parse_yaml, read_text
from config.requirements import Origin
from config.shapes import Values, accepting, nullable
from config.units import show

_Resolve: TypeAlias = Callable[[Path, str, Origin, MutableMapping[str, Any]], tuple[Any, list[Wrong]]]

_ENVIRONMENT = ("channels", "dependencies", "variables")
_ENVIRONMENT_FILES = ("environment.yml", "environment.yaml")
_GIVEN = "a list, a text of lines, or the name of a requirements file"
_MAX_LOCK_BYTES = 2 * 1024 * 1024
"""Size of one lock file of a caller."""
_MAX_CONDA_LOCK_BYTES = 512 * 1024
"""The same for YAML."""
_PASSED_OVER = ("name", "prefix")
"""Keys of an `environment.yml` that are ignored: its place on another machine."""
_DEFAULTS = (
    "is Anaconda's own channel, which has its own terms of use: write conda-forge, or with a licence for it"
    " https://repo.anaconda.com/pkgs/main"
)


def locate(name: str, base: Path | None, *, trusted: bool) -> Path:
    """Return the file that a module names. Raises `Wrong` if it is outside of `base` and the module is not trusted."""
    if base is None and not Path(units.filled(name)).is_absolute():
        raise Wrong(f"{show(name)} is not an absolute path", allowed="an absolute path")
    return requirements.within(base or Path("/"), units.filled(name), None if trusted else base)


@accepting(nullable({"type": "array", "items": Values.FILLED}))
def channels(value: Any) -> tuple[str, ...]:
    """Read conda channels: names and URLs. `nodefaults` is dropped: there are no default channels."""
    found: tuple[str, ...] = units.items(_channel)(value)
    return tuple(name for name in found if name != "nodefaults")


def spread_pip(data: MutableMapping[str, Any]) -> None:
    """Move the `pip:` part of `dependencies` to `requirements`."""
    dependencies = data.get("dependencies")
    if not isinstance(dependencies, list):
        return
    parts = [item["pip"] for item in dependencies if isinstance(item, dict) and list(item) == ["pip"]]
    if not parts or not all(isinstance(part, list) for part in parts):
        return
    own = data.get("requirements")
    data["dependencies"] = [item for item in dependencies if not (isinstance(item, dict) and list(item) == ["pip"])]
    if isinstance(own, (list, type(None))):
        data["requirements"] = [*(own or []), *(line for part in parts for line in part)]


def requirements_given(data: MutableMapping[str, Any], origin: Origin, *, allow_path: bool) -> list[Wrong]:
    """Replace requirements and constraints, given as list, text or file, by lines; return the mistakes."""
    wrongs: list[Wrong] = []
    for name in ("constraints", "requirements"):  # in this order: requirements may have more constraints (`-c`)
        if isinstance(value := data.get(name), str):
            data[name] = []
            found: list[Wrong] = []
            try:
                given: list[Any] | str | Path = _text_or_file(value, origin, allow_path=allow_path)
                if isinstance(given, Path) and packages.is_project(given.name):
                    given = _project(given, data, origin)
                data[name], found = _listed(data, name, given, origin)
                if isinstance(given, Path):
                    _came_from(data, {given.name: ""})
            except Wrong as wrong:
                hint = f"; give {_GIVEN}" if wrong.message == ABSENT else ""
                shown = "" if wrong.allowed else f"{value:.80}: "
                text = f"{shown}{wrong.message}{hint}"
                found = [wrong if wrong.file else Wrong(text, allowed=wrong.allowed or _GIVEN)]
            wrongs += [wrong.under((name,)) for wrong in found]
    spread_pip(data)
    for name in ("constraints", "requirements"):
        if isinstance(value := data.get(name), (list, tuple)):
            data[name], found = _listed(data, name, list(value), origin)
            wrongs += [wrong.under((name,)) for wrong in found]
    return wrongs


def _project(file: Path, data: MutableMapping[str, Any], origin: Origin) -> list[str]:
    """Return the requirements in a lock or project, and note the range of Pythons that it is for. Raises `Wrong`."""
    largest = MAX_BYTES if origin.trusted else _MAX_LOCK_BYTES
    found = packages.read_project(file, origin.named, largest, trusted=origin.trusted)
    _came_from(data, found.texts)
    if data.get("python") is None and found.python is not None:
        data["python"] = found.python
    return list(found.requirements)


def _came_from(data: MutableMapping[str, Any], files: packages.Texts) -> None:
    """Note the files that the packages of a module came from."""
    before = data.get("packages_from")
    data["packages_from"] = {**(before if isinstance(before, Mapping) else {}), **files}


def _listed(
    data: MutableMapping[str, Any], name: str, value: list[Any] | str | Path, origin: Origin
) -> tuple[list[str], list[Wrong]]:
    """Return the lines of one field and the mistakes; its constraints go to the field for them."""
    (lines, limits), wrongs = requirements.read_lines(value, origin)
    if name == "constraints":
        return lines + limits, wrongs
    if limits and isinstance(own := data.get("constraints"), (list, type(None))):
        data["constraints"] = [*(own or []), *limits]
    return lines, wrongs


def _text_or_file(value: str, origin: Origin, *, allow_path: bool) -> str | Path:
    if requirements.is_text(value):
        return value
    if not allow_path:
        raise Wrong(f"{show(value)}: files are only for the operator's modules file; give {_GIVEN}", allowed=_GIVEN)
    return locate(value, origin.folder, trusted=origin.trusted)


def _channel(value: Any) -> str:
    name = units.filled(value).strip()
    if name == "defaults":
        raise Wrong(f"defaults {_DEFAULTS}")
    if name.startswith("-") or any(character.isspace() for character in name):
        raise Wrong(f"{show(value)} is not a channel", allowed="a name such as conda-forge, or a URL")
    return name


def _path(file: Path, shown: str, _origin: Origin, _data: object) -> tuple[str, list[Wrong]]:
    """Check that `path` is a folder or a Python file; its content is checked later."""
    allowed = f"a .py file, or a folder with {' or '.join(ENTRIES)}"
    try:
        if file.is_dir() or (file.is_file() and file.suffix == ".py"):
            return str(file), []
        problem = "is not a .py file" if file.is_file() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise Wrong(f"{show(shown)} {problem}", allowed=allowed)


def _environment(
    file: Path, shown: str, origin: Origin, data: MutableMapping[str, Any]
) -> tuple[list[Any], list[Wrong]]:
    """Read the `environment.yml` that `dependencies` names; the module's own fields override it."""
    allowed = "a list, or the name of an environment.yml"
    if file.name in packages.CONDA_LOCK:
        return _conda_lock(file, origin, data), []
    _came_from(data, {file.name: ""})
    try:
        text = read_text(file, MAX_BYTES if origin.trusted else MAX_UPLOADED_BYTES)
        if not text.strip():
            raise Wrong("is empty")  # noqa: TRY301
        document = parse_yaml(text)
    except Wrong as wrong:
        place = shown if wrong.line is None else f"{shown}:{wrong.line}"
        raise Wrong(f"{place}: {wrong.message}", allowed=allowed) from None
    found = document.value
    if not isinstance(found, dict):
        raise Wrong(f"{shown}: contains {show(found)} where a mapping is expected", allowed=allowed)
    wrongs = [Wrong(f"{shown}: {wrong.message}") for wrong in document.wrongs]
    names = ", ".join(_ENVIRONMENT)
    wrongs += [
        Wrong(f"{shown}: unknown key {show(key)}", allowed=names)
        for key in found
        if key not in (*_ENVIRONMENT, *_PASSED_OVER)
    ]
    dependencies = found.get("dependencies")
    if not isinstance(dependencies, list):
        wrongs.append(Wrong(f"{shown}: dependencies: {show(dependencies)} is not a list", allowed="a list"))
    else:
        wrongs += [Wrong(f"{shown}: {wrong.message}") for wrong in _pip_read(dependencies, file, origin, data)]
    data["channels"] = data.get("channels") or found.get("channels")
    if isinstance(variables := found.get("variables"), dict):
        written = {name: document.written(("variables", name), value) for name, value in variables.items()}
        own = data.get("variables")
        data["variables"] = written | (own if isinstance(own, dict) else {})
    return dependencies if isinstance(dependencies, list) else [], wrongs


def _conda_lock(file: Path, origin: Origin, data: MutableMapping[str, Any]) -> list[str]:
    """Read a `conda-lock.yml`: conda packages, and the requirements beside them. Raises `Wrong`."""
    found = packages.read_conda_lock(file, MAX_BYTES if origin.trusted else _MAX_CONDA_LOCK_BYTES)
    _came_from(data, found.texts)
    if found.requirements and data.get("requirements") is None:
        data["requirements"] = list(found.requirements)
    beside = next((each for name in _ENVIRONMENT_FILES if (each := file.with_name(name)).is_file()), None)
    if beside is not None and isinstance(data.get("packages_from"), Mapping):
        origin.named.append(beside)
        _came_from(data, {beside.name: read_text(beside, MAX_BYTES if origin.trusted else MAX_UPLOADED_BYTES)})
    return list(found.dependencies)


def _pip_read(dependencies: list[Any], file: Path, origin: Origin, data: MutableMapping[str, Any]) -> Iterator[Wrong]:
    """Read the `pip:` part, whose files are relative to the file; yield the mistakes."""
    inside = Origin(file.parent, trusted=origin.trusted, named=origin.named)
    for item in dependencies:
        if isinstance(item, dict) and isinstance(item.get("pip"), list):
            item["pip"], wrongs = _listed(data, "requirements", item["pip"], inside)
            yield from wrongs


FILES: Mapping[str, tuple[_Resolve, Any]] = {
    "path": (_path, None),
    "dependencies": (_environment, []),
}
"""By field: the reader of the file that it names, and the value to use if the file cannot be read."""
