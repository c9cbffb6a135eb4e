"""Resources: the results and files of executions, to which tool results lead."""

from __future__ import annotations

from typing import Any, Final

from attrs import define

from protocol.errors import ErrorKind, RunnerError
from runner.api import Service
from runner.mcp.calls import read_file
from runner.mcp.exchange import Exchange
from runner.mcp.forms import INVALID_PARAMS, URI, RpcError, contents

MAX_BYTES: Final = 4 * 1024 * 1024
"""Of one resource; larger ones are read over REST."""
_LEGACY_NOT_FOUND: Final = -32002
TEMPLATES: Final = (
    {
        "uriTemplate": "operato://executions/{execution}/result",
        "name": "result",
        "title": "Result of a call",
        "description": "The JSON result of an execution.",
        "mimeType": "application/json",
    },
    {
        "uriTemplate": "operato://executions/{execution}/files/{file}",
        "name": "file",
        "title": "File of a call",
        "description": "A file that the input or result of an execution names.",
    },
)


@define(eq=False)
class Resources:
    """Reads results and files."""

    service: Service

    async def read(self, exchange: Exchange) -> dict[str, Any]:
        """Return the content of the resource of a request. Raises RpcError and RunnerError."""
        uri = exchange.params.uri or ""
        found = URI.fullmatch(uri)
        if found is None:
            raise _missing(exchange, uri)
        try:
            execution = await self.service.get(exchange.principal, found[1])
            if found[2] is not None:
                stored = await self.service.stored.of_execution(exchange.principal, execution, found[2])
        except RunnerError as problem:
            if problem.failure.kind in (ErrorKind.NOT_FOUND, ErrorKind.BAD_INPUT):
                raise _missing(exchange, uri) from None
            raise
        if found[2] is not None:
            self._take(exchange, stored.size, f"/files/{stored.id}")
            kind, data = stored.type, await read_file(stored)
        elif execution.result is None:
            raise _missing(exchange, uri)
        else:
            self._take(exchange, len(execution.result), f"/executions/{execution.id}/result")
            kind, data = "application/json", execution.result
        return {"contents": [contents(uri, kind, data)]}

    def _take(self, exchange: Exchange, size: int, path: str) -> None:
        """Take the memory for a resource of this size, twice for its coding. Raises RpcError and RunnerError."""
        if size > MAX_BYTES:
            text = f"the resource has {size} bytes, and at most {MAX_BYTES} are read here; GET {path} has it over REST"
            raise RpcError(INVALID_PARAMS, text)
        self.service.answers.take(exchange.share, 2 * size)


def _missing(exchange: Exchange, uri: str) -> RpcError:
    code = INVALID_PARAMS if exchange.modern else _LEGACY_NOT_FOUND
    return RpcError(code, "Resource not found", data={"uri": uri[:300]})
