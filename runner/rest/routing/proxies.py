"""Proxies in front of the server: what trusted ones say about the client and its address of the server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from attrs import frozen

from config.settings import ServerSettings
from runner.http import OUTSIDE, Message, Outside

_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
_PAIR: Final = re.compile(r'\s*([A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,;"]*))\s*(?:[,;]|$)')
_MAX_HOPS: Final = 20
"""Proxies that are followed back from the server."""
_HEADERS: Final = {b"forwarded"} | {b"x-forwarded-" + name for name in (b"for", b"proto", b"host", b"prefix")}


@frozen
class _Hop:
    """What one proxy says of the request that reached it."""

    client: str | None = None
    scheme: str | None = None
    host: str | None = None


@frozen
class Proxies:
    """Reads the headers of trusted proxies; those of everybody else count for nothing.

    `X-Forwarded-*` win over `Forwarded` (RFC 7239), which is read where none of them is there.
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    fixed: Outside | None = None
    """The address of the settings, which wins over the headers of proxies."""

    @classmethod
    def of(cls, settings: ServerSettings) -> Proxies:
        """Return the proxies of the settings."""
        url = settings.external_url
        fixed = None if url is None else Outside(url, urlsplit(url).path)
        return cls(tuple(map(ip_network, settings.trusted_proxies)), fixed)

    def apply(self, scope: Message) -> None:
        """Set the client, the scheme and the `Outside` of a request."""
        if self.fixed is not None:
            scope[OUTSIDE] = self.fixed
        client = scope.get("client")
        if not self.networks or client is None or not self._trusted(client[0]):
            return
        fields: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in _HEADERS:
                text = value.decode("latin-1")
                fields[name] = f"{fields[name]},{text}" if name in fields else text
        if not fields:
            return
        hop = self._first(_hops(fields))
        if hop.client is not None:
            scope["client"] = (hop.client, 0)
        if hop.scheme is not None:
            secure = hop.scheme == "https"
            scope["scheme"] = ("wss" if secure else "ws") if scope["type"] == "websocket" else hop.scheme
        if self.fixed is None:
            prefix = fields.get(b"x-forwarded-prefix", "").rpartition(",")[2].strip().rstrip("/")
            prefix = prefix if _PREFIX.fullmatch(prefix) else ""
            scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
            scope[OUTSIDE] = Outside(f"{scheme}://{hop.host}{prefix}" if hop.host else prefix, prefix)

    def _trusted(self, address: str) -> bool:
        found = _address(address)
        return found is not None and any(found in network for network in self.networks)

    def _first(self, hops: Iterable[_Hop]) -> _Hop:
        """Return the hop at the first trusted proxy: its client is the first address that is not of a proxy."""
        last = _Hop()
        for hop in hops:  # the nearest first
            last = _Hop(hop.client or last.client, hop.scheme or last.scheme, hop.host or last.host)
            if hop.client is None or not self._trusted(hop.client):
                break
        return last


def _hops(fields: Mapping[bytes, str]) -> list[_Hop]:
    """Return the hops that the headers name, the nearest first."""
    if b"forwarded" in fields and fields.keys() <= {b"forwarded", b"x-forwarded-prefix"}:
        return _standard(fields[b"forwarded"])
    clients, schemes, hosts = (
        [part.strip() for part in fields.get(b"x-forwarded-" + name, "").split(",")][: -_MAX_HOPS - 1 : -1]
        for name in (b"for", b"proto", b"host")
    )
    # A proxy may add to the list of clients and replace the others: the last value of a shorter list stays.
    return [
        _Hop(
            _client(client),
            _scheme(schemes[min(at, len(schemes) - 1)]),
            _host(hosts[min(at, len(hosts) - 1)]),
        )
        for at, client in enumerate(clients)
    ]


def _standard(value: str) -> list[_Hop]:
    """Return the hops of a `Forwarded` header; an element that cannot be read ends them."""
    hops: list[_Hop] = []
    found: dict[str, str] = {}
    at = 0
    while at < len(value):
        pair = _PAIR.match(value, at)
        if pair is None:
            return []
        quoted = pair[2]
        found[pair[1].lower()] = pair[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = pair.end()
        if not pair[0].rstrip().endswith(";"):
            client, scheme, host = (found.get(name, "") for name in ("for", "proto", "host"))
            hops.append(_Hop(_client(client), _scheme(scheme), _host(host)))
            found = {}
    return hops[: -_MAX_HOPS - 1 : -1]


def _client(text: str) -> str | None:
    """Return an address without its port; None for names such as `unknown`."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return None if _address(text) is None else text


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _scheme(text: str) -> str | None:
    return text.lower() if text.lower() in ("http", "https") else None


def _host(text: str) -> str | None:
    return text if _HOST.fullmatch(text) else None
