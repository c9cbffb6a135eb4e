"""`Reached`: how executions of all runners are found; the actor of executions, `Runs`, does so."""

from __future__ import annotations

from typing import Protocol

from actors.executions import Live
from actors.history import Page, Query
from protocol.model import Execution


class Reaching(Protocol):
    """The owners of executions."""

    async def reach(self, name: str) -> Live | None:
        """Return an execution that has not ended. Raises RunnerError `unavailable`."""


class Recorded(Protocol):
    """The executions of all runners, as far as this one has read of them."""

    async def get(self, name: str) -> Execution | None:
        """Return an execution."""

    async def list(self, query: Query) -> Page:
        """Return executions."""


class Reached(Protocol):
    """Executions of all runners."""

    @property
    def owners(self) -> Reaching:
        """Those that have not ended."""

    @property
    def history(self) -> Recorded:
        """Those that are recorded here."""
