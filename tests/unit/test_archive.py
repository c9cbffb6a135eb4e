"""Unit: zip archives: good ones are read, bad ones are refused with a reason, and no bytes do anything else."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.registry import code_store
from config.code import archive
from config.code.archive import (
    ArchiveLimits,
    TooLargeError,
    check_name,
    pack,
    read_folder,
    unpack,
    write_files,
)
from config.mistakes import Wrong

FILES = {"handler.py": b"def handler(input): return input\n", "data/names.txt": b"a\n" * 100, "empty.py": b""}
MIB = 1024 * 1024


def made(*entries, **options) -> bytes:
    """Return an archive of (name or ZipInfo, content) as others would make it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", options.pop("method", zipfile.ZIP_DEFLATED), **options) as file:
        for name, content in entries:
            file.writestr(name, content)
    return target.getvalue()


def info(name: str, mode: int = stat.S_IFREG | 0o644, **fields) -> zipfile.ZipInfo:
    result = zipfile.ZipInfo(name)
    result.external_attr = mode << 16
    result.create_system = 3
    for field, value in fields.items():
        setattr(result, field, value)
    return result


def refused(data: bytes, message: str, limits: ArchiveLimits = archive.LIMITS, kind: type[Wrong] = Wrong) -> None:
    with pytest.raises(Wrong) as caught:
        unpack(data, limits)
    assert (message, kind) == (str(caught.value), type(caught.value))


# -- good ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_come_out_as_they_went_in(method):
    assert unpack(made(*FILES.items(), method=method)) == FILES
    assert unpack(pack(FILES)) == FILES


