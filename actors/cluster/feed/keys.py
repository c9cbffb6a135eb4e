"""`SharedKeys`: the API keys of all runners of a cluster. One that is revoked is refused everywhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import structlog
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import Engine, Stored
from actors.cluster.feed.follower import Follower
from actors.cluster.feed.news import KEY, KeyNews, token, unpack
from actors.cluster.letters import Author, UnreadableError
from actors.keys import KeyFile, StoredKey
from actors.one_file import InTurn, until_first

_LONGEST_NAME = 50

log = structlog.get_logger("cluster")


@define(eq=False)
class SharedKeys:
    """The feed of the API keys of one runner in a cluster. `hear` gets keys after a change."""

    engine: Engine
    author: Author
    file: KeyFile
    in_file: InTurn
    hear: Callable[[StoredKey, Iterable[str]], object] | None = None
    follower: Follower = field(init=False)
    _keys: dict[str, StoredKey] = field(factory=dict, init=False)
    """Keys that the cluster had when this runner joined it."""

    def __attrs_post_init__(self) -> None:
        self.follower = Follower(self.engine, self.author, (KEY,), self.file, self.in_file, self._apply)

    async def catch_up(self) -> None:
        """Have every change of keys here that was made before this call."""
        await self.follower.catch_up(KEY)

    async def put(self, key: StoredKey, forgotten: Sequence[str] = ()) -> None:
        """Tell all runners of a key."""
        await self._put(key, forgotten, self.follower.base(KEY))

    async def _put(self, key: StoredKey, forgotten: Sequence[str], base: int) -> None:
        name, now = secrets.token_hex(8), time.time()
        news = KeyNews(author=self.author, id=name, at=now, key=key, forgotten=tuple(forgotten))
        await self.follower.change(KEY, token(key.id), news, base)

    async def _apply(self, cluster: int, place: int, batch: Sequence[Stored]) -> None:
        changes = list[tuple[StoredKey, tuple[str, ...]]]()
        for stored in batch:
            if stored.subject.rsplit(".", 2)[1] != KEY:
                continue
            try:
                news = unpack(stored.data, KeyNews)
            except UnreadableError as problem:
                self.follower.leave_out(stored, problem)
            else:
                changes.append((news.key, news.forgotten))
        await self.in_file(self.file.adopt, cluster, self.follower.noted(place), changes)
        for key, forgotten in changes:
            if self.follower.joining:
                self._keys[key.id] = key
            if self.hear is not None:
                self.hear(key, forgotten)

    # Join

    async def mine(self) -> list[StoredKey]:
        """Return the keys of this runner before it joins. Raises RunnerError `unavailable`."""
        self._keys.clear()
        return [key for key, _ in await self.in_file(self.file.load)]

    async def join(self, mine: Sequence[StoredKey]) -> list[str]:
        """Bring the keys that the cluster does not have, and revoke those that were revoked here.

        Returns what is lost, in words: nothing. Raises RunnerError `unavailable`.
        """
        for key in mine:
            await until_first(partial(self._bring, key))
        return []

    async def _bring(self, key: StoredKey) -> None:
        base, theirs, now = self.follower.base(KEY), self._keys.get(key.id), time.time()
        if theirs is not None:
            if key.revoked_at is None or theirs.revoked_at is not None:
                return
            key = replace(theirs, revoked_at=key.revoked_at, revoked_by=key.revoked_by)
        elif _valid(key, now) and any(each.name == key.name and _valid(each, now) for each in self._keys.values()):
            name = f"{key.name[:_LONGEST_NAME]}-{key.id[:10]}"
            log.warning("the cluster has another key of this name; this one is renamed", key=key.name, name=name)
            key = replace(key, name=name)
        await self._put(key, (), base)
        log.info("an API key is now one of the cluster", key=key.id, name=key.name)


def _valid(key: StoredKey, now: float) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
