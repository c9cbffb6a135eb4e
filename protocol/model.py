"""The nouns: kinds, executions, attempts and timings. Immutable values without behaviour.

They are structs of msgspec, because a call makes, changes (`msgspec.structs.replace`) and encodes several of them: each
of that takes a few times as long with classes of attrs.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from msgspec import Struct

from protocol.errors import Failure


class Kind(StrEnum):
    """The four kinds of environment."""

    INLINE = "inline"
    VENV = "venv"
    CONDA = "conda"
    DOCKER = "docker"


class Isolation(StrEnum):
    """The isolation between calls of one module."""

    WARM = "warm"
    """The worker is kept and the module stays imported; the default."""
    FORK = "fork"
    """Each call runs in a fork of the worker that imported the module: fresh state in milliseconds."""
    FRESH = "fresh"
    """Each call has a new interpreter or container."""
    NONE = "none"
    """In the runner's own process; only `inline`, only from the operator's file."""


class Record(StrEnum):
    """How much of its executions a module leaves in the history."""

    FULL = "full"
    """Everything; the default."""
    SUMMARY = "summary"
    """Sizes in place of input, result, output and items."""


class Status(StrEnum):
    """The states of an execution; `succeeded`, `failed` and `cancelled` are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SCHEDULED = "scheduled"
    """Accepted and recorded; it is queued at `run_at`."""

    @property
    def final(self) -> bool:
        """Whether the execution has ended."""
        return self not in (Status.RUNNING, Status.QUEUED, Status.SCHEDULED)


class Stream(StrEnum):
    """The two output streams of user code."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ModuleRef(Struct, frozen=True):
    """One version of one module."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Timings(Struct, frozen=True):
    """Seconds spent in each phase of an execution, summed over its attempts."""

    queue: float = 0.0
    build: float = 0.0
    start: float = 0.0
    load: float = 0.0
    run: float = 0.0


class Attempt(Struct, frozen=True):
    """One failed attempt that was followed by another one. Times are seconds since the epoch."""

    number: int
    """Counts from 1."""
    started_at: float
    finished_at: float
    failure: Failure
    exit_code: int | None = None
    seconds: float = 0.0
    """In the handler."""
    killed: tuple[str, ...] = ()
    """The processes that were ended by force, as `pid name`."""


class Waiting(Struct, frozen=True):
    """Why an execution does not run yet, and since when, in seconds since the epoch."""

    reason: str
    since: float


class Approval(Struct, frozen=True):
    """The decision of a person about an execution that waited for it."""

    approved: bool
    by: str
    """Who decided: the subject of the token."""
    at: float
    """In seconds since the epoch."""
    reason: str = ""


MIN_PRIORITY: Final = 0
MAX_PRIORITY: Final = 9
DEFAULT_PRIORITY: Final = 5


class Recipient(Struct, frozen=True):
    """One recipient of notices about the end of an execution: either a `url` or a `module`."""

    when: tuple[Status, ...]
    """The ends that it hears of."""
    url: str | None = None
    module: str | None = None
    secret: dict[str, str] | None = None
    """The source of the secret that signs notices to a `url`: `env` with a variable or `file` with a path."""


class Telling(Struct, frozen=True):
    """The recipients of notices about the end of an execution."""

    recipients: tuple[Recipient, ...]
    depth: int = 0
    """How many notices led to the execution, each the cause of the next one."""


