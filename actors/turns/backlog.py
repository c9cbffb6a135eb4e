"""The backlog: accepted executions that wait for their turn, in order within a module. Pure: no tasks, no clock.

Of a module, those with the highest priority come first, and among equals those that were accepted first. Inputs are
recorded. Some are kept here too, within a bound for all together, so that most turns need no read.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count

from protocol.model import DEFAULT_PRIORITY

KEPT_BYTES = 4 * 1024 * 1024
"""Bound of all kept inputs together, each counted with `_ENTRY_BYTES`."""
_ENTRY_BYTES = 256


class Line:
    """Names in the order in which they are taken: by priority, then by their tickets, which rise."""

    def __init__(self) -> None:
        self._tiers: dict[int, OrderedDict[str, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._tiers)

    def push(self, name: str, priority: int, ticket: int) -> None:
        """Add a name behind the others of its priority."""
        self._tiers.setdefault(priority, OrderedDict())[name] = ticket

    def pop(self) -> str:
        """Remove and return the first name. Raises ValueError without one."""
        priority = max(self._tiers)
        tier = self._tiers[priority]
        name, _ = tier.popitem(last=False)
        if not tier:
            del self._tiers[priority]
        return name

    def remove(self, name: str) -> bool:
        """Remove a name; return whether it was there."""
        for priority, tier in self._tiers.items():
            if name in tier:
                del tier[name]
                if not tier:
                    del self._tiers[priority]
                return True
        return False

    def ahead(self, name: str) -> int | None:
        """Return how many names are before this one, at most; None when it is not here."""
        before = 0
        for priority in sorted(self._tiers, reverse=True):
            tier = self._tiers[priority]
            if name in tier:
                # Tickets of other lines and of removed names lie between: the length bounds the difference.
                return before + min(tier[name] - next(iter(tier.values())), len(tier) - 1)
            before += len(tier)
        return None


class Backlog:
    """Execution ids by module, each at most once, with at most `keep` bytes of inputs."""

    def __init__(self, keep: int = KEPT_BYTES) -> None:
        self._keep = keep
        self._inputs: dict[str, bytes] = {}
        self._modules: dict[str, Line] = {}
        self._tickets = count()
        self._count = 0
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def push(self, module: str, name: str, data: bytes, priority: int = DEFAULT_PRIORITY) -> None:
        """Add the execution `name`, whose input is `data`, behind the others of its module and priority."""
        if self._keep >= len(data) + _ENTRY_BYTES:
            self._keep -= len(data) + _ENTRY_BYTES
            self._inputs[name] = data
        self._modules.setdefault(module, Line()).push(name, priority, next(self._tickets))
        self._count += 1

    def take(self, module: str, places: int) -> str | None:
        """Remove and return the execution of a module whose turn is next; None while `places` of it run.

        It runs from now on, until `occupy` says that it does not.
        """
        line = self._modules.get(module)
        if line is None or self._running.get(module, 0) >= places:
            return None
        name = line.pop()
        self._removed(module)
        self.occupy(module, 1)
        return name

    def occupy(self, module: str, change: int) -> None:
        """Change how many executions of a module run; those between two attempts do not count."""
        self._running[module] = self._running.get(module, 0) + change
        if not self._running[module]:
            del self._running[module]

    def take_input(self, name: str) -> bytes | None:
        """Remove and return the input of an execution; None when it was not kept."""
        data = self._inputs.pop(name, None)
        if data is not None:
            self._keep += len(data) + _ENTRY_BYTES
        return data

    def remove(self, module: str, name: str) -> bool:
        """Remove an execution; return whether it was there."""
        line = self._modules.get(module)
        if line is None or not line.remove(name):
            return False
        self.take_input(name)
        self._removed(module)
        return True

    def _removed(self, module: str) -> None:
        self._count -= 1
        if not self._modules[module]:
            del self._modules[module]

    def ahead(self, module: str, name: str) -> int | None:
        """Return how many executions of its module are before `name`, at most; None when it is not here."""
        line = self._modules.get(module)
        return None if line is None else line.ahead(name)

    def modules(self) -> tuple[str, ...]:
        """Return the modules that have waiting executions."""
        return tuple(self._modules)
