"""The format of the journal: entries to bytes and back. Pure.

A segment is `MAGIC`, four random bytes (its salt), then records: salt, length, checksum, body, then zeros to the end of
the file, whose space is reserved. The body is one revision and one execution as msgpack. The salt marks the next record
behind a damaged one; it is random, so that no input of a caller can look like a record.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec
from attrs import evolve, frozen
from msgspec.structs import replace

from protocol.model import Execution, Telling

MAGIC: Final = b"OPJ2"
SALT_BYTES: Final = 4
START_BYTES: Final = len(MAGIC) + SALT_BYTES
LEAST_BYTES: Final = 16 * 1024
"""No reduced record is larger."""
_HEAD: Final = struct.Struct(">4sII")
_MOST_ZEROS: Final = 16
"""At the end of a record: more than any has, as its last values are numbers and texts."""
_TEXT: Final = 1000
"""Characters of a message in a reduced record."""
_WORDS: Final = 100
"""Characters of the name and the reason of an approval in a reduced record."""
_RECIPIENTS: Final = 3 * 1024
"""Bytes of recipients of notices in a reduced record: as many as a module may have, with the longest URLs."""
_LENGTH: Final = struct.Struct(">I")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[int, Execution])


@frozen
class Entry:
    """One state of one execution; of two states the one with the higher revision counts."""

    revision: int
    execution: Execution
    adopted: bool = False
    """It comes from the log of a cluster, not from the journal, and never replaces a later state."""


@frozen
class Damage:
    """Bytes `start` to `end` of a segment that cannot be read as records."""

    start: int
    end: int
    reason: str


@frozen
class Segment:
    """The content of a segment: its records in order, the damaged ranges, and the bytes of a torn last record."""

    entries: tuple[Entry, ...]
    damage: tuple[Damage, ...] = ()
    torn_bytes: int = 0


def start_segment(salt: bytes) -> bytes:
    """Return the first bytes of a segment whose records carry `salt` (4 bytes)."""
    return MAGIC + salt


def encode(entry: Entry, salt: bytes) -> bytes:
    """Return one record. Raises `OSError` (EFBIG) for more than 4 GiB."""
    return framed(packed(entry), salt)


def packed(entry: Entry) -> bytes:
    """Return the body of a record."""
    try:
        return _encoder.encode((entry.revision, entry.execution))
    except UnicodeEncodeError:
        entry = cleaned(entry)
        return _encoder.encode((entry.revision, entry.execution))


def framed(body: bytes, salt: bytes) -> bytes:
    """Return the record with this body for a segment. Raises `OSError` (EFBIG) for more than 4 GiB."""
    return head_of(body, salt) + body


def head_of(body: bytes, salt: bytes) -> bytes:
    """Return the head of the record with this body. Raises `OSError` (EFBIG) for more than 4 GiB."""
    if len(body) > 0xFFFF_FFFF:
        raise OSError(errno.EFBIG, "the record of one execution is too large")
    return _HEAD.pack(salt, len(body), _checksum(salt, body))


def size_of(body: bytes) -> int:
    """Return the size of the record with this body."""
    return _HEAD.size + len(body)


def reduced(entry: Entry) -> Entry:
    """Return the entry of an end without what its author or its caller can make large.

    Larger input and result are replaced by JSON with the reason. The record of it has at most `LEAST_BYTES`.
    """
    execution, failure, decided = entry.execution, entry.execution.failure, entry.execution.approval
    if failure is not None:
        failure = evolve(failure, message=failure.message[:_TEXT], type=None, traceback=None, field=None)
    return Entry(
        entry.revision,
        replace(
            execution,
            input=_dropped(execution.input),
            subject=execution.subject[:_TEXT],
            on_end=_shortened(execution.on_end),
            approval=None
            if decided is None
            else replace(decided, by=decided.by[:_WORDS], reason=decided.reason[:_WORDS]),
            result=None if execution.result is None else _dropped(execution.result),
            failure=failure,
            events=b"[]",
            output_dropped=execution.output_dropped + len(execution.events),
            failed_attempts=(),
            killed=(),
        ),
    )


def _shortened(telling: Telling | None) -> Telling | None:
    """Return the recipients that fit into a reduced record: all, unless files of secrets have very long names."""
    if telling is None:
        return None
    found, size = [], 0
    for each in telling.recipients:
        size += len(_encoder.encode(each))
        if size <= _RECIPIENTS:
            found.append(each)
    return replace(telling, recipients=tuple(found))


def _dropped(data: bytes) -> bytes:
    if len(data) <= _TEXT:
        return data
    return msgspec.json.encode({"$dropped": {"bytes": len(data), "reason": "the disk was full"}})


def cleaned(entry: Entry) -> Entry:
    """Return the entry with lone surrogates in its texts (from workers; UTF-8 has none) replaced by `?`."""
    fields = _clean(msgspec.to_builtins(entry.execution, builtin_types=(bytes,)))
    return Entry(entry.revision, msgspec.convert(fields, Execution, builtin_types=(bytes,)))


def _clean(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")
        case dict():
            return {key: _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case _:
            return value


def _checksum(salt: bytes, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(salt + _LENGTH.pack(len(body))))


def decode(data: bytes, done: bytes = b"", before: int = 0) -> Segment:
    """Read a segment. Never raises: unreadable bytes are in the `damage` or `torn_bytes` of the result.

    Of the segment with the salt `done`, records before the offset `before` are left out; damage in them is reported.
    """
    if len(data) < START_BYTES:
        return Segment((), torn_bytes=len(data))
    if not data.startswith(MAGIC):
        return Segment((), (Damage(0, len(data), "not a journal segment"),))
    salt = data[len(MAGIC) : START_BYTES]
    entries: list[Entry] = []
    damage: list[Damage] = []
    at = START_BYTES
    if salt == done:
        damage += _damage_before(data, before, salt)
        at = before
    while at < len(data):
        end = _record_end(data, at, salt)
        if end is None:
            following = _find_record(data, at + 1, salt)
            written = len(data) if following is not None else _written(data, at)
            if written == at:
                break
            if following is None and _is_torn(data, at, written, salt):
                return Segment(tuple(entries), tuple(damage), _torn_bytes(data, at))
            end = written if following is None else following
            damage.append(Damage(at, end, "checksum does not match"))
        else:
            try:
                entries.append(Entry(*_decoder.decode(memoryview(data)[at + _HEAD.size : end])))
            except msgspec.MsgspecError as problem:
                damage.append(Damage(at, end, f"not an execution: {problem}"))
        at = end
    return Segment(tuple(entries), tuple(damage))


def _damage_before(data: bytes, before: int, salt: bytes) -> Iterator[Damage]:
    """Yield what is not a record in bytes that were whole records once."""
    at, before = START_BYTES, min(before, len(data))
    while at < before:
        end = _record_end(data, at, salt)
        if end is None:
            end = min(_find_record(data, at + 1, salt) or before, before)
            yield Damage(at, end, "checksum does not match; the database has these records")
        at = end


def _record_end(data: bytes, at: int, salt: bytes) -> int | None:
    """Return the end of the record that begins at `at`, or None without a whole record there."""
    if at + _HEAD.size > len(data):
        return None
    found, length, checksum = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + int(length)
    if found != salt or end > len(data):
        return None
    return end if _checksum(salt, memoryview(data)[at + _HEAD.size : end]) == checksum else None


def _find_record(data: bytes, at: int, salt: bytes) -> int | None:
    while (at := data.find(salt, at)) >= 0:
        if _record_end(data, at, salt) is not None:
            return at
        at += 1
    return None


def _written(data: bytes, at: int) -> int:
    """Return the end of the bytes written from `at` on: the reserved space behind them is zero."""
    return at + len(data[at:].rstrip(b"\0"))


def _torn_bytes(data: bytes, at: int) -> int:
    rest = len(data) - at
    return rest if rest < _HEAD.size else min(rest, _HEAD.size + int(_HEAD.unpack_from(data, at)[1]))


def _is_torn(data: bytes, at: int, written: int, salt: bytes) -> bool:
    """Whether the rest is a record that a process did not finish writing before it died."""
    head = data[at:written]
    if len(head) < _HEAD.size:
        return salt.startswith(head[:SALT_BYTES])
    unfinished = at + _HEAD.size + int(_HEAD.unpack_from(head)[1]) > written
    return head.startswith(salt) and unfinished and not _is_whole(data, at + _HEAD.size, written)


def _is_whole(data: bytes, at: int, written: int) -> bool:
    """Whether a record is complete in spite of its length, which is damaged then. Zeros at its end look like space."""
    for end in range(written, min(written + _MOST_ZEROS, len(data)) + 1):
        with suppress(msgspec.MsgspecError):
            _decoder.decode(memoryview(data)[at:end])
            return True
    return False
