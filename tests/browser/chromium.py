"""Browser: Chromium under Playwright, in a thread of its own, and everything a page does that it should not.

Playwright's synchronous interface runs an asyncio loop in the thread that uses it, and no Trio could run there any
more. So the browser has a thread, in which the tests of this folder run as a whole.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 20_000
"""Every wait of a page ends after this time, also on a busy machine."""
REFUSED = "Failed to load resource"
"""Chromium complains so about each status above 399, also of a page that is meant to have it."""
WATCHER = """
document.addEventListener("securitypolicyviolation", event =>
  console.error(`the policy refused ${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""
Found = TypeVar("Found")


def missing() -> str | None:
    """Return why there is no browser on this machine."""
    return None if PROGRAM else "Chromium is not installed (Debian: apt-get install chromium)"


@attrs.define
class Complaints:
    """What the pages of a context did that they should not; a test looks at it, or its end does."""

    origin: str
    found: list[str] = attrs.field(factory=list)

    def watch(self, context: BrowserContext) -> None:
        context.add_init_script(WATCHER)
        context.on("console", lambda message: self._said(message.type, message.text))
        context.on("weberror", lambda error: self.found.append(f"script: {error.error}"))
        context.on("dialog", lambda dialog: (self.found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        context.on("request", lambda request: self._asked(request.url))

    def _said(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and not text.startswith(REFUSED):
            self.found.append(f"console: {text}")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.origin, "data:", "blob:")):
            self.found.append(f"request to elsewhere: {url}")


class Chromium:
    """A running browser; everything of Playwright is used in its thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "chromium")
        self._playwright, self.browser = self.run(_launch)

    def run(self, function: Callable[..., Found], *args: Any, **named: Any) -> Found:
        """Call a function in the browser's thread, and wait for it."""
        if threading.current_thread().name.startswith("chromium"):
            return function(*args, **named)
        return self._thread.submit(function, *args, **named).result()

    def close(self) -> None:
        self.run(self.browser.close)
        self.run(self._playwright.stop)
        self._thread.shutdown()


def _launch() -> tuple[Playwright, Browser]:
    playwright = sync_playwright().start()
    expect.set_options(timeout=WAIT_MS)
    environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return playwright, playwright.chromium.launch(executable_path=PROGRAM, args=OPTIONS, env=environ)


@contextmanager
def running_chromium() -> Iterator[Chromium]:
    """Run a browser."""
    chromium = Chromium()
    try:
        yield chromium
    finally:
        chromium.close()


@contextmanager
def opened(chromium: Chromium, complaints: Complaints, **how: Any) -> Iterator[Any]:
    """Open a page in a context of its own, and watch it."""
    look = {"locale": "en-GB", "reduced_motion": "reduce"}  # colours that fade are measured half-way
    context = chromium.run(chromium.browser.new_context, base_url=complaints.origin, **look, **how)
    try:
        chromium.run(complaints.watch, context)
        context.set_default_timeout(WAIT_MS)
        yield chromium.run(context.new_page)
    finally:
        chromium.run(context.close)


def violations(page: Page, *rules: str) -> list[str]:
    """Return what the accessibility checker finds in a page, by these rules or all: the rule, and what breaks it."""
    if not page.evaluate("typeof axe == 'object'"):
        page.evaluate(AXE.read_text())  # the page's policy binds its own scripts only
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{rule['id']}: {rule['help']}: {node['html'][:200]} ({node['failureSummary']})"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
