"""Contract: the pages of executions: filters, hostile text, scopes, forms, live events with replay, files."""

from __future__ import annotations

import json
import re
import time

import pytest
import trio
from msgspec.structs import replace

from actors.history import Query
from actors.turns import Terms
from protocol.model import Status
from runner.ui.views.executions.family import tree
from runner.ui.views.executions.page import _linked
from tests.contract.test_streams import ECHO, TALKS
from tests.records import make
from tests.support import ANYBODY, inline
from tests.ui_site import open_ui, token

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
HOSTILE = inline(
    "hostile",
    f"""
    import sys
    EVIL = {EVIL!r}
    def handler(input):
        print(EVIL, "\\x1b[31m" + EVIL + "\\x1b[0m \\x00\\u202e")
        print("javascript:alert(1)", file=sys.stderr)
        if input == "raise":
            class Odd(Exception): pass
            raise Odd(EVIL + "\\u202e\\x00")
        if input == "table":
            return [{{EVIL: EVIL}}, {{EVIL: 1}}]
        return {{EVIL: [EVIL, "\\u202e\\x00"], "url": "javascript:alert(1)"}}
    """,
)
FILES = inline(
    "files",
    """
    import operato
    def handler(input):
        with open("a.png", "wb") as file:
            file.write(b"\\x89PNG\\r\\n\\x1a\\n" + b"0" * 50)
        with open("b.png", "wb") as file:
            file.write(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
        return [operato.File("a.png", name='a"><script>.png'), operato.File("b.png")]
    """,
)
QUEUE = inline("queue", TALKS.code, concurrency=1)


@pytest.fixture
async def site(tmp_path):
    async with open_ui(tmp_path, (ECHO, TALKS, HOSTILE, FILES, QUEUE)) as opened:
        yield opened


@pytest.fixture
async def browser(site):
    opened = site.browser()
    await opened.get("/sign-in")
    await opened.sign_in(token())
    return opened


async def run(site, name, value=None):
    return await site.service.execute(ANYBODY, name, json.dumps(value).encode())


async def begin(site, flag, lines=3):
    """Begin an execution that prints, and runs until the flag is there."""
    name, follower = await site.service.begin(
        ANYBODY, "talks", json.dumps({"lines": lines, "flag": str(flag)}).encode()
    )
    while not any(b"half" in repr(event).encode() for event in await follower.next() or ()):
        pass
    return name


def rows(page):
    return re.findall(r'<tr id="x([^"]+)">', page.text)


# -- the list ----------------------------------------------------------------------------------------------------------


async def test_filters_live_in_the_address(site, browser):
    echoes = [(await run(site, "echo", n)).id for n in range(60)]
    failed = (await run(site, "hostile", "raise")).id

    page = await browser.get("/executions")
    assert rows(page) == [failed, *reversed(echoes[21:])]
    older = re.search(r'rel="next" href="/ui(/executions[^"]+)"', page.text)[1].replace("&amp;", "&")
    assert rows(await browser.get(older)) == list(reversed(echoes[:21]))
    page = await browser.get("/executions?module=echo&since=24h")
    assert (len(rows(page)), failed in page.text) == (40, False)
    assert 'href="/ui/executions?module=echo"' in page.text, "the filter `since` can be removed"
    assert re.search(r'rel="next" href="/ui/executions\?cursor=[^"]+&amp;module=echo&amp;since=24h"', page.text)
    assert 'data-refresh="3"' in page.text
    for query in ("status=failed", "error=handler_error", "text=JAVASCRIPT", "unresolved=true", "text=%3Cimg"):
        assert rows(await browser.get(f"/executions?{query}")) == [failed], query
    page = await browser.get("/executions?module=nothing")
    assert "No execution matches" in page.text
    assert (await browser.get(f"/executions?text={failed}")).headers["location"] == f"/ui/executions/{failed}"


