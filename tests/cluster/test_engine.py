"""Cluster: the engine over one real server: publish, last, read, pull."""

from __future__ import annotations

import json

import pytest
import trio

from actors.cluster.engine import Consumer, Reader, RefusedError, StaleError, UnansweredError, open_engine, pulling
from protocol.errors import ErrorKind, RunnerError, error


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


async def test_a_reader_gives_what_there_is_and_what_comes(engine, monkeypatch):
    made, make = [], Reader._make

    async def counted(reader):
        made.append(reader)
        return await make(reader)

    monkeypatch.setattr(Reader, "_make", counted)
    for number in range(3):
        await engine.publish(engine.names.state(str(number)), str(number).encode())
    async with engine.read(engine.names.log, after=1) as reader:
        with trio.fail_after(10):
            got = list(await reader.batch())
            await engine.publish(engine.names.state("9"), b"9")
            while len(got) < 3:
                got += await reader.batch()

    assert [stored.data for stored in got] == [b"1", b"2", b"9"]
    assert len(made) == 1, "one server needs no choice of servers"


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


async def test_an_object_is_stored_in_parts_replaced_and_deleted(engine, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    content = bytes(range(256)) * 4096
    source.write_bytes(content)

    assert await engine.get_object("sha256:x") is None
    await engine.put_object("sha256:x", source)
    assert await engine.object_exists("sha256:x")
    assert await engine.get_object("sha256:x") == content
    assert await engine.get_object("sha256:x", target) == b""
    assert target.read_bytes() == content
    await engine.put_object("sha256:x", b"small")
    assert await engine.get_object("sha256:x") == b"small"
    await engine.delete_object("sha256:x")
    assert not await engine.object_exists("sha256:x")


async def test_a_runner_answers_once_many_times_and_with_its_failure(engine):
    async def once(data):
        if data == b"bad":
            raise error(ErrorKind.CONFLICT, "no", field="x")
        return data * 2

    async def many(data, say):
        for number in range(200):
            await say(data + str(number).encode())

    async with engine.serve("a.once", once), engine.serve_many("a.many", many):
        assert await engine.ask("a.once", b"x") == b"xx"
        with pytest.raises(RunnerError, match="no") as caught:
            await engine.ask("a.once", b"bad")
        assert caught.value.failure.field == "x"
        async with engine.ask_many("a.many", b"n") as answers:
            assert [answer async for answer in answers] == [b"n%d" % number for number in range(200)]
    with pytest.raises(UnansweredError):
        await engine.ask("a.once", b"x")
    async with engine.ask_many("a.many", b"x") as answers:
        with pytest.raises(UnansweredError):
            await anext(answers)


async def test_the_answering_side_is_cancelled_when_the_asking_side_leaves(engine):
    cancelled = trio.Event()

    async def many(data, say):
        try:
            await say(b"begun")
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with engine.serve_many("a.many", many):
        async with engine.ask_many("a.many", b"") as answers:
            assert await anext(answers) == b"begun"
        with trio.fail_after(10):
            await cancelled.wait()


async def test_a_repeated_publish_with_its_id_is_stored_once(engine):
    subject = engine.names.state("a")
    first = await engine.publish(subject, b"a", expect=0, message_id="a.1")

    assert await engine.publish(subject, b"a", expect=0, message_id="a.1") == first
    assert await engine.publish(subject, b"b", expect=first, message_id="a.2") > first
    with pytest.raises(StaleError):
        await engine.publish(subject, b"a", expect=0, message_id="a.1")


async def test_a_presence_ends_by_itself_and_leaves_a_mark(engine):
    subject = engine.names.presence("one")
    async with engine.read(engine.names.nodes, after=0) as reader:
        await engine.publish(subject, b"here", ttl=1)
        got = []
        with trio.fail_after(20):
            while len(got) < 2:
                got += await reader.batch()

    assert [(stored.subject, stored.gone) for stored in got] == [(subject, False), (subject, True)]


async def test_a_message_beyond_the_limit_of_the_servers_is_refused(engine):
    with pytest.raises(RefusedError, match="the servers take"):
        await engine.publish(engine.names.state("a"), bytes(engine.max_payload))


async def test_a_reader_of_some_subjects_gives_a_large_stream_in_order(engine):
    async with trio.open_nursery() as nursery:
        for number in range(1500):
            nursery.start_soon(engine.publish, engine.names.news("modules", str(number)), b"%d" % number)
            nursery.start_soon(engine.publish, engine.names.news("other", "x"), b"")
    got = []
    async with engine.read(engine.names.feed, after=0, subjects=[engine.names.news("modules", "*")]) as reader:
        while not got or reader.pending:
            got += await reader.batch()
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.05):
            await reader.batch()
        await engine.publish(engine.names.news("modules", "last"), b"last")
        assert [stored.data for stored in await reader.batch()] == [b"last"]

    assert len({stored.subject for stored in got}) == len(got) == 1500
    assert [stored.sequence for stored in got] == sorted(stored.sequence for stored in got)


