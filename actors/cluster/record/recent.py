"""`Recent`: ends of calls that wait in memory to be published. Pure."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from protocol.model import Execution

_BYTES: Final = 16 * 1024 * 1024
_MANY: Final = 4096


@define(eq=False)
class Recent:
    """Saves the outbox from reading the history, which has all of them."""

    _ends: dict[str, Execution] = field(factory=dict, init=False)
    _bytes: int = field(default=0, init=False)

    def put(self, execution: Execution) -> None:
        """Keep an end, while there is room."""
        size = _size(execution)
        if len(self._ends) < _MANY and self._bytes + size <= _BYTES:
            self._ends[execution.id] = execution
            self._bytes += size

    def take(self, name: str) -> Execution | None:
        """Return an end, and forget it; None if it is in the history only."""
        execution = self._ends.pop(name, None)
        if execution is not None:
            self._bytes -= _size(execution)
        return execution


def _size(execution: Execution) -> int:
    return len(execution.input) + len(execution.result or b"") + len(execution.events)
