"""Answers with a stored file, or a part of it, that is read while it is sent."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

from actors.files import StoredFile
from protocol.errors import PROBLEM, ErrorKind, error
from runner.http import problem_body
from runner.rest.endpoint import Answer, Download, Headers, Request, Write
from runner.rest.files.ranges import UnsatisfiableError, names_tag, part_of

PIECE_BYTES: Final = 256 * 1024
"""Read and sent at a time; taken from the memory for answers."""
_SHOWN: Final = frozenset({"application/pdf", "application/json", "text/plain", "text/csv"})
"""Types that browsers show without running anything of them, besides most pictures, sound and video."""
SAFE: Final = (
    (b"x-content-type-options", b"nosniff"),
    # A page or drawing that somebody has uploaded gets nothing of this site, even if a browser opens it.
    (b"content-security-policy", b"sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
    (b"cache-control", b"private, no-cache"),
    (b"accept-ranges", b"bytes"),
)


def file_answer(request: Request, stored: StoredFile, *, status: int = 200, headers: Headers = ()) -> Answer | Download:
    """Return the answer with a file: the whole of it, a part, or that the client has it already.

    `headers` are added; those with the name of one of its own replace it. Conditions and ranges count for GET with
    status 200 only.
    """
    tag = f'"{stored.id.removeprefix("sha256:")}"'
    own = (*SAFE, (b"etag", tag.encode()), (b"content-disposition", _disposition(stored)))
    given = {name for name, _ in headers}
    every = (*(each for each in own if each[0] not in given), *headers)
    part = None
    if status == 200 and request.scope["method"] in ("GET", "HEAD"):
        refused = _conditions(request, tag)
        if refused is not None:
            return Answer(refused[1], refused[0], PROBLEM if refused[1] else stored.type, every)
        try:
            part = _part(request, stored, tag)
        except UnsatisfiableError:
            text = f"the range {request.header('range')!r:.80} has no byte of the file, which has {stored.size}"
            unmet = (b"content-range", f"bytes */{stored.size}".encode())
            return Answer(problem_body(416, text), 416, PROBLEM, (unmet,))
    first, length = part or (0, stored.size)
    if part is not None:
        shown = f"bytes {first}-{first + length - 1}/{stored.size}"
        status, every = 206, (*every, (b"content-range", shown.encode()))
    run = partial(_send, request, stored.path, first, length)
    return Download(run, length, status, stored.type, every)


def _conditions(request: Request, tag: str) -> tuple[int, bytes] | None:
    """Return status and body of an answer without the file, if a condition of the request asks for it."""
    match, none = request.header("if-match"), request.header("if-none-match")
    if match is not None and not names_tag(match, tag, strong=True):
        return 412, problem_body(412, "the file has another ETag than those of if-match")
    if none is not None and names_tag(none, tag, strong=False):
        return 304, b""
    return None


def _part(request: Request, stored: StoredFile, tag: str) -> tuple[int, int] | None:
    condition = request.header("if-range")
    if request.scope["method"] != "GET" or (condition is not None and condition.strip() != tag):
        return None
    return part_of(request.header("range"), stored.size)


def _disposition(stored: StoredFile) -> bytes:
    """Return a header with the name of the file, in both forms of RFC 6266."""
    kind = stored.type.partition(";")[0].strip().lower()
    family = kind.partition("/")[0]
    shown = kind in _SHOWN or (family in ("image", "audio", "video") and not kind.endswith("xml"))
    shown = shown and "," not in stored.type  # of several types a browser takes the last one
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in stored.name)
    named = f'{"inline" if shown else "attachment"}; filename="{plain}"'
    if plain != stored.name:
        named += f"; filename*=UTF-8''{quote(stored.name, safe='')}"
    return named.encode()


async def _send(request: Request, path: Path, first: int, length: int, write: Write) -> None:
    """Send a part of a file. Raises RunnerError `unavailable` if it cannot be opened or read."""
    answers = request.service.answers
    await answers.turn(request.share, min(length, PIECE_BYTES))
    async with _opened(path) as fd:
        at, end = first, first + length
        while at < end:
            data = await trio.to_thread.run_sync(os.pread, fd, min(PIECE_BYTES, end - at), at)
            if not data:
                raise error(ErrorKind.UNAVAILABLE, f"the stored file {path.name} became shorter while it was sent")
            at += len(data)
            await write(data)


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[int]:
    try:
        fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        text = f"the stored file {path.name} cannot be read: {problem.strerror}"
        raise error(ErrorKind.UNAVAILABLE, text) from problem
    try:
        yield fd
    finally:
        os.close(fd)
