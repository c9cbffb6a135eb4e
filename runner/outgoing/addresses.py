"""Which addresses a message may be posted to: public ones, and those that the operator names. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from attrs import frozen

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""The public addresses of IPv6 that are given out."""
_KINDS: Final = (
    ("is_unspecified", "an address of this machine"),
    ("is_loopback", "an address of this machine"),
    ("is_link_local", "a link-local address"),
    ("is_multicast", "a multicast address"),
    ("is_private", "a private address"),
)
REMEDY: Final = "the operator can allow it with `notices_allow`"


@frozen
class Allowed:
    """What the operator allows besides public addresses: networks, and names of hosts wherever these lead."""

    networks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    """In lower case; `*.example.org` stands for all names below."""

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """Read the entries of the setting `notices_allow`."""
        networks: list[Network] = []
        hosts: list[str] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                hosts.append(entry.lower())
        return cls(tuple(networks), tuple(hosts))

    def host(self, name: str) -> bool:
        """Whether a host is allowed by its name."""
        return any(fnmatchcase(name.lower().rstrip("."), glob) for glob in self.hosts)

    def within(self, text: str) -> bool:
        """Whether an address is in one of the networks."""
        return any(
            each.version == network.version and each in network
            for each in _meant(_address(text))
            for network in self.networks
        )

    def refusal(self, text: str) -> str | None:
        """Return why an address is refused, `a private address`; None when it is allowed."""
        if self.within(text):
            return None
        return next((why for each in _meant(_address(text)) if (why := _not_public(each))), None)


def _address(text: str) -> Address:
    return ipaddress.ip_address(text.partition("%")[0])  # without the zone of a link-local address


def _meant(address: Address) -> Iterator[Address]:
    """Yield an address, and the address of IPv4 in it to which a packet would go."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        yield from (each for each in inner if each is not None)


def _not_public(address: Address) -> str | None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return None  # judged as the address of IPv4 that it is
    for kind, text in _KINDS:
        if getattr(address, kind):
            return text
    given_out = isinstance(address, ipaddress.IPv4Address) or address in _UNICAST or address in _NAT64
    return None if address.is_global and given_out else "an address that is not public"
