"""Zip archives of a module's files: read from bytes that anybody may have made, and made the same from the same files.

Whatever an archive says of itself is checked before it is acted on, and what comes out of it is bounded by what it
says. Everything that is wrong is a `Wrong` that names the entry and the limit.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

from config.code.entry import code_files, is_left_out
from config.mistakes import Wrong
from config.units import format_size

_END = struct.Struct("<4s4H2LH")
"""The end record: signature, two numbers of disks, two of entries, size and offset of the directory, comment."""
_END_MARK, _LOCAL_MARK, _ENTRY_MARK, _LARGE_MARK = b"PK\x05\x06", b"PK\x03\x04", b"PK\x01\x02", b"PK\x06\x07"
_LOCAL_BYTES = 30
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
_SMALL = 4 * 1024 * 1024
"""Contents up to this size may be as repetitive as they like."""
_READ = 64 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FINDER = ("__MACOSX", "Thumbs.db", "desktop.ini")
_DRIVE = re.compile(r"[A-Za-z]:")


class TooLargeError(Wrong):
    """More than a limit allows; the archive may be right otherwise."""


@frozen
class ArchiveLimits:
    """What an archive may hold. Sizes are bytes."""

    entries: int = 2000
    """Entries at most, folders and what is left out included."""
    total: int = 64 * 1024 * 1024
    """All contents together."""
    single: int = 64 * 1024 * 1024
    """Content of one entry."""
    ratio: int = 100
    """Contents together to what they are compressed to, once they are over 4 MiB."""
    name: int = 240
    """Bytes of a name, its folders included."""
    depth: int = 16
    """Folders above a file."""


LIMITS = ArchiveLimits()


def unpack(data: bytes, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    """Return the files of a zip archive by their names (relative, `/` between folders), without what is left out.

    An archive of one folder is read as that folder. The caller bounds the size of `data`; memory beside it is bounded
    by `limits.total`. Raises `TooLargeError` for what is over a limit, and `Wrong` for everything else.
    """
    start = _directory(data, limits)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _entries(archive, data, start, limits)
            files = {name: _content(archive, info, name) for name, info in entries.items()}
    except Wrong:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error) as problem:
        raise Wrong(f"the archive is damaged: {problem!s:.200}") from None
    except (NotImplementedError, RuntimeError, ValueError, OverflowError) as problem:
        raise Wrong(f"the archive cannot be read: {problem!s:.200}") from None
    if not files:
        raise Wrong("the archive has no files")
    return _unwrapped(files)


def pack(files: Mapping[str, bytes], limits: ArchiveLimits = LIMITS) -> bytes:
    """Return a zip archive of the files: the same bytes for the same files, whatever their order.

    Raises `Wrong` for names and sizes that `unpack` would refuse.
    """
    if len(files) > limits.entries:
        raise TooLargeError(f"there are {len(files)} files; the limit is {limits.entries}")
    _check_total(sum(map(len, files.values())), limits)
    _check_tree(files)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, content in sorted(files.items()):
            if check_name(name, limits) != name:
                raise Wrong(f"{_shown(name)}: is not written as {check_name(name, limits)!r}")
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 6)
    return target.getvalue()


def pack_folder(path: Path, limits: ArchiveLimits = LIMITS) -> bytes:
    """Return a zip archive of the code below a folder, or of one file, as `pack`.

    Raises `Wrong` also when something cannot be read.
    """
    return pack(read_folder(path, limits), limits)


def read_folder(path: Path, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    """Return the code below a folder, or the one file that `path` is. Raises `Wrong`, as `pack_folder`."""
    files: dict[str, bytes] = {}
    total = 0
    try:
        for file in code_files(path):
            name = file.name if file == path else file.relative_to(path).as_posix()
            if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for its other end
                raise Wrong(f"{_shown(name)}: is not a regular file; take it out")
            with file.open("rb") as opened:
                files[name] = opened.read(limits.single + 1)
            if len(files[name]) > limits.single:
                raise TooLargeError(f"{_shown(name)}: is over {format_size(limits.single)}; keep data out of the code")
            total += len(files[name])
            _check_total(total, limits)
            if len(files) > limits.entries:
                raise TooLargeError(f"there are more than {limits.entries} files; keep data out of the code")
    except OSError as problem:
        raise Wrong(f"{problem.filename or path}: cannot be read: {problem.strerror or problem}") from None
    if not files:
        raise Wrong(f"{path}: there are no files")
    return files


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files, as `unpack` returns them, below an empty folder. Raises OSError."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def check_name(name: str, limits: ArchiveLimits = LIMITS) -> str:
    """Return the name of a file as it is used: relative, composed Unicode. Raises `Wrong`."""
    shown = _shown(name)
    if "\\" in name:
        raise Wrong(f"{shown}: has a backslash in its name; folders are parted by `/`")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise Wrong(f"{shown}: has control characters in its name")
    if name.startswith("/") or _DRIVE.match(name):
        raise Wrong(f"{shown}: is an absolute path; names are relative to the folder of the module")
    while name.startswith("./"):
        name = name[2:]
    name = unicodedata.normalize("NFC", name)
    parts = name.split("/")
    if ".." in parts:
        raise Wrong(f"{shown}: leads out of the folder of the module")
    if any(part in ("", ".") for part in parts):
        raise Wrong(f"{shown}: is not the name of a file")
    if len(name.encode()) > limits.name:
        raise TooLargeError(f"{shown}: has a name of more than {limits.name} bytes")
    if len(parts) > limits.depth + 1:
        raise TooLargeError(f"{shown}: is below more than {limits.depth} folders")
    return name


def _directory(data: bytes, limits: ArchiveLimits) -> int:
    """Return where the directory of an archive begins. Raises `Wrong` unless it is bounded and ends the archive."""
    if not data:
        raise Wrong("there is no archive: nothing was sent")
    at = data.rfind(_END_MARK, max(0, len(data) - _END.size - 0xFFFF))
    if at < 0 or len(data) - at < _END.size:
        what = "is cut off, or " if data.startswith(_LOCAL_MARK) else ""
        raise Wrong(f"the archive {what}is not a zip file")
    numbers: tuple[int, ...] = _END.unpack_from(data, at)[1:]
    disk, first, here, entries, size, offset, comment = numbers
    if 0xFFFF in (here, entries) or 0xFFFFFFFF in (size, offset) or data.startswith(_LARGE_MARK, at - 20):
        raise TooLargeError(f"the archive is of the kind for large ones (zip64); the limit is {limits.entries} entries")
    if disk or first or here != entries:
        raise Wrong("the archive is a part of several; send it whole")
    if at + _END.size + comment != len(data) or size + offset != at:
        raise Wrong("the archive is damaged, or not alone: its parts do not add up to its size")
    marks = data.count(_ENTRY_MARK, offset, at)
    if max(entries, marks) > limits.entries:
        raise TooLargeError(f"the archive has {max(entries, marks)} entries; the limit is {limits.entries}")
    return offset


def _entries(archive: zipfile.ZipFile, data: bytes, start: int, limits: ArchiveLimits) -> dict[str, zipfile.ZipInfo]:
    """Return the entries that are files of a module, by name. Raises `Wrong` for what no entry may be."""
    found: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    infos = archive.infolist()
    for info in infos:
        name = check_name(_said_name(info).removesuffix("/"), limits)
        if name in seen:
            raise Wrong(f"{_shown(name)}: is in the archive twice")
        seen.add(name)
        _check_kind(info, name)
        if not info.is_dir() and not any(_is_left_out(part) for part in name.split("/")):
            found[name] = info
    _check_overlap(infos, data, start)
    _check_sizes(found, limits)
    _check_tree(found)
    return found


def _said_name(info: zipfile.ZipInfo) -> str:
    """Return the name of an entry as its maker wrote it: the library cuts it at a null character."""
    name = info.orig_filename
    if info.flag_bits & _UTF8 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode()  # many programs write UTF-8 and do not say so
    except UnicodeError:
        raise Wrong(f"{_shown(name)}: has a name that is not UTF-8; make the archive with another program") from None


def _check_kind(info: zipfile.ZipInfo, name: str) -> None:
    shown, kind = _shown(name), stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise Wrong(f"{shown}: is a symbolic link; put the file itself there")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Wrong(f"{shown}: is not a regular file; take it out")
    if info.flag_bits & _ENCRYPTED:
        raise Wrong(f"{shown}: is encrypted")
    if info.compress_type not in _METHODS:
        known = " and ".join(_METHODS.values())
        raise Wrong(f"{shown}: is compressed by method {info.compress_type}; {known} entries are read")


def _check_overlap(infos: Iterable[zipfile.ZipInfo], data: bytes, start: int) -> None:
    """Check that each entry has bytes of its own, in front of the directory."""
    free = start
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        at, shown = info.header_offset, _shown(info.orig_filename)
        if not 0 <= at <= free - _LOCAL_BYTES or not data.startswith(_LOCAL_MARK, at):
            raise Wrong(f"{shown}: is not where the archive says it is, or overlaps another entry")
        names = sum(struct.unpack_from("<2H", data, at + 26))
        if at + _LOCAL_BYTES + names + info.compress_size > free:
            raise Wrong(f"{shown}: overlaps another entry")
        free = at


def _check_sizes(entries: Mapping[str, zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    """Check what entries say of their sizes; `_content` holds them to it."""
    for name, info in entries.items():
        if info.file_size > limits.single:
            raise TooLargeError(f"{_shown(name)}: is over {format_size(limits.single)}; keep data out of the code")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise Wrong(f"{_shown(name)}: is stored, but says two sizes")
    total = sum(info.file_size for info in entries.values())
    _check_total(total, limits)
    packed = sum(info.compress_size for info in entries.values())
    if total > max(_SMALL, limits.ratio * packed):
        raise TooLargeError(f"the files are over {limits.ratio} times of what they are compressed to")


def _check_total(total: int, limits: ArchiveLimits) -> None:
    if total > limits.total:
        raise TooLargeError(f"the files are over {format_size(limits.total)} together; keep data out of the code")


def _check_tree(names: Iterable[str]) -> None:
    """Check that no name is a file as well as a folder."""
    files = set(names)
    for name in files:
        above = next((folder for folder in _above(name) if folder in files), None)
        if above is not None:
            raise Wrong(f"{_shown(above)}: is a file, and a folder as well")


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[:length]) for length in range(1, len(parts) + 1))


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    """Return what an entry holds, which is as long as it says: the library reads no further, and checks the sum."""
    content = bytearray()
    try:
        with archive.open(info) as file:
            while part := file.read(_READ):
                content += part
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        raise Wrong(f"{_shown(name)}: is damaged: {problem!s:.200}") from None
    if len(content) != info.file_size:
        raise Wrong(f"{_shown(name)}: is damaged: it has {len(content)} bytes and says {info.file_size}")
    return bytes(content)


def _is_left_out(name: str) -> bool:
    return is_left_out(name) or name in _FINDER or name.startswith("._")


def _unwrapped(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of the one folder that all are in, or all as they are."""
    tops = {name.partition("/")[0] for name in files}
    if len(tops) == 1 and all("/" in name for name in files):
        return {name.partition("/")[2]: content for name, content in files.items()}
    return files


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:97] + "...")
