"""The caller of a request: the owner of the credential in the headers of a request, or the caller without any."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from config.client import is_loopback
from config.settings import ServerSettings
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import KEY, KEY_PREFIX
from runner.auth.principal import SCOPES, Principal, Scope

if TYPE_CHECKING:
    from runner.auth.tokens import Verifier

_KNOWN_HEADERS: Final = 128
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)
_CHANGING: Final = {scope for scope in SCOPES if scope.startswith("modules:")} - {Scope.MODULES_READ}
_ANONYMOUS: Final = SCOPES - {Scope.ADMIN} - _CHANGING
SEVERAL: Final = "the request has several tokens; send one"


@lru_cache(_KNOWN_HEADERS)
def bearer(header: str | None) -> str:
    """Return the token of an `Authorization` header's value. Raises `RunnerError` (`unauthenticated`)."""
    if not header:
        text = "the request has no token: send `Authorization: Bearer TOKEN`, or an API key as `X-API-Key`"
        raise error(ErrorKind.UNAUTHENTICATED, text)
    found = _BEARER.fullmatch(header)
    if found is None:
        if header.strip().lower() == "bearer":
            raise error(ErrorKind.UNAUTHENTICATED, "the token after `Bearer` is empty; is the variable TOKEN set?")
        raise error(ErrorKind.UNAUTHENTICATED, "the authorization must have the form `Bearer TOKEN`")
    return found[1]


async def authenticate(verifier: Verifier, header: str | None, key: str | None = None) -> Principal:
    """Return the caller by its headers `Authorization: Bearer TOKEN` and `X-API-Key`, or by their absence.

    No checkpoint unless a key of tokens must be fetched. Raises RunnerError `unauthenticated`, or `unavailable` when
    keys cannot be fetched.
    """
    try:
        if key is not None:
            token = _only(header, key)
        elif header is None and verifier.anonymous is not None:
            return verifier.anonymous
        else:
            token = bearer(header)
        return verifier.verify_nowait(token) if verifier.local else await verifier.verify(token)
    except RunnerError as problem:
        if problem.failure.kind is ErrorKind.UNAUTHENTICATED:
            verifier.refused[_shown(header, key)] += 1
        raise


@lru_cache(_KNOWN_HEADERS)
def _only(header: str | None, key: str) -> str:
    """Return the API key of the header `X-API-Key`, unless another credential is shown. Raises RunnerError."""
    key = key.strip(" ")
    if "," in key or (header is not None and bearer(header) != key):
        raise error(ErrorKind.UNAUTHENTICATED, SEVERAL)
    if not KEY.fullmatch(key):
        text = "the header `X-API-Key` has no API key (`opk_...`); send a token as `Authorization: Bearer TOKEN`"
        raise error(ErrorKind.UNAUTHENTICATED, text)
    return key


def _shown(header: str | None, key: str | None) -> str:
    if key is None and header is None:
        return "none"
    return "key" if key is not None or KEY_PREFIX in str(header) else "token"


def anonymous_caller(scopes: Iterable[str]) -> Principal | None:
    """Return the caller without a credential, with these scopes; None without any.

    Raises RunnerError `bad_input` for a scope that does not exist, or that would let everybody change modules.
    """
    wanted = frozenset(scopes)
    if not wanted:
        return None
    if unknown := sorted(wanted - SCOPES):
        text = f"unknown scope {unknown[0]!r:.80}; there are {', '.join(sorted(_ANONYMOUS))}"
        raise error(ErrorKind.BAD_INPUT, text, field="anonymous")
    if too_much := sorted(wanted - _ANONYMOUS):
        text = f"{too_much[0]!r} would let callers without a token change the runner; make a key or a token for it"
        raise error(ErrorKind.BAD_INPUT, text, field="anonymous")
    return Principal("anonymous", wanted, anonymous=True)


def foreign_name(host: str, server: ServerSettings) -> str:
    """Return why a browser that asks for this host may not be a caller without a token, "" if it may.

    A page of another site can make its own name lead to this machine; the browser then takes the two for one site.
    """
    name = _name(f"//{host}")
    if name and is_loopback(server.host) and not is_loopback(name) and name != _name(server.external_url or ""):
        return f"callers of {name!r:.200} need a token: this runner serves its machine only; or set `external_url`"
    return ""


def _name(address: str) -> str:
    """Return the name of the host in an address, "" without any."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return address
