"""The first page of a module: what it is, and a form that runs it."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec
import trio
from attrs import evolve, frozen

from actors.files import Writing
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.messages import InvalidJsonError, check_json
from runner.api import gathering
from runner.auth import Scope
from runner.http import stream_body
from runner.status import CODES
from runner.ui.forms import (
    NotShownError,
    Posted,
    Shape,
    added,
    fields_of,
    flatten,
    pretty,
    read,
    removed,
    shape_of,
    start_of,
)
from runner.ui.views.modules.facts import settings_of
from runner.ui.views.modules.subject import Subject, subject_of
from runner.ui.visit import Answer, Reply, Visit, view

_JSON: Final = "application/json"
_GATHERED: Final = 64 * 1024
_MAX_FORM: Final = 512 * 1024
"""Bytes of JSON that is shown as a form; a larger input is run from its text."""


@frozen
class Input:
    """The two faces of an input: a form, and JSON."""

    posted: Posted
    raw: str
    wrong: dict[str, str]
    """What is wrong in the form, by path."""
    problem: str = ""
    """What is wrong in the JSON."""
    fits: bool = True
    """Whether the JSON can be shown in the form."""


@view("GET", "/modules/{name}", scope=Scope.MODULES_READ)
async def show(page: Visit) -> Reply:
    """Show what a module is, with a form for its input."""
    subject = subject_of(page)
    shape = shape_of(subject.module.input_schema)
    return await _page(subject, shape, await page.service.checks.run(partial(_begin, subject, shape)))


def _begin(subject: Subject, shape: Shape) -> Input:
    """Return the input that the page begins with: that of the address, else that of the schema. May take a moment."""
    text = subject.page.query.get("input", "")
    if text:
        return _from_json(shape, text)
    if shape.schema:
        return evolve(_read(shape, start_of(shape)), wrong={})
    example = subject.module.example()
    text = "{}" if example is None else pretty(msgspec.Raw(example))
    return Input({"in": text}, text, {})


@view("POST", "/modules/{name}", scope=Scope.EXECUTIONS_RUN)
async def act(page: Visit) -> Reply:
    """Run the module with an input, or change the form: an item of a list, form to JSON, JSON to form."""
    subject = subject_of(page, Scope.EXECUTIONS_RUN)
    shape = shape_of(subject.module.input_schema)
    what, _, at = page.form.get("do", "run").partition(":")
    if what in ("run-json", "to-form"):
        given = await page.service.checks.run(partial(_from_json, shape, _raw(page)))
    else:
        given = await _from_form(page, shape, what, at)
    if what in ("run", "run-json") and not given.wrong and not given.problem:
        try:
            return await _run(subject, given)
        except RunnerError as problem:
            return await _refused(subject, shape, given, problem.failure)
    return await _page(subject, shape, given, status=400 if given.problem or (what == "run" and given.wrong) else 200)


def _raw(page: Visit) -> str:
    return page.form.get("raw", "").replace("\r\n", "\n")


async def _from_form(page: Visit, shape: Shape, what: str, at: str) -> Input:
    posted = {name: text for name, text in page.form.items() if name not in ("csrf", "do", "raw")}
    for name, file in page.posted.files.items():
        if file.filename and name.startswith("file"):
            posted["keep" + name.removeprefix("file")] = await _store(
                page, file.filename, file.content_type or "", file
            )
    if what == "add":
        posted = added(shape, posted, at)
    elif what == "remove":
        posted = removed(posted, at)
    elif what == "drop":
        posted.pop("keep" + at, None)
    return await page.service.checks.run(partial(_read, shape, posted))


def _read(shape: Shape, posted: Posted) -> Input:
    found = read(shape, posted)
    return Input(posted, pretty(found.value), dict(found.wrong))


def _from_json(shape: Shape, text: str) -> Input:
    """Return an input by its JSON. Takes a moment for a long text."""
    try:
        value = check_json(text.encode("utf-8", "replace") or b"null")
    except InvalidJsonError as problem:
        return Input(start_of(shape), text, {}, problem=str(problem), fits=False)
    if len(text) > _MAX_FORM:
        return Input(start_of(shape), text, {}, fits=False)
    try:
        return Input(flatten(shape, msgspec.json.decode(value)), text, {})
    except (NotShownError, msgspec.DecodeError, RecursionError):
        return Input(start_of(shape), text, {}, fits=False)


async def _run(subject: Subject, given: Input) -> Reply:
    """Submit the input. Raises RunnerError."""
    page = subject.page
    data = given.raw.encode("utf-8", "replace")
    version = page.query.get("version") or None
    accepted = await page.service.submit(page.principal, subject.name, data, version=version)
    path = f"/executions/{accepted.id}"
    if _by_script(page):
        return _json({"id": accepted.id, "url": page.url(path)}, 202)
    if page.may(Scope.EXECUTIONS_READ):
        return page.redirect(path)
    return await _page(subject, shape_of(subject.module.input_schema), given, status=202, accepted=accepted.id)


async def _refused(subject: Subject, shape: Shape, given: Input, failure: Failure) -> Reply:
    """Return the form as it was sent, with a failure at its field."""
    path = failure.field or ""
    if failure.kind is ErrorKind.BAD_INPUT and path.startswith("$"):
        text = failure.message.removeprefix(f"{path}: ")
        again = Input(given.posted, given.raw, {path: text}, fits=given.fits)
        return await _page(subject, shape, again, status=400, failure=failure)
    return await _page(subject, shape, given, status=CODES[failure.kind].http, failure=failure)


async def _page(subject: Subject, shape: Shape, given: Input, *, status: int = 200, **values: Any) -> Reply:
    """Return the page. It is drawn in a thread: a form of a thousand fields takes a tenth of a second."""
    values = {"failure": None, "accepted": None, **values}
    return await subject.page.service.checks.run(partial(_drawn, subject, shape, given, status, values))


def _drawn(subject: Subject, shape: Shape, given: Input, status: int, values: dict[str, Any]) -> Reply:
    page = subject.page
    form = fields_of(shape, given.posted, given.wrong)
    if not _by_script(page):
        settings = settings_of(subject.module.spec, page.words)
        return subject.render("module_run.html", "", status, form=form, given=given, settings=settings, **values)
    made = page.render("form_part.html", form=form, given=given)
    failure: Failure | None = values["failure"]
    told = {
        "form": made.body.decode(),
        "json": given.raw,
        "problem": given.problem,
        "wrong": given.wrong,
        "fits": given.fits,
        "failure": None if failure is None else {"kind": failure.kind.value, "message": failure.message},
    }
    return _json(told, status)


def _by_script(page: Visit) -> bool:
    return page.header("accept") == _JSON


def _json(value: Any, status: int) -> Reply:
    return Reply(msgspec.json.encode(value), status, _JSON)


# Files


@view("POST", "/modules/{name}/files", scope=Scope.EXECUTIONS_RUN, raw=True)
async def upload(page: Visit) -> Answer:
    """Store a file for an input: its body is the file, `?name=` its name. Answers the object that names it."""
    subject_of(page, Scope.EXECUTIONS_RUN)
    stream_body(page.scope)
    kind = page.header("content-type") or ""
    return Reply((await _store(page, page.query.get("name", ""), kind, None)).encode(), 201, _JSON)


async def _store(page: Visit, name: str, kind: str, file: Any) -> str:
    """Put a file of a form, or the body of the request, into the store; return the object that names it, as JSON.

    As with a form over REST, it needs the scope for the call only. Raises RunnerError.
    """
    service = page.service
    with gathering(service.budget, _GATHERED):
        async with service.files.writing(
            name.replace("\\", "/").rpartition("/")[2], kind, subject=page.principal.subject
        ) as writing:
            if file is None:
                await _receive(page, writing)
            else:
                while data := file.read(_GATHERED):
                    await writing.write(data)
            stored = await writing.finish()
    return msgspec.json.encode({"$file": stored.described}).decode()


async def _receive(page: Visit, writing: Writing) -> None:
    seconds, more = page.service.settings.server.body_timeout_seconds, True
    while more:
        with trio.move_on_after(seconds) as scope:
            message = await page.receive()
        if scope.cancelled_caught or message["type"] != "http.request":
            text = f"no byte of the file arrived for {seconds:g} s; the limit is `body_timeout`"
            raise error(ErrorKind.BAD_INPUT, text, field="file")
        more = message.get("more_body", False)
        if message.get("body"):
            await writing.write(message["body"])


VIEWS = (show, act, upload)
