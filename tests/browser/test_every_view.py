"""Browser: every view: no violation of accessibility in either theme, a keyboard is enough, and pages are light."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import violations
from tests.browser.showcase import views

MOST_BYTES = 60_000
"""Of a page with its style sheet and scripts, as sent."""
NAMES = [name for name, _ in views(dict.fromkeys(("ended", "failed", "running", "environment"), ""))]
KEYS = {"o": "/ui/", "e": "/ui/executions", "m": "/ui/modules", "s": "/ui/schedules", "n": "/ui/environments"}


@pytest.mark.parametrize("name", NAMES)
def test_a_view_is_accessible_and_light(page, filled, axe, name):
    path = dict(views(filled))[name]
    sizes = []
    page.on("requestfinished", lambda request: sizes.append(sum(request.sizes()[part] for part in PARTS)))
    page.goto(f"/ui{path}")
    expect(page.locator("h1")).to_have_count(1)

    found = violations(page)
    page.emulate_media(color_scheme="dark")
    found += violations(page, "color-contrast")
    page.set_viewport_size({"width": 390, "height": 844})
    found += violations(page)
    assert not found, "\n".join(found)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"it is {wide} pixels wider than a phone"
    assert sum(sizes) < MOST_BYTES


PARTS = ("responseBodySize", "responseHeadersSize")


def test_signing_in_is_accessible(visitor, axe):
    visitor.goto("/ui/sign-in")
    assert violations(visitor) == []
    visitor.emulate_media(color_scheme="dark")
    assert violations(visitor) == []


def test_a_keyboard_is_enough(page, filled):
    """Skip link, keys of the menu, help, search; and a form is filled in and sent without a mouse."""
    page.goto("/ui/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    for key, path in KEYS.items():
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(f"**{path}")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()

    page.goto("/ui/schedules")
    page.keyboard.press("/")
    page.keyboard.type("report")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/schedules?module=report")
    reach(page, "Pause report:nightly")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Resume report:nightly")).to_be_visible()
    reach(page, "Resume report:nightly")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause report:nightly")).to_be_visible()


def reach(page, name):
    """Press Tab until the control of this name has the focus."""
    control = page.get_by_role("button", name=name)
    for _ in range(60):
        page.keyboard.press("Tab")
        if control.evaluate("node => node === document.activeElement"):
            ring = control.evaluate("node => getComputedStyle(node).outlineStyle")
            assert ring != "none", "the focus is not visible"
            return
    raise AssertionError(f"no Tab reaches {name!r}")
