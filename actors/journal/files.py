"""The files of the journal, and the space that is reserved in them for the ends of executions that began.

Segments have their whole space before the first record is written into them, and one *spare* segment is kept ready. So
a full disk is met when a segment is made, not when a record is written. `Journal` counts *places*: room for one reduced
record each. An execution claims a place before its handler is called; other records are refused when they would take
claimed places, and an end whose record is larger than its place is written reduced when there is no other room.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import define, frozen

from actors.journal.records import (
    LEAST_BYTES,
    SALT_BYTES,
    START_BYTES,
    Entry,
    Segment,
    decode,
    framed,
    head_of,
    packed,
    reduced,
    size_of,
    start_segment,
)

SEGMENT_BYTES: Final = 1024 * 1024


@define(eq=False)
class OpenSegment:
    """A segment that is written to, or a spare: its records end at `at`, its space at `size`."""

    path: Path
    fd: int
    salt: bytes
    size: int
    at: int = START_BYTES

    def has_room(self, size: int) -> bool:
        """Whether a record of `size` bytes fits."""
        return self.at + size <= self.size

    @property
    def places(self) -> int:
        """How many reduced records fit."""
        return self.places_after(0)

    def places_after(self, size: int) -> int:
        """Return how many reduced records fit behind a record of `size` bytes."""
        return (self.size - self.at - size) // LEAST_BYTES

    @property
    def is_gone(self) -> bool:
        """Whether the file was deleted by others."""
        return not os.fstat(self.fd).st_nlink

    def write(self, record: bytes) -> None:
        """Write a record. Raises OSError."""
        written = os.pwrite(self.fd, record, self.at)
        while written < len(record):
            written += os.pwrite(self.fd, record[written:], self.at + written)
        self.at += len(record)

    def remove(self) -> None:
        """Delete the file."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)


@frozen
class Mark:
    """What the journal held at one moment: whole segments, and the current one (its salt) up to `at`."""

    closed: tuple[Path, ...]
    salt: bytes
    at: int


def make_spare(path: Path, size: int = SEGMENT_BYTES, *, durable: bool = False) -> OpenSegment:
    """Make a segment without records that has all of its space; in any thread. Raises OSError and leaves no file then.

    `durable`: the file itself survives a loss of power.
    """
    salt = os.urandom(SALT_BYTES)
    fd = _create(path)
    try:
        _write_all(fd, start_segment(salt))
        os.posix_fallocate(fd, 0, size)
        if durable:
            _sync(fd, path.parent)
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return OpenSegment(path, fd, salt, size)


def write_segment(path: Path, entry: Entry, *, durable: bool = False) -> int:
    """Write a segment that holds only `entry` and return its size; for large records, in any thread.

    Raises `OSError` and leaves no file then.
    """
    salt = os.urandom(SALT_BYTES)
    body = packed(entry)
    head = start_segment(salt) + head_of(body, salt)
    fd = _create(path)
    try:
        _write_all(fd, head)
        _write_all(fd, body)  # not joined: a copy would take as much memory again
        if durable:
            _sync(fd, path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return len(head) + len(body)


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    # A short write means a full disk: the next call raises the OSError.
    while written < len(data):
        written += os.write(fd, data[written:])


def _sync(fd: int, folder: Path) -> None:
    os.fsync(fd)
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)


class Space:
    """The segment that is written to, the spares behind it, and the places in them that executions have claimed."""

    def __init__(self, make: Callable[[], OpenSegment], segment_bytes: int) -> None:
        self.current: OpenSegment | None = None
        self.spares: list[OpenSegment] = []
        self.claimed: set[str] = set()
        self._make = make
        self._largest = segment_bytes - START_BYTES

    def claim(self, name: str) -> None:
        """Keep a place for the end of the execution `name`. Raises OSError when no space is left for one."""
        if name not in self.claimed:
            while not self._has_places(len(self.claimed) + 1):
                self.spares.append(self._make())
            self.claimed.add(name)

    def _has_places(self, number: int) -> bool:
        left = number - (0 if self.current is None else self.current.places)
        return left <= 0 or sum(spare.places for spare in self.spares) >= left  # the current segment has many

    def make_room(self, size: int, others: int) -> bool:
        """Return whether a record of `size` bytes leaves `others` places, after adding spares if need be."""
        while not self._has_room(size, others):
            if size > self._largest:
                return False
            try:
                self.spares.append(self._make())
            except OSError:
                return False
        return True

    def _has_room(self, size: int, others: int) -> bool:
        current, spares = self.current, self.spares
        if current is None or not current.has_room(size):
            # The rest of the current segment is given up for it.
            if not spares or not spares[0].has_room(size):
                return False
            current, spares = spares[0], spares[1:]
        left = others - current.places_after(size)
        return left <= 0 or sum(spare.places for spare in spares) >= left

    def next(self) -> OpenSegment:
        """Make the first spare the current segment, and return it; the one before was closed. Raises OSError."""
        if not self.spares:
            self.spares.append(self._make())
        self.current = self.spares.pop(0)
        return self.current

    def give_up_spares(self) -> bool:
        """Close the spares whose files were deleted by others; return whether there were any."""
        gone = [spare for spare in self.spares if spare.is_gone]
        for spare in gone:
            os.close(spare.fd)
        self.spares = [spare for spare in self.spares if spare not in gone]
        return bool(gone)


