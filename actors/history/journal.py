"""The journal of history: the record of an execution is written here before its result is answered.

A segment is `MAGIC`, four random bytes (its salt), then records: salt, length, checksum, body. The body is one
revision and one execution as msgpack. The salt marks the next record behind a damaged one; it is random, so that no
input of a caller can look like a record. Encoding and decoding are pure; `Journal` has the files.
"""

from __future__ import annotations

import errno
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import frozen

from protocol.model import Execution

MAGIC: Final = b"OPJ2"
SEGMENT_BYTES: Final = 16 * 1024 * 1024
_SALT_BYTES: Final = 4
_START_BYTES: Final = len(MAGIC) + _SALT_BYTES
_HEAD: Final = struct.Struct(">4sII")
_LENGTH: Final = struct.Struct(">I")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[int, Execution])


@frozen
class Entry:
    """One state of one execution; of two states the one with the higher revision counts."""

    revision: int
    execution: Execution


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
    try:
        body = _encoder.encode((entry.revision, entry.execution))
    except UnicodeEncodeError:
        entry = cleaned(entry)
        body = _encoder.encode((entry.revision, entry.execution))
    if len(body) > 0xFFFF_FFFF:
        raise OSError(errno.EFBIG, "the record of one execution is too large")
    return _HEAD.pack(salt, len(body), _checksum(salt, body)) + body


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


def decode(data: bytes) -> Segment:
    """Read a whole segment. Never raises: unreadable bytes are in the `damage` or `torn_bytes` of the result."""
    if len(data) < _START_BYTES:
        return Segment((), torn_bytes=len(data))
    if not data.startswith(MAGIC):
        return Segment((), (Damage(0, len(data), "not a journal segment"),))
    salt = data[len(MAGIC) : _START_BYTES]
    entries: list[Entry] = []
    damage: list[Damage] = []
    at = _START_BYTES
    while at < len(data):
        end = _record_end(data, at, salt)
        if end is None:
            following = _find_record(data, at + 1, salt)
            if following is None and _is_torn(data, at, salt):
                return Segment(tuple(entries), tuple(damage), len(data) - at)
            end = len(data) if following is None else following
            damage.append(Damage(at, end, "checksum does not match"))
        else:
            try:
                entries.append(Entry(*_decoder.decode(memoryview(data)[at + _HEAD.size : end])))
            except msgspec.MsgspecError as problem:
                damage.append(Damage(at, end, f"not an execution: {problem}"))
        at = end
    return Segment(tuple(entries), tuple(damage))


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


def _is_torn(data: bytes, at: int, salt: bytes) -> bool:
    """Whether the rest is a record that a process did not finish writing before it died."""
    head = data[at : at + _HEAD.size]
    if len(head) < _HEAD.size:
        return salt.startswith(head[:_SALT_BYTES])
    return head.startswith(salt) and at + _HEAD.size + int(_HEAD.unpack(head)[1]) > len(data)


def write_segment(path: Path, entry: Entry) -> int:
    """Write a segment that holds only `entry` and return its size; for large records, in any thread.

    Raises `OSError` and leaves no file then.
    """
    salt = os.urandom(_SALT_BYTES)
    data = start_segment(salt) + encode(entry, salt)
    fd = _create(path)
    try:
        _write_all(fd, data)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return len(data)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    # A short write means a full disk: the next call raises the OSError.
    while written < len(data):
        written += os.write(fd, data[written:])


class Journal:
    """The segment files of one folder. Not thread-safe: used by the thread of the event loop only."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open `folder`, made when missing; existing segments are left for the replay."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._sizes: dict[Path, int] = {}
        self._fd = -1
        self._path = folder
        self._salt = b""
        self._number = max((int(path.stem) for path in self.left_behind()), default=0)

    def left_behind(self) -> tuple[Path, ...]:
        """Return the segments in the folder, oldest first."""
        return tuple(sorted(path for path in self._folder.glob("*.journal") if path.stem.isdecimal()))

    @property
    def size(self) -> int:
        """Bytes of the segments that were written here and not deleted yet."""
        return sum(self._sizes.values())

    def append(self, entry: Entry) -> None:
        """Write one record; when this returns it survives the death of the process.

        Raises `OSError` when it cannot be written whole; then it is not in the journal.
        """
        if self._fd < 0 or self._sizes[self._path] >= self._segment_bytes:
            self._open_next()
        data = encode(entry, self._salt)
        before = self._sizes[self._path]
        try:
            _write_all(self._fd, data)
        except OSError:
            self._undo(before)
            raise
        self._sizes[self._path] = before + len(data)

    def _open_next(self) -> None:
        self._close_fd()
        path = self.next_path()
        fd = _create(path)
        salt = os.urandom(_SALT_BYTES)
        try:
            _write_all(fd, start_segment(salt))
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._fd, self._path, self._salt = fd, path, salt
        self._sizes[path] = _START_BYTES

    def _undo(self, size: int) -> None:
        """Cut off the rest of a failed write; when that fails too, give up the segment (replay copes with it)."""
        try:
            os.ftruncate(self._fd, size)
        except OSError:
            self._close_fd()

    def next_path(self) -> Path:
        """Return the path of a new segment, for `write_segment`; call `adopt` when it is written."""
        self._number += 1
        return self._folder / f"{self._number:012d}.journal"

    def adopt(self, path: Path, size: int) -> None:
        """Count the segment of `size` bytes that `write_segment` wrote."""
        self._sizes[path] = size

    def rotate(self) -> tuple[Path, ...]:
        """End the current segment and return all segments; later records go to a new one."""
        self._close_fd()
        return tuple(self._sizes)

    def forget(self, paths: tuple[Path, ...]) -> None:
        """Stop counting these segments, which were deleted."""
        for path in paths:
            self._sizes.pop(path, None)

    def replay(self, store: Callable[[tuple[Entry, ...]], Mapping[str, str]]) -> Iterator[tuple[Path, Segment]]:
        """Pass each leftover segment to `store`, which returns refusals by id; delete it and yield its content.

        A segment with damage, or with refused executions, is kept for the operator as `*.damaged`.
        """
        for path in self.left_behind():
            segment = decode(path.read_bytes())
            refused = store(segment.entries)
            if segment.damage or refused:
                path = path.rename(path.with_name(f"{path.stem}-{time.time():.0f}.damaged"))  # noqa: PLW2901
            else:
                path.unlink()
            yield path, segment

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close the current segment. Its records stay."""
        self._close_fd()
