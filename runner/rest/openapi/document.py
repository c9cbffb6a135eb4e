"""The OpenAPI 3.1 document: the table of operations, and a path for each module that the reader may use."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from actors.registry import Published, Registry, RegistrySnapshot
from config.modules import PREFIX, Auth, EndpointSpec, Method
from protocol import events, views
from protocol.errors import PROBLEM, ErrorKind
from runner.auth import Principal, Scope
from runner.http import WEBSOCKET
from runner.inputs import ANY, Field, Fields, media_types
from runner.rest.openapi import shapes
from runner.rest.openapi.executions import EXECUTE, EXECUTION_ID
from runner.rest.openapi.operation import EVENTS, JSON, Header, Operation, Response
from runner.rest.openapi.operations import OPERATIONS
from runner.rest.openapi.parameters import MODULE, Parameter
from runner.status import CODES

_MAX_DOCUMENTS: Final = 8
"""Readers with different modules whose documents are cached."""
_SCHEMAS: Final = "#/components/schemas/"
_RESPONSES: Final = "#/components/responses/"
_TAGS: Final = {
    "calls": "The modules that this token may call, each with the schema of its input.",
    "endpoints": "Routes of modules: the answer is that of their handlers.",
    "executions": "Calls, synchronous and asynchronous.",
    "files": "Contents that inputs and results name.",
    "modules": "The functions that can be called.",
    "schedules": "Modules that run by themselves, by time.",
    "keys": "API keys, which are used in place of tokens.",
    "notices": "Messages about ended executions.",
    "server": "The runner itself.",
}
_ABOUT: Final = (
    "Runs Python functions. The answer to a call that began is its execution, also after a failure, with the status of "
    "the kind of error. The answer to a request that began no execution is a problem (RFC 9457). The server itself "
    "refuses requests in the same form: 408, 413, 431, and 503 for too many connections. Every path answers HEAD where "
    "it has GET, OPTIONS with 204, and another method with 405; both with `Allow`. Bodies may be compressed "
    "(`Content-Encoding: gzip` or `deflate`). Tokens are JSON Web Tokens or API keys; each operation names its scope."
)
_SHOWN: Final = (
    "A JSON Web Token with `sub`, `exp` and `scope`. The claim `modules` limits it to modules with matching names."
)
_KEY: Final = "An API key, `opk_...`. It may be sent as a bearer token, too."
_HEADERS: Final = {
    401: Header("WWW-Authenticate", "The scheme of authentication."),
    429: Header("Retry-After", "Seconds to wait before the next attempt.", {"type": "integer"}),
    503: Header("Retry-After", "Seconds to wait before the next attempt.", {"type": "integer"}),
}

_UNSUPPORTED: Final = Response(
    415,
    "`bad_input`: the type or the encoding of the body is not supported.",
    {PROBLEM: shapes.Problem},
    (Header("Accept-Encoding", "The encodings that are, if it is the encoding."),),
)
_NAME: Final = re.compile(r"\{([^}.]+)(?:\.\.\.)?\}")
_BODILESS: Final = (Method.GET, Method.DELETE)
_CALLERS: Final = {
    Auth.TOKEN: "Needs a token or a key.",
    Auth.KEY: "Needs a key.",
    Auth.SIGNATURE: "Needs the signature of the sender.",
    Auth.NONE: "Open to every client.",
}


@frozen
class Call:
    """The operation that runs one module, and the schema of its input."""

    name: str
    operation: dict[str, Any]
    input: dict[str, Any]
    hooks: Mapping[str, Mapping[str, Any]]
    """The operations of its endpoints, by path and method."""


@define(eq=False)
class Documents:
    """The documents of all readers, made at the first request and cached until the modules change."""

    registry: Registry
    version: str
    operations: tuple[Operation, ...] = OPERATIONS
    _snapshot: RegistrySnapshot | None = field(default=None, init=False)
    _made: OrderedDict[tuple[tuple[str, ...] | None, str], bytes] = field(factory=OrderedDict, init=False)
    _calls: dict[str, Call] = field(factory=dict, init=False)
    """By the digest of the module: an unchanged module is not described again."""

    def get(self, reader: Principal | None, base: str = "") -> bytes:
        """Return the document for a reader, with the modules that it may run and read; for None without modules.

        `base` is the address of the server for the reader, if a proxy changes it.
        """
        snapshot = self.registry.snapshot
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._made.clear()
            served = {module.digest for module in snapshot.modules.values()}
            self._calls = {digest: call for digest, call in self._calls.items() if digest in served}
        allowed = reader is not None and reader.allows(Scope.EXECUTIONS_RUN) and reader.allows(Scope.MODULES_READ)
        key = reader.modules if reader is not None and allowed else None, base
        made = self._made.get(key)
        if made is None:
            modules = [m for name, m in sorted(snapshot.modules.items()) if reader and allowed and reader.may_use(name)]
            made = msgspec.json.encode(document(map(self._call, modules), self.version, self.operations, base))
            self._made[key] = made
            if len(self._made) > _MAX_DOCUMENTS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return made

    def _call(self, module: Published) -> Call:
        known = self._calls.get(module.digest)
        return known or self._calls.setdefault(module.digest, call_of(module))


def document(
    calls: Iterable[Call], version: str, operations: Iterable[Operation] = OPERATIONS, base: str = ""
) -> dict[str, Any]:
    """Return the document as JSON values: the operations, and a path for each of these calls."""
    schemas, refer = _schemas()
    inputs: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for call in calls:
        paths[EXECUTE.path.replace("{name}", call.name)] = {"post": call.operation}
        inputs[_input(call.name)] = call.input
        for path, methods in call.hooks.items():
            paths.setdefault(path, {}).update(methods)
    unused = {"calls": not inputs, "endpoints": not any(path.startswith(f"{PREFIX}/") for path in paths)}
    for operation in operations:
        method = "get" if operation.method == WEBSOCKET else operation.method.lower()
        paths.setdefault(operation.path, {})[method] = _operation(operation, refer)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Operato Runner", "version": version, "description": _ABOUT, "license": {"name": "MIT"}},
        **({"servers": [{"url": base}]} if base else {}),
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items() if not unused.get(name)],
        "paths": paths,
        "components": {
            "schemas": {**schemas, **inputs},
            "responses": {f"execute.{status}": shown for status, shown in _responses(EXECUTE, refer).items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _SHOWN},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": _KEY},
            },
        },
    }


@lru_cache(maxsize=1)
def _schemas() -> tuple[Mapping[str, Any], Mapping[Any, Any]]:
    """Return the schemas of all types by name, and the reference to each type in the table."""
    answers = [answer.content for operation in OPERATIONS for answer in operation.answers]
    contents = [content for shown in (*answers, *(op.body for op in OPERATIONS)) for content in shown.values()]
    types = dict.fromkeys([*(content for content in contents if not isinstance(content, dict)), shapes.Problem])
    shown, found = msgspec.json.schema_components(list(types), ref_template=f"{_SCHEMAS}{{name}}")
    refer = dict(zip(types, shown, strict=True))
    schemas = {name: _in_order(schema, name) for name, schema in sorted(found.items())}
    # msgspec sees only raw JSON here.
    schemas["ErrorEvent"]["properties"]["error"] = {"$ref": f"{_SCHEMAS}Error"}
    schemas["Event"] = {"description": "One event of an execution.", **refer[events.Event]}
    refer[events.Event] = {"$ref": f"{_SCHEMAS}Event"}
    return schemas, refer


def _in_order(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a schema with its properties in the order of the type."""
    order = getattr((vars(views) | vars(shapes)).get(name), "__annotations__", {})
    properties = schema.get("properties", {})
    if order.keys() != properties.keys():
        return schema
    return {**schema, "properties": {key: properties[key] for key in order}}


