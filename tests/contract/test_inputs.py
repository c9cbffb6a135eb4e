"""Contract: the bodies of calls: forms with files, urlencoded forms and raw bodies become the input of the handler."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from urllib.parse import urlencode

import pytest
import trio

from config.settings import FilesSettings, ServerSettings
from runner.inputs import Fields, forms, read_urlencoded
from runner.wire import Budget
from tests.contract.test_streams import open_site
from tests.support import inline, wait_until

MIB = 1024 * 1024
FILE = {"type": "object", "properties": {"$file": {"type": "object"}}, "required": ["$file"]}
ECHO = inline("echo", "def handler(input): return input")
TYPED = inline(
    "typed",
    "def handler(input): return input",
    input_schema={
        "type": "object",
        "properties": {
            "age": {"type": "integer"},
            "price": {"type": "number"},
            "member": {"type": "boolean"},
            "name": {"type": "string"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "sizes": {"type": "array", "items": {"$ref": "#/$defs/size"}},
            "options": {"type": "object"},
            "level": {"enum": [1, 2, 3]},
            "photo": FILE,
            "photos": {"type": "array", "items": FILE},
            "data": {"anyOf": [{"type": "string"}, FILE]},
            "anything": {},
        },
        "$defs": {"size": {"type": "integer"}},
        "additionalProperties": False,
    },
)
NEEDS = inline(
    "needs",
    "def handler(input): return input",
    input_schema={
        "type": "object",
        "properties": {"photo": FILE, "age": {"type": "integer", "minimum": 18}},
        "required": ["photo", "age"],
    },
)
TEXT = inline("text", "def handler(input: str): return input")
BYTES = inline("bytes", "def handler(input): return input", input_schema={"anyOf": [{"type": "string"}, FILE]})
REQUEST = inline(
    "request",
    """
    from operato import Request

    def handler(request: Request):
        files = {name: file.size for name, file in request.files.items()}
        kind = dict(request.headers)["content-type"].partition(";")[0]
        return [request.method, kind, len(request.body), request.form, files]
    """,
    input_schema={"type": "object", "properties": {"$request": {"type": "object"}}, "required": ["$request"]},
)
SIGNATURE = inline(
    "signature",
    """
    from dataclasses import dataclass
    from operato import File

    @dataclass
    class Options:
        dpi: int = 72

    def handler(photo: File, width: int = 200, tags: list[str] = (), more: list[File] = (), options: Options = None):
        dpi = None if options is None else options.dpi
        return [photo.name, photo.read_bytes()[:2].hex(), width, list(tags), [file.size for file in more], dpi]
    """,
)
SIGNED_BYTES = inline("signed-bytes", "def handler(input: bytes): return len(input)")
NUMBER = inline("number", "def handler(input: int): return input")
MODULES = (ECHO, TYPED, NEEDS, TEXT, BYTES, REQUEST, SIGNATURE, SIGNED_BYTES, NUMBER)
PICTURE = bytes(range(256)) * 4
URLENCODED = "application/x-www-form-urlencoded"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, MODULES) as opened:
        yield opened


def part(name, content, filename=None, kind=None):
    """Return one part of a form; `name` None leaves it out."""
    shown = "" if name is None else f'; name="{name}"'
    shown += "" if filename is None else f'; filename="{filename}"'
    head = f"--bnd\r\nContent-Disposition: form-data{shown}\r\n" + (f"Content-Type: {kind}\r\n" if kind else "")
    data = content if isinstance(content, bytes) else content.encode()
    return head.encode() + b"\r\n" + data + b"\r\n"


def form(*parts):
    return b"".join(parts) + b"--bnd--\r\n"


MULTIPART = {"Content_Type": "multipart/form-data; boundary=bnd"}


async def send(site, name, *parts, **headers):
    status, head, body = await site.ask("POST", f"/modules/execute/{name}", form(*parts), **MULTIPART, **headers)
    return status, json.loads(body), head


async def result(site, name, *parts):
    status, answer, _ = await send(site, name, *parts)
    assert status == 200, answer
    return answer["result"]


async def problem(site, name, *parts):
    status, answer, _ = await send(site, name, *parts)
    assert "status" in answer
    assert status == answer["status"], answer
    return status, answer["kind"], answer.get("field"), answer["detail"]


async def stored(site):
    """Return the number of files in the store, and of unfinished ones."""
    await wait_until(lambda: site.service.files.statistics().writing == 0, "a file is still being written")
    folder = site.service.settings.store.data_dir / "files"
    return [path for path in folder.rglob("*") if path.is_file()]


def named(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


# -- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("age", "42")], {"age": 42}),
        ([("age", " +42 ")], {"age": 42}),
        ([("age", "-9223372036854775808000")], {"age": -9223372036854775808000}),
        ([("price", "1e3")], {"price": 1000.0}),
        ([("member", "on")], {"member": True}),
        ([("member", "False")], {"member": False}),
        ([("name", "42")], {"name": "42"}),
        ([("name", "é\n")], {"name": "é\n"}),
        ([("name", "")], {"name": ""}),
        ([("note", "")], {"note": ""}),
        ([("limit", "")], {"limit": None}),
        ([("limit", "3")], {"limit": 3}),
        ([("tags", "a")], {"tags": ["a"]}),
        ([("tags", "a"), ("age", "1"), ("tags", "b")], {"tags": ["a", "b"], "age": 1}),
        ([("tags", '["a", "b"]')], {"tags": ["a", "b"]}),
        ([("sizes", "1"), ("sizes", "2")], {"sizes": [1, 2]}),
        ([("options", '{"a": [1]}')], {"options": {"a": [1]}}),
        ([("level", "2")], {"level": 2}),
        ([("anything", "2")], {"anything": "2"}),
        ([("data", "text")], {"data": "text"}),
        ([], {}),
    ],
)
async def test_texts_are_converted_by_the_schema(site, parts, expected):
    assert await result(site, "typed", *(part(*each) for each in parts)) == expected
    body = urlencode(parts).encode()
    if parts:
        answer = await site.json("POST", "/modules/execute/typed", body, Content_Type=URLENCODED)
        assert answer["result"] == expected


@pytest.mark.parametrize(
    ("parts", "field", "words"),
    [
        ([("age", "old")], "$.age", "the form field 'age' is 'old', not a whole number"),
        ([("age", "")], "$.age", "is '', not a whole number"),
        ([("age", "1.5")], "$.age", "not a whole number"),
        ([("price", "NaN")], "$.price", "not a number"),
        ([("member", "maybe")], "$.member", "not true or false"),
        ([("options", "[1]")], "$.options", "not a JSON object"),
        ([("options", '{"a": NaN}')], "$.options", "not a JSON object"),
        ([("sizes", "1"), ("sizes", "x")], "$.sizes", "is 'x', not a whole number"),
        ([("name", "a"), ("name", "b")], "$.name", "2 parts named 'name', which is no array"),
        ([("color", "red")], "$.color", "the input has no field 'color'; allowed: age, anything, data"),
        ([("level", "9")], "$.level", ""),
        ([("photo", "text")], "$.photo", "is 'text', not a file"),
        ([("", "x")], "$", "part 1 of the form has no name"),
    ],
)
async def test_a_wrong_text_names_its_field(site, parts, field, words):
    status, kind, where, detail = await problem(site, "typed", *(part(*each) for each in parts))
    assert (status, kind, where) == (400, "bad_input", field)
    assert words in detail

    code, _, body = await site.ask("POST", "/modules/execute/typed", urlencode(parts).encode(), Content_Type=URLENCODED)
    again = json.loads(body)
    assert (code, again["kind"], again["field"]) == (400, "bad_input", field)
    assert await stored(site) == []


async def test_files_are_stored_and_named_in_the_input(site):
    large = PICTURE * 400
    got = await result(
        site,
        "typed",
        part("age", "1"),
        part("photo", PICTURE, "a b.png", "image/png"),
        part("photos", large, "C:\\\\dir\\\\one.bin"),
        part("photos", b"", "empty.txt", "text/plain"),
        part("data", b"text as a file", "x.txt", "text/plain"),
    )

    assert got == {
        "age": 1,
        "photo": {"$file": {"id": named(PICTURE), "name": "a b.png", "type": "image/png", "size": len(PICTURE)}},
        "photos": [
            {"$file": {"id": named(large), "name": "one.bin", "type": "application/octet-stream", "size": len(large)}},
            {"$file": {"id": named(b""), "name": "empty.txt", "type": "text/plain", "size": 0}},
        ],
        "data": {"$file": {"id": named(b"text as a file"), "name": "x.txt", "type": "text/plain", "size": 14}},
    }
    assert len(await stored(site)) == 4
    assert site.service.budget.taken == 0


async def test_a_file_for_text_is_its_text(site):
    assert await result(site, "typed", part("name", "é" * 70_000, "x.txt"), part("tags", "b", "b.txt")) == {
        "name": "é" * 70_000,
        "tags": ["b"],
    }
    assert await stored(site) == []


async def test_a_file_that_nobody_chose_is_left_out(site):
    empty = part("photo", b"", "", "application/octet-stream")
    assert await result(site, "typed", empty, part("age", "1")) == {"age": 1}


async def test_a_stored_file_is_named_by_its_id(site):
    made = await result(site, "typed", part("photo", PICTURE, "x.png", "image/png"))
    again = await result(site, "typed", part("photo", made["photo"]["$file"]["id"]))
    assert again["photo"]["$file"]["id"] == named(PICTURE)


async def test_a_module_without_a_schema_takes_any_form(site):
    got = await result(site, "echo", part("a", "1"), part("b", b"\xff", "b.bin"))
    assert (got["a"], got["b"]["$file"]["id"]) == ("1", named(b"\xff"))


async def test_a_signature_is_filled_by_a_form(site):
    photo = part("photo", PICTURE, "x.png", "image/png")
    assert await result(site, "signature", photo) == ["x.png", "0001", 200, [], [], None]
    more = [part("more", b"1", "a"), part("more", b"22", "b"), part("tags", "a"), part("options", '{"dpi": 300}')]
    assert await result(site, "signature", photo, part("width", "5"), *more) == ["x.png", "0001", 5, ["a"], [1, 2], 300]
    for parts, field in (
        ([photo, part("width", "wide")], "$.width"),
        ([photo, part("height", "1")], "$.height"),
        ([photo, part("options", '{"dpi": "x"}')], "$.options.dpi"),
        ([part("width", "1")], "$"),
    ):
        assert (await problem(site, "signature", *parts))[:3] == (400, "bad_input", field)
    for data in (b"", b"ab", PICTURE, b"x" * (MIB + 1)):
        answer = await site.json("POST", "/modules/execute/signed-bytes", data, Content_Type="application/pdf")
        assert answer["result"] == len(data)


async def test_the_document_has_the_bodies_of_each_module(site):
    paths = (await site.json("GET", "/openapi.json"))["paths"]

    def content(name):
        return paths[f"/modules/execute/{name}"]["post"]["requestBody"]["content"]

    binary = {"type": "string", "format": "binary"}
    shown = content("signature")
    assert list(shown) == ["application/json", "multipart/form-data", URLENCODED]
    of_form = shown["multipart/form-data"]["schema"]
    assert of_form["properties"]["photo"] == binary
    assert of_form["properties"]["more"] == {"type": "array", "items": binary}
    assert of_form["properties"]["width"] == {"$ref": "#/components/schemas/input.signature/properties/width"}
    assert of_form["required"] == ["photo"]
    assert list(content("number")) == ["application/json"]
    assert list(content("signed-bytes")) == ["application/json", "*/*"]


NEVER = [part("photo", PICTURE * 400, "x.png", "image/png")]


@pytest.mark.parametrize(
    ("parts", "status", "field", "words"),
    [
        ([*NEVER, part("age", "x")], 400, "$.age", "not a whole number"),
        ([*NEVER, part("age", "17")], 400, "$.age", ""),
        ([*NEVER], 400, "$", "age"),
        ([*NEVER, part("age", "18"), part("age", "18")], 400, "$.age", "2 parts named 'age'"),
        ([*NEVER, *NEVER, part("age", "18")], 400, "$.photo", "2 parts named 'photo'"),
        ([*NEVER, part("age", "18"), part(None, "x")], 400, "$", "part 3 of the form has no name"),
        ([*NEVER, part("age", b"18", "age.txt")], 400, "$.age", "is a file, and the input takes a whole number there"),
        ([*NEVER, part("age", b"\xff")], 400, "$.age", "is not UTF-8; send bytes as a file"),
        ([*NEVER, part("age", "18"), part("other", b"x", "..")], 400, "$.other", "is not the name of a file"),
        ([*NEVER, part("age", "18"), part("other", b"x", "x", "no type")], 400, "$.other", "is not a media type"),
        ([*NEVER, *[part(f"f{n}", b"x", "x") for n in range(64)]], 400, "$.f63", "more than 64 files"),
        ([*NEVER, *[part(f"f{n}", "x") for n in range(1000)]], 400, "$", "more than 1000 parts"),
        ([*NEVER, b"--bnd\r\nX: y\r\n\r\n1\r\n"], 400, "$", "the form cannot be read"),
        ([*NEVER, b"--bnd\r\nX: %b\r\n\r\n1\r\n" % (b"y" * 40_000)], 400, "$", "the head of a part is over"),
        ([*NEVER, part("age", "1" * (17 * MIB))], 413, "$", "the limit is `max_frame`"),
    ],
)
async def test_nothing_is_stored_for_a_form_that_is_refused(site, parts, status, field, words):
    found = await problem(site, "needs", *parts)

    assert found[0] == status
    assert (found[2] or "").startswith(field)
    assert words in found[3]
    assert await stored(site) == []
    assert site.service.budget.taken == 0
    assert (await site.json("GET", "/executions"))["items"] == []


async def test_a_form_that_is_cut_off_leaves_nothing(site):
    data = form(*NEVER)[:-9]
    status, _, body = await site.ask("POST", "/modules/execute/needs", data, **MULTIPART)
    assert (status, "cannot be read" in json.loads(body)["detail"]) == (400, True)

    client = await site.server.connect()
    async with client.stream:
        await client.send(site.head("POST", "/modules/execute/needs", length=len(data) + 100, **MULTIPART) + data)
        await wait_until(lambda: site.service.files.statistics().writing == 1, "no file was begun")
    assert await stored(site) == []
    assert site.service.budget.taken == 0


async def test_a_form_that_stops_arriving_ends(tmp_path):
    async with open_site(tmp_path, MODULES, server=ServerSettings(body_timeout_seconds=0.05)) as site:
        client = await site.server.connect()
        async with client.stream:
            data = form(*NEVER)
            await client.send(site.head("POST", "/modules/execute/needs", length=len(data) + 9, **MULTIPART) + data)
            status, _, body = await client.response()
        assert (status, "`body_timeout`" in json.loads(body)["detail"]) == (400, True)
        assert await stored(site) == []


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 71])
async def test_a_form_needs_a_boundary(site, kind):
    status, _, body = await site.ask("POST", "/modules/execute/echo", form(), Content_Type=kind)
    assert (status, json.loads(body)["field"]) == (415, "content-type")


@pytest.mark.parametrize(
    ("limits", "status", "kind", "words"),
    [
        ({"max_file_bytes": MIB}, 413, "too_large", "`max_file`"),
        ({"max_files_bytes": MIB}, 507, "out_of_storage", "`max_files_bytes`"),
    ],
)
async def test_a_file_over_a_limit_names_it(tmp_path, limits, status, kind, words):
    async with open_site(tmp_path, MODULES, files=FilesSettings(**limits)) as site:
        large = part("photo", PICTURE * 1025, "x.png")
        found = await problem(site, "needs", part("age", "18"), large)
        assert (found[0], found[1], found[2], words in found[3]) == (status, kind, "$.photo", True)
        assert await stored(site) == []


async def test_unfinished_forms_of_all_callers_have_one_bound(site):
    site.service.budget = Budget(MIB)
    many = [part(f"f{n}", PICTURE * 100, f"{n}") for n in range(8)]
    status, answer, head = await send(site, "echo", *many)
    assert (status, answer["kind"], b"retry-after" in head) == (503, "unavailable", True)
    assert site.service.budget.taken == 0
    assert await stored(site) == []


async def test_a_compressed_form_is_decoded(site):
    data = gzip.compress(form(part("age", "3"), part("photo", PICTURE, "x")))
    answer = await site.json("POST", "/modules/execute/typed", data, Content_Encoding="gzip", **MULTIPART)
    assert (answer["result"]["age"], answer["result"]["photo"]["$file"]["size"]) == (3, len(PICTURE))


async def test_a_large_form_is_read_in_steps(site):
    """A hundred pieces with fields and files between them: other callers are served meanwhile."""
    steps = 0

    async def count():
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await result(site, "echo", part("file", b"\r\n--bn" * (MIB // 2), "x"), part("text", "y" * MIB))
        nursery.cancel_scope.cancel()
    assert steps > 200


# -- urlencoded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b'{"a": "b=c"}', {"a": "b=c"}), (b'"a=b"', "a=b"), (b" [1]", [1]), (b"3", 3), (b"", None), (b"null", None)],
)
async def test_json_as_curl_sends_it_stays_json(site, data, expected):
    answer = await site.json("POST", "/modules/execute/echo", data, Content_Type=URLENCODED)
    assert answer["result"] == expected


async def test_text_and_bytes_as_curl_sends_them(site):
    for name, data, expected in (
        ("text", b"a=b, c", "a=b, c"),
        ("text", b"1;2", "1;2"),
        ("text", b'"Ada"', "Ada"),
        ("bytes", b"a,b", "a,b"),
    ):
        answer = await site.json("POST", f"/modules/execute/{name}", data, Content_Type=URLENCODED)
        assert answer["result"] == expected
    answer = await site.json("POST", "/modules/execute/bytes", PICTURE, Content_Type=URLENCODED)
    assert answer["result"]["$file"]["id"] == named(PICTURE)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"a=1&b=%C3%A9+x&c=", {"a": "1", "b": "é x", "c": ""}), (b"a=b=c", {"a": "b=c"})],
)
async def test_a_urlencoded_form(site, data, expected):
    answer = await site.json("POST", "/modules/execute/echo", data, Content_Type=f"{URLENCODED}; charset=utf-8")
    assert answer["result"] == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a=%ff", "is not UTF-8"),
        (b"a=\xff", "is not UTF-8"),
        (b"=1", "part 1 of the form has no name"),
        (b"&".join(b"a%d=1" % n for n in range(1001)), "more than 1000 fields"),
    ],
)
async def test_a_wrong_urlencoded_form(site, data, words):
    status, _, body = await site.ask("POST", "/modules/execute/echo", data, Content_Type=URLENCODED)
    assert (status, words in json.loads(body)["detail"]) == (400, True), body


def test_many_escapes_take_little_memory():
    data = b"a=" + b"+%C3%A9x%4" * 100_000
    tracemalloc.start()
    try:
        found = read_urlencoded(data, Fields(None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == {"a": " éx%4" * 100_000}
    assert peak < 12 * len(data)  # the decoder of the standard library takes forty times its size


# -- other types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "text/csv; charset=utf-8", "application/octet-stream"])
async def test_text_goes_to_a_handler_of_text(site, kind):
    text = "a;b\n" * 40_000
    answer = await site.json("POST", "/modules/execute/text", text.encode(), Content_Type=kind)
    assert answer["result"] == text
    status, _, body = await site.ask("POST", "/modules/execute/text", b"\xff", Content_Type=kind)
    assert (status, "is not UTF-8" in json.loads(body)["detail"]) == (400, True)


async def test_bytes_go_to_a_handler_of_bytes(site):
    for data, expected in ((b"short", "short"), (b"", "")):
        answer = await site.json("POST", "/modules/execute/bytes", data, Content_Type="text/csv")
        assert answer["result"] == expected
    large = b"x" * (65 * 1024)
    for data in (PICTURE, large):
        answer = await site.json("POST", "/modules/execute/bytes", data, Content_Type="image/png")
        shown = {"id": named(data), "name": "body.png", "type": "image/png", "size": len(data)}
        assert answer["result"] == {"$file": shown}


async def test_bytes_without_a_type_are_refused_with_the_remedy(site):
    status, _, body = await site.ask("POST", "/modules/execute/bytes", PICTURE)
    assert (status, "bytes needs its type in `Content-Type`" in json.loads(body)["detail"]) == (400, True), body


async def test_every_body_goes_to_a_handler_of_requests(site):
    path = "/modules/execute/request"
    answer = await site.json("POST", path, PICTURE, Content_Type="image/png")
    assert answer["result"] == ["POST", "image/png", len(PICTURE), {}, {}]
    answer = await site.json("POST", path, b"a=1&b=2&b=3", Content_Type=URLENCODED)
    assert answer["result"] == ["POST", URLENCODED, 11, {"a": "1", "b": ["2", "3"]}, {}]
    parts = [part("photo", PICTURE, "x.png"), part("a", "1"), part("a", "2")]
    expected = ["POST", "multipart/form-data", 0, {"a": ["1", "2"]}, {"photo": len(PICTURE)}]
    assert await result(site, "request", *parts) == expected


@pytest.mark.parametrize(
    ("name", "kind", "types"),
    [
        ("echo", "image/png", "application/json, multipart/form-data, application/x-www-form-urlencoded"),
        ("number", "image/png", "application/json"),
        ("number", "multipart/form-data; boundary=bnd", "application/json"),
        ("text", "multipart/form-data; boundary=bnd", "application/json, */*"),
        ("typed", "text/csv", "application/json, multipart/form-data, application/x-www-form-urlencoded"),
    ],
)
async def test_a_type_that_is_not_taken_is_answered_with_those_that_are(site, name, kind, types):
    status, headers, body = await site.ask("POST", f"/modules/execute/{name}", form(), Content_Type=kind)
    answer = json.loads(body)
    assert (status, answer["kind"], answer["field"]) == (415, "bad_input", "content-type")
    assert headers[b"accept-post"].decode() == types
    assert "application/json" in answer["detail"]
    assert await stored(site) == []


async def test_json_goes_by_other_names_too(site):
    for kind in ("application/json; charset=utf-8", "application/cloudevents+json", "text/plain;charset=UTF-8"):
        assert (await site.json("POST", "/modules/execute/echo", b"[1]", Content_Type=kind))["result"] == [1]


async def test_a_module_that_the_token_does_not_allow_takes_no_body(site):
    status, _, body = await site.ask("POST", "/modules/execute/other", form(*NEVER), **MULTIPART)
    assert (status, json.loads(body)["kind"]) == (404, "not_found")
    assert await stored(site) == []


# -- accepted executions, keys ---------------------------------------------------------------------------------------


async def test_a_form_is_accepted_to_run_later(site):
    parts = form(part("age", "18"), part("photo", PICTURE, "x.png", "image/png"))
    for path, headers in (
        ("/executions?module=needs", {}),
        ("/modules/execute/needs", {"Prefer": "respond-async"}),
    ):
        accepted = await site.json("POST", path, parts, **MULTIPART, **headers)

        def done(name=accepted["id"]):
            return site.service.runs.find(name) is None

        await wait_until(done, "it has not ended")
        shown = await site.json("GET", f"/executions/{accepted['id']}")
        assert (shown["status"], shown["input"]["age"], shown["input"]["photo"]["$file"]["id"]) == (
            "succeeded",
            18,
            named(PICTURE),
        )


async def test_an_order_in_the_body_names_its_version_there(site):
    status, _, body = await site.ask("POST", "/executions?version=1", b'{"module": "echo"}')
    assert (status, json.loads(body)["field"]) == (400, "version")


async def test_equal_forms_have_one_key(site):
    parts = form(part("age", "18"), part("photo", PICTURE, "x.png", "image/png"))
    first = await site.json("POST", "/modules/execute/needs", parts, Idempotency_Key="k", **MULTIPART)
    again = await site.json("POST", "/modules/execute/needs", parts, Idempotency_Key="k", **MULTIPART)
    assert again["id"] == first["id"]


def test_a_schema_that_refers_to_itself_has_an_end():
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}}}
    assert (Fields(schema).taken, Fields(schema).raw) == (False, True)
    wide = {
        "anyOf": [{"$ref": f"#/$defs/{n}"} for n in range(300)],
        "$defs": {str(n): {"type": "null"} for n in range(300)},
    }
    assert Fields(wide).root.any
    endless = {"type": "array", "items": {"$ref": "#"}}
    assert Fields({"type": "object", "properties": {"a": endless}}).of("a").repeated
    assert forms.MAX_PARTS == 1000
