"""Cluster: the engine over servers that die, stop and come back: nothing acknowledged is lost, every wait ends."""

from __future__ import annotations

import gc
import json
import socket
import threading

import pytest
import trio
import trio.testing

from actors.cluster.engine import AwayError, Consumer, StaleError, open_engine
from actors.cluster.engine.connection import Connection
from actors.cluster.engine.link import Access

pytestmark = pytest.mark.timeout(180)


async def offer(engine, subject, data, seconds=2):
    """Publish until it is stored, as an outbox does; returns whether this call knows to have stored it."""
    asked = False
    while True:
        try:
            await engine.publish(subject, data, expect=0, message_id=subject, timeout=seconds)
        except AwayError:
            asked = True
            await trio.sleep(0.1)
        except StaleError:
            assert asked, "no other task publishes this subject"
            return
        else:
            return


async def test_a_killed_leader_with_publishes_in_flight_loses_and_doubles_none(servers):
    async with open_engine(servers.settings()) as engine:
        subjects = [engine.names.state(f"{number}") for number in range(400)]
        left = iter(subjects)
        done = 0

        async def work():
            nonlocal done
            for subject in left:
                await offer(engine, subject, subject.encode())
                done += 1
                if done == 100:
                    leader = await trio.to_thread.run_sync(servers.leader, engine.names.log)
                    leader.kill()
                    leader.start()

        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(work)
        got = []
        async with engine.read(engine.names.log, after=0) as reader:
            while len(got) < len(subjects):
                got += await reader.batch()
            with trio.move_on_after(0.5):
                got += await reader.batch()

    assert sorted(stored.subject for stored in got) == sorted(subjects)
    assert all(stored.data == stored.subject.encode() for stored in got)
    sequences = [stored.sequence for stored in got]
    assert sequences == sorted(set(sequences))


async def test_a_read_continues_in_order_over_restarts_of_its_server_and_of_the_leader(servers):
    async with open_engine(servers.settings()) as engine, trio.open_nursery() as nursery:
        got = []

        async def read():
            async with engine.read(engine.names.log, after=0) as reader:
                while len(got) < 120:
                    got.extend(await reader.batch())

        nursery.start_soon(read)
        for number in range(120):
            await offer(engine, engine.names.state(str(number)), b"%d" % number)
            if number == 30:
                next(each for each in servers.all if each.url == engine.server).restart()
            if number == 80:
                (await trio.to_thread.run_sync(servers.leader, engine.names.log)).restart()
    assert [stored.data for stored in got] == [b"%d" % number for number in range(120)]


async def waiting(engine, consumer, number):
    """Wait until a consumer has this number of questions."""
    while True:
        info = json.loads(await engine.ask(f"$JS.API.CONSUMER.INFO.{consumer.stream}.{consumer.name}", b""))
        if info["num_waiting"] == number:
            return
        await trio.sleep(0.01)


async def test_a_pull_that_waits_gets_the_job_after_the_leader_was_killed(servers):
    async with open_engine(servers.settings()) as engine:
        names = engine.names
        consumer = Consumer(names.queue, "g00", (names.job("g00", "*"),))
        async with engine.pull(consumer) as puller:
            got = []

            async def pull():
                got.extend(await puller.fetch(1, seconds=90))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pull)
                await waiting(engine, consumer, 1)
                leader = await trio.to_thread.run_sync(servers.leader, names.queue)
                leader.restart()
                await offer(engine, names.job("g00", "a"), b"a")
            assert [job.data for job in got] == [b"a"]
            await got[0].ack()


async def test_a_cancelled_pull_is_forgotten_and_its_job_given_back(nats):
    """At whichever moment it is cancelled: the next pull gets the job long before the ack wait."""
    async with open_engine(nats.settings()) as engine:
        names = engine.names
        for number in range(12):
            lane = f"g{number}"
            consumer = Consumer(names.queue, lane, (names.job(lane, "*"),), ack_wait_seconds=600)
            async with engine.pull(consumer) as puller:
                got = await cancelled_pull(engine, puller, consumer, steps=3 * number)
                with trio.fail_after(20):
                    job = (got or await puller.fetch(3, seconds=60))[0]
                assert job.data == b"x"


