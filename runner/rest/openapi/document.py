"""The OpenAPI 3.1 document of the REST door: the table of operations, and each module that the reader may use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from actors.registry import Published, Registry, RegistrySnapshot
from config.schema import embedded
from protocol import events, views
from protocol.errors import ErrorKind
from runner.auth import Principal, Scope
from runner.http import WEBSOCKET
from runner.rest.openapi import shapes
from runner.rest.openapi.executions import EXECUTE, EXECUTION_ID
from runner.rest.openapi.operation import EVENTS, JSON, PROBLEM, Header, Operation, Response
from runner.rest.openapi.operations import OPERATIONS
from runner.rest.openapi.parameters import MODULE, Parameter
from runner.status import CODES

_MAX_DOCUMENTS: Final = 8
"""So many readers of different modules are served without making a document."""
_SCHEMAS: Final = "#/components/schemas/"
_RESPONSES: Final = "#/components/responses/"
_TAGS: Final = {
    "calls": "The modules that this token may call, each with its own input.",
    "executions": "Calls, whether somebody waits for them or not.",
    "modules": "What can be called.",
    "server": "The runner itself.",
}
_ABOUT: Final = (
    "Runs Python functions. A call that began is answered with its execution, also when it failed, under the status of "
    "its kind of failure; what never began is a problem (RFC 9457). HTTP itself refuses likewise: 408, 413, 431, and "
    "503 where there are too many connections. Tokens are JSON Web Tokens; the scopes are named at each operation."
)
_SHOWN: Final = "A JSON Web Token with `sub`, `exp` and `scope`; the claim `modules` limits it to some of them."
_HEADERS: Final = {
    401: Header("WWW-Authenticate", "How a token is shown."),
    429: Header("Retry-After", "Seconds after which trying again makes sense.", {"type": "integer"}),
    503: Header("Retry-After", "Seconds after which trying again makes sense.", {"type": "integer"}),
}


@frozen
class Call:
    """The operation that runs one module, and the schema of its input."""

    name: str
    operation: dict[str, Any]
    input: dict[str, Any]


@define(eq=False)
class Documents:
    """The documents of all readers, made when they are asked for and remembered until the modules change."""

    registry: Registry
    version: str
    operations: tuple[Operation, ...] = OPERATIONS
    _snapshot: RegistrySnapshot | None = field(default=None, init=False)
    _made: OrderedDict[tuple[str, ...] | None, bytes] = field(factory=OrderedDict, init=False)
    _calls: dict[str, Call] = field(factory=dict, init=False)
    """By the digest of the module: what has not changed is not made again."""

    def get(self, reader: Principal | None) -> bytes:
        """Return the document for a reader: with the modules that it may run and read, without it with none."""
        snapshot = self.registry.snapshot
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._made.clear()
            served = {module.digest for module in snapshot.modules.values()}
            self._calls = {digest: call for digest, call in self._calls.items() if digest in served}
        allowed = reader is not None and reader.allows(Scope.EXECUTIONS_RUN) and reader.allows(Scope.MODULES_READ)
        key = reader.modules if reader is not None and allowed else None
        made = self._made.get(key)
        if made is None:
            modules = [m for name, m in sorted(snapshot.modules.items()) if reader and allowed and reader.may_use(name)]
            made = msgspec.json.encode(document(map(self._call, modules), self.version, self.operations))
            self._made[key] = made
            if len(self._made) > _MAX_DOCUMENTS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return made

    def _call(self, module: Published) -> Call:
        known = self._calls.get(module.digest)
        return known or self._calls.setdefault(module.digest, call_of(module))


def document(calls: Iterable[Call], version: str, operations: Iterable[Operation] = OPERATIONS) -> dict[str, Any]:
    """Return the document as JSON values: the generic routes, and a path for each of these modules."""
    schemas, refer = _schemas()
    inputs: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for call in calls:
        paths[EXECUTE.path.replace("{name}", call.name)] = {"post": call.operation}
        inputs[_input(call.name)] = call.input
    for operation in operations:
        method = "get" if operation.method == WEBSOCKET else operation.method.lower()
        paths.setdefault(operation.path, {})[method] = _operation(operation, refer)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Operato Runner", "version": version, "description": _ABOUT, "license": {"name": "MIT"}},
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items() if inputs or name != "calls"],
        "paths": paths,
        "components": {
            "schemas": {**schemas, **inputs},
            "responses": {f"execute.{status}": shown for status, shown in _responses(EXECUTE, refer).items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _SHOWN}
            },
        },
    }


@lru_cache(maxsize=1)
def _schemas() -> tuple[Mapping[str, Any], Mapping[Any, Any]]:
    """Return the schemas of all types by name, and how each type in the table is referred to."""
    answers = [answer.content for operation in OPERATIONS for answer in operation.answers]
    contents = [content for shown in (*answers, *(op.body for op in OPERATIONS)) for content in shown.values()]
    types = dict.fromkeys([*(content for content in contents if not isinstance(content, dict)), shapes.Problem])
    shown, found = msgspec.json.schema_components(list(types), ref_template=f"{_SCHEMAS}{{name}}")
    refer = dict(zip(types, shown, strict=True))
    schemas = {name: _in_order(schema, name) for name, schema in sorted(found.items())}
    # These are JSON already where they are rendered.
    schemas["ErrorEvent"]["properties"]["error"] = {"$ref": f"{_SCHEMAS}Error"}
    schemas["Event"] = {"description": "What happens in an execution.", **refer[events.Event]}
    refer[events.Event] = {"$ref": f"{_SCHEMAS}Event"}
    return schemas, refer


def _in_order(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a schema with the properties in the order in which the type has them."""
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
    """Return what the schema of a module's input is called."""
    return f"input.{name}"


