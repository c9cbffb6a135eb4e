"""One file in a form, as browsers and `curl -F` upload it (RFC 7578). Werkzeug parses it, piece by piece."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from protocol.errors import ErrorKind, error

if TYPE_CHECKING:
    from runner.rest.bodies.form import Form

_STEP: Final = 8 * 1024


async def read_file(content_type: str, piece: Callable[[], Awaitable[tuple[bytes, bool]]], limit: int) -> bytes:
    """Return the one file of a form; `piece` returns the next bytes of the body, and whether more follow.

    Raises RunnerError: `bad_input` for another part, which it names, and for a form that cannot be read; `too_large`
    for a body over `limit` bytes.
    """
    form = await trio.to_thread.run_sync(_form, content_type)
    size, more = 0, True
    while more:
        data, more = await piece()
        size += len(data)
        if size > limit:
            text = f"the body is over {limit} bytes; the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text, field="$")
        for at in range(0, len(data), _STEP):
            form.feed(data[at : at + _STEP])
            await trio.lowlevel.checkpoint()
    return form.end()


def _form(content_type: str) -> Form:
    from runner.rest.bodies.form import Form  # noqa: PLC0415  (0.1 s and 9 MB, at the first form, in a thread)

    return Form(content_type)
