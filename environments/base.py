"""The interface of every kind of environment, used by the executors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from mimetypes import MimeTypes
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from attrs import evolve, field, frozen

from config.modules import ModuleSpec
from environments.limits import Hold, LimitKeeper, Limits
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Kind, Stream

Printed: TypeAlias = Callable[[Stream, bytes], None]
"""Takes output of user code, in order for each stream; empty at the end of a stream."""
MAX_STORED: Final = 10_000
"""Files that one execution may store."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_types: Final = MimeTypes()
"""The media types of suffixes that Python knows, without those of this machine."""


class ChannelClosedError(Exception):
    """The guest's end of the channel is closed: the guest has ended, or user code closed its descriptors."""

    def __init__(self, *, unread: bool = False) -> None:
        super().__init__("the channel is closed")
        self.unread = unread
        """The last frame was not read, so it had no effect."""


class InterruptedWaitError(Exception):
    """`Guest.interrupt` ended a wait for the channel."""


class StoredFile(Protocol):
    """A file in the store of the runner."""

    @property
    def described(self) -> dict[str, Any]:
        """The object inside of `$file`."""


class Writing(Protocol):
    """A file that is being stored. Left without `finish`, nothing of it remains."""

    async def write(self, data: bytes | memoryview) -> None:
        """Add bytes. Raises RunnerError `too_large`, `out_of_storage`, `unavailable`."""

    async def finish(self) -> StoredFile:
        """Return the stored file. Raises as `write`."""


Store: TypeAlias = Callable[[str, str], AbstractAsyncContextManager[Writing]]
"""Stores one file, by its name and media type. Raises RunnerError."""


def storing(store: Store | None, name: str, media_type: str, before: int) -> AbstractAsyncContextManager[Writing]:
    """Store a file that a handler made, `before` which it made others; its name shows a missing media type.

    Raises RunnerError.
    """
    if before >= MAX_STORED:
        raise error(ErrorKind.BAD_OUTPUT, f"an execution makes at most {MAX_STORED} files; put many into an archive")
    if store is None:
        raise error(ErrorKind.UNAVAILABLE, "files are not stored here: return text or numbers instead of bytes")
    return store(name, media_type or _types.guess_type(name)[0] or "")


def refusal(problem: RunnerError) -> Failure:
    """Return the failure of an execution whose file is not stored: the author chose its name and type."""
    failure = problem.failure
    return evolve(failure, kind=ErrorKind.BAD_OUTPUT) if failure.kind is ErrorKind.BAD_INPUT else failure


def not_copied(problem: OSError) -> Failure:
    """Return the failure of a call whose files cannot be copied for the worker."""
    text = f"a file of the input cannot be copied into the folder of the worker: {problem}"
    return Failure(ErrorKind.OUT_OF_STORAGE if problem.errno in _FULL else ErrorKind.UNAVAILABLE, text)


class Inbox(Protocol):
    """Files for the executions of one guest. Stored files are copied, as user code may change what it gets."""

    async def put(self, source: Path, name: str) -> str:
        """Copy a file for the next execution; return its path as the guest sees it.

        Raises OSError and ChannelClosedError. Cancelled, the guest must be ended.
        """

    async def forget(self) -> None:
        """Remove the files of the last execution."""

    def apart(self, execution: str) -> Inbox:
        """Return the inbox of one of many executions that run at a time."""


class Guest(Protocol):
    """One started guest program: a process of this machine, or a container.

    It keeps its resources until `close`. One task may receive and one may send at a time.
    """

    @property
    def name(self) -> str:
        """Its name in logs: a process id, or the short name of a container."""

    @property
    def pid(self) -> int | None:
        """Its process on this machine; None for a container."""

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""

    @property
    def inbox(self) -> Inbox:
        """Takes the files of its executions."""

    @property
    def fault(self) -> Failure | None:
        """Why it ended or never started, if user code is not the reason: the engine went away. None otherwise."""

    async def confine(self, limits: Limits, keeper: LimitKeeper) -> Hold | None:
        """Wait until the guest has started and is under its limits; return a `Hold` that checks them.

        Raises RunnerError and OSError. The caller must end the guest then, and when this is cancelled.
        """

    async def bring(self, root: Path, entry: Path) -> tuple[str, str]:
        """Make a module's code visible to the guest; return both paths as the guest sees them.

        Raises ChannelClosedError.
        """

    async def send(self, frame: bytes) -> None:
        """Write one whole frame. Cancelled or interrupted, a frame may be cut off, and the guest must be killed.

        Raises ChannelClosedError and InterruptedWaitError.
        """

    def has_spoken(self) -> bool:
        """Return, without waiting, whether there is something to receive from a guest that lives."""

    async def receive(self) -> bytes:
        """Wait for bytes of frames; never returns empty.

        Raises ChannelClosedError, FrameTooLargeError and InterruptedWaitError.
        """

    def interrupt(self) -> None:
        """Make the task that waits in `send` or `receive` raise InterruptedWaitError; without one do nothing."""

    async def tend(self, printed: Printed) -> None:
        """Pass output on for the guest's whole life; return when the guest has ended."""

    def drain(self, printed: Printed) -> None:
        """Pass the remaining output on without waiting."""

    def loaded(self, *, children: bool) -> None:
        """Note that the module is imported; if its import left processes (`children`), they belong to the guest."""

    async def end_children(self, stays: Collection[int]) -> tuple[str, ...]:
        """Kill the processes that an execution left below the guest, which lives on; return `pid name` of each.

        `stays` are helpers that belong to the guest. Not cancellable.
        """

    async def stop(self, execution: str) -> None:
        """Request a soft stop of an execution. Does nothing if the guest is gone."""

    async def end(self) -> tuple[str, ...]:
        """Kill the guest with everything below it; return `pid name` of each process that user code had started.

        Returns when all are gone. Not cancellable: an execution has ended only when its processes are gone.
        """

    async def wait_ended(self) -> int:
        """Wait until the guest itself has ended; return its exit code."""

    def close(self) -> None:
        """Release the guest's resources. It must have ended; a second call does nothing."""


