"""The result of an execution as it is: JSON as JSON, a file as a file, a response as its body."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
from attrs import evolve
from msgspec import UNSET, Raw, Struct, UnsetType, field

from actors.files import Viewer, checked_name, checked_type
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution, Status
from runner.rest.endpoint import Answer, Download, Headers, Request
from runner.rest.files.answers import SAFE, file_answer
from runner.rest.openapi import JSON

_TEXT: Final = "text/plain; charset=utf-8"
_RETRY_SECONDS: Final = 1.0


class _File(Struct):
    id: str
    name: str = ""
    type: str = ""


class _Response(Struct):
    headers: list[tuple[str, str]] = field(default_factory=list)
    json: Raw | UnsetType = UNSET
    text: str | UnsetType = UNSET
    file: Raw | UnsetType = UNSET


class _HasFile(Struct, forbid_unknown_fields=True):
    file: _File = field(name="$file")


class _HasResponse(Struct, forbid_unknown_fields=True):
    response: _Response = field(name="$response")


_BEGINNINGS: Final = (b'{"$file":', b'{"$response":')
_decoders: Final[tuple[msgspec.json.Decoder[_HasFile] | msgspec.json.Decoder[_HasResponse], ...]] = (
    msgspec.json.Decoder(_HasFile),
    msgspec.json.Decoder(_HasResponse),
)


def has_content(execution: Execution) -> bool:
    """Whether the result of an execution may be something else than JSON."""
    return execution.result is not None and execution.result.startswith(_BEGINNINGS)


async def result_answer(request: Request, execution: Execution, headers: Headers = ()) -> Answer | Download:
    """Return the answer with the result alone. Its caller may read the execution, and so its files.

    Raises RunnerError: `conflict` while it has not ended, `not_found` if it has no result or the file is gone,
    `unavailable` for a damaged file.
    """
    result = _result_of(execution)
    request.service.answers.take(request.share, len(result))
    content = await request.service.checks.whole(_content, result) if has_content(execution) else None
    if isinstance(content, _HasFile):
        return await _file(request, execution.module.name, content.file, headers)
    if isinstance(content, _HasResponse):
        return await _response(request, execution.module.name, content.response, headers)
    return Answer(result, headers=headers)


def _result_of(execution: Execution) -> bytes:
    """Return the result. Raises RunnerError with the reason for its absence."""
    if not execution.status.final:
        text = f"the execution is {execution.status}, so it has no result yet; follow it, or ask again"
        raise error(ErrorKind.CONFLICT, text, field="status", retry_after=_RETRY_SECONDS)
    if execution.status is not Status.SUCCEEDED:
        kind = "" if execution.failure is None else f" with {execution.failure.kind}"
        text = f"the execution {execution.status}{kind}, so it has no result; its record has the error"
        text = text.replace("execution cancelled", "execution was cancelled")
        raise error(ErrorKind.NOT_FOUND, text, field="result")
    if execution.result is None and execution.summary:
        text = "the result is not kept: the module records summaries only"
        raise error(ErrorKind.NOT_FOUND, text, field="result")
    return execution.result or b"null"


def _content(result: bytes) -> _HasFile | _HasResponse | None:
    """Return the file or the response that is the whole result, None for other JSON."""
    for decoder in _decoders:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            found = decoder.decode(result)
            if isinstance(found, _HasResponse) and found.response.file is not UNSET:
                _file_in(found.response.file)
            return found
    return None


def _file_in(raw: Raw) -> _File:
    """Return the file of a response, which is written with the key `$file` or without."""
    try:
        return msgspec.json.decode(raw, type=_HasFile).file
    except msgspec.MsgspecError:
        return msgspec.json.decode(raw, type=_File)


async def _file(
    request: Request, module: str, named: _File, headers: Headers, content_type: str = ""
) -> Answer | Download:
    """Return the answer with a file of a result. A handler can write any id into its result.

    So a caller that is limited to modules gets no files here but those of the module's executions.
    """
    principal = request.principal
    viewer = Viewer(principal.subject, (module,)) if principal.modules else None
    stored = await request.service.files.find(named.id, viewer)
    if stored is None:
        raise error(ErrorKind.NOT_FOUND, f"there is no file {named.id:.100} of the result", field="result")
    kind = content_type or _usable(checked_type, named.type) or stored.type
    shown = evolve(stored, name=_usable(checked_name, named.name) or stored.name, type=kind)
    return file_answer(request, shown, headers=headers)


def _usable(check: Callable[[str], str], given: str) -> str:
    """Return a name or a type that a handler wrote, "" for one that no header may have."""
    with suppress(RunnerError):
        return given and check(given)
    return ""


async def _response(request: Request, module: str, response: _Response, headers: Headers) -> Answer | Download:
    given = {name.lower(): value for name, value in response.headers}
    content_type = _usable(checked_type, given.get("content-type", ""))
    if response.file is not UNSET:
        return await _file(request, module, _file_in(response.file), headers, content_type)
    if response.text is not UNSET:
        return Answer(response.text.encode(), content_type=content_type or _TEXT, headers=(*SAFE, *headers))
    body = b"" if response.json is UNSET else bytes(response.json)
    return Answer(body, content_type=content_type or JSON, headers=(*SAFE, *headers))
