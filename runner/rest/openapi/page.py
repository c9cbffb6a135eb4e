"""The page that shows the OpenAPI document: one file, allowed by its policy to ask this server only."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def docs_page() -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """Return the page and the headers of its answer."""
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
    rules = "; ".join(f"{name} {value}" for name, value in policy.items())
    return html, (
        (b"content-security-policy", rules.encode()),
        (b"cache-control", b"no-cache"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )


def _hash(html: bytes, tag: bytes) -> str:
    """Return the hash by which the policy allows the only script or style of the page."""
    found = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0]).digest()).decode()}'"
