"""Browser: a module is published with the editor, gets another version, and is rolled back."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.usefixtures("filled")


def test_a_version_is_published_and_rolled_back(page, server):
    page.goto("/ui/publish")
    page.get_by_label("Name", exact=True).fill("by-browser")
    page.get_by_role("button", name="Begin with these").click()
    code = page.get_by_label("handler.py")
    code.fill("def handler(input)\n    return 1\n")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("main")).to_contain_text("line 1")
    code.fill("def handler(input):\n    return 1\n")
    page.get_by_role("button", name="Publish").click()
    expect(page).to_have_url(re.compile("/ui/modules/by-browser"))
    assert server.execute("by-browser", None).json()["result"] == 1

    page.get_by_role("link", name="New version").click()
    page.get_by_label("handler.py").fill("def handler(input):\n    return 2\n")
    page.get_by_role("button", name="Publish").click()
    expect(page).to_have_url(re.compile("/ui/modules/by-browser"))
    assert server.execute("by-browser", None).json()["result"] == 2

    page.get_by_role("link", name="Versions").click()
    page.get_by_role("button", name="Compare").click()
    diff = page.locator(".diff").filter(has_text="return")
    expect(diff).to_contain_text("return 1")
    expect(diff).to_contain_text("return 2")
    page.get_by_role("button", name="Roll back to it").click()
    expect(page.locator("main")).to_contain_text("active")
    assert server.execute("by-browser", None).json()["result"] == 1


def test_a_traceback_leads_to_the_line_of_the_code(page, filled):
    page.goto(f"/ui/executions/{filled['failed']}")
    link = page.locator(".traceback a").first
    expect(link).to_be_visible()
    link.click()
    expect(page).to_have_url(re.compile("/ui/modules/broken/code"))
    expect(page.locator(":target")).to_be_visible()
