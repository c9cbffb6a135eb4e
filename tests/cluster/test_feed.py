"""Cluster: modules, API keys and audit notes that two runners share over one real server."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import attrs
import pytest
import trio

from actors.cluster.engine import open_engine
from actors.cluster.feed import Feeds
from actors.cluster.feed.code import MESSAGE_BYTES
from actors.cluster.feed.news import MODULE, VERSION, ModuleNews, pack, token
from actors.cluster.letters import Author
from actors.keys import ApiKeys
from actors.registry import Action, Catalog, ChangesQuery, Condition, Note, Publisher, Registry
from config.modules.spec import ModuleSpec
from protocol.errors import ErrorKind, RunnerError

CONTENTS = {"subjects_filter": "$O.*.M.*"}


@attrs.frozen
class Runner:
    registry: Registry
    keys: ApiKeys
    feeds: Feeds

    async def register(self, name, code, version=None, *, activate=True, condition=None, subject="kim"):
        spec = ModuleSpec(name=name, env="inline", code=code, version=version)
        module, files = await self.registry.stage(spec, subject)
        try:
            return await self.registry.register(module, files, activate=activate, condition=condition or Condition())
        finally:
            self.registry.release(module)

    def shown(self):
        return {
            name: (module.active, list(module.versions), module.revision)
            for name, module in self.registry.snapshot.registered.items()
        }

    async def changes(self):
        return await self.registry.audit.changes(ChangesQuery(limit=500))


@asynccontextmanager
async def running(settings, path, node):
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(settings))
        feeds = Feeds(engine, Author(node, secrets.token_hex(4), "1.0"))
        catalog = Catalog.open(path / "modules.db")
        stack.callback(catalog.close)
        registry = Registry(Publisher(path / "code", lambda _: {}), catalog, feed_of=feeds.modules)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        await nursery.start(registry.run)
        await stack.enter_async_context(feeds.following_modules(registry))
        await registry.publish(())
        keys = ApiKeys.open(path / "keys.db", feeds.keys)
        stack.push_async_callback(keys.aclose)
        await stack.enter_async_context(feeds.following_keys(keys))
        yield Runner(registry, keys, feeds)


@asynccontextmanager
async def alone(path):
    """Run one without a cluster."""
    catalog = Catalog.open(path / "modules.db")
    registry = Registry(Publisher(path / "code", lambda _: {}), catalog)
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        await registry.publish(())
        keys = ApiKeys.open(path / "keys.db")
        yield Runner(registry, keys, None)
        await keys.aclose()
        nursery.cancel_scope.cancel()
    catalog.close()


@pytest.fixture
async def both(nats, tmp_path):
    settings = nats.settings()
    async with running(settings, tmp_path / "a", "a") as a, running(settings, tmp_path / "b", "b") as b:
        yield a, b


async def until(condition):
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


async def alike(*runners):
    await until(lambda: len({repr(each.shown()) for each in runners}) == 1)
    return runners[0].shown()


def code(number):
    return f"def handler(x):\n    return {number}\n"


def create(runner, name):
    return runner.keys.create(name, scopes=["admin"], modules=(), expires_at=None, subject="kim")


async def test_every_runner_serves_a_module_that_one_registered(both):
    a, b = both
    added = await a.register("job", code(1), "1")
    await until(lambda: "job" in b.registry.snapshot.modules)
    served = b.registry.snapshot.modules["job"]

    assert served.content_digest == added.module.content_digest
    assert served.spec.code == code(1)
    assert (served.published_by, served.ref.version) == ("kim", "1")
    assert a.registry.snapshot.modules["job"] is added.module
    assert b.registry.snapshot.registered["job"].revision == added.registered.revision


async def test_changes_of_both_are_in_one_order(both):
    a, b = both
    await a.register("job", code(1), "1")
    await b.register("job", code(2), "2")
    await a.register("job", code(3), "3", activate=False)
    await b.registry.activate("job", "1", subject="lee", condition=Condition())
    await a.registry.remove("job", "2", subject="kim", condition=Condition())
    await b.register("other", code(4), "1")
    await a.registry.remove("other", None, subject="kim", condition=Condition())

    shown = await alike(a, b)
    assert shown["job"][:2] == ("1", ["1", "3"])
    assert "other" not in shown
    with trio.fail_after(20):
        while [each.id for each in await a.changes()] != [each.id for each in await b.changes()]:
            await trio.sleep(0.01)
    entries = [(c.subject, c.action, c.module, c.version, c.detail["node"]) for c in reversed(await b.changes())]
    assert await a.changes() == await b.changes()
    assert entries[:5] == [
        ("kim", Action.REGISTER, "job", "1", "a"),
        ("kim", Action.REGISTER, "job", "2", "b"),
        ("kim", Action.REGISTER, "job", "3", "a"),
        ("lee", Action.ACTIVATE, "job", "1", "b"),
        ("kim", Action.DELETE_VERSION, "job", "2", "a"),
    ]


async def test_of_two_changes_at_once_one_wins_and_the_other_is_a_conflict(both):
    a, b = both
    added = await a.register("job", code(0), "0")
    await alike(a, b)
    condition = Condition(revision=added.registered.revision)
    results = []

    async def change(runner, number):
        try:
            results.append(await runner.register("job", code(number), str(number), condition=condition))
        except RunnerError as problem:
            results.append(problem.failure)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, a, 1)
        nursery.start_soon(change, b, 2)

    failures = [each for each in results if not hasattr(each, "module")]
    assert [(each.kind, each.field) for each in failures] == [(ErrorKind.CONFLICT, "if-match")]
    assert len((await alike(a, b))["job"][1]) == 2


async def test_changes_at_once_without_a_condition_all_count(both):
    a, b = both
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(partial(both[number % 2].register, "job", code(number), str(number)))

    assert sorted((await alike(a, b))["job"][1]) == [str(number) for number in range(6)]


async def test_large_code_goes_through_the_object_store(both):
    a, b = both
    large = f"DATA = '{secrets.token_hex(4 * MESSAGE_BYTES)}'\n{code(1)}"
    await a.register("job", large, "1")
    await until(lambda: "job" in b.registry.snapshot.modules)

    assert b.registry.snapshot.modules["job"].entry.read_text() == large
    await b.registry.remove("job", None, subject="kim", condition=Condition())
    await a.register("job", large, "1")
    await until(lambda: "job" in b.registry.snapshot.modules)
    found = await a.feeds.engine._requests.call(f"$JS.API.STREAM.INFO.OBJ_{a.feeds.engine.names.files}", CONTENTS)
    assert len(found["state"]["subjects"]) == 1


async def test_a_key_is_valid_everywhere_and_revoked_everywhere_at_once(both):
    a, b = both
    key, secret = await create(a, "ci")
    await until(lambda: b.keys.find(secret) is not None)
    with pytest.raises(RunnerError) as problem:
        await create(b, "ci")
    assert (problem.value.failure.kind, problem.value.failure.field) == (ErrorKind.CONFLICT, "name")
    ended = trio.Event()
    a.keys.find(secret).watchers.add(ended.set)

    await b.keys.revoke(b.keys.get(key.stored.id), subject="lee")
    with trio.fail_after(20):
        await ended.wait()

    assert a.keys.find(secret).revoked
    assert a.keys.find(secret).stored.revoked_by == "lee"


async def test_of_two_keys_of_one_name_at_once_one_is_made(both):
    results = []

    async def make(runner):
        try:
            results.append(await create(runner, "ci"))
        except RunnerError as problem:
            results.append(problem.failure.kind)

    async with trio.open_nursery() as nursery:
        for runner in both:
            nursery.start_soon(make, runner)

    assert results.count(ErrorKind.CONFLICT) == 1


async def test_a_runner_that_was_away_reads_what_it_missed(nats, tmp_path):
    settings = nats.settings()
    async with running(settings, tmp_path / "a", "a") as a:
        async with running(settings, tmp_path / "b", "b") as b:
            await a.register("job", code(1), "1")
            await alike(a, b)
        await a.register("job", code(2), "2")
        await a.registry.remove("job", "1", subject="kim", condition=Condition())
        await a.register("late", code(3), "1")
        _, secret = await create(a, "ci")
        async with running(settings, tmp_path / "b", "b") as b:
            assert b.shown() == a.shown()
            assert b.keys.find(secret) is not None
            assert [each.id for each in await b.changes()] == [each.id for each in await a.changes()]
            await b.register("job", code(4), "4")
            await alike(a, b)


async def test_a_runner_brings_what_it_has_once_and_what_the_cluster_has_wins(nats, tmp_path, caplog):
    settings = nats.settings()
    async with alone(tmp_path / "b") as b:
        await b.register("mine", code(1), "1")
        await b.register("mine", code(2), "2")
        await b.register("both", code(3), "1")
        _, secret = await create(b, "ci")
        old, _ = await create(b, "old")
        await b.keys.revoke(old, subject="kim")
    async with running(settings, tmp_path / "a", "a") as a:
        await a.register("both", code(4), "9")
        await create(a, "ci")
        async with running(settings, tmp_path / "b", "b") as b:
            shown = await alike(a, b)
            await until(lambda: a.keys.find(secret) is not None)
            assert (shown["mine"][:2], shown["both"][:2]) == (("2", ["1", "2"]), ("9", ["9"]))
            assert a.registry.snapshot.modules["mine"].spec.code == code(2)
            assert a.keys.find(secret).stored.name.startswith("ci-")
            count = len(await a.changes())
        copies = list((tmp_path / "b").glob("modules.db.before-cluster-*"))
        assert len(copies) == 1
        assert not list((tmp_path / "b").glob("keys.db.before*"))
        async with running(settings, tmp_path / "b", "b") as b:
            assert b.shown() == shown
            assert len(await a.changes()) == count
    async with alone(tmp_path / "b") as b:  # without the setting again
        assert b.shown() == shown
        assert b.keys.find(secret) is not None
        revision = (await b.register("mine", code(5), "5")).registered.revision
        assert revision > shown["mine"][2]


async def test_news_of_a_later_release_are_told_and_not_fatal(both):
    a, b = both
    names, engine = b.feeds.engine.names, b.feeds.engine
    news = ModuleNews(author=Author("z", "z", "9.0"), version=VERSION + 1, name="x", subject="kim", notes=())
    number = await engine.publish(names.news(MODULE, token("x")), pack(news))
    await until(lambda: MODULE in a.feeds.unreadable)
    await a.registry.audit.note("kim", [Note(Action.FILE_ADD, "y")])
    assert a.registry.catalog.place()[1] == number - 1  # an upgraded runner reads it

    assert "9.0" in a.feeds.unreadable[MODULE]
    assert "upgrade" in a.feeds.unreadable[MODULE]
    with pytest.raises(RunnerError) as problem:
        await a.register("job", code(1), "1")
    assert problem.value.failure.kind is ErrorKind.UNAVAILABLE
    await create(a, "ci")


async def test_nothing_changes_while_the_engine_is_away_and_reads_go_on(nats, tmp_path):
    async with running(nats.settings(), tmp_path / "a", "a") as a:
        await a.register("job", code(1), "1")
        nats.all[0].kill()
        try:
            await until(lambda: not a.feeds.engine.connected)
            with pytest.raises(RunnerError) as problem:
                await a.register("job", code(2), "2")
            assert (problem.value.failure.kind, problem.value.failure.field) == (ErrorKind.UNAVAILABLE, "cluster")
            assert a.shown()["job"][1] == ["1"]
        finally:
            nats.all[0].start()
            assert nats.wait_ready()
        await until(lambda: a.feeds.engine.connected)
        await a.register("job", code(2), "2")
        assert a.shown()["job"][1] == ["1", "2"]


async def test_a_runner_reads_again_what_was_restored_and_offers_what_it_has(nats, tmp_path):
    settings = nats.settings()
    async with running(settings, tmp_path / "a", "a") as a:
        await a.register("job", code(1), "1")
        await a.register("more", code(2), "1")
        shown = {name: found[:2] for name, found in a.shown().items()}
        names, engine = a.feeds.engine.names, a.feeds.engine
    async with open_engine(settings) as engine:  # as after a loss of all servers with their disks
        await engine._requests.call(f"$JS.API.STREAM.DELETE.{names.feed}")
    async with running(settings, tmp_path / "a", "a") as a, running(settings, tmp_path / "b", "b") as b:
        assert {name: found[:2] for name, found in a.shown().items()} == shown
        await b.register("job", code(3), "2")
        assert (await alike(a, b))["job"][:2] == ("2", ["1", "2"])


async def test_runners_offer_what_they_have_when_the_engine_loses_it_meanwhile(both):
    a, b = both
    await a.register("job", code(1), "1")
    await b.register("more", code(2), "1")
    before = {name: found[:2] for name, found in (await alike(a, b)).items()}
    names, engine = a.feeds.engine.names, a.feeds.engine
    config = (await engine._requests.call(f"$JS.API.STREAM.INFO.{names.feed}"))["config"]
    await engine._requests.call(f"$JS.API.STREAM.DELETE.{names.feed}")
    await engine._requests.call(f"$JS.API.STREAM.CREATE.{names.feed}", config)
    await engine.publish(names.news("mark", "x"), b"mark")  # a runner that starts
    with trio.fail_after(30):
        while await engine.last(names.news(MODULE, ">"), fresh=True) is None:
            await trio.sleep(0.05)
        await until(lambda: not any(each.feeds._modules.follower.joining for each in both))

    assert {name: found[:2] for name, found in (await alike(a, b)).items()} == before
    await a.register("job", code(3), "2")
    assert (await alike(a, b))["job"][:2] == ("2", ["1", "2"])
