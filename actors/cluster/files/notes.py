"""Notes: the messages about files, of which the engine keeps the last one of each file."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from actors.cluster.engine import Names, Stored
from actors.cluster.letters import Author, UnreadableError
from actors.files import FILE_ID, Shared

TOPIC: Final = "files"
VERSION: Final = 1
"""Raised when a release writes what the one before cannot read, or would read wrongly. Added fields need no other."""
MAX_SUBJECTS: Final = 500
"""Those who uploaded one content; the first ones are forgotten."""
_PREFIX: Final = "sha256:"
End = tuple[str, int]
"""A file that was deleted, and the number of the note."""


class Note(Struct, frozen=True, omit_defaults=True):
    """The state of a file. Times are seconds since the epoch."""

    author: Author
    size: int = 0
    type: str = ""
    name: str = ""
    created_at: float = 0.0
    touched_at: float = 0.0
    subjects: tuple[str, ...] = ()
    part: bool = False
    ended: bool = False
    version: int = VERSION


class _Head(Struct, frozen=True):
    author: Author
    version: int = VERSION


_encoder: Final = msgspec.msgpack.Encoder()
_notes: Final = msgspec.msgpack.Decoder(Note)
_heads: Final = msgspec.msgpack.Decoder(_Head)


def subject_of(names: Names, file: str) -> str:
    """Return the subject of a file."""
    return names.news(TOPIC, file.removeprefix(_PREFIX))


def write_note(author: Author, shared: Shared) -> bytes:
    """Return the note about a file."""
    return _encoder.encode(
        Note(
            author,
            shared.size,
            shared.type,
            shared.name,
            shared.created_at,
            shared.touched_at,
            shared.subjects[-MAX_SUBJECTS:],
            shared.part,
        )
    )


def write_end(author: Author) -> bytes:
    """Return the note that a file was deleted."""
    return _encoder.encode(Note(author, ended=True))


def read_note(stored: Stored) -> Shared | End:
    """Return a note. Raises UnreadableError."""
    file = _PREFIX + stored.subject.rpartition(".")[2]
    if FILE_ID.fullmatch(file) is None:
        raise UnreadableError(f"{stored.subject} names no file")
    if stored.gone:
        return file, stored.sequence
    try:
        head = _heads.decode(stored.data)
        if head.version > VERSION:
            text = f"{head.author.node} of release {head.author.release} writes notes about files of version"
            raise UnreadableError(f"{text} {head.version}, this runner reads {VERSION} at most: upgrade it")
        note = _notes.decode(stored.data)
    except msgspec.MsgspecError as problem:
        raise UnreadableError(f"the note about {file} cannot be read: {problem}") from problem
    if note.ended:
        return file, stored.sequence
    return Shared(
        file,
        note.size,
        note.type,
        note.name,
        note.created_at,
        note.touched_at,
        note.subjects,
        note.part,
        stored.sequence,
    )
