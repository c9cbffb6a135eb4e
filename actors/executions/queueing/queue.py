"""`Queue`: where accepted executions wait for their turn. The `Dispatcher` is that of a single machine."""

from __future__ import annotations

from typing import Protocol

from actors.executions.live import Live
from actors.registry import Published
from protocol.model import Execution


class Queue(Protocol):
    """The accepted executions that wait for a place, on this runner or on any runner of a cluster."""

    def check_room(self, module: Published) -> None:
        """Raise RunnerError when no further execution of a module may wait: `overloaded`, `unavailable`, `shutdown`."""

    def takes_calls(self, module: Published) -> bool:
        """Return whether calls whose callers wait have their turns here too: limits of the module are of all runners.

        Raises RunnerError `unavailable` when no runner may run the module.
        """

    async def put(self, module: Published, execution: Execution) -> Live:
        """Let an execution that is recorded as queued wait, and before that for a person if its module asks for one.

        Returns it as its callers read, follow and cancel it. It may be here already.
        """

    def push(self, live: Live) -> None:
        """Let an execution that a person has approved wait for its turn. Never blocks."""
