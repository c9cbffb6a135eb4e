"""The headers of all answers, and the cookies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runner.http import OUTSIDE, Message, Outside

_POLICY: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
SAFE: Final = (
    ("content-security-policy", "; ".join(f"{name} {value}" for name, value in _POLICY.items())),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
)
"""Every answer has them, unless it sets one itself."""
_SESSION: Final = "operato_session"
_YEAR: Final = 365 * 86400


def secure(scope: Message) -> bool:
    """Return whether the browser talks TLS, to the runner or to a proxy in front of it."""
    outside: Outside = scope.get(OUTSIDE, Outside())
    return scope["scheme"] == "https" or outside.base.startswith("https://")


def session_cookie(scope: Message, fields: Mapping[bytes, bytes]) -> str:
    """Return the name of the cookie of sessions: of this server, as all ports of a host share their cookies.

    Over TLS its prefix keeps answers without TLS from setting it.
    """
    port = fields.get(b"host", b"").decode("latin-1").rpartition(":")[2]
    name = f"{_SESSION}_{port}" if port.isascii() and port.isdigit() else _SESSION
    return f"__Secure-{name}" if secure(scope) else name


def cookies(fields: Mapping[bytes, bytes], name: str) -> list[str]:
    """Return the values of a cookie; browsers send several where paths or hosts differ."""
    found = []
    for part in fields.get(b"cookie", b"").decode("latin-1").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            found.append(value.strip('"'))
    return found[:5]


def set_session(scope: Message, cookie: str, name: str) -> str:
    """Return the `Set-Cookie` of a session, "" as its name to forget it."""
    ended = "" if name else "; Max-Age=0"
    return f"{cookie}={name}; Path={_path(scope)}; HttpOnly; SameSite=Strict{_secure(scope)}{ended}"


def set_preference(scope: Message, name: str, value: str) -> str:
    """Return the `Set-Cookie` of a preference, "" as its value to forget it."""
    seconds = _YEAR if value else 0
    return f"operato_{name}={value}; Path={_path(scope)}; HttpOnly; SameSite=Lax; Max-Age={seconds}{_secure(scope)}"


def _path(scope: Message) -> str:
    outside: Outside = scope.get(OUTSIDE, Outside())
    return f"{outside.prefix}/ui"


def _secure(scope: Message) -> str:
    return "; Secure" if secure(scope) else ""
