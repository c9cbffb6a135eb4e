"""Lanes: the parts of the queue that have a consumer of their own, and which jobs are in which. Pure.

Most modules share a few general lanes of their kind of environment by the hash of their names, because each consumer
costs the engine something. Those with a limit that holds over all runners have a lane each, and those that need the
same labels have one together. A kind of environment counts as a label, since a runner may lack it.
All versions of a module are in one lane: when a version is replaced, its jobs run as the one that follows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import Final

from attrs import frozen

from config.cluster import missing_labels
from config.modules import MOST_CALLS, WORKERS, ModuleSpec
from protocol.model import Isolation, Kind

GENERAL: Final = 32
"""Lanes that modules of one kind share."""
WARM: Final = 0
"""Priority of a runner with a worker for the job: the lowest number is served first."""
PREPARED: Final = 3
"""Of one that has the environment."""
UNPREPARED: Final = 5
"""Of one that must build it."""
FAILING: Final = 8
"""Of one where the last start of the module failed a moment ago."""
UNFIT: Final = 9
"""Of one that could not run a job of the lane a moment ago, which another may: its release or its modules differ."""
_KIND: Final = "env: {}"
"""A kind of environment beside labels, which have no blanks."""


@frozen
class Lane:
    """One consumer of the queue."""

    name: str
    limit: int | None = None
    """Jobs that run at a time on all runners together; None where each runner has its own limit."""
    pinned: bool = False
    """One runner at a time gets all jobs, and its rates and groups hold for all."""
    needs: tuple[str, ...] = ()
    """What the runners have that pull from it."""

    @property
    def shared(self) -> bool:
        """Whether limits of a module hold over all runners, so that its calls too have their turns here."""
        return self.pinned or self.limit is not None

    def fits(self, offers: Collection[str]) -> bool:
        """Return whether a runner that offers this may run its jobs."""
        return not missing_labels(self.needs, offers)


def offered(labels: Iterable[str], kinds: Iterable[str]) -> tuple[str, ...]:
    """Return what a runner offers: its labels, and the kinds of environment that it can use now."""
    return (*labels, *map(_KIND.format, kinds))


def lane_of(spec: ModuleSpec) -> Lane:
    """Return the lane of a module."""
    needs = spec.needs if spec.isolation is Isolation.NONE else (*spec.needs, *_needs_of(spec.env))
    if spec.rate is not None or spec.group is not None:
        return Lane(f"p{_hash(spec.name)}", pinned=True, needs=needs)
    if limits_concurrency(spec):
        return Lane(f"c{_hash(spec.name)}", limit=spec.concurrency, needs=needs)
    if spec.needs:
        return Lane(f"n{_hash(','.join(needs))}", needs=needs)
    return general(spec.name, spec.env)


def general(name: str, kind: Kind) -> Lane:
    """Return the lane of a module of this kind of environment, without limits and labels."""
    return Lane(f"g{int(_hash(name), 16) % GENERAL:02d}{kind}", needs=_needs_of(kind))


def _needs_of(kind: Kind) -> tuple[str, ...]:
    """Return what a module needs for its kind; every runner has `inline`."""
    return () if kind is Kind.INLINE else (_KIND.format(kind),)


def limits_concurrency(spec: ModuleSpec) -> bool:
    """Return whether the `concurrency` of a module holds over all runners; the default is per runner."""
    return spec.concurrency != min(MOST_CALLS, WORKERS * spec.calls)


def priority_of(*, warm: bool, prepared: bool, failing: bool) -> int:
    """Return the priority with which a runner asks for jobs of a module."""
    if warm:
        return WARM
    if failing:
        return FAILING
    return PREPARED if prepared else UNPREPARED


def unmet(needs: Collection[str]) -> str:
    """Return why no runner runs a module: none has the labels and the kind of environment that it needs."""
    return f"no runner has all that the module needs: {', '.join(needs)}"


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]
