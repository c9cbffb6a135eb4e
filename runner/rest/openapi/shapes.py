"""What the REST door says and is told, as types: `render.py` fills them, the schemas of the document are made of them.

Executions: see `protocol.views`. Every key is always there unless it is `NotRequired`. Times are seconds since 1970,
durations seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict, Union, get_args, get_type_hints

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct, field

from actors.registry import Action
from actors.workers import ExecutorStatistics
from config.modules import ModuleSpec
from protocol.errors import ErrorKind
from protocol.model import Kind, Status
from protocol.views import Json, ListedExecution, Moment
from runner.api import NOT_SHOWN


class ExecutionPage(TypedDict):
    """A page of executions, newest first; it may be short or empty and have a cursor."""

    items: list[ListedExecution]
    cursor: Annotated[str | None, Meta(description="For the next page; null when there is no more.")]


class Durations(TypedDict):
    """Seconds in the handler, of the executions that reached it; null when there were none."""

    runs: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Stats(TypedDict):
    """How the executions of a module ended in a window of time."""

    module: str
    since: Moment
    until: Moment
    total: int
    statuses: Mapping[Status, int]
    errors: Mapping[ErrorKind, int]
    success_rate: Annotated[float | None, Meta(description="Succeeded among succeeded and failed.")]
    duration: Durations


class Preparation(TypedDict):
    """An environment that is ready."""

    module: str
    version: str
    key: str | None
    built_seconds: Annotated[float, Meta(description="0 where it was there already.")]
    log: Annotated[tuple[str, ...], Meta(description="The installer's last lines.")]


class Environment(TypedDict):
    """One kind of environment on this machine."""

    env: Kind
    available: bool
    reason: Annotated[str | None, Meta(description="Why it cannot be used, and what to do.")]
    detail: Mapping[str, str]
    limits: Annotated[Mapping[str, str], Meta(description="How each limit is held.")]
    statistics: ExecutorStatistics


class Environments(TypedDict):
    """All kinds of environment."""

    items: list[Environment]


def _module(name: str, text: str, *more: tuple[str, Any]) -> type[Struct]:
    """Return what is shown of a module: the fields of its specification, those without a value left out."""
    shown: list[tuple[str, Any] | tuple[str, Any, Any]] = [("name", str), ("version", str), ("env", Kind)]
    for field_name, kind in get_type_hints(ModuleSpec).items():
        if field_name not in NOT_SHOWN:
            filled = tuple(one for one in get_args(kind) if one is not NoneType)
            nullable = NoneType in get_args(kind)
            shown.append((field_name, Union[(*filled, UnsetType)], UNSET) if nullable else (field_name, kind))
    names = Annotated[list[str], Meta(description="Names, without values.")]
    by = Annotated[str | None, Meta(description="Null where it is of the modules file.")]
    source = Literal["file", "api"]
    shown += [("variables", names), ("secrets", names), ("digest", str), ("published_at", Moment)]
    shown += [("published_by", by), ("source", source), *more]
    return defstruct(name, shown, namespace={"__doc__": text}, kw_only=True)


Module: Final = _module("Module", "A module, without its code.")
RegisteredModule: Final = _module(
    "RegisteredModule",
    "A version as it was registered.",
    ("active", Annotated[bool, Meta(description="Calls get it.")]),
)


def _described() -> type[Struct]:
    """Return what a body may say of a module: durations and sizes also as text, all but `env` optional."""
    written: dict[Any, Any] = {float: float | str, int: int | str, Path: str}
    written[get_type_hints(ModuleSpec)["secrets"]] = list[str] | Mapping[str, Mapping[str, str]]
    told: list[tuple[str, Any, Any]] = []
    for name, kind in get_type_hints(ModuleSpec).items():
        parts = get_args(kind) if NoneType in get_args(kind) else (kind,)
        told.append((name, Union[(*(written.get(part, part) for part in parts), None, UnsetType)], UNSET))
    told += [(name, bool | UnsetType, UNSET) for name in ("activate", "prepare")]
    text = "A module as the modules file describes one."
    return defstruct("DescribedModule", told, namespace={"__doc__": text}, kw_only=True, forbid_unknown_fields=True)


DescribedModule: Final = _described()


class Version(TypedDict):
    """One version of a module."""

    version: str
    active: bool
    digest: str
    published_at: Moment
    published_by: str | None


class Versions(TypedDict):
    """The versions of a module, newest first."""

    module: str
    active: Annotated[str | None, Meta(description="The one that calls get which name none.")]
    items: list[Version]


class Change(TypedDict):
    """What was done to a module."""

    id: int
    at: Moment
    subject: str
    action: Action
    module: str
    version: str | None
    detail: Mapping[str, Json]


class Audit(TypedDict):
    """A page of changes, newest first."""

    items: list[Change]
    cursor: Annotated[str | None, Meta(description="For the next page; null when there is no more.")]


class ModulePage(TypedDict):
    """Modules by name."""

    items: list[Module]  # type: ignore[valid-type]
    cursor: Annotated[str | None, Meta(description="A name, for the next page; null when there is no more.")]


class Order(Struct, forbid_unknown_fields=True):
    """The body of `POST /executions`."""

    module: str
    input: Raw = field(default_factory=lambda: Raw(b"null"))
    """What the handler is given."""
    version: str | None = None
    timeout: Annotated[float | None, Meta(description="Seconds for each attempt; can only shorten.")] = None


class Healthy(TypedDict):
    """The process answers."""

    status: Literal["ok"]


class Ready(TypedDict):
    """New work is accepted."""

    status: Literal["ready"]
    modules: int


class Problem(TypedDict):
    """A problem by RFC 9457: what never began."""

    type: str
    title: str
    status: int
    detail: str
    kind: NotRequired[ErrorKind]
    retry_after: NotRequired[Annotated[float, Meta(description="Seconds; in lines, which have no headers.")]]
    traceback: NotRequired[Annotated[str, Meta(description="The traceback of the import that failed.")]]
    field: NotRequired[Annotated[str, Meta(description="The parameter, header or path of the value at fault.")]]
    request_id: NotRequired[
        Annotated[str, Meta(description="Of an `internal` problem: search the runner's log for it.")]
    ]
