"""The backlog: accepted executions that wait for their turn, in order within a module. Pure: no tasks, no clock.

Inputs are recorded. Some are kept here too, within a bound for all together, so that most turns need no read.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count

KEPT_BYTES = 4 * 1024 * 1024
"""Bound of all kept inputs together, each counted with `_ENTRY_BYTES`."""
_ENTRY_BYTES = 256


class Backlog:
    """Execution ids by module, each at most once, with at most `keep` bytes of inputs."""

    def __init__(self, keep: int = KEPT_BYTES) -> None:
        self._keep = keep
        self._inputs: dict[str, bytes] = {}
        self._modules: dict[str, OrderedDict[str, int]] = {}
        self._tickets = count()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, module: str, name: str, data: bytes) -> None:
        """Add the execution `name`, whose input is `data`, behind the others of its module."""
        if self._keep >= len(data) + _ENTRY_BYTES:
            self._keep -= len(data) + _ENTRY_BYTES
            self._inputs[name] = data
        self._modules.setdefault(module, OrderedDict())[name] = next(self._tickets)
        self._count += 1

    def pop(self, module: str) -> str | None:
        """Remove and return the oldest of a module."""
        waiting = self._modules.get(module)
        if not waiting:
            return None
        name, _ = waiting.popitem(last=False)
        self._removed(module)
        return name

    def take_input(self, name: str) -> bytes | None:
        """Remove and return the input of an execution; None when it was not kept."""
        data = self._inputs.pop(name, None)
        if data is not None:
            self._keep += len(data) + _ENTRY_BYTES
        return data

    def remove(self, module: str, name: str) -> bool:
        """Remove an execution; return whether it was there."""
        waiting = self._modules.get(module, OrderedDict())
        if name not in waiting:
            return False
        del waiting[name]
        self.take_input(name)
        self._removed(module)
        return True

    def _removed(self, module: str) -> None:
        self._count -= 1
        if not self._modules[module]:
            del self._modules[module]

    def ahead(self, module: str, name: str) -> int | None:
        """Return how many executions of its module are before `name`, at most; None when it is not here."""
        waiting = self._modules.get(module, OrderedDict())
        if name not in waiting:
            return None
        # Tickets of other modules and of removed executions lie between: the length bounds the difference.
        return min(waiting[name] - next(iter(waiting.values())), len(waiting) - 1)

    def modules(self) -> tuple[str, ...]:
        """Return the modules that have waiting executions."""
        return tuple(self._modules)
