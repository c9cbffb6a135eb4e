"""The answer of an endpoint: what its handler returned, in the form that `operato.Response` writes, or as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from attrs import evolve, frozen

from protocol.errors import ErrorKind, Failure, RunnerError, error
from runner.rest.endpoint import Headers
from runner.rest.hooks.incoming import OWN_COOKIE
from runner.rest.openapi import JSON

TEXT: Final = "text/plain; charset=utf-8"
NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
"""For answers whose handler does not say otherwise."""
_RESPONSE, _FILE = b'{"$response"', b'{"$file"'
_BODILESS: Final = frozenset({204, 205, 304})
_MAX_HEADER_BYTES: Final = 16 * 1024
_MAX_HEADER_JSON: Final = 16 * _MAX_HEADER_BYTES
"""Headers with more JSON are too large in any case, and a million of them would hold the loop while they are read."""
_TOO_MANY: Final = f"the headers of a response are over {_MAX_HEADER_BYTES} bytes"
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TYPE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[ -~]{1,200}")
_MAX_NAME: Final = 255
_OWN_COOKIE: Final = re.compile(rf"[\s=]*{OWN_COOKIE}", re.IGNORECASE)
"""A cookie without a name is sent back as its value alone, which may look like another cookie."""
_OWNED: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "te", "trailer", "transfer-encoding"),
        *("upgrade", "content-length", "date", "x-execution-id"),
    }
)
"""Headers of the connection and of the runner. A handler that set them could contradict the answer."""


class _File(msgspec.Struct):
    file: dict[str, Any] = msgspec.field(name="$file")


class _Fields(msgspec.Struct):
    """The fields of a response. At most one of the last three is there."""

    status: int = 200
    headers: msgspec.Raw = msgspec.Raw(b"[]")
    json: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    file: _File | msgspec.UnsetType = msgspec.UNSET


class _Response(msgspec.Struct):
    fields: _Fields = msgspec.field(name="$response")


@frozen
class Reply:
    """An answer that may be sent: its head, and the body or the file that is the body."""

    status: int = 200
    headers: Headers = ()
    content_type: str | None = None
    body: bytes = b""
    file: dict[str, Any] | None = None


_responses: Final = msgspec.json.Decoder(_Response)
_files: Final = msgspec.json.Decoder(_File)
_texts: Final = msgspec.json.Decoder(str)
_headers: Final = msgspec.json.Decoder(list[tuple[str, str]])


def reply_of(result: bytes) -> Reply:
    """Return the answer for a result. Raises RunnerError `bad_output` for a response that cannot be sent."""
    try:
        if result.startswith(_RESPONSE):
            return _reply(_responses.decode(result).fields)
        if result.startswith(_FILE):
            return Reply(file=_files.decode(result).file)
        if result.startswith(b'"'):
            return Reply(content_type=TEXT, body=_texts.decode(result).encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise _bad(f"the response cannot be read: {problem}", "$") from None
    return Reply(content_type=JSON, body=result)


def file_of(item: bytes) -> dict[str, Any] | None:
    """Return the file that an item of a generator is."""
    if not item.startswith(_FILE):
        return None
    try:
        return _files.decode(item).file
    except (msgspec.DecodeError, RecursionError):
        return None


def file_name(file: Mapping[str, Any], name: str) -> str:
    """Return the name that a handler gave to a file, `name` without a usable one."""
    given = file.get("name")
    return given if isinstance(given, str) and given.isprintable() and 0 < len(given) <= _MAX_NAME else name


def file_type(file: Mapping[str, Any], media_type: str) -> str:
    """Return the type that a handler gave to a file, `media_type` without a usable one."""
    given = file.get("type")
    return given if isinstance(given, str) and _TYPE.fullmatch(given) else media_type


def is_error(result: bytes) -> bool:
    """Return whether a result is an answer by which a handler refuses a request."""
    try:
        return result.startswith(_RESPONSE) and reply_of(result).status >= 400
    except RunnerError:
        return True


def is_head(item: bytes) -> bool:
    """Return whether the first item of a generator is a response, which is the head of what follows."""
    return item.startswith(_RESPONSE)


def _reply(fields: _Fields) -> Reply:
    if not 200 <= fields.status <= 599:
        raise _bad(f"the status of a response is 200 to 599, not {fields.status}", "$.status")
    content_type, headers = _checked(fields.headers)
    body, own, file = b"", None, None
    if isinstance(fields.text, str):
        body, own = fields.text.encode(), TEXT
    elif isinstance(fields.file, _File):
        file = fields.file.file
    elif isinstance(fields.json, msgspec.Raw):
        body, own = bytes(fields.json), JSON
    if fields.status in _BODILESS:
        body, file = b"", None
    return Reply(fields.status, headers, content_type or own, body, file)


def _pairs(given: msgspec.Raw) -> list[tuple[str, str]]:
    if len(memoryview(given)) > _MAX_HEADER_JSON:
        raise _bad(_TOO_MANY, "$.headers")
    try:
        return _headers.decode(given)
    except msgspec.DecodeError as problem:
        raise _bad(f"the headers of a response cannot be read: {problem}", "$.headers") from None


def _checked(given: msgspec.Raw) -> tuple[str | None, Headers]:
    """Return the content type and the other headers. Raises RunnerError `bad_output`."""
    content_type, headers, size = None, [], 0
    for place, (written, value) in enumerate(_pairs(given)):
        name, where = written.lower(), f"$.headers[{place}]"
        size += len(name) + len(value)
        if size > _MAX_HEADER_BYTES:
            raise _bad(_TOO_MANY, where)
        if not _NAME.fullmatch(name):
            raise _bad(f"{written!r:.80} is not the name of a header", where)
        if not _VALUE.fullmatch(value):
            text = f"the value of {name} has a line end, a control character or one that is not Latin-1"
            raise _bad(text, where)
        if name in _OWNED or name.startswith("access-control-"):
            remedy = "the setting `cors_origins` makes it" if name.startswith("access") else "the runner sets it"
            raise _bad(f"a response cannot have the header {name}; {remedy}", where)
        if name == "set-cookie" and _OWN_COOKIE.match(value):
            raise _bad("cookies whose names begin with operato_ belong to the runner", where)
        if name != "content-type":
            headers.append((name.encode(), value.strip().encode("latin-1")))
        elif content_type is not None:
            raise _bad("the header content-type is given twice", where)
        else:
            content_type = value.strip()
    return content_type, tuple(headers)


def _bad(text: str, where: str) -> RunnerError:
    return error(ErrorKind.BAD_OUTPUT, text, field=where)


_TO_STRANGERS: Final = frozenset(
    {
        *(ErrorKind.BAD_INPUT, ErrorKind.TOO_LARGE, ErrorKind.UNAUTHENTICATED, ErrorKind.FORBIDDEN),
        *(ErrorKind.OVERLOADED, ErrorKind.TIMEOUT, ErrorKind.CANCELLED, ErrorKind.SHUTDOWN, ErrorKind.INTERNAL),
    }
)
"""Kinds whose messages tell nothing about the code, the machine and its values."""


def shown_failure(failure: Failure, *, stranger: bool, execution: str | None = None) -> Failure:
    """Return a failure as the caller of an endpoint sees it: without traceback, and to a stranger without details."""
    text = failure.message
    if stranger and failure.kind not in _TO_STRANGERS:
        text = "the request could not be served" + ("" if execution is None else f"; the execution {execution} has why")
    return evolve(failure, message=text, type=None, traceback=None)