def call_of(module: Published) -> Call:
    """Return what a document shows of one module."""
    name, spec = module.ref.name, module.spec
    schema, required, more = {}, False, ""
    if module.input_schema is not None:
        required = module.inputs is not None and module.inputs.check(b"null") is not None
        found = embedded(module.input_schema, f"{_SCHEMAS}{_input(name)}")
        if found is None:
            more = f"Its input has a schema that cannot be shown here: see `GET /modules/{name}`."
        schema = found or {}
    text = "\n\n".join(part for part in (spec.description, more) if part)
    operation = {
        "operationId": f"execute.{name}",
        "summary": f"Run {name}",
        **({"description": text} if text else {}),
        "tags": ["calls"],
        "parameters": [_parameter(parameter) for parameter in EXECUTE.parameters if parameter is not MODULE],
        "requestBody": {"required": required, "content": {JSON: {"schema": {"$ref": f"{_SCHEMAS}{_input(name)}"}}}},
        "responses": _execute_responses(),
        "security": _security(EXECUTE),
        "x-module": {"version": module.ref.version, "env": spec.env.value},
    }
    return Call(name, operation, {"title": f"The input of {name}", **schema})


def _parameter(parameter: Parameter) -> dict[str, Any]:
    shown = {"name": parameter.name, "in": parameter.place, "description": parameter.text, "schema": parameter.schema}
    return {**shown, "required": True} if parameter.place == "path" else shown


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if operation.scope is not None:
        return [{"bearer": [operation.scope.value]}]
    return [{}, {"bearer": []}] if operation.token else []


@lru_cache(maxsize=1)
def _execute_responses() -> dict[str, Any]:
    """Return the answers of all calls by reference, as they are the same for every module."""
    return {status: {"$ref": f"{_RESPONSES}execute.{status}"} for status in _responses(EXECUTE, _schemas()[1])}


def _responses(operation: Operation, refer: Mapping[Any, Any]) -> dict[str, Any]:
    """Return all answers by status: those of the table, executions that ended badly, and refusals."""
    responses = {str(answer.status): _response(answer, refer) for answer in operation.answers}
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
    """Return the schema of one server-sent event: of a stream 3.1 can say nothing else."""
    text = {"type": "string"}
    told = {"id": text, "event": text, "data": {**text, "contentMediaType": JSON, "contentSchema": data}}
    return {"type": "object", "properties": told, "required": ["event", "data"]}
