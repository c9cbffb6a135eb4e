"""Cluster: one server that is started again, and has forgotten all that it had in memory."""

from __future__ import annotations

import trio

from actors.cluster.engine import AwayError, open_engine
from tests.cluster.servers import running


async def _published(engine, subject, data):
    """Publish until there is a stream for it again."""
    while True:
        try:
            return await engine.publish(subject, data, timeout=1)
        except AwayError:
            await trio.sleep(0.05)


async def test_streams_in_memory_are_made_again_and_read_from_their_beginning(nats_server, tmp_path):
    with running(tmp_path, 1) as servers:
        async with open_engine(servers.settings()) as engine, engine.read(engine.names.nodes, after=0) as reader:
            for number in range(3):
                await engine.publish(engine.names.presence(f"n{number}"), b"before")
            got = []
            while len(got) < 3:
                got += await reader.batch()

            servers.all[0].restart()
            assert servers.wait_ready()
            with trio.fail_after(30):
                assert await _published(engine, engine.names.presence("n0"), b"after") == 1
                (found,) = await reader.batch()

    assert [each.sequence for each in got] == [1, 2, 3]
    assert (found.sequence, found.data) == (1, b"after")
