"""Contract: files over gRPC: uploads and downloads in pieces, lists, deletion, and calls that end early."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from config.settings import MIB, AuthSettings, FilesSettings
from protocol.rpc.operato.runner import v1
from runner.auth.tokens import Verifier, sign
from runner.grpc import make_methods
from tests.contract.test_streams import ECHO, SECRET
from tests.grpc_client import Client, open_door
from tests.support import open_service, wait_until

PATH = "/operato.runner.v1.FileService/"
NOT_FOUND, INVALID, EXISTS, EXHAUSTED, FORBIDDEN, UNAVAILABLE = 5, 3, 6, 8, 7, 14


def id_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@attrs.define(slots=False)
class Site:
    """A door with a whole runner, and one client."""

    service: object
    client: Client
    metadata: dict

    async def call(self, name, *messages):
        return await self.client.call(PATH + name, *messages, metadata=self.metadata)

    async def put(self, *pieces, **about):
        first = v1.PutFileRequest(**about, data=pieces[0])
        return await self.call("PutFile", first, *(v1.PutFileRequest(data=piece) for piece in pieces[1:]))

    async def get(self, name, offset=0, length=0):
        answer = await self.call("GetFile", v1.GetFileRequest(id=name, offset=offset, length=length))
        messages = [v1.GetFileResponse().parse(message) for message in answer.messages]
        return answer, b"".join(message.data for message in messages), messages[0].file if messages else None

    def contents(self):
        folder = self.service.settings.store.data_dir / "files"
        return [path.name for path in folder.rglob("*") if path.is_file()]


@asynccontextmanager
async def open_files(path: Path, *scopes: str) -> AsyncIterator[Site]:
    limits = FilesSettings(max_file_bytes=MIB, max_files_bytes=2 * MIB)
    token = sign(SECRET, subject="kim", scopes=scopes or ("admin",), expires_seconds=3600)
    async with open_service(path, (ECHO,), files=limits) as service:
        methods = make_methods(service, Verifier(AuthSettings(), secret=SECRET))
        async with open_door(methods) as door:
            yield Site(service, await door.connect(), {"authorization": f"Bearer {token}"})


@pytest.fixture
async def site(tmp_path):
    async with open_files(tmp_path) as opened:
        yield opened


async def test_a_file_goes_in_and_out_in_pieces(site):
    pieces = [os.urandom(9_000), b"", b"x", os.urandom(6_000)]
    data = b"".join(pieces)

    answer = await site.put(*pieces, name="a.bin", type="image/png", digest=id_of(data), size=len(data))
    file = answer.message(v1.PutFileResponse).file

    assert (file.id, file.name, file.type, file.size) == (id_of(data), "a.bin", "image/png", len(data))
    assert file.created_at > 1_600_000_000_000
    _, found, described = await site.get(file.id)
    assert (found, described) == (data, file)


async def test_a_part_of_a_large_file(site):
    data = os.urandom(700_000)
    async with site.service.files.writing("", "") as writing:
        await writing.write(data)
        stored = await writing.finish()

    assert (await site.get(stored.id))[1] == data
    assert (await site.get(stored.id, 5, 600_000))[1] == data[5:600_005]
    assert (await site.get(stored.id, 699_999, 100))[1] == data[-1:]
    assert (await site.get(stored.id, 700_000))[1] == b""
    for part in ((700_001, 0), (-1, 0), (0, -1)):
        answer, _, _ = await site.get(stored.id, *part)
        assert (answer.status, answer.said["operato-field"]) == (INVALID, "offset")
    assert site.service.answers.budget.taken == 0


@pytest.mark.parametrize(
    ("about", "status", "kind"),
    [
        ({"size": MIB + 1}, EXHAUSTED, "too_large"),
        ({"digest": id_of(b"other")}, INVALID, "bad_input"),
        ({"digest": "abc"}, INVALID, "bad_input"),
        ({"name": "a/b"}, INVALID, "bad_input"),
        ({"type": "a"}, INVALID, "bad_input"),
    ],
)
async def test_a_refused_upload_leaves_nothing(site, about, status, kind):
    answer = await site.put(b"data", **about)

    assert (answer.status, answer.said["operato-kind"]) == (status, kind)
    assert site.contents() == []


async def test_a_full_store_refuses_with_its_own_kind(site):
    for number in range(2):
        async with site.service.files.writing("", "") as writing:
            await writing.write(b"%d" % number * MIB)
            await writing.finish()

    answer = await site.put(b"data")

    assert (answer.status, answer.said["operato-kind"]) == (EXHAUSTED, "out_of_storage")


async def test_only_the_first_message_describes_the_file(site):
    answer = await site.call("PutFile", v1.PutFileRequest(data=b"a"), v1.PutFileRequest(name="x", data=b"b"))

    assert answer.status == INVALID
    assert site.contents() == []
    assert (await site.call("PutFile")).status == INVALID


async def test_a_client_that_goes_leaves_nothing(site):
    first = v1.PutFileRequest(data=b"data")
    number = await site.client.send(PATH + "PutFile", first, metadata=site.metadata, end=False)
    await wait_until(lambda: site.service.files.statistics().writing_bytes, "the upload has begun")
    await site.client.reset(number)

    await wait_until(lambda: not site.service.files.statistics().writing, "the upload has ended")
    assert site.contents() == []


async def test_lists_and_deletion(site):
    names = [(await site.put(b"%d" % number)).message(v1.PutFileResponse).file.id for number in range(3)]

    first = (await site.call("ListFiles", v1.ListFilesRequest(limit=2))).message(v1.ListFilesResponse)
    second = (await site.call("ListFiles", v1.ListFilesRequest(cursor=first.cursor))).message(v1.ListFilesResponse)

    assert [file.id for page in (first, second) for file in page.files] == names[::-1]
    assert second.cursor == ""
    assert (await site.call("DeleteFile", v1.DeleteFileRequest(id=names[0]))).status == 0
    assert (await site.call("DeleteFile", v1.DeleteFileRequest(id=names[0]))).status == NOT_FOUND
    assert (await site.get(names[0]))[0].status == NOT_FOUND
    await site.service.files.use("an-execution", "echo", {names[1]})
    assert (await site.call("DeleteFile", v1.DeleteFileRequest(id=names[1]))).status == EXISTS


async def test_a_damaged_file_is_unavailable(site):
    name = (await site.put(b"data")).message(v1.PutFileResponse).file.id
    (await site.service.files.find(name)).path.write_bytes(b"dat")

    assert (await site.get(name))[0].status == UNAVAILABLE


async def test_scopes(tmp_path):
    async with open_files(tmp_path, "files:read") as site:
        assert (await site.put(b"data")).status == FORBIDDEN
        assert (await site.call("DeleteFile", v1.DeleteFileRequest(id="x"))).status == FORBIDDEN
        assert (await site.call("ListFiles", v1.ListFilesRequest())).status == 0
