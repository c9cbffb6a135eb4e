"""The seam between those who decide and those who run: what every kind of environment offers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from attrs import field, frozen

from config.modules import ModuleSpec
from environments.process import Guest
from protocol.errors import ErrorKind, error
from protocol.model import Kind


@frozen
class Availability:
    """Whether a kind can be used on this machine, and why not, with the remedy."""

    available: bool
    reason: str = ""
    detail: Mapping[str, str] = field(factory=dict)


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

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest that waits for its `hello`. Synchronous and quick. Raises OSError."""


@frozen
class AbsentEnvironment:
    """A kind that this runner cannot offer; modules of it are listed, and answered `unavailable` when called."""

    kind: Kind
    reason: str

    async def probe(self) -> Availability:
        """Return why it is absent."""
        return Availability(available=False, reason=self.reason)

    async def prepare(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:  # noqa: ARG002
        """Raise RunnerError `unavailable`."""
        raise error(ErrorKind.UNAVAILABLE, self.reason, field="env")

    def launch(self, prepared: Prepared) -> Guest:
        """Raise RunnerError `unavailable`."""
        raise error(ErrorKind.UNAVAILABLE, self.reason, field=prepared.key)
