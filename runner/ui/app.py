"""The application in front of the dashboard, which imports its pages at the first request."""

from __future__ import annotations

from typing import Any, Final

import trio
from attrs import define, field

from runner.api import Service
from runner.auth import Verifier
from runner.http import App
from runner.ui.sessions import Access

PREFIX: Final = "/ui"


@define(eq=False)
class Ui:
    """The ASGI application of all paths below `PREFIX`."""

    service: Service
    access: Access
    _pages: App | None = None
    _lock: trio.Lock = field(factory=trio.Lock, init=False)

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one request. Its view is cancelled when the client disconnects."""
        pages = self._pages or await self._import()
        await pages(scope, receive, send)

    def link(self, credential: str, subject: str) -> str:
        """Return a path that signs in once, within a minute, with this token or API key."""
        return f"{PREFIX}/sign-in?code={self.access.links.make(credential, subject)}"

    async def _import(self) -> App:
        """Import the pages in a thread, so that other requests are served meanwhile."""
        async with self._lock:
            if self._pages is None:
                self._pages = await trio.to_thread.run_sync(self.make)
            return self._pages

    def make(self) -> App:
        """Return the application of the pages. Takes some tenths of a second."""
        from runner.ui.serving import Pages  # noqa: PLC0415  (web framework and templates: 0.2 s and 12 MB)

        return Pages.of(self.service, self.access)


def make_ui(service: Service, verifier: Verifier) -> Ui | None:
    """Return the dashboard, None where the settings turn it off."""
    return Ui(service, Access(verifier)) if service.settings.server.ui else None
