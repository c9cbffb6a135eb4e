"""The executions that called each other, as a tree."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Final

from attrs import frozen

from actors.history import Query
from protocol.errors import RunnerError
from protocol.model import Execution
from runner.ui.visit import Visit

_MOST: Final = 100


@frozen
class Member:
    """One execution with those that it called, the first one first."""

    execution: Execution
    current: bool
    """Whether the page is about it."""
    children: tuple[Member, ...]


@frozen
class Family:
    """The tree of one chain of calls."""

    root: str
    """The ID of the first execution."""
    members: tuple[Member, ...]
    """The first execution; besides it those whose parent is not among the members."""
    shown: int
    more: bool


async def family_of(page: Visit, execution: Execution) -> Family | None:
    """Return the executions that called each other, None for one that called none and was called by none."""
    root = execution.root or execution.id
    found = await page.service.list(page.principal, Query(root=root, limit=_MOST))
    known = {each.id: each for each in found.items} | {execution.id: execution}
    if len(known) == 1 and execution.parent is None:
        return None
    if root not in known:
        with suppress(RunnerError):  # it is deleted, or of a module that the reader may not use
            known[root] = await page.service.get(page.principal, root)
    return Family(root, tree(known, execution.id), len(found.items), found.next_cursor is not None)


def tree(known: dict[str, Execution], current: str) -> tuple[Member, ...]:
    """Return executions as trees, in the order of their creation. Pure."""
    below: defaultdict[str | None, list[Execution]] = defaultdict(list)
    for each in sorted(known.values(), key=lambda each: (each.created_at, each.id)):
        below[each.parent if each.parent in known else None].append(each)

    def member(each: Execution) -> Member:
        return Member(each, each.id == current, tuple(map(member, below[each.id])))

    return tuple(map(member, below[None]))