@frozen
class Availability:
    """Whether a kind can be used on this machine; if not, the reason with the remedy."""

    available: bool
    reason: str = ""
    detail: Mapping[str, str] = field(factory=dict)
    limits: Mapping[str, str] = field(factory=dict)
    """How each limit is enforced, if not by this machine."""


@frozen
class Prepared:
    """An environment that is ready to start guests. Modules that share it have the same `key`."""

    key: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    built_seconds: float = 0.0


class BuildWatch(Protocol):
    """Receives the lines and steps of a build, and limits how many builds run."""

    def __call__(self, line: str) -> None:
        """Take a line of the installer's output."""

    def building(self) -> None:
        """Note that the environment is being built or pulled: here, for another module, or by another process."""

    def place(self, key: str) -> AbstractAsyncContextManager[None]:
        """Occupy one of the places for builds while `key` is built; waits while all are occupied."""


class Environment(Protocol):
    """One kind of environment."""

    @property
    def kind(self) -> Kind:
        """Which kind this is."""

    async def probe(self) -> Availability:
        """Return whether this machine has everything that the kind needs."""

    async def prepare(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Return the environment of a module, built if it does not exist; `say` gets the installer's lines.

        A build occupies `say.place(key)`. Concurrent calls for one key share one build.
        Cancelled, no partial environment is left.
        Raises RunnerError: `environment_failed` with the installer's last lines, `unavailable`.
        """

    async def lock(self, spec: ModuleSpec, say: BuildWatch) -> None:
        """Resolve and record the versions that the module does not pin; `prepare` uses them. Raises as `prepare`."""

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest that waits for its `hello`. Synchronous and quick: slow steps run in `tend`.

        Raises OSError and RunnerError.
        """

    async def mend(self, prepared: Prepared) -> bool:
        """Check the files from which a worker did not start, and write damaged ones again.

        Returns whether the environment was damaged: `prepare` builds it again then. Raises OSError.
        """

    def keep(self, keys: Collection[str]) -> None:
        """Stop using all environments but those of these keys; called while no `prepare` runs. Never blocks.

        An environment counts as used from `prepare` until then, and is not removed meanwhile.
        """


@frozen
class Known:
    """The environment that a module would have, determined without building it."""

    key: str | None
    why: str = ""
    """Why there is no key: requirements are not locked yet, or nothing has to be built."""


@frozen
class Stored:
    """A built environment. Times are seconds since the epoch; `users` are the process ids that the kernel shows."""

    key: str
    kind: str
    python: str
    path: str
    log: str
    size_bytes: int
    built_at: float
    used_at: float
    in_use: bool
    users: tuple[int, ...] = ()
    manifest: Mapping[str, Any] = field(factory=dict)


class Managed(Environment, Protocol):
    """A kind with built environments, which can be listed, removed and rebuilt."""

    async def known(self, spec: ModuleSpec) -> Known:
        """Return the key of a module's environment, without building, locking or pulling. Raises RunnerError."""

    async def stored(self) -> list[Stored]:
        """Return the built environments, by key. Raises RunnerError `unavailable` if they cannot be listed."""

    async def tidy(self) -> int:
        """Remove the remains of killed builds and removals; return how many there were."""

    async def remove(self, key: str) -> bool:
        """Remove an environment unless it is in use; return whether it was removed. Not cancellable."""

    async def rebuild(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Build a module's environment again and replace the existing one.

        Raises RunnerError `conflict`, with its users, if it is in use, and as `prepare`; nothing has changed then.
        """
