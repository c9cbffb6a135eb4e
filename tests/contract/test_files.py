"""Contract: files over REST: uploads, downloads with ranges and conditions, who sees them, limits, clients that go."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import time
from pathlib import Path

import attrs
import pytest
import trio

from actors.files import collecting
from config.settings import MIB, FilesSettings
from runner.auth.tokens import sign
from tests.contract.test_streams import ECHO, SECRET, open_site
from tests.http_support import NEVER, QUICK
from tests.support import inline, wait_until

DATA = bytes(range(256)) * 40
OTHER = inline("other", "def handler(input): return input")


def id_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
async def site(tmp_path):
    limits = FilesSettings(max_file_bytes=2 * MIB, max_files_bytes=4 * MIB)
    async with open_site(tmp_path, (ECHO, OTHER), files=limits) as opened:
        yield opened


def with_token(site, subject="kim", scopes=("files:read", "files:write"), modules=()):
    token = sign(SECRET, subject=subject, scopes=list(scopes), expires_seconds=3600, modules=list(modules))
    return attrs.evolve(site, token=token)


def contents(site) -> list[str]:
    folder = site.service.settings.store.data_dir / "files"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def uploaded(site, data=DATA, query="", **headers) -> str:
    status, _, body = await site.ask("POST", f"/files{query}", data, **headers)
    assert status == 201, body
    return json.loads(body)["$file"]["id"]


def problem(answer) -> tuple[int, str, str | None]:
    status, headers, body = answer
    assert headers[b"content-type"] == b"application/problem+json"
    found = json.loads(body)
    return status, found["kind"], found.get("field")


# -- uploads ---------------------------------------------------------------------------------------------------------


async def test_an_upload_is_answered_with_the_file_and_its_path(site):
    status, headers, body = await site.ask("POST", "/files?name=a%20b.jpg", DATA, Content_Type="image/jpeg")

    described = {"id": id_of(DATA), "name": "a b.jpg", "type": "image/jpeg", "size": len(DATA)}
    assert (status, json.loads(body)) == (201, {"$file": described})
    assert headers[b"location"].decode() == f"/files/{id_of(DATA)}"
    listed = (await site.json("GET", "/files"))["items"]
    assert [{**described, "created_at": listed[0]["created_at"]}] == listed


async def test_an_empty_file_is_a_file(site):
    name = await uploaded(site, b"")

    assert await site.ask("GET", f"/files/{name}") == (200, (await site.ask("GET", f"/files/{name}"))[1], b"")


async def test_chunks_make_one_file(site):
    client = await site.server.connect()
    async with client.stream:
        head = site.head("POST", "/files").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        await client.send(head)
        for at in range(0, len(DATA), 1000):
            piece = DATA[at : at + 1000]
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await client.send(b"0\r\n\r\n")
        status, _, body = await client.response()

    assert (status, json.loads(body)["$file"]["id"]) == (201, id_of(DATA))


async def test_a_compressed_upload_is_stored_as_its_content(site):
    name = await uploaded(site, gzip.compress(DATA), f"?digest={id_of(DATA)}", Content_Encoding="gzip")

    assert name == id_of(DATA)


async def test_a_damaged_compression_stores_nothing(site):
    answer = await site.ask("POST", "/files", gzip.compress(os.urandom(MIB))[:-5], Content_Encoding="gzip")

    assert problem(answer) == (400, "bad_input", "$")
    assert contents(site) == []


async def test_a_compressed_upload_is_limited_by_its_content(site):
    answer = await site.ask("POST", "/files", gzip.compress(bytes(3 * MIB)), Content_Encoding="gzip")

    assert problem(answer) == (413, "too_large", "$")
    assert contents(site) == []


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
async def test_a_digest_is_checked(site, header):
    assert await uploaded(site, DATA, "", **{header: f"sha-512=:AAAA:, {digest(DATA)}"})
    wrong = await site.ask("POST", "/files", b"damaged", **{header: digest(b"whole")})
    unclear = await site.ask("POST", "/files", b"x", **{header: "sha-256=abc"})

    assert problem(wrong) == (400, "bad_input", "digest")
    assert problem(unclear) == (400, "bad_input", header.lower())
    assert len(contents(site)) == 1


async def test_digests_that_are_not_clear_are_refused(site):
    two = await site.ask("POST", f"/files?digest={id_of(b'a')}", b"a", Repr_Digest=digest(b"b"))
    no_id = await site.ask("POST", "/files?digest=abc", b"a")
    packed = await site.ask("POST", "/files", gzip.compress(b"a"), Content_Encoding="gzip", Repr_Digest=digest(b"a"))

    assert [problem(answer)[2] for answer in (two, no_id, packed)] == ["digest", "digest", "repr-digest"]
    assert contents(site) == []


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ("?name=a%2Fb", {}, "name"),
        ("?name=..", {}, "name"),
        ("", {"Content_Type": "jpeg"}, "content-type"),
        ("?nam=x", {}, "nam"),
        ("", {"Content_Type": "multipart/form-data; boundary=x"}, "content-type"),
    ],
)
async def test_bad_input_names_its_field(site, query, headers, field):
    answer = await site.ask("POST", f"/files{query}", b"x", **headers)

    assert json.loads(answer[2])["field"] == field
    assert contents(site) == []


async def test_the_type_that_curl_makes_up_does_not_count(site):
    _, _, body = await site.ask("POST", "/files", b"x", Content_Type="application/x-www-form-urlencoded")

    assert json.loads(body)["$file"]["type"] == "application/octet-stream"


async def test_a_body_may_say_that_it_is_not_encoded(site):
    name = await uploaded(site, DATA, Content_Encoding="identity", Repr_Digest=digest(DATA))

    assert name == id_of(DATA)


async def test_a_file_that_is_announced_too_large_is_refused_before_it_is_sent(site):
    client = await site.server.connect()
    async with client.stream:
        await client.send(site.head("POST", "/files", length=2 * MIB + 1, Expect="100-continue"))
        answer = await client.response()

    assert problem(answer) == (413, "too_large", "$")
    assert "the limit is `max_file`" in json.loads(answer[2])["detail"]


async def test_a_file_that_becomes_too_large_is_refused_while_it_is_sent(site):
    client = await site.server.connect()
    async with client.stream:
        head = site.head("POST", "/files").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        await client.send(head + b"%x\r\n" % (2 * MIB + 1) + bytes(2 * MIB + 1))
        answer = await client.response()

    assert problem(answer) == (413, "too_large", "$")
    assert contents(site) == []


async def test_a_full_store_refuses_with_507(site):
    await uploaded(site, b"1" * 2 * MIB)
    await uploaded(site, b"2" * (2 * MIB - 10))

    answer = await site.ask("POST", "/files", b"3" * 11)

    assert problem(answer) == (507, "out_of_storage", None)
    assert "the limit is `max_files_bytes`" in json.loads(answer[2])["detail"]
    assert len(contents(site)) == 2


async def test_a_client_that_goes_leaves_nothing(site):
    client = await site.server.connect()
    await client.send(site.head("POST", "/files", length=2 * MIB) + bytes(MIB))
    await wait_until(lambda: contents(site), "the upload has begun")
    client.reset()

    await wait_until(
        lambda: not contents(site) and not site.service.files.statistics().writing, "nothing is left of the upload"
    )
    assert site.service.files.statistics().files == 0


async def test_a_client_that_sends_nothing_is_refused(tmp_path):
    async with open_site(tmp_path, (ECHO,)) as site:
        server = attrs.evolve(site.service.settings.server, body_timeout_seconds=QUICK)
        site.service.settings = attrs.evolve(site.service.settings, server=server)
        client = await site.server.connect()
        async with client.stream:
            await client.send(site.head("POST", "/files", length=10) + b"12345")
            answer = await client.response()

        assert problem(answer) == (400, "bad_input", "$")
        assert "body_timeout" in json.loads(answer[2])["detail"]
        assert contents(site) == []


async def test_an_upload_takes_no_memory_of_unfinished_requests(site):
    client = await site.server.connect()
    async with client.stream:
        await client.send(site.head("POST", "/files", length=2 * MIB) + bytes(2 * MIB - 1))
        await wait_until(
            lambda: site.service.files.statistics().writing_bytes == 2 * MIB - 1, "all sent bytes are in the store"
        )

        assert site.server.budget.taken == 0
        await client.send(b"\0")
        assert (await client.response())[0] == 201


async def test_uploads_share_the_memory_of_unfinished_requests(site):
    service = site.service
    assert service.budget.take(service.budget.limit - 1000)
    refused = await site.ask("POST", "/files", DATA)
    service.budget.give(service.budget.limit - 1000)

    assert problem(refused) == (503, "unavailable", None)
    assert await uploaded(site)
    assert service.budget.taken == 0


# -- downloads -------------------------------------------------------------------------------------------------------


async def test_a_file_comes_back_as_it_was_sent(site):
    name = await uploaded(site, DATA, "?name=B%C3%A4r%22.png", Content_Type="image/png")

    status, headers, body = await site.ask("GET", f"/files/{name}")

    assert (status, body) == (200, DATA)
    assert headers[b"content-type"] == b"image/png"
    assert headers[b"etag"] == f'"{name[7:]}"'.encode()
    assert headers[b"accept-ranges"] == b"bytes"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"content-disposition"] == b"inline; filename=\"b_r_.png\"; filename*=utf-8''b%c3%a4r%22.png"
    assert (await site.ask("GET", f"/files/{name.replace(':', '%3A')}"))[2] == DATA


@pytest.mark.parametrize(
    ("media_type", "shown"),
    [
        ("text/html", b"attachment"),
        ("image/svg+xml", b"attachment"),
        ("image/png", b"inline"),
        ("text/csv; charset=utf-8", b"inline"),
        ("application/x-unknown", b"attachment"),
        ("image/png, text/html", b"attachment"),
    ],
)
async def test_a_browser_shows_what_runs_nothing(site, media_type, shown):
    name = await uploaded(site, DATA, Content_Type=media_type)

    _, headers, _ = await site.ask("GET", f"/files/{name}")

    assert headers[b"content-disposition"].partition(b";")[0] == shown
    assert headers[b"content-security-policy"].startswith(b"sandbox;")


async def test_head_has_the_head_of_get(site):
    name = await uploaded(site)

    _, headers, body = await site.ask("HEAD", f"/files/{name}", Range="bytes=0-1")
    _, of_get, _ = await site.ask("GET", f"/files/{name}")

    assert body == b""
    assert {**headers, b"date": b""} == {**of_get, b"date": b""}


SIZE = len(DATA)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=10-", 10, SIZE - 1),
        (f"bytes=10-{SIZE + 100}", 10, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
        (f"bytes=-{SIZE + 1}", 0, SIZE - 1),
        ("bytes = 1 - 2", 1, 2),
    ],
)
async def test_a_range_is_a_part(site, asked, first, last):
    name = await uploaded(site)

    status, headers, body = await site.ask("GET", f"/files/{name}", Range=asked)

    assert (status, body) == (206, DATA[first : last + 1])
    assert headers[b"content-range"] == f"bytes {first}-{last}/{SIZE}".encode()
    assert headers[b"content-length"] == b"%d" % (last - first + 1)


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=5-4", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=1"])
async def test_a_range_that_is_not_understood_is_ignored(site, asked):
    name = await uploaded(site)

    assert (await site.ask("GET", f"/files/{name}", Range=asked))[::2] == (200, DATA)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 6}", "bytes=-0"])
async def test_a_range_outside_of_the_file_is_416(site, asked):
    name = await uploaded(site)

    status, headers, body = await site.ask("GET", f"/files/{name}", Range=asked)

    assert (status, headers[b"content-range"]) == (416, f"bytes */{SIZE}".encode())
    assert json.loads(body)["status"] == 416


async def test_conditions(site):
    name = await uploaded(site)
    tag = f'"{name[7:]}"'

    async def ask(**headers):
        status, found, body = await site.ask("GET", f"/files/{name}", **headers)
        assert (b"content-length" in found) == (status != 304)
        return status, len(body) if status != 412 else 0, b"etag" in found

    assert await ask(If_None_Match=tag) == (304, 0, True)
    assert await ask(If_None_Match=f'"x", W/{tag}') == (304, 0, True)
    assert await ask(If_None_Match="*") == (304, 0, True)
    assert await ask(If_None_Match='"x"') == (200, SIZE, True)
    assert await ask(If_Match=tag) == (200, SIZE, True)
    assert (await ask(If_Match=f"W/{tag}"))[0] == 412
    assert await ask(Range="bytes=0-1", If_Range=tag) == (206, 2, True)
    assert await ask(Range="bytes=0-1", If_Range='"x"') == (200, SIZE, True)
    assert await ask(Range="bytes=0-1", If_Range="Sun, 06 Nov 1994 08:49:37 GMT") == (200, SIZE, True)


async def test_a_client_that_does_not_read_is_cut_off(tmp_path):
    limits = FilesSettings(max_file_bytes=64 * MIB)
    async with open_site(tmp_path, (ECHO,), files=limits, limits={"send_seconds": QUICK}) as site:
        async with site.service.files.writing("a", "") as writing:
            for _ in range(64):
                await writing.write(os.urandom(MIB))
            stored = await writing.finish()
        client = await site.server.connect()
        async with client.stream:
            await client.send(site.head("GET", f"/files/{stored.id}"))
            await wait_until(lambda: site.service.answers.budget.taken, "the answer has begun")
            await wait_until(lambda: not site.service.answers.budget.taken, "the answer has ended")

            received = await client.rest()

    assert 0 < len(received) < 64 * MIB


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes([file.read(1)[0] ^ 1]))
        file.seek(0)
        file.write(b"x")


@pytest.mark.parametrize("damage", [flip, Path.unlink])
async def test_a_damaged_file_is_refused_and_named(site, damage):
    name = await uploaded(site)
    stored = await site.service.files.find(name)
    damage(stored.path)

    answer = await site.ask("GET", f"/files/{name}")

    assert problem(answer) == (503, "unavailable", "$file.id")
    assert (await site.json("GET", "/readyz"))["damaged"] == ["files"]
    await uploaded(site)
    assert "damaged" not in await site.json("GET", "/readyz")
    assert (await site.ask("GET", f"/files/{name}"))[2] == DATA


# -- lists, deletion and access --------------------------------------------------------------------------------------


async def test_pages_of_files(site):
    names = [await uploaded(site, b"%d" % number) for number in range(5)]

    first = await site.json("GET", "/files?limit=3")
    second = await site.json("GET", f"/files?limit=3&cursor={first['cursor']}")

    assert [each["id"] for page in (first, second) for each in page["items"]] == names[::-1]
    assert second["cursor"] is None
    assert problem(await site.ask("GET", "/files?cursor=x")) == (400, "bad_input", "cursor")


async def test_a_file_is_deleted_once(site):
    name = await uploaded(site)

    assert (await site.ask("DELETE", f"/files/{name}"))[0] == 204
    assert problem(await site.ask("DELETE", f"/files/{name}")) == (404, "not_found", "id")
    assert problem(await site.ask("GET", f"/files/{name}")) == (404, "not_found", "id")
    assert problem(await site.ask("GET", "/files/x")) == (404, "not_found", "id")
    assert contents(site) == []


async def test_a_file_in_use_is_not_deleted_and_goes_with_its_execution(site):
    name = await uploaded(site)
    made = await site.json("POST", "/modules/execute/echo", 1)
    await site.service.files.use(made["id"], "echo", {name})

    assert problem(await site.ask("DELETE", f"/files/{name}")) == (409, "conflict", "id")
    assert await site.json("POST", "/files/gc") == {"files": 0, "bytes": 0}
    assert await site.service.history.existing({made["id"], "x"}) == {made["id"]}


async def test_a_file_goes_when_the_history_forgets_its_execution(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "NEW_SECONDS", 0.0)
    keeping = FilesSettings(file_retention_seconds=0.001)
    async with open_site(tmp_path, (ECHO,), files=keeping, retention_seconds=1.0) as site:
        made = await site.json("POST", "/modules/execute/echo", 1)
        async with site.service.files.writing("", "", execution=made["id"], module="echo") as writing:
            await writing.write(DATA)
            stored = await writing.finish()
        assert (await site.service.files.collect()).files == 0

        await site.json("GET", "/executions")  # its row is in the database now
        await site.service.history._archive.retain(time.time() + 60, 100)
        assert await site.service.history.existing({made["id"]}) == set()
        assert (await site.service.files.collect()).files == 1
        assert await site.service.files.find(stored.id) is None


async def test_scopes(site):
    name = await uploaded(site)
    reader, writer = with_token(site, scopes=["files:read"]), with_token(site, scopes=["files:write"])

    assert (await reader.ask("GET", f"/files/{name}"))[0] == 200
    assert (await reader.ask("GET", "/files"))[0] == 200
    for refused in (
        await reader.ask("POST", "/files", b"x"),
        await reader.ask("DELETE", f"/files/{name}"),
        await writer.ask("GET", f"/files/{name}"),
        await writer.ask("GET", "/files"),
        await writer.ask("POST", "/files/gc"),
    ):
        assert problem(refused) == (403, "forbidden", None)


async def test_a_token_limited_to_modules_sees_its_own_files_and_those_of_its_modules(site):
    ann = with_token(site, "ann", modules=["echo"])
    bob = with_token(site, "bob", modules=["other"])
    own, used = await uploaded(bob, b"own"), await uploaded(site, b"used")
    await site.service.files.use("execution", "echo", {used})

    assert problem(await ann.ask("GET", f"/files/{own}")) == (404, "not_found", "id")
    assert problem(await ann.ask("DELETE", f"/files/{own}")) == (404, "not_found", "id")
    assert (await bob.ask("GET", f"/files/{own}"))[0] == 200
    assert (await ann.ask("GET", f"/files/{used}"))[0] == 200
    assert problem(await bob.ask("GET", f"/files/{used}")) == (404, "not_found", "id")
    assert [each["id"] for each in (await ann.json("GET", "/files"))["items"]] == [used]
    assert len((await site.json("GET", "/files"))["items"]) == 2


async def test_an_upload_in_progress_does_not_keep_the_server_from_ending(tmp_path):
    async with open_site(tmp_path, (ECHO,), limits={"body_seconds": NEVER}) as site:
        client = await site.server.connect()
        await client.send(site.head("POST", "/files", length=MIB) + b"1234")
        await wait_until(lambda: site.service.files.statistics().writing, "the upload has begun")
        site.server.shutdown.set()
        with trio.fail_after(20):
            await site.server.ended.wait()

        assert contents(site) == []
