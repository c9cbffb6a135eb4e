"""`ModuleSpec`: what one module is, as its author wrote it, and the YAML file it comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from cattrs import Converter

from config import requirements, secrets, units
from config.code import entry as code
from config.files import FILES, channels, locate, spread_pip
from config.mistakes import (
    ConfigError,
    Document,
    Mistake,
    Where,
    Wrong,
    did_you_mean,
    dotted,
    parse_yaml,
    read_or_none,
    read_text,
    structure_hook,
    unfold,
)
from config.modules import policies
from config.modules.policies import RetryPolicy, WorkersPolicy
from config.secrets import Secret
from config.units import Range, show
from protocol.model import Isolation, Kind


@frozen
class ModuleSpec:
    """One module. Durations are seconds, sizes are bytes (`256MB`, `1GiB` in the file)."""

    name: str
    env: Kind
    code: str | None = None
    """Source text; exactly one of `code` and `path` is given, unless `docker` uses what is in its image."""
    path: Path | None = None
    """A `.py` file or a folder with `main.py`, `__init__.py` or `handler.py`, absolute after loading."""
    handler: str = "handler"
    """Function to call; `file:function` picks a file of a folder (`jobs/report:run`)."""
    version: str | None = None
    """None means: derived from the content."""
    tags: tuple[str, ...] = ()
    description: str = ""
    requirements: tuple[str, ...] = ()
    """Requirement lines; a file name in the YAML file is read when loaded."""
    python: str | None = None
    isolation: Isolation = Isolation.WARM
    timeout: float = 60.0
    queue_timeout: float = 30.0
    build_timeout: float = 600.0
    start_timeout: float = 30.0
    memory: int | None = None
    cpus: float | None = None
    processes: int | None = None
    output: int = 16 * 1024 * 1024
    """Bytes that one execution may print before it is ended with `output_limit`."""
    concurrency: int = 4
    """Workers of this module at most."""
    workers: WorkersPolicy = field(factory=WorkersPolicy)
    retry: RetryPolicy = field(factory=RetryPolicy)
    variables: Mapping[str, str] = field(factory=dict)
    secrets: Mapping[str, Secret] = field(factory=dict)
    """Variables by name, and where the value of each is looked up for every worker."""
    network: bool | None = None
    """docker only; None means the kind's default (docker: closed; the others cannot close it)."""
    image: str | None = None
    user: str | None = None
    """docker only, operator's file only: the user in the container, `UID`, `UID:GID` or a name of its image."""
    writable: bool | None = None
    """docker only, operator's file only: whether what is in the image can be written over, until the container ends."""
    dependencies: tuple[str, ...] = ()
    """Conda packages; a file name in the YAML file is an `environment.yml`, read when loaded."""
    channels: tuple[str, ...] = ()
    input_schema: Mapping[str, Any] | None = None


@frozen
class ModulesFile:
    """One modules file: `modules:`, a list or a mapping of names, and the runner's own section `runner:`."""

    modules: tuple[ModuleSpec, ...]
    runner: Mapping[str, Any]
    """As written; `config.load` reads it."""
    path: Path
    """Absolute."""
    lines: Mapping[str, int] = field(factory=dict)
    """The line of each entry of `runner`."""
    files: tuple[Path, ...] = ()
    """What else it names, whether that is there or not: code, requirements files, and those that they include."""
    read_at: float = field(default=0.0, eq=False)
    """Seconds since the epoch when reading began."""


def load_modules(path: Path) -> ModulesFile:
    """Return what the modules file says. Raises `ConfigError` with all its mistakes."""
    file, mistakes = read_modules(path)
    if mistakes:
        raise ConfigError(mistakes)
    return file


