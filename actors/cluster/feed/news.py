"""News: the messages in which runners of a cluster tell each other changes of modules, API keys and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from actors.cluster.letters import Author, UnreadableError
from actors.keys import StoredKey
from actors.registry import Action, Note, StoredVersion
from actors.starts import State, StoredSchedule

VERSION: Final = 1
"""Raised when a release writes what the one before cannot read, or would read wrongly. Added fields need no other."""
MODULE: Final = "module"
"""The topics: news about one of them are in one order, and what is published follows all that its author knows."""
AUDIT: Final = "audit"
KEY: Final = "key"
SCHEDULE: Final = "schedule"
STATE: Final = "state"
CODE: Final = "code"
MARK: Final = "mark"
"""Of a runner that wants to know when it has read everything that was there before."""
CLUSTER: Final = "cluster"
"""The number of the cluster: another one if the engine has lost everything."""


class News(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What all news have. `id` is random: by it an author finds out that its message was stored."""

    author: Author
    id: str = ""
    at: float = 0.0
    version: int = VERSION


class ToldNote(Struct, frozen=True, omit_defaults=True):
    """An entry of the audit log."""

    action: str
    module: str
    version: str | None = None
    detail: dict[str, Any] = {}


class ToldVersion(Struct, frozen=True):
    """A version of a module; its code is in a message or an object of its own."""

    version: str
    digest: str


class ToldModule(Struct, frozen=True, omit_defaults=True):
    """A module after a change; its versions oldest first."""

    active: str | None
    updated_by: str
    versions: tuple[ToldVersion, ...]


class ModuleNews(News, frozen=True, omit_defaults=True, kw_only=True):
    """A change of a module, None once it is deleted."""

    name: str
    subject: str
    notes: tuple[ToldNote, ...]
    module: ToldModule | None = None


class AuditNews(News, frozen=True, omit_defaults=True, kw_only=True):
    """Entries of the audit log for changes that are made elsewhere."""

    subject: str
    notes: tuple[ToldNote, ...]


class Code(Struct, frozen=True):
    """A version of a module with its files."""

    stored: StoredVersion
    files: dict[str, bytes]


class CodeNews(News, frozen=True, omit_defaults=True, kw_only=True):
    """A version with its code, as zlib of `Code`: here, or in the object of this name."""

    content: bytes | None = None
    object: str | None = None


class KeyNews(News, frozen=True, omit_defaults=True, kw_only=True):
    """An API key that was made or revoked; those `forgotten` are deleted."""

    key: StoredKey
    forgotten: tuple[str, ...] = ()


class ScheduleNews(News, frozen=True, omit_defaults=True, kw_only=True):
    """A schedule of the API, None once it is deleted."""

    name: str
    schedule: StoredSchedule | None = None


class StateNews(News, frozen=True, omit_defaults=True, kw_only=True):
    """How far a schedule has come."""

    state: State


class ClaimNews(News, frozen=True, omit_defaults=True, kw_only=True):
    """The claim of an idempotency key by the execution of this id, or of an instant; "" gives it up."""

    name: str


N = TypeVar("N", bound=News)
_encoder: Final = msgspec.msgpack.Encoder()
_heads: Final = msgspec.msgpack.Decoder(News)


def pack(news: News) -> bytes:
    """Return news as a message."""
    return _encoder.encode(news)


def unpack(data: bytes, kind: type[N]) -> N:
    """Return the news of a message. Raises UnreadableError, with the reason and the remedy."""
    try:
        head = _heads.decode(data)
    except msgspec.MsgspecError as problem:
        raise UnreadableError(f"no message of a runner: {problem}") from problem
    writer = f"the runner {head.author.node} of release {head.author.release}"
    if head.version > VERSION:
        text = f"{writer} writes version {head.version}, this one reads {VERSION} at most: upgrade this one"
        raise UnreadableError(text)
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as problem:
        raise UnreadableError(f"a message of {writer} cannot be read: {problem}; upgrade this runner") from problem


def id_of(data: bytes) -> str | None:
    """Return the id of news, also of those that cannot be read; None without one."""
    try:
        return _heads.decode(data).id or None
    except msgspec.MsgspecError:
        return None


def token(*names: str) -> str:
    """Return the word of a subject that stands for names, which may have any characters."""
    return sha256("\0".join(names).encode()).hexdigest()[:32]


def told(notes: Sequence[Note], node: str) -> tuple[ToldNote, ...]:
    """Return entries of the audit log as news have them: with the runner on which the change was made."""
    return tuple(ToldNote(n.action.value, n.module, n.version, {**n.detail, "node": node}) for n in notes)


def notes_of(notes: Sequence[ToldNote]) -> tuple[Note, ...]:
    """Return entries of the audit log. Those of a later release, with another kind of change, are left out."""
    known: Mapping[str, Action] = {each.value: each for each in Action}
    return tuple(Note(known[n.action], n.module, n.version, n.detail) for n in notes if n.action in known)
