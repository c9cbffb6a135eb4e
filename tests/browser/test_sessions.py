"""Browser: signing in and out, and the end of a session in the middle of a visit."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.showcase import sign_in


def test_a_token_signs_in_and_the_session_ends_by_a_button(visitor, server):
    visitor.goto("/ui/schedules?module=report")
    expect(visitor).to_have_url(re.compile("/ui/sign-in"))
    visitor.get_by_label("Token or API key").fill("wrong")
    visitor.get_by_role("button", name="Sign in").click()
    expect(visitor.get_by_role("alert")).to_be_visible()
    visitor.get_by_label("Token or API key").fill(server.token)
    visitor.get_by_role("button", name="Sign in").click()

    expect(visitor).to_have_url(re.compile(r"/ui/schedules\?module=report$"))
    assert [cookie["httpOnly"] for cookie in visitor.context.cookies()] == [True]
    assert visitor.evaluate("document.cookie") == ""
    visitor.get_by_role("button", name="Sign out").click()
    expect(visitor).to_have_url(re.compile("/ui/sign-in"))
    visitor.go_back()
    visitor.reload()
    expect(visitor).to_have_url(re.compile("/ui/sign-in"))


@pytest.mark.usefixtures("filled")
def test_a_reader_sees_only_what_it_may(visitor, server):
    order = {"name": "reader", "scopes": ["schedules:read"], "modules": ["report"]}
    key = server.client.post("/keys", json=order).json()["key"]
    sign_in(visitor, key)
    menu = visitor.get_by_role("navigation", name="Main menu").get_by_role("link")
    assert menu.all_inner_texts() == ["Overview", "Schedules"]
    visitor.goto("/ui/schedules/report:nightly")
    assert visitor.locator("main form").count() == 0
    assert visitor.goto("/ui/keys").status == 403


def test_a_session_that_ends_in_the_middle_leads_back_to_the_page(visitor, server):
    made = server.client.post("/keys", json={"name": "short", "scopes": ["admin"]}).json()
    sign_in(visitor, made["key"])
    visitor.goto("/ui/schedules/new?module=report")
    server.client.delete(f"/keys/{made['id']}").raise_for_status()
    visitor.get_by_role("link", name="Schedules").first.click()

    expect(visitor).to_have_url(re.compile("/ui/sign-in"))
    expect(visitor.get_by_text("Your session has ended")).to_be_visible()
    visitor.get_by_label("Token or API key").fill(server.token)
    visitor.get_by_role("button", name="Sign in").click()
    expect(visitor).to_have_url(re.compile("/ui/schedules$"))


def test_the_language_and_the_colours_are_chosen(page):
    page.goto("/ui/audit")
    page.get_by_role("button", name="한국어").click()
    expect(page.get_by_role("heading", name="감사 로그")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "ko"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("[data-theme-switch]").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
