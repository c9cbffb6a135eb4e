"""Helpers for the tests of the dashboard without a browser: a signed-in client of its pages."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from html import unescape
from typing import Any
from urllib.parse import urlencode

import attrs

from config.modules.spec import ModuleSpec
from config.settings import AuthSettings
from runner.api import Service
from runner.auth.tokens import Verifier, sign
from runner.rest.app import make_app
from runner.ui import make_ui
from tests.contract.test_streams import SECRET, Site
from tests.http_support import serving
from tests.support import open_service


@attrs.frozen
class Page:
    """An answer of the dashboard."""

    status: int
    headers: dict[bytes, bytes]
    html: str

    @property
    def to(self) -> str:
        """The path that a redirect leads to, without the prefix of the dashboard."""
        return self.headers[b"location"].decode().removeprefix("/ui")

    @property
    def text(self) -> str:
        """What a reader sees in the main part: words with single spaces."""
        main = self.html.partition("<main")[2].partition("</main>")[0].partition(">")[2]
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", main)).split())


@attrs.define(eq=False)
class Reader:
    """A reader with a session."""

    site: Site
    cookie: str = ""
    csrf: str = ""

    @property
    def service(self) -> Service:
        return self.site.service

    async def sign_in(self, *scopes: str, modules: Iterable[str] = (), token: str | None = None) -> Reader:
        """Begin a session with a token of these scopes, `admin` without any."""
        given = token or sign(
            SECRET, subject="kim", scopes=[*(scopes or ("admin",))], expires_seconds=3600, modules=[*modules]
        )
        answer = await self._ask("POST", "/sign-in", urlencode({"token": given}).encode())
        assert answer.status == 303, answer.text
        self.cookie = answer.headers[b"set-cookie"].decode().partition(";")[0]
        self.csrf = re.search(r'data-csrf="([^"]*)"', (await self.get("/")).html)[1]
        return self

    async def get(self, path: str, **headers: str) -> Page:
        return await self._ask("GET", path, None, **headers)

    async def post(self, path: str, fields: Any = (), **headers: str) -> Page:
        """Send a form; `fields` is a mapping, or pairs where a name comes several times."""
        pairs = [*(fields.items() if isinstance(fields, dict) else fields), ("csrf", self.csrf)]
        return await self._ask("POST", path, urlencode(pairs).encode(), **headers)

    async def _ask(self, method: str, path: str, body: bytes | None, **headers: str) -> Page:
        given = {"Accept": "text/html", "Authorization": "", "Cookie": self.cookie, "Origin": "http://x", **headers}
        if body is not None:
            given["Content_Type"] = "application/x-www-form-urlencoded"
        data = body or b""
        client = await self.site.server.connect()
        async with client.stream:
            await client.send(self.site.head(method, f"/ui{path}", length=len(data), **given) + data)
            first, *lines = (await client.until(b"\r\n\r\n")).split(b"\r\n")
            answered = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
            size = int(answered.get(b"content-length", 0))
            while len(client.buffer) < size:
                await client.more()
            body = client.buffer[:size]
            if answered.get(b"content-encoding") == b"gzip":
                body = gzip.decompress(body)
            return Page(int(first.split()[1]), answered, body.decode())


@asynccontextmanager
async def open_dashboard(path: Any, modules: Iterable[ModuleSpec] = (), **settings: Any) -> AsyncIterator[Reader]:
    """Serve REST and the dashboard; yield an admin."""
    token = sign(SECRET, subject="kim", scopes=["admin"], expires_seconds=3600)
    async with open_service(path, modules, **settings) as service:
        verifier = Verifier(AuthSettings(), secret=SECRET)
        verifier.api_keys = service.api_keys
        async with serving(make_app(service, verifier, make_ui(service, verifier))) as server:
            yield await Reader(Site(service, server, token)).sign_in()
