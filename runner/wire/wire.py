"""The bytes of one connection, plain or encrypted by TLS: a `Wire` transports them, a `Sender` limits sending.

Doors read and write without a checkpoint where the kernel allows it. This rules out `trio.SSLStream`, whose `send_all`
waits. TLS itself needs no wait: an `ssl.SSLObject` turns bytes into bytes, in memory.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Protocol

import trio

_RECORD_BYTES = 16_384
"""The size of a TLS record. The next record is encrypted only when the kernel has accepted the one before."""


class Wire(Protocol):
    """Methods raise OSError, of which SSLError is one, when the connection is broken."""

    secure: bool
    opened: bool
    """Whether the TLS handshake, if any, is done."""

    @property
    def pending(self) -> bool:
        """Whether accepted bytes wait for room in the kernel; `send_now(b"")` sends them."""

    @property
    def ready(self) -> bool:
        """Whether there may be bytes to receive that the kernel does not announce, as they have left it."""

    async def open(self) -> None:
        """Do the TLS handshake, if any; the caller limits the time."""

    def open_now(self) -> bool:
        """Continue the TLS handshake, if any, with the bytes that have arrived; return whether it is done."""

    async def receive(self, size: int) -> bytes:
        """Return 1 to `size` bytes, or b"" at the end of file. Cancellation loses nothing."""

    def receive_now(self, size: int) -> bytes | None:
        """Return 1 to `size` bytes that have arrived, b"" at the end of file, None if there are none."""

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as much as fits and return how many bytes of `data` were accepted."""

    async def wait_writable(self) -> None:
        """Wait for room in the kernel."""

    def end(self) -> None:
        """Send our end of file."""


class PlainWire:
    """Plain bytes."""

    secure = False
    opened = True
    pending = False
    ready = False

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self._socket = socket

    async def open(self) -> None:
        """Do nothing."""

    def open_now(self) -> bool:
        """Do nothing."""
        return True

    async def receive(self, size: int) -> bytes:
        """Return bytes from the socket."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with suppress(BlockingIOError):
                return os.read(self._socket.fileno(), size)

    def receive_now(self, size: int) -> bytes | None:
        """Return bytes from the socket."""
        try:
            return os.read(self._socket.fileno(), size)
        except BlockingIOError:
            return None

    def send_now(self, data: bytes | memoryview) -> int:
        """Write to the socket."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0

    async def wait_writable(self) -> None:
        """Wait for room in the kernel."""
        await trio.lowlevel.wait_writable(self._socket)

    def end(self) -> None:
        """Send our end of file."""
        self._socket.shutdown(trio.socket.SHUT_WR)


class TlsWire:
    """Bytes encrypted by TLS, as the server."""

    secure = True

    def __init__(self, socket: trio.socket.SocketType, context: ssl.SSLContext) -> None:
        self._socket = socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = b""
        self.opened = False

    @property
    def pending(self) -> bool:
        """Whether ciphertext waits for room."""
        return bool(self._unsent)

    @property
    def ready(self) -> bool:
        """Whether decrypted bytes, or bytes to decrypt, wait here."""
        return bool(self._tls.pending() or self._incoming.pending)

    async def open(self) -> None:
        """Do the handshake."""
        while not self.open_now():
            await self._flush()
            await trio.lowlevel.wait_readable(self._socket)
        await self._flush()

    def open_now(self) -> bool:
        """Continue the handshake."""
        while not self.opened:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_now()
                arrived = self._read_more()
                if arrived is None:
                    return False
                if not arrived:
                    raise OSError("the client disconnected during the handshake") from None
            except ssl.SSLError:
                self._flush_now()  # the alert with the reason
                raise
            else:
                self.opened = True
                self._flush_now()
        return True

    async def receive(self, size: int) -> bytes:
        """Return decrypted bytes."""
        while (data := self.receive_now(size)) is None:
            await trio.lowlevel.wait_readable(self._socket)
        return data

    def receive_now(self, size: int) -> bytes | None:
        """Return decrypted bytes."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._flush_now()  # the answer to a key update
                arrived = self._read_more()
                if not arrived:
                    return None if arrived is None else b""
            except ssl.SSLZeroReturnError:
                return b""

    def send_now(self, data: bytes | memoryview) -> int:
        """Encrypt and send record by record, as long as the kernel accepts whole records."""
        rest = memoryview(data)
        self._flush_now()
        while rest and not self._unsent:
            rest = rest[self._tls.write(rest[:_RECORD_BYTES]) :]
            self._flush_now()
        return len(data) - len(rest)

    async def wait_writable(self) -> None:
        """Wait for room in the kernel."""
        await trio.lowlevel.wait_writable(self._socket)

    def end(self) -> None:
        """Send the close alert of TLS and our end of file."""
        if self.opened:
            with suppress(ssl.SSLError):  # raised because the client has not sent its own alert, which it need not
                self._tls.unwrap()
        self._flush_now()
        self._socket.shutdown(trio.socket.SHUT_WR)

    def _read_more(self) -> bool | None:
        """Take more ciphertext from the socket; return False at the end of file, None without any."""
        try:
            data = os.read(self._socket.fileno(), _RECORD_BYTES)
        except BlockingIOError:
            return None
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        self._flush_now()
        while self._unsent:
            await self.wait_writable()
            self._flush_now()

    def _flush_now(self) -> None:
        out = self._unsent + self._outgoing.read() if self._outgoing.pending else self._unsent
        with suppress(BlockingIOError):
            while out:
                out = out[os.write(self._socket.fileno(), out) :]
        self._unsent = out


class Sender:
    """Sends to the client, one write at a time, with a limit on the time that the client accepts nothing."""

    def __init__(self, wire: Wire, seconds: float, lost: Callable[[], None]) -> None:
        """Call `lost` when the client is gone or too slow: `seconds` without progress."""
        self.closed = False
        self._wire = wire
        self._seconds = seconds
        self._lost = lost
        self._lock = trio.Lock()
        self._waiting: trio.CancelScope | None = None
        self._end = inf

    @property
    def busy(self) -> bool:
        """Whether a write is not complete."""
        return self._lock.locked()

    async def send(self, data: bytes) -> None:
        """Send all of `data`, or give the client up.

        Does not raise when the client is gone. Cancellation waits for the write, because a response that is cut off
        would spoil the connection. A write that the kernel accepts at once has no checkpoint.
        """
        if self.closed:
            return
        rest = memoryview(data)
        if not self._lock.locked():
            rest = rest[self.send_now(data) :]
            if not (rest or self._wire.pending) or self.closed:
                return
        with trio.CancelScope(shield=True) as scope:
            async with self._lock:  # its owner makes progress or ends the connection
                self._waiting = scope
                try:
                    while (rest or self._wire.pending) and not self.closed:
                        scope.deadline = min(trio.current_time() + self._seconds, self._end)
                        await self._wire.wait_writable()
                        rest = rest[self.send_now(rest) :]
                finally:
                    self._waiting = None
        if scope.cancelled_caught:
            self._lost()

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as much as fits and return how many bytes were accepted."""
        try:
            return self._wire.send_now(data)
        except OSError:
            self._lost()
            return 0

    def end_by(self, deadline: float) -> None:
        """Give the client up at `deadline` (Trio time) if it has not accepted everything by then."""
        self._end = deadline
        if self._waiting is not None:
            self._waiting.deadline = min(self._waiting.deadline, deadline)

    def close(self) -> None:
        """Send nothing more."""
        self.closed = True
        if self._waiting is not None:
            self._waiting.cancel()
