"""Credentials of a NATS user: the JWT that names its rights, and the seed of the key that signs for it."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Final

from attrs import field, frozen

from config.mistakes import Wrong

_PART: Final = r"-----BEGIN {}-----\s+([A-Za-z0-9_.=-]+)\s+-+END {}-"
_JWT: Final = re.compile(_PART.format("NATS USER JWT", "NATS USER JWT"))
_SEED: Final = re.compile(_PART.format("USER NKEY SEED", "USER NKEY SEED"))
_USER: Final = bytes((18 << 3 | 20 << 3 >> 5, (20 << 3 & 31) << 3))
"""How the seed of a user begins: the letters SU in base32."""
_SEED_BYTES: Final = 36
"""Two of the kind, 32 of the seed, two of a checksum."""
_MAX_BYTES: Final = 64 * 1024
_FORM: Final = "a file as `nsc generate creds` writes it"


@frozen
class Credentials:
    """A user, as the servers know it."""

    jwt: str = field(repr=False)
    _seed: bytes = field(repr=False)

    def sign(self, nonce: bytes) -> bytes:
        """Return the signature of what a server asks to be signed, as base64."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  (30 ms)

        return base64.b64encode(Ed25519PrivateKey.from_private_bytes(self._seed).sign(nonce))


def read_credentials(path: Path) -> Credentials:
    """Return the credentials in a file. Raises `Wrong`, which shows nothing of its content. Blocks."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode(errors="replace")
    except OSError as problem:
        raise Wrong(f"{path}: {problem.strerror}", allowed=_FORM) from None
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise Wrong(f"{path}: has no user JWT with its seed; give {_FORM}", allowed=_FORM)
    try:
        content = base64.b32decode(seed[1] + "=" * (-len(seed[1]) % 8))
    except binascii.Error:
        content = b""
    checked = content[:-2]
    if len(content) != _SEED_BYTES or binascii.crc_hqx(checked, 0) != int.from_bytes(content[-2:], "little"):
        raise Wrong(f"{path}: its seed is damaged; give {_FORM}", allowed=_FORM)
    if not content.startswith(_USER):
        raise Wrong(f"{path}: its seed is not that of a user; give {_FORM}", allowed=_FORM)
    return Credentials(jwt[1], checked[2:])
