"""Contract: compressed bodies and forms, at every route that has a body: understood, bounded, and never in one step."""

from __future__ import annotations

import gzip
import json
import random
import zlib

import pytest
import trio

from config.code import pack
from protocol.errors import ErrorKind, RunnerError
from runner.http import read_body
from runner.inputs import read_file
from runner.rest.bodies import inflating
from runner.rest.openapi.operations import OPERATIONS
from runner.wire import Budget
from tests.contract.test_approvals import ASKS
from tests.contract.test_streams import ECHO, open_site
from tests.support import wait_until

MIB = 1024 * 1024
ONE = {"env": "inline", "code": "def handler(input): return 1"}
ARCHIVE = pack({"handler.py": b"def handler(input): return 'uploaded'"})
WITH_BODY = [operation for operation in OPERATIONS if operation.body]
RAW = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "GZIP": gzip.compress}
LINES = "application/x-ndjson"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO, ASKS)) as opened:
        yield opened


def raw_deflate(data):
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


BODIES = {
    "execute": ("POST", "/modules/execute/echo", "application/json", b'{"a": 1}'),
    "submit": ("POST", "/executions", "application/json", b'{"module": "echo", "input": 1}'),
    "executeBatch": ("POST", "/modules/execute/echo/batch", LINES, b"1\n2\n"),
    "registerModule": ("POST", "/modules", "application/json", json.dumps({"name": "m1", **ONE}).encode()),
    "putModule": ("PUT", "/modules/m2", "application/json", json.dumps(ONE).encode()),
    "patchModule": ("PATCH", "/modules/m3", "application/json", b'{"timeout": 3}'),
    "createKey": ("POST", "/keys", "application/json", b'{"name": "m", "scopes": "executions:run"}'),
    "createSchedule": ("POST", "/schedules", "application/json", b'{"module": "echo", "every": "1h"}'),
    "changeSchedule": ("PATCH", "/schedules/{schedule}", "application/json", b'{"timezone": "Asia/Seoul"}'),
    "approveExecution": ("POST", "/executions/{asked}/approve", "application/json", b'{"reason": "good"}'),
    "denyExecution": ("POST", "/executions/{asked}/deny", "application/json", b'{"reason": "bad"}'),
    "rerunExecution": ("POST", "/executions/{id}/rerun", "application/json", b'{"version": "active"}'),
    "rerunExecutions": (
        "POST",
        "/executions/rerun?dry_run=true&module=echo",
        "application/json",
        b'{"version": "active"}',
    ),
    "uploadModule": ("POST", "/modules/upload?name=m4", "application/zip", ARCHIVE),
    "uploadFile": ("POST", "/files", "image/png", b"a picture"),
}
COLLECTED = [name for name in BODIES if name != "uploadFile"]
"""Those whose body is in memory as a whole; that of a file goes to the disk, and has a limit of its own."""


def test_every_operation_with_a_body_is_tried():
    assert set(BODIES) == {operation.name for operation in WITH_BODY}


async def post(site, name, encoding, data):
    method, path, kind, _ = BODIES[name]
    if "{asked}" in path:
        path = path.replace("{asked}", (await site.json("POST", "/executions", {"module": "asks"}))["id"])
    elif "{id}" in path:
        path = path.replace("{id}", (await site.json("POST", "/modules/execute/echo", 1))["id"])
    elif "{schedule}" in path:
        every = {"module": "echo", "every": f"{2 + len((await site.json('GET', '/schedules'))['items'])}h"}
        path = path.replace("{schedule}", (await site.json("POST", "/schedules", every))["id"])
    return await site.ask(method, path, data, Content_Type=kind, Content_Encoding=encoding)


# -- compressed bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BODIES)
async def test_a_compressed_body_is_understood_at_every_route(site, name):
    await site.json("PUT", "/modules/m3", ONE)
    plain = BODIES[name][3]
    for encoding, compress in (*RAW.items(), ("deflate", raw_deflate), ("identity", bytes)):
        status, _, body = await post(site, name, encoding, compress(plain))
        if (
            name in ("registerModule", "createKey", "createSchedule") and status == 409
        ):  # it exists since the first time
            continue
        assert 200 <= status < 300, (encoding, body)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, identity", "*", "gzip;q=1"])
