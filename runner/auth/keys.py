"""Keys that verify tokens: a secret, a public key, or the set of keys behind a URL (JWKS).

Every key fixes by its type the algorithms that it may be used with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import jwt
from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from protocol.errors import ErrorKind, RunnerError, error

MIN_SECRET_BYTES: Final = 32
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_KEY_SET_SECONDS: Final = 300.0
_FETCH_SECONDS: Final = 5.0
_COOLDOWN_SECONDS: Final = 30.0


@frozen
class Key:
    """A key, and all that it may verify. `until` is when it must be fetched again, as the verifier's clock counts."""

    key: Any = field(repr=False)
    algorithms: tuple[str, ...]
    until: float = math.inf


class KeySet:
    """The keys behind a JWKS URL, fetched by one thread at a time and used for five minutes."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        import trio  # noqa: PLC0415  (0.05 s, which a command that signs a token saves)

        try:
            # It keeps nothing: what is kept, and for how long, is decided here by the verifier's clock.
            self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_FETCH_SECONDS)
        except jwt.PyJWTError as problem:
            raise error(
                ErrorKind.BAD_INPUT, f"`jwt_jwks_url` cannot be used: {problem}", field="jwt_jwks_url"
            ) from None
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._next_fetch = -math.inf
        self._broken = False
        # Not only the lock: a fetch whose caller was cancelled goes on in its thread.
        self._one = trio.CapacityLimiter(1)
        self._lock = trio.Lock()

    async def find(self, name: object) -> Key:
        """Return the key with this `kid`; one that is not known makes the set be fetched again, but not too often."""
        if not isinstance(name, str):
            raise refused("it does not name its key (`kid`)")
        key = self._fresh(name)
        if key is not None:
            return key
        async with self._lock:
            # Whoever held the lock before may have fetched it.
            key = self._fresh(name)
            if key is None and self._clock() >= self._next_fetch:
                await self._fetch()
                key = self._fresh(name)
        if key is not None:
            return key
        if self._broken:
            raise _keys_unavailable()
        raise refused("its key is not known")

    def _fresh(self, name: str) -> Key | None:
        key = self._keys.get(name)
        return key if key is not None and self._clock() < key.until else None

    async def _fetch(self) -> None:
        import trio  # noqa: PLC0415

        try:
            # The client's timeout counts for each read, so a server that drips needs this one.
            with trio.fail_after(_FETCH_SECONDS + 1):
                found = await trio.to_thread.run_sync(
                    self._client.get_signing_keys, abandon_on_cancel=True, limiter=self._one
                )
        except (jwt.PyJWTError, trio.TooSlowError, OSError, ValueError):
            # The next callers are told at once, for as long as one attempt takes.
            self._broken, self._next_fetch = True, self._clock() + _FETCH_SECONDS
            raise _keys_unavailable() from None
        now = self._clock()
        keys = ((str(jwk.key_id), _fetched_key(jwk, now + _KEY_SET_SECONDS)) for jwk in found)
        self._keys = {name: key for name, key in keys if key is not None}
        self._broken, self._next_fetch = False, now + _COOLDOWN_SECONDS


def _keys_unavailable() -> RunnerError:
    return error(
        ErrorKind.UNAVAILABLE, "the server of the token keys (JWKS) does not answer", retry_after=_FETCH_SECONDS
    )


def _fetched_key(jwk: jwt.PyJWK, until: float) -> Key | None:
    """Return the key with what its type allows; None for secrets, which have no place in a public document."""
    algorithms = _algorithms(jwk.key)
    declared = jwk._jwk_data.get("alg")  # noqa: SLF001 - `algorithm_name` is a guess where none is declared
    if declared is not None:
        algorithms = tuple(name for name in algorithms if name == declared)
    return Key(jwk.key, algorithms, until) if algorithms else None


def hmac_key(secret: str) -> Key:
    """Return the key of a shared secret. Raises `RunnerError` (`bad_input`) for one that is short, or no secret."""
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
    """Return a public key from its PEM text. Raises `RunnerError` (`bad_input`) for one that cannot be used."""
    if b"PRIVATE KEY-----" in pem:
        message = "`jwt_public_key_file` holds a private key: give the runner the public one only"
        raise error(ErrorKind.BAD_INPUT, message, field="jwt_public_key_file")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise error(
            ErrorKind.BAD_INPUT, "`jwt_public_key_file` is not a public key in PEM format", field="jwt_public_key_file"
        ) from None
    algorithms = _algorithms(key)
    if not algorithms:
        message = "tokens can be verified by RSA (2048 bits or more), P-256, P-384, P-521, Ed25519 and Ed448 keys"
        raise error(ErrorKind.BAD_INPUT, message, field="jwt_public_key_file")
    return Key(key, algorithms)


def _algorithms(key: object) -> tuple[str, ...]:
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
    """Return the error for a token that is not accepted."""
    return error(ErrorKind.UNAUTHENTICATED, f"the token is not valid: {why}")
