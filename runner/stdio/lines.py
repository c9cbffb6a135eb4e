"""Lines over standard input and output, for programs that speak a protocol there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import field, frozen


@frozen(eq=False)
class Lines:
    """Standard input and output of this process, in lines."""

    limit: int
    """Bytes of a line; of a longer one only the beginning is read."""
    _input: trio.abc.ReceiveStream
    _output: trio.abc.SendStream
    _writing: trio.Lock = field(factory=trio.Lock, init=False)

    async def read(self) -> AsyncIterator[bytes]:
        """Yield lines without their ends, until the end of the input."""
        parts: list[bytes] = []
        size = 0
        while data := await self._input.receive_some(65_536):
            first, *rest = data.split(b"\n")
            for number, part in enumerate((first, *rest)):
                if number:
                    yield b"".join(parts)
                    parts, size = [], 0
                if size <= self.limit:
                    parts.append(part)
                    size += len(part)
        if parts:
            yield b"".join(parts)

    async def write(self, line: bytes) -> None:
        """Write a line, whole also if the caller is cancelled meanwhile."""
        async with self._writing:
            with trio.CancelScope(shield=True):
                await self._output.send_all(line + b"\n")


@asynccontextmanager
async def standard_lines(limit: int) -> AsyncIterator[Lines]:
    """Yield standard input and output in lines. Other writers to standard output reach standard error."""
    given = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    async with trio.lowlevel.FdStream(given[0]) as source, trio.lowlevel.FdStream(given[1]) as sink:
        yield Lines(limit, source, sink)
