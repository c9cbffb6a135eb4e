"""The operations on modules: look, register, change, delete, versions, environments, audit."""

from __future__ import annotations

import re
from typing import Final

from actors.registry import Action
from protocol.errors import ErrorKind
from protocol.model import Kind
from runner.auth import Scope
from runner.rest.openapi import shapes
from runner.rest.openapi.operation import EVENTS, JSON, Answer, Header, Operation, Parameter, choice, path_name, text
from runner.rest.openapi.parameters import (
    CURSOR,
    ETAG,
    IF_MATCH,
    IF_NONE_MATCH,
    LIMIT,
    MODULE,
    SINCE,
    UNMET,
    UNTIL,
    VERSION,
)

MAX_VALUES: Final = 20
"""How often a filter may be given."""
_NO: Final = {"type": "string", "enum": ["true", "false"], "default": "false"}
_KINDS: Final = {"type": "array", "items": choice(Kind), "maxItems": MAX_VALUES}

ARCHIVES: Final = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
"""Content types of an upload."""
ENTITY_TAG: Final = re.compile(r'"([!#-~]{1,64})"|([0-9]{1,18})')
"""One strong tag (RFC 9110, 8.8.3), or a revision as it is."""
NAME_PATTERN: Final = "^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"

PLACE = path_name("version", "A version of the module.")
ACTIVATED = Parameter(
    "activate", "Whether calls get it that name no version; else the body says so.", {**_NO, "default": "true"}
)
PREPARED = Parameter("prepare", "Whether its environment is built and the module imported first.", _NO)
FORCE = Parameter("force", "Whether what runs and waits is cancelled; else it is a `conflict`.", _NO)

_ATTACHED = Header("Content-Disposition", "A name for the file.")
_LOCATION = Header("Location", "Where the version is.")
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
    Answer(200, "The content is registered already.", {JSON: shapes.RegisteredModule}, (ETAG, _LOCATION)),
    Answer(201, "It is a version of the module.", {JSON: shapes.RegisteredModule}, (ETAG, _LOCATION)),
    UNMET,
)
_BODY_TEXT: Final = "A module as the modules file describes one, with its code; without files."

