"""Zip archives of a module's files: untrusted ones are unpacked safely, and equal files give equal archives.

All claims of an archive (names, sizes, offsets) are checked before they are used, and output never exceeds the claimed
sizes. Every mistake is a `Wrong` that names the entry and the limit.
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
"""Contents up to this size may have any compression ratio."""
_READ = 64 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FINDER = ("__MACOSX", "Thumbs.db", "desktop.ini")
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""With these a name is shown as another one: `evil\u202egpj.py` looks like `evilyp.jpg`."""
_DRIVE = re.compile(r"[A-Za-z]:")


class TooLargeError(Wrong):
    """The archive exceeds a limit; it may be valid otherwise."""


@frozen
class ArchiveLimits:
    """The limits of an archive. Sizes are bytes."""

    entries: int = 2000
    """The maximum number of entries, including folders and files that are left out."""
    total: int = 64 * 1024 * 1024
    """The size of all contents together."""
    single: int = 64 * 1024 * 1024
    """The size of one content."""
    ratio: int = 100
    """The ratio of all contents to their compressed size, for contents over 4 MiB."""
    name: int = 240
    """Bytes of a name, including its folders."""
    depth: int = 16
    """Folders above a file."""


LIMITS = ArchiveLimits()


def unpack(data: bytes, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    """Return the code files of a zip archive by their names (relative, with `/` between folders).

    An archive of one folder is read as that folder. The caller limits the size of `data`; further memory is limited by
    `limits.total`. Raises `TooLargeError` if a limit is exceeded, else `Wrong`.
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
    """Return a zip archive of the files: equal files in any order give equal bytes.

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
                raise Wrong(f"{_shown(name)}: must be written as {check_name(name, limits)!r}")
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 6)
    return target.getvalue()


