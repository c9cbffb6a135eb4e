"""The parser of forms. Importing this file imports werkzeug."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from protocol.errors import ErrorKind, error
from runner.inputs.part import FORM, STEP, Content, Head

_HEAD: Final = 16 * 1024
"""The most bytes that the parser keeps between two pieces: heads of parts, and the end of a piece."""
_MAX_BOUNDARY: Final = 70


class Parser:
    """Cuts a form into its parts."""

    def __init__(self, content_type: str, most: int) -> None:
        """Begin a form of this content type with at most so many parts. Raises RunnerError `bad_input`."""
        boundary = parse_options_header(content_type)[1].get("boundary", "")
        if not 0 < len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
            raise error(ErrorKind.BAD_INPUT, f"{FORM} needs a boundary of 1 to 70 characters", field="content-type")
        self._most = most
        self._decoder = MultipartDecoder(boundary.encode(), _HEAD + STEP, max_parts=most)

    def feed(self, data: bytes | None) -> Iterator[Head | Content]:
        """Yield what the next bytes of the body complete, at most `STEP` of them; None: the body has ended.

        Raises RunnerError `bad_input` for a form that cannot be read.
        """
        try:
            self._decoder.receive_data(data)
            while not isinstance(event := self._decoder.next_event(), NeedData | Epilogue):
                if isinstance(event, Data):
                    yield Content(event.data, last=not event.more_data)
                elif isinstance(event, Field | File):
                    filename = event.filename if isinstance(event, File) else None
                    yield Head(event.name, filename, event.headers.get("content-type", ""))
        except RequestEntityTooLarge:
            text = f"the head of a part is over {_HEAD} bytes, or it has more than {self._most} parts"
            raise error(ErrorKind.BAD_INPUT, f"the form is not understood: {text}", field="$") from None
        except (ValueError, TypeError, AttributeError) as problem:  # the parser has no error of its own
            raise error(ErrorKind.BAD_INPUT, f"the form cannot be read: {problem!s:.200}", field="$") from None
