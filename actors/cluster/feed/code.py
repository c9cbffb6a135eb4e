"""`CodeStore`: the code of versions, one message for each; large code is in the object store."""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import msgspec
import structlog
import trio
from attrs import define

from actors.cluster.engine import AwayError, Engine, EngineError, RefusedError, Stored
from actors.cluster.feed.news import CODE, Code, CodeNews, pack, token, unpack
from actors.cluster.letters import Author, UnreadableError
from actors.registry import StoredVersion
from protocol.errors import ErrorKind, error

MESSAGE_BYTES: Final = 256 * 1024
"""Larger code goes into the object store."""
_GONE_SECONDS: Final = 86400.0
"""How long the code of a deleted version stays, for runners that read slowly."""
_ROLLUP: Final = {"Nats-Rollup": "sub"}
_PAUSE_SECONDS: Final = 0.25
T = TypeVar("T")
_BROKEN: Final = (zlib.error, msgspec.MsgspecError)

log = structlog.get_logger("cluster")


@define(eq=False)
class CodeStore:
    """Writes and reads the code of versions, by module, version and content digest."""

    engine: Engine
    author: Author

    async def put(self, version: StoredVersion, files: Mapping[str, bytes]) -> None:
        """Store the code of a version, again if it is there. Raises RunnerError `unavailable`."""
        packed = await trio.to_thread.run_sync(_packed, Code(version, dict(files)))
        subject = self._subject(version.module, version.version, version.digest)
        small = len(packed) <= min(MESSAGE_BYTES, self.engine.max_payload // 2)
        # A name of its own for each: one that is no longer needed can be deleted without a look at others.
        name = None if small else f"code-{secrets.token_hex(16)}"
        here = packed if small else None
        news = CodeNews(author=self.author, at=time.time(), content=here, object=name)
        try:
            before = await self.engine.last(subject, fresh=True)
            if name is not None:
                await self.engine.put_object(name, packed)
            await self.engine.publish(subject, pack(news), headers=_ROLLUP)
        except (AwayError, RefusedError) as problem:
            text = f"the servers of the cluster do not take the code: {problem}"
            raise error(ErrorKind.UNAVAILABLE, text, field="cluster", retry_after=5) from problem
        if before is not None:
            await self._delete_object(before)

    async def get(self, module: str, version: str, digest: str) -> tuple[StoredVersion, Mapping[str, bytes]] | None:
        """Return a version with its code; None when it is gone, damaged or of a later release.

        Waits while the engine is away.
        """
        try:
            found = await self._waiting(partial(self.engine.last, self._subject(module, version, digest), fresh=True))
            if found is None or not found.data:
                return None
            news = unpack(found.data, CodeNews)
            packed = news.content
            if packed is None and news.object is not None:
                packed = await self._waiting(partial(self.engine.get_object, news.object))
            if packed is None:
                return None
            code = await trio.to_thread.run_sync(_unpacked, packed)
        except (RefusedError, UnreadableError, *_BROKEN) as problem:
            log.error("the code of a version cannot be read", module=module, version=version, why=str(problem))  # noqa: TRY400
            return None
        else:
            return code.stored, code.files

    async def last(self, subject: str) -> Stored | None:
        """Return the last message of a subject. Waits while the engine is away."""
        return await self._waiting(partial(self.engine.last, subject, fresh=True))

    async def expire(self, version: StoredVersion, number: int) -> None:
        """Let the code of a version go that the change with this number deleted, unless it was stored again since."""
        subject = self._subject(version.module, version.version, version.digest)
        with suppress(EngineError):  # then it stays
            found = await self.engine.last(subject, fresh=True)
            if found is None or found.sequence > number or "Nats-TTL" in found.headers:
                return
            expect, ttl = found.sequence, _GONE_SECONDS
            await self.engine.publish(subject, found.data, expect=expect, headers=_ROLLUP, ttl=ttl)
            await self._delete_object(found)

    async def _delete_object(self, stored: Stored) -> None:
        """Delete the object of a message that no version has any more."""
        with suppress(EngineError, UnreadableError):
            name = unpack(stored.data, CodeNews).object
            if name is not None:
                await self.engine.delete_object(name)

    async def _waiting(self, work: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await work()
            except AwayError:
                await self.engine.wait_connected()
                await trio.sleep(_PAUSE_SECONDS)

    def _subject(self, module: str, version: str, digest: str) -> str:
        return self.engine.names.news(CODE, token(module, version, digest))


def _packed(code: Code) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(code))


def _unpacked(packed: bytes) -> Code:
    return msgspec.msgpack.decode(zlib.decompress(packed), type=Code)
