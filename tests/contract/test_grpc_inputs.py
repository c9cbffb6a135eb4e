"""Contract: the bodies of gRPC calls become inputs as those of HTTP do."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest

from config.settings import AuthSettings
from protocol.rpc.operato.runner import v1
from runner.auth.tokens import Verifier
from runner.grpc import make_methods
from tests.contract.test_inputs import FILE, MULTIPART, PICTURE, form, named, part
from tests.contract.test_streams import SECRET, open_site
from tests.grpc_client import open_door
from tests.support import inline, wait_until

PATH = "/operato.runner.v1.ExecutorService/"
FORM = MULTIPART["Content_Type"]
MODULES = (
    inline("text", "def handler(input: str): return input"),
    inline("bytes", "def handler(input): return input", input_schema={"anyOf": [{"type": "string"}, FILE]}),
    inline(
        "typed",
        "def handler(input): return input",
        input_schema={"type": "object", "properties": {"age": {"type": "integer"}}},
    ),
)


@asynccontextmanager
async def calling(path):
    async with open_site(path, MODULES) as site:
        methods = make_methods(site.service, Verifier(AuthSettings(), secret=SECRET))
        metadata = {"authorization": f"Bearer {site.token}"}
        async with open_door(methods) as door:
            client = await door.connect()

            async def call(method, **fields):
                return await client.call(PATH + method, v1.ExecuteRequest(**fields), metadata=metadata)

            yield site, call


@pytest.mark.parametrize(
    ("name", "body", "kind", "expected"),
    [
        ("text", "é".encode(), "text/plain", "é"),
        ("text", b"", "text/plain", ""),
        ("bytes", b"short", "", "short"),
        ("typed", b"age=3", "application/x-www-form-urlencoded", {"age": 3}),
        ("typed", form(part("age", "3")), FORM, {"age": 3}),
        ("typed", b'{"age": 3}', "application/json", {"age": 3}),
    ],
)
async def test_a_body_is_an_input(tmp_path, name, body, kind, expected):
    async with calling(tmp_path) as (_, call):
        answer = await call("Execute", module_name=name, body=body, content_type=kind)
        assert answer.status == 0, answer.said
        assert json.loads(v1.ExecuteResponse().parse(answer.messages[0]).result_json) == expected


async def test_bytes_are_stored(tmp_path):
    async with calling(tmp_path) as (site, call):
        answer = await call("Execute", module_name="bytes", body=PICTURE, content_type="image/png")
        found = json.loads(v1.ExecuteResponse().parse(answer.messages[0]).result_json)
        assert found["$file"] == {"id": named(PICTURE), "name": "body.png", "type": "image/png", "size": len(PICTURE)}

        accepted = (
            v1.SubmitResponse().parse((await call("Submit", module_name="bytes", body=PICTURE)).messages[0]).execution
        )
        await wait_until(lambda: site.service.runs.find(accepted.id) is None, "it has not ended")
        shown = await site.json("GET", f"/executions/{accepted.id}")
        assert shown["input"]["$file"]["id"] == named(PICTURE)

        answer = await call("ExecuteStream", module_name="bytes", body=PICTURE)
        last = v1.ExecutionEvent().parse(answer.messages[-1])
        assert json.loads(last.result.result_json)["$file"]["id"] == named(PICTURE)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"input_json": "1", "body": b"1"}, "body", "send one"),
        ({"input_json": "1", "content_type": "text/plain"}, "body", "send one"),
        ({"body": b"x", "content_type": "image/png"}, "content-type", "takes no 'image/png'; send one of"),
        ({"body": b"age=x", "content_type": "application/x-www-form-urlencoded"}, "$.age", "not a whole number"),
        ({"body": form(part("age", "x")), "content_type": FORM}, "$.age", "not a whole number"),
        ({"body": b"x", "content_type": "multipart/form-data"}, "content-type", "needs a boundary"),
    ],
)
async def test_a_wrong_body_names_its_field(tmp_path, fields, field, words):
    async with calling(tmp_path) as (site, call):
        for method in ("Execute", "Submit", "ExecuteStream"):
            answer = await call(method, module_name="typed", **fields)
            assert (answer.status, answer.said["operato-field"]) == (3, field), answer.said
            assert words in answer.said["grpc-message"]
        assert (await site.json("GET", "/executions"))["items"] == []
