"""A form as the input of a handler: its texts by the schema of the input, its files in the store."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from attrs import define, evolve, field

from actors.files import GATHERED_BYTES, StoredFile, Writing
from protocol.errors import ErrorKind, RunnerError, error
from runner.api import Checks, gathering
from runner.inputs.fields import Field, Fields, Value
from runner.inputs.part import Content, Head, Piece
from runner.inputs.parts import read_parts
from runner.wire import Budget

INLINE_BYTES: Final = 64 * 1024
"""So many bytes of a file are in memory before it is begun in the store."""
MAX_PARTS: Final = 1000
MAX_FILES: Final = 64
_STEP: Final = 64 * 1024
"""Bytes of an urlencoded text that are decoded at once: the decoder makes a hundred bytes of memory for each escape."""
_NOT_YET: Final = "sha256:" + "0" * 64
_FOLDERS: Final = re.compile(r".*[/\\\\]", re.DOTALL)

Store = Callable[[str, str], AbstractAsyncContextManager[Writing]]
"""Begins a file with this name and type."""
Check = Callable[[dict[str, Value]], Awaitable[None]]
"""Raises RunnerError for an input that would be refused."""


async def read_form(
    content_type: str,
    piece: Piece,
    fields: Fields,
    store: Store,
    *,
    budget: Budget,
    limit: int,
    checks: Checks | None = None,
    check: Check | None = None,
) -> dict[str, Value]:
    """Return the fields of a multipart form. Its files are in the store, with all of them or none.

    Texts take `limit` bytes at most, and memory of the `budget` while they are collected; long ones are converted in
    the threads of `checks`. `check` sees the input before
    its files are in the store, with made-up ids. Raises RunnerError: `bad_input` with the field at fault, `too_large`,
    `out_of_storage`, `unavailable`, and what `check` raises; then nothing is stored.
    """
    async with AsyncExitStack() as files:
        form = _Form(fields, store, budget, limit, files)
        try:
            await read_parts(content_type, piece, MAX_PARTS, form.take)
            working = checks or Checks()
            value = await working.sized(form.texts, partial(form.value, {}))
            if check is not None:
                await check(value)
            if not form.files:
                return value
            stored = {id(part): await part.finish() for part in form.files}
            return await working.sized(form.texts, partial(form.value, stored))
        finally:
            budget.give(form.held)


async def read_raw(piece: Piece, begin: Callable[[], AbstractAsyncContextManager[Writing]], budget: Budget) -> Value:
    """Return a body as it is: a short text as a string, other bytes as a file of the store, which `begin` begins.

    Takes memory of the `budget` meanwhile. Raises RunnerError: `unavailable`, `too_large`, `out_of_storage`.
    """
    head, more = bytearray(), True
    with gathering(budget, INLINE_BYTES):
        while more and len(head) <= INLINE_BYTES:
            data, more = await piece()
            head += data
        if not more and len(head) <= INLINE_BYTES and (text := text_in(head)) is not None:
            return text
        with gathering(budget, GATHERED_BYTES):
            async with begin() as writing:
                await writing.write(head)
                del head
                while more:
                    data, more = await piece()
                    await writing.write(data)
                return file_value(await writing.finish())


def read_urlencoded(data: bytes, fields: Fields) -> dict[str, Value]:
    """Return the fields of `application/x-www-form-urlencoded`. Raises RunnerError `bad_input`, naming the field."""
    found: dict[str, list[Value]] = {}
    for name, text in read_pairs(data):
        found.setdefault(_named(name, len(found) + 1), []).append(text)
    return {name: fields.of(name).whole(values) for name, values in found.items()}


def read_pairs(data: bytes) -> list[tuple[str, str]]:
    """Return the names and values of an urlencoded form, in order. Raises RunnerError `bad_input`."""
    if data.count(b"&") >= MAX_PARTS:
        raise error(ErrorKind.BAD_INPUT, f"the form has more than {MAX_PARTS} fields", field="$")
    try:
        halves = (pair.partition(b"=") for pair in data.split(b"&") if pair)
        return [(_decoded(name), _decoded(value)) for name, _, value in halves]
    except UnicodeDecodeError:
        text = "the form is not UTF-8; send files as `multipart/form-data`"
        raise error(ErrorKind.BAD_INPUT, text, field="$") from None


def _decoded(data: bytes) -> str:
    """Return the text of a name or value, decoded in steps: one call for all of it would hold up other threads.

    Raises UnicodeDecodeError.
    """
    data, pieces, begin = data.replace(b"+", b" "), [], 0
    while begin < len(data):
        end = begin + _STEP
        cut = data.find(b"%", end - 2, end) if end < len(data) else -1  # `%41` stays in one piece
        end = end if cut < 0 else cut
        pieces.append(unquote_to_bytes(data[begin:end]))
        begin = end
    return b"".join(pieces).decode()


def is_json(data: bytes) -> bool:
    """Whether a body is JSON that was sent as `application/x-www-form-urlencoded`, as `curl -d` does: no such form."""
    return data.lstrip()[:1] in (b"{", b"[", b'"') or b"=" not in data


def file_value(stored: StoredFile) -> dict[str, Any]:
    """Return a file as a value of an input."""
    return {"$file": stored.described}


def text_in(data: bytes | bytearray) -> str | None:
    """Return the text of UTF-8, None for other bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _named(name: str | None, number: int) -> str:
    if not name:
        raise error(ErrorKind.BAD_INPUT, f"part {number} of the form has no name", field="$")
    return name


