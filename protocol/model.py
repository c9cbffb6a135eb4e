"""The nouns: what runs, where it runs, and what became of it. Immutable values without behaviour of their own."""

from __future__ import annotations

from enum import StrEnum

from attrs import field, frozen

from protocol.errors import Failure


class Kind(StrEnum):
    """The four kinds of environment."""

    INLINE = "inline"
    VENV = "venv"
    CONDA = "conda"
    DOCKER = "docker"


class Isolation(StrEnum):
    """How far one call is kept from the next one of the same module."""

    WARM = "warm"
    """The worker is kept and the module stays imported; the default."""
    FORK = "fork"
    """Each call runs in a fork of the worker that imported the module: fresh state in milliseconds."""
    FRESH = "fresh"
    """Each call has a new interpreter or container."""
    NONE = "none"
    """In the runner's own process; only `inline`, only from the operator's file."""


class Status(StrEnum):
    """The states of an execution; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (Status.QUEUED, Status.RUNNING)


class Stream(StrEnum):
    """The two output streams of user code."""

    STDOUT = "stdout"
    STDERR = "stderr"


@frozen
class ModuleRef:
    """One version of one module."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@frozen
class Timings:
    """Seconds spent in each phase of an execution, summed over its attempts."""

    queue: float = 0.0
    build: float = 0.0
    start: float = 0.0
    load: float = 0.0
    run: float = 0.0


@frozen
class OutputChunk:
    """A piece of what user code printed; `seq` counts the chunks of one execution from 0 over both streams."""

    seq: int
    stream: Stream
    text: str


@frozen
class Execution:
    """One call of one module version, as history keeps it and every door shows it.

    `input` and `result` are JSON as bytes and are never parsed on the way. Times are seconds since the epoch;
    `finished_at` and `exit_code` are None until the state is final.
    """

    id: str
    module: ModuleRef
    env: Kind
    status: Status
    created_at: float
    input: bytes = b"null"
    subject: str = ""
    result: bytes | None = None
    failure: Failure | None = None
    output: tuple[OutputChunk, ...] = field(default=())
    output_dropped: int = 0
    """Bytes of output that were not kept because the limit for kept output was reached."""
    exit_code: int | None = None
    attempts: int = 0
    timings: Timings = field(factory=Timings)
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def duration(self) -> float | None:
        """Seconds from acceptance to the end, or None while it is not over."""
        return None if self.finished_at is None else self.finished_at - self.created_at

    def text(self, stream: Stream) -> str:
        """Return all kept text of one stream."""
        return "".join(chunk.text for chunk in self.output if chunk.stream is stream)
