"""Tokens: who calls, and what they may do. Keys are passed in; nothing here reads settings or the environment.

JSON Web Tokens (RFC 7519) as bearer tokens (RFC 6750). The algorithms are fixed by the type of the key, never by the
token; `exp` and `sub` are required.
"""

from __future__ import annotations

import fnmatch
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jwt
import trio
from attrs import frozen
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError, error

SCOPES = frozenset({"modules:read", "modules:write", "executions:run", "executions:read", "admin"})
SECRET_FILE = "jwt-secret"  # noqa: S105  (a file name)
_MIN_SECRET_BYTES = 32
_JWKS_SECONDS = 5
_CACHED = 1024
_LATEST = 253402300800  # the year 10000
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@frozen
class Principal:
    """Who calls. `modules` are globs; none means all modules."""

    subject: str
    scopes: frozenset[str]
    modules: tuple[str, ...] = ()

    def allows(self, scope: str) -> bool:
        """Return whether the scope was given; `admin` is all."""
        return scope in self.scopes or "admin" in self.scopes

    def may_use(self, name: str) -> bool:
        """Return whether the module is among those that the token names."""
        return not self.modules or any(fnmatch.fnmatchcase(name, glob) for glob in self.modules)


@frozen
class _Known:
    principal: Principal
    not_after: float


