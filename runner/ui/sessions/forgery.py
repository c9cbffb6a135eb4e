"""Requests that a page of another site made the browser send (CSRF), told by what the browser adds itself."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit


def forged(fields: Mapping[bytes, bytes], outside: str = "") -> bool:
    """Return whether a request that changes something may come from a page of another site; in doubt true.

    `outside` is the address of the server for clients, where a proxy changes it. Browsers name the relation of the
    pages at addresses with TLS and on the own machine, and the origin of the page at all others.
    """
    site = fields.get(b"sec-fetch-site")
    if site is not None:
        return site != b"same-origin"
    origin = fields.get(b"origin", b"").decode("latin-1").lower()
    if not origin.startswith(("http://", "https://")):
        return True
    own = {fields.get(b"host", b"").decode("latin-1").lower()}
    if outside:
        own.add(urlsplit(outside).netloc.lower())
    return origin.partition("://")[2] not in own - {""}