def read_modules(path: Path) -> tuple[ModulesFile, tuple[Mistake, ...]]:
    """Return what can be read of the modules file, and its mistakes by line; the modules at fault are left out."""
    absolute, began = Path.cwd() / path, time.time()
    try:
        document = parse_yaml(read_text(path))
    except Wrong as wrong:
        document = Document({}, wrongs=(wrong,))
    wrongs = [*document.wrongs, *_sections(document.value)]
    specs: dict[str, ModuleSpec] = {}
    names: dict[str, int | None] = {}
    labels: dict[Where, Where] = {}
    files: list[Path] = []
    for where, data in _entries(document, wrongs):
        name = data.get("name")
        if isinstance(name, str) and read_or_none(name_of_module, name) is not None:
            labels[where] = (name,)
            if name in names:
                wrongs.append(Wrong(f"the name is given twice, first in line {names[name]}", (*where, "name")))
            names.setdefault(name, document.line(Wrong("", (*where, "name"))))
        files += _named_files(data, absolute.parent)
        spec, found = read_spec(data, base=absolute.parent, allow_path=True, trusted=True)
        unread = {wrong.where for wrong in document.wrongs}
        wrongs += [told for wrong in found if (told := wrong.under(where)).where not in unread]
        if spec is not None:
            specs.setdefault(spec.name, spec)
    mistakes = [document.mistake(wrong, str(path), labels) for wrong in wrongs]
    mistakes.sort(key=lambda mistake: (mistake.file != str(path), mistake.file or "", mistake.line or 0))
    runner = document.value.get("runner") if isinstance(document.value, dict) else None
    runner = runner if isinstance(runner, dict) else {}
    lines = {key: document.lines["runner", key] for key in runner}
    return ModulesFile(tuple(specs.values()), runner, absolute, lines, tuple(files), began), tuple(mistakes)


def spec_from_mapping(
    data: Mapping[str, Any], *, base: Path | None, allow_path: bool, trusted: bool = False, checked: bool = False
) -> ModuleSpec:
    """Return the module that `data` describes with the fields of the file. Raises `ConfigError`, without lines.

    With `allow_path` false, `path` and files of requirements are refused. Relative ones are relative to `base`, and
    what is not `trusted` (not the operator's own) must stay inside of it, cannot ask for `isolation: none`, and has no
    secrets but those in `OPERATO_SECRET_*`.
    With `checked` the code was looked at before, and is not again.
    """
    spec, wrongs = read_spec(data, base=base, allow_path=allow_path, trusted=trusted, checked=checked)
    if spec is None:
        raise ConfigError(Mistake(w.message, w.file, w.line, dotted(w.where), w.allowed) for w in wrongs)
    return spec


def spec_to_mapping(spec: ModuleSpec) -> dict[str, Any]:
    """Return the module as JSON values, which `spec_from_mapping` reads back as the same module.

    Seconds and bytes are numbers; fields that are None are left out.
    """
    data: dict[str, Any] = _CONVERTER.unstructure(spec)
    return {name: value for name, value in data.items() if value is not None}


def _sections(root: Any) -> Iterator[Wrong]:
    """Check the top level of the file."""
    if not isinstance(root, dict):
        yield Wrong(f"holds {show(root)} where a mapping with `modules:` is expected", allowed=", ".join(_SECTIONS))
        return
    for name, value in root.items():
        if name not in _SECTIONS:
            hint = did_you_mean(name, _SECTIONS)
            yield Wrong(f"unknown section; a file has modules and runner{hint}", (name,), allowed=", ".join(_SECTIONS))
        elif not isinstance(value, _SECTIONS[name]):
            allowed = "a mapping of settings" if name == "runner" else "a list of modules or a mapping of their names"
            yield Wrong(f"{show(value)} is not {allowed}", (name,), allowed=allowed)


def _entries(document: Document, wrongs: list[Wrong]) -> Iterator[tuple[Where, dict[str, Any]]]:
    """Yield where each module is and what it says, its name included; what is no module goes to `wrongs`."""
    modules: Any = document.value.get("modules") if isinstance(document.value, dict) else None
    named = isinstance(modules, dict)
    for key, written in modules.items() if named else enumerate(modules) if isinstance(modules, list) else ():
        where = ("modules", key)
        if not isinstance(written, dict):
            wrongs.append(Wrong(f"{show(written)} is not a module; a module is a mapping", where, allowed="a mapping"))
            continue
        if named and written.get("name", key) != key:
            wrongs.append(Wrong(f"the name is already given as {show(key)}; leave it out here", (*where, "name")))
        yield where, as_written(document, where, written | ({"name": key} if named else {}))


