"""`ApiKeys`, the actor that owns the API keys: all of them in memory, each change on disk before it is answered."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.keys.feed import KeyFeed, OwnKeys
from actors.keys.stored import KeyFile, StoredKey
from actors.one_file import InTurn, until_first
from actors.sqlite import TROUBLE, reason_of
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import KEY_PREFIX

MAX_KEYS: Final = 10_000
"""Keys that are kept; beyond that, the oldest ones that have ended are forgotten."""
_ID_BYTES: Final = 5
_SECRET_BYTES: Final = 24
USE_SECONDS: Final = 60.0
"""How often last uses are written."""

log = structlog.get_logger("keys")


@define(eq=False)
class ApiKey:
    """A key in its present state."""

    stored: StoredKey
    used_at: float | None = None
    """Its last use as far as it is known: exact to `USE_SECONDS`."""
    watchers: set[Callable[[], None]] = field(factory=set, init=False)
    """Called when the key is revoked: they end the streams that were opened with it."""

    @property
    def revoked(self) -> bool:
        """Whether it was revoked."""
        return self.stored.revoked_at is not None

    def ended(self, now: float) -> bool:
        """Whether it was revoked or has expired."""
        expires = self.stored.expires_at
        return self.revoked or (expires is not None and expires <= now)


@define(eq=False)
class ApiKeys:
    """The actor that owns the keys. `clock` returns the time of day in seconds since the epoch."""

    _file: KeyFile
    _clock: Callable[[], float] = time.time
    feed_of: Callable[[KeyFile, InTurn], KeyFeed] = OwnKeys
    """Returns where changes are recorded."""
    _by_hash: dict[str, ApiKey] = field(factory=dict, init=False)
    _by_id: dict[str, ApiKey] = field(factory=dict, init=False)
    """In the order in which they were made."""
    _used: set[str] = field(factory=set, init=False)
    """Keys whose last use is not written."""
    _changing: trio.Lock = field(factory=trio.Lock, init=False)
    _in_file: InTurn = field(factory=lambda: InTurn("API keys cannot be written"), init=False)
    _feed: KeyFeed = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._feed = self.feed_of(self._file, self._in_file)
        for stored, used_at in sorted(self._file.load(), key=lambda found: found[0].created_at):
            self._by_id[stored.id] = self._by_hash[stored.hash] = ApiKey(stored, used_at)

    @classmethod
    def open(cls, path: Path, feed_of: Callable[[KeyFile, InTurn], KeyFeed] = OwnKeys) -> ApiKeys:
        """Open or make the file of keys. Blocks. Raises RunnerError `unavailable`."""
        file = KeyFile.open(path)
        try:
            return cls(file, feed_of=feed_of)
        except TROUBLE as problem:
            file.close()
            text = f"API keys cannot be read from {path}: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir") from problem

    @property
    def damaged(self) -> bool:
        """Whether the file, or a part of it, was found damaged."""
        return self._file.damaged

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write last uses now and then, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(USE_SECONDS)
            await self._write_uses()

    def statistics(self) -> dict[str, int]:
        """Return the number of keys that are valid, and of those that have ended."""
        now = self._clock()
        ended = sum(key.ended(now) for key in self._by_id.values())
        return {"valid": len(self._by_id) - ended, "ended": ended}

    # Never waiting

    def find(self, secret: str) -> ApiKey | None:
        """Return the key with this secret, revoked or expired or not, and note its use.

        The time that this takes depends on the hash of the secret alone, and shows nothing of it.
        """
        key = self._by_hash.get(hash_of(secret))
        if key is not None:
            key.used_at = self._clock()
            self._used.add(key.stored.id)
        return key

    def get(self, name: str) -> ApiKey | None:
        """Return the key with this identifier."""
        return self._by_id.get(name)

    def all(self) -> list[ApiKey]:
        """Return all keys, the newest first."""
        return list(self._by_id.values())[::-1]

    # Changes

    async def create(
        self, name: str, *, scopes: Iterable[str], modules: Iterable[str], expires_at: float | None, subject: str
    ) -> tuple[ApiKey, str]:
        """Make a key, and return it with its secret, which is nowhere else.

        Raises RunnerError: `conflict` when a valid key has the name, `overloaded` when there are too many keys,
        `unavailable` when it cannot be recorded. On cancellation it may have been made.
        """
        order = partial(self._create, name, tuple(scopes), tuple(modules), expires_at, subject)
        async with self._changing:
            await self._feed.catch_up()
            key, secret = await until_first(order)
        log.info("key created", key=key.stored.id, name=name, scopes=" ".join(key.stored.scopes), by=subject)
        return key, secret

    async def _create(
        self, name: str, scopes: tuple[str, ...], modules: tuple[str, ...], expires_at: float | None, subject: str
    ) -> tuple[ApiKey, str]:
        now = self._clock()
        if any(key.stored.name == name and not key.ended(now) for key in self._by_id.values()):
            text = f"there is a key {name!r}; revoke it first, or give this one another name"
            raise error(ErrorKind.CONFLICT, text, field="name")
        while (number := secrets.token_hex(_ID_BYTES)) in self._by_id:
            pass
        secret = f"{KEY_PREFIX}{number}_{secrets.token_hex(_SECRET_BYTES)}"
        stored = StoredKey(
            id=number,
            name=name,
            hash=hash_of(secret),
            scopes=scopes,
            modules=modules,
            created_at=now,
            created_by=subject,
            expires_at=expires_at,
        )
        forgotten = self._superfluous(now)
        await self._feed.put(stored, forgotten)
        return self.adopt(stored, forgotten), secret

    def adopt(self, stored: StoredKey, forgotten: Iterable[str] = ()) -> ApiKey:
        """Have a key as the file has it now, without the `forgotten` ones; a revoked one ends its streams."""
        for each in forgotten:
            if (gone := self._by_id.pop(each, None)) is not None:
                del self._by_hash[gone.stored.hash]
        key = self._by_id.get(stored.id)
        if key is None:
            key = self._by_id[stored.id] = self._by_hash[stored.hash] = ApiKey(stored)
        elif not key.revoked:  # that is never taken back
            key.stored = stored
            for watcher in tuple(key.watchers) if stored.revoked_at is not None else ():
                watcher()
        return key

    async def revoke(self, key: ApiKey, *, subject: str) -> None:
        """Refuse a key from now on, and end the streams that were opened with it; done when it is recorded.

        Raises RunnerError `unavailable` when it cannot be recorded: then the key is refused until a restart, and the
        next call tries again. On cancellation the same may be true.
        """
        if not key.revoked:
            self.adopt(replace(key.stored, revoked_at=self._clock(), revoked_by=subject))
            log.info("key revoked", key=key.stored.id, name=key.stored.name, by=subject)
        async with self._changing:
            if key.stored.id in self._by_id:
                await until_first(lambda: self._feed.put(key.stored))

    def _superfluous(self, now: float) -> list[str]:
        """Return the keys to forget so that one more has room. Raises RunnerError `overloaded`."""
        over = len(self._by_id) + 1 - MAX_KEYS
        if over <= 0:
            return []
        ended = [name for name, key in self._by_id.items() if key.ended(now)][:over]
        if len(ended) < over:
            raise error(ErrorKind.OVERLOADED, f"there are {MAX_KEYS} valid keys; revoke some", field="name")
        return ended

    async def _write_uses(self) -> None:
        times = self._times()
        if not times:
            return
        try:
            await self._in_file(self._file.used, times)
        except RunnerError as problem:
            self._used |= times.keys()
            log.warning("the last use of keys cannot be written", why=str(problem))

    def _times(self) -> dict[str, float]:
        used, self._used = self._used, set()
        return {name: key.used_at for name in used if (key := self._by_id.get(name)) and key.used_at is not None}

    async def aclose(self) -> None:
        """Write the last uses and close the file."""
        await self._write_uses()
        await self._in_file(self._file.close)


def hash_of(secret: str) -> str:
    """Return the hash by which a key is stored and found."""
    return sha256(secret.encode()).hexdigest()
