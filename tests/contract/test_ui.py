"""Contract: the dashboard: who gets in, how long, and what no other site, page or caller can do with a session."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import msgspec
import pytest
import trio
import trio.testing

from actors.executions import Runs
from config.modules import Auth, EndpointSpec, Method
from config.settings import AuthSettings, ServerSettings
from config.timing import ScheduleSpec
from protocol.errors import ErrorKind, error
from runner.auth import Principal, Verifier
from runner.rest import make_app
from runner.ui import make_ui
from tests.http_support import serving
from tests.support import inline, open_service, wait_until
from tests.ui_site import SECRET, open_ui, token

WAITS = """
import os, time
def handler(input):
    while not os.path.exists(input):
        time.sleep(0.002)
"""
ECHO = inline("echo", "def handler(input): return input")


@pytest.fixture
async def site(tmp_path):
    async with open_ui(tmp_path, (ECHO,)) as opened:
        yield opened


# -- signing in and out ------------------------------------------------------------------------------------------------


async def test_a_token_signs_in_until_the_reader_signs_out(site):
    browser = site.browser()
    asked = await browser.get("/")
    assert (asked.status_code, asked.headers["location"]) == (303, "/ui/sign-in")
    assert (await browser.get("/sign-in")).status_code == 200

    done = await browser.post("/sign-in", {"token": f"  Bearer {token()} \n"})
    assert (done.status_code, done.headers["location"]) == (303, "/ui/")
    cookie = done.headers["set-cookie"]
    assert re.fullmatch(r"operato_session_\d+=[\w-]{43}; Path=/ui; HttpOnly; SameSite=Strict", cookie)
    assert token() not in done.text
    page = await browser.get("/")
    assert page.status_code == 200
    assert "ada" in page.text
    assert SECRET not in page.text
    assert (await browser.get("/sign-in?next=/x")).headers["location"] == "/ui/x"

    old = browser.cookie
    out = await browser.post("/sign-out")
    assert "Max-Age=0" in out.headers["set-cookie"]
    name = cookie.partition("=")[0]
    again = await site.browser(Cookie=f"{name}={old}").get("/")
    assert again.status_code == 303
    assert len(site.ui.access.sessions) == 0


NO_CREDENTIALS = [
    ("", 401, "the field is empty"),
    ("nonsense", 401, "cannot be read"),
    ("opk_0123456789_" + "0" * 48, 401, "the API key is not valid"),
    ("a b\x00c", 401, "neither a token nor an API key"),
    ("<script>alert(1)</script>", 401, "authorization must have the form"),
    ("한글", 401, "neither a token nor an API key"),
    ("x" * 20_000, 401, "too long"),
    ("x" * 70_000, 413, "is over 65536"),
]


async def test_nothing_else_signs_in(site):
    browser = site.browser()
    for given, status, said in NO_CREDENTIALS:
        refused = await browser.post("/sign-in", {"token": given})
        assert (refused.status_code, "set-cookie" in refused.headers) == (status, False), given[:40]
        assert said in refused.text
        assert given[:30] not in refused.text or not given
    assert (await browser.get("/")).status_code == 303
    assert site.verifier.refused["token"] >= 3


async def test_a_link_signs_in_once_and_looking_at_it_does_not_use_it_up(site):
    made = await site.browser().http.post("/ui/links", headers={"authorization": f"Bearer {token(subject='lee')}"})
    assert made.status_code == 201
    path = made.json()["path"].removeprefix("/ui")
    code = path.partition("code=")[2]
    for headers in ({}, {"sec_purpose": "prefetch"}, {"sec_fetch_site": "cross-site"}):
        preview = await site.browser().get(path, **headers)
        assert (preview.status_code, "set-cookie" in preview.headers) == (200, False)
        assert await site.browser().http.head(f"/ui{path}")
    forged = await site.browser().post("/sign-in", {"code": code}, sec_fetch_site="cross-site")
    assert forged.status_code == 403

    reader = site.browser()
    await reader.get(path)
    done = await reader.post("/sign-in", {"code": code, "next": "/"})
    assert done.status_code == 303
    assert "lee" in (await reader.get("/")).text
    second = await site.browser().post("/sign-in", {"code": code})
    assert second.status_code == 401
    assert "was used" in second.text


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer x"}, {"x-api-key": "opk_x"}])
async def test_only_a_token_makes_links(tmp_path, headers):
    async with open_ui(tmp_path, anonymous=("modules:read",)) as site:
        refused = await site.browser(accept="*/*").http.post("/ui/links", headers=headers)
        assert (refused.status_code, refused.json()["kind"]) == (401, "unauthenticated")


ELSEWHERE = [
    *(
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/%5cevil.example",
        "evil",
        "",
    ),
    *("/..%2f..%2fhttp/x", "/../http/x", "/a\r\nset-cookie: x=1", "/" + "a" * 5000),
]


async def test_signing_in_leads_nowhere_else(site):
    for wanted in ELSEWHERE:
        done = await site.browser().post("/sign-in", {"token": token(), "next": wanted})
        assert (done.status_code, done.headers["location"]) == (303, "/ui/"), wanted
        assert "x" not in done.cookies


async def test_a_page_asked_for_before_is_shown_after_signing_in(site):
    browser = site.browser()
    asked = await browser.get("/?status=failed&module=a%26b")
    assert asked.headers["location"] == "/ui/sign-in?next=%2F%3Fstatus%3Dfailed%26module%3Da%2526b"
    page = await browser.get(asked.headers["location"].removeprefix("/ui"))
    assert 'value="/?status=failed&amp;module=a%26b"' in page.text


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_the_name_of_a_session_is_never_that_of_the_browser(site):
    browser = site.browser()
    await browser.sign_in(token(subject="mallory"))
    planted = browser.cookie
    name = next(each.name for each in browser.http.cookies.jar)
    victim = site.browser(Cookie=f"{name}={planted}")
    done = await victim.http.post("/ui/sign-in", data={"token": token(subject="victim")})
    assert done.status_code == 303
    assert done.cookies[name] != planted
    assert (await browser.get("/")).status_code == 303, "the planted session has ended"
    chosen = site.browser(Cookie=f"{name}=chosen-by-the-browser-{'x' * 43}")
    assert (await chosen.get("/")).status_code == 303


async def test_a_session_ends_with_its_token(tmp_path):
    now = [time.time()]
    async with open_ui(tmp_path, clock=lambda: now[0]) as site:
        browser = site.browser()
        await browser.sign_in(token(seconds=60))
        now[0] += 50
        assert (await browser.get("/")).status_code == 200
        now[0] += 100
        ended = await browser.get("/?a=1")
        assert ended.headers["location"] == "/ui/sign-in?next=%2F%3Fa%3D1&ended=1"
        assert "Max-Age=0" in ended.headers["set-cookie"]
        assert "Your session has ended" in (await browser.get("/sign-in?ended=1")).text
        posted = await browser.post("/sign-out")
        assert posted.status_code == 401


async def test_a_session_ends_when_its_key_is_revoked(site):
    keys = site.service.api_keys
    key, secret = await keys.create("ci", scopes=["admin"], modules=(), expires_at=None, subject="kim")
    browser = site.browser()
    assert "key:ci" in (await browser.sign_in(secret)).text
    await keys.revoke(key, subject="kim")
    assert (await browser.get("/")).status_code == 303
    assert len(site.ui.access.sessions) == 0
    assert (await browser.post("/sign-in", {"token": secret})).status_code == 401


async def test_sessions_of_one_token_are_bounded_and_leave_others_alone(site):
    other = site.browser()
    await other.sign_in(token(subject="other"))
    first = site.browser()
    flood = token(subject="flood")
    await first.sign_in(flood)
    for _ in range(25):
        await site.browser().post("/sign-in", {"token": flood})
    assert len(site.ui.access.sessions) == 21
    assert (await first.get("/")).status_code == 303
    assert (await other.get("/")).status_code == 200


# -- forged requests ---------------------------------------------------------------------------------------------------


async def test_no_other_site_posts(site):
    browser = site.browser()
    await browser.sign_in(token())
    others = [{"sec_fetch_site": name} for name in ("cross-site", "same-site", "none", "")]
    others += [{"sec_fetch_site": "cross-site", "origin": site.address}]
    for headers in others:
        for path, fields in (("/sign-out", {}), ("/preferences", {"theme": "dark"}), ("/sign-in", {"token": token()})):
            refused = await browser.post(path, fields, **headers)
            assert refused.status_code == 403, path
            assert "another site" in refused.text
            assert "set-cookie" not in refused.headers
    assert (await browser.get("/")).status_code == 200


async def test_a_form_needs_the_token_of_its_own_session(site):
    browser, other = site.browser(), site.browser()
    await browser.sign_in(token())
    await other.sign_in(token())
    assert browser.csrf != other.csrf
    for sent in ("", "x", other.csrf, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        refused = await browser.post("/sign-out", {"csrf": sent})
        assert (refused.status_code, "another session" in refused.text) == (403, True)
    assert (await browser.http.post("/ui/sign-out", headers={"content-type": "text/plain"})).status_code == 400
    assert (await browser.post("/sign-out", X_CSRF_Token=browser.csrf)).status_code == 303


async def test_without_secure_context_the_origin_is_compared(site):
    headers = {"accept": "text/html", "origin": site.address}
    browser = site.browser()
    del browser.http.headers["sec-fetch-site"]
    done = await browser.http.post("/ui/sign-in", data={"token": token()}, headers=headers)
    assert done.status_code == 303
    refused = await browser.http.post("/ui/sign-in", data={"token": token()})
    assert refused.status_code == 403


async def test_a_link_in_a_page_of_another_site_leads_in_with_the_session(site):
    """The browser sends the strict cookie only when the dashboard itself asks for the page."""
    browser = site.browser(sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    again = await browser.get("/?status=failed")
    assert again.status_code == 200
    assert '<meta http-equiv="refresh" content="0">' in again.text
    assert "/ui/?status=failed" in again.text


# -- what readers see --------------------------------------------------------------------------------------------------


async def test_a_reader_sees_what_the_token_allows(site):
    await site.service.execute(Principal("kim", frozenset({"admin"})), "echo", b"1")
    whole = (await site.browser().sign_in(token())).text
    assert [part in whole for part in ("Runs now", "Comes next", "Machine", "Red since yesterday")] == [True] * 4
    few = (await site.browser().sign_in(token("modules:read"))).text
    assert [part in few for part in ("Runs now", "Comes next", "Disk", "inline workers")] == [False, False, False, True]
    none = (await site.browser().sign_in(token("files:read"))).text
    assert "nothing for you to see here" in none
    other = (await site.browser().sign_in(token("executions:read", modules=["other-*"]))).text
    assert "Nothing has run yet" in other


async def test_the_overview_names_what_runs_waits_failed_and_comes(tmp_path):
    flag = tmp_path / "flag"
    often, seldom = (ScheduleSpec(name=name, every=seconds) for name, seconds in (("often", 60.0), ("seldom", 86400.0)))
    modules = (
        inline("slow", WAITS, concurrency=1),
        inline("bad", "def handler(input): raise ValueError('no')"),
        inline("timed", "def handler(input): return 1", schedules=(seldom, often)),
    )
    async with open_ui(tmp_path, modules) as site:
        kim = Principal("kim", frozenset({"admin"}))
        assert (await site.service.execute(kim, "bad", b"1")).failure is not None
        for _ in range(3):
            await site.service.submit(kim, "slow", msgspec.json.encode(str(flag)))
        await wait_until(lambda: any(live.call for live in site.service.runs.live_executions()), "nothing runs")
        page = (await site.browser().sign_in(token())).text
        flag.touch()
    tiles = re.findall(r'tile-number">([^<]+)<', page)
    assert tiles == ["1", "2", "1", tiles[3]]
    assert re.fullmatch(r"in \d+ s|in 1 min", tiles[3])
    assert "1 of this module are before it" in page
    assert page.index("timed:often") < page.index("timed:seldom")
    assert "1 of 1" in page
    assert "handler_error" in page


async def test_anonymous_reads_without_signing_in_and_only_by_the_own_name(tmp_path):
    async with open_ui(tmp_path, (ECHO,), anonymous=("executions:read", "modules:read")) as site:
        browser = site.browser()
        page = await browser.get("/")
        assert page.status_code == 200
        assert "Sign out" not in page.text
        assert 'href="/ui/sign-in?next=%2F"' in page.text
        assert (await browser.get("/", host="evil.example:8000")).status_code == 303
        assert "Comes next" in (await browser.sign_in(token())).text


async def test_names_of_callers_are_text(site):
    hostile = "<script>alert(1)</script>\"'>{{7*7}}\u202e"
    page = await site.browser().sign_in(token(subject=hostile))
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "49" not in page.text.partition("{{7*7}}")[0][-20:]


async def test_language_and_colours_are_chosen(site):
    browser = site.browser(accept_language="ko-KR,ko;q=0.9")
    assert '<html lang="ko">' in (await browser.get("/sign-in")).text
    done = await browser.post("/preferences", {"language": "en", "theme": "dark", "next": "/sign-in"})
    assert (done.status_code, done.headers["location"]) == (303, "/ui/sign-in")
    assert '<html lang="en" data-theme="dark">' in (await browser.get("/sign-in")).text
    await browser.post("/preferences", {"theme": "<x>", "language": "xx", "next": "//evil"})
    await browser.post("/preferences", {"theme": ""})
    assert '<html lang="en">' in (await browser.get("/sign-in")).text


# -- answers -----------------------------------------------------------------------------------------------------------


class Inline(HTMLParser):
    """Collects what a strict policy would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        bad = [name for name in names if name.startswith("on") or name in ("style", "srcdoc")]
        links = [
            value
            for name, value in attributes
            if name in ("href", "src", "action") and not (value or "").startswith(("/ui", "/docs", "#"))
        ]
        inline = tag == "style" or (tag == "script" and "src" not in names)
        if bad or links or inline:
            self.found.append(f"{tag} {attributes}")