def test_a_streamed_archive_is_read():
    """Its sizes stand behind each entry."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in FILES.items():
            file.writestr(name, content)

    assert unpack(pipe.data) == FILES


def test_a_comment_is_no_mistake():
    target = io.BytesIO(made(*FILES.items()))
    with zipfile.ZipFile(target, "a") as file:
        file.comment = b"made by hand"

    assert unpack(target.getvalue()) == FILES


def test_one_folder_is_unwrapped():
    entries = [("mymodule/", b""), *((f"mymodule/{name}", content) for name, content in FILES.items())]

    assert unpack(made(*entries, ("__MACOSX/mymodule/._handler.py", b"x"))) == FILES
    assert unpack(made(("a/b/handler.py", b""))) == {"b/handler.py": b""}
    assert unpack(made(("a/x.py", b""), ("b/x.py", b""))) == {"a/x.py": b"", "b/x.py": b""}
    assert unpack(made(("a/x.py", b""), ("x.py", b""))) == {"a/x.py": b"", "x.py": b""}


@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX/handler.py",
        ".DS_Store",
        "a/.DS_Store",
        "__pycache__/x.pyc",
        ".git/config",
        "x.pyc",
        "a.py~",
        ".venv/x",
        "._x.py",
        "Thumbs.db",
    ],
)
def test_what_is_no_code_is_left_out(name):
    assert unpack(made(*FILES.items(), (name, b"x"))) == FILES


def test_names_are_utf_8_and_composed():
    decomposed = unicodedata.normalize("NFD", "모듈é.py")
    assert unpack(made((decomposed, b"1"), ("b.py", b""))) == {"모듈é.py": b"1", "b.py": b""}

    # Many programs write UTF-8 and do not say so: that the flag is missing is what differs here.
    data = bytearray(made(("é.py", b"1"), ("b.py", b"")))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.index(mark) + at
        (flags,) = struct.unpack_from("<H", data, place)
        struct.pack_into("<H", data, place, flags & ~0x800)
    assert unpack(bytes(data)) == {"é.py": b"1", "b.py": b""}


def test_a_leading_dot_is_the_folder_itself():
    assert unpack(made(("./handler.py", b""), ("./b/x.py", b""))) == {"handler.py": b"", "b/x.py": b""}


def test_the_limit_is_that_of_the_registry():
    assert archive.LIMITS.total == code_store.MAX_CODE_BYTES


# -- bad ones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x.py", "'../x.py': is outside of the folder of the module"),
        ("a/../../x.py", "'a/../../x.py': is outside of the folder of the module"),
        ("/etc/passwd", "'/etc/passwd': is an absolute path; names are relative to the folder of the module"),
        ("C:/x.py", "'C:/x.py': is an absolute path; names are relative to the folder of the module"),
        ("c:x.py", "'c:x.py': is an absolute path; names are relative to the folder of the module"),
        ("a\\x.py", "'a\\\\x.py': has a backslash in its name; separate folders by `/`"),
        ("a\nb.py", "'a\\nb.py': has control characters in its name"),
        ("a\x7fb.py", "'a\\x7fb.py': has control characters in its name"),
        ("evil\u202egpj.py", "'evil\\u202egpj.py': has characters in its name that change the direction of writing"),
        *(
            (
                f"a{chr(code)}.py",
                f"'a\\u{code:04x}.py': has characters in its name that change the direction of writing",
            )
            for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
        ),
        ("a//x.py", "'a//x.py': is not a file name"),
        ("a/./x.py", "'a/./x.py': is not a file name"),
        ("./", "'.': is not a file name"),
    ],
)
def test_names_stay_in_the_folder(name, message):
    refused(made(("ok.py", b""), (name, b"x")), message)


def test_a_null_character_does_not_shorten_a_name():
    data = made(("a.py!.txt", b"x")).replace(b"a.py!", b"a.py\0")

    refused(data, "'a.py\\x00.txt': has control characters in its name")


def test_names_are_bounded():
    deep = "/".join(["d"] * 17) + "/x.py"
    long = "n" * 241
    refused(made((deep, b"")), f"{deep!r}: is below more than 16 folders", kind=TooLargeError)
    refused(made((long, b"")), f"{long[:97] + '...'!r}: has a name of more than 240 bytes", kind=TooLargeError)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (info("link", stat.S_IFLNK | 0o777), "'link': is a symbolic link; add the file itself"),
        (info("pipe", stat.S_IFIFO), "'pipe': is not a regular file; remove it"),
        (info("device", stat.S_IFBLK), "'device': is not a regular file; remove it"),
        (
            info("x.py", compress_type=zipfile.ZIP_BZIP2),
            "'x.py': is compressed by method 12; only stored and deflated entries are supported",
        ),
    ],
)
def test_only_files_of_the_usual_kind_are_read(entry, message):
    refused(made((entry, b"/etc/passwd")), message)


def test_encrypted_entries_are_refused():
    data = bytearray(made(("x.py", b"secret")))
    data[data.index(b"PK\x01\x02") + 8] |= 1

    refused(bytes(data), "'x.py': is encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_is_there_once():
    refused(made(("x.py", b"1"), ("x.py", b"2")), "'x.py': is in the archive twice")
    refused(made(("x.py", b"1"), ("./x.py", b"2")), "'x.py': is in the archive twice")
    refused(made(("é", b""), (unicodedata.normalize("NFD", "é"), b"")), "'é': is in the archive twice")
    refused(made(("a", b""), ("a/b/c.py", b"")), "'a': is both a file and a folder")
    assert unpack(made(("a.py", b""), ("A.py", b""))) == {"a.py": b"", "A.py": b""}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the archive is empty: nothing was sent"),
        (b"hello", "the archive is not a zip file"),
        (b"PK\x03\x04", "the archive is cut off, or is not a zip file"),
        (made(*FILES.items())[:-30], "the archive is cut off, or is not a zip file"),
        (made(), "the archive has no files"),
        (made(("a/", b""), ("__MACOSX/x", b"")), "the archive has no files"),
        (
            made(*FILES.items()) + b"more",
            "the archive is damaged, or has other data around it: its parts do not add up to its size",
        ),
        (
            b"#!/bin/sh\n" + made(*FILES.items()),
            "the archive is damaged, or has other data around it: its parts do not add up to its size",
        ),
    ],
)
def test_what_is_no_whole_archive_is_refused(data, message):
    refused(data, message)


def test_a_wrong_sum_is_told():
    data = made(("x.py", b"x" * 50), ("y.py", b""), method=zipfile.ZIP_STORED).replace(b"x" * 50, b"x" * 49 + b"y")

    refused(data, "'x.py': is damaged: Bad CRC-32 for file 'x.py'")


def test_archives_of_the_large_kind_are_refused():
    data = bytearray(made(("x.py", b"")))
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<H", data, end + 8, 0xFFFF)

    refused(
        bytes(data), "the archive uses the zip64 format for large ones; the limit is 2000 entries", kind=TooLargeError
    )


def test_a_hidden_directory_of_the_large_kind_is_refused():
    """The library would follow a zip64 locator that stands in the comment of the last entry."""
    entry = info("x.py", comment=b"PK\x06\x07" + bytes(16))

    refused(
        made((entry, b"")),
        "the archive uses the zip64 format for large ones; the limit is 2000 entries",
        kind=TooLargeError,
    )


# -- limits ----------------------------------------------------------------------------------------------------------


def test_entries_are_counted_before_they_are_read():
    data = made(*((f"{n}.py", b"") for n in range(11)))
    limits = ArchiveLimits(entries=10)
    refused(data, "the archive has 11 entries; the limit is 10", limits, TooLargeError)

    lying = bytearray(data)
    struct.pack_into("<2H", lying, lying.rindex(b"PK\x05\x06") + 8, 1, 1)
    refused(bytes(lying), "the archive has 11 entries; the limit is 10", limits, TooLargeError)


def test_a_bomb_is_refused_in_little_memory():
    data = made(("zeros.bin", bytes(60 * MIB)))
    tracemalloc.start()
    try:
        refused(data, "the files are over 100 times their compressed size", kind=TooLargeError)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    assert unpack(made(("zeros.bin", bytes(4 * MIB)))) == {"zeros.bin": bytes(4 * MIB)}


def test_sizes_are_bounded_alone_and_together():
    limits = ArchiveLimits(total=3000, single=2000)
    refused(made(("a", bytes(2001))), "'a': is over 2000B; keep data out of the code", limits, TooLargeError)
    refused(
        made(("a", bytes(1900)), ("b", bytes(1900))),
        "the files are over 3000B together; keep data out of the code",
        limits,
        TooLargeError,
    )


def sized(data: bytes, size: int) -> bytes:
    """Return the archive with another uncompressed size for its first entry, in both places."""
    lying = bytearray(data)
    struct.pack_into("<L", lying, lying.index(b"PK\x03\x04") + 22, size)
    struct.pack_into("<L", lying, lying.index(b"PK\x01\x02") + 24, size)
    return bytes(lying)


def test_a_header_that_says_less_brings_no_more():
    data = sized(made(("zeros.bin", bytes(60 * MIB)), ("x.py", b"")), 100)
    tracemalloc.start()
    try:
        refused(data, "'zeros.bin': is damaged: Bad CRC-32 for file 'zeros.bin'")
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_header_that_says_more_is_found_out():
    refused(sized(made(("x.py", b"x" * 50), ("y", b"")), 60), "'x.py': is damaged: it has 50 bytes and states 60")
    stored = made(("x.py", b"x" * 50), ("y", b""), method=zipfile.ZIP_STORED)
    refused(sized(stored, 60), "'x.py': is stored, but states two sizes")


def test_entries_do_not_share_bytes():
    """The bomb that needs no nesting: many entries of one kernel."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.bin", bytes(MIB))
        first = file.filelist[0]
        for n in range(60):
            file.filelist.append(
                info(
                    f"b{n}.bin",
                    **{
                        name: getattr(first, name)
                        for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type")
                    },
                )
            )
    refused(target.getvalue(), "'b0.bin': is not at the offset that the archive states, or overlaps another entry")

    data = made(("a.py", b"1" * 100), ("b.py", b"2"), method=zipfile.ZIP_STORED)
    lying = bytearray(data)
    struct.pack_into("<L", lying, lying.index(b"PK\x01\x02") + 20, 140)
    refused(bytes(lying), "'a.py': overlaps another entry")


