"""`Pages`: the view of a request, its reader, the check of its form, and the answer to a failure."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import evolve, frozen
from werkzeug.datastructures import MultiDict

from config.paths import PathTree
from protocol.errors import ErrorKind, RunnerError, error
from runner.api import Service, failure_of
from runner.auth import foreign_name, require
from runner.http import App, Message, Receive, Send
from runner.ui.framework import SERVED, make_quart
from runner.ui.headers import SAFE, cookies, session_cookie, set_session
from runner.ui.looks import Assets, Templates
from runner.ui.posted import Posted
from runner.ui.refusals import FAILED, foreign_link, problem_page, sign_in_first
from runner.ui.sending import fields_of, packed, send_asset, transmit
from runner.ui.sessions import Access, forged
from runner.ui.views import VIEWS
from runner.ui.visit import PREFIX, Answer, Headers, Reply, View, Visit
from runner.ui.words import choose
from runner.wire import LARGE_BYTES

_MAX_QUERY: Final = 1000
ReadForm = Callable[[], Awaitable[Posted]]


@frozen(eq=False)
class Pages:
    """The ASGI application of all pages."""

    service: Service
    access: Access
    assets: Assets
    templates: Templates
    _tree: PathTree[View]
    _quart: App

    @classmethod
    def of(cls, service: Service, access: Access) -> Pages:
        """Return the application of all views. Blocks."""
        tree: PathTree[View] = PathTree()
        for each in VIEWS:
            tree.add(PREFIX + each.path, each)
        assets = Assets.load()
        absent = frozenset({"/keys", "/audit"}) if service.api_keys is None else frozenset()  # as under `dev`
        templates = Templates(assets, frozenset(each.path for each in VIEWS if each.method == "GET") - absent)
        quart = make_quart((each for each in VIEWS if not each.raw), service.settings.server.max_frame_bytes)
        return cls(service, access, assets, templates, tree, quart)

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one request."""
        path = scope["raw_path"].decode("latin-1")
        if path.startswith(f"{PREFIX}/static/"):
            await send_asset(self.assets, path, scope, send)
            return
        found = list(self._tree.find(f"{PREFIX}/" if path == PREFIX else path))
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        view, names = next((each for each in found if each[0].method == method), (None, {}))
        page = self._visit(scope, receive, names)
        try:
            if view is None:
                answer: Answer = await self._absent(page, [each.method for each, _ in found])
                await transmit(page, answer, _headers(page, answer), send)
            elif view.raw:
                answer = await self._serve(view, page, None)
                await transmit(page, answer, _headers(page, answer), send)
            else:
                await self._serve_by_quart(view, page, send)
        finally:
            page.left()

    async def _serve_by_quart(self, view: View, page: Visit, send: Send) -> None:
        async def serve(read: ReadForm) -> tuple[Reply, Headers]:
            answer = await self._serve(view, page, read)
            if not isinstance(answer, Reply):
                raise TypeError(f"only a raw view streams: {view.path}")
            return answer, _headers(page, answer)

        inner = {**page.scope, "path": view.path, "raw_path": view.path.encode(), SERVED: serve}
        await self._quart(inner, page.receive, send)

    def _visit(self, scope: Message, receive: Receive, names: Mapping[str, str]) -> Visit:
        """Return the visit of a request, whose reader is not known yet."""
        fields = fields_of(scope["headers"])
        language = next(iter(cookies(fields, "operato_language")), "")
        theme = next((each for each in cookies(fields, "operato_theme") if each in ("light", "dark")), "")
        try:
            text = scope["query_string"].decode("latin-1")
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_QUERY)
        except ValueError:
            pairs = []
        words = choose(language, fields.get(b"accept-language", b"").decode("latin-1"))
        return Visit(
            self.service, scope, receive, fields, names, MultiDict(pairs), words, theme, self.access, self.templates
        )

    async def _serve(self, view: View, page: Visit, read: ReadForm | None) -> Answer:
        """Return the answer of a view. Raises no Exception."""
        try:
            return await self._answer(view, page, read)
        except Exception as found:  # noqa: BLE001  (the error edge)
            failure = failure_of(found, FAILED, path=page.scope["path"])
            if failure.kind is ErrorKind.UNAUTHENTICATED and not view.open:
                return sign_in_first(view, page)
            return problem_page(page, failure)

    async def _answer(self, view: View, page: Visit, read: ReadForm | None) -> Answer:
        changes = view.method != "GET"
        if changes and not view.api and forged(page.fields, page.outside.base):
            text = "the form was sent by a page of another site; open the dashboard itself, and send it again"
            raise error(ErrorKind.FORBIDDEN, text, field="origin")
        await self._find_reader(page)
        if not view.open:
            if page.session is None and not view.raw and (again := foreign_link(page)) is not None:
                return again
            if page.caller is None:
                return sign_in_first(view, page)
            if view.scope is not None:
                require(page.principal, view.scope)
        if read is not None:
            page.posted = await read()
        if changes and not view.open:
            _check_token(view, page)
        answer = packed(page, await view(page))
        if isinstance(answer, Reply) and len(answer.body) > LARGE_BYTES:
            self.service.answers.take(page.share, len(answer.body))
        return answer

    async def _find_reader(self, page: Visit) -> None:
        """Set the session and the reader of a page. Raises RunnerError `unavailable`."""
        cookie = session_cookie(page.scope, page.fields)
        for name in cookies(page.fields, cookie):
            session = self.access.sessions.find(name)
            if session is not None:
                try:
                    page.caller = await self.access.owner(session.credential)
                except RunnerError as problem:
                    if problem.failure.kind is not ErrorKind.UNAUTHENTICATED:
                        raise
                    self.access.sessions.close(name)
                else:
                    page.session = session
                    return
            page.ended = True
        if page.ended:
            page.cookies.append(set_session(page.scope, cookie, ""))
        anonymous = self.access.verifier.anonymous
        if anonymous is not None and not foreign_name(page.header("host") or "", self.service.settings.server):
            page.caller = anonymous

    async def _absent(self, page: Visit, methods: Sequence[str]) -> Reply:
        """Return the answer to a request without a view of its path and method."""
        try:
            await self._find_reader(page)
        except RunnerError as problem:
            return problem_page(page, problem.failure)
        if not methods:
            return problem_page(page, error(ErrorKind.NOT_FOUND, f"there is no page {page.scope['path']}").failure)
        allowed = ", ".join(sorted({*methods, *({"HEAD"} if "GET" in methods else ())}))
        text = f"{page.scope['method']} is not possible here; allowed: {allowed}"
        reply = problem_page(page, error(ErrorKind.BAD_INPUT, text).failure)
        return evolve(reply, status=405, headers=(("allow", allowed),))


def _headers(page: Visit, answer: Answer) -> Headers:
    own = {name for name, _ in answer.headers}
    added = (*SAFE, ("cache-control", "no-store"), ("vary", "cookie, accept-language, accept-encoding"))
    return (
        *(each for each in added if each[0] not in own),
        *answer.headers,
        *(("set-cookie", each) for each in page.cookies),
    )


def _check_token(view: View, page: Visit) -> None:
    """Raise RunnerError `forbidden` for a form without the token of its session.

    Without a session there is nothing to forge: everybody may do the same.
    """
    if page.session is None:
        return
    sent = page.header("x-csrf-token") or (page.query.get("csrf") if view.raw else page.form.get("csrf"))
    if not hmac.compare_digest((sent or "").encode("utf-8", "replace"), page.session.csrf.encode()):
        raise error(ErrorKind.FORBIDDEN, "the form is of another session; open its page again", field="csrf")