class Execution(Struct, frozen=True, omit_defaults=True):
    """One call of one module version, as history keeps it and every door shows it.

    `input` and `result` are JSON as bytes and are never parsed on the way. Times are seconds since the epoch;
    `finished_at` and `exit_code` are None until the state is final; `exit_code` stays None when the end is unknown
    (`lost`).
    """

    id: str
    module: ModuleRef
    env: Kind
    status: Status
    created_at: float
    input: bytes = b"null"
    subject: str = ""
    """Who called: the subject of the token."""
    asynchronous: bool = False
    """No caller waits for its answer; it runs even after a restart of the runner."""
    node: str | None = None
    """The runner of a cluster that accepted it, then the one that runs or ran it; None on a single machine."""
    timeout: float | None = None
    """Seconds that the caller allows for each attempt, if less than the module's."""
    priority: int = DEFAULT_PRIORITY
    """0 to 9: of the queued executions of a module, those with the highest number run first."""
    run_at: float | None = None
    """When it is queued, if not at once."""
    schedule: str | None = None
    """The name of the schedule that started it."""
    scheduled_for: float | None = None
    """The instant of its schedule for which it was started."""
    rerun_of: str | None = None
    """The execution that it repeats."""
    rerun_root: str | None = None
    """The first execution of the chain of repetitions that it belongs to."""
    parent: str | None = None
    """The execution whose handler called or submitted it."""
    root: str | None = None
    """The execution at the beginning of the chain of calls that led to it; None where no handler called it."""
    depth: int = 0
    """How many calls of handlers led to it, each from within the one before."""
    reach: str | None = None
    """The globs of the modules that its first caller may use, as a JSON array; None for all. Not shown."""
    group: str | None = None
    """The value by which its module groups it, as JSON."""
    via: str | None = None
    """`mcp NAME/VERSION`: it was called as a tool, by a client that calls itself so. None for the other doors."""
    idempotency_key: str | None = None
    approval: Approval | None = None
    """The decision of the person it waited for; None before that, and for an execution that waited for none."""
    on_end: Telling | None = None
    """The recipients of notices about its end; None without any. Not shown: addresses can be secrets."""
    result: bytes | None = None
    failure: Failure | None = None
    events: bytes = b"[]"
    """The kept events as a JSON array (`protocol.events`), without the last one."""
    events_count: int = 0
    """The number of all events, which is the `seq` of the last one, `result` or `error`."""
    output_dropped: int = 0
    """Bytes of output and items that were not kept because the limit for kept output was reached."""
    exit_code: int | None = None
    attempts: int = 0
    """The number of attempts, those without an available worker included."""
    failed_attempts: tuple[Attempt, ...] = ()
    """The attempts before the last one, whose end is the end of the execution."""
    timings: Timings = Timings()
    killed: tuple[str, ...] = ()
    """The processes of the last attempt that were ended by force, as `pid name`."""
    peak_memory: int | None = None
    """Bytes of resident memory that the process of the handler had at most, where it can be measured."""
    waiting: Waiting | None = None
    """Set by those who show an execution that has not ended; it is not recorded."""
    reruns: tuple[str, ...] = ()
    """The executions that repeat it, the newest first. Set by the history where one is read; it is not recorded."""
    children: tuple[str, ...] = ()
    """The executions that its handler called or submitted, the newest first. Set and not recorded, as `reruns`."""
    started_at: float | None = None
    """When the first attempt had a worker."""
    finished_at: float | None = None
    summary: bool = False
    """The module records summaries: the history drops input, result and events, an input that waits for its turn aside.
    """
    input_bytes: int | None = None
    result_bytes: int | None = None
    output_bytes: int = 0
    """Bytes of all output, progress texts and items, kept or not; counted at the end."""
    input_hash: str | None = None
    """By which a repeated idempotency key is compared where the input is not kept."""

    @property
    def duration(self) -> float | None:
        """Seconds from acceptance to the end, or None while it is not over.

        The clock of another machine, or one that was set back, may tell the end: then it took no time.
        """
        return None if self.finished_at is None else max(0.0, self.finished_at - self.created_at)


KEY_PREFIX: Final = "opk_"
KEY_ID: Final = re.compile(r"[0-9a-f]{10}")
KEY: Final = re.compile(rf"{KEY_PREFIX}({KEY_ID.pattern})_[0-9a-f]{{48}}")
"""An API key: an identifier, which lists and logs show, and a secret of 192 bits."""
