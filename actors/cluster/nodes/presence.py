"""Presence: the facts that each runner tells the others about itself, and the runners that are there now. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import msgspec
from attrs import define, field

from config.cluster import missing_labels
from protocol.model import Kind
from protocol.nodes import Presence

TTL_SECONDS: Final = 10.0
"""A runner that has not renewed its presence for this long is gone."""
RENEW_SECONDS: Final = 3.0
ECHO_SECONDS: Final = RENEW_SECONDS + 1.0
"""A runner that has not heard its own presence for this long may not hear those of others either."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Presence)


def encode(presence: Presence) -> bytes:
    """Return a presence as a message."""
    return _encoder.encode(presence)


def decode(data: bytes) -> Presence | None:
    """Return a presence; None for any other message, or one of a release that this one cannot read."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError:
        return None


@define(eq=False)
class _Known:
    presence: Presence
    until: float
    """It counts as there until this time."""
    lent: int = 0
    """Calls that were forwarded to it since."""


@define(eq=False)
class Neighbours:
    """The runners that are there. `now` is any clock that never goes back, in seconds.

    Without a connection no runner is known to be gone: time stands still meanwhile. So it does while the engine does
    not tell this runner its own presence, as during an election, when it does not tell those of others.
    """

    node: str
    """The name of this runner."""
    boot: str
    doubled: str | None = field(default=None, init=False)
    """The boot of another runner with the same name."""
    _known: dict[str, _Known] = field(factory=dict, init=False)
    _away_since: float | None = field(default=None, init=False)
    _echoed: float | None = field(default=None, init=False)
    """When the engine last told this runner its own presence."""

    def hear(self, presence: Presence, now: float) -> None:
        """Note what a runner tells about itself."""
        if presence.node == self.node and presence.boot != self.boot:
            before = self._known.get(presence.node)
            if before is None or before.presence.boot != self.boot:
                return  # the last start of this runner
            self.doubled = presence.boot
            return
        if presence.leaving:
            self._known.pop(presence.node, None)
        else:
            self._known[presence.node] = _Known(presence, now + TTL_SECONDS)

    def echo(self, now: float) -> None:
        """Note that the engine told this runner its own presence."""
        if self._echoed is not None and (stood := now - self._echoed - ECHO_SECONDS) > 0:
            for known in self._known.values():
                known.until += stood
        self._echoed = now

    @property
    def is_away(self) -> bool:
        """Whether the connection is lost."""
        return self._away_since is not None

    def away(self, now: float) -> None:
        """Note that the connection is lost."""
        if self._away_since is None:
            self._away_since = now

    def back(self, now: float) -> None:
        """Note that the connection is there again: all have their whole time to tell that they are there."""
        if self._away_since is not None:
            for known in self._known.values():
                if known.until > self._away_since:
                    known.until = max(known.until, now + TTL_SECONDS)
            self._away_since = None
            if self._echoed is not None:
                self._echoed = now

    def all(self, now: float) -> list[Presence]:
        """Return the runners that are there, this one among them, by name."""
        at = self._judged(now)
        for name in [name for name, known in self._known.items() if known.until <= at]:
            del self._known[name]
        return [self._known[name].presence for name in sorted(self._known)]

    def _judged(self, now: float) -> float:
        """Return the time up to which the silence of a runner counts."""
        at = now if self._away_since is None else self._away_since
        return at if self._echoed is None else min(at, self._echoed + ECHO_SECONDS)

    def get(self, node: str, now: float) -> Presence | None:
        """Return a runner that is there."""
        return next((each for each in self.all(now) if each.node == node), None)

    def boots(self, now: float) -> frozenset[str] | None:
        """Return the boots of the runners that are there; None while that is not known."""
        if self.is_away or self._judged(now) < now or self.node not in self._known:
            return None
        return frozenset(each.boot for each in self.all(now))

    def lend(self, node: str) -> None:
        """Count a call that was forwarded to a runner, until it tells its load again."""
        if (known := self._known.get(node)) is not None:
            known.lent += 1

    def free(
        self, kind: Kind, needs: Iterable[str], now: float, *, without: Collection[str] = (), even_full: bool = False
    ) -> list[str]:
        """Return the other runners that have free places for a module, those with most of them first.

        `even_full` adds those where it must wait. Without a connection none can be asked.
        """
        if self.is_away:
            return []
        wanted, found = tuple(needs), list[tuple[int, str]]()
        for presence in self.all(now):
            load = presence.kinds.get(kind)
            if presence.node == self.node or presence.node in without or presence.draining or load is None:
                continue
            if missing_labels(wanted, presence.labels):
                continue
            free = load.places - load.busy - load.waiting - self._known[presence.node].lent
            if free > 0 or even_full:
                found.append((-free, presence.node))
        return [node for _, node in sorted(found)]