async def test_filters_that_cannot_be_read(browser):
    for query, field in (("since=soon", "f-since"), ("status=odd", "f-status"), ("error=odd", "f-error")):
        page = await browser.get(f"/executions?{query}&module=kept")
        assert page.status_code == 400
        assert f'id="{field}-problem"' in page.text
        assert 'value="kept"' in page.text
        assert "data-refresh" not in page.text
    assert "Clear filters" in (await browser.get("/executions?text=" + "x" * 250)).text
    assert (await browser.get("/executions?cursor=x")).status_code == 400


async def test_lists_are_repeated_and_cancelled_only_after_they_were_shown(site, browser, tmp_path):
    failed = await run(site, "hostile", "raise")
    assert "cursor" not in (await browser.get("/executions?status=failed")).text.partition("Run again…")[0][-200:]
    shown = await browser.get("/executions/rerun?status=failed")
    assert "1 execution will run again" in shown.text
    assert (await site.service.get(ANYBODY, failed.id)).reruns == ()
    done = await browser.post("/executions/rerun?status=failed", {"repeat": "active"})
    assert "1 execution runs again" in done.text
    assert len((await site.service.get(ANYBODY, failed.id)).reruns) == 1

    running = await begin(site, tmp_path / "flag")
    shown = await browser.get("/executions/cancel?module=talks")
    assert "1 execution will be cancelled" in shown.text
    assert site.service.runs.find(running) is not None
    done = await browser.post("/executions/cancel?module=talks")
    assert "1 execution was cancelled" in done.text
    assert (await site.service.get(ANYBODY, running)).status is Status.CANCELLED
    assert "Nothing to do" in (await browser.get("/executions/cancel?module=talks")).text
    for path in ("/executions/rerun", "/executions/cancel", "/executions/cancel?status=odd&module=talks"):
        assert (await browser.get(path)).status_code == 400
        assert (await browser.post(path)).status_code == 400


# -- one execution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["raise", "table", EVIL])
async def test_no_text_becomes_markup(site, browser, value):
    made = await run(site, "hostile", value)
    later = await site.service.submit(ANYBODY, "echo", b"1", terms=Terms(run_at=time.time() + 3600))
    hostile = replace(make(Status.FAILED, subject=EVIL), schedule=EVIL, group=EVIL, killed=(f"1 {EVIL}",))
    await site.service.history.finish(hostile)
    for path in (
        f"/executions/{made.id}",
        f"/executions/{made.id}?search=javascript",
        f"/executions/{made.id}?search={EVIL}",
        f"/executions/{hostile.id}",
        f"/executions/{later.id}",
        "/executions",
        f"/executions?text=alert&subject={EVIL}",
        f"/executions?since={EVIL}",
        "/executions/rerun?text=alert",
        f"/executions/cancel?subject={EVIL}",
    ):
        page = await browser.get(path)
        assert "<script>alert" not in page.text, path
        assert "<img src=x" not in page.text, path
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", page.text), path
        assert not re.search(r'(href|src|action)="\s*javascript:', page.text), path
        assert "default-src 'none'" in page.headers["content-security-policy"]
    lines = (await browser.get(f"/executions/{made.id}/lines")).json()["lines"]
    assert "c1" in {style for line in lines for style, _ in line["p"]}
    assert "\u202e" not in json.dumps(lines, ensure_ascii=False)


async def test_the_page_shows_everything_and_links_to_the_rest(site, browser):
    made = await run(site, "talks", {"lines": 500})
    page = await browser.get(f"/executions/{made.id}")

    assert page.text.count('class="l ') == 100
    assert "500 lines" in page.text
    assert len(page.content) < 40_000
    after = re.search(r'href="/ui(/executions/[^"]+\?after=[^"#]+)', page.text)[1]
    assert "line 150" in (await browser.get(after)).text
    page = await browser.get(f"/executions/{made.id}?search=LINE+49")
    assert "11 lines have this text" in page.text
    around = re.search(r'href="/ui(/executions/[^"#]+around=[^"#]+)#L[\d.]+">491<', page.text)[1].replace("&amp;", "&")
    assert "line 440" in (await browser.get(around)).text
    assert (await browser.get("/executions/unknown")).status_code == 404