async def cancelled_pull(engine, puller, consumer, *, steps):
    """Pull a job that is published meanwhile, and cancel that after some steps of the loop; returns what it got."""
    got = []

    async def pull():
        got.extend(await puller.fetch(3, seconds=60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull)
        await waiting(engine, consumer, 1)
        engine.say(consumer.subjects[0].replace("*", "a"), b"x")
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await waiting(engine, consumer, 0)
    return got


async def test_all_servers_are_killed_and_started_and_nothing_acknowledged_is_lost(servers):
    async with open_engine(servers.settings()) as engine:
        changes = []
        engine.changed.add(lambda: changes.append(engine.connected))
        first = await engine.publish(engine.names.state("a"), b"a", expect=0)
        async with engine.read(engine.names.log, after=0) as reader:
            assert [stored.data for stored in await reader.batch()] == [b"a"]
            for server in servers.all:
                server.kill()
            with pytest.raises(AwayError):
                await engine.publish(engine.names.state("a"), b"lost")
            while engine.connected:
                await trio.sleep(0.01)
            with pytest.raises(AwayError):
                await engine.last(engine.names.state("a"))
            for server in servers.all:
                server.start()
            await engine.wait_connected()
            await offer(engine, engine.names.state("b"), b"b")
            assert [stored.data for stored in await reader.batch()] == [b"b"]
        assert (await engine.last(engine.names.state("a"))).sequence == first
        assert changes == [False, True] * (len(changes) // 2)  # more often where another server still ran


async def test_a_stopped_server_is_left_even_with_much_on_the_way(servers):
    async with open_engine(servers.settings()) as engine:
        server = next(each for each in servers.all if each.url == engine.server)
        server.stop()
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(offer, engine, engine.names.state(str(number)), bytes(900_000), 30)
        assert engine.server != server.url
        server.cont()


async def test_the_end_fails_what_is_asked_and_leaves_no_thread(nats):
    settings = nats.settings()
    before = threading.active_count()

    async def ask():
        with pytest.raises(AwayError):
            await engine.ask("a.never", b"", timeout=60)

    async def never(data):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery, open_engine(settings) as engine, engine.serve("a.never", never):
        for _ in range(10):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
    assert threading.active_count() <= before
    gc.collect()


async def test_the_end_comes_soon_with_a_stopped_server_too(nats):
    try:
        async with open_engine(nats.settings()) as engine:
            nats.all[0].stop()
            for _ in range(20):
                engine.say("a.b", bytes(500_000))
        assert "cluster link" not in [thread.name for thread in threading.enumerate()]
        gc.collect()  # tells of a socket that was left open
    finally:
        nats.heal()


async def test_messages_that_come_faster_than_they_are_handled_are_dropped_and_counted(nats):
    """Those of a subject that runners serve; questions and pulls bring as much as was asked for."""
    settings = nats.settings()
    connection = Connection(Access(settings.servers, "slow"), print)
    connection.start()
    try:
        handled = []
        subscription = connection.subscribe("a.flood", handled.append, limit=100)
        await connection.wait_connected()
        async with open_engine(settings) as engine:
            connection.post("$JS.API.INFO", b"")  # after the subscription, which the server then has
            await engine.ask("$JS.API.INFO", b"")
            flood(settings.servers[0], 1000)
            while subscription.received + subscription.dropped < 1000:
                pass  # this loop does nothing else, like one that waits for the disk
            assert handled == []
        with trio.fail_after(10):
            while len(handled) < 100:
                await trio.sleep(0.001)
        assert (len(handled), subscription.dropped) == (100, 900)
    finally:
        await connection.close()


def flood(url, count):
    """Send messages by a connection of its own, and wait until the server has them."""
    host, port = url.removeprefix("nats://").split(":")
    with socket.create_connection((host, int(port))) as sending:
        sending.sendall(b'CONNECT {"verbose": false}\r\n' + b"PUB a.flood 1\r\nx\r\n" * count + b"PING\r\n")
        while b"PONG" not in sending.recv(65536):
            pass


async def test_a_server_that_is_cut_off_is_left_for_another(proxied):
    async with open_engine(proxied.settings()) as engine:
        await offer(engine, engine.names.state("a"), b"a")
        first = engine.server
        at = next(each for each, url in zip(proxied.all, proxied.urls, strict=True) if url == first)
        proxied.partition(at)
        await offer(engine, engine.names.state("b"), b"b")
        assert engine.server != first
        assert (await engine.last(engine.names.state("a"), fresh=True)).data == b"a"