LIST = Operation(
    "GET",
    "/modules",
    "listModules",
    "List modules by name",
    (Answer(200, "A page.", {JSON: shapes.ModulePage}),),
    Scope.MODULES_READ,
    parameters=(
        Parameter(
            "env", "Of these kinds of environment.", {"type": "array", "items": choice(Kind), "maxItems": MAX_VALUES}
        ),
        Parameter("tag", "With all of these tags.", {"type": "array", "items": text(), "maxItems": MAX_VALUES}),
        Parameter("q", "With this text in name or description.", text()),
        LIMIT,
        CURSOR,
    ),
    tag="modules",
)
REGISTER = Operation(
    "POST",
    "/modules",
    "registerModule",
    "Register a module that is not there yet",
    _CHANGED,
    Scope.MODULES_WRITE,
    parameters=(ACTIVATED, PREPARED),
    body={JSON: shapes.DescribedModule},
    body_text=_BODY_TEXT,
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
UPLOAD = Operation(
    "POST",
    "/modules/upload",
    "uploadModule",
    "Register a module whose files are in a zip archive",
    _CHANGED,
    Scope.MODULES_WRITE,
    parameters=(
        Parameter("name", "The name, where the `module.yaml` in the archive has none.", text()),
        ACTIVATED,
        PREPARED,
        IF_MATCH,
        IF_NONE_MATCH,
    ),
    body={kind: {} for kind in ARCHIVES},
    body_text="The archive, as `GET /modules/template` gives one.",
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
TEMPLATE = Operation(
    "GET",
    "/modules/template",
    "getTemplate",
    "Get a module to begin with, as a zip archive",
    (Answer(200, "An archive that can be uploaded.", {"application/zip": {}}, (_ATTACHED,)),),
    Scope.MODULES_READ,
    parameters=(
        Parameter("name", "What it is called.", {**text(NAME_PATTERN), "default": "my-module"}),
        Parameter("env", "Its kind of environment.", {**choice(Kind), "default": Kind.INLINE.value}),
    ),
    tag="modules",
)
SHOW = Operation(
    "GET",
    "/modules/{name}",
    "getModule",
    "Show a module",
    (Answer(200, "Without its code, paths and values of variables.", {JSON: shapes.Module}, (ETAG,)),),
    Scope.MODULES_READ,
    parameters=(MODULE, VERSION),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    tag="modules",
)
PUT = Operation(
    "PUT",
    "/modules/{name}",
    "putModule",
    "Register a module, or a version of it",
    _CHANGED,
    Scope.MODULES_WRITE,
    parameters=(MODULE, ACTIVATED, PREPARED, IF_MATCH, IF_NONE_MATCH),
    body={JSON: shapes.DescribedModule},
    body_text=f"{_BODY_TEXT} The name may be left out.",
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
PATCH = Operation(
    "PATCH",
    "/modules/{name}",
    "patchModule",
    "Register the active version with some fields changed",
    _CHANGED,
    Scope.MODULES_WRITE,
    parameters=(MODULE, ACTIVATED, PREPARED, IF_MATCH, IF_NONE_MATCH),
    body={JSON: {"type": "object"}},
    body_text="The fields that change (JSON Merge Patch, RFC 7396): null takes one away.",
    body_required=True,
    refused=_PUBLISHING,
    tag="modules",
)
DELETE = Operation(
    "DELETE",
    "/modules/{name}",
    "deleteModule",
    "Delete a module with all its versions",
    (Answer(204, "It is gone; its executions stay on record."), UNMET),
    Scope.MODULES_WRITE,
    parameters=(MODULE, FORCE, IF_MATCH, IF_NONE_MATCH),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.SHUTDOWN),
    tag="modules",
)
VERSIONS = Operation(
    "GET",
    "/modules/{name}/versions",
    "listVersions",
    "List the versions of a module, newest first",
    (Answer(200, "All of them.", {JSON: shapes.Versions}, (ETAG,)),),
    Scope.MODULES_READ,
    parameters=(MODULE,),
    refused=(ErrorKind.NOT_FOUND,),
    tag="modules",
)
SHOW_VERSION = Operation(
    "GET",
    "/modules/{name}/versions/{version}",
    "getVersion",
    "Show a version of a module",
    (Answer(200, "As a module is shown.", {JSON: shapes.Module}),),
    Scope.MODULES_READ,
    parameters=(MODULE, PLACE),
    refused=(ErrorKind.NOT_FOUND,),
    tag="modules",
)
DELETE_VERSION = Operation(
    "DELETE",
    "/modules/{name}/versions/{version}",
    "deleteVersion",
    "Delete a version that is not active",
    (Answer(204, "It is gone."), UNMET),
    Scope.MODULES_WRITE,
    parameters=(MODULE, PLACE, FORCE, IF_MATCH, IF_NONE_MATCH),
    refused=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.SHUTDOWN),
    tag="modules",
)
ACTIVATE = Operation(
    "POST",
    "/modules/{name}/versions/{version}/activate",
    "activateVersion",
    "Let calls get this version",
    (Answer(200, "It is active.", {JSON: shapes.RegisteredModule}, (ETAG,)), UNMET),
    Scope.MODULES_WRITE,
    parameters=(MODULE, PLACE, PREPARED, IF_MATCH, IF_NONE_MATCH),
    refused=_PUBLISHING,
    tag="modules",
)
PREPARE = Operation(
    "POST",
    "/modules/{name}/prepare",
    "prepareModule",
    "Build the environment of a module, or wait for its build",
    (
        Answer(
            200,
            "It is ready. As events: `line` with `number` and `text`, `dropped` with `lines`, then `ready` or `error`.",
            {JSON: shapes.Preparation, EVENTS: {}},
        ),
    ),
    Scope.MODULES_WRITE,
    parameters=(
        MODULE,
        VERSION,
        Parameter("Accept", "`text/event-stream` for the lines of the build as they come.", text(), "header"),
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
AUDIT = Operation(
    "GET",
    "/audit",
    "listChanges",
    "List what was done to modules, newest first",
    (Answer(200, "A page.", {JSON: shapes.Audit}),),
    Scope.ADMIN,
    parameters=(
        Parameter("module", "To this module.", text()),
        Parameter("subject", "By this caller.", text()),
        Parameter("action", "Of this kind.", choice(Action)),
        SINCE,
        UNTIL,
        LIMIT,
        Parameter("cursor", "The `cursor` of the page before.", text("^([0-9]{1,18})?$")),
    ),
    tag="modules",
)
