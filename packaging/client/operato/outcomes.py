"""A batch: inputs in requests of bounded size, and their outcomes in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from operato.connection import MAX_ANSWER_BYTES, Link, Reply
from operato.errors import InternalError, LostError, failure
from operato.files import Files
from operato.inputs import encoded
from operato.records import Execution, Outcome

_MOST_INPUTS = 1000
_MOST_BYTES = 1024 * 1024
"""Bounds of one request, which is taken whole by the runner before the first answer."""


class Batch:
    """Reads outcomes, and sends the next inputs when those of a request are answered."""

    def __init__(
        self, link: Link, files: Files, path: str, inputs: Iterable[Any], how: Mapping[str, Any], timeout: float | None
    ) -> None:
        self._link = link
        self._files = files
        self._path = path
        self._inputs = iter(inputs)
        self._how = how
        self._timeout = timeout
        self._kept: bytes | None = None
        """An input that did not fit into the last request."""
        self._reply: Reply | None = None
        self._first = self._next = self._end = 0
        """Numbers of inputs: the first one of the request, the next one to yield, the end of the request."""
        self._lines = bytearray()
        self._ready: dict[int, Outcome] = {}

    async def take(self) -> Outcome | None:
        """Return the outcome of the next input, None after the last one."""
        if self._next == self._end and not await self._send():
            return None
        while self._next not in self._ready:
            outcome = self._read(await self._line())
            self._ready[outcome.index] = outcome
        self._next += 1
        found = self._ready.pop(self._next - 1)
        if self._next == self._end:
            await self._drained()
        return found

    async def close(self) -> None:
        """Close the connection, which ends the executions that run."""
        reply, self._reply = self._reply, None
        if reply is not None:
            await reply.close()

    async def _send(self) -> bool:
        """Send the next inputs; return False if there are none."""
        lines: list[bytes] = []
        size = 0
        while len(lines) < _MOST_INPUTS:
            line = await self._encoded()
            if line is None:
                break
            if lines and size + len(line) > _MOST_BYTES:
                self._kept = line
                break
            lines.append(line)
            size += len(line)
        if not lines:
            return False
        self._first, self._end = self._next, self._next + len(lines)
        self._lines.clear()
        self._reply = await self._link.open(
            "POST",
            self._path,
            query=self._how,
            body=b"".join(lines),
            headers={"content-type": "application/x-ndjson", "x-timeout": self._timeout},
            seconds=None,
        )
        return True

    async def _encoded(self) -> bytes | None:
        if self._kept is not None:
            line, self._kept = self._kept, None
            return line
        for value in self._inputs:
            return await encoded(self._files, value) + b"\n"
        return None

    async def _line(self) -> bytes:
        while b"\n" not in self._lines:
            part = b"" if self._reply is None else await self._reply.part()
            if not part:
                raise LostError(f"the connection was lost before the answer to input {self._next}")
            self._lines += part
            if len(self._lines) > MAX_ANSWER_BYTES:
                raise InternalError("an answer of the runner is too large")
        line, _, rest = bytes(self._lines).partition(b"\n")
        self._lines[:] = rest
        return line

    def _read(self, line: bytes) -> Outcome:
        """Return the outcome in a line. Raises the error with which the runner ended the batch."""
        fields = self._link.decoded(line)
        problem = fields.get("problem")
        if "index" not in fields:
            raise failure({"title": "", **(problem or {})})
        number = self._first + int(fields["index"])
        if problem is not None:
            return Outcome(number, problem=failure({"title": "", **problem}))
        return Outcome(number, Execution.of({name: value for name, value in fields.items() if name != "index"}))

    async def _drained(self) -> None:
        """Read the end of the answer, so that its connection is free for the next request."""
        while self._reply is not None and await self._reply.part():
            pass
        await self.close()
