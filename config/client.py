"""What the commands that speak to a running server are told: where it is, who calls, and whom to trust."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from attrs import field, frozen

from config import units
from config.mistakes import ConfigError, Mistake, Wrong

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
VARIABLES = {
    "url": "OPERATO_URL",
    "token": "OPERATO_TOKEN",
    "ca": "OPERATO_CA",
    "cert": "OPERATO_CERT",
    "cert_key": "OPERATO_CERT_KEY",
}
"""By option."""

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_PORTS = {"http": 80, "https": 443}
_FORM = "http://HOST:PORT or https://HOST:PORT"
_TOKEN = re.compile(r"[\x21-\x7e]+")


@frozen
class Address:
    """Where a runner is, as a URL says it."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name, or an address without brackets."""
    port: int
    prefix: str = ""
    """What stands before every path where a proxy serves more than the runner: `/runner`."""

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Host and port, as the header `Host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


@frozen
class ClientSettings:
    """How a running server is reached."""

    address: Address
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    """PEM; who signed the server's certificate, instead of those that this machine trusts."""
    cert_file: Path | None = None
    """PEM; the certificate that is shown to a server that asks for one, and its key unless `key_file` has it."""
    key_file: Path | None = None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address or name; no name is resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_client_settings(options: Mapping[str, str | None], environ: Mapping[str, str]) -> ClientSettings:
    """Return the settings: `options`, by the names of `VARIABLES`, come before the variables of `environ`.

    A variable that is empty is one that is not set. Raises ConfigError with all mistakes; none of them shows the token.
    """
    mistakes: list[Mistake] = []

    def read(name: str, reader: Callable[[str], T]) -> T | None:
        value, where = options.get(name), f"--{name.replace('_', '-')}"
        if value is None:
            value, where = environ.get(VARIABLES[name]) or None, VARIABLES[name]
        try:
            return None if value is None else reader(value)
        except Wrong as wrong:
            mistakes.append(Mistake(wrong.message, None, None, where, wrong.allowed))
            return None

    address = read("url", read_address) or read_address(DEFAULT_URL)
    settings = ClientSettings(
        address, read("token", _token), read("ca", _path), read("cert", _path), read("cert_key", _path)
    )
    if settings.key_file is not None and settings.cert_file is None and not mistakes:
        mistakes.append(Mistake("needs the certificate: --cert or OPERATO_CERT", None, None, "--cert-key", "--cert"))
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def read_address(value: str) -> Address:
    """Return what a URL says. Raises Wrong."""
    given = units.filled(value).strip()
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError as problem:
        raise Wrong(f"{value!r:.80} is not a URL: {problem}; write {_FORM}", allowed=_FORM) from None
    scheme = _SCHEMES.get(parts.scheme)
    visible = given.isascii() and given.isprintable() and " " not in given
    if scheme is None or not parts.hostname or not visible:
        raise Wrong(f"{value!r:.80} is not a URL of a runner; write {_FORM}", allowed=_FORM)
    if parts.username is not None or parts.password is not None:
        raise Wrong("holds a user; who calls is said by the token", allowed=_FORM)
    if parts.query or parts.fragment:
        raise Wrong(f"{value!r:.80} has a query or a fragment; write {_FORM}", allowed=_FORM)
    return Address(scheme, parts.hostname, _PORTS[scheme] if port is None else port, parts.path.rstrip("/"))


def _path(value: str) -> Path:
    return Path.cwd() / units.filled(value)


def _token(value: str) -> str:
    """Return a token, without the line end of the file it was in. Raises Wrong, which does not show it."""
    token = value.strip()
    if not _TOKEN.fullmatch(token):
        allowed = "what `operato-runner token` prints"
        raise Wrong(f"is not a token; it is {allowed}", allowed=allowed)
    return token
