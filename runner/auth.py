"""Who calls: token -> `Principal`, and the runner's own secret.

Keys are passed in. Every key fixes by its type the algorithms it may be used with, so a token cannot choose how it is
verified: a public key is never an HMAC secret, and `none` is nobody's algorithm.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import jwt
import trio
from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError, error


class Scope(StrEnum):
    """What a token may allow."""

    MODULES_READ = "modules:read"
    MODULES_WRITE = "modules:write"
    EXECUTIONS_RUN = "executions:run"
    EXECUTIONS_READ = "executions:read"
    ADMIN = "admin"
    """Every scope."""


SCOPES: Final = frozenset(scope.value for scope in Scope)
MIN_SECRET_BYTES: Final = 32
MAX_TOKEN_CHARACTERS: Final = 16 * 1024
CACHED_TOKENS: Final = 1024
_MAX_GLOBS: Final = 1000
_LATEST: Final = 253402300800.0  # the year 10000
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)
_KEY_SET_SECONDS: Final = 300.0
_FETCH_SECONDS: Final = 5.0
_COOLDOWN_SECONDS: Final = 30.0


@frozen
class Principal:
    """Who calls and what the token allows. `modules` are globs of module names; () is all of them, also for admins."""

    subject: str
    scopes: frozenset[str]
    modules: tuple[str, ...] = ()

    def allows(self, scope: str) -> bool:
        """Whether the token carries `scope`; `admin` carries all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_use(self, module_name: str) -> bool:
        """Whether the token is for this module."""
        return not self.modules or any(fnmatchcase(module_name, glob) for glob in self.modules)


@frozen
class _Key:
    """A key, and all that it may verify. `until` is when it must be fetched again, as `Verifier`'s clock counts."""

    key: Any = field(repr=False)
    algorithms: tuple[str, ...]
    until: float = math.inf


