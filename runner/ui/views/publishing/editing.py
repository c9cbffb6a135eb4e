"""Publishing from the browser: an editor that is checked while one types, and folders that are uploaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec

from actors.registry import Condition
from config.code import read_folder
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Kind
from runner.api import Publishing
from runner.auth import Scope
from runner.status import CODES
from runner.ui.views.publishing.drafts import Draft, archive, mistakes, of_version, posted, started, uploaded
from runner.ui.visit import Reply, Visit, view

_JSON: Final = "application/json"


@view("GET", "/publish", scope=Scope.MODULES_WRITE)
async def show(page: Visit) -> Reply:
    """Show the editor: with a starter, or with the files of a version."""
    name, version = page.query.get("module", ""), page.query.get("version") or None
    if not name:
        kind = _kind(page.query.get("env", ""))
        return _page(page, started(page.query.get("name", ""), kind), kind=kind.value)
    module = page.service.module(page.principal, Scope.MODULES_WRITE, name, version)
    registered = page.service.registry.snapshot.changeable(name, Condition(), page.principal.may_use)
    files = await page.service.details.code(page.principal, name, module.ref.version)
    draft = of_version(module, files)
    base: dict[str, Any] = {
        "module": name,
        "base": module.ref.version,
        "revision": str(0 if registered is None else registered.revision),
    }
    return _page(page, draft, kind=module.spec.env.value, **base)


def _kind(text: str) -> Kind:
    return next((kind for kind in Kind if kind.value == text), Kind.INLINE)


@view("POST", "/publish", scope=Scope.MODULES_WRITE)
async def publish(page: Visit) -> Reply:
    """Check or publish a draft or an upload. A refused draft is shown again as it was sent."""
    form, what = page.form, page.form.get("do", "publish")
    draft = posted(form)
    base: dict[str, Any] = {name: form.get(name, "") for name in ("module", "base", "revision", "kind")}
    if what == "start":
        kind = _kind(form.get("kind", ""))
        return _page(page, started(draft.name, kind), kind=kind.value)
    try:
        data = await _archive(page, draft, base)
        condition, activate = _condition(base), form.get("activate") == "1"
        name = base["module"] or None
        if what == "check":
            management = page.service.management
            spec = await management.check(page.principal, data, name=name, activate=activate, condition=condition)
            return _page(page, draft, checked=spec.name, **base)
        how = Publishing(activate=activate)
        added = await page.service.management.upload(page.principal, data, name=name, how=how, condition=condition)
    except RunnerError as problem:
        if problem.failure.kind is ErrorKind.INTERNAL:
            raise
        return _page(page, draft, failure=problem.failure, **base)
    version = added.module.ref.version
    path, query = f"/modules/{added.module.ref.name}", {"version": None if how.activate else version, "done": "1"}
    built = added.module.spec.env is not Kind.INLINE
    return page.redirect(path + ("/environment" if built else ""), **query)


async def _archive(page: Visit, draft: Draft, base: Mapping[str, str]) -> bytes:
    """Return the archive of a form. Raises RunnerError."""
    if page.form.get("from") == "upload":
        return await page.service.checks.run(partial(uploaded, page.posted.files.getlist("archive")))
    files = {name: text.encode("utf-8", "replace") for name, text in draft.files.items()}
    if base["module"] and base["base"]:
        module = page.service.module(page.principal, Scope.MODULES_WRITE, base["module"], base["base"])
        kept = page.form.getlist("kept")
        before = await page.service.checks.run(partial(read_folder, module.root)) if kept else {}
        files |= {name: data for name, data in before.items() if name in kept and name not in files}
    return await page.service.checks.run(partial(archive, files))


def _condition(base: Mapping[str, str]) -> Condition:
    """Return the condition of a publication: a new module, or a module as it was when the editor was opened."""
    text = base["revision"]
    if not base["module"]:
        return Condition(first=True)
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise error(
            ErrorKind.BAD_INPUT, "the form has no revision of the module; open the editor again", field="revision"
        )
    return Condition(revision=int(text))


def _page(page: Visit, draft: Draft, *, failure: Failure | None = None, checked: str = "", **base: Any) -> Reply:
    status = 200 if failure is None else CODES[failure.kind].http
    found = [] if failure is None else mistakes(failure.message)
    if page.header("accept") == _JSON:
        told = {"checked": checked, "mistakes": [{"file": m.file, "line": m.line, "text": m.text} for m in found]}
        return Reply(msgspec.json.encode(told), 200, _JSON)
    values = {"module": "", "base": "", "revision": "", "kind": Kind.INLINE.value, **base}
    kept = page.form.getlist("kept") or draft.kept
    return page.render(
        "publish.html",
        status,
        draft=draft,
        kept=kept,
        kinds=list(Kind),
        failure=failure,
        mistakes=found,
        checked=checked,
        activate=not page.form or page.form.get("activate") == "1",
        **values,
    )


VIEWS = (show, publish)
