"""The dashboard for tests: a real server, and a browser without scripts: cookies, links, forms."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from attrs import define, field

from config.settings import AuthSettings
from runner.api import Service
from runner.auth import Verifier, anonymous_caller
from runner.auth.tokens import sign
from runner.rest import make_app
from runner.ui import Ui, make_ui
from tests.http_support import serving
from tests.support import open_service

SECRET = "s" * 48


def token(*scopes: str, subject: str = "ada", seconds: float = 3600, modules: Sequence[str] = ()) -> str:
    """Return a token with these scopes, `admin` without any."""
    return sign(SECRET, subject=subject, scopes=scopes or ("admin",), expires_seconds=seconds, modules=modules)


@define(eq=False)
class Browser:
    """A browser without scripts: it keeps cookies, names its own site, and follows no redirect by itself."""

    http: httpx.AsyncClient
    csrf: str = ""
    """The token of the last page."""

    @property
    def cookie(self) -> str:
        """The value of the cookie of the session, "" without one."""
        return next((each.value or "" for each in self.http.cookies.jar if "operato_session" in each.name), "")

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """Open a page of the dashboard."""
        return self._read(await self.http.get(f"/ui{path}", headers=_named(headers)))

    async def post(self, path: str, fields: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        """Send a form of the last page."""
        given = {"csrf": self.csrf, **(fields or {})}
        return self._read(await self.http.post(f"/ui{path}", data=given, headers=_named(headers)))

    async def sign_in(self, credential: str) -> httpx.Response:
        """Sign in by the form, and return the overview."""
        done = await self.post("/sign-in", {"token": credential})
        assert done.status_code == 303, done.text
        return await self.get("/")

    def _read(self, answer: httpx.Response) -> httpx.Response:
        found = re.search(r'data-csrf="([^"]*)"', answer.text)
        self.csrf = found[1] if found is not None else self.csrf
        return answer


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@define(eq=False)
class UiSite:
    """A running server with a dashboard."""

    service: Service
    verifier: Verifier
    ui: Ui
    address: str
    _opened: list[httpx.AsyncClient] = field(factory=list)

    def browser(self, **headers: str) -> Browser:
        """Return a browser of its own."""
        common = {"accept": "text/html", "sec-fetch-site": "same-origin", **_named(headers)}
        client = httpx.AsyncClient(base_url=self.address, headers=common, trust_env=False, timeout=20)
        self._opened.append(client)
        return Browser(client)

    async def close(self) -> None:
        """Close all browsers."""
        for each in self._opened:
            await each.aclose()


@asynccontextmanager
async def open_ui(
    path: Any, modules: Sequence[Any] = (), *, anonymous: Sequence[str] = (), clock: Any = None, **settings: Any
) -> AsyncIterator[UiSite]:
    """Serve REST and the dashboard on a free port; `clock` is the time of day of tokens."""
    async with open_service(path, modules, **settings) as service:
        verifier = Verifier(AuthSettings(), secret=SECRET, **({} if clock is None else {"clock": clock}))
        verifier.api_keys, verifier.anonymous = service.api_keys, anonymous_caller(anonymous)
        ui = make_ui(service, verifier)
        assert ui is not None
        async with serving(make_app(service, verifier, ui)) as server:
            site = UiSite(service, verifier, ui, f"http://127.0.0.1:{server.port}")
            try:
                yield site
            finally:
                await site.close()