def _operation(operation: Operation, refer: Mapping[Any, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if operation.text:
        shown["description"] = operation.text
    shown["tags"] = [operation.tag]
    if operation.parameters:
        shown["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body:
        body = {"required": operation.body_required, "content": _content(operation.body, refer)}
        shown["requestBody"] = {"description": operation.body_text, **body} if operation.body_text else body
    shown["responses"] = _execute_responses() if operation is EXECUTE else _responses(operation, refer)
    shown["security"] = _security(operation)
    if operation.method == WEBSOCKET:
        shown["x-websocket"] = True
    return shown


def _input(name: str) -> str:
    """Return the name of the schema of a module's input."""
    return f"input.{name}"


def call_of(module: Published) -> Call:
    """Return the description of one module."""
    name, spec = module.ref.name, module.spec
    schema, required, more = {}, False, ""
    reference = f"{_SCHEMAS}{_input(name)}"
    content: dict[str, Any] = {"schema": {"$ref": reference}}
    if module.input_schema is not None:
        from config.schema import embedded  # noqa: PLC0415  (imported already, for the schema of this module)

        required = module.inputs is not None and module.inputs.check(b"null") is not None
        found = embedded(module.input_schema, reference)
        if found is None:
            more = f"The schema of its input cannot be shown here; see `GET /modules/{name}`."
        schema = found or {}
        if (example := module.example()) is not None:
            content["example"] = msgspec.json.decode(example)
    text = "\n\n".join(part for part in (spec.description, more) if part)
    operation = {
        "operationId": f"execute.{name}",
        "summary": f"Run {name}",
        **({"description": text} if text else {}),
        "tags": ["calls"],
        "parameters": [_parameter(parameter) for parameter in EXECUTE.parameters if parameter is not MODULE],
        "requestBody": {"required": required, "content": {JSON: content, **_other_bodies(module, schema, reference)}},
        "responses": _execute_responses(),
        "security": _security(EXECUTE),
        "x-module": {"version": module.ref.version, "env": spec.env.value},
    }
    return Call(name, operation, {"title": f"The input of {name}", **schema}, _hook_paths(module))


def _other_bodies(module: Published, shown: Mapping[str, Any], reference: str) -> dict[str, Any]:
    """Return the bodies that the module takes besides JSON; `shown` is its schema at the `reference`."""
    fields = Fields(module.input_schema)
    form: dict[str, Any] = {"type": "object"}
    for name in shown.get("properties", ()):
        field = fields.of(name)
        part = {"$ref": f"{reference}/properties/{name.replace('~', '~0').replace('/', '~1')}"}
        form.setdefault("properties", {})[name] = _file_part(field, part)
    form |= {key: shown[key] for key in ("required", "additionalProperties") if key in shown and "properties" in form}
    taken = media_types(module.input_schema)
    return {kind: {"schema": {} if kind == ANY else form} for kind in taken if kind != JSON}


def _file_part(field: Field, part: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a part: bytes for a file, else that of the field."""
    file = {"type": "string", "format": "binary"}
    if field.any:
        return part
    if field.repeated and field.items is not None and field.items.file and not field.items.any:
        return {"type": "array", "items": file}
    return file if field.file else part


def _hook_paths(module: Published) -> dict[str, dict[str, Any]]:
    """Return the operations of a module's endpoints by path and method."""
    paths: dict[str, dict[str, Any]] = {}
    for place, endpoint in enumerate(module.spec.endpoints):
        path = PREFIX + _NAME.sub(r"{\1}", endpoint.path)
        for method in endpoint.methods:
            identity = f"endpoint.{module.ref.name}.{place}.{method.lower()}"
            paths.setdefault(path, {})[method.lower()] = _hook(module, endpoint, method, identity)
    return paths


def _hook(module: Published, endpoint: EndpointSpec, method: Method, identity: str) -> dict[str, Any]:
    name, spec = module.ref.name, module.spec
    text = {"type": "string"}
    identified = {"X-Execution-Id": {"description": "The id of the execution.", "schema": text}}
    answer: dict[str, Any] = {"description": "The answer of the handler, or a problem.", "headers": identified}
    accepted = {"description": "The request is accepted, and runs when its turn comes.", "headers": identified}
    names = _NAME.findall(endpoint.path)
    parameters = [{"name": each, "in": "path", "required": True, "schema": text} for each in names]
    body: dict[str, Any] = {"content": {"*/*": {"schema": {}}}}
    needs = [{"bearer": [Scope.EXECUTIONS_RUN.value]}] if endpoint.auth in (Auth.TOKEN, Auth.KEY) else []
    problem = {"description": "A problem.", "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    return {
        "operationId": identity,
        "summary": f"Endpoint of {name}",
        "description": "\n\n".join(part for part in (spec.description, _CALLERS[endpoint.auth]) if part),
        "tags": ["endpoints"],
        **({"parameters": parameters} if parameters else {}),
        **({} if method in _BODILESS else {"requestBody": body}),
        "responses": {"default": answer} if endpoint.wait else {"202": accepted, "default": problem},
        "security": needs,
        "x-module": {"version": module.ref.version, "env": spec.env.value},
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    shown = {"name": parameter.name, "in": parameter.place, "description": parameter.text, "schema": parameter.schema}
    return {**shown, "required": True} if parameter.place == "path" else shown


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if operation.scope is not None:
        return [{"bearer": [operation.scope.value]}, {"key": [operation.scope.value]}]
    return [{}, {"bearer": []}, {"key": []}] if operation.token else []


@lru_cache(maxsize=1)
def _execute_responses() -> dict[str, Any]:
    """Return references to the answers of a call, which are the same for every module."""
    return {status: {"$ref": f"{_RESPONSES}execute.{status}"} for status in _responses(EXECUTE, _schemas()[1])}


def _responses(operation: Operation, refer: Mapping[Any, Any]) -> dict[str, Any]:
    """Return all answers by status: those of the table, executions that failed, and refusals."""
    answers = (*operation.answers, *((_UNSUPPORTED,) if operation.body else ()))
    responses = {str(answer.status): _response(answer, refer) for answer in answers}
    kinds: dict[int, dict[ErrorKind, None]] = {}
    contents: dict[int, dict[str, Any]] = {}
    for content_type, type_, these in (
        (JSON, views.Execution, operation.ended),
        (PROBLEM, shapes.Problem, operation.refusals),
    ):
        for kind in these:
            kinds.setdefault(CODES[kind].http, {})[kind] = None
            contents.setdefault(CODES[kind].http, {})[content_type] = type_
    for status, content in sorted(contents.items()):
        headers = [_HEADERS[status]] if status in _HEADERS else []
        if JSON in content:
            headers.append(EXECUTION_ID)
        words = ", ".join(f"`{kind.value}`" for kind in kinds[status])
        responses[str(status)] = _response(Response(status, f"{words}.", content, tuple(headers)), refer)
    return responses


def _response(answer: Response, refer: Mapping[Any, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": answer.text}
    if answer.headers:
        shown["headers"] = {h.name: {"description": h.text, "schema": h.schema} for h in answer.headers}
    if answer.content:
        shown["content"] = _content(answer.content, refer)
    return shown


def _content(content: Mapping[str, Any], refer: Mapping[Any, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for content_type, what in content.items():
        schema = what if isinstance(what, dict) else refer[what]
        shown[content_type] = {"schema": _event(schema) if content_type == EVENTS else schema}
    return shown


def _event(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of one server-sent event; OpenAPI 3.1 cannot describe a stream of them."""
    text = {"type": "string"}
    fields = {"id": text, "event": text, "data": {**text, "contentMediaType": JSON, "contentSchema": data}}
    return {"type": "object", "properties": fields, "required": ["event", "data"]}
