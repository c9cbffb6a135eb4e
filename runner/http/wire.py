"""The bytes of one connection, in the clear or by TLS: sending is synchronous, only receiving waits.

A connection that writes without a checkpoint (see `http_connection`) cannot use `trio.SSLStream`, whose `send_all`
waits; TLS itself does not: an `ssl.SSLObject` turns bytes into bytes, in memory.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from typing import Protocol

import trio

_RECORD_BYTES = 16_384
"""TLS puts no more into one record; more than one is not made ahead of what the kernel takes."""


class Wire(Protocol):
    """Raises OSError (SSLError is one) when the connection is broken."""

    secure: bool

    @property
    def pending(self) -> bool:
        """Whether bytes that were taken wait for room in the kernel; `send_now(b"")` sends them on."""

    async def open(self) -> None:
        """Greet the other side."""

    async def receive(self, size: int) -> bytes:
        """Return at most `size` bytes, at least one; b"" at the end. Cancellation loses nothing."""

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what there is room for and return how many bytes of `data` were taken."""

    def end(self) -> None:
        """Send our end of file."""


class PlainWire:
    """Bytes as they are."""

    secure = False
    pending = False

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self._socket = socket

    async def open(self) -> None:
        """Do nothing."""

    async def receive(self, size: int) -> bytes:
        """Return what has come."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with suppress(BlockingIOError):
                return os.read(self._socket.fileno(), size)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0

    def end(self) -> None:
        """Send our end of file."""
        self._socket.shutdown(trio.socket.SHUT_WR)


class TlsWire:
    """Bytes by TLS, as the server."""

    secure = True

    def __init__(self, socket: trio.socket.SocketType, context: ssl.SSLContext) -> None:
        self._socket = socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = b""
        self._opened = False

    @property
    def pending(self) -> bool:
        """Whether ciphertext waits for room."""
        return bool(self._unsent)

    async def open(self) -> None:
        """Shake hands; the caller limits the time."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._read_more():
                    raise OSError("the client left in the handshake") from None
            except ssl.SSLError:
                self._flush_now()  # it says why
                raise
            else:
                self._opened = True
                await self._flush()
                return

    async def receive(self, size: int) -> bytes:
        """Return what has come, decrypted."""
        while True:
            try:
                data = self._tls.read(size)
            except ssl.SSLWantReadError:
                self._flush_now()  # the answer to a change of keys
                if not await self._read_more():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""
            else:
                return data

    def send_now(self, data: bytes | memoryview) -> int:
        """Encrypt and send record by record, as long as the kernel takes all of one."""
        rest = memoryview(data)
        self._flush_now()
        while rest and not self._unsent:
            rest = rest[self._tls.write(rest[:_RECORD_BYTES]) :]
            self._flush_now()
        return len(data) - len(rest)

    def end(self) -> None:
        """Say in TLS that there is no more, and send our end of file."""
        if self._opened:
            with suppress(ssl.SSLError):  # the other side has not said so yet, and need not
                self._tls.unwrap()
        self._flush_now()
        self._socket.shutdown(trio.socket.SHUT_WR)

    async def _read_more(self) -> bool:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with suppress(BlockingIOError):
                data = os.read(self._socket.fileno(), _RECORD_BYTES)
                self._incoming.write(data)
                return bool(data)

    async def _flush(self) -> None:
        self._flush_now()
        while self._unsent:
            await trio.lowlevel.wait_writable(self._socket)
            self._flush_now()

    def _flush_now(self) -> None:
        out = self._unsent + self._outgoing.read() if self._outgoing.pending else self._unsent
        with suppress(BlockingIOError):
            while out:
                out = out[os.write(self._socket.fileno(), out) :]
        self._unsent = out