# -- any bytes -------------------------------------------------------------------------------------------------------


def only_wrong_comes_out(data: bytes) -> None:
    try:
        files = unpack(data)
    except Wrong:
        return
    assert files
    assert all(check_name(name) == name for name in files)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(data):
    only_wrong_comes_out(data)
    only_wrong_comes_out(b"PK\x03\x04" + data + b"PK\x05\x06" + bytes(18))


@settings(max_examples=400)
@given(st.data())
def test_any_damage_is_refused_or_harmless(data):
    whole = bytearray(made(*FILES.items(), ("b/c.py", b"x = 1")))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    only_wrong_comes_out(bytes(whole[: len(whole) - cut]))


def test_every_byte_of_the_structure_may_be_anything():
    whole = made(("h.py", b"x"), ("b/c.py", b"y" * 30))
    for at in range(len(whole)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, whole[at] ^ 1):
            only_wrong_comes_out(whole[:at] + bytes([value]) + whole[at + 1 :])


NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\:"), min_size=1, max_size=12
).filter(lambda name: name not in (".", "..") and not archive._is_left_out(unicodedata.normalize("NFC", name)))


@given(
    st.dictionaries(
        NAMES.map(lambda name: unicodedata.normalize("NFC", name)), st.binary(max_size=200), min_size=1, max_size=8
    )
)
def test_what_is_packed_is_unpacked_the_same(files):
    packed = pack(files)

    assert unpack(packed) == files
    shuffled = random.Random(1).sample(list(files.items()), len(files))
    assert pack(dict(shuffled)) == packed


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "job"
    write_files({**FILES, "__pycache__/x.pyc": b"", ".git/HEAD": b"", "a/.DS_Store": b""}, root)
    return root


