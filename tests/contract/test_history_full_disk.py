"""Contract: a full disk refuses executions before they begin, never after; what began ends in the record."""

import subprocess

import pytest
import trio
from msgspec.structs import replace
from structlog.testing import capture_logs

from actors.history.queries import Query
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from tests.records import LARGE, crashed, make, running, stored

SIZE = 8 * 1024 * 1024


@pytest.fixture
def disk(tmp_path):
    """Mount a file system that is soon full."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(path)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk):
    """Take all the space of a disk; return the file that has it."""
    file = disk / "filler"
    with file.open("wb", buffering=0) as target:
        try:
            while target.write(b"x" * 4096):
                pass
        except OSError:
            return file


async def refused(history):
    """Wait until nothing begins."""
    while history.statistics().refusing is None:
        await history._archive.look()


def ended(begun, **fields):
    return replace(begun, status=Status.SUCCEEDED, result=b"1", finished_at=begun.created_at + 1, exit_code=0, **fields)


@pytest.mark.parametrize("durability", ["process", "disk"])
async def test_a_full_disk_refuses_before_the_begin_and_records_the_end_of_what_began(disk, durability):
    plain, keyed = make(Status.RUNNING), make(Status.RUNNING, idempotency_key="key")
    async with running(disk / "data", durability=durability) as history:
        history.begin(plain)
        await history.submit(keyed)
        filler = fill(disk)
        await refused(history)
        for status, key in ((Status.RUNNING, "other"), (Status.QUEUED, None)):
            with pytest.raises(RunnerError, match="No space left on device") as caught:
                await history.submit(make(status, idempotency_key=key))
            assert (caught.value.failure.kind, caught.value.failure.retry_after) == (ErrorKind.UNAVAILABLE, 5)
        with pytest.raises(RunnerError, match="No space left on device"):
            history.begin(make(Status.RUNNING))
        for execution in (plain, keyed):
            await history.finish(ended(execution))
        copy = crashed(disk / "data", disk.parent / "copy")

        filler.unlink()
        while history.statistics().refusing is not None:
            await trio.sleep(0.01)
        history.begin(again := make(Status.RUNNING))
        await history.finish(ended(again))
        assert len((await history.list(Query(status=Status.SUCCEEDED))).items) == 3
    async with running(copy) as history:
        for execution in (plain, keyed):
            assert await history.get(execution.id) == ended(execution)


async def test_an_end_that_is_too_large_for_its_place_is_recorded_without_its_payload(disk):
    small, large = (make(Status.RUNNING, input=b'"i"') for _ in range(2))
    result = replace(ended(large), result=LARGE)
    async with running(disk / "data") as history:
        history.begin(small)
        history.begin(large)
        filler = fill(disk)
        with capture_logs() as logs:
            await history.finish(result)
            await history.finish(ended(small))
        assert [entry["execution"] for entry in logs if "without its payload" in entry["event"]] == [large.id]
        copy = crashed(disk / "data", disk.parent / "copy")
        filler.unlink()
        await history.list(Query())
        await stored(history)
        # Nothing is missing when the runner lives until there is space.
        assert await history.get(large.id) == result
    async with running(copy) as history:
        read = await history.get(large.id)
        assert (read.status, read.input, read.events) == (Status.SUCCEEDED, b'"i"', b"[]")
        assert read.result == b'{"$dropped":{"bytes":%d,"reason":"the disk was full"}}' % len(LARGE)
        assert await history.get(small.id) == ended(small)


async def test_each_of_many_that_began_has_a_place(disk):
    begun = [make(Status.RUNNING) for _ in range(150)]
    text = b'"' + b"x" * 14_000 + b'"'
    async with running(disk / "data") as history:
        for execution in begun:
            history.begin(execution)
        fill(disk)
        for execution in begun:
            await history.finish(replace(ended(execution), result=text))
        copy = crashed(disk / "data", disk.parent / "copy")
        (disk / "filler").unlink()
    async with running(copy) as history:
        assert {(await history.get(execution.id)).status for execution in begun} == {Status.SUCCEEDED}


async def test_places_are_given_back(disk):
    async with running(disk / "data") as history:
        for number in range(400):
            history.begin(execution := make(Status.RUNNING))
            if number % 2:
                history.release(execution.id)
            else:
                await history.finish(ended(execution))
        assert history._archive.journal._space.claimed == set()
