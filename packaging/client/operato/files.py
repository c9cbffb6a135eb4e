"""Files on the runner, of any size: no file is in memory as a whole."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Union

from operato.authors import File
from operato.connection import Link, Reply, Upload, segment
from operato.errors import BadInputError, LostError
from operato.pages import pages
from operato.streams import AsyncStream

TRANSFER_SECONDS = 600.0
"""Time limit without a byte: the runner verifies a file before it sends it, and brings one to the disk at its end."""

Source = Union[File, bytes, "os.PathLike[str]", str]
"""A `File`, bytes, or the path of a file."""


class Files:
    """The files of a client."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def upload(self, source: Source, *, name: str | None = None, type: str | None = None) -> dict[str, Any]:
        """Upload a file and return the object that names it in inputs. Needs the scope `files:write`."""
        file = source if isinstance(source, File) else File(source, name, type)
        upload, digest = await self._link.transport.in_thread(_opened, file)
        made = await self._link.json(
            "POST",
            "/files",
            query={"name": name or file.name, "digest": digest},
            body=upload,
            headers={"content-type": type or file.type},
            again=True,  # the same content is stored once
            seconds=TRANSFER_SECONDS,
        )
        return dict(made)

    async def download(self, file: str | Mapping[str, Any], to: str | os.PathLike[str] | None = None) -> bytes:
        """Download a file, named by its id or by the object in a result. Needs the scope `files:read`.

        With `to`, it is written there, replacing a file when it is complete, and b"" is returned. Its digest is
        checked.
        """
        identity = _identity(file)
        reply = await self._link.open("GET", f"/files/{segment(identity)}", seconds=TRANSFER_SECONDS)
        return await self._received(reply, to, identity)

    async def result(self, execution: str, to: str | os.PathLike[str] | None = None) -> bytes:
        """Return the result of an execution as it is: a file, the body of a response, or JSON. With `to`, write it."""
        path = f"/executions/{segment(execution)}/result"
        return await self._received(await self._link.open("GET", path, seconds=TRANSFER_SECONDS), to, None)

    async def delete(self, file: str | Mapping[str, Any]) -> None:
        """Delete a file that no execution uses. Needs the scope `files:write`."""
        await self._link.json("DELETE", f"/files/{segment(_identity(file))}")

    def list(self, *, limit: int | None = None) -> AsyncStream[dict[str, Any]]:
        """Yield the files, newest first."""
        return pages(self._link, "/files", {}, limit, dict)

    async def _received(self, reply: Reply, to: str | os.PathLike[str] | None, identity: str | None) -> bytes:
        target = None if to is None else Path(to)
        part_name = None if target is None else target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        digest = hashlib.sha256()
        in_thread = self._link.transport.in_thread
        try:
            file: BinaryIO = io.BytesIO() if part_name is None else await in_thread(part_name.open, "xb")
            with file:
                while True:
                    data = await reply.part()
                    if not data:
                        break
                    digest.update(data)
                    await in_thread(file.write, data)
                if identity is not None and identity.startswith("sha256:") and identity[7:] != digest.hexdigest():
                    raise LostError(f"the received content is not that of {identity}")
                content = file.getvalue() if isinstance(file, io.BytesIO) else b""
            if target is not None and part_name is not None:
                part_name.replace(target)
            return content
        finally:
            if part_name is not None:
                part_name.unlink(missing_ok=True)
            await reply.close()


def _opened(file: File) -> tuple[Upload, str]:
    """Return a file as the body of a request, and its digest. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with file.open() as opened:
        data = opened.read(1024 * 1024)
        while data:
            digest.update(data)
            size += len(data)
            data = opened.read(1024 * 1024)
    return Upload(file.open, size), f"sha256:{digest.hexdigest()}"


def _identity(file: str | Mapping[str, Any]) -> str:
    """Return the id of a file."""
    if isinstance(file, str):
        return file
    described = file.get("$file", file)
    identity = described.get("id") if isinstance(described, Mapping) else None
    if not isinstance(identity, str):
        raise BadInputError('a file is named by its id, or by {"$file": {"id": ...}}', field="file")
    return identity