async def test_the_smaller_priority_gets_the_jobs(engine):
    names, got = engine.names, {"warm": 0, "cold": 0}
    consumer = Consumer(names.queue, "g00", (names.job("g00", "*"),))

    async def pull(who, priority):
        async with engine.pull(consumer) as puller:
            while True:
                for job in await puller.fetch(1, priority=priority):
                    got[who] += 1
                    await job.ack()

    async def asked(number):
        info = f"$JS.API.CONSUMER.INFO.{consumer.stream}.{consumer.name}"
        while json.loads(await engine.ask(info, b"")).get("num_waiting") != number:
            await trio.sleep(0.005)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, "cold", 5)
            nursery.start_soon(pull, "warm", 0)
            for number in range(10):
                await asked(2)
                await engine.publish(names.job("g00", str(number)), b"")
                while sum(got.values()) <= number:
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()

    assert got == {"warm": 10, "cold": 0}


async def test_a_pinned_consumer_serves_one_runner_until_it_leaves(engine, monkeypatch):
    names, got = engine.names, {"one": [], "two": []}
    consumer = Consumer(names.queue, "m1", (names.job("m1", "*"),), policy="pinned_client")

    async def pull(who, scope):
        with scope:
            async with engine.pull(consumer) as puller:
                while True:
                    for job in await puller.fetch(1):
                        got[who].append(job.subject)
                        await job.ack()

    monkeypatch.setattr(pulling, "PINNED_SECONDS", 1)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            scopes = {who: trio.CancelScope() for who in got}
            for who, scope in scopes.items():
                nursery.start_soon(pull, who, scope)
            for number in range(6):
                await engine.publish(names.job("m1", str(number)), b"")
                while sum(map(len, got.values())) <= number:
                    await trio.sleep(0.005)
            first = max(got, key=lambda who: len(got[who]))
            other = "two" if first == "one" else "one"
            assert [len(got[first]), len(got[other])] == [6, 0]
            scopes[first].cancel()
            await engine.publish(names.job("m1", "last"), b"")
            while not got[other]:
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()


async def test_a_runner_keeps_a_pinned_consumer_while_it_has_no_place(engine, monkeypatch):
    monkeypatch.setattr(pulling, "PINNED_SECONDS", 3)
    names, got = engine.names, []
    consumer = Consumer(names.queue, "m1", (names.job("m1", "*"),), policy="pinned_client")

    async def other():
        async with engine.pull(consumer) as puller:
            got.extend(await puller.fetch(1, seconds=60))

    async with engine.pull(consumer) as puller:
        await engine.publish(names.job("m1", "0"), b"")
        assert len(await puller.fetch(1)) == 1
        await engine.publish(names.job("m1", "1"), b"")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                began = trio.current_time()
                while trio.current_time() < began + 1.5 * pulling.PINNED_SECONDS:
                    assert await puller.keep()
                    await trio.sleep(0.1 * pulling.PINNED_SECONDS)
                assert not got