@pytest.mark.parametrize("name", BODIES)
async def test_another_encoding_is_refused_with_those_that_are_understood(site, name, encoding):
    status, headers, body = await post(site, name, encoding, BODIES[name][3])

    problem = json.loads(body)
    assert (status, problem["status"], problem["kind"]) == (415, 415, "bad_input")
    assert problem["field"] == "content-encoding"
    assert "gzip, deflate" in problem["detail"]
    assert headers[b"accept-encoding"] == b"gzip, deflate"


async def test_a_content_is_bounded_however_small_its_body_is(site):
    limit = site.service.settings.server.max_frame_bytes
    text = gzip.compress(b"1" + b" " * (limit - 1))
    assert (await site.json("POST", "/modules/execute/echo", text, Content_Encoding="gzip"))["result"] == 1
    bomb = gzip.compress(b" " * (limit + 1))
    for name in COLLECTED:
        status, _, body = await post(site, name, "gzip", bomb)
        problem = json.loads(body)
        assert (status, problem["kind"], problem["field"]) == (413, "too_large", "$"), name


@pytest.mark.parametrize("name", [name for name in COLLECTED if name != "executeBatch"])
async def test_contents_of_all_callers_have_one_bound(site, name):
    """A thousand small bodies must not become a thousand large ones."""
    site.service.budget = Budget(MIB)
    method, path, kind, _ = BODIES[name]
    bomb = gzip.compress(b" " * (MIB + 1))
    status, headers, body = await site.ask(method, path, bomb, Content_Type=kind, Content_Encoding="gzip")
    assert (status, json.loads(body)["kind"], b"retry-after" in headers) == (503, "unavailable", True)
    assert "max_buffered" in json.loads(body)["detail"]
    assert site.service.budget.taken == 0

    data = form((b"file", b"m.zip", b" " * MIB))
    if name == "uploadModule":
        upload = await site.ask(method, path, gzip.compress(data), Content_Encoding="gzip", **MULTIPART)
        assert upload[0] == 503
    assert (await post(site, "execute", "gzip", gzip.compress(b"1" + b" " * (MIB - 1))))[0] == 200
    assert site.service.budget.taken == 0


@pytest.mark.parametrize(
    ("encoding", "data", "words"),
    [
        ("gzip", b"{}", "the body is not gzip"),
        ("gzip", zlib.compress(b"1"), "the body is not gzip"),
        ("gzip", gzip.compress(b"1", mtime=0)[:-1], "the body is cut off"),
        ("gzip", gzip.compress(b"1", mtime=0)[:5], "the body is cut off"),
        ("gzip", gzip.compress(b"1", mtime=0) + b"xx", "the body is not gzip"),
        ("gzip", gzip.compress(b"1", mtime=0)[:-8] + b"\0" * 8, "the body is not gzip"),
        ("deflate", b"\xff\xff\xff", "the body is not deflate"),
        ("deflate", zlib.compress(b"1")[:-1], "the body is cut off"),
        ("deflate", zlib.compress(b"1") + b"x", "after the end of its deflate stream"),
        ("deflate", raw_deflate(b"1")[:-1], "the body is cut off"),
    ],
)
async def test_a_damaged_body_is_named(site, encoding, data, words):
    for name in ("execute", "submit"):
        status, _, body = await post(site, name, encoding, data)
        problem = json.loads(body)
        assert (status, problem["kind"]) == (400, "bad_input"), problem
        assert words in problem["detail"]


async def test_an_encoding_where_no_body_is_taken_is_ignored(site):
    assert (await site.ask("GET", "/modules", Content_Encoding="br"))[0] == 200