async def test_every_answer_is_safe_and_nothing_is_inline(site):
    browser = site.browser()
    await browser.get("/sign-in")
    answers = [await browser.get("/sign-in"), await browser.sign_in(token()), await browser.get("/nowhere")]
    answers += [await browser.post("/"), await browser.post("/sign-out", {"csrf": "x"})]
    assert [each.status_code for each in answers] == [200, 200, 404, 405, 403]
    for each in answers:
        policy = each.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert each.headers["cache-control"] == "no-store"
        assert each.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in each.headers
        parser = Inline()
        parser.feed(each.text)
        assert parser.found == []
    assert answers[3].headers["allow"] == "GET, HEAD"


async def test_a_failure_is_a_page_with_the_remedy_and_a_bug_tells_nothing(site, monkeypatch):
    browser = site.browser()
    await browser.sign_in(token())

    async def refuse(*_args, **_more):
        raise error(ErrorKind.UNAVAILABLE, "the history <is> away; look at the disk")

    monkeypatch.setattr("actors.history.answers.Answers.ends", refuse)
    page = await browser.get("/")
    assert page.status_code == 200
    assert "the history &lt;is&gt; away; look at the disk" in page.text
    monkeypatch.setattr(Runs, "live_executions", lambda *_: 1 / 0)
    broken = await browser.get("/")
    assert broken.status_code == 500
    assert "request ID" in broken.text
    assert "ZeroDivisionError" not in broken.text
    plain = await browser.get("/", accept="application/json")
    assert plain.json()["kind"] == "internal"


