"""The frame: unsigned 32-bit big-endian length, then that many bytes: JSON in UTF-8, or `00` and bytes. See SPEC.md."""

from __future__ import annotations

HEADER_BYTES = 4
MARK = b"\0"
"""Begins the payload of a byte frame; no JSON text begins so."""
MAX_PIECE = 1 << 20
"""Most bytes in a byte frame."""


class FrameTooLargeError(ValueError):
    """A frame states a length over the limit; the rest of the channel cannot be trusted."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a frame of {size} bytes is over the limit of {limit}")
        self.size = size
        self.limit = limit


def encode(payload: bytes) -> bytes:
    """Return the frame that carries `payload`."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def encode_bytes(piece: bytes) -> bytes:
    """Return the byte frame that carries a piece of a file; an empty one ends the file."""
    return b"".join(((len(piece) + 1).to_bytes(HEADER_BYTES, "big"), MARK, piece))


class FrameDecoder:
    """Splits a stream of bytes into payloads. Buffers at most one incomplete frame of `max_bytes`."""

    __slots__ = ("_buffer", "_max_bytes", "_wanted")

    def __init__(self, max_bytes: int) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes
        self._wanted = -1

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._wanted >= 0 or bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes; return the complete payloads, in order.

        Raises FrameTooLargeError at a length over the limit; the decoder is unusable then.
        """
        buffer = self._buffer
        size = len(data) - HEADER_BYTES
        whole = not buffer and self._wanted < 0 and 0 <= size <= self._max_bytes
        if whole and int.from_bytes(data[:HEADER_BYTES], "big") == size:  # one frame, as nearly always
            return [bytes(data[HEADER_BYTES:])]
        buffer += data
        payloads: list[bytes] = []
        while True:
            if self._wanted < 0:
                if len(buffer) < HEADER_BYTES:
                    return payloads
                self._wanted = int.from_bytes(buffer[:HEADER_BYTES], "big")
                if self._wanted > self._max_bytes:
                    raise FrameTooLargeError(self._wanted, self._max_bytes)
                del buffer[:HEADER_BYTES]
            if len(buffer) < self._wanted:
                return payloads
            # A view avoids a second copy of a payload that may be megabytes.
            with memoryview(buffer) as view:
                payloads.append(bytes(view[: self._wanted]))
            del buffer[: self._wanted]
            self._wanted = -1
