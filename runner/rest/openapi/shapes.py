"""The types of the JSON in requests and answers: `render.py` fills them, and the document takes its schemas from them.

Executions are in `protocol.views`. Every key is present unless it is `NotRequired`. Times are seconds since 1970,
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
from config.modules import Algorithm, Auth, Encoding, Method, ModuleSpec, Scheme
from protocol.errors import ErrorKind
from protocol.events import Error
from protocol.model import Kind, Status
from protocol.views import Json, ListedExecution, Moment
from runner.api import NOT_SHOWN, SAME, BuiltEnvironment, ShownTool, ShownWorker


class ExecutionPage(TypedDict):
    """A page of executions, newest first. A page with a cursor may be short or empty."""

    items: list[ListedExecution]
    cursor: Annotated[str | None, Meta(description="For the next page; null on the last page.")]


class Durations(TypedDict):
    """Seconds in the handler, of the executions that reached it; null if there were none."""

    runs: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Stats(TypedDict):
    """The executions of a module that ended in a window of time."""

    module: str
    since: Moment
    until: Moment
    total: int
    statuses: Mapping[Status, int]
    errors: Mapping[ErrorKind, int]
    success_rate: Annotated[float | None, Meta(description="Succeeded, divided by succeeded and failed.")]
    duration: Durations


class Preparation(TypedDict):
    """An environment that is ready."""

    module: str
    version: str
    key: str | None
    built_seconds: Annotated[float, Meta(description="0 if it was built before.")]
    log: Annotated[tuple[str, ...], Meta(description="The last lines of the installer.")]


class Environment(TypedDict):
    """One kind of environment on this machine."""

    env: Kind
    available: bool
    reason: Annotated[str | None, Meta(description="Why it cannot be used, and the remedy.")]
    detail: Mapping[str, str]
    limits: Annotated[Mapping[str, str], Meta(description="How each limit is enforced.")]
    statistics: ExecutorStatistics


class Environments(TypedDict):
    """All kinds of environment."""

    items: list[Environment]


class BuiltEnvironments(TypedDict):
    """All built environments, the largest first."""

    items: list[BuiltEnvironment]


class Workers(TypedDict):
    """All workers, by module."""

    items: list[ShownWorker]


class ShownSignature(TypedDict):
    """How the requests of an endpoint are signed; secrets by their names."""

    secret: list[str]
    scheme: NotRequired[Scheme]
    header: NotRequired[str]
    algorithm: NotRequired[Algorithm]
    encoding: NotRequired[Encoding]
    prefix: NotRequired[str]
    tolerance: NotRequired[float]


class ShownEndpoint(TypedDict):
    """A route of a module."""

    path: str
    methods: list[Method]
    auth: Auth
    signature: NotRequired[ShownSignature]
    wait: bool
    url: Annotated[str, Meta(description="For this client; a path where the address of the server is not set.")]


class ShownRecipient(TypedDict):
    """A recipient of notices: a module, or the scheme, host and port of a URL."""

    module: NotRequired[str]
    url: NotRequired[str]
    when: list[Status]


def _module(name: str, text: str, *more: tuple[str, Any]) -> type[Struct]:
    """Return the type of a module in answers: the fields of its specification, without those that have no value."""
    shown: list[tuple[str, Any] | tuple[str, Any, Any]] = [("name", str), ("version", str), ("env", Kind)]
    for field_name, kind in {
        **get_type_hints(ModuleSpec),
        "endpoints": list[ShownEndpoint],
        "tool": bool | ShownTool,
    }.items():
        if field_name not in NOT_SHOWN:
            filled = tuple(one for one in get_args(kind) if one is not NoneType)
            nullable = NoneType in get_args(kind)
            shown.append((field_name, Union[(*filled, UnsetType)], UNSET) if nullable else (field_name, kind))
    names = Annotated[list[str], Meta(description="Names, without values.")]
    by = Annotated[str | None, Meta(description="Null for a module of the modules file.")]
    source = Literal["file", "api"]
    files = Annotated[list[str], Meta(description="The files that its packages came from.")]
    shown += [("variables", names), ("secrets", names), ("on_end", list[ShownRecipient])]
    shown += [("digest", str), ("published_at", Moment)]
    result = Annotated[dict[str, Any] | UnsetType, Meta(description="JSON Schema of the result, from the type hint.")]
    shown += [
        ("published_by", by),
        ("source", source),
        ("packages_from", files),
        ("output_schema", result, UNSET),
        *more,
    ]
    return defstruct(name, shown, namespace={"__doc__": text}, kw_only=True)


Module: Final = _module("Module", "A module, without its code.")
RegisteredModule: Final = _module(
    "RegisteredModule",
    "A version after its registration.",
    ("active", Annotated[bool, Meta(description="Whether it is the version used by calls that name none.")]),
)


def _described() -> type[Struct]:
    """Return the type of a module in a body: durations and sizes also as text, all fields optional."""
    written: dict[Any, Any] = {float: float | str, int: int | str, Path: str}
    written[get_type_hints(ModuleSpec)["secrets"]] = list[str] | Mapping[str, Mapping[str, str]]
    fields: list[tuple[str, Any, Any]] = []
    for name, kind in get_type_hints(ModuleSpec).items():
        parts = get_args(kind) if NoneType in get_args(kind) else (kind,)
        fields.append((name, Union[(*(written.get(part, part) for part in parts), None, UnsetType)], UNSET))
    fields += [(name, bool | UnsetType, UNSET) for name in ("activate", "prepare")]
    text = "A module in the form of the modules file."
    return defstruct("DescribedModule", fields, namespace={"__doc__": text}, kw_only=True, forbid_unknown_fields=True)


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
    active: Annotated[str | None, Meta(description="The version used by calls that name none.")]
    items: list[Version]


class Change(TypedDict):
    """One change of a module."""

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
    cursor: Annotated[str | None, Meta(description="For the next page; null on the last page.")]


class Key(TypedDict):
    """An API key, without its secret."""

    id: str
    name: str
    scopes: list[str]
    modules: Annotated[list[str] | None, Meta(description="Globs of module names; null for all modules.")]
    created_at: Moment
    created_by: str
    expires_at: Moment | None
    used_at: Annotated[Moment | None, Meta(description="Its last use, exact to a minute.")]
    revoked_at: Moment | None
    revoked_by: str | None


class CreatedKey(Key):
    """An API key that was created."""

    key: Annotated[str, Meta(description="The key. It is shown this one time.")]


class KeyPage(TypedDict):
    """A page of API keys, the newest first."""

    items: list[Key]
    cursor: Annotated[str | None, Meta(description="For the next page; null on the last page.")]


class ModulePage(TypedDict):
    """Modules by name."""

    items: list[Module]  # type: ignore[valid-type]
    cursor: Annotated[str | None, Meta(description="A name, for the next page; null when there is no more.")]


class Order(Struct, forbid_unknown_fields=True):
    """The body of `POST /executions`."""

    module: str
    input: Raw = field(default_factory=lambda: Raw(b"null"))
    """The input of the handler."""
    version: str | None = None
    timeout: Annotated[
        float | None, Meta(description="Time limit of each attempt in seconds; it can only shorten the module's own.")
    ] = None
    priority: Annotated[
        int | None,
        Meta(description="0 to 9, by default 5; of the queued executions of a module, the highest runs first."),
    ] = None
    run_at: Annotated[
        float | str | None, Meta(description="When it is queued: seconds since 1970, or a time with its zone.")
    ] = None
    delay: Annotated[
        float | str | None, Meta(description="After how long it is queued: seconds, or text such as 15m; or `run_at`.")
    ] = None


class Decision(Struct, forbid_unknown_fields=True):
    """Why an execution is approved or denied."""

    reason: Annotated[str, Meta(max_length=500, description="For those who read the record.")] = ""


class Repetition(Struct, forbid_unknown_fields=True):
    """How an execution is repeated."""

    version: Annotated[str, Meta(description="`same`, `active`, or the name of one.")] = SAME
    input: Raw | UnsetType = UNSET
    """In place of the same input."""


class Repetitions(Struct, forbid_unknown_fields=True):
    """How the executions of a list are repeated."""

    version: Annotated[str, Meta(description="`same`, `active`, or the name of one.")] = SAME


class Repeated(TypedDict):
    """What became of one execution of a list."""

    id: str
    module: str
    version: str
    rerun: Annotated[str | None, Meta(description="The ID of its repetition; null in a dry run.")]
    problem: Annotated[Error | None, Meta(description="Why it is not repeated.")]


class RepeatedPage(TypedDict):
    """The executions of one page of the list, the oldest first."""

    dry_run: bool
    items: list[Repeated]
    cursor: Annotated[str | None, Meta(description="For the next page; null on the last page.")]


class CancelledExecution(TypedDict):
    """What became of one execution of a list."""

    id: str
    module: str
    version: str
    status: Status
    problem: Annotated[Error | None, Meta(description="Why it is not cancelled.")]


class CancelledPage(TypedDict):
    """The executions that were cancelled."""

    dry_run: bool
    items: list[CancelledExecution]
    more: Annotated[bool, Meta(description="Whether more executions match.")]


class File(TypedDict):
    """A stored file."""

    id: Annotated[str, Meta(description="`sha256:` and the digest of the content.")]
    name: str
    type: str
    size: int


class NamedFile(TypedDict("NamedFile", {"$file": File})):
    """A stored file as it is written in inputs and results."""


class ListedFile(File):
    """A stored file in a list."""

    created_at: Annotated[Moment, Meta(description="The latest upload.")]


class FilePage(TypedDict):
    """A page of files, newest first."""

    items: list[ListedFile]
    cursor: Annotated[str | None, Meta(description="For the next page; null on the last page.")]


class CollectedFiles(TypedDict):
    """What was deleted."""

    files: int
    bytes: int


class Index(TypedDict):
    """Where to go from here."""

    name: Literal["operato-runner"]
    version: str
    links: Annotated[Mapping[str, str], Meta(description="Paths of other routes, for this client.")]


class Healthy(TypedDict):
    """The process answers."""

    status: Literal["ok"]


class Ready(TypedDict):
    """The runner accepts work."""

    status: Literal["ready"]
    modules: int
    damaged: NotRequired[list[Literal["code", "files", "history", "journal", "keys", "modules"]]]
    """Stores that were found damaged; the log has the details."""


class Problem(TypedDict):
    """A problem (RFC 9457): the answer to a request that began no execution."""

    type: str
    title: str
    status: int
    detail: str
    kind: NotRequired[ErrorKind]
    retry_after: NotRequired[Annotated[float, Meta(description="Seconds; only in JSON lines, which have no headers.")]]
    traceback: NotRequired[Annotated[str, Meta(description="The traceback of the import that failed.")]]
    field: NotRequired[Annotated[str, Meta(description="The parameter, header or path of the value at fault.")]]
    request_id: NotRequired[
        Annotated[str, Meta(description="Of an `internal` problem: search the runner's log for it.")]
    ]
