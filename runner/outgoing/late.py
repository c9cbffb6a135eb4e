"""The poster, imported at the first message: the library of HTTP takes time and memory."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from actors.starts import Post
from runner.outgoing.addresses import Allowed

if TYPE_CHECKING:
    from runner.outgoing.post import Poster


@define(eq=False)
class _Late:
    """Posts messages by a poster that is made for the first one."""

    allowed: Allowed
    context: ssl.SSLContext | None
    poster: Poster | None = None
    _making: trio.Lock = field(factory=trio.Lock)

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        async with self._making:
            poster = self.poster
            if poster is None:
                poster = self.poster = await trio.to_thread.run_sync(self._make)
        return await poster(url, headers, body)

    def _make(self) -> Poster:
        from runner.outgoing.post import Poster, trusting  # noqa: PLC0415  (httpcore, only where messages are sent)

        return Poster(self.allowed, self.context or trusting())


@asynccontextmanager
async def posting(allow: Iterable[str], context: ssl.SSLContext | None = None) -> AsyncIterator[Post]:
    """Give the function that posts messages; its connections are closed on exit.

    `allow` is the setting `notices_allow`; `context` that of TLS, if not the usual one.
    """
    late = _Late(Allowed.of(allow), context)
    try:
        yield late
    finally:
        if late.poster is not None:
            with trio.move_on_after(1, shield=True):  # closing says goodbye to servers, which may not listen
                await late.poster.aclose()
