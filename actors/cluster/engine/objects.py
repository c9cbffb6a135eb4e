"""The object store: contents of any size in parts, in the form that all clients of the engine know."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import io
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import trio

from actors.cluster.engine.connection import Connection
from actors.cluster.engine.messages import AwayError, EngineError, RefusedError, StaleError, Stored, from_direct
from actors.cluster.engine.requests import Requests
from actors.cluster.engine.streams import Names

_PART_BYTES: Final = 256 * 1024
_PARTS: Final = 16
"""Parts that are asked for at a time."""
_SECONDS: Final = 10.0
"""For one part."""
_CLEAR_SECONDS: Final = 5.0
_ATTEMPTS: Final = 3
"""Parts may be damaged on one server only, or not there yet: another one may answer the next time."""
_PAUSE_SECONDS: Final = 0.25
_DIGEST: Final = "SHA-256="


class _Info(msgspec.Struct):
    """What the store knows of a content."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str = ""
    deleted: bool = False


class Objects:
    """The contents of a cluster, by name."""

    def __init__(self, connection: Connection, requests: Requests, names: Names) -> None:
        self._connection = connection
        self._requests = requests
        self._bucket = names.files
        self._stream = f"OBJ_{names.files}"

    async def put(self, name: str, content: Path | bytes) -> None:
        """Store a content, in the place of an earlier one. A failed or cancelled call removes its parts."""
        subject = self._subject(name)
        before = await self._requests.last(self._stream, subject)
        nuid, digest, size, chunks = secrets.token_hex(11), hashlib.sha256(), 0, 0
        step = min(_PART_BYTES, self._connection.max_payload)
        try:
            with _source(content) as source:
                while part := await trio.to_thread.run_sync(source.read, step):
                    digest.update(part)
                    await self._send(nuid, chunks, part)
                    size, chunks = size + len(part), chunks + 1
            text = _DIGEST + base64.urlsafe_b64encode(digest.digest()).decode()
            now = dt.datetime.now(dt.UTC).isoformat()
            info = _Info(name, self._bucket, nuid, size, chunks, text, now)
            expect, data = before.sequence if before else 0, msgspec.json.encode(info)
            await self._requests.publish(subject, data, expect=expect, headers={"Nats-Rollup": "sub"})
        except StaleError:  # another runner stored one in the meantime
            await self._clear(nuid)
        except BaseException:
            with trio.CancelScope(shield=True), suppress(EngineError):  # bounded by `_CLEAR_SECONDS`
                await self._clear(nuid)
            raise
        else:
            if before is not None:
                with suppress(EngineError):
                    await self._clear(_info(before).nuid)

    async def get(self, name: str, path: Path | None = None) -> bytes | None:
        """Return a content, or write it into `path` and return no bytes. None: there is no such content.

        Raises `RefusedError` if it is damaged, and `AwayError`; the file may then have a part of it.
        """
        found = await self._find(name)
        if found is None:
            return None
        for attempt in range(_ATTEMPTS):
            await trio.sleep(_PAUSE_SECONDS * attempt)
            with _target(path) as target:
                if await self._receive(found, target):
                    return target.getvalue() if isinstance(target, io.BytesIO) else b""
        raise RefusedError(f"the object {name} is damaged: its parts are not those of its digest")

    async def exists(self, name: str) -> bool:
        """Return whether there is a content of this name."""
        return await self._find(name) is not None

    async def delete(self, name: str) -> None:
        """Remove a content; one that does not exist is removed already."""
        found = await self._find(name)
        if found is not None:
            await self._purge(self._subject(name))
            await self._clear(found.nuid)

    async def _send(self, nuid: str, number: int, part: bytes) -> None:
        """Store a part. It has an id, so that one whose answer was lost can be sent again."""
        for attempt in range(_ATTEMPTS):
            try:
                await self._requests.publish(self._parts(nuid), part, message_id=f"{nuid}.{number}", timeout=_SECONDS)
            except AwayError:
                if attempt == _ATTEMPTS - 1:
                    raise
                with trio.move_on_after(_SECONDS):
                    await self._connection.wait_connected()
            else:
                return

    async def _find(self, name: str) -> _Info | None:
        found = await self._requests.last(self._stream, self._subject(name))
        info = None if found is None else _info(found)
        return None if info is None or info.deleted else info

    async def _receive(self, info: _Info, target: BinaryIO) -> bool:
        """Write all parts, and return whether they are those of the digest."""
        digest, size, sequence = hashlib.sha256(), 0, 1
        while size < info.size:
            parts = await self._batch(info.nuid, sequence)
            if not parts:
                return False
            for part in parts:
                digest.update(part.data)
                size += len(part.data)
            await trio.to_thread.run_sync(target.writelines, [part.data for part in parts])
            sequence = parts[-1].sequence + 1
        text = _DIGEST + base64.urlsafe_b64encode(digest.digest()).decode()
        return size == info.size and text == info.digest

    async def _batch(self, nuid: str, sequence: int) -> Sequence[Stored]:
        """Return the next parts, from a sequence on."""
        body = {"seq": sequence, "next_by_subj": self._parts(nuid), "batch": _PARTS}
        found = await self._requests.batch(f"$JS.API.DIRECT.GET.{self._stream}", body, timeout=_SECONDS)
        return [from_direct(message) for message in found]

    async def _clear(self, nuid: str) -> None:
        await self._purge(self._parts(nuid))

    async def _purge(self, subject: str) -> None:
        body = {"filter": subject}
        await self._requests.call(f"$JS.API.STREAM.PURGE.{self._stream}", body, timeout=_CLEAR_SECONDS)

    def _subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    def _parts(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"


def _info(stored: Stored) -> _Info:
    try:
        return msgspec.json.decode(stored.data, type=_Info)
    except msgspec.MsgspecError as error:
        raise RefusedError(f"{stored.subject} is damaged: {error}") from error


@contextmanager
def _source(content: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(content, Path):
        with content.open("rb") as file:
            yield file
    else:
        yield io.BytesIO(content)


@contextmanager
def _target(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield io.BytesIO()
    else:
        with path.open("wb") as file:
            yield file
