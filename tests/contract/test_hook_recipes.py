"""Contract: the recipes for webhooks in the documentation, called as their senders do."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from pathlib import Path

import pytest

from config.modules import read_modules
from tests.contract.test_streams import open_site
from tests.support import wait_until

PAGES = Path(__file__).parents[2] / "docs"
RECIPES = ("Webhooks of GitHub", "Webhooks of Stripe", "Events of Slack")
LINES = re.MULTILINE | re.DOTALL
KEY = "whsec_a secret that both know"


@pytest.fixture
async def site(tmp_path, monkeypatch):
    for name in ("GITHUB_SECRET", "STRIPE_SECRET", "SLACK_SECRET"):
        monkeypatch.setenv(f"OPERATO_SECRET_{name}", KEY)
    page, about = ((PAGES / name).read_text() for name in ("recipes.md", "calling/endpoints.md"))
    blocks = [re.search(rf"^## {name}$.*?^```yaml\n(.*?)^```$", page, LINES)[1] for name in RECIPES]
    own = re.search(r"^```yaml\nmodules:\n(.*?)^```$", about, LINES)[1].replace("/github/{event}", "/own/{event}")
    file = tmp_path / "modules.yaml"
    file.write_text("".join(["modules:\n", *blocks, own]))
    modules, mistakes = read_modules(file)
    assert mistakes == ()
    async with open_site(tmp_path, modules.modules) as opened:
        yield opened


def digest(text):
    return hmac.new(KEY.encode(), text, hashlib.sha256).hexdigest()


async def github(site, path, event, body):
    headers = {"X_Hub_Signature_256": f"sha256={digest(body)}", "X_GitHub_Event": event, "X_GitHub_Delivery": event}
    status, _, answer = await site.ask("POST", path, body, **headers)
    return status, answer


async def slack(site, body, **headers):
    now = str(int(time.time()))
    signature = f"v0={digest(f'v0:{now}:'.encode() + body)}"
    sent = {"X_Slack_Request_Timestamp": now, "X_Slack_Signature": signature, **headers}
    status, _, answer = await site.ask("POST", "/http/slack", body, **sent)
    return status, answer


async def test_github(site):
    push = json.dumps({"after": "abc", "repository": {"full_name": "me/it"}}).encode()
    assert await github(site, "/http/github", "ping", b'{"zen": "x"}') == (200, b"ping is ignored")
    assert await github(site, "/http/github", "push", push) == (201, b"deployed")
    [ran, _] = (await site.json("GET", "/executions?module=on-push"))["items"]
    assert (await site.ask("GET", f"/executions/{ran['id']}/output"))[2] == b"deploying me/it abc\n"


async def test_the_first_example_of_the_page(site):
    assert await github(site, "/http/own/ping", "ping", b"{}") == (200, b"pong")
    assert await github(site, "/http/own/push", "push", b'{"ref": "main"}') == (201, b'{"ref":"main"}')


async def test_stripe(site):
    event = {"id": "evt_1", "type": "checkout.session.completed", "data": {"object": {"id": "cs_1"}}}
    body, now = json.dumps(event).encode(), int(time.time())
    signature = f"t={now},v1={digest(f'{now}.'.encode() + body)}"
    status, headers, _ = await site.ask("POST", "/http/stripe", body, Stripe_Signature=signature)
    assert status == 202

    await wait_until(lambda: not site.service.runs.live_executions(), "it has run")
    path = headers[b"location"].decode()
    assert (await site.json("GET", path))["result"] == {"received": "evt_1"}
    assert (await site.ask("GET", f"{path}/output"))[2] == b"paid cs_1\n"


async def test_slack(site):
    check = json.dumps(
        {"type": "url_verification", "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"}
    )
    status, answer = await slack(site, check.encode(), Content_Type="application/json")
    assert (status, answer.decode()) == (200, json.loads(check)["challenge"])

    event = json.dumps({"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention"}}).encode()
    assert await slack(site, event, Content_Type="application/json") == (200, b"null")
    assert await slack(site, event, Content_Type="application/json", X_Slack_Retry_Num="1") == (200, b"null")
    assert len((await site.json("GET", "/executions?module=slack"))["items"]) == 2

    command = b"token=x&command=%2Fweather&user_name=roadrunner&text="
    status, answer = await slack(site, command, Content_Type="application/x-www-form-urlencoded")
    assert (status, json.loads(answer)) == (200, {"text": "/weather of roadrunner"})
