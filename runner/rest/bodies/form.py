"""The parser of a form with one file. Importing this file imports werkzeug."""

from __future__ import annotations

from typing import Any, Final

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from protocol.errors import ErrorKind, RunnerError, error
from runner.rest.openapi import FORM, FORM_PARTS

_BUFFER: Final = 16 * 1024
"""The most bytes that the parser keeps: heads of parts, and the end of a piece."""
_MAX_BOUNDARY: Final = 70


class Form:
    """Collects the file of a form."""

    def __init__(self, content_type: str) -> None:
        """Begin a form of this content type. Raises RunnerError `bad_input` without a boundary."""
        boundary = parse_options_header(content_type)[1].get("boundary", "")
        if not 0 < len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
            raise error(ErrorKind.BAD_INPUT, f"{FORM} needs a boundary of 1 to 70 characters", field="content-type")
        self._decoder = MultipartDecoder(boundary.encode(), _BUFFER, max_parts=len(FORM_PARTS))
        self._file: bytearray | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._take(data)

    def end(self) -> bytes:
        """Return the file, after the last bytes."""
        self._take(None)
        if self._file is None:
            raise error(ErrorKind.BAD_INPUT, f"the form has no file; send it as {FORM_PARTS[0]!r}", field=FORM_PARTS[0])
        return bytes(self._file)

    def _take(self, data: bytes | None) -> None:
        try:
            self._decoder.receive_data(data)
            while not isinstance(event := self._decoder.next_event(), NeedData | Epilogue):
                self._add(event)
        except RunnerError:
            raise
        except RequestEntityTooLarge:
            text = f"the form is not understood: the head of a part is over {_BUFFER} bytes, or it has many parts"
            raise error(ErrorKind.BAD_INPUT, text, field="$") from None
        except (ValueError, TypeError, AttributeError) as problem:  # the parser has no error of its own
            raise error(ErrorKind.BAD_INPUT, f"the form cannot be read: {problem!s:.200}", field="$") from None

    def _add(self, event: Any) -> None:
        if isinstance(event, Field | File):
            name = event.name or ""
            if name not in FORM_PARTS:
                text = f"the form has an unknown part {name!r:.80}; it has one file, as {' or '.join(FORM_PARTS)}"
                raise error(ErrorKind.BAD_INPUT, f"{text}; all else is a parameter of the query", field=name[:80])
            if self._file is not None:
                raise error(ErrorKind.BAD_INPUT, "the form has two files; send one", field=name)
            self._file = bytearray()
        elif isinstance(event, Data) and self._file is not None:
            self._file += event.data
