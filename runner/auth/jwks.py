"""The keys behind a JWKS URL. Imported only where one is configured: it fetches in a thread of Trio."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import jwt
import trio

from protocol.errors import ErrorKind, RunnerError, error
from runner.auth.keys import Key, algorithms_of, prepare_for_public_keys, refused

_KEY_SET_SECONDS: Final = 60.0
"""A set is fetched again after this time, so a withdrawn key is good for no longer."""
_STALE_SECONDS: Final = 300.0
"""While its server does not answer, a set is used for this time."""
_FETCH_SECONDS: Final = 5.0
_COOLDOWN_SECONDS: Final = 30.0


class KeySet:
    """The keys of one URL, fetched by one thread at a time."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        prepare_for_public_keys()
        try:
            # Its own cache is off: the verifier's clock decides here how long a key is used.
            self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_FETCH_SECONDS)
        except jwt.PyJWTError as problem:
            raise error(
                ErrorKind.BAD_INPUT, f"`jwt_jwks_url` cannot be used: {problem}", field="jwt_jwks_url"
            ) from None
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self.fetched: object = None
        """Another object after each fetch: tokens that were verified before must be verified again."""
        self._next_fetch = self._stale_at = -math.inf
        self._broken = False
        # Besides the lock: a fetch whose caller was cancelled continues in its thread.
        self._one = trio.CapacityLimiter(1)
        self._lock = trio.Lock()

    async def find(self, name: object) -> Key:
        """Return the key with this `kid`. An unknown `kid` fetches the set again, but not too often."""
        if not isinstance(name, str):
            raise refused("it does not name its key (`kid`)")
        key = self._fresh(name)
        if key is None and self._lock.locked():  # a slow server holds up one caller only
            key = self._last(name)
        if key is not None:
            return key
        async with self._lock:
            # The previous holder of the lock may have fetched it.
            key = self._fresh(name)
            if key is None and self._clock() >= self._next_fetch:
                await self._fetch()
                key = self._fresh(name)
        if key is None and self._broken:
            key = self._last(name)
        if key is not None:
            return key
        if self._broken:
            raise _keys_unavailable()
        raise refused("its key is not known")

    def _fresh(self, name: str) -> Key | None:
        key = self._keys.get(name)
        return key if key is not None and self._clock() < key.until else None

    def _last(self, name: str) -> Key | None:
        """Return a key of the last set that could be fetched, if it is not too old."""
        return self._keys.get(name) if self._clock() < self._stale_at else None

    async def _fetch(self) -> None:
        """Fetch the set, or note that its server is broken."""
        try:
            # The client's timeout counts for each read, so a server that sends slowly needs this one.
            with trio.fail_after(_FETCH_SECONDS + 1):
                found = await trio.to_thread.run_sync(
                    self._client.get_signing_keys, abandon_on_cancel=True, limiter=self._one
                )
        except (jwt.PyJWTError, trio.TooSlowError, OSError, ValueError):
            # The next callers fail at once, for as long as one attempt takes.
            self._broken, self._next_fetch = True, self._clock() + _FETCH_SECONDS
            return
        now = self._clock()
        keys = ((str(jwk.key_id), _fetched_key(jwk, now + _KEY_SET_SECONDS)) for jwk in found)
        self._keys = {name: key for name, key in keys if key is not None}
        self.fetched = object()
        self._broken, self._next_fetch, self._stale_at = False, now + _COOLDOWN_SECONDS, now + _STALE_SECONDS


def _keys_unavailable() -> RunnerError:
    return error(
        ErrorKind.UNAVAILABLE, "the server of the token keys (JWKS) does not answer", retry_after=_FETCH_SECONDS
    )


def _fetched_key(jwk: jwt.PyJWK, until: float) -> Key | None:
    """Return the key with the algorithms of its type; None for a secret, which must not be in a public document."""
    algorithms = algorithms_of(jwk.key)
    declared = jwk._jwk_data.get("alg")  # noqa: SLF001 - `algorithm_name` is a guess where none is declared
    if declared is not None:
        algorithms = tuple(name for name in algorithms if name == declared)
    return Key(jwk.key, algorithms, until) if algorithms else None
