"""The operations on modules: list, register, change, delete, activate, prepare, audit."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from actors.registry import Action
from config.units import decimal
from protocol.errors import PROBLEM, ErrorKind
from protocol.model import Kind
from runner.auth import Scope
from runner.inputs import FORM, FORM_PARTS
from runner.rest.openapi import shapes
from runner.rest.openapi.operation import EVENTS, JSON, Header, Operation, Response
from runner.rest.openapi.parameters import (
    CURSOR,
    IF_MATCH,
    IF_NONE_MATCH,
    LIMIT,
    MODULE,
    SINCE,
    UNTIL,
    VERSION,
    Parameter,
    Value,
    choice,
    flag,
    path_name,
    text,
)

MAX_VALUES: Final = 20
"""How often a filter may be given."""
ARCHIVES: Final = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
"""Content types of an upload."""
_UPLOAD_FORM: Final = {
    "type": "object",
    "properties": {name: {"type": "string", "contentMediaType": ARCHIVES[0]} for name in FORM_PARTS},
    "minProperties": 1,
    "maxProperties": 1,
}
_NAME_PATTERN: Final = "^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"

_PLACE: Final = path_name("version", "A version of the module.")
# Without a default for the reader: the body may hold the same field.
_ACTIVATED: Final = Parameter(
    "activate",
    "Whether the version becomes active. Default: the field `activate` of the body, else true.",
    evolve(flag(default=True), default=None),
)
_PREPARED: Final = Parameter(
    "prepare",
    "Whether the environment is built and the module imported before the version is registered.",
    evolve(flag(default=False), default=None),
)
_WARMED: Final = Parameter(
    "prepare",
    "Whether the environment is built and the module imported before the version becomes active.",
    flag(default=False),
)
_FORCE: Final = Parameter(
    "force",
    "Whether running and waiting executions are cancelled; otherwise they make it a `conflict`.",
    flag(default=False),
)

_ETAG: Final = Header("ETag", "The state of the module, for `If-Match`.")
_UNMET: Final = Response(
    412, "`conflict`: the module does not meet the condition of the request.", {PROBLEM: shapes.Problem}
)
_ATTACHED: Final = Header("Content-Disposition", "A name for the file.")
_LOCATION: Final = Header("Location", "The path of the version.")
_PUBLISHING: Final = (
    ErrorKind.NOT_FOUND,
    ErrorKind.CONFLICT,
    ErrorKind.TOO_LARGE,
    ErrorKind.ENVIRONMENT_FAILED,
    ErrorKind.LOAD_FAILED,
    ErrorKind.OVERLOADED,
    ErrorKind.OUT_OF_MEMORY,
    ErrorKind.TIMEOUT,
    ErrorKind.WORKER_CRASHED,
    ErrorKind.SHUTDOWN,
)
_CHANGED: Final = (
    Response(200, "This content is registered already.", {JSON: shapes.RegisteredModule}, (_ETAG, _LOCATION)),
    Response(201, "A version was added.", {JSON: shapes.RegisteredModule}, (_ETAG, _LOCATION)),
    _UNMET,
)
_BODY_TEXT: Final = "A module in the form of the modules file, with its code and without files."

LIST: Final = Operation(
    "GET",
    "/modules",
    "listModules",
    "List modules by name",
    (Response(200, "A page.", {JSON: shapes.ModulePage}),),
    Scope.MODULES_READ,
    parameters=(
        Parameter("env", "Modules in these kinds of environment.", choice(Kind), most=MAX_VALUES),
        Parameter("tag", "Modules with all of these tags.", text(), most=MAX_VALUES),
        Parameter("q", "Modules with this text in name or description.", text()),
        LIMIT,
        CURSOR,
    ),
    tag="modules",
)
REGISTER: Final = Operation(
    "POST",
    "/modules",
    "registerModule",
    "Register a new module",
    _CHANGED,
    Scope.MODULES_WRITE,
    parameters=(_ACTIVATED, _PREPARED),
    body={JSON: shapes.DescribedModule},
    body_text=_BODY_TEXT,
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
UPLOAD: Final = Operation(
    "POST",
    "/modules/upload",
    "uploadModule",
    "Register a module from a zip archive",
    (*_CHANGED, Response(204, "With `dry_run`: the archive would be accepted.")),
    Scope.MODULES_WRITE,
    parameters=(
        Parameter("name", "The name of the module, if the `module.yaml` in the archive has none.", text()),
        _ACTIVATED,
        _PREPARED,
        Parameter("dry_run", "Only check the archive: nothing is built or registered.", flag(default=False)),
        IF_MATCH,
        IF_NONE_MATCH,
    ),
    body={**{kind: {} for kind in ARCHIVES}, FORM: _UPLOAD_FORM},
    body_text="An archive like that of `GET /modules/template`: the body itself, or the one file of a form.",
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
TEMPLATE: Final = Operation(
    "GET",
    "/modules/template",
    "getTemplate",
    "Get a module to start from, as a zip archive",
    (Response(200, "An archive that can be uploaded.", {"application/zip": {}}, (_ATTACHED,)),),
    Scope.MODULES_READ,
    parameters=(
        Parameter("name", "The name of the module.", text(_NAME_PATTERN, "my-module")),
        Parameter("env", "Its kind of environment.", choice(Kind, Kind.INLINE)),
    ),
    tag="modules",
)
SHOW: Final = Operation(
    "GET",
    "/modules/{name}",
    "getModule",
    "Show a module",
    (Response(200, "Without its code, its paths and the values of its variables.", {JSON: shapes.Module}, (_ETAG,)),),
    Scope.MODULES_READ,
    parameters=(MODULE, VERSION),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    tag="modules",
)
PUT: Final = Operation(
    "PUT",
    "/modules/{name}",
    "putModule",
    "Register a module, or a version of it",
    _CHANGED,
    Scope.MODULES_WRITE,
    parameters=(MODULE, _ACTIVATED, _PREPARED, IF_MATCH, IF_NONE_MATCH),
    body={JSON: shapes.DescribedModule},
    body_text=f"{_BODY_TEXT} The name may be omitted.",
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
PATCH: Final = Operation(
    "PATCH",
    "/modules/{name}",
    "patchModule",
    "Register the active version with some fields changed",
    _CHANGED,
    Scope.MODULES_WRITE,
    parameters=(MODULE, _ACTIVATED, _PREPARED, IF_MATCH, IF_NONE_MATCH),
    body={JSON: {"type": "object"}},
    body_text="The fields that change (JSON Merge Patch, RFC 7396): null removes a field.",
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
DELETE: Final = Operation(
    "DELETE",
    "/modules/{name}",
    "deleteModule",
    "Delete a module with all its versions",
    (Response(204, "The module is deleted; its executions stay in the history."), _UNMET),
    Scope.MODULES_WRITE,
    parameters=(MODULE, _FORCE, IF_MATCH, IF_NONE_MATCH),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.SHUTDOWN),
    tag="modules",
)
VERSIONS: Final = Operation(
    "GET",
    "/modules/{name}/versions",
    "listVersions",
    "List the versions of a module, newest first",
    (Response(200, "All of them.", {JSON: shapes.Versions}, (_ETAG,)),),
    Scope.MODULES_READ,
    parameters=(MODULE,),
    refused=(ErrorKind.NOT_FOUND,),
    tag="modules",
)
SHOW_VERSION: Final = Operation(
    "GET",
    "/modules/{name}/versions/{version}",
    "getVersion",
    "Show a version of a module",
    (Response(200, "In the form of `GET /modules/{name}`.", {JSON: shapes.Module}),),
    Scope.MODULES_READ,
    parameters=(MODULE, _PLACE),
    refused=(ErrorKind.NOT_FOUND,),
    tag="modules",
)
DELETE_VERSION: Final = Operation(
    "DELETE",
    "/modules/{name}/versions/{version}",
    "deleteVersion",
    "Delete a version that is not active",
    (Response(204, "The version is deleted."), _UNMET),
    Scope.MODULES_WRITE,
    parameters=(MODULE, _PLACE, _FORCE, IF_MATCH, IF_NONE_MATCH),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.SHUTDOWN),
    tag="modules",
)
ACTIVATE: Final = Operation(
    "POST",
    "/modules/{name}/versions/{version}/activate",
    "activateVersion",
    "Activate this version",
    (Response(200, "It is active.", {JSON: shapes.RegisteredModule}, (_ETAG,)), _UNMET),
    Scope.MODULES_WRITE,
    parameters=(MODULE, _PLACE, _WARMED, IF_MATCH, IF_NONE_MATCH),
    refused=_PUBLISHING,
    tag="modules",
)
PREPARE: Final = Operation(
    "POST",
    "/modules/{name}/prepare",
    "prepareModule",
    "Build the environment of a module",
    (
        Response(
            200,
            "The environment is ready. Events: `line` with `number` and `text`, `dropped` with the number of "
            "missed `lines`, then `ready` or `error`.",
            {JSON: shapes.Preparation, EVENTS: {}},
        ),
    ),
    Scope.MODULES_WRITE,
    parameters=(
        MODULE,
        VERSION,
        Parameter("Accept", "`text/event-stream`: the lines of the build as events.", text(), "header"),
    ),
    refused=(
        ErrorKind.NOT_FOUND,
        ErrorKind.TOO_LARGE,
        ErrorKind.ENVIRONMENT_FAILED,
        ErrorKind.TIMEOUT,
        ErrorKind.OVERLOADED,
        ErrorKind.SHUTDOWN,
    ),
    tag="modules",
)


def _number(given: str) -> int | None:
    found = decimal(given)
    if found is None and given:
        raise ValueError(given)
    return found


AUDIT: Final = Operation(
    "GET",
    "/audit",
    "listChanges",
    "List the changes of modules, newest first",
    (Response(200, "A page.", {JSON: shapes.Audit}),),
    Scope.ADMIN,
    parameters=(
        Parameter("module", "Changes of this module.", text()),
        Parameter("subject", "Changes by this caller.", text()),
        Parameter("action", "Changes of this kind.", choice(Action)),
        SINCE,
        UNTIL,
        LIMIT,
        Parameter(
            "cursor", CURSOR.text, Value(text("^([0-9]{1,18})?$").schema, _number, "the `cursor` of the previous page")
        ),
    ),
    tag="modules",
)

MODULES: Final = (
    LIST,
    REGISTER,
    UPLOAD,
    TEMPLATE,
    SHOW,
    PUT,
    PATCH,
    DELETE,
    VERSIONS,
    SHOW_VERSION,
    DELETE_VERSION,
    ACTIVATE,
    PREPARE,
    AUDIT,
)
