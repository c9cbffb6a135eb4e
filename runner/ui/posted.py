"""Forms that browsers post: read whole, within a limit, and parsed in bounded steps or in a thread."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Final

import trio
from attrs import define, field, frozen
from werkzeug.datastructures import FileStorage, MultiDict

from protocol.errors import ErrorKind, error
from runner.http import BodyError, BodyTooLargeError, Message, Receive, read_body
from runner.inputs import FORM, URLENCODED, Content, Head, read_pairs, read_parts

_MAX_PARTS: Final = 1000
_LONG_BYTES: Final = 64 * 1024


@frozen
class Posted:
    """The fields and files of one form, all of them in memory."""

    form: MultiDict[str, str] = field(factory=MultiDict)
    files: MultiDict[str, FileStorage] = field(factory=MultiDict)


NOTHING: Final = Posted()


async def read_posted(scope: Message, receive: Receive, limit: int) -> Posted:
    """Read the body of a request as a form. Raises RunnerError `too_large` or `bad_input`."""
    try:
        body = await read_body(scope, receive, limit)
    except BodyTooLargeError as problem:
        raise error(ErrorKind.TOO_LARGE, str(problem), field="$") from None
    except BodyError as problem:
        raise error(ErrorKind.BAD_INPUT, str(problem), field="$") from None
    return await parse_posted(_type(scope), body)


async def parse_posted(content_type: str, body: bytes) -> Posted:
    """Return the fields of a body. Raises RunnerError `bad_input`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == URLENCODED:
        pairs = partial(read_pairs, body)
        found = pairs() if len(body) <= _LONG_BYTES else await trio.to_thread.run_sync(pairs)
        return Posted(MultiDict(found))
    if kind == FORM:
        parts = _Parts()
        await read_parts(content_type, partial(_whole, body), _MAX_PARTS, parts.take)
        return parts.posted
    raise error(ErrorKind.BAD_INPUT, f"a page takes forms, not {kind[:80] or 'a body without type'!r}", field="$")


@define(eq=False)
class _Parts:
    """Collects the parts of a form."""

    posted: Posted = field(factory=Posted)
    _head: Head | None = None
    _data: bytearray = field(factory=bytearray)

    async def take(self, event: Head | Content) -> None:
        """Take the next event of the form. Raises RunnerError `bad_input`."""
        if isinstance(event, Head):
            self._head = event
            return
        self._data += event.data
        if event.last and self._head is not None:
            self._end(self._head, bytes(self._data))
            self._data = bytearray()

    def _end(self, head: Head, data: bytes) -> None:
        name = head.name or ""
        if head.filename is not None:
            self.posted.files.add(name, FileStorage(BytesIO(data), head.filename, name, head.type))
            return
        try:
            self.posted.form.add(name, data.decode())
        except UnicodeDecodeError:
            raise error(ErrorKind.BAD_INPUT, f"the form field {name!r:.80} is not UTF-8", field=name[:80]) from None


async def _whole(body: bytes) -> tuple[bytes, bool]:
    return body, False


def _type(scope: Message) -> str:
    found: bytes = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return found.decode("latin-1")
