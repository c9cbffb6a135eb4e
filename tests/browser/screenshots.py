"""Browser: pictures of all views, in both themes and languages, and at the width of a phone.

`make screenshots` writes them to build/screenshots/. Each file is named after its view and its look. The server
is a new one each time.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import attrs

from tests.browser.chromium import ROOT, WAIT_MS, Chromium, missing, running_chromium
from tests.browser.showcase import MODULES, fill, sign_in, views
from tests.server_process import running, url_of

FOLDER = ROOT / "build" / "screenshots"
WIDE = {"width": 1280, "height": 800}
PICTURES = ("overview", "execution", "module")
"""Views of which the documentation has pictures: `NAME-docs.png`, reduced to 64 colours, is docs/pictures/NAME.png."""
SMALL = {"width": 1120, "height": 700}
PHONE = {"width": 390, "height": 844}


@attrs.frozen
class Look:
    """How pages are looked at."""

    name: str
    theme: str = "light"
    language: str = "en"
    size: dict[str, int] = attrs.field(factory=lambda: WIDE)
    views: tuple[str, ...] = ()
    """Empty for all, as whole pages."""


LOOKS = (
    *(Look(f"{theme}-{language}", theme, language) for theme, language in product(("light", "dark"), ("en", "ko"))),
    Look("phone", size=PHONE),
    Look("docs", size=SMALL, views=PICTURES),
)


def draw(chromium: Chromium, url: str, token: str, found: dict[str, Any], wanted: list[str]) -> None:
    """Write the pictures of all views, or of those that are wanted."""
    for look in LOOKS:
        context = chromium.browser.new_context(
            base_url=url, locale=look.language, color_scheme=look.theme, viewport=look.size, device_scale_factor=1
        )
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        if not look.views and (not wanted or "sign-in" in wanted):
            page.goto("/ui/sign-in")
            page.screenshot(path=FOLDER / f"sign-in-{look.name}.png", full_page=True)
        sign_in(page, token)
        for name, path in views(found):
            if (not wanted or name in wanted) and (not look.views or name in look.views):
                page.goto(f"/ui{path}")
                page.screenshot(path=FOLDER / f"{name}-{look.name}.png", full_page=not look.views)
        context.close()


def main() -> None:
    """Draw all views, or those named by arguments."""
    if reason := missing():
        raise SystemExit(reason)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as home, running(Path(home), MODULES) as server, running_chromium() as chromium:
        found = fill(server)
        chromium.run(draw, chromium, url_of(server), server.token, found, sys.argv[1:])
    print(f"{len(list(FOLDER.glob('*.png')))} pictures in {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
