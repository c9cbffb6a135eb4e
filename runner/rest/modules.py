"""The endpoints of modules: list, register, change, delete, activate, prepare, audit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec
import trio

from actors.registry import Added, ChangesQuery, Condition, Published, Registered
from actors.workers import BuildLog
from config.code import pack
from config.mistakes import Wrong
from config.modules import starter
from config.units import decimal
from protocol.errors import ErrorKind, Failure, RunnerError, error
from runner.api import Publishing, failure_of, module_fields, while_valid
from runner.auth import Scope
from runner.inputs import FORM, read_file
from runner.rest.endpoint import Answer, Request, Stream, Write, json_answer, serves
from runner.rest.openapi import ARCHIVES, EVENTS, Preparation
from runner.rest.render import change_json, problem_json, versions_json
from runner.rest.streams import KEEP_ALIVE_SECONDS, STILL_HERE

_LOG_LINES: Final = 20
"""The last lines of a build that its answer holds."""
_ENTITY_TAG: Final = re.compile(r'"([!#-~]{1,64})"|([0-9]{1,18})')
"""One strong tag (RFC 9110, 8.8.3), or a bare revision."""

# Lists and details


@serves("listModules")
async def list_modules(request: Request) -> Answer:
    """List modules."""
    found, cursor = request.service.modules(
        request.principal,
        envs=request["env"],
        tags=request["tag"],
        text=request["q"],
        limit=request["limit"],
        cursor=request["cursor"] or "",
    )
    return json_answer({"items": [module_fields(module, request.outside.base) for module in found], "cursor": cursor})


@serves("getModule")
async def show(request: Request) -> Answer:
    """Show a module."""
    name = request["name"]
    found = request.service.module(request.principal, Scope.MODULES_READ, name, request["version"])
    registered = request.service.registry.snapshot.registered_only(name)
    return json_answer(module_fields(found, request.outside.base), headers=(_etag([found], registered),))


@serves("listVersions")
async def versions(request: Request) -> Answer:
    """List the versions of a module."""
    found, registered = request.service.management.versions(request.principal, request["name"])
    return json_answer(versions_json(request["name"], found, registered), headers=(_etag(found, registered),))


@serves("getVersion")
async def show_version(request: Request) -> Answer:
    """Show a version of a module."""
    found = request.service.module(request.principal, Scope.MODULES_READ, request["name"], request["version"])
    return json_answer(module_fields(found, request.outside.base))


@serves("getTemplate")
async def template(request: Request) -> Answer:
    """Return a module to start from."""
    try:
        data = pack(starter(request["name"], request["env"]))
    except Wrong as wrong:
        raise error(ErrorKind.BAD_INPUT, str(wrong), field="name") from None
    attached = (b"content-disposition", b'attachment; filename="module.zip"')
    return Answer(data, content_type="application/zip", headers=(attached,))


@serves("listChanges")
async def audit(request: Request) -> Answer:
    """List the changes of modules."""
    limit = request["limit"]
    query = ChangesQuery(
        module=request["module"],
        subject=request["subject"],
        action=request["action"],
        since=request["since"],
        until=request["until"],
        before=request["cursor"],
        modules=request.principal.modules,
        limit=limit + 1,
    )
    found = await request.service.management.changes(request.principal, query)
    cursor = str(found[limit - 1].id) if len(found) > limit else None
    return json_answer({"items": [change_json(each) for each in found[:limit]], "cursor": cursor})


# Changes


@serves("registerModule")
async def register(request: Request) -> Answer:
    """Register a new module."""
    data = await request.service.checks.description(await request.body())
    how, condition = _publishing(request, data), Condition(first=True)
    return _added(
        request, await request.service.management.register(request.principal, data, how=how, condition=condition)
    )


@serves("uploadModule")
async def upload(request: Request) -> Answer:
    """Register a module from an archive."""
    management, data = request.service.management, await _archive(request)
    who, name, how, condition = request.principal, request["name"], _publishing(request, {}), _condition(request)
    if request["dry_run"]:
        await management.check(who, data, name=name, activate=how.activate, condition=condition)
        return Answer(status=204)
    return _added(request, await management.upload(who, data, name=name, how=how, condition=condition))


async def _archive(request: Request) -> bytes:
    """Return the archive in a body: the body itself, or the file of a form. Raises RunnerError."""
    given = request.header("content-type") or ""
    kind = given.partition(";")[0].strip().lower()
    if kind in ARCHIVES:
        return await request.body()
    if kind == FORM:
        with request.collecting():
            return await read_file(given, request.piece, request.service.settings.server.max_frame_bytes)
    text = "the body is the zip file itself, curl --data-binary @module.zip -H 'Content-Type: application/zip', or"
    raise error(ErrorKind.BAD_INPUT, f"{text} the file of a form, curl -F file=@module.zip", field="content-type")


@serves("putModule")
async def put(request: Request) -> Answer:
    """Register a module or a version of it."""
    name, data = request["name"], await request.service.checks.description(await request.body())
    how, condition = _publishing(request, data), _condition(request)
    if data.setdefault("name", name) != name:
        raise error(ErrorKind.BAD_INPUT, f"the path names {name!r}, the body {data['name']!r:.80}", field="name")
    return _added(
        request, await request.service.management.register(request.principal, data, how=how, condition=condition)
    )


@serves("patchModule")
async def patch(request: Request) -> Answer:
    """Register the active version with some fields changed."""
    name, data = request["name"], await request.service.checks.description(await request.body())
    how, condition = _publishing(request, data), _condition(request)
    return _added(
        request, await request.service.management.patch(request.principal, name, data, how=how, condition=condition)
    )


@serves("deleteModule")
async def delete(request: Request) -> Answer:
    """Delete a module."""
    return await _delete(request, None)


@serves("deleteVersion")
async def delete_version(request: Request) -> Answer:
    """Delete a version of a module."""
    return await _delete(request, request["version"])


async def _delete(request: Request, version: str | None) -> Answer:
    name, force, condition = request["name"], request["force"], _condition(request)
    await request.service.management.remove(request.principal, name, version, force=force, condition=condition)
    return Answer(status=204)


@serves("activateVersion")
async def activate(request: Request) -> Answer:
    """Activate a version."""
    name, version, condition = request["name"], request["version"], _condition(request)
    registered, module = await request.service.management.activate(
        request.principal, name, version, prepare=request["prepare"], condition=condition
    )
    body = module_fields(module, request.outside.base) | {"active": registered.active == version}
    return json_answer(body, headers=(_etag([module], registered),))


def _publishing(request: Request, data: dict[str, Any]) -> Publishing:
    """Return how a version is published: by the query, else by the body, whose fields about it are removed."""
    how = {}
    for name, default in (("activate", True), ("prepare", False)):
        written = data.pop(name, None)
        if not isinstance(written, bool | None):
            raise error(ErrorKind.BAD_INPUT, f"{name} must be true or false, not {written!r:.80}", field=name)
        how[name] = next((value for value in (request[name], written) if value is not None), default)
    return Publishing(**how)


def _condition(request: Request) -> Condition:
    """Return the condition of `If-Match` and `If-None-Match`. Raises RunnerError `bad_input`."""
    match, none = request["If-Match"], request["If-None-Match"]
    if none is not None and none.strip() != "*":
        text = "if-none-match can only be *: no such module may exist"
        raise error(ErrorKind.BAD_INPUT, text, field="if-none-match")
    if match is None or match.strip() == "*":
        return Condition(absent=none is not None, present=match is not None)
    found = _ENTITY_TAG.fullmatch(match.strip())
    if found is None:
        text = f"if-match must be the etag of the module as you read it, in quotes, or *, not {match!r:.80}"
        raise error(ErrorKind.BAD_INPUT, text, field="if-match")
    return Condition(revision=decimal(found[1] or found[2]) or 0, absent=none is not None)


def _etag(found: Sequence[Published], registered: Registered | None) -> tuple[bytes, bytes]:
    """Return the ETag of a module: the revision of a registered one, the digest of one of the operator's file."""
    tag = found[0].content_digest[:16] if registered is None else registered.revision
    return b"etag", f'"{tag}"'.encode()