def test_a_folder_is_packed_without_what_is_left_out(folder):
    assert read_folder(folder) == FILES
    assert unpack(pack(read_folder(folder))) == FILES
    os.utime(folder / "handler.py", (1, 1))
    assert pack(read_folder(folder)) == pack(FILES)


def test_a_file_is_packed_alone(folder):
    assert read_folder(folder / "handler.py") == {"handler.py": FILES["handler.py"]}


def test_what_cannot_be_packed_is_told(folder, tmp_path):
    with pytest.raises(Wrong, match="cannot be read: No such file or directory"):
        read_folder(tmp_path / "none")
    with pytest.raises(TooLargeError, match=r"'data/names\.txt': is over 50B"):
        read_folder(folder, ArchiveLimits(single=50))
    with pytest.raises(TooLargeError, match="the files are over 210B together"):
        read_folder(folder, ArchiveLimits(total=210))
    with pytest.raises(TooLargeError, match="there are more than 2 files"):
        read_folder(folder, ArchiveLimits(entries=2))
    os.mkfifo(folder / "pipe")
    with pytest.raises(Wrong, match="'pipe': is not a regular file"):
        read_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Wrong, match="there are no files"):
        read_folder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../x": b""}, "is outside of the folder"),
        ({"./x": b""}, "'./x': must be written as 'x'"),
        ({"a": b"", "a/b": b""}, "is both a file and a folder"),
        ({"a": b"12", "b": b"34"}, "over 3B together"),
        ({"a": b"", "b": b"", "c": b""}, "there are 3 files; the limit is 2"),
    ],
)
def test_what_would_be_refused_is_not_packed(files, message):
    with pytest.raises(Wrong, match=message):
        pack(files, ArchiveLimits(entries=2, total=3))


def test_files_are_written_below_a_folder(tmp_path):
    write_files(FILES, tmp_path)

    assert {
        path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in Path(tmp_path).rglob("*") if path.is_file()
    } == FILES