class Verifier:
    """Verifies tokens by a secret, a public key or a JWKS URL; what was verified is remembered, within bounds.

    `clock` tells the time of day in seconds since the epoch.
    """

    def __init__(
        self,
        settings: AuthSettings,
        *,
        secret: str | None = None,
        public_key: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take `settings`' secret or `secret`, the PEM text `public_key`, and `settings.jwks_url`; at least one.

        Raises `RunnerError` (`bad_input`) for a key that cannot be used, and for two sources of public keys.
        """
        self._settings = settings
        self._clock = clock
        secret = secret if settings.secret is None else settings.secret
        keys = [] if secret is None else [_secret_key(secret)]
        if public_key is not None:
            keys.append(_public_key(public_key))
        self._keys = tuple(keys)
        if settings.jwks_url is not None and public_key is not None:
            raise error(ErrorKind.BAD_INPUT, "give a public key or a JWKS URL, not both", field="jwks_url")
        self._key_set = None if settings.jwks_url is None else _KeySet(settings.jwks_url, clock)
        if not self._keys and self._key_set is None:
            raise error(ErrorKind.BAD_INPUT, "tokens need a secret, a public key or a JWKS URL", field="secret")
        self._jwt = jwt.PyJWT(
            options={
                "require": ["exp", "sub"],
                "enforce_minimum_key_length": True,
                # Times are checked here, by this verifier's clock and more strictly.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            }
        )
        self._cache: OrderedDict[str, tuple[float, Principal]] = OrderedDict()

    @property
    def local(self) -> bool:
        """Whether `verify_nowait` can verify every token, since no key must be fetched."""
        return self._key_set is None

    async def verify(self, token: str) -> Principal:
        """Return who shows `token`; fetches keys from the JWKS URL when needed, for at most about 5 seconds.

        Raises `RunnerError`: `unauthenticated` with a reason for the caller, `unavailable` when the keys cannot be
        fetched. Cancellation leaves a fetch that was begun to end in its thread, unheard.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        known = self._remembered(token)
        if known is not None:
            return known
        header = _header(token)
        key = self._local_key(header)
        if key is None and self._key_set is not None:
            key = await self._key_set.find(header.get("kid"))
        return self._check(token, header, key)

    def verify_nowait(self, token: str) -> Principal:
        """Return who shows `token`, by the keys at hand only: what `verify` does where `local` is true."""
        known = self._remembered(token)
        if known is not None:
            return known
        header = _header(token)
        return self._check(token, header, self._local_key(header))

    def _remembered(self, token: str) -> Principal | None:
        found = self._cache.get(token)
        if found is None:
            return None
        if self._clock() < found[0]:
            self._cache.move_to_end(token)
            return found[1]
        del self._cache[token]
        return None

    def _local_key(self, header: Mapping[str, Any]) -> _Key | None:
        return next((key for key in self._keys if header.get("alg") in key.algorithms), None)

    def _check(self, token: str, header: Mapping[str, Any], key: _Key | None) -> Principal:
        if key is None or header.get("alg") not in key.algorithms:
            raise _refused("its algorithm is not accepted here")
        settings = self._settings
        try:
            claims = self._jwt.decode(
                token, key.key, algorithms=key.algorithms, audience=settings.audience, issuer=settings.issuer
            )
        except jwt.PyJWTError as problem:
            raise _refused(_why(problem)) from None
        expires = self._check_times(claims)
        subject = claims["sub"]
        if not subject:
            raise _refused("the claim `sub` is empty")
        principal = Principal(subject, _scopes(claims.get("scope")), _globs(claims.get("modules")))
        self._cache[token] = (min(expires + settings.leeway_seconds, key.until), principal)
        if len(self._cache) > CACHED_TOKENS:
            self._cache.popitem(last=False)
        return principal

    def _check_times(self, claims: Mapping[str, Any]) -> float:
        now, leeway = self._clock(), self._settings.leeway_seconds
        expires = _time(claims, "exp")
        if expires + leeway <= now:
            raise _refused("it has expired")
        for name in ("nbf", "iat"):
            if name in claims and _time(claims, name) > now + leeway:
                raise _refused(f"it is not valid yet (`{name}`)")
        return expires


class _KeySet:
    """The keys behind a JWKS URL, fetched by one thread at a time and used for five minutes."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        try:
            # It keeps nothing: what is kept, and for how long, is decided here by the verifier's clock.
            self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_FETCH_SECONDS)
        except jwt.PyJWTError as problem:
            raise error(ErrorKind.BAD_INPUT, f"the JWKS URL cannot be used: {problem}", field="jwks_url") from None
        self._clock = clock
        self._keys: dict[str, _Key] = {}
        self._next_fetch = -math.inf
        self._broken = False
        # Not only the lock: a fetch whose caller was cancelled goes on in its thread.
        self._one = trio.CapacityLimiter(1)
        self._lock = trio.Lock()

    async def find(self, name: object) -> _Key:
        """Return the key with this `kid`; one that is not known makes the set be fetched again, but not too often."""
        if not isinstance(name, str):
            raise _refused("it does not name its key (`kid`)")
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
        raise _refused("its key is not known")

    def _fresh(self, name: str) -> _Key | None:
        key = self._keys.get(name)
        return key if key is not None and self._clock() < key.until else None

    async def _fetch(self) -> None:
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


def _fetched_key(jwk: jwt.PyJWK, until: float) -> _Key | None:
    """Return the key with what its type allows; None for secrets, which have no place in a public document."""
    algorithms = _algorithms(jwk.key)
    declared = jwk._jwk_data.get("alg")  # noqa: SLF001 - `algorithm_name` is a guess where none is declared
    if declared is not None:
        algorithms = tuple(name for name in algorithms if name == declared)
    return _Key(jwk.key, algorithms, until) if algorithms else None


def _secret_key(secret: str) -> _Key:
    data = secret.encode()
    if len(data) < MIN_SECRET_BYTES:
        raise error(ErrorKind.BAD_INPUT, f"the secret needs at least {MIN_SECRET_BYTES} bytes", field="secret")
    if b"-----BEGIN " in data:
        raise error(ErrorKind.BAD_INPUT, "the secret is a PEM key; a public key has its own setting", field="secret")
    return _Key(data, ("HS256",))


def _public_key(pem: bytes) -> _Key:
    if b"PRIVATE KEY-----" in pem:
        message = "this is a private key: give the runner the public one only"
        raise error(ErrorKind.BAD_INPUT, message, field="public_key_file")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise error(ErrorKind.BAD_INPUT, "this is not a public key in PEM format", field="public_key_file") from None
    algorithms = _algorithms(key)
    if not algorithms:
        message = "tokens can be verified by RSA (2048 bits or more), P-256, P-384, P-521, Ed25519 and Ed448 keys"
        raise error(ErrorKind.BAD_INPUT, message, field="public_key_file")
    return _Key(key, algorithms)


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


def _refused(why: str) -> RunnerError:
    return error(ErrorKind.UNAUTHENTICATED, f"the token is not valid: {why}")


def _why(problem: jwt.PyJWTError) -> str:
    """Return a reason that tells the caller what to mend, and nothing about what is expected here."""
    match problem:
        case jwt.InvalidSignatureError() | jwt.InvalidKeyError():
            return "its signature does not match"
        case jwt.MissingRequiredClaimError():
            return f"the claim `{problem.claim}` is missing"
        case jwt.InvalidAudienceError():
            return "it is for another audience (`aud`)"
        case jwt.InvalidIssuerError():
            return "it is from another issuer (`iss`)"
        case jwt.exceptions.InvalidSubjectError():
            return "the claim `sub` must be a string"
        case _:
            return "it cannot be read"


def _header(token: str) -> Mapping[str, Any]:
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise _refused("it is too long")
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _refused("it cannot be read") from None


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise _refused(f"the claim `{name}` must be a number of seconds since 1970")
    return float(value)


def _strings(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _refused(f"the claim `{name}` has the wrong type")
    return tuple(value)


def _scopes(claim: object) -> frozenset[str]:
    if claim is None:
        return frozenset()
    # Scopes of other services may be in the same token, and have no say here.
    return SCOPES & frozenset(claim.split() if isinstance(claim, str) else _strings(claim, "scope"))


def _globs(claim: object) -> tuple[str, ...]:
    if claim is None:
        return ()
    globs = _strings(claim, "modules")
    # An empty list would have to mean all modules, which its author hardly wants.
    if not 1 <= len(globs) <= _MAX_GLOBS:
        raise _refused(f"the claim `modules` must have 1 to {_MAX_GLOBS} items")
    return globs


def sign(
    secret: str,
    *,
    subject: str,
    scopes: Collection[str],
    expires_seconds: float,
    issuer: str | None = None,
    audience: str | None = None,
    modules: Iterable[str] = (),
) -> str:
    """Return an HS256 token that is good from now for `expires_seconds`; no `modules` means all.

    Raises `RunnerError` (`bad_input`) for a short secret, no subject, an unknown scope or a time out of range.
    """
    key = _secret_key(secret).key
    unknown = sorted(set(scopes) - SCOPES)
    now = int(time.time())
    if not subject:
        raise error(ErrorKind.BAD_INPUT, "a token needs a subject", field="subject")
    if unknown:
        message = f"unknown scope {', '.join(unknown)}; there are {', '.join(sorted(SCOPES))}"
        raise error(ErrorKind.BAD_INPUT, message, field="scope")
    if not 0 < expires_seconds < _LATEST - now:
        raise error(ErrorKind.BAD_INPUT, "a token expires in the future, before the year 10000", field="expires")
    claims: dict[str, Any] = {"sub": subject, "scope": " ".join(scopes), "iat": now}
    claims["exp"] = math.ceil(now + expires_seconds)
    optional = {"iss": issuer, "aud": audience, "modules": list(modules) or None}
    claims.update((name, value) for name, value in optional.items() if value is not None)
    return jwt.encode(claims, key, algorithm="HS256")


def bearer(header: str | None) -> str:
    """Return the token of an `Authorization` header's value. Raises `RunnerError` (`unauthenticated`)."""
    if not header:
        raise error(ErrorKind.UNAUTHENTICATED, "no token was shown: send `Authorization: Bearer TOKEN`")
    found = _BEARER.fullmatch(header)
    if found is None:
        raise error(ErrorKind.UNAUTHENTICATED, "the authorization is not of the form `Bearer TOKEN`")
    return found[1]


def load_or_make_secret(data_dir: Path) -> tuple[str, bool]:
    """Return the secret in `data_dir`'s file `jwt-secret`, and whether it was made now. Blocks.

    Of several processes that make it at once, one does and all return the same. Raises `RunnerError`
    (`unavailable`) when others may read the file, when it is no secret, or when it cannot be read or made.
    """
    path = data_dir / "jwt-secret"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        made = not path.exists() and _make_secret(path)
        return _read_secret(path), made
    except OSError as problem:
        message = f"the secret {path} cannot be read or made: {problem.strerror}"
        raise error(ErrorKind.UNAVAILABLE, message, field="data_dir") from None


def _make_secret(path: Path) -> bool:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(fd)
        # A link is whole at once and, unlike a rename, never replaces the one of another process.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _read_secret(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        data = file.read(4096).strip() if stat.S_ISREG(status.st_mode) else b""
    if status.st_mode & 0o077:
        message = f"others may read the secret {path}: `chmod 600` it, or delete it to have a new one made"
        raise error(ErrorKind.UNAVAILABLE, message, field="data_dir")
    if len(data) < MIN_SECRET_BYTES or not data.isascii():
        message = f"{path} is not a secret of {MIN_SECRET_BYTES} characters or more: delete it to have a new one made"
        raise error(ErrorKind.UNAVAILABLE, message, field="data_dir")
    return data.decode("ascii")
