"""`ExecutionLog`: where the states of executions are recorded. `History` is that of a single machine."""

from __future__ import annotations

from typing import Protocol

from actors.history import Room
from protocol.model import Execution


class ExecutionLog(Protocol):
    """Records executions. Its methods are those of `History`, whose docstrings describe them."""

    @property
    def node(self) -> str | None:
        """The name of this runner in its cluster; None for a single machine."""

    @property
    def room(self) -> Room:
        """The room for records. An execution waits for it before its handler is called."""

    @property
    def waits_for_disk(self) -> bool:
        """Whether a refused record may exist all the same."""

    def admit(self) -> None:
        """Raise RunnerError while no execution may begin."""

    def begin(self, execution: Execution) -> None:
        """Remember an execution as running; never blocks. Raises RunnerError: then its handler must not be called."""

    async def submit(self, execution: Execution) -> None:
        """Record an execution that has not ended. Raises RunnerError when it cannot be recorded."""

    async def finish(self, execution: Execution) -> None:
        """Record the end of an execution. Raises RunnerError: then the end must not be acknowledged."""

    def release(self, name: str) -> None:
        """Forget an execution that has no end here."""

    def append(self, name: str, events: bytes, first_seq: int, forget: tuple[int, int] | None = None) -> None:
        """Add events of a running execution, as well as it can. Never blocks nor raises."""
