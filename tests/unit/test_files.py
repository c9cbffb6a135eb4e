"""Unit: the store of files: contents by digest, uses, quota, retention, damage, and ids in inputs."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections import namedtuple
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from actors.files import Files, Viewer, index, references, usage
from actors.files import content as content_module
from actors.files.verifying import Verifying
from config.settings import MIB, FilesSettings
from protocol.errors import ErrorKind, RunnerError

DAY = 86400.0
ANN = Viewer("ann", ("a-*",))
BOB = Viewer("bob", ("b-*",))


def id_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Rig:
    """A store with its surroundings."""

    def __init__(self, path: Path, **settings) -> None:
        self.path = path
        self.now = 1000.0 * DAY
        self.executions: set[str] = set()
        self.files = Files(
            FilesSettings(**settings), path, self.existing, kept_seconds=30 * DAY, clock=lambda: self.now
        )

    async def existing(self, names):
        await trio.lowlevel.checkpoint()
        return self.executions & set(names)

    async def add(self, data: bytes, name="a.txt", media_type="text/plain", expected=None, **about):
        async with self.files.writing(name, media_type, **about) as writing:
            await writing.write(data)
            return await writing.finish(expected)

    def contents(self) -> set[str]:
        return {path.name for path in (self.path / "files").rglob("*") if path.is_file()}


@asynccontextmanager
async def opened(rig):
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.files.run)
        yield rig
        nursery.cancel_scope.cancel()


@pytest.fixture
async def rig(tmp_path):
    async with opened(Rig(tmp_path, max_file_bytes=2 * MIB, max_files_bytes=4 * MIB)) as found:
        yield found


# -- writing and finding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 256 * 1024, 256 * 1024 + 1, MIB + 17])
async def test_a_file_is_found_by_its_digest(rig, size):
    data = os.urandom(size)

    stored = await rig.add(data, "x.jpg", "image/jpeg")

    assert await rig.files.find(stored.id) == stored
    assert stored.path.read_bytes() == data
    assert stored.described == {"id": id_of(data), "name": "x.jpg", "type": "image/jpeg", "size": size}
    assert stored.path.stat().st_mode & 0o077 == 0


async def test_pieces_of_any_size_make_one_content(rig):
    pieces = [os.urandom(size) for size in (1, 70_000, 200_000, 3, 600_000, 5)]
    async with rig.files.writing("", "") as writing:
        for piece in pieces:
            await writing.write(piece)
        stored = await writing.finish(id_of(b"".join(pieces)))

    assert stored.path.read_bytes() == b"".join(pieces)
    assert (stored.name, stored.type) == ("file", "application/octet-stream")


async def test_the_same_content_is_stored_once_and_has_the_name_of_its_latest_upload(rig):
    await rig.add(b"same", "a.txt")
    await rig.add(b"same", "b.csv", "text/csv")

    found = await rig.files.find(id_of(b"same"))

    assert (found.name, found.type) == ("b.csv", "text/csv")
    assert rig.files.statistics().files == 1
    assert rig.files.statistics().bytes == 4


async def test_nothing_remains_of_a_file_that_is_not_finished(rig):
    async with rig.files.writing("a", "") as writing:
        await writing.write(b"x" * MIB)
        assert rig.files.statistics().writing_bytes == MIB

    assert rig.contents() == set()
    assert rig.files.statistics() == rig.files.statistics().__class__(limit_bytes=4 * MIB)


async def test_nothing_remains_of_a_file_whose_writer_is_cancelled(rig):
    with trio.CancelScope() as scope:
        async with rig.files.writing("a", "") as writing:
            await writing.write(b"x" * MIB)
            scope.cancel()
            await writing.write(b"x" * MIB)

    assert scope.cancelled_caught
    assert rig.contents() == set()


async def test_another_digest_is_refused_and_nothing_is_stored(rig):
    with pytest.raises(RunnerError, match="it was damaged on its way") as refused:
        await rig.add(b"data", expected=id_of(b"other"))

    assert refused.value.failure.kind is ErrorKind.BAD_INPUT
    assert refused.value.failure.field == "digest"
    assert rig.contents() == set()


@pytest.mark.parametrize("name", ["a/b", "..", "a\\b", "a\nb", "a\0b", "x" * 256])
async def test_a_name_is_no_path(rig, name):
    with pytest.raises(RunnerError) as refused:
        await rig.add(b"data", name)

    assert refused.value.failure.field == "name"


@pytest.mark.parametrize("media_type", ["text", "text/plain\r\nx: y", "a/" + "b" * 300, "text/é"])
async def test_a_type_is_a_media_type(rig, media_type):
    with pytest.raises(RunnerError) as refused:
        await rig.add(b"data", "a", media_type)

    assert refused.value.failure.field == "content-type"


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_a_file_over_the_limit_is_refused_as_soon_as_it_is(rig):
    async with rig.files.writing("a", "") as writing:
        await writing.write(b"x" * (2 * MIB))
        with pytest.raises(RunnerError, match="the limit is `max_file`") as refused:
            await writing.write(b"x")

    assert refused.value.failure.kind is ErrorKind.TOO_LARGE
    assert rig.contents() == set()


async def test_unfinished_files_count_for_the_quota_too(rig):
    await rig.add(b"1" * (2 * MIB))
    async with rig.files.writing("a", "") as first, rig.files.writing("b", "") as second:
        await first.write(b"2" * MIB)
        with pytest.raises(RunnerError, match="the limit is `max_files_bytes`") as refused:
            await second.write(b"3" * (MIB + 1))
        await first.finish()

    assert refused.value.failure.kind is ErrorKind.OUT_OF_STORAGE
    assert rig.files.statistics().refused == 1
    assert rig.files.statistics().bytes == 3 * MIB


async def test_the_last_bytes_of_the_disk_are_left_to_the_history(rig, monkeypatch):
    usage = namedtuple("usage", "free")  # noqa: PYI024  (as in the standard library)
    monkeypatch.setattr(content_module.shutil, "disk_usage", lambda _: usage(content_module.LEAST_FREE_BYTES + 10))

    await rig.add(b"x" * 10)
    with pytest.raises(RunnerError, match="left to the history") as refused:
        await rig.add(b"x" * 11)

    assert refused.value.failure.kind is ErrorKind.OUT_OF_STORAGE
    assert rig.contents() == {hashlib.sha256(b"x" * 10).hexdigest()}


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ErrorKind.OUT_OF_STORAGE), (errno.EIO, ErrorKind.UNAVAILABLE)]
)
async def test_a_disk_that_fails_refuses_the_file(rig, monkeypatch, number, kind):
    def broken(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(RunnerError) as refused:
        await rig.add(b"data")
    monkeypatch.undo()

    assert refused.value.failure.kind is kind
    assert rig.contents() == set()


# -- uses and retention ----------------------------------------------------------------------------------------------


async def test_a_used_file_stays_as_long_as_its_execution(rig):
    stored = await rig.add(b"data")
    rig.executions = {"e-1"}
    assert await rig.files.use("e-1", "a-1", {stored.id}) == {stored.id: stored}
    assert await rig.files.use("e-1", "a-1", {stored.id}) == {stored.id: stored}

    rig.now += 10 * DAY
    assert (await rig.files.collect()).files == 0
    rig.executions = set()
    assert (await rig.files.collect()) == (await rig.files.collect()).__class__(1, 4)

    assert await rig.files.find(stored.id) is None
    assert rig.contents() == set()
    assert rig.files.statistics().bytes == 0


async def test_an_unused_file_stays_for_its_retention(rig):
    stored = await rig.add(b"data")

    rig.now += DAY - 1
    await rig.files.collect()
    assert await rig.files.find(stored.id)
    rig.now += 2
    await rig.files.collect()

    assert await rig.files.find(stored.id) is None


async def test_a_new_use_counts_before_its_execution_is_known(rig):
    stored = await rig.add(b"data")
    await rig.files.collect()  # that of the start is over then
    rig.now += 2 * DAY
    await rig.files.use("e-1", "a-1", {stored.id})

    await rig.files.collect()

    assert await rig.files.find(stored.id)


async def test_a_file_of_a_result_is_used_by_its_execution(rig):
    rig.executions = {"e-1"}
    stored = await rig.add(b"result", execution="e-1", module="a-1")

    rig.now += 2 * DAY
    await rig.files.collect()

    assert await rig.files.find(stored.id, ANN)
    assert await rig.files.find(stored.id, BOB) is None


async def test_a_missing_file_is_named_and_none_is_kept(rig):
    stored = await rig.add(b"data")
    missing = id_of(b"missing")

    with pytest.raises(RunnerError, match=missing) as refused:
        await rig.files.use("e-1", "a-1", {stored.id, missing})

    assert refused.value.failure.kind is ErrorKind.BAD_INPUT
    rig.executions = {"e-1"}
    rig.now += 2 * DAY
    assert (await rig.files.collect()).files == 1


async def test_a_full_store_collects_soon(rig, autojump_clock):
    del autojump_clock
    await rig.add(b"1" * (2 * MIB))
    await rig.add(b"2" * (2 * MIB))
    await trio.sleep(60)  # the collection of the start is over

    rig.now += 2 * DAY
    with pytest.raises(RunnerError):
        await rig.add(b"3")
    while rig.files.statistics().files:
        await trio.sleep(1)

    await rig.add(b"3")


# -- viewers and deletion --------------------------------------------------------------------------------------------


async def test_a_limited_caller_sees_its_uploads_and_the_files_of_its_modules(rig):
    own = await rig.add(b"own", subject="ann")
    foreign = await rig.add(b"foreign", subject="bob")
    used = await rig.add(b"used", subject="bob")
    await rig.files.use("e-1", "a-1", {used.id})

    assert await rig.files.find(own.id, ANN)
    assert await rig.files.find(used.id, ANN)
    assert await rig.files.find(foreign.id, ANN) is None
    page, after = await rig.files.page(ANN, 10, None)
    assert ({file.id for file in page}, after) == ({own.id, used.id}, None)
    assert len((await rig.files.page(None, 10, None))[0]) == 3
    with pytest.raises(RunnerError, match=foreign.id):
        await rig.files.use("e-2", "a-1", {foreign.id}, ANN)


async def test_pages_come_newest_first_without_gaps(rig):
    added = []
    for number in range(7):
        rig.now += number % 2  # some have the same time
        added.append((await rig.add(b"%d" % number)).id)
    page, after = await rig.files.page(None, 3, None)
    found = [file.id for file in page]
    while after is not None:
        page, after = await rig.files.page(None, 3, after)
        found += [file.id for file in page]

    assert sorted(found) == sorted(added)
    assert found[0] in added[-2:]


async def test_a_page_of_a_limited_caller_looks_at_few_files_and_goes_on(rig, monkeypatch):
    monkeypatch.setattr(index, "LOOKED_AT", 4)
    own = []
    for number in range(20):
        rig.now += 1
        stored = await rig.add(b"%d" % number, subject="ann" if number in (0, 7) else "bob")
        own += [stored.id] if number in (0, 7) else []
    await rig.files.use("e-1", "b-1", {own[0]})
    await rig.files.use("e-2", "a-0", {own[0]})
    pages, after = 0, None
    found = []
    while after is not None or not pages:
        page, after = await rig.files.page(ANN, 3, after)
        pages, found = pages + 1, found + [file.id for file in page]

    assert found == own[::-1]
    assert pages > 3


async def test_a_collection_looks_at_all_files_in_steps(rig, monkeypatch):
    monkeypatch.setattr(index, "LOOKED_AT", 3)
    stored = [await rig.add(b"%d" % number) for number in range(10)]
    await rig.files.use("e-1", "m", {stored[4].id})
    rig.executions = {"e-1"}
    rig.now += 2 * DAY

    assert (await rig.files.collect()).files == 9
    assert {file.id for file in (await rig.files.page(None, 99, None))[0]} == {stored[4].id}


async def test_a_file_of_two_callers_is_deleted_when_both_have(rig):
    stored = await rig.add(b"shared", subject="ann")
    await rig.add(b"shared", subject="bob")

    assert await rig.files.remove(stored.id, ANN)
    assert await rig.files.find(stored.id, BOB)
    assert await rig.files.find(stored.id, ANN) is None
    assert not await rig.files.remove(stored.id, ANN)
    assert await rig.files.remove(stored.id, BOB)
    assert rig.contents() == set()


async def test_a_limited_caller_learns_no_execution_of_others(rig):
    stored = await rig.add(b"data", subject="ann")
    await rig.files.use("e-1", "b-1", {stored.id})

    with pytest.raises(RunnerError, match=r"^conflict: an execution uses the file") as refused:
        await rig.files.remove(stored.id, ANN)
    assert refused.value.failure.kind is ErrorKind.CONFLICT


async def test_a_used_file_is_not_deleted(rig):
    stored = await rig.add(b"data")
    await rig.files.use("e-1", "a-1", {stored.id})
    rig.executions = {"e-1"}

    for later in (0, DAY):
        rig.now += later
        with pytest.raises(RunnerError, match="e-1 uses the file") as refused:
            await rig.files.remove(stored.id)
        assert refused.value.failure.kind is ErrorKind.CONFLICT
    rig.executions = set()
    assert await rig.files.remove(stored.id)
    assert not await rig.files.remove(stored.id)


# -- damage and crashes ----------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
async def test_a_damaged_content_is_noticed_and_repaired_by_another_upload(rig, damage):
    stored = await rig.add(b"some data")
    damage(stored.path)

    for _ in range(2):
        with pytest.raises(RunnerError, match=f"{stored.id} is damaged") as refused:
            await rig.files.find(stored.id)
        assert refused.value.failure.kind is ErrorKind.UNAVAILABLE
    assert rig.files.statistics().damaged == (stored.id,)
    await rig.add(b"some data")

    assert await rig.files.find(stored.id)
    assert rig.files.statistics().damaged == ()


async def test_a_file_that_is_deleted_while_it_is_looked_for_is_not_damaged(rig, monkeypatch):
    stored = await rig.add(b"some data")

    async def slow(self, found, exists):
        await rig.files.remove(stored.id)
        return await check(self, found, exists)

    check = Verifying.check
    monkeypatch.setattr(Verifying, "check", slow)

    assert await rig.files.find(stored.id) is None
    assert rig.files.statistics().damaged == ()


async def test_damage_while_no_runner_ran_is_noticed_even_if_no_time_shows_it(tmp_path):
    async with opened(Rig(tmp_path)) as rig:
        stored = await rig.add(b"some data")
    before = stored.path.stat()
    flip(stored.path)
    os.utime(stored.path, ns=(before.st_atime_ns, before.st_mtime_ns))

    async with opened(Rig(tmp_path)) as rig:
        with pytest.raises(RunnerError, match="is damaged"):
            await rig.files.find(stored.id)


def scramble(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


@pytest.mark.parametrize("damage", [scramble, Path.unlink])
async def test_a_lost_database_is_made_again_and_no_used_file_is_deleted(tmp_path, damage):
    async with opened(Rig(tmp_path)) as rig:
        stored = await rig.add(b"some data")
        await rig.files.use("e-1", "a-1", {stored.id})
    os.utime(stored.path, (rig.now, rig.now))
    damage(tmp_path / "files.db")

    async with opened(Rig(tmp_path)) as rig:
        assert rig.files.statistics().damaged == ("files.db",)
        rig.executions = {"e-1"}
        rig.now += 10 * DAY  # its use is not known any more, but may exist
        await rig.files.collect()
        assert await rig.files.find(stored.id)
    async with opened(Rig(tmp_path)) as rig:
        rig.now += 31 * DAY
        await rig.files.collect()
        assert await rig.files.find(stored.id) is None


async def test_a_database_that_is_damaged_while_it_is_open_is_mended(rig):
    stored = [await rig.add(b"%d" % number) for number in range(200)]
    with sqlite3.connect(rig.path / "files.db") as link:
        link.execute("pragma wal_checkpoint(truncate)")
    with (rig.path / "files.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)

    for each in stored:
        assert await rig.files.find(each.id)

    assert "files.db" in rig.files.statistics().damaged


async def test_what_a_killed_runner_left_is_removed_by_the_next(tmp_path):
    async with opened(Rig(tmp_path)) as rig:
        stored = await rig.add(b"data")
    (tmp_path / "files" / "unfinished" / "tmp123").write_bytes(b"half")
    stray = hashlib.sha256(b"stray").hexdigest()
    (tmp_path / "files" / stray[:2]).mkdir(exist_ok=True)
    (tmp_path / "files" / stray[:2] / stray).write_bytes(b"stray")

    async with opened(Rig(tmp_path)) as rig:
        await rig.files.collect()

        assert rig.contents() == {stored.path.name}


async def test_the_usage_is_read_beside_a_running_store(tmp_path):
    assert usage(tmp_path) == (0, 0)
    async with opened(Rig(tmp_path)) as rig:
        await rig.add(b"data")
        await rig.add(b"more data")

        assert usage(tmp_path) == (2, 13)


async def test_a_store_that_is_not_open_refuses(tmp_path):
    rig = Rig(tmp_path)

    for call in (rig.add(b""), rig.files.find(id_of(b"")), rig.files.collect()):
        with pytest.raises(RunnerError, match="not open") as refused:
            await call
        assert refused.value.failure.kind is ErrorKind.UNAVAILABLE


# -- ids in inputs ---------------------------------------------------------------------------------------------------

A, B = id_of(b"a"), id_of(b"b")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"null", set()),
        (b'{"$file": {"id": "%s"}}' % A.encode(), {A}),
        (b'{ "$file" : {"size":1,"name":"}{\\"","id":"%s"} }' % A.encode(), {A}),
        (b'[{"a":{"$file":{"id":"%s"}}},{"$file":{"id":"%s"}}]' % (A.encode(), B.encode()), {A, B}),
        (b'"\\"$file\\": {"', set()),
        (b'["$file"]', set()),
        (b'{"a": "$file"}', set()),
        (b'{"$file": 5}', set()),
        (b'{"$file": {"id": "%s"}, "more": 1}' % A.encode(), set()),
        (b'{"more": 1, "$file": {"id": "%s"}}' % A.encode(), set()),
        (b'["' + b" " * (4 * MIB - 6) + b'",{"$file":{"id":"%s"}}]' % A.encode(), {A}),
        (b'{"$file": {"id": "%s", "x": "%s"}}' % (A.encode(), b"x" * 5000), set()),
    ],
)
def test_ids_are_those_of_objects_with_exactly_the_key(data, found):
    assert references(data) == found


@pytest.mark.parametrize("value", [b'{"id": "sha256:abc"}', b"{}", b'{"id": 5}', b'{"id": "%s"}' % A.upper().encode()])
def test_a_file_without_an_id_is_refused(value):
    with pytest.raises(RunnerError) as refused:
        references(b'{"$file": %s}' % value)

    assert refused.value.failure.field == "$file.id"


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b",".join(b'{"$file":{"id":"sha256:%064d"}}' % number for number in range(1001)) + b"]",
        b'"$file",' * 20_000,
    ],
)
def test_too_many_files_are_refused(data):
    with pytest.raises(RunnerError, match="more than 1000 files"):
        references(data)
