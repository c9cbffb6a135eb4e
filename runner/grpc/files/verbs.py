"""The verbs of FileService over gRPC. No gRPC library."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from attrs import frozen

from actors.files import StoredFile, checked_digest
from protocol.errors import ErrorKind, error
from protocol.rpc.operato.runner import v1
from runner.api import Service
from runner.auth import Principal
from runner.grpc.call import Call
from runner.grpc.codec import make
from runner.grpc.messages import milliseconds, page_limit

PIECE_BYTES: Final = 256 * 1024


@frozen
class FileVerbs:
    """The verbs of FileService."""

    service: Service

    def verbs(self) -> dict[str, tuple[Callable[[Call, Principal, Any], Awaitable[Any]], type[Any]]]:
        """Return each verb with one message, and the class of its request, by the name of its method."""
        return {
            "GetFile": (self.get, v1.GetFileRequest),
            "ListFiles": (self.list, v1.ListFilesRequest),
            "DeleteFile": (self.remove, v1.DeleteFileRequest),
        }

    async def put(self, call: Call, who: Principal) -> v1.PutFileResponse:
        """Store the file whose pieces the messages of a call have."""
        first = await self._piece(call)
        if first is None:
            raise error(ErrorKind.BAD_INPUT, "the call has no message")
        expected = checked_digest(first.digest) if first.digest else None
        async with self.service.stored.writing(who, first.name, first.type, max(0, first.size)) as writing:
            message: v1.PutFileRequest | None = first
            while message is not None:
                if message.data:
                    await writing.write(message.data)
                message = await self._piece(call)
                if message is not None and (message.name or message.type or message.digest or message.size):
                    text = "only the first message has fields other than `data`"
                    raise error(ErrorKind.BAD_INPUT, text, field="name")
            stored = await writing.finish(expected)
        return make(v1.PutFileResponse, file=_message(stored))

    async def _piece(self, call: Call) -> v1.PutFileRequest | None:
        seconds = self.service.settings.server.body_timeout_seconds
        with trio.move_on_after(seconds):
            found: v1.PutFileRequest | None = await call.receive()
            return found
        raise error(ErrorKind.BAD_INPUT, f"no message arrived for {seconds:g} s; the limit is `body_timeout`")

    async def get(self, call: Call, who: Principal, request: v1.GetFileRequest) -> None:
        """Send a file, or a part of it."""
        stored = await self.service.stored.find(who, request.id)
        if not 0 <= request.offset <= stored.size or request.length < 0:
            text = f"the file has {stored.size} bytes; offset and length must be in it"
            raise error(ErrorKind.BAD_INPUT, text, field="offset")
        at, end = request.offset, min(stored.size, request.offset + (request.length or stored.size))
        call.share = self.service.answers.share()
        await self.service.answers.turn(call.share, min(PIECE_BYTES, end - at))
        await call.send(make(v1.GetFileResponse, file=_message(stored)))
        fd = await trio.to_thread.run_sync(os.open, stored.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while at < end:
                data = await trio.to_thread.run_sync(os.pread, fd, min(PIECE_BYTES, end - at), at)
                if not data:
                    text = f"the stored file {stored.id} became shorter while it was sent"
                    raise error(ErrorKind.UNAVAILABLE, text)
                at += len(data)
                await call.send(make(v1.GetFileResponse, data=data))
        finally:
            os.close(fd)

    async def list(self, _call: Call, who: Principal, request: v1.ListFilesRequest) -> v1.ListFilesResponse:
        """List files."""
        found, cursor = await self.service.stored.page(who, page_limit(request.limit), request.cursor)
        return make(v1.ListFilesResponse, files=[_message(stored) for stored in found], cursor=cursor or "")

    async def remove(self, _call: Call, who: Principal, request: v1.DeleteFileRequest) -> v1.DeleteFileResponse:
        """Delete a file."""
        await self.service.stored.remove(who, request.id)
        return make(v1.DeleteFileResponse)


def _message(stored: StoredFile) -> v1.File:
    return make(v1.File, **stored.described, created_at=milliseconds(stored.created_at))
