"""Results in files: a file of a result as its content, a response as its body, everything else as JSON."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Final

import click
import msgspec
import trio

from config.mistakes import ConfigError, Mistake
from protocol.errors import ErrorKind, error
from runner.client.connection import Client, segment
from runner.client.files.transfers import save_file, save_stream
from runner.client.trouble import not_a_runner
from runner.terminal import printable

_MAX_DEPTH: Final = 200


async def save_result(client: Client, result: bytes, to: Path) -> int:
    """Write a result to a path: its only file, the body of a response, or the JSON.

    Several files go into a folder at the path, and so does one if the path is a folder; their paths are printed.
    Raises RunnerError, and OSError.
    """
    try:
        value = msgspec.json.decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_a_runner(client.address, "its answer cannot be read") from None
    files = _files_in(value)
    if len(files) > 1 or (files and to.is_dir()):
        await _save_all(client, files, to)
    elif files:
        await save_file(client, str(files[0]["id"]), to)
    else:
        await trio.to_thread.run_sync(to.write_bytes, _body(value, result))
    return 0


def _body(value: Any, result: bytes) -> bytes:
    """Return what a result without a file is in a file."""
    response = value.get("$response") if isinstance(value, dict) and len(value) == 1 else None
    if isinstance(response, dict):
        if isinstance(response.get("text"), str):
            return str(response["text"]).encode()
        return msgspec.json.encode(response["json"]) + b"\n" if "json" in response else b""
    return result + b"\n"


async def _save_all(client: Client, files: list[dict[str, Any]], folder: Path) -> None:
    await trio.to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
    taken: set[str] = set()
    for file in files:
        path = folder / _free(_plain(str(file.get("name", ""))), taken)
        await save_file(client, str(file["id"]), path)
        click.echo(str(path))


def _plain(name: str) -> str:
    """Return a name from a server as one that is safe in a folder."""
    last = printable(PurePosixPath(name.replace("\\", "/")).name).replace("/", "_").lstrip(".")
    return last or "file"


def _free(name: str, taken: set[str]) -> str:
    number, path, found = 1, PurePosixPath(name), name
    while found in taken:
        number += 1
        found = f"{path.stem}-{number}{path.suffix}"
    taken.add(found)
    return found


def _files_in(value: Any, depth: int = 0) -> list[dict[str, Any]]:
    """Return the files that a result names, each content once under a name."""
    if depth > _MAX_DEPTH:
        return []
    if isinstance(value, list):
        return [file for item in value for file in _files_in(item, depth + 1)]
    if not isinstance(value, dict):
        return []
    file = value.get("$file")
    if len(value) == 1 and isinstance(file, dict) and isinstance(file.get("id"), str):
        return [file]
    return [file for item in value.values() for file in _files_in(item, depth + 1)]


async def get_result(client: Client, identity: str, to: Path | None) -> int:
    """Write the result of an execution as it is to a path, or to standard output without one.

    Raises RunnerError, ConfigError for a folder, and OSError.
    """
    path = f"/executions/{segment(identity)}/result"
    if to is not None and to.is_dir():
        text = f"{to} is a folder; name a file, or save all files of a result with `call -o`"
        raise ConfigError([Mistake(text, None, None, "--output")])
    answer = await save_stream(client, path, to)
    if answer.status != 200:
        raise error(ErrorKind.UNAVAILABLE, f"{client.address} answered {answer.status}")
    return 0