async def test_lines_of_a_traceback_lead_to_the_code(site, browser):
    made = await run(site, "hostile", "raise")
    link = r'<a href="/ui/modules/hostile/code\?version=\w+&amp;file=[^"]+main.py#L\d+">File &#34;[^<]+</a>'
    assert re.search(link, (await browser.get(f"/executions/{made.id}")).text)
    reader = await signed_in(site, "executions:read")
    page = await reader.get(f"/executions/{made.id}")
    assert "File &#34;" in page.text
    assert "/code?" not in page.text
    assert _linked('x\nFile "/usr/lib/python3.11/re.py", line 3\nFile "<string>", line 1\n') == [
        ('x\nFile "/usr/lib/python3.11/re.py", line 3\nFile "<string>", line 1\n', "", "")
    ]


async def test_a_queued_execution_shows_its_input_and_why_it_waits(site, browser, tmp_path):
    flag = json.dumps({"lines": 1, "flag": str(tmp_path / "flag")}).encode()
    first = await site.service.submit(ANYBODY, "queue", flag)
    second = await site.service.submit(ANYBODY, "queue", b'{"lines": 7}')
    assert (await site.service.get(ANYBODY, second.id)).input == b'{"lines": 7}'
    page = await browser.get(f"/executions/{second.id}")
    assert "Waits: queued" in page.text
    assert '<span class="number">7</span>' in page.text
    await site.service.cancel(ANYBODY, second.id)
    await site.service.cancel(ANYBODY, first.id)


async def test_it_is_run_again_with_the_same_or_another_input(site, browser):
    made = await run(site, "echo", {"a": 1})
    again = await browser.post(f"/executions/{made.id}/rerun")
    assert again.status_code == 303
    repetition = again.headers["location"].rpartition("/")[2]
    assert (await site.service.get(ANYBODY, repetition)).input == b'{"a": 1}'

    edited = await browser.post(f"/executions/{made.id}/rerun", {"input": ' {"a": 2} ', "version": "active"})
    changed = await site.service.get(ANYBODY, edited.headers["location"].rpartition("/")[2])
    assert (changed.input, changed.rerun_of) == (b'{"a": 2}', made.id)
    wrong = await browser.post(f"/executions/{made.id}/rerun", {"input": '{"a": <b>'})
    assert wrong.status_code == 400
    assert 'id="input-problem"' in wrong.text
    assert "the input is not JSON" in wrong.text
    assert "{&#34;a&#34;: &lt;b&gt;" in wrong.text, "it is still there"


async def test_it_is_cancelled(site, browser, tmp_path):
    running = await begin(site, tmp_path / "flag")
    assert f"/executions/{running}/cancel" in (await browser.get(f"/executions/{running}")).text
    done = await browser.post(f"/executions/{running}/cancel")
    assert (done.status_code, done.headers["location"]) == (303, f"/ui/executions/{running}")
    assert (await site.service.get(ANYBODY, running)).status is Status.CANCELLED
    assert f"/executions/{running}/cancel" not in (await browser.get(f"/executions/{running}")).text


async def test_executions_that_called_each_other_are_a_tree(site, browser):
    root = make(at=1e9)
    child = make(at=1e9 + 1, parent=root.id, root=root.id)
    below = make(at=1e9 + 2, parent=child.id, root=root.id, module="leaf")
    for each in (root, child, below):
        await site.service.history.finish(each)
    assert await site.service.history.list(Query(root=root.id))
    page = await browser.get(f"/executions/{child.id}")
    family = page.text.partition('id="family"')[2].partition("</section>")[0]
    assert [f"/executions/{each.id}" in family for each in (root, child, below)] == [True, False, True]
    assert rows(await browser.get(f"/executions?parent={child.id}")) == [below.id]
    assert 'id="family"' not in (await browser.get(f"/executions/{(await run(site, 'echo')).id}")).text

    known = {each.id: each for each in (below, child)}
    (top,) = tree(known, below.id)
    assert (top.execution.id, top.children[0].execution.id, top.children[0].current) == (child.id, below.id, True)


