"""Users of NATS servers with rights of their own, as `nsc` makes them: operator, account, users, and their files."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Sequence
from typing import Any

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KINDS = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_NO_LIMITS = dict.fromkeys(
    (
        "subs",
        "data",
        "payload",
        "imports",
        "exports",
        "conn",
        "leaf",
        "mem_storage",
        "disk_storage",
        "streams",
        "consumer",
    ),
    -1,
)

_NO_STREAMS = {"mem_storage": 0, "disk_storage": 0}
"""As a system account must have it."""


@attrs.define
class Identity:
    """An operator, an account or a user, with its key."""

    kind: str
    key: Ed25519PrivateKey = attrs.field(factory=Ed25519PrivateKey.generate)
    jwt: str = ""

    @property
    def name(self) -> str:
        """Its public key, by which servers know it."""
        return _text(bytes((_KINDS[self.kind],)) + self.key.public_key().public_bytes_raw())

    @property
    def seed(self) -> str:
        """Its private key."""
        kind, seed = _KINDS[self.kind], 18 << 3
        return _text(bytes((seed | kind >> 5, (kind & 31) << 3)) + self.key.private_bytes_raw())

    @property
    def credentials(self) -> str:
        """The file of a user."""
        parts = (("NATS USER JWT", self.jwt), ("USER NKEY SEED", self.seed))
        return "".join(f"-----BEGIN {name}-----\n{text}\n------END {name}------\n\n" for name, text in parts)

    def sign(self, subject: Identity, rights: dict[str, Any]) -> None:
        """Give another one, or itself, its JWT."""
        claims = {
            "jti": "1",
            "iat": int(time.time()),
            "iss": self.name,
            "name": subject.kind,
            "sub": subject.name,
            "nats": {**rights, "type": subject.kind, "version": 2},
        }
        head = ".".join(map(_part, ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)))
        subject.jwt = f"{head}.{base64.urlsafe_b64encode(self.key.sign(head.encode())).decode().rstrip('=')}"


class Account:
    """An account with JetStream and its operator."""

    def __init__(self) -> None:
        self._operator, self._account, self._system = Identity("operator"), Identity("account"), Identity("account")
        self._operator.sign(self._operator, {})
        self._operator.sign(self._account, {"limits": {**_NO_LIMITS, "wildcards": True}})
        self._operator.sign(self._system, {"limits": {**_NO_LIMITS, "wildcards": True, **_NO_STREAMS}})
        self.seed = self._account.seed

    @property
    def configuration(self) -> str:
        """The lines of a server that knows this account, and one for itself."""
        accounts = ", ".join(f"{account.name}: {account.jwt}" for account in (self._account, self._system))
        lines = f"operator: {self._operator.jwt}\nsystem_account: {self._system.name}\nresolver: MEMORY\n"
        return f"{lines}resolver_preload: {{ {accounts} }}\n"

    def user(self, publish: Sequence[str] = (">",), subscribe: Sequence[str] = (">",)) -> Identity:
        """Return a user with the right to publish and subscribe to these subjects."""
        user = Identity("user")
        rights = {"pub": {"allow": [*publish]}, "sub": {"allow": [*subscribe]}, "subs": -1, "data": -1, "payload": -1}
        self._account.sign(user, rights)
        return user


def _text(content: bytes) -> str:
    checksum = binascii.crc_hqx(content, 0).to_bytes(2, "little")
    return base64.b32encode(content + checksum).decode().rstrip("=")


def _part(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
