"""`Links`: codes that sign in once, within a minute, with the credential for which they were made."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from attrs import define, field

LINK_SECONDS: Final = 60.0
_MAX_LINKS: Final = 100
"""Unused links; one more ends the oldest."""


@define(eq=False)
class Links:
    """The unused codes. `clock` never goes back: a change of the time of day prolongs no link."""

    _clock: Callable[[], float] = time.monotonic
    _by_hash: OrderedDict[bytes, tuple[float, str]] = field(factory=OrderedDict, init=False, repr=False)

    def make(self, credential: str) -> str:
        """Return a code for this token or API key, which must have been verified."""
        code = secrets.token_urlsafe(24)
        self._by_hash[_hash(code)] = self._clock() + LINK_SECONDS, credential
        while len(self._by_hash) > _MAX_LINKS:
            self._by_hash.popitem(last=False)
        return code

    def take(self, code: str) -> str | None:
        """Return the credential of a code, which is used up; None if it was used, or is too old."""
        found = self._by_hash.pop(_hash(code), None)
        return found[1] if found is not None and self._clock() < found[0] else None


def _hash(code: str) -> bytes:
    return sha256(code.encode("utf-8", "surrogatepass")).digest()
