"""`Links`: codes that sign in once, within a minute, with the credential for which they were made."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from attrs import define, field, frozen

LINK_SECONDS: Final = 60.0
MAX_LINKS: Final = 1000
MAX_OF_ONE: Final = 10
"""Unused links of one subject; one more ends its oldest."""


@frozen
class _Link:
    """One unused code."""

    credential: str
    subject: str
    until: float


@define(eq=False)
class Links:
    """The unused codes. `clock` never goes back: a change of the time of day prolongs no link."""

    _clock: Callable[[], float] = time.monotonic
    _by_hash: OrderedDict[bytes, _Link] = field(factory=OrderedDict, init=False, repr=False)

    def make(self, credential: str, subject: str) -> str:
        """Return a code for this token or API key, which must have been verified."""
        own = [key for key, each in self._by_hash.items() if each.subject == subject]
        for key in own[: max(0, len(own) + 1 - MAX_OF_ONE)]:
            del self._by_hash[key]
        code = secrets.token_urlsafe(24)
        self._by_hash[_hash(code)] = _Link(credential, subject, self._clock() + LINK_SECONDS)
        while len(self._by_hash) > MAX_LINKS:
            self._by_hash.popitem(last=False)
        return code

    def take(self, code: str) -> str | None:
        """Return the credential of a code, which is used up; None if it was used, or is too old."""
        found = self._by_hash.pop(_hash(code), None)
        return found.credential if found is not None and self._clock() < found.until else None


def _hash(code: str) -> bytes:
    return sha256(code.encode("utf-8", "surrogatepass")).digest()
