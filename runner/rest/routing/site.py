"""The ASGI application of all routes: everything that they share, before an endpoint is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from config.modules import PREFIX
from protocol.errors import PROBLEM, ErrorKind, Failure
from runner.http import WEBSOCKET, App, Message, Receive, Send, problem_body
from runner.rest.endpoint import SHARE, Answer, Endpoint, problem
from runner.rest.openapi import Operation
from runner.rest.routing.origins import Origins
from runner.rest.routing.paths import Match, Paths, choose, methods
from runner.rest.routing.proxies import Proxies
from runner.rest.routing.sending import transmit
from runner.rest.routing.serving import Endpoints

FOUND: Final = "operato.found"
"""The key in the scope of a request that is passed on: its own scope, and the names in its path."""
_HOOKS: Final = f"{PREFIX}/".encode()
_UI: Final = b"/ui"
_MCP: Final = b"/mcp"
_UPGRADE: Final = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))


@define(eq=False)
class Site:
    """Serves some endpoints itself, without the cost of a web framework, and passes requests for others to `behind`.

    For `behind` the path of a request is that of its operation, with names in braces; the scope has them as `FOUND`.
    """

    endpoints: Endpoints
    operations: tuple[Operation, ...]
    """The served ones."""
    proxies: Proxies
    origins: Origins
    behind: App
    ahead: Mapping[str, Endpoint]
    """Endpoints that are served here, by the name of their operation."""
    hooks: App
    """Serves the paths below `PREFIX`."""
    ui: App | None = None
    """Serves `/ui` and the paths below."""
    mcp: App | None = None
    """Serves `/mcp`."""
    _paths: Paths = field(init=False)

    @_paths.default
    def _tree(self) -> Paths:
        return Paths(self.operations)

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one scope. The handler of a request is cancelled when its client disconnects."""
        if scope["type"] == "lifespan":
            await self.behind(scope, receive, send)
            return
        self.proxies.apply(scope)
        if scope["type"] == "websocket":
            await self._open(self._paths.find(scope["raw_path"]), scope, receive, send)
            return
        if self.ui is not None and scope["raw_path"].startswith(_UI) and scope["raw_path"][3:4] in (b"", b"/"):
            await self.ui(scope, receive, send)
            return
        if self.origins.allowed:
            send = self.origins.wrap(_header(scope, b"origin"), send)
        try:
            if self.mcp is not None and scope["raw_path"] == _MCP:
                await self.mcp(scope, receive, send)
            elif scope["raw_path"].startswith(_HOOKS):
                await self.hooks(scope, receive, send)
            else:
                await self._serve(scope, receive, send)
        finally:
            if SHARE in scope:
                scope[SHARE].give()

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        found = self._paths.find(scope["raw_path"])
        chosen = choose(found, scope["method"])
        if chosen is None:
            await transmit(self._without(found, scope), scope, receive, send)
            return
        operation, names = chosen
        endpoint = self.ahead.get(operation.name)
        if endpoint is not None:
            await transmit(await self.endpoints.serve(endpoint, names, scope, receive), scope, receive, send)
        else:
            inner = {**scope, "path": operation.path, "raw_path": operation.path.encode(), FOUND: (scope, names)}
            await self.behind(inner, receive, send)

    async def _open(self, found: Sequence[Match], scope: Message, receive: Receive, send: Send) -> None:
        """Open a websocket, or refuse its handshake."""
        chosen = choose(found, WEBSOCKET)
        origin = _header(scope, b"origin")
        if chosen is None:
            sockets = " and ".join(each.path for each in self.operations if each.method == WEBSOCKET)
            text = f"there is no websocket at {scope['path']}; there are {sockets}"
            await transmit(problem(Failure(ErrorKind.NOT_FOUND, text)), scope, receive, send)
        elif origin is not None and self.origins.refuses_socket(origin, _header(scope, b"host") or b""):
            text = f"pages of {origin.decode('latin-1')!r:.200} may not open websockets here; add it to `cors_origins`"
            await transmit(problem(Failure(ErrorKind.FORBIDDEN, text, field="origin")), scope, receive, send)
        else:
            operation, names = chosen
            outcome = await self.endpoints.serve(self.ahead[operation.name], names, scope, receive)
            await transmit(outcome, scope, receive, send)

    def _without(self, found: Sequence[Match], scope: Message) -> Answer:
        """Return the answer to a request without an operation of its path and method."""
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" and path == "*":
            found = [(operation, {}) for operation in self.operations]
        if not found:
            return nothing_at(path)
        if method in ("GET", "HEAD") and choose(found, WEBSOCKET) is not None:
            return _problem(426, f"{path} is a websocket; open it with a websocket handshake", _UPGRADE)
        return other_method(scope, methods(found), self.origins)


def nothing_at(path: str) -> Answer:
    """Return the answer to a request of a path that does not exist."""
    return _problem(404, f"there is no {path}; /docs lists all paths")


def other_method(scope: Message, allowed: Sequence[str], origins: Origins) -> Answer:
    """Return the answer to OPTIONS, and to a method that a path does not have; `allowed` are those that it has."""
    allow = ((b"allow", ", ".join(allowed).encode()),)
    if scope["method"] == "OPTIONS":
        asked = _header(scope, b"access-control-request-method") is not None
        return Answer(status=204, headers=(*allow, *(origins.preflight(allowed) if asked else ())))
    text = f"{scope['method']} is not possible at {scope['path']}; allowed: {', '.join(allowed)}"
    return _problem(405, text, allow)


def _header(scope: Message, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _problem(status: int, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    """Return a problem that has a status of HTTP and no kind."""
    return Answer(problem_body(status, detail), status, PROBLEM, tuple(headers))
