"""`Content-Encoding` of request bodies: gzip and deflate, inflated in steps between which other tasks run."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from protocol.errors import ErrorKind, error
from runner.http import Message, Receive
from runner.wire import Budget

CODINGS: Final = ("gzip", "deflate")
"""The encodings that are understood, besides `identity`; `x-gzip` is another name of the first (RFC 9110, 8.4.1.3)."""
_STEP: Final = 64 * 1024
"""The most bytes that go in and come out in one step, so that a body that grows a thousandfold is seen in time."""
_GZIP, _ZLIB, _RAW = 31, 15, -15


def inflating(receive: Receive, encoding: str) -> Receive:
    """Return a `receive` for the content of a body in this encoding. It raises RunnerError `bad_input` if damaged.

    Its reader limits the size of the content. Cancelled, it has lost nothing. Raises RunnerError `bad_input` with the
    field `content-encoding`, which is answered 415, for an encoding that is not understood.
    """
    coding = encoding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return receive
    if coding not in CODINGS:
        text = f"the encoding {encoding!r:.80} is not supported; send the body as it is, or as one of"
        raise error(ErrorKind.BAD_INPUT, f"{text} {', '.join(CODINGS)}", field="content-encoding")
    inflater = _Inflater(coding)

    async def inflated() -> Message:
        while not inflater.ended:
            await trio.lowlevel.checkpoint()
            if inflater.hungry:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                inflater.feed(message.get("body", b""), last=not message.get("more_body", False))
            content = inflater.step()
            if content or inflater.ended:
                return {"type": "http.request", "body": content, "more_body": not inflater.ended}
        return await receive()

    return inflated


@contextmanager
def paid(receive: Receive, budget: Budget) -> Iterator[Receive]:
    """Yield a `receive` whose content is taken from `budget` until the block ends, for a reader that collects it.

    The server counts the bytes that arrive; their content can be a thousand times as large. It raises RunnerError
    `unavailable` when too few bytes are free.
    """
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        size = len(message.get("body", b""))
        if not budget.take(size):
            text = "the unfinished requests of all callers are too large together; the limit is `max_buffered`"
            raise error(ErrorKind.UNAVAILABLE, text, retry_after=1)
        taken += size
        return message

    try:
        yield counted
    finally:
        budget.give(taken)


class _Inflater:
    """Inflates one body."""

    def __init__(self, coding: str) -> None:
        self.ended = False
        self._coding = coding
        self._engine = zlib.decompressobj(_GZIP if coding == "gzip" else _ZLIB)
        self._data = b""
        self._at = 0
        self._last = False
        self._begun = False
        self._full = False  # the last step made all that a step may, so there may be more without more data
        self._raw: bytes | None = None if coding == "gzip" else b""

    @property
    def hungry(self) -> bool:
        """Whether the next step needs data."""
        return not self._full and not self._last and self._at >= len(self._data)

    def feed(self, data: bytes, *, last: bool) -> None:
        """Take a piece of the body."""
        self._data, self._at, self._last = data, 0, last

    def step(self) -> bytes:
        """Return the next content, at most `_STEP` bytes; empty where more data is needed, or at the end."""
        if self._at >= len(self._data) and not self._full:
            self._end()
            return b""
        if self._engine.eof:
            self._next_member()
        data = self._data[self._at : self._at + _STEP]
        self._begun = self._begun or bool(data)
        try:
            content = self._inflate(data)
        except zlib.error as problem:
            why = str(problem).partition(": ")[2] or str(problem)
            raise error(ErrorKind.BAD_INPUT, f"the body is not {self._coding}: {why}", field="$") from None
        rest = self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail
        self._at += len(data) - len(rest)
        self._full = len(content) == _STEP and not self._engine.eof
        return content

    def _inflate(self, data: bytes) -> bytes:
        """Inflate a piece. Some clients send `deflate` without the head of zlib, which its first two bytes show."""
        before, self._raw = self._raw, None
        try:
            content = self._engine.decompress(data, _STEP)
        except zlib.error:
            if before is None:
                raise
            self._engine = zlib.decompressobj(_RAW)
            content = self._engine.decompress(before + data, _STEP)
        else:
            if before is not None and len(before + data) < 2:
                self._raw = before + data
        return content

    def _next_member(self) -> None:
        """Begin another member of gzip; nothing follows the end of deflate."""
        if self._coding != "gzip":
            raise error(ErrorKind.BAD_INPUT, "the body has data after the end of its deflate stream", field="$")
        self._engine = zlib.decompressobj(_GZIP)

    def _end(self) -> None:
        """Note the end of the body. Raises RunnerError if it is cut off; a body without a byte is empty."""
        if self._last:
            if self._begun and not self._engine.eof:
                raise error(ErrorKind.BAD_INPUT, f"the body is cut off: its {self._coding} has no end", field="$")
            self.ended = True