# -- what comes --------------------------------------------------------------------------------------------------------


async def news(browser, path, until="ended", **headers):
    """Return the numbers and the contents of the messages of a page, up to the first one that has `until`.

    On a socket of its own, which is closed in the middle: httpx cannot.
    """
    lines = [f"GET /ui{path} HTTP/1.1", f"Host: {browser.http.base_url.netloc.decode()}", "Sec-Fetch-Site: same-origin"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append("Cookie: " + "; ".join(f"{each.name}={each.value}" for each in browser.http.cookies.jar))
    got, found = b"", []
    async with await trio.open_tcp_stream("127.0.0.1", browser.http.base_url.port) as stream:
        await stream.send_all(("\r\n".join(lines) + "\r\n\r\n").encode())
        while not any(until in told for _, told in found):
            piece = await stream.receive_some()
            assert piece, got
            got += piece
            messages = re.findall(rb"id: (\d+)\nevent: news\ndata: (.*)\n\n", got)
            found = [(int(number), json.loads(data)) for number, data in messages]
    assert b"content-type: text/event-stream" in got.lower()
    return found


async def test_a_page_follows_and_continues_where_it_was(site, browser, tmp_path):
    name = await begin(site, tmp_path / "flag", lines=5)
    page = await browser.get(f"/executions/{name}")
    assert re.search(r"data-next=\"\d+\" data-follow>", page.text)
    after = re.search(r'data-next="(\d+)"', page.text)[1]

    begun = await news(browser, f"/executions/{name}/events?after=0", until="progress")
    seen = {line["k"]: line for _, told in begun for line in told.get("lines", ())}
    last = begun[-1][0]
    assert ["".join(text for _, text in line["p"]) for line in seen.values()] == [f"line {n}" for n in range(5)]

    (tmp_path / "flag").touch()
    again = {"last-event-id": str(last)}
    told = await news(browser, f"/executions/{name}/events?after=0", **again)
    assert [key for _, each in told for key in each if key == "lines"] == [], "nothing comes twice"
    assert told[-1][1]["ended"]
    assert told[-1][0] > last >= int(after) - 1
    ended = await browser.get(f"/executions/{name}/events?after=0", **{"last-event-id": str(told[-1][0])})
    assert ended.status_code == 204
    replay = await news(browser, f"/executions/{name}/events?after=0")
    assert [line["k"] for _, each in replay for line in each.get("lines", ())] == list(seen)


async def test_a_page_hears_that_its_session_has_ended(site, browser, tmp_path):
    name = await begin(site, tmp_path / "flag")
    other = site.browser()
    await other.get("/sign-in")
    await other.sign_in(token())
    async with other.http.stream("GET", f"/ui/executions/{name}/events?after=0") as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                break
        await other.post("/sign-out")
        with trio.fail_after(20):
            assert not [line async for line in lines if "lines" in line]
    await browser.post(f"/executions/{name}/cancel")


async def test_any_part_of_a_long_output(site, browser):
    made = await run(site, "talks", {"lines": 3000})
    path = f"/executions/{made.id}"
    last = (await browser.get(f"{path}/lines?last=true&limit=10")).json()
    assert ([line["n"] for line in last["lines"]], last["total"]) == (list(range(2991, 3001)), 3000)
    assert (last["before"], last["after"]) == (True, False)
    before = (await browser.get(f"{path}/lines?limit=5&before={last['lines'][0]['k']}")).json()
    assert [line["n"] for line in before["lines"]] == [2986, 2987, 2988, 2989, 2990]
    found = (await browser.get(f"{path}/search?q=LINE+12")).json()
    assert (found["count"], len(found["keys"]), found["problem"]) == (111, 111, None)
    around = (await browser.get(f"{path}/lines?limit=3&around={found['keys'][-1]}")).json()
    assert around["lines"][1]["p"] == [["", "line 1299"]]
    assert (await browser.get(f"{path}/search?q=")).status_code == 400
    assert (await browser.get(f"{path}/lines?limit=x&after=%00&stream=odd")).json()["lines"][0]["n"] == 1
    assert len((await browser.get(f"{path}/lines?limit=99999")).json()["lines"]) == 1000


# -- downloads ---------------------------------------------------------------------------------------------------------


async def test_downloads_cannot_be_run(site, browser):
    made = await run(site, "hostile", "x")
    for what, ending in (("output", "txt"), ("input", "json"), ("result", "json")):
        answer = await browser.get(f"/executions/{made.id}/{what}")
        assert answer.headers["content-disposition"].startswith("attachment; filename=")
        assert answer.headers["content-disposition"].endswith(f'.{ending}"')
        assert answer.headers["x-content-type-options"] == "nosniff"
    failed = await run(site, "hostile", "raise")
    assert (await browser.get(f"/executions/{failed.id}/result")).status_code == 404


async def test_files_are_downloaded_and_only_pictures_are_shown(site, browser):
    made = await run(site, "files")
    picture, drawing = (each["$file"]["id"] for each in json.loads(made.result))
    page = await browser.get(f"/executions/{made.id}")
    assert f"/executions/{made.id}/pictures/{picture}" in page.text
    assert "<script>" not in page.text

    answer = await browser.get(f"/executions/{made.id}/files/{drawing}?name=%22%0d%0ax%3C.svg")
    assert answer.content.startswith(b"<svg")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    shown = await browser.get(f"/executions/{made.id}/pictures/{picture}")
    assert (shown.headers["content-type"], shown.headers["x-content-type-options"]) == ("image/png", "nosniff")
    assert (await browser.get(f"/executions/{made.id}/pictures/{drawing}")).status_code == 400
    other = await run(site, "echo")
    assert (await browser.get(f"/executions/{other.id}/files/{picture}")).status_code == 404
    assert (await browser.get(f"/executions/{other.id}/files/x")).status_code == 400


# -- scopes -----------------------------------------------------------------------------------------------------------

READS = ("", "/lines", "/search?q=x", "/output", "/input", "/result", "/events")
CHANGES = (
    "/executions/{id}/cancel",
    "/executions/{id}/rerun",
    "/executions/rerun?module=echo",
    "/executions/cancel?module=echo",
)


async def signed_in(site, *scopes, **more):
    opened = site.browser()
    await opened.get("/sign-in")
    await opened.sign_in(token(*scopes, **more))
    return opened


async def test_what_is_not_allowed_is_absent_and_refused(site):
    made = await run(site, "echo", 1)
    reader = await signed_in(site, "executions:read")
    page = await reader.get(f"/executions/{made.id}")
    assert page.status_code == 200
    assert "/rerun" not in page.text
    assert "/cancel" not in page.text
    assert "Run again" not in (await reader.get("/executions?module=echo")).text
    for path in CHANGES:
        assert (await reader.post(path.format(id=made.id))).status_code == 403

    stranger = await signed_in(site, "admin", modules=("other-*",))
    runner = await signed_in(site, "executions:run")
    for path in READS:
        assert (await stranger.get(f"/executions/{made.id}{path}")).status_code == 404, path
        assert (await runner.get(f"/executions/{made.id}{path}")).status_code == 403, path
        assert (await site.browser().get(f"/executions/{made.id}{path}")).status_code in (303, 401), path
    assert rows(await stranger.get("/executions")) == []
    for path in CHANGES[:2]:
        assert (await stranger.post(path.format(id=made.id))).status_code == 404
    assert (await site.service.history.list(Query())).items[0].id == made.id, "nothing has begun"


async def test_forms_need_the_token_of_their_session(site, browser):
    made = await run(site, "echo", 1)
    await browser.get("/executions")
    for path in CHANGES:
        for fields, headers in (
            ({"csrf": "x"}, {}),
            ({}, {"sec_fetch_site": "cross-site"}),
            ({}, {"origin": "https://evil.example"}),
        ):
            assert (await browser.post(path.format(id=made.id), fields, **headers)).status_code == 403, path
    assert len((await site.service.history.list(Query())).items) == 1
