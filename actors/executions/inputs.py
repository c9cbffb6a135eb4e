"""The files that inputs name: kept for an execution when it is accepted, found again for each of its attempts."""

from __future__ import annotations

from typing import Final

import trio

from actors.files import Files, StoredFile, Viewer, references

_KEY: Final = b'"$file"'
_QUICK_BYTES: Final = 64 * 1024


def names_files(data: bytes) -> bool:
    """Return whether an input may name files; one that does not costs no more than this."""
    return _KEY in data


async def use_named(
    files: Files, execution: str, module: str, data: bytes, viewer: Viewer | None = None
) -> dict[str, StoredFile]:
    """Keep the files that an input names as long as the execution exists; return them by id.

    Raises RunnerError as `Files.use`.
    """
    if not names_files(data):
        return {}
    ids = references(data) if len(data) <= _QUICK_BYTES else await trio.to_thread.run_sync(references, data)
    return await files.use(execution, module, ids, viewer) if ids else {}
