"""Accepted executions that wait for their turn, in order within a module. Pure: ids and names, no tasks, no clock."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count


class Backlog:
    """Ids by module; each id is in it at most once."""

    def __init__(self) -> None:
        self._modules: dict[str, OrderedDict[str, int]] = {}
        self._tickets = count()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, module: str, name: str) -> None:
        """Add the execution `name` behind those of its module."""
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

    def remove(self, module: str, name: str) -> bool:
        """Take one out; return whether it was there."""
        waiting = self._modules.get(module, OrderedDict())
        if name not in waiting:
            return False
        del waiting[name]
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
