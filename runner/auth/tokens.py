"""Who calls: token -> `Principal`, and tokens of our own.

Keys are passed in. Every key fixes by its type the algorithms it may be used with, so a token cannot choose how it is
verified: a public key is never an HMAC secret, and `none` is nobody's algorithm.
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

import jwt
from attrs import frozen

from config.settings import AuthSettings
from protocol.errors import ErrorKind, error
from runner.auth.keys import Key, KeySet, hmac_key, pem_key, refused


class Scope(StrEnum):
    """What a token may allow."""

    MODULES_READ = "modules:read"
    MODULES_WRITE = "modules:write"
    EXECUTIONS_RUN = "executions:run"
    EXECUTIONS_READ = "executions:read"
    METRICS_READ = "metrics:read"
    ADMIN = "admin"
    """Every scope."""


SCOPES: Final = frozenset(scope.value for scope in Scope)
MAX_TOKEN_CHARACTERS: Final = 16 * 1024
CACHED_TOKENS: Final = 1024
_MAX_GLOBS: Final = 1000
_LATEST: Final = 253402300800.0  # the year 10000
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)


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
        keys = [] if secret is None else [hmac_key(secret)]
        if public_key is not None:
            keys.append(pem_key(public_key))
        self._keys = tuple(keys)
        if settings.jwks_url is not None and public_key is not None:
            raise error(
                ErrorKind.BAD_INPUT, "give `jwt_public_key_file` or `jwt_jwks_url`, not both", field="jwt_jwks_url"
            )
        self._key_set = None if settings.jwks_url is None else KeySet(settings.jwks_url, clock)
        if not self._keys and self._key_set is None:
            raise error(
                ErrorKind.BAD_INPUT,
                "tokens need `jwt_secret`, `jwt_public_key_file` or `jwt_jwks_url`",
                field="jwt_secret",
            )
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
        import trio  # noqa: PLC0415  (0.05 s, which a command that signs a token saves)

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

    def _local_key(self, header: Mapping[str, Any]) -> Key | None:
        return next((key for key in self._keys if header.get("alg") in key.algorithms), None)

    def _check(self, token: str, header: Mapping[str, Any], key: Key | None) -> Principal:
        if key is None or header.get("alg") not in key.algorithms:
            raise refused("its algorithm is not accepted here")
        settings = self._settings
        try:
            claims = self._jwt.decode(
                token, key.key, algorithms=key.algorithms, audience=settings.audience, issuer=settings.issuer
            )
        except jwt.PyJWTError as problem:
            raise refused(_why(problem)) from None
        expires = self._check_times(claims)
        subject = claims["sub"]
        if not subject:
            raise refused("the claim `sub` is empty")
        principal = Principal(subject, _scopes(claims.get("scope")), _globs(claims.get("modules")))
        self._cache[token] = (min(expires + settings.leeway_seconds, key.until), principal)
        if len(self._cache) > CACHED_TOKENS:
            self._cache.popitem(last=False)
        return principal

    def _check_times(self, claims: Mapping[str, Any]) -> float:
        now, leeway = self._clock(), self._settings.leeway_seconds
        expires = _time(claims, "exp")
        if expires + leeway <= now:
            raise refused("it has expired")
        for name in ("nbf", "iat"):
            if name in claims and _time(claims, name) > now + leeway:
                raise refused(f"it is not valid yet (`{name}`)")
        return expires


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
        raise refused("it is too long")
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise refused("it cannot be read") from None


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise refused(f"the claim `{name}` must be a number of seconds since 1970")
    return float(value)


def _strings(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise refused(f"the claim `{name}` has the wrong type")
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
        raise refused(f"the claim `modules` must have 1 to {_MAX_GLOBS} items")
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
    key, modules = hmac_key(secret).key, list(modules)
    unknown = sorted(set(scopes) - SCOPES)
    now = int(time.time())
    if not subject:
        raise error(ErrorKind.BAD_INPUT, "a token needs a subject", field="subject")
    if any(not _is_text(given) for given in (subject, *modules)):
        raise error(ErrorKind.BAD_INPUT, "subject and modules must be text in UTF-8", field="subject")
    if unknown:
        message = f"unknown scope {', '.join(unknown)}; there are {', '.join(sorted(SCOPES))}"
        raise error(ErrorKind.BAD_INPUT, message, field="scope")
    if not 0 < expires_seconds < _LATEST - now:
        raise error(ErrorKind.BAD_INPUT, "a token expires in the future, before the year 10000", field="expires")
    claims: dict[str, Any] = {"sub": subject, "scope": " ".join(scopes), "iat": now}
    claims["exp"] = math.ceil(now + expires_seconds)
    optional = {"iss": issuer, "aud": audience, "modules": modules or None}
    claims.update((name, value) for name, value in optional.items() if value is not None)
    return jwt.encode(claims, key, algorithm="HS256")


def _is_text(given: str) -> bool:
    """Return whether it has no bytes of a command line that are no characters."""
    return all(not "\ud800" <= character <= "\udfff" for character in given)


def bearer(header: str | None) -> str:
    """Return the token of an `Authorization` header's value. Raises `RunnerError` (`unauthenticated`)."""
    if not header:
        raise error(ErrorKind.UNAUTHENTICATED, "no token was shown: send `Authorization: Bearer TOKEN`")
    found = _BEARER.fullmatch(header)
    if found is None:
        raise error(ErrorKind.UNAUTHENTICATED, "the authorization is not of the form `Bearer TOKEN`")
    return found[1]
