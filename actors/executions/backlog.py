"""Accepted executions that wait for their turn, in order within a module. Pure: no tasks, no clock.

Inputs are on record. Some of them are kept here too, within a bound for all, so that a turn need not begin with a read.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count

KEPT_BYTES = 4 * 1024 * 1024
"""Of all inputs together, each with `_ENTRY_BYTES` for its place."""
_ENTRY_BYTES = 256


class Backlog:
    """Ids by module; each id is in it at most once. At most `keep` bytes of inputs."""

    def __init__(self, keep: int = KEPT_BYTES) -> None:
        self._keep = keep
        self._inputs: dict[str, bytes] = {}
        self._modules: dict[str, OrderedDict[str, int]] = {}
        self._tickets = count()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, module: str, name: str, data: bytes) -> None:
        """Add the execution `name`, whose input is `data`, behind those of its module."""
        if self._keep >= len(data) + _ENTRY_BYTES:
            self._keep -= len(data) + _ENTRY_BYTES
            self._inputs[name] = data
        self._modules.setdefault(module, OrderedDict())[name] = next(self._tickets)
        self._count += 1

    def pop(self, module: str) -> str | None:
        """Take the oldest of a module."""
        waiting = self._modules.get(module)
        if not waiting:
            return None
        name, _ = waiting.popitem(last=False)
        self._took(module)
        return name

    def take_input(self, name: str) -> bytes | None:
        """Return the input of an execution and forget it; None where it was not kept."""
        data = self._inputs.pop(name, None)
        if data is not None:
            self._keep += len(data) + _ENTRY_BYTES
        return data

    def remove(self, module: str, name: str) -> bool:
        """Take one out; return whether it was there."""
        waiting = self._modules.get(module, OrderedDict())
        if name not in waiting:
            return False
        del waiting[name]
        self.take_input(name)
        self._took(module)
        return True

    def _took(self, module: str) -> None:
        self._count -= 1
        if not self._modules[module]:
            del self._modules[module]

    def ahead(self, module: str, name: str) -> int | None:
        """Return how many of its module are before `name`, at most; None when it is not here."""
        waiting = self._modules.get(module, OrderedDict())
        if name not in waiting:
            return None
        # Tickets of other modules, and of those taken out, lie between: the length bounds what they add.
        return min(waiting[name] - next(iter(waiting.values())), len(waiting) - 1)

    def modules(self) -> tuple[str, ...]:
        """Return the modules of which some wait."""
        return tuple(self._modules)
