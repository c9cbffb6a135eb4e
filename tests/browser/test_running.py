"""Browser: modules that run: a form with a file, live output, cancelling, running again, a runner that is restarted."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import WAIT_MS
from tests.browser.showcase import MODULES, sign_in
from tests.server_process import running, url_of

pytestmark = pytest.mark.usefixtures("filled")


def status_of(page):
    return page.locator("#summary .status").first


def start(server, **fields):
    return server.client.post("/executions", json=fields).raise_for_status().json()["id"]


def test_a_module_runs_by_its_form_with_a_file(page):
    page.goto("/ui/modules/upper")
    page.locator("input[type=file]").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello "})
    page.get_by_label("copies").fill("2")
    page.get_by_role("button", name="Run", exact=True).click()
    result = page.locator("[data-result]")
    expect(result).to_contain_text("succeeded")
    expect(result).to_contain_text("HELLO HELLO")
    result.get_by_role("link", name="Open the execution").click()
    expect(page).to_have_url(re.compile("/ui/executions/"))
    expect(page.locator("main")).to_contain_text("a.txt")


def test_output_is_followed_and_the_execution_is_cancelled(page, server):
    go = start(server, module="count", input={"to": 100_000, "pause": 0.05})
    page.goto(f"/ui/executions/{go}")
    expect(page.locator("[data-body] .l", has_text=re.compile("line 20$"))).to_be_visible()
    lines = page.locator("[data-body] .l").all_inner_texts()
    assert lines == [f"line {number}" for number in range(len(lines))], "each line is there once"
    page.get_by_role("button", name="Cancel").click()
    expect(status_of(page)).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Run again").first).to_be_visible()


def test_a_failed_execution_runs_again_with_another_input(page, filled):
    page.goto(f"/ui/executions/{filled['failed']}")
    expect(page.locator("pre.traceback").first).to_contain_text("KeyError")
    page.get_by_label("Input (JSON)").fill(json.dumps({"rows": [{"price": 41}, {"price": 1}]}))
    page.locator("#again").get_by_role("button", name="Run again").click()
    expect(status_of(page)).to_have_text("succeeded")
    expect(page.locator("#outcome")).to_contain_text("42")
    assert filled["failed"] not in page.url


def test_a_long_output_is_searched_as_a_whole(page, server):
    found = server.execute("count", {"to": 100_000}).json()["id"]
    page.goto(f"/ui/executions/{found}")
    assert page.locator("[data-body] .l").count() <= 3000
    page.get_by_label("Search in the whole output").fill("line 4711")
    page.get_by_label("Search in the whole output").press("Enter")
    expect(page.locator("[data-body] .l", has_text=re.compile("line 4711$"))).to_be_visible()
    expect(page.locator("[data-found]")).to_contain_text("11")  # itself, and 47110 to 47119


@pytest.mark.timeout(180)
def test_a_page_follows_over_a_restart_of_the_runner(chromium, tmp_path):
    options = ["--host", "127.0.0.1"]
    with running(tmp_path, MODULES, *options) as server:

        def follow():
            context = chromium.browser.new_context(base_url=url_of(server), locale="en-GB")
            context.set_default_timeout(WAIT_MS)
            page = context.new_page()
            key = server.client.post("/keys", json={"name": "k", "scopes": ["admin"]}).json()["key"]
            sign_in(page, key)
            waiting = start(server, module="count", input={"to": 30}, delay=None)
            page.goto(f"/ui/executions/{waiting}")
            return context, page, waiting

        del follow
