"""Cluster: files of one runner are those of all: two stores over the object store of a real server."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from attrs import evolve

from actors.cluster.engine import StaleError, open_engine
from actors.cluster.files import Parts, SharedCollecting, SharedFiles, ids_of, part_finder
from actors.cluster.letters import Author, Letter, pack, unpack
from actors.files import Files, Viewer
from config.settings import MIB, FilesSettings
from protocol.errors import ErrorKind, RunnerError
from tests.records import make
from tests.support import PATIENCE

DAY = 86400.0
ANN = Viewer("ann", ("none",))


def id_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Node:
    """One runner as far as files are concerned."""

    def __init__(self, name: str, path: Path, engine, **settings) -> None:
        self.now = 1000.0 * DAY
        self.engine, self.author = engine, Author(name, f"boot-{name}", "1.0.0")
        self.existing: set[str] = set()
        self.records: dict[str, object] = {}
        limits = FilesSettings(**settings)
        self.files = Files(limits, path / name, self._existing, kept_seconds=30 * DAY, clock=lambda: self.now)
        retention = limits.file_retention_seconds
        self.shared = SharedFiles(engine, self.files, self.author, retention, clock=lambda: self.now)
        self.files.elsewhere = self.shared
        self.collecting = SharedCollecting(self.shared, 30 * DAY, lambda: True)
        self.parts = Parts(self.shared)
        self.shared.objects.part_of = part_finder(self._get, self.author)

    async def _existing(self, names):
        await trio.lowlevel.checkpoint()
        return self.existing & set(names)

    async def _get(self, name):
        await trio.lowlevel.checkpoint()
        return self.records.get(name)

    async def add(self, data: bytes, name="a.txt", **about):
        async with self.files.writing(name, "text/plain", **about) as writing:
            await writing.write(data)
            return await writing.finish()

    async def names(self, viewer=None) -> list[str]:
        return sorted(stored.name for stored in (await self.files.page(viewer, 10, None))[0])

    @property
    def contents(self) -> set[str]:
        folder = self.files.sharing._store.content.root
        return {path.name for path in folder.rglob("*") if path.is_file()}


async def until(condition) -> None:
    with trio.fail_after(PATIENCE):
        while not await condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def opened(*nodes):
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.files.run)
            await nursery.start(node.shared.run)
            await nursery.start(node.collecting.run)
        yield nodes
        nursery.cancel_scope.cancel()


@pytest.fixture
async def engines(nats):
    settings = nats.settings()
    async with open_engine(settings) as first, open_engine(evolve(settings, node="two")) as second:
        for engine, name in ((first, "one"), (second, "two")):
            await engine.publish(engine.names.presence(name), b"here")
        yield first, second


@pytest.fixture
async def two(engines, tmp_path):
    nodes = Node("one", tmp_path, engines[0]), Node("two", tmp_path, engines[1])
    async with opened(*nodes):
        yield nodes


async def test_an_upload_is_at_hand_for_others_when_it_is_answered(two):
    one, two = two
    data = os.urandom(700_000)
    stored = await one.add(data, "big.bin", subject="ann")

    found = await two.files.find(stored.id, ANN)  # before the note may have arrived
    assert (found.path.read_bytes(), found.name, found.type) == (data, "big.bin", "text/plain")
    assert await two.files.find(stored.id, Viewer("bob", ("none",))) is None
    assert await two.names(ANN) == ["big.bin"]
    with pytest.raises(RunnerError, match="there is no file"):
        await two.files.use("e1", "m", [id_of(b"nowhere")])


async def test_many_callers_bring_a_file_once(two):
    one, two = two
    stored = await one.add(os.urandom(300_000), subject="ann")
    found = []

    async def find():
        found.append(await two.files.find(stored.id))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(find)

    assert len({each.path for each in found}) == 1
    assert two.contents == {stored.id.removeprefix("sha256:")}


async def test_files_of_an_execution_are_at_hand_before_its_state_is(two):
    one, two = two
    one.shared._wanted = trio.Event()  # the look in the background comes later
    made = await one.add(b"made", execution="e1", module="m")

    assert await one.shared.settle("e1") == (made.id,)
    await two.shared.note_uses("e1", "m", [made.id])

    assert (await two.files.use("e2", "n", [made.id]))[made.id].path.read_bytes() == b"made"
    assert await two.names(Viewer("x", ("m",))) == ["a.txt"]


async def test_files_that_were_made_without_the_engine_are_offered_later(engines, tmp_path):
    alone = Node("one", tmp_path, engines[0])
    alone.files.elsewhere = None
    async with trio.open_nursery() as nursery:
        await nursery.start(alone.files.run)
        stored = await alone.add(b"before the join", subject="ann")
        nursery.cancel_scope.cancel()

    async with opened(Node("one", tmp_path, engines[0]), Node("two", tmp_path, engines[1])) as (_, two):

        async def there():
            return await two.names() == ["a.txt"]

        await until(there)
        assert (await two.files.find(stored.id)).path.read_bytes() == b"before the join"
        assert await two.names(ANN) == ["a.txt"]


async def test_an_upload_without_the_engine_is_answered_and_offered_when_it_is_back(nats, two):
    one, two = two
    there = await two.add(b"of two", "b.txt", subject="ann")
    await one.shared.store.refresh(there.id)
    try:
        await trio.to_thread.run_sync(nats.all[0].kill)
        with trio.fail_after(PATIENCE):
            while one.engine.connected:
                await trio.sleep(0.01)
        stored = await one.add(b"without", subject="ann")
        assert (await one.files.find(stored.id)).path.read_bytes() == b"without"
        for name in (there.id, id_of(b"unknown")):
            with pytest.raises(RunnerError) as refused:
                await one.files.find(name)
            assert refused.value.failure.kind is ErrorKind.UNAVAILABLE
        with pytest.raises(RunnerError, match="other runners cannot be reached"):
            await one.files.remove(there.id)
    finally:
        await trio.to_thread.run_sync(nats.heal)

    async def offered():
        return await two.names() == ["a.txt", "b.txt"]

    await until(offered)
    assert (await two.files.find(stored.id)).path.read_bytes() == b"without"


async def test_a_damaged_object_is_healed_by_a_runner_that_has_the_content(two):
    one, two = two
    stored = await one.add(b"whole", subject="ann")
    await one.engine.put_object(stored.id, b"damaged")

    assert (await two.files.find(stored.id)).path.read_bytes() == b"whole"
    assert await one.engine.get_object(stored.id) == b"whole"


async def test_an_object_that_no_runner_has_whole_is_told(two):
    one, two = two
    stored = await one.add(b"whole", subject="ann")
    await one.engine.put_object(stored.id, b"damaged")
    stored.path.write_bytes(b"x")

    with pytest.raises(RunnerError) as refused:
        await two.files.find(stored.id)
    assert refused.value.failure.kind is ErrorKind.UNAVAILABLE
    assert "no runner that answers has it" in refused.value.failure.message
    assert two.contents == set()


async def test_a_file_damaged_here_comes_from_the_object_store(two):
    one, two = two
    stored = await one.add(b"whole", subject="ann")
    stored.path.write_bytes(b"dmged")

    assert (await one.files.find(stored.id)).path.read_bytes() == b"whole"


async def test_deleting_anywhere_deletes_everywhere(two):
    one, two = two
    stored = await one.add(b"x", subject="ann")
    await two.files.find(stored.id)
    assert await two.files.remove(stored.id)

    async def gone():
        return not one.contents and not two.contents

    await until(gone)
    assert await one.files.find(stored.id) is None
    assert not await one.engine.object_exists(stored.id)
    await one.add(b"x", "again.txt", subject="bob")
    assert (await two.files.find(stored.id)).name == "again.txt"


async def test_an_upload_is_withdrawn_while_another_caller_keeps_the_file(two):
    one, two = two
    stored = await one.add(b"x", subject="ann")
    await two.add(b"x", "b.txt", subject="bob")

    assert await one.files.remove(stored.id, ANN)
    await one.shared.store.refresh(stored.id)
    await two.shared.store.refresh(stored.id)
    assert (await one.names(ANN), await one.names(Viewer("bob", ("none",)))) == ([], ["b.txt"])
    assert await two.names(ANN) == []


async def test_a_collection_deletes_what_no_runner_uses(two):
    one, two = two
    unused, used = await one.add(b"unused", subject="ann"), await one.add(b"used", execution="e1", module="m")
    kept = await one.add(b"kept by two", subject="ann")
    await one.shared.settle("e1")
    await two.shared.note_uses("e2", "m", [kept.id])
    one.existing, two.existing = {"e1"}, {"e2"}
    assert await one.collecting.collect() == 0, "all of it is new"
    one.now += 2 * DAY

    assert await one.collecting.collect() == 1
    assert not await one.engine.object_exists(unused.id)
    assert await one.engine.object_exists(used.id)
    assert await one.engine.object_exists(kept.id)


async def test_a_collection_removes_what_killed_runners_left_in_the_object_store(two):
    one, _ = two
    kept = await one.add(b"kept", execution="e1", module="m")
    await one.shared.settle("e1")
    one.existing = {"e1"}
    await one.engine.put_object(id_of(b"no note"), b"no note")
    bucket = one.engine.names.files
    await one.engine.ask(f"$O.{bucket}.C.unfinished", b"half of a content")

    one.now = time.time()
    await one.collecting.collect()
    assert await one.engine.object_exists(id_of(b"no note")), "it may be about to get a note"
    one.now += 2 * DAY
    await one.collecting.collect()

    assert not await one.engine.object_exists(id_of(b"no note"))
    assert await one.engine.object_exists(kept.id)
    question = msgspec.json.encode({"subjects_filter": f"$O.{bucket}.C.*"})
    info = msgspec.json.decode(await one.engine.ask(f"$JS.API.STREAM.INFO.OBJ_{bucket}", question))
    assert len(info["state"]["subjects"]) == 1


async def test_a_use_at_the_same_time_wins_over_a_collection(two):
    one, two = two
    stored = await one.add(b"x", subject="ann")
    await two.shared.store.refresh(stored.id)
    one.now += 2 * DAY
    two.now += 2 * DAY
    (looked_at,), _ = await two.files.sharing.unused("", two.now - DAY, 30 * DAY)
    await one.files.use("e1", "m", [stored.id])
    await one.shared.settle("e1")

    with pytest.raises(StaleError):
        await two.shared.store.end(looked_at)
    assert (await two.files.find(stored.id)).path.read_bytes() == b"x"


async def test_large_parts_of_letters_travel_beside_them_and_are_healed_from_records(two):
    one, two = two
    execution = make(input=b'"%b"' % (b"x" * 600_000), result=b'"%b"' % (b"y" * 300_000))
    packed = pack(Letter(one.author, execution, files=(id_of(b"f"),)))
    await one.parts.store(packed, execution.id, "m")
    letter = unpack(packed.data)

    assert (await two.parts.load(letter)).execution == execution
    assert len(ids_of(letter)) == 3
    assert await two.names() == []

    name = ids_of(letter)[1]
    await one.engine.delete_object(name)
    with pytest.raises(RunnerError, match="no runner that answers has it"):
        await two.parts.load(letter)
    one.records[execution.id] = execution
    assert (await two.parts.load(letter)).execution == execution


async def test_a_file_larger_than_the_limit_of_this_runner_is_refused(engines, tmp_path):
    nodes = Node("one", tmp_path, engines[0]), Node("two", tmp_path, engines[1], max_file_bytes=MIB)
    async with opened(*nodes) as (one, two):
        stored = await one.add(bytes(MIB + 1), subject="ann")
        with pytest.raises(RunnerError) as refused:
            await two.files.find(stored.id)
    assert refused.value.failure.kind is ErrorKind.TOO_LARGE
