"""The endpoints of files: upload, list, download, delete, collect. On plain ASGI, as bodies and answers are streams."""

from __future__ import annotations

from typing import Final

from runner.rest.endpoint import Answer, Download, Request, json_answer, serves
from runner.rest.files.answers import file_answer
from runner.rest.files.uploads import announced_bytes, expected_id, receive_file, type_of


@serves("uploadFile")
async def upload(request: Request) -> Answer:
    """Store a file. A client that disconnects leaves nothing."""
    expected, kind = expected_id(request), type_of(request)
    stored, announced = request.service.stored, announced_bytes(request)
    async with stored.writing(request.principal, request["name"] or "", kind, announced) as writing:
        await receive_file(request, writing)
        found = await writing.finish(expected)
    location = (b"location", f"/files/{found.id}".encode())
    return json_answer({"$file": found.described}, 201, (location,))


@serves("listFiles")
async def list_files(request: Request) -> Answer:
    """List files."""
    cursor = request["cursor"] or ""
    found, after = await request.service.stored.page(request.principal, request["limit"], cursor)
    shown = [{**file.described, "created_at": round(file.created_at, 3)} for file in found]
    return json_answer({"items": shown, "cursor": after})


@serves("getFile")
async def show(request: Request) -> Answer | Download:
    """Return a file, or a part of it."""
    return file_answer(request, await request.service.stored.find(request.principal, request["id"]))


@serves("deleteFile")
async def delete(request: Request) -> Answer:
    """Delete a file that no execution uses."""
    await request.service.stored.remove(request.principal, request["id"])
    return Answer(status=204)


@serves("collectFiles")
async def collect(request: Request) -> Answer:
    """Delete the files now that are deleted once an hour."""
    await request.body()  # it has no meaning
    found = await request.service.stored.collect(request.principal)
    return json_answer({"files": found.files, "bytes": found.bytes})


ENDPOINTS: Final = (upload, list_files, show, delete, collect)
