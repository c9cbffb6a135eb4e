"""Cluster: calls with one idempotency key at several whole runners, over their projections and mirrors."""

from __future__ import annotations

import json

import attrs
import pytest
import trio

from tests.support import ANYBODY, inline, open_service

COUNTS = inline(
    "counts",
    "import time\ndef handler(input):\n    time.sleep(0.2)\n    open(input, 'a').write('x')\n    return 1\n",
    concurrency=8,
)


@pytest.fixture
async def both(nats, tmp_path):
    settings = nats.settings()
    one, other = attrs.evolve(settings, node="a"), attrs.evolve(settings, node="b")
    async with (
        open_service(tmp_path / "a", (COUNTS,), cluster=one) as a,
        open_service(tmp_path / "b", (COUNTS,), cluster=other) as b,
    ):
        yield a, b


async def calls(both, call):
    """Make the same call at both runners, twice at each; return the answers."""
    answers = []

    async def one(service):
        answers.append(await call(service))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for service in (*both, *both):
                nursery.start_soon(one, service)
    return answers


async def test_one_key_is_run_once_and_answered_alike_by_every_runner(both, tmp_path):
    ran = tmp_path / "ran", tmp_path / "accepted"
    data = [json.dumps(str(path)).encode() for path in ran]

    ended = await calls(both, lambda service: service.execute(ANYBODY, "counts", data[0], key="one"))
    accepted = await calls(both, lambda service: service.submit(ANYBODY, "counts", data[1], key="two"))

    assert {(each.id, each.result) for each in ended} == {(ended[0].id, b"1")}
    assert len({each.id for each in accepted}) == 1
    with trio.fail_after(60):
        for service in both:
            while (found := await service.history.get(accepted[0].id)) is None or not found.status.final:
                await trio.sleep(0.02)
            assert found.result == b"1"
    again = await calls(both, lambda service: service.execute(ANYBODY, "counts", data[0], key="one"))
    assert {each.id for each in again} == {ended[0].id}
    assert [path.read_text() for path in ran] == ["x", "x"]
