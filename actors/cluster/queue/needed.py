"""What the queue needs of other parts of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from attrs import frozen

from actors.cluster.letters import Author, Letter
from actors.cluster.life import State
from actors.executions import Live
from actors.registry import Published
from protocol.model import Execution


class Record(Protocol):
    """The log of executions."""

    async def state(self, name: str) -> State | None:
        """Return the last letter about an execution, with its parts. Raises AwayError and UnreadableError."""

    async def publish(self, letter: Letter, expect: int) -> int:
        """Publish a decision about an execution, and return its sequence. Raises StaleError and AwayError."""

    async def take(self, state: State, execution: Execution) -> None:
        """Prepare to run an execution here: the next state that is recorded follows `state`.

        The local history has it when this returns. Raises RunnerError.
        """

    def known(self, name: str) -> int:
        """Return the sequence of the last letter about an execution of this runner; 0 when it has none."""

    def owe(self, name: str) -> None:
        """Have the job of an execution put as soon as the engine answers."""

    def settled(self, name: str) -> bool:
        """Return whether the end of an execution, which is recorded here, is in the log."""


class Presence(Protocol):
    """The runners that are there."""

    def alive(self) -> Collection[str] | None:
        """Return the boots of all runners; None when they are not known yet."""

    def offers(self) -> Iterable[Collection[str]]:
        """Return the labels and kinds of environment of each runner, except perhaps this one."""

    def nodes(self) -> Collection[str]:
        """Return the names of the runners that are there, this one included."""

    def modules(self) -> Iterable[str | None]:
        """Return the digest of the modules file of each runner, this one included."""


@frozen
class Around:
    """The parts of the cluster that the queue uses."""

    me: Author
    record: Record
    presence: Presence
    mirror: Callable[[Published, Execution], Live]
    """Returns an execution that another runner may run, as callers follow and cancel it."""
