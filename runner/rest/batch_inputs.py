"""The inputs of a batch in a body: any number of JSON lines, or one array. Bytes in, inputs out; no transport."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import trio

from protocol import messages
from protocol.errors import ErrorKind, Failure, error
from runner.api import Input

_SPACE = b" \t\r\n"
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_IN_ARRAY = re.compile(rb'(?:[^][{},"]++|' + _STRING + rb")*+([][{},])")
"""Up to the next comma or bracket in an array, which is valid JSON."""
_IN_ELEMENT = re.compile(rb'(?:[^][{}"]++|' + _STRING + rb")*+([][{}])")
"""Up to the next bracket inside an element."""
_SKIPPED_IN_ARRAY = re.compile(rb'(?:[^][{},"]++|' + _STRING + rb")*+")
_SKIPPED_IN_ELEMENT = re.compile(rb'(?:[^][{}"]++|' + _STRING + rb")*+")
_WINDOW_BYTES = 64 * 1024
"""Searched at once, unless one string is longer."""
_STEPS = 2000
"""The number of brackets after which other tasks may run."""


class Lines:
    """One input on each line; blank lines are skipped. At most one line and one piece of the body are in memory."""

    def __init__(self, more: Callable[[], Awaitable[bytes | None]], limit: int) -> None:
        """Take `more`, which returns the next bytes, None at the end. A line of more than `limit` bytes is refused."""
        self._more = more
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._too_long = False
        self._ended = False
        self._count = 0

    def ready(self) -> bool:
        """Return whether `next` need not wait for the client."""
        return self._ended or self._buffer.find(b"\n", self._searched) >= 0

    async def next(self) -> Input | None:
        """Return the next input, None after the last. Raises the errors of `more`; a cancellation loses nothing."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                found = self._cut(end, 1)
            elif not self._ended:
                await self._read()
                continue
            elif self._buffer or self._too_long:
                found = self._cut(len(self._buffer), 0)
            else:
                return None
            if found is not None:
                return found

    async def _read(self) -> None:
        self._searched = len(self._buffer)
        if self._searched > self._limit:
            self._too_long = True
            self._buffer.clear()
            self._searched = 0
        data = await self._more()
        if data is None:
            self._ended = True
        else:
            self._buffer += data

    def _cut(self, end: int, mark: int) -> Input | None:
        """Cut a line of `end` bytes and the mark after it off the buffer; return its input, None for a blank line."""
        too_long, self._too_long = self._too_long or end > self._limit, False
        line = b"" if too_long else bytes(self._buffer[:end]).strip(_SPACE)
        del self._buffer[: end + mark]
        self._searched = 0
        if not line and not too_long:
            return None
        name = str(self._count)
        self._count += 1
        if too_long:
            text = f"the line is over {self._limit} bytes; the limit is `max_frame`"
            return Input(name, refusal=Failure(ErrorKind.TOO_LARGE, text, field="$"))
        return Input(name, line)


class Array:
    """The elements of one JSON array, found one after the other and never decoded, so that any number is cheap."""

    def __init__(self, body: bytes) -> None:
        """Take a body. Raises RunnerError `bad_input` if it is not one JSON array."""
        try:
            messages.check_json(body)
        except messages.InvalidJsonError as problem:
            raise error(ErrorKind.BAD_INPUT, f"the body is not JSON: {problem}", field=problem.path) from None
        self._body = body
        self._at = len(body) - len(body.lstrip(_SPACE)) + 1
        if body[self._at - 1 : self._at] != b"[":
            text = "the body is not an array of inputs; JSON lines need `Content-Type: application/x-ndjson`"
            raise error(ErrorKind.BAD_INPUT, text, field="$")
        self._count = 0

    def ready(self) -> bool:
        """Return that the next input is here."""
        return True

    async def next(self) -> Input | None:
        """Return the next input, None after the last. A cancellation loses nothing."""
        at, depth, steps = self._at, 0, 0
        while True:
            found = (_IN_ELEMENT if depth else _IN_ARRAY).match(self._body, at, at + _WINDOW_BYTES)
            if found is None:
                skipped = (_SKIPPED_IN_ELEMENT if depth else _SKIPPED_IN_ARRAY).match(
                    self._body, at, at + _WINDOW_BYTES
                )
                if skipped is not None and skipped.end() > at:
                    at = skipped.end()
                    await trio.lowlevel.checkpoint()
                    continue
                found = (_IN_ELEMENT if depth else _IN_ARRAY).match(self._body, at)
            if found is None:
                return None
            at, mark = found.end(), found[1]
            if mark in b"[{":
                depth += 1
            elif depth:
                depth -= 1
            else:
                break
            steps += 1
            if steps % _STEPS == 0:
                await trio.lowlevel.checkpoint()
        element = self._body[self._at : at - 1].strip(_SPACE)
        self._at = at if mark == b"," else len(self._body)
        if not element:
            return None  # the array is empty
        self._count += 1
        return Input(str(self._count - 1), element)
