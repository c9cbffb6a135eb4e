"""Contract: results as they are: JSON, files and responses, by their route and by the header Accept of a call."""

from __future__ import annotations

import json
import shutil

import attrs
import pytest

from protocol.model import Record
from runner.auth.tokens import sign
from tests.contract.test_streams import SECRET, open_site
from tests.support import WAIT_FOR, inline, wait_until

PNG = b"\x89PNG" + bytes(range(256)) * 300
MODULES = (
    inline("echo", "def handler(input): return input"),
    inline(
        "draws",
        r"""
        from operato import File

        def handler(input):
            png = b"\x89PNG" + bytes(range(256)) * 300
            return File(png, name="plot.png", type="image/png")
        """,
    ),
    inline(
        "answers",
        """
        from operato import Response

        def handler(input):
            if input == "file":
                return Response(bytes(1000), type="image/gif")
            return Response(input, type="text/csv" if isinstance(input, str) else None)
        """,
    ),
    inline("waits", WAIT_FOR + "def handler(input): wait_for(input)"),
    inline("fails", "def handler(input): return 1 / 0"),
    inline("short", "def handler(input): return 1", record=Record.SUMMARY),
    inline("several", "def handler(input): return {'a': b'1', 'b': [b'2']}"),
)


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, MODULES) as opened:
        yield opened


async def call(site, name, body=None, **headers):
    return await site.ask("POST", f"/modules/execute/{name}", body, **headers)


async def identity(site, name, body=None):
    return (await call(site, name, body))[1][b"x-execution-id"].decode()


async def test_a_json_result_is_json(site):
    for value in (None, [1, {"a": "b"}], "text", {"$file": 1, "b": 1}):
        name = await identity(site, "echo", value)
        status, headers, body = await site.ask("GET", f"/executions/{name}/result")
        assert (status, headers[b"content-type"], json.loads(body)) == (200, b"application/json", value)
        assert headers[b"x-execution-id"].decode() == name


async def test_a_file_result_is_the_file(site):
    name = await identity(site, "draws")
    path = f"/executions/{name}/result"

    status, headers, body = await site.ask("GET", path)

    assert (status, headers[b"content-type"], body) == (200, b"image/png", PNG)
    assert headers[b"content-disposition"] == b'inline; filename="plot.png"'
    assert headers[b"x-content-type-options"] == b"nosniff"
    tag = headers[b"etag"].decode()
    assert (await site.ask("HEAD", path))[1][b"content-length"] == b"%d" % len(PNG)
    assert (await site.ask("GET", path, If_None_Match=tag))[0] == 304
    status, headers, body = await site.ask("GET", path, Range="bytes=1-3")
    assert (status, headers[b"content-range"], body) == (206, b"bytes 1-3/%d" % len(PNG), b"PNG")
    assert (await site.ask("GET", path, Range="bytes=900000-"))[0] == 416


async def test_a_response_is_its_body(site):
    for given, kind, expected in (
        ("a;b\n", b"text/csv", b"a;b\n"),
        ({"a": 1}, b"application/json", b'{"a":1}'),
        ("file", b"image/gif", bytes(1000)),
    ):
        name = await identity(site, "answers", given)
        status, headers, body = await site.ask("GET", f"/executions/{name}/result")
        assert (status, headers[b"content-type"].partition(b";")[0], body) == (200, kind, expected)
        assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize("accept", ["image/png", "image/*;q=0.9, text/html", "application/pdf"])