class Verifier:
    """Verifies tokens with one key, or with the keys of a JWKS URL.

    `secret` is for HS256, `public_key` PEM for RS/PS/ES/EdDSA. Raises RunnerError `bad_input` for a key that cannot be
    used. `local` says whether `verify_nowait` will do.
    """

    def __init__(
        self,
        settings: AuthSettings,
        *,
        secret: str | None = None,
        public_key: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = trio.Lock()
        self._jwks: jwt.PyJWKClient | None = None
        self._key: Any = None
        self._algorithms: tuple[str, ...] = ()
        given = secret or settings.secret
        if settings.jwks_url is not None:
            self._jwks = jwt.PyJWKClient(settings.jwks_url, timeout=_JWKS_SECONDS)
        elif public_key is not None:
            self._key, self._algorithms = _public_key(public_key)
        else:
            if given is None or len(given.encode()) < _MIN_SECRET_BYTES:
                text = f"the secret for tokens must have at least {_MIN_SECRET_BYTES} bytes"
                raise error(ErrorKind.BAD_INPUT, text, field="jwt_secret")
            self._key, self._algorithms = given, ("HS256",)
        self.local = self._jwks is None

    def verify_nowait(self, token: str) -> Principal:
        """Return who holds the token. Raises RunnerError `unauthenticated` with the reason. Only for local keys."""
        known = self._known.get(token)
        if known is not None:
            if self._clock() <= known.not_after:
                return known.principal
            del self._known[token]
        return self._decode(token, self._key, self._algorithms)

    async def verify(self, token: str) -> Principal:
        """Return who holds the token, fetching the key set when it is not at hand.

        Raises RunnerError `unauthenticated`, or `unavailable` when the key set cannot be had. Cancelled, the fetch
        ends on its own within 5 seconds.
        """
        if self._jwks is None:
            return self.verify_nowait(token)
        known = self._known.get(token)
        if known is not None and self._clock() <= known.not_after:
            return known.principal
        client = self._jwks
        try:
            async with self._lock:
                found = await trio.to_thread.run_sync(client.get_signing_key_from_jwt, token, abandon_on_cancel=True)
        except jwt.PyJWKClientConnectionError as problem:
            raise error(ErrorKind.UNAVAILABLE, "the key set for tokens cannot be fetched", retry_after=5) from problem
        except (jwt.PyJWTError, ValueError) as problem:
            raise _refused(f"no key of the key set fits the token: {problem}") from None
        return self._decode(token, found.key, _algorithms_of(found.key))

    def _decode(self, token: str, key: Any, algorithms: tuple[str, ...]) -> Principal:
        settings = self._settings
        try:
            claims = self._jwt.decode(
                token,
                key,
                algorithms=list(algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_seconds,
                options={"require": ["exp", "sub"], "verify_exp": False, "verify_aud": settings.audience is not None},
            )
        except jwt.PyJWTError as problem:
            raise _refused(_reason(problem)) from None
        except (ValueError, TypeError):
            raise _refused("the token is malformed") from None
        not_after = self._not_after(claims)
        principal = _principal(claims)
        while len(self._known) >= _CACHED:
            self._known.popitem(last=False)
        self._known[token] = _Known(principal, not_after)
        return principal

    def _not_after(self, claims: Mapping[str, Any]) -> float:
        """Return the time after which the token is refused, in seconds since the epoch."""
        exp = claims["exp"]
        if isinstance(exp, bool) or not isinstance(exp, int | float) or not 0 < exp < _LATEST:
            raise _refused("claim exp is not a time in seconds since the epoch")
        not_after = float(exp) + self._settings.leeway_seconds
        if self._clock() > not_after:
            raise _refused("the token has expired")
        return not_after


def _reason(problem: jwt.PyJWTError) -> str:
    """Return why a token is refused, without a word of what it holds."""
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (jwt.ImmatureSignatureError, "the token is not valid yet"),
        (jwt.MissingRequiredClaimError, f"the token lacks a claim: {problem}"),
        (jwt.InvalidAudienceError, "the token is for another audience (claim aud)"),
        (jwt.InvalidIssuerError, "the token is of another issuer (claim iss)"),
        (jwt.InvalidAlgorithmError, "the token is signed with an algorithm that the key is not for"),
        (jwt.InvalidSignatureError, "the signature of the token does not fit"),
        (jwt.DecodeError, "the token is malformed"),
    )
    return next((text for kind, text in reasons if isinstance(problem, kind)), "the token is not valid")


def _refused(reason: str) -> RunnerError:
    return error(ErrorKind.UNAUTHENTICATED, reason, field="authorization")


def _principal(claims: Mapping[str, Any]) -> Principal:
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject:
        raise _refused("claim sub is not a name")
    scope = claims.get("scope", "")
    words = scope.split() if isinstance(scope, str) else scope
    globs = claims.get("modules", [])
    for name, value in (("scope", words), ("modules", globs)):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _refused(f"claim {name} is not a list of names")
    if "modules" in claims and not globs:
        globs = ["!"]  # an empty list allows no module; no module has this name
    return Principal(subject, frozenset(words) & SCOPES, tuple(globs))


def _public_key(data: bytes) -> tuple[Any, tuple[str, ...]]:
    try:
        key = load_pem_public_key(data)
        return key, _algorithms_of(key)
    except (ValueError, RunnerError) as problem:
        text = f"the file has no public key in PEM form that could be used: {problem}"
        raise error(ErrorKind.BAD_INPUT, text, field="jwt_public_key_file") from None


def _algorithms_of(key: Any) -> tuple[str, ...]:
    """Return the algorithms that a public key is for."""
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return (_CURVES[key.curve.name],)
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return ("EdDSA",)
    raise _refused("the key is of a type that is not accepted (RSA, EC P-256/384/521, Ed25519, Ed448)")


def sign(
    secret: str,
    *,
    subject: str,
    scopes: Iterable[str],
    expires_seconds: float,
    issuer: str | None = None,
    audience: str | None = None,
    modules: Iterable[str] = (),
) -> str:
    """Return a token of the runner's own secret. Raises RunnerError `bad_input` for a scope that does not exist."""
    wanted = list(scopes)
    if unknown := [scope for scope in wanted if scope not in SCOPES]:
        text = f"there is no scope {unknown[0]!r}; there are {', '.join(sorted(SCOPES))}"
        raise error(ErrorKind.BAD_INPUT, text, field="scope")
    now = int(time.time())
    claims: dict[str, Any] = {"sub": subject, "scope": " ".join(wanted), "iat": now, "exp": now + int(expires_seconds)}
    optional = {"iss": issuer, "aud": audience, "modules": list(modules) or None}
    claims |= {name: value for name, value in optional.items() if value is not None}
    return str(jwt.encode(claims, secret, algorithm="HS256"))


def load_or_make_secret(data_dir: Path) -> tuple[str, bool]:
    """Return the secret in the data directory, and whether it was made now. One wins when several make it at once.

    Raises RunnerError `unavailable` when others can read the file, or it holds no secret; OSError.
    """
    path = data_dir / SECRET_FILE
    made = False
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        temporary = data_dir / f".{SECRET_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
                file.write(secrets.token_urlsafe(48))
            try:
                os.link(temporary, path)  # whole or not at all, and never over another's
                made = True
            except FileExistsError:
                pass
        finally:
            temporary.unlink(missing_ok=True)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        text = f"{path} can be read by others; make a new secret, or `chmod 600` it"
        raise error(ErrorKind.UNAVAILABLE, text, field="data_dir")
    secret = path.read_text().strip()
    if len(secret.encode()) < _MIN_SECRET_BYTES:
        raise error(ErrorKind.UNAVAILABLE, f"{path} holds no secret; remove it to have one made", field="data_dir")
    return secret, made


def bearer(header: str | None) -> str:
    """Return the token of an `Authorization` header. Raises RunnerError `unauthenticated`."""
    scheme, _, token = (header or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _refused("a token is needed: `Authorization: Bearer TOKEN`")
    return token.strip()
