"""Browser: modules that run: a form with a file, live output, cancelling, running again, a runner that is restarted."""

from __future__ import annotations

import json
import re
import signal

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import Complaints, opened
from tests.browser.relay import Relay
from tests.server_process import Server, running

pytestmark = pytest.mark.usefixtures("filled")


def status_of(page):
    return page.locator("#summary .status").first


def start(server, **fields):
    return server.client.post("/executions", json=fields).raise_for_status().json()["id"]


def test_a_module_runs_by_its_form_with_a_file(page):
    page.goto("/ui/modules/upper")
    page.locator("input[type=file]").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello "})
    page.get_by_label("copies").fill("2")
    page.get_by_role("button", name="Run it").click()
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


def test_a_run_below_its_form_is_timed_and_cancelled(page):
    page.goto("/ui/modules/count")
    page.get_by_label("The input as JSON").fill('{"to": 100000, "pause": 0.05}')
    page.get_by_role("button", name="Run it").press("Enter")
    result = page.locator("[data-result]")
    expect(result).to_contain_text("line 20")
    expect(page.get_by_role("button", name="Run it")).to_be_focused()
    expect(result.locator(".legend")).to_contain_text(re.compile(r"run\s*[1-9][0-9.]* s"))
    result.get_by_role("button", name="Cancel").click()
    expect(result.locator(".status").first).to_have_text("cancelled")
    expect(result.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(result.locator(".legend")).to_contain_text("run")
    expect(page).to_have_url(re.compile("/ui/modules/count$"))


def test_a_failed_execution_runs_again_with_another_input(page, filled):
    page.goto(f"/ui/executions/{filled['failed']}")
    expect(page.locator("pre.traceback").first).to_contain_text("KeyError")
    page.get_by_label("Input (JSON)").fill(json.dumps({"rows": [{"price": 41}, {"price": 1}]}))
    page.locator("#again").get_by_role("button", name="Run again").click()
    expect(status_of(page)).to_have_text("succeeded")
    expect(page.locator("#outcome")).to_contain_text("42")
    assert filled["failed"] not in page.url


def test_a_long_output_is_searched_as_a_whole(page, server):
    found = server.execute("count", {"to": 50_000}).json()["id"]  # all of it is kept
    page.goto(f"/ui/executions/{found}")
    assert page.locator("[data-body] .l").count() <= 3000
    page.set_viewport_size({"width": 1280, "height": 600})  # less than the box of the output
    page.evaluate("scrollTo(0, 0)")
    page.get_by_label("Search in the whole output").fill("line 4711")
    page.get_by_label("Search in the whole output").press("Enter")
    expect(page.locator("[data-body] .l", has_text=re.compile("line 4711$"))).to_be_visible()
    expect(page.locator("[data-body] .l", has_text=re.compile("line 4711$"))).to_be_in_viewport()
    expect(page.locator("[data-found]")).to_contain_text("11")  # itself, and 47110 to 47119


STEADY = """
modules:
  - name: steady
    env: inline
    retry: {attempts: 2, on: [lost], backoff: {initial: 10ms}}
    code: |
      import time
      from pathlib import Path

      def handler(input, context):
          for number in range(1000):
              print(f"{context.attempt}: line {number}", flush=True)
              if number == 20 and context.attempt == 1:
                  time.sleep(3600)
              if number == 40:
                  break
              time.sleep(0.01)
          return "done"
"""


def test_a_page_follows_over_a_restart_of_the_runner(chromium, tmp_path):
    """Without sessions, which end with the runner. The relay keeps the address."""
    scopes = "executions:read executions:run modules:read"
    with Relay() as relay, running(tmp_path, STEADY, "--anonymous", scopes) as first:
        relay.target = first.ready["rest"][0][1]
        accepted = start(first, module="steady", input=None)
        complaints = Complaints(relay.url)
        with opened(chromium, complaints) as page:
            page.goto(f"/ui/executions/{accepted}")
            lines = page.locator("[data-body] .l")
            expect(lines.filter(has_text="1: line 20")).to_be_visible()
            first.stop(signal.SIGKILL)
            relay.cut()
            second = Server(tmp_path, "--anonymous", scopes)
            try:
                relay.target = second.ready["rest"][0][1]
                expect(status_of(page)).to_have_text("succeeded")
                found = lines.all_inner_texts()
            finally:
                second.stop(signal.SIGKILL)
    assert len(found) == len({*found}), "no line is there twice"
    assert [line for line in found if line.startswith("2: ")] == [f"2: line {number}" for number in range(41)]
    assert "console" not in "".join(complaints.found).replace("console: the", "")