def _added(request: Request, added: Added) -> Answer:
    """Return a registration: 201 for a version that was added."""
    name, version = added.module.ref.name, added.module.ref.version
    body = module_fields(added.module, request.outside.base) | {"active": added.registered.active == version}
    location = (b"location", f"/modules/{name}/versions/{version}".encode())
    return json_answer(body, 201 if added.created else 200, (location, _etag([added.module], added.registered)))


# Environments


@serves("prepareModule")
async def prepare(request: Request) -> Answer | Stream:
    """Build the environment of a module now.

    Concurrent requests follow the same build. A client that disconnects ends only its own waiting: the build continues,
    because the next call of the module needs it.
    """
    await request.body()  # it has no meaning
    module, build = request.service.prepare(request.principal, request["name"], request["version"])
    if EVENTS in (request["Accept"] or ""):
        return Stream(partial(_send_build, request, module, build), _build_failed)
    await build.wait_ended()
    if build.failure is not None:
        raise RunnerError(build.failure)
    return json_answer(_ready(module, build))


async def _send_build(request: Request, module: Published, build: BuildLog, write: Write) -> None:
    """Send the lines of a build as they come.

    The events: `line` with `number` and `text`, `dropped` with the number of `lines` that a slow reader missed, and
    last `ready` or `error` with the body of the answer without events.
    """
    await write(b"")
    number, more = 0, True
    while more:
        with while_valid(request.principal), trio.move_on_after(KEEP_ALIVE_SECONDS):
            await build.wait(number)
        found = build.read(number)
        number, more = found.next, not build.ended
        body = [_event("dropped", msgspec.json.encode({"lines": found.dropped}))] if found.dropped else []
        for at, line in enumerate(found.lines, found.first):
            body.append(_event("line", msgspec.json.encode({"number": at, "text": line})))
        if build.failure is not None:
            failure = failure_of(RunnerError(build.failure), "a build failed inside the runner", module=module.ref.name)
            body.append(_build_failed(failure))
        elif not more:
            body.append(_event("ready", msgspec.json.encode(_ready(module, build))))
        await write(b"".join(body) or STILL_HERE)


def _build_failed(failure: Failure) -> bytes:
    return _event("error", problem_json(failure))


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _ready(module: Published, build: BuildLog) -> Preparation:
    prepared = build.prepared
    return {
        "module": module.ref.name,
        "version": module.ref.version,
        "key": None if prepared is None else prepared.key,
        "built_seconds": 0.0 if prepared is None else round(prepared.built_seconds, 3),
        "log": build.last(_LOG_LINES),
    }


ENDPOINTS: Final = (
    list_modules,
    show,
    versions,
    show_version,
    template,
    audit,
    register,
    upload,
    put,
    patch,
    delete,
    delete_version,
    activate,
    prepare,
)
