"""Contract: environments built on demand over HTTP: one build for all callers, live lines, one end for all."""

from __future__ import annotations

import fcntl
import json
import sys
from contextlib import contextmanager

import pytest
import trio

from config.modules.spec import ModuleSpec
from environments.store.key import environment_key
from protocol.errors import ErrorKind
from protocol.model import Kind
from runner.auth.tokens import sign
from tests.contract.test_streams import SECRET, open_site, sse_blocks
from tests.support import ANYBODY, PATIENCE, inline, wait_until

KEY = environment_key(Kind.VENV, (), "{}.{}.{}".format(*sys.version_info))
CODE = "def handler(input): return input"
PLAIN = ModuleSpec(name="plain", env=Kind.VENV, code=CODE)
SAME = ModuleSpec(name="same", env=Kind.VENV, code=CODE + "  # the same environment")
MISSING = ModuleSpec(name="missing", env=Kind.VENV, code=CODE, python="3.99")
INLINE = inline("inline", CODE)
WAITS = "another process is building this environment"


@contextmanager
def held(path):
    """Delay the build of `KEY`, like another process that builds it."""
    locks = path / "venvs" / ".locks"
    locks.mkdir(parents=True)
    with (locks / KEY).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


def store_of(site):
    return site.service.executors[Kind.VENV].environment.store


async def stream(site, name, heard):
    """Put the events of a preparation into `heard`, as pairs of name and data."""
    client = await site.server.connect()
    async with client.stream:
        await client.send(site.head("POST", f"/modules/{name}/prepare", Accept="text/event-stream"))
        head = await client.until(b"\r\n\r\n")
        assert b"200" in head.split(b"\r\n")[0], head
        assert b"text/event-stream" in head
        async for block in sse_blocks(client):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            if fields:
                heard.append((fields["event"], json.loads(fields["data"])))


async def test_all_callers_share_one_build_and_its_lines(tmp_path):
    answers, heard = [], []

    async def ask(site):
        answers.append(await site.json("POST", "/modules/plain/prepare"))

    with held(tmp_path) as let_go, trio.fail_after(PATIENCE):
        async with open_site(tmp_path, (PLAIN,)) as site:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask, site)
                nursery.start_soon(stream, site, "plain", heard)
                await wait_until(lambda: heard, "no line comes while it is built")
                assert heard == [("line", {"number": 0, "text": WAITS})]
                assert answers == []
                let_go()
            assert store_of(site).builds == 1

    (answer,) = {json.dumps(answer, sort_keys=True) for answer in answers}
    answer = json.loads(answer)
    assert (answer["module"], answer["key"]) == ("plain", KEY)
    assert answer["version"]
    assert answer["built_seconds"] > 0
    assert answer["log"][0] == WAITS
    assert heard[-1] == ("ready", answer)
    assert [data["number"] for name, data in heard if name == "line"] == list(range(len(heard) - 1))


async def test_modules_with_the_same_environment_share_its_build(tmp_path):
    async with open_site(tmp_path, (PLAIN, SAME)) as site:
        keys = {(await site.json("POST", f"/modules/{name}/prepare"))["key"] for name in ("plain", "same")}
        assert keys == {KEY}
        assert store_of(site).builds == 1


async def test_a_built_environment_is_answered_at_once(tmp_path):
    async with open_site(tmp_path, (PLAIN,)) as site:
        first = await site.json("POST", "/modules/plain/prepare")
        assert await site.json("POST", "/modules/plain/prepare") == first
        heard = []
        await stream(site, "plain", heard)
        assert heard[-1] == ("ready", first)

    async with open_site(tmp_path, (PLAIN,)) as site:  # the next runner
        assert (await site.json("POST", "/modules/plain/prepare"))["built_seconds"] == 0
        assert store_of(site).builds == 0


async def test_a_disconnect_ends_only_the_wait_of_its_client(tmp_path):
    with held(tmp_path) as let_go, trio.fail_after(PATIENCE):
        async with open_site(tmp_path, (PLAIN,)) as site:
            client = await site.server.connect()
            async with client.stream:
                await client.send(site.head("POST", "/modules/plain/prepare", Accept="text/event-stream"))
                await client.until(WAITS.encode())
                client.reset()
            async with trio.open_nursery() as nursery:
                heard = []
                nursery.start_soon(stream, site, "plain", heard)
                await wait_until(lambda: heard, "the build is gone with the client that saw it first")
                let_go()
            assert heard[-1][0] == "ready"
            assert store_of(site).builds == 1


async def test_a_failure_is_a_problem_and_the_last_event(tmp_path):
    async with open_site(tmp_path, (MISSING,)) as site:
        status, headers, body = await site.ask("POST", "/modules/missing/prepare")
        problem = json.loads(body)
        assert status == 424
        assert headers[b"content-type"] == b"application/problem+json"
        assert (problem["kind"], problem["field"]) == ("environment_failed", "python")
        assert "Python 3.99 was not found" in problem["detail"]

        status, headers, body = await site.ask("POST", "/modules/missing/prepare", Accept="text/event-stream")
        assert status == 424, "within the pause after a failure nothing is built"
        assert b"not tried again" in body
        assert int(headers[b"retry-after"]) >= 1


async def test_a_failure_while_a_client_follows(tmp_path):
    failing = ModuleSpec(name="slow", env=Kind.VENV, code=CODE, build_timeout=0.3)
    heard = []
    with held(tmp_path), trio.fail_after(PATIENCE):
        async with open_site(tmp_path, (failing,)) as site:
            await stream(site, "slow", heard)

    name, problem = heard[-1]
    assert name == "error"
    assert (problem["kind"], problem["field"], problem["status"]) == ("environment_failed", "build_timeout", 424)
    assert WAITS in problem["detail"], "the last lines are in the message"


async def test_followers_learn_that_the_runner_stops(tmp_path):
    with held(tmp_path), trio.fail_after(PATIENCE):
        async with open_site(tmp_path, (PLAIN,)) as site:
            build = site.service.prepare(ANYBODY, "plain")[1]
            await build.wait(0)
            assert not build.ended

    assert build.failure is not None
    assert build.failure.kind is ErrorKind.SHUTDOWN


async def test_a_kind_that_builds_nothing(tmp_path):
    async with open_site(tmp_path, (INLINE,)) as site:
        answer = await site.json("POST", "/modules/inline/prepare")
        assert (answer["key"], answer["built_seconds"], answer["log"]) == ("inline", 0, [])


@pytest.mark.parametrize(
    ("path", "scope", "status"),
    [
        ("/modules/plain/prepare", "modules:read", 403),
        ("/modules/unknown/prepare", "modules:write", 404),
        ("/modules/inline/prepare?version=9", "modules:write", 404),
        ("/modules/inline/prepare?colour=red", "modules:write", 400),
        ("/modules/inline/prepare", "modules:write", 200),
    ],
)
async def test_prepare_needs_its_scope_and_a_module(tmp_path, path, scope, status):
    async with open_site(tmp_path, (INLINE,)) as site:
        site.token = sign(SECRET, subject="kim", scopes=[scope], expires_seconds=60)
        assert (await site.ask("POST", path))[0] == status
