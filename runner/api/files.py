"""The verbs of files, without transport types. Each checks the scope first; a limited caller sees some files only."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from attrs import define

from actors.files import GATHERED_BYTES, Collected, Files, StoredFile, Viewer, Writing, checked_id
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution
from runner.auth import Principal, Scope, require
from runner.wire import Budget


def viewer_of(principal: Principal) -> Viewer | None:
    """Return the caller as the store of files sees it; None sees all files."""
    return Viewer(principal.subject, principal.modules) if principal.modules else None


@contextmanager
def gathering(budget: Budget, size: int) -> Iterator[None]:
    """Take the memory for the pieces of an unfinished body. Raises RunnerError `unavailable` without enough of it."""
    if not budget.take(size):
        text = "unfinished requests take all the memory of `max_buffered`; try again"
        raise error(ErrorKind.UNAVAILABLE, text, retry_after=1.0)
    try:
        yield
    finally:
        budget.give(size)


@define(eq=False)
class StoredFiles:
    """The store of files, as the doors see it."""

    files: Files
    budget: Budget
    """The memory that unfinished requests share; an upload gathers small pieces in a part of it."""

    @asynccontextmanager
    async def writing(
        self, principal: Principal, name: str, media_type: str, announced: int = 0
    ) -> AsyncIterator[Writing]:
        """Yield the writer of an upload, of which `announced` bytes are to come, if that is known.

        Raises RunnerError: `forbidden`, `bad_input` for name and type, `too_large`, `out_of_storage`, `unavailable`.
        """
        require(principal, Scope.FILES_WRITE)
        self.files.check_size(announced)
        with gathering(self.budget, GATHERED_BYTES):
            async with self.files.writing(name, media_type, subject=principal.subject) as writing:
                yield writing

    async def find(self, principal: Principal, name: str) -> StoredFile:
        """Return a file. Raises RunnerError: `forbidden`, `not_found`, `unavailable` if it is damaged."""
        require(principal, Scope.FILES_READ)
        found = await self.files.find(name, viewer_of(principal))
        if found is None:
            raise _missing(name)
        return found

    async def of_execution(self, principal: Principal, execution: Execution, name: str) -> StoredFile:
        """Return a file that the input or result of an execution names. The caller may read the execution.

        A handler can write any id into its result: a caller that is limited to modules gets no files but those of the
        executions of this module. Raises RunnerError `not_found`, `bad_input`, `unavailable` if it is damaged.
        """
        written = b'"%b"' % checked_id(name).encode()
        if not any(written in (value or b"") for value in (execution.input, execution.result)):
            raise _missing(name)
        viewer = Viewer(principal.subject, (execution.module.name,)) if principal.modules else None
        found = await self.files.find(name, viewer)
        if found is None:
            raise _missing(name)
        return found

    async def page(self, principal: Principal, limit: int, cursor: str) -> tuple[list[StoredFile], str | None]:
        """Return the files after a cursor, newest first, and the next cursor. Raises RunnerError.

        A page with a cursor may be short or empty.
        """
        require(principal, Scope.FILES_READ)
        found, after = await self.files.page(viewer_of(principal), limit, _place(cursor) if cursor else None)
        return found, None if after is None else f"{after[0]!r}_{after[1]}"

    async def remove(self, principal: Principal, name: str) -> None:
        """Delete a file that no execution uses. Raises RunnerError: `forbidden`, `not_found`, `conflict`."""
        require(principal, Scope.FILES_WRITE)
        if not await self.files.remove(name, viewer_of(principal)):
            raise _missing(name)

    async def collect(self, principal: Principal) -> Collected:
        """Delete now what is deleted once an hour. Raises RunnerError `forbidden`."""
        require(principal, Scope.ADMIN)
        return await self.files.collect()


def _place(cursor: str) -> tuple[float, str]:
    at, _, name = cursor.partition("_")
    try:
        seconds = float(at)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise error(ErrorKind.BAD_INPUT, "the cursor is not one of this list; take it from a page", field="cursor")
    return seconds, name


def _missing(name: str) -> RunnerError:
    return error(ErrorKind.NOT_FOUND, f"there is no file {name!r:.100}", field="id")