async def test_a_call_that_accepts_no_json_is_answered_with_the_file(site, accept):
    status, headers, body = await call(site, "draws", Accept=accept)

    assert (status, headers[b"content-type"], body) == (200, b"image/png", PNG)
    found = await site.json("GET", f"/executions/{headers[b'x-execution-id'].decode()}")
    assert found["result"]["$file"]["name"] == "plot.png"


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/html, */*;q=0.1", "application/*", "image/png, application/json"]
)
async def test_a_call_that_accepts_json_is_answered_with_the_execution(site, accept):
    _, headers, body = await call(site, "draws", Accept=accept)
    assert headers[b"content-type"] == b"application/json"
    assert json.loads(body)["result"]["$file"]["size"] == len(PNG)


async def test_without_a_file_the_answer_is_the_execution(site):
    for name, status in (("echo", 200), ("fails", 500)):
        code, headers, body = await call(site, name, {"a": 1}, Accept="image/png")
        assert (code, headers[b"content-type"]) == (status, b"application/json")
        assert json.loads(body)["id"] == headers[b"x-execution-id"].decode()


async def test_files_at_any_depth_are_named(site):
    _, _, body = await call(site, "several", Accept="image/png")
    assert json.loads(body)["result"]["b"][0]["$file"]["size"] == 1


async def problem(site, name):
    status, headers, body = await site.ask("GET", f"/executions/{name}/result")
    answer = json.loads(body)
    assert status == answer["status"]
    return status, answer["kind"], answer["field"], answer["detail"], headers


async def test_a_result_that_is_not_there_yet(site, tmp_path):
    accepted = await site.json("POST", "/executions", {"module": "waits", "input": str(tmp_path / "go")})
    status, kind, field, detail, headers = await problem(site, accepted["id"])
    assert (status, kind, field, b"retry-after" in headers) == (409, "conflict", "status", True)
    assert "it has no result yet" in detail
    await site.json("POST", f"/executions/{accepted['id']}/cancel")
    assert (await problem(site, accepted["id"]))[3].startswith("the execution was cancelled")


@pytest.mark.parametrize(
    ("name", "words"), [("fails", "failed with handler_error"), ("short", "the module records summaries only")]
)
async def test_a_result_that_there_is_not(site, name, words):
    status, kind, field, detail, _ = await problem(site, await identity(site, name))
    assert (status, kind, field) == (404, "not_found", "result")
    assert words in detail


async def test_a_file_of_a_result_that_is_gone_or_damaged(site):
    name = await identity(site, "draws")
    stored = next(path for path in (site.service.settings.store.data_dir / "files").rglob("*") if len(path.name) == 64)
    stored.write_bytes(b"other")
    assert (await site.ask("GET", f"/executions/{name}/result"))[0] == 503
    shutil.rmtree(stored.parent)
    assert (await site.ask("GET", f"/executions/{name}/result"))[0] == 503


async def test_a_handler_that_writes_an_id_itself_gives_no_file_of_others(site):
    own = json.loads((await site.ask("POST", "/files", b"own"))[2])["$file"]["id"]
    scopes = ["executions:run", "executions:read"]
    token = sign(SECRET, subject="bob", scopes=scopes, expires_seconds=3600, modules=["e*"])
    bob = attrs.evolve(site, token=token)
    for written in ({"id": own}, {"$response": {"file": {"$file": {"id": own}}}}):
        given = json.dumps(written if "$response" in written else {"$file": written}).replace("$", "\\u0024")
        name = (await call(bob, "echo", given.encode()))[1][b"x-execution-id"].decode()
        assert (await bob.ask("GET", f"/executions/{name}/result"))[0] == 404
        assert (await call(bob, "echo", given.encode(), Accept="text/plain"))[0] == 404
        assert (await site.ask("GET", f"/executions/{name}/result"))[2] == b"own"


@pytest.mark.parametrize("wrong", ["a/b\r\nx-own: 1", "\u2603", "no type", "a/" + "b" * 300])
async def test_a_name_or_type_that_no_header_may_have_does_not_count(site, wrong):
    file = json.loads((await site.ask("POST", "/files?name=a.txt", b"own", Content_Type="text/plain"))[2])["$file"]
    for value, kind in (
        ({"$file": {**file, "type": wrong, "name": "a\r\nb"}}, b"text/plain"),
        ({"$response": {"headers": [["content-type", wrong]], "file": {"$file": file}}}, b"text/plain"),
        ({"$response": {"headers": [["content-type", wrong]], "text": "own"}}, b"text/plain; charset=utf-8"),
    ):
        name = await identity(site, "echo", value)
        status, headers, body = await site.ask("GET", f"/executions/{name}/result")
        assert (status, headers[b"content-type"], body) == (200, kind, b"own")
        assert b"x-own" not in headers


async def test_an_unknown_execution(site):
    assert (await problem(site, "nothing"))[:3] == (404, "not_found", "id")


async def test_files_of_summaries_are_not_kept_for_them(tmp_path):
    """The record names no file any more, so gc takes them as it takes uploads without a use."""
    keeps, sums = (
        inline(name, f"def handler(input): return b'{name}'", record=record)
        for name, record in (("keeps", Record.FULL), ("sums", Record.SUMMARY))
    )
    async with open_site(tmp_path, (keeps, sums)) as site:
        names = [(await site.json("POST", f"/modules/execute/{name}"))["id"] for name in ("keeps", "sums")]
        await wait_until(lambda: not any(map(site.service.runs.find, names)), "an execution has not ended")
        history = site.service.history
        assert await history.existing(names) == {names[0]}
        await history._committer.wait_settled()
        assert await history.existing(names) == {names[0]}
