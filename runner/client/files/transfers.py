"""The work of the commands `files put` and `files get`: no file is in memory as a whole."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, cast

import click
import msgspec
import trio

from config.units import decimal
from protocol.errors import ErrorKind, error
from runner.client.connection import Answer, Client, segment
from runner.client.printing import Interrupts, interruptible, write
from runner.terminal import upload_bar

TRANSFER_SECONDS: Final = 600.0
"""Time limit without a byte: the runner verifies a file before it sends it, and brings one to the disk at its end."""
_PIECE_BYTES: Final = 256 * 1024


class _Described(msgspec.Struct):
    id: str


class _Named(msgspec.Struct):
    file: _Described = msgspec.field(name="$file")


async def put_file(client: Client, path: Path | None, name: str | None, media_type: str | None) -> int:
    """Upload a file, or standard input without a path, and print the object that names it. Raises RunnerError, OSError.

    The digests of the sent and of the stored content are compared.
    """
    shown = name or ("" if path is None else path.name)
    kind = media_type or mimetypes.guess_type(shown)[0] or ""

    async def work(_interrupts: Interrupts) -> int:
        with sys.stdin.buffer if path is None else await trio.to_thread.run_sync(path.open, "rb") as file:
            total, digest = _size(file), hashlib.sha256()
            headers = ({"content-type": kind} if kind else {}) | (
                {} if total is None else {"content-length": str(total)}
            )
            with upload_bar(total or 0) as sent:
                answer = await client.request(
                    "POST",
                    "/files",
                    query={"name": shown or None},
                    body=_pieces(file, digest.update, sent),
                    headers=headers,
                    seconds=TRANSFER_SECONDS,
                )
        if answer.read(_Named).file.id != f"sha256:{digest.hexdigest()}":
            raise error(ErrorKind.BAD_INPUT, "the file changed on its way; upload it again")
        click.echo(answer.body)
        return 0

    return await interruptible(work)


def _size(file: BinaryIO) -> int | None:
    """Return the size of a regular file, None if it is unknown before the end."""
    found = os.fstat(file.fileno())
    return found.st_size if found.st_size and file.seekable() else None


async def _pieces(
    file: BinaryIO, seen: Callable[[bytes], None], sent: Callable[[int], None] | None
) -> AsyncIterator[bytes]:
    while data := await trio.to_thread.run_sync(file.read, _PIECE_BYTES, abandon_on_cancel=True):
        seen(data)
        yield data
        if sent is not None:
            sent(len(data))


async def get_file(client: Client, name: str, to: Path | None) -> int:
    """Download a file to a path, or to standard output without one. Raises RunnerError and OSError.

    A file at the path is replaced when the download is complete and has the digest that its id names.
    """

    async def work(_interrupts: Interrupts) -> int:
        await save_file(client, name, to)
        return 0

    return await interruptible(work)


async def save_file(client: Client, name: str, to: Path | None) -> None:
    """Download a file as `get_file` does."""
    digest = hashlib.sha256()

    def check() -> None:
        if f"sha256:{digest.hexdigest()}" != name:
            raise error(ErrorKind.BAD_INPUT, "the file changed on its way; download it again")

    await save_stream(client, f"/files/{segment(name)}", to, seen=digest.update, check=check)


async def save_stream(
    client: Client,
    path: str,
    to: Path | None,
    *,
    seen: Callable[[bytes], None] | None = None,
    check: Callable[[], None] | None = None,
) -> Answer:
    """Write the answer of a route to a path, or to standard output without one; return its head.

    `seen` gets each piece, `check` is called before a file at the path is replaced. Raises RunnerError and OSError.
    """
    if to is None:
        answer = await _download(client, path, lambda data: write(1, data), seen)
        if check is not None:
            check()
        return answer
    unfinished = to.with_name(f".{to.name}.{os.getpid()}.part")
    try:
        with unfinished.open("xb", buffering=0) as file:

            async def add(data: bytes) -> None:
                await trio.to_thread.run_sync(file.write, data)

            answer = await _download(client, path, add, seen)
        if check is not None:
            check()
        unfinished.replace(to)
    finally:
        unfinished.unlink(missing_ok=True)
    return answer


async def _download(
    client: Client, path: str, add: Callable[[bytes], Awaitable[None]], seen: Callable[[bytes], None] | None
) -> Answer:
    moved = cast("Callable[[int], None] | None", None)

    async def into(answer: Answer, data: bytes) -> None:
        nonlocal moved
        if moved is None:
            total = decimal(answer.headers.get("content-length", "")) or 0
            moved = shown.enter_context(upload_bar(total, "downloading")) or _unseen
        if seen is not None:
            seen(data)
        await add(data)
        moved(len(data))

    with ExitStack() as shown:
        return await client.request("GET", path, seconds=TRANSFER_SECONDS, into=into)


def _unseen(_count: int) -> None:
    """Show nothing."""
