"""Contract: the pages of schedules, environments, workers, keys, changes and notices."""

from __future__ import annotations

import re

import pytest
import trio

from actors.starts import NoticeQuery
from config.modules.on_end import OnEnd
from config.modules.spec import ModuleSpec
from protocol.model import Kind
from runner.api import NoticeVerbs
from tests.pages import Reader, open_dashboard
from tests.support import ANYBODY, PATIENCE, inline

REPORT = inline("report", "def handler(input): return input")
OTHER = inline("other", "def handler(input): return input")
VENV = ModuleSpec(name="numbers", env=Kind.VENV, code="def handler(input): return sum(input)")
CRON = {"module": "report", "name": "weekly", "form": "cron", "cron": "0 9 * * mon", "input": '{"a": 1}'}
HOSTILE = "<script>alert(1)</script><b onclick=x>&amp;\"'"


@pytest.fixture
async def reader(tmp_path):
    async with open_dashboard(tmp_path, (REPORT, OTHER)) as opened:
        yield opened


async def other(reader: Reader, *scopes: str, modules=()) -> Reader:
    return await Reader(reader.site).sign_in(*scopes, modules=modules)


# -- schedules -------------------------------------------------------------------------------------------------------


async def test_a_schedule_is_made_shown_changed_and_deleted(reader):
    assert "No schedules yet" in (await reader.get("/schedules")).text
    made = await reader.post("/schedules/new", CRON)
    assert (made.status, made.to) == (303, "/schedules/weekly")
    page = await reader.get(made.to)
    assert "0 9 * * mon" in page.text
    assert page.html.count('<li><span class="number">') == 10
    assert '"a": 1' in page.text
    form = (await reader.get("/schedules/weekly/edit")).html
    assert 'value="0 9 * * mon"' in form

    changed = {**CRON, "form": "every", "every": "15m", "overlap": "queue", "misfire": "last", "jitter": "30s"}
    assert (await reader.post("/schedules/weekly/edit", changed)).to == "/schedules/weekly"
    found = reader.service.schedules.get(ANYBODY, "weekly")
    assert (found["cron"], found["every"], found["overlap"], found["misfire"]) == (None, 900, "queue", "last")
    assert found["jitter"] == 30
    assert (await reader.post("/schedules/weekly/delete")).to == "/schedules"
    assert "No schedules yet" in (await reader.get("/schedules")).text


async def test_a_schedule_is_paused_resumed_and_run_now(reader):
    await reader.post("/schedules/new", CRON)
    assert (await reader.post("/schedules/weekly/pause", {"from": "list"})).to == "/schedules"
    assert "Paused by kim" in (await reader.get("/schedules/weekly")).text
    assert (await reader.post("/schedules/weekly/resume")).to == "/schedules/weekly"
    started = await reader.post("/schedules/weekly/fire")
    assert started.to.startswith("/executions/")
    found = await reader.service.get(ANYBODY, started.to.removeprefix("/executions/"))
    assert found.schedule == "weekly"


