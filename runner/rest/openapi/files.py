"""The operations on files: upload, list, download, delete, collect."""

from __future__ import annotations

from typing import Final

from protocol.errors import PROBLEM, ErrorKind
from runner.auth import Scope
from runner.rest.openapi import shapes
from runner.rest.openapi.operation import JSON, Header, Operation, Response
from runner.rest.openapi.parameters import CURSOR, LIMIT, Parameter, text

_ANY: Final = "*/*"
_BINARY: Final = {"type": "string", "format": "binary"}
_ID_PATTERN: Final = "^sha256:[0-9a-f]{64}$"
_ID: Final = Parameter("id", "The ID of a file, `sha256:` and its digest.", text(_ID_PATTERN), "path")
_ETAG: Final = Header("ETag", "The digest of the content.")
_NAME: Final = Header("Content-Disposition", "The name of the file.")
_RANGES: Final = Header("Accept-Ranges", "`bytes`.")
_PART: Final = Header("Content-Range", "The bytes that the answer has, and the size of the file.")


def _condition(name: str, description: str) -> Parameter:
    return Parameter(name, description, text(), "header")


UPLOAD: Final = Operation(
    "POST",
    "/files",
    "uploadFile",
    "Store a file",
    (Response(201, "It is stored.", {JSON: shapes.NamedFile}, (Header("Location", "The path of the file."),)),),
    Scope.FILES_WRITE,
    parameters=(
        Parameter("name", "Its name, without folders. Default: `file`.", text(r"^[^/\\\x00-\x1f]{1,255}$")),
        Parameter(
            "digest", "The ID that the content must have; with another one nothing is stored.", text(_ID_PATTERN)
        ),
        _condition("Repr-Digest", "`sha-256=:BASE64:` (RFC 9530), in place of `digest`; `Content-Digest` likewise."),
        _condition("Content-Digest", "As `Repr-Digest`."),
    ),
    body={_ANY: _BINARY},
    body_text="The content, of any type and of at most `max_file` bytes. `Content-Type` is kept as its type.",
    refused=(ErrorKind.TOO_LARGE, ErrorKind.OUT_OF_STORAGE),
    text="A client that disconnects leaves nothing. The same content is stored once.",
    tag="files",
)
LIST: Final = Operation(
    "GET",
    "/files",
    "listFiles",
    "List files, newest first",
    (Response(200, "A page.", {JSON: shapes.FilePage}),),
    Scope.FILES_READ,
    parameters=(LIMIT, CURSOR),
    text="A token that is limited to modules sees the files that its subject uploaded, and those of executions of its "
    "modules.",
    tag="files",
)
SHOW: Final = Operation(
    "GET",
    "/files/{id}",
    "getFile",
    "Get a file, or a part of it",
    (
        Response(200, "The content, with its own type.", {_ANY: _BINARY}, (_ETAG, _NAME, _RANGES)),
        Response(206, "A part of the content.", {_ANY: _BINARY}, (_ETAG, _NAME, _RANGES, _PART)),
        Response(304, "The client has it.", headers=(_ETAG,)),
        Response(412, "The file has another ETag.", {PROBLEM: shapes.Problem}),
        Response(416, "The range has no byte of the file.", {PROBLEM: shapes.Problem}, (_PART,)),
    ),
    Scope.FILES_READ,
    parameters=(
        _ID,
        _condition("Range", "One range of bytes, such as `bytes=0-499`, `bytes=500-`, `bytes=-500`."),
        _condition("If-Range", "An `ETag`: if the file has another one, the range does not count."),
        _condition("If-Match", "ETags, or `*`: if the file has none of them, the answer is 412."),
        _condition("If-None-Match", "ETags, or `*`: if the file has one of them, the answer is 304."),
    ),
    refused=(ErrorKind.NOT_FOUND,),
    tag="files",
)
DELETE: Final = Operation(
    "DELETE",
    "/files/{id}",
    "deleteFile",
    "Delete a file that no execution uses",
    (Response(204, "It is deleted."),),
    Scope.FILES_WRITE,
    parameters=(_ID,),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    text="If others have uploaded the same content, only the upload of a token that is limited to modules ends.",
    tag="files",
)
COLLECT: Final = Operation(
    "POST",
    "/files/gc",
    "collectFiles",
    "Delete the files now that are deleted once an hour",
    (Response(200, "What was deleted.", {JSON: shapes.CollectedFiles}),),
    Scope.ADMIN,
    refused=(ErrorKind.TOO_LARGE,),
    text="These are the files that no execution of the history uses and that are older than `file_retention`.",
    tag="files",
)
FILES: Final = (UPLOAD, LIST, SHOW, DELETE, COLLECT)
