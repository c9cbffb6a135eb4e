"""The runners of a cluster, as each tells the others about itself and as every door shows them."""

from __future__ import annotations

from msgspec import Struct


class Load(Struct, frozen=True):
    """The work of one kind of environment that a runner can use."""

    places: int
    """Workers that may run at a time."""
    busy: int = 0
    waiting: int = 0
    """Callers without a worker."""


class Presence(Struct, frozen=True):
    """One runner at a moment. Fields that a later release adds are ignored."""

    node: str
    boot: str
    """Random, another one after each start."""
    release: str
    letters: int
    """The version of the letters that it writes and reads."""
    started_at: float
    labels: tuple[str, ...] = ()
    kinds: dict[str, Load] = {}
    """By the names of the kinds of environment that it can use."""
    running: int = 0
    """Executions that it runs."""
    queued: int = 0
    """Accepted executions that wait on this runner."""
    awaiting: int = 0
    """Executions that wait on this runner for a person."""
    draining: bool = False
    """It takes no more work."""
    leaving: bool = False
    """It ends now."""
    lag: int = 0
    """States of executions of the cluster that its history does not have yet."""
    modules: str | None = None
    """The digest of its modules.yaml."""

    @property
    def places(self) -> int:
        """Workers that may run at a time, of all kinds."""
        return sum(load.places for load in self.kinds.values())

    @property
    def busy(self) -> int:
        """Workers that run or start."""
        return sum(load.busy for load in self.kinds.values())


class ClusterState(Struct, frozen=True):
    """The cluster as one of its runners sees it."""

    node: str
    """This runner."""
    connected: bool
    """Whether it has a connection to the servers of the cluster."""
    nodes: tuple[Presence, ...]
    """The runners that are there, by name. Without a connection, those that were there before."""
    lag: int = 0
    """States of executions that the history of this runner does not have yet."""
    unsent: int = 0
    """Executions of this runner whose state the cluster does not have yet."""
    unreadable: int = 0
    """Messages that this release could not read, since the start."""
    forwarded: int = 0
    """Calls that other runners took for callers of this one, since the start."""
