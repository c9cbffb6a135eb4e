"""Contract: the pages of modules: list, forms, code, versions, statistics, environment, starts, the editor."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import trio

from actors.registry import Condition
from config.modules.spec import ModuleSpec
from protocol.model import Kind
from runner.api import Publishing
from tests.pages import Page, Reader, open_dashboard
from tests.support import ANYBODY, PATIENCE, inline

HOSTILE = "</textarea><script>alert(1)</script>\"'&<b onclick=x>"
ORDER = inline(
    "order",
    """
    def handler(input):
        if input.get("fail"):
            raise ValueError("no <b>stock</b>")
        return input
    """,
    description="Takes an order.",
    tags=("shop", "demo"),
    input_schema={
        "type": "object",
        "properties": {
            "rows": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "minLength": 2},
                        "price": {"type": "number", "minimum": 0},
                    },
                    "required": ["name"],
                },
            },
            "due": {"type": "string", "format": "date"},
            "express": {"type": "boolean", "default": True},
            "scan": {"type": "object", "properties": {"$file": {"type": "object"}}, "required": ["$file"]},
            "fail": {"type": "boolean"},
        },
        "required": ["rows"],
    },
)
PLAIN = inline("plain", "def handler(input): return input", tags=("demo",))
BUILT = ModuleSpec(name="built", env=Kind.VENV, code="def handler(input): return 1")
EVIL = inline(
    "evil",
    "# \u202e hidden\n" + f"'''{HOSTILE}'''\ndef handler(input): return input",
    description=HOSTILE,
    tags=(HOSTILE[:40],),
    input_schema={
        "type": "object",
        "title": HOSTILE,
        "properties": {HOSTILE: {"enum": [HOSTILE, 1, 2, 3], "description": HOSTILE, "title": HOSTILE}},
    },
)
JSON = {"Accept": "application/json"}
HOW = {"how": Publishing(), "condition": Condition()}


@pytest.fixture
async def reader(tmp_path):
    async with open_dashboard(tmp_path, (ORDER, PLAIN, BUILT, EVIL)) as opened:
        yield opened


async def limited(reader: Reader, *scopes: str, modules=()) -> Reader:
    return await Reader(reader.site).sign_in(*scopes, modules=modules)


class Controls(HTMLParser):
    """What a browser without scripts would post for the form that has a control of this name."""

    def __init__(self, html: str, mark: str) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []
        self._area = self._select = ""
        self.feed(html)
        self.posted = next(form for form in self.forms if mark in form)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "form":
            self.forms.append({})
        elif tag == "input" and self.forms and "name" in given:
            ticked = given.get("type") not in ("checkbox", "radio") or "checked" in given
            if ticked and given.get("type") != "file":
                self.forms[-1][given["name"]] = given.get("value", "")
        elif tag == "textarea":
            self._area = given["name"]
            self.forms[-1][self._area] = ""
        elif tag == "select" and self.forms:
            self._select = given["name"]
        elif tag == "option" and self._select and "selected" in given:
            self.forms[-1][self._select] = given.get("value", "")

    def handle_endtag(self, tag):
        if tag == "textarea":
            self.forms[-1][self._area] = self.forms[-1][self._area].removeprefix("\n")
            self._area = ""
        elif tag == "select":
            self._select = ""

    def handle_data(self, data):
        if self._area:
            self.forms[-1][self._area] += data


def form_of(page: Page, mark: str = "use") -> dict[str, str]:
    return {name: text for name, text in Controls(page.html, mark).posted.items() if name != "csrf"}


def raw_of(page: Page):
    return json.loads(Controls(page.html, "raw").posted["raw"])


async def send_form(reader: Reader, path: str, fields: dict[str, str], files: list[tuple[str, str, bytes]]) -> Page:
    """Send a form with files, as a browser does."""
    parts = [(f'form-data; name="{name}"', text.encode()) for name, text in {**fields, "csrf": reader.csrf}.items()]
    parts += [(f'form-data; name="{name}"; filename="{file}"', data) for name, file, data in files]
    body = b"".join(b"--xyz\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (head.encode(), data) for head, data in parts)
    kind = "multipart/form-data; boundary=xyz"
    headers = {"Accept": "text/html", "Authorization": "", "Cookie": reader.cookie, "Origin": "http://x"}
    status, head, answer = await reader.site.ask(
        "POST", f"/ui{path}", body + b"--xyz--\r\n", Content_Type=kind, **headers
    )
    return Page(status, head, answer.decode())


async def result_of(reader: Reader, path: str):
    name = path.removeprefix("/executions/")
    with trio.fail_after(PATIENCE):
        while not (found := await reader.service.get(ANYBODY, name)).status.final:
            await trio.sleep(0.01)
    return json.loads(found.result)


# -- the list --------------------------------------------------------------------------------------------------------


async def test_the_list_has_the_filters_of_its_address(reader):
    def shown(page: Page) -> list[str]:
        return re.findall(r'class="strong" href="/ui/modules/([^"]+)"', page.html)

    await reader.service.execute(ANYBODY, "order", b'{"rows": [], "fail": true}')
    await reader.service.execute(ANYBODY, "plain", b"1")

    assert shown(await reader.get("/modules")) == ["built", "evil", "order", "plain"]
    assert shown(await reader.get("/modules?q=AN+ord")) == ["order"]
    assert shown(await reader.get("/modules?env=venv&env=docker")) == ["built"]
    assert shown(await reader.get("/modules?tag=demo")) == ["order", "plain"]
    assert shown(await reader.get("/modules?state=red")) == ["order"]
    assert shown(await reader.get("/modules?state=ran")) == ["order", "plain"]
    assert shown(await reader.get("/modules?state=idle&cursor=built")) == ["evil"]
    page = await reader.get("/modules?q=nothing")
    assert "No module matches" in page.text
    assert 'value="nothing"' in page.html


async def test_a_long_list_has_pages(tmp_path):
    many = [inline(f"m-{number:03}", "def handler(input): return 1") for number in range(60)]
    async with open_dashboard(tmp_path, many) as reader:
        page = await reader.get("/modules?env=inline")
        following = re.search(r'rel="next" href="/ui([^"]+)"', page.html)[1].replace("&amp;", "&")
        assert "60 modules" in page.text
        assert "m-049" in page.text
        assert "m-050" not in page.text
        page = await reader.get(following)
        assert "m-059" in page.text
        assert "m-049" not in page.text


async def test_a_reader_sees_only_what_the_token_allows(reader):
    other = await limited(reader, "modules:read", modules=["pl*"])
    page = await other.get("/modules")
    assert "plain" in page.text
    assert "order" not in page.text
    assert "New module" not in page.text
    assert "Since yesterday" not in page.text
    assert (await other.get("/modules/order")).status == 404
    about = await other.get("/modules/plain")
    assert 'href="/ui/modules/plain/code"' not in about.html
    assert 'href="/ui/modules/plain/statistics"' not in about.html
    assert "data-json" not in about.html
    for path in ("/modules/plain/code", "/modules/plain/statistics", "/publish"):
        assert (await other.get(path)).status == 403
    for path in ("/modules/plain", "/modules/plain/versions", "/modules/plain/environment", "/publish"):
        assert (await other.post(path, {"do": "run"})).status == 403


# -- the form --------------------------------------------------------------------------------------------------------


async def test_an_untouched_form_posts_what_the_schema_gives(reader):
    page = await reader.get("/modules/order")
    assert raw_of(page) == {"rows": [], "express": True}
    again = await reader.post("/modules/order", {**form_of(page), "do": "to-json"})
    assert raw_of(again) == {"rows": [], "express": True}


async def test_a_form_runs_the_module_without_scripts(reader):
    form = form_of(await reader.get("/modules/order"))
    form = form_of(await reader.post("/modules/order", {**form, "do": "add:/rows"}))
    form |= {"in/rows/0/name": "tea", "in/rows/0/price": "2.5"}
    form = form_of(await reader.post("/modules/order", {**form, "do": "add:/rows"}))
    form |= {"in/rows/1/name": "rice", "in/due": "2027-01-31"}
    value = {"rows": [{"name": "tea", "price": 2.5}, {"name": "rice"}], "due": "2027-01-31", "express": True}
    answer = await reader.post("/modules/order", {**form, "do": "run"})
    assert answer.status == 303
    assert await result_of(reader, answer.to) == value

    form = form_of(await reader.post("/modules/order", {**form, "do": "remove:/rows/0"}))
    answer = await reader.post("/modules/order", {**form, "do": "run"})
    assert await result_of(reader, answer.to) == {**value, "rows": [{"name": "rice"}]}


async def test_json_runs_the_module_and_fills_in_the_form(reader):
    value = {"rows": [{"name": "tea"}], "express": False}
    page = await reader.post("/modules/order", {"do": "to-form", "raw": json.dumps(value)})
    assert form_of(page)["in/rows/0/name"] == "tea"
    answer = await reader.post("/modules/order", {"do": "run-json", "raw": json.dumps(value)})
    assert await result_of(reader, answer.to) == value

    page = await reader.post("/modules/order", {"do": "run-json", "raw": "{rows}"})
    assert page.status == 400
    assert "This is not JSON" in page.text
    assert Controls(page.html, "raw").posted["raw"] == "{rows}"
    page = await reader.post("/modules/order", {"do": "to-form", "raw": '{"other": 1}'})
    assert "does not fit into the form" in page.text
    assert raw_of(page) == {"other": 1}


async def test_what_is_wrong_is_said_at_its_field_and_what_was_typed_stays(reader):
    form = {
        **form_of(await reader.get("/modules/order")),
        "len/rows": "1",
        "in/rows/0/name": "tea",
        "in/rows/0/price": "x",
    }
    page = await reader.post("/modules/order", {**form, "do": "run"})
    assert page.status == 400
    assert form_of(page)["in/rows/0/price"] == "x"
    assert wrong(page) == ["$.rows[0].price"]
    assert "write a number" in page.text
    page = await reader.post("/modules/order", {**form, "in/rows/0/price": "-1", "do": "run"})  # by the schema
    assert (page.status, wrong(page)) == (400, ["$.rows[0].price"])
    page = await reader.post("/modules/order", {"do": "run-json", "raw": '{"rows": [{"name": "x"}]}'})
    assert (page.status, wrong(page)) == (400, ["$.rows[0].name"])


def wrong(page: Page) -> list[str]:
    return re.findall(r'class="field[^"]* wrong" data-path="([^"]+)"', page.html)


async def test_a_module_without_a_schema_takes_json(reader):
    page = await reader.get("/modules/plain")
    assert "describes no fields" in page.text
    answer = await reader.post("/modules/plain", {"do": "run-json", "raw": '["any"]'})
    assert await result_of(reader, answer.to) == ["any"]


async def test_a_file_of_the_form_is_in_the_store(reader):
    form = form_of(await reader.get("/modules/order"))
    answer = await send_form(reader, "/modules/order", {**form, "do": "run"}, [("file/scan", "a b.csv", b"1,2\n")])
    found = (await result_of(reader, answer.to))["scan"]["$file"]
    assert (found["name"], found["size"]) == ("a b.csv", 4)

    page = await send_form(reader, "/modules/order", {**form, "do": "to-json"}, [("file/scan", "a.csv", b"1,2\n")])
    kept = form_of(page)
    assert json.loads(kept["keep/scan"])["$file"]["name"] == "a.csv"
    assert "keep/scan" not in form_of(await reader.post("/modules/order", {**kept, "do": "drop:/scan"}))


async def test_a_script_uploads_a_file_and_follows_a_run(reader):
    headers = {"Authorization": "", "Cookie": reader.cookie, "Origin": "http://x"}
    path = "/ui/modules/order/files?name=a.csv"
    assert (await reader.site.ask("POST", path, b"1,2", **headers))[0] == 403
    status, _, answer = await reader.site.ask("POST", path, b"1,2", X_CSRF_Token=reader.csrf, **headers)
    assert (status, json.loads(answer)["$file"]["name"]) == (201, "a.csv")

    form = form_of(await reader.get("/modules/order"))
    told = json.loads((await reader.post("/modules/order", {**form, "do": "to-json"}, **JSON)).html)
    assert (json.loads(told["json"]), told["wrong"], told["failure"]) == ({"rows": [], "express": True}, {}, None)
    assert 'name="len/rows"' in told["form"]
    answer = await reader.post("/modules/order", {**form, "do": "run"}, **JSON)
    assert answer.status == 202
    assert await result_of(reader, json.loads(answer.html)["id"]) == {"rows": [], "express": True}


async def test_a_caller_who_may_only_run_learns_the_id(reader):
    other = await limited(reader, "modules:read", "executions:run")
    page = await other.post("/modules/plain", {"do": "run-json", "raw": "1"})
    assert page.status == 202
    assert "Accepted as 0" in page.text


# -- code, versions --------------------------------------------------------------------------------------------------


async def test_code_has_lines_that_links_name(reader):
    await reader.service.management.register(
        ANYBODY, described("code", "def handler(input):\n    return '<b>'\n"), **HOW
    )
    page = await reader.get("/modules/code/code?file=/somewhere/else/main.py")
    assert 'id="L2"' in page.html
    assert 'id="L3"' not in page.html
    assert "return '<b>'" in re.sub(r"\s+", " ", page.text.replace("' <", "'<"))
    assert "has no file" not in page.text
    assert "has no file other.py" in (await reader.get("/modules/code/code?file=other.py")).text


def described(name: str, code: str, **fields) -> dict:
    return {"name": name, "env": "inline", "code": code, **fields}


async def two_versions(reader: Reader) -> tuple[str, str]:
    management = reader.service.management
    one = await management.register(ANYBODY, described("m", "def handler(input): return 1", timeout=5), **HOW)
    two = await management.register(ANYBODY, described("m", "def handler(input): return 2", timeout=6), **HOW)
    return one.module.ref.version, two.module.ref.version


async def test_versions_are_compared_and_rolled_back(reader):
    one, two = await two_versions(reader)
    page = await reader.get("/modules/m/versions")
    assert f"From {one} to {two}" in page.text
    assert "\N{MINUS SIGN} def handler(input): return 1" in page.text
    assert "+ def handler(input): return 2" in page.text
    assert "+ timeout: 6.0" in page.text
    assert "Roll back to it" in page.text
    revision = re.search(r'name="revision" value="(\d+)"', page.html)[1]
    answer = await reader.post("/modules/m/versions", {"do": "activate", "version": one, "revision": revision})
    assert (answer.status, answer.to) == (303, "/modules/m/versions")
    assert reader.service.registry.snapshot.modules["m"].ref.version == one
    page = await reader.post("/modules/m/versions", {"do": "activate", "version": two, "revision": revision})
    assert page.status == 409
    assert "look at it again" in page.text
    assert reader.service.registry.snapshot.modules["m"].ref.version == one


async def test_versions_and_modules_are_deleted(reader):
    one, _ = await two_versions(reader)

    async def delete(**fields) -> Page:
        page = await reader.get("/modules/m/versions")
        revision = re.search(r'name="revision" value="(\d+)"', page.html)[1]
        return await reader.post("/modules/m/versions", {"revision": revision, **fields})

    assert (await delete(do="delete", version=one)).status == 303
    assert one not in (await reader.get("/modules/m/versions")).text
    gone = await delete(do="delete-module")
    assert gone.to == "/modules?gone=m"
    assert "The module m is deleted" in (await reader.get(gone.to)).text
    assert (await reader.get("/modules/m")).status == 404


async def test_a_module_of_the_file_has_one_version_and_no_buttons(reader):
    page = await reader.get("/modules/order/versions")
    assert "in the modules file" in page.text
    assert 'value="activate"' not in page.html
    assert "delete-module" not in page.html
    assert "New version" not in page.text


async def test_those_who_may_not_publish_compare_fields_only(reader):
    await two_versions(reader)
    page = await (await limited(reader, "modules:read")).get("/modules/m/versions")
    assert "timeout: 6.0" in page.text
    assert "return 2" not in page.text
    assert "Roll back" not in page.text


# -- statistics, environment, starts ---------------------------------------------------------------------------------


async def test_statistics_have_charts_and_their_numbers(reader):
    assert "Nothing ended in this time" in (await reader.get("/modules/order/statistics")).text
    await reader.service.execute(ANYBODY, "order", b'{"rows": []}')
    await reader.service.execute(ANYBODY, "order", b'{"rows": [], "fail": true}')
    for span in ("day", "week", "month", "unknown"):
        page = await reader.get(f"/modules/order/statistics?span={span}")
        assert page.html.count("<svg viewBox") == 2
        assert "2 executions ended, 1 of them failed." in page.html
        assert "handler_error 1" in page.text


async def test_a_build_is_followed_live(reader):
    page = await reader.get("/modules/built/environment")
    answer = await reader.post("/modules/built/environment")
    assert (answer.status, answer.to) == (303, "/modules/built/environment")
    client = await reader.site.server.connect()
    async with client.stream:
        headers = {"Authorization": "", "Cookie": reader.cookie, "Accept": "text/event-stream"}
        await client.send(reader.site.head("GET", "/ui/modules/built/build?after=0", **headers))
        with trio.fail_after(PATIENCE):
            head = await client.until(b"\r\n\r\n")
            assert b"text/event-stream" in head
            await client.until(b"event: ended")
    page = await reader.get("/modules/built/environment")
    assert "On this machine" in page.text
    assert "ready" in page.text
    assert "Build it now" not in (await (await limited(reader, "modules:read")).get("/modules/built/environment")).text


async def test_nothing_is_built_by_looking(reader):
    client = await reader.site.server.connect()
    async with client.stream:
        headers = {"Authorization": "", "Cookie": reader.cookie}
        await client.send(reader.site.head("GET", "/ui/modules/plain/build", **headers))
        with trio.fail_after(PATIENCE):
            await client.until(b'{"failed":false}')
    assert "nothing to build" in (await reader.get("/modules/plain/environment")).text


async def test_starts_show_commands_schedules_and_notices(reader):
    fields = {
        "endpoints": [{"path": "/hook/{kind}", "methods": ["POST"], "auth": "key"}],
        "schedules": [{"cron": "30 3 * * *"}],
        "on_end": [{"module": "plain", "when": ["failed"]}],
    }
    await reader.service.management.register(
        ANYBODY, described("starts", "def handler(input): return 1", **fields), **HOW
    )
    page = await reader.get("/modules/starts/starts")
    assert "curl -X POST http://x/http/hook/kind" in page.text
    assert "X-API-Key: $KEY" in page.text
    assert "30 3 * * *" in page.text
    assert "to plain when it ends as failed" in page.text
    assert 'href="/ui/schedules/new?module=starts"' in page.html
    assert "no routes of its own" in (await reader.get("/modules/plain/starts")).text


# -- publishing ------------------------------------------------------------------------------------------------------


async def test_a_module_is_written_checked_and_published(reader):
    form = form_of(await reader.get("/publish?name=fresh&env=inline"), "file:handler.py")
    assert "name: " in form["file:module.yaml"]
    broken = {**form, "file:handler.py": "def handler(input)\n    pass\n", "do": "check"}
    told = json.loads((await reader.post("/publish", broken, **JSON)).html)
    assert (told["mistakes"][0]["file"], told["mistakes"][0]["line"]) == ("handler.py", 1)
    page = await reader.post("/publish", {**broken, "do": "publish"})
    assert page.status == 400
    assert form_of(page, "file:handler.py")["file:handler.py"] == broken["file:handler.py"]
    assert 'data-goto="handler.py" data-line="1"' in page.html
    assert json.loads((await reader.post("/publish", {**form, "do": "check"}, **JSON)).html) == {
        "checked": "fresh",
        "mistakes": [],
    }
    assert "fresh" not in reader.service.registry.snapshot.modules

    answer = await reader.post("/publish", {**form, "do": "publish"})
    assert (answer.status, answer.to) == (303, "/modules/fresh?done=1")
    assert "is published" in (await reader.get(answer.to)).text
    again = await reader.post("/publish", {**form, "do": "publish"})
    assert again.status == 409


async def test_a_new_version_begins_with_the_last_one_and_keeps_what_is_not_shown(reader):
    files = [("archive", "pack/handler.py", b"def handler(input): return 1\n"), ("archive", "pack/data.bin", b"\0\1")]
    fields = {"from": "upload", "do": "publish", "activate": "1"}
    given = [*files, ("archive", "pack/module.yaml", b"name: pack\nenv: inline\ntimeout: 7s\n")]
    answer = await send_form(reader, "/publish", fields, given)
    assert answer.to == "/modules/pack?done=1"

    page = await reader.get("/publish?module=pack")
    form = form_of(page, "file:handler.py")
    assert "timeout: 7.0" in form["file:module.yaml"]
    assert form["kept"] == "data.bin"
    form |= {"file:handler.py": "def handler(input): return 2\n", "do": "publish"}
    answer = await reader.post("/publish", {name: text for name, text in form.items() if name != "activate"})
    assert answer.status == 303
    code = await reader.service.details.code(ANYBODY, "pack", re.search("version=([^&]+)", answer.to)[1])
    assert {file.name for file in code} >= {"handler.py", "data.bin"}
    assert reader.service.registry.snapshot.modules["pack"].spec.timeout == 7
    stale = await reader.post("/publish", {**form, "file:handler.py": "def handler(input): return 3\n"})
    assert stale.status == 409


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "choose a folder"),
        ([("archive", "a.zip", b"no zip")], "not a zip file"),
        ([("archive", "x/a.py", b"")], "name"),
    ],
    ids=["nothing", "damaged", "nameless"],
)
async def test_an_upload_that_is_no_module_is_refused(reader, files, said):
    page = await send_form(reader, "/publish", {"from": "upload", "do": "publish"}, files)
    assert page.status == 400
    assert said in page.text


# -- hostile texts ---------------------------------------------------------------------------------------------------


async def test_no_text_of_a_module_becomes_markup(reader):
    await reader.service.execute(ANYBODY, "evil", json.dumps({HOSTILE: HOSTILE}).encode())
    await reader.service.management.register(
        ANYBODY, described("evil-2", EVIL.code, description=HOSTILE, input_schema=dict(EVIL.input_schema)), **HOW
    )
    tabs = ["", "/code", "/versions", "/statistics", "/environment", "/starts"]
    paths = [f"/modules/{name}{tab}" for name in ("evil", "evil-2") for tab in tabs]
    for path in [
        "/modules",
        *paths,
        "/publish?module=evil-2",
        f"/modules?q={HOSTILE.replace(' ', '+').replace('&', '%26')}",
    ]:
        page = await reader.get(path)
        assert page.status == 200, path
        assert "<script>alert" not in page.html, path
        assert "<b onclick" not in page.html, path
        assert "\u202e" not in page.html or path.startswith("/publish"), path
    page = await reader.post("/modules/evil", {"do": "run-json", "raw": f"{{{HOSTILE}"})
    assert "<script>alert" not in page.html
