"""Cluster: two whole runners: files over any door, as inputs and results on another runner, and notices sent once."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import evolve

from config.modules.on_end import OnEnd
from tests.contract.test_streams import open_site
from tests.receiver import receiving
from tests.support import PATIENCE, inline

ECHO = "def handler(input): return input"
LOOPBACK = ("127.0.0.0/8", "::1")
TURNED = """
    from operato import File
    def handler(file: File, size: int) -> bytes:
        with open(file.path, 'rb') as opened:
            return opened.read()[::-1] + b'x' * size
"""
TWICE = """
    def handler(input):
        print(input)
        return [input, input]
"""
MODULES = [inline("turn", TURNED), inline("twice", TWICE)]


def id_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@asynccontextmanager
async def two_sites(path, nats, modules=MODULES, first_modules=None, **settings):
    cluster = nats.settings()
    async with (
        open_site(path / "one", first_modules or modules, cluster=cluster, **settings) as one,
        open_site(path / "two", modules, cluster=evolve(cluster, node="two"), **settings) as two,
    ):
        yield one, two


@pytest.fixture
async def sites(tmp_path, nats):
    async with two_sites(tmp_path, nats) as opened:
        yield opened


async def uploaded(site, data) -> str:
    status, _, body = await site.ask("POST", "/files?name=in.bin", data)
    assert status == 201, body
    return json.loads(body)["$file"]["id"]


async def ended(site, path):
    with trio.fail_after(PATIENCE):
        while True:
            status, _, body = await site.ask("GET", path)
            if status == 200 and json.loads(body)["status"] in ("succeeded", "failed", "cancelled"):
                return json.loads(body)
            await trio.sleep(0.02)


async def test_files_over_any_door(sites):
    one, two = sites
    data = os.urandom(300_000)
    name = await uploaded(one, data)

    assert (await two.ask("GET", f"/files/{name}", Range="bytes=1000-1999"))[::2] == (206, data[1000:2000])
    assert (await two.ask("GET", f"/files/{name}"))[::2] == (200, data)
    assert [each["id"] for each in (await two.json("GET", "/files"))["items"]] == [name]

    order = {"module": "turn", "input": {"file": {"$file": {"id": name}}, "size": 400_000}}
    status, headers, body = await two.ask("POST", "/executions", order)
    assert status == 202, body
    path = headers[b"location"].decode()
    first, second = await ended(one, path), await ended(two, path)
    assert (first["status"], first["error"]) == ("succeeded", None)
    made = first["result"]["$file"]["id"]
    assert second["result"] == first["result"]
    for site in sites:
        status, _, content = await site.ask("GET", f"{path}/result")
        assert (status, content) == (200, data[::-1] + b"x" * 400_000)
        assert (await site.ask("DELETE", f"/files/{made}"))[0] == 409


async def test_values_above_the_size_of_a_message(sites):
    one, two = sites
    text = "y" * 1_200_000
    status, headers, body = await one.ask("POST", "/executions", {"module": "twice", "input": text})
    assert status == 202, body

    for site in (two, one):
        found = await ended(site, headers[b"location"].decode())
        assert (found["status"], found["input"], found["result"]) == ("succeeded", text, [text, text])
    found = await ended(two, headers[b"location"].decode())
    assert found["stdout"].startswith("yyy")
    assert (await two.json("GET", "/files"))["items"] == [], "parts of records are no files"


async def test_the_runner_that_ends_an_execution_sends_its_notices_and_no_other_one(tmp_path, nats):
    async with receiving() as receiver:
        recipients = OnEnd(url=receiver.url("/hook")), OnEnd(module="told")
        modules = [inline("m", ECHO, on_end=recipients), inline("told", ECHO)]
        async with two_sites(tmp_path, nats, modules, notices_allow=LOOPBACK) as (one, two):
            paths = []
            for site in (one, two) * 4:
                _, headers, _ = await site.ask("POST", "/executions", {"module": "m", "input": len(paths)})
                paths.append(headers[b"location"].decode())
            for path in paths:
                for site in (one, two):
                    await ended(site, path)
            await receiver.wait(len(paths))
            with trio.move_on_after(0.5):
                await receiver.wait(len(paths) + 1)
            ids = [got.headers["webhook-id"] for got in receiver.got]
            for site in (one, two):
                with trio.fail_after(PATIENCE):
                    while len(told := await told_at(site)) < len(paths):
                        await trio.sleep(0.02)
                assert sorted(each["input"]["data"]["input"] for each in told) == list(range(len(paths)))

    assert len(ids) == len(set(ids)) == len(paths)


async def told_at(site) -> list:
    items = (await site.json("GET", "/executions?module=told&limit=100"))["items"]
    return [await site.json("GET", f"/executions/{each['id']}") for each in items]


async def test_a_runner_that_leaves_keeps_everything_it_has(tmp_path, nats):
    async with two_sites(tmp_path, nats) as (one, two):
        kept, other = await uploaded(one, b"kept by one"), await uploaded(two, b"of two")
        assert (await one.ask("GET", f"/files/{other}"))[0] == 200
        await uploaded(two, b"of two, and nothing that one needs")
        ran = [(await site.json("POST", "/modules/execute/twice", at))["id"] for at, site in enumerate((one, two))]
        for name in ran:
            await ended(one, f"/executions/{name}")

    async with open_site(tmp_path / "one", MODULES) as alone:
        assert {each["id"] for each in (await alone.json("GET", "/executions"))["items"]} == set(ran)
        assert (await alone.json("GET", f"/executions/{ran[1]}"))["result"] == [1, 1]
        assert [(await alone.ask("GET", f"/files/{name}"))[2] for name in (kept, other)] == [b"kept by one", b"of two"]
        assert {each["id"] for each in (await alone.json("GET", "/files"))["items"]} == {kept, other}
        assert (await alone.json("POST", "/modules/execute/twice", 5))["result"] == [5, 5]
