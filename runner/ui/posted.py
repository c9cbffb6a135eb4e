"""Forms that browsers post: read whole, within a limit, and parsed in a thread where that takes time."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Final
from urllib.parse import parse_qsl

import trio
from attrs import field, frozen
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import FormDataParser

from protocol.errors import ErrorKind, error
from runner.http import BodyError, BodyTooLargeError, Message, Receive, read_body

_MAX_FIELDS: Final = 1000
_LONG_BYTES: Final = 64 * 1024
URLENCODED: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"


@frozen
class Posted:
    """The fields and files of one form."""

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
    parse = partial(_parse, content_type, body)
    return parse() if len(body) <= _LONG_BYTES else await trio.to_thread.run_sync(parse)


def _parse(content_type: str, body: bytes) -> Posted:
    kind, _, rest = content_type.partition(";")
    kind = kind.strip().lower()
    try:
        if kind == URLENCODED:
            text = body.decode()
            return Posted(MultiDict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)))
        if kind == MULTIPART:
            parser = FormDataParser(
                _in_memory, max_form_memory_size=len(body) + 1, max_form_parts=_MAX_FIELDS, silent=False
            )
            boundary = _boundary(rest)
            _, form, files = parser.parse(BytesIO(body), kind, len(body), {"boundary": boundary})
            return Posted(form, files)
    except (ValueError, HTTPException):
        raise error(ErrorKind.BAD_INPUT, "the form cannot be read", field="$") from None
    raise error(ErrorKind.BAD_INPUT, f"a page takes forms, not {kind[:80] or 'a body without type'!r}", field="$")


def _in_memory(
    total_content_length: int | None, content_type: str | None, filename: str | None, content_length: int | None = None
) -> BytesIO:
    """Return the place of a file: the body is in memory already, and no file is left in a folder of the system."""
    del total_content_length, content_type, filename, content_length
    return BytesIO()


def _boundary(rest: str) -> str:
    for part in rest.split(";"):
        name, _, value = part.strip().partition("=")
        if name.lower() == "boundary":
            return value.strip('"')
    return ""


def _type(scope: Message) -> str:
    found: bytes = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return found.decode("latin-1")
