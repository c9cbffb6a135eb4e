"""The operations on API keys: create, list, revoke."""

from __future__ import annotations

from typing import Final

from protocol.errors import ErrorKind
from runner.auth import Scope
from runner.rest.openapi import shapes
from runner.rest.openapi.operation import JSON, Operation, Response
from runner.rest.openapi.parameters import CURSOR, LIMIT, path_name

_SCOPE: Final = {"type": "string", "enum": [scope.value for scope in Scope]}
_SCOPES: Final = "|".join(_SCOPE["enum"])
_GLOB: Final = {"type": "string", "minLength": 1, "maxLength": 200}
_ORDER: Final = {
    "type": "object",
    "properties": {
        "name": {
            "type": "string",
            "maxLength": 64,
            "pattern": "^(?![0-9a-f]{10}$)[A-Za-z0-9]([A-Za-z0-9._@-]*[A-Za-z0-9])?$",
            "description": "The subject of its calls is `key:NAME`. Two valid keys never have one name.",
        },
        "scopes": {
            "anyOf": [
                {"type": "array", "minItems": 1, "items": _SCOPE},
                {"type": "string", "pattern": f"^({_SCOPES})( ({_SCOPES}))*$"},
            ],
        },
        "modules": {
            "type": ["array", "null"],
            "minItems": 1,
            "maxItems": 100,
            "items": _GLOB,
            "description": "Globs of module names. Default: the modules of the caller.",
        },
        "expires": {
            "anyOf": [
                {"type": "string", "pattern": "^[1-9][0-9]{0,3}(s|m|h|d)$"},
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000_000},
                {"type": "null"},
            ],
            "description": "A duration from now: seconds, or text such as `90d`. Default: never.",
        },
    },
    "required": ["name", "scopes"],
    "additionalProperties": False,
}
CREATE: Final = Operation(
    "POST",
    "/keys",
    "createKey",
    "Create an API key",
    (Response(201, "The key, shown this one time.", {JSON: shapes.CreatedKey}),),
    Scope.ADMIN,
    body={JSON: _ORDER},
    body_required=True,
    refused=(ErrorKind.CONFLICT, ErrorKind.TOO_LARGE, ErrorKind.OVERLOADED),
    text="A key is used in place of a token, as `Authorization: Bearer opk_...` or `X-API-Key: opk_...`. It can do no "
    "more than its maker. Of the key itself only a hash is stored.",
    tag="keys",
)
LIST: Final = Operation(
    "GET",
    "/keys",
    "listKeys",
    "List API keys, the newest first",
    (Response(200, "A page.", {JSON: shapes.KeyPage}),),
    Scope.ADMIN,
    parameters=(LIMIT, CURSOR),
    text="Without secrets. A token for some modules sees keys that allow no others; its pages may be short.",
    tag="keys",
)
REVOKE: Final = Operation(
    "DELETE",
    "/keys/{id}",
    "revokeKey",
    "Revoke an API key",
    (Response(204, "The key is refused from now on, and the streams that were opened with it have ended."),),
    Scope.ADMIN,
    parameters=(path_name("id", "The identifier of a key."),),
    refused=(ErrorKind.NOT_FOUND,),
    tag="keys",
)

KEYS: Final = (CREATE, LIST, REVOKE)