@define(eq=False)
class _Part:
    """A part of the form, which ends as a text or as a file."""

    wanted: Field
    head: Head
    data: bytearray = field(factory=bytearray)
    size: int = 0
    writing: Writing | None = None
    text: str | None = None

    @property
    def is_file(self) -> bool:
        return self.head.filename is not None

    @property
    def is_text(self) -> bool:
        """Whether it is a text, or a file that is wanted as one."""
        return not self.is_file or self.wanted.is_text()

    @property
    def left_out(self) -> bool:
        """Whether it is from a file input that is empty, for which a browser sends a part all the same."""
        return self.head.filename == "" and self.size == 0

    def value(self, stored: Mapping[int, StoredFile]) -> Value:
        """Return the value of the part."""
        if self.text is not None:
            return self.text
        if (found := stored.get(id(self))) is not None:
            return file_value(found)
        shown = {"name": self.head.filename or "", "type": self.head.type, "size": self.size}
        return {"$file": {"id": _NOT_YET, **shown}}

    async def finish(self) -> StoredFile:
        """Put the file into the store."""
        assert self.writing is not None  # noqa: S101  (a part that is no text has one)
        with _at(self.wanted.path):
            return await self.writing.finish()


class _Form:
    """The parts of a form that have arrived."""

    def __init__(self, fields: Fields, store: Store, budget: Budget, limit: int, files: AsyncExitStack) -> None:
        self.held = 0
        """Bytes taken of the budget."""
        self._fields = fields
        self._store = store
        self._budget = budget
        self._limit = limit
        self._files = files
        self._parts: dict[str, list[_Part]] = {}
        self.texts = 0
        """Bytes of names and texts."""
        self._count = self._files_count = 0
        self._part: _Part | None = None

    @property
    def files(self) -> list[_Part]:
        """The parts that become files."""
        return [part for part in self._all() if part.text is None]

    def _all(self) -> list[_Part]:
        return [part for parts in self._parts.values() for part in parts if not part.left_out]

    def value(self, stored: Mapping[int, StoredFile]) -> dict[str, Value]:
        """Return the fields. Raises RunnerError `bad_input`."""
        found = {}
        for name, parts in self._parts.items():
            values = [part.value(stored) for part in parts if not part.left_out]
            if values:
                found[name] = parts[0].wanted.whole(values)
        return found

    async def take(self, event: Head | Content) -> None:
        """Take the next event of the form."""
        if isinstance(event, Head):
            self._begin(event)
        elif self._part is not None:
            await self._add(self._part, event)

    def _begin(self, head: Head) -> None:
        self._count += 1
        name = _named(head.name, self._count)
        wanted = self._fields.of(name)
        part = self._part = _Part(wanted, head)
        before = self._parts.setdefault(name, [])
        before.append(part)
        if len(before) > 1 and not wanted.repeated:
            raise wanted.twice(len(before))  # before it has arrived
        self.texts += len(name)
        if part.is_file:
            self._files_count += 1
            if self._files_count > MAX_FILES:
                raise error(ErrorKind.BAD_INPUT, f"the form has more than {MAX_FILES} files", field=wanted.path)
            if not wanted.takes_file():
                text = f"the form field {name!r:.80} is a file, and the input takes {wanted.words} there"
                raise error(ErrorKind.BAD_INPUT, text, field=wanted.path)

    async def _add(self, part: _Part, content: Content) -> None:
        size = len(content.data)
        part.size += size
        if part.is_text:
            self.texts += size
            if self.texts > self._limit:
                text = f"the fields of the form are over {self._limit} bytes; the limit is `max_frame`"
                raise error(ErrorKind.TOO_LARGE, text, field="$")
        if part.writing is None:
            self._hold(min(size, GATHERED_BYTES))
            part.data += content.data
            if not part.is_text and len(part.data) > INLINE_BYTES:
                self._hold(GATHERED_BYTES)
                await self._open(part)
        else:
            with _at(part.wanted.path):
                await part.writing.write(content.data)
        if content.last:
            await self._end(part)

    async def _end(self, part: _Part) -> None:
        if part.is_text:
            part.text = text_in(part.data)
            part.data = bytearray()
            if part.text is None:
                why = "the input takes text there" if part.is_file else "send bytes as a file, with a filename"
                text = f"the form field {part.wanted.name!r:.80} is not UTF-8; {why}"
                raise error(ErrorKind.BAD_INPUT, text, field=part.wanted.path)
        elif part.writing is None and not part.left_out:
            await self._open(part)

    async def _open(self, part: _Part) -> None:
        name = _FOLDERS.sub("", part.head.filename or "")  # some clients send a path
        with _at(part.wanted.path):
            part.writing = await self._files.enter_async_context(self._store(name, part.head.type))
            await part.writing.write(part.data)
        part.data = bytearray()

    def _hold(self, size: int) -> None:
        if not self._budget.take(size):
            text = "the unfinished requests of all callers are too large together; the limit is `max_buffered`"
            raise error(ErrorKind.UNAVAILABLE, text, retry_after=1)
        self.held += size


@contextmanager
def _at(path: str) -> Iterator[None]:
    """Give errors of the store the path of the field."""
    try:
        yield
    except RunnerError as problem:
        raise RunnerError(evolve(problem.failure, field=path)) from None