@pytest.mark.parametrize(
    ("changed", "field", "text"),
    [
        ({"cron": "0 9 * * someday"}, "cron", "someday"),
        ({"input": "{"}, "input", "not JSON"),
        ({"timezone": "Mars"}, "timezone", "Mars"),
        ({"module": "absent"}, "module", "absent"),
        ({"form": "at", "at": "2001-01-01"}, "at", "has passed"),
        ({"jitter": "soon"}, "jitter", "soon"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_a_refused_schedule_is_shown_again_with_the_mistake_at_its_field(reader, changed, field, text):
    page = await reader.post("/schedules/new", {**CRON, "version": HOSTILE if field == "cron" else "", **changed})
    assert 400 <= page.status < 500
    problem = re.search(rf'id="{field}-problem">(.*?)</p>', page.html, re.DOTALL)
    assert problem is not None, page.text
    assert text in problem[1]
    assert 'value="weekly"' in page.html
    assert "<script>alert" not in page.html


async def test_schedules_of_other_modules_do_not_exist(reader):
    await reader.post("/schedules/new", CRON)
    some = await other(reader, "schedules:read", "schedules:write", modules=("other",))
    assert "weekly" not in (await some.get("/schedules")).text
    assert (await some.get("/schedules/weekly")).status == 404
    assert (await some.post("/schedules/weekly/pause")).status == 404


async def test_a_reader_of_schedules_sees_no_buttons_and_changes_nothing(reader):
    await reader.post("/schedules/new", CRON)
    some = await other(reader, "schedules:read")
    for path in ("/schedules", "/schedules/weekly"):
        page = await some.get(path)
        assert page.status == 200
        assert '<form method="post"' not in page.html.partition("<main")[2]
    assert (await some.get("/schedules/new")).status == 403
    for action in ("pause", "resume", "fire", "delete", "edit"):
        assert (await some.post(f"/schedules/weekly/{action}", CRON)).status == 403


# -- environments and workers ----------------------------------------------------------------------------------------


async def test_workers_and_environments_are_shown_and_built_again(tmp_path):
    async with open_dashboard(tmp_path, (VENV, REPORT)) as reader:
        assert "No workers" in (await reader.get("/environments")).text
        await reader.site.json("POST", "/modules/execute/numbers", [1, 2])
        page = await reader.get("/environments")
        assert "1 idle" in page.text
        (built,) = await reader.service.machine.built(ANYBODY)
        assert built["key"] in page.text
        one = await reader.get(f"/environments/{built['key']}")
        assert "Why it is there" in one.text
        assert "numbers" in one.text

        assert (await reader.post(f"/environments/{built['key']}/rebuild")).to == f"/environments/{built['key']}"
        await reader.site.json("POST", "/modules/execute/numbers", [3])  # waits for the build
        (again,) = await reader.service.machine.built(ANYBODY)
        assert again["built_at"] > built["built_at"]
        some = await other(reader, "modules:read")
        assert "Build again" not in (await some.get(f"/environments/{built['key']}")).text
        assert (await some.post(f"/environments/{built['key']}/rebuild")).status == 403


# -- keys ------------------------------------------------------------------------------------------------------------


async def test_the_secret_of_a_key_is_shown_once_and_the_key_is_revoked(reader):
    order = [("name", "ci"), ("scopes", "executions:run"), ("scopes", "executions:read"), ("modules", "report, o*")]
    page = await reader.post("/keys", [*order, ("expires", "1d")])
    secret = re.search(r'id="secret">(opk_[^<]+)<', page.html)[1]
    assert page.headers[b"cache-control"] == b"no-store"
    shown = await reader.get("/keys")
    assert secret not in shown.html
    assert "report, o*" in shown.text
    reader.site.token = secret
    await reader.site.json("POST", "/modules/execute/report", 1)

    action = re.search(r'action="/ui(/keys/[^"]+/revoke)"', shown.html)[1]
    assert (await reader.post(action)).to == "/keys"
    assert (await reader.site.ask("POST", "/modules/execute/report", 1))[0] == 401
    assert "revoked" in (await reader.get("/keys")).text


async def test_a_refused_key_is_shown_again(reader):
    page = await reader.post("/keys", {"name": HOSTILE, "expires": "1d", "scopes": "executions:run"})
    assert page.status == 400
    assert re.search(r'id="name-problem">', page.html)
    assert "<script>alert" not in page.html
    page = await reader.post("/keys", {"name": "ci", "expires": "1d"})
    assert page.status == 400
    assert "a key needs a scope" in page.text
    assert 'value="ci"' in page.html


async def test_keys_and_changes_are_for_admins(reader):
    some = await other(reader, "executions:read", "modules:write")
    for path in ("/keys", "/audit"):
        assert (await some.get(path)).status == 403
        assert f'href="/ui{path}"' not in (await some.get("/")).html


# -- changes ---------------------------------------------------------------------------------------------------------


async def test_changes_are_filtered_by_the_url(reader):
    order = {"env": "inline", "code": "def handler(input): return 1"}
    for name in ("one", "two"):
        await reader.site.json("PUT", f"/modules/{name}", order)
    await reader.post("/keys", {"name": "ci", "scopes": "executions:run"})
    assert "Key made" in (await reader.get("/audit")).text
    one = await reader.get("/audit?module=one")
    assert one.html.count("<tr>") == 2
    assert 'value="one"' in one.html
    assert (await reader.get("/audit?action=key_create&subject=kim")).html.count("<tr>") == 2
    assert "No change matches" in (await reader.get("/audit?until=2001-01-31")).text
    assert (await reader.get("/audit?since=2001-01-31&until=2999-01-01")).html.count("<tr>") == 4
    for wrong in ("since=never", "action=x", "cursor=x"):
        assert (await reader.get(f"/audit?{wrong}")).status == 400


async def test_long_lists_have_pages(reader):
    for number in range(53):
        await reader.service.schedules.create(ANYBODY, {"module": "report", "cron": "@daily", "name": f"s{number:02}"})
    for path, rows in (("/schedules?module=report", 50), ("/audit?action=schedule_create", 50)):
        first = await reader.get(path)
        assert first.html.count("<tr>") == rows + 1
        following = re.search(r'rel="next" href="/ui([^"]+)"', first.html)[1].replace("&amp;", "&")
        assert path.partition("?")[2] in following, "the filter stays"
        assert (await reader.get(following)).html.count("<tr>") == 4


async def test_a_large_page_is_sent_compressed_where_the_browser_takes_it(reader):
    plain = await reader.get("/environments")
    small = await reader.get("/environments", Accept_Encoding="br, GZIP")
    assert (plain.headers.get(b"content-encoding"), small.headers.get(b"content-encoding")) == (None, b"gzip")
    assert small.text == plain.text
    assert int(small.headers[b"content-length"]) < int(plain.headers[b"content-length"]) / 2
    assert b"accept-encoding" in small.headers[b"vary"]
    assert b"content-encoding" not in (await reader.get("/sign-in", Accept_Encoding="gzip")).headers


# -- notices ---------------------------------------------------------------------------------------------------------


async def test_notices_are_listed_and_sent_again(tmp_path):
    recipients = (OnEnd(module="other"), OnEnd(url="http://127.0.0.1:1/hook"))
    async with open_dashboard(tmp_path, (inline("telling", REPORT.code, on_end=recipients), OTHER)) as reader:
        await reader.site.json("POST", "/modules/execute/telling", 1)
        notices = NoticeVerbs.of(reader.service.outbox, reader.service.history)

        async def settled():
            found = (await notices.list(ANYBODY, NoticeQuery())).items
            return {each.state: each for each in found if each.state == "delivered" or each.reason}

        with trio.fail_after(PATIENCE):
            while len(found := await settled()) < 2:
                await trio.sleep(0.01)
        page = await reader.get("/notices?module=telling")
        assert "module other" in page.text
        assert found["pending"].reason in page.text
        assert page.html.count("/retry") == 1, "a delivered one has no button"
        again = await reader.post(f"/notices/{found['pending'].id}/retry")
        assert again.to == f"/notices?execution={found['pending'].execution}"
        assert (await reader.post(f"/notices/{found['delivered'].id}/retry")).status == 409
        assert "No notice matches" in (await reader.get("/notices?module=absent")).text
        assert (await reader.get("/notices?state=lost")).status == 400
