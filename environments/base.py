"""The seam between those who decide and those who run: what every kind of environment offers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from attrs import field, frozen

from config.modules import ModuleSpec
from environments.limits import Hold, LimitKeeper, Limits
from protocol.errors import Failure
from protocol.model import Kind, Stream

Printed: TypeAlias = Callable[[Stream, bytes], None]
"""Takes what user code has printed, in order for each stream; empty at the end of one."""


class ChannelClosedError(Exception):
    """The guest's end of the channel is closed: it has ended, or user code closed its descriptors."""

    def __init__(self, *, unread: bool = False) -> None:
        super().__init__("the channel is closed")
        self.unread = unread
        """What was sent last was not read before that, so nothing can have come of it."""


class Guest(Protocol):
    """One started guest program, whatever it runs in: a process of this machine, or a container.

    What it holds belongs to it until `close`. One task may receive and one may send at a time.
    """

    @property
    def name(self) -> str:
        """What logs call it: a process id, or the short name of a container."""

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""

    @property
    def fault(self) -> Failure | None:
        """Why it is gone or never came, where that is nobody's code: the engine went away. None otherwise."""

    async def confine(self, limits: Limits, keeper: LimitKeeper) -> Hold | None:
        """Wait until the guest has started and is under its limits; return what tells whether one was passed.

        Raises RunnerError and OSError; the guest is to be ended then, as it is when this is cancelled.
        """

    async def bring(self, root: Path, entry: Path) -> tuple[str, str]:
        """Bring a module's code to where the guest sees it; return both paths as the guest knows them.

        Raises ChannelClosedError.
        """

    async def send(self, frame: bytes) -> None:
        """Write one frame whole. Cancelled in between, the channel is out of step and the guest must be killed.

        Raises ChannelClosedError.
        """

    async def receive(self) -> bytes:
        """Wait for bytes of frames; never returns empty. Raises ChannelClosedError and FrameTooLargeError."""

    async def tend(self, printed: Printed) -> None:
        """Hand on what user code prints, for the guest's whole life; returns when it has ended."""

    def drain(self, printed: Printed) -> None:
        """Hand on what was printed and is not yet handed on, without waiting."""

    def loaded(self, *, children: bool) -> None:
        """Note that the module is imported: the processes that its import left (`children`) belong to the guest."""

    async def end_children(self) -> tuple[str, ...]:
        """Kill what an execution left below a guest that lives on; return `pid name` of each when all are gone.

        Not cancellable.
        """

    async def stop(self, execution: str) -> None:
        """Ask for a soft stop of an execution. Does nothing when the guest is gone."""

    async def end(self) -> tuple[str, ...]:
        """Kill the guest with everything below it; return `pid name` of what user code had started.

        Returns when all are gone. Not cancellable: an execution has ended only when its processes are gone.
        """

    async def wait_ended(self) -> int:
        """Wait until the guest itself has ended; return its exit code."""

    def close(self) -> None:
        """Give back what the guest held. It must have ended; called again this does nothing."""


@frozen
class Availability:
    """Whether a kind can be used on this machine, and why not, with the remedy."""

    available: bool
    reason: str = ""
    detail: Mapping[str, str] = field(factory=dict)
    limits: Mapping[str, str] = field(factory=dict)
    """How each limit is held, where that is not this machine's doing."""


@frozen
class Prepared:
    """An environment that is ready to start guests. `key` is the same for all modules that share it."""

    key: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    built_seconds: float = 0.0


class BuildWatch(Protocol):
    """Hears what a build does, and lets it begin."""

    def __call__(self, line: str) -> None:
        """Take a line of what the installer says."""

    def place(self) -> AbstractAsyncContextManager[None]:
        """Hold one of the places in which something is built; waits while all are taken."""


class Environment(Protocol):
    """One kind of environment."""

    @property
    def kind(self) -> Kind:
        """Which kind this is."""

    async def probe(self) -> Availability:
        """Return whether this machine has what the kind needs."""

    async def prepare(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Return the environment of a module, building it when it does not exist; `say` gets the installer's lines.

        Whoever builds holds `say.place()` meanwhile. Concurrent calls for one key share one build.
        Cancelled, nothing half-built is left.
        Raises RunnerError: `environment_failed` with the installer's last lines, `unavailable`.
        """

    async def lock(self, spec: ModuleSpec, say: BuildWatch) -> None:
        """Resolve what the module needs and does not pin, once; `prepare` takes the same. Raises as `prepare`."""

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest that waits for its `hello`. Synchronous and quick: what takes time is done in `tend`.

        Raises OSError and RunnerError.
        """

    def keep(self, keys: Collection[str]) -> None:
        """Go on using the environments of these keys and no others; called while none is prepared. Never blocks.

        What `prepare` has returned is used until then: nobody removes it.
        """


@frozen
class Known:
    """The environment that a module would have, found out without building it."""

    key: str | None
    why: str = ""
    """Why there is no key: nothing is locked yet, or there is nothing to build."""


@frozen
class Stored:
    """An environment that is kept. Times are seconds since the epoch, `users` process ids as far as they are seen."""

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
    """A kind whose environments are kept, so that they can be listed, removed and built again."""

    async def known(self, spec: ModuleSpec) -> Known:
        """Return the key of a module's environment, without building, locking or pulling. Raises RunnerError."""

    async def stored(self) -> list[Stored]:
        """Return what is kept, by key. Raises RunnerError `unavailable` when it cannot be asked for."""

    async def tidy(self) -> int:
        """Remove what builds and removals that were killed have left; return how many there were."""

    async def remove(self, key: str) -> bool:
        """Remove what is kept unless somebody uses it; return whether it was removed. Not cancellable."""

    async def rebuild(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Build a module's environment anew and put it in place of the one that is there.

        Raises RunnerError `conflict` that says who uses it, and what `prepare` raises; nothing has changed then.
        """