async def test_a_batch_is_inflated_while_it_arrives(site):
    """The first input is answered before the second is sent."""
    engine = zlib.compressobj(wbits=31)
    client = await site.server.connect()

    async def chunk(data):
        await client.send(b"%x\r\n%b\r\n" % (len(data), data))

    async with client.stream:
        head = site.head("POST", "/modules/execute/echo/batch", Content_Type=LINES, Content_Encoding="gzip")
        await client.send(head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        await chunk(engine.compress(b"1\n") + engine.flush(zlib.Z_SYNC_FLUSH))
        await client.until(b"\r\n\r\n")
        assert b'"result":1' in await client.until(b"\n\r\n")
        await chunk(engine.compress(b"2\n") + engine.flush())
        assert b'"result":2' in await client.until(b"\n\r\n")
        await client.send(b"0\r\n\r\n")
        assert await client.until(b"0\r\n\r\n") == b""


def parts(data, generator):
    """Return data as messages of a body, cut anywhere."""
    cuts = sorted(generator.randrange(len(data) + 1) for _ in range(generator.randrange(6)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces[:-1]] + [
        {"type": "http.request", "body": pieces[-1], "more_body": False}
    ]


def receiving(messages):
    rest = list(messages)

    async def receive():
        await trio.lowlevel.checkpoint()
        return rest.pop(0)

    return receive


@pytest.mark.parametrize("seed", range(40))
async def test_any_content_in_any_pieces(seed):
    generator = random.Random(seed)
    content = generator.choice([b"", b"1", b"x" * 300_000, generator.randbytes(200_000), b"ab" * 65_536])
    encoding, compress = generator.choice([*RAW.items(), ("deflate", raw_deflate)])
    data = compress(content)
    if compress is gzip.compress:  # of several members
        data += gzip.compress(b"") + gzip.compress(content)
        content += content

    receive = inflating(receiving(parts(data, generator)), encoding)
    assert await read_body({"headers": ()}, receive, 10 * MIB) == content


async def test_an_empty_body_is_empty_in_every_encoding():
    for encoding in ("gzip", "deflate"):
        receive = inflating(receiving(parts(b"", random.Random(1))), encoding)
        assert await read_body({"headers": ()}, receive, 10) == b""


async def test_no_step_makes_more_than_its_part(monkeypatch):
    """Between any two steps other tasks may run, also in a body without content."""
    steps = 0
    checkpoint = trio.lowlevel.checkpoint

    async def counted():
        nonlocal steps
        steps += 1
        await checkpoint()

    monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
    bomb = gzip.compress(bytes(8 * MIB))
    receive = inflating(receiving([{"type": "http.request", "body": bomb, "more_body": False}]), "gzip")
    sizes = []
    while True:
        message = await receive()
        sizes.append(len(message["body"]))
        if not message["more_body"]:
            break
    assert sum(sizes) == 8 * MIB
    assert max(sizes) <= 64 * 1024
    assert steps >= len(sizes)

    steps, members = 0, gzip.compress(b"") * 5000
    receive = inflating(receiving([{"type": "http.request", "body": members, "more_body": False}]), "gzip")
    assert await read_body({"headers": ()}, receive, 10) == b""
    assert steps >= 5000


async def test_a_cancelled_read_loses_nothing():
    data = gzip.compress(b"abc" * 100_000)
    receive = inflating(receiving(parts(data, random.Random(3))), "gzip")
    content, more = b"", True
    while more:
        with trio.move_on_after(0) as scope:
            await receive()
        assert scope.cancelled_caught
        message = await receive()
        content, more = content + message["body"], message["more_body"]
    assert content == b"abc" * 100_000


# -- forms -----------------------------------------------------------------------------------------------------------


def form(*fields, boundary=b"bnd", end=b"--bnd--\r\n"):
    """Return a form of (name, file name, content)."""
    body = b""
    for name, file, content in fields:
        disposition = b'Content-Disposition: form-data; name="%b"' % name
        if file is not None:
            disposition += b'; filename="%b"\r\nContent-Type: application/zip' % file
        body += b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, disposition, content)
    return body + end


MULTIPART = {"Content_Type": "multipart/form-data; boundary=bnd"}


@pytest.mark.parametrize("part", [b"file", b"archive"])
@pytest.mark.parametrize("file", [b"module.zip", None])
async def test_an_archive_may_be_the_file_of_a_form(site, part, file):
    data = form((part, file, ARCHIVE))
    added = await site.json("POST", "/modules/upload?name=m", data, **MULTIPART)
    same = await site.json("POST", "/modules/upload?name=m", gzip.compress(data), Content_Encoding="gzip", **MULTIPART)

    assert added["digest"] == same["digest"]
    assert (await site.json("POST", "/modules/execute/m"))["result"] == "uploaded"


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        (form((b"name", None, b"m"), (b"file", b"m.zip", ARCHIVE)), "name", "unknown part 'name'"),
        (form((b"file", b"m.zip", ARCHIVE), (b"activate", None, b"false")), "activate", "unknown part 'activate'"),
        (form((b"file", b"m.zip", ARCHIVE), (b"archive", b"m.zip", ARCHIVE)), "archive", "two files"),
        (form(), "file", "has no file"),
        (b"", "$", "cannot be read"),
        (b"no form at all", "$", "cannot be read"),
        (form((b"file", b"m.zip", ARCHIVE), end=b""), "$", "cannot be read"),
        (form((b"file", b"m.zip", ARCHIVE))[:-9], "$", "cannot be read"),
        (b"--bnd\r\nContent-Type: a/b\r\n\r\nx\r\n--bnd--\r\n", "$", "cannot be read"),
        (b"--bnd\r\nContent-Disposition: form-data\r\n\r\nx\r\n--bnd--\r\n", "", "unknown part ''"),
        (b"--bnd\r\nX-A: %b\r\n\r\nx\r\n--bnd--\r\n" % (b"a" * 40_000), "$", "the head of a part is over"),
        (b"\r\n" * 20_000 + form((b"file", b"m.zip", ARCHIVE)), "$", "the head of a part is over"),
        (b"--bnd\r\nContent-Disposition: \xff\r\n\r\nx\r\n--bnd--\r\n", "$", "cannot be read"),
    ],
)
async def test_a_form_with_anything_else_is_refused_by_name(site, data, field, words):
    status, _, body = await site.ask("POST", "/modules/upload?name=m", data, **MULTIPART)

    problem = json.loads(body)
    assert (status, problem["kind"], problem.get("field")) == (400, "bad_input", field), problem
    assert words in problem["detail"]
    assert (await site.ask("GET", "/modules/m"))[0] == 404


