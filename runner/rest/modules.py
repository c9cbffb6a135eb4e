"""The REST routes of modules: look, register, change, delete, versions, audit; parse, call the service, render."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from quart import Response, request
from quart_trio import QuartTrio

from actors.registry import Action, Added, ChangesQuery, Condition, Published, Registered
from config.code import pack
from config.mistakes import Wrong
from config.modules import starter
from protocol.errors import ErrorKind, error
from protocol.model import Kind
from runner.api import Publishing, Service, module_fields, parse_description
from runner.auth import Principal, require
from runner.rest.openapi import module_operations as operations
from runner.rest.render import change_json, versions_json
from runner.rest.web import arguments, flag, json_answer, moment, one_of, page_limit, serves


def add_module_routes(app: QuartTrio, service: Service, principal: Callable[[], Awaitable[Principal]]) -> None:
    """Add the routes to `app`; `principal` says who makes the request at hand."""
    _add_reading(app, service, principal)
    _add_versions(app, service, principal)

    @serves(app, operations.REGISTER)
    async def register() -> Response:
        who = await principal()
        data, how = await _described(arguments(operations.REGISTER))
        added = await service.management.register(who, data, how=how, condition=Condition(first=True))
        return _added(added)

    @serves(app, operations.UPLOAD)
    async def upload() -> Response:
        who = await principal()
        args = arguments(operations.UPLOAD)
        if (request.mimetype or "") not in operations.UPLOAD.body:
            text = "the body is the zip file itself: curl --data-binary @module.zip -H 'Content-Type: application/zip'"
            raise error(ErrorKind.BAD_INPUT, text, field="content-type")
        body = await request.get_data(as_text=False)
        how = _publishing(args, {})
        data = body if isinstance(body, bytes) else body.encode()
        name, condition = args.get("name"), _condition()
        return _added(await service.management.upload(who, data, name=name, how=how, condition=condition))

    @serves(app, operations.PUT)
    async def put(name: str) -> Response:
        who = await principal()
        data, how = await _described(arguments(operations.PUT))
        if data.setdefault("name", name) != name:
            raise error(ErrorKind.BAD_INPUT, f"the route names {name!r}, the body {data['name']!r:.80}", field="name")
        return _added(await service.management.register(who, data, how=how, condition=_condition()))

    @serves(app, operations.PATCH)
    async def patch(name: str) -> Response:
        who = await principal()
        data, how = await _described(arguments(operations.PATCH))
        return _added(await service.management.patch(who, name, data, how=how, condition=_condition()))

    @serves(app, operations.DELETE)
    async def remove(name: str) -> Response:
        who = await principal()
        force = flag("force", arguments(operations.DELETE).get("force"))
        await service.management.remove(who, name, force=bool(force), condition=_condition())
        return Response(b"", 204, content_type=None)


def _add_reading(app: QuartTrio, service: Service, principal: Callable[[], Awaitable[Principal]]) -> None:
    @serves(app, operations.LIST)
    async def modules() -> Response:
        who = await principal()
        args = arguments(operations.LIST)
        found, cursor = service.modules(
            who,
            envs=[kind for value in _several("env") if (kind := one_of(Kind, "env", value)) is not None],
            tags=_several("tag"),
            text=args.get("q"),
            limit=page_limit(args.get("limit")),
            cursor=args.get("cursor", ""),
        )
        return json_answer({"items": [module_fields(m) for m in found], "cursor": cursor})

    @serves(app, operations.TEMPLATE)
    async def template() -> Response:
        require(await principal(), "modules:read")
        args = arguments(operations.TEMPLATE)
        kind = one_of(Kind, "env", args.get("env")) or Kind.INLINE
        try:
            data = pack(starter(args.get("name", "my-module"), kind))
        except Wrong as wrong:
            raise error(ErrorKind.BAD_INPUT, str(wrong), field="name") from None
        answer = Response(data, content_type="application/zip")
        answer.headers["content-disposition"] = 'attachment; filename="module.zip"'
        return answer

    @serves(app, operations.SHOW)
    async def module(name: str) -> Response:
        who = await principal()
        version = arguments(operations.SHOW).get("version")
        found = service.module(who, "modules:read", name, version)
        answer = json_answer(module_fields(found))
        answer.headers["etag"] = _tag([found], service.registry.snapshot.registered_only(name))
        return answer

    @serves(app, operations.AUDIT)
    async def audit() -> Response:
        who = await principal()
        args = arguments(operations.AUDIT)
        limit = page_limit(args.get("limit"))
        query = ChangesQuery(
            module=args.get("module"),
            subject=args.get("subject"),
            action=one_of(Action, "action", args.get("action")),
            since=moment("since", args.get("since")),
            until=moment("until", args.get("until")),
            before=_number("cursor", args.get("cursor")),
            modules=who.modules,
            limit=limit + 1,
        )
        found = await service.management.changes(who, query)
        cursor = str(found[limit - 1].id) if len(found) > limit else None
        return json_answer({"items": [change_json(each) for each in found[:limit]], "cursor": cursor})


def _add_versions(app: QuartTrio, service: Service, principal: Callable[[], Awaitable[Principal]]) -> None:
    @serves(app, operations.VERSIONS)
    async def versions(name: str) -> Response:
        who = await principal()
        arguments(operations.VERSIONS)
        found, registered = service.management.versions(who, name)
        answer = json_answer(versions_json(name, found, registered))
        answer.headers["etag"] = _tag(found, registered)
        return answer

    @serves(app, operations.SHOW_VERSION)
    async def version_of(name: str, version: str) -> Response:
        who = await principal()
        arguments(operations.SHOW_VERSION)
        return json_answer(module_fields(service.module(who, "modules:read", name, version)))

    @serves(app, operations.DELETE_VERSION)
    async def remove_version(name: str, version: str) -> Response:
        who = await principal()
        force = flag("force", arguments(operations.DELETE_VERSION).get("force"))
        await service.management.remove(who, name, version, force=bool(force), condition=_condition())
        return Response(b"", 204, content_type=None)

    @serves(app, operations.ACTIVATE)
    async def activate(name: str, version: str) -> Response:
        who = await principal()
        prepare = flag("prepare", arguments(operations.ACTIVATE).get("prepare"))
        registered, module = await service.management.activate(
            who, name, version, prepare=bool(prepare), condition=_condition()
        )
        answer = json_answer(module_fields(module) | {"active": registered.active == version})
        answer.headers["etag"] = f'"{registered.revision}"'
        return answer


async def _described(args: Mapping[str, str]) -> tuple[dict[str, Any], Publishing]:
    """Return the module that the body describes, and how it is published: as the query says, else the body."""
    body = await request.get_data(as_text=False)
    data = parse_description(body if isinstance(body, bytes) else body.encode())
    return data, _publishing(args, data)


def _publishing(args: Mapping[str, str], data: dict[str, Any]) -> Publishing:
    """Return how a version is published: as the query says, else the body, from which that is taken out."""
    how = {}
    for name, default in (("activate", True), ("prepare", False)):
        given = flag(name, args.get(name))
        written = data.pop(name, None)
        if not isinstance(written, bool | None):
            raise error(ErrorKind.BAD_INPUT, f"{name} is true or false, not {written!r:.80}", field=name)
        how[name] = next((value for value in (given, written) if value is not None), default)
    return Publishing(**how)


def _condition() -> Condition:
    """Return what `If-Match` and `If-None-Match` ask for. Raises RunnerError `bad_input`."""
    match, none = request.headers.get("if-match"), request.headers.get("if-none-match")
    if none is not None and none.strip() != "*":
        raise error(
            ErrorKind.BAD_INPUT, "if-none-match can only be *: there must be no such module", field="if-none-match"
        )
    if match is None or match.strip() == "*":
        return Condition(absent=none is not None, present=match is not None)
    found = operations.ENTITY_TAG.fullmatch(match.strip())
    if found is None:
        text = f"if-match is the etag of the module as it was read, in quotes, or *, not {match!r:.80}"
        raise error(ErrorKind.BAD_INPUT, text, field="if-match")
    tag = found[1] or found[2]
    return Condition(revision=int(tag) if tag.isdigit() and len(tag) <= 18 else 0, absent=none is not None)


def _several(name: str) -> list[str]:
    values = request.args.getlist(name)
    if len(values) > operations.MAX_VALUES:
        raise error(ErrorKind.BAD_INPUT, f"{name} may be given {operations.MAX_VALUES} times at most", field=name)
    return values


def _number(name: str, value: str | None) -> int | None:
    if value is None or value == "":
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise error(ErrorKind.BAD_INPUT, f"{name} {value!r:.80} is not one that was given", field=name)
    return int(value)


def _tag(versions: Sequence[Published], registered: Registered | None) -> str:
    """Return the entity tag of a module: the revision of a registered one, else what its only version consists of."""
    return f'"{versions[0].content_digest[:16]}"' if registered is None else f'"{registered.revision}"'


def _added(added: Added) -> Response:
    """Return a registration: 201 for a version that was not there before."""
    name, version = added.module.ref.name, added.module.ref.version
    body = module_fields(added.module) | {"active": added.registered.active == version}
    answer = json_answer(body, 201 if added.created else 200)
    answer.headers["location"] = f"/modules/{name}/versions/{version}"
    answer.headers["etag"] = f'"{added.registered.revision}"'
    return answer
