"""`python -m runner.backup save|restore DATA_DIR`: the record of a data folder as one archive, while a runner serves.

`save` writes a tar to standard output, `restore` reads one from standard input into a folder that has no record. In it
are history, journal, registered modules, locked requirements and the runner's own secret. The rest is made again.

The order makes it whole: first the journal, then the database. What leaves the journal in between is in the database by
then, and what both have counts once, by its revision, as after a crash. A program of its own, with the standard library
only, so that it runs beside a runner in any image of it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import re
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

_DATABASE = "history.db"
_MODULES = "modules.db"
_SECRET = "jwt-secret"  # noqa: S105  (the name of a file)
_NAMES = re.compile(r"history\.db|modules\.db|jwt-secret|journal/\d+\.journal|locks/[0-9a-f]+\.txt")
# A log that belongs to another database would be played into the one that is restored.
_RECORD = (*(f"{name}{end}" for name in (_DATABASE, _MODULES) for end in ("", "-wal", "-shm")), "journal")


class RefusedError(Exception):
    """Why it cannot be done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Save or restore; return 0 when it is done, else 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m runner.backup", description="Save or restore a record.")
    parser.add_argument("verb", choices=["save", "restore"])
    parser.add_argument("data_dir", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "save":
            if sys.stdout.isatty():
                raise RefusedError("standard output is a terminal; write `> FILE`")  # noqa: TRY301
            save(given.data_dir, sys.stdout.buffer)
        else:
            restore(given.data_dir, sys.stdin.buffer)
    except (RefusedError, OSError, sqlite3.Error, tarfile.TarError) as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def save(data_dir: Path, to: BinaryIO) -> None:
    """Write the record of `data_dir` as a tar; a runner that serves is not disturbed.

    Takes as much room in `data_dir` as the database, for as long as it runs. Raises RefusedError when there is no
    record, OSError and sqlite3.Error as they come.
    """
    if not (data_dir / _DATABASE).is_file():
        raise RefusedError(f"there is no {_DATABASE} in {data_dir}")
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted((data_dir / "journal").glob("*.journal")):
            with contextlib.suppress(FileNotFoundError):  # all of it is in the database by now
                _add(archive, f"journal/{path.name}", path.read_bytes())
        for path in sorted((data_dir / "locks").glob("*.txt")):
            _add(archive, f"locks/{path.name}", path.read_bytes())
        if (data_dir / _SECRET).is_file():
            _add(archive, _SECRET, (data_dir / _SECRET).read_bytes())
        # History comes last: an archive that has it is whole.
        for name in (_MODULES, _DATABASE):
            if (data_dir / name).is_file():
                with _copy_of(data_dir / name) as copy:
                    archive.add(copy, name, filter=_for_the_owner)


@contextlib.contextmanager
def _copy_of(database: Path) -> Iterator[Path]:
    """Yield a copy of a database that others write to, of one moment."""
    folder = tempfile.mkdtemp(prefix=".backup-", dir=database.parent)
    try:
        copy = Path(folder) / database.name
        # Read only: it must never be the one that moves the log into the database.
        with (
            contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        yield copy
    finally:
        shutil.rmtree(folder)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    archive.addfile(info, io.BytesIO(data))


def _for_the_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mode = 0o600
    return info


def restore(data_dir: Path, source: BinaryIO) -> None:
    """Put what `save` wrote into `data_dir`, which is made when it is missing.

    Raises RefusedError when the folder has a record, when a runner holds it, and for an archive that is not one of
    `save`; OSError and tarfile.TarError as they come. What was not put there as a whole is removed again.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    for name in _RECORD:
        path = data_dir / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise RefusedError(f"{path} is there: restore into a folder without a record")
    written: list[Path] = []
    with _held(data_dir), tarfile.open(fileobj=source, mode="r|") as archive:
        try:
            for info in archive:
                if not info.isfile() or _NAMES.fullmatch(info.name) is None:
                    raise RefusedError(f"{info.name!r:.80} is in no archive of a record")  # noqa: TRY301
                written.append(data_dir / info.name)
                _extract(archive, info, written[-1])
            if data_dir / _DATABASE not in written:
                raise RefusedError("the archive ends before the database: it was cut off")  # noqa: TRY301
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _held(data_dir: Path) -> Iterator[None]:
    """Hold the folder as a runner does, so that none starts meanwhile."""
    fd = os.open(data_dir / "history.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(f"a runner holds {data_dir}: stop it first") from None
        yield
    finally:
        os.close(fd)


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    content = archive.extractfile(info)
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        if content is not None:
            shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(fd)


if __name__ == "__main__":
    sys.exit(main())
