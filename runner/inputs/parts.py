"""The parts of a form as browsers and `curl -F` send it (RFC 7578), and a form with one file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from protocol.errors import ErrorKind, error
from runner.inputs.part import FORM_PARTS, STEP, Content, Head, Piece

if TYPE_CHECKING:
    from runner.inputs.parser import Parser


async def read_parts(
    content_type: str, piece: Piece, most: int, take: Callable[[Head | Content], Awaitable[None]]
) -> None:
    """Call `take` with each event of a form of at most `most` parts. Raises RunnerError `bad_input`."""
    parser, more = await trio.to_thread.run_sync(_parser, content_type, most), True
    while more:
        data, more = await piece()
        for at in range(0, len(data), STEP):
            for event in parser.feed(data[at : at + STEP]):
                await take(event)
            await trio.lowlevel.checkpoint()
    for event in parser.feed(None):
        await take(event)


def _parser(content_type: str, most: int) -> Parser:
    from runner.inputs.parser import Parser  # noqa: PLC0415  (0.1 s and 9 MB, at the first form, in a thread)

    return Parser(content_type, most)


async def read_file(content_type: str, piece: Piece, limit: int) -> bytes:
    """Return the one file of a form.

    Raises RunnerError: `bad_input` for another part, which it names, and for a form that cannot be read; `too_large`
    for a body over `limit` bytes.
    """
    size, file, found = 0, bytearray(), False

    async def counted() -> tuple[bytes, bool]:
        nonlocal size
        data, more = await piece()
        size += len(data)
        if size > limit:
            text = f"the body is over {limit} bytes; the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text, field="$")
        return data, more

    async def take(event: Head | Content) -> None:
        nonlocal file, found
        if isinstance(event, Content):
            file += event.data
            return
        name = event.name or ""
        if name not in FORM_PARTS:
            text = f"the form has an unknown part {name!r:.80}; it has one file, as {' or '.join(FORM_PARTS)}"
            raise error(ErrorKind.BAD_INPUT, f"{text}; all else is a parameter of the query", field=name[:80])
        if found:
            raise error(ErrorKind.BAD_INPUT, "the form has two files; send one", field=name)
        found = True

    await read_parts(content_type, counted, len(FORM_PARTS), take)
    if not found:
        raise error(ErrorKind.BAD_INPUT, f"the form has no file; send it as {FORM_PARTS[0]!r}", field=FORM_PARTS[0])
    return bytes(file)
