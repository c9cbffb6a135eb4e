"""JSON Web Tokens: verified into a `Principal`, and signed by the runner's own secret.

Keys are passed in. The type of a key fixes the algorithms that it may verify, so a token cannot choose how it is
verified: a public key is never an HMAC secret, and no key has the algorithm `none`.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import jwt

from config.settings import AuthSettings
from protocol.errors import ErrorKind, error
from protocol.model import KEY_PREFIX
from runner.auth.keys import Key, hmac_key, pem_key, refused
from runner.auth.principal import SCOPES, Principal

if TYPE_CHECKING:
    from actors.keys import ApiKeys
    from runner.auth.jwks import KeySet


MAX_TOKEN_CHARACTERS: Final = 16 * 1024
CACHED_TOKENS: Final = 1024
_MAX_GLOBS: Final = 1000
_KEY_SECONDS: Final = 60.0
"""An API key is looked up again after this time, so that its last use is noted."""
_LATEST: Final = 253402300800.0  # the year 10000


class Verifier:
    """Verifies tokens by a secret, a public key or a JWKS URL, and API keys; caches a bounded number of both.

    `clock` returns the time of day in seconds since the epoch.
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

        Raises `RunnerError` (`bad_input`) if a key cannot be used, or public keys come from two sources.
        """
        self._settings = settings
        self._clock = clock
        self.api_keys: ApiKeys | None = None
        """The API keys, which are accepted in place of tokens."""
        self.anonymous: Principal | None = None
        """The caller without any credential, where one is accepted."""
        self.refused: Counter[str] = Counter()
        """The number of refused callers by what they showed: `none`, `token` or `key`."""
        secret = secret if settings.secret is None else settings.secret
        keys = [] if secret is None else [hmac_key(secret)]
        if public_key is not None:
            keys.append(pem_key(public_key))
        self._keys = tuple(keys)
        if settings.jwks_url is not None and public_key is not None:
            raise error(
                ErrorKind.BAD_INPUT, "give `jwt_public_key_file` or `jwt_jwks_url`, not both", field="jwt_jwks_url"
            )
        self._key_set = None if settings.jwks_url is None else _key_set(settings.jwks_url, clock)
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
        self._fetched: object = None
        """The fetch of the key set by which the cached tokens were verified."""

    @property
    def local(self) -> bool:
        """Whether `verify_nowait` can verify every token, because no key is ever fetched."""
        return self._key_set is None

    async def verify(self, token: str) -> Principal:
        """Return the owner of `token`; fetches keys from the JWKS URL when needed, for at most about 5 seconds.

        Raises `RunnerError`: `unauthenticated` with a reason for the caller, `unavailable` when the keys cannot be
        fetched. On cancellation a fetch ends in its thread, and its result is dropped.
        """
        known = self._remembered(token)
        if known is not None:
            return known
        if token.startswith(KEY_PREFIX):
            return self._owner(token)
        header = _header(token)
        key = self._local_key(header)
        if key is None and self._key_set is not None:
            key = await self._key_set.find(header.get("kid"))
            self._forget()
        return self._check(token, header, key)

    def verify_nowait(self, token: str) -> Principal:
        """Return the owner of `token`, without fetching keys: the same as `verify` if `local` is true."""
        known = self._remembered(token)
        if known is not None:
            return known
        if token.startswith(KEY_PREFIX):
            return self._owner(token)
        header = _header(token)
        return self._check(token, header, self._local_key(header))

    def _remembered(self, token: str) -> Principal | None:
        self._forget()
        found = self._cache.get(token)
        if found is None:
            return None
        if self._clock() < found[0]:
            self._cache.move_to_end(token)
            return found[1]
        del self._cache[token]
        return None

    def _forget(self) -> None:
        """Forget the cached tokens after a fetch of the key set, which may have withdrawn a key."""
        if self._key_set is not None and self._fetched is not self._key_set.fetched:
            self._fetched = self._key_set.fetched
            self._cache.clear()

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
        until = expires + settings.leeway_seconds
        principal = Principal(subject, _scopes(claims, settings.roles_claim), _globs(claims.get("modules")), until)
        self._remember(token, min(until, key.until), principal)
        return principal

    def _owner(self, secret: str) -> Principal:
        """Return the owner of an API key. Only the whole key shows whether it was revoked."""
        key = None if self.api_keys is None else self.api_keys.find(secret)
        if key is None:
            raise error(ErrorKind.UNAUTHENTICATED, "the API key is not valid")
        stored, now = key.stored, self._clock()
        if key.revoked:
            raise error(ErrorKind.UNAUTHENTICATED, "the API key was revoked")
        expires = math.inf if stored.expires_at is None else stored.expires_at
        if expires <= now:
            raise error(ErrorKind.UNAUTHENTICATED, "the API key has expired")
        principal = Principal(f"key:{stored.name}", SCOPES.intersection(stored.scopes), stored.modules, expires, key)
        self._remember(secret, min(expires, now + _KEY_SECONDS), principal)
        key.watchers.add(self._cache.clear)
        return principal

    def _remember(self, token: str, until: float, principal: Principal) -> None:
        self._cache[token] = (until, principal)
        if len(self._cache) > CACHED_TOKENS:
            self._cache.popitem(last=False)

    def _check_times(self, claims: Mapping[str, Any]) -> float:
        now, leeway = self._clock(), self._settings.leeway_seconds
        expires = _time(claims, "exp")
        if expires + leeway <= now:
            raise refused("it has expired")
        for name in ("nbf", "iat"):
            if name in claims and _time(claims, name) > now + leeway:
                raise refused(f"it is not valid yet (`{name}`)")
        return expires


def _key_set(url: str, clock: Callable[[], float]) -> KeySet:
    from runner.auth.jwks import KeySet  # noqa: PLC0415  (Trio; `operato-runner token` needs none)

    return KeySet(url, clock)


def _why(problem: jwt.PyJWTError) -> str:
    """Return a reason that helps the caller, and reveals nothing about the settings of the verifier."""
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


def _scopes(claims: Mapping[str, Any], roles: str | None) -> frozenset[str]:
    """Return the scopes of the claim `scope`, `scp` in its absence, and of the claim of the settings."""
    name = "scp" if claims.get("scope") is None else "scope"
    found = _words(claims.get(name), name)
    if roles is not None:
        found |= _words(_inside(claims, roles), roles)
    # The token may have scopes of other services too; they count for nothing here.
    return SCOPES & found


def _words(claim: object, name: str) -> frozenset[str]:
    if claim is None:
        return frozenset()
    return frozenset(claim.split() if isinstance(claim, str) else _strings(claim, name))


def _inside(claims: Mapping[str, Any], name: str) -> object:
    """Return a claim by its name, which may have dots, or by the path to it in objects (`realm_access.roles`)."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _globs(claim: object) -> tuple[str, ...]:
    if claim is None:
        return ()
    globs = _strings(claim, "modules")
    # `()` allows all modules, which the author of an empty list does not mean.
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
    """Return an HS256 token that is valid from now for `expires_seconds`; without `modules` it allows all.

    Raises `RunnerError` (`bad_input`) for a short secret, an empty subject, an unknown scope or a time out of range.
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
    """Return whether a text has no bytes that the command line could not decode."""
    return all(not "\ud800" <= character <= "\udfff" for character in given)
