"""The numbered output of one execution: counted, bounded, kept in order over both streams."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from protocol.model import OutputChunk, Stream

_MERGE_BYTES = 4096


class Output:
    """What one execution prints. `on_limit` is called once, when more than `limit` bytes were printed."""

    __slots__ = ("_chunks", "_decoders", "_keep", "_kept", "dropped", "exceeded", "limit", "on_limit", "total")

    def __init__(self, *, limit: int, keep: int) -> None:
        self.limit = limit
        self.total = 0
        self.dropped = 0
        self.exceeded = False
        self.on_limit: Callable[[], None] | None = None
        self._keep = keep
        self._kept = 0
        self._chunks: list[OutputChunk] = []
        self._decoders: dict[Stream, codecs.IncrementalDecoder] = {}

    def write(self, stream: Stream, data: bytes) -> None:
        """Add what was read from a stream. A character cut in two by a read is put together."""
        self.total += len(data)
        kept = data[: self._keep - self._kept]
        self._kept += len(kept)
        self.dropped += len(data) - len(kept)
        if kept:
            decoder = self._decoders.get(stream)
            if decoder is None:
                decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
            self._add(stream, decoder.decode(kept))
        if self.total > self.limit and not self.exceeded:
            self.exceeded = True
            if self.on_limit is not None:
                self.on_limit()

    def finish(self) -> tuple[OutputChunk, ...]:
        """Return all chunks; what is left of a cut character becomes a replacement character."""
        for stream, decoder in self._decoders.items():
            self._add(stream, decoder.decode(b"", final=True))
        return tuple(self._chunks)

    def _add(self, stream: Stream, text: str) -> None:
        if not text:
            return
        last = self._chunks[-1] if self._chunks else None
        if last is not None and last.stream is stream and len(last.text) + len(text) <= _MERGE_BYTES:
            self._chunks[-1] = OutputChunk(last.seq, stream, last.text + text)
        else:
            self._chunks.append(OutputChunk(len(self._chunks), stream, text))
