"""Settings of the commands that call a running server: its address, the token, and TLS certificates."""

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
"""The environment variable of each option."""

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_PORTS = {"http": 80, "https": 443}
_FORM = "http://HOST:PORT or https://HOST:PORT"
_TOKEN = re.compile(r"[\x21-\x7e]+")


@frozen
class Address:
    """The address of a runner, from its URL."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name, or an address without brackets."""
    port: int
    prefix: str = ""
    """The path of the runner behind a proxy: `/runner`."""

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Host and port, as in the header `Host`."""
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
    """PEM file of the CA that signed the server's certificate, instead of the CAs that this machine trusts."""
    cert_file: Path | None = None
    """PEM file of the client certificate, with its key unless `key_file` has it."""
    key_file: Path | None = None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address or name; no name is resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_client_settings(options: Mapping[str, str | None], environ: Mapping[str, str]) -> ClientSettings:
    """Return the settings: `options`, named as in `VARIABLES`, take precedence over variables of `environ`.

    An empty variable counts as unset. Raises ConfigError with all mistakes; none of them shows the token.
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
        mistakes.append(
            Mistake("needs the certificate too: --cert or OPERATO_CERT", None, None, "--cert-key", "--cert")
        )
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def read_address(value: str) -> Address:
    """Return the address in a URL. Raises Wrong."""
    given = units.filled(value).strip()
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError as problem:
        raise Wrong(f"{value!r:.80} is not a URL: {problem}; write {_FORM}", allowed=_FORM) from None
    scheme = _SCHEMES.get(parts.scheme)
    visible = given.isascii() and given.isprintable() and " " not in given
    if scheme is None or not parts.hostname or not visible:
        raise Wrong(f"{value!r:.80} is not the URL of a runner; write {_FORM}", allowed=_FORM)
    if parts.username is not None or parts.password is not None:
        raise Wrong("has a user name or password; use a token instead", allowed=_FORM)
    if parts.query or parts.fragment:
        raise Wrong(f"{value!r:.80} has a query or a fragment; write {_FORM}", allowed=_FORM)
    return Address(scheme, parts.hostname, _PORTS[scheme] if port is None else port, parts.path.rstrip("/"))


def _path(value: str) -> Path:
    return Path.cwd() / units.filled(value)


def _token(value: str) -> str:
    """Return a token without surrounding white space. Raises Wrong, which does not show it."""
    token = value.strip()
    if not _TOKEN.fullmatch(token):
        allowed = "the output of `operato-runner token`"
        raise Wrong(f"is not a token; use {allowed}", allowed=allowed)
    return token
