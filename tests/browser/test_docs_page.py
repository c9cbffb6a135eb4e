"""Browser: the page of the OpenAPI document."""

from __future__ import annotations

from tests.browser.chromium import violations


def test_the_operations_are_listed(page, axe):
    page.goto("/docs")
    page.get_by_text("/healthz").first.wait_for()

    assert violations(page) == []
