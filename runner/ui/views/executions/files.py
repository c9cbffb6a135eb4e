"""The files of an execution: downloads, and pictures whose content is that of a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

from actors.files import StoredFile
from protocol.errors import ErrorKind, error
from runner.auth import Scope
from runner.ui.results import SIGNATURE_BYTES, picture_type
from runner.ui.visit import Answer, Stream, Visit, Write, view

_PIECE_BYTES: Final = 256 * 1024
_MAX_PICTURE: Final = 32 * 1024 * 1024
_WALLS: Final = (
    ("x-content-type-options", "nosniff"),
    # A page or drawing that somebody has uploaded gets nothing of this site, even if a browser opens it.
    ("content-security-policy", "sandbox; default-src 'none'"),
    ("cache-control", "private, no-cache"),
)


@view("GET", "/executions/{id}/files/{file}", scope=Scope.EXECUTIONS_READ, raw=True)
async def download(page: Visit) -> Answer:
    """Send a file that the input or the result of an execution names."""
    stored = await _found(page)
    name = page.query.get("name") or stored.name or "file"
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%/' else "_" for letter in name)[:200]
    named = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name[:200], safe='')}"
    headers = (*_WALLS, ("content-disposition", named))
    return Stream(partial(_send, stored), "application/octet-stream", headers, stored.size)


@view("GET", "/executions/{id}/pictures/{file}", scope=Scope.EXECUTIONS_READ, raw=True)
async def picture(page: Visit) -> Answer:
    """Send a picture for the page. Its content tells what it is: its name and its type are claims of its sender."""
    stored = await _found(page)
    beginning = await trio.to_thread.run_sync(_beginning, stored.path)
    kind = picture_type(beginning)
    if kind is None or stored.size > _MAX_PICTURE:
        text = "this file is no picture that is shown here (PNG, JPEG, GIF, WebP, at most 32 MiB); download it"
        raise error(ErrorKind.BAD_INPUT, text, field="file")
    return Stream(partial(_send, stored), kind, (*_WALLS, ("content-disposition", "inline")), stored.size)


async def _found(page: Visit) -> StoredFile:
    execution = await page.service.get(page.principal, page.path["id"])
    return await page.service.stored.of_execution(page.principal, execution, page.path["file"])


async def _send(stored: StoredFile, write: Write) -> None:
    """Send a file. Raises RunnerError `unavailable` if it cannot be read."""
    with _opened(await trio.to_thread.run_sync(_open, stored.path)) as fd:
        at = 0
        while at < stored.size:
            data = await trio.to_thread.run_sync(os.pread, fd, min(_PIECE_BYTES, stored.size - at), at)
            if not data:
                raise error(ErrorKind.UNAVAILABLE, f"the stored file {stored.id} became shorter while it was sent")
            at += len(data)
            await write(data)


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        text = f"the stored file {path.name} cannot be read: {problem.strerror}"
        raise error(ErrorKind.UNAVAILABLE, text) from problem


def _beginning(path: Path) -> bytes:
    with _opened(_open(path)) as fd:
        return os.pread(fd, SIGNATURE_BYTES, 0)


VIEWS = (download, picture)
