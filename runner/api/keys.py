"""The verbs for API keys, without transport types. Only admins have them, and no key can do more than its maker."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any, Final

import structlog
import trio
from attrs import define, frozen

from actors.keys import ApiKey, ApiKeys
from actors.registry import Action, Audit, Note
from config import units
from config.mistakes import Wrong
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import KEY_ID
from runner.auth import SCOPES, Principal, Scope, require

MAX_GLOBS: Final = 100
"""Of a key. A caller may have more; only so many of them are compared with those of keys, which takes time."""
MAX_GLOB_CHARACTERS: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")
_LONGEST: Final = 100 * 366 * 86400.0
_LOOKED_AT: Final = 500
"""Keys that one page of a caller with some modules only is searched in."""
_FOREVER: Final = float("inf")

log = structlog.get_logger("keys")


@frozen
class KeyOrder:
    """A key to make. `modules` are globs of module names, None for those of its maker; `expires` a duration."""

    name: str
    scopes: tuple[str, ...]
    modules: tuple[str, ...] | None = None
    expires: str | float | None = None


@define(eq=False)
class KeyVerbs:
    """Makes, lists and revokes API keys; each change is in the audit log."""

    audit: Audit
    _keys: ApiKeys | None

    @property
    def keys(self) -> ApiKeys:
        """The keys. Raises RunnerError `unavailable` where there are none."""
        if self._keys is None:
            raise error(ErrorKind.UNAVAILABLE, "this runner has no API keys")
        return self._keys

    @property
    def damaged(self) -> bool:
        """Whether stored keys were found damaged."""
        return self._keys is not None and self._keys.damaged

    async def create(self, principal: Principal, order: KeyOrder) -> tuple[ApiKey, str]:
        """Make a key, and return it with its secret, which cannot be had again.

        Raises RunnerError: `forbidden`, `bad_input` naming the field, `conflict` when a valid key has the name,
        `overloaded`, `unavailable`. On cancellation the key may have been made.
        """
        require(principal, Scope.ADMIN)
        if not _NAME.fullmatch(order.name) or KEY_ID.fullmatch(order.name):
            text = f"{order.name[:80]!r} is no name of a key: use 1 to 64 letters, digits and . _ - @, such as ci"
            raise error(ErrorKind.BAD_INPUT, text, field="name")
        modules = principal.modules if order.modules is None else _globs(principal, order.modules)
        expires = _moment(order.expires)
        if principal.key is not None and principal.expires < (expires or _FOREVER):
            raise error(
                ErrorKind.FORBIDDEN, "a key cannot make keys that are valid longer than itself", field="expires"
            )
        key, secret = await self.keys.create(
            order.name,
            scopes=_scopes(principal, order.scopes),
            modules=modules,
            expires_at=expires,
            subject=principal.subject,
        )
        stored = key.stored
        about = {"scopes": list(stored.scopes), "modules": list(stored.modules), "expires_at": stored.expires_at}
        await self._note(principal, Action.KEY_CREATE, key, about)
        return key, secret

    async def list(self, principal: Principal, *, limit: int, cursor: str) -> tuple[list[ApiKey], str | None]:
        """Return the keys after `cursor` (an identifier) that do no more than the principal may, the newest first.

        Also returns the next cursor; a page with one may be short. Raises RunnerError `forbidden`, or `bad_input` for
        an unknown cursor.
        """
        require(principal, Scope.ADMIN)
        found = self.keys.all()
        if cursor:
            place = next((at for at, key in enumerate(found, 1) if key.stored.id == cursor), None)
            if place is None:
                raise error(ErrorKind.BAD_INPUT, f"the cursor {cursor!r:.80} is not known; begin anew", field="cursor")
            found = found[place:]
        if not principal.modules:
            return found[:limit], found[limit - 1].stored.id if len(found) > limit else None
        seen: list[ApiKey] = []
        for key in found[:_LOOKED_AT]:
            if len(seen) == limit:
                return seen, seen[-1].stored.id
            if _within(principal, key.stored.modules):
                seen.append(key)
            await trio.lowlevel.checkpoint()  # each key can take some milliseconds
        return seen, found[_LOOKED_AT - 1].stored.id if len(found) > _LOOKED_AT else None

    async def revoke(self, principal: Principal, name: str) -> ApiKey:
        """Refuse the key with this identifier from now on, and end the streams that were opened with it.

        Returns it when that is recorded; a second call changes nothing. Raises RunnerError `forbidden`, `not_found`,
        and `unavailable` when it cannot be recorded: the key is refused until a restart then.
        """
        require(principal, Scope.ADMIN)
        key = self.keys.get(name)
        if key is None or not _within(principal, key.stored.modules):
            hint = "" if KEY_ID.fullmatch(name) else "; give its identifier, as the list shows it"
            raise error(ErrorKind.NOT_FOUND, f"there is no API key {name!r:.80}{hint}", field="id")
        before = key.revoked
        await self.keys.revoke(key, subject=principal.subject)
        if not before:
            await self._note(principal, Action.KEY_REVOKE, key, {})
        return key

    async def _note(self, principal: Principal, action: Action, key: ApiKey, about: dict[str, Any]) -> None:
        """Add a change to the audit log; it is made, whether that is possible or not."""
        detail = {"key": key.stored.id, "name": key.stored.name, **about}
        try:
            await self.audit.note(principal.subject, [Note(action, "", None, detail)])
        except RunnerError as problem:
            log.warning("a change of keys is not in the audit log", key=key.stored.id, why=str(problem))


def _scopes(principal: Principal, scopes: Collection[str]) -> tuple[str, ...]:
    """Return scopes in their order, each once. Raises RunnerError `bad_input`, or `forbidden` beyond the principal."""
    allowed = ", ".join(sorted(SCOPES))
    if len(scopes) > MAX_GLOBS:
        raise error(ErrorKind.BAD_INPUT, f"a key has at most {MAX_GLOBS} scopes; there are {allowed}", field="scopes")
    wanted = tuple(dict.fromkeys(scopes))
    if not wanted:
        raise error(ErrorKind.BAD_INPUT, f"a key needs a scope; there are {allowed}", field="scopes")
    for scope in wanted:
        if scope not in SCOPES:
            raise error(ErrorKind.BAD_INPUT, f"unknown scope {scope[:80]!r}; there are {allowed}", field="scopes")
        require(principal, Scope(scope))
    return wanted


def _globs(principal: Principal, globs: Collection[str]) -> tuple[str, ...]:
    if not 1 <= len(globs) <= MAX_GLOBS or not all(0 < len(glob) <= MAX_GLOB_CHARACTERS for glob in globs):
        text = f"modules are 1 to {MAX_GLOBS} globs of names of 1 to {MAX_GLOB_CHARACTERS} characters, such as report-*"
        raise error(ErrorKind.BAD_INPUT, f"{text}; without the field, those of the caller", field="modules")
    found = tuple(dict.fromkeys(globs))
    if not _within(principal, found):
        own = ", ".join(principal.modules)
        raise error(ErrorKind.FORBIDDEN, f"the key may use no more modules than its maker: {own:.400}", field="modules")
    return found


def _within(principal: Principal, globs: tuple[str, ...]) -> bool:
    """Return whether all modules of these globs, () for all modules, are modules of the principal for certain."""
    if not principal.modules:
        return True
    own = frozenset(principal.modules)
    compared = principal.modules[:MAX_GLOBS]
    return bool(globs) and all(glob in own or any(_covers(wide, glob) for wide in compared) for glob in globs)


def _covers(wide: str, narrow: str) -> bool:
    """Return whether one glob matches every name that another one matches; in doubt false."""
    if not any(mark in narrow for mark in "*?["):
        return fnmatchcase(narrow, wide)
    # A star matches any text, so also all that the marks of the other may match; no other mark does.
    return not any(mark in wide for mark in "?[") and "[" not in narrow and fnmatchcase(narrow, wide)


def _moment(expires: str | float | None) -> float | None:
    """Return the end of a duration that begins now. Raises RunnerError `bad_input`."""
    if expires is None:
        return None
    try:
        seconds = units.duration(expires)
        if not 0 < seconds <= _LONGEST:
            raise Wrong("must be above 0 and at most 100 years")  # noqa: TRY301  (worded with the other mistakes)
    except Wrong as wrong:
        text = f"expires {wrong.message}; write a duration from now, such as 12h or 90d"
        raise error(ErrorKind.BAD_INPUT, text, field="expires") from None
    return time.time() + seconds
