"""Unit: the store of files in a cluster: notes about files of others, what others lack, files that come from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.files import Shared, Viewer
from protocol.errors import ErrorKind, RunnerError
from tests.unit.test_files import ANN, BOB, DAY, Rig, id_of, opened

NOBODY = Viewer("nobody", ("none",))


class Others:
    """The other runners, as a set of contents."""

    def __init__(self, rig: Rig, **contents: bytes) -> None:
        self.rig = rig
        self.contents = {id_of(data): data for data in contents.values()}
        self.offered: list[tuple[str, str, str]] = []
        self.withdrawn: list[tuple[str, str]] = []
        rig.files.elsewhere = self

    async def bring(self, name, viewer):
        shared = await self.rig.files.sharing.find(name, viewer)
        if shared is None or name not in self.contents:
            return False

        async def load(path: Path) -> bool:
            path.write_bytes(self.contents[name])
            return True

        return await self.rig.files.sharing.receive(shared, load)

    async def offer(self, stored, subject, execution):
        self.offered.append((stored.id, subject, execution))

    async def withdraw(self, name, subject):
        self.withdrawn.append((name, subject))


@pytest.fixture
async def rig(tmp_path):
    async with opened(Rig(tmp_path)) as found:
        yield found


def note(data: bytes, sequence: int, **about) -> Shared:
    given = {"type": "text/plain", "name": "b.txt", "created_at": 10.0, "touched_at": 10.0, **about}
    return Shared(id_of(data), len(data), **given, sequence=sequence)


async def names(rig, viewer=None) -> list[str]:
    return [stored.name for stored in (await rig.files.page(viewer, 10, None))[0]]


async def test_a_file_of_others_is_listed_and_comes_at_its_first_use(rig):
    Others(rig, a=b"elsewhere")
    await rig.files.sharing.apply([note(b"elsewhere", 3)], 3)

    assert await names(rig) == ["b.txt"]
    assert rig.contents() == set()
    found = await rig.files.use("e1", "m", [id_of(b"elsewhere")])

    stored = found[id_of(b"elsewhere")]
    assert (stored.path.read_bytes(), stored.name, stored.type) == (b"elsewhere", "b.txt", "text/plain")
    assert await names(rig) == ["b.txt"]
    assert await rig.files.sharing.position(1) == 0, "of a stream that was not known"


async def test_a_file_that_no_runner_has_whole_is_not_there(rig):
    others = Others(rig)
    await rig.files.sharing.apply([note(b"whole", 1)])

    assert await rig.files.find(id_of(b"whole")) is None
    others.contents[id_of(b"whole")] = b"damaged"
    assert await rig.files.find(id_of(b"whole")) is None
    with pytest.raises(RunnerError, match="there is no file"):
        await rig.files.use("e1", "m", [id_of(b"whole")])
    assert rig.contents() == set()


async def test_a_limited_caller_sees_files_of_others_by_uploads_and_modules(rig):
    Others(rig, a=b"of ann", b=b"of b-1")
    await rig.files.sharing.apply([note(b"of ann", 1, name="ann", subjects=("ann",)), note(b"of b-1", 2, name="b")])
    await rig.files.sharing.note_uses([("e1", "b-1", [id_of(b"of b-1")])])

    assert (await names(rig, ANN), await names(rig, BOB), await names(rig, NOBODY)) == (["ann"], ["b"], [])
    assert await rig.files.find(id_of(b"of ann"), BOB) is None
    assert rig.contents() == set()
    assert (await rig.files.find(id_of(b"of ann"), ANN)).path.read_bytes() == b"of ann"


async def test_parts_of_records_are_no_files_of_callers(rig):
    await rig.files.sharing.apply([note(b"part", 1, part=True, subjects=("ann",))])

    assert await names(rig) == []
    assert await rig.files.sharing.find(id_of(b"part"), ANN) is None
    assert await rig.files.sharing.find(id_of(b"part")) is not None


async def test_notes_apply_once_and_in_order(rig):
    await rig.files.sharing.apply([note(b"x", 5, name="later"), note(b"x", 4, name="earlier")])
    await rig.files.sharing.apply([(id_of(b"x"), 3)])

    assert (await rig.files.sharing.find(id_of(b"x"))).name == "later"


async def test_what_the_others_lack_is_found_until_a_note_tells_that_they_have_it(rig):
    others = Others(rig)
    await rig.add(b"made", execution="e1", module="m")
    uploaded = await rig.add(b"uploaded", subject="ann")

    assert others.offered == [(id_of(b"made"), "", "e1"), (uploaded.id, "ann", "")]
    assert {each.id for each in (await rig.files.sharing.lacking(""))[0]} == {id_of(b"made"), uploaded.id}
    assert [each.id for each in await rig.files.sharing.lacking_of("e1")] == [id_of(b"made")]
    assert await rig.files.sharing.used("e1") == [id_of(b"made")]

    await rig.files.sharing.apply([note(b"made", 1)])
    assert [each.id for each in (await rig.files.sharing.lacking(""))[0]] == [uploaded.id]

    await rig.add(b"made", "again.txt")  # another name: the others have to know
    assert {each.id for each in (await rig.files.sharing.lacking(""))[0]} == {id_of(b"made"), uploaded.id}


async def test_a_file_that_others_delete_goes_here_too_unless_an_execution_uses_it(rig):
    await rig.add(b"unused")
    await rig.add(b"used", execution="e1", module="m")
    await rig.files.sharing.apply([note(b"unused", 1), note(b"used", 2)])
    await rig.files.sharing.apply([(id_of(b"unused"), 3), (id_of(b"used"), 4)])

    assert rig.contents() == {id_of(b"used").removeprefix("sha256:")}
    assert [each.id for each in (await rig.files.sharing.lacking(""))[0]] == [id_of(b"used")], "to be offered again"


async def test_an_upload_survives_the_late_note_that_the_file_was_deleted(rig):
    Others(rig)
    await rig.files.sharing.apply([note(b"x", 1)])
    await rig.add(b"x", subject="ann")
    await rig.files.sharing.apply([(id_of(b"x"), 2)])

    assert (await rig.files.find(id_of(b"x"))).path.read_bytes() == b"x"
    assert await rig.files.sharing.subjects(id_of(b"x")) == ("ann",)


async def test_a_damaged_content_is_brought_again(rig):
    Others(rig, a=b"whole")
    stored = await rig.add(b"whole")
    await rig.files.sharing.apply([note(b"whole", 1)])
    stored.path.write_bytes(b"dmged")

    assert (await rig.files.find(stored.id)).path.read_bytes() == b"whole"
    assert rig.files.statistics().damaged == ()


async def test_deleting_tells_the_others_first_and_a_use_anywhere_prevents_it(rig):
    others = Others(rig)
    await rig.files.sharing.apply([note(b"there", 1, subjects=("ann", "bob")), note(b"used", 2)])
    await rig.files.sharing.note_uses([("e1", "m", [id_of(b"used")])])
    rig.executions.add("e1")

    assert await rig.files.remove(id_of(b"there"), ANN)
    assert not await rig.files.remove(id_of(b"none"))
    with pytest.raises(RunnerError) as refused:
        await rig.files.remove(id_of(b"used"))

    assert refused.value.failure.kind is ErrorKind.CONFLICT
    assert others.withdrawn == [(id_of(b"there"), "ann")]


async def test_a_collection_here_leaves_what_is_known_about_the_file(rig):
    Others(rig, a=b"x")
    await rig.add(b"x", subject="ann")
    await rig.files.sharing.apply([note(b"x", 1, subjects=("ann",))])
    rig.now += 2 * DAY

    assert (await rig.files.collect()).files == 1
    assert rig.contents() == set()
    assert await names(rig, ANN) == ["b.txt"]
    assert (await rig.files.find(id_of(b"x"), ANN)).path.read_bytes() == b"x"


async def test_files_of_the_cluster_that_nothing_uses_are_found(rig):
    old, late = {"touched_at": rig.now - 2 * DAY}, {"touched_at": rig.now}
    await rig.files.sharing.apply([note(b"old", 1, **old), note(b"late", 2, **late), note(b"used", 3, **old)])
    await rig.files.sharing.note_uses([("e1", "m", [id_of(b"used")])])

    found, following = await rig.files.sharing.unused("", rig.now - DAY, 30 * DAY)

    assert ([each.id for each in found], following) == ([id_of(b"old")], None)
    assert await rig.files.sharing.used_ones([id_of(b"old"), id_of(b"used")]) == [id_of(b"used")]


async def test_all_files_are_offered_to_another_stream_of_notes(rig):
    await rig.add(b"x")
    assert await rig.files.sharing.position(1) == 0
    await rig.files.sharing.apply([note(b"x", 7)], 7)

    assert await rig.files.sharing.position(1) == 7
    assert (await rig.files.sharing.lacking(""))[0] == []
    assert await rig.files.sharing.position(2) == 0
    assert [each.id for each in (await rig.files.sharing.lacking(""))[0]] == [id_of(b"x")]
