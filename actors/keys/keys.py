"""`ApiKeys`, the actor that owns the API keys: all of them in memory, each change on disk before it is answered."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.keys.stored import KeyFile, StoredKey
from actors.sqlite import TROUBLE, reason_of
from protocol.errors import ErrorKind, error
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
    _by_hash: dict[str, ApiKey] = field(factory=dict, init=False)
    _by_id: dict[str, ApiKey] = field(factory=dict, init=False)
    """In the order in which they were made."""
    _used: set[str] = field(factory=set, init=False)
    """Keys whose last use is not written."""
    _changing: trio.Lock = field(factory=trio.Lock, init=False)
    _turn: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    def __attrs_post_init__(self) -> None:
        for stored, used_at in sorted(self._file.load(), key=lambda found: found[0].created_at):
            self._by_id[stored.id] = self._by_hash[stored.hash] = ApiKey(stored, used_at)

    @classmethod
    def open(cls, path: Path) -> ApiKeys:
        """Open or make the file of keys. Blocks. Raises RunnerError `unavailable`."""
        file = KeyFile.open(path)
        try:
            return cls(file)
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
        async with self._changing:
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
                scopes=tuple(scopes),
                modules=tuple(modules),
                created_at=now,
                created_by=subject,
                expires_at=expires_at,
            )
            forgotten = self._superfluous(now)
            await self._write(stored, forgotten)
            for each in forgotten:
                del self._by_hash[self._by_id.pop(each).stored.hash]
            key = self._by_id[number] = self._by_hash[stored.hash] = ApiKey(stored)
        log.info("key created", key=number, name=name, scopes=" ".join(stored.scopes), by=subject)
        return key, secret

    async def revoke(self, key: ApiKey, *, subject: str) -> None:
        """Refuse a key from now on, and end the streams that were opened with it; done when it is recorded.

        Raises RunnerError `unavailable` when it cannot be recorded: then the key is refused until a restart, and the
        next call tries again. On cancellation the same may be true.
        """
        if not key.revoked:
            key.stored = replace(key.stored, revoked_at=self._clock(), revoked_by=subject)
            for watcher in tuple(key.watchers):
                watcher()
            log.info("key revoked", key=key.stored.id, name=key.stored.name, by=subject)
        async with self._changing:
            if key.stored.id in self._by_id:
                await self._write(key.stored, ())

    def _superfluous(self, now: float) -> list[str]:
        """Return the keys to forget so that one more has room. Raises RunnerError `overloaded`."""
        over = len(self._by_id) + 1 - MAX_KEYS
        if over <= 0:
            return []
        ended = [name for name, key in self._by_id.items() if key.ended(now)][:over]
        if len(ended) < over:
            raise error(ErrorKind.OVERLOADED, f"there are {MAX_KEYS} valid keys; revoke some", field="name")
        return ended

    async def _write(self, key: StoredKey, forgotten: Iterable[str]) -> None:
        try:
            await trio.to_thread.run_sync(self._file.write, key, forgotten, limiter=self._turn)
        except TROUBLE as problem:
            text = f"API keys cannot be written: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir", retry_after=5) from problem

    async def _write_uses(self) -> None:
        times = self._times()
        if not times:
            return
        try:
            await trio.to_thread.run_sync(self._file.used, times, limiter=self._turn)
        except TROUBLE as problem:
            self._used |= times.keys()
            log.warning("the last use of keys cannot be written", why=reason_of(problem))

    def _times(self) -> dict[str, float]:
        used, self._used = self._used, set()
        return {name: key.used_at for name in used if (key := self._by_id.get(name)) and key.used_at is not None}

    async def aclose(self) -> None:
        """Write the last uses and close the file."""
        await self._write_uses()
        await trio.to_thread.run_sync(self._file.close, limiter=self._turn)


def hash_of(secret: str) -> str:
    """Return the hash by which a key is stored and found."""
    return sha256(secret.encode()).hexdigest()
