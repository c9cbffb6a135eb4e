"""The environment of a module: what it is made of, and its build as it goes."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec
import trio

from actors.workers import BuildLog
from protocol.errors import Failure, RunnerError
from protocol.model import Kind
from runner.auth import Scope
from runner.status import CODES
from runner.ui.views.modules.facts import made_of
from runner.ui.views.modules.subject import Subject, subject_of
from runner.ui.visit import Answer, Reply, Stream, Visit, Write, view

_SHOWN: Final = 500
"""The last lines of a build that a page begins with."""
_SILENT_SECONDS: Final = 15
_HERE: Final = b": here\n\n"


@view("GET", "/modules/{name}/environment", scope=Scope.MODULES_READ)
async def show(page: Visit) -> Reply:
    """Show the environment of a module, and its last build."""
    return await _page(subject_of(page))


async def _page(subject: Subject, status: int = 200, failure: Failure | None = None) -> Reply:
    page, spec = subject.page, subject.module.spec
    build = page.service.details.build(page.principal, subject.name, subject.version)
    lines = () if build is None else build.last(_SHOWN)
    machine, ref = page.service.machine, str(subject.module.ref)
    kind = next(each for each in machine.kinds(page.principal) if each["env"] == spec.env.value)
    built = [each for each in await machine.built(page.principal) if ref in each["modules"]]
    return subject.render(
        "module_environment.html",
        "/environment",
        status,
        kind=kind,
        built=built,
        shared=sorted({each for one in built for each in one["modules"]} - {ref}),
        made_of=list(made_of(spec, page.words)),
        inline=spec.env is Kind.INLINE,
        build=build,
        lines=lines,
        next_line=0 if build is None else build.next_number,
        failure=failure,
    )


@view("POST", "/modules/{name}/environment", scope=Scope.MODULES_WRITE)
async def prepare(page: Visit) -> Reply:
    """Begin to build the environment, and show the page on which its lines come."""
    subject = subject_of(page, Scope.MODULES_WRITE)
    try:
        page.service.prepare(page.principal, subject.name, subject.version)
    except RunnerError as problem:
        return await _page(subject, CODES[problem.failure.kind].http, problem.failure)
    return subject.redirect("/environment", version=page.query.get("version"))


@view("GET", "/modules/{name}/build", scope=Scope.MODULES_READ, raw=True)
async def follow(page: Visit) -> Answer:
    """Send the lines of the last build from `?after=` on, then `ended`; nothing is built."""
    subject = subject_of(page)
    build = page.service.details.build(page.principal, subject.name, subject.version)
    text = page.header("last-event-id") or page.query.get("after", "0")
    start = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0
    return Stream(partial(_send, build, start))


async def _send(build: BuildLog | None, number: int, write: Write) -> None:
    await write(_HERE)
    while build is not None and not (build.ended and number >= build.next_number):
        with trio.move_on_after(_SILENT_SECONDS):
            await build.wait(number)
        found = build.read(number)
        if found.next == number and not build.ended:
            await write(_HERE)
            continue
        number = found.next
        told: dict[str, Any] = {"dropped": found.dropped, "lines": found.lines}
        await write(b"id: %d\nevent: lines\ndata: %s\n\n" % (number, msgspec.json.encode(told)))
    failed = build is not None and build.failure is not None
    await write(b"id: %d\nevent: ended\ndata: %s\n\n" % (number, msgspec.json.encode({"failed": failed})))


VIEWS = (show, prepare, follow)