def read_folder(path: Path, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    """Return the code files below a folder, or the one file `path`. Raises `Wrong` if one cannot be read."""
    files: dict[str, bytes] = {}
    total = 0
    try:
        for file in code_files(path):
            name = file.name if file == path else file.relative_to(path).as_posix()
            if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for its other end
                raise Wrong(f"{_shown(name)}: is not a regular file; remove it")
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
    """Write files as returned by `unpack` below an empty folder. Raises OSError."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def check_name(name: str, limits: ArchiveLimits = LIMITS) -> str:
    """Return the normalised name of a file: relative, in composed Unicode. Raises `Wrong`."""
    shown = _shown(name)
    if "\\" in name:
        raise Wrong(f"{shown}: has a backslash in its name; separate folders by `/`")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise Wrong(f"{shown}: has control characters in its name")
    if _DIRECTION.search(name):
        raise Wrong(f"{name!a:.100}: has characters in its name that change the direction of writing")
    if name.startswith("/") or _DRIVE.match(name):
        raise Wrong(f"{shown}: is an absolute path; names are relative to the folder of the module")
    while name.startswith("./"):
        name = name[2:]
    name = unicodedata.normalize("NFC", name)
    parts = name.split("/")
    if ".." in parts:
        raise Wrong(f"{shown}: is outside of the folder of the module")
    if any(part in ("", ".") for part in parts):
        raise Wrong(f"{shown}: is not a file name")
    if len(name.encode()) > limits.name:
        raise TooLargeError(f"{shown}: has a name of more than {limits.name} bytes")
    if len(parts) > limits.depth + 1:
        raise TooLargeError(f"{shown}: is below more than {limits.depth} folders")
    return name


def _directory(data: bytes, limits: ArchiveLimits) -> int:
    """Return the offset of the central directory. Raises `Wrong` unless it is within limits and ends the archive."""
    if not data:
        raise Wrong("the archive is empty: nothing was sent")
    at = data.rfind(_END_MARK, max(0, len(data) - _END.size - 0xFFFF))
    if at < 0 or len(data) - at < _END.size:
        what = "is cut off, or " if data.startswith(_LOCAL_MARK) else ""
        raise Wrong(f"the archive {what}is not a zip file")
    numbers: tuple[int, ...] = _END.unpack_from(data, at)[1:]
    disk, first, here, entries, size, offset, comment = numbers
    if 0xFFFF in (here, entries) or 0xFFFFFFFF in (size, offset) or data.startswith(_LARGE_MARK, at - 20):
        raise TooLargeError(f"the archive uses the zip64 format for large ones; the limit is {limits.entries} entries")
    if disk or first or here != entries:
        raise Wrong("the archive is one part of a split archive; send it as one file")
    if at + _END.size + comment != len(data) or size + offset != at:
        raise Wrong("the archive is damaged, or has other data around it: its parts do not add up to its size")
    marks = data.count(_ENTRY_MARK, offset, at)
    if max(entries, marks) > limits.entries:
        raise TooLargeError(f"the archive has {max(entries, marks)} entries; the limit is {limits.entries}")
    return offset


def _entries(archive: zipfile.ZipFile, data: bytes, start: int, limits: ArchiveLimits) -> dict[str, zipfile.ZipInfo]:
    """Return the entries that are code files, by name. Raises `Wrong` for every other kind of entry."""
    found: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    infos = archive.infolist()
    for info in infos:
        name = check_name(_full_name(info).removesuffix("/"), limits)
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


def _full_name(info: zipfile.ZipInfo) -> str:
    """Return the whole name of an entry: the library cuts names at a null character."""
    name = info.orig_filename
    if info.flag_bits & _UTF8 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode()  # many programs write UTF-8 without the flag
    except UnicodeError:
        raise Wrong(f"{_shown(name)}: has a name that is not UTF-8; create the archive with another program") from None


def _check_kind(info: zipfile.ZipInfo, name: str) -> None:
    shown, kind = _shown(name), stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise Wrong(f"{shown}: is a symbolic link; add the file itself")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Wrong(f"{shown}: is not a regular file; remove it")
    if info.flag_bits & _ENCRYPTED:
        raise Wrong(f"{shown}: is encrypted")
    if info.compress_type not in _METHODS:
        known = " and ".join(_METHODS.values())
        raise Wrong(f"{shown}: is compressed by method {info.compress_type}; only {known} entries are supported")


def _check_overlap(infos: Iterable[zipfile.ZipInfo], data: bytes, start: int) -> None:
    """Check that entries do not overlap, and lie before the central directory."""
    free = start
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        at, shown = info.header_offset, _shown(info.orig_filename)
        if not 0 <= at <= free - _LOCAL_BYTES or not data.startswith(_LOCAL_MARK, at):
            raise Wrong(f"{shown}: is not at the offset that the archive states, or overlaps another entry")
        names = sum(struct.unpack_from("<2H", data, at + 26))
        if at + _LOCAL_BYTES + names + info.compress_size > free:
            raise Wrong(f"{shown}: overlaps another entry")
        free = at


def _check_sizes(entries: Mapping[str, zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    """Check the sizes that entries state; `_content` enforces them."""
    for name, info in entries.items():
        if info.file_size > limits.single:
            raise TooLargeError(f"{_shown(name)}: is over {format_size(limits.single)}; keep data out of the code")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise Wrong(f"{_shown(name)}: is stored, but states two sizes")
    total = sum(info.file_size for info in entries.values())
    _check_total(total, limits)
    packed = sum(info.compress_size for info in entries.values())
    if total > max(_SMALL, limits.ratio * packed):
        raise TooLargeError(f"the files are over {limits.ratio} times their compressed size")


def _check_total(total: int, limits: ArchiveLimits) -> None:
    if total > limits.total:
        raise TooLargeError(f"the files are over {format_size(limits.total)} together; keep data out of the code")


def _check_tree(names: Iterable[str]) -> None:
    """Check that no name is both a file and a folder."""
    files = set(names)
    for name in files:
        above = next((folder for folder in _above(name) if folder in files), None)
        if above is not None:
            raise Wrong(f"{_shown(above)}: is both a file and a folder")


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[:length]) for length in range(1, len(parts) + 1))


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    """Return the content of an entry, at most as long as it states: the library stops there and checks the CRC."""
    content = bytearray()
    try:
        with archive.open(info) as file:
            while part := file.read(_READ):
                content += part
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        raise Wrong(f"{_shown(name)}: is damaged: {problem!s:.200}") from None
    if len(content) != info.file_size:
        raise Wrong(f"{_shown(name)}: is damaged: it has {len(content)} bytes and states {info.file_size}")
    return bytes(content)


def _is_left_out(name: str) -> bool:
    return is_left_out(name) or name in _FINDER or name.startswith("._")


def _unwrapped(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files without their common top folder, if they have one."""
    tops = {name.partition("/")[0] for name in files}
    if len(tops) == 1 and all("/" in name for name in files):
        return {name.partition("/")[2]: content for name, content in files.items()}
    return files


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:97] + "...")