@pytest.mark.parametrize("kind", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 71}"])
async def test_a_form_needs_a_boundary(site, kind):
    status, _, body = await site.ask("POST", "/modules/upload?name=m", b"x", Content_Type=kind)
    assert (status, json.loads(body)["field"]) == (415, "content-type")


@pytest.mark.parametrize("seed", range(20))
async def test_any_file_in_any_pieces(seed):
    generator = random.Random(seed)
    pieces = [b"\r\n", b"--bn", b"\r\n--bn", b"\r", b"\n", b"-", b"\0\xff" * 9]
    content = b"".join(generator.choice(pieces) for _ in range(generator.randrange(20_000)))
    messages = parts(form((b"file", b"m.zip", content)), generator)

    async def piece():
        message = messages.pop(0)
        return message["body"], message["more_body"]

    assert await read_file("multipart/form-data; boundary=bnd", piece, 10 * MIB) == content


async def test_a_form_is_bounded():
    async def piece():
        return form((b"file", b"m.zip", b"x" * 1000)), True

    with pytest.raises(RunnerError) as caught:
        await read_file("multipart/form-data; boundary=bnd", piece, 1000)
    assert caught.value.failure.kind is ErrorKind.TOO_LARGE


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLLECTED)
async def test_a_body_over_the_limit_has_a_kind_with_and_without_a_length(site, name):
    limit = site.service.settings.server.max_frame_bytes
    method, path, kind, _ = BODIES[name]
    kind = "application/json" if name == "executeBatch" else kind
    for announced in (True, False):
        client = await site.server.connect()
        async with client.stream:
            head = site.head(method, path, length=limit + 1, Content_Type=kind)
            if not announced:
                head = head.replace(b"Content-Length: %d" % (limit + 1), b"Transfer-Encoding: chunked")
            await client.send(head)
            if not announced:
                await client.send(b"%x\r\n%b\r\n" % (limit + 1, b" " * (limit + 1)))
            status, _, body = await client.response()
        problem = json.loads(body)
        assert (status, problem["status"], problem["kind"]) == (413, 413, "too_large"), (announced, problem)


async def test_answers_of_all_callers_have_one_bound(site):
    """A large answer waits unmade, or is refused, while others are not read; small ones are served."""
    large = b'"' + b" " * MIB + b'"'
    budget = site.service.answers.budget
    budget.limit = 2 * MIB
    _, headers, _ = await site.ask("POST", "/modules/execute/echo", large)
    path = "/executions/" + headers[b"x-execution-id"].decode()
    assert budget.taken == 0
    assert budget.take(budget.limit), "as answers that are not read"

    status, headers, body = await site.ask("GET", path)
    assert (status, json.loads(body)["kind"], headers[b"retry-after"]) == (503, "unavailable", b"1")
    assert (await site.json("POST", "/modules/execute/echo", b"1"))["result"] == 1
    async with trio.open_nursery() as nursery:
        ended = []

        async def call():
            ended.append(await site.ask("POST", "/modules/execute/echo", large))

        nursery.start_soon(call)
        await wait_until(lambda: len(budget._waiting) == 1, "the result waits for its turn")
        assert not ended
        budget.give(budget.limit)
    assert ended[0][0] == 200
    assert json.loads(ended[0][2])["result"] == " " * MIB
    assert budget.taken == 0
