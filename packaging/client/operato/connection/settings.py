"""How the runner is reached: from arguments, else from the variables that the command line of the runner uses."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable, Union
from urllib.parse import urlsplit

from operato.errors import BadInputError

DEFAULT_URL = "http://127.0.0.1:8000"
VARIABLES = {
    "url": "OPERATO_URL",
    "token": "OPERATO_TOKEN",
    "ca": "OPERATO_CA",
    "cert": "OPERATO_CERT",
    "cert_key": "OPERATO_CERT_KEY",
}
"""The environment variable of each argument."""
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

Token = Union[str, Callable[[], str], None]


@dataclass(frozen=True)
class Settings:
    """The place of a runner, and the credentials."""

    url: str
    """Without a slash at its end."""
    token: Callable[[], str] | None = field(repr=False)
    """Returns the token or API key for a request that begins now; None without one."""
    context: ssl.SSLContext | None = field(default=None, repr=False)
    """None for http."""


def read_settings(
    url: str | None = None,
    token: Token = None,
    ca: str | None = None,
    cert: str | None = None,
    cert_key: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Return the settings; an argument precedes its variable, and an empty variable counts as unset.

    Raises BadInputError, which never shows the token, and OSError for a file that cannot be read.
    """
    given = {"url": url, "ca": ca, "cert": cert, "cert_key": cert_key}
    found = {name: value or environ.get(VARIABLES[name]) or None for name, value in given.items()}
    address = _address(found["url"] or DEFAULT_URL)
    context = None
    if address.startswith("https:"):
        context = ssl.create_default_context(cafile=found["ca"])
        if found["cert"] is not None:
            context.load_cert_chain(found["cert"], found["cert_key"])
    elif found["cert_key"] is not None and found["cert"] is None:
        raise BadInputError("a key needs its certificate: cert or OPERATO_CERT", field="cert_key")
    return Settings(address, _provider(token or environ.get(VARIABLES["token"]) or None), context)


def _address(value: str) -> str:
    try:
        parts = urlsplit(value.strip())
        _ = parts.port
    except ValueError as problem:
        raise BadInputError(f"{value!r:.80} is not a URL: {problem}", field="url") from None
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname or not value.isprintable():
        raise BadInputError(f"{value!r:.80} is not the URL of a runner; write http://HOST:PORT", field="url")
    if parts.username is not None or parts.password is not None:
        raise BadInputError("the URL has a user name or password; use a token instead", field="url")
    if parts.query or parts.fragment:
        raise BadInputError(f"{value!r:.80} has a query or a fragment; write http://HOST:PORT", field="url")
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _provider(token: Token) -> Callable[[], str] | None:
    if token is None:
        return None
    if callable(token):
        made = token
        return lambda: _checked(made())
    checked = _checked(token)
    return lambda: checked


def _checked(token: str) -> str:
    found = token.strip()
    if not found or not all("!" <= character <= "~" for character in found):
        raise BadInputError("the token is not the output of `operato-runner token`", field="token")
    return found
