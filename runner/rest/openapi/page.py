"""The page that shows the OpenAPI document: one file that asks this server only, and is told so by its policy."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def page() -> tuple[bytes, dict[str, str]]:
    """Return the page, and the headers that it is sent with."""
    html = files("runner.rest.openapi").joinpath("docs.html").read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _hash(html, b"script"),
        "style-src": _hash(html, b"style"),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _hash(html: bytes, tag: bytes) -> str:
    """Return by what a browser knows that the one script or style of the page is the one that was meant."""
    found = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0]).digest()).decode()}'"
