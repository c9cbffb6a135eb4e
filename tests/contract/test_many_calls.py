"""Contract: many calls of one worker at a time (`calls`): their speed, output, files, ends, and the ends of others."""

from __future__ import annotations

import math
import os
import signal
from contextlib import asynccontextmanager

import pytest
import trio

from actors.events import EventLog
from actors.workers.call import Call
from environments import proc
from protocol.errors import ErrorKind, Failure
from protocol.events import OutputEvent
from tests.support import open_rig

pytestmark = pytest.mark.trio
ASYNC = """
    import asyncio

    async def handler(input):
        await asyncio.sleep(input)
        return input
"""


@pytest.fixture
async def rig(tmp_path):
    async with open_rig(tmp_path / "rig") as rig:
        yield rig


async def all_of(rig, module, values, **options):
    """Return the outcomes of calls at the same time, in order."""
    found = {}

    async def one(place, value):
        found[place] = await rig.call(module, value, **options)

    async with trio.open_nursery() as nursery:
        for place, value in enumerate(values):
            nursery.start_soon(one, place, value)
    return [found[place] for place in range(len(found))]


async def test_a_hundred_calls_take_one_worker_and_the_time_of_one(rig):
    module = await rig.publish(ASYNC, calls=100)
    first = await rig.call(module, 0)
    before = proc.resident_bytes(first.pid)
    began = trio.current_time()

    ran = await all_of(rig, module, [1] * 100)
    took = trio.current_time() - began
    print("seconds", took, "memory", before, proc.resident_bytes(first.pid))
    assert {each.value for each in ran} == {1}
    assert {each.pid for each in ran} == {first.pid}