async def test_static_files_are_kept_for_good_and_found_by_their_digest_only(site):
    browser = site.browser()
    page = (await browser.get("/sign-in")).text
    paths = re.findall(r'"(/ui/static/[0-9a-f]{16}/[\w.]+)"', page)
    assert {path.rpartition("/")[2] for path in paths} == {"icon.svg", "style.css", "app.js"}
    for path in paths:
        found = await browser.http.get(path)
        assert (found.status_code, found.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
        assert found.headers["content-encoding"] == "gzip"
        plain = await browser.http.get(path, headers={"accept-encoding": "identity"})
        assert plain.content == found.content
    folder = paths[0].rpartition("/")[0]
    for path in (f"{folder}/x.css", f"{folder}/../app.py", f"{folder}/%2e%2e/app.py", "/ui/static/0/style.css"):
        assert (await browser.http.get(path)).status_code in (303, 404), path


async def test_the_first_page_is_small(site):
    browser = site.browser()
    whole = len((await browser.sign_in(token())).content)
    page = (await browser.get("/")).text
    for path in set(re.findall(r'"(/ui/static/[^"]+)"', page)):
        async with browser.http.stream("GET", path) as answer:
            whole += sum([len(each) async for each in answer.aiter_raw()])
    assert whole < 60 * 1024


# -- the server around it ----------------------------------------------------------------------------------------------


async def test_the_start_page_is_the_dashboard_for_browsers(tmp_path):
    for wanted, home in ((True, "/ui/"), (False, "/docs")):
        async with open_service(tmp_path, (), server=ServerSettings(ui=wanted)) as service:
            verifier = Verifier(AuthSettings(), secret=SECRET)
            ui = make_ui(service, verifier)
            assert (ui is not None) is wanted
            async with serving(make_app(service, verifier, ui)) as server:
                client = await server.connect()
                await client.send(b"GET / HTTP/1.1\r\nhost: x\r\naccept: text/html\r\n\r\n")
                assert f"location: {home}\r\n".encode() in await client.until(b"\r\n\r\n") + b"\r\n"
                await client.send(b"GET /ui/ HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (b" 303 " if wanted else b" 404 ") in (await client.until(b"\r\n"))


async def test_behind_a_proxy_with_tls_the_cookie_is_secure_and_links_have_the_prefix(tmp_path):
    server = ServerSettings(trusted_proxies=("127.0.0.1",))
    headers = {"x_forwarded_proto": "https", "x_forwarded_prefix": "/runner", "x_forwarded_host": "example.org"}
    async with open_ui(tmp_path, (), server=server) as site:
        browser = site.browser(x_forwarded_for="203.0.113.7", host="example.org", **headers)
        done = await browser.http.post("/ui/sign-in", data={"token": token()})
        assert done.headers["location"] == "/runner/ui/"
        cookie = done.headers["set-cookie"]
        assert re.fullmatch(
            r"__Secure-operato_session=[\w-]{43}; Path=/runner/ui; HttpOnly; SameSite=Strict; Secure", cookie
        )
        page = await browser.get("/", cookie=cookie.partition(";")[0])
        assert page.status_code == 200
        assert 'action="/runner/ui/sign-out"' in page.text
        assert 'href="/runner/ui/static/' in page.text
        plain = await browser.get("/", cookie=cookie.partition(";")[0].removeprefix("__Secure-"))
        assert plain.status_code == 303


async def test_a_page_of_a_module_has_an_origin_of_its_own(tmp_path):
    page = inline(
        "page",
        """
        def handler(input):
            return {"$response": {"text": "<script>1</script>", "headers": [["Content-Type", "text/html"]]}}
        """,
        endpoints=(EndpointSpec("/page", (Method.GET,), Auth.NONE),),
    )
    async with open_ui(tmp_path, (page,)) as site:
        shown = await site.browser().http.get("/http/page")
        assert shown.status_code == 200, shown.text
        assert shown.headers["content-security-policy"].startswith("sandbox ")
        assert "allow-same-origin" not in shown.headers["content-security-policy"]


async def test_streams_of_a_session_end_when_it_ends(site):
    browser = site.browser()
    await browser.sign_in(token())
    session = site.ui.access.sessions.find(browser.cookie)
    ended = trio.Event()

    async def follow():
        with session.lasting():
            await trio.sleep_forever()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        await browser.post("/sign-out")
        await ended.wait()
