"""The files of a module, with line numbers that links can name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from runner.api import CodeFile
from runner.auth import Scope
from runner.ui.views.modules.shown_code import MAX_LINES, lines_of
from runner.ui.views.modules.subject import Subject, subject_of
from runner.ui.visit import Reply, Visit, view


@view("GET", "/modules/{name}/code", scope=Scope.MODULES_WRITE)
async def show(page: Visit) -> Reply:
    """Show a file of a module, by its name or by the path that a traceback has."""
    subject = subject_of(page)
    files = await page.service.details.code(page.principal, subject.name, subject.version)
    wanted = page.query.get("file", "")
    file = named(files, wanted) or named(files, subject.module.entry.name) or next(iter(files), None)
    missing = wanted if wanted and named(files, wanted) is None else ""
    return await page.service.checks.run(partial(_drawn, subject, files, file, missing))


def _drawn(subject: Subject, files: Sequence[CodeFile], file: CodeFile | None, missing: str) -> Reply:
    """Return the page. A long file takes some tenths of a second."""
    lines = None if file is None or file.text is None else lines_of(file.name, file.text)
    left = 0 if lines is None else max(0, len(lines) - MAX_LINES)
    values: dict[str, Any] = {"files": files, "file": file, "missing": missing, "left": left}
    return subject.render("module_code.html", "/code", lines=lines and lines[:MAX_LINES], **values)


def named(files: Sequence[CodeFile], path: str) -> CodeFile | None:
    """Return the file with the longest name that a path ends in."""
    found = [file for file in files if path == file.name or path.endswith("/" + file.name)]
    return max(found, key=lambda file: len(file.name), default=None)


VIEWS = (show,)