class Journal:
    """The segment files of one folder. Not thread-safe: used by the thread of the event loop only."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, durable: bool = False) -> None:
        """Open `folder`, made when missing; existing segments are left for the replay."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self.durable = durable
        self._closed: dict[Path, int] = {}
        """Sizes of segments that get no more records."""
        self._space = Space(self.make, segment_bytes)
        self._stored = 0
        """The database has the records of the current segment before this offset."""
        self._last = Mark((), b"", 0)
        """The segment that was closed last."""
        self._number = max((int(path.stem) for path in self.left_behind()), default=0)

    def left_behind(self) -> tuple[Path, ...]:
        """Return the segments in the folder, oldest first."""
        return tuple(sorted(path for path in self._folder.glob("*.journal") if path.stem.isdecimal()))

    @property
    def size(self) -> int:
        """Bytes of records that the database does not have."""
        return sum(self._closed.values()) + (
            0 if self._space.current is None else self._space.current.at - self._stored
        )

    # Places

    def claim(self, name: str) -> None:
        """Keep a place for the end of the execution `name`. Raises OSError when no space is left for one."""
        self._space.claim(name)

    def release(self, name: str) -> None:
        """Give the place of an execution back, if it has one."""
        self._space.claimed.discard(name)

    @property
    def lacks_spare(self) -> bool:
        """Whether a spare is to be made, so that no record has to wait for one."""
        return not self._space.spares

    def make(self) -> OpenSegment:
        """Make a spare. Raises OSError."""
        return make_spare(self.next_path(), self._segment_bytes, durable=self.durable)

    def add_spare(self, spare: OpenSegment) -> None:
        """Take a spare that `make_spare` made in a thread."""
        self._space.spares.append(spare)

    # Records

    def append(self, entry: Entry) -> bool:
        """Write one record; when this returns it survives the death of the process. Return whether it is whole.

        The end of an execution with a place is always written, reduced if need be, and gives the place back. Raises
        `OSError` when the record cannot be written; then it is not in the journal.
        """
        execution = entry.execution
        held = execution.status.final and execution.id in self._space.claimed
        others, body, whole = len(self._space.claimed) - held, packed(entry), True
        if not self._space.make_room(size_of(body), others):
            if not held:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            body, whole = packed(reduced(entry)), False
        self._write(body)
        if held:
            self._space.claimed.discard(execution.id)
        return whole

    def append_reduced(self, entry: Entry) -> bool:
        """Write an end without its payload, if it has a place; return whether it had one. Raises `OSError`."""
        if entry.execution.id not in self._space.claimed or not entry.execution.status.final:
            return False
        self._write(packed(reduced(entry)))
        self._space.claimed.discard(entry.execution.id)
        return True

    def _write(self, body: bytes) -> None:
        current = self._space.current
        if current is None or not current.has_room(size_of(body)):
            self._close_current()
            current = self._space.next()
            self._stored = START_BYTES
        try:
            current.write(framed(body, current.salt))
        except OSError:
            self._close_current()  # a part of the record may be written: the replay finds it torn
            raise

    def _close_current(self) -> None:
        current, self._space.current = self._space.current, None
        if current is not None:
            os.close(current.fd)
            self._closed[current.path] = current.at - self._stored
            self._last = Mark((current.path,), current.salt, current.at)

    def next_path(self) -> Path:
        """Return the path of a new segment, for `write_segment` or `make_spare`."""
        self._number += 1
        return self._folder / f"{self._number:012d}.journal"

    def adopt(self, path: Path, size: int, name: str) -> None:
        """Count the segment of `size` bytes that `write_segment` wrote for the execution `name`."""
        self._closed[path] = size
        self.release(name)

    def sync(self) -> int | None:
        """Return a descriptor of the current segment, for a thread that brings it to the disk and closes it."""
        return None if self._space.current is None else os.dup(self._space.current.fd)

    def missing(self) -> bool:
        """Whether the file that gets the next record was deleted by others; such files are given up."""
        gone = self._space.give_up_spares()
        if self._space.current is not None and self._space.current.is_gone:
            self._close_current()
            gone = True
        return gone

    # What the database has

    def mark(self) -> Mark:
        """Return what the journal holds now; to be stored with what was pending at the same moment."""
        current = self._space.current
        return Mark(tuple(self._closed), b"" if current is None else current.salt, 0 if current is None else current.at)

    def forget(self, mark: Mark) -> None:
        """Stop counting what is stored; the segments of the mark were deleted."""
        for path in mark.closed:
            self._closed.pop(path, None)
        current, last = self._space.current, self._last
        if current is not None and current.salt == mark.salt:
            self._stored = mark.at
        elif (last.salt, last.at) == (mark.salt, mark.at):  # it was closed meanwhile, without further records
            for path in last.closed:
                self._closed.pop(path, None)
                path.unlink(missing_ok=True)

    def replay(
        self, store: Callable[[tuple[Entry, ...]], Mapping[str, str]], stored: tuple[bytes, int]
    ) -> Iterator[tuple[Path, Segment]]:
        """Pass each leftover segment to `store`, which returns refusals by id; delete it and yield its content.

        `stored` are a salt and an offset: the database has the records of this segment before the offset, and may
        have deleted them since. A segment with damage, or with refused executions, is kept for the operator as
        `*.damaged`.
        """
        for path in self.left_behind():
            segment = decode(path.read_bytes(), *stored)
            refused = store(segment.entries) if segment.entries else {}
            if segment.damage or refused:
                path = path.rename(path.with_name(f"{path.stem}-{time.time():.0f}.damaged"))  # noqa: PLW2901
            else:
                path.unlink()
            if segment.entries or segment.damage or segment.torn_bytes:
                yield path, segment

    def close(self) -> None:
        """Close all segments; those without records that the database lacks are deleted."""
        for spare in self._space.spares:
            spare.remove()
        self._space.spares = []
        current, self._space.current = self._space.current, None
        if current is not None:
            if current.at == self._stored:
                current.remove()
            else:
                os.close(current.fd)
