"""Uploads: the body of a request goes into the store piece by piece."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

import trio

from actors.files import Writing, checked_digest
from protocol.errors import ErrorKind, error
from runner.inputs import FORM
from runner.rest.endpoint import Request

_ITEM: Final = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)[ \t]*=[ \t]*:([A-Za-z0-9+/=]*):[^,]*")
_OF_CURL: Final = "application/x-www-form-urlencoded"
"""What `curl --data-binary` says of any file."""
_DIGESTS: Final = ("repr-digest", "content-digest")


async def receive_file(request: Request, writing: Writing) -> None:
    """Write the body of a request, decoded, of any length and in any time, as long as bytes come.

    Raises RunnerError: `bad_input` when the client closes early or sends nothing for `body_timeout`, and those of
    `Writing.write`.
    """
    request.stream_body()
    seconds, more = request.service.settings.server.body_timeout_seconds, True
    while more:
        with trio.move_on_after(seconds) as scope:
            data, more = await request.piece()
        if scope.cancelled_caught:
            text = f"no byte of the body arrived for {seconds:g} s; the limit is `body_timeout`"
            raise error(ErrorKind.BAD_INPUT, text, field="$")
        if data:
            await writing.write(data)


def type_of(request: Request) -> str:
    """Return the type of the file in a body; "" without one. Raises RunnerError `bad_input` for a form."""
    given = request.header("content-type") or ""
    kind = given.partition(";")[0].strip().lower()
    if kind == FORM:
        text = "the body is the file itself, not a form: curl -T FILE, or curl --data-binary @FILE"
        raise error(ErrorKind.BAD_INPUT, text, field="content-type")
    return "" if kind == _OF_CURL else given


def announced_bytes(request: Request) -> int:
    """Return the size of the content that the head of a request announces, 0 if it does not."""
    length = request.header("content-length")
    return 0 if length is None or _encoded(request) else int(length)


def _encoded(request: Request) -> bool:
    return (request.header("content-encoding") or "identity").strip().lower() != "identity"


def expected_id(request: Request) -> str | None:
    """Return the id that the content must have: by `digest`, or by a header (RFC 9530). Raises RunnerError `bad_input`.

    The headers are about the encoded body, so they go together with no encoding.
    """
    found = set()
    if request["digest"] is not None:
        found.add(checked_digest(request["digest"]))
    for name in _DIGESTS:
        header = request.header(name)
        if header is not None and (digest := _sha256_in(name, header)) is not None:
            if _encoded(request):
                text = f"{name} is the digest of the compressed body; send that of the content as ?digest=sha256:..."
                raise error(ErrorKind.BAD_INPUT, text, field=name)
            found.add(digest)
    if len(found) > 1:
        raise error(ErrorKind.BAD_INPUT, "the request has several digests, which differ; send one", field="digest")
    return found.pop() if found else None


def _sha256_in(name: str, header: str) -> str | None:
    """Return the id in a header of digests; None if it has other algorithms only, which are not checked."""
    for part in header.split(","):
        item = _ITEM.fullmatch(part)
        try:
            digest = None if item is None else base64.b64decode(item[2], validate=True)
        except binascii.Error:
            digest = None
        if item is None or digest is None:
            text = f"{name} must be like sha-256=:BASE64:, not {header!r:.100}"
            raise error(ErrorKind.BAD_INPUT, text, field=name)
        if item[1] == "sha-256":
            return checked_digest(f"sha256:{digest.hex()}")
    return None
