"""Keys that verify tokens: a secret, or a public key. The type of a key fixes the algorithms that it may verify."""

from __future__ import annotations

import math
import sys
from importlib import import_module, reload
from typing import Any, Final

from attrs import field, frozen

from protocol.errors import ErrorKind, RunnerError, error
from runner import without

with without("cryptography"):  # 8 MB, which shared secrets do not need; this is the first import of `jwt`
    import jwt

MIN_SECRET_BYTES: Final = 32
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@frozen
class Key:
    """A key and the algorithms that it may verify. After `until`, by the verifier's clock, it must be fetched again."""

    key: Any = field(repr=False)
    algorithms: tuple[str, ...]
    until: float = math.inf


def prepare_for_public_keys() -> None:
    """Let PyJWT verify with public keys too. To be called before a verifier is made from `jwt`."""
    if jwt.algorithms.has_crypto:
        return
    import_module("cryptography")
    for name in ("utils", "algorithms", "api_jwk", "api_jws", "api_jwt", "jwk_set_cache", "jwks_client"):
        reload(sys.modules[f"jwt.{name}"])
    reload(jwt)


def hmac_key(secret: str) -> Key:
    """Return the key of a shared secret. Raises `RunnerError` (`bad_input`) if it is too short or a PEM key."""
    data = secret.encode()
    if len(data) < MIN_SECRET_BYTES:
        raise error(ErrorKind.BAD_INPUT, f"`jwt_secret` needs at least {MIN_SECRET_BYTES} bytes", field="jwt_secret")
    if b"-----BEGIN " in data:
        raise error(
            ErrorKind.BAD_INPUT,
            "`jwt_secret` is a PEM key; a public key belongs in `jwt_public_key_file`",
            field="jwt_secret",
        )
    return Key(data, ("HS256",))


def pem_key(pem: bytes) -> Key:
    """Return a public key from its PEM text. Raises `RunnerError` (`bad_input`) if it cannot be used."""
    if b"PRIVATE KEY-----" in pem:
        message = "`jwt_public_key_file` holds a private key: give the runner the public one only"
        raise error(ErrorKind.BAD_INPUT, message, field="jwt_public_key_file")
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  (8 MB, only for public keys)
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    prepare_for_public_keys()
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise error(
            ErrorKind.BAD_INPUT, "`jwt_public_key_file` is not a public key in PEM format", field="jwt_public_key_file"
        ) from None
    algorithms = algorithms_of(key)
    if not algorithms:
        message = "tokens can be verified by RSA (2048 bits or more), P-256, P-384, P-521, Ed25519 and Ed448 keys"
        raise error(ErrorKind.BAD_INPUT, message, field="jwt_public_key_file")
    return Key(key, algorithms)


def algorithms_of(key: object) -> tuple[str, ...]:
    """Return the algorithms that a public key may verify; () for a key that is not accepted."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa  # noqa: PLC0415  (as above)

    match key:
        case rsa.RSAPublicKey():
            return _RSA if key.key_size >= 2048 else ()
        case ec.EllipticCurvePublicKey():
            return tuple(name for curve, name in _CURVES.items() if key.curve.name == curve)
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return ("EdDSA",)
        case _:
            return ()


def refused(why: str) -> RunnerError:
    """Return the error for a token that is not valid."""
    return error(ErrorKind.UNAUTHENTICATED, f"the token is not valid: {why}")
