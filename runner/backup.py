"""`python -m runner.backup save|restore DATA_DIR`: records as one archive, while a runner serves.

`save` writes a tar of DATA_DIR to standard output, `restore` reads one from standard input into a directory without
records. It has history, journal, registered modules, schedules, API keys (as hashes), locked requirements, the
runner's own secret and its name in a cluster; with `--files` also stored files. The rest is made again.

The order makes it complete: first the journal, then the database. A record that leaves the journal in between is in the
database by then, and one in both counts once, by its revision, as after a crash. It is a program of its own, with the
standard library only, so that it runs beside a runner in any image.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from environments.leftovers import BACKUPS, held

_DATABASE = "history.db"
_MODULES = "modules.db"
_KEYS = "keys.db"
_STARTS = "starts.db"
_FILES = "files.db"
_SECRET = "jwt-secret"  # noqa: S105  (the name of a file)
_NODE = "node"
"""The name of the runner in its cluster: a restored one is the same runner."""
_NAMES = re.compile(
    r"history\.db|modules\.db|keys\.db|starts\.db|jwt-secret|node|journal/\d+\.journal|locks/[0-9a-f]+\.txt"
    r"|files\.db|files/[0-9a-f]{2}/[0-9a-f]{64}"
)
# A write-ahead log of another database would be replayed into the restored one.
_DATABASES = (_DATABASE, _MODULES, _KEYS, _STARTS, _FILES)
_RECORDS = (*(f"{name}{end}" for name in _DATABASES for end in ("", "-wal", "-shm")), "journal")


class RefusedError(Exception):
    """The reason why it cannot be done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Save or restore; return 0 if done, else 1 after printing the reason as one line."""
    parser = argparse.ArgumentParser(
        prog="python -m runner.backup", description="Save or restore the records of a data directory."
    )
    parser.add_argument("verb", choices=["save", "restore"])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--files", action="store_true", help="save stored files too")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "save":
            if sys.stdout.isatty():
                raise RefusedError("standard output is a terminal; write `> FILE`")  # noqa: TRY301
            found = save(given.data_dir, sys.stdout.buffer, files=given.files)
            missing = "stored files are not in it, as `--files` was not given"
        else:
            found = restore(given.data_dir, sys.stdin.buffer)
            missing = "stored files are not in it: executions that name some cannot run again"
        print(missing if found is None else f"{found} stored files are in it", file=sys.stderr)  # noqa: T201
    except (RefusedError, OSError, sqlite3.Error, tarfile.TarError) as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def save(data_dir: Path, to: BinaryIO, *, files: bool = False) -> int | None:
    """Write the records of `data_dir` as a tar, without disturbing a running server.

    Return the number of stored files in it, None without `files`. Meanwhile it needs as much space in `data_dir` as the
    database. Raises RefusedError without records, OSError and sqlite3.Error.
    """
    if not (data_dir / _DATABASE).is_file():
        raise RefusedError(f"there is no {_DATABASE} in {data_dir}")
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted((data_dir / "journal").glob("*.journal")):
            with contextlib.suppress(FileNotFoundError):  # its records have moved to the database
                _add(archive, f"journal/{path.name}", path.read_bytes())
        for path in sorted((data_dir / "locks").glob("*.txt")):
            _add(archive, f"locks/{path.name}", path.read_bytes())
        for name in (_SECRET, _NODE):
            if (data_dir / name).is_file():
                _add(archive, name, (data_dir / name).read_bytes())
        saved = _add_files(archive, data_dir) if files else None
        # History comes last: an archive with it is complete.
        for name in (_MODULES, _KEYS, _STARTS, _DATABASE):
            if (data_dir / name).is_file():
                with _copy_of(data_dir / name) as copy:
                    archive.add(copy, name, filter=_for_the_owner)
    return saved


def _add_files(archive: tarfile.TarFile, data_dir: Path) -> int:
    """Add the database of files, and the contents that it names: one that is deleted meanwhile is used by nothing."""
    saved = 0
    if not (data_dir / _FILES).is_file():
        return saved
    with _copy_of(data_dir / _FILES) as copy:
        archive.add(copy, _FILES, filter=_for_the_owner)
        with contextlib.closing(sqlite3.connect(copy)) as link:
            for (name,) in link.execute("select id from files order by id"):
                digest = name.removeprefix("sha256:")
                path = f"files/{digest[:2]}/{digest}"
                with contextlib.suppress(FileNotFoundError):
                    archive.add(data_dir / path, path, filter=_for_the_owner)
                    saved += 1
    return saved


@contextlib.contextmanager
def _copy_of(database: Path) -> Iterator[Path]:
    """Yield a consistent copy of a database that is written to."""
    with held(database.parent / BACKUPS.replace("*", str(os.getpid()))) as folder:
        copy = folder / database.name
        # Read only: only the runner may move the log into the database.
        with (
            contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        yield copy


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    archive.addfile(info, io.BytesIO(data))


def _for_the_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mode = 0o600
    return info


def restore(data_dir: Path, source: BinaryIO) -> int | None:
    """Restore an archive of `save` into `data_dir`, which is made if missing.

    Return the number of stored files in it, None if it was saved without them.

    Raises RefusedError if the directory has records, if a runner uses it, and for another archive; OSError and
    tarfile.TarError. After a failure the restored files are removed again.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    for name in _RECORDS:
        path = data_dir / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise RefusedError(f"{path} exists: restore into a directory without records")
    written: list[Path] = []
    with _locked(data_dir), tarfile.open(fileobj=source, mode="r|") as archive:
        try:
            for info in archive:
                if not info.isfile() or _NAMES.fullmatch(info.name) is None:
                    raise RefusedError(f"{info.name!r:.80} does not belong in an archive of `save`")  # noqa: TRY301
                written.append(data_dir / info.name)
                _extract(archive, info, written[-1])
            if data_dir / _DATABASE not in written:
                raise RefusedError("the archive ends before the database: it is incomplete")  # noqa: TRY301
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
    files = sum(path.is_relative_to(data_dir / "files") for path in written)
    return files if data_dir / _FILES in written else None


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Lock the directory as a runner does, so that none starts meanwhile."""
    fd = os.open(data_dir / "history.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(f"a runner uses {data_dir}: stop it first") from None
        yield
    finally:
        os.close(fd)


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(info)
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        if content is not None:
            shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(fd)


if __name__ == "__main__":
    sys.exit(main())
