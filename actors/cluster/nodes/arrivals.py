"""Executions that another runner has recorded, and that are on their way to the history of this one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from weakref import WeakValueDictionary

import trio
from attrs import define, field

from protocol.errors import ErrorKind, error
from protocol.model import Execution

_SECONDS: Final = 2.0
"""The longest wait."""


@define(eq=False)
class Arrivals:
    """Those who wait until the history has an execution."""

    get: Callable[[str], Awaitable[Execution | None]]
    """Finds an execution in the history of this runner."""
    _awaited: WeakValueDictionary[str, trio.Event] = field(factory=WeakValueDictionary, init=False)

    def tell(self, name: str) -> None:
        """Note that the history has got a state of this execution. Not a checkpoint."""
        arrived = self._awaited.get(name)
        if arrived is not None:
            arrived.set()

    async def wait(self, name: str, node: str) -> Execution:
        """Return the record of an execution which this runner has. Raises RunnerError `unavailable`."""
        arrived = self._awaited.setdefault(name, trio.Event())
        record = await self.get(name)
        if record is None:
            with trio.move_on_after(_SECONDS):
                await arrived.wait()
                record = await self.get(name)
        if record is None:
            text = f"the runner {node} has recorded the execution {name}, and this runner not yet"
            raise error(ErrorKind.UNAVAILABLE, text, field="id", retry_after=1)
        return record
