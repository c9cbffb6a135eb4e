"""The endpoints of modules in the OpenAPI document."""

from __future__ import annotations

import re
from typing import Any, Final

from actors.registry import Published
from config.modules import PREFIX, Auth, EndpointSpec, Method
from protocol.errors import PROBLEM
from runner.auth import Scope

_NAME: Final = re.compile(r"\{([^}.]+)(?:\.\.\.)?\}")
_BODILESS: Final = (Method.GET, Method.DELETE)
_AUTH: Final = {
    Auth.TOKEN: "Needs a token or a key.",
    Auth.KEY: "Needs a key.",
    Auth.SIGNATURE: "Needs the signature of the sender.",
    Auth.NONE: "Open to every client.",
}


def hook_paths(module: Published) -> dict[str, dict[str, Any]]:
    """Return the operations of a module's endpoints by path and method."""
    paths: dict[str, dict[str, Any]] = {}
    for place, endpoint in enumerate(module.spec.endpoints):
        path = PREFIX + _NAME.sub(r"{\1}", endpoint.path)
        for method in endpoint.methods:
            identity = f"endpoint.{module.ref.name}.{place}.{method.lower()}"
            paths.setdefault(path, {})[method.lower()] = _operation(module, endpoint, method, identity)
    return paths


def _operation(module: Published, endpoint: EndpointSpec, method: Method, identity: str) -> dict[str, Any]:
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
        "description": "\n\n".join(part for part in (spec.description, _AUTH[endpoint.auth]) if part),
        "tags": ["endpoints"],
        **({"parameters": parameters} if parameters else {}),
        **({} if method in _BODILESS else {"requestBody": body}),
        "responses": {"default": answer} if endpoint.wait else {"202": accepted, "default": problem},
        "security": needs,
        "x-module": {"version": module.ref.version, "env": spec.env.value},
    }
