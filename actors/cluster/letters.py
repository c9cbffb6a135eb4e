"""Letters: the messages in which runners of a cluster tell each other the state of an execution.

A letter has the whole state, so that the last one of an execution is enough. Large parts of it travel beside it, in the
object store, under the hash of their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

import msgspec
from attrs import frozen
from msgspec import Struct
from msgspec.structs import replace

from protocol.model import Attempt, Execution

VERSION: Final = 1
"""Raised when a release writes what the one before cannot read, or would read wrongly. Added fields need no other."""
PART_BYTES: Final = 192 * 1024
"""Larger parts travel beside the letter: all four below this, and the rest, fit into one message of the engine."""

_EMPTY: Final = {"input": b"null", "result": None, "events": b"[]", "failed_attempts": ()}


class Author(Struct, frozen=True):
    """The process that writes letters."""

    node: str
    """The name of the runner, the same after a restart."""
    boot: str
    """Random, another one after each start."""
    release: str


class Letter(Struct, frozen=True, omit_defaults=True):
    """The state of an execution, as its author knows it."""

    author: Author
    execution: Execution
    parts: dict[str, str] = {}
    """The hashes of the parts that the execution lacks, by field."""
    files: tuple[str, ...] = ()
    """The ids of the files that the execution uses."""
    version: int = VERSION


class _Head(Struct, frozen=True):
    """The fields by which a reader finds out whether it can read the others."""

    author: Author
    version: int = VERSION


@frozen
class Packed:
    """A letter as it travels."""

    data: bytes
    parts: Mapping[str, bytes]
    """The large parts by their hashes; they must be in the object store before the letter is published."""


class UnreadableError(Exception):
    """A letter of a later release, or none at all; the text is the reason and the remedy."""


class LaterError(UnreadableError):
    """A letter of a later release, which this one can read once it is upgraded."""


_encoder: Final = msgspec.msgpack.Encoder()
_letters: Final = msgspec.msgpack.Decoder(Letter)
_heads: Final = msgspec.msgpack.Decoder(_Head)
_attempts: Final = msgspec.msgpack.Decoder(tuple[Attempt, ...])


def pack(letter: Letter) -> Packed:
    """Return a letter as bytes, without its large parts."""
    execution, names, parts = letter.execution, dict[str, str](), dict[str, bytes]()
    for field, empty in _EMPTY.items():
        value = getattr(execution, field)
        data = value if isinstance(value, bytes) else _encoder.encode(value)
        if len(data) > PART_BYTES:
            names[field] = digest = sha256(data).hexdigest()
            parts[digest] = data
            execution = replace(execution, **{field: empty})
    return Packed(_encoder.encode(replace(letter, execution=execution, parts=names)), parts)


def unpack(data: bytes) -> Letter:
    """Return a letter, without its large parts. Raises UnreadableError."""
    try:
        head = _heads.decode(data)
    except msgspec.MsgspecError as problem:
        raise UnreadableError(f"no letter of a runner: {problem}") from problem
    writer = f"the runner {head.author.node} of release {head.author.release}"
    if head.version > VERSION:
        text = f"{writer} writes letters of version {head.version}, this one reads {VERSION} at most: upgrade this one"
        raise LaterError(text)
    try:
        return _letters.decode(data)
    except msgspec.MsgspecError as problem:
        raise LaterError(f"a letter of {writer} cannot be read: {problem}; upgrade this runner") from problem


def complete(letter: Letter, parts: Mapping[str, bytes]) -> Letter:
    """Return a letter with its large `parts`, given by their hashes. Raises UnreadableError when one is not whole."""
    execution = letter.execution
    for field, digest in letter.parts.items():
        data = parts.get(digest)
        if data is None or sha256(data).hexdigest() != digest:
            raise UnreadableError(f"the part {field} of execution {execution.id} is not in the object store as written")
        value = _attempts.decode(data) if field == "failed_attempts" else data
        execution = replace(execution, **{field: value})
    return replace(letter, execution=execution, parts={})
