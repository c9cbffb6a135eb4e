"""Exception groups: a nursery raises one even when a single task has failed."""

from __future__ import annotations

from collections.abc import Iterator


def leaves(problem: BaseException) -> Iterator[BaseException]:
    """Return the exceptions in a group, groups inside it included; an exception that is no group is its only leaf."""
    if isinstance(problem, BaseExceptionGroup):
        for inner in problem.exceptions:
            yield from leaves(inner)
    else:
        yield problem
