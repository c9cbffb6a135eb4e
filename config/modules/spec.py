"""`ModuleSpec`: one module as its author wrote it, how each of its fields is read, and the rules between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from cattrs import Converter

from config import secrets, units
from config.cluster import read_needs
from config.code import read_handler, source_wrongs
from config.completing import Completed, completed
from config.files import FILES, channels, locate, requirements_given
from config.mistakes import (
    ConfigError,
    Document,
    Mistake,
    Where,
    Wrong,
    dotted,
    read_or_none,
    structure_hook,
    unfold,
)
from config.modules import endpoints, on_end, policies
from config.modules.early import early
from config.modules.endpoints import EndpointSpec
from config.modules.on_end import OnEnd
from config.modules.policies import GroupPolicy, RetryPolicy, ToolPolicy, WorkersPolicy
from config.modules.scheduled import input_wrongs
from config.modules.sizes import oversized
from config.packages import read_python, read_texts
from config.requirements import Origin
from config.secrets import Secret
from config.shapes import Schema, Values, accepting, object_shape, shape_of, shaped
from config.timing import ScheduleSpec, read_schedules, schedule_fields
from config.units import Range, show
from protocol.model import Isolation, Kind, Record


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
    """None means that it is derived from the content."""
    tags: tuple[str, ...] = ()
    description: str = ""
    requirements: tuple[str, ...] = ()
    """Requirement lines for the installer; a text or a file is replaced by its lines, `-r` by those of its file."""
    constraints: tuple[str, ...] = ()
    """Lines of the same form that limit versions and install nothing; `-c FILE` in `requirements` adds its lines."""
    packages_from: Mapping[str, str] = field(factory=dict)
    """The files that packages came from, found or named; a `uv.lock` has its text, until uv reads it."""
    python: str | None = None
    """A version, or a range such as `>=3.11`."""
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
    calls: int = 1
    """Calls that one worker runs at a time; more than one for async handlers only."""
    concurrency: int = field()
    """Calls that run at a time, in all workers of this module."""
    workers: WorkersPolicy = field(factory=WorkersPolicy)
    retry: RetryPolicy = field(factory=RetryPolicy)
    calls_modules: tuple[str, ...] = ()
    """Names and globs of the modules that its handler may call."""
    on_end: tuple[OnEnd, ...] = ()
    """The recipients of notices about its ended executions."""
    rate: str | None = None
    """How many executions may begin in a second, minute or hour: `10/s`, `100/m`, `1000/h`."""
    group: GroupPolicy | None = None
    variables: Mapping[str, str] = field(factory=dict)
    secrets: Mapping[str, Secret] = field(factory=dict)
    """Variables by name, with the source from which each worker gets the value."""
    network: bool | None = None
    """docker only; None means the default, which is closed. Other kinds cannot close the network."""
    image: str | None = None
    user: str | None = None
    """docker only, operator's file only: the user in the container, `UID`, `UID:GID` or a name of its image."""
    writable: bool | None = None
    """docker only, operator's file only: whether the image's files are writable; changes end with the container."""
    shm: int | None = None
    """docker only: the size of /dev/shm; None means as much as the memory limit, of which it is a part."""
    dependencies: tuple[str, ...] = ()
    """Conda packages; a file name in the YAML file is an `environment.yml`, replaced by its packages."""
    channels: tuple[str, ...] = ()
    input_schema: Mapping[str, Any] | None = None
    schedules: tuple[ScheduleSpec, ...] = ()
    """When its active version runs by itself."""
    endpoints: tuple[EndpointSpec, ...] = ()
    """Routes of the server that call it."""
    needs: tuple[str, ...] = ()
    """Labels that a runner must have to run it: `gpu`, `zone=eu`."""
    record: Record = Record.FULL
    """How much of each execution the history keeps."""
    tool: ToolPolicy = field(factory=ToolPolicy)
    """Whether agents get it as a tool, and with which title and hints."""

    @concurrency.default
    def _four_workers(self) -> int:
        return min(policies.MOST_CALLS, policies.WORKERS * self.calls)

    @property
    def most_workers(self) -> int:
        """The maximum number of workers: as many as `concurrency` needs."""
        return -(-self.concurrency // self.calls)


def crowding(spec: ModuleSpec, max_workers: int) -> str | None:
    """Return the warning about a module that asks for more workers than all modules of its kind may run together."""
    workers = spec.most_workers
    if spec.isolation is Isolation.NONE or workers <= max(policies.WORKERS, max_workers):
        return None
    reason = f"`concurrency` {spec.concurrency} needs {workers} workers, but `max_workers` is {max_workers}"
    return f"{reason}; lower it, or raise `max_workers`, or for an async handler `calls`"


def spec_from_mapping(
    data: Mapping[str, Any], *, base: Path | None, allow_path: bool, trusted: bool = False, checked: bool = False
) -> ModuleSpec:
    """Return the module that `data` describes with the fields of the file. Raises `ConfigError`, without lines.

    Without `allow_path`, `path` and requirements files are refused. Relative paths are relative to `base`. Only a
    `trusted` module (the operator's own) may have paths outside of `base`, requirements on this machine, `isolation:
    none`, and secrets other than `OPERATO_SECRET_*`. With `checked`, code and requirements are not checked again.
    """
    spec, wrongs = read_spec(data, base=base, allow_path=allow_path, trusted=trusted, checked=checked)
    if spec is None:
        raise ConfigError(Mistake(w.message, w.file, w.line, dotted(w.where), w.allowed) for w in wrongs)
    return spec


def spec_to_mapping(spec: ModuleSpec) -> dict[str, Any]:
    """Return the module as JSON values, which `spec_from_mapping` reads as the same module.

    Seconds and bytes are numbers; fields that are None are omitted.
    """
    data: dict[str, Any] = _CONVERTER.unstructure(spec)
    return {name: value for name, value in data.items() if value is not None}


def as_written(document: Document, where: Where, module: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module of a document, with the written text of values that YAML parsed as numbers or booleans."""
    data = dict(module)
    for name in {"version", "python"} & data.keys():
        data[name] = document.written((*where, name), data[name])
    if isinstance(data.get("variables"), dict):
        inside = (*where, "variables")
        data["variables"] = {name: document.written((*inside, name), v) for name, v in data["variables"].items()}
    return data


def read_spec(
    data: Any,
    *,
    base: Path | None,
    allow_path: bool,
    trusted: bool,
    checked: bool = False,
    named: list[Path] | None = None,
) -> tuple[ModuleSpec | None, list[Wrong]]:
    """Return the module and no mistakes, or None and all mistakes. `named` collects its requirements files."""
    if not isinstance(data, Mapping):
        return None, [Wrong(f"{show(data)} is not a module; a module is a mapping", allowed="a mapping")]
    if too_large := list(oversized(data)):
        return None, too_large
    files = allow_path and trusted
    whole = Completed(dict(data)) if checked else completed(data, base, trusted=trusted, allow_path=allow_path)
    data = whole.data
    wrongs = [*_rules(data, trusted=trusted), *secrets.rules(data, trusted=trusted, files=files)]
    data = {"env": None} | dict(data)
    named = [] if named is None else named
    origin = Origin(base if allow_path else None, trusted=trusted or checked, named=named)
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
            data[name], found = resolve(file, value, origin, data)
            wrongs += [wrong.under((name,)) for wrong in found]
        except Wrong as wrong:
            wrongs.append(wrong.under((name,)))
    wrongs += requirements_given(data, origin, allow_path=allow_path)
    wrongs += () if checked else [*early(data), *source_wrongs(data, None if trusted else base, trusted=trusted)]
    try:
        spec: ModuleSpec = _CONVERTER.structure(data, ModuleSpec)
    except Exception as error:  # noqa: BLE001 - cattrs wraps what readers raise in groups; unfold lets bugs through
        wrongs += unfold(error)
    if not wrongs and not checked:
        wrongs += input_wrongs(spec.schedules, spec.input_schema, code=spec.code, path=spec.path, handler=spec.handler)
    wrongs = [*whole.wrongs, *map(whole.placed, wrongs)]
    return (None, wrongs) if wrongs else (spec, [])


def _rules(data: Mapping[str, Any], *, trusted: bool) -> Iterator[Wrong]:
    """Check the rules between fields on the raw values, so that other mistakes do not hide them."""
    given = {name for name, value in data.items() if value is not None and value not in ([], {}, "")}
    yield from _kind_rules(data, given, trusted=trusted)
    handler = data.get("handler")
    if isinstance(handler, str) and ":" in handler and "code" in given:
        yield Wrong("names a file, but `code` is only one; use `path`", ("handler",), allowed="the name of a function")
    yield from policies.orders(data)
    yield from on_end.rules(data)
    yield from endpoints.rules(data)


def _kind_rules(data: Mapping[str, Any], given: set[str], *, trusted: bool) -> Iterator[Wrong]:
    """Check the fields that the kind of environment needs, and those that it does not have."""
    env = read_or_none(units.one_of(Kind), data.get("env"))
    if {"code", "path"} <= given:
        yield Wrong("`code` is given too; a module has either", ("path",), allowed="code or path")
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


_ONLY: Mapping[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("requirements", "constraints", "packages_from"), (Kind.VENV, Kind.DOCKER, Kind.CONDA)),
    "python": (Kind.VENV, Kind.CONDA, Kind.DOCKER),
    "dependencies": (Kind.CONDA,),
    "channels": (Kind.CONDA,),
    "image": (Kind.DOCKER,),
    "network": (Kind.DOCKER,),
    "user": (Kind.DOCKER,),
    "writable": (Kind.DOCKER,),
    "shm": (Kind.DOCKER,),
}
"""Fields that only some kinds of environment have; messages suggest the first kind."""


_OPERATORS = ("user", "writable")
"""Fields that weaken isolation, for the operator's own file only."""

RESERVED = ("execute", "stream", "upload", "template")
"""Names that are parts of routes, as in `/modules/execute/{name}`, and refused for modules."""


def name_of_module(value: Any) -> str:
    """Read the name of a module."""
    name: str = units.module_name(value)
    if name in RESERVED:
        raise Wrong(f"{show(name)} is reserved for routes; choose another name", allowed="another name")
    return name


shaped(name_of_module, shape_of(units.module_name))


@accepting({"type": "object"})
def _json_schema(value: Any) -> Mapping[str, Any]:
    """Read a JSON Schema without references to other documents."""
    schema = _json_mapping(value)
    from config.schema import problems  # noqa: PLC0415  (50 ms to import, and few modules have a schema)

    wrongs = list(problems(schema))
    if wrongs:
        raise ExceptionGroup("wrong schema", wrongs)
    return schema


def _json_mapping(value: Any) -> Mapping[str, Any]:
    """Read a mapping of JSON values; NaN and infinities are refused at any depth."""
    if not isinstance(value, Mapping):
        raise Wrong(f"{show(value)} is not a mapping", allowed="a mapping")
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        where, inner = waiting.pop()
        if isinstance(inner, Mapping):
            waiting += [((*where, str(key)), item) for key, item in inner.items()]
        elif isinstance(inner, (list, tuple)):
            waiting += [((*where, index), item) for index, item in enumerate(inner)]
        elif isinstance(inner, float) and not math.isfinite(inner):
            raise Wrong(f"{show(inner)} is not a JSON number", where)
    return value


_PLAIN = units.matching(r"[^\s-]\S*( \S+)*", "text without a leading '-'")

_READERS: Mapping[type, Mapping[str, Callable[[Any], Any]]] = {
    **policies.READERS,
    ModuleSpec: {
        "name": name_of_module,
        "env": units.one_of(Kind),
        "code": units.optional(units.text),
        "path": units.optional(accepting(Values.FILLED)(lambda value: Path(units.filled(value)))),
        "handler": read_handler,
        "version": units.optional(
            units.matching(
                r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", "a version: up to 64 letters, digits, '.', '_', '+', '-'"
            )
        ),
        "tags": units.items(units.filled),
        "description": units.text,
        **dict.fromkeys(("requirements", "constraints"), units.items(units.text)),
        "packages_from": read_texts,
        "python": units.optional(read_python),
        "isolation": units.one_of(Isolation),
        "needs": read_needs,
        "record": units.one_of(Record),
        "rate": units.optional(policies.RATE),
        **dict.fromkeys(("timeout", "queue_timeout", "build_timeout", "start_timeout"), policies.TIMEOUT),
        "memory": units.optional(units.bytes_from(16 * 1024 * 1024)),
        "shm": units.optional(units.bytes_from(64 * 1024)),
        "cpus": units.optional(units.real(Range(above=0, high=4096))),
        "processes": units.optional(units.count(1)),
        "output": units.bytes_from(0),
        **dict.fromkeys(("calls", "concurrency"), units.count(1, policies.MOST_CALLS)),
        "calls_modules": units.items(
            units.matching(r"[a-z0-9._*?\[\]!-]{1,64}", "the name of a module, or a glob such as `report-*`")
        ),
        "on_end": on_end.read,
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
        "input_schema": units.optional(_json_schema),
        "schedules": read_schedules,
        "endpoints": endpoints.read,
        "tool": policies.read_tool,
    },
}
"""The reader of each field; fields that are missing here are of classes in this table."""


def module_shape() -> Schema:
    """Return the JSON Schema of the fields of a module in a modules file, without the rules between them."""
    shape = object_shape(ModuleSpec, _READERS)
    fields = shape["properties"]
    fields["name"] |= {"not": {"enum": [*RESERVED]}}
    for name in ("version", "python"):  # `as_written` reads 3.12 and 1.10 as text
        fields[name] = {"anyOf": [{"type": "number"}, fields[name]]}
    for name in ("requirements", "constraints", "dependencies"):  # the name of a file, and for the first two also lines
        fields[name] = {"anyOf": [{"type": "string"}, fields[name]]}
    return shape


def fields_by_kind() -> Mapping[str, tuple[Kind, ...]]:
    """Return the fields that only some kinds of environment have, with these kinds."""
    return _ONLY


def _converter() -> Converter:
    converter = Converter(unstruct_collection_overrides={tuple: list})
    converter.register_unstructure_hook(Path, str)
    converter.register_unstructure_hook(Secret, Secret.mapping)
    on_end.register(converter)
    converter.register_unstructure_hook(ScheduleSpec, schedule_fields)
    endpoints.register(converter)
    converter.register_unstructure_hook(ToolPolicy, policies.write_tool)
    for kind, readers in _READERS.items():
        converter.register_structure_hook(kind, structure_hook(converter, kind, readers))
    return converter


_CONVERTER = _converter()