def as_written(document: Document, where: Where, module: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a document says of a module at `where`, with text given back what YAML took for a number."""
    data = dict(module)
    for name in {"version", "python"} & data.keys():
        data[name] = document.written((*where, name), data[name])
    if isinstance(data.get("variables"), dict):
        inside = (*where, "variables")
        data["variables"] = {name: document.written((*inside, name), v) for name, v in data["variables"].items()}
    return data


def _named_files(data: Mapping[str, Any], base: Path) -> Iterator[Path]:
    """Yield the files that a module names."""
    path, listed = data.get("path"), data.get("requirements")
    if isinstance(path, str) and path:
        yield base / path
    if isinstance(listed, str) and listed:
        yield from requirements.requirements_files(base / listed)
    if isinstance(dependencies := data.get("dependencies"), str) and dependencies:
        yield base / dependencies
    yield from secrets.named_files(data.get("secrets"), base)


def read_spec(
    data: Any, *, base: Path | None, allow_path: bool, trusted: bool, checked: bool = False
) -> tuple[ModuleSpec | None, list[Wrong]]:
    """Return the module, or None and everything that is wrong with it."""
    if not isinstance(data, Mapping):
        return None, [Wrong(f"{show(data)} is not a module; a module is a mapping", allowed="a mapping")]
    files = allow_path and trusted
    wrongs = [*_rules(data, trusted=trusted), *secrets.rules(data, trusted=trusted, files=files)]
    data = {"env": None} | dict(data)
    if files and "secrets" in data:
        data["secrets"], found = secrets.located(data["secrets"], base)
        wrongs += [wrong.under(("secrets",)) for wrong in found]
    for name, (resolve, replacement) in FILES.items():
        value = data.get(name)
        if not isinstance(value, str):
            continue
        data[name] = replacement
        try:
            if not allow_path:
                wrongs.append(Wrong(f"{show(value)}: files are only for the operator's modules file", (name,)))
                continue
            file = locate(value, base, trusted=trusted)
            data[name], found = resolve(file, value, None if trusted else base, data)
            wrongs += [wrong.under((name,)) for wrong in found]
        except Wrong as wrong:
            wrongs.append(wrong.under((name,)))
    spread_pip(data)
    wrongs += () if checked else code.wrongs(data, None if trusted else base, trusted=trusted)
    try:
        spec: ModuleSpec = _CONVERTER.structure(data, ModuleSpec)
    except Exception as error:  # noqa: BLE001 - cattrs wraps what readers raise in groups; unfold lets bugs through
        wrongs += unfold(error)
    return (None, wrongs) if wrongs else (spec, [])


def _rules(data: Mapping[str, Any], *, trusted: bool) -> Iterator[Wrong]:
    """Check what fields say about each other, on what was written, so that nothing else need be right."""
    given = {name for name, value in data.items() if value is not None and value not in ([], {}, "")}
    yield from _kind_rules(data, given, trusted=trusted)
    handler = data.get("handler")
    if isinstance(handler, str) and ":" in handler and "code" in given:
        yield Wrong("names a file, but `code` is only one; use `path`", ("handler",), allowed="the name of a function")
    yield from policies.orders(data)


def _kind_rules(data: Mapping[str, Any], given: set[str], *, trusted: bool) -> Iterator[Wrong]:
    """Check what the kind of environment needs and what it does not have."""
    env = read_or_none(units.one_of(Kind), data.get("env"))
    if {"code", "path"} <= given:
        yield Wrong("`code` is given as well; a module has one of the two", ("path",), allowed="code or path")
    elif not {"code", "path"} & given and not (env is Kind.DOCKER and "image" in given):
        yield Wrong("has no code; give `code` or `path`", allowed="code or path")
    for name, kinds in _ONLY.items() if env is not None else ():
        if name in given and env not in kinds:
            allowed = ", ".join(kinds)
            yield Wrong(f"is not for env: {env}, only for {allowed}; use env: {kinds[0]}", (name,), allowed=allowed)
    for name in _OPERATORS if not trusted else ():
        if name in given:
            yield Wrong("is only for the operator's modules file", (name,))
    if data.get("isolation") == Isolation.NONE and not (trusted and env in (Kind.INLINE, None)):
        reason = f"env: {env}; it is only for inline" if trusted else "this; it is only for the operator's modules file"
        yield Wrong(f"none is not for {reason}", ("isolation",), allowed="warm, fork, fresh")


_SECTIONS: Mapping[str, tuple[type, ...]] = {"modules": (dict, list, type(None)), "runner": (dict, type(None))}
"""The top level of the file; a section whose lines are all commented out reads as None."""

_ONLY: Mapping[str, tuple[Kind, ...]] = {
    "requirements": (Kind.VENV, Kind.DOCKER, Kind.CONDA),
    "python": (Kind.VENV, Kind.CONDA, Kind.DOCKER),
    "dependencies": (Kind.CONDA,),
    "channels": (Kind.CONDA,),
    "image": (Kind.DOCKER,),
    "network": (Kind.DOCKER,),
    "user": (Kind.DOCKER,),
    "writable": (Kind.DOCKER,),
}
"""Fields that only some kinds of environment have; the first kind is the one to advise."""


_OPERATORS = ("user", "writable")
"""Fields that move walls of the machine, which only the operator's own file may do."""

_FORM = units.matching(
    r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?",
    "a name: 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first and last",
)
RESERVED = ("execute", "stream", "upload", "template")
"""What no module is called: parts of routes, as in `/modules/execute/{name}`."""


def name_of_module(value: Any) -> str:
    """Read the name of a module."""
    name: str = _FORM(value)
    if name in RESERVED:
        raise Wrong(f"{show(name)} is a part of routes; take another name", allowed="another name")
    return name


_PLAIN = units.matching(r"[^\s-]\S*( \S+)*", "text without a leading '-'")

_READERS: Mapping[type, Mapping[str, Callable[[Any], Any]]] = {
    **policies.READERS,
    ModuleSpec: {
        "name": name_of_module,
        "env": units.one_of(Kind),
        "code": units.optional(units.text),
        "path": units.optional(lambda value: Path(units.filled(value))),
        "handler": code.HANDLER,
        "version": units.optional(
            units.matching(
                r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", "a version: up to 64 letters, digits, '.', '_', '+', '-'"
            )
        ),
        "tags": units.items(units.filled),
        "description": units.text,
        "requirements": units.items(requirements.requirement),
        "python": units.optional(units.matching(r"3(\.[0-9]{1,3}){1,2}", "a Python version such as 3.12 or 3.12.4")),
        "isolation": units.one_of(Isolation),
        **dict.fromkeys(("timeout", "queue_timeout", "build_timeout", "start_timeout"), policies.TIMEOUT),
        "memory": units.optional(units.bytes_from(16 * 1024 * 1024)),
        "cpus": units.optional(units.real(Range(above=0, high=4096))),
        "processes": units.optional(units.count(1)),
        "output": units.bytes_from(0),
        "concurrency": units.count(1, 1000),
        "variables": units.variables,
        "secrets": secrets.read,
        "network": units.optional(units.flag),
        "writable": units.optional(units.flag),
        "user": units.optional(
            units.matching(
                r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?", "a user such as 1000:1000 or root"
            )
        ),
        "image": units.optional(units.matching(r"[A-Za-z0-9][A-Za-z0-9_./:@-]*", "the name of an image")),
        "dependencies": units.items(_PLAIN),
        "channels": channels,
        "input_schema": units.optional(units.json_schema),
    },
}
"""How each field is read; fields that are not here are classes that are."""


def _converter() -> Converter:
    converter = Converter(unstruct_collection_overrides={tuple: list})
    converter.register_unstructure_hook(Path, str)
    converter.register_unstructure_hook(Secret, Secret.mapping)
    for kind, readers in _READERS.items():
        converter.register_structure_hook(kind, structure_hook(converter, kind, readers))
    return converter


_CONVERTER = _converter()
