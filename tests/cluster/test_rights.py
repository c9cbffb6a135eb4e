"""Cluster: the rights in the documentation are enough for the engine of a runner."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
from attrs import evolve

from actors.cluster.engine import Consumer, open_engine
from config.load import load_settings
from runner.cli.doctor import State
from runner.cli.doctor.cluster import examine_cluster
from tests.cluster.servers import running
from tests.nats_users import Account

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
RIGHTS = re.findall(r"^(publish|subscribe): (\S+)$", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def account():
    return Account()


@pytest.fixture(scope="module")
def servers(nats_server, account, tmp_path_factory):
    """One server that lets in the users of the account only; its monitoring port needs no user."""
    with running(tmp_path_factory.mktemp("rights"), 1, extra=account.configuration) as servers:
        yield servers


def settings(servers, account, folder, without=None):
    """Return the settings of a runner with the rights of the page, but one."""
    rights = {"publish": [], "subscribe": []}
    for verb, subject in RIGHTS:
        if (verb, subject) != without:
            rights[verb].append(subject)
    file = folder / "runner.creds"
    file.write_text(account.user(**rights).credentials)
    return servers.settings("operato", credentials=file)


async def test_the_documented_rights_are_enough(servers, account, tmp_path):
    async with open_engine(settings(servers, account, tmp_path)) as engine:
        names = engine.names
        with trio.fail_after(30):
            assert await engine.publish(names.state("a"), b"one") >= 1
            assert (await engine.last(names.state("a"))).data == b"one"
            assert (await engine.last(names.state("a"), fresh=True)).data == b"one"
            assert (await engine.extent(names.log)).last >= 1
            async with engine.read(names.log, after=0) as reader:
                assert (await reader.batch())[0].data == b"one"
            await engine.publish(names.job("g00", "a"), b"job")
            async with engine.pull(Consumer(names.queue, "g00", (names.job("g00", "*"),))) as puller:
                (job,) = await puller.fetch(1)
                job.in_progress()
                await job.ack()
            await engine.ask(f"$JS.API.STREAM.PURGE.{names.queue}", b'{"filter": "operato.q.g00.a"}')

            async def answer(_: bytes) -> bytes:
                return b"here"

            async with engine.serve(names.requests("one"), answer):
                assert await engine.ask(names.requests("one"), b"?") == b"here"
            await engine.put_object("file", b"x" * 300_000)
            assert await engine.get_object("file") == b"x" * 300_000
            await engine.delete_object("file")
            assert not await engine.object_exists("file")


async def test_the_documented_rights_are_enough_for_doctor(servers, account, tmp_path):
    (tmp_path / "modules.yaml").write_text("modules: []")
    loaded = load_settings({"config": str(tmp_path / "modules.yaml")}, {})
    given = settings(servers, account, tmp_path)
    lane = Consumer("OPERATO_QUEUE", "g01", ("operato.q.g01.*",))
    async with open_engine(given) as engine, engine.pull(lane):
        findings = await examine_cluster(evolve(loaded, settings=evolve(loaded.settings, cluster=given)))

    assert [each for each in findings if each.state is State.FAILED] == []
    assert "queue" in {each.name for each in findings}


async def test_one_right_less_and_another_account_are_not_enough(servers, account, tmp_path):
    """Otherwise the test above could not fail."""
    assert ("publish", "$JS.API.INFO") in RIGHTS
    (tmp_path / "other").mkdir()
    less = settings(servers, account, tmp_path, ("publish", "$JS.API.INFO"))
    other = settings(servers, Account(), tmp_path / "other")

    async def refused(given):
        async with open_engine(given):
            pytest.fail("the engine opened")

    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, less)
            nursery.start_soon(refused, other)
    assert scope.cancelled_caught
