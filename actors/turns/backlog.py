"""The backlog: accepted executions that wait for their turn, in order within a module. Pure: no tasks, no clock.

Of a module, those with the highest priority come first, and among equals those that were accepted first; those of a
group that may not run now are passed over. Inputs are recorded. Some are kept here too, within a bound for all
together, so that most turns need no read.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
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

    def first(self) -> tuple[int, int]:
        """Return the rank of the first name: the lower one of two lines is served first. Raises ValueError."""
        priority = max(self._tiers)
        return -priority, next(iter(self._tiers[priority].values()))

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


class Lines:
    """The waiting executions of one module: a line for each group, and one for those without."""

    def __init__(self) -> None:
        self._lines: dict[str | None, Line] = {}
        self._ranked: list[tuple[tuple[int, int], str]] = []
        """A heap of ranks and groups ("" for none), some of them outdated; a line that was passed over is not in it."""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def push(self, name: str, priority: int, ticket: int, group: str | None) -> None:
        """Add a name."""
        line = self._lines.setdefault(group, Line())
        line.push(name, priority, ticket)
        if line.first() == (-priority, ticket):
            self.rank(group)

    def pop(self, full: Callable[[str], bool]) -> tuple[str, str | None] | None:
        """Remove and return the first name whose group is not `full`, and its group.

        Groups that were full are passed over until `rank` is called for them.
        """
        while self._ranked:
            rank, named = heapq.heappop(self._ranked)
            group = named or None
            line = self._lines.get(group)
            if line is None or line.first() != rank or (group is not None and full(group)):
                continue
            name = line.pop()
            self._ended(group)
            return name, group
        return None

    def remove(self, name: str, group: str | None) -> bool:
        """Remove a name; return whether it was there."""
        line = self._lines.get(group)
        if line is None or not line.remove(name):
            return False
        self._ended(group)
        return True

    def _ended(self, group: str | None) -> None:
        if self._lines[group]:
            self.rank(group)
        else:
            del self._lines[group]

    def rank(self, group: str | None) -> None:
        """Let a group be served again."""
        line = self._lines.get(group)
        if line is None:
            return
        heapq.heappush(self._ranked, (line.first(), group or ""))
        if len(self._ranked) > 2 * len(self._lines) + 64:  # most are outdated
            self._ranked = [(line.first(), group or "") for group, line in self._lines.items()]
            heapq.heapify(self._ranked)

    def ahead(self, name: str, group: str | None) -> int | None:
        """Return how many names of its group are before this one, at most; None when it is not here."""
        line = self._lines.get(group)
        return None if line is None else line.ahead(name)


def _never(_group: str) -> bool:
    return False


class Backlog:
    """Execution ids by module, each at most once, with at most `keep` bytes of inputs."""

    def __init__(self, keep: int = KEPT_BYTES) -> None:
        self._keep = keep
        self._inputs: dict[str, bytes] = {}
        self._modules: dict[str, Lines] = {}
        self._tickets = count()
        self._count = 0
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def push(
        self, module: str, name: str, data: bytes, priority: int = DEFAULT_PRIORITY, group: str | None = None
    ) -> None:
        """Add the execution `name`, whose input is `data`, behind the others of its module and priority."""
        if self._keep >= len(data) + _ENTRY_BYTES:
            self._keep -= len(data) + _ENTRY_BYTES
            self._inputs[name] = data
        self._modules.setdefault(module, Lines()).push(name, priority, next(self._tickets), group)
        self._count += 1

    def take(self, module: str, places: int, full: Callable[[str], bool] = _never) -> tuple[str, str | None] | None:
        """Remove and return the execution of a module whose turn is next, and its group; None while `places` of it run.

        It runs from now on, until `occupy` says that it does not. Executions of `full` groups are passed over.
        """
        lines = self._modules.get(module)
        if lines is None or self._running.get(module, 0) >= places:
            return None
        found = lines.pop(full)
        if found is not None:
            self._removed(module)
            self.occupy(module, 1)
        return found

    def free(self, module: str, group: str) -> None:
        """Let a group that was full be served again."""
        lines = self._modules.get(module)
        if lines is not None:
            lines.rank(group)

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

    def remove(self, module: str, name: str, group: str | None = None) -> bool:
        """Remove an execution; return whether it was there."""
        lines = self._modules.get(module)
        if lines is None or not lines.remove(name, group):
            return False
        self.take_input(name)
        self._removed(module)
        return True

    def _removed(self, module: str) -> None:
        self._count -= 1
        if not self._modules[module]:
            del self._modules[module]

    def ahead(self, module: str, name: str, group: str | None = None) -> int | None:
        """Return how many executions of its module and group are before `name`, at most; None when it is not here."""
        lines = self._modules.get(module)
        return None if lines is None else lines.ahead(name, group)

    def modules(self) -> tuple[str, ...]:
        """Return the modules that have waiting executions."""
        return tuple(self._modules)
