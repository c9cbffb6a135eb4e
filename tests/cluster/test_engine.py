"""Cluster: the engine over one real server: publish, last, read, pull."""

from __future__ import annotations

import pytest
import trio

from actors.cluster.engine import Consumer, StaleError, open_engine


@pytest.fixture
async def engine(nats):
    async with open_engine(nats.settings()) as engine:
        yield engine


async def test_publish_returns_the_sequence_and_last_finds_it(engine):
    subject = engine.names.state("a")

    first = await engine.publish(subject, b"one", expect=0)
    second = await engine.publish(subject, b"two", expect=first, headers={"Kind": "x"})
    found = await engine.last(subject)

    assert second > first
    assert (found.subject, found.data, found.sequence, dict(found.headers)["Kind"]) == (subject, b"two", second, "x")
    assert await engine.last(engine.names.state("none")) is None
    assert (await engine.last(subject, fresh=True)).data == b"two"


async def test_a_stale_publish_is_refused(engine):
    subject = engine.names.state("a")
    first = await engine.publish(subject, b"one", expect=0)

    with pytest.raises(StaleError):
        await engine.publish(subject, b"two", expect=0)
    assert (await engine.last(subject)).sequence == first


async def test_a_reader_gives_what_there_is_and_what_comes(engine):
    for number in range(3):
        await engine.publish(engine.names.state(str(number)), str(number).encode())
    async with engine.read(engine.names.log, after=1) as reader:
        with trio.fail_after(10):
            got = list(await reader.batch())
            await engine.publish(engine.names.state("9"), b"9")
            while len(got) < 3:
                got += await reader.batch()

    assert [stored.data for stored in got] == [b"1", b"2", b"9"]


async def test_jobs_are_pulled_up_to_the_count_and_given_back_on_cancellation(engine):
    names = engine.names
    consumer = Consumer(names.queue, "g00", (names.job("g00", "*"),))
    async with engine.pull(consumer) as puller:
        assert await puller.fetch(3, seconds=0.2) == ()
        for number in range(5):
            await engine.publish(names.job("g00", str(number)), str(number).encode())
        jobs = list(await puller.fetch(3))
        assert [job.data for job in jobs] == [b"0", b"1", b"2"]
        await jobs[0].ack()
        await jobs[1].nak()
        again = list(await puller.fetch(3))
        while len(again) < 3:
            again += await puller.fetch(3 - len(again))
        assert sorted(job.data for job in again) == [b"1", b"3", b"4"]
        assert [job.delivered for job in again if job.data == b"1"] == [2]
