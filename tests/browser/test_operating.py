"""Browser: schedules, keys, changes and environments; filters stay in the URL."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.usefixtures("filled")


def test_a_schedule_is_made_paused_and_deleted(page):
    page.goto("/ui/schedules")
    page.get_by_role("link", name="New schedule").click()
    page.get_by_label("Module", exact=True).fill("hello")
    page.get_by_label("Name", exact=True).fill("by-browser")
    page.get_by_label("At intervals").check()
    page.get_by_label("Interval", exact=True).fill("soon")
    page.get_by_label("Input", exact=True).fill('{"name": "you"}')
    page.get_by_role("button", name="Make schedule").click()
    expect(page.locator("#every-problem")).to_contain_text("soon")
    page.get_by_label("Interval", exact=True).fill("1d")
    page.get_by_role("button", name="Make schedule").click()
    expect(page.get_by_role("heading", name="by-browser")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused by test")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("by-browser")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).not_to_be_visible()
    page.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(page).to_have_url(re.compile("/ui/schedules$"))
    assert page.get_by_role("link", name="by-browser").count() == 0


def test_a_schedule_is_paused_and_resumed_in_the_list_and_run_now(page):
    page.goto("/ui/schedules?module=report")
    page.get_by_role("button", name="Pause report:nightly").click()
    page.get_by_role("button", name="Resume report:nightly").click()
    expect(page.get_by_role("button", name="Pause report:nightly")).to_be_visible()
    page.get_by_role("link", name="report:nightly").click()
    page.get_by_role("button", name="Run now").click()
    expect(page).to_have_url(re.compile("/ui/executions/"))


def test_a_key_is_made_used_and_revoked(page, server):
    page.goto("/ui/keys")
    page.get_by_label("Name", exact=True).fill("by-browser")
    page.get_by_label("run modules").check()
    page.get_by_role("button", name="Make key").click()
    secret = page.locator("#secret").inner_text()
    bearer = {"authorization": f"Bearer {secret}"}
    assert server.client.post("/modules/execute/hello", json={"name": "x"}, headers=bearer).status_code == 200
    page.goto("/ui/keys")
    assert secret not in page.content()
    page.get_by_role("button", name="Revoke by-browser").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row", name="by-browser")).to_contain_text("revoked")
    assert server.client.post("/modules/execute/hello", json={"name": "x"}, headers=bearer).status_code == 401


def test_filters_survive_reload_and_back(page):
    page.goto("/ui/audit")
    page.get_by_label("Change").select_option("key_create")
    page.get_by_label("Who").fill("test")
    page.get_by_role("button", name="Filter").click()
    filtered = page.url
    assert "action=key_create" in filtered
    assert "subject=test" in filtered
    for step in (page.reload, lambda: (page.goto("/ui/schedules"), page.go_back())):
        step()
        assert page.url == filtered
        assert page.get_by_label("Change").input_value() == "key_create"
        assert page.get_by_label("Who").input_value() == "test"
        assert {*page.locator("tbody tr td:nth-child(3)").all_inner_texts()} == {"Key made"}


def test_filters_of_executions_survive_reload_and_back(page):
    page.goto("/ui/executions?status=failed&module=broken")
    filtered = page.url
    for step in (page.reload, lambda: (page.locator("tbody a").first.click(), page.go_back())):
        step()
        assert page.url == filtered
        expect(page.locator("tbody tr").first).to_contain_text("broken")


def test_an_environment_is_built_again(page, filled):
    page.goto(f"/ui/environments/{filled['environment']}")
    before = page.locator("dt:has-text('Built') + dd time").get_attribute("datetime")
    page.get_by_role("button", name="Build again").click()
    page.get_by_role("dialog").get_by_role("button", name="Build again").click()
    expect(page.locator("dt:has-text('Built') + dd time")).not_to_have_attribute("datetime", before)
    expect(page.get_by_text("It is being built again")).to_be_hidden()
