"""A stored file as values: its description, its id, and the ids that an input names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import frozen

from protocol.errors import ErrorKind, error

FILE_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
"""The id of a file: the digest of its content."""
PLAIN_TYPE: Final = "application/octet-stream"
PLAIN_NAME: Final = "file"
MAX_REFERENCES: Final = 1000
"""Files that one input may name."""
_MAX_KEYS: Final = 10_000
"""Keys `"$file"` that are looked at in one input, so that none takes long."""
_MAX_NAME_BYTES: Final = 255
_KEY: Final = b'"$file"'
_SPACES: Final = b" \t\r\n"
_MOST_SPACES: Final = 1024
_MOST_BYTES: Final = 4096
"""The object of a file is shorter: a longer one is not one."""
_STEP_BYTES: Final = 4 * 1024 * 1024
_VALUE: Final = re.compile(rb'"\$file"[ \t\r\n]*+:[ \t\r\n]*+(\{(?:[^{}"]|"(?:[^"\\]|\\.)*+")*+\})[ \t\r\n]*+\}')
_TYPE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ -~]*")


class _Named(msgspec.Struct):
    id: str


_decoder: Final = msgspec.json.Decoder(_Named)


@frozen
class StoredFile:
    """A file in the store. `created_at` is the time of its latest upload, in seconds since the epoch."""

    id: str
    size: int
    type: str
    name: str
    created_at: float
    path: Path
    """Read only; its content is verified."""

    @property
    def described(self) -> dict[str, Any]:
        """The object inside of `$file`."""
        return {"id": self.id, "name": self.name, "type": self.type, "size": self.size}


def references(data: bytes) -> set[str]:
    """Return the ids of the `$file` objects in JSON: objects with exactly this key, which is written without escapes.

    Takes some milliseconds for a megabyte, in short steps; call it in a thread for more. Raises RunnerError `bad_input`
    for too many of them, and for one whose id is no id.
    """
    found: set[str] = set()
    keys, at = 0, _next_key(data, 0)
    while at >= 0:
        keys += 1
        match = _VALUE.match(data, at, at + _MOST_BYTES)
        if match is not None and data[max(0, at - _MOST_SPACES) : at].rstrip(_SPACES).endswith(b"{"):
            found.add(_id_in(match[1]))
        if len(found) > MAX_REFERENCES or keys > _MAX_KEYS:
            text = f"the input names more than {MAX_REFERENCES} files; send fewer in one call"
            raise error(ErrorKind.BAD_INPUT, text, field="$")
        at = _next_key(data, at + len(_KEY))
    return found


def _next_key(data: bytes, start: int) -> int:
    """Return the place of the next key, -1 without one. A search in all of a large input would hold up other tasks."""
    for at in range(start, len(data), _STEP_BYTES):
        found = data.find(_KEY, at, at + _STEP_BYTES + len(_KEY) - 1)
        if found >= 0:
            return found
    return -1


def _id_in(value: bytes) -> str:
    try:
        return checked_id(_decoder.decode(value).id)
    except msgspec.MsgspecError:
        text = "the value of `$file` is no file; it is an object with the `id` of a stored file, such as sha256:..."
        raise error(ErrorKind.BAD_INPUT, text, field="$file.id") from None


def checked_id(given: str) -> str:
    """Return an id. Raises RunnerError `bad_input` for another text."""
    if FILE_ID.fullmatch(given) is None:
        text = f"{given!r:.100} is not the id of a file: `sha256:` and 64 hexadecimal digits in lower case"
        raise error(ErrorKind.BAD_INPUT, text, field="$file.id")
    return given


def checked_digest(given: str) -> str:
    """Return the id that a sender expects. Raises RunnerError `bad_input`."""
    if FILE_ID.fullmatch(given.lower()) is None:
        text = f"digest must be `sha256:` and 64 hexadecimal digits, not {given!r:.100}"
        raise error(ErrorKind.BAD_INPUT, text, field="digest")
    return given.lower()


def check_digest(expected: str | None, found: str) -> None:
    """Raise RunnerError `bad_input` if a content has another id than its sender expects; None expects nothing."""
    if expected is not None and expected != found:
        text = f"the content has the digest {found}, not {expected}; it was damaged on its way, send it again"
        raise error(ErrorKind.BAD_INPUT, text, field="digest")


def checked_name(given: str) -> str:
    """Return the name of a file, `file` without one. Raises RunnerError `bad_input` for a path.

    The name becomes that of a file in the folder of a worker, and a part of a header.
    """
    if len(given.encode(errors="replace")) > _MAX_NAME_BYTES:
        raise error(ErrorKind.BAD_INPUT, f"the name of a file has at most {_MAX_NAME_BYTES} bytes", field="name")
    if given in (".", "..") or "/" in given or "\\" in given or not given.isprintable():
        text = f"{given!r:.100} is not the name of a file: leave out folders and control characters"
        raise error(ErrorKind.BAD_INPUT, text, field="name")
    return given or PLAIN_NAME


def checked_type(given: str) -> str:
    """Return a media type, `application/octet-stream` without one. Raises RunnerError `bad_input`."""
    if given and (len(given) > _MAX_NAME_BYTES or _TYPE.fullmatch(given) is None):
        text = f"{given!r:.100} is not a media type; it is like image/png"
        raise error(ErrorKind.BAD_INPUT, text, field="content-type")
    return given or PLAIN_TYPE
