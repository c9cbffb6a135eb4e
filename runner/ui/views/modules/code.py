"""The files of a module, with line numbers that links can name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from runner.api import CodeFile
from runner.auth import Scope
from runner.ui.views.modules.shown_code import lines_of
from runner.ui.views.modules.subject import subject_of
from runner.ui.visit import Reply, Visit, view


@view("GET", "/modules/{name}/code", scope=Scope.MODULES_WRITE)
async def show(page: Visit) -> Reply:
    """Show a file of a module, by its name or by the path that a traceback has."""
    subject = subject_of(page)
    files = await page.service.details.code(page.principal, subject.name, subject.version)
    wanted = page.query.get("file", "")
    file = named(files, wanted) or named(files, subject.module.entry.name) or next(iter(files), None)
    lines = None
    if file is not None and file.text is not None:
        lines = await page.service.checks.run(partial(lines_of, file.name, file.text))
    missing = wanted if wanted and named(files, wanted) is None else ""
    return subject.render("module_code.html", "/code", files=files, file=file, lines=lines, missing=missing)


def named(files: Sequence[CodeFile], path: str) -> CodeFile | None:
    """Return the file with the longest name that a path ends in."""
    found = [file for file in files if path == file.name or path.endswith("/" + file.name)]
    return max(found, key=lambda file: len(file.name), default=None)


VIEWS = (show,)
