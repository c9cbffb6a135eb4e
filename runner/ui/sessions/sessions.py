"""`Sessions`: which browser has shown which token or API key.

A session holds the credential, never rights of its own: every request verifies the credential again. So a session ends
with its token, with the key that is revoked, with the public key that is withdrawn.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Final

import trio
from attrs import define, field

MAX_SESSIONS: Final = 1000
MAX_OF_ONE: Final = 20
"""Sessions of one subject; one more ends the one that is unused longest."""
IDLE_SECONDS: Final = 24 * 3600.0
LIFE_SECONDS: Final = 7 * 86400.0
_BYTES: Final = 32


@define(eq=False)
class Session:
    """One browser that has signed in. Times are seconds since the epoch."""

    credential: str = field(repr=False)
    """The token or API key."""
    subject: str
    began: float
    used: float
    csrf: str = field(factory=lambda: secrets.token_urlsafe(_BYTES), repr=False)
    """The text that forms of this session send with them."""
    _ends: set[Callable[[], None]] = field(factory=set, init=False)

    def expired(self, now: float) -> bool:
        """Return whether it is too old, or was not used for too long."""
        return not self.began <= now < self.began + LIFE_SECONDS or now >= self.used + IDLE_SECONDS

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Cancel the wait inside this block when the session ends."""
        with trio.CancelScope() as scope:
            self._ends.add(scope.cancel)
            try:
                yield
            finally:
                self._ends.discard(scope.cancel)

    def end(self) -> None:
        """Cancel everything that waits inside of `lasting`."""
        for each in tuple(self._ends):
            each()


@define(eq=False)
class Sessions:
    """All sessions, bounded in number, for each subject and in all. `clock` returns seconds since the epoch."""

    _clock: Callable[[], float] = time.time
    _by_hash: OrderedDict[bytes, Session] = field(factory=OrderedDict, init=False)
    """By the hash of the name, so that the time of a look-up shows nothing of it; the one unused longest first."""

    def __len__(self) -> int:
        return len(self._by_hash)

    def open(self, credential: str, subject: str) -> tuple[str, Session]:
        """Begin a session and return its name for the cookie. The name is chosen here, never by the browser."""
        now = self._clock()
        name, session = secrets.token_urlsafe(_BYTES), Session(credential, subject, now, now)
        own = [key for key, each in self._by_hash.items() if each.subject == subject]
        for key in own[: max(0, len(own) + 1 - MAX_OF_ONE)]:
            self._drop(key)
        while len(self._by_hash) >= MAX_SESSIONS:
            self._drop(next(iter(self._by_hash)))
        self._by_hash[_hash(name)] = session
        return name, session

    def find(self, name: str) -> Session | None:
        """Return the session with this name, and note its use; None if it has ended."""
        key = _hash(name)
        session = self._by_hash.get(key)
        if session is None:
            return None
        now = self._clock()
        if session.expired(now):
            self._drop(key)
            return None
        session.used = now
        self._by_hash.move_to_end(key)
        return session

    def close(self, name: str) -> None:
        """End a session and its streams; does nothing for one that has ended."""
        self._drop(_hash(name))

    def _drop(self, key: bytes) -> None:
        session = self._by_hash.pop(key, None)
        if session is not None:
            session.end()


def _hash(name: str) -> bytes:
    return sha256(name.encode("utf-8", "surrogatepass")).digest()
