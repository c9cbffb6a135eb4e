"""What views are written against: one visit of a page, and the answers to it.

    @view("GET", "/modules/{name}", scope=Scope.MODULES_READ)
    async def show(page: Visit) -> Reply:
        module = page.service.module(page.principal, Scope.MODULES_READ, page.path["name"])
        return page.render("module.html", module=module)

The list `VIEWS` of each file of views names its views. A view checks no session, no token of a form and no failure:
`runner.ui.serving` does. What it shows comes from a verb of `page.service`, which checks the caller again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlencode

from attrs import define, field, frozen
from werkzeug.datastructures import MultiDict

from protocol.errors import Failure
from runner.api import Service, while_valid
from runner.auth import Principal, Scope
from runner.http import OUTSIDE, Message, Outside, Receive
from runner.ui.looks import Templates
from runner.ui.posted import NOTHING, Posted, read_posted
from runner.ui.sessions import Access, Session
from runner.ui.words import Words
from runner.wire import Share

HTML: Final = "text/html; charset=utf-8"
EVENTS: Final = "text/event-stream; charset=utf-8"
PREFIX: Final = "/ui"
_SCHEDULES: Final = frozenset({Scope.SCHEDULES_READ, Scope.SCHEDULES_WRITE})

Headers = tuple[tuple[str, str], ...]
Write = Callable[[bytes], Awaitable[None]]
"""Sends bytes of a stream; the first call sends the head too. Waits while the client does not read."""


@frozen
class Reply:
    """A whole answer."""

    body: bytes = b""
    status: int = 200
    content_type: str = HTML
    headers: Headers = ()


@frozen
class Stream:
    """An answer that is sent piece by piece, by a `raw` view only. It ends with the session of its reader.

    A failure before the first `Write` is a usual answer. After it, `failed` makes the last piece; without it, the
    connection closes, so that the client sees that bytes are missing.
    """

    run: Callable[[Write], Awaitable[None]]
    content_type: str = EVENTS
    headers: Headers = ()
    size: int | None = None
    """The number of bytes, if it is known."""
    failed: Callable[[Failure], bytes] | None = None


Answer = Reply | Stream


@define(eq=False)
class Visit:
    """One request of a page."""

    service: Service
    scope: Message
    receive: Receive
    fields: Mapping[bytes, bytes]
    """The headers by name in lower case; repeated ones are joined by commas."""
    path: Mapping[str, str]
    """The names in the path, decoded."""
    query: MultiDict[str, str]
    words: Words
    theme: str
    """`light`, `dark`, or "" as the browser prefers."""
    access: Access
    templates: Templates
    caller: Principal | None = None
    """None on pages that need no reader."""
    session: Session | None = None
    """None for a reader without one: `anonymous`."""
    ended: bool = False
    """Whether the session of the reader has ended just now."""
    posted: Posted = NOTHING
    cookies: list[str] = field(factory=list)
    """Values of `Set-Cookie` that the answer gets."""
    _share: Share | None = None

    @property
    def principal(self) -> Principal:
        """The reader."""
        assert self.caller is not None  # noqa: S101  (views without a reader are `open`)
        return self.caller

    @property
    def form(self) -> MultiDict[str, str]:
        """The fields of a form; its token was checked."""
        return self.posted.form

    @property
    def csrf(self) -> str:
        """The token that forms of this reader send as `csrf`, scripts as `X-CSRF-Token`."""
        return "" if self.session is None else self.session.csrf

    @property
    def share(self) -> Share:
        """The memory that a large answer takes until it has left."""
        if self._share is None:
            self._share = self.service.answers.share()
        return self._share

    def left(self) -> None:
        """Give back the memory of the answer."""
        if self._share is not None:
            self._share.give()

    @property
    def outside(self) -> Outside:
        """The address of the server for this reader."""
        found: Outside = self.scope.get(OUTSIDE, Outside())
        return found

    @property
    def here(self) -> str:
        """The path of this page with its query, without the prefix of a proxy: for `next` and for links back."""
        query = self.scope["query_string"].decode("latin-1")
        path: str = self.scope["raw_path"].decode("latin-1")
        return path + (f"?{query}" if query else "")

    @property
    def section(self) -> str:
        """The first word of the path, which is the entry of the menu that this page belongs to."""
        path: str = self.scope["raw_path"].decode("latin-1")
        first = path.removeprefix(PREFIX).strip("/").partition("/")[0]
        return "/modules" if first == "publish" else f"/{first}"

    @property
    def wanted(self) -> str:
        """The path of this page below the dashboard, for `next`; of the page of a form, the overview."""
        return self.here.removeprefix(PREFIX) if self.scope["method"] in ("GET", "HEAD") else "/"

    @property
    def base(self) -> str:
        """The address of REST for this reader, without a slash at its end."""
        host = self.header("host") or "localhost"
        return self.outside.base or f"{self.scope['scheme']}://{host}"

    @property
    def clustered(self) -> bool:
        """Whether this runner is one of a cluster."""
        return self.service.runs.owners.cluster() is not None

    def may(self, scope: str, module: str | None = None) -> bool:
        """Whether the reader has a scope, and may use a module: views show nothing else.

        A runner without schedules, as `dev`, grants none of their scopes.
        """
        caller = self.caller
        if self.service.starts is None and scope in _SCHEDULES:
            return False
        return caller is not None and caller.allows(scope) and (module is None or caller.may_use(module))

    def header(self, name: str) -> str | None:
        """Return the value of a header by its name in lower case."""
        found = self.fields.get(name.encode())
        return None if found is None else found.decode("latin-1")

    def url(self, path: str = "/", **query: object) -> str:
        """Return the address of a page of the dashboard (`/modules`); values None and "" are left out of the query."""
        pairs = [(name, value) for name, value in query.items() if value is not None and value != ""]
        return self.outside.prefix + PREFIX + path + (f"?{urlencode(pairs, doseq=True)}" if pairs else "")

    def render(self, template: str, /, status: int = 200, **values: Any) -> Reply:
        """Return a page. Templates know `page`, `t`, `url`, `static` besides the values."""
        text = self.templates.render(template, {"page": self, "t": self.words, "url": self.url, **values})
        return Reply(text.encode("utf-8", "replace"), status)

    def redirect(self, path: str, **query: object) -> Reply:
        """Return the answer that leads to another page of the dashboard, by GET."""
        return Reply(b"", 303, headers=(("location", self.url(path, **query)),))

    async def read_posted(self, limit: int) -> None:
        """Read the form of a `raw` view that needs none of its pieces. Raises RunnerError."""
        self.posted = await read_posted(self.scope, self.receive, limit)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Wait inside this block while the session, and its token or key, are valid.

        At the end of the token raises RunnerError `unauthenticated`; at the end of the session the block is left.
        """
        with while_valid(self.principal):
            if self.session is None:
                yield
            else:
                with self.session.lasting():
                    yield


Handler = Callable[[Visit], Awaitable[Answer]]


@frozen
class View:
    """One page, or one form that is posted."""

    method: str
    path: str
    """Below `PREFIX`, with names in braces."""
    handler: Handler
    scope: Scope | None = None
    """What the reader must have. A page without it is absent from menus."""
    open: bool = False
    """Whether it needs no reader."""
    raw: bool = False
    """Served ahead of quart: may return a `Stream`, and reads its body itself (`page.receive`). Where it is posted, its
    token is in the header `X-CSRF-Token` or in the query as `csrf`.
    """
    api: bool = False
    """Called by programs, with a token in the headers: no browser can be made to send that."""

    def __call__(self, page: Visit) -> Awaitable[Answer]:
        """Serve a visit."""
        return self.handler(page)


def view(
    method: str,
    path: str,
    *,
    scope: Scope | None = None,
    open: bool = False,  # noqa: A002
    raw: bool = False,
    api: bool = False,
) -> Callable[[Handler], View]:
    """Return the decorator that makes a function a view."""
    return lambda handler: View(method, path, handler, scope, open, raw, api)
